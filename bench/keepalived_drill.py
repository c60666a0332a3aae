"""The drill's own laboratory with keepalived instead of lvsha, for a comparison.

Each director runs Debian's keepalived, VRRP alone, with the virtual addresses, the interval and
the priorities of the drill's pair file. Its kernel forwards, by a rule of nftables that sends
the UDP flow to the first real server: a kernel without IPVS can do that, and it costs nothing
at a takeover. So what is compared is the time until the other director has the address and the
client has heard of it; connections are no part of it.

Run in a private world as ``python -m bench.keepalived_drill OPTIONS LIFELINE``; see
`lvsha.drill.exercise`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from rich.console import Console

from lvsha.drill import laboratory
from lvsha.drill.directors import Director, Status, program_environment
from lvsha.drill.exercise import perform
from lvsha.drill.laboratory import REAL_SERVERS, ROUTERS, UDP_PORT, Plan
from lvsha.drill.options import DrillOptions, decode_options
from lvsha.drill.recording import ROUTER
from lvsha.drill.seclusion import extend_search_path

LOOK_TIME_MAX: Final = 1.0
POLL: Final = 0.05


def configuration(name: str, plan: Plan, advert_interval: float) -> str:
    """The text of a director's keepalived.conf."""
    return f"""\
global_defs {{
    router_id {name}
    vrrp_version 3
}}
vrrp_instance web {{
    state BACKUP
    interface outside
    virtual_router_id 51
    priority {ROUTERS[0].priority(name)}
    advert_int {advert_interval}
    virtual_ipaddress {{
        {plan.with_prefix("outside", plan.virtual)} dev outside
        {plan.with_prefix("inside", plan.gateway)} dev inside
    }}
}}
"""


def forwarding(plan: Plan) -> str:
    """The rules with which a kernel forwards the UDP flow."""
    server = plan.real_address(ROUTERS[0], REAL_SERVERS[0])
    return f"""\
table ip drill {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {plan.virtual} udp dport {UDP_PORT} dnat to {server}
    }}
}}
"""


class KeepalivedDirector(Director):
    """A director that is a keepalived and a kernel."""

    def __init__(self, options: DrillOptions, name: str, pair: Path, log: Path) -> None:
        super().__init__(name, pair, log)
        self._plan = Plan(options.method, options.family)
        self._interval = options.advert_interval
        self._file = pair.with_name(f"keepalived-{name}.conf")

    async def start(self) -> None:
        """Start keepalived; its kernel begins to forward."""
        assert not self.running
        self.expected, self.killed = True, False
        self._file.write_text(configuration(self.name, self._plan, self._interval))
        self._file.chmod(0o600)
        await trio.run_process(
            laboratory.enter(
                self.name,
                [
                    "sh",
                    "-ec",
                    "echo 1 > /proc/sys/net/ipv4/ip_forward; nft flush ruleset; nft -f -",
                ],
            ),
            stdin=forwarding(self._plan).encode(),
        )
        files = ["-p", f"/run/{self.name}.pid", "-r", f"/run/{self.name}-vrrp.pid"]
        command = ["keepalived", "-n", "-P", "-l", "-D", "-f", str(self._file), *files]
        with self.log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                laboratory.enter(self.name, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=program_environment(),
                start_new_session=True,
            )

    def _deliver(self, number: signal.Signals) -> None:
        # To its children as well.
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill it, and its children."""
        if self.running:
            self.signal(signal.SIGKILL)

    async def status(self) -> Status | None:
        """MASTER is who has the address; there is no copy of connections to wait for."""
        if not self.running or self.stopped:
            return None
        with trio.move_on_after(LOOK_TIME_MAX):
            done = await trio.run_process(
                ["ip", "-n", self.name, "-o", "address", "show", "to", self._plan.virtual],
                capture_stdout=True,
                check=False,
            )
            return Status({ROUTER: "MASTER" if done.stdout.strip() else "BACKUP"}, True)
        return None

    async def follow(self, saw: Callable[[str, str], None]) -> None:
        """Look again and again."""
        while (status := await self.status()) is not None:
            for router, state in status.states.items():
                saw(router, state)
            await trio.sleep(POLL)


def main() -> int:
    """The first process in the private world."""
    extend_search_path()
    options = decode_options(sys.argv[1])

    def make(name: str, pair: Path, log: Path) -> Director:
        return KeepalivedDirector(options, name, pair, log)

    return perform(options, int(sys.argv[2]), Console(), make)


if __name__ == "__main__":
    sys.exit(main())
