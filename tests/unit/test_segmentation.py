import pytest

from lvsha.datapath import segmentation
from lvsha.datapath.reassembly import Reassembled
from lvsha.errors import WireError
from lvsha.wire import vnet
from tests import packets
from tests.reader import dissect, faults, reassemble

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


def arrival(*pieces: int, largest: int) -> Reassembled:
    return Reassembled(b"", largest, False, pieces)


@pytest.mark.parametrize(
    ("length", "mtu", "arrived", "expected"),
    [
        (120, 1500, arrival(48, 48, 24, largest=68), [68, 68, 44]),
        (2008, 1500, arrival(1400, 608, largest=1420), [1420, 628]),
        (1808, 1500, arrival(1200, 608, largest=1220), [1220, 628]),
        (56, 1500, arrival(8, 32, 16, largest=52), [28, 52, 36]),
        (140, 1500, arrival(48, 48, 24, largest=68), [68, 68, 64]),
        (152, 1500, arrival(48, 48, 24, largest=68), [68, 68, 68, 28]),
        (2040, 1300, arrival(1400, 620, largest=1420), [1300, 780]),
        (120, 1500, arrival(largest=68), [68, 68, 44]),
        (120, 60, arrival(48, 48, 24, largest=68), [60, 60, 60]),
    ],
    ids=[
        "smaller than the link could carry",
        "two",
        "two others",
        "not all of one size",
        "in a tunnel",
        "in a tunnel, with UDP",
        "in a tunnel of a small path MTU",
        "of changed length",
        "onto a smaller link",
    ],
)
def test_ipv4_leaves_in_fragments_no_larger_than_it_came(
    length: int, mtu: int, arrived: Reassembled, expected: list[int]
) -> None:
    data = bytes(at * 7 & 0xFF for at in range(length))
    packet = packets.ip(C4, V4, 253, data, dont_fragment=False)
    pieces = segmentation.refragment(packet, mtu, arrived, 99)
    assert [len(piece) for piece in pieces] == expected
    assert reassemble(pieces) == data
    assert {dissect(piece).id for piece in pieces} == {0x1234}


@pytest.mark.parametrize(
    ("length", "arrived", "expected"),
    [
        (120, arrival(48, 48, 24, largest=96), [96, 96, 72]),
        (2008, arrival(1400, 608, largest=1448), [1448, 656]),
        (1808, arrival(1200, 608, largest=1248), [1248, 656]),
        (160, arrival(48, 48, 24, largest=96), [136, 96, 72]),
        (168, arrival(48, 48, 24, largest=96), [144, 96, 72]),
        (164, arrival(48, 48, 24, largest=96), [212]),
        (2048, arrival(1400, 608, largest=1448), [1448, 696]),
        (120, arrival(largest=96), [168]),
    ],
    ids=[
        "smaller than the link could carry",
        "two",
        "two others",
        "in a tunnel",
        "in a tunnel of eight bytes more",
        "in a tunnel that moves the second piece off its place",
        "in a tunnel, too large for the first",
        "of changed length",
    ],
)
def test_ipv6_leaves_in_fragments_no_larger_than_it_came_or_1280(
    length: int, arrived: Reassembled, expected: list[int]
) -> None:
    data = bytes(at * 7 & 0xFF for at in range(length))
    pieces = segmentation.refragment(packets.ip(C6, V6, 253, data), 1500, arrived, 99)
    assert [len(piece) for piece in pieces] == expected
    assert b"".join(piece[48:] for piece in pieces) == data
    marks = [dissect(piece).payload for piece in pieces]
    assert {(mark.nh, mark.id) for mark in marks} == {(253, 99)}
    assert [mark.m for mark in marks] == [1] * (len(pieces) - 1) + [0]


def test_an_ipv6_datagram_no_longer_than_its_largest_fragment_leaves_whole() -> None:
    packet = packets.ip(C6, V6, 253, bytes(100))
    for arrived in (arrival(100, largest=148), arrival(96, 4, largest=140)):
        assert segmentation.refragment(packet, 1500, arrived, 99) == [packet]


def test_fragments_forbid_fragmentation_where_the_packet_does() -> None:
    for forbidden in (False, True):
        packet = packets.ip(C4, V4, 253, bytes(120), dont_fragment=forbidden)
        for arrived in (arrival(48, 72, largest=92), arrival(largest=68)):
            pieces = segmentation.refragment(packet, 1500, arrived, 99)
            assert {str(dissect(piece).flags.DF) for piece in pieces} == {str(forbidden)}


def test_an_mtu_without_room_is_a_wire_error() -> None:
    arrived = arrival(48, 72, largest=92)
    with pytest.raises(WireError):
        segmentation.refragment(packets.ip(C4, V4, 253, bytes(120)), 27, arrived, 99)
    for damaged in (b"", b"\x45", b"\x60" + bytes(39)):
        with pytest.raises(WireError):
            segmentation.refragment(damaged, 20, arrived, 99)
