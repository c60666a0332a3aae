"""Questions that only show whether somebody is there: ICMP echo and neighbour solicitation.

ICMP echo for IPv4 (RFC 792) and IPv6 (RFC 4443, section 4), as messages behind the IP header;
and the neighbour solicitation of IPv6 (RFC 4861, section 4.3), to which
`lvsha.wire.neighbour_discovery` reads the answer. ARP has a module of its own.
"""

from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError
from lvsha.model import IPv4_BYTES, IPv6_BYTES, Protocol
from lvsha.wire.checksum import MODULUS, checksum, ones_complement_sum, pseudo_header_sum

ECHO_REQUEST: Final = {4: 8, 6: 128}
ECHO_REPLY: Final = {4: 0, 6: 129}
HEADER_BYTES: Final = 8

NEIGHBOUR_SOLICITATION: Final = 135
OPTION_SOURCE_LINK_LAYER: Final = 1
_SOLICITED_NODE: Final = bytes.fromhex("ff02" + "00" * 9 + "01ff")


@dataclass(frozen=True, slots=True)
class Echo:
    """A request or a reply; a reply brings back all three."""

    identifier: int
    sequence: int
    payload: bytes


def emit_request(echo: Echo, *, source: bytes, destination: bytes) -> bytes:
    """An echo request; the addresses go into the checksum of IPv6."""
    version = _version(source)
    message = bytearray((ECHO_REQUEST[version], 0, 0, 0))
    message += echo.identifier.to_bytes(2) + echo.sequence.to_bytes(2) + echo.payload
    message[2:4] = checksum(message, _pseudo(source, destination, len(message))).to_bytes(2)
    return bytes(message)


def parse_reply(message: bytes, *, source: bytes, destination: bytes) -> Echo:
    """Read an echo reply.

    Raises:
        WireError: it is another message, cut short, or its checksum is wrong.
    """
    if len(message) < HEADER_BYTES:
        raise WireError("echo reply cut short")
    if (message[0], message[1]) != (ECHO_REPLY[_version(source)], 0):
        raise WireError("not an echo reply")
    pseudo = _pseudo(source, destination, len(message))
    if ones_complement_sum(message, pseudo) != MODULUS:
        raise WireError("echo reply checksum is wrong")
    return Echo(
        int.from_bytes(message[4:6]), int.from_bytes(message[6:8]), bytes(message[HEADER_BYTES:])
    )


def solicited_node(target: bytes) -> bytes:
    """The group that a neighbour is asked through (RFC 4291, section 2.7.1)."""
    assert len(target) == IPv6_BYTES
    return _SOLICITED_NODE + target[-3:]


def emit_solicitation(target: bytes, mac: bytes, *, source: bytes) -> bytes:
    """Ask on the link who has ``target``; goes to its `solicited_node` group."""
    message = bytearray((NEIGHBOUR_SOLICITATION, 0, 0, 0)) + bytes(4) + target
    message += bytes((OPTION_SOURCE_LINK_LAYER, 1)) + mac
    pseudo = _pseudo(source, solicited_node(target), len(message))
    message[2:4] = checksum(message, pseudo).to_bytes(2)
    return bytes(message)


def _version(address: bytes) -> int:
    return 4 if len(address) == IPv4_BYTES else 6


def _pseudo(source: bytes, destination: bytes, length: int) -> int:
    if len(source) == IPv4_BYTES:
        return 0
    return pseudo_header_sum(source, destination, Protocol.ICMPV6, length)
