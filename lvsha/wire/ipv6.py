"""The IPv6 header (RFC 8200, section 3) and the walk over extension headers (section 4).

The walk stops at the first header that is not an extension, or at a fragment header,
and never follows more than `EXTENSIONS_MAX` of them: a legitimate packet has two or
three, and a hostile one must not be able to buy work.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError

HEADER_BYTES: Final = 40
MTU_MIN: Final = 1280
"""What every link carries (RFC 8200, section 5)."""
EXTENSIONS_MAX: Final = 8

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
DESTINATION_OPTIONS: Final = 60

_LAYOUT: Final = struct.Struct("!IHBB16s16s")
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
    next_header = buffer[start + 6]
    position = start + HEADER_BYTES
    for _ in range(EXTENSIONS_MAX):
        if next_header not in _WALKED:
            return next_header, position
        if position + 8 > end:
            return None
        next_header, length = buffer[position], buffer[position + 1]
        position += (length + 1) * 8
    return None
