"""Where a probe goes and how it leaves, and the sockets for it.

What always holds: a socket that could not be made as asked is closed again.
"""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Target:
    """The end that is probed.

    Attributes:
        address: of the host; ``port`` is 0 where the protocol has none.
        source: the own address that the probe comes from; empty for any.
        interface: that it leaves by; empty for any.
        mark: the firewall mark of its packets, for routing rules; 0 for none.
    """

    address: str
    port: int = 0
    source: str = ""
    interface: str = ""
    mark: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        version = ipaddress.ip_address(self.address).version
        return socket.AF_INET if version == 4 else socket.AF_INET6

    @property
    def end(self) -> tuple[str, int]:
        """The address and port."""
        return self.address, self.port


@contextmanager
def a_socket(
    target: Target, kind: socket.SocketKind, protocol: int = 0
) -> Iterator[trio.socket.SocketType]:
    """A socket towards a target, closed at the end; not yet connected.

    Raises:
        OSError: the kernel refuses.
    """
    opened = trio.socket.socket(target.family, kind, protocol)
    try:
        if target.interface:
            opened.setsockopt(
                socket.SOL_SOCKET, socket.SO_BINDTODEVICE, target.interface.encode() + b"\0"
            )
        if target.mark:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, target.mark)
        yield opened
    finally:
        opened.close()


async def connect(opened: trio.socket.SocketType, target: Target) -> None:
    """Bind a socket as asked, and connect it.

    Raises:
        OSError: the kernel or the server refuses.
    """
    if target.source:
        await opened.bind((target.source, 0))
    await opened.connect(target.end)
