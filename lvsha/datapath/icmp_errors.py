"""Relate an ICMP error to a connection, and translate what it quotes (NAT).

An error quotes the start of the packet it is about. Read backwards, that packet is one of
the connection's other direction, so the quote's key with source and destination exchanged
is a key of the table: of the request direction where a client's side complains about a
reply, of the reply direction where a real server's side complains about a request.

An error about a tunnel packet of lvsha's own quotes the outer packet and, behind it, the
original, whose key is one of the request direction as it stands.

The checksum of the quoted transport header is left as it is: RFC 792 guarantees only eight
bytes of it, and receivers do not check it (the kernel's director does the same).
"""

from typing import Final

from lvsha.datapath.flow import L3, Frame
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import icmp, ipv4, ipv6, vnet
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
    source, destination = _addresses(frame, quote)
    view = frame.view
    return (
        bytes((frame.family, protocol))
        + destination
        + source
        + bytes(view[ports + 2 : ports + 4])
        + bytes(view[ports : ports + 2])
    )


def tunnelled(frame: Frame) -> int | None:
    """Where, in an error that quotes a tunnel packet, the original packet begins.

    Returns:
        An offset in the frame's buffer; None where no tunnel packet is quoted.
    """
    quote = frame.l4 + icmp.HEADER_BYTES
    buffer = frame.buffer
    if frame.family == 4:
        inner = quote + (buffer[quote] & 0xF) * 4
        carried, wanted, smallest = buffer[quote + 9], Protocol.IPIP, ipv4.HEADER_BYTES
    else:
        inner = quote + ipv6.HEADER_BYTES
        carried, wanted, smallest = buffer[quote + 6], Protocol.IPV6, ipv6.HEADER_BYTES
    whole = inner - quote >= smallest and inner + smallest <= L3 + frame.length
    return inner if whole and carried == wanted else None


def tunnel_ends(frame: Frame) -> tuple[bytes, bytes]:
    """Source and destination of the quoted tunnel packet; `tunnelled` has found it whole."""
    return _addresses(frame, frame.l4 + icmp.HEADER_BYTES)


def original_key(frame: Frame, inner: int) -> bytes | None:
    """The key of the request that a quoted tunnel packet carries.

    Args:
        frame: holds the error.
        inner: where the request begins, as `tunnelled` says.
    """
    found = _transport(frame, inner)
    if found is None:
        return None
    protocol, ports = found
    source, destination = _addresses(frame, inner)
    ends = source + destination + bytes(frame.view[ports : ports + 4])
    return bytes((frame.family, protocol)) + ends


def told_mtu(frame: Frame) -> int | None:
    """The MTU that a "too big" error tells, in bytes; None for another error."""
    kind, code = frame.buffer[frame.l4], frame.buffer[frame.l4 + 1]
    if frame.family == 4:
        if (kind, code) != icmp.V4_FRAGMENTATION_NEEDED:
            return None
        return int.from_bytes(frame.view[frame.l4 + 6 : frame.l4 + 8])
    if kind != icmp.V6_TOO_BIG:
        return None
    return int.from_bytes(frame.view[frame.l4 + 4 : frame.l4 + 8])


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


def _addresses(frame: Frame, at: int) -> tuple[bytes, bytes]:
    """Source and destination of the quoted packet at an offset."""
    size, first = (4, at + 12) if frame.family == 4 else (16, at + 8)
    view = frame.view
    return bytes(view[first : first + size]), bytes(view[first + size : first + 2 * size])


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
