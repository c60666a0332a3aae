"""The IPv4 header (RFC 791), without options, and fragmentation of a packet.

The hot path reads fields in place (`lvsha.datapath.flow`); this module makes headers of
lvsha's own: around ICMP answers, around tunnelled packets, and of fragments.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError
from lvsha.wire.checksum import checksum

HEADER_BYTES: Final = 20
DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF

_LAYOUT: Final = struct.Struct("!BBHHHBBH4s4s")
_OPTION_END: Final = 0
_OPTION_NOP: Final = 1
_OPTION_COPIED: Final = 0x80


@dataclass(frozen=True, slots=True)
class Ipv4Header:
    """The fields of a header without options; ``total_length`` counts the header too."""

    source: bytes
    destination: bytes
    protocol: int
    total_length: int
    ttl: int = 64
    tos: int = 0
    identification: int = 0
    flags: int = 0
    header_bytes: int = HEADER_BYTES


def parse(packet: bytes | bytearray | memoryview) -> Ipv4Header:
    """Read the header of a packet.

    Raises:
        WireError: cut short, of another version, or with impossible lengths.
    """
    if len(packet) < HEADER_BYTES:
        raise WireError("IPv4 header cut short")
    version_ihl, tos, length, identification, flags, ttl, protocol, _, source, destination = (
        _LAYOUT.unpack_from(packet)
    )
    header_bytes = (version_ihl & 0xF) * 4
    if version_ihl >> 4 != 4 or header_bytes < HEADER_BYTES or header_bytes > length:
        raise WireError("not an IPv4 header")
    if header_bytes > len(packet):
        raise WireError("IPv4 options cut short")
    return Ipv4Header(
        source, destination, protocol, length, ttl, tos, identification, flags, header_bytes
    )


def emit(header: Ipv4Header) -> bytes:
    """The 20 bytes of a header, its checksum filled in."""
    blank = _LAYOUT.pack(
        0x45,
        header.tos,
        header.total_length,
        header.identification,
        header.flags,
        header.ttl,
        header.protocol,
        0,
        header.source,
        header.destination,
    )
    return blank[:10] + checksum(blank).to_bytes(2) + blank[12:]


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Cut a packet into fragments of at most ``mtu`` bytes (RFC 791, section 3.2).

    Options go into the first fragment, those marked "copied" into each.

    Raises:
        WireError: not a packet, or the MTU leaves no room for 8 bytes of payload.
    """
    header = parse(packet)
    payload = packet[header.header_bytes : header.total_length]
    options = packet[HEADER_BYTES : header.header_bytes]
    copied = _copied_options(options)
    more_after = header.flags & MORE_FRAGMENTS
    offset = header.flags & OFFSET_MASK
    fragments: list[bytes] = []
    position = 0
    while position < len(payload):
        used = options if position == 0 else copied
        room = (mtu - HEADER_BYTES - len(used)) & ~7
        if room < 8:
            raise WireError(f"an MTU of {mtu} bytes leaves no room for a fragment")
        piece = payload[position : position + room]
        last = position + len(piece) >= len(payload)
        flags = (offset + position // 8) | (more_after if last else MORE_FRAGMENTS)
        fragments.append(_with_options(header, flags, used, piece))
        position += len(piece)
    return fragments


def _with_options(header: Ipv4Header, flags: int, options: bytes, payload: bytes) -> bytes:
    header_bytes = HEADER_BYTES + len(options)
    blank = bytearray(
        _LAYOUT.pack(
            0x40 | header_bytes // 4,
            header.tos,
            header_bytes + len(payload),
            header.identification,
            flags,
            header.ttl,
            header.protocol,
            0,
            header.source,
            header.destination,
        )
    )
    blank += options
    blank[10:12] = checksum(blank).to_bytes(2)
    return bytes(blank) + payload


def _copied_options(options: bytes) -> bytes:
    kept = bytearray()
    position = 0
    while position < len(options) and options[position] != _OPTION_END:
        kind = options[position]
        length = 1 if kind == _OPTION_NOP else int.from_bytes(options[position + 1 : position + 2])
        if length < 1 or (kind != _OPTION_NOP and length < 2):
            break
        if kind & _OPTION_COPIED:
            kept += options[position : position + length]
        position += length
    return bytes(kept) + bytes(-len(kept) % 4)
