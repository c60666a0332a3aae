"""Read one fragment of an IPv4 or IPv6 packet, and make a packet of a datagram's pieces.

Which fragments belong together, and what happens to those that do not fit, is the affair
of `lvsha.datapath.reassembly`. Here a fragment is judged alone: one that `read` returns
carries at least one byte, at a place within the largest datagram. Lengths and offsets are
in bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.datapath.reasons import Reason
from lvsha.errors import WireError
from lvsha.wire import ipv4, ipv6
from lvsha.wire.checksum import checksum

_KEEPING_BYTES: Final = 256
"""What Python needs around the bytes of a fragment that waits, rounded up."""
_LENGTH_MAX: Final = 0xFFFF
_TRANSPORT_BYTES: Final = {6: 20, 17: 8, 58: 8}
"""The least header of TCP, UDP and ICMPv6."""
_NOT_ECT: Final = 1 << 0
_CE: Final = 1 << 3


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment and what its fields say.

    Attributes:
        key: the same for all fragments of a datagram.
        packet: the fragment as it came.
        start: where in it the payload begins.
        offset: the place of the payload's first byte in the datagram.
        end: that of the byte behind its last.
        more: whether it is not the last of the datagram.
        length: of the packet, its headers included.
        ecn: the two ECN bits of the IP header.
        dont_fragment: IPv4's flag.
        named_at: the offset of the byte that announces the IPv6 fragment header.
        next_header: what belongs there in the whole datagram; both are 0 for IPv4.
    """

    key: bytes
    packet: bytes
    start: int
    offset: int
    end: int
    more: bool
    length: int
    ecn: int
    dont_fragment: bool = False
    named_at: int = 0
    next_header: int = 0

    @property
    def memory(self) -> int:
        """What keeping it costs; the first one is kept whole, with its headers."""
        kept = len(self.packet) if self.offset == 0 else 0
        return _KEEPING_BYTES + self.end - self.offset + kept

    def payload(self) -> bytes:
        """The part of the datagram that it carries."""
        return self.packet[self.start : self.start + self.end - self.offset]


def read(packet: bytes) -> Fragment | Reason:
    """Take a fragment apart; the reason, where it is none or cannot be one."""
    if not packet:
        return Reason.TRUNCATED
    try:
        return _read_ipv6(packet) if packet[0] >> 4 == 6 else _read_ipv4(packet)
    except WireError:
        return Reason.MALFORMED


def _read_ipv4(packet: bytes) -> Fragment | Reason:
    header = ipv4.parse(packet)
    if header.total_length > len(packet):
        return Reason.TRUNCATED
    if checksum(packet[: header.header_bytes]):
        return Reason.MALFORMED
    more = bool(header.flags & ipv4.MORE_FRAGMENTS)
    offset = (header.flags & ipv4.OFFSET_MASK) * 8
    if not more and not offset:
        return Reason.FRAGMENT
    end = offset + header.total_length - header.header_bytes
    if more:
        # As the kernel does: the bytes past a multiple of 8 have no place.
        end &= ~7
    if end <= offset or header.header_bytes + end > _LENGTH_MAX:
        return Reason.FRAGMENT_MALFORMED
    return Fragment(
        header.source + header.destination + packet[4:6] + packet[9:10],
        packet[: header.total_length],
        header.header_bytes,
        offset,
        end,
        more,
        header.header_bytes + end - offset,
        header.tos & 3,
        bool(header.flags & ipv4.DONT_FRAGMENT),
    )


def _read_ipv6(packet: bytes) -> Fragment | Reason:
    header = ipv6.parse(packet)
    length = ipv6.HEADER_BYTES + header.payload_length
    if length > len(packet):
        return Reason.TRUNCATED
    packet = packet[:length]
    found = ipv6.find_fragment_header(packet)
    if found is None:
        return Reason.FRAGMENT
    named_at, at = found
    place = ipv6.parse_fragment_header(packet, at)
    start = at + ipv6.FRAGMENT_HEADER_BYTES
    end = place.offset + length - start
    if (place.more and end & 7) or end > _LENGTH_MAX:
        return Reason.FRAGMENT_MALFORMED
    if end <= place.offset or (
        place.offset == 0 and not _has_transport_header(packet, place.next_header, start)
    ):
        return Reason.FRAGMENT_MALFORMED
    return Fragment(
        packet[8:40] + packet[at + 4 : at + 8],
        packet,
        start,
        place.offset,
        end,
        place.more,
        length,
        packet[1] >> 4 & 3,
        named_at=named_at,
        next_header=place.next_header,
    )


def _has_transport_header(packet: bytes, next_header: int, start: int) -> bool:
    """Whether a first IPv6 fragment holds all headers, as RFC 8200, section 4.5, demands.

    A second fragment header among them could make one packet cost two reassemblies.
    """
    found = ipv6.upper_layer_after(packet, next_header, start, len(packet))
    if found is None:
        return False
    protocol, position = found
    return protocol != ipv6.FRAGMENT and position + _TRANSPORT_BYTES.get(protocol, 1) <= len(packet)


def whole(
    first: Fragment, pieces: Sequence[bytes], ecns: int, *, dont_fragment: bool
) -> bytes | None:
    """The datagram without a trace of fragmentation; None where there is none.

    Congestion that one fragment met is congestion of the datagram, and a sender does not
    send some fragments with and some without ECN (RFC 3168, section 5.3).

    Args:
        first: gives the header.
        pieces: the whole payload, in order.
        ecns: has bit n set where a fragment's ECN bits were n.
        dont_fragment: whether the packet is to say so.
    """
    if ecns & _NOT_ECT and ecns != _NOT_ECT:
        return None
    congested = bool(ecns & _CE)
    length = sum(map(len, pieces))
    if first.named_at:
        head = bytearray(first.packet[: first.start - ipv6.FRAGMENT_HEADER_BYTES])
        length += len(head) - ipv6.HEADER_BYTES
        if length > _LENGTH_MAX:
            return None
        head[first.named_at] = first.next_header
        head[4:6] = length.to_bytes(2)
        head[1] |= 0x30 if congested else 0
    else:
        head = bytearray(first.packet[: first.start])
        length += len(head)
        if length > _LENGTH_MAX:
            return None
        head[1] |= 0x03 if congested else 0
        head[2:4] = length.to_bytes(2)
        head[6:8] = (ipv4.DONT_FRAGMENT if dont_fragment else 0).to_bytes(2)
        head[10:12] = bytes(2)
        head[10:12] = checksum(head).to_bytes(2)
    return b"".join((head, *pieces))
