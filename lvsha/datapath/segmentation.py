"""Turn a super-frame into the packets that the wire would have carried.

The kernel hands over up to 64 KiB at once and leaves checksums to the hardware. Where such
a packet is to be put into a tunnel, no card can finish it any more, so it is cut and its
checksums are computed here (RFC 9293 for TCP; UDP as the kernel's UDP_L4 segmentation
does it). The IPv4 identification counts up from segment to segment, as a card does.
"""

from typing import Final

from lvsha.errors import WireError
from lvsha.model import Protocol
from lvsha.wire import ipv4, ipv6, vnet
from lvsha.wire.checksum import checksum, pseudo_header_sum

_TCP_FIN_PSH_CWR: Final = 0x01 | 0x08 | 0x80
_FIN_PSH: Final = 0x01 | 0x08
_CWR: Final = 0x80
_CHECKSUM_OFFSET: Final = {Protocol.TCP: 16, Protocol.UDP: 6}
_ETHERNET_BYTES: Final = 14


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


def plain_fragments(packet: bytes, mtu: int) -> list[bytes]:
    """Cut a finished IPv4 packet for a smaller link; see `lvsha.wire.ipv4.fragment`."""
    return [packet] if len(packet) <= mtu else ipv4.fragment(packet, mtu)
