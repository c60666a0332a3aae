"""A real kernel's IPVS as director: a user-mode Linux guest between two links.

The guest's root is the host's file tree, read-only; `guest_init.sh` and `guest_agent.py` run
in it. Commands go in as files, answers come over its serial line. The network is that of
`tests.laboratory`: the same addresses, routes and static neighbours, so that lvsha's director
can stand in its place.

What left because of a packet is known without waiting: behind each packet go two *fences*,
echo requests that the guest answers on one side and forwards to the other. It handles frames
in their order, and each link keeps the order of what leaves, so that once both fences are
back there is nothing more to come.
"""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, cast

from tests import packets
from tests.interop.confinement import PLAIN_VECTORS, prepare_guest
from tests.interop.lvsha_side import server_lines, tunnel_ends
from tests.interop.wire import SyncTap, Tap, wait
from tests.laboratory import CLIENT, CLIENT_MAC, MACS, SERVER, SERVERS_KNOWN, Left, server_mac

HERE = Path(__file__).parent
MODULES = Path("/usr/lib/uml/modules")
PROGRAMS: Final = {
    "linux.uml": "user-mode-linux",
    "ipvsadm": "ipvsadm",
    "ip": "iproute2",
    "tc": "iproute2",
    "modprobe": "kmod",
}
"""The programs that are used, and the Debian packages that hold them."""

ANSWER_TIME = 30.0
FENCE_TIME = 0.05
FENCES_MAX = 40
FENCE_IDENTIFIER = 0xFE9C
BOOTS_MAX = 4

# IPv4 keeps what it has learnt of a path with the route, so that goes and comes back.
_SERVERS_ROUTE = "10.1.0.0/16 dev vec1 proto kernel scope link src 10.1.0.1"
_FORGET_PATH_MTU = f"""ip -batch - <<'END'
route del {_SERVERS_ROUTE}
route add {_SERVERS_ROUTE}
route flush cache
END"""

CommandResult = tuple[int, str, str]


class GuestError(Exception):
    """The guest does not start, does not answer, or refuses what it must not refuse."""


def missing() -> str | None:
    """Why no guest can be had here; None if one can."""
    if os.geteuid():
        return "needs root"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"needs the program {program} (Debian package {package})"
    if not MODULES.is_dir():
        return f"needs the guest's modules in {MODULES} (Debian package user-mode-linux)"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    return None


class Link(Protocol):
    """A network device that is an end of one of the guest's links."""

    @property
    def name(self) -> str:
        """Of the device."""


class Guest:
    """The running guest: its process, and the line over which it is asked."""

    def __init__(self, taps: Sequence[Link], macs: Sequence[bytes]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="lvsha-interop-"))
        shutil.copy(HERE / "guest_agent.py", self._directory)
        init = shutil.copy(HERE / "guest_init.sh", self._directory)
        links = [
            f"vec{number}:transport=tap,ifname={tap.name},mac={mac.hex(':')},depth=64,gro=0"
            for number, (tap, mac) in enumerate(zip(taps, macs, strict=True))
        ]
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_TIME)
        self._log = (self._directory / "console").open("wb")
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._directory)}
        self._process = subprocess.Popen(
            [
                "linux.uml",
                *("rootfstype=hostfs", "ro", "mem=192M", "quiet", "loglevel=3"),
                *("con=null", "con0=null,fd:2", "ssl=null", "ssl0=fd:0,fd:1"),
                f"init={init}",
                f"REQUESTS={self._directory}",
                f"PYTHON={Path(sys.executable).resolve()}",
                PLAIN_VECTORS,
                *links,
            ],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=self._log,
            cwd="/",
            env=environment | {"TMPDIR": str(self._directory)},
            start_new_session=True,
            preexec_fn=prepare_guest,
        )
        theirs.close()
        self._line = ours
        self._answers = ours.makefile("rb")
        self._requests = itertools.count()
        try:
            self.release = self._first_answer()
        except GuestError:
            self.close()
            raise

    def _first_answer(self) -> str:
        # The guest's own kernel writes to the same line before the agent runs.
        while True:
            line = self._read()
            if line.startswith(b'{"release"'):
                return cast("dict[str, str]", json.loads(line))["release"]

    def _read(self) -> bytes:
        try:
            line = self._answers.readline()
        except TimeoutError as error:
            raise GuestError("the guest does not answer") from error
        if not line:
            console = (self._directory / "console").read_bytes()[:400]
            raise GuestError(f"the guest has ended: {console.decode(errors='replace')}")
        return line

    def run(self, *commands: str) -> list[CommandResult]:
        """Run shell commands in the guest, one after the other."""
        name = str(next(self._requests))
        request = self._directory / name
        request.write_text(json.dumps({"run": commands}), encoding="utf-8")
        self._line.sendall(f"{name}\n".encode())
        answers = cast("list[tuple[int, str, str]]", json.loads(self._read()))
        request.unlink()
        return [(status, output, errors) for status, output, errors in answers]

    def do(self, *commands: str) -> str:
        """Run shell commands of which none may fail; returns what they printed."""
        results = self.run(*commands)
        for command, (status, _, errors) in zip(commands, results, strict=True):
            if status:
                raise GuestError(f"{command}: {errors or status}")
        return "".join(output for _, output, _ in results)

    def kill(self) -> None:
        """End the guest, as a power cut would."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.poll()
        self._process.wait()

    def close(self) -> None:
        """End the guest and remove what it left."""
        self.kill()
        self._answers.close()
        self._line.close()
        self._log.close()
        shutil.rmtree(self._directory)


class KernelSide:
    """The kernel's director with the face that both sides of the comparison have.

    The calling process must be in a network namespace of its own.

    Args:
        vips: the virtual addresses, with prefix lengths.
        synced: lay a third link, for sync daemons; see `SyncTap`.
    """

    def __init__(self, vips: Sequence[str], *, synced: bool = False) -> None:
        self._vips = tuple(vips)
        self._sync = SyncTap() if synced else None
        self._taps = {
            "client": Tap(0, "client", MACS[CLIENT], CLIENT_MAC),
            "server": Tap(1, "server", MACS[SERVER], server_mac(packets.address("10.1.0.2"))),
        }
        self._fences = itertools.count(1)
        self._marks: set[str] = set()
        self._loaded: list[str] = []
        self._guest = self._boot()

    def _links(self) -> list[Link]:
        return [*self._taps.values(), *([self._sync] if self._sync is not None else [])]

    def _boot(self) -> Guest:
        macs = [MACS[CLIENT], MACS[SERVER], SyncTap.guest_mac][: len(self._links())]
        for attempt in range(BOOTS_MAX):
            try:
                guest = Guest(self._links(), macs)
            except GuestError:
                # A guest on a busy machine sometimes dies while it starts.
                if attempt == BOOTS_MAX - 1:
                    raise
                continue
            guest.do(*_network(self._vips))
            if self._sync is not None:
                addresses = [_address(a, "vec2") for a in SyncTap.guest_addresses]
                batch = "\n".join([*addresses, "link set vec2 up"])
                guest.do(f"ip -batch - <<'END'\n{batch}\nEND")
            self._marks.clear()
            self._loaded.clear()
            return guest
        raise AssertionError

    def reboot(self) -> None:
        """Start anew with another guest: this one has failed."""
        self._guest.close()
        self._guest = self._boot()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._guest.close()

    @property
    def release(self) -> str:
        """The kernel's version."""
        return self._guest.release

    def reset(self, schedulers: Sequence[str]) -> None:
        """A fresh IPVS: no service, no connection, default settings."""
        load = ["ip_vs", *(f"ip_vs_{name}" for name in sorted(set(schedulers)))]
        commands = [_FORGET_PATH_MTU, "ip -6 route flush cache"]
        if self._loaded:
            unload = [*self._loaded[1:], "ip_vs"]
            commands += ["ipvsadm -C", f"modprobe -d /run/tree -r -a {' '.join(unload)}"]
        self._guest.do(*commands, f"modprobe -d /run/tree -a {' '.join(load)}")
        self._loaded = load
        self._exchange("client", [])

    def do(self, *commands: str) -> str:
        """Run shell commands in the guest of which none may fail; returns what they printed."""
        return self._guest.do(*commands)

    def ipvsadm(self, command: str) -> CommandResult:
        """Carry out one ipvsadm command: exit status, output, errors."""
        [result] = self._guest.run(f"ipvsadm {command}")
        return result

    def configure(self, commands: Sequence[str]) -> None:
        """Carry out ipvsadm commands of which none may fail, in one go."""
        if commands:
            lines = "\n".join(commands)
            self._guest.do(f"ipvsadm -R <<'END'\n{lines}\nEND")

    def sysctl(self, name: str, value: str) -> None:
        """Change a setting of IPVS."""
        self._guest.do(f"echo '{value}' >/proc/sys/net/ipv4/vs/{name}")

    def mark(self, destination: str, mark: int) -> None:
        """Give a firewall mark to what clients send to a prefix; lasts beyond `reset`."""
        if destination in self._marks:
            return
        if not self._marks:
            self._guest.do(
                "modprobe -d /run/tree -a sch_ingress cls_flower act_skbedit",
                "tc qdisc add dev vec0 ingress",
            )
        self._marks.add(destination)
        family = "ipv6" if ":" in destination else "ip"
        self._guest.do(
            f"tc filter add dev vec0 ingress protocol {family} prio {len(self._marks)} "
            f"flower dst_ip {destination} action skbedit mark {mark}"
        )

    def send(self, side: str, packet: bytes) -> list[Left]:
        """Let a packet come in; returns all that left because of it."""
        return self._exchange(side, [packet])

    def _exchange(self, side: str, batch: Sequence[bytes]) -> list[Left]:
        tap = self._taps[side]
        for packet in batch:
            tap.send(packet)
        left: list[Left] = []
        for _ in range(FENCES_MAX):
            if self._fence(tap, left):
                return left
        raise GuestError(f"no frame comes back on the {side} side")

    def _fence(self, tap: Tap, left: list[Left]) -> bool:
        number = next(self._fences) & 0xFFFF
        for fence in _fence_packets(tap.side, number):
            tap.send(fence)
        taps = list(self._taps.values())
        open_sides = {"client", "server"}
        end = time.monotonic() + FENCE_TIME
        while open_sides:
            remaining = end - time.monotonic()
            if remaining <= 0:
                return False
            wait(taps, remaining)
            for outgoing in itertools.chain.from_iterable(each.receive() for each in taps):
                found = _fence_number(outgoing.packet)
                if found is None:
                    left.append(outgoing)
                elif found == number:
                    open_sides.discard(outgoing.side)
        return True

    def connections(self) -> list[str]:
        """The connections as ``ipvsadm -Lnc`` prints them, without the time left, sorted."""
        lines = self._guest.do("ipvsadm -Lnc").splitlines()[2:]
        return sorted(" ".join(line.split()[:1] + line.split()[2:]) for line in lines)

    def counts(self) -> list[str]:
        """Each real server of ``ipvsadm -Ln``: service, server, method and counts, sorted."""
        return server_lines(self._guest.do("ipvsadm -Ln"))

    def tunnels(self) -> list[tuple[str, str]]:
        """The address and the kind of tunnel of each server that has one."""
        return tunnel_ends(self._guest.do("ipvsadm -Ln --tun-info"))


def _fence_packets(side: str, number: int) -> tuple[bytes, bytes]:
    """Two echo requests: one to the director itself, one through it."""
    client, server = "10.0.0.254", f"10.1.0.{SERVERS_KNOWN - 1}"
    here, director, there = (
        (client, "10.0.0.1", server) if side == "client" else (server, "10.1.0.1", client)
    )
    rest = FENCE_IDENTIFIER << 16 | number
    return (
        packets.icmp(here, director, 8, 0, b"", rest=rest),
        packets.icmp(here, there, 8, 0, b"", rest=rest),
    )


def _fence_number(packet: bytes) -> int | None:
    """The number of a fence; None for any other packet."""
    if packet[0] != 0x45 or packet[9] != packets.ICMP or packet[20] not in {0, 8}:
        return None
    if int.from_bytes(packet[24:26]) != FENCE_IDENTIFIER:
        return None
    return int.from_bytes(packet[26:28])


def _address(address: str, link: str) -> str:
    # An address that is still being probed would not be chosen as a tunnel's source.
    return f"address add {address} dev {link}" + (" nodad" if ":" in address else "")


def _network(vips: Sequence[str]) -> list[str]:
    """The commands that give the guest the laboratory's network."""
    gateway = CLIENT_MAC.hex(":")
    settings = {
        "net.ipv4.ip_forward": 1,
        "net.ipv4.conf.all.rp_filter": 0,
        "net.ipv4.conf.default.rp_filter": 0,
        "net.ipv4.conf.all.send_redirects": 0,
        "net.ipv4.conf.default.send_redirects": 0,
        "net.ipv4.icmp_ratelimit": 0,
        "net.ipv4.icmp_msgs_per_sec": 1_000_000,
        "net.ipv6.conf.all.forwarding": 1,
        "net.ipv6.conf.all.accept_dad": 0,
        "net.ipv6.conf.default.accept_dad": 0,
        "net.ipv6.icmp.ratelimit": 0,
    }
    for link in ("vec0", "vec1"):
        settings[f"net.ipv4.conf.{link}.rp_filter"] = 0
        settings[f"net.ipv4.conf.{link}.send_redirects"] = 0
    batch = ["link set lo up"]
    for link, addresses in (
        ("vec0", ("10.0.0.1/24", "fd00:c::1/64")),
        ("vec1", ("10.1.0.1/16", "fd00:5::1/64")),
    ):
        batch += [_address(address, link) for address in addresses]
        batch.append(f"link set {link} up")
    batch += [_address(vip, "lo") for vip in vips]
    for way in ("10.0.0.254", "fd00:c::fe"):
        batch.append(f"neighbour add {way} lladdr {gateway} dev vec0 nud permanent")
    batch += ["route add default via 10.0.0.254", "route add ::/0 via fd00:c::fe"]
    for last in range(2, SERVERS_KNOWN):
        for address in (f"10.1.0.{last}", f"fd00:5::{last:x}"):
            mac = server_mac(packets.address(address)).hex(":")
            batch.append(f"neighbour add {address} lladdr {mac} dev vec1 nud permanent")
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    return [
        "modprobe -d /run/tree -q ipv6 || true",
        f"sysctl -qw {words}",
        "ip -batch - <<'END'\n" + "\n".join(batch) + "\nEND",
    ]
