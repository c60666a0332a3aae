"""The director as a whole: no frame breaks it, and it decides what a naive twin decides."""

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvsha.datapath.director import Reporting
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import Protocol
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, TUN, V4, V6, Laboratory, Left
from tests.packets import ACK, FIN, PSH, RST, SYN
from tests.reader import dissect, faults

REFUSED = {Reason.MALFORMED, Reason.TRUNCATED, Reason.FRAGMENT}
SERVERS4 = ("10.1.0.11", "10.1.0.12", "10.1.0.13")
SERVERS6 = ("fd00:5::b", "fd00:5::c", "fd00:5::d")


def build() -> Laboratory:
    """Services of both families and transports, by all methods, with connections."""
    laboratory = Laboratory(reporting=Reporting())
    for vip, servers in ((V4, SERVERS4), (V6, SERVERS6)):
        for protocol in (Protocol.TCP, Protocol.UDP):
            for port, method in ((80, NAT), (81, DR), (82, TUN)):
                service = laboratory.service(vip, port, protocol=protocol)
                for server in servers[:2]:
                    laboratory.server(
                        service, server, 8080 if method is NAT else None, method=method
                    )
    # Tunnels may join the families.
    mixed = laboratory.service(V4, 83, protocol=Protocol.UDP)
    laboratory.server(mixed, S6, method=TUN)
    mixed = laboratory.service(V6, 83, protocol=Protocol.UDP)
    laboratory.server(mixed, S4, method=TUN)
    for here, there in ((C4, V4), (C6, V6)):
        for port in (80, 81, 82):
            laboratory.send("client", packets.tcp(here, 40000, there, port, SYN))
            laboratory.send("client", packets.tcp(here, 40000, there, port, ACK))
            laboratory.send("client", packets.udp(here, 40000, there, port))
    return laboratory


def _valid() -> list[tuple[str, bytes]]:
    """Frames that are for the director, of every kind it knows."""
    frames: list[tuple[str, bytes]] = []
    for here, there, server in ((C4, V4, S4), (C6, V6, S6)):
        ipv6 = ":" in here
        for port in (80, 81, 82, 83):
            frames += [
                ("client", packets.tcp(here, 40000, there, port, ACK | PSH, b"x" * 40)),
                ("client", packets.tcp(here, 40001, there, port, SYN, tcp_options=b"\x01" * 12)),
                ("client", packets.udp(here, 40000, there, port, b"y" * 33)),
                ("client", packets.udp(here, 40002, there, port, bytes(1472), checksum=False)),
                ("client", packets.udp(here, 40002, there, port, bytes(3000))),
                (
                    "client",
                    packets.udp(here, 40002, there, port, bytes(3000), dont_fragment=False),
                ),
                (
                    "client",
                    packets.icmp(
                        here,
                        there,
                        2 if ipv6 else 3,
                        0 if ipv6 else 4,
                        packets.tcp(there, port, here, 40000),
                        rest=1280,
                    ),
                ),
            ]
        for address in (SERVERS6 if ipv6 else SERVERS4)[:2]:
            frames += [
                ("server", packets.tcp(address, 8080, here, 40000, SYN | ACK)),
                ("server", packets.udp(address, 8080, here, 40000, b"z")),
                (
                    "server",
                    packets.icmp(
                        address, here, 1 if ipv6 else 3, 3, packets.tcp(here, 40000, address, 8080)
                    ),
                ),
            ]
        frames += [
            ("client", packets.tcp(here, 40000, there, 80, ACK, ttl=1)),
            ("server", packets.tcp(server, 8080, here, 40009, ACK)),
            ("client", packets.icmp(here, there, 128 if ipv6 else 8, 0, b"ping")),
        ]
    frames.append(("client", packets.tcp(C4, 40000, V4, 80, ACK, ip_options=b"\x94\x04\x00\x00")))
    frames.append(("client", packets.ip(C4, V4, packets.UDP, bytes(64), fragment=0x2000)))
    return frames


VALID = _valid()
Fingerprint = tuple[object, ...]


def fingerprint(laboratory: Laboratory) -> Fingerprint:
    """Everything about a director that a frame may change."""
    director = laboratory.director
    return (
        [
            (c.key, c.state, c.flags, c.timeout, c.expires, c.packets, c.report_at, c.second)
            for c in director.table.inbound.values()
        ],
        sorted(director.table.outbound),
        [
            (str(s), s.active, s.inactive, repr(s.statistics))
            for v in director.services.values()
            for s in v.servers
        ],
        list(director.untold),
    )


_shared = build()


def _try(side: str, packet: bytes, vnet: bytes = packets.NO_VNET, cut: int = 0) -> list[Left]:
    """Send a frame to the shared director; a refused one must have changed nothing.

    What is changed by one example is there for the next, which is as it should be: no
    history may make a frame fatal.
    """
    laboratory = _shared
    before, drops = fingerprint(laboratory), laboratory.drops()
    size = laboratory.put(side, packet, vnet)
    left = laboratory.left(
        laboratory.director.process(laboratory.frame, max(0, size - cut), laboratory.now)
    )
    new = {reason for reason, count in laboratory.drops().items() if count != drops.get(reason, 0)}
    if new & REFUSED:
        assert new <= REFUSED
        assert fingerprint(laboratory) == before
        assert left == []
    assert laboratory.miscounted() == []
    return left


@given(st.sampled_from(["client", "server"]), st.binary(max_size=300), st.booleans())
def test_random_bytes_raise_nothing(side: str, packet: bytes, ipv6: bool) -> None:
    if packet:
        packet = bytes(((0x60 if ipv6 else 0x45),)) + packet[1:]
    _try(side, packet)


@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=6),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_damaged_frame_raises_nothing_and_changes_nothing_if_refused(
    sent: tuple[str, bytes], damage: list[tuple[int, int]], mend: bool, cut: int
) -> None:
    side, packet = sent
    changed = bytearray(packet)
    for at, value in damage:
        if at < len(changed):
            changed[at] = value
    if mend and changed[0] >> 4 == 4:
        header_bytes = max(20, (changed[0] & 15) * 4)
        changed[10:12] = bytes(2)
        changed[10:12] = packets.internet_checksum(bytes(changed[:header_bytes])).to_bytes(2)
    _try(side, bytes(changed), cut=cut)


def test_a_frame_cut_at_any_byte_raises_nothing_and_changes_nothing_if_refused() -> None:
    for side, packet in VALID:
        for cut in range(min(len(packet), 140) + 24):
            _try(side, packet[: min(len(packet), 160)], cut=cut)


@given(
    st.sampled_from(VALID),
    st.one_of(
        st.binary(min_size=10, max_size=10),
        st.builds(
            packets.vnet_header,
            partial=st.booleans(),
            gso_type=st.sampled_from([0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 99]),
            gso_size=st.sampled_from([0, 1, 8, 536, 1448, 1460, 65535]),
        ),
    ),
)
@example(("client", packets.udp(C6, 1, V6, 82, bytes(3000))), b"\x01\x80" + bytes(8))
def test_a_hostile_virtio_header_raises_nothing(sent: tuple[str, bytes], vnet: bytes) -> None:
    _try(*sent, vnet)


@given(
    st.sampled_from([(C4, V4), (C6, V6)]),
    st.sampled_from([80, 81, 82, 83]),
    st.sampled_from([65_535, 65_520, 65_496, 65_495, 40_000, 1_501, 1_481, 1_461]),
    st.booleans(),
)
def test_a_packet_of_any_length_raises_nothing_and_leaves_right(
    ends: tuple[str, str], port: int, length: int, dont_fragment: bool
) -> None:
    here, there = ends
    payload = bytes(length - (40 if ":" in here else 20) - 8)
    packet = packets.udp(here, 40005, there, port, payload, dont_fragment=dont_fragment)
    for left in _try("client", packet):
        assert len(left.packet) <= 1500
        assert faults(left.packet) == []


@given(st.sampled_from(VALID))
def test_whatever_leaves_is_right_for_an_independent_reader(sent: tuple[str, bytes]) -> None:
    for left in build().send(*sent):
        assert faults(left.packet) == [], left


# A naive twin of the connection table and its states

STATES = {
    # state: (IN syn fin ack rst, OUT syn fin ack rst, input only syn fin ack rst)
    "NONE": "SR CL ES CL  SS TW ES CL  SR CL ES CL",
    "ES": "ES CW ES CL  ES FW ES CL  ES FW ES CL",
    "SS": "ES SS SS CL  SS SS SS SS  ES SS SS CL",
    "SR": "SR TW ES SR  SR TW ES CL  SR TW ES SR",
    "FW": "SR TW FW CL  SS FW FW CL  SR FW FW CL",
    "TW": "SR TW TW CL  SS TW TW TW  SR TW TW CL",
    "CL": "SR CL CL CL  SS CL CL CL  SR CL CL CL",
    "CW": "SR CW CW CL  SS TW CW CL  SR CW CW CL",
    "LA": "SR LA CL LA  SS LA LA CL  SR LA CL LA",
    "LI": "SR LI LI LI  LI LI ES CL  SR LI LI LI",
    "SA": "SR TW ES SR  SR TW ES CL  SR TW ES SR",
}
NUMBERS = {
    name: number
    for number, name in enumerate(("NONE", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI"))
}
TIMEOUTS = {
    "NONE": 2, "ES": 900, "SS": 120, "SR": 60, "FW": 120, "TW": 120, "CL": 10, "CW": 60,
    "LA": 30, "LI": 120, "UDP": 300,
}  # fmt: skip
ACTIVE = {"ES", "SS", "SR", "SA"}
PORTS = ((80, NAT), (81, DR), (82, TUN))


@dataclass
class TwinConnection:
    """A row of the twin's list."""

    protocol: int
    client_port: int
    port: int
    server: str
    state: str
    expires: float = 0.0
    answered: bool = False


@dataclass
class Twin:
    """Two lists and a scan for everything."""

    servers: dict[tuple[int, int], list[str]]
    connections: list[TwinConnection] = field(default_factory=list)
    weights: dict[tuple[int, int, str], int] = field(default_factory=dict)
    last: dict[tuple[int, int], str | None] = field(default_factory=dict)
    timeouts: dict[str, int] = field(default_factory=lambda: dict(TIMEOUTS))

    def find(self, protocol: int, client_port: int, port: int) -> TwinConnection | None:
        for row in self.connections:
            if (row.protocol, row.client_port, row.port) == (protocol, client_port, port):
                return row
        return None

    def choose(self, service: tuple[int, int]) -> str | None:
        servers = self.servers[service]
        last = self.last.get(service)
        at = servers.index(last) if last is not None else -1
        for server in servers[at + 1 :] + servers[: at + 1]:
            if self.weights[(*service, server)] > 0:
                self.last[service] = server
                return server
        return None

    def step(self, row: TwinConnection, flags: int, now: float, *, reply: bool) -> None:
        if row.protocol == packets.UDP:
            row.expires = now + self.timeouts["UDP"]
            return
        masquerading = row.port == 80
        group = 1 if reply else (0 if masquerading else 2)
        event = next((n for n, bit in enumerate((RST, SYN, FIN, ACK)) if flags & bit), None)
        cells = STATES[row.state].split()[4 * group : 4 * group + 4]
        row.state = "CL" if event is None else cells[(3, 0, 1, 2)[event]]
        row.expires = now + self.timeouts[row.state]

    def request(
        self, protocol: int, client_port: int, port: int, flags: int, now: float
    ) -> str | None:
        """The server that a request goes to; None if it goes nowhere."""
        row = self.find(protocol, client_port, port)
        tcp = protocol == packets.TCP
        if row and tcp and flags & SYN and not flags & RST and row.state in {"TW", "CL"}:
            self.connections.remove(row)
            row = None
        if row is None:
            if tcp and (not flags & SYN or flags & RST):
                return None
            server = self.choose((protocol, port))
            if server is None:
                return None
            row = TwinConnection(protocol, client_port, port, server, "NONE" if tcp else "UDP")
            self.connections.append(row)
        elif row.server not in self.servers[protocol, port]:
            return None
        self.step(row, flags, now, reply=False)
        return row.server

    def reply(self, protocol: int, client_port: int, server: str, flags: int, now: float) -> bool:
        row = self.find(protocol, client_port, 80)
        if row is None or row.server != server:
            return False
        self.step(row, flags, now, reply=True)
        return True

    def sweep(self, now: float) -> None:
        self.connections = [row for row in self.connections if row.expires > now]


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("request"),
            st.sampled_from([packets.TCP, packets.TCP, packets.UDP]),
            st.integers(0, 2),
            st.sampled_from([80, 80, 81, 82]),
            st.sampled_from([SYN, ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK, 0, SYN | RST]),
        ),
        st.tuples(
            st.just("reply"),
            st.sampled_from([packets.TCP, packets.TCP, packets.UDP]),
            st.integers(0, 2),
            st.integers(0, 2),
            st.sampled_from([SYN | ACK, ACK, FIN | ACK, RST, 0]),
        ),
        st.tuples(
            st.just("sleep"), st.sampled_from([1, 3, 9, 11, 59, 61, 119, 301, 901]),
            st.just(0), st.just(0), st.just(0),
        ),
        st.tuples(
            st.just("edit"), st.sampled_from([packets.TCP, packets.UDP]),
            st.integers(0, 2), st.sampled_from([80, 81, 82]), st.integers(0, 2),
        ),
        st.tuples(
            st.just("remove"), st.sampled_from([packets.TCP, packets.UDP]),
            st.integers(0, 2), st.sampled_from([80, 81, 82]), st.just(0),
        ),
        st.tuples(
            st.just("timeouts"), st.sampled_from([5, 900]), st.sampled_from([7, 120]),
            st.sampled_from([2, 300]), st.just(0),
        ),
    ),
    max_size=50,
)  # fmt: skip


class Pairing:
    """The director and its twin, fed alike and compared after every step."""

    def __init__(self, *, ipv6: bool) -> None:
        self.laboratory = Laboratory()
        self.laboratory.now = 1000.75
        self.client, self.vip = (C6, V6) if ipv6 else (C4, V4)
        self.names = SERVERS6 if ipv6 else SERVERS4
        self.services: dict[tuple[Protocol, int], VirtualService] = {}
        self.twin = Twin({})
        for protocol in (Protocol.TCP, Protocol.UDP):
            for port, method in PORTS:
                service = self.laboratory.service(self.vip, port, protocol=protocol)
                self.services[protocol, port] = service
                self.twin.servers[protocol, port] = []
                for name in self.names:
                    self.laboratory.server(
                        service, name, 8080 if method is NAT else None, method=method
                    )
                    self.twin.servers[protocol, port].insert(0, name)
                    self.twin.weights[protocol, port, name] = 1

    def request(self, protocol: int, client: int, port: int, flags: int) -> None:
        ends = (self.client, 40000 + client, self.vip, port)
        tcp = protocol == packets.TCP
        packet = packets.tcp(*ends, flags) if tcp else packets.udp(*ends)
        left = self.laboratory.send("client", packet)
        expected = self.twin.request(protocol, 40000 + client, port, flags, self.laboratory.now)
        macs = [p.dmac for p in left if p.side == "server"]
        assert macs == ([] if expected is None else [self._mac(expected)])

    def _mac(self, server: str) -> str:
        address = packets.address(server)
        return (bytes((2, 5, 4 if len(address) == 4 else 6, 0)) + address[-2:]).hex(":")

    def reply(self, protocol: int, client: int, server: int, flags: int) -> None:
        ends = (self.names[server], 8080, self.client, 40000 + client)
        tcp = protocol == packets.TCP
        packet = packets.tcp(*ends, flags) if tcp else packets.udp(*ends)
        left = self.laboratory.send("server", packet)
        expected = self.twin.reply(
            protocol, 40000 + client, self.names[server], flags, self.laboratory.now
        )
        assert [p.side for p in left] == (["client"] if expected else [])
        if expected:
            assert dissect(left[0].packet).src == self.vip

    def sleep(self, seconds: int) -> None:
        # Ends lie at .75 and are looked for at .25, so that a second's rounding decides nothing.
        self.laboratory.now += seconds - 0.5
        self.laboratory.sleep(0)
        self.twin.sweep(self.laboratory.now)
        self.laboratory.now += 0.5

    def edit(self, protocol: int, server: int, port: int, weight: int) -> None:
        name = self.names[server]
        found = self._server(protocol, server, port)
        if found is not None:
            self.laboratory.director.edit_server(found, weight)
            self.twin.weights[protocol, port, name] = weight

    def remove(self, protocol: int, server: int, port: int) -> None:
        """Remove a server, or add it again if it is gone."""
        name, service = self.names[server], self.services[Protocol(protocol), port]
        found = self._server(protocol, server, port)
        listed = self.twin.servers[protocol, port]
        if found is None:
            method = dict(PORTS)[port]
            self.laboratory.server(service, name, 8080 if method is NAT else None, method=method)
            listed.insert(0, name)
            self.twin.weights[protocol, port, name] = 1
            return
        self.laboratory.director.remove_server(found)
        at = listed.index(name)
        if self.twin.last.get((protocol, port)) == name:
            self.twin.last[protocol, port] = listed[at - 1] if at else None
        listed.remove(name)

    def _server(self, protocol: int, server: int, port: int) -> RealServer | None:
        service = self.services[Protocol(protocol), port]
        return service.server(packets.address(self.names[server]), 8080 if port == 80 else port)

    def timeouts(self, tcp: int, tcp_fin: int, udp: int) -> None:
        self.laboratory.director.set_timeouts(tcp=tcp, tcp_fin=tcp_fin, udp=udp)
        self.twin.timeouts.update(ES=tcp, FW=tcp_fin, UDP=udp)

    def compare(self) -> None:
        table = self.laboratory.director.table
        found = sorted(
            (
                c.protocol,
                c.client[1],
                c.virtual[1],
                c.server.address,
                c.state,
                c.expires,
                c.active,
            )
            for c in table.inbound.values()
        )
        expected = sorted(
            (
                row.protocol,
                row.client_port,
                row.port,
                packets.address(row.server),
                NUMBERS.get(row.state, 0),
                row.expires,
                row.state in ACTIVE,
            )
            for row in self.twin.connections
        )
        assert found == expected
        assert len(table.outbound) == sum(row.port == 80 for row in self.twin.connections)
        assert self.laboratory.miscounted() == []
        assert all(c.second <= int(c.expires) + 1 for c in table.inbound.values())


@settings(max_examples=400)
@given(st.booleans(), events)
def test_the_director_decides_what_a_scan_of_plain_lists_would(
    ipv6: bool, sequence: list[tuple[str, int, int, int, int]]
) -> None:
    pairing = Pairing(ipv6=ipv6)
    for kind, first, second, third, fourth in sequence:
        match kind:
            case "request":
                pairing.request(first, second, third, fourth)
            case "reply":
                pairing.reply(first, second, third, fourth)
            case "sleep":
                pairing.sleep(first)
            case "edit":
                pairing.edit(first, second, third, fourth)
            case "remove":
                pairing.remove(first, second, third)
            case _:
                pairing.timeouts(first, second, third)
        pairing.compare()
