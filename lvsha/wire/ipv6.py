"""The IPv6 header (RFC 8200, section 3), extension headers (section 4) and fragments (4.5).

A walk stops at the first header that is not an extension, or at a fragment header, and
never follows more than `EXTENSIONS_MAX` of them: a legitimate packet has two or three,
and a hostile one must not be able to buy work.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError

HEADER_BYTES: Final = 40
MTU_MIN: Final = 1280
"""What every link carries (RFC 8200, section 5)."""
EXTENSIONS_MAX: Final = 8
FRAGMENT_HEADER_BYTES: Final = 8
LENGTH_MAX: Final = 0xFFFF
"""The largest payload of a packet that is no jumbogram."""

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
DESTINATION_OPTIONS: Final = 60

_LAYOUT: Final = struct.Struct("!IHBB16s16s")
_FRAGMENT_LAYOUT: Final = struct.Struct("!BxHI")
_OFFSET_MASK: Final = 0xFFF8
_MORE: Final = 1
_WALKED: Final = frozenset({HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS})


@dataclass(frozen=True, slots=True)
class Ipv6Header:
    """The fixed header; ``payload_length`` counts what follows it."""

    source: bytes
    destination: bytes
    next_header: int
    payload_length: int
    hop_limit: int = 64
    traffic_class: int = 0


@dataclass(frozen=True, slots=True)
class FragmentHeader:
    """Where a fragment belongs; ``offset`` is in bytes, a multiple of 8."""

    next_header: int
    offset: int
    more: bool
    identification: int


def parse(packet: bytes | bytearray | memoryview) -> Ipv6Header:
    """Read the fixed header of a packet.

    Raises:
        WireError: cut short or of another version.
    """
    if len(packet) < HEADER_BYTES:
        raise WireError("IPv6 header cut short")
    first, length, next_header, hop_limit, source, destination = _LAYOUT.unpack_from(packet)
    if first >> 28 != 6:
        raise WireError("not an IPv6 header")
    return Ipv6Header(source, destination, next_header, length, hop_limit, first >> 20 & 0xFF)


def emit(header: Ipv6Header) -> bytes:
    """The 40 bytes of a header with flow label 0."""
    return _LAYOUT.pack(
        6 << 28 | header.traffic_class << 20,
        header.payload_length,
        header.next_header,
        header.hop_limit,
        header.source,
        header.destination,
    )


def upper_layer(
    buffer: bytes | bytearray | memoryview, start: int, end: int
) -> tuple[int, int] | None:
    """Find the upper-layer header of the packet in ``buffer[start:end]``.

    Returns:
        Its protocol number and its offset in the buffer; the number is `FRAGMENT` where
        a fragment header comes first; None where the chain is cut short or too long.
    """
    return upper_layer_after(buffer, buffer[start + 6], start + HEADER_BYTES, end)


def upper_layer_after(
    buffer: bytes | bytearray | memoryview, next_header: int, position: int, end: int
) -> tuple[int, int] | None:
    """Likewise, from a header of the kind ``next_header`` at ``position`` on."""
    for _ in range(EXTENSIONS_MAX):
        if next_header not in _WALKED:
            return next_header, position
        if position + 8 > end:
            return None
        next_header, length = buffer[position], buffer[position + 1]
        position += (length + 1) * 8
    return None


def parse_fragment_header(packet: bytes | bytearray | memoryview, at: int) -> FragmentHeader:
    """Read the fragment header at offset ``at``; its reserved bits mean nothing.

    Raises:
        WireError: cut short.
    """
    if len(packet) < at + FRAGMENT_HEADER_BYTES:
        raise WireError("IPv6 fragment header cut short")
    next_header, place, identification = _FRAGMENT_LAYOUT.unpack_from(packet, at)
    return FragmentHeader(next_header, place & _OFFSET_MASK, bool(place & _MORE), identification)


def emit_fragment_header(header: FragmentHeader) -> bytes:
    """The 8 bytes of a fragment header."""
    place = header.offset | (_MORE if header.more else 0)
    return _FRAGMENT_LAYOUT.pack(header.next_header, place, header.identification)


def find_fragment_header(packet: bytes | bytearray | memoryview) -> tuple[int, int] | None:
    """Find the fragment header of a packet.

    Returns:
        The offset of the byte that announces it, and its own; None where another header
        comes first, or where the chain is cut short or too long.
    """
    if len(packet) < HEADER_BYTES:
        return None
    named_at, position = 6, HEADER_BYTES
    for _ in range(EXTENSIONS_MAX):
        if packet[named_at] == FRAGMENT:
            return named_at, position
        if packet[named_at] not in _WALKED or position + 8 > len(packet):
            return None
        named_at, position = position, position + (packet[position + 1] + 1) * 8
    return None


def cut(
    packet: bytes, named_at: int, at: int, lengths: Sequence[int], identification: int
) -> list[bytes]:
    """Cut a packet into fragments that carry ``lengths`` bytes of it, in order.

    Args:
        packet: a packet without fragment header.
        named_at: the offset of the byte that announces the first header which is cut.
        at: the offset of that header. What is before it goes into every fragment.
        lengths: all but the last one multiples of 8.
        identification: of the datagram.

    Raises:
        WireError: the lengths are not those of what is to be cut, or too large.
    """
    if (
        not HEADER_BYTES <= at <= len(packet)
        or not 6 <= named_at < at
        or not lengths
        or sum(lengths) != len(packet) - at
        or any(length & 7 for length in lengths[:-1])
        or at - HEADER_BYTES + FRAGMENT_HEADER_BYTES + max(lengths) > LENGTH_MAX
    ):
        raise WireError("cuts that are not those of the packet")
    head = bytearray(packet[:at])
    next_header, head[named_at] = head[named_at], FRAGMENT
    fragments: list[bytes] = []
    position = at
    for length in lengths:
        end = position + length
        head[4:6] = (at - HEADER_BYTES + FRAGMENT_HEADER_BYTES + length).to_bytes(2)
        place = FragmentHeader(next_header, position - at, end < len(packet), identification)
        fragments.append(bytes(head) + emit_fragment_header(place) + packet[position:end])
        position = end
    return fragments


def unfragmentable_part(packet: bytes) -> tuple[int, int]:
    """Find the headers that go into every fragment, as the kernel draws the line.

    They are the hop-by-hop options, a routing header, and destination options that do not
    follow a routing header.

    Returns:
        The offset of the byte that announces the first header behind them, and its offset.

    Raises:
        WireError: the chain is cut short or too long.
    """
    if len(packet) < HEADER_BYTES:
        raise WireError("IPv6 header cut short")
    named_at, position = 6, HEADER_BYTES
    routed = False
    for _ in range(EXTENSIONS_MAX):
        kind = packet[named_at]
        if kind not in _WALKED or (kind == DESTINATION_OPTIONS and routed):
            return named_at, position
        routed = routed or kind == ROUTING
        if position + 8 > len(packet):
            break
        named_at, position = position, position + (packet[position + 1] + 1) * 8
        if position > len(packet):
            break
    raise WireError("IPv6 extension headers cut short, or too many")
