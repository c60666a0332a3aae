"""Hear who else says that it has an address of ours.

ARP with such an address as the sender's (RFC 5227, section 2.4), and neighbour advertisements
for one. A socket filter passes nothing else, so an ordinary network wakes nobody. What this
machine sends itself is not heard.

A packet socket dies with its interface; another is opened when it is back. Nothing here ends
for the network's trouble: it is counted.
"""

import ctypes
import socket
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from lvsha import interfaces
from lvsha.counters import Counters
from lvsha.errors import HostError, WireError
from lvsha.model import IPv4_BYTES
from lvsha.model import Protocol as IpProtocol
from lvsha.wire import arp, ipv6, neighbour_discovery

REOPEN_INTERVAL: Final = 1.0
ADDRESSES_MAX: Final = 64
"""Of a virtual router; a jump of the filter reaches 255 steps."""

_SOL_PACKET: Final = 263
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_ATTACH_FILTER: Final = 26
_ETH_P_ALL: Final = 0x0003
_ETHERTYPE_IPv6: Final = 0x86DD
_ETHERNET_BYTES: Final = 14
_FRAME_BYTES_MAX: Final = 2048

# Classic BPF, linux/bpf_common.h.
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_VLAN_TAG_PRESENT: Final = 0xFFFF_F000 + 48
_ARP_SENDER_AT: Final = 28
_NEXT_HEADER_AT: Final = 20
_ICMP_TYPE_AT: Final = 54
_TARGET_AT: Final = 62

_Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Rival:
    """Somebody says that an address is at a link-layer address."""

    address: bytes
    mac: bytes


class RivalListener(Protocol):
    """Where others are heard."""

    counters: Counters

    async def rival(self) -> Rival | None:
        """Wait for one; sometimes for none."""
        ...


class PacketRivalListener:
    """The real thing, for one interface.

    Args:
        interface: its name.
        addresses: of ours, on it.

    Attributes:
        counters: frames that were none, and trouble with the interface.
    """

    def __init__(self, interface: str, addresses: Collection[bytes]) -> None:
        assert 0 < len(addresses) <= ADDRESSES_MAX
        self.counters = Counters()
        self._interface = interface
        self._addresses = frozenset(addresses)
        self._own = b""
        self._socket: trio.socket.SocketType | None = None

    async def rival(self) -> Rival | None:
        """Wait for another that says so."""
        try:
            if self._socket is None:
                self._own = interfaces.mac_address(self._interface)
                self._socket = self._open()
            frame = await self._socket.recv(_FRAME_BYTES_MAX)
        except (OSError, HostError):
            self.counters.add("interface_troubles")
            self.close()
            await trio.sleep(REOPEN_INTERVAL)
            return None
        try:
            rival = rival_of(frame)
        except WireError:
            self.counters.add("frames_malformed")
            return None
        if rival is None or rival.mac == self._own or rival.address not in self._addresses:
            return None
        return rival

    def close(self) -> None:
        """Hear no more, until asked again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> trio.socket.SocketType:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            _attach(made, filter_of(self._addresses))
            made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            # Last, so that nothing comes unfiltered.
            made.bind((self._interface, _ETH_P_ALL))
        except OSError:
            made.close()
            raise
        return trio.socket.from_stdlib_socket(made)


def rival_of(frame: bytes) -> Rival | None:
    """Who a frame says has an address; None if it says nothing of that.

    Raises:
        WireError: it is not what it seems to be.
    """
    ethertype, packet = int.from_bytes(frame[12:_ETHERNET_BYTES]), frame[_ETHERNET_BYTES:]
    if ethertype == arp.ETHERTYPE:
        heard = arp.parse(packet)
        return Rival(heard.sender_address, heard.sender_mac)
    if ethertype != _ETHERTYPE_IPv6:
        return None
    header = ipv6.parse(packet)
    if header.next_header != IpProtocol.ICMPV6:
        return None
    if header.hop_limit != neighbour_discovery.HOP_LIMIT:
        raise WireError("neighbour advertisement from beyond the link")
    advertisement = neighbour_discovery.parse(
        packet[ipv6.HEADER_BYTES : ipv6.HEADER_BYTES + header.payload_length],
        source=header.source,
        destination=header.destination,
    )
    # Without the option it says nothing new of where the address is.
    return None if advertisement.mac is None else Rival(advertisement.target, advertisement.mac)


def filter_of(addresses: frozenset[bytes]) -> list[_Instruction]:
    """A filter that passes what may come from a rival; of IPv6 addresses it knows the last word."""
    words4 = sorted(int.from_bytes(a) for a in addresses if len(a) == IPv4_BYTES)
    words6 = sorted({int.from_bytes(a[-4:]) for a in addresses if len(a) != IPv4_BYTES})
    part4: list[_Instruction] = [
        (_LOAD_WORD, 0, 0, _ARP_SENDER_AT),
        *_one_of(words4),
    ]
    part6: list[_Instruction] = [
        (_LOAD_BYTE, 0, 0, _NEXT_HEADER_AT),
        (_JUMP_EQUAL, 1, 0, IpProtocol.ICMPV6),
        (_RETURN, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, _ICMP_TYPE_AT),
        (_JUMP_EQUAL, 1, 0, neighbour_discovery.NEIGHBOUR_ADVERTISEMENT),
        (_RETURN, 0, 0, 0),
        (_LOAD_WORD, 0, 0, _TARGET_AT + 12),
        *_one_of(words6),
    ]
    return [
        # A tagged frame is heard on the interface of its VLAN.
        (_LOAD_WORD, 0, 0, _VLAN_TAG_PRESENT),
        (_JUMP_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, 0),
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 0, len(part4), arp.ETHERTYPE),
        *part4,
        (_JUMP_EQUAL, 1, 0, _ETHERTYPE_IPv6),
        (_RETURN, 0, 0, 0),
        *part6,
    ]


def _one_of(words: Sequence[int]) -> list[_Instruction]:
    """Accept if what was loaded is one of these, else reject."""
    return [
        *((_JUMP_EQUAL, len(words) - at, 0, word) for at, word in enumerate(words)),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFF_FFFF),
    ]


def _attach(to: socket.socket, instructions: Sequence[_Instruction]) -> None:
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    # The kernel copies the program during the call, so the buffer need not outlive it.
    program = ctypes.create_string_buffer(packed)
    pointer = struct.pack("@HP", len(instructions), ctypes.addressof(program))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
