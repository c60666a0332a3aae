"""Real speakers, real kernels: two namespaces and a wire, and a keepalived as a neighbour.

Each speaker is a process of its own (this file, started as a program) that prints its
state changes as JSON lines. A third process in the namespace of the observer prints every
frame it sees. Everything waits for an event, with a limit, and for a fixed time only where
nothing must happen in it.
"""

import ipaddress
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
from scapy.layers.inet import IP
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vrrp import VRRPv3

from lvsha.failover.addresses import InterfaceAddress, NetlinkAddresses
from lvsha.failover.election import Election
from lvsha.failover.speaker import RouterStateChanged, Speaker
from lvsha.failover.transport import RawTransport, own_address

ROOT = Path(__file__).parents[2]
INTERFACE = "outside"
VRID = 7
INTERVAL = 0.1
VIRTUAL = {4: ["192.0.2.10/24"], 6: ["fe80::10/64", "2001:db8::10/64"]}
# 3 intervals, at most one more of skew, and what a busy machine may add.
TAKEOVER_MAX = 4 * INTERVAL + 1.0
# addresses.LIFETIME, and the second by which the kernel's timer may be late.
LIFETIME_MAX = 4 + 1 + 0.5

pytestmark = pytest.mark.netns


class Child:
    """A program in a namespace whose lines can be waited for."""

    def __init__(self, namespace: str, command: list[str]) -> None:
        self.namespace = namespace
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            # A group of its own, so that a program and its children end together.
            start_new_session=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait(10)
        self.reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait_for_state(self, state: str, limit: float) -> dict[str, object]:
        """Skip state changes up to the first one into ``state``."""
        end = time.monotonic() + limit
        while True:
            try:
                change = json.loads(self.lines.get(timeout=max(0.01, end - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"{self.namespace} did not become {state}") from None
            if change["new"] == state:
                return dict(change)

    def changes_so_far(self) -> list[str]:
        found = []
        while not self.lines.empty():
            found.append(json.loads(self.lines.get())["new"])
        return found


def until(what: str, predicate: Callable[[], bool], limit: float) -> float:
    """Wait for something that the kernel does; returns how long it took."""
    began = time.monotonic()
    while not predicate():
        if time.monotonic() - began > limit:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


class Lab:
    """Two namespaces on one wire."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.east = f"lvf-east-{os.getpid()}"
        self.west = f"lvf-west-{os.getpid()}"
        for namespace in (self.east, self.west):
            ip(f"netns add {namespace}")
            stack.callback(ip, f"netns delete {namespace}")
            # No second of duplicate address detection for the own addresses.
            sysctl = ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"]
            run(["ip", "netns", "exec", namespace, *sysctl])
        ip(f"-n {self.east} link add {INTERFACE} type veth peer {INTERFACE} netns {self.west}")
        for number, namespace in enumerate((self.east, self.west), 1):
            ip(f"-n {namespace} link set {INTERFACE} up")
            ip(f"-n {namespace} address add 192.0.2.{number}/24 dev {INTERFACE}")
            ip(f"-n {namespace} address add 2001:db8::{number}/64 dev {INTERFACE}")
        for namespace in (self.east, self.west):
            until("a link-local address", partial(self._has_link_local, namespace), 5)

    @staticmethod
    def _has_link_local(namespace: str) -> bool:
        return "fe80::" in ip(f"-n {namespace} -6 address show scope link")

    def child(self, namespace: str, command: list[str]) -> Child:
        child = Child(namespace, command)
        self.stack.callback(child.close)
        return child

    def speaker(
        self, namespace: str, priority: int, family: int, *, checksum: str = "rfc9568"
    ) -> Child:
        return self.child(
            namespace, [sys.executable, __file__, str(priority), str(family), checksum]
        )

    def keepalived(self, namespace: str, priority: int, family: int, folder: Path) -> Child:
        lines = "\n".join(VIRTUAL[family])
        path = folder / f"keepalived-{namespace}.conf"
        path.write_text(
            f"""
global_defs {{
    vrrp_version 3
}}
vrrp_instance lab {{
    state BACKUP
    interface {INTERFACE}
    virtual_router_id {VRID}
    priority {priority}
    advert_int {INTERVAL}
    virtual_ipaddress {{
        {lines}
    }}
}}
"""
        )
        pids = [f"--pid={path}.pid", f"--vrrp_pid={path}.vrrp.pid"]
        return self.child(
            namespace,
            ["keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", str(path), *pids],
        )

    def holds(self, namespace: str, family: int) -> bool:
        """Whether all virtual addresses are there; a part of them fails the test."""
        words = ip(f"-n {namespace} -o address show dev {INTERFACE}").split()
        return all(address in words for address in VIRTUAL[family])

    def holds_none(self, namespace: str, family: int) -> bool:
        words = ip(f"-n {namespace} -o address show dev {INTERFACE}").split()
        return not any(address in words for address in VIRTUAL[family])


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def ip(arguments: str) -> str:
    return run(["ip", *arguments.split()])


@contextmanager
def laboratory() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("named network namespaces need root")
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no network namespaces here: {probe.stderr.decode().strip()}")
    with ExitStack() as stack:
        yield Lab(stack)


def started_at(change: dict[str, object]) -> float:
    assert isinstance(change["time"], float)
    return change["time"]


@pytest.mark.parametrize("family", [4, 6])
def test_a_killed_master_is_succeeded_and_its_kernel_lets_go(family: int) -> None:
    with laboratory() as lab:
        east = lab.speaker(lab.east, 200, family)
        east.wait_for_state("MASTER", 10)
        west = lab.speaker(lab.west, 100, family)
        west.wait_for_state("BACKUP", 10)
        until("east holds the addresses", lambda: lab.holds(lab.east, family), 2)
        east.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        taken_at = started_at(west.wait_for_state("MASTER", TAKEOVER_MAX))
        assert taken_at - killed_at < TAKEOVER_MAX
        until("west holds the addresses", lambda: lab.holds(lab.west, family), 2)
        until("east lost them", lambda: lab.holds_none(lab.east, family), LIFETIME_MAX)
        assert time.monotonic() - killed_at < LIFETIME_MAX
        # The one that renews keeps them for longer than a lifetime.
        assert lab.holds(lab.west, family)


def test_a_stopped_process_loses_its_addresses_and_does_not_take_them_back() -> None:
    with laboratory() as lab:
        east = lab.speaker(lab.east, 200, 4)
        east.wait_for_state("MASTER", 10)
        west = lab.speaker(lab.west, 100, 4)
        west.wait_for_state("BACKUP", 10)
        until("east holds the addresses", lambda: lab.holds(lab.east, 4), 2)
        east.signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        west.wait_for_state("MASTER", TAKEOVER_MAX)
        until("east lost them", lambda: lab.holds_none(lab.east, 4), LIFETIME_MAX)
        assert time.monotonic() - stopped_at < LIFETIME_MAX
        listener = Listener(lab, lab.west)
        east.signal(signal.SIGCONT)
        change = east.wait_for_state("BACKUP", 5)
        assert change["reason"] == "stalled"
        # Two more renewals of west, in which east would have taken over again.
        frames = listener.listen(2.0)
        assert lab.holds_none(lab.east, 4)
        assert lab.holds(lab.west, 4)
        assert (east.changes_so_far(), west.changes_so_far()) == ([], [])
        assert all(frame.src != mac(lab.east) for frame in frames if VRRPv3 in frame)


def test_a_clean_stop_hands_over_faster_than_three_advertisements() -> None:
    with laboratory() as lab:
        west = lab.speaker(lab.west, 100, 4)
        west.wait_for_state("MASTER", 10)
        east = lab.speaker(lab.east, 200, 4)
        east.wait_for_state("MASTER", 10)
        west.wait_for_state("BACKUP", 5)
        until("east holds the addresses", lambda: lab.holds(lab.east, 4), 2)
        east.signal(signal.SIGTERM)
        left_at = started_at(east.wait_for_state("INIT", 5))
        taken = west.wait_for_state("MASTER", TAKEOVER_MAX)
        assert taken["reason"] == "master_resigned"
        # The skew of priority 100 is 61 ms.
        assert started_at(taken) - left_at < 3 * INTERVAL
        assert lab.holds_none(lab.east, 4)
        assert east.process.wait(5) == 0


def mac(namespace: str) -> str:
    return run(
        ["ip", "netns", "exec", namespace, "cat", f"/sys/class/net/{INTERFACE}/address"]
    ).strip()


class Listener:
    """Every frame that comes out of the wire in a namespace, from now on."""

    def __init__(self, lab: Lab, namespace: str) -> None:
        self.child = lab.child(namespace, [sys.executable, __file__, "listen"])
        assert self.child.lines.get(timeout=10) == "ready\n"
        self.frames: list[Ether] = []

    def listen(
        self, seconds: float, enough: Callable[[list[Ether]], bool] = lambda _: False
    ) -> list[Ether]:
        """All frames so far, when they are enough or the time is over."""
        end = time.monotonic() + seconds
        while not enough(self.frames) and (left := end - time.monotonic()) > 0:
            try:
                self.frames.append(Ether(bytes.fromhex(self.child.lines.get(timeout=left))))
            except queue.Empty:
                break
        return self.frames


@pytest.mark.parametrize("checksum", ["rfc9568", "keepalived"])
def test_frames_of_ipv4_are_right_to_an_independent_reader(checksum: str) -> None:
    with laboratory() as lab:
        listener = Listener(lab, lab.west)
        own = mac(lab.east)

        def announced(frames: list[Ether]) -> bool:
            arps = [frame for frame in frames if ARP in frame]
            return [frame[ARP].psrc for frame in arps].count("192.0.2.10") == 4

        lab.speaker(lab.east, 200, 4, checksum=checksum)
        frames = [frame for frame in listener.listen(10, announced) if frame.src == own]
        adverts = [frame for frame in frames if VRRPv3 in frame]
        assert adverts
        for frame in adverts:
            assert frame.dst == "01:00:5e:00:00:12"
            assert (frame[IP].src, frame[IP].dst) == ("192.0.2.1", "224.0.0.18")
            assert (frame[IP].ttl, frame[IP].proto) == (255, 112)
            advert = frame[VRRPv3]
            assert (advert.vrid, advert.priority, advert.adv) == (VRID, 200, 10)
            assert advert.addrlist == ["192.0.2.10"]
            message = bytes(advert)[: 8 + 4]
            words = [int.from_bytes(message[at : at + 2]) for at in range(0, 12, 2)]
            without = sum(words) % 0xFFFF == 0
            assert without is (checksum == "rfc9568")
            if checksum == "keepalived":
                again = frame.copy()
                del again[VRRPv3].chksum
                assert Ether(bytes(again))[VRRPv3].chksum == advert.chksum
        arps = [frame for frame in frames if ARP in frame and frame[ARP].psrc == "192.0.2.10"]
        # At once and again after one second, each as a request and as a reply.
        assert [frame[ARP].op for frame in arps] == [1, 2, 1, 2]
        for frame in arps:
            assert frame.dst == "ff:ff:ff:ff:ff:ff"
            assert (frame[ARP].hwsrc, frame[ARP].pdst) == (own, "192.0.2.10")


def test_frames_of_ipv6_are_right_to_an_independent_reader() -> None:
    with laboratory() as lab:
        listener = Listener(lab, lab.west)
        own = mac(lab.east)

        def announced(frames: list[Ether]) -> bool:
            told = [frame for frame in frames if ICMPv6ND_NA in frame]
            return [frame[ICMPv6ND_NA].O for frame in told].count(1) == 4

        lab.speaker(lab.east, 200, 6)
        frames = [frame for frame in listener.listen(10, announced) if frame.src == own]
        adverts = [frame for frame in frames if VRRPv3 in frame]
        assert adverts
        for frame in adverts:
            assert frame.dst == "33:33:00:00:00:12"
            assert (frame[IPv6].hlim, frame[IPv6].nh, frame[IPv6].dst) == (255, 112, "ff02::12")
            assert frame[IPv6].src.startswith("fe80::")
            assert frame[IPv6].src != "fe80::10"
            again = frame.copy()
            del again[VRRPv3].chksum
            assert Ether(bytes(again))[VRRPv3].chksum == frame[VRRPv3].chksum
        told = [frame for frame in frames if ICMPv6ND_NA in frame and frame[ICMPv6ND_NA].O]
        targets = [frame[ICMPv6ND_NA].tgt for frame in told]
        assert targets == ["fe80::10", "2001:db8::10"] * 2
        for frame in told:
            assert (frame[IPv6].hlim, frame[IPv6].dst) == (255, "ff02::1")
            assert (frame[ICMPv6ND_NA].S, frame[ICMPv6ND_NA].R) == (0, 0)
            again = frame.copy()
            del again[ICMPv6ND_NA].cksum
            assert Ether(bytes(again))[ICMPv6ND_NA].cksum == frame[ICMPv6ND_NA].cksum


def test_a_link_that_goes_down_and_comes_back_is_survived() -> None:
    with laboratory() as lab:
        east = lab.speaker(lab.east, 200, 4)
        east.wait_for_state("MASTER", 10)
        until("east holds the addresses", lambda: lab.holds(lab.east, 4), 2)
        ip(f"-n {lab.east} link set {INTERFACE} down")
        west = lab.speaker(lab.west, 100, 4)
        west.wait_for_state("MASTER", 10)
        ip(f"-n {lab.east} link set {INTERFACE} up")
        # East has the higher priority and wins as soon as they hear each other.
        west.wait_for_state("BACKUP", 10)
        until("west gave way", lambda: lab.holds_none(lab.west, 4), 2)
        assert east.process.poll() is None
        assert lab.holds(lab.east, 4)


def need_keepalived() -> None:
    if shutil.which("keepalived") is None:
        pytest.skip("keepalived is not installed")


@pytest.mark.parametrize("family", [4, 6])
def test_takes_over_from_a_killed_keepalived(family: int, tmp_path: Path) -> None:
    need_keepalived()
    with laboratory() as lab:
        theirs = lab.keepalived(lab.east, 200, family, tmp_path)
        until("keepalived holds the addresses", lambda: lab.holds(lab.east, family), 15)
        ours = lab.speaker(lab.west, 100, family, checksum="keepalived")
        ours.wait_for_state("BACKUP", 10)
        # It hears keepalived for longer than its down interval and stays a backup.
        Listener(lab, lab.west).listen(1.0)
        assert ours.changes_so_far() == []
        theirs.signal(signal.SIGKILL)
        taken = ours.wait_for_state("MASTER", TAKEOVER_MAX)
        assert taken["reason"] in {"master_silent", "master_resigned"}
        until("lvsha holds the addresses", lambda: lab.holds(lab.west, family), 2)


@pytest.mark.parametrize("family", [4, 6])
def test_preempts_keepalived_and_gives_back_to_it(family: int, tmp_path: Path) -> None:
    need_keepalived()
    with laboratory() as lab:
        lab.keepalived(lab.east, 100, family, tmp_path)
        until("keepalived holds the addresses", lambda: lab.holds(lab.east, family), 15)
        ours = lab.speaker(lab.west, 200, family, checksum="keepalived")
        taken = ours.wait_for_state("MASTER", 10)
        assert taken["reason"] == "preempted_lower_priority"
        until("keepalived gave way", lambda: lab.holds_none(lab.east, family), 3)
        until("lvsha holds the addresses", lambda: lab.holds(lab.west, family), 2)
        ours.signal(signal.SIGTERM)
        ours.wait_for_state("INIT", 5)
        until("keepalived took over", lambda: lab.holds(lab.east, family), 3)
        assert lab.holds_none(lab.west, family)


def test_the_checksum_of_the_rfc_is_understood_by_a_keepalived_that_can(tmp_path: Path) -> None:
    need_keepalived()
    program = Path(shutil.which("keepalived") or "").read_bytes()
    if b"v3_checksum_as_v2" not in program:
        pytest.skip("this keepalived has no v3_checksum_as_v2 and wants the pseudo-header")
    with laboratory() as lab:
        theirs = lab.keepalived(lab.east, 100, 4, tmp_path)
        path = tmp_path / f"keepalived-{lab.east}.conf"
        text = path.read_text()
        theirs.close()
        path.write_text(text.replace("vrrp_version 3", "vrrp_version 3\n    v3_checksum_as_v2"))
        lab.child(lab.east, ["keepalived", "--dont-fork", "--vrrp", "-f", str(path)])
        until("keepalived holds the addresses", lambda: lab.holds(lab.east, 4), 15)
        lab.speaker(lab.west, 200, 4, checksum="rfc9568").wait_for_state("MASTER", 10)
        until("keepalived gave way", lambda: lab.holds_none(lab.east, 4), 3)


# From here on in the children.


async def speak(priority: int, family: int, checksum: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    virtual = [ipaddress.ip_interface(text) for text in VIRTUAL[family]]
    packed = [one.ip.packed for one in virtual]
    source = own_address(INTERFACE, family, packed)
    election = Election(
        vrid=VRID, priority=priority, interval=INTERVAL, preempt=True, address=source
    )
    election.permit_preemption(True, trio.current_time())
    send, changes = trio.open_memory_channel[RouterStateChanged](64)
    with RawTransport(INTERFACE, lambda _: (source, ())) as transport:
        speaker = Speaker(
            election,
            transport,
            NetlinkAddresses([InterfaceAddress(INTERFACE, one) for one in virtual]),
            send,
            name="lab",
            virtual_addresses=packed,
            pseudo_header=checksum == "keepalived",
        )

        async def stop_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    await speaker.stop()
                    return

        async def tell() -> None:
            async for change in changes:
                told = {"time": time.monotonic(), "new": change.new.name, "reason": change.reason}
                print(json.dumps(told), flush=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal)
            nursery.start_soon(tell)
            await speaker.run()
            send.close()


def listen() -> None:
    everything = 0x0003
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(everything)) as tap:
        tap.bind((INTERFACE, everything))
        print("ready", flush=True)
        while True:
            print(tap.recv(2048).hex(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen()
    else:
        trio.run(speak, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
