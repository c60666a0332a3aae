import pytest

from lvsha.errors import WireError
from lvsha.wire import ipv4
from tests import packets
from tests.reader import dissect, faults, reassemble

PACKET = packets.udp("10.0.0.1", 1, "10.0.0.2", 2, b"x" * 100, dont_fragment=False)


def test_parse_names_every_field() -> None:
    header = ipv4.parse(packets.ip("10.0.0.1", "10.0.0.2", 17, b"abcd", ttl=9, tos=0x2E))
    assert header == ipv4.Ipv4Header(
        packets.address("10.0.0.1"),
        packets.address("10.0.0.2"),
        17,
        24,
        ttl=9,
        tos=0x2E,
        identification=0x1234,
        flags=ipv4.DONT_FRAGMENT,
    )


def test_scapy_finds_nothing_wrong_with_an_emitted_header() -> None:
    header = ipv4.Ipv4Header(b"\x0a\0\0\1", b"\x0a\0\0\2", 253, 24, ttl=7, tos=1, flags=0x4000)
    data = ipv4.emit(header) + b"abcd"
    assert faults(data) == []
    assert (dissect(data).ttl, dissect(data).tos, str(dissect(data).flags)) == (7, 1, "DF")


@pytest.mark.parametrize("length", range(20))
def test_a_header_cut_short_is_a_wire_error(length: int) -> None:
    with pytest.raises(WireError):
        ipv4.parse(PACKET[:length])


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x65" + PACKET[1:],
        b"\x44" + PACKET[1:],
        b"\x4f" + PACKET[1:40],
        PACKET[:2] + (19).to_bytes(2) + PACKET[4:],
    ],
    ids=["another version", "a header of 16 bytes", "options cut short", "shorter than its header"],
)
def test_a_header_that_contradicts_itself_is_a_wire_error(damaged: bytes) -> None:
    with pytest.raises(WireError):
        ipv4.parse(damaged)


def test_fragments_carry_multiples_of_eight_bytes_and_together_the_packet() -> None:
    for mtu in (68, 71, 75):
        pieces = ipv4.fragment(PACKET, mtu)
        assert [len(piece) for piece in pieces] == [68, 68, 32]
        assert reassemble(pieces) == PACKET[20:]


def test_options_that_are_not_copied_do_nothing_in_later_fragments() -> None:
    copied, once = b"\x94\x04\x00\x00", b"\x07\x07\x04\x00\x00\x00\x00"
    options = once + copied + b"\x00"
    packet = packets.ip(
        "10.0.0.1", "10.0.0.2", 253, bytes(200), options=options, dont_fragment=False
    )
    first, *later = ipv4.fragment(packet, 100)
    assert first[20:32] == options
    assert [piece[20:32] for piece in later] == [b"\x01" * 7 + copied + b"\x00"] * 3
    assert [len(piece) for piece in (first, *later)] == [96, 96, 96, 40]


@pytest.mark.parametrize("options", [b"\x07\x00\x00\x00", b"\x07\x09\x00\x00", b"\x01\x01\x01\x07"])
def test_options_that_contradict_themselves_are_left_as_they_are(options: bytes) -> None:
    packet = packets.ip("10.0.0.1", "10.0.0.2", 253, bytes(80), options=options)
    assert {piece[20:24] for piece in ipv4.fragment(packet, 68)} == {options}


def test_fragments_forbid_fragmentation_only_if_told_so() -> None:
    for packet in (PACKET, packets.udp("10.0.0.1", 1, "10.0.0.2", 2, b"x" * 100)):
        for wanted in (False, True):
            pieces = ipv4.fragment(packet, 68, dont_fragment=wanted)
            assert {piece[6] & 0x40 for piece in pieces} == {0x40 if wanted else 0}


def test_a_packet_is_cut_where_it_is_told() -> None:
    pieces = ipv4.cut(PACKET, [8, 64, 16, 20])
    assert [len(piece) for piece in pieces] == [28, 84, 36, 40]
    assert reassemble(pieces) == PACKET[20:]


@pytest.mark.parametrize("lengths", [[], [100], [8, 101], [7, 101], [64, 44, 8]])
def test_cuts_that_do_not_fit_are_a_wire_error(lengths: list[int]) -> None:
    with pytest.raises(WireError):
        ipv4.cut(PACKET, lengths)


def test_a_fragment_past_the_last_place_is_a_wire_error() -> None:
    last = packets.ip("10.0.0.1", "10.0.0.2", 253, bytes(16), fragment=0x1FFF)
    with pytest.raises(WireError):
        ipv4.cut(last, [8, 8])
    assert len(ipv4.cut(last[:2] + b"\x00\x1c" + last[4:28], [8])) == 1


def test_a_fragment_of_a_fragment_keeps_its_place_and_its_more() -> None:
    middle = packets.ip("10.0.0.1", "10.0.0.2", 253, bytes(96), fragment=0x2000 | 50)
    pieces = [ipv4.parse(piece) for piece in ipv4.fragment(middle, 68)]
    assert [piece.flags for piece in pieces] == [0x2000 | 50, 0x2000 | 56]


def test_an_mtu_without_room_for_eight_bytes_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        ipv4.fragment(PACKET, 27)
    assert ipv4.fragment(PACKET, 28)
