"""Shortest expected delay: sed and nq look at active connections in proportion to weight.

The connection to be placed counts as if it were there already, so an idle server of weight
4 comes before an idle one of weight 1. nq differs in one thing: no connection waits behind
another while any server is idle. Inactive connections count for nothing.
"""

from collections.abc import Sequence

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.services import RealServer


class ShortestExpectedDelay:
    """The usable server with the least (active + 1) / weight; the first of equals."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The server that would serve the connection soonest."""
        return _soonest(self._servers, idle_first=False)

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


class NeverQueue:
    """The first usable server without active connections; without one, as sed."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """An idle server, whatever its weight, or the one that would serve soonest."""
        return _soonest(self._servers, idle_first=True)

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


def _soonest(servers: Sequence[RealServer], *, idle_first: bool) -> RealServer | None:
    soonest: RealServer | None = None
    shortest = divisor = 0
    for server in servers:
        weight = server.weight
        if weight <= 0 or server.overloaded:
            continue
        active = server.active
        if idle_first and active == 0:
            return server
        if soonest is None or shortest * weight > (active + 1) * divisor:
            soonest, shortest, divisor = server, active + 1, weight
    return soonest
