"""The VRRP version 2 advertisement (RFC 3768, section 5.3), to be read only.

Its message differs from version 3 in three ways: the interval is a byte of seconds, there is
a kind of authentication with eight bytes of data behind the addresses, and the checksum never
includes a pseudo-header. It is for IPv4 alone. Authentication was taken out of the standard;
its data is not looked at.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError
from lvsha.model import IPv4_BYTES
from lvsha.wire import checksum
from lvsha.wire.vrrp import ADVERTISEMENT

VERSION: Final = 2
HEADER_BYTES: Final = 8
AUTHENTICATION_BYTES: Final = 8
NO_AUTHENTICATION: Final = 0

_LAYOUT: Final = struct.Struct("!BBBBBBH")


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
    authentication: int


def parse(message: bytes) -> Advertisement:
    """Read an advertisement, by the checks of RFC 3768, section 7.1.

    Raises:
        WireError: the message must be discarded.
    """
    if len(message) < HEADER_BYTES:
        raise WireError("VRRP message cut short")
    first, vrid, priority, count, authentication, interval, _ = _LAYOUT.unpack_from(message)
    if first != VERSION << 4 | ADVERTISEMENT:
        raise WireError("no VRRP advertisement of version 2")
    length = HEADER_BYTES + count * IPv4_BYTES
    if len(message) < length + AUTHENTICATION_BYTES:
        raise WireError("VRRP address list cut short")
    if checksum.ones_complement_sum(message) != checksum.MODULUS:
        raise WireError("VRRP checksum is wrong")
    if vrid == 0:
        raise WireError("VRRP virtual router id 0")
    if interval == 0:
        raise WireError("VRRP advertisement interval 0")
    addresses = tuple(message[at : at + IPv4_BYTES] for at in range(HEADER_BYTES, length, 4))
    return Advertisement(vrid, priority, interval, addresses, authentication)
