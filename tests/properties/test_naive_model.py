"""The director against `tests.properties.naive`: the same packets, the same connections."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.datapath.connections import Connection
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.reasons import Reason
from lvsha.datapath.service_policy import ESTABLISHED, ServicePolicy, Unknown
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    ToServer,
)
from lvsha.datapath.verdicts import Accept, Drop, Wait
from lvsha.model import ConnectionFlag, ForwardMethod, parse_address
from lvsha.tally import Tally
from tests import packets
from tests.laboratory import DR, NAT, SYNC_ID, TUN, V4, V6, Laboratory, server_mac
from tests.packets import ACK, FIN, PSH, RST, SYN, address
from tests.properties.naive import (
    ALONE,
    DROPPED,
    POISONED,
    REFUSED,
    SCTP,
    TCP,
    UDP,
    WAITS,
    NaiveDirector,
    Packet,
    Row,
    Server,
    Service,
    Verdict,
)

MARK: Final = 3
MARKED_PORT: Final = 5000
"""UDP to this port has the mark, and everything to the marked address."""
CLIENTS: Final = {
    4: ("198.51.100.71", "198.51.100.72", "198.51.101.9"),
    6: ("2001:db8:1::71", "2001:db8:1::72", "2001:db8:2::9"),
}
VIRTUALS: Final = {4: (V4, V4, "192.0.2.200"), 6: (V6, V6, "2001:db8:ffff::200")}
SERVERS: Final = {
    4: ("10.1.0.11", "10.1.0.12", "10.1.0.13"),
    6: ("fd00:5::b", "fd00:5::c", "fd00:5::d"),
}
NETMASKS: Final = {
    4: (b"", b"\xff\xff\xff\x00", b"\xff\xff\x00\x00"),
    6: (b"", b"\xff" * 6 + bytes(10), b"\xff" * 4 + bytes(12)),
}
CLIENT_PORTS: Final = (40000, 40000, 40000, 40001, 20)
PORTS: Final = (80, 80, 21, 20, MARKED_PORT, 81)
SERVER_PORTS: Final = (80, 0, 8080)
SLEEPS: Final = (0, 1, 2, 3, 4, 9, 10, 29, 59, 60, 61, 119, 130, 300, 310, 900)
FLAG_SETS: Final[tuple[frozenset[str], ...]] = (
    frozenset(),
    frozenset({"sh-fallback"}),
    frozenset({"sh-fallback", "sh-port"}),
)
FLAGS: Final = (SYN, SYN, ACK, FIN | ACK, RST, ACK | PSH, SYN | ACK, SYN | RST, 0)
CHUNKS: Final = (
    *((1,), (1,), (2,), (10,), (11,), (0,), (7,), (8,), (14,), (9,), (6,), (3,)),
    *((10, 6), (11, 6), (10, 0), (130,)),
)
SWITCHES: Final = {
    "secure_tcp": (0, 3),
    "expire_nodest_conn": (0, 1),
    "expire_quiescent_template": (0, 1),
    "conn_reuse_mode": (1, 0, 2, 3),
    "sloppy_tcp": (0, 1),
    "sloppy_sctp": (0, 1),
    "drop_packet": (0, 3),
}

Drawn = tuple[int, int, int, int, int]
DrawnServer = tuple[int, int, ForwardMethod, int, tuple[int, int]]
DrawnService = tuple[
    tuple[int, int], str, frozenset[str], int, int, bool, list[DrawnServer], Unknown
]

drawn_servers = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(SERVER_PORTS),
        st.sampled_from([NAT, NAT, DR, TUN]),
        st.sampled_from([1, 1, 2, 3, 0]),
        st.sampled_from([(0, 0), (0, 0), (4, 0), (1, 0), (2, 1), (3, 3)]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda drawn: drawn[:2],
)
drawn_services = st.lists(
    st.tuples(
        st.sampled_from([(TCP, 80), (TCP, 21), (TCP, 0), (UDP, 80), (UDP, 0), (SCTP, 80), (0, 0)]),
        st.sampled_from(["rr", "lc", "sh"]),
        st.sampled_from(FLAG_SETS),
        st.sampled_from([0, 0, 7, 60, 300]),
        st.integers(0, 2),
        st.booleans(),
        drawn_servers,
        st.sampled_from(Unknown),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda drawn: drawn[0],
)
drawn_settings = st.fixed_dictionaries(
    {name: st.sampled_from(values) for name, values in SWITCHES.items() if name != "drop_packet"}
)
ALWAYS: Final = (
    *("tcp", "udp", "sctp", "more", "more", "again", "again", "answer", "sleep", "deny"),
)
SOMETIMES: Final = (
    *("stray", "set", "limits", "edit", "remove", "add", "change", "delete", "timeouts", "deny"),
    *("more", "again", "answer", "sleep"),
)
drawn_kinds = st.lists(st.sampled_from(SOMETIMES), min_size=1, max_size=6)
"""With few kinds of event in one history each of them comes often, and so do pairs of them."""
small = st.integers(0, 15)
happenings = st.lists(
    st.tuples(st.integers(0, 2**10), small, small, small, small), min_size=20, max_size=80
)


def take(values: Sequence[int], number: int) -> int:
    return values[number % len(values)]


class Pairing:
    """A director and the naive one, fed alike and compared after every step."""

    def __init__(self, family: int, drawn: list[DrawnService], chosen: dict[str, int]) -> None:
        self.family = family
        self.clients, self.virtuals = CLIENTS[family], VIRTUALS[family]
        self.laboratory = Laboratory(vips=self.virtuals[1:], reporting=ESTABLISHED)
        self.director = self.laboratory.director
        self.director.registry.mark_tallies[MARK] = Tally(SYNC_ID + 1)
        # Ends lie at .75 and are looked for at .25, so that a second's rounding decides nothing.
        self.laboratory.now = 1000.75
        self.naive = NaiveDirector(self.mark_of)
        prefixes = [(address(text), 8 * len(address(text))) for text in self.virtuals[1:]]
        self.director.marks.set(
            [
                MarkRule(MARK, prefixes[0], protocol=UDP, ports=((MARKED_PORT, MARKED_PORT),)),
                MarkRule(MARK, prefixes[1]),
            ]
        )
        self.laboratory.set(run_estimation=0, am_droprate=3)
        self.naive.settings["am_droprate"] = 3
        for name, value in chosen.items():
            self.set(name, value)
        self.drawn = drawn
        for number in range(len(drawn)):
            self.add(number)

    def mark_of(self, protocol: int, destination: bytes, port: int) -> int:
        if destination == address(self.virtuals[2]):
            return MARK
        return MARK if (protocol, port) == (UDP, MARKED_PORT) else 0

    # Administration

    def set(self, name: str, value: int) -> None:
        self.laboratory.set(**{name: value})
        self.naive.settings[name] = value

    def identity(self, service: Service) -> ServiceIdentity:
        protocol = service.protocol or TCP
        return ServiceIdentity(self.family, protocol, service.address, service.port, service.mark)

    def found(self, server: Server) -> RealServer:
        service = self.director.services.get(self.identity(server.service))
        assert service is not None
        real = service.server(server.address, server.port)
        assert real is not None
        return real

    def add(self, number: int) -> None:
        """Add a service and its servers, as far as they are not there."""
        (protocol, port), scheduler, flags, persistence, mask, one_packet, servers, unknown = (
            self.drawn[number % len(self.drawn)]
        )
        netmask = NETMASKS[self.family][mask]
        there = address(self.virtuals[0]) if protocol else b""
        service = Service(
            *(protocol, there, port, 0 if protocol else MARK, scheduler, flags),
            *(persistence, netmask, one_packet, unknown.value),
        )
        known = [s for s in self.naive.services if s.identity == service.identity]
        if known:
            service = known[0]
        else:
            self.naive.services.append(service)
            policy = ServicePolicy(unknown=unknown)
            self.director.services.add(self.identity(service), self.options(service), policy=policy)
        for last, server_port, method, weight, (upper, lower) in servers:
            here = address(SERVERS[self.family][last])
            if any((s.address, s.port) == (here, server_port) for s in service.servers):
                continue
            server = Server(service, here, server_port, method, weight, upper, lower)
            self.naive.add_server(server)
            options = ServerOptions(method, weight, upper, lower)
            identity = self.identity(service)
            self.director.services.add_server(identity, here, server_port, options)

    def options(self, service: Service) -> ServiceOptions:
        return ServiceOptions(
            service.scheduler,
            service.flags,
            service.persistence,
            service.netmask,
            service.one_packet,
        )

    def change(self, one: int, two: int) -> None:
        """Change the persistence of a service."""
        if self.naive.services:
            service = self.naive.services[one % len(self.naive.services)]
            service.persistence = take((0, 7, 60, 300), two)
            self.director.services.edit(self.identity(service), self.options(service))

    def listed(self, number: int) -> Server | None:
        """A listed server; rather one that has connections."""
        servers = [row.server for row in self.naive.rows if row.server.listed]
        if not servers or number % 4 == 0:
            servers = [server for service in self.naive.services for server in service.servers]
        return servers[number % len(servers)] if servers else None

    def edit(self, one: int, weight: int, limits: tuple[int, int] | None) -> None:
        server = self.listed(one)
        if server is not None:
            upper, lower = limits or (server.upper, server.lower)
            real, identity = self.found(server), self.identity(server.service)
            server.set(weight if limits is None else server.weight, upper, lower)
            options = ServerOptions(real.method, server.weight, upper, lower)
            self.director.services.edit_server(identity, server.address, server.port, options)

    def remove(self, one: int) -> None:
        server = self.listed(one)
        if server is not None:
            self.laboratory.remove(self.found(server))
            self.naive.remove_server(server)
            self.sleep(1)

    def delete(self, one: int) -> None:
        if self.naive.services:
            service = self.naive.services[one % len(self.naive.services)]
            self.director.services.delete(self.identity(service))
            self.naive.remove_service(service)
            self.sleep(1)

    def timeouts(self, one: int, two: int, three: int) -> None:
        tcp, tcp_fin, udp = take((5, 900), one), take((7, 120), two), take((2, 300), three)
        self.director.set_timeouts(tcp=tcp, tcp_fin=tcp_fin, udp=udp)
        self.naive.tcp_timeouts[1], self.naive.tcp_timeouts[4] = tcp, tcp_fin
        self.naive.udp_timeout = udp

    # Time

    def sleep(self, seconds: int) -> None:
        last = int(self.laboratory.now) + seconds
        while (second := self.naive.next_second()) is not None and second < last:
            self.tick(second)
        if seconds:
            self.tick(last)

    def tick(self, second: int) -> None:
        """Let both end what is over in a second."""
        now = second + 0.25
        self.laboratory.now = now
        self.laboratory.sleep(0)
        spared = [
            (c.client, c.virtual, c.server.address)
            for c in self.director.registry.table.connections()
            if c.is_template and (c.timeout, c.expires) == (60, now + 60)
        ]

        def survived(row: Row) -> bool:
            ends = (row.client, row.client_port), (row.virtual, row.port), row.server.address
            if ends not in spared:
                return False
            spared.remove(ends)
            return True

        self.naive.tick(now, survived)
        self.laboratory.now = second + 0.75

    # Packets

    def happen(self, kind: str, one: int, two: int, three: int, four: int) -> None:
        match kind:
            case "tcp" | "udp" | "sctp":
                protocol = {"tcp": TCP, "udp": UDP, "sctp": SCTP}[kind]
                client, there = self.clients[one % 3], self.virtuals[two % 3]
                client_end = address(client), take(CLIENT_PORTS, four)
                there_end = address(there), take(PORTS, two // 3)
                self.request(Packet(protocol, *client_end, *there_end, says(protocol, three)))
            case "more" | "again" | "answer":
                rows = [row for row in self.naive.rows if not row.template]
                if rows:
                    self.go_on(kind, rows[one % len(rows)], two, three)
            case "stray":
                protocol = take((TCP, UDP, SCTP), four)
                sender = address((*SERVERS[self.family], self.virtuals[0])[two % 4])
                sender_end = sender, take((80, 8080, MARKED_PORT), two // 4)
                client_end = address(self.clients[one % 3]), take(CLIENT_PORTS, four // 3)
                self.reply(Packet(protocol, *sender_end, *client_end, says(protocol, three)))
            case "sleep":
                self.sleep(take(SLEEPS, one))
            case "deny":
                self.deny()
            case "set":
                name = sorted(SWITCHES)[one % len(SWITCHES)]
                self.set(name, take(SWITCHES[name], two))
            case _:
                self.administer(kind, one, two, three)

    def go_on(self, kind: str, row: Row, two: int, three: int) -> None:
        """Another packet of a connection, its answer, or another connection of its client."""
        client_port = row.client_port
        event = says(row.protocol, three)
        if kind == "more":
            client_port, event = 40000 + two % 4, says(row.protocol, 0)
        client_end = row.client, client_port
        if kind == "answer":
            here = row.virtual, row.port
            if row.method is NAT:
                here = row.server.address, row.server_port
            self.reply(Packet(row.protocol, *here, *client_end, event))
        else:
            virtual = row.virtual
            if kind == "more" and two >= 10:  # from the same port to another address
                virtual = address(self.virtuals[two % 3])
                client_end = row.client, row.client_port
            self.request(Packet(row.protocol, *client_end, virtual, row.port, event))

    def administer(self, kind: str, one: int, two: int, three: int) -> None:
        match kind:
            case "limits":
                self.edit(one, 0, ((4, 0), (0, 0), (1, 0), (2, 1), (3, 3), (4, 0))[two % 6])
            case "edit":
                self.edit(one, take((0, 0, 1, 3), two), None)
            case "remove":
                self.remove(one)
                if two % 2:  # and it comes back
                    for number in range(len(self.drawn)):
                        self.add(number)
            case "add":
                self.add(one)
            case "change":
                self.change(one, two)
            case "delete" if two < 4:
                self.delete(one)
            case "timeouts":
                self.timeouts(one, two, three)

    def deny(self) -> None:
        """Let peers deny all that they were asked for."""
        keys = [key for asked in self.director.take_questions().values() for key in asked]
        self.director.deny(keys)
        released = self.laboratory.left(self.director.release(self.laboratory.now))
        expected = self.naive.deny(self.laboratory.now)
        sides = ["server" if v.kind == "server" else "client" for v in expected if v.kind in SENT]
        assert [p.side for p in released] == sides

    def request(self, packet: Packet) -> None:
        assert self.send("client", packet) == self.naive.request(packet, self.laboratory.now)

    def reply(self, packet: Packet) -> None:
        assert self.send("server", packet) == self.naive.reply(packet, self.laboratory.now)

    def send(self, side: str, packet: Packet) -> Verdict:
        """Let the director have a packet; what becomes of it in the naive one's words."""
        laboratory = self.laboratory
        data = emit(packet)
        size = laboratory.put(side, data)
        decided = self.director.decide(laboratory.frame, size, laboratory.now)
        outgoing = self.director.carry_out(laboratory.frame, decided, laboratory.now)
        left = laboratory.left(outgoing)
        if isinstance(decided, Accept):
            assert left == []
            return ALONE
        if isinstance(decided, Wait):
            assert left == []
            return WAITS
        if isinstance(decided, Drop):
            answered = [p.side for p in left] == ["client"]
            if decided.reason is Reason.RESET:
                return REFUSED if answered else DROPPED
            assert answered is (decided.answer is not None)
            return MEANINGS[decided.reason]
        [only] = left
        ports = only.packet[40:44] if self.family == 6 else only.packet[20:24]
        if only.side == "client":
            source = only.packet[8:24] if self.family == 6 else only.packet[12:16]
            return Verdict("client", source, int.from_bytes(ports[:2]))
        assert isinstance(decided, ToServer)
        assert only.dmac == server_mac(decided.server.address).hex(":")
        port = int.from_bytes(ports[2:]) if decided.method is NAT else 0
        return Verdict("server", decided.server.address, port)

    # Comparison

    def compare(self) -> None:
        connections = list(self.director.registry.table.connections())
        assert sorted(map(values_of, connections), key=repr) == sorted(
            (row.values for row in self.naive.rows), key=repr
        )
        children = Counter(row.parent for row in self.naive.rows if row.parent is not None)
        assert sorted(children.values()) == sorted(c.children for c in connections if c.children)
        for service in self.naive.services:
            kept = self.director.services.get(self.identity(service))
            assert kept is not None
            assert [counted(server) for server in kept.servers] == [
                (
                    *(server.address, server.port, *self.naive.counts(server)),
                    *(server.overloaded, server.opened),
                    *(server.in_packets, server.out_packets),
                )
                for server in service.servers
            ]
        assert self.laboratory.miscounted() == []
        assert self.laboratory.mistallied() == []


SENT: Final = {"server", "refused"}
MEANINGS: Final = {
    Reason.NO_CONNECTION: ALONE,
    Reason.UNKNOWN_REPLY: ALONE,
    Reason.FTP_DATA: ALONE,
    Reason.SERVER_GONE: DROPPED,
    Reason.QUESTIONS_FULL: DROPPED,
    Reason.DEFENCE: DROPPED,
    Reason.NO_SERVER: REFUSED,
}
"""Some of what the kernel leaves to its host lvsha drops, so that the host does not answer it."""


def says(protocol: int, number: int) -> tuple[int, ...]:
    if protocol == TCP:
        return (take(FLAGS, number),)
    return CHUNKS[number % len(CHUNKS)] if protocol == SCTP else ()


def emit(packet: Packet) -> bytes:
    ends = (text(packet.source), packet.source_port, text(packet.destination), packet.port)
    if packet.protocol == TCP:
        return packets.tcp(*ends, packet.says[0])
    if packet.protocol == SCTP:
        return packets.sctp(*ends, *packet.says)
    return packets.udp(*ends)


def text(octets: bytes) -> str:
    return NAMES[octets]


NAMES: Final = {
    parse_address(name): name
    for family in (4, 6)
    for name in (*CLIENTS[family], *VIRTUALS[family], *SERVERS[family])
}


def values_of(connection: Connection) -> tuple[object, ...]:
    """A connection as `Row.values` has it."""
    poisoned = connection.is_template and connection.virtual[1] == POISONED
    return (
        *(connection.is_template, connection.protocol, *connection.client, *connection.virtual),
        *(connection.server.address, POISONED if poisoned else connection.binding.port),
        *(int(connection.binding.method), connection.state),
        *(connection.timeout, connection.expires, connection.active, connection.packets),
        connection.protocol != UDP and bool(connection.flags & ConnectionFlag.NO_OUTPUT),
    )


def counted(server: RealServer) -> tuple[object, ...]:
    statistics = server.statistics
    return (
        *(server.address, server.port, server.active, server.inactive, server.persistent),
        *(server.overloaded, statistics.connections),
        *(statistics.in_packets, statistics.out_packets),
    )


DEFAULTS: Final = {name: values[0] for name, values in SWITCHES.items()}
ONE_SERVER: Final[list[DrawnServer]] = [(0, 80, NAT, 1, (0, 0))]
TO_THE_SAME: Final[list[DrawnService]] = [
    ((TCP, 80), "rr", frozenset(), 0, 0, False, ONE_SERVER, Unknown.RESET),
    ((0, 0), "rr", frozenset(), 0, 0, False, ONE_SERVER, Unknown.RESET),
]
"""A client's connections to both have the same ends where the replies come from."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("first", [0, 1])
def test_replies_find_the_connection_that_is_left_of_two_with_the_same_ends(
    family: int, first: int
) -> None:
    pairing = Pairing(family, TO_THE_SAME, DEFAULTS)
    for kind, one, two, three in (
        ("tcp", 0, 0, 0),
        ("tcp", 0, 2, 0),
        *(("again", number, 0, says) for number in (0, 1) for says in (1, 2)),
        ("again", first, 0, 4),
        ("sleep", 7, 0, 0),
        ("answer", 0, 0, 6),
    ):
        pairing.happen(kind, one, two, three, 0)
        pairing.compare()
    [left] = pairing.naive.rows
    assert left.server.out_packets == 1


def test_a_reply_that_passes_changes_nothing_once_there_is_no_service() -> None:
    server: DrawnServer = (0, 80, DR, 1, (0, 0))
    pairing = Pairing(
        4, [((TCP, 80), "rr", frozenset(), 0, 0, False, [server], Unknown.RESET)], DEFAULTS
    )
    for kind in ("tcp", "delete", "answer"):
        pairing.happen(kind, 0, 0, 0, 0)
        pairing.compare()
    assert [row.only_input for row in pairing.naive.rows] == [True]


@settings(max_examples=500)
@given(st.sampled_from([4, 6]), drawn_services, drawn_settings, drawn_kinds, happenings)
def test_the_director_does_what_lists_and_scans_do(
    family: int,
    drawn: list[DrawnService],
    chosen: dict[str, int],
    drawn_kinds: list[str],
    sequence: list[Drawn],
) -> None:
    pairing = Pairing(family, drawn, chosen)
    kinds = (*ALWAYS, *drawn_kinds, *drawn_kinds)
    for number, *rest in sequence:
        pairing.happen(kinds[number % len(kinds)], *rest)
        pairing.compare()
