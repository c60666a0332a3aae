"""Build packets and frames by hand, without any of lvsha's own code.

The checksums are computed by the plain loop of RFC 1071, so that the product's arithmetic
is never compared with itself.
"""

import ipaddress
import struct
from functools import cache

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

NO_VNET = bytes(10)


@cache
def address(text: str) -> bytes:
    """Network-order bytes of an address."""
    return ipaddress.ip_address(text).packed


def internet_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """RFC 9293, section 3.1, and RFC 8200, section 8.1."""
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!I3xB", length, protocol)


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    dont_fragment: bool = True,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 or IPv6 packet; ``fragment`` is IPv4's flags-and-offset word, or'ed in."""
    here, there = address(source), address(destination)
    if len(here) == 16:
        first = 6 << 28 | tos << 20
        return struct.pack("!IHBB", first, len(payload), protocol, ttl) + here + there + payload
    header = bytearray(
        struct.pack(
            "!BBHHHBBH",
            0x45 + len(options) // 4,
            tos,
            20 + len(options) + len(payload),
            0x1234,
            fragment | (0x4000 if dont_fragment else 0),
            ttl,
            protocol,
            0,
        )
        + here
        + there
        + options
    )
    header[10:12] = internet_checksum(bytes(header)).to_bytes(2)
    return bytes(header) + payload


def tcp_segment(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    flags: int = SYN,
    payload: bytes = b"",
    *,
    sequence: int = 1000,
    options: bytes = b"",
) -> bytes:
    """A TCP segment with the right checksum."""
    segment = bytearray(
        struct.pack(
            "!HHIIBBHHH",
            source_port,
            destination_port,
            sequence,
            0,
            0x50 + (len(options) // 4 << 4),
            flags,
            0xFFFF,
            0,
            0,
        )
        + options
        + payload
    )
    pseudo = pseudo_header(address(source), address(destination), TCP, len(segment))
    segment[16:18] = internet_checksum(pseudo + segment).to_bytes(2)
    return bytes(segment)


def tcp(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    flags: int = SYN,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    dont_fragment: bool = True,
    ip_options: bytes = b"",
    tcp_options: bytes = b"",
) -> bytes:
    """An IP packet with a TCP segment."""
    segment = tcp_segment(
        source, source_port, destination, destination_port, flags, payload, options=tcp_options
    )
    return ip(
        source,
        destination,
        TCP,
        segment,
        ttl=ttl,
        dont_fragment=dont_fragment,
        options=ip_options,
    )


def udp_datagram(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    payload: bytes = b"",
    *,
    checksum: bool = True,
) -> bytes:
    """A UDP datagram; without checksum its field is zero."""
    datagram = bytearray(
        struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload
    )
    if checksum:
        pseudo = pseudo_header(address(source), address(destination), UDP, len(datagram))
        datagram[6:8] = (internet_checksum(pseudo + datagram) or 0xFFFF).to_bytes(2)
    return bytes(datagram)


def udp(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    payload: bytes = b"",
    *,
    checksum: bool = True,
    ttl: int = 64,
    tos: int = 0,
    dont_fragment: bool = True,
) -> bytes:
    """An IP packet with a UDP datagram."""
    datagram = udp_datagram(
        source, source_port, destination, destination_port, payload, checksum=checksum
    )
    return ip(source, destination, UDP, datagram, ttl=ttl, tos=tos, dont_fragment=dont_fragment)


def crc32c(data: bytes) -> int:
    """The CRC of SCTP (RFC 9260, appendix A), bit by bit."""
    register = 0xFFFF_FFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F6_3B78 if register & 1 else 0)
    return register ^ 0xFFFF_FFFF


def sctp(
    source: str, source_port: int, destination: str, destination_port: int, *chunks: int,
    ttl: int = 64,
) -> bytes:  # fmt: skip
    """An IP packet with an SCTP packet that has one chunk of each of these kinds."""
    segment = bytearray(struct.pack("!HHII", source_port, destination_port, 7, 0))
    for kind in chunks:
        segment += struct.pack("!BBH", kind, 0, 12) + b"contents"
    segment[8:12] = crc32c(bytes(segment)).to_bytes(4, "little")
    return ip(source, destination, SCTP, bytes(segment), ttl=ttl)


def icmp_message(
    source: str, destination: str, kind: int, code: int, quote: bytes, *, rest: int = 0
) -> bytes:
    """An ICMP or ICMPv6 message with the right checksum."""
    message = bytearray(struct.pack("!BBHI", kind, code, 0, rest) + quote)
    pseudo = b""
    if len(address(source)) == 16:
        pseudo = pseudo_header(address(source), address(destination), ICMPV6, len(message))
    message[2:4] = internet_checksum(pseudo + message).to_bytes(2)
    return bytes(message)


def icmp(
    source: str,
    destination: str,
    kind: int,
    code: int,
    quote: bytes,
    *,
    rest: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IP packet with an ICMP or ICMPv6 message."""
    message = icmp_message(source, destination, kind, code, quote, rest=rest)
    protocol = ICMPV6 if ":" in source else ICMP
    return ip(source, destination, protocol, message, ttl=ttl, dont_fragment=False)


def ethernet(packet: bytes) -> bytes:
    """A frame around an IP packet, with made-up addresses."""
    ethertype = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return bytes.fromhex("020000000001020000000002") + ethertype + packet


def is_bare_reset(packet: bytes) -> bool:
    """Whether an IPv6 packet is what a host sends where it has no connection: RST, no window."""
    if len(packet) != 60 or packet[6] != TCP:
        return False
    return bool(packet[53] & RST) and not any(packet[54:56])


def with_partial_checksum(packet: bytes, l4: int, protocol: int) -> bytes:
    """A packet as its sender's stack leaves it to the hardware: the pseudo-header's sum."""
    if packet[0] >> 4 == 6:
        source, destination = packet[8:24], packet[24:40]
    else:
        source, destination = packet[12:16], packet[16:20]
    pseudo = pseudo_header(source, destination, protocol, len(packet) - l4)
    field = l4 + (16 if protocol == TCP else 6)
    partial = ~internet_checksum(pseudo) & 0xFFFF
    return packet[:field] + partial.to_bytes(2) + packet[field + 2 :]


def vnet_header(
    *, partial: bool = False, gso_type: int = 0, gso_size: int = 0, l4: int = 34, protocol: int = 6
) -> bytes:
    """A virtio header as the kernel writes it; offsets from the Ethernet header."""
    offset = 16 if protocol == TCP else 6
    return struct.pack(
        "=BBHHHH",
        1 if partial else 0,
        gso_type,
        l4 + 20,
        gso_size,
        l4 if partial else 0,
        offset if partial else 0,
    )
