"""``python -m tests.interop.migration``: a kernel director dies, and lvsha takes its place.

A guest with a real kernel is the master: IPVS by NAT, its sync daemon, keepalived. lvsha is its
backup: it speaks VRRP with that keepalived and hears that sync daemon. Clients and servers are
real TCP stacks in network namespaces. When lvsha knows the connections the guest is killed,
and what counts is how many of them go on with their servers.

    client ---+--- bridge ---+--- guest (the kernel) ---+--- bridge --- servers
              |              +--- lvsha             ---+
                            a third bridge: sync
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from tests.interop.confinement import enter_network_namespace
from tests.interop.kernel import Guest, GuestError, missing

ROOT: Final = Path(__file__).parents[2]
VIP, GATEWAY = "10.0.0.100", "10.1.0.254"
SERVERS = ("10.1.0.11", "10.1.0.12", "10.1.0.13")
SYNC_ID, VRID = 51, 51
ADVERT_INTERVAL = 0.3
TAKEOVER_TIME = 10.0
LINKS = ("client", "server", "sync")
MACS = tuple(bytes.fromhex(f"0200{number:02x}000001") for number in (0x0C, 0x05, 0x02))
PATIENCE = 20.0
BOOTS_MAX = 3

PAIR = f"""
[nodes.new]
priority = 100
interfaces = {{ outside = "client0", inside = "server0", sync = "sync0" }}

[[virtual_routers]]
name = "web"
vrid = {VRID}
interface = "outside"
addresses = ["{VIP}/24", "{GATEWAY}/16@inside"]
advert_interval = {ADVERT_INTERVAL}
checksum = "keepalived"
sync_id = {SYNC_ID}

[[services]]
name = "web"
address = "{VIP}"
port = 80
scheduler = "rr"
servers = [{", ".join(f'{{ address = "{server}", port = 8080 }}' for server in SERVERS)}]

[sync]
format = "ipvs"
interface = "sync"
"""

KEEPALIVED = f"""
global_defs {{
    vrrp_version 3
}}
vrrp_instance web {{
    state BACKUP
    interface vec0
    virtual_router_id {VRID}
    priority 200
    advert_int {ADVERT_INTERVAL}
    virtual_ipaddress {{
        {VIP}/24 dev vec0
        {GATEWAY}/16 dev vec1
    }}
}}
"""

SERVER_PROGRAM = """
import asyncio, sys

async def serve(reader, writer):
    name = writer.get_extra_info("sockname")[0].encode()
    while line := await reader.readline():
        writer.write(name + b"\\n")
    writer.close()

async def main():
    for address in sys.argv[1:]:
        await asyncio.start_server(serve, address, 8080)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

CLIENT_PROGRAM = """
import asyncio, json, sys, time

vip, active, idle = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
gap = 0.0

class Connection:
    async def open(self):
        self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection(vip, 80), 10)
        self.server = await self.ask()

    async def ask(self):
        self.writer.write(b"who?\\n")
        answer = await asyncio.wait_for(self.reader.readline(), 20)
        if not answer:
            raise ConnectionResetError
        return answer

    async def goes_on(self):
        try:
            return await self.ask() == self.server
        except (OSError, asyncio.TimeoutError):
            return False

async def talk(connection, over):
    global gap
    while not over.is_set():
        began = time.monotonic()
        if not await connection.goes_on():
            return False
        gap = max(gap, time.monotonic() - began)
        await asyncio.sleep(0.1)
    return True

async def main():
    talking = [Connection() for _ in range(active)]
    silent = [Connection() for _ in range(idle)]
    for connection in (*talking, *silent):
        await connection.open()
    over = asyncio.Event()
    tasks = [asyncio.create_task(talk(connection, over)) for connection in talking]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    over.set()
    print(json.dumps({
        "active": sum(await asyncio.gather(*tasks)),
        "idle": sum(await asyncio.gather(*(one.goes_on() for one in silent))),
        "servers": len({one.server for one in (*talking, *silent)}),
        "gap": gap,
    }), flush=True)

asyncio.run(main())
"""


class MigrationError(Exception):
    """The drill could not be carried out."""


@dataclass(frozen=True, slots=True)
class PlainTap:
    """A link of the guest that hangs on a bridge."""

    name: str


@dataclass(frozen=True, slots=True)
class Result:
    """What the drill comes to.

    Attributes:
        active, idle: connections that went on with their servers, and how many there were.
        gap: the longest time, in seconds, that a talking connection waited for an answer.
    """

    active: tuple[int, int]
    idle: tuple[int, int]
    gap: float
    known_after: float

    @property
    def lost(self) -> int:
        """Connections that did not go on."""
        return self.active[1] - self.active[0] + self.idle[1] - self.idle[0]

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.active[0]} of {self.active[1]} talking and {self.idle[0]} of {self.idle[1]} "
            f"silent connections of the kernel go on with lvsha; known to it after "
            f"{self.known_after:.1f} s, longest wait for an answer {self.gap:.1f} s"
        )


class Site:
    """The machines and their cables."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.client, self.servers, self.lvsha = (
            f"lvi-{name}-{os.getpid()}" for name in ("client", "servers", "lvsha")
        )
        for name in (self.client, self.servers, self.lvsha):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self.taps = [PlainTap(f"lvi{number}") for number in range(len(LINKS))]
        for tap, link in zip(self.taps, LINKS, strict=True):
            run(*f"ip link add {link} type bridge mcast_snooping 0".split())
            run(*f"ip link set {link} up".split())
            run(*f"ip tuntap add dev {tap.name} mode tap".split())
            run(*f"ip link set {tap.name} master {link} up".split())
        self._cable("client", self.client, "10.0.0.50/24")
        self._cable("server", self.servers, *(f"{server}/16" for server in SERVERS))
        run("ip", "-n", self.servers, "route", "add", "default", "via", GATEWAY)
        self._cable("client", self.lvsha, "10.0.0.2/24")
        self._cable("server", self.lvsha, "10.1.0.2/16")
        self._cable("sync", self.lvsha, "10.2.0.2/24")
        run("ip", "netns", "exec", self.lvsha, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def _cable(self, link: str, namespace: str, *addresses: str) -> None:
        far = f"{link[:2]}-{namespace[4:6]}"
        run(*f"ip link add {far} type veth peer {link}0 netns {namespace}".split())
        run(*f"ip link set {far} master {link} up".split())
        for address in addresses:
            run("ip", "-n", namespace, "address", "add", address, "dev", f"{link}0")
        run("ip", "-n", namespace, "link", "set", f"{link}0", "up")

    def start_kernel(self) -> Guest:
        """The guest as the master of everything."""
        guest = self._boot()
        self._stack.callback(guest.close)
        services = [f"-A -t {VIP}:80 -s rr"]
        services += [f"-a -t {VIP}:80 -r {server}:8080 -m" for server in SERVERS]
        services += [f"--start-daemon master --mcast-interface vec2 --syncid {SYNC_ID}"]
        lines = "\n".join(services)
        guest.do(
            "modprobe -d /run/tree -a ip_vs ip_vs_rr",
            "ip link set lo up",
            *(
                f"ip address add {address} dev {link}"
                for address, link in (
                    ("10.0.0.1/24", "vec0"),
                    ("10.1.0.1/16", "vec1"),
                    ("10.2.0.1/24", "vec2"),
                )
            ),
            *(f"ip link set {link} up" for link in ("vec0", "vec1", "vec2")),
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
            f"ipvsadm -R <<'END'\n{lines}\nEND",
            f"cat >/run/keepalived.conf <<'END'\n{KEEPALIVED}END",
            "setsid keepalived --dont-fork --vrrp -f /run/keepalived.conf -p /run/keepalived.pid "
            "-r /run/vrrp.pid </dev/null >/dev/null 2>&1 &",
        )
        return guest

    def _boot(self) -> Guest:
        for _ in range(BOOTS_MAX - 1):
            try:
                return Guest(self.taps, MACS)
            except GuestError:
                continue  # a guest on a busy machine sometimes dies while it starts
        return Guest(self.taps, MACS)

    def start_lvsha(self) -> None:
        """lvsha as the backup; its log goes to a file."""
        pair = self._folder / "pair.toml"
        pair.write_text(PAIR, encoding="utf-8")
        log = self._stack.enter_context((self._folder / "log").open("w", encoding="utf-8"))
        self._start(
            self.lvsha,
            *(sys.executable, "-m", "lvsha", "run", str(pair), "--node", "new"),
            stderr=log,
        )

    def log(self) -> str:
        """What lvsha has logged."""
        return (self._folder / "log").read_text(encoding="utf-8")

    def start_servers(self) -> None:
        """Every real server."""
        process = self._start(
            self.servers, sys.executable, "-c", SERVER_PROGRAM, *SERVERS, stdout=subprocess.PIPE
        )
        expect_ready(process)

    def start_clients(self, active: int, idle: int) -> "subprocess.Popen[str]":
        """Connections that are open when this returns."""
        process = self._start(
            self.client,
            *(sys.executable, "-c", CLIENT_PROGRAM, VIP, str(active), str(idle)),
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        expect_ready(process)
        return process

    def _start(
        self,
        namespace: str,
        *command: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: IO[str] | None = None,
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd=ROOT,
        )
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.kill)
        return process

    def ask(self, *words: str) -> str:
        """What the running lvsha answers; empty if it does not."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.lvsha, sys.executable, "-m", "lvsha", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=20,
        )
        return done.stdout if not done.returncode else ""

    def state(self) -> str:
        """What lvsha is for the virtual router."""
        answer = self.ask("status", "--json")
        return str(json.loads(answer)["routers"]["web"]["state"]) if answer else ""

    def known(self) -> int:
        """How many established connections lvsha knows."""
        return self.ask("ipvsadm", "-Lnc").count("ESTABLISHED")


def migrate(active: int, idle: int) -> Result:
    """The whole drill.

    Raises:
        MigrationError: it could not be carried out.
    """
    with ExitStack() as stack:
        site = Site(stack)
        site.start_servers()
        guest = site.start_kernel()
        until("the kernel director has the address", lambda: VIP in guest.do("ip -4 address"))
        site.start_lvsha()
        until("lvsha follows", lambda: site.state() == "BACKUP")
        clients = site.start_clients(active, idle)
        began = time.monotonic()
        until("lvsha knows the connections", lambda: site.known() >= active + idle)
        known_after = time.monotonic() - began
        assert site.state() == "BACKUP", site.log()
        guest.kill()
        until("lvsha has taken over", lambda: site.state() == "MASTER", TAKEOVER_TIME)
        time.sleep(1.0)
        assert clients.stdin is not None
        assert clients.stdout is not None
        clients.stdin.write("\n")
        clients.stdin.flush()
        found = cast("dict[str, float]", json.loads(clients.stdout.readline()))
        return Result(
            (int(found["active"]), active),
            (int(found["idle"]), idle),
            found["gap"],
            known_after,
        )


def until(what: str, holds: Callable[[], bool], limit: float = PATIENCE) -> None:
    """Wait until something holds.

    Raises:
        MigrationError: it does not in time.
    """
    end = time.monotonic() + limit
    while not holds():
        if time.monotonic() > end:
            raise MigrationError(f"not within {limit:.0f} s: {what}")
        time.sleep(0.1)


def expect_ready(process: "subprocess.Popen[str]") -> None:
    """Read the word that a program says first.

    Raises:
        MigrationError: it says something else.
    """
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != "ready\n":
        raise MigrationError(f"a program in a namespace does not start: {said!r}")


def run(*words: str) -> None:
    """Run a command that must not fail."""
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=20)


def why_not() -> str | None:
    """Why the drill cannot be had here; None if it can."""
    if shutil.which("keepalived") is None:
        return "needs the program keepalived"
    return missing()


def main(words: Sequence[str]) -> int:
    """Run the drill; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.migration")
    parser.add_argument("--active", type=int, default=20, help="connections that talk")
    parser.add_argument("--idle", type=int, default=20, help="connections that are silent")
    arguments = parser.parse_args(words)
    reason = why_not()
    if reason is not None:
        print(f"migration skipped: {reason}")
        return 0
    enter_network_namespace()
    began = time.monotonic()
    result = migrate(arguments.active, arguments.idle)
    print(f"migration: {result}; {time.monotonic() - began:.0f} s in all")
    return 1 if result.lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
