"""ARP for IPv4 over Ethernet (RFC 826), and the gratuitous forms that move an address.

This is the packet behind the Ethernet header. Other hardware or protocol types are
refused. Ethernet pads a frame to 60 bytes, so bytes behind the packet are ignored.
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError
from lvsha.model import IPv4_BYTES

ETHERTYPE: Final = 0x0806
REQUEST: Final = 1
REPLY: Final = 2

HARDWARE_ETHERNET: Final = 1
PROTOCOL_IPv4: Final = 0x0800
MAC_BYTES: Final = 6

_LAYOUT: Final = struct.Struct("!HHBBH6s4s6s4s")
PACKET_BYTES: Final = _LAYOUT.size


@dataclass(frozen=True, slots=True)
class ArpPacket:
    """Who has which address; an operation that is neither request nor reply is a value."""

    operation: int
    sender_mac: bytes
    sender_address: bytes
    target_mac: bytes
    target_address: bytes

    @property
    def is_gratuitous(self) -> bool:
        """Whether the sender speaks about its own address."""
        return self.sender_address == self.target_address


def parse(packet: bytes) -> ArpPacket:
    """Read an ARP packet.

    Raises:
        WireError: cut short, or not IPv4 over Ethernet.
    """
    if len(packet) < PACKET_BYTES:
        raise WireError("ARP packet cut short")
    hardware, protocol, hardware_bytes, protocol_bytes, operation, *rest = _LAYOUT.unpack_from(
        packet
    )
    if (hardware, hardware_bytes) != (HARDWARE_ETHERNET, MAC_BYTES):
        raise WireError("ARP hardware type is not Ethernet")
    if (protocol, protocol_bytes) != (PROTOCOL_IPv4, IPv4_BYTES):
        raise WireError("ARP protocol type is not IPv4")
    return ArpPacket(operation, *rest)


def emit(packet: ArpPacket) -> bytes:
    """The 28 bytes of an ARP packet."""
    assert len(packet.sender_mac) == len(packet.target_mac) == MAC_BYTES
    assert len(packet.sender_address) == len(packet.target_address) == IPv4_BYTES
    return _LAYOUT.pack(
        HARDWARE_ETHERNET,
        PROTOCOL_IPv4,
        MAC_BYTES,
        IPv4_BYTES,
        packet.operation,
        packet.sender_mac,
        packet.sender_address,
        packet.target_mac,
        packet.target_address,
    )


def gratuitous(operation: int, mac: bytes, address: bytes) -> ArpPacket:
    """Say that ``address`` is at ``mac``.

    The target's hardware address is that of the sender as well (RFC 5944, section 4.6;
    RFC 9568, erratum 7949), since some receivers learn from that field.
    """
    return ArpPacket(operation, mac, address, mac, address)
