"""The ends of the guest's links that are in this process's hands.

A `Tap` is a link to the guest; what the guest sends is read by a raw socket, what it shall
receive is written to that. Only IP packets pass; a guest's own housekeeping (multicast
groups, neighbour discovery) is left out. A checksum that the guest leaves to the network
card is completed as the card would.
"""

import select
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests import packets
from tests.laboratory import Left

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_NEEDS_CHECKSUM = 1
_IGMP = 2
_HOUSEKEEPING: Final = frozenset({130, 131, 132, 133, 134, 135, 136, 137, 143})
"""ICMPv6 types of multicast listener and neighbour discovery (RFC 2710, 3810, 4861)."""


class Tap:
    """One link, seen from outside the guest."""

    def __init__(self, number: int, side: str, guest_mac: bytes, own_mac: bytes) -> None:
        self.name = f"tap{number}"
        self.side = side
        self._guest_mac = guest_mac
        self._header = packets.NO_VNET + guest_mac + own_mac
        _run("ip", "tuntap", "add", "dev", self.name, "mode", "tap")
        Path(f"/proc/sys/net/ipv6/conf/{self.name}/disable_ipv6").write_text("1", encoding="ascii")
        _run("ip", "link", "set", self.name, "up", "arp", "off", "txqueuelen", "4000")
        self.socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL)
        )
        self.socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((self.name, _ETH_P_ALL))

    def send(self, packet: bytes) -> None:
        """Let the guest receive a packet."""
        ethertype = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
        self.socket.send(self._header + ethertype + packet)

    def receive(self) -> list[Left]:
        """What the guest has sent since the last time."""
        found: list[Left] = []
        while True:
            try:
                data = self.socket.recv(0x10000)
            except BlockingIOError:
                return found
            packet = _ip_packet(data)
            if packet is not None:
                found.append(Left(self.side, data[10:16].hex(":"), packet))


class SyncTap:
    """The link of the sync daemons: here the machine's own stack speaks on it."""

    name = "tap2"
    guest_mac = bytes.fromhex("020002000001")
    addresses = ("10.2.0.2/24", "fd00:2::2/64")
    guest_addresses = ("10.2.0.1/24", "fd00:2::1/64")

    def __init__(self) -> None:
        _run("ip", "tuntap", "add", "dev", self.name, "mode", "tap")
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0", encoding="ascii")
        Path(f"/proc/sys/net/ipv6/conf/{self.name}/accept_dad").write_text("0", encoding="ascii")
        for address in self.addresses:
            _run("ip", "address", "add", address, "dev", self.name)
        _run("ip", "link", "set", self.name, "up", "txqueuelen", "4000")


def wait(taps: Sequence[Tap], seconds: float) -> None:
    """Return when something can be received, or when the time is over."""
    select.select([tap.socket for tap in taps], [], [], seconds)


def _ip_packet(data: bytes) -> bytes | None:
    flags, start, field = data[0], *struct.unpack_from("=HH", data, 6)
    frame = data[10:]
    if flags & _NEEDS_CHECKSUM:
        checksum = packets.internet_checksum(frame[start:]) or 0xFFFF
        at = start + field
        frame = frame[:at] + checksum.to_bytes(2) + frame[at + 2 :]
    packet = frame[14:]
    match frame[12:14]:
        case b"\x08\x00":
            return None if packet[9] == _IGMP else packet[: int.from_bytes(packet[2:4])]
        case b"\x86\xdd":
            if packet[6] == 0 or (packet[6] == packets.ICMPV6 and packet[40] in _HOUSEKEEPING):
                return None
            return packet[: 40 + int.from_bytes(packet[4:6])]
        case _:
            return None


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=20)
