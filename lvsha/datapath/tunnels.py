"""Put a packet into a tunnel packet: IP in IP, GUE and GRE, between all pairs of families.

This is what the kernel's director sends to real servers of the method TUNNEL: RFC 2003 and
RFC 2473 for IP in IP, RFC 2784 for GRE, and generic UDP encapsulation as Linux has it (the
Internet draft intarea-gue). Only that direction: a director never takes a packet out of a
tunnel, and choosing the way, the path MTU and fragments are `lvsha.datapath.transmit`'s.

What always holds: the inner packet leaves byte for byte as it came (but for a transport
checksum that was still partial), and the outer packet is finished, every checksum computed.
Lengths and offsets are bytes; offsets count from the inner packet's IP header.

Congestion marks go by RFC 6040 as the kernel has it: an inner "congestion experienced" is
not repeated outside.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from lvsha.errors import WireError
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import ipv4, ipv6
from lvsha.wire.checksum import checksum, pseudo_header_sum

LOCAL_PORTS: Final = range(32768, 61000)
"""Where UDP source ports come from (the kernel's ``net.ipv4.ip_local_port_range``)."""

UDP_BYTES: Final = 8
GUE_BYTES: Final = 4
GUE_REMOTE_BYTES: Final = 8
"""The private flags, and where the remote end finds the checksum that it computes."""
GRE_BYTES: Final = 4
GRE_CHECKSUM_BYTES: Final = 4

GRE_CHECKSUM_PRESENT: Final = 0x8000
GRE_IPV4: Final = 0x0800
GRE_IPV6: Final = 0x86DD

_GUE_PRIVATE_FLAGS: Final = 0x0001
_GUE_REMOTE_CHECKSUM: Final = 0x8000_0000
_PORT_MAX: Final = 65_535
_LENGTH_MAX: Final = 65_535

_ECN_MASK: Final = 0x03
_ECN_CE: Final = 0x03
_ECN_ECT0: Final = 0x02

_UDP: Final = struct.Struct("!HHHH")
_GUE: Final = struct.Struct("!BBH")
_GUE_REMOTE: Final = struct.Struct("!IHH")
_GRE: Final = struct.Struct("!HH")
_GRE_CHECKSUM: Final = struct.Struct("!HH")

_WITH_PORTS: Final = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})
_PARTIAL_FIELDS: Final = frozenset({6, 16})
"""Where in a UDP and in a TCP header the checksum is; only these have the Internet checksum."""


class TunnelType(IntEnum):
    """How packets are wrapped; the kernel's IP_VS_CONN_F_TUNNEL_TYPE_* numbers."""

    IPIP = 0
    GUE = 1
    GRE = 2


class TunnelChecksum(IntEnum):
    """What is done about checksums; the kernel's IP_VS_TUNNEL_ENCAP_FLAG_* numbers.

    REMOTE is CHECKSUM, and the real server computes those inner checksums that this
    machine's network stack left to hardware.
    """

    NONE = 0
    CHECKSUM = 1
    REMOTE = 2


_CHECKSUM_WORDS: Final = {
    TunnelChecksum.NONE: "-c",
    TunnelChecksum.CHECKSUM: "+c",
    TunnelChecksum.REMOTE: "r+c",
}


@dataclass(frozen=True, slots=True)
class PartialChecksum:
    """Where a transport checksum is still to be computed.

    Its ``field`` holds the sum of the pseudo-header only; it shall cover the packet from
    ``start`` to the end.
    """

    start: int
    field: int


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The tunnel settings of a real server.

    Attributes:
        port: the real server's UDP port; other types than GUE have none and ignore it.
    """

    type: TunnelType = TunnelType.IPIP
    port: int = 0
    checksum: TunnelChecksum = TunnelChecksum.NONE

    def problem(self) -> str | None:
        """What is wrong with the settings, as a part of a sentence; None if they may stand."""
        if not 0 <= self.port <= _PORT_MAX:
            return f"the tunnel port must be at most {_PORT_MAX}, not {self.port}"
        if self.type is TunnelType.GUE and self.port == 0:
            return "a gue tunnel needs a port"
        if self.type is TunnelType.IPIP and self.checksum is not TunnelChecksum.NONE:
            return "an ipip tunnel has no checksum"
        if self.type is TunnelType.GRE and self.checksum is TunnelChecksum.REMOTE:
            return "a gre tunnel has no remote checksum"
        return None

    def overhead(self, outer_is_ipv6: bool, inner_partial: bool = False) -> int:
        """How many bytes a packet grows by.

        Args:
            outer_is_ipv6: the family of the real server's address.
            inner_partial: whether the inner checksum is still partial.
        """
        outer = ipv6.HEADER_BYTES if outer_is_ipv6 else ipv4.HEADER_BYTES
        if self.type is TunnelType.GUE:
            remote = inner_partial and self.checksum is TunnelChecksum.REMOTE
            return outer + UDP_BYTES + GUE_BYTES + (GUE_REMOTE_BYTES if remote else 0)
        if self.type is TunnelType.GRE:
            summed = self.checksum is not TunnelChecksum.NONE
            return outer + GRE_BYTES + (GRE_CHECKSUM_BYTES if summed else 0)
        return outer

    def describe(self) -> str:
        """The settings as ipvsadm lists them: ``ipip``, ``gue:6080:+c``, ``gre:-c``."""
        if self.type is TunnelType.GUE:
            return f"gue:{self.port}:{_CHECKSUM_WORDS[self.checksum]}"
        if self.type is TunnelType.GRE:
            return f"gre:{_CHECKSUM_WORDS[self.checksum]}"
        return "ipip"


IPIP: Final = Tunnel()
"""What a real server has whose tunnel is not described."""


def encapsulate(
    inner: bytes,
    tunnel: Tunnel,
    source: bytes,
    destination: bytes,
    identification: int,
    *,
    partial: PartialChecksum | None = None,
    pmtu_disc: bool = True,
    ports: range = LOCAL_PORTS,
) -> bytes:
    """The tunnel packet around a packet, finished.

    Args:
        inner: the packet, of either family, its time to live already counted down.
        tunnel: settings without a problem.
        source: the director's address towards the real server.
        destination: the real server.
        identification: for the outer IPv4 header where it may be fragmented.
        partial: of a TCP or UDP checksum that is still partial; a tunnel that cannot leave
            it to the real server computes it.
        pmtu_disc: whether the outer packet says "don't fragment" where the inner one does.
        ports: where GUE's source port comes from.

    Raises:
        WireError: the inner packet has no whole header, has no such partial checksum, or
            is too long for a tunnel packet.
    """
    inner_is_ipv6 = _is_ipv6(inner)
    if partial is not None:
        _check(inner, partial)
        if tunnel.type is not TunnelType.GUE or tunnel.checksum is not TunnelChecksum.REMOTE:
            inner, partial = _finish(inner, partial), None
    protocol: int = Protocol.IPV6 if inner_is_ipv6 else Protocol.IPIP
    payload = inner
    if tunnel.type is TunnelType.GUE:
        payload = _gue(inner, protocol, tunnel, source, destination, partial, ports)
        protocol = Protocol.UDP
    elif tunnel.type is TunnelType.GRE:
        summed = tunnel.checksum is not TunnelChecksum.NONE
        payload = _gre(inner, GRE_IPV6 if inner_is_ipv6 else GRE_IPV4, summed)
        protocol = Protocol.GRE
    if inner_is_ipv6:
        tos, ttl, dont_fragment = int.from_bytes(inner[0:2]) >> 4 & 0xFF, inner[7], 0
    else:
        tos, ttl = inner[1], inner[8]
        dont_fragment = int.from_bytes(inner[6:8]) & ipv4.DONT_FRAGMENT if pmtu_disc else 0
    if tos & _ECN_MASK == _ECN_CE:
        tos = tos & ~_ECN_MASK | _ECN_ECT0
    if len(destination) != IPv4_BYTES:
        if len(payload) > _LENGTH_MAX:
            raise WireError("too long for a tunnel packet")
        return (
            ipv6.emit(ipv6.Ipv6Header(source, destination, protocol, len(payload), ttl, tos))
            + payload
        )
    length = ipv4.HEADER_BYTES + len(payload)
    if length > _LENGTH_MAX:
        raise WireError("too long for a tunnel packet")
    # RFC 6864, section 4: the identification says something only of what may be cut.
    number = 0 if dont_fragment else identification
    return (
        ipv4.emit(
            ipv4.Ipv4Header(source, destination, protocol, length, ttl, tos, number, dont_fragment)
        )
        + payload
    )


def source_port(inner: bytes, ports: range = LOCAL_PORTS) -> int:
    """The UDP source port for a packet: the same for all packets of its flow.

    Routers and network cards spread tunnel packets by it. The kernel mixes a random number
    into it; here both directors of a pair come to the same one. A fragment has no ports, so
    all fragments of a datagram go by its addresses and protocol only.
    """
    if _is_ipv6(inner):
        found = ipv6.upper_layer(inner, 0, len(inner))
        protocol, at = found if found is not None else (inner[6], len(inner))
        flow = inner[8:40]
    else:
        protocol, at = inner[9], (inner[0] & 0xF) * 4
        if int.from_bytes(inner[6:8]) & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK):
            at = len(inner)
        flow = inner[12:20]
    if protocol in _WITH_PORTS:
        flow += inner[at : at + 4]
    return ports[zlib.crc32(flow, protocol) * len(ports) >> 32]


def _is_ipv6(inner: bytes) -> bool:
    """The family of a packet of which at least the fixed header is there."""
    version = inner[0] >> 4 if inner else 0
    if version == 4 and len(inner) >= ipv4.HEADER_BYTES:
        return False
    if version == 6 and len(inner) >= ipv6.HEADER_BYTES:
        return True
    raise WireError("not an IP packet")


def _gue(
    inner: bytes,
    protocol: int,
    tunnel: Tunnel,
    source: bytes,
    destination: bytes,
    partial: PartialChecksum | None,
    ports: range,
) -> bytes:
    """The UDP datagram of a GUE packet."""
    if partial is None:
        carried = _GUE.pack(0, protocol, 0) + inner
    else:
        # Version 0, no control message; the second half of the first byte counts words.
        carried = (
            _GUE.pack(GUE_REMOTE_BYTES // 4, protocol, _GUE_PRIVATE_FLAGS)
            + _GUE_REMOTE.pack(_GUE_REMOTE_CHECKSUM, partial.start, partial.field)
            + inner
        )
    length = UDP_BYTES + len(carried)
    if length > _LENGTH_MAX:
        raise WireError("too long for a tunnel packet")
    port = source_port(inner, ports)
    header = _UDP.pack(port, tunnel.port, length, 0)
    if tunnel.checksum is TunnelChecksum.NONE:
        # RFC 6935: a tunnel over IPv6 may do without, too.
        return header + carried
    pseudo = pseudo_header_sum(source, destination, Protocol.UDP, length)
    value = checksum(header + carried, pseudo) or 0xFFFF  # RFC 768: zero says "none"
    return _UDP.pack(port, tunnel.port, length, value) + carried


def _gre(inner: bytes, protocol: int, summed: bool) -> bytes:
    """A GRE header (RFC 2784, section 2) and the packet behind it."""
    if not summed:
        return _GRE.pack(0, protocol) + inner
    header = _GRE.pack(GRE_CHECKSUM_PRESENT, protocol)
    return header + _GRE_CHECKSUM.pack(checksum(header + inner), 0) + inner


def _check(inner: bytes, partial: PartialChecksum) -> None:
    """Refuse a partial checksum that is neither of TCP nor of UDP, or not in the packet."""
    if partial.field - partial.start not in _PARTIAL_FIELDS:
        raise WireError("a partial checksum that is neither of TCP nor of UDP")
    header_bytes = ipv6.HEADER_BYTES if inner[0] >> 4 == 6 else ipv4.HEADER_BYTES
    if partial.start < header_bytes or partial.field + 2 > len(inner):
        raise WireError("a partial checksum outside of its packet")


def _finish(inner: bytes, partial: PartialChecksum) -> bytes:
    """Compute a partial checksum; what the field holds is a part of the sum."""
    value = checksum(inner[partial.start :]) or 0xFFFF
    return inner[: partial.field] + value.to_bytes(2) + inner[partial.field + 2 :]
