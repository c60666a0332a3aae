"""The IPv4 header (RFC 791), without options, and fragmentation of a packet.

The hot path reads fields in place (`lvsha.datapath.flow`); this module makes headers of
lvsha's own: around ICMP answers, around tunnelled packets, and of fragments.
"""

import struct
from collections.abc import Sequence
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


def fragment(packet: bytes, mtu: int, *, dont_fragment: bool = False) -> list[bytes]:
    """Cut a packet into fragments of at most ``mtu`` bytes (RFC 791, section 3.2); see `cut`.

    Raises:
        WireError: not a packet, or the MTU leaves no room for 8 bytes of payload.
    """
    header = parse(packet)
    length = len(packet[header.header_bytes : header.total_length])
    room = (mtu - header.header_bytes) & ~7
    if room < 8:
        raise WireError(f"an MTU of {mtu} bytes leaves no room for a fragment")
    lengths = [min(room, length - at) for at in range(0, length, room)] or [0]
    return cut(packet, lengths, dont_fragment=dont_fragment)


def cut(packet: bytes, lengths: Sequence[int], *, dont_fragment: bool = False) -> list[bytes]:
    """Cut a packet into fragments that carry ``lengths`` bytes of its payload, in order.

    Options go into the first fragment. The later ones have room for them too, as the kernel
    cuts: those not marked "copied" are no-operations there. Each fragment says "don't
    fragment" if ``dont_fragment``, whatever the packet says.

    Raises:
        WireError: not a packet, or the lengths are not those of its payload, or its end
            would lie past the last place that a fragment can name.
    """
    header = parse(packet)
    payload = packet[header.header_bytes : header.total_length]
    options = packet[HEADER_BYTES : header.header_bytes]
    if sum(lengths) != len(payload) or any(length & 7 for length in lengths[:-1]):
        raise WireError("cuts that are not those of the payload")
    offset = header.flags & OFFSET_MASK
    if offset + len(payload) // 8 > OFFSET_MASK + 1:
        raise WireError("a fragment that ends past the largest packet")
    fixed = header.flags & MORE_FRAGMENTS | (DONT_FRAGMENT if dont_fragment else 0)
    fragments: list[bytes] = []
    position = 0
    for length in lengths:
        end = position + length
        flags = fixed | offset + position // 8
        if end < len(payload):
            flags |= MORE_FRAGMENTS
        fragments.append(_with_options(header, flags, options, payload[position:end]))
        if position == 0:
            options = _for_later_fragments(options)
        position = end
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


def _for_later_fragments(options: bytes) -> bytes:
    """Options of the same length, in which those that are not copied do nothing."""
    kept = bytearray(options)
    position = 0
    while position < len(options) and options[position] != _OPTION_END:
        kind = options[position]
        length = 1
        if kind != _OPTION_NOP:
            length = int.from_bytes(options[position + 1 : position + 2])
            if length < 2 or position + length > len(options):
                break
        if not kind & _OPTION_COPIED:
            kept[position : position + length] = bytes((_OPTION_NOP,)) * length
        position += length
    return bytes(kept)
