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
