"""What other directors say of connections, and what they ask of this one's.

Records of a peer enter the registry here, and a snapshot is read and swept. Nothing here
knows of datagrams; `lvsha.connection_store` carries values between this and the sync.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from lvsha.datapath.ftp import FTP_PORT
from lvsha.datapath.reasons import Reason
from lvsha.datapath.registry import Registry
from lvsha.datapath.services import Binding, VirtualService
from lvsha.datapath.telling import REFRESH_PART
from lvsha.model import ConnectionFlag, ConnectionRecord, virtual_of

_INACTIVE: Final = int(ConnectionFlag.INACTIVE)
_SYNC: Final = int(ConnectionFlag.SYNC)
_NO_CLIENT_PORT: Final = int(ConnectionFlag.NO_CLIENT_PORT)


class Replication:
    """A registry as other directors see it.

    Args:
        registry: the connections.
        find_service: the service that a key belongs to.
        opens: whether this node opens connections for a virtual address.
    """

    def __init__(
        self,
        registry: Registry,
        find_service: Callable[[bytes], VirtualService | None],
        opens: Callable[[bytes], bool],
    ) -> None:
        self._registry = registry
        self._find_service = find_service
        self._opens = opens

    def records(self, addresses: Collection[bytes]) -> Iterator[ConnectionRecord | None]:
        """All connections of these virtual addresses, read while the table goes on changing.

        None marks the end of a slice of the table, in which there may have been no
        connection of theirs: so much has been looked at again.
        """
        for part in self._registry.synced(addresses):
            for connection in part:
                if connection.second >= 0:  # it may have ended since the slice was made
                    yield connection.record()
            yield None

    def apply(self, record: ConnectionRecord, now: float) -> Reason | None:
        """Take over what another director told; returns why it cannot be.

        A record for a connection that has moved to another server replaces it. Only where
        this node opens connections itself, an inactive one does not: there it is the late
        end of one that was replaced (as in the kernel). A copy follows its source.
        """
        registry = self._registry
        key = record.key
        machine = registry.machines.get(key[1])
        if machine is None or not 0 <= record.state < len(machine.timeouts):
            return Reason.MALFORMED
        connection = registry.table.find(key)
        if connection is not None and (
            connection.server.address != record.server
            or connection.binding.port != record.server_port
        ):
            if record.flags & _INACTIVE and self._opens(virtual_of(key)[0]):
                return None
            registry.end(connection)
            registry.untold.pop(key, None)
            connection = None
        if connection is None:
            binding = self._binding(key, record)
            if binding is None:
                return Reason.SERVER_GONE
            if registry.table.full:
                return Reason.TABLE_FULL
            # A client may well use port 0; the flag says that its port is not known.
            unknown = 0 if any(key[-4:-2]) else record.flags & _NO_CLIENT_PORT
            connection = registry.open(key, binding, now, flags=_SYNC | unknown)
        registry.become(connection, record.state)
        connection.timeout = record.timeout
        connection.expires = now + record.timeout * (1 + REFRESH_PART)
        connection.generation = registry.generation
        registry.table.hasten(connection)
        active = not record.flags & _INACTIVE
        if connection.active != active:
            registry.count_as(connection, active=active)
        if connection.tally is not None:
            registry.teller.copied(connection, now)
        return None

    def _binding(self, key: bytes, record: ConnectionRecord) -> Binding | None:
        service = self._find_service(key)
        virtual, virtual_port = virtual_of(key)
        if service is None:
            return None
        server = service.server(record.server, record.server_port)
        if server is None:
            server = service.server(record.server, 0)
        if server is None and service.port == FTP_PORT != virtual_port:
            # A data connection has another port than its service, on both ends.
            server = next((s for s in service.servers if s.address == record.server), None)
        if server is None:
            return None
        return server.bind(virtual, virtual_port, record.server_port)

    def forget(self, key: bytes) -> None:
        """Remove a connection that its source has ended."""
        connection = self._registry.table.find(key)
        if connection is not None:
            self._registry.end(connection)
            self._registry.untold.pop(key, None)

    def begin_snapshot(self) -> int:
        """A new generation: what `apply` names from now on belongs to it."""
        self._registry.generation += 1
        return self._registry.generation

    def sweep(self, generation: int, addresses: Collection[bytes]) -> Iterator[int]:
        """Forget connections of these addresses that a snapshot has not named.

        Those that were opened here since it began stay. Pauses after each slice of the
        table, and says how many of it were forgotten.
        """
        for part in self._registry.synced(addresses):
            swept = [c for c in part if c.generation < generation]
            for connection in swept:
                self.forget(connection.key)
            yield len(swept)
