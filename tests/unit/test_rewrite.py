import pytest

from lvsha.datapath.flow import Frame
from lvsha.datapath.rewrite import Translation, count_down, wrap
from tests import packets
from tests.reader import dissect, faults

C4, V4, S4 = "198.51.100.7", "192.0.2.1", "10.1.0.2"
C6, V6, S6 = "2001:db8::7", "2001:db8:f::1", "fd00::2"
FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])


def frame(packet: bytes, vnet: bytes = packets.NO_VNET) -> Frame:
    made = Frame()
    made.load(packets.ethernet(packet), vnet)
    return made


@FAMILIES
def test_a_request_goes_to_the_server_and_its_reply_comes_from_the_service(
    client: str, vip: str, server: str
) -> None:
    virtual, own = (packets.address(vip), 80), (packets.address(server), 8080)
    request = frame(packets.tcp(client, 40000, vip, 80, payload=b"GET", ttl=64))
    Translation(virtual, own, source=False).apply(request)
    read = dissect(request.packet())
    assert faults(request.packet()) == []
    assert (read.src, read.dst, read.payload.dport) == (client, server, 8080)
    reply = frame(packets.tcp(server, 8080, client, 40000, payload=b"200 OK"))
    Translation(own, virtual, source=True).apply(reply)
    read = dissect(reply.packet())
    assert faults(reply.packet()) == []
    assert (read.src, read.payload.sport, read.dst) == (vip, 80, client)
    assert (read.ttl if ":" not in vip else read.hlim) == 63


@FAMILIES
def test_a_wrong_checksum_stays_as_wrong_as_it_was(client: str, vip: str, server: str) -> None:
    packet = bytearray(packets.udp(client, 1, vip, 53, b"data"))
    packet[-1] ^= 0xFF
    made = frame(bytes(packet))
    Translation((packets.address(vip), 53), (packets.address(server), 53), source=False).apply(made)
    found = faults(made.packet())
    assert [fault.split()[0] for fault in found] == ["UDP.chksum"]


def test_a_datagram_without_checksum_gets_one() -> None:
    made = frame(packets.udp(C4, 1, V4, 53, b"odd", checksum=False) + bytes(15))
    Translation((packets.address(V4), 53), (packets.address(S4), 5353), source=False).apply(made)
    assert dissect(made.packet()).payload.chksum != 0
    assert faults(made.packet()) == []


def test_a_datagram_whose_checksum_comes_out_as_zero_says_all_ones() -> None:
    # Data that equals the checksum without it makes the sum all ones, the checksum zero.
    data = packets.udp(C4, 1, S4, 53, bytes(2))[26:28]
    made = frame(packets.udp(C4, 1, V4, 53, data))
    Translation((packets.address(V4), 53), (packets.address(S4), 53), source=False).apply(made)
    assert made.packet()[26:28] == b"\xff\xff"
    assert faults(made.packet()) == []


@FAMILIES
@pytest.mark.parametrize("protocol", [packets.TCP, packets.UDP])
def test_a_partial_checksum_stays_partial_and_right(
    client: str, vip: str, server: str, protocol: int
) -> None:
    make = packets.tcp if protocol == packets.TCP else packets.udp
    l4 = 40 if ":" in vip else 20
    packet = packets.with_partial_checksum(
        make(client, 40000, vip, 80, payload=b"x" * 5000), l4, protocol
    )
    made = frame(packet, packets.vnet_header(partial=True, protocol=protocol, l4=14 + l4))
    Translation((packets.address(vip), 80), (packets.address(server), 8080), source=False).apply(
        made
    )
    changed = made.packet()
    assert changed == packets.with_partial_checksum(changed, l4, protocol)
    assert dissect(changed).dst == server


@pytest.mark.parametrize(
    "packet", [packets.udp(C4, 1, V4, 2, ttl=2), packets.udp(C6, 1, V6, 2, ttl=2)]
)
def test_counting_down_keeps_the_header_right(packet: bytes) -> None:
    made = frame(packet)
    count_down(made)
    assert faults(made.packet()) == []
    read = dissect(made.packet())
    assert (read.ttl if read.version == 4 else read.hlim) == 1


@pytest.mark.parametrize(
    "inner", [packets.udp(C4, 1, V4, 2, b"x"), packets.udp(C6, 1, V6, 2, b"x")]
)
@pytest.mark.parametrize(("here", "there"), [("10.1.0.1", S4), ("fd00::1", S6)])
def test_a_packet_of_either_family_fits_a_tunnel_of_either(
    inner: bytes, here: str, there: str
) -> None:
    packet = wrap(inner, packets.address(here), packets.address(there), 99)
    read = dissect(packet)
    assert faults(packet) == []
    assert (read.src, read.dst) == (here, there)
    assert bytes(read.payload) == inner
    assert (read.proto if read.version == 4 else read.nh) == (4 if inner[0] >> 4 == 4 else 41)


@pytest.mark.parametrize(
    ("inside", "outside"), [(0xB8, 0xB8), (0xB9, 0xB9), (0xBA, 0xBA), (0xBB, 0xBA)]
)
def test_congestion_experienced_is_not_repeated_outside(inside: int, outside: int) -> None:
    for inner in (packets.udp(C4, 1, V4, 2, tos=inside), packets.udp(C6, 1, V6, 2, tos=inside)):
        assert dissect(wrap(inner, bytes(4), bytes(4), 1)).tos == outside
        assert dissect(wrap(inner, bytes(16), bytes(16), 1)).tc == outside


@pytest.mark.parametrize("dont_fragment", [True, False])
def test_the_outer_header_says_dont_fragment_as_the_inner_does(dont_fragment: bool) -> None:
    inner = packets.udp(C4, 1, V4, 2, dont_fragment=dont_fragment)
    read = dissect(wrap(inner, bytes(4), bytes(4), 99))
    assert bool(read.flags.DF) == dont_fragment
    assert read.id == (0 if dont_fragment else 99)
    assert not dissect(wrap(packets.udp(C6, 1, V6, 2), bytes(4), bytes(4), 99)).flags.DF
