"""What a transport packet carries: find it, check that it arrived whole, replace a part.

The packet lies in the buffer of a `lvsha.datapath.flow.Frame` and is changed there. What
the payload means is none of this module's business, nor are sequence numbers: whoever
changes the length of a segment owes both ends other numbers from then on.

What always holds: after `replace` the lengths and checksums of the packet are right (or, of
a checksum that is still partial, as right as it was; see `lvsha.wire.vnet`), and a packet
that cannot be changed is left as it was. Lengths and offsets are in bytes.
"""

from typing import Final

from lvsha.datapath.flow import L3, Frame
from lvsha.errors import WireError
from lvsha.model import Protocol
from lvsha.wire import crc32c, ipv6, vnet
from lvsha.wire.checksum import (
    MODULUS,
    checksum,
    difference,
    ones_complement_sum,
    pseudo_header_sum,
    update,
    update_partial,
)

_UDP_HEADER_BYTES: Final = 8
_TCP_OFFSET_AT: Final = 12
_TCP_CHECKSUM_AT: Final = 16
_UDP_CHECKSUM_AT: Final = 6
_IPV4_LENGTH_AT: Final = L3 + 2
_IPV4_CHECKSUM_AT: Final = L3 + 10
_IPV6_LENGTH_AT: Final = L3 + 4
_LENGTH_MAX: Final = 0xFFFF
_SETTLED: Final = vnet.NEEDS_CHECKSUM | vnet.CHECKSUM_VALID


def start(frame: Frame) -> int:
    """Where in the buffer the payload of the segment or datagram begins.

    Args:
        frame: as read, of TCP or UDP.

    Raises:
        WireError: the TCP header is longer than its packet.
    """
    if frame.protocol == Protocol.UDP:
        return frame.l4 + _UDP_HEADER_BYTES
    assert frame.protocol == Protocol.TCP
    first = frame.l4 + (frame.buffer[frame.l4 + _TCP_OFFSET_AT] >> 4) * 4
    if first > L3 + frame.length:
        raise WireError("TCP header longer than its packet")
    return first


def read(frame: Frame) -> bytes:
    """The payload of the segment or datagram, up to the end of the IP packet.

    Raises:
        WireError: the TCP header is longer than its packet.
    """
    return bytes(frame.view[start(frame) : L3 + frame.length])


def replace(frame: Frame, first: int, end: int, new: bytes) -> int:
    """Put ``new`` in the place of ``payload[first:end]`` of a TCP segment.

    The packet may become longer than a link carries; that is for the caller to look at,
    as with any packet. A super-frame stays one, of segments of the size it had. Padding
    behind the packet goes.

    Returns:
        By how much the payload has grown; negative if it has shrunk.

    Raises:
        WireError: the TCP header is longer than its packet, or the packet would become
            longer than its length field can say or the buffer can hold. Nothing is changed.
    """
    assert frame.protocol == Protocol.TCP
    payload_at = start(frame)
    tail = bytes(frame.view[payload_at + end : L3 + frame.length])
    assert 0 <= first <= end <= L3 + frame.length - payload_at
    length = frame.length + len(new) - (end - first)
    field = length if frame.family == 4 else length - ipv6.HEADER_BYTES
    if field > _LENGTH_MAX or L3 + length > len(frame.buffer):
        raise WireError(f"a packet of {length} bytes is too long")
    change = length - frame.length
    frame.view[payload_at + first : L3 + length] = new + tail
    _set_ip_length(frame, field)
    _set_tcp_checksum(frame, L3 + frame.length - frame.l4, L3 + length - frame.l4)
    frame.length = length
    frame.end = L3 + length
    return change


def verify(frame: Frame) -> bool:
    """Whether the transport checksum of the packet, as it arrived, is right.

    As with the kernel, a checksum that is still partial counts as right, and so does one
    that a network card has found right, and a UDP field of zero, which says "none".

    Args:
        frame: as read, of TCP, UDP or SCTP, and not a fragment.
    """
    buffer = frame.buffer
    if buffer[0] & _SETTLED:
        return True
    packet = frame.view[frame.l4 : L3 + frame.length]
    if frame.protocol == Protocol.SCTP:
        field = packet[crc32c.CHECKSUM_AT : crc32c.CHECKSUM_AT + 4]
        return field == crc32c.checksum(packet)
    assert frame.protocol in {Protocol.TCP, Protocol.UDP}
    if frame.protocol == Protocol.UDP and not any(packet[_UDP_CHECKSUM_AT:_UDP_HEADER_BYTES]):
        return True
    pseudo = pseudo_header_sum(frame.source, frame.destination, frame.protocol, len(packet))
    return ones_complement_sum(packet, pseudo) == MODULUS


def _set_ip_length(frame: Frame, field: int) -> None:
    """Write the length of the IPv4 packet, and its header checksum, or of the IPv6 payload."""
    buffer = frame.buffer
    new = field.to_bytes(2)
    if frame.family == 6:
        buffer[_IPV6_LENGTH_AT : _IPV6_LENGTH_AT + 2] = new
        return
    old = buffer[_IPV4_LENGTH_AT : _IPV4_LENGTH_AT + 2]
    buffer[_IPV4_LENGTH_AT : _IPV4_LENGTH_AT + 2] = new
    header_checksum = int.from_bytes(buffer[_IPV4_CHECKSUM_AT : _IPV4_CHECKSUM_AT + 2])
    header_checksum = update(header_checksum, difference(old, new))
    buffer[_IPV4_CHECKSUM_AT : _IPV4_CHECKSUM_AT + 2] = header_checksum.to_bytes(2)


def _set_tcp_checksum(frame: Frame, old_length: int, new_length: int) -> None:
    """Make the checksum right for another payload; a partial one covers only its length."""
    buffer = frame.buffer
    field = slice(frame.l4 + _TCP_CHECKSUM_AT, frame.l4 + _TCP_CHECKSUM_AT + 2)
    if buffer[0] & vnet.NEEDS_CHECKSUM:
        change = difference(old_length.to_bytes(2), new_length.to_bytes(2))
        value = update_partial(int.from_bytes(buffer[field]), change)
    else:
        buffer[field] = bytes(2)
        pseudo = pseudo_header_sum(frame.source, frame.destination, Protocol.TCP, new_length)
        value = checksum(frame.view[frame.l4 : frame.l4 + new_length], pseudo)
    buffer[field] = value.to_bytes(2)
