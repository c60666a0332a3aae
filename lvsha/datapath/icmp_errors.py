"""Relate an ICMP error to a connection, and translate what it quotes (NAT).

An error quotes the start of the packet it is about. Read backwards, that packet is one of
the connection's other direction, so the quote's key with source and destination exchanged
is a key of the table: of the request direction where a client's side complains about a
reply, of the reply direction where a real server's side complains about a request.

An error about a tunnel packet of lvsha's own quotes the outer packet and, behind it, the
original, whose key is one of the request direction as it stands. The two may be of different
families. (The kernel's director knows only such errors of IPv4 in IPv4.)

AH and ESP have no ports: their packets follow the connection of their key exchange, which
is UDP from port 500 to port 500 (ISAKMP), and so do errors about them.

The checksum of the quoted transport header is left as it is: RFC 792 guarantees only eight
bytes of it, and receivers do not check it (the kernel's director does the same).

What always holds: a quote is read only where it lies wholly in the packet. Offsets are
into the frame's buffer.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.datapath.flow import L3, Frame
from lvsha.datapath.tunnels import (
    GRE_BYTES,
    GRE_CHECKSUM_BYTES,
    GRE_CHECKSUM_PRESENT,
    GRE_IPV4,
    GRE_IPV6,
    GUE_BYTES,
    UDP_BYTES,
    TunnelType,
)
from lvsha.errors import WireError
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import icmp, ipv4, ipv6, vnet
from lvsha.wire.checksum import checksum, ones_complement_sum, pseudo_header_sum

_WITH_PORTS: Final = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})
_WITHOUT_PORTS: Final = frozenset({Protocol.AH, Protocol.ESP})
_PORTS_BYTES: Final = 4
_KEY_EXCHANGE_PORTS: Final = (500).to_bytes(2) * 2

_GUE_VERSION_AND_CONTROL: Final = 0xE0
_GUE_WORDS: Final = 0x1F

_FAMILY_OF: Final = {Protocol.IPIP: 4, Protocol.IPV6: 6, GRE_IPV4: 4, GRE_IPV6: 6}
"""What a tunnel carries, by the number that says so."""

_read_two: Final = struct.Struct("!HH").unpack_from


@dataclass(frozen=True, slots=True)
class QuotedTunnel:
    """A tunnel packet that an error quotes, or what looks like one.

    Attributes:
        type: how it is wrapped.
        source, destination: of the tunnel packet.
        port: GUE's destination port; 0 for the other types.
        inner: where the original packet begins; its IP header is whole.
        inner_family: of the original packet, 4 or 6.
    """

    type: TunnelType
    source: bytes
    destination: bytes
    port: int
    inner: int
    inner_family: int


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
    found = _transport(frame, quote, frame.family)
    return None if found is None else _key(frame, quote, frame.family, found, inverse=True)


def quoted_key(frame: Frame) -> bytes | None:
    """The key of the request that an error belongs to of which no connection is known.

    With ``schedule_icmp`` a service may open a connection for it, as the request itself
    would have: from the quote's destination to its source. AH and ESP never open one.
    """
    quote = frame.l4 + icmp.HEADER_BYTES
    found = _transport(frame, quote, frame.family)
    if found is None or found[1] is None:
        return None
    return _key(frame, quote, frame.family, found, inverse=True)


def tunnelled(frame: Frame) -> QuotedTunnel | None:
    """The tunnel packet that an error quotes.

    GUE is told by its header only, so a quoted UDP datagram may look like it by accident:
    the caller knows the ports and real servers to which there are tunnels.

    Returns:
        None where the quote is of another kind, or ends before the original's header does.
    """
    quote = frame.l4 + icmp.HEADER_BYTES
    upper = _upper(frame, quote, frame.family)
    if upper is None:
        return None
    protocol, at, later = upper
    if later:
        return None
    kind = TunnelType.IPIP
    port = 0
    inner: int | None = at
    family = _FAMILY_OF.get(protocol)
    if protocol == Protocol.UDP:
        kind = TunnelType.GUE
        family, inner, port = _behind_gue(frame, at)
    elif protocol == Protocol.GRE:
        kind = TunnelType.GRE
        family, inner = _behind_gre(frame, at)
    if family is None or inner is None or not _is_header(frame, inner, family):
        return None
    source, destination = _addresses(frame, quote, frame.family)
    return QuotedTunnel(kind, source, destination, port, inner, family)


def original_key(frame: Frame, quoted: QuotedTunnel) -> bytes | None:
    """The key of the request that a quoted tunnel packet carries."""
    found = _transport(frame, quoted.inner, quoted.inner_family)
    if found is None:
        return None
    return _key(frame, quoted.inner, quoted.inner_family, found, inverse=False)


def relayed(frame: Frame, quoted: QuotedTunnel) -> icmp.IcmpError:
    """What to tell the sender of the original, where the error tells no MTU.

    The error as it is, as the kernel's director does; across families, that the real
    server cannot be reached, as RFC 2473, section 8 has it.
    """
    if frame.family != quoted.inner_family:
        return icmp.HOST_UNREACHABLE
    kind = (frame.buffer[frame.l4], frame.buffer[frame.l4 + 1])
    return icmp.IcmpError("about a tunnel", kind, kind)


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
        port: the port that belongs to it; AH and ESP have none, and it is not looked at.
        to_server: the direction.
    """
    packet = bytearray(frame.packet())
    message = frame.l4 - L3
    quote = message + icmp.HEADER_BYTES
    found = _transport(frame, frame.l4 + icmp.HEADER_BYTES, frame.family)
    assert found is not None, "only a whole quote is translated"
    size = len(address)
    first = 12 if size == IPv4_BYTES else 8
    outer_at = first + size if to_server else first
    quoted_at = quote + (first if to_server else first + size)
    packet[outer_at : outer_at + size] = address
    packet[quoted_at : quoted_at + size] = address
    if found[1] is not None:
        port_at = found[1] - L3 + (0 if to_server else 2)
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


def _addresses(frame: Frame, at: int, family: int) -> tuple[bytes, bytes]:
    """Source and destination of the quoted packet at an offset."""
    size, first = (4, at + 12) if family == 4 else (16, at + 8)
    view = frame.view
    return bytes(view[first : first + size]), bytes(view[first + size : first + 2 * size])


def _key(
    frame: Frame, at: int, family: int, found: tuple[int, int | None], *, inverse: bool
) -> bytes:
    """The connection key of a quoted packet, or of one in the other direction."""
    protocol, ports = found
    source, destination = _addresses(frame, at, family)
    if ports is None:
        protocol, first, second = Protocol.UDP, _KEY_EXCHANGE_PORTS[:2], _KEY_EXCHANGE_PORTS[2:]
    else:
        view = frame.view
        first, second = bytes(view[ports : ports + 2]), bytes(view[ports + 2 : ports + 4])
    prefix = bytes((family, protocol))
    if inverse:
        return prefix + destination + source + second + first
    return prefix + source + destination + first + second


def _transport(frame: Frame, at: int, family: int) -> tuple[int, int | None] | None:
    """Protocol of the quoted packet, and where its ports are if it has any.

    Returns:
        None where it has no connections, where its ports are not there, or for a later
        fragment; but a fragment of AH or ESP is as good as the whole.
    """
    found = _upper(frame, at, family)
    if found is None:
        return None
    protocol, ports, later = found
    if protocol in _WITHOUT_PORTS:
        return protocol, None
    if protocol not in _WITH_PORTS or later or ports + _PORTS_BYTES > L3 + frame.length:
        return None
    return protocol, ports


def _is_header(frame: Frame, at: int, family: int) -> bool:
    """Whether the fixed header of a packet of this family is at an offset."""
    size = ipv4.HEADER_BYTES if family == 4 else ipv6.HEADER_BYTES
    return at + size <= L3 + frame.length and frame.buffer[at] >> 4 == family


def _upper(frame: Frame, at: int, family: int) -> tuple[int, int, bool] | None:
    """What lies behind the IP headers of the quoted packet.

    Returns:
        The protocol, its offset, and whether it is a later fragment, which has no header
        there; None where no packet of this family is quoted.
    """
    if not _is_header(frame, at, family):
        return None
    buffer = frame.buffer
    if family == 4:
        header_bytes = (buffer[at] & 0xF) * 4
        if header_bytes < ipv4.HEADER_BYTES:
            return None
        later = bool(int.from_bytes(buffer[at + 6 : at + 8]) & ipv4.OFFSET_MASK)
        return buffer[at + 9], at + header_bytes, later
    end = L3 + frame.length
    found = ipv6.upper_layer(buffer, at, end)
    if found is None or found[0] != ipv6.FRAGMENT:
        return None if found is None else (*found, False)
    try:
        fragment = ipv6.parse_fragment_header(frame.view[:end], found[1])
    except WireError:
        return None
    behind = found[1] + ipv6.FRAGMENT_HEADER_BYTES
    if fragment.offset:
        return fragment.next_header, behind, True
    found = ipv6.upper_layer_after(buffer, fragment.next_header, behind, end)
    return None if found is None else (*found, False)


def _behind_gue(frame: Frame, at: int) -> tuple[int | None, int | None, int]:
    """Family and offset of what a GUE packet carries, and its port; ``at`` is its UDP header.

    Other versions than 0 and control messages carry no packet.
    """
    header = at + UDP_BYTES
    if header + GUE_BYTES > L3 + frame.length:
        return None, None, 0
    buffer = frame.buffer
    first = buffer[header]
    if first & _GUE_VERSION_AND_CONTROL:
        return None, None, 0
    family = _FAMILY_OF.get(buffer[header + 1])
    _, port = _read_two(buffer, at)
    return family, header + GUE_BYTES + (first & _GUE_WORDS) * 4, port


def _behind_gre(frame: Frame, at: int) -> tuple[int | None, int | None]:
    """Family and offset of what a GRE packet carries.

    Of the options of RFC 2784 and RFC 2890 lvsha writes only the checksum.
    """
    if at + GRE_BYTES > L3 + frame.length:
        return None, None
    flags, carried = _read_two(frame.buffer, at)
    if flags & ~GRE_CHECKSUM_PRESENT:
        return None, None
    family = _FAMILY_OF.get(carried) if carried in {GRE_IPV4, GRE_IPV6} else None
    return family, at + GRE_BYTES + (GRE_CHECKSUM_BYTES if flags else 0)


def _refresh_header(packet: bytearray, at: int) -> None:
    """Compute an IPv4 header's checksum anew."""
    end = at + (packet[at] & 0xF) * 4
    packet[at + 10 : at + 12] = bytes(2)
    packet[at + 10 : at + 12] = checksum(packet[at:end]).to_bytes(2)
