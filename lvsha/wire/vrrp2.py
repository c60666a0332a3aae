"""The VRRP version 2 advertisement (RFC 3768, section 5.3).

Its message differs from version 3 in three ways: the interval is a byte of seconds, there is
a kind of authentication with eight bytes of data behind the addresses, and the checksum never
includes a pseudo-header. It is for IPv4 alone. Authentication was taken out of the standard:
nothing but `NO_AUTHENTICATION` is sent, and its data is not looked at.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import AdvertisementError
from lvsha.model import IPv4_BYTES
from lvsha.wire import checksum
from lvsha.wire.vrrp import ADDRESSES_MAX, ADVERTISEMENT

VERSION: Final = 2
HEADER_BYTES: Final = 8
AUTHENTICATION_BYTES: Final = 8
NO_AUTHENTICATION: Final = 0
INTERVAL_MAX: Final = 255

_LAYOUT: Final = struct.Struct("!BBBBBBH")
_CHECKSUM: Final = slice(6, 8)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What the holder of a virtual router says about itself.

    Attributes:
        interval: in seconds.
        authentication: the kind, `NO_AUTHENTICATION` mostly; 1 is a password in plain text.
    """

    vrid: int
    priority: int
    interval: int
    addresses: tuple[bytes, ...]
    authentication: int = NO_AUTHENTICATION


def parse(message: bytes) -> Advertisement:
    """Read an advertisement, by the checks of RFC 3768, section 7.1.

    Bytes behind the authentication data are ignored as padding.

    Raises:
        AdvertisementError: the message must be discarded.
    """
    if len(message) < HEADER_BYTES:
        raise AdvertisementError("length", "VRRP message cut short")
    first, vrid, priority, count, authentication, interval, _ = _LAYOUT.unpack_from(message)
    if first >> 4 != VERSION:
        raise AdvertisementError("version", "no VRRP advertisement of version 2")
    if first & 0x0F != ADVERTISEMENT:
        raise AdvertisementError("kind", "no VRRP advertisement of version 2")
    end_of_addresses = HEADER_BYTES + count * IPv4_BYTES
    length = end_of_addresses + AUTHENTICATION_BYTES
    if len(message) < length:
        raise AdvertisementError("length", "VRRP address list cut short")
    if checksum.ones_complement_sum(message[:length]) != checksum.MODULUS:
        raise AdvertisementError("checksum", "VRRP checksum is wrong")
    if vrid == 0:
        raise AdvertisementError("id", "VRRP virtual router id 0")
    if count == 0:
        raise AdvertisementError("count", "VRRP advertisement without an address")
    if interval == 0:
        raise AdvertisementError("interval", "VRRP advertisement interval 0")
    addresses = tuple(
        message[at : at + IPv4_BYTES] for at in range(HEADER_BYTES, end_of_addresses, IPv4_BYTES)
    )
    return Advertisement(vrid, priority, interval, addresses, authentication)


def emit(advertisement: Advertisement) -> bytes:
    """Lay out an advertisement without authentication."""
    assert advertisement.authentication == NO_AUTHENTICATION
    assert 1 <= advertisement.interval <= INTERVAL_MAX
    assert 1 <= len(advertisement.addresses) <= ADDRESSES_MAX
    assert all(len(address) == IPv4_BYTES for address in advertisement.addresses)
    message = bytearray(
        _LAYOUT.pack(
            VERSION << 4 | ADVERTISEMENT,
            advertisement.vrid,
            advertisement.priority,
            len(advertisement.addresses),
            NO_AUTHENTICATION,
            advertisement.interval,
            0,
        )
    )
    message += b"".join(advertisement.addresses) + bytes(AUTHENTICATION_BYTES)
    message[_CHECKSUM] = checksum.checksum(message).to_bytes(2)
    return bytes(message)
