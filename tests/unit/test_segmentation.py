import pytest

from lvsha.datapath import segmentation
from lvsha.errors import WireError
from lvsha.wire import vnet
from tests import packets
from tests.reader import dissect, faults

C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8:f::1"


def test_a_finished_packet_is_left_alone() -> None:
    packet = packets.tcp(C4, 1, V4, 2, payload=b"x")
    assert segmentation.split(packet, vnet.VnetHeader(), 20, 6) == [packet]


@pytest.mark.parametrize(("here", "there", "l4"), [(C4, V4, 20), (C6, V6, 40)])
def test_a_partial_checksum_is_finished(here: str, there: str, l4: int) -> None:
    for protocol, make in ((6, packets.tcp), (17, packets.udp)):
        whole = make(here, 1, there, 2, payload=b"odd")
        partial = packets.with_partial_checksum(whole, l4, protocol)
        header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM)
        assert segmentation.split(partial, header, l4, protocol) == [whole]


def test_segments_count_on_and_only_the_last_pushes() -> None:
    flags = packets.ACK | packets.PSH | packets.FIN | 0x80
    packet = packets.tcp(C4, 1, V4, 2, flags, b"a" * 25)
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM, vnet.GSO_TCPV4 | vnet.GSO_ECN, gso_size=10)
    segments = [dissect(s) for s in segmentation.split(packet, header, 20, 6)]
    assert [s.payload.seq for s in segments] == [1000, 1010, 1020]
    assert [str(s.payload.flags) for s in segments] == ["AC", "A", "FPA"]
    assert [s.id for s in segments] == [0x1234, 0x1235, 0x1236]
    assert [len(s) for s in segments] == [50, 50, 45]


def test_a_sequence_number_goes_round_at_its_end() -> None:
    segment = packets.tcp_segment(C4, 1, V4, 2, packets.ACK, b"a" * 20, sequence=0xFFFF_FFF8)
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM, vnet.GSO_TCPV4, gso_size=10)
    pieces = segmentation.split(packets.ip(C4, V4, 6, segment), header, 20, 6)
    assert [dissect(piece).payload.seq for piece in pieces] == [0xFFFF_FFF8, 2]


@pytest.mark.parametrize(
    ("kind", "size", "protocol"),
    [
        (vnet.GSO_TCPV4, 0, 6),
        (vnet.GSO_UDP_L4, 100, 6),
        (vnet.GSO_TCPV4, 100, 17),
        (vnet.GSO_UDP, 100, 17),
        (99, 100, 6),
    ],
)
def test_segmentation_that_does_not_fit_the_packet_is_a_wire_error(
    kind: int, size: int, protocol: int
) -> None:
    make = packets.tcp if protocol == 6 else packets.udp
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM, kind, gso_size=size)
    with pytest.raises(WireError):
        segmentation.split(make(C4, 1, V4, 2, payload=bytes(300)), header, 20, protocol)


def test_a_tcp_header_longer_than_the_packet_is_a_wire_error() -> None:
    packet = bytearray(packets.tcp(C4, 1, V4, 2))
    packet[32] = 0xF0
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM, vnet.GSO_TCPV4, gso_size=100)
    with pytest.raises(WireError):
        segmentation.split(bytes(packet), header, 20, 6)


def test_the_longest_packet_is_headers_and_one_segment() -> None:
    gso = vnet.VnetHeader(gso_type=vnet.GSO_TCPV4, gso_size=1448)
    assert segmentation.segment_length(60_000, gso.gso_type, gso.gso_size, 52) == 1500
    assert segmentation.segment_length(100, gso.gso_type, gso.gso_size, 52) == 100
    assert segmentation.segment_length(60_000, vnet.GSO_NONE, 0, 52) == 60_000
    only_a_mark = vnet.VnetHeader(gso_type=vnet.GSO_ECN, gso_size=10)
    assert (
        segmentation.segment_length(60_000, only_a_mark.gso_type, only_a_mark.gso_size, 52)
        == 60_000
    )


def test_a_datagram_whose_checksum_comes_out_as_zero_says_all_ones() -> None:
    # Data that equals the checksum without it makes the sum all ones, the checksum zero.
    data = packets.udp(C4, 1, V4, 2, bytes(2))[26:28]
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM)
    (finished,) = segmentation.split(packets.udp(C4, 1, V4, 2, data), header, 20, 17)
    assert finished[26:28] == b"\xff\xff"
    assert faults(finished) == []
