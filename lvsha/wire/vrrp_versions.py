"""One advertisement, in the version that a virtual router speaks.

The election knows one kind of advertisement, that of `lvsha.wire.vrrp`. What differs on the
wire between version 2 (RFC 3768) and version 3 (RFC 9568) ends here: a virtual router reads
and writes one of them, and a message of the other is refused as such.
"""

from collections.abc import Mapping
from typing import Final

from lvsha.errors import AdvertisementError
from lvsha.wire import vrrp, vrrp2

VERSIONS: Final = (vrrp2.VERSION, vrrp.VERSION)

_CS: Final = 100
INTERVALS_CS_MAX: Final[Mapping[int, int]] = {
    vrrp2.VERSION: vrrp2.INTERVAL_MAX * _CS,
    vrrp.VERSION: vrrp.INTERVAL_CS_MAX,
}
"""The longest interval that a version can tell."""


def parse(message: bytes, version: int, *, source: bytes, destination: bytes) -> vrrp.Advertisement:
    """Read an advertisement of one version.

    Args:
        message: the payload of the IP packet.
        version: the one that the virtual router speaks.
        source: the sender's address; its length is the address family.
        destination: the address the packet was sent to.

    Raises:
        AdvertisementError: the message must be discarded.
    """
    if version == vrrp.VERSION:
        return vrrp.parse(message, source=source, destination=destination)
    heard = vrrp2.parse(message)
    if heard.authentication != vrrp2.NO_AUTHENTICATION:
        # RFC 3768, section 5.3.6: one that is not the locally configured one.
        raise AdvertisementError("authentication", "VRRP authentication is not supported")
    return vrrp.Advertisement(
        heard.vrid, heard.priority, heard.interval * _CS, heard.addresses, vrrp2.VERSION
    )


def emit(
    advertisement: vrrp.Advertisement, *, source: bytes, destination: bytes, pseudo_header: bool
) -> bytes:
    """Lay out an advertisement in its version.

    Args:
        advertisement: what to say; its addresses are of the family of ``source``.
        source: the sender's address.
        destination: the address the packet will be sent to.
        pseudo_header: whether the checksum of version 3 includes it over IPv4.
    """
    if advertisement.version == vrrp.VERSION:
        return vrrp.emit(
            advertisement, source=source, destination=destination, pseudo_header=pseudo_header
        )
    assert advertisement.version == vrrp2.VERSION
    assert advertisement.interval_cs % _CS == 0
    return vrrp2.emit(
        vrrp2.Advertisement(
            advertisement.vrid,
            advertisement.priority,
            advertisement.interval_cs // _CS,
            advertisement.addresses,
        )
    )
