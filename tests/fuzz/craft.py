"""Make packets and frames of bytes, and read them: addresses are bytes, checksums are right.

`tests.packets` does the same for readable tests. Here everything that a header can say is an
argument, and making many is cheap. None of lvsha's code is used, so that nothing is compared
with itself.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

TCP, UDP, SCTP, ESP, AH, ICMP, ICMPV6 = 6, 17, 132, 50, 51, 1, 58
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
VNET_BYTES, ETHERNET_BYTES = 10, 14
L3 = VNET_BYTES + ETHERNET_BYTES
NO_VNET = bytes(VNET_BYTES)
_MACS = bytes.fromhex("02000c00000102000c0000fe")
_CRC32C = 0x82F63B78
"""The polynomial of CRC32c, reflected (RFC 9260, appendix A)."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (_CRC32C if number & 1 else 0)
        table.append(number)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> bytes:
    """The checksum field of an SCTP packet whose field is zero."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return (~value & 0xFFFFFFFF).to_bytes(4, "little")


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) & 1:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """What transport checksums cover beside the packet."""
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!I3xB", length, protocol)


@dataclass(frozen=True, slots=True)
class Header:
    """What an IP header says beside the addresses.

    ``extensions`` are IPv6 headers by kind, each a multiple of 8 bytes long, of which the
    first byte is filled in.
    """

    ttl: int = 64
    tos: int = 0
    identification: int = 0
    dont_fragment: bool = True
    place: int = 0
    options: bytes = b""
    extensions: tuple[tuple[int, bytes], ...] = ()


PLAIN = Header()


def ip(
    source: bytes, destination: bytes, protocol: int, payload: bytes, header: Header = PLAIN
) -> bytes:
    """An IP packet of the family of its addresses."""
    if len(source) == 16:
        chain = b""
        for kind, body in reversed(header.extensions):
            chain = bytes((protocol,)) + body[1:] + chain
            protocol = kind
        payload = chain + payload
        first = 6 << 28 | header.tos << 20
        fixed = struct.pack("!IHBB", first, len(payload), protocol, header.ttl)
        return fixed + source + destination + payload
    options = header.options
    place = header.place | (0x4000 if header.dont_fragment else 0)
    packed = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        header.tos,
        20 + len(options) + len(payload),
        header.identification & 0xFFFF,
        place,
        header.ttl,
        protocol,
        0,
        source,
        destination,
    )
    return with_header_checksum(packed + options + payload)


def with_header_checksum(packet: bytes) -> bytes:
    """An IPv4 packet with the right header checksum, as far as it has a header."""
    end = (packet[0] & 0xF) * 4
    if end < 20 or end > len(packet):
        return packet
    value = internet_checksum(packet[:10] + b"\0\0" + packet[12:end])
    return packet[:10] + value.to_bytes(2) + packet[12:]


@dataclass(frozen=True, slots=True)
class Flow:
    """Both ends of a conversation, as one of them writes to the other."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int

    @property
    def back(self) -> "Flow":
        """The other direction."""
        return Flow(self.destination, self.destination_port, self.source, self.source_port)

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.source) == 4 else 6


def tcp(
    flow: Flow,
    flags: int,
    payload: bytes = b"",
    *,
    sequence: int = 1000,
    acknowledgement: int = 0,
    options: bytes = b"",
    header: Header = PLAIN,
) -> bytes:
    """A TCP segment."""
    segment = (
        struct.pack(
            "!HHIIBBHHH",
            flow.source_port,
            flow.destination_port,
            sequence & 0xFFFFFFFF,
            acknowledgement & 0xFFFFFFFF,
            0x50 + (len(options) // 4 << 4),
            flags,
            0xFFFF,
            0,
            0,
        )
        + options
        + payload
    )
    return ip(flow.source, flow.destination, TCP, _summed(flow, TCP, segment, 16), header)


def udp(
    flow: Flow, payload: bytes = b"", *, checksum: bool = True, header: Header = PLAIN
) -> bytes:
    """A UDP datagram."""
    length = 8 + len(payload)
    datagram = struct.pack("!HHHH", flow.source_port, flow.destination_port, length, 0) + payload
    if checksum:
        datagram = _summed(flow, UDP, datagram, 6)
    return ip(flow.source, flow.destination, UDP, datagram, header)


def sctp(flow: Flow, chunks: bytes, *, header: Header = PLAIN) -> bytes:
    """An SCTP packet."""
    head = struct.pack("!HHI", flow.source_port, flow.destination_port, 7)
    value = crc32c(head + bytes(4) + chunks)
    return ip(flow.source, flow.destination, SCTP, head + value + chunks, header)


def chunk(kind: int, body: bytes = bytes(16)) -> bytes:
    """One SCTP chunk."""
    return struct.pack("!BBH", kind, 0, 4 + len(body)) + body + bytes(-len(body) % 4)


def icmp(
    source: bytes,
    destination: bytes,
    kind: int,
    code: int,
    quote: bytes,
    *,
    rest: int = 0,
    header: Header = PLAIN,
) -> bytes:
    """An ICMP or ICMPv6 message."""
    message = struct.pack("!BBHI", kind, code, 0, rest) + quote
    if len(source) == 16:
        message = _summed(Flow(source, 0, destination, 0), ICMPV6, message, 2)
        return ip(source, destination, ICMPV6, message, header)
    value = internet_checksum(message)
    message = message[:2] + value.to_bytes(2) + message[4:]
    return ip(source, destination, ICMP, message, header)


def _summed(flow: Flow, protocol: int, data: bytes, at: int) -> bytes:
    pseudo = pseudo_header(flow.source, flow.destination, protocol, len(data))
    value = internet_checksum(pseudo + data) or (0xFFFF if protocol == UDP else 0)
    return data[:at] + value.to_bytes(2) + data[at + 2 :]


def fragments(packet: bytes, sizes: Sequence[int], identification: int) -> list[bytes]:
    """A packet cut into pieces of these sizes, multiples of 8; the last takes the rest."""
    start = 40 if packet[0] >> 4 == 6 else (packet[0] & 0xF) * 4
    body = packet[start:]
    cuts = [0]
    for size in sizes:
        if cuts[-1] + size >= len(body):
            break
        cuts.append(cuts[-1] + size)
    pieces = []
    for number, at in enumerate(cuts):
        more = number + 1 < len(cuts)
        part = body[at : cuts[number + 1]] if more else body[at:]
        pieces.append(_fragment(packet[:start], part, at, identification, more=more))
    return pieces


def _fragment(head: bytes, part: bytes, at: int, identification: int, *, more: bool) -> bytes:
    if head[0] >> 4 == 6:
        extension = struct.pack("!BxHI", head[6], at | more, identification)
        length = (8 + len(part)).to_bytes(2)
        return head[:4] + length + bytes((44,)) + head[7:] + extension + part
    length = (len(head) + len(part)).to_bytes(2)
    place = (at // 8 | (0x2000 if more else 0)).to_bytes(2)
    number = (identification & 0xFFFF).to_bytes(2)
    return with_header_checksum(head[:2] + length + number + place + head[8:] + part)


def frame(packet: bytes, vnet: bytes = NO_VNET) -> bytes:
    """A packet as a packet socket gives it."""
    ethertype = b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\x00"
    return vnet + _MACS + ethertype + packet


def vnet(
    *, flags: int = 0, gso_type: int = 0, gso_size: int = 0, start: int = 0, offset: int = 0
) -> bytes:
    """A virtio header."""
    return struct.pack("=BBHHHH", flags, gso_type, 0, gso_size, start, offset)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a packet is: its flow (ports 0 where there are none), protocol and payload."""

    flow: Flow
    protocol: int
    l4: int
    packet: bytes

    @property
    def flags(self) -> int:
        """The flags of a TCP segment."""
        return self.packet[self.l4 + 13] if len(self.packet) > self.l4 + 13 else 0


def read(packet: bytes) -> Seen | None:
    """Look at a packet; None where it is cut short."""
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 6:
        if len(packet) < 40:
            return None
        source, destination, protocol, l4 = packet[8:24], packet[24:40], packet[6], 40
    else:
        source, destination, protocol = packet[12:16], packet[16:20], packet[9]
        l4 = (packet[0] & 0xF) * 4
        if packet[6] & 0x1F or packet[7]:
            return Seen(Flow(source, 0, destination, 0), protocol, l4, packet)
    ports = (0, 0)
    if protocol in {TCP, UDP, SCTP} and len(packet) >= l4 + 8:
        ports = struct.unpack_from("!HH", packet, l4)
    return Seen(Flow(source, ports[0], destination, ports[1]), protocol, l4, packet)


def unwrapped(packet: bytes) -> bytes:
    """The packet inside of a tunnel packet; the packet itself where it is none."""
    seen = read(packet)
    if seen is None:
        return packet
    behind = packet[seen.l4 :]
    if seen.protocol in {4, 41}:
        return behind
    if seen.protocol == 47 and len(behind) >= 8:
        return behind[8 if behind[0] & 0x80 else 4 :]
    if seen.protocol == UDP and len(behind) >= 12 and not behind[8] & 0xE0 and behind[9] in {4, 41}:
        return behind[12 + (behind[8] & 0x1F) * 4 :]
    return packet
