"""Estimate how much passes per second, as the kernel's IPVS does.

Every two seconds the counts of a service, a server or the whole director are looked at, and
what was added since the last look goes into an average in which each look weighs a quarter
of what the ones before it weigh together. So the shown rates follow the last eight seconds
or so. The numbers are integers, scaled up while averages are kept and rounded when they are
shown; every shift is the kernel's (Linux ``ip_vs_est.c``), so that the same counts give the
same rates.

`Rates` is the average of one of them; `Estimator` says when whose turn it is. Nothing here
reads a clock, and nothing here counts.

What always holds: in each `INTERVAL` everything is looked at once, its turn comes at about
the same point of each interval, and one call of `Estimator.run` looks at no more than its
limit. Times are seconds; rates are per second, those of bytes too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

INTERVAL: Final = 2.0

_COUNT_SCALE_BITS: Final = 10
_BYTES_SCALE_BITS: Final = 5
_INTERVAL_BITS: Final = 1
"""The logarithm of the interval: a difference is halved to make it one of a second."""
_WEIGHT_BITS: Final = 2
_COUNT_ROUNDING: Final = (1 << (_COUNT_SCALE_BITS - 1)) - 1
_BYTES_ROUNDING: Final = (1 << (_BYTES_SCALE_BITS - 1)) - 1
_COUNT_SHIFT: Final = _COUNT_SCALE_BITS - _INTERVAL_BITS
_BYTES_SHIFT: Final = _BYTES_SCALE_BITS - _INTERVAL_BITS


class Counts(Protocol):
    """What is counted; `lvsha.datapath.services.Statistics` is one."""

    connections: int
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int


class Rates:
    """The rates of one service, of one server, or in total."""

    __slots__ = ("_averages", "_last")

    def __init__(self) -> None:
        self._averages = (0, 0, 0, 0, 0)
        self._last = (0, 0, 0, 0, 0)

    def tick(self, counted: Counts) -> None:
        """Take in what was counted; to be called once in each `INTERVAL`.

        A count that is smaller than at the last tick counts as one that has not changed.
        """
        now = _values(counted)
        last, averages = self._last, self._averages
        self._last = now
        if now == last and averages == (0, 0, 0, 0, 0):
            return  # idle, which most are
        self._averages = (
            _average(averages[0], now[0] - last[0], _COUNT_SHIFT),
            _average(averages[1], now[1] - last[1], _COUNT_SHIFT),
            _average(averages[2], now[2] - last[2], _COUNT_SHIFT),
            _average(averages[3], now[3] - last[3], _BYTES_SHIFT),
            _average(averages[4], now[4] - last[4], _BYTES_SHIFT),
        )

    def zero(self, counted: Counts | None = None) -> None:
        """Begin again with rates of 0.

        Args:
            counted: what counts from now on begin with; None for zero.
        """
        self._averages = (0, 0, 0, 0, 0)
        self._last = (0, 0, 0, 0, 0) if counted is None else _values(counted)

    @property
    def connections(self) -> int:
        """New connections per second."""
        return (self._averages[0] + _COUNT_ROUNDING) >> _COUNT_SCALE_BITS

    @property
    def in_packets(self) -> int:
        """Packets from clients per second."""
        return (self._averages[1] + _COUNT_ROUNDING) >> _COUNT_SCALE_BITS

    @property
    def out_packets(self) -> int:
        """Packets to clients per second."""
        return (self._averages[2] + _COUNT_ROUNDING) >> _COUNT_SCALE_BITS

    @property
    def in_bytes(self) -> int:
        """Bytes from clients per second."""
        return (self._averages[3] + _BYTES_ROUNDING) >> _BYTES_SCALE_BITS

    @property
    def out_bytes(self) -> int:
        """Bytes to clients per second."""
        return (self._averages[4] + _BYTES_ROUNDING) >> _BYTES_SCALE_BITS


def _values(counted: Counts) -> tuple[int, int, int, int, int]:
    return (
        counted.connections,
        counted.in_packets,
        counted.out_packets,
        counted.in_bytes,
        counted.out_bytes,
    )


def _average(average: int, difference: int, shift: int) -> int:
    """Move an average a quarter of the way to the newest rate; the shift rounds down."""
    return average + (((max(difference, 0) << shift) - average) >> _WEIGHT_BITS)


class Rated(Protocol):
    """What has rates: a service, a server, the table of services."""

    @property
    def rates(self) -> Rates:
        """Its rates."""

    def sampled(self) -> Counts:
        """What it has counted since it was zeroed; asked once in each interval."""


class Estimator:
    """Gives everything that has rates its turn.

    The turns of an interval are spread over it evenly, so that many services never make the
    director stand still.

    Args:
        rated: gives all that have rates; asked at the beginning of each interval.
    """

    def __init__(self, rated: Callable[[], Iterable[Rated]]) -> None:
        self._rated = rated
        self._round: Sequence[Rated] = ()
        self._done = 0
        self._began: float | None = None
        self._running = True

    @property
    def running(self) -> bool:
        """Whether rates are computed (``run_estimation``)."""
        return self._running

    def switch(self, *, running: bool) -> None:
        """Compute rates from now on, or leave them as they are shown now."""
        if running != self._running:
            self._running = running
            self._began = None
            self._round = ()
            self._done = 0

    def run(self, now: float, limit: int) -> bool:
        """Look at those whose turn has come, at no more than ``limit`` of them.

        Returns:
            Whether the turn of others has come, too.
        """
        if not self._running:
            return False
        if self._began is None:
            self._begin(now)
        while True:
            assert self._began is not None, "an interval has begun"
            share = (now - self._began) / INTERVAL
            due = min(int(share * len(self._round)), len(self._round))
            last = min(due, self._done + limit)
            for rated in self._round[self._done : last]:
                rated.rates.tick(rated.sampled())
            limit -= last - self._done
            self._done = last
            if self._done < due:
                return True
            if self._done < len(self._round) or share < 1.0:
                return False
            # After a standstill nothing is made up for: a rate is for one interval.
            following = self._began + INTERVAL
            self._begin(following if now - following < INTERVAL else now)

    def _begin(self, now: float) -> None:
        self._began = now
        self._round = tuple(self._rated())
        self._done = 0

    @property
    def deadline(self) -> float | None:
        """When `run` next has something to do; None while it never has."""
        if not self._running:
            return None
        if self._began is None:
            return float("-inf")
        if not self._round:
            return self._began + INTERVAL
        return self._began + min((self._done + 1) / len(self._round), 1.0) * INTERVAL
