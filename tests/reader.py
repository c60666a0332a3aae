"""Read packets with scapy: an independent judge of what lvsha sends.

`faults` takes a packet apart, lets scapy fill in every checksum and length anew, and says
where the packet differs from that.
"""

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

_COMPUTED = {
    IP: ("chksum", "len"),
    IPv6: ("plen",),
    TCP: ("chksum",),
    UDP: ("chksum", "len"),
    SCTP: ("chksum",),
    ICMP: ("chksum",),
    ICMPv6DestUnreach: ("cksum",),
    ICMPv6PacketTooBig: ("cksum",),
    ICMPv6TimeExceeded: ("cksum",),
}


def dissect(packet: bytes) -> Packet:
    """What scapy makes of an IP packet."""
    return IPv6(packet) if packet[0] >> 4 == 6 else IP(packet)


def faults(packet: bytes) -> list[str]:
    """Checksums and lengths that are not what scapy would write; empty if all is right.

    A quoted packet inside an ICMP error is not judged, nor the transport of a fragment.
    """
    given = dissect(packet)
    fresh = dissect(packet)
    names: list[tuple[type[Packet], int, str]] = []
    for layer, index in _layers(given):
        for name in _COMPUTED[layer]:
            if (layer, name) == (UDP, "chksum") and _has_none(given.getlayer(layer, index)):
                continue
            fresh.getlayer(layer, index).delfieldval(name)
            names.append((layer, index, name))
    rebuilt = dissect(bytes(fresh))
    return [
        f"{layer.__name__}.{name} is {given.getlayer(layer, index).getfieldval(name):#x}, "
        f"should be {rebuilt.getlayer(layer, index).getfieldval(name):#x}"
        for layer, index, name in names
        if given.getlayer(layer, index).getfieldval(name)
        != rebuilt.getlayer(layer, index).getfieldval(name)
    ]


def _has_none(datagram: Packet) -> bool:
    """Whether a datagram says that it has no checksum, as it may over IPv4 (RFC 768)."""
    return isinstance(datagram.underlayer, IP) and datagram.chksum == 0


def _layers(packet: Packet) -> list[tuple[type[Packet], int]]:
    """The layers to judge, each with its number among those of its type."""
    found: list[tuple[type[Packet], int]] = []
    layer = packet
    while layer and not isinstance(layer, Raw | IPerror | IPv6ExtHdrFragment):
        kind = type(layer)
        if kind in _COMPUTED:
            found.append((kind, 1 + sum(other is kind for other, _ in found)))
        if kind is IP and (layer.frag or layer.flags.MF):
            break
        if kind in {ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded}:
            break
        layer = layer.payload
    return found


def reassemble(fragments: list[bytes]) -> bytes:
    """The payload that IPv4 fragments carry together; they must be complete and in order."""
    payload = b""
    for number, fragment in enumerate(fragments):
        assert faults(fragment) == [], faults(fragment)
        read = IP(fragment)
        assert read.frag * 8 == len(payload)
        assert bool(read.flags.MF) == (number < len(fragments) - 1)
        payload += fragment[read.ihl * 4 :]
    return payload
