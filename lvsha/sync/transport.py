"""The seam between a courier and the network, and the multicast socket behind it.

A `Transport` sends and receives whole datagrams and never blocks; waiting is separate. It
does not know what a datagram holds. `MulticastTransport` is one UDP socket, bound to one
interface and the group: what it sends leaves by that interface and stays on its link, and
only what comes to the group on that interface is received, without the sender's own.

A transport outlives its link. `refresh`, called now and then, opens the socket again if
the interface was replaced by another of its name, and follows a change of its address.
"""

import contextlib
import socket
import struct
from collections.abc import Collection
from typing import Final, Protocol

import trio

from lvsha.errors import HostError
from lvsha.interfaces import primary_ipv4
from lvsha.model import IPv4_BYTES, format_address
from lvsha.sync.messages import DATAGRAM_BYTES_MAX

# Two seconds of a snapshot at its usual pace; a busy loop must not lose what comes.
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
SEND_BUFFER_BYTES: Final = 1024 * 1024

# linux/in.h and asm-generic/socket.h; Python does not have these names.
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DONT: Final = 0
_IP_MULTICAST_ALL: Final = 49
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33


class Transport(Protocol):
    """Datagrams to and from a group."""

    def send(self, datagram: bytes) -> bool:
        """Send now; False if that would block.

        Raises:
            OSError: the datagram could not be sent and is lost.
        """
        ...

    def receive(self) -> bytes | None:
        """The next datagram that has come, if one has.

        Raises:
            OSError: the network reports trouble.
        """
        ...

    async def wait_readable(self) -> None:
        """Return when `receive` may have something; always lets other tasks run."""
        ...

    async def wait_writable(self) -> None:
        """Return when `send` may succeed; always lets other tasks run."""
        ...

    def refresh(self) -> None:
        """Follow changes of the interface.

        Raises:
            OSError: the interface can not be used now.
        """
        ...


class MulticastTransport:
    """A group on one interface."""

    def __init__(
        self,
        interface: str,
        group: bytes,
        port: int,
        *,
        ttl: int = 1,
        excluding: Collection[bytes] = (),
        loop: bool = False,
        listens: bool = True,
        send_buffer_bytes: int = SEND_BUFFER_BYTES,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
    ) -> None:
        """Open the socket and join the group.

        Args:
            interface: the name of the interface.
            group: the multicast address, 4 or 16 bytes.
            port: the UDP port of the group.
            ttl: the TTL or hop limit of what is sent.
            excluding: virtual addresses, which are never a source.
            loop: whether the machine hears itself; for two nodes on one machine.
            listens: join the group; without, nothing is received, and another socket of this
                machine may listen there.
            send_buffer_bytes: what the socket holds of what is not sent yet; 0 leaves it as
                the system has it.
            receive_buffer_bytes: what it holds of what was not read yet; 0 as above.

        Raises:
            HostError: there is no such interface, or it cannot be used.
        """
        self._interface = interface
        self._group = group
        self._port = port
        self._ttl = ttl
        self._excluding = excluding
        self._loop = loop
        self._listens = listens
        self._send_buffer_bytes = send_buffer_bytes
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None
        self._opened = trio.Event()
        self._index = 0
        self._address = b""
        self._destination: tuple[str, int] | tuple[str, int, int, int] = ("", 0)
        try:
            self._open()
        except OSError as error:
            raise HostError(
                f"cannot join the sync group {format_address(group)} port {port} "
                f"on interface {interface}: {error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Leave the group."""
        if self._socket is not None:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None
            self._opened = trio.Event()

    def send(self, datagram: bytes) -> bool:
        """See `Transport.send`."""
        if self._socket is None:
            raise OSError(f"interface {self._interface} is gone")
        try:
            self._socket.sendto(datagram, self._destination)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """See `Transport.receive`."""
        if self._socket is None:
            return None
        try:
            return self._socket.recv(DATAGRAM_BYTES_MAX + 1)
        except BlockingIOError:
            return None

    async def wait_readable(self) -> None:
        """See `Transport.wait_readable`."""
        while True:
            await self._opened.wait()
            if self._socket is not None:
                # Closed for `refresh`: wait for the socket that replaces it.
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self._socket)
                    return

    async def wait_writable(self) -> None:
        """See `Transport.wait_writable`."""
        while True:
            await self._opened.wait()
            if self._socket is not None:
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._socket)
                    return

    def refresh(self) -> None:
        """See `Transport.refresh`."""
        try:
            index = socket.if_nametoindex(self._interface)
        except OSError:
            self.close()
            raise
        if self._socket is None or index != self._index:
            self.close()
            self._open()
        elif len(self._group) == IPv4_BYTES and self._source() != self._address:
            self._choose_source(self._socket)

    def _open(self) -> None:
        self._index = socket.if_nametoindex(self._interface)
        wide = len(self._group) != IPv4_BYTES
        text = format_address(self._group)
        self._destination = (text, self._port, 0, self._index) if wide else (text, self._port)
        family = socket.AF_INET6 if wide else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            name = self._interface.encode() + b"\0"
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            _enlarge(opened, _SO_RCVBUFFORCE, socket.SO_RCVBUF, self._receive_buffer_bytes)
            _enlarge(opened, _SO_SNDBUFFORCE, socket.SO_SNDBUF, self._send_buffer_bytes)
            if wide:
                self._prepare_ipv6(opened)
            else:
                self._prepare_ipv4(opened)
            # Bound to the group, not to any address: no unicast datagram is received, and
            # the source of what is sent is chosen by the interface.
            if self._listens:
                opened.bind(self._destination)
        except OSError:
            opened.close()
            raise
        self._socket = opened
        self._opened.set()

    def _prepare_ipv4(self, opened: socket.socket) -> None:
        level = socket.IPPROTO_IP
        opened.setsockopt(level, socket.IP_MULTICAST_TTL, self._ttl)
        opened.setsockopt(level, socket.IP_MULTICAST_LOOP, self._loop)
        opened.setsockopt(level, _IP_MULTICAST_ALL, 0)
        # A datagram may be longer than the MTU; it is cut, never refused.
        opened.setsockopt(level, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        self._choose_source(opened)
        if self._listens:
            membership = struct.pack("=4s4si", self._group, bytes(4), self._index)
            opened.setsockopt(level, socket.IP_ADD_MEMBERSHIP, membership)

    def _prepare_ipv6(self, opened: socket.socket) -> None:
        level = socket.IPPROTO_IPV6
        opened.setsockopt(level, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(level, socket.IPV6_MULTICAST_HOPS, self._ttl)
        opened.setsockopt(level, socket.IPV6_MULTICAST_LOOP, self._loop)
        opened.setsockopt(level, socket.IPV6_MULTICAST_IF, self._index)
        if self._listens:
            membership = struct.pack("=16si", self._group, self._index)
            opened.setsockopt(level, socket.IPV6_JOIN_GROUP, membership)

    def _choose_source(self, opened: socket.socket) -> None:
        """Send by this interface, from its own address rather than a virtual one."""
        self._address = self._source()
        # struct ip_mreqn: group, address, interface.
        choice = struct.pack("=4s4si", bytes(4), self._address, self._index)
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)

    def _source(self) -> bytes:
        try:
            return primary_ipv4(self._interface, self._excluding)
        except HostError:
            # It has none yet; until it has, the kernel chooses.
            return bytes(4)


def _enlarge(opened: socket.socket, force: int, ask: int, length_bytes: int) -> None:
    """Set a buffer's length past the system's limit, or up to it without the privilege."""
    if not length_bytes:
        return
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, length_bytes)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, ask, length_bytes)
