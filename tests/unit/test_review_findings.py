"""What a comparison with the kernel's source and a live kernel has found, case by case."""

import pytest

from lvsha.datapath.connections import Connection
from lvsha.datapath.marks import MarkRule, whole
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import RealServer, ServiceIdentity, ServiceOptions
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ForwardMethod, Protocol, parse_address
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, TUN, V4, V6, Laboratory
from tests.packets import ACK, RST, SYN
from tests.reader import faults

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])
FAR = "203.0.113.9"
INVITE = b"INVITE sip:b SIP/2.0\r\nCall-ID: one@there\r\n\r\n"


def error(source: str, there: str, quote: bytes, *, ttl: int = 64) -> bytes:
    kind = 1 if ":" in source else 3
    return packets.icmp(source, there, kind, 1, quote, ttl=ttl)


def damaged(packet: bytes) -> bytes:
    """The same ICMP message with a wrong checksum."""
    at = 42 if packet[0] >> 4 == 6 else 22
    return packet[:at] + bytes((packet[at] ^ 0x55,)) + packet[at + 1 :]


def traffic(server: RealServer) -> tuple[int, int, int, int]:
    counted = server.statistics
    return counted.in_packets, counted.in_bytes, counted.out_packets, counted.out_bytes


def only(laboratory: Laboratory) -> Connection:
    (connection,) = laboratory.director.registry.table.connections()
    return connection


@pytest.mark.parametrize("method", [NAT, DR, TUN])
@FAMILIES
def test_an_icmp_error_with_a_wrong_checksum_is_dropped_unless_it_passes_untouched_as_ipv6(
    client: str, vip: str, server: str, method: ForwardMethod
) -> None:
    laboratory = Laboratory()
    real = laboratory.server(laboratory.service(vip), server, method=method)
    laboratory.send("client", packets.tcp(client, 40000, vip, 80))
    before = traffic(real)
    left = laboratory.send(
        "client", damaged(error(client, vip, packets.tcp(vip, 80, client, 40000, ACK)))
    )
    if ":" in vip and method != NAT:
        assert len(left) == 1
        assert laboratory.drops() == {}
    else:
        assert left == []
        assert laboratory.drops() == {Reason.ICMP_CHECKSUM: 1}
        assert traffic(real) == before


@pytest.mark.parametrize(("ttl", "counted"), [(64, 1), (2, 1), (1, 0)])
@FAMILIES
def test_an_error_about_a_request_of_direct_routing_that_passes_by_counts_and_is_the_hosts(
    client: str, vip: str, server: str, ttl: int, counted: int
) -> None:
    laboratory = Laboratory()
    real = laboratory.server(laboratory.service(vip), server, method=DR)
    laboratory.send("client", packets.tcp(client, 40000, vip, 80))
    quote = packets.tcp(client, 40000, vip, 80)
    passing = error(server, client, quote, ttl=ttl)
    assert laboratory.send("server", passing) == []
    assert laboratory.drops() == {}
    assert real.statistics.out_packets == counted
    assert real.statistics.out_bytes == counted * len(passing)


def test_an_error_of_a_nat_server_that_comes_no_further_does_not_count() -> None:
    laboratory = Laboratory()
    real = laboratory.server(laboratory.service())
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80))
    quote = packets.tcp(C4, 40000, S4, 80)
    assert laboratory.send("server", error(S4, C4, quote, ttl=1)) == []
    assert laboratory.drops() == {Reason.TTL_EXCEEDED: 1}
    assert real.statistics.out_packets == 0
    assert len(laboratory.send("server", error(S4, C4, quote, ttl=2))) == 1
    assert real.statistics.out_packets == 1


@pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, "127.0.0.1"), (C6, V6, "::1")])
def test_an_error_to_a_nat_server_on_the_loopback_is_dropped_as_its_requests_are(
    client: str, vip: str, server: str
) -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(vip, protocol=Protocol.UDP), server)
    assert laboratory.send("client", packets.udp(client, 40000, vip, 80)) == []
    quote = packets.udp(vip, 80, client, 40000)
    assert laboratory.send("client", error(client, vip, quote)) == []
    assert laboratory.drops() == {Reason.SERVER_IS_LOCAL: 2}


def test_with_backup_only_nothing_of_the_clients_is_touched() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    real = laboratory.server(service, method=DR)
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN))
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, RST))
    connection = only(laboratory)
    assert connection.state == TcpState.CLOSE
    before = traffic(real)
    laboratory.director.back_up(frozenset({parse_address(V4)}))
    laboratory.set(backup_only=1, expire_nodest_conn=1)
    quote = packets.tcp(V4, 80, C4, 40000, ACK)
    for packet in (packets.tcp(C4, 40000, V4, 80, SYN), error(C4, V4, quote)):
        assert laboratory.send("client", packet) == []
    laboratory.remove(real)
    assert laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK)) == []
    assert laboratory.drops() == {}
    assert traffic(real) == before
    assert only(laboratory) is connection
    assert connection.state == TcpState.CLOSE


def ftp_control() -> tuple[Laboratory, RealServer]:
    """A control connection whose client has asked for a passive transfer."""
    laboratory = Laboratory()
    real = laboratory.server(laboratory.service(port=21))
    laboratory.send("client", packets.tcp(C4, 40000, V4, 21, SYN))
    laboratory.send("server", packets.tcp(S4, 21, C4, 40000, SYN | ACK))
    laboratory.send("client", packets.tcp(C4, 40000, V4, 21, ACK))
    laboratory.send("client", packets.tcp(C4, 40000, V4, 21, ACK, b"PASV\r\n"))
    return laboratory, real


def test_an_ftp_answer_counts_as_it_leaves() -> None:
    laboratory, real = ftp_control()
    before = real.statistics.out_bytes
    answer = packets.tcp(S4, 21, C4, 40000, ACK, b"227 Passive (10,1,0,11,19,137).\r\n")
    (left,) = laboratory.send("server", answer)
    assert faults(left.packet) == []
    assert len(left.packet) > len(answer)
    assert real.statistics.out_bytes - before == len(left.packet)


def test_an_ftp_answer_with_the_end_of_the_connection_is_still_rewritten() -> None:
    laboratory, _ = ftp_control()
    answer = packets.tcp(S4, 21, C4, 40000, ACK | packets.FIN, b"227 (10,1,0,11,19,137).\r\n")
    (left,) = laboratory.send("server", answer)
    assert b"(192,0,2,21,19,137)" in left.packet


def test_an_ftp_answer_with_a_wrong_checksum_changes_no_state_and_does_not_count() -> None:
    laboratory, real = ftp_control()
    connection = only(laboratory)
    before = traffic(real)
    laboratory.now += 5
    answer = packets.tcp(S4, 21, C4, 40000, ACK | RST, b"221 bye\r\n")
    assert laboratory.send("server", answer[:-1] + b"!") == []
    assert laboratory.drops() == {Reason.TRANSPORT_CHECKSUM: 1}
    assert traffic(real) == before
    assert connection.state == TcpState.ESTABLISHED
    assert connection.expires == laboratory.now + connection.timeout


def test_a_server_that_comes_back_with_weight_0_takes_no_slots_of_mh() -> None:
    laboratory = Laboratory()
    service = laboratory.service(scheduler="mh")
    first = laboratory.server(service, weight=3)
    laboratory.server(service, "10.1.0.12")
    laboratory.remove(first)
    assert laboratory.server(service, weight=0) is first
    assert first.last_weight == 0
    for port in range(40000, 40050):
        assert len(laboratory.send("client", packets.tcp(C4, port, V4, 80))) == 1
    assert laboratory.drops() == {}


@pytest.mark.parametrize(
    ("told", "learned"),
    [((1400,), 1400), ((1300, 1400), 1300), ((1400, 1300), 1300), ((9000,), 1500), ((0,), 552)],
)
def test_an_error_about_a_tunnel_never_makes_its_path_wider(
    told: tuple[int, ...], learned: int
) -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(), method=TUN)
    original = packets.tcp(C4, 40000, V4, 80, ACK | SYN, bytes(1000))
    (sent,) = laboratory.send("client", original)
    left = sent
    for mtu in told:
        (left,) = laboratory.send(
            "server",
            packets.icmp("10.1.0.33", "10.1.0.1", 3, 4, sent.packet[:128], rest=mtu),
        )
    assert left.side == "client"
    assert int.from_bytes(left.packet[26:28]) == learned - 20
    for length, forwarded in ((learned - 20, True), (learned - 16, False)):
        packet = packets.tcp(C4, 40000, V4, 80, ACK, bytes(length - 40))
        (left,) = laboratory.send("client", packet)
        assert (left.side == "server") is forwarded


def test_the_path_mtu_of_a_tunnel_is_forgotten_after_ten_minutes() -> None:
    laboratory = Laboratory()
    laboratory.director.set_timeouts(tcp=5000)
    laboratory.server(laboratory.service(), method=TUN)
    (sent,) = laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN))
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))
    learn = packets.icmp("10.1.0.33", "10.1.0.1", 3, 4, sent.packet, rest=1000)
    laboratory.send("server", learn)
    long = packets.tcp(C4, 40000, V4, 80, ACK, bytes(1200))
    for seconds, side in ((1, "client"), (598, "client"), (2, "server")):
        laboratory.sleep(seconds)
        assert {left.side for left in laboratory.send("client", long)} == {side}


def bypassing(laboratory: Laboratory) -> None:
    laboratory.set(cache_bypass=1)
    laboratory.director.marks.set([MarkRule(7, whole(parse_address(FAR)))])
    laboratory.director.services.add(ServiceIdentity(4, Protocol.TCP, mark=7), ServiceOptions("rr"))


def test_options_of_a_bypassed_packet_are_brought_up_to_date() -> None:
    laboratory = Laboratory()
    bypassing(laboratory)
    record_route = bytes((7, 7, 4, 0, 0, 0, 0, 0))
    packet = packets.tcp(C4, 40000, FAR, 80, ip_options=record_route)
    (left,) = laboratory.send("client", packet)
    assert left.packet[20:28] == bytes((7, 7, 8)) + parse_address(FAR) + b"\0"
    assert faults(left.packet) == []


def test_the_checksum_of_a_bypassed_sctp_packet_is_completed() -> None:
    laboratory = Laboratory()
    bypassing(laboratory)
    packet = packets.sctp(C4, 40000, FAR, 80, 1)
    unfinished = packet[:28] + bytes(4) + packet[32:]
    header = packets.vnet_header(partial=True, protocol=packets.SCTP)
    (left,) = laboratory.send("client", unfinished, header)
    assert left.packet[28:32] == packet[28:32]
    assert left.vnet[0] == 0


@pytest.mark.parametrize("said", [INVITE, b"no header"])
def test_without_persistence_a_sip_server_that_speaks_first_needs_no_template(said: bytes) -> None:
    laboratory = Laboratory()
    service = laboratory.service(port=5060, protocol=Protocol.UDP, engine="sip")
    laboratory.server(service)
    (left,) = laboratory.send("server", packets.udp(S4, 5060, C4, 7000, said))
    assert left.packet[12:16] == parse_address(V4)
    assert not only(laboratory).is_template
    assert laboratory.miscounted() == []


@pytest.mark.parametrize(("tells", "answers"), [(0, 0), (1, 1)])
def test_a_sip_server_that_speaks_first_without_a_call_id_is_as_any_other_server(
    tells: int, answers: int
) -> None:
    laboratory = Laboratory()
    laboratory.set(nat_icmp_send=tells)
    service = laboratory.service(port=5060, protocol=Protocol.UDP, engine="sip", persistence=60)
    laboratory.server(service)
    left = laboratory.send("server", packets.udp(S4, 5060, C4, 7000, b"no header"))
    assert [each.side for each in left] == ["server"] * answers
    assert laboratory.drops() == {Reason.UNKNOWN_REPLY: 1}
