"""Real servers that are listed no more, and serve their connections to the end.

No scheduler knows them, and nobody lists them; their connections go on as if nothing had
happened, and they are gone with the last of them (`lvsha.datapath.service_table`).
"""

from collections.abc import Collection

from lvsha.datapath.services import RealServer, ServiceIdentity, VirtualService


class Leaving:
    """All of them."""

    def __init__(self) -> None:
        self._servers: dict[tuple[bytes, int], list[RealServer]] = {}

    def __bool__(self) -> bool:
        return bool(self._servers)

    def add(self, server: RealServer) -> None:
        """Take note of one that is in no list any more."""
        server.service.leaving.append(server)
        self._servers.setdefault((server.address, server.port), []).append(server)

    def remove(self, server: RealServer) -> None:
        """Forget one that is gone now, or is listed again."""
        server.service.leaving.remove(server)
        end = (server.address, server.port)
        self._servers[end].remove(server)
        if not self._servers[end]:
            del self._servers[end]

    def find(
        self, identities: Collection[ServiceIdentity], address: bytes, port: int
    ) -> RealServer | None:
        """The one at an address and port, of one of some services; they may be gone."""
        for server in self._servers.get((address, port), ()):
            if server.service.identity in identities:
                return server
        return None

    def by_service(self) -> dict[VirtualService, list[RealServer]]:
        """All of them, by service; that may be one that is gone itself."""
        found: dict[VirtualService, list[RealServer]] = {}
        for servers in self._servers.values():
            for server in servers:
                found.setdefault(server.service, []).append(server)
        return found

    def idle(self) -> list[RealServer]:
        """Those that have no connection any more."""
        return [
            server
            for servers in self._servers.values()
            for server in servers
            if not server.active and not server.inactive
        ]
