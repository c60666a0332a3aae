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

A transport outlives its interface and its own address. A socket stays bound to an interface
that is gone, and deaf, though another has its name: `refresh`, called when the network has
changed, opens it anew, and says if nobody can be heard or told.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Protocol, Self

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha import interfaces
from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.announcements import open_sender
from lvsha.failover.reception import ReceivedMessage
from lvsha.log import LimitedLog
from lvsha.model import IPv4_BYTES, IPv6_BYTES, format_address, parse_address
from lvsha.model import Protocol as IpProtocol
from lvsha.wire import ipv4, ipv6
from lvsha.wire.vrrp import HOP_LIMIT, GROUP_IPv4, GROUP_IPv6

Speakers = tuple[bytes, tuple[bytes, ...]]
"""The own address to speak from and those of the peers; without any, to the group."""

# Messages taken per turn: far more than the routers of a link send at once, and few enough
# that a flood does not keep the rest of the program from running.
BATCH_MAX: Final = 64
# Of what waits to be read. The kernel doubles it, and counts 576 bytes or more for a message, so
# that it is full with 370 at most, whatever the system's default is.
RECEIVE_BUFFER_BYTES: Final = 106_496
_DATAGRAM_MAX: Final = 2048
_ANCILLARY_MAX: Final = 256
# How long a socket in trouble is left alone, so that an error cannot become a busy loop.
_ERROR_PAUSE: Final = 0.1
# CS6, internetwork control: what a queue should drop last.
_NETWORK_CONTROL: Final = 0xC0
# RFC 863.
_DISCARD_PORT: Final = 9
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

    def refresh(self) -> bool:
        """Follow changes of the interface and of its addresses.

        `source` and `destinations` may be others afterwards.

        Returns:
            Whether the interface was replaced by another one of its name.

        Raises:
            HostError: nobody can be heard or told there now; ask again.
        """
        ...


class RawTransport:
    """The real thing: a raw socket on one interface. Use it as a context manager.

    Attributes:
        counters: what the network refused.
    """

    def __init__(
        self,
        interface: str,
        find_speakers: Callable[[bytes], Speakers],
        *,
        mac: bytes | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        """Open the socket, and join the group if there are no peers.

        Args:
            interface: its name.
            find_speakers: finds the addresses to send from and to, of one family; it is given
                the own one so far, which is empty at first (see `own_address` and
                `split_speakers`), and raises HostError without one.
            mac: the virtual MAC address that messages to the group come from (RFC 9568,
                section 7.2), so that switches know where it is; None for the interface's.
            log: where trouble is told, at a limited rate.

        Raises:
            HostError: the interface is missing, or the privilege for raw sockets.
        """
        self.counters = Counters()
        self._interface = interface
        self._find_speakers = find_speakers
        self._mac = mac
        self._log = LimitedLog(log or structlog.get_logger())
        self._paused = False
        self._index = 0
        self._socket: socket.socket | None = None
        self._frames: socket.socket | None = None
        self._opened = trio.Event()
        self._uncalled: Sequence[bytes] = ()
        self._source, self._peers = find_speakers(b"")
        self._open()

    @property
    def source(self) -> bytes:
        """The address that messages are sent from."""
        return self._source

    @property
    def destinations(self) -> Sequence[bytes]:
        """The group of the family, or the peers."""
        group = GROUP_IPv4 if len(self._source) == IPv4_BYTES else GROUP_IPv6
        return self._peers or (group,)

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
        """Close the sockets, and with one leave the group."""
        self._leave()
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def refresh(self) -> bool:
        """See `AdvertisementTransport.refresh`."""
        try:
            index = _index(self._interface)
            replaced = self._socket is not None and index != self._index
            speakers = self._find_speakers(self._source)
            _check_usable(self._interface, speakers[0])
            if self._socket is None or replaced or speakers != (self._source, self._peers):
                self._leave()
                self._source, self._peers = speakers
                self._open()
                self._uncalled = self._peers
        except HostError:
            self._leave()
            raise
        self._call_peers()
        return replaced

    async def wait_readable(self) -> None:
        """Return when there may be a message."""
        if self._paused:
            self._paused = False
            await trio.sleep(_ERROR_PAUSE)
        while True:
            await self._opened.wait()
            if self._socket is not None:
                # Closed by `refresh`: wait for the socket that replaces it.
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self._socket)
                    return

    def receive(self) -> Sequence[ReceivedMessage]:
        """Take what has arrived, without waiting."""
        messages: list[ReceivedMessage] = []
        opened = self._socket
        if opened is None:
            return messages
        for _ in range(BATCH_MAX):
            try:
                data, ancillary, _, sender = opened.recvmsg(_DATAGRAM_MAX, _ANCILLARY_MAX)
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
        if self._socket is None:
            self._trouble("send_failed", OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN)))
            return
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
                chosen = struct.pack("@16sI", self._source, self._index)
                ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, chosen)]
                self._socket.sendmsg([message], ancillary, 0, (address, 0, 0, self._index))
        except OSError as error:
            self._trouble("send_failed", error)

    def _open(self) -> None:
        try:
            with ExitStack() as opened:
                index = socket.if_nametoindex(self._interface)
                made = _open_messages(self._interface, index, self._source, join=not self._peers)
                opened.enter_context(made)
                if self._frames is None and self._mac is not None and not self._peers:
                    self._frames = open_sender()
                opened.pop_all()
        except PermissionError as error:
            raise HostError("VRRP needs raw sockets (the capability CAP_NET_RAW)") from error
        except OSError as error:
            raise HostError(
                f"VRRP cannot use interface {self._interface}: {error.strerror or error}"
            ) from error
        self._index, self._socket = index, made
        self._opened.set()

    def _leave(self) -> None:
        if self._socket is not None:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None
            self._opened = trio.Event()

    def _call_peers(self) -> None:
        """Have the kernel ask where the peers are, so that they learn where this node is now.

        Otherwise they go on sending to the MAC address of the interface that is gone.
        """
        if not self._uncalled:
            return
        family = socket.AF_INET if len(self._source) == IPv4_BYTES else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as calling:
                name = self._interface.encode()
                calling.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
                calling.bind((format_address(self._source), 0))
                for peer in self._uncalled:
                    calling.sendto(b"", (format_address(peer), _DISCARD_PORT))
        except OSError:
            # The link may not be up yet: `refresh` will be asked again.
            self.counters.add("peers_not_called")
        else:
            self._uncalled = ()

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


def own_address(
    interface: str, family: int, virtual: Collection[bytes], present: bytes = b""
) -> bytes:
    """The address that VRRP speaks from on an interface (RFC 9568, sections 5.1.1.1, 5.1.2.1).

    Args:
        interface: its name.
        family: 4 or 6.
        virtual: addresses that do not count, because they may be held at the moment.
        present: the one so far, which is kept as long as it is there.

    Raises:
        HostError: there is none.
    """
    if present in interfaces.addresses(interface, family):
        return present
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


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise HostError(f"interface {interface} is missing") from error


def _check_usable(interface: str, source: bytes) -> None:
    """Make sure that the kernel lets messages be sent from an address.

    Raises:
        HostError: it does not.
    """
    if len(source) == IPv6_BYTES and interfaces.is_tentative(interface, source):
        raise HostError(
            f"address {format_address(source)} of interface {interface} is being checked for "
            "duplicates, or is one"
        )


def _open_messages(interface: str, index: int, source: bytes, *, join: bool) -> socket.socket:
    family = socket.AF_INET if len(source) == IPv4_BYTES else socket.AF_INET6
    opened = socket.socket(
        family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, IpProtocol.VRRP
    )
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
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
