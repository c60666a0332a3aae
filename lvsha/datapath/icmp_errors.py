"""Relate an ICMP error to a connection, and translate what it quotes (NAT).

An error quotes the start of the packet it is about. Read backwards, that packet is one of
the connection's other direction, so the quote's key with source and destination exchanged
is a key of the table: of the request direction where a client's side complains about a
reply, of the reply direction where a real server's side complains about a request.

The checksum of the quoted transport header is left as it is: RFC 792 guarantees only eight
bytes of it, and receivers do not check it (the kernel's director does the same).
"""

from typing import Final

from lvsha.datapath.flow import L3, Frame
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import icmp, ipv6, vnet
from lvsha.wire.checksum import checksum, ones_complement_sum, pseudo_header_sum

_RELATED: Final = frozenset({Protocol.TCP, Protocol.UDP})


def is_error(frame: Frame) -> bool:
    """Whether an ICMP frame is an error of a kind that is related to connections."""
    kind = frame.buffer[frame.l4]
    if frame.family == 4:
        return kind in icmp.V4_ERRORS
    return kind <= icmp.V6_ERROR_MAX


def related_key(frame: Frame) -> bytes | None:
    """The key, in the connection table, of the other direction of what is quoted.

    Returns:
        None where the quote is too short, is a later fragment, or is of a protocol that
        has no connections.
    """
    quote = frame.l4 + icmp.HEADER_BYTES
    found = _transport(frame, quote)
    if found is None:
        return None
    protocol, ports = found
    view = frame.view
    size = 4 if frame.family == 4 else 16
    first = quote + (12 if frame.family == 4 else 8)
    source, destination = view[first : first + size], view[first + size : first + 2 * size]
    return (
        bytes((frame.family, protocol))
        + bytes(destination)
        + bytes(source)
        + bytes(view[ports + 2 : ports + 4])
        + bytes(view[ports : ports + 2])
    )


def checksum_is_right(frame: Frame) -> bool:
    """Verify the checksum of the ICMP message, unless the kernel vouches for it."""
    if frame.buffer[0] & (vnet.NEEDS_CHECKSUM | vnet.CHECKSUM_VALID):
        return True
    message = frame.view[frame.l4 : L3 + frame.length]
    pseudo = 0
    if frame.family == 6:
        pseudo = pseudo_header_sum(frame.source, frame.destination, Protocol.ICMPV6, len(message))
    return ones_complement_sum(message, pseudo) == 0xFFFF


def translate(frame: Frame, address: bytes, port: int, *, to_server: bool) -> bytes:
    """The IP packet of an error with one end of its quote exchanged.

    Args:
        frame: holds the error; `related_key` has found its quote whole.
        address: towards the real server, that of the real server, which stands in the
            quote as source and outside as destination; towards the client, the virtual
            address, in the quote as destination and outside as source.
        port: the port that belongs to it.
        to_server: the direction.
    """
    packet = bytearray(frame.packet())
    message = frame.l4 - L3
    quote = message + icmp.HEADER_BYTES
    found = _transport(frame, frame.l4 + icmp.HEADER_BYTES)
    assert found is not None, "only a whole quote is translated"
    ports = found[1] - L3
    size = len(address)
    first = 12 if size == IPv4_BYTES else 8
    outer_at = first + size if to_server else first
    quoted_at = quote + (first if to_server else first + size)
    port_at = ports if to_server else ports + 2
    packet[outer_at : outer_at + size] = address
    packet[quoted_at : quoted_at + size] = address
    packet[port_at : port_at + 2] = port.to_bytes(2)
    pseudo = 0
    if size == IPv4_BYTES:
        _refresh_header(packet, quote)
        _refresh_header(packet, 0)
    else:
        pseudo = pseudo_header_sum(
            packet[8:24], packet[24:40], Protocol.ICMPV6, len(packet) - message
        )
    packet[message + 2 : message + 4] = bytes(2)
    packet[message + 2 : message + 4] = checksum(packet[message:], pseudo).to_bytes(2)
    return bytes(packet)


def _transport(frame: Frame, quote: int) -> tuple[int, int] | None:
    """Protocol of the quoted packet and where its ports are, if they are there."""
    end = L3 + frame.length
    buffer = frame.buffer
    if frame.family == 4:
        if quote + 20 > end or buffer[quote] >> 4 != 4:
            return None
        header_bytes = (buffer[quote] & 0xF) * 4
        if header_bytes < 20 or int.from_bytes(buffer[quote + 6 : quote + 8]) & 0x1FFF:
            return None
        protocol, ports = buffer[quote + 9], quote + header_bytes
    else:
        if quote + ipv6.HEADER_BYTES > end or buffer[quote] >> 4 != 6:
            return None
        found = ipv6.upper_layer(buffer, quote, end)
        if found is None:
            return None
        protocol, ports = found
    if protocol not in _RELATED or ports + 8 > end:
        return None
    return protocol, ports


def _refresh_header(packet: bytearray, at: int) -> None:
    """Compute an IPv4 header's checksum anew."""
    end = at + (packet[at] & 0xF) * 4
    packet[at + 10 : at + 12] = bytes(2)
    packet[at + 10 : at + 12] = checksum(packet[at:end]).to_bytes(2)
