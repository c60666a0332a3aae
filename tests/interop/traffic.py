"""Make packets of steps, and learn from what leaves where a flow's ends are.

All packets are built by hand (`tests.packets`), without lvsha's code. What leaves the
director tells which server has a flow, what a reply must look like and what an ICMP error
can quote. Packets of the same steps and the same answers are the same.
"""

import ipaddress
import struct
from typing import Final

from tests import packets
from tests.interop.steps import CLIENT, SERVER, Complain, Flow, Say, Stray
from tests.laboratory import Left

SCTP: Final = 132
FRAGMENT_HEADER: Final = 44
RECORD_ROUTE = bytes((7, 11, 4)) + bytes(9)
IDENTIFICATION = 0x1234

_Endpoint = tuple[str, int]


def crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def sctp_packet(source_port: int, destination_port: int, chunks: tuple[int, ...]) -> bytes:
    """An SCTP packet whose chunks have as much content as their types need."""
    data = struct.pack("!HHII", source_port, destination_port, 0x1BADCAFE, 0)
    for kind in chunks:
        body = bytes(_CHUNK_BYTES.get(kind, 4))
        data += struct.pack("!BBH", kind, 3 if kind == 0 else 0, 4 + len(body)) + body
    return data[:8] + struct.pack("<I", crc32c(data)) + data[12:]


_CHUNK_BYTES = {0: 16, 1: 16, 2: 16, 3: 12, 6: 0, 8: 0, 11: 0, 14: 0}


def fragments(packet: bytes, count: int) -> list[bytes]:
    """A packet's pieces, in order; fewer than asked if it is too small."""
    v6 = packet[0] >> 4 == 6
    header_bytes = 40 if v6 else (packet[0] & 0xF) * 4
    header, payload = packet[:header_bytes], packet[header_bytes:]
    piece_bytes = max(8, -(-len(payload) // count // 8) * 8)
    pieces = []
    for offset in range(0, len(payload), piece_bytes):
        piece = payload[offset : offset + piece_bytes]
        more = offset + piece_bytes < len(payload)
        if v6:
            extension = struct.pack("!BxHI", header[6], offset | more, IDENTIFICATION)
            length = (len(extension) + len(piece)).to_bytes(2)
            pieces.append(
                header[:4] + length + bytes((FRAGMENT_HEADER,)) + header[7:] + extension + piece
            )
            continue
        first = bytearray(header)
        first[2:4] = (header_bytes + len(piece)).to_bytes(2)
        first[6:8] = (offset // 8 | more << 13).to_bytes(2)
        first[10:12] = bytes(2)
        first[10:12] = packets.internet_checksum(bytes(first)).to_bytes(2)
        pieces.append(bytes(first) + piece)
    return pieces


class Traffic:
    """The ends of all flows, as far as they have shown."""

    def __init__(self) -> None:
        self._servers: dict[Flow, _Endpoint] = {}
        self._seen: dict[tuple[Flow, str], bytes] = {}

    def packets(self, step: Say | Complain | Stray) -> list[bytes]:
        """The packets of a step; none if the director has not yet let its cause through."""
        match step:
            case Stray(packet=packet):
                return [packet]
            case Complain():
                return self._complaint(step)
            case Say(flow=flow, side=side):
                if side == CLIENT:
                    return _spoken(
                        step, (flow.client, flow.client_port), (flow.virtual, flow.virtual_port)
                    )
                server = self._servers.get(flow)
                if server is None:
                    return []
                return _spoken(step, server, (flow.client, flow.client_port))

    def observe(self, step: Say | Complain | Stray, left: list[Left]) -> None:
        """Learn from what left because of a step."""
        if not isinstance(step, Say) or step.fragments > 1:
            return
        flow = step.flow
        other = SERVER if step.side == CLIENT else CLIENT
        for outgoing in left:
            if outgoing.side != other:
                continue
            self._seen[flow, other] = outgoing.packet
            if other == CLIENT:
                continue
            destination = _destination(outgoing.packet, flow)
            if destination is None or destination[0] == flow.virtual:
                # Direct routing or a tunnel: replies do not pass the director.
                self._servers.pop(flow, None)
            else:
                self._servers[flow] = destination

    def _complaint(self, step: Complain) -> list[bytes]:
        seen = self._seen.get((step.flow, step.side))
        if seen is None or (":" in step.reporter) != (seen[0] >> 4 == 6):
            return []
        sender = _text(seen[8:24] if seen[0] >> 4 == 6 else seen[12:16])
        quote = seen[: step.quote_bytes_max]
        return [packets.icmp(step.reporter, sender, step.kind, step.code, quote, rest=step.rest)]


def _text(address: bytes) -> str:
    return ipaddress.ip_address(address).compressed


def _destination(packet: bytes, flow: Flow) -> _Endpoint | None:
    """Where a packet goes; None if it is no packet of the flow's own protocol."""
    if packet[0] >> 4 == 6:
        if packet[6] != flow.protocol:
            return None
        return _text(packet[24:40]), int.from_bytes(packet[42:44])
    if packet[9] != flow.protocol:
        return None
    at = (packet[0] & 0xF) * 4
    return _text(packet[16:20]), int.from_bytes(packet[at + 2 : at + 4])


def _spoken(step: Say, source: _Endpoint, destination: _Endpoint) -> list[bytes]:
    here, port = source
    there, other_port = destination
    payload = bytes(number & 0xFF for number in range(step.payload_bytes))
    match step.flow.protocol:
        case packets.TCP:
            segment = packets.tcp_segment(here, port, there, other_port, step.flags, payload)
        case packets.UDP:
            checksum = step.checksum or ":" in here
            segment = packets.udp_datagram(
                here, port, there, other_port, payload, checksum=checksum
            )
        case _:
            segment = sctp_packet(port, other_port, step.chunks)
    packet = packets.ip(
        here,
        there,
        step.flow.protocol,
        segment,
        ttl=step.ttl,
        tos=step.tos,
        dont_fragment=step.dont_fragment and step.fragments == 1,
        options=RECORD_ROUTE if step.record_route and ":" not in here else b"",
    )
    return [packet] if step.fragments == 1 else fragments(packet, step.fragments)
