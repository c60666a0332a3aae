"""Judge what left because of frames in order: checksums and lengths must be right.

`tests.reader` (scapy) does it for what it can rebuild byte for byte. Beside it stand here
the header checksum of packets with IPv4 options and the checksum of SCTP. What is not
judged: checksums that are still partial, transports inside of fragments, and what follows
IPv6 extension headers.
"""

from collections.abc import Sequence

from tests.fuzz import craft
from tests.fuzz.checks import demand
from tests.fuzz.world import Sent
from tests.reader import faults

_JUDGED_MAX = 3000
"""Longer packets say nothing new, and cost much."""
_JUDGED_INSIDE_IPV6 = frozenset({craft.TCP, craft.UDP, craft.ICMPV6, craft.SCTP, 4, 41, 47})


def is_fragment(packet: bytes) -> bool:
    """Whether a packet is a fragment, or says something like it."""
    if packet[0] >> 4 == 6:
        return packet[6] not in _JUDGED_INSIDE_IPV6
    return bool(packet[6] & 0x3F or packet[7])


def judge(sent: Sequence[Sent]) -> None:
    """Demand that packets are in order."""
    for _, data in sent:
        packet = data[craft.L3 :]
        if data[0] or data[1] or len(packet) > _JUDGED_MAX or len(packet) < 20:
            continue
        length = int.from_bytes(packet[4:6]) + 40
        if packet[0] >> 4 == 4:
            end = (packet[0] & 0xF) * 4
            demand(not craft.internet_checksum(packet[:end]), f"header checksum: {packet.hex()}")
            length = int.from_bytes(packet[2:4])
        demand(length <= len(packet), f"longer than it is: {packet.hex()}")
        packet = packet[:length]
        if is_fragment(packet) or packet[0] & 0xF > 5:
            continue
        inner = craft.unwrapped(packet)
        seen = craft.read(inner)
        if seen is not None and seen.protocol in {craft.ICMP, craft.ICMPV6}:
            _judge_icmp(seen)
            continue
        if packet[0] >> 4 == 6 and packet[6] == craft.UDP and not any(packet[46:48]):
            # RFC 6935: a tunnel may do without; what is inside may not.
            demand(inner is not packet, f"no checksum: {packet.hex()}")
            packet = inner
            if is_fragment(packet) or packet[0] & 0xF > 5:
                continue
        wrong = faults(packet)
        demand(not wrong, f"{wrong}: {packet.hex()}")
        if seen is not None and seen.protocol == craft.SCTP and not is_fragment(inner):
            segment = inner[seen.l4 :]
            right = craft.crc32c(segment[:8] + bytes(4) + segment[12:])
            demand(segment[8:12] == right, f"CRC32c: {inner.hex()}")


def _judge_icmp(seen: craft.Seen) -> None:
    """Demand the checksum of a message; scapy would judge a quote by its own lengths."""
    message = seen.packet[seen.l4 :]
    pseudo = b""
    if seen.protocol == craft.ICMPV6:
        flow = seen.flow
        pseudo = craft.pseudo_header(flow.source, flow.destination, craft.ICMPV6, len(message))
    demand(not craft.internet_checksum(pseudo + message), f"ICMP: {seen.packet.hex()}")
