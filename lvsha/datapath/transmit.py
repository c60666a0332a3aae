"""Carry out a verdict: from the frame that came in to the frames that go out.

The order is the kernel's: find the way, count the time to live down, check the size,
rewrite, send. An ordinary packet is changed where it lies and leaves as a window on the
same buffer; only tunnels, fragments and ICMP make new ones. Super-frames stay whole for
NAT and direct routing, and are cut into segments for tunnels.
"""

import struct
from collections import Counter
from collections.abc import Sequence
from typing import Final, assert_never

from lvsha.datapath import icmp_errors, ip_options, resets, rewrite, segmentation, tunnels
from lvsha.datapath.connections import Connection
from lvsha.datapath.flow import (
    ETHERNET_BYTES,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    L2,
    L3,
    Frame,
)
from lvsha.datapath.network import HOST, Network, NextHop, Outgoing, is_loopback
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import Reassembled
from lvsha.datapath.services import RealServer, ToClient, ToServer
from lvsha.datapath.stand_ins import StandIn
from lvsha.datapath.verdicts import (
    Accept,
    Drop,
    ErrorToClient,
    ErrorToServer,
    Reset,
    TunnelError,
    Verdict,
    Wait,
)
from lvsha.errors import WireError
from lvsha.model import ForwardMethod, IPv4_BYTES, Protocol
from lvsha.wire import icmp, ipv4, ipv6, vnet

PATH_MTU_SECONDS: Final = 600.0
"""How long a learned path MTU holds (the kernel's ``net.ipv4.route.mtu_expires``)."""
PATH_MTU_MIN: Final = 552
"""Less is not believed of IPv4 (the kernel's ``net.ipv4.route.min_pmtu``)."""

ANSWERS_PER_SECOND: Final = 1000
ANSWERS_BURST: Final = 50
"""ICMP errors and resets of our own, limited as the kernel limits its errors
(icmp_msgs_per_sec, _burst)."""

_TCP: Final = int(Protocol.TCP)
_METHOD_TUNNEL: Final = ForwardMethod.TUNNEL  # to look a member up takes its time
_MAC_ADDRESSES: Final = slice(L2, L2 + 12)
_ICMP: Final = frozenset({int(Protocol.ICMP), int(Protocol.ICMPV6)})
_CHECKSUM_FIELDS: Final = {int(Protocol.TCP): 16, int(Protocol.UDP): 6}
_read_gso_size: Final = struct.Struct("=H").unpack_from
_NOTHING: Final[tuple[Outgoing, ...]] = ()
_ROOM_MIN: Final = 68
"""A tunnel with less room than an IPv4 link must have (RFC 791) carries nothing."""
_LENGTH_MAX: Final = 65_535


class Transmitter:
    """Carries out verdicts against one mirror of the network.

    Args:
        network: where the ways are looked up.
        drops: counts what could not be sent.
        answers_per_second: the limit of ICMP errors and resets that are sent.

    Attributes:
        pmtu_discovery: whether tunnel packets say "don't fragment" (``pmtu_disc``).
        clock_offset: seconds from the caller's clock to universal time, for timestamps.
    """

    def __init__(
        self,
        network: Network,
        drops: Counter[Reason],
        answers_per_second: float = ANSWERS_PER_SECOND,
    ) -> None:
        self._network = network
        self._drops = drops
        self._answer_rate = answers_per_second
        self._answers_left = float(ANSWERS_BURST)
        self._answers_at = 0.0
        self._identification = 0
        self.pmtu_discovery = True
        self.clock_offset = 0.0

    def carry_out(self, frame: Frame, verdict: Verdict, now: float) -> Sequence[Outgoing]:
        """What is to be sent because of a frame; windows on its buffer, to be sent at once."""
        # Nearly every frame is one of these two, and a match statement takes its time.
        if type(verdict) is ToServer:
            return self._to_server(frame, verdict, now)
        if type(verdict) is ToClient:
            return self._to_client(frame, verdict, now)
        match verdict:
            case Accept() | Wait():
                return _NOTHING
            case Drop(reason, answer, passing):
                if answer is not None and frame.special:
                    # The kernel looks at options first, and such a packet comes no further.
                    refused = self._update_options(frame, frame.destination, now)
                    if refused is not None:
                        return refused
                self._drops[reason] += 1
                if answer is None:
                    return _NOTHING
                if passing:
                    rewrite.count_down(frame)
                return self._answer(frame, answer, now)
            case ErrorToServer(connection):
                return self._error_to_server(frame, connection, now)
            case ErrorToClient(connection):
                return self._error_to_client(frame, connection)
            case TunnelError(connection, quoted):
                return self._tunnel_error(frame, connection.server, quoted, now)
        assert_never(verdict)

    def _hop_of(self, server: RealServer) -> NextHop | None:
        network = self._network
        if server.generation != network.generation:
            # What is bypassed has no server, and each packet a way of its own.
            bypassed = server.method is ForwardMethod.BYPASS
            server.hop = None if bypassed else network.hop(server.address)
            server.generation = network.generation
        return server.hop

    def _to_server(self, frame: Frame, verdict: ToServer, now: float) -> Sequence[Outgoing]:
        server = verdict.server
        hop = server.hop
        if server.generation != self._network.generation:
            hop = self._hop_of(server)
        if hop is None:
            return self._no_hop(frame, verdict, now)
        if (
            frame.special
            or frame.ttl <= 1
            or frame.length > hop.mtu
            or verdict.method is _METHOD_TUNNEL
        ):
            return self._specially_to_server(frame, verdict, hop, now)
        translation = verdict.translation
        if translation is None:
            rewrite.count_down(frame)
        else:
            translation.apply(frame)
        return self._send(frame, hop)

    def _specially_to_server(
        self, frame: Frame, verdict: ToServer, hop: NextHop, now: float
    ) -> Sequence[Outgoing]:
        """A request that has to be looked at more closely, or that goes into a tunnel."""
        server, translation = verdict.server, verdict.translation
        about = server if translation is None else None
        if frame.special:
            if frame.protocol == Protocol.SCTP:
                rewrite.complete_sctp(frame)  # no card can do that later
            refused = self._update_options(frame, frame.destination, now, about=about)
            if refused is not None:
                return refused
        if frame.ttl <= 1:
            return self._refuse(frame, Reason.TTL_EXCEEDED, icmp.TIME_EXCEEDED, now, about)
        if verdict.method is _METHOD_TUNNEL:
            return self._tunnel(frame, server, hop, now)
        if frame.special or (frame.length > hop.mtu and self._longest(frame) > hop.mtu):
            return self._unusual(frame, translation, hop, now, about)
        if translation is None:
            rewrite.count_down(frame)
        else:
            translation.apply(frame)
        return self._send(frame, hop)

    def _no_hop(self, frame: Frame, verdict: ToServer, now: float) -> Sequence[Outgoing]:
        """A server without a next hop: on this host, where the packet goes, or nowhere."""
        address = verdict.server.address
        if verdict.method is ForwardMethod.BYPASS:
            address = frame.destination
            hop = self._network.hop(address)
            if hop is not None:
                return self._specially_to_server(frame, verdict, hop, now)
            if self._network.is_local(address):
                self._drops[Reason.SERVER_IS_LOCAL] += 1
                return _NOTHING
        elif self._network.is_local(address):
            return self._to_host(frame, verdict)
        return self._no_way(frame, address, now, verdict.server)

    def _to_host(self, frame: Frame, verdict: ToServer) -> Sequence[Outgoing]:
        """A real server on this host gets the packet as it is, but for translation."""
        if verdict.translation is not None:
            if is_loopback(verdict.server.address):
                self._drops[Reason.SERVER_IS_LOCAL] += 1
                return _NOTHING
            # Its time to live stays; it may be 0, or 255, and must fit in between as well.
            if frame.ttl:
                verdict.translation.apply(frame)
                rewrite.count_up(frame)
            else:
                rewrite.count_up(frame)
                verdict.translation.apply(frame)
        return ((HOST, frame.view[: frame.end]),)

    def _to_client(self, frame: Frame, verdict: ToClient, now: float) -> Sequence[Outgoing]:
        client = frame.key[6:10] if frame.family == 4 else frame.key[18:34]
        hop = self._network.hop(client)
        if hop is None:
            return self._no_way(frame, client, now)
        if frame.ttl <= 1:
            return self._refuse(frame, Reason.TTL_EXCEEDED, icmp.TIME_EXCEEDED, now)
        if frame.special:
            return self._special_to_client(frame, verdict, hop, now)
        if frame.length > hop.mtu and self._longest(frame) > hop.mtu:
            return self._unusual(frame, verdict.translation, hop, now)
        verdict.translation.apply(frame)
        return self._send(frame, hop)

    def _special_to_client(
        self, frame: Frame, verdict: ToClient, hop: NextHop, now: float
    ) -> Sequence[Outgoing]:
        """A reply with options records the virtual address, as which it leaves."""
        towards_server = self._hop_of(verdict.server)
        stamped = towards_server.source if towards_server is not None else None
        refused = self._update_options(frame, verdict.translation.address, now, stamped)
        if refused is not None:
            return refused
        return self._unusual(frame, verdict.translation, hop, now)

    def _update_options(
        self,
        frame: Frame,
        own: bytes,
        now: float,
        stamped: bytes | None = None,
        about: RealServer | None = None,
    ) -> Sequence[Outgoing] | None:
        """Bring IPv4 options up to date; what is sent instead where they forbid forwarding."""
        if frame.family != 4 or frame.l4 == L3 + ipv4.HEADER_BYTES:
            return None
        header = ip_options.forward(
            frame.view[L3 : frame.l4],
            own,
            int((now + self.clock_offset) * 1000),
            stamped=stamped,
            is_local=self._network.is_local,
        )
        if not isinstance(header, ip_options.Refused):
            frame.buffer[L3 : frame.l4] = header
            return None
        if header.pointer is None:
            self._drops[Reason.SOURCE_ROUTED] += 1
            return _NOTHING
        answer = icmp.wrong_option(header.pointer)
        return self._refuse(frame, Reason.IP_OPTIONS, answer, now, about)

    def _send(self, frame: Frame, hop: NextHop) -> Sequence[Outgoing]:
        hop.used = True
        if hop.header:
            frame.buffer[_MAC_ADDRESSES] = hop.header
            return ((hop.link, frame.view[: frame.end]),)
        return self._hold(hop, bytes(frame.view[: frame.end]))

    def _send_packet(self, packet: bytes, destination: bytes) -> Sequence[Outgoing]:
        hop = self._network.hop(destination)
        if hop is None:
            self._drops[Reason.NO_ROUTE] += 1
            return _NOTHING
        return self._send_finished(packet, hop)

    def _send_finished(self, packet: bytes, hop: NextHop) -> Sequence[Outgoing]:
        hop.used = True
        ethertype = ETHERTYPE_IPV6 if packet[0] >> 4 == 6 else ETHERTYPE_IPV4
        header = hop.header or bytes(12)
        framed = vnet.NOTHING + header + ethertype.to_bytes(2) + packet
        return ((hop.link, framed),) if hop.header else self._hold(hop, framed)

    def _hold(self, hop: NextHop, framed: bytes) -> Sequence[Outgoing]:
        reason = self._network.hold(hop, framed)
        if reason is not None:
            self._drops[reason] += 1
        return _NOTHING

    def _longest(self, frame: Frame) -> int:
        """The longest IP packet that this frame puts on the wire, in bytes."""
        buffer, l4 = frame.buffer, frame.l4
        gso_type = buffer[vnet.GSO_TYPE_AT]
        if not gso_type:
            return frame.length
        headers = l4 - L3 + ((buffer[l4 + 12] >> 4) * 4 if frame.protocol == _TCP else 8)
        (gso_size,) = _read_gso_size(buffer, vnet.GSO_SIZE_AT)
        return segmentation.segment_length(frame.length, gso_type, gso_size, headers)

    def _may_fragment(self, frame: Frame) -> bool:
        """Whether a packet that is too long is cut; an ICMP error must not cause another."""
        if frame.protocol in _ICMP:
            return True
        flags = int.from_bytes(frame.buffer[L3 + 6 : L3 + 8])
        return frame.family == 4 and not flags & ipv4.DONT_FRAGMENT

    def _unusual(
        self,
        frame: Frame,
        translation: rewrite.Translation | None,
        hop: NextHop,
        now: float,
        about: RealServer | None = None,
    ) -> Sequence[Outgoing]:
        """A packet that may have to leave in fragments, or be refused for its size."""
        if self._is_too_long(frame, hop.mtu) and not self._may_fragment(frame):
            return self._too_big(frame, hop.mtu, now, about)
        if translation is None:
            rewrite.count_down(frame)
        else:
            translation.apply(frame)
        return self._in_pieces(self._packets(frame), hop, arrived=frame.arrived)

    def _is_too_long(self, frame: Frame, mtu: int) -> bool:
        """Whether a packet does not fit; of an IPv6 one the fragments in which it came."""
        if frame.arrived is not None and frame.family == 6:
            return frame.arrived.largest > mtu
        return frame.length > mtu and self._longest(frame) > mtu

    def _too_big(
        self, frame: Frame, mtu: int, now: float, about: RealServer | None
    ) -> Sequence[Outgoing]:
        """The kernel quotes the packet with its time to live already counted down."""
        rewrite.count_down(frame)
        return self._refuse(frame, Reason.TOO_BIG, icmp.too_big(mtu), now, about)

    def _packets(self, frame: Frame) -> list[bytes]:
        """The finished packets in a frame; empty, and counted, where it contradicts itself."""
        header = frame.vnet_header
        if not header.gso_type and not header.flags & vnet.NEEDS_CHECKSUM:
            return [frame.packet()]
        try:
            return segmentation.split(frame.packet(), header, frame.l4 - L3, frame.protocol)
        except WireError:
            self._drops[Reason.BAD_SEGMENTATION] += 1
            return []

    def _in_pieces(
        self,
        packets: Sequence[bytes],
        hop: NextHop,
        mtu: int | None = None,
        arrived: Reassembled | None = None,
    ) -> Sequence[Outgoing]:
        """Send finished packets, in fragments where the path asks for it or they came so."""
        sent: list[Outgoing] = []
        for packet in packets:
            for piece in self._fragments(packet, hop.mtu if mtu is None else mtu, arrived):
                sent += self._send_finished(piece, hop)
        return sent

    def _fragments(
        self, packet: bytes, mtu: int, arrived: Reassembled | None = None
    ) -> list[bytes]:
        """A packet, cut where it must be; empty, and counted, where it cannot be.

        That is with an MTU below the 68 bytes that RFC 791 demands.
        """
        try:
            if arrived is not None:
                return segmentation.refragment(packet, mtu, arrived, self._next_number())
            return segmentation.plain_fragments(packet, mtu, self._next_number())
        except WireError:
            self._drops[Reason.TOO_BIG] += 1
            return []

    def _next_number(self) -> int:
        """Another identification for packets and fragments of the director's own."""
        self._identification = self._identification + 1 & 0xFFFF_FFFF
        return self._identification

    def _tunnel(
        self, frame: Frame, server: RealServer, hop: NextHop, now: float
    ) -> Sequence[Outgoing]:
        if isinstance(server, StandIn):
            self._drops[Reason.SERVER_GONE] += 1  # how it unwraps tunnels nobody has said
            return _NOTHING
        tunnel, partial = server.tunnel, self._partial_checksum(frame)
        outer_is_ipv6 = len(server.address) != IPv4_BYTES
        overhead = tunnel.overhead(outer_is_ipv6, partial is not None)
        mtu = self._tunnel_mtu(server, hop, now)
        room = mtu - overhead
        if room < (ipv6.MTU_MIN if outer_is_ipv6 else _ROOM_MIN):
            self._drops[Reason.TOO_BIG] += 1
            return _NOTHING
        forbidden = not self._may_fragment(frame) and (self.pmtu_discovery or frame.family == 6)
        if forbidden and self._is_too_long(frame, room):
            return self._too_big(frame, room, now, server)
        rewrite.count_down(frame)
        packets = [frame.packet()] if partial is not None else self._packets(frame)
        # No packet is longer than its length field can say; the outer one is what is cut.
        wrapped = [
            tunnels.encapsulate(
                piece,
                tunnel,
                hop.source,
                server.address,
                self._next_number() & 0xFFFF,
                partial=partial,
                pmtu_disc=self.pmtu_discovery,
            )
            for packet in packets
            for piece in self._fragments(packet, _LENGTH_MAX - overhead)
        ]
        return self._in_pieces(wrapped, hop, mtu, frame.arrived)

    def _tunnel_mtu(self, server: RealServer, hop: NextHop, now: float) -> int:
        """The MTU of the path to a real server, as far as it is known."""
        return min(hop.mtu, server.path_mtu) if now < server.path_mtu_until else hop.mtu

    def _partial_checksum(self, frame: Frame) -> tunnels.PartialChecksum | None:
        """Where a packet's checksum is still partial, if it may be left to a real server."""
        buffer = frame.buffer
        if buffer[vnet.GSO_TYPE_AT] or not buffer[0] & vnet.NEEDS_CHECKSUM:
            return None
        start, field = frame.l4 - L3, _CHECKSUM_FIELDS.get(frame.protocol)
        return None if field is None else tunnels.PartialChecksum(start, start + field)

    def _error_to_server(
        self, frame: Frame, connection: Connection, now: float
    ) -> Sequence[Outgoing]:
        """An ICMP error is translated for NAT and goes as it is with the other methods."""
        binding = connection.binding
        if binding.method is not ForwardMethod.NAT:
            return self._to_server(frame, binding.to_server, now)
        server = binding.server
        hop = self._hop_of(server)
        if hop is None:
            if is_loopback(server.address):
                self._drops[Reason.SERVER_IS_LOCAL] += 1
                return _NOTHING
            if self._network.is_local(server.address):
                packet = icmp_errors.translate(frame, server.address, binding.port, to_server=True)
                return ((HOST, vnet.NOTHING + bytes(ETHERNET_BYTES) + packet),)
            return self._no_way(frame, server.address, now)
        if frame.ttl <= 1:
            self._drops[Reason.TTL_EXCEEDED] += 1
            return _NOTHING
        rewrite.count_down(frame)
        packet = icmp_errors.translate(frame, server.address, binding.port, to_server=True)
        return self._in_pieces([packet], hop)

    def _error_to_client(self, frame: Frame, connection: Connection) -> Sequence[Outgoing]:
        """An ICMP error about a translated request comes from the virtual address."""
        hop = self._network.hop(connection.client[0])
        if hop is None:
            self._drops[Reason.NO_ROUTE] += 1
            return _NOTHING
        if frame.ttl <= 1:
            self._drops[Reason.TTL_EXCEEDED] += 1
            return _NOTHING
        rewrite.count_down(frame)
        virtual, port = connection.virtual
        packet = icmp_errors.translate(frame, virtual, port, to_server=False)
        return self._in_pieces([packet], hop)

    def _tunnel_error(
        self, frame: Frame, server: RealServer, quoted: icmp_errors.QuotedTunnel, now: float
    ) -> Sequence[Outgoing]:
        """Learn a smaller path MTU, and tell the sender of the original packet."""
        original = bytes(frame.view[quoted.inner : L3 + frame.length])
        mtu = icmp_errors.told_mtu(frame)
        if mtu is None:
            return self._relay(icmp_errors.relayed(frame, quoted), original, server, now)
        smallest = PATH_MTU_MIN if frame.family == 4 else ipv6.MTU_MIN
        hop = self._hop_of(server)
        known = _LENGTH_MAX if hop is None else self._tunnel_mtu(server, hop, now)
        if max(mtu, smallest) < known:  # a path is not believed to have become wider
            known = server.path_mtu = max(mtu, smallest)
            server.path_mtu_until = now + PATH_MTU_SECONDS
        if quoted.inner_family == 4 and not int.from_bytes(original[6:8]) & ipv4.DONT_FRAGMENT:
            return _NOTHING  # from now on it is fragmented
        overhead = server.tunnel.overhead(len(server.address) != IPv4_BYTES)
        return self._relay(icmp.too_big(known - overhead), original, server, now)

    def _relay(
        self, error: icmp.IcmpError, original: bytes, server: RealServer, now: float
    ) -> Sequence[Outgoing]:
        """Tell a client what became of its packet in the tunnel.

        The kernel counts what it reads of the original, and then the error as it leaves.
        """
        server.count(len(original), to_server=False)
        return self._tell(error, original, now, server)

    def _no_way(
        self, frame: Frame, destination: bytes, now: float, about: RealServer | None = None
    ) -> Sequence[Outgoing]:
        if self._network.is_local(destination):
            return ((HOST, frame.view[: frame.end]),)
        return self._refuse(frame, Reason.NO_ROUTE, icmp.HOST_UNREACHABLE, now, about)

    def _refuse(
        self,
        frame: Frame,
        reason: Reason,
        answer: icmp.IcmpError,
        now: float,
        about: RealServer | None = None,
    ) -> Sequence[Outgoing]:
        self._drops[reason] += 1
        return self._answer(frame, answer, now, about)

    def _answer(
        self,
        frame: Frame,
        answer: icmp.IcmpError | Reset,
        now: float,
        about: RealServer | None = None,
    ) -> Sequence[Outgoing]:
        if isinstance(answer, Reset):
            return self._reset(frame, now)
        if frame.protocol in _ICMP:
            return _NOTHING
        return self._tell(answer, frame.packet(), now, about)

    def _reset(self, frame: Frame, now: float) -> Sequence[Outgoing]:
        """Tell a packet's sender, in the name of whom it was for, that there is no connection."""
        packet = resets.answer(frame)
        sender = frame.source
        if packet is None or not icmp.may_be_told(sender) or not self._may_answer(now):
            return _NOTHING
        return self._send_packet(packet, sender)

    def _tell(
        self,
        answer: icmp.IcmpError,
        packet: bytes,
        now: float,
        about: RealServer | None = None,
    ) -> Sequence[Outgoing]:
        """Tell a packet's sender, from the address it wrote to where that is ours.

        Args:
            answer: what.
            packet: about which.
            now: the clock.
            about: whose connection the packet is of, where the answer counts as one of its
                packets to the client; as in the kernel, that is not so with NAT.
        """
        if packet[0] >> 4 == 4:
            sender, own = packet[12:16], packet[16:20]
        else:
            sender, own = packet[8:24], packet[24:40]
        if not icmp.may_be_told(sender) or not self._may_answer(now):
            return _NOTHING
        if not self._network.is_local(own):
            hop = self._network.hop(sender)
            own = hop.source if hop is not None else own
        error = icmp.emit(answer, packet, own, sender)
        if about is not None:
            about.count(len(error), to_server=False)
        return self._send_packet(error, sender)

    def _may_answer(self, now: float) -> bool:
        gained = (now - self._answers_at) * self._answer_rate
        self._answers_left = min(self._answers_left + gained, max(ANSWERS_BURST, 1))
        self._answers_at = now
        if self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True
