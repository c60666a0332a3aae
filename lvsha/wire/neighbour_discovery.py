"""The neighbour advertisement of IPv6 (RFC 4861, section 4.4).

This is the ICMPv6 message behind the IPv6 header, and no other message of neighbour
discovery: it is what moves an IPv6 address to another machine. Unknown options are
skipped, as the RFC demands; of several target link-layer options the last one counts.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError
from lvsha.model import IPv6_BYTES, Protocol
from lvsha.wire import checksum

NEIGHBOUR_ADVERTISEMENT: Final = 136
HOP_LIMIT: Final = 255
ALL_NODES: Final = bytes.fromhex("ff02" + "00" * 13 + "01")

HEADER_BYTES: Final = 24
MAC_BYTES: Final = 6
OPTION_TARGET_LINK_LAYER: Final = 2

ROUTER: Final = 0x80000000
SOLICITED: Final = 0x40000000
OVERRIDE: Final = 0x20000000

_LAYOUT: Final = struct.Struct("!BBHI16s")
_CHECKSUM: Final = slice(2, 4)
_OPTION_UNIT_BYTES: Final = 8
_MULTICAST: Final = 0xFF


@dataclass(frozen=True, slots=True)
class NeighbourAdvertisement:
    """Says at which link-layer address a target is; ``mac`` is None without the option."""

    target: bytes
    mac: bytes | None
    router: bool = False
    solicited: bool = False
    override: bool = True


def parse(message: bytes, *, source: bytes, destination: bytes) -> NeighbourAdvertisement:
    """Read a neighbour advertisement with the checks of RFC 4861, section 7.1.2.

    The hop limit of 255 stands in the IPv6 header and is the caller's to check.

    Raises:
        WireError: the message must be discarded.
    """
    if len(message) < HEADER_BYTES:
        raise WireError("neighbour advertisement cut short")
    kind, code, _, flags, target = _LAYOUT.unpack_from(message)
    if (kind, code) != (NEIGHBOUR_ADVERTISEMENT, 0):
        raise WireError("not a neighbour advertisement")
    pseudo = checksum.pseudo_header_sum(source, destination, Protocol.ICMPV6, len(message))
    if checksum.ones_complement_sum(message, pseudo) != checksum.MODULUS:
        raise WireError("neighbour advertisement checksum is wrong")
    if target[0] == _MULTICAST:
        raise WireError("neighbour advertisement for a multicast address")
    solicited = bool(flags & SOLICITED)
    if solicited and destination[0] == _MULTICAST:
        raise WireError("solicited neighbour advertisement to a multicast address")
    return NeighbourAdvertisement(
        target, _target_mac(message), bool(flags & ROUTER), solicited, bool(flags & OVERRIDE)
    )


def _target_mac(message: bytes) -> bytes | None:
    """Walk the options; every one must have a length and lie inside the message."""
    mac: bytes | None = None
    position = HEADER_BYTES
    while position < len(message):
        option = message[position : position + 2]
        if len(option) < 2 or option[1] == 0:
            raise WireError("neighbour discovery option without a length")
        end = position + option[1] * _OPTION_UNIT_BYTES
        if end > len(message):
            raise WireError("neighbour discovery option cut short")
        if option[0] == OPTION_TARGET_LINK_LAYER:
            mac = message[position + 2 : position + 2 + MAC_BYTES]
        position = end
    return mac


def emit(advertisement: NeighbourAdvertisement, *, source: bytes, destination: bytes) -> bytes:
    """Lay out a neighbour advertisement with its checksum."""
    assert len(source) == len(destination) == len(advertisement.target) == IPv6_BYTES
    flags = (
        (ROUTER if advertisement.router else 0)
        | (SOLICITED if advertisement.solicited else 0)
        | (OVERRIDE if advertisement.override else 0)
    )
    message = bytearray(_LAYOUT.pack(NEIGHBOUR_ADVERTISEMENT, 0, 0, flags, advertisement.target))
    if advertisement.mac is not None:
        assert len(advertisement.mac) == MAC_BYTES
        message += bytes((OPTION_TARGET_LINK_LAYER, 1)) + advertisement.mac
    pseudo = checksum.pseudo_header_sum(source, destination, Protocol.ICMPV6, len(message))
    message[_CHECKSUM] = checksum.checksum(message, pseudo).to_bytes(2)
    return bytes(message)
