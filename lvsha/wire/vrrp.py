"""The VRRP version 3 advertisement (RFC 9568, section 5.2).

This is the message behind the IP header, for IPv4 and IPv6, and not the header itself:
hop limit and addresses of the packet are checked by whoever received it. Version 2 is
another format (see `lvsha.wire.vrrp2`) and is refused here.

Implementations disagree about the checksum over IPv4. RFC 9568, section 5.2.8, sums the
message alone, as Cisco and Juniper do; keepalived and FRR put a pseudo-header before it,
as RFC 5798 could be read. `parse` believes either and says which it was; `emit` is told.
Over IPv6 there is always a pseudo-header.

Intervals are centiseconds, as on the wire. Addresses are 4 or 16 bytes.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import AdvertisementError
from lvsha.model import IPv4_BYTES, IPv6_BYTES, Protocol
from lvsha.wire import checksum

VERSION: Final = 3
ADVERTISEMENT: Final = 1
HOP_LIMIT: Final = 255
GROUP_IPv4: Final = bytes((224, 0, 0, 18))
GROUP_IPv6: Final = bytes.fromhex("ff02" + "00" * 13 + "12")

HEADER_BYTES: Final = 8
PRIORITY_RESIGN: Final = 0
PRIORITY_OWNER: Final = 255
INTERVAL_CS_MAX: Final = 0x0FFF
ADDRESSES_MAX: Final = 255

_LAYOUT: Final = struct.Struct("!BBBBHH")
_CHECKSUM: Final = slice(6, 8)


def virtual_mac(vrid: int, family: int) -> bytes:
    """The MAC address of a virtual router (RFC 9568, section 7.3); ``family`` is 4 or 6."""
    return bytes((0x00, 0x00, 0x5E, 0x00, 0x01 if family == 4 else 0x02, vrid))


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What the holder of a virtual router says about itself, in either version.

    ``pseudo_header`` tells whether the checksum of a parsed advertisement included the
    pseudo-header; `emit` does not look at it.
    """

    vrid: int
    priority: int
    interval_cs: int
    addresses: tuple[bytes, ...]
    version: int = VERSION
    pseudo_header: bool = False


def parse(message: bytes, *, source: bytes, destination: bytes) -> Advertisement:
    """Read an advertisement; bytes behind the last address are ignored as padding.

    The checks are those of RFC 9568, section 7.1, with errata 8299 (an address count of
    zero) and 8301 (an interval of zero). That the first IPv6 address is link-local
    (erratum 8300) is not demanded: to ignore a live master for it would make two.

    Args:
        message: the payload of the IP packet.
        source: the sender's address; its length is the address family.
        destination: the address the packet was sent to.

    Raises:
        AdvertisementError: the message must be discarded.
    """
    if len(message) < HEADER_BYTES:
        raise AdvertisementError("length", "VRRP message cut short")
    first, vrid, priority, count, interval, _ = _LAYOUT.unpack_from(message)
    if first >> 4 != VERSION:
        raise AdvertisementError("version", "VRRP version is not 3")
    if first & 0x0F != ADVERTISEMENT:
        raise AdvertisementError("kind", "VRRP message is no advertisement")
    if vrid == 0:
        raise AdvertisementError("id", "VRRP virtual router id 0")
    if count == 0:
        raise AdvertisementError("count", "VRRP advertisement without an address")
    # The upper four bits are reserved and ignored (section 5.2.6).
    interval_cs = interval & INTERVAL_CS_MAX
    if interval_cs == 0:
        raise AdvertisementError("interval", "VRRP advertisement interval 0")
    size = len(source)
    length = HEADER_BYTES + count * size
    if len(message) < length:
        raise AdvertisementError("length", "VRRP address list cut short")
    return Advertisement(
        vrid,
        priority,
        interval_cs,
        tuple(message[at : at + size] for at in range(HEADER_BYTES, length, size)),
        first >> 4,
        _has_pseudo_header(message[:length], source, destination),
    )


def _has_pseudo_header(message: bytes, source: bytes, destination: bytes) -> bool:
    """Verify the checksum and say which convention it follows."""
    if len(source) == IPv4_BYTES and checksum.ones_complement_sum(message) == checksum.MODULUS:
        return False
    pseudo = checksum.pseudo_header_sum(source, destination, Protocol.VRRP, len(message))
    if checksum.ones_complement_sum(message, pseudo) == checksum.MODULUS:
        return True
    raise AdvertisementError("checksum", "VRRP checksum is wrong")


def emit(
    advertisement: Advertisement, *, source: bytes, destination: bytes, pseudo_header: bool
) -> bytes:
    """Lay out an advertisement (RFC 9568, section 5.2).

    Args:
        advertisement: what to say; its addresses are of the family of ``source``.
        source: the sender's address.
        destination: the address the packet will be sent to.
        pseudo_header: whether the checksum includes it over IPv4; over IPv6 it always does.
    """
    size = len(source)
    assert size in {IPv4_BYTES, IPv6_BYTES}
    assert len(destination) == size
    assert advertisement.version == VERSION
    assert 1 <= advertisement.interval_cs <= INTERVAL_CS_MAX
    assert 1 <= len(advertisement.addresses) <= ADDRESSES_MAX
    assert all(len(address) == size for address in advertisement.addresses)
    message = bytearray(
        _LAYOUT.pack(
            advertisement.version << 4 | ADVERTISEMENT,
            advertisement.vrid,
            advertisement.priority,
            len(advertisement.addresses),
            advertisement.interval_cs,
            0,
        )
    )
    message += b"".join(advertisement.addresses)
    initial = 0
    if pseudo_header or size == IPv6_BYTES:
        initial = checksum.pseudo_header_sum(source, destination, Protocol.VRRP, len(message))
    message[_CHECKSUM] = checksum.checksum(message, initial).to_bytes(2)
    return bytes(message)
