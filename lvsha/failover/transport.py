"""Carry VRRP messages over one interface.

This is the seam between the speaker and the network: raw sockets of IP protocol 112 that
have joined the group of RFC 9568 (224.0.0.18 or ff02::12) on one interface, or that send to
each of some peers. It neither reads nor builds advertisements, and tells whoever sent one:
what a stranger says is judged elsewhere.

What always holds: messages leave with a hop limit of 255, from the interface's own address
and never from a virtual one; own messages are not looped back; neither `send` nor
`receive` waits. Trouble of the network (interface down, no route, no buffers) is counted,
logged at a limited rate and survived, because a router that dies of it could not come back
with its interface.
"""

import errno
import socket
import struct
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Protocol, Self

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha import interfaces
from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.reception import ReceivedMessage
from lvsha.log import LimitedLog
from lvsha.model import IPv4_BYTES, IPv6_BYTES, format_address, parse_address
from lvsha.model import Protocol as IpProtocol
from lvsha.wire import ipv4, ipv6
from lvsha.wire.vrrp import HOP_LIMIT, GROUP_IPv4, GROUP_IPv6

# Messages taken per turn: far more than the routers of a link send at once, and few enough
# that a flood does not keep the rest of the program from running.
BATCH_MAX: Final = 64
_DATAGRAM_MAX: Final = 2048
_ANCILLARY_MAX: Final = 256
# How long a socket in trouble is left alone, so that an error cannot become a busy loop.
_ERROR_PAUSE: Final = 0.1
# CS6, internetwork control: what a queue should drop last.
_NETWORK_CONTROL: Final = 0xC0
# linux/in.h; the socket module does not have it.
_IP_PKTINFO: Final = 8


class AdvertisementTransport(Protocol):
    """What a speaker needs of the network.

    Attributes:
        counters: what the network refused.
    """

    counters: Counters

    @property
    def source(self) -> bytes:
        """The address that messages are sent from."""
        ...

    @property
    def destinations(self) -> Sequence[bytes]:
        """The addresses that messages are sent to: the group alone, or each peer."""
        ...

    async def wait_readable(self) -> None:
        """Return when `receive` may have something; sometimes for nothing."""
        ...

    def receive(self) -> Sequence[ReceivedMessage]:
        """What has arrived, at most `BATCH_MAX` messages; never waits."""
        ...

    def send(self, message: bytes, destination: bytes) -> None:
        """Send to one of `destinations`; never waits, never raises for the network's trouble."""
        ...


class RawTransport:
    """The real thing: a raw socket on one interface. Use it as a context manager.

    Attributes:
        counters: what the network refused.
    """

    def __init__(
        self,
        interface: str,
        source: bytes,
        peers: Sequence[bytes] = (),
        *,
        mac: bytes | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        """Open the socket, and join the group if there are no peers.

        Args:
            interface: its name.
            source: its own address to send from (see `own_address`); tells the family.
            peers: to whom messages are sent, instead of the group.
            mac: the virtual MAC address that messages to the group come from (RFC 9568,
                section 7.2), so that switches know where it is; None for the interface's.
            log: where trouble is told, at a limited rate.

        Raises:
            HostError: the interface is missing, or the privilege for raw sockets.
        """
        self.counters = Counters()
        self._interface = interface
        self._source = source
        group = GROUP_IPv4 if len(source) == IPv4_BYTES else GROUP_IPv6
        self._destinations = tuple(peers) or (group,)
        self._mac = mac
        self._log = LimitedLog(log or structlog.get_logger())
        self._paused = False
        try:
            with ExitStack() as opened:
                self._socket = opened.enter_context(_open(interface, source, join=not peers))
                self._frames = None if mac is None or peers else _open_frames()
                opened.pop_all()
        except PermissionError as error:
            raise HostError("VRRP needs raw sockets (the capability CAP_NET_RAW)") from error
        except OSError as error:
            raise HostError(f"VRRP cannot use interface {interface}: {error}") from error

    @property
    def source(self) -> bytes:
        """The address that messages are sent from."""
        return self._source

    @property
    def destinations(self) -> Sequence[bytes]:
        """The group of the family, or the peers."""
        return self._destinations

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, and with it leave the group."""
        self._socket.close()
        if self._frames is not None:
            self._frames.close()

    async def wait_readable(self) -> None:
        """Return when there may be a message."""
        if self._paused:
            self._paused = False
            await trio.sleep(_ERROR_PAUSE)
        await trio.lowlevel.wait_readable(self._socket)

    def receive(self) -> Sequence[ReceivedMessage]:
        """Take what has arrived, without waiting."""
        messages: list[ReceivedMessage] = []
        for _ in range(BATCH_MAX):
            try:
                data, ancillary, _, sender = self._socket.recvmsg(_DATAGRAM_MAX, _ANCILLARY_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                self._trouble("receive_failed", error)
                self._paused = True
                break
            if len(self._source) == IPv4_BYTES:
                message = _unwrap_ipv4(data)
            else:
                message = _describe_ipv6(data, ancillary, str(sender[0]))
            if message is None:
                self.counters.add("header_malformed")
            else:
                messages.append(message)
        return messages

    def send(self, message: bytes, destination: bytes) -> None:
        """Send to the group or a peer, or count that it was not possible."""
        # The source is given with each message. To bind the socket to it would fail for
        # the second or two in which the kernel still checks a new link-local address.
        address = format_address(destination)
        try:
            if self._frames is not None and self._mac is not None:
                frame = frame_to_group(self._mac, self._source, destination, message)
                self._frames.sendto(frame, (self._interface, 0))
            elif len(self._source) == IPv4_BYTES:
                # struct in_pktinfo: interface index, source, and a field for receivers.
                chosen = struct.pack("@i4s4s", 0, self._source, bytes(4))
                ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, chosen)]
                self._socket.sendmsg([message], ancillary, 0, (address, 0))
            else:
                index = socket.if_nametoindex(self._interface)
                chosen = struct.pack("@16sI", self._source, index)
                ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, chosen)]
                self._socket.sendmsg([message], ancillary, 0, (address, 0, 0, index))
        except OSError as error:
            self._trouble("send_failed", error)

    def _trouble(self, event: str, error: OSError) -> None:
        self.counters.add(event)
        self._log.warning(
            event,
            trio.current_time(),
            interface=self._interface,
            error=errno.errorcode.get(error.errno or 0, str(error)),
        )


def frame_to_group(mac: bytes, source: bytes, group: bytes, message: bytes) -> bytes:
    """An Ethernet frame with a VRRP message.

    Args:
        mac: the source address.
        source: the IP address of the sender.
        group: the IP address of the group.
        message: what the packet carries.
    """
    if len(source) == IPv4_BYTES:
        # RFC 1112, section 6.4: 01-00-5E and the last 23 bits of the group.
        destination = bytes((0x01, 0x00, 0x5E, group[1] & 0x7F)) + group[2:]
        header = ipv4.emit(
            ipv4.Ipv4Header(
                source=source,
                destination=group,
                protocol=IpProtocol.VRRP,
                total_length=ipv4.HEADER_BYTES + len(message),
                ttl=HOP_LIMIT,
                tos=_NETWORK_CONTROL,
                flags=ipv4.DONT_FRAGMENT,
            )
        )
    else:
        # RFC 2464, section 7: 33-33 and the last four bytes of the group.
        destination = b"\x33\x33" + group[-4:]
        header = ipv6.emit(
            ipv6.Ipv6Header(
                source=source,
                destination=group,
                next_header=IpProtocol.VRRP,
                payload_length=len(message),
                hop_limit=HOP_LIMIT,
                traffic_class=_NETWORK_CONTROL,
            )
        )
    ethertype = 0x0800 if len(source) == IPv4_BYTES else 0x86DD
    return destination + mac + ethertype.to_bytes(2) + header + message


def own_address(interface: str, family: int, virtual: Collection[bytes]) -> bytes:
    """The address that VRRP speaks from on an interface (RFC 9568, sections 5.1.1.1, 5.1.2.1).

    Args:
        interface: its name.
        family: 4 or 6.
        virtual: addresses that do not count, because they may be held at the moment.

    Raises:
        HostError: there is none.
    """
    if family == 4:
        return interfaces.primary_ipv4(interface, virtual)
    return interfaces.link_local_ipv6(interface, virtual)


def split_speakers(interface: str, speakers: Sequence[bytes]) -> tuple[bytes, tuple[bytes, ...]]:
    """Which of the addresses of all speakers is the own one, and which are the peers'.

    Args:
        interface: the name of the interface that has the own one.
        speakers: of one family.

    Raises:
        HostError: none of them is on the interface, or more than one.
    """
    present = interfaces.addresses(interface, 4 if len(speakers[0]) == IPv4_BYTES else 6)
    own = [address for address in speakers if address in present]
    if len(own) != 1:
        names = ", ".join(map(format_address, speakers))
        raise HostError(
            f"interface {interface} has {len(own)} of the addresses {names}; expected one of "
            "the virtual router's peers to be this node's own"
        )
    return own[0], tuple(address for address in speakers if address != own[0])


def _open(interface: str, source: bytes, *, join: bool) -> socket.socket:
    family = socket.AF_INET if len(source) == IPv4_BYTES else socket.AF_INET6
    opened = socket.socket(
        family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, IpProtocol.VRRP
    )
    try:
        index = socket.if_nametoindex(interface)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        if family == socket.AF_INET:
            _prepare_ipv4(opened)
            if join:
                _join_ipv4(opened, source, index)
        else:
            _prepare_ipv6(opened)
            if join:
                _join_ipv6(opened, index)
    except OSError:
        opened.close()
        raise
    return opened


def _open_frames() -> socket.socket:
    """A socket for whole frames; protocol 0, so that it is never handed one."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.setblocking(False)
    return opened


def _prepare_ipv4(opened: socket.socket) -> None:
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOP_LIMIT)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _NETWORK_CONTROL)


def _join_ipv4(opened: socket.socket, source: bytes, index: int) -> None:
    # struct ip_mreqn: group, local address, interface index. As IP_MULTICAST_IF its local
    # address becomes the source of what is sent.
    opened.setsockopt(
        socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("@4s4si", bytes(4), source, index)
    )
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOP_LIMIT)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    opened.setsockopt(
        socket.IPPROTO_IP,
        socket.IP_ADD_MEMBERSHIP,
        struct.pack("@4s4si", GROUP_IPv4, bytes(4), index),
    )


def _prepare_ipv6(opened: socket.socket) -> None:
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOP_LIMIT)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _NETWORK_CONTROL)


def _join_ipv6(opened: socket.socket, index: int) -> None:
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOP_LIMIT)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    opened.setsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("@16si", GROUP_IPv6, index)
    )


def _unwrap_ipv4(packet: bytes) -> ReceivedMessage | None:
    """Take the IP header off, which a raw IPv4 socket delivers with the message."""
    if len(packet) < 20:
        return None
    header_bytes = (packet[0] & 0x0F) * 4
    if not 20 <= header_bytes <= len(packet):
        return None
    return ReceivedMessage(packet[header_bytes:], packet[12:16], packet[16:20], packet[8])


def _describe_ipv6(
    message: bytes, ancillary: Sequence[tuple[int, int, bytes]], sender: str
) -> ReceivedMessage | None:
    """Put a message together with what the kernel says of its header."""
    hop_limit: int | None = None
    destination: bytes | None = None
    for level, kind, value in ancillary:
        if level != socket.IPPROTO_IPV6:
            continue
        if kind == socket.IPV6_HOPLIMIT:
            (hop_limit,) = struct.unpack_from("@i", value)
        elif kind == socket.IPV6_PKTINFO:
            destination = value[:IPv6_BYTES]
    if hop_limit is None or destination is None:
        return None
    return ReceivedMessage(message, parse_address(sender.partition("%")[0]), destination, hop_limit)
