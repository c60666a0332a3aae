"""Greatest weight first: fo keeps to one server, ovf fills one server before the next.

Weights rank the servers; fo turns to the next rank only when a server is out of use, ovf
when it has more active connections than its weight says.
"""

from collections.abc import Iterable, Sequence

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.services import RealServer


class WeightedFailover:
    """The usable server with the greatest weight; the first of equals."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The highest ranking server."""
        return _greatest(server for server in self._servers if server.usable)

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


class WeightedOverflow:
    """The usable server with the greatest weight that is not full; the first of equals.

    A server is full with more active connections than its weight; with as many it still
    takes one more, as in the kernel.
    """

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The highest ranking server with room."""
        return _greatest(
            server for server in self._servers if server.usable and server.active <= server.weight
        )

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


def _greatest(servers: Iterable[RealServer]) -> RealServer | None:
    return max(servers, key=lambda server: server.weight, default=None)
