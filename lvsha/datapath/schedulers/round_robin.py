"""Round robin: rr takes the next usable server, wrr takes each as often as its weight says.

The weighted form is the kernel's: a current weight goes down from the greatest weight in
steps of the weights' greatest common divisor, and each pass takes the servers whose weight
reaches it. It survives changes of the list, as in the kernel, so the first round after a
change may begin in the middle.
"""

import math
from collections.abc import Collection, Iterator, Sequence

from lvsha.datapath.services import RealServer


class RoundRobin:
    """The next usable server after the last one, in list order."""

    def __init__(self, servers: Sequence[RealServer], _flags: Collection[str]) -> None:
        self._servers = servers
        self._last: RealServer | None = None
        self._order: list[RealServer] = list(servers)

    def schedule(self, _key: bytes) -> RealServer | None:
        """The next usable server."""
        servers = self._servers
        start = 0 if self._last is None else servers.index(self._last) + 1
        for position in range(len(servers)):
            server = servers[(start + position) % len(servers)]
            if server.usable:
                self._last = server
                return server
        return None

    def updated(self, removed: RealServer | None = None) -> None:
        """A removed server that was the last one hands that mark to its predecessor."""
        if removed is not None and removed is self._last:
            position = self._order.index(removed)
            self._last = self._order[position - 1] if position > 0 else None
        self._order = list(self._servers)


class WeightedRoundRobin:
    """As many connections in a round as the weight says, spread over the round."""

    def __init__(self, servers: Sequence[RealServer], _flags: Collection[str]) -> None:
        self._servers = servers
        self._last: RealServer | None = None
        self._step = self._max = self._current = 0
        self._measure()
        self._current = self._max

    def updated(self, _removed: RealServer | None = None) -> None:
        """Start at the head of the list again, with the current weight kept in range."""
        self._last = None
        self._measure()
        if self._current > self._max or self._current == 0:
            self._current = self._max
        elif self._step > 1:
            self._current = self._current // self._step * self._step + 1

    def _measure(self) -> None:
        weights = [server.weight for server in self._servers]
        self._step = math.gcd(*(weight for weight in weights if weight > 0)) or 1
        self._max = max(weights, default=0) - (self._step - 1)

    def _after(self, last: RealServer | None) -> Iterator[RealServer]:
        start = 0 if last is None else self._servers.index(last) + 1
        return iter(self._servers[start:])

    def schedule(self, _key: bytes) -> RealServer | None:
        """The next server whose weight reaches the current weight."""
        if self._max <= 0:
            return None
        last, stop = self._last, None
        last_pass = restarted = False
        following = self._after(last)
        while True:
            for server in following:
                if not server.overloaded and server.weight >= self._current:
                    self._last = server
                    return server
                if server is stop:
                    self._last = server
                    return None
            self._current -= self._step
            following = iter(self._servers)
            if self._current <= 0:
                self._current = self._max
                if last_pass or last is None:
                    self._last = None
                    return None
                restarted = True
            last_pass = self._current <= self._step
            if last_pass and restarted and last is not None:
                stop = last
