"""Cut packets: super-frames into what the wire would have carried, datagrams into fragments.

The kernel hands over up to 64 KiB at once and leaves checksums to the hardware. Where such
a packet is to be put into a tunnel, no card can finish it any more, so it is cut and its
checksums are computed here (RFC 9293 for TCP; UDP as the kernel's UDP_L4 segmentation
does it). The IPv4 identification counts up from segment to segment, as a card does.

A datagram that came in fragments leaves in fragments, even where the link could carry it
whole: none is larger than the largest that came, since it was cut for a path that may not
carry more, and where they still fit, the cuts stay where the sender made them. That is how
the kernel sends a packet whose fragments are still a list of buffers to it. IPv4 fragments
keep the identification of the packet; IPv6 fragments get a new one.
"""

from collections.abc import Sequence
from typing import Final

from lvsha.datapath.reassembly import Reassembled
from lvsha.errors import WireError
from lvsha.model import Protocol
from lvsha.wire import ipv4, ipv6, vnet
from lvsha.wire.checksum import checksum, pseudo_header_sum

_FIN_PSH: Final = 0x01 | 0x08
_CWR: Final = 0x80
_CHECKSUM_OFFSET: Final = {Protocol.TCP: 16, Protocol.UDP: 6}


def split(packet: bytes, header: vnet.VnetHeader, l4: int, protocol: int) -> list[bytes]:
    """Make finished packets of what a frame carries.

    Args:
        packet: the IP packet, super-sized or not.
        header: the virtio header that came with it.
        l4: offset of the transport header in the packet.
        protocol: TCP or UDP.

    Raises:
        WireError: the segmentation fields do not fit the packet.
    """
    kind = header.gso_type & ~vnet.GSO_ECN
    if kind == vnet.GSO_NONE:
        if not header.flags & vnet.NEEDS_CHECKSUM:
            return [packet]
        if protocol not in _CHECKSUM_OFFSET:
            raise WireError(f"a partial checksum of protocol {protocol}")
        return [_finish(bytearray(packet), l4, protocol)]
    if protocol == Protocol.TCP and kind in {vnet.GSO_TCPV4, vnet.GSO_TCPV6}:
        payload_at = l4 + (packet[l4 + 12] >> 4) * 4
    elif protocol == Protocol.UDP and kind == vnet.GSO_UDP_L4:
        payload_at = l4 + 8
    else:
        raise WireError(f"segmentation type {header.gso_type} does not fit protocol {protocol}")
    if header.gso_size == 0 or payload_at > len(packet):
        raise WireError("segmentation without a size or a whole header")
    return _cut(packet, l4, payload_at, header.gso_size, protocol)


def segment_length(length: int, gso_type: int, gso_size: int, headers_length: int) -> int:
    """The length of the longest IP packet that the wire will carry, in bytes.

    Args:
        length: of the IP packet in the frame.
        gso_type: of the virtio header.
        gso_size: likewise, in bytes.
        headers_length: of the packet's IP and transport headers.
    """
    if gso_type & ~vnet.GSO_ECN == vnet.GSO_NONE:
        return length
    return min(length, headers_length + gso_size)


def _cut(packet: bytes, l4: int, payload_at: int, size: int, protocol: int) -> list[bytes]:
    headers, payload = packet[:payload_at], packet[payload_at:]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    segments: list[bytes] = []
    sent = 0
    for number, piece in enumerate(pieces):
        segment = bytearray(headers + piece)
        if protocol == Protocol.TCP:
            sequence = int.from_bytes(headers[l4 + 4 : l4 + 8]) + sent & 0xFFFF_FFFF
            segment[l4 + 4 : l4 + 8] = sequence.to_bytes(4)
            # FIN and PSH belong to the last byte, CWR to the first (RFC 3168, section 6.1.2).
            if number < len(pieces) - 1:
                segment[l4 + 13] &= ~_FIN_PSH & 0xFF
            if number > 0:
                segment[l4 + 13] &= ~_CWR & 0xFF
        else:
            segment[l4 + 4 : l4 + 6] = (8 + len(piece)).to_bytes(2)
        _set_length(segment, number)
        segments.append(_finish(segment, l4, protocol))
        sent += len(piece)
    return segments


def _set_length(segment: bytearray, number: int) -> None:
    if segment[0] >> 4 == 6:
        segment[4:6] = (len(segment) - ipv6.HEADER_BYTES).to_bytes(2)
        return
    header_bytes = (segment[0] & 0xF) * 4
    identification = int.from_bytes(segment[4:6]) + number & 0xFFFF
    segment[2:4] = len(segment).to_bytes(2)
    segment[4:6] = identification.to_bytes(2)
    segment[10:12] = bytes(2)
    segment[10:12] = checksum(segment[:header_bytes]).to_bytes(2)


def _finish(segment: bytearray, l4: int, protocol: int) -> bytes:
    """Compute the transport checksum of a packet in full."""
    if segment[0] >> 4 == 6:
        source, destination = segment[8:24], segment[24:40]
    else:
        source, destination = segment[12:16], segment[16:20]
        del segment[int.from_bytes(segment[2:4]) :]  # Ethernet padding is not checksummed
    field = l4 + _CHECKSUM_OFFSET[Protocol(protocol)]
    segment[field : field + 2] = bytes(2)
    pseudo = pseudo_header_sum(source, destination, protocol, len(segment) - l4)
    value = checksum(segment[l4:], pseudo)
    # RFC 768: a computed zero is sent as all ones, since zero says "none".
    segment[field : field + 2] = (value or 0xFFFF).to_bytes(2)
    return bytes(segment)


def plain_fragments(packet: bytes, mtu: int, identification: int = 0) -> list[bytes]:
    """Cut a finished packet for a smaller link, if it is too long for it.

    Args:
        packet: of IPv4, or an IPv6 packet of the director's own: a tunnel packet.
        mtu: of the link.
        identification: for IPv6 fragments.

    Raises:
        WireError: the MTU leaves no room for 8 bytes of payload.
    """
    if len(packet) <= mtu:
        return [packet]
    if packet[0] >> 4 == 4:
        return ipv4.fragment(packet, mtu)
    named_at, at = ipv6.unfragmentable_part(packet)
    room = mtu - at - ipv6.FRAGMENT_HEADER_BYTES
    return ipv6.cut(packet, named_at, at, _even(len(packet) - at, room), identification)


def refragment(packet: bytes, mtu: int, arrived: Reassembled, identification: int) -> list[bytes]:
    """Cut what became of a reassembled datagram: translated, routed on, or put into a tunnel.

    Args:
        packet: finished. A length that was changed otherwise than by headers in front, as
            by a rewritten FTP answer, needs ``arrived`` without ``pieces``.
        mtu: of the path that it takes.
        arrived: how the datagram came.
        identification: for IPv6 fragments.

    Raises:
        WireError: not a packet, or the MTU leaves no room for 8 bytes of payload.
    """
    limit = min(mtu, arrived.largest)
    if packet[:1] and packet[0] >> 4 == 6:
        if len(packet) <= limit:
            return [packet]
        named_at, at = ipv6.unfragmentable_part(packet)
        room = max(limit, ipv6.MTU_MIN) - at - ipv6.FRAGMENT_HEADER_BYTES
        lengths = _as_they_came(len(packet) - at, arrived.pieces, room)
        return ipv6.cut(
            packet, named_at, at, lengths or _even(len(packet) - at, room), identification
        )
    header = ipv4.parse(packet)
    keep = bool(header.flags & ipv4.DONT_FRAGMENT)
    length = header.total_length - header.header_bytes
    lengths = _as_they_came(length, arrived.pieces, limit - header.header_bytes)
    if lengths:
        return ipv4.cut(packet, lengths, dont_fragment=keep)
    return ipv4.fragment(packet, limit, dont_fragment=keep)


def _as_they_came(length: int, pieces: Sequence[int], room: int) -> list[int]:
    """The cuts of the sender, what is new in front of them joined to the first.

    Empty where a piece would not fit, or where the second would not start at a multiple
    of 8 bytes.
    """
    later = list(pieces[1:])
    first = length - sum(later)
    if not later or first <= 0 or first & 7 or max(first, *later) > room:
        return []
    return [first, *later]


def _even(length: int, room: int) -> list[int]:
    room &= ~7
    if room < 8:
        raise WireError("no room for a fragment")
    return [min(room, length - at) for at in range(0, length, room)]
