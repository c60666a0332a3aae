"""A real director between real stacks: ``lvsha run`` in a namespace, and what passes it.

A client, a router, a director with one interface and two real servers, each in a namespace.
The router's bridge is the network of the director and the servers; NAT servers have their
default route through the director, direct-routing servers answer through the router. Every
socket is made in its namespace and then used from here. Frames are captured with their
virtio headers and judged by scapy.
"""

import ctypes
import functools
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from tests import packets
from tests.reader import dissect, faults

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

ROOT = Path(__file__).parents[2]
CLIENT, ROUTER, DIRECTOR, ONE, TWO = (
    f"lvt-{name}" for name in ("client", "router", "director", "one", "two")
)
NAMESPACES = (CLIENT, ROUTER, DIRECTOR, ONE, TWO)
VIP = {4: "10.77.2.100", 6: "fd77:2::100"}
CLIENT_ADDRESS = {4: "10.77.1.2", 6: "fd77:1::2"}
SERVERS = {4: ("10.77.2.11", "10.77.2.12"), 6: ("fd77:2::11", "fd77:2::12")}
NAT_PORT, DR_PORT = 80, 81
OWN_PORT = {NAT_PORT: 8080, DR_PORT: DR_PORT}
BULK_BYTES = 4 * 1024 * 1024
SMALL_MTU = 1300
WAIT = 10.0

Result = TypeVar("Result")


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def within(namespace: str, action: Callable[[], Result]) -> Result:
    """Do something in a namespace: in a thread of its own, so that nothing else moves."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def enter() -> None:
        with Path(f"/run/netns/{namespace}").open(encoding="ascii") as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle.fileno(), 0x4000_0000):
                errors.append(OSError(ctypes.get_errno(), "setns"))
                return
        try:
            results.append(action())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def a_socket(
    namespace: str, family: int, kind: int, address: tuple[str, int] | None = None
) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind)
        made.settimeout(WAIT)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address is not None:
            made.bind(address)
        return made

    return within(namespace, make)


class Capture:
    """Every frame that an interface of a namespace receives or sends, from now on."""

    def __init__(self, namespace: str, interface: str) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
            made.setsockopt(socket.SOL_SOCKET, 33, 64 * 1024 * 1024)  # SO_RCVBUFFORCE
            made.bind((interface, 3))
            return made

        self._socket = within(namespace, make)

    def take(self) -> list[tuple[int, bytes]]:
        """The virtio flags and the IP packet of each frame so far."""
        taken = []
        while select.select([self._socket], [], [], 0)[0]:
            data = self._socket.recv(70_000)
            if data[22:24] in {b"\x08\x00", b"\x86\xdd"}:
                taken.append((data[0], data[24:]))
        return taken

    def close(self) -> None:
        self._socket.close()


def wrong(flags: int, packet: bytes) -> list[str]:
    """What scapy, or the pseudo-header's sum, says against a captured packet."""
    if not flags & 1:
        return faults(packet)
    ipv6 = packet[0] >> 4 == 6
    l4, protocol = (40, packet[6]) if ipv6 else ((packet[0] & 15) * 4, packet[9])
    found = [fault for fault in faults(packet) if "chksum" not in fault or fault.startswith("IP.")]
    if packet != packets.with_partial_checksum(packet, l4, protocol):
        found.append(f"a partial checksum that is not the pseudo-header's sum: {packet[:60].hex()}")
    return found


def build() -> None:
    for namespace in NAMESPACES:
        run("ip", "netns", "add", namespace)
        inside(namespace, "ip", "link", "set", "lo", "up")
    inside(ROUTER, "ip", "link", "add", "lan", "type", "bridge")
    inside(ROUTER, "ip", "link", "set", "lan", "up")
    for namespace in (CLIENT, DIRECTOR, ONE, TWO):
        port = f"to-{namespace[4:]}"
        run("ip", "link", "add", "eth0", "netns", namespace, "type", "veth",
            "peer", "name", port, "netns", ROUTER)  # fmt: skip
        inside(namespace, "ip", "link", "set", "eth0", "up")
        inside(ROUTER, "ip", "link", "set", port, "up")
        if namespace != CLIENT:
            inside(ROUTER, "ip", "link", "set", port, "master", "lan")
    inside(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    inside(DIRECTOR, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
           "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")  # fmt: skip
    for namespace, interface, last in (
        (ROUTER, "lan", 254), (DIRECTOR, "eth0", 1), (ONE, "eth0", 11), (TWO, "eth0", 12),
    ):  # fmt: skip
        place(namespace, interface, f"10.77.2.{last}/24", f"fd77:2::{last}/64")
    place(ROUTER, "to-client", "10.77.1.254/24", "fd77:1::254/64")
    place(CLIENT, "eth0", "10.77.1.2/24", "fd77:1::2/64")
    place(DIRECTOR, "eth0", "10.77.2.100/32", "fd77:2::100/128")
    for namespace, way in ((CLIENT, "1"), (DIRECTOR, "2"), (ONE, "2"), (TWO, "2")):
        inside(namespace, "ip", "route", "add", "default", "via", f"10.77.{way}.254")
        inside(namespace, "ip", "-6", "route", "add", "default", "via", f"fd77:{way}::254")
    for namespace in (ONE, TWO):
        inside(namespace, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1",
               "net.ipv4.conf.all.arp_announce=2")  # fmt: skip
        place(namespace, "lo", "10.77.2.100/32", "fd77:2::100/128")
        # Replies from the server's own address, which are those of NAT, go by the director.
        for family, own, director in (
            ("-4", "10.77.2.0/24", "10.77.2.1"), ("-6", "fd77:2::/64", "fd77:2::1"),
        ):  # fmt: skip
            vip = VIP[int(family[1:])]
            inside(namespace, "ip", family, "route", "add", "default", "via", director,
                   "table", "77")  # fmt: skip
            inside(namespace, "ip", family, "rule", "add", "from", own, "lookup", "77",
                   "priority", "200")  # fmt: skip
            inside(namespace, "ip", family, "rule", "add", "from", vip, "lookup", "main",
                   "priority", "100")  # fmt: skip
            inside(namespace, "ip", family, "rule", "add", "to", own, "lookup", "main",
                   "priority", "90")  # fmt: skip


def place(namespace: str, interface: str, ipv4: str, ipv6: str) -> None:
    inside(namespace, "ip", "addr", "add", ipv4, "dev", interface)
    inside(namespace, "ip", "-6", "addr", "add", ipv6, "dev", interface, "nodad")


def inside(namespace: str, *words: str, check: bool = True) -> str:
    return run("ip", "netns", "exec", namespace, *words, check=check)


def pair_file(directory: Path) -> Path:
    lines = ["[nodes.only.interfaces]", 'lan = "eth0"', ""]
    for family in (4, 6):
        for protocol in ("tcp", "udp"):
            for port, method in ((NAT_PORT, "nat"), (DR_PORT, "dr")):
                servers = ", ".join(
                    f'{{ address = "{address}", port = {OWN_PORT[port]} }}'
                    for address in SERVERS[family]
                )
                lines += [
                    "[[services]]",
                    f'name = "{protocol}-{method}-{family}"',
                    f'address = "{VIP[family]}"',
                    f"port = {port}",
                    f'protocol = "{protocol}"',
                    f'method = "{method}"',
                    'scheduler = "rr"',
                    f"servers = [{servers}]",
                    "",
                ]
    file = directory / "pair.toml"
    file.write_text("\n".join(lines), encoding="ascii")
    return file


class Running:
    """An ``lvsha run`` in the director's namespace, ready when this is made."""

    def __init__(self, file: Path, runtime: Path) -> None:
        self.environment = {**os.environ, "LVSHA_RUNTIME_DIR": str(runtime)}
        self.words = ["ip", "netns", "exec", DIRECTOR, sys.executable, "-m", "lvsha"]
        self.process = subprocess.Popen(
            [*self.words, "run", str(file), "--node", "only", "--log-format", "json"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment,
        )
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if "director started" in line:
                break
        else:
            raise AssertionError("".join(self.log))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def lvsha(self, *words: str) -> str:
        done = subprocess.run(
            [*self.words, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment,
            timeout=60,
            check=True,
        )
        return done.stdout

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


class Servers:
    """In each real server, on each port: TCP that echoes, UDP that says who it is."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        for number, namespace in enumerate((ONE, TWO)):
            for family in (4, 6):
                for port in (NAT_PORT, DR_PORT):
                    # A datagram's answer must come from the address that it went to.
                    here = SERVERS[family][number] if port == NAT_PORT else VIP[family]
                    end = (here, OWN_PORT[port])
                    listener = a_socket(namespace, family, socket.SOCK_STREAM, end)
                    listener.listen(16)
                    datagrams = a_socket(namespace, family, socket.SOCK_DGRAM, end)
                    self._start(self._accept, listener)
                    self._start(functools.partial(self._answer, namespace.encode()), datagrams)

    def _start(self, work: Callable[[socket.socket], None], on: socket.socket) -> None:
        self._sockets.append(on)
        thread = threading.Thread(target=work, args=(on,))
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        listener.settimeout(0.2)
        while not self._stop.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(WAIT)
                    self._echo(connection)

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with suppress(OSError):
            while data := connection.recv(65_536):
                connection.sendall(data)

    def _answer(self, name: bytes, datagrams: socket.socket) -> None:
        datagrams.settimeout(0.2)
        while not self._stop.is_set():
            with suppress(TimeoutError):
                data, client = datagrams.recvfrom(65_536)
                datagrams.sendto(name + b" " + data, client)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


def tear_down() -> None:
    for namespace in NAMESPACES:
        run("ip", "netns", "del", namespace, check=False)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    tear_down()
    try:
        build()
        servers = Servers()
        try:
            yield
        finally:
            servers.close()
    finally:
        tear_down()


@pytest.fixture(scope="module")
def director(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("director")
    running = Running(pair_file(directory), directory / "run")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


@contextmanager
def capturing(*places: tuple[str, str]) -> Iterator[list[Capture]]:
    captures = [Capture(*place) for place in places]
    try:
        yield captures
    finally:
        for capture in captures:
            capture.close()


def mine(taken: list[tuple[int, bytes]], family: int, protocol: int) -> list[tuple[int, bytes]]:
    """Of captured packets those of a family and transport."""
    at = 6 if family == 6 else 9
    return [(f, p) for f, p in taken if p[0] >> 4 == family and p[at] == protocol]


def ends(packet: bytes) -> tuple[str, int, str, int]:
    read = dissect(packet)
    return read.src, read.payload.sport, read.dst, read.payload.dport


METHODS = pytest.mark.parametrize("port", [NAT_PORT, DR_PORT], ids=["nat", "dr"])
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@METHODS
@FAMILIES
def test_a_bulk_transfer_arrives_intact_both_ways(
    director: Running, family: int, port: int
) -> None:
    payload = hashlib.shake_128(b"lvsha").digest(64 * 1024) * (BULK_BYTES // (64 * 1024))
    with (
        capturing((CLIENT, "eth0"), (DIRECTOR, "eth0")) as captures,
        a_socket(CLIENT, family, socket.SOCK_STREAM) as client,
    ):
        client.connect((VIP[family], port))
        sender = threading.Thread(target=client.sendall, args=(payload,))
        sender.start()
        received = bytearray()
        while len(received) < len(payload):
            part = client.recv(1 << 20)
            assert part, "the connection ended early"
            received += part
        sender.join()
        assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()
        own = client.getsockname()[1]
        at_client, at_director = (mine(c.take(), family, packets.TCP) for c in captures)
    assert at_client
    assert at_director
    for flags, packet in at_client + at_director:
        assert wrong(flags, packet) == []
    client_end, virtual = (CLIENT_ADDRESS[family], own), (VIP[family], port)
    # The client speaks with the virtual address and nobody else, and nobody resets it.
    assert {ends(p) for _, p in at_client} == {client_end + virtual, virtual + client_end}
    assert not any(dissect(p).payload.flags.R for _, p in at_client)
    seen = {ends(packet) for _, packet in at_director}
    servers = {(address, OWN_PORT[port]) for address in SERVERS[family]}
    if port == NAT_PORT:
        chosen = {(s, sp) for s, sp, d, dp in seen if (s, sp) in servers}
        assert len(chosen) == 1
        assert seen == {
            a + b
            for a, b in (
                (client_end, virtual),
                (client_end, next(iter(chosen))),
                (next(iter(chosen)), client_end),
                (virtual, client_end),
            )
        }
    else:
        assert seen == {client_end + virtual}


@METHODS
@FAMILIES
def test_datagrams_are_answered_from_the_virtual_address(
    director: Running, family: int, port: int
) -> None:
    answered = set()
    with capturing((CLIENT, "eth0")) as (capture,):
        for length in (0, 1, 1400):
            for _ in range(2):
                with a_socket(CLIENT, family, socket.SOCK_DGRAM) as client:
                    # Connected: the kernel takes an answer only from whom it was sent to.
                    client.connect((VIP[family], port))
                    client.send(bytes(length))
                    name, _, rest = client.recv(2000).partition(b" ")
                    assert rest == bytes(length)
                    answered.add(name)
        taken = mine(capture.take(), family, packets.UDP)
    assert answered == {ONE.encode(), TWO.encode()}
    assert len(taken) == 12
    for flags, packet in taken:
        assert wrong(flags, packet) == []


@METHODS
@FAMILIES
def test_a_smaller_path_to_the_server_is_told_to_the_client(
    director: Running, family: int, port: int
) -> None:
    version = f"-{family}"
    for address in SERVERS[family]:
        prefix = f"{address}/{128 if family == 6 else 32}"
        inside(DIRECTOR, "ip", version, "route", "add", prefix, "dev", "eth0",
               "mtu", str(SMALL_MTU))  # fmt: skip
    try:
        with (
            capturing((CLIENT, "eth0")) as (capture,),
            a_socket(CLIENT, family, socket.SOCK_DGRAM) as client,
        ):
            client.connect((VIP[family], port))
            # IP_MTU_DISCOVER or IPV6_MTU_DISCOVER = DO: do not fragment, tell me.
            level, option = (41, 23) if family == 6 else (0, 10)
            client.setsockopt(level, option, 2)
            size = SMALL_MTU - (48 if family == 6 else 28)
            _until_refused(client, bytes(size + 1))
            # The path's MTU is known now: a larger one does not leave, the largest one does.
            with pytest.raises(OSError, match="too long"):
                client.send(bytes(size + 1))
            # The error that came by ICMP may still wait to be told.
            client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            client.send(bytes(size))
            assert client.recv(2000).endswith(bytes(size))
            errors = mine(capture.take(), family, packets.ICMPV6 if family == 6 else packets.ICMP)
        told = [p for _, p in errors if p[40 if family == 6 else 20] in {2, 3}]
        assert told
        for packet in told:
            assert faults(packet) == []
            at = 40 if family == 6 else 20
            assert packet[at : at + 2] == (b"\x02\x00" if family == 6 else b"\x03\x04")
            assert int.from_bytes(packet[at + 4 : at + 8]) == SMALL_MTU
            assert dissect(packet).src == VIP[family]
    finally:
        for address in SERVERS[family]:
            prefix = f"{address}/{128 if family == 6 else 32}"
            inside(DIRECTOR, "ip", version, "route", "del", prefix, "dev", "eth0")
        inside(CLIENT, "ip", version, "route", "flush", "cache")


def _until_refused(client: socket.socket, data: bytes) -> None:
    """Send until the director's word about the MTU has come.

    The director hears of the route a moment after it was set; until then it forwards.
    """
    limit = time.monotonic() + WAIT
    while time.monotonic() < limit:
        try:
            client.send(data)
        except OSError:
            return
        select.select([client], [], [], 0.05)
    raise AssertionError("nobody told the client of the smaller MTU")


@FAMILIES
def test_the_host_still_answers_ping_and_ports_of_no_service(
    director: Running, family: int
) -> None:
    assert _ping(family)
    with (
        a_socket(CLIENT, family, socket.SOCK_STREAM) as client,
        pytest.raises(OSError, match="refused"),
    ):
        client.connect((VIP[family], 9))


def _ping(family: int) -> bool:
    """One echo request to the virtual address; whether its answer came."""

    def make() -> socket.socket:
        if family == 6:
            return socket.socket(socket.AF_INET6, socket.SOCK_RAW, packets.ICMPV6)
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, packets.ICMP)

    with within(CLIENT, make) as pinger:
        pinger.settimeout(WAIT)
        kind = 128 if family == 6 else 8
        message = packets.icmp_message(
            CLIENT_ADDRESS[family], VIP[family], kind, 0, b"ping", rest=0x0077_0001
        )
        pinger.sendto(message, (VIP[family], 0))
        while True:
            data = pinger.recv(2000)
            reply = data if family == 6 else data[20:]
            if reply[0] == (129 if family == 6 else 0) and reply[8:] == b"ping":
                return True


@FAMILIES
def test_a_removed_and_restored_neighbour_costs_no_datagram(director: Running, family: int) -> None:
    for address in SERVERS[family]:
        inside(DIRECTOR, "ip", "neigh", "flush", "to", address)
    with a_socket(CLIENT, family, socket.SOCK_DGRAM) as client:
        client.connect((VIP[family], NAT_PORT))
        client.send(b"after")
        assert client.recv(100).endswith(b"after")


def test_rules_that_someone_flushes_come_back(director: Running) -> None:
    for words in (("flush", "ruleset"), ("delete", "table", "netdev", "lvsha")):
        run("ip", "netns", "exec", DIRECTOR, "nft", *words)
        until = time.monotonic() + WAIT
        while not table_is_loaded():
            assert time.monotonic() < until, "the table did not come back"
            time.sleep(0.01)


def test_nothing_was_a_surprise(director: Running) -> None:
    status = json.loads(director.lvsha("status", "--json"))
    assert status["surprises"] == []
    assert "surprise" not in status["drops"]
    assert "bad_segmentation" not in status["drops"]


def table_is_loaded() -> bool:
    return "lvsha" in inside(DIRECTOR, "nft", "list", "tables")


def test_the_end_of_the_director_takes_its_rules_away_but_its_death_leaves_them(
    director: Running, tmp_path: Path
) -> None:
    assert table_is_loaded()
    assert director.end(signal.SIGTERM) == 0
    assert not table_is_loaded()
    again = Running(pair_file(tmp_path), tmp_path / "run")
    again.end(signal.SIGKILL)
    assert table_is_loaded()
    for family in (4, 6):
        with (
            capturing((CLIENT, "eth0")) as (capture,),
            a_socket(CLIENT, family, socket.SOCK_STREAM) as client,
        ):
            client.setblocking(False)
            client.connect_ex((VIP[family], NAT_PORT))
            # The answer to a later ping says that the SYN was dealt with: by silence.
            assert _ping(family)
            segments = mine(capture.take(), family, packets.TCP)
        assert [p for _, p in segments if ends(p)[2] == VIP[family]]
        assert not [p for _, p in segments if ends(p)[0] == VIP[family]]
    again.lvsha("clean", str(tmp_path / "pair.toml"), "--node", "only")
    assert not table_is_loaded()
