"""What is peculiar to a protocol, from frame to frame: SCTP, AH and ESP, ICMP, fragments."""

import pytest

from lvsha.datapath.connections import Connection
from lvsha.datapath.network import AddressChange
from lvsha.datapath.reasons import Reason
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.verdicts import ACCEPT
from lvsha.model import ForwardMethod, Protocol, parse_address
from tests import packets
from tests.laboratory import C4, C6, CLIENT, DR, NAT, S4, S6, TUN, V4, V6, Laboratory, Left
from tests.packets import ACK, RST, SYN
from tests.reader import dissect, faults

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])

INIT, INIT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, DATA = (
    1, 2, 6, 7, 8, 10, 11, 0,
)  # fmt: skip


def the_one(laboratory: Laboratory) -> Connection:
    (connection,) = laboratory.director.registry.table.connections()
    return connection


def build(
    vip: str,
    server: str,
    protocol: Protocol,
    port: int = 80,
    *,
    method: ForwardMethod = NAT,
    server_port: int | None = None,
) -> Laboratory:
    laboratory = Laboratory()
    service = laboratory.service(vip, port, protocol=protocol)
    laboratory.server(service, server, server_port, method=method)
    return laboratory


# SCTP


@FAMILIES
@pytest.mark.parametrize("port", [80, 8080], ids=["same port", "another port"])
def test_an_association_goes_through_nat_from_beginning_to_end(
    client: str, vip: str, server: str, port: int
) -> None:
    laboratory = build(vip, server, Protocol.SCTP, server_port=port)

    def request(*chunks: int) -> str:
        (left,) = laboratory.send("client", packets.sctp(client, 4000, vip, 80, *chunks))
        assert left.side == "server"
        assert left.packet == packets.sctp(client, 4000, server, port, *chunks, ttl=63)
        assert faults(left.packet) == []
        return SctpState(the_one(laboratory).state).name

    def reply(*chunks: int) -> str:
        (left,) = laboratory.send("server", packets.sctp(server, port, client, 4000, *chunks))
        assert left.side == "client"
        assert left.packet == packets.sctp(vip, 80, client, 4000, *chunks, ttl=63)
        return SctpState(the_one(laboratory).state).name

    real = laboratory.director.registry.table
    assert request(INIT) == "INIT1"
    assert (the_one(laboratory).active, len(real)) == (False, 1)
    assert reply(INIT_ACK) == "COOKIE_SENT"
    assert request(COOKIE_ECHO, DATA) == "COOKIE_REPLIED"
    assert reply(COOKIE_ACK) == "ESTABLISHED"
    assert the_one(laboratory).active
    assert request(DATA) == "ESTABLISHED"
    assert request(SHUTDOWN) == "SHUTDOWN_RECEIVED"
    assert not the_one(laboratory).active
    assert reply(SHUTDOWN_ACK) == "SHUTDOWN_ACK_SENT"
    assert request(14) == "CLOSED"
    assert laboratory.miscounted() == []
    laboratory.sleep(63)
    assert len(real) == 0


def test_a_new_association_may_take_the_ports_of_a_closed_one() -> None:
    laboratory = build(V4, S4, Protocol.SCTP)
    for chunk in (INIT, ABORT):
        laboratory.send("client", packets.sctp(C4, 4000, V4, 80, chunk))
    first = the_one(laboratory)
    assert first.state == SctpState.CLOSED
    laboratory.send("client", packets.sctp(C4, 4000, V4, 80, DATA))
    assert the_one(laboratory) is first
    laboratory.send("client", packets.sctp(C4, 4000, V4, 80, INIT))
    assert the_one(laboratory) is not first
    assert laboratory.miscounted() == []


@pytest.mark.parametrize("sloppy", [0, 1])
def test_only_an_init_opens_an_association_unless_sctp_is_sloppy(sloppy: int) -> None:
    laboratory = build(V4, S4, Protocol.SCTP)
    laboratory.set(sloppy_sctp=sloppy)
    (left,) = laboratory.send("client", packets.sctp(C4, 1, V4, 80, DATA))
    assert left.side == ("server" if sloppy else "client")
    assert laboratory.send("client", packets.sctp(C4, 2, V4, 80, ABORT)) == []
    assert len(laboratory.send("client", packets.sctp(C4, 3, V4, 80, INIT))) == 1


@pytest.mark.parametrize("method", [DR, TUN], ids=["dr", "tun"])
def test_an_association_of_which_one_half_is_seen_is_established_by_the_client(
    method: ForwardMethod,
) -> None:
    laboratory = build(V4, S4, Protocol.SCTP, method=method)
    for chunk in (INIT, COOKIE_ECHO):
        assert len(laboratory.send("client", packets.sctp(C4, 1, V4, 80, chunk))) == 1
    assert the_one(laboratory).state == SctpState.ESTABLISHED
    assert the_one(laboratory).active


def test_an_sctp_error_is_translated_with_its_quote() -> None:
    laboratory = build(V4, S4, Protocol.SCTP, server_port=8080)
    laboratory.send("client", packets.sctp(C4, 1, V4, 80, INIT))
    error = packets.icmp(S4, C4, 3, 3, packets.sctp(C4, 1, S4, 8080, INIT))
    (left,) = laboratory.send("server", error)
    read = dissect(left.packet)
    assert (left.side, read.src, read.dst, faults(left.packet)) == ("client", V4, C4, [])
    assert left.packet[44:48] == parse_address(V4)
    assert int.from_bytes(left.packet[50:52]) == 80


# AH and ESP


def ike(source: str, destination: str) -> bytes:
    return packets.udp(source, 500, destination, 500, b"ike")


def secured(source: str, destination: str, protocol: int, ttl: int = 64) -> bytes:
    return packets.ip(source, destination, protocol, b"payload of 24 bytes here", ttl=ttl)


@FAMILIES
@pytest.mark.parametrize("protocol", [Protocol.AH, Protocol.ESP])
def test_secured_packets_follow_their_key_exchange_through_nat(
    client: str, vip: str, server: str, protocol: Protocol
) -> None:
    laboratory = build(vip, server, Protocol.UDP, 500)
    service = next(iter(laboratory.director.services))
    laboratory.server(service, "fd00:5::d" if ":" in vip else "10.1.0.13")
    assert laboratory.send("client", secured(client, vip, protocol)) == []
    assert laboratory.drops() == {}
    (first,) = laboratory.send("client", ike(client, vip))
    chosen = dissect(first.packet).dst
    (there,) = laboratory.send("client", secured(client, vip, protocol))
    assert (there.side, there.dmac) == ("server", first.dmac)
    assert there.packet == secured(client, chosen, protocol, ttl=63)
    (back,) = laboratory.send("server", secured(chosen, client, protocol))
    assert back.side == "client"
    assert back.packet == secured(vip, client, protocol, ttl=63)
    assert len(laboratory.director.registry.table) == 1


@pytest.mark.parametrize("method", [DR, TUN], ids=["dr", "tun"])
def test_secured_packets_follow_their_key_exchange_by_other_methods(
    method: ForwardMethod,
) -> None:
    laboratory = build(V4, S4, Protocol.UDP, 500, method=method)
    laboratory.send("client", ike(C4, V4))
    (left,) = laboratory.send("client", secured(C4, V4, Protocol.ESP))
    assert left.packet[20 if method is TUN else 0 :] == secured(C4, V4, Protocol.ESP, ttl=63)


def test_secured_packets_never_open_a_connection_and_keep_the_key_exchange_alive() -> None:
    laboratory = build(V4, S4, Protocol.UDP, 500)
    assert laboratory.send("client", secured(C4, V4, Protocol.ESP)) == []
    assert len(laboratory.director.registry.table) == 0
    laboratory.send("client", ike(C4, V4))
    for _ in range(4):
        laboratory.sleep(200)
        assert len(laboratory.send("client", secured(C4, V4, Protocol.ESP))) == 1
    laboratory.sleep(301)
    assert len(laboratory.director.registry.table) == 0
    server = next(iter(laboratory.director.services)).servers[0]
    assert (server.counted().connections, server.counted().in_packets) == (1, 5)


# Real servers that speak first


@FAMILIES
@pytest.mark.parametrize("told", [0, 1])
def test_a_nat_servers_packet_of_no_connection_is_answered_if_the_setting_says_so(
    client: str, vip: str, server: str, told: int
) -> None:
    laboratory = build(vip, server, Protocol.TCP)
    laboratory.set(nat_icmp_send=told)
    left = laboratory.send("server", packets.tcp(server, 80, client, 1, ACK))
    assert laboratory.drops() == {Reason.UNKNOWN_REPLY: 1}
    assert len(left) == told
    for one in left:
        at = 40 if ":" in vip else 20
        assert (one.side, dissect(one.packet).dst) == ("server", server)
        assert one.packet[at : at + 2] == (b"\x01\x04" if ":" in vip else b"\x03\x03")
        assert faults(one.packet) == []


def test_resets_and_aborts_are_answered_with_nothing() -> None:
    for protocol, packet in (
        (Protocol.TCP, packets.tcp(S4, 80, C4, 1, RST)),
        (Protocol.TCP, packets.tcp(S4, 80, C4, 1, RST | ACK)),
        (Protocol.SCTP, packets.sctp(S4, 80, C4, 1, ABORT)),
    ):
        laboratory = build(V4, S4, protocol)
        laboratory.set(nat_icmp_send=1)
        assert laboratory.send("server", packet) == []
        assert laboratory.drops() == {Reason.UNKNOWN_REPLY: 1}


def test_what_a_server_sends_to_this_host_or_from_other_ports_is_not_its_connections() -> None:
    laboratory = build(V4, S4, Protocol.TCP)
    laboratory.set(nat_icmp_send=1)
    assert laboratory.send("server", packets.tcp(S4, 80, "10.1.0.1", 1, SYN)) == []
    assert laboratory.send("server", packets.tcp(S4, 22, C4, 1, SYN)) == []
    assert laboratory.send("server", packets.udp(S4, 80, C4, 1)) == []
    assert laboratory.drops() == {}


def test_a_servers_own_reply_that_passes_here_counts_and_shows_both_halves() -> None:
    laboratory = build(V4, S4, Protocol.TCP, method=DR)
    laboratory.send("client", packets.tcp(C4, 1, V4, 80, SYN))
    assert laboratory.send("server", packets.tcp(V4, 80, C4, 1, SYN | ACK)) == []
    counted = next(iter(laboratory.director.services)).counted()
    assert (counted.in_packets, counted.out_packets) == (1, 1)
    # From now on the table for both halves holds: FIN leads to CLOSE_WAIT.
    laboratory.send("client", packets.tcp(C4, 1, V4, 80, ACK))
    laboratory.send("client", packets.tcp(C4, 1, V4, 80, ACK | packets.FIN))
    assert the_one(laboratory).machine.name_of(the_one(laboratory).state) == "CLOSE_WAIT"
    assert laboratory.drops() == {}


# ICMP errors that open a connection


def error_about(
    laboratory: Laboratory, quote: bytes, client: str = C4, vip: str = V4
) -> list[Left]:
    kind, code = (1, 4) if ":" in vip else (3, 3)
    return laboratory.send("client", packets.icmp(client, vip, kind, code, quote))


@FAMILIES
def test_an_error_about_an_unknown_connection_is_scheduled_if_the_setting_says_so(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(vip, server, Protocol.TCP, server_port=8080)
    quote = packets.tcp(vip, 80, client, 1, ACK)
    assert error_about(laboratory, quote, client, vip) == []
    assert len(laboratory.director.registry.table) == 0
    laboratory.set(schedule_icmp=1)
    (left,) = error_about(laboratory, quote, client, vip)
    read = dissect(left.packet)
    assert (left.side, read.src, read.dst) == ("server", client, server)
    assert faults(left.packet) == []
    connection = the_one(laboratory)
    assert connection.client == (parse_address(client), 1)
    assert connection.virtual == (parse_address(vip), 80)
    assert connection.state == 0
    # The client's next packet belongs to it.
    (left,) = laboratory.send("client", packets.tcp(client, 1, vip, 80, ACK))
    assert left.side == "server"
    assert laboratory.miscounted() == []


def test_an_error_about_no_service_or_by_secured_packets_opens_nothing() -> None:
    laboratory = build(V4, S4, Protocol.UDP, 500)
    laboratory.set(schedule_icmp=1)
    for quote in (
        packets.tcp(V4, 80, C4, 1),
        secured(V4, C4, Protocol.ESP),
        secured(V4, C4, Protocol.AH),
    ):
        assert error_about(laboratory, quote) == []
    assert len(laboratory.director.registry.table) == 0
    assert laboratory.drops() == {}
    assert len(error_about(laboratory, ike(V4, C4))) == 1


def test_an_error_that_finds_no_server_is_answered_with_nothing() -> None:
    laboratory = Laboratory()
    laboratory.service()
    laboratory.set(schedule_icmp=1)
    assert error_about(laboratory, packets.tcp(V4, 80, C4, 1)) == []
    assert laboratory.drops() == {Reason.NO_SERVER: 1}


def test_an_error_about_a_single_packet_leaves_nothing_behind() -> None:
    laboratory = Laboratory()
    service = laboratory.service(protocol=Protocol.UDP, one_packet=True)
    server = laboratory.server(service)
    laboratory.set(schedule_icmp=1)
    assert len(error_about(laboratory, packets.udp(V4, 80, C4, 1))) == 1
    assert len(laboratory.director.registry.table) == 0
    assert server.idle


def test_an_error_about_a_tunnel_packet_of_no_connection_opens_nothing() -> None:
    laboratory = build(V4, S4, Protocol.TCP, method=TUN)
    laboratory.set(schedule_icmp=1)
    laboratory.director.learn(AddressChange(CLIENT, parse_address("10.1.0.1"), present=True))
    inner = packets.tcp(C4, 1, V4, 80)
    quote = packets.ip("10.1.0.1", S4, Protocol.IPIP, inner)
    assert laboratory.send("server", packets.icmp(S4, "10.1.0.1", 3, 1, quote)) == []
    assert len(laboratory.director.registry.table) == 0


# Fragments


@FAMILIES
def test_with_the_last_service_of_a_family_its_packets_are_the_hosts(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(vip, server, Protocol.TCP)
    laboratory.send("client", packets.tcp(client, 4000, vip, 80, SYN))
    (service,) = laboratory.director.services
    laboratory.director.services.delete(service.identity)
    quote = packets.tcp(client, 4000, server, 80, SYN)
    kind = (3, 1) if ":" not in vip else (1, 0)
    for side, packet in (
        ("client", packets.tcp(client, 4000, vip, 80, ACK)),
        ("server", packets.tcp(server, 80, client, 4000, SYN | ACK)),
        ("server", packets.icmp(server, client, *kind, quote)),
    ):
        size = laboratory.put(side, packet)
        assert laboratory.director.decide(laboratory.frame, size, laboratory.now) is ACCEPT


def pieces4(packet: bytes, *sizes: int) -> list[bytes]:
    """An IPv4 packet in fragments of these payload sizes."""
    head, payload = packet[:20], packet[20:]
    made, at = [], 0
    for number, size in enumerate(sizes):
        more = 0 if number == len(sizes) - 1 else 0x2000
        header = bytearray(head)
        part = payload[at : at + size]
        header[2:4] = (20 + len(part)).to_bytes(2)
        header[6:8] = (more | at // 8).to_bytes(2)
        header[10:12] = bytes(2)
        header[10:12] = packets.internet_checksum(bytes(header)).to_bytes(2)
        made.append(bytes(header) + part)
        at += size
    assert at >= len(payload)
    return made


def pieces6(packet: bytes, *sizes: int) -> list[bytes]:
    """An IPv6 packet in fragments of these payload sizes."""
    head, payload = packet[:40], packet[40:]
    made, at = [], 0
    for number, size in enumerate(sizes):
        more = 0 if number == len(sizes) - 1 else 1
        part = payload[at : at + size]
        header = bytes((head[6], 0)) + (at | more).to_bytes(2) + (9).to_bytes(4)
        made.append(head[:4] + (8 + len(part)).to_bytes(2) + b"\x2c" + head[7:] + header + part)
        at += size
    assert at >= len(payload)
    return made


@FAMILIES
def test_a_datagram_in_fragments_is_forwarded_once_it_is_whole_in_pieces_as_it_came(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(vip, server, Protocol.UDP, server_port=8080)
    payload = bytes(range(256)) * 12
    cut = pieces6 if ":" in vip else pieces4
    whole = packets.udp(client, 1, vip, 80, payload, dont_fragment=False)
    came = cut(whole, 1232, 1232, 1232)
    for piece in (came[2], came[0]):
        assert laboratory.send("client", piece) == []
    left = laboratory.send("client", came[1])
    expected = packets.udp(client, 1, server, 8080, payload, dont_fragment=False, ttl=63)
    size = 40 if ":" in vip else 20
    skipped = size + (8 if ":" in vip else 0)
    assert [one.side for one in left] == ["server"] * 3
    assert [len(one.packet) for one in left] == [len(piece) for piece in came]
    assert b"".join(one.packet[skipped:] for one in left) == expected[size:]
    assert laboratory.director.services.counted().in_packets == 1


def test_a_fragment_that_never_gets_whole_opens_nothing_and_is_forgotten() -> None:
    laboratory = build(V4, S4, Protocol.UDP)
    first, _ = pieces4(packets.udp(C4, 1, V4, 80, bytes(100)), 64, 64)
    assert laboratory.send("client", first) == []
    assert len(laboratory.director.registry.table) == 0
    laboratory.sleep(40)
    assert laboratory.drops() == {Reason.FRAGMENT_TIMEOUT: 1}


def test_fragments_of_esp_pass_as_they_are() -> None:
    laboratory = build(V4, S4, Protocol.UDP, 500)
    laboratory.send("client", ike(C4, V4))
    for piece in pieces4(secured(C4, V4, Protocol.ESP), 8, 16):
        (left,) = laboratory.send("client", piece)
        assert left.side == "server"
        assert left.packet[20:] == piece[20:]
        assert left.packet[6:8] == piece[6:8]
        assert dissect(left.packet).dst == S4
        assert faults(left.packet) == []
