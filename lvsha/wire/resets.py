"""What is said to the sender of a packet that belongs to no connection.

TCP has the reset (RFC 9293, section 3.10.7.1), SCTP the ABORT and the SHUTDOWN COMPLETE, each
with the T bit (RFC 9260, section 8.4). Both give back a number of the packet that they answer,
by which its sender sees that he is meant.

This is transport only: a packet comes and goes without its IP header. That its checksum is
right is for the caller to look at. What always holds: a reset is never answered, so two hosts
cannot answer each other for ever.
"""

import struct
from typing import Final

from lvsha.model import Protocol
from lvsha.wire import crc32c
from lvsha.wire.checksum import checksum, pseudo_header_sum

Buffer = bytes | memoryview

_TCP: Final = struct.Struct("!HHIIBBHHH")
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_NUMBERS: Final = 1 << 32

_SCTP: Final = struct.Struct("!HHI4s")
_CHUNK: Final = struct.Struct("!BBH")
_ABORT: Final = 6
_ERROR: Final = 9
_SHUTDOWN_ACK: Final = 8
_COOKIE_ECHO: Final = 10
_COOKIE_ACK: Final = 11
_SHUTDOWN_COMPLETE: Final = 14
_STALE_COOKIE: Final = 3
_T_BIT: Final = 1


def tcp(segment: Buffer, source: Buffer, destination: Buffer) -> bytes | None:
    """The segment that resets the connection of another one; None where none must be sent.

    Args:
        segment: what came, from its TCP header on; as long as it says.
        source: the address that it came from.
        destination: the address that it was for.
    """
    if len(segment) < _TCP.size:
        return None
    from_port, to_port, number, confirmed, offset, flags, *_ = _TCP.unpack_from(segment)
    header_bytes = (offset >> 4) * 4
    if flags & _RST or not _TCP.size <= header_bytes <= len(segment):
        return None
    if flags & _ACK:
        answer = (to_port, from_port, confirmed, 0, 0x50, _RST, 0)
    else:
        taken = len(segment) - header_bytes + bool(flags & _SYN) + bool(flags & _FIN)
        answer = (to_port, from_port, 0, (number + taken) % _NUMBERS, 0x50, _RST | _ACK, 0)
    blank = _TCP.pack(*answer, 0, 0)
    pseudo = pseudo_header_sum(destination, source, Protocol.TCP, len(blank))
    return blank[:16] + checksum(blank, pseudo).to_bytes(2) + blank[18:]


def sctp(packet: Buffer) -> bytes | None:
    """The packet that ends the association of another one; None where none must be sent."""
    if len(packet) < _SCTP.size:
        return None
    from_port, to_port, tag, _ = _SCTP.unpack_from(packet)
    answer: int | None = None
    at = _SCTP.size
    while at + _CHUNK.size <= len(packet):
        kind, _, length = _CHUNK.unpack_from(packet, at)
        if length < _CHUNK.size or at + length > len(packet):
            return None
        if _must_not_be_answered(kind, packet[at + _CHUNK.size : at + length]):
            return None
        if answer is None:  # the first chunk says which of the two it is
            answer = _SHUTDOWN_COMPLETE if kind == _SHUTDOWN_ACK else _ABORT
        at += length + 3 & ~3
    if answer is None:
        return None
    blank = _SCTP.pack(to_port, from_port, tag, bytes(4)) + _CHUNK.pack(answer, _T_BIT, 4)
    return blank[:8] + crc32c.checksum(blank) + blank[12:]


def _must_not_be_answered(kind: int, value: Buffer) -> bool:
    """Whether a chunk has its packet discarded (RFC 9260, section 8.4, rules 2, 4, 6 and 7).

    A COOKIE ECHO is among them: its cookie is none of this host's.
    """
    if kind == _ERROR:
        return value[:2] == _STALE_COOKIE.to_bytes(2)
    return kind in {_ABORT, _COOKIE_ECHO, _COOKIE_ACK, _SHUTDOWN_COMPLETE}
