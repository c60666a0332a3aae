"""Weighted round robin: wrr takes each server as often as its weight says.

The order is the kernel's. A level goes down from the greatest weight in steps of the weights'
greatest common divisor; each pass takes, in list order, the servers whose weight reaches it.
The level survives changes of the list, as in the kernel, so the first round after a change
may begin in the middle.

The kernel walks the whole list for every level, which takes long when the heaviest of many
servers is overloaded. Here a pass walks only the servers that reach its level, and levels
that no server could take are left out; what is chosen is the same.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.services import RealServer


class WeightedRoundRobin:
    """As many connections in a round as the weight says, spread over the round.

    The level and the greatest level are always a multiple of the step, plus 1, or 0 where no
    server has a weight. A level of 1 is therefore the last of a round.
    """

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers
        self._step = self._highest = self._level = 0
        self._last = -1  # position of the last one chosen; -1 stands before the list
        self._heaviest: list[int] = []  # positions, the greatest weight first
        self._reaching: list[int] = []  # positions with a weight that reaches the level
        self.updated()

    def updated(self, _removed: RealServer | None = None) -> None:
        """Start at the head of the list again, with the level kept in range."""
        weights = [server.weight for server in self._servers]
        self._last = -1
        self._step = math.gcd(*weights) or 1
        self._highest = max(0, max(weights, default=0) - (self._step - 1))
        if self._level > self._highest or self._level == 0:
            self._level = self._highest
        elif self._step > 1:
            self._level = self._level // self._step * self._step + 1
        self._heaviest.clear()
        self._reaching.clear()

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """The next server whose weight reaches the level."""
        if self._highest == 0:
            return None
        before = self._last
        last_pass = restarted = False
        server = self._take(before + 1, len(self._servers))
        while server is None:
            level = self._level - self._step
            if level <= 0:
                level = self._highest
                if last_pass or before < 0:
                    self._last = -1
                    self._move_to(level)
                    return None
                restarted = True
            self._move_to(self._takeable(level))
            last_pass = self._level <= self._step
            if last_pass and restarted:  # what began behind the last one chosen ends with it
                server = self._take(0, before + 1)
                break
            server = self._take(0, len(self._servers))
        return server

    def _take(self, start: int, stop: int) -> RealServer | None:
        """The first at these positions that reaches the level and is not overloaded."""
        reaching = self._at_level()
        for index in range(bisect_left(reaching, start), len(reaching)):
            position = reaching[index]
            if position >= stop:
                break
            server = self._servers[position]
            if not server.overloaded:
                self._last = position
                return server
        return None

    def _takeable(self, level: int) -> int:
        """This level, or the first below it that a server that is not overloaded reaches."""
        servers = self._servers
        free = (servers[at].weight for at in self._by_weight() if not servers[at].overloaded)
        reached = max(1, next(free, 0))
        return level if level <= reached else (reached - 1) // self._step * self._step + 1

    def _move_to(self, level: int) -> None:
        if level != self._level:
            self._level = level
            self._reaching.clear()

    def _at_level(self) -> list[int]:
        """Positions of the servers whose weight reaches the level, in list order."""
        if not self._reaching:
            servers, order = self._servers, self._by_weight()
            count = bisect_right(order, -self._level, key=lambda at: -servers[at].weight)
            self._reaching = sorted(order[:count])
        return self._reaching

    def _by_weight(self) -> list[int]:
        """All positions, those of greater weight first."""
        if not self._heaviest:
            servers = self._servers
            self._heaviest = sorted(range(len(servers)), key=lambda at: -servers[at].weight)
        return self._heaviest
