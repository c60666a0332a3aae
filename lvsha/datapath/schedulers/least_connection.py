"""Least connection: lc takes the least loaded server, wlc the least loaded for its weight.

The load is the kernel's overhead: an active connection counts 256 times what an entry in
the table does, so that it is active connections that decide and others that break ties.
"""

from collections.abc import Iterable, Sequence

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.services import RealServer


def overhead(server: RealServer) -> int:
    """How loaded a server is; active connections are entries in the table, too."""
    return 257 * server.active + server.inactive


def least_for_weight(servers: Iterable[RealServer]) -> RealServer | None:
    """The usable server with the least load in proportion to its weight.

    Compared without division; the first of equals.
    """
    least: RealServer | None = None
    least_load = least_weight = 0
    for server in servers:
        weight = server.weight
        if weight <= 0 or server.overloaded:
            continue
        load = 257 * server.active + server.inactive
        if least is None or least_load * weight > load * least_weight:
            least, least_load, least_weight = server, load, weight
    return least


class LeastConnection:
    """The usable server with the least load; weights other than 0 are without effect."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The least loaded server."""
        least: RealServer | None = None
        least_load = 0
        for server in self._servers:
            if server.weight <= 0 or server.overloaded:
                continue
            load = 257 * server.active + server.inactive
            if least is None or load < least_load:
                least, least_load = server, load
        return least

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


class WeightedLeastConnection:
    """The usable server with the least load in proportion to its weight."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The least loaded server for its weight."""
        return least_for_weight(self._servers)

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""
