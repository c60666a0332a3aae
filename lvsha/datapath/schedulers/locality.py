"""Locality: lblc and lblcr keep the clients of one destination address on few servers.

Both are for farms of caches, where a service by firewall mark stands for many addresses. lblc
remembers one server for each destination address and keeps to it while it is not crowded.
lblcr remembers a set of servers that share the destination, takes in another one when the
least loaded of them is crowded, and lets the most loaded go when the set has not changed for
a long time. A new server is chosen as wlc does.

Times are seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.destination_table import DestinationTable
from lvsha.datapath.schedulers.hashing import destination_of
from lvsha.datapath.schedulers.least_connection import least_for_weight, overhead
from lvsha.datapath.services import RealServer

MEMBERS_MAX: Final = 1024
"""A set that has grown so large forgets its members that are no longer listed. Before, they
stay, because a server that returns with its connections returns to its place as well."""


@dataclass(slots=True)
class _Remembered:
    """One server; ``used`` is the time of the last connection."""

    server: RealServer
    used: float


class LocalityBasedLeastConnection:
    """The server remembered for the destination, or the one that wlc would choose.

    A remembered server that is above its upper threshold still gets connections, as in the
    kernel; one that has weight 0, is no longer listed or is crowded does not.
    """

    def __init__(self, servers: Sequence[RealServer], options: SchedulerOptions) -> None:
        self._servers = servers
        self._options = options
        self._table: DestinationTable[_Remembered] = DestinationTable()

    def schedule(self, key: bytes, now: float) -> RealServer | None:
        """The destination's server."""
        table = self._table
        table.collect(now, self._options.lblc_expiration)
        destination = destination_of(key)
        entry = table.find(destination, now)
        if entry is not None:
            server = entry.server
            if server.available and server.weight > 0 and not _crowded(server, self._servers):
                return server
        chosen = least_for_weight(self._servers)
        if chosen is not None:
            if entry is not None:
                entry.server = chosen
            else:
                table.store(destination, _Remembered(chosen, now))
        return chosen

    def updated(self, removed: RealServer | None = None) -> None:
        """An entry is judged when it is used, so nothing is forgotten here."""


@dataclass(slots=True)
class _Members:
    """A set of servers, newest first, and when it was last changed and used."""

    servers: list[RealServer]
    changed: float
    used: float

    def least(self) -> RealServer | None:
        """The usable member that is least loaded for its weight."""
        return least_for_weight(server for server in self.servers if server.available)

    def insert(self, server: RealServer, now: float) -> None:
        """Take a server in at the head, if it is not a member."""
        if server in self.servers:
            return
        if len(self.servers) >= MEMBERS_MAX:
            self.servers = [member for member in self.servers if member.available]
        self.servers.insert(0, server)
        self.changed = now

    def drop_most(self, now: float) -> None:
        """Let the member go that is most loaded for its weight; weight 0 does not count."""
        most: RealServer | None = None
        for server in self.servers:
            if server.weight <= 0:
                continue
            if most is None or overhead(most) * server.weight < overhead(server) * most.weight:
                most = server
        if most is not None:
            self.servers.remove(most)
            self.changed = now


class ReplicatedLocalityBasedLeastConnection:
    """The least loaded of the servers remembered for the destination."""

    def __init__(self, servers: Sequence[RealServer], options: SchedulerOptions) -> None:
        self._servers = servers
        self._options = options
        self._table: DestinationTable[_Members] = DestinationTable()

    def schedule(self, key: bytes, now: float) -> RealServer | None:
        """The destination's least loaded server, or another one if that is crowded."""
        table, expiration = self._table, self._options.lblcr_expiration
        table.collect(now, expiration)
        destination = destination_of(key)
        members = table.find(destination, now)
        if members is not None:
            least = members.least()
            if len(members.servers) > 1 and now > members.changed + expiration:
                members.drop_most(now)  # even the one just found, which is used once more
            if least is not None and not _crowded(least, self._servers):
                return least
        chosen = least_for_weight(self._servers)
        if chosen is not None:
            if members is not None:
                members.insert(chosen, now)
            else:
                table.store(destination, _Members([chosen], now, now))
        return chosen

    def updated(self, removed: RealServer | None = None) -> None:
        """Members are judged when they are used, so nothing is forgotten here."""


def _crowded(server: RealServer, servers: Sequence[RealServer]) -> bool:
    """Whether it has more active connections than its weight and another is half empty."""
    return server.active > server.weight and any(
        other.active * 2 < other.weight for other in servers
    )
