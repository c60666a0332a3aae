"""ICMP errors for IPv4 (RFC 792, RFC 1191) and IPv6 (RFC 4443).

An error quotes the packet it is about. This module builds errors of lvsha's own and
names the offsets and types by which `lvsha.datapath.icmp_errors` translates those of
others.
"""

from dataclasses import dataclass
from typing import Final

from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import ipv4, ipv6
from lvsha.wire.checksum import checksum, pseudo_header_sum

HEADER_BYTES: Final = 8

V4_UNREACHABLE: Final = 3
V4_QUENCH: Final = 4
V4_TIME_EXCEEDED: Final = 11
V4_PARAMETER_PROBLEM: Final = 12
V4_ERRORS: Final = frozenset({V4_UNREACHABLE, V4_QUENCH, V4_TIME_EXCEEDED})
"""Types that the kernel's director relates to a connection; parameter problems are not."""

V4_FRAGMENTATION_NEEDED: Final = (V4_UNREACHABLE, 4)

V6_UNREACHABLE: Final = 1
V6_TOO_BIG: Final = 2
V6_TIME_EXCEEDED: Final = 3
V6_PARAMETER_PROBLEM: Final = 4
V6_ERROR_MAX: Final = 127

V4_QUOTE_MAX: Final = 576 - ipv4.HEADER_BYTES - HEADER_BYTES
"""RFC 1812, section 4.3.2.3: the whole error is at most 576 bytes."""
V6_QUOTE_MAX: Final = 1280 - ipv6.HEADER_BYTES - HEADER_BYTES
"""RFC 4443, section 2.4 (c): the whole error fits the minimum IPv6 MTU."""

_INTERNETWORK_CONTROL: Final = 0xC0
_TYPE_OF_SERVICE: Final = 0x1E


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error to report: type and code for each family.

    ``mtu`` is the last word of the header: the MTU, where one is told.
    """

    name: str
    v4: tuple[int, int]
    v6: tuple[int, int]
    mtu: int = 0


PORT_UNREACHABLE: Final = IcmpError("port unreachable", (V4_UNREACHABLE, 3), (V6_UNREACHABLE, 4))
HOST_UNREACHABLE: Final = IcmpError("host unreachable", (V4_UNREACHABLE, 1), (V6_UNREACHABLE, 3))
TIME_EXCEEDED: Final = IcmpError("time exceeded", (V4_TIME_EXCEEDED, 0), (V6_TIME_EXCEEDED, 0))


def too_big(mtu: int) -> IcmpError:
    """Fragmentation needed (RFC 1191) or packet too big (RFC 4443, section 3.2)."""
    return IcmpError("packet too big", V4_FRAGMENTATION_NEEDED, (V6_TOO_BIG, 0), mtu)


def wrong_option(pointer: int) -> IcmpError:
    """Parameter problem (RFC 792): the byte at ``pointer`` of the IPv4 header is wrong.

    The pointer is the first byte of the header's last word.
    """
    return IcmpError(
        "parameter problem", (V4_PARAMETER_PROBLEM, 0), (V6_PARAMETER_PROBLEM, 0), pointer << 24
    )


def may_be_told(sender: bytes) -> bool:
    """Whether an error may be sent to an address: it must name one host.

    RFC 1812, section 4.3.2.7 and RFC 4443, section 2.4 (e): not this network, loopback,
    multicast, broadcast or the unspecified address.
    """
    if len(sender) == IPv4_BYTES:
        return sender[0] not in {0, 127} and sender[0] < 224
    return sender[0] != 0xFF and any(sender[:15])


def emit(error: IcmpError, quoted: bytes, source: bytes, destination: bytes) -> bytes:
    """A whole IP packet with the error.

    Args:
        error: what to say.
        quoted: the packet it is about, from its IP header on.
        source: the director's address, of the quoted packet's family.
        destination: the quoted packet's sender.
    """
    if len(source) == IPv4_BYTES:
        kind, code = error.v4
        message = _message(kind, code, error.mtu, quoted[:V4_QUOTE_MAX], 0)
        # RFC 1812, section 4.3.2.5: precedence 6, and the type of service of what is quoted.
        tos = _INTERNETWORK_CONTROL | quoted[1] & _TYPE_OF_SERVICE
        header = ipv4.Ipv4Header(
            source, destination, Protocol.ICMP, ipv4.HEADER_BYTES + len(message), tos=tos
        )
        return ipv4.emit(header) + message
    kind, code = error.v6
    quoted = quoted[:V6_QUOTE_MAX]
    pseudo = pseudo_header_sum(source, destination, Protocol.ICMPV6, HEADER_BYTES + len(quoted))
    message = _message(kind, code, error.mtu, quoted, pseudo)
    return ipv6.emit(ipv6.Ipv6Header(source, destination, Protocol.ICMPV6, len(message))) + message


def _message(kind: int, code: int, mtu: int, quoted: bytes, pseudo: int) -> bytes:
    blank = bytes((kind, code, 0, 0)) + mtu.to_bytes(4) + quoted
    return blank[:2] + checksum(blank, pseudo).to_bytes(2) + blank[4:]
