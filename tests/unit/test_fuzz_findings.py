"""What `tests.fuzz` has found: each case as small as it could be made."""

import pytest

from lvsha.datapath.flow import Frame
from lvsha.datapath.reasons import Reason
from lvsha.model import Protocol, parse_address
from tests import packets
from tests.laboratory import C4, C6, S4, S6, V4, V6, Laboratory
from tests.packets import ACK, SYN

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])
SECOND = "10.1.0.12"
OTHER_CLIENT = "2001:db8:1::99"
INVITE = b"INVITE sip:b SIP/2.0\r\nCall-ID: one@there\r\n\r\n"


@pytest.mark.parametrize("left_behind", [b"\x08\x00", b"\x86\xdd", b"\xff\xff", b"\0\0"])
@pytest.mark.parametrize("received", [10, 16, 23])
def test_a_frame_without_a_type_is_not_read_by_that_of_an_earlier_frame(
    received: int, left_behind: bytes
) -> None:
    frame = Frame()
    frame.view[22:24] = left_behind
    assert frame.read(received) is Reason.TRUNCATED


def test_connections_that_end_in_one_second_end_in_an_order_of_their_own() -> None:
    """Not in that of their addresses in memory: the same frames give the same changes."""
    laboratory = Laboratory()
    service = laboratory.service(protocol=Protocol.UDP)
    laboratory.server(service)
    ports = list(range(40000, 40200))
    for port in ports:
        laboratory.send("client", packets.udp(C4, port, V4, 80))
    table = laboratory.director.registry.table
    ended: list[int] = []
    for connection in table.due(laboratory.now + 400, 10_000):
        assert connection.expires <= laboratory.now + 400
        ended.append(connection.client[1])
        table.remove(connection)
    assert ended in (ports, ports[::-1])


@FAMILIES
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_reply_of_no_connection_that_comes_no_further_is_not_counted_down(
    client: str, vip: str, server: str, ttl: int
) -> None:
    laboratory = Laboratory()
    laboratory.set(nat_icmp_send=1)
    laboratory.server(laboratory.service(vip), server)
    packet = packets.tcp(server, 80, client, 40000, ACK, ttl=ttl)
    (left,) = laboratory.send("server", packet)
    assert laboratory.drops() == {Reason.TTL_EXCEEDED: 1}
    assert left.side == "server"
    assert packet[:8] in left.packet


@pytest.mark.parametrize("one_packet", [False, True])
def test_a_server_that_speaks_first_to_a_client_of_another_server_takes_it_over(
    one_packet: bool,
) -> None:
    laboratory = Laboratory()
    service = laboratory.service(
        V4, 5060, protocol=Protocol.UDP, persistence=300, engine="sip", one_packet=one_packet
    )
    laboratory.server(service, SECOND)
    laboratory.server(service, S4)
    (first,) = laboratory.send("client", packets.udp(C4, 5060, V4, 5060, INVITE))
    other = S4 if first.packet[16:20] == parse_address(SECOND) else SECOND
    (left,) = laboratory.send("server", packets.udp(other, 5060, C4, 5060, INVITE))
    assert left.packet[12:16] == parse_address(V4)
    (again,) = laboratory.send("client", packets.udp(C4, 5060, V4, 5060, INVITE))
    assert again.packet[16:20] == parse_address(other)
    assert laboratory.miscounted() == []


@FAMILIES
@pytest.mark.parametrize("ttl", [0, 1, 255])
def test_a_packet_for_a_server_on_this_host_keeps_any_time_to_live(
    client: str, vip: str, server: str, ttl: int
) -> None:
    laboratory = Laboratory()
    own = "10.1.0.1" if server == S4 else "fd00:5::1"
    laboratory.server(laboratory.service(vip), own)
    (left,) = laboratory.send("client", packets.tcp(client, 40000, vip, 80, SYN, ttl=ttl))
    assert left.side == "host"
    assert left.packet == packets.tcp(client, 40000, own, 80, SYN, ttl=ttl)


def test_a_packet_with_wrong_options_and_no_server_counts_once() -> None:
    laboratory = Laboratory()
    laboratory.service()
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN, ip_options=b"\x07\x02\0\0"))
    assert laboratory.drops() == {Reason.IP_OPTIONS: 1}


def test_a_datagram_that_turns_out_to_be_none_of_ours_is_not_taken_for_the_packet_before() -> None:
    """ICMP of IPv4 in an IPv6 fragment that is the whole (RFC 6946)."""
    laboratory = Laboratory()
    laboratory.server(laboratory.service(V6), S6)
    laboratory.send("client", packets.tcp(C6, 40000, V6, 80, SYN))
    fragment = bytes((packets.ICMP, 0, 0, 0, 0, 0, 0, 1)) + bytes(40)
    assert laboratory.send("client", packets.ip(OTHER_CLIENT, V6, 44, fragment)) == []
    (connection,) = laboratory.director.registry.table.connections()
    assert connection.packets == 1
