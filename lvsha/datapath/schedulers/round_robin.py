"""Round robin: rr takes the next usable server.

The mark of the last one survives changes of the list, as in the kernel: when its server is
removed, it falls back to the one before, so the turn goes on where it would have gone on.
"""

from collections.abc import Sequence
from itertools import chain

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.services import RealServer


class RoundRobin:
    """The next usable server after the last one, in list order."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers
        self._last: RealServer | None = None
        self._position = -1  # of the last one; -1 stands before the list

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The next usable server."""
        servers, position = self._servers, self._position
        for at in chain(range(position + 1, len(servers)), range(position + 1)):
            server = servers[at]
            if server.weight > 0 and not server.overloaded:
                self._last, self._position = server, at
                return server
        return None

    def updated(self, removed: RealServer | None = None) -> None:
        """Find the last one again, or fall back to its predecessor if it was removed."""
        if self._last is None:
            return
        if removed is self._last:
            self._position -= 1
            self._last = self._servers[self._position] if self._position >= 0 else None
        else:
            self._position = self._servers.index(self._last)
