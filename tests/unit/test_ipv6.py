import pytest

from lvsha.errors import WireError
from lvsha.wire import ipv6
from tests import packets
from tests.reader import dissect, faults

HERE, THERE = "2001:db8::1", "2001:db8::2"


def extension(next_header: int, words: int = 0) -> bytes:
    return bytes((next_header, words)) + bytes(6 + 8 * words)


def test_parse_names_every_field() -> None:
    header = ipv6.parse(packets.ip(HERE, THERE, 17, b"abcd", ttl=9, tos=0x2E))
    assert header == ipv6.Ipv6Header(packets.address(HERE), packets.address(THERE), 17, 4, 9, 0x2E)


def test_scapy_finds_nothing_wrong_with_an_emitted_header() -> None:
    header = ipv6.Ipv6Header(packets.address(HERE), packets.address(THERE), 59, 4, 3, 0xB8)
    read = dissect(ipv6.emit(header) + b"abcd")
    assert faults(bytes(read)) == []
    assert (read.src, read.dst, read.hlim, read.tc, read.fl) == (HERE, THERE, 3, 0xB8, 0)


@pytest.mark.parametrize("data", [bytes(39), b"\x45" + bytes(39)], ids=["short", "version 4"])
def test_what_is_no_header_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        ipv6.parse(data)


@pytest.mark.parametrize("first", [0, 43, 60])
def test_extension_headers_are_walked_over(first: int) -> None:
    packet = packets.ip(HERE, THERE, first, extension(60) + extension(6, 2) + bytes(20))
    assert ipv6.upper_layer(packet, 0, len(packet)) == (6, 40 + 8 + 24)


def test_the_walk_counts_from_where_the_packet_starts() -> None:
    packet = packets.ip(HERE, THERE, 0, extension(17) + bytes(8))
    assert ipv6.upper_layer(b"\xa5" * 24 + packet, 24, 24 + len(packet)) == (17, 24 + 48)


def test_the_walk_stops_at_a_fragment_header() -> None:
    packet = packets.ip(HERE, THERE, 60, extension(44) + extension(6) + bytes(20))
    assert ipv6.upper_layer(packet, 0, len(packet)) == (ipv6.FRAGMENT, 48)


def test_a_chain_that_is_cut_short_has_no_upper_layer() -> None:
    packet = packets.ip(HERE, THERE, 0, extension(60) + extension(6))
    assert ipv6.upper_layer(packet, 0, len(packet)) == (6, 56)
    for end in range(40, 56):
        assert ipv6.upper_layer(packet, 0, end) is None


def test_a_chain_longer_than_the_limit_has_no_upper_layer() -> None:
    most = ipv6.EXTENSIONS_MAX - 1
    for count, found in ((most, (6, 40 + 8 * most)), (most + 1, None)):
        chain = b"".join(extension(60) for _ in range(count - 1)) + extension(6)
        packet = packets.ip(HERE, THERE, 60, chain + bytes(20))
        assert ipv6.upper_layer(packet, 0, len(packet)) == found


def test_a_fragment_header_is_read_and_written() -> None:
    header = ipv6.FragmentHeader(17, 0x1230, more=True, identification=0xDEADBEEF)
    data = ipv6.emit_fragment_header(header)
    assert data == bytes.fromhex("1100 1231 deadbeef")
    assert ipv6.parse_fragment_header(b"\xa5" * 3 + data, 3) == header
    # Reserved bits mean nothing (RFC 8200, section 4.5).
    assert ipv6.parse_fragment_header(bytes.fromhex("11ff 1237 deadbeef"), 0) == header


@pytest.mark.parametrize("length", range(8))
def test_a_fragment_header_cut_short_is_a_wire_error(length: int) -> None:
    with pytest.raises(WireError):
        ipv6.parse_fragment_header(bytes(40 + length), 40)


def test_the_fragment_header_is_found_behind_others() -> None:
    alone = packets.ip(HERE, THERE, 44, extension(6))
    assert ipv6.find_fragment_header(alone) == (6, 40)
    packet = packets.ip(HERE, THERE, 0, extension(43, 1) + extension(44) + extension(6))
    assert ipv6.find_fragment_header(packet) == (56, 64)
    assert ipv6.find_fragment_header(packets.ip(HERE, THERE, 6, extension(44))) is None


def test_a_chain_cut_short_or_too_long_has_no_fragment_header() -> None:
    packet = packets.ip(HERE, THERE, 0, extension(44) + extension(6))
    assert ipv6.find_fragment_header(packet[:48]) == (40, 48)
    assert ipv6.find_fragment_header(packet[:47]) is None
    most = ipv6.EXTENSIONS_MAX - 1
    for count, found in ((most, (40 + 8 * (most - 1), 40 + 8 * most)), (most + 1, None)):
        chain = b"".join(extension(60) for _ in range(count - 1)) + extension(44)
        assert ipv6.find_fragment_header(packets.ip(HERE, THERE, 60, chain + bytes(8))) == found


@pytest.mark.parametrize(
    ("first", "chain", "found"),
    [
        (17, b"", (6, 40)),
        (0, extension(17, 1), (40, 56)),
        (0, extension(43) + extension(17), (48, 56)),
        (60, extension(17), (40, 48)),
        (60, extension(43) + extension(60) + extension(17), (48, 56)),
    ],
)
def test_the_part_that_every_fragment_repeats_is_the_kernels(
    first: int, chain: bytes, found: tuple[int, int]
) -> None:
    assert ipv6.unfragmentable_part(packets.ip(HERE, THERE, first, chain + bytes(20))) == found


def test_a_chain_that_is_cut_short_has_no_unfragmentable_part() -> None:
    whole = packets.ip(HERE, THERE, 0, extension(43, 1) + extension(17))
    for end in (41, 47, 48, 55, 63):
        with pytest.raises(WireError):
            ipv6.unfragmentable_part(whole[:end])
    endless = packets.ip(HERE, THERE, 0, extension(0) * ipv6.EXTENSIONS_MAX)
    with pytest.raises(WireError):
        ipv6.unfragmentable_part(endless)


def test_a_packet_is_cut_where_it_is_told() -> None:
    packet = packets.ip(HERE, THERE, 0, extension(253) + bytes(range(40)))
    pieces = [dissect(piece) for piece in ipv6.cut(packet, 40, 48, [8, 16, 16], 99)]
    assert [len(piece) for piece in pieces] == [64, 72, 72]
    assert [piece.payload.nh for piece in pieces] == [44] * 3
    marks = [piece.payload.payload for piece in pieces]
    assert [(mark.nh, mark.offset * 8, mark.m, mark.id) for mark in marks] == [
        (253, 0, 1, 99),
        (253, 8, 1, 99),
        (253, 24, 0, 99),
    ]
    assert b"".join(bytes(piece)[56:] for piece in pieces) == bytes(range(40))
    assert all(faults(bytes(piece)) == [] for piece in pieces)


@pytest.mark.parametrize("lengths", [[], [47], [49], [7, 41], [8, 8]])
def test_cuts_that_do_not_fit_are_a_wire_error(lengths: list[int]) -> None:
    with pytest.raises(WireError):
        ipv6.cut(packets.ip(HERE, THERE, 17, bytes(48)), 6, 40, lengths, 1)
