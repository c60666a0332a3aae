"""The director as a whole: no frame breaks it, and its counts are those of a recount."""

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvsha.datapath.marks import MarkRule
from lvsha.datapath.reasons import Reason
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.datapath.services import (
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
)
from lvsha.model import ConnectionFlag, ForwardMethod, Protocol
from lvsha.tally import Tally
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, SYNC_ID, TUN, V4, V6, Laboratory, Left
from tests.packets import ACK, FIN, PSH, RST, SYN
from tests.reader import faults

REFUSED = {
    Reason.MALFORMED,
    Reason.TRUNCATED,
    Reason.FRAGMENT,
    Reason.FRAGMENT_OVERLAP,
    Reason.FRAGMENT_MALFORMED,
}
SERVERS4 = ("10.1.0.11", "10.1.0.12", "10.1.0.13")
SERVERS6 = ("fd00:5::b", "fd00:5::c", "fd00:5::d")


_Server = tuple[int, int, ForwardMethod, int, tuple[int, int]]
_Service = tuple[tuple[Protocol | None, int], str, int, bytes, bool, list[_Server]]


def build() -> Laboratory:
    """Services of both families and transports, by all methods, with connections."""
    laboratory = Laboratory(reporting=ESTABLISHED)
    laboratory.set(schedule_icmp=1, nat_icmp_send=1, cache_bypass=1, expire_nodest_conn=1)
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
    _build_peculiar(laboratory)
    return laboratory


def _build_peculiar(laboratory: Laboratory) -> None:
    """SCTP, FTP, SIP, persistence, one packet, a key exchange, and a mark with and without."""
    for here, there, servers in ((C4, V4, SERVERS4), (C6, V6, SERVERS6)):
        family = 6 if ":" in here else 4
        for service in (
            laboratory.service(there, 80, protocol=Protocol.SCTP),
            laboratory.service(there, 21, persistence=300),
            laboratory.service(there, 500, protocol=Protocol.UDP),
            laboratory.service(there, 53, protocol=Protocol.UDP, one_packet=True),
            laboratory.service(there, 5060, protocol=Protocol.UDP, persistence=300, engine="sip"),
        ):
            laboratory.server(service, servers[2])
        services, mark = laboratory.director.services, ServiceIdentity(family, 6, mark=family)
        services.add(mark, ServiceOptions("rr", persistence=300))
        services.add_server(mark, packets.address(servers[2]), 0, ServerOptions(NAT))
        laboratory.send("client", packets.sctp(here, 40000, there, 80, 1))
        laboratory.send("client", packets.udp(here, 500, there, 500))
        for flags in (SYN, ACK):
            laboratory.send("client", packets.tcp(here, 40000, there, 21, flags))
        laboratory.send("client", packets.tcp(here, 40000, there, 21, ACK, b"EPSV\r\n"))
    laboratory.director.marks.set(
        [
            MarkRule(4, (packets.address("192.0.2.128"), 25)),
            MarkRule(9, (packets.address(V6), 128), ports=((90, 99),)),
        ]
    )


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
        frames += _peculiar(here, there, (SERVERS6 if ipv6 else SERVERS4)[2])
    frames.append(("client", packets.tcp(C4, 40000, "192.0.2.200", 7, SYN)))
    frames.append(("client", packets.tcp(C4, 40000, V4, 80, ACK, ip_options=b"\x94\x04\x00\x00")))
    frames.append(("client", packets.ip(C4, V4, packets.UDP, bytes(64), fragment=0x2000)))
    return frames


def _peculiar(here: str, there: str, server: str) -> list[tuple[str, bytes]]:
    """Frames for the services of `_build_peculiar`."""
    client = ",".join(map(str, packets.address(here)))
    real = ",".join(map(str, packets.address(server)))
    to_client = (server, 21, here, 40000, ACK)
    to_server = (here, 40000, there, 21, ACK)
    call = b"INVITE sip:a SIP/2.0\r\nCall-ID: %d@a\r\n\r\n"
    error = 1 if ":" in here else 3
    return [
        ("client", packets.sctp(here, 40000, there, 80, 10, 0)),
        ("client", packets.sctp(here, 40003, there, 80, 1)),
        ("server", packets.sctp(server, 80, here, 40000, 2)),
        ("server", packets.sctp(server, 80, here, 40009, 2)),
        ("client", packets.ip(here, there, 50, bytes(24))),
        ("server", packets.ip(server, here, 51, bytes(24))),
        ("client", packets.tcp(*to_server, f"PORT {client},9,9\r\n".encode())),
        ("client", packets.tcp(*to_server, f"EPRT |1|{here}|2313|\r\n".encode())),
        ("client", packets.tcp(*to_server, b"PASV\r\nEPSV\r\n")),
        ("server", packets.tcp(*to_client, f"227 ({real},19,136)\r\n".encode())),
        ("server", packets.tcp(*to_client, f"229 (|1|{server}|5000|)\r\n".encode())),
        ("server", packets.tcp(*to_client, b"229 (|||5000|)\r\n")),
        ("client", packets.tcp(here, 40044, there, 5000, SYN)),
        ("server", packets.tcp(server, 20, here, 2313, SYN)),
        ("client", packets.udp(here, 40000, there, 53, b"question")),
        ("client", packets.udp(here, 5060, there, 5060, call % 1)),
        ("client", packets.udp(here, 5061, there, 5060, call % 2)),
        ("client", packets.udp(here, 5061, there, 5060, b"nothing")),
        ("server", packets.udp(server, 5060, here, 5099, call % 3)),
        ("client", packets.icmp(here, there, error, 3, packets.sctp(there, 80, here, 40055, 1))),
        ("client", packets.icmp(here, there, error, 3, packets.udp(there, 53, here, 40055))),
        ("client", packets.tcp(here, 40001, there, 21, SYN)),
        ("client", packets.tcp(here, 20, there, 80, SYN)),
        ("client", packets.tcp(here, 0, there, 80, SYN)),
    ]


VALID = _valid()
Fingerprint = tuple[object, ...]


def fingerprint(laboratory: Laboratory) -> Fingerprint:
    """Everything about a director that a frame may change."""
    director, table = laboratory.director, laboratory.director.registry.table
    return (
        [
            (c.key, c.state, c.flags, c.timeout, c.expires, c.packets, c.report_at, c.second)
            for c in table.connections()
        ],
        sorted(key for shard in table.outbound for key in shard),
        [
            (str(s), s.active, s.inactive, repr(s.statistics))
            for v in director.services
            for s in v.servers
        ],
        list(director.registry.untold),
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
    assert laboratory.mistallied() == []
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


# Translation there and back

ports = st.integers(1, 65535)


@given(
    st.sampled_from([(C4, V4, S4), (C6, V6, S6)]),
    st.sampled_from(["tcp", "udp", "udp without checksum", "sctp"]),
    ports.filter(lambda port: port != 20),
    ports.filter(lambda port: port != 21),
    ports,
    st.binary(max_size=60),
)
def test_translation_there_and_back_is_the_identity(
    names: tuple[str, str, str],
    kind: str,
    client_port: int,
    virtual_port: int,
    real_port: int,
    payload: bytes,
) -> None:
    client, vip, server = names

    def make(source: str, port: int, there: str, to: int, *, ttl: int = 64) -> bytes:
        """A packet as it comes, or with one hop less as it must leave."""
        if kind == "tcp":
            return packets.tcp(source, port, there, to, SYN, payload, ttl=ttl)
        if kind == "sctp":
            return packets.sctp(source, port, there, to, 1, *payload[:4], ttl=ttl)
        # IPv4 datagrams may come without a checksum, and leave with one.
        checksum = kind == "udp" or ":" in vip or ttl < 64
        return packets.udp(source, port, there, to, payload, checksum=checksum, ttl=ttl)

    laboratory = Laboratory()
    protocol = {"tcp": Protocol.TCP, "sctp": Protocol.SCTP}.get(kind, Protocol.UDP)
    service = laboratory.service(vip, virtual_port, protocol=protocol)
    laboratory.server(service, server, real_port)
    (there,) = laboratory.send("client", make(client, client_port, vip, virtual_port))
    assert there.packet == make(client, client_port, server, real_port, ttl=63)
    (back,) = laboratory.send("server", make(server, real_port, client, client_port))
    assert back.packet == make(vip, virtual_port, client, client_port, ttl=63)
    assert (there.side, back.side) == ("server", "client")
    assert faults(there.packet) == faults(back.packet) == []


# Random services, with everything that may be set

CLIENTS = ("198.51.100.71", "198.51.100.72", "198.51.101.9")
MARKED = "192.0.2.200"

service_kinds = st.sampled_from(
    [
        (Protocol.TCP, 80),
        (Protocol.UDP, 80),
        (Protocol.SCTP, 80),
        (Protocol.TCP, 21),
        (Protocol.TCP, 0),
        (Protocol.UDP, 0),
        (Protocol.UDP, 500),
        (None, 0),
    ]
)
drawn_services = st.lists(
    st.tuples(
        service_kinds,
        st.sampled_from([*SCHEDULERS, "none"]),
        st.sampled_from([0, 0, 5, 300]),
        st.sampled_from([b"", b"\xff\xff\xff\x00"]),
        st.booleans(),
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from([80, 8080, 0]),
                st.sampled_from([NAT, NAT, DR, TUN]),
                st.integers(0, 3),
                st.sampled_from([(0, 0), (1, 0), (2, 1), (3, 3)]),
            ),
            min_size=1,
            max_size=3,
            unique_by=lambda drawn: drawn[:2],
        ),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda drawn: drawn[0],
)
drawn_settings = st.fixed_dictionaries(
    {
        "drop_entry": st.sampled_from([0, 3]),
        "drop_packet": st.sampled_from([0, 0, 3]),
        "secure_tcp": st.sampled_from([0, 3]),
        "expire_nodest_conn": st.integers(0, 1),
        "expire_quiescent_template": st.integers(0, 1),
        "conn_reuse_mode": st.integers(0, 3),
        "schedule_icmp": st.integers(0, 1),
        "cache_bypass": st.integers(0, 1),
        "sloppy_tcp": st.integers(0, 1),
        "sloppy_sctp": st.integers(0, 1),
    }
)
small = st.integers(0, 11)
KINDS = (
    *("tcp", "tcp", "udp", "sctp", "esp", "ftp", "reply", "error", "sleep", "sleep"),
    *("edit", "remove", "add", "forget", "copy", "set", "delete"),
)
happenings = st.lists(
    st.tuples(st.sampled_from(KINDS), small, small, small), min_size=5, max_size=60
)


class Wilderness:
    """A director with drawn services, to which anything may happen."""

    def __init__(self, drawn: list[_Service], chosen: dict[str, int]) -> None:
        self.laboratory = Laboratory(connections_max=12, reporting=ESTABLISHED)
        self.services = self.laboratory.director.services
        self.chosen = chosen
        self.drawn: list[tuple[ServiceIdentity, ServiceOptions, list[_Server]]] = []
        self.laboratory.director.marks.set([MarkRule(3, (packets.address(MARKED), 32))])
        self.laboratory.director.registry.mark_tallies[3] = Tally(SYNC_ID + 1)
        for (protocol, port), scheduler, persistence, netmask, one_packet, servers in drawn:
            identity = ServiceIdentity(4, 6, mark=3)
            if protocol is not None:
                identity = ServiceIdentity(4, protocol, packets.address(V4), port)
            options = ServiceOptions(
                scheduler,
                persistence=persistence,
                netmask=netmask,
                one_packet=one_packet and protocol in {None, Protocol.UDP},
            )
            self.drawn.append((identity, options, servers))
            self.add(len(self.drawn) - 1)

    def add(self, number: int) -> None:
        """Add a service and its servers, as far as they are not there."""
        identity, options, servers = self.drawn[number % len(self.drawn)]
        service = self.services.get(identity)
        if service is None:
            service = self.services.add(identity, options)
        for last, port, method, weight, (upper, lower) in servers:
            address = packets.address(SERVERS4[last])
            if service.server(address, port) is None:
                made = ServerOptions(method, weight, upper, lower)
                self.services.add_server(identity, address, port, made)

    def happen(self, kind: str, one: int, two: int, three: int) -> None:
        client, source = CLIENTS[one % 3], (40000, 40001, 20, 0)[one // 3]
        virtual = (V4, V4, MARKED)[two % 3]
        port = (80, 21, 5000, 500)[two // 3]
        match kind:
            case "tcp":
                flags = (SYN, SYN, ACK, FIN | ACK, RST, SYN | ACK)[three % 6]
                self.send("client", packets.tcp(client, source, virtual, port, flags))
            case "udp":
                source = 500 if port == 500 else source
                self.send("client", packets.udp(client, source, virtual, port, b"text"))
            case "sctp":
                self.send("client", packets.sctp(client, source, virtual, port, three))
            case "esp":
                self.send("client", packets.ip(client, virtual, 50, bytes(24)))
            case "ftp":
                text = (b"EPSV\r\n", b"PASV\r\n", b"PORT 198,51,100,71,156,64\r\n")[three % 3]
                self.send("client", packets.tcp(client, source, V4, 21, ACK, text))
                for server in SERVERS4:
                    passive = b"227 (" + server.replace(".", ",").encode() + b",19,136)\r\n"
                    text = b"229 (|||5000|)\r\n" if three % 3 == 0 else passive
                    self.send("server", packets.tcp(server, 21, client, source, ACK, text))
            case "reply":
                server, there = SERVERS4[two % 3], (80, 8080, 5000, 20)[two // 3]
                flags = (SYN | ACK, ACK, FIN | ACK, RST)[three % 4]
                for packet in (
                    packets.tcp(server, there, client, source, flags),
                    packets.udp(server, there, client, source),
                    packets.sctp(server, there, client, source, three),
                ):
                    self.send("server", packet)
            case "error":
                quote = packets.tcp(virtual, port, client, source)
                if three % 2:
                    quote = packets.udp(virtual, port, client, source)
                self.send("client", packets.icmp(client, virtual, 3, 3, quote))
            case "sleep":
                self.laboratory.sleep((0.5, 1, 2, 4, 11, 30, 61, 100, 130, 301, 901, 3600)[one])
            case "set":
                names = sorted(self.chosen)
                self.laboratory.set(**{names[one % len(names)]: three % 2})
            case "add":
                self.add(one)
            case "delete" if one == 0:
                identity = self.drawn[two % len(self.drawn)][0]
                if self.services.get(identity) is not None:
                    self.services.delete(identity)
            case "edit" | "remove":
                self.change(kind, two, three)
            case "forget" | "copy":
                self.replicate(kind, one, three)

    def send(self, side: str, packet: bytes) -> None:
        for left in self.laboratory.send(side, packet):
            assert faults(left.packet) == [], left

    def change(self, kind: str, two: int, three: int) -> None:
        servers = [server for service in self.services for server in service.servers]
        if servers and kind == "edit":
            self.laboratory.edit(servers[two % len(servers)], three % 4)
        elif servers:
            self.laboratory.remove(servers[two % len(servers)])

    def replicate(self, kind: str, one: int, three: int) -> None:
        replication = self.laboratory.director.replication
        table = self.laboratory.director.registry.table
        keys = [c.record_key for c in table.connections() if not c.is_poisoned]
        records = replication.lookup(keys)
        assert [record.key for record in records] == keys
        if kind == "forget":
            replication.forget(keys[one % 3 :: 3])
        else:
            # Some to another server, which there may be or not; unbound ones to their own.
            server = packets.address((*SERVERS4, "10.1.0.14")[three % 4])
            replication.apply(
                [r._replace(server=server) if (n + one) % 2 else r for n, r in enumerate(records)],
                self.laboratory.now,
            )

    def check(self) -> None:
        """Everything that is counted is what a recount gives, and no limit is passed."""
        assert self.laboratory.miscounted() == []
        assert self.laboratory.mistallied() == []
        table = self.laboratory.director.registry.table
        connections = list(table.connections())
        assert len(connections) == len(table) <= 12
        unknown = [c for c in connections if c.flags & ConnectionFlag.NO_CLIENT_PORT]
        assert len(unknown) == table.unknown_ports
        children = Counter(id(c.parent) for c in connections if c.parent is not None)
        for connection in connections:
            assert connection.children == children[id(connection)]
            assert connection.second <= int(connection.expires) + 1
            if not connection.is_template:
                assert table.find(connection.key) is connection

    def settle(self) -> None:
        """With time everything ends."""
        self.laboratory.set(drop_entry=0, drop_packet=0)
        for _ in range(8):
            self.laboratory.sleep(1000)
        assert list(self.laboratory.director.registry.table.connections()) == []
        for service in self.services:
            assert all(server.idle for server in service.servers)
            assert not any(server.overloaded for server in service.servers)


@settings(max_examples=200, deadline=None)
@given(drawn_services, drawn_settings, happenings)
def test_counts_are_those_of_a_recount_whatever_is_configured_and_happens(
    drawn: list[_Service], chosen: dict[str, int], sequence: list[tuple[str, int, int, int]]
) -> None:
    wilderness = Wilderness(drawn, chosen)
    wilderness.laboratory.set(**chosen)
    for each in sequence:
        wilderness.happen(*each)
        wilderness.check()
    wilderness.settle()
