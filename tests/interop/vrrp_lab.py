"""Two namespaces on a wire: lvsha in one, keepalived in the other, as their users start them.

A `Side` is a namespace, the program that runs in it, and a record of when its virtual
addresses came and went, from the kernel's own notifications. Programs are killed and
namespaces removed at the end, whatever happened.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
INTERFACE: Final = "outside"
OWN: Final = {
    "lvsha": {4: "192.0.2.1", 6: "2001:db8::1"},
    "keepalived": {4: "192.0.2.2", 6: "2001:db8::2"},
}
PATIENCE: Final = 20.0
POLL: Final = 0.01


class VrrpError(Exception):
    """The two do not get on with each other as they should."""


@dataclass(frozen=True, slots=True)
class Router:
    """One virtual router, as both sides have it.

    Attributes:
        checksum: what stands in lvsha's pair file.
        virtual_mac: whether lvsha has the addresses at a MAC address of their own.
    """

    version: int
    family: int
    unicast: bool
    checksum: str
    name: str
    vrid: int
    addresses: tuple[str, ...]
    virtual_mac: bool = False

    def __str__(self) -> str:
        cast = "unicast" if self.unicast else "multicast"
        text = f"v{self.version} IPv{self.family} {cast}"
        if (self.version, self.family) == (3, 4):
            text += f" checksum={self.checksum}"
        return f"{text} virtual MAC" if self.virtual_mac else text


@dataclass(frozen=True, slots=True)
class Case:
    """The virtual routers that the two sides share, of one version."""

    routers: tuple[Router, ...]

    @property
    def version(self) -> int:
        return self.routers[0].version

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for router in self.routers for address in router.addresses)

    def __str__(self) -> str:
        return ", ".join(map(str, self.routers))


def router(
    version: int,
    family: int,
    *,
    unicast: bool,
    checksum: str = "auto",
    vrid: int = 51,
    virtual_mac: bool = False,
) -> Router:
    """A virtual router with a name and addresses of its own."""
    last = vrid - 41
    addresses = {4: (f"192.0.2.{last}/24",), 6: (f"fe80::{last}/64", f"2001:db8::{last}/64")}
    name = f"router-{vrid}-{family}"
    return Router(version, family, unicast, checksum, name, vrid, addresses[family], virtual_mac)


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise VrrpError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def until(what: str, happened: Callable[[], bool], limit: float = PATIENCE) -> None:
    """Wait for something, with a limit."""
    end = time.monotonic() + limit
    while not happened():
        if time.monotonic() > end:
            raise VrrpError(f"not within {limit:.1f} s: {what}")
        time.sleep(POLL)


class Program:
    """A process whose lines are kept with the time at which they came."""

    def __init__(self, words: Sequence[str], runtime: Path | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        if runtime is not None:
            environment["LVSHA_RUNTIME_DIR"] = str(runtime)
        self.lines: list[tuple[float, str]] = []
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            # A group of its own, so that a program and its children end together.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def said(self, *words: str, since: float = 0.0) -> float | None:
        """When it first said a line with all these words."""
        for at, line in list(self.lines):
            if at >= since and all(word in line for word in words):
                return at
        return None

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        if self._process.poll() is not None:
            raise VrrpError(f"it has ended by itself:\n{self.tail()}")
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self) -> None:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise VrrpError(f"it does not end:\n{self.tail()}") from None
        self._reader.join(PATIENCE)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def tail(self) -> str:
        return "\n".join(f"    {line}" for _, line in self.lines[-12:])


class Side:
    """One namespace, what runs in it, and what its kernel says of the virtual addresses."""

    def __init__(self, stack: ExitStack, name: str, namespace: str, case: Case) -> None:
        self.name = name
        self.namespace = namespace
        self.program: Program | None = None
        self._stack = stack
        self._virtual = case.addresses
        self._monitor = self.start("ip", "-o", "monitor", "address")

    def start(self, *words: str, runtime: Path | None = None) -> Program:
        # What this measures is not how well a busy machine shares its processors.
        first = ("nice", "-n", "-15")
        program = Program((*first, "ip", "netns", "exec", self.namespace, *words), runtime)
        self._stack.callback(program.close)
        return program

    def holdings(self) -> list[tuple[float, int]]:
        """How many virtual addresses were here, from when on."""
        present: set[str] = set()
        found = [(0.0, 0)]
        for at, line in list(self._monitor.lines):
            for address in self._virtual:
                if address in line.split():
                    present = present - {address} if "Deleted" in line else present | {address}
            if found[-1][1] != len(present):
                found.append((at, len(present)))
        return found

    @property
    def is_empty(self) -> bool:
        return self.holdings()[-1][1] == 0

    @property
    def is_full(self) -> bool:
        return self.holdings()[-1][1] == len(self._virtual)

    @property
    def changed_at(self) -> float:
        """When the addresses came or went last."""
        return self.holdings()[-1][0]

    def wipe(self) -> None:
        """Take away what a program that was killed has left."""
        run("ip", "-n", self.namespace, "link", "set", INTERFACE, "up")
        for address in self._virtual:
            words = ("ip", "-n", self.namespace, "address", "delete", address, "dev", INTERFACE)
            subprocess.run(words, capture_output=True, check=False, timeout=30)


class Lab:
    """Both sides, and how their programs are started and stopped."""

    def __init__(self, stack: ExitStack, case: Case, folder: Path, number: int) -> None:
        self.case = case
        self._folder = folder
        self._runtime = folder / "run"
        self._runtime.mkdir(mode=0o700)
        spaces = {name: f"vrrp{os.getpid()}-{number}{name[0]}" for name in OWN}
        for space in spaces.values():
            run("ip", "netns", "add", space)
            stack.callback(run, "ip", "netns", "delete", space)
            # No second of duplicate address detection for the own addresses.
            for key in ("accept_dad=0", "dad_transmits=0"):
                sysctl = f"net.ipv6.conf.default.{key}"
                run("ip", "netns", "exec", space, "sysctl", "-qw", sysctl)
            run("ip", "-n", space, "link", "set", "lo", "up")
        ours, theirs = spaces["lvsha"], spaces["keepalived"]
        veth = ("link", "add", INTERFACE, "type", "veth", "peer", INTERFACE, "netns", theirs)
        run("ip", "-n", ours, *veth)
        for name, space in spaces.items():
            run("ip", "-n", space, "link", "set", INTERFACE, "up")
            for family, length in ((4, 24), (6, 64)):
                address = f"{OWN[name][family]}/{length}"
                run("ip", "-n", space, "address", "add", address, "dev", INTERFACE)
        for space in spaces.values():
            until("a link-local address", partial(_has_link_local, space))
        self.lvsha = Side(stack, "lvsha", ours, case)
        self.keepalived = Side(stack, "keepalived", theirs, case)

    def start_lvsha(self, priority: int, interval: float, *, preempt: bool = True) -> float:
        """Start it; returns when it began to listen."""
        path = self._folder / "pair.toml"
        path.write_text(self._pair(priority, interval, preempt=preempt))
        words = (sys.executable, "-m", "lvsha", "run", str(path), "--node", "here")
        program = self.lvsha.program = self.lvsha.start(*words, runtime=self._runtime)
        return _first(program, "state_changed", "started")

    def start_keepalived(self, priority: int, interval: float, *, preempt: bool = True) -> float:
        """Start it; returns when it began to listen."""
        path = self._configure_keepalived(priority, interval, preempt=preempt)
        pids = (f"--pid={path}.pid", f"--vrrp_pid={path}.vrrp.pid")
        for pid in pids:
            # Of one that was killed and that nobody has buried yet.
            Path(pid.partition("=")[2]).unlink(missing_ok=True)
        words = ("keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", str(path), *pids)
        program = self.keepalived.program = self.keepalived.start(*words)
        return _first(program, "Entering BACKUP STATE")

    def reload_keepalived(self, priority: int, interval: float) -> float:
        """Give it another configuration; returns when."""
        self._configure_keepalived(priority, interval, preempt=True)
        now = time.monotonic()
        program = self._program(self.keepalived)
        program.signal(signal.SIGHUP)
        until("keepalived reloads", lambda: program.said("eload", since=now) is not None)
        return now

    def stop(self, side: Side) -> float:
        """End its program in order; returns when it was told to."""
        program, now = self._program(side), time.monotonic()
        program.signal(signal.SIGTERM)
        return now

    def kill(self, side: Side) -> float:
        """End its program without a chance to do anything."""
        program, now = self._program(side), time.monotonic()
        program.signal(signal.SIGKILL, group=True)
        program.wait()
        return now

    def wait_end(self, side: Side) -> None:
        self._program(side).wait()

    def lvsha_routers(self) -> list[dict[str, object]]:
        """What lvsha says of its virtual routers."""
        (path,) = self._runtime.glob("control-*.sock")
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(str(path))
            asking.sendall(b'{"command": "status"}\n')
            with asking.makefile() as answer:
                return list(json.loads(answer.readline())["result"]["routers"].values())

    def tails(self) -> str:
        sides = (self.lvsha, self.keepalived)
        return "\n".join(
            f"  {side.name} says last:\n{side.program.tail()}" for side in sides if side.program
        )

    @staticmethod
    def _program(side: Side) -> Program:
        assert side.program is not None
        return side.program

    def _pair(self, priority: int, interval: float, *, preempt: bool) -> str:
        routers = "".join(
            f"""
[[virtual_routers]]
name = "{router.name}"
vrid = {router.vrid}
version = {router.version}
interface = "outside"
addresses = {json.dumps(router.addresses)}
advert_interval = {interval}
preempt = {str(preempt).lower()}
checksum = "{router.checksum}"
virtual_mac = {str(router.virtual_mac).lower()}
sync_id = {number}
{_peers_of_lvsha(router)}
"""
            for number, router in enumerate(self.case.routers)
        )
        return f"""{routers}
[nodes.here]
priority = {priority}
interfaces = {{ outside = "{INTERFACE}" }}
"""

    def _configure_keepalived(self, priority: int, interval: float, *, preempt: bool) -> Path:
        as_version_2 = "v3_checksum_as_v2" if self.case.routers[0].checksum == "rfc9568" else ""
        text = f"""
global_defs {{
    vrrp_version {self.case.version}
    {as_version_2}
}}
"""
        for router in self.case.routers:
            addresses = "\n        ".join(router.addresses)
            text += f"""
vrrp_instance {router.name} {{
    state BACKUP
    interface {INTERFACE}
    virtual_router_id {router.vrid}
    priority {priority}
    advert_int {interval:g}
    {"" if preempt else "nopreempt"}
    {_peers_of_keepalived(router)}
    virtual_ipaddress {{
        {addresses}
    }}
}}
"""
        path = self._folder / "keepalived.conf"
        path.write_text(text)
        return path


def _peers_of_lvsha(router: Router) -> str:
    if not router.unicast:
        return ""
    peers = json.dumps([OWN[name][router.family] for name in OWN])
    # Older keepaliveds send unicast over IPv6 with the kernel's default hop limit.
    return f"peers = {peers}" + ("\nhop_limit_min = 64" if router.family == 6 else "")


def _peers_of_keepalived(router: Router) -> str:
    if not router.unicast:
        return ""
    own, peer = OWN["keepalived"][router.family], OWN["lvsha"][router.family]
    return f"unicast_src_ip {own}\n    unicast_peer {{\n        {peer}\n    }}"


def _first(program: Program, *words: str) -> float:
    until(" ".join(words), lambda: program.said(*words) is not None)
    at = program.said(*words)
    assert at is not None
    return at


def _has_link_local(space: str) -> bool:
    found = run("ip", "-n", space, "-6", "-o", "address", "show", "dev", INTERFACE)
    return "fe80::" in found and "tentative" not in found
