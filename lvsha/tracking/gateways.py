"""Ask whether a gateway is there: by ARP or neighbour discovery on its link, or by ICMP echo.

One question for each look, on a socket of its own, so that an interface that was taken away
and came back needs no care. A lost packet is a bad reading; how many of them count is the
tracker's `fall`. The kernel's own table of neighbours is not asked: an entry there lives on
for a while after its neighbour is gone.
"""

import errno
import secrets
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import closing
from typing import Final

import trio

from lvsha import interfaces
from lvsha.errors import HostError, WireError
from lvsha.failover.tracking import Reading
from lvsha.model import IPv4_BYTES, Protocol, format_address
from lvsha.wire import arp, neighbour_discovery, probes

_PAYLOAD_BYTES: Final = 16
_PACKET_BYTES_MAX: Final = 2048
_ANCILLARY_BYTES_MAX: Final = 256
_BROADCAST: Final = b"\xff" * 6
# linux/icmp.h: ICMP_FILTER at SOL_RAW; netinet/icmp6.h: ICMP6_FILTER. A bit that is set keeps
# its type out.
_SOL_RAW: Final = 255
_FILTER: Final = 1

Opened = Callable[[], socket.socket]
Answers = Callable[[socket.socket], bool]


class Gateway:
    """Asks one gateway.

    Args:
        address: of the gateway.
        interface: where it is asked; None for where the route leads (ICMP echo only).
        method: ``neighbour`` (ARP, or neighbour discovery for IPv6) or ``icmp``.
        seconds_max: for which an answer is waited for.
        virtual: addresses that questions are not asked from.
    """

    def __init__(
        self,
        address: bytes,
        interface: str | None,
        method: str,
        seconds_max: float,
        virtual: Collection[bytes] = (),
    ) -> None:
        assert interface is not None or method == "icmp"
        self._address = address
        self._interface = interface
        self._method = method
        self._seconds_max = seconds_max
        self._virtual = frozenset(virtual)

    async def look(self) -> Reading:
        """Ask once, and wait for the answer."""
        name = f"gateway {format_address(self._address)}"
        try:
            answered = await self._ask()
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
            return Reading(up=False, detail=f"{name} cannot be asked: {said}")
        except HostError as error:
            return Reading(up=False, detail=f"{name} cannot be asked: {error}")
        if answered:
            return Reading(up=True)
        return Reading(up=False, detail=f"{name} does not answer")

    async def _ask(self) -> bool:
        if self._method == "icmp":
            return await self._ask_by_echo()
        assert self._interface is not None
        if len(self._address) == IPv4_BYTES:
            return await self._ask_by_arp(self._interface)
        return await self._ask_by_discovery(self._interface)

    async def _ask_by_arp(self, interface: str) -> bool:
        mac = interfaces.mac_address(interface)
        try:
            own = interfaces.primary_ipv4(interface, self._virtual)
        except HostError:
            # An ARP probe of RFC 5227, which is answered as well.
            own = bytes(IPv4_BYTES)
        question = arp.ArpPacket(arp.REQUEST, mac, own, bytes(6), self._address)
        frame = _BROADCAST + mac + arp.ETHERTYPE.to_bytes(2) + arp.emit(question)
        with closing(_packet_socket(interface)) as asking:
            asking.send(frame)
            return await self._answered(asking, lambda opened: self._reads_arp(opened, mac))

    def _reads_arp(self, opened: socket.socket, mac: bytes) -> bool:
        try:
            packet = arp.parse(opened.recv(_PACKET_BYTES_MAX)[14:])
        except WireError:
            return False
        return (
            packet.operation == arp.REPLY
            and packet.sender_address == self._address
            and packet.sender_mac != mac
        )

    async def _ask_by_discovery(self, interface: str) -> bool:
        mac = interfaces.mac_address(interface)
        own = interfaces.link_local_ipv6(interface, self._virtual)
        message = probes.emit_solicitation(self._address, mac, source=own)
        group = format_address(probes.solicited_node(self._address))
        with closing(_icmp_socket(6, interface)) as asking:
            index = socket.if_nametoindex(interface)
            _admit(asking, 6, neighbour_discovery.NEIGHBOUR_ADVERTISEMENT)
            asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            limit = neighbour_discovery.HOP_LIMIT
            asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, limit)
            chosen = struct.pack("@16sI", own, index)
            asking.sendmsg(
                [message],
                [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, chosen)],
                0,
                (group, 0, 0, index),
            )
            return await self._answered(asking, self._reads_advertisement)

    def _reads_advertisement(self, opened: socket.socket) -> bool:
        message, ancillary, _, sender = opened.recvmsg(_PACKET_BYTES_MAX, _ANCILLARY_BYTES_MAX)
        said = {kind: value for _, kind, value in ancillary}
        destination = said.get(socket.IPV6_PKTINFO, b"")[:16]
        hop_limit = struct.unpack("@i", said.get(socket.IPV6_HOPLIMIT, bytes(4)))[0]
        if len(destination) != 16 or hop_limit != neighbour_discovery.HOP_LIMIT:
            return False
        source = socket.inet_pton(socket.AF_INET6, str(sender[0]).partition("%")[0])
        try:
            told = neighbour_discovery.parse(message, source=source, destination=destination)
        except WireError:
            return False
        return told.target == self._address

    async def _ask_by_echo(self) -> bool:
        version = 4 if len(self._address) == IPv4_BYTES else 6
        payload = secrets.token_bytes(_PAYLOAD_BYTES)
        echo = probes.Echo(secrets.randbits(16), 1, payload)
        with closing(_icmp_socket(version, self._interface)) as asking:
            _admit(asking, version, probes.ECHO_REPLY[version])
            # From now on only packets of the gateway are read here.
            asking.connect((format_address(self._address), 0, *self._scope(version)))
            own = socket.inet_pton(asking.family, str(asking.getsockname()[0]).partition("%")[0])
            asking.send(probes.emit_request(echo, source=own, destination=self._address))
            return await self._answered(asking, lambda opened: self._reads_echo(opened, echo, own))

    def _scope(self, version: int) -> tuple[int, ...]:
        if version == 4:
            return ()
        return (0, 0 if self._interface is None else socket.if_nametoindex(self._interface))

    def _reads_echo(self, opened: socket.socket, echo: probes.Echo, own: bytes) -> bool:
        packet = opened.recv(_PACKET_BYTES_MAX)
        if len(own) == IPv4_BYTES:
            # A raw IPv4 socket delivers the header as well.
            packet = packet[(packet[0] & 0x0F) * 4 :] if packet else b""
        try:
            return probes.parse_reply(packet, source=self._address, destination=own) == echo
        except WireError:
            return False

    async def _answered(self, asking: socket.socket, reads: Answers) -> bool:
        """Read until it is the answer, or time is up."""
        with trio.move_on_after(self._seconds_max):
            while True:
                await trio.lowlevel.wait_readable(asking)
                try:
                    if reads(asking):
                        return True
                except BlockingIOError:
                    continue
        return False


def _packet_socket(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        opened.bind((interface, arp.ETHERTYPE))
    except OSError:
        opened.close()
        raise
    return opened


def _icmp_socket(version: int, interface: str | None) -> socket.socket:
    family, protocol = (
        (socket.AF_INET, Protocol.ICMP) if version == 4 else (socket.AF_INET6, Protocol.ICMPV6)
    )
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        if interface is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except OSError:
        opened.close()
        raise
    return opened


def _admit(opened: socket.socket, version: int, kind: int) -> None:
    """Let only messages of one type in."""
    if version == 4:
        opened.setsockopt(_SOL_RAW, _FILTER, struct.pack("@I", ~(1 << kind) & 0xFFFF_FFFF))
        return
    words = [0xFFFF_FFFF] * 8
    words[kind >> 5] &= ~(1 << (kind & 31)) & 0xFFFF_FFFF
    opened.setsockopt(Protocol.ICMPV6, _FILTER, struct.pack("@8I", *words))
