"""Look names up where the machine does: hosts, name servers, the services database.

Asking may take as long as a name server likes, so only the command does it, never a
director. What has no name, or cannot be asked, is None.
"""

import socket

from lvsha.model import IPv4_BYTES, Protocol, format_address


class SystemNames:
    """The names that this machine knows."""

    def address(self, host: str, family: int, /) -> bytes | None:
        """The first address of a host."""
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        try:
            found = socket.getaddrinfo(host, None, kind, socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return None
        for _, _, _, _, end in found:
            return socket.inet_pton(kind, str(end[0]).partition("%")[0])
        return None

    def port(self, name: str, protocol: int, /) -> int | None:
        """The port of a service."""
        try:
            return socket.getservbyname(name, Protocol(protocol).name.lower())
        except (OSError, ValueError):
            return None

    def host(self, address: bytes, /) -> str | None:
        """The name of a host."""
        text = format_address(address)
        where = (text, 0) if len(address) == IPv4_BYTES else (text, 0, 0, 0)
        try:
            return socket.getnameinfo(where, socket.NI_NAMEREQD)[0]
        except (OSError, UnicodeError):
            return None

    def service(self, port: int, protocol: int, /) -> str | None:
        """The name of a port."""
        try:
            return socket.getservbyport(port, Protocol(protocol).name.lower())
        except (OSError, ValueError, OverflowError):
            return None
