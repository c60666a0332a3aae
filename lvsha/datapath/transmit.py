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

from lvsha.datapath import icmp_errors, rewrite, segmentation
from lvsha.datapath.connections import Connection
from lvsha.datapath.flow import ETHERTYPE_IPV4, ETHERTYPE_IPV6, L2, L3, Frame
from lvsha.datapath.network import Network, NextHop, Outgoing
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import RealServer, ToClient, ToServer
from lvsha.datapath.verdicts import (
    Accept,
    Drop,
    ErrorToClient,
    ErrorToServer,
    TunnelError,
    Verdict,
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
"""ICMP errors of our own, as the kernel limits its own (icmp_msgs_per_sec, _burst)."""

_TCP: Final = int(Protocol.TCP)
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
        answers_per_second: the limit of ICMP errors that are sent.
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

    def carry_out(self, frame: Frame, verdict: Verdict, now: float) -> Sequence[Outgoing]:
        """What is to be sent because of a frame; windows on its buffer, to be sent at once."""
        # Nearly every frame is one of these two, and a match statement takes its time.
        if isinstance(verdict, ToServer):
            return self._to_server(frame, verdict.server, now)
        if isinstance(verdict, ToClient):
            return self._to_client(frame, verdict.server, now)
        match verdict:
            case Accept():
                return _NOTHING
            case Drop(reason, answer):
                self._drops[reason] += 1
                return _NOTHING if answer is None else self._answer(frame, answer, now)
            case ErrorToServer(connection):
                return self._error_to_server(frame, connection.server, now)
            case ErrorToClient(connection):
                return self._error_to_client(frame, connection)
            case TunnelError(connection, inner):
                return self._tunnel_error(frame, connection.server, inner, now)
        assert_never(verdict)

    def _hop_of(self, server: RealServer) -> NextHop | None:
        network = self._network
        if server.generation != network.generation:
            server.hop = network.hop(server.address)
            server.generation = network.generation
        return server.hop

    def _to_server(self, frame: Frame, server: RealServer, now: float) -> Sequence[Outgoing]:
        hop = server.hop
        if server.generation != self._network.generation:
            hop = self._hop_of(server)
        if hop is None:
            return self._no_way(frame, server.address, now)
        if frame.ttl <= 1:
            return self._refuse(frame, Reason.TTL_EXCEEDED, icmp.TIME_EXCEEDED, now)
        if server.method is ForwardMethod.TUNNEL:
            return self._tunnel(frame, server, hop, now)
        if frame.length > hop.mtu and self._longest(frame) > hop.mtu:
            return self._oversized(frame, server.request, hop, now)
        if server.request is None:
            rewrite.count_down(frame)
        else:
            server.request.apply(frame)
        return self._send(frame, hop)

    def _to_client(self, frame: Frame, server: RealServer, now: float) -> Sequence[Outgoing]:
        client = frame.key[6:10] if frame.family == 4 else frame.key[18:34]
        hop = self._network.hop(client)
        if hop is None:
            return self._no_way(frame, client, now)
        if frame.ttl <= 1:
            return self._refuse(frame, Reason.TTL_EXCEEDED, icmp.TIME_EXCEEDED, now)
        if frame.length > hop.mtu and self._longest(frame) > hop.mtu:
            return self._oversized(frame, server.reply, hop, now)
        assert server.reply is not None, "only NAT has replies through the director"
        server.reply.apply(frame)
        return self._send(frame, hop)

    def _send(self, frame: Frame, hop: NextHop) -> Sequence[Outgoing]:
        hop.used = True
        if hop.header:
            frame.buffer[L2 : L2 + 12] = hop.header
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
        flags = int.from_bytes(frame.buffer[L3 + 6 : L3 + 8])
        return frame.family == 4 and not flags & ipv4.DONT_FRAGMENT

    def _oversized(
        self,
        frame: Frame,
        translation: rewrite.Translation | None,
        hop: NextHop,
        now: float,
    ) -> Sequence[Outgoing]:
        """A packet above the MTU: fragmented where IPv4 allows it, else refused."""
        if not self._may_fragment(frame):
            return self._too_big(frame, hop.mtu, now)
        if translation is None:
            rewrite.count_down(frame)
        else:
            translation.apply(frame)
        return self._in_pieces(self._packets(frame), hop)

    def _too_big(self, frame: Frame, mtu: int, now: float) -> Sequence[Outgoing]:
        """The kernel quotes the packet with its time to live already counted down."""
        rewrite.count_down(frame)
        return self._refuse(frame, Reason.TOO_BIG, icmp.too_big(mtu), now)

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
        self, packets: Sequence[bytes], hop: NextHop, mtu: int | None = None
    ) -> Sequence[Outgoing]:
        """Send finished packets, an IPv4 one in fragments where the path asks for it."""
        sent: list[Outgoing] = []
        for packet in packets:
            for piece in self._fragments(packet, hop.mtu if mtu is None else mtu):
                sent += self._send_finished(piece, hop)
        return sent

    def _fragments(self, packet: bytes, mtu: int) -> list[bytes]:
        """A packet, cut where it must be; empty, and counted, where it cannot be.

        That is IPv6, or an MTU below the 68 bytes that RFC 791 demands.
        """
        try:
            return segmentation.plain_fragments(packet, mtu)
        except WireError:
            self._drops[Reason.TOO_BIG] += 1
            return []

    def _tunnel(
        self, frame: Frame, server: RealServer, hop: NextHop, now: float
    ) -> Sequence[Outgoing]:
        outer_bytes = _outer_bytes(server)
        mtu = min(hop.mtu, server.path_mtu) if now < server.path_mtu_until else hop.mtu
        room = mtu - outer_bytes
        if room < _ROOM_MIN:
            self._drops[Reason.TOO_BIG] += 1
            return _NOTHING
        fits = self._longest(frame) <= room
        if not fits and not self._may_fragment(frame):
            return self._too_big(frame, room, now)
        rewrite.count_down(frame)
        # The outer packet is what is fragmented, as in the kernel. But an outer IPv6 packet
        # must not be, and no packet is longer than its length field can say.
        inner_max = room if outer_bytes == ipv6.HEADER_BYTES else _LENGTH_MAX - outer_bytes
        wrapped = []
        for packet in self._packets(frame):
            for piece in self._fragments(packet, inner_max):
                self._identification = self._identification + 1 & 0xFFFF
                wrapped.append(
                    rewrite.wrap(piece, hop.source, server.address, self._identification)
                )
        return self._in_pieces(wrapped, hop, mtu)

    def _error_to_server(self, frame: Frame, server: RealServer, now: float) -> Sequence[Outgoing]:
        """An ICMP error is translated for NAT and goes as it is with the other methods."""
        hop = self._hop_of(server)
        if hop is None:
            return self._no_way(frame, server.address, now)
        if frame.ttl <= 1:
            self._drops[Reason.TTL_EXCEEDED] += 1
            return _NOTHING
        rewrite.count_down(frame)
        if server.method is ForwardMethod.NAT:
            packet = icmp_errors.translate(frame, server.address, server.port, to_server=True)
            return self._in_pieces([packet], hop)
        if server.method is ForwardMethod.TUNNEL:
            self._identification = self._identification + 1 & 0xFFFF
            packet = rewrite.wrap(frame.packet(), hop.source, server.address, self._identification)
            return self._in_pieces([packet], hop)
        return self._send(frame, hop)

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
        self, frame: Frame, server: RealServer, inner: int, now: float
    ) -> Sequence[Outgoing]:
        """Learn a smaller path MTU, and tell the sender of the original packet."""
        quoted = bytes(frame.view[inner : L3 + frame.length])
        mtu = icmp_errors.told_mtu(frame)
        if mtu is None:
            kind = (frame.buffer[frame.l4], frame.buffer[frame.l4 + 1])
            return self._tell(icmp.IcmpError("about a tunnel", kind, kind), quoted, now)
        smallest = PATH_MTU_MIN if frame.family == 4 else ipv6.MTU_MIN
        server.path_mtu = max(mtu, smallest)
        server.path_mtu_until = now + PATH_MTU_SECONDS
        if frame.family == 4 and not int.from_bytes(quoted[6:8]) & ipv4.DONT_FRAGMENT:
            return _NOTHING  # from now on it is fragmented
        return self._tell(icmp.too_big(server.path_mtu - _outer_bytes(server)), quoted, now)

    def _no_way(self, frame: Frame, destination: bytes, now: float) -> Sequence[Outgoing]:
        if self._network.is_local(destination):
            self._drops[Reason.SERVER_IS_LOCAL] += 1
            return _NOTHING
        return self._refuse(frame, Reason.NO_ROUTE, icmp.HOST_UNREACHABLE, now)

    def _refuse(
        self, frame: Frame, reason: Reason, answer: icmp.IcmpError, now: float
    ) -> Sequence[Outgoing]:
        self._drops[reason] += 1
        return self._answer(frame, answer, now)

    def _answer(self, frame: Frame, answer: icmp.IcmpError, now: float) -> Sequence[Outgoing]:
        if frame.protocol in {Protocol.ICMP, Protocol.ICMPV6}:
            return _NOTHING
        return self._tell(answer, frame.packet(), now)

    def _tell(self, answer: icmp.IcmpError, packet: bytes, now: float) -> Sequence[Outgoing]:
        """Tell a packet's sender, from the address it wrote to where that is ours."""
        if packet[0] >> 4 == 4:
            sender, own = packet[12:16], packet[16:20]
        else:
            sender, own = packet[8:24], packet[24:40]
        if not icmp.may_be_told(sender) or not self._may_answer(now):
            return _NOTHING
        if not self._network.is_local(own):
            hop = self._network.hop(sender)
            own = hop.source if hop is not None else own
        return self._send_packet(icmp.emit(answer, packet, own, sender), sender)

    def _may_answer(self, now: float) -> bool:
        gained = (now - self._answers_at) * self._answer_rate
        self._answers_left = min(self._answers_left + gained, max(ANSWERS_BURST, 1))
        self._answers_at = now
        if self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True


def _outer_bytes(server: RealServer) -> int:
    """The length of the outer header of a tunnel to a real server."""
    return ipv4.HEADER_BYTES if len(server.address) == IPv4_BYTES else ipv6.HEADER_BYTES
