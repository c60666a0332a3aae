"""IPv4 headers and fragments: round trips, and nothing but `WireError` escapes."""

import contextlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from lvsha.errors import WireError
from lvsha.wire import ipv4, ipv6
from tests.packets import internet_checksum
from tests.reader import faults, reassemble

addresses = st.binary(min_size=4, max_size=4)
bytes_ = st.integers(0, 255)
headers = st.builds(
    ipv4.Ipv4Header,
    source=addresses,
    destination=addresses,
    protocol=bytes_,
    total_length=st.integers(20, 0xFFFF),
    ttl=bytes_,
    tos=bytes_,
    identification=st.integers(0, 0xFFFF),
    flags=st.integers(0, 0xFFFF),
)
OPTIONS = (b"", b"\x94\x04\x00\x00", b"\x07\x07\x04\x00\x00\x00\x00\x00", b"\x01\x01\x01\x00")


@given(headers)
def test_a_header_survives_emit_and_parse(header: ipv4.Ipv4Header) -> None:
    data = ipv4.emit(header)
    assert ipv4.parse(data) == header
    assert internet_checksum(data) in {0, 0xFFFF}


@given(
    st.builds(
        ipv6.Ipv6Header,
        source=st.binary(min_size=16, max_size=16),
        destination=st.binary(min_size=16, max_size=16),
        next_header=bytes_,
        payload_length=st.integers(0, 0xFFFF),
        hop_limit=bytes_,
        traffic_class=bytes_,
    )
)
def test_an_ipv6_header_survives_emit_and_parse(header: ipv6.Ipv6Header) -> None:
    assert ipv6.parse(ipv6.emit(header)) == header


@given(st.binary(max_size=120), st.integers(0, 200))
def test_only_wire_error_escapes(data: bytes, mtu: int) -> None:
    with contextlib.suppress(WireError):
        ipv4.parse(data)
    with contextlib.suppress(WireError):
        ipv6.parse(data)
    with contextlib.suppress(WireError):
        ipv4.fragment(data, mtu)
    with contextlib.suppress(WireError):
        ipv4.cut(data, [8, mtu])
    with contextlib.suppress(WireError):
        ipv6.parse_fragment_header(data, mtu)
    with contextlib.suppress(WireError):
        ipv6.cut(data, 6, mtu, [8, mtu], 1)


@given(st.binary(max_size=120))
def test_the_parts_of_a_hostile_packet_lie_within_it(data: bytes) -> None:
    with contextlib.suppress(WireError):
        named_at, at = ipv6.unfragmentable_part(data)
        assert 6 <= named_at < at <= len(data)
    found = ipv6.find_fragment_header(data)
    if found is not None:
        assert data[found[0]] == ipv6.FRAGMENT
        with contextlib.suppress(WireError):
            ipv6.parse_fragment_header(data, found[1])


@given(st.integers(0, 255), st.integers(0, 0x1FFF), st.booleans(), st.integers(0, 0xFFFF_FFFF))
def test_a_fragment_header_survives_emit_and_parse(
    next_header: int, place: int, more: bool, identification: int
) -> None:
    header = ipv6.FragmentHeader(next_header, place * 8, more, identification)
    assert ipv6.parse_fragment_header(ipv6.emit_fragment_header(header), 0) == header


@given(st.binary(min_size=40, max_size=400), st.data())
def test_the_walk_over_extension_headers_stays_inside_the_packet(
    data: bytes, draw: st.DataObject
) -> None:
    end = draw.draw(st.integers(40, len(data)))
    found = ipv6.upper_layer(data, 0, end)
    if found is not None:
        protocol, offset = found
        assert protocol not in {ipv6.HOP_BY_HOP, ipv6.ROUTING, ipv6.DESTINATION_OPTIONS}
        assert 40 <= offset <= end + 8 * 256


@given(
    st.integers(1, 3000).map(lambda length: bytes(at * 7 & 0xFF for at in range(length))),
    st.integers(68, 1500),
    st.sampled_from(OPTIONS),
    st.sampled_from([0, 100]),
)
def test_fragments_fit_and_carry_everything(
    payload: bytes, mtu: int, options: bytes, offset: int
) -> None:
    blank = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        0x10,
        20 + len(options) + len(payload),
        77,
        offset,
        63,
        253,  # for experiments (RFC 3692): no reader looks inside
        0,
        b"\x0a\x00\x00\x01",
        b"\x0a\x00\x00\x02",
    )
    pieces = ipv4.fragment(blank + options + payload, mtu)
    assert all(len(piece) <= mtu for piece in pieces)
    first = ipv4.parse(pieces[0])
    assert first.flags & ipv4.OFFSET_MASK == offset
    assert pieces[0][20 : first.header_bytes] == options
    if offset == 0:
        assert reassemble(pieces) == payload
    for piece in pieces:
        assert faults(piece) == []
        header = ipv4.parse(piece)
        assert (header.tos, header.identification, header.ttl) == (0x10, 77, 63)
