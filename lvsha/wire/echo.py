"""ICMP echo requests and replies, for IPv4 (RFC 792) and IPv6 (RFC 4443).

A request for IPv6 leaves its checksum to the kernel, which alone knows the source address
(RFC 3542, section 3.1); that of a reply was checked before anybody could read it.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError
from lvsha.wire import ipv4
from lvsha.wire.checksum import checksum

HEADER_BYTES: Final = 8
V4_REQUEST: Final = 8
V4_REPLY: Final = 0
V6_REQUEST: Final = 128
V6_REPLY: Final = 129

_HEADER: Final = struct.Struct("!BBHHH")


@dataclass(frozen=True, slots=True)
class Echo:
    """A request or a reply.

    Attributes:
        reply: which of the two.
        identifier: of who asks; a ping socket of Linux writes its own.
        sequence: of the request.
        payload: comes back as it was sent.
    """

    reply: bool
    identifier: int
    sequence: int
    payload: bytes

    def emit(self, family: int) -> bytes:
        """The bytes for IP version 4 or 6."""
        kind = (V4_REQUEST, V4_REPLY)[self.reply] if family == 4 else V6_REQUEST + self.reply
        header = _HEADER.pack(kind, 0, 0, self.identifier, self.sequence)
        if family == 6:
            return header + self.payload
        total = checksum(header + self.payload)
        return _HEADER.pack(kind, 0, total, self.identifier, self.sequence) + self.payload

    @classmethod
    def parse(cls, data: bytes, family: int) -> "Echo | None":
        """What the bytes are; None for another message than an echo.

        Raises:
            WireError: they are cut short.
        """
        if len(data) < HEADER_BYTES:
            raise WireError("an ICMP message is cut short")
        kind, code, _, identifier, sequence = _HEADER.unpack_from(data)
        request, reply = (V4_REQUEST, V4_REPLY) if family == 4 else (V6_REQUEST, V6_REPLY)
        if code or kind not in {request, reply}:
            return None
        return cls(kind == reply, identifier, sequence, data[HEADER_BYTES:])


def without_ip_header(packet: bytes) -> bytes:
    """What an IPv4 packet from a raw socket carries.

    Raises:
        WireError: it is cut short.
    """
    length = (packet[0] & 0x0F) * 4 if packet else 0
    if length < ipv4.HEADER_BYTES or len(packet) < length:
        raise WireError("an IPv4 header is cut short")
    return packet[length:]
