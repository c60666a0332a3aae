"""Two choices: twos draws two servers by weight and takes the less loaded of them.

Two draws are enough to avoid a crowded server almost as well as looking at all would do,
and directors that do not know each other's connections do not all run to the same one.
"""

from collections.abc import Sequence

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.least_connection import overhead
from lvsha.datapath.services import RealServer


class TwoChoices:
    """The less loaded, for its weight, of two usable servers drawn by weight.

    The lots go from 0 to the sum of weights, both included, as in the kernel: the first
    server in list order has one lot more than its weight. Both draws may give the same one.
    """

    def __init__(self, servers: Sequence[RealServer], options: SchedulerOptions) -> None:
        self._servers = servers
        self._options = options

    def schedule(self, _key: bytes, _now: float) -> RealServer | None:
        """Draw twice and compare; the first drawn wins a tie."""
        usable = [server for server in self._servers if server.usable]
        if not usable:
            return None
        total = sum(server.weight for server in usable)
        dice = self._options.dice
        first = _at(usable, dice.randint(0, total))
        second = _at(usable, dice.randint(0, total))
        if second.weight * overhead(first) > first.weight * overhead(second):
            return second
        return first

    def updated(self, removed: RealServer | None = None) -> None:
        """Nothing is remembered, so nothing changes."""


def _at(servers: Sequence[RealServer], lot: int) -> RealServer:
    """The server whose weights, added up in list order, reach the lot."""
    for server in servers:
        lot -= server.weight
        if lot <= 0:
            return server
    raise AssertionError("a lot above the sum of weights")
