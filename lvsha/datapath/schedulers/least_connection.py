"""Least connection: lc takes the least loaded server, wlc the least loaded for its weight.

The load is the kernel's overhead: an active connection counts 256 times what an entry in
the table does, so that it is active connections that decide and others that break ties.
"""

from collections.abc import Collection, Sequence

from lvsha.datapath.services import RealServer


class LeastConnection:
    """The usable server with the least load; weights other than 0 are without effect."""

    def __init__(self, servers: Sequence[RealServer], _flags: Collection[str]) -> None:
        self._servers = servers

    def schedule(self, _key: bytes) -> RealServer | None:
        """The least loaded server."""
        usable = (server for server in self._servers if server.usable)
        return min(usable, key=_overhead, default=None)

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


class WeightedLeastConnection:
    """The usable server with the least load in proportion to its weight."""

    def __init__(self, servers: Sequence[RealServer], _flags: Collection[str]) -> None:
        self._servers = servers

    def schedule(self, _key: bytes) -> RealServer | None:
        """The least loaded server for its weight, compared without division."""
        least: RealServer | None = None
        least_overhead = 0
        for server in self._servers:
            if not server.usable:
                continue
            overhead = _overhead(server)
            if least is None or least_overhead * server.weight > overhead * least.weight:
                least, least_overhead = server, overhead
        return least

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


def _overhead(server: RealServer) -> int:
    return 257 * server.active + server.inactive
