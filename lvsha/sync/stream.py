"""Keep the order of one sender's numbered datagrams without making any of them wait.

The network may drop, double and swap datagrams. Holding back what came early until what
is missing has come would keep the order, but a connection would then be told late just
because another datagram was lost. So every datagram is used when it comes, and the order
is kept for each connection instead:

* `admit` says whether a number is new. A number that was skipped is missing: it is asked
  for again a few times, and counts as lost when that was in vain. A number that is neither
  next nor missing is refused, so a datagram is used at most once, and never after it was
  given up.
* While anything is missing, `fresh` remembers by which number each connection was last
  told of, and refuses an older one. So a record that comes late never brings back what a
  later delete took away. When nothing is missing, every number that can still come is
  higher than all that came, and nothing needs to be remembered.

What is remembered is bounded: at most ``missing_max`` numbers and ``touched_max``
connections; past either, everything that is missing is given up at once. The caller
learns of it by `take_lost`.

Times are seconds on a monotonic clock.
"""

from enum import Enum, auto
from typing import Final

from lvsha.model import bucket_of

# A switched link reorders by far less than a millisecond; a busy receiver by a few.
REORDER_WAIT: Final = 0.005
# The answer to a request takes a round trip of a local link, and a turn of a busy sender.
ASK_INTERVAL: Final = 0.03
# Of a request and its answer both come at 20 % loss in 64 of 100 tries; 12 in vain are rare.
ASKS_MAX: Final = 12
# Ranges in one round of asking; four datagrams of them.
ASK_RANGES_MAX: Final = 80
# How long a number is waited for whose sender cannot send it again.
PATIENCE: Final = 0.05
# Two seconds of datagrams at 2,000 a second; a longer gap is a cut, not a reordering.
MISSING_MAX: Final = 4096
TOUCHED_MAX: Final = 65_536

Range = tuple[int, int]
"""The first of some consecutive numbers, and how many."""


class Admission(Enum):
    """What `Stream.admit` makes of a number."""

    NEXT = auto()
    LATE = auto()
    REFUSED = auto()


class _Missing:
    """A number that was skipped."""

    __slots__ = ("asks", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.asks = 0


class Stream:
    """The numbers of one sender in one epoch.

    Args:
        first: the first number that is expected.
        missing_max: how many numbers may be missing.
        touched_max: how many connections are remembered.

    Attributes:
        gaps: how often numbers were skipped.
        lost_total: numbers that were given up.
        repaired_total: numbers that came after they had been asked for.
    """

    __slots__ = (
        "_ask_at",
        "_lost",
        "_lost_highest",
        "_missing",
        "_missing_max",
        "_next",
        "_touched",
        "_touched_max",
        "gaps",
        "lost_total",
        "repaired_total",
    )

    def __init__(
        self, first: int, *, missing_max: int = MISSING_MAX, touched_max: int = TOUCHED_MAX
    ) -> None:
        self._next = first
        self._missing: dict[int, _Missing] = {}
        self._missing_max = missing_max
        self._ask_at = 0.0
        self._touched: dict[bytes, int] = {}
        self._touched_max = touched_max
        self._lost = 0
        self._lost_highest = 0
        self.gaps = 0
        self.lost_total = 0
        self.repaired_total = 0

    @property
    def position(self) -> int:
        """The highest number that is known to have been sent."""
        return self._next - 1

    @property
    def missing(self) -> int:
        """How many numbers are missing."""
        return len(self._missing)

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do; None if nothing is missing."""
        return self._ask_at if self._missing else None

    @property
    def guarded(self) -> bool:
        """Whether `fresh` must be asked for each connection of the admitted datagram."""
        return bool(self._missing) or bool(self._touched)

    def admit(self, sequence: int, now: float) -> Admission:
        """Judge the number of a datagram that carries connections, and note it as seen."""
        if sequence >= self._next:
            self._skip_to(sequence, now)
            self._next = sequence + 1
            return Admission.NEXT
        missing = self._missing.pop(sequence, None)
        if missing is None:
            return Admission.REFUSED
        if missing.asks:
            self.repaired_total += 1
        return Admission.LATE

    def reach(self, sequence: int, now: float) -> None:
        """Note that the sender says to have sent all numbers up to this one."""
        if sequence >= self._next:
            self._skip_to(sequence + 1, now)
            self._next = sequence + 1

    def fresh(self, key: bytes, sequence: int, superseded: int = 0) -> bool:
        """Whether this number tells something newer of a connection than what was used.

        Args:
            key: of the connection.
            sequence: the number.
            superseded: a set of buckets of which all was told again behind this number.
        """
        if self._touched.get(key, -1) > sequence:
            return False
        if superseded and superseded >> bucket_of(key) & 1:
            return False
        self._touched[key] = sequence
        return True

    def settle(self) -> None:
        """Call when all of an admitted datagram was used: forget what is needed no more."""
        if not self._missing:
            self._touched.clear()
        elif len(self._touched) > self._touched_max:
            self.abandon()
            self._touched.clear()

    def is_missing_between(self, first: int, last: int) -> bool:
        """Whether a number from first to last may still come."""
        return any(first <= number <= last for number in self._missing)

    def abandon(self) -> None:
        """Give up all that is missing: it is refused should it still come."""
        for number in self._missing:
            self._lose(number)
        self._missing.clear()

    def abandon_before(self, oldest: int) -> None:
        """Give up what the sender can not send again: numbers below this one."""
        for number in [number for number in self._missing if number < oldest]:
            del self._missing[number]
            self._lose(number)
        self.settle()

    def expire(self, now: float, *, may_ask: bool) -> list[Range]:
        """Give up what has been missing for too long; returns what is to be asked for.

        Args:
            now: the clock.
            may_ask: whether the sender can send numbers again.
        """
        if not self._missing or now < self._ask_at:
            return []
        if not may_ask:
            self._give_up(now)
            return []
        ranges: list[Range] = []
        for number in sorted(self._missing):
            missing = self._missing[number]
            if missing.asks >= ASKS_MAX:
                del self._missing[number]
                self._lose(number)
            elif ranges and sum(ranges[-1]) == number:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
                missing.asks += 1
            elif len(ranges) < ASK_RANGES_MAX:
                ranges.append((number, 1))
                missing.asks += 1
        self._ask_at = now + ASK_INTERVAL
        self.settle()
        return ranges

    def take_lost(self) -> tuple[int, int]:
        """How many numbers were given up since the last call, and the highest of them."""
        lost, self._lost = self._lost, 0
        return lost, self._lost_highest

    def _give_up(self, now: float) -> None:
        # Numbers become missing in the order of time, so the oldest stand first.
        while self._missing:
            number, missing = next(iter(self._missing.items()))
            if missing.since + PATIENCE > now:
                self._ask_at = missing.since + PATIENCE
                return
            del self._missing[number]
            self._lose(number)
        self.settle()

    def _skip_to(self, sequence: int, now: float) -> None:
        skipped = sequence - self._next
        if skipped == 0:
            return
        self.gaps += 1
        if len(self._missing) + skipped > self._missing_max:
            self.abandon()
            self._lost += skipped
            self.lost_total += skipped
            self._lost_highest = sequence - 1
            return
        if not self._missing:
            self._ask_at = now + REORDER_WAIT
        for number in range(self._next, sequence):
            self._missing[number] = _Missing(now)

    def _lose(self, number: int) -> None:
        self._lost += 1
        self.lost_total += 1
        self._lost_highest = max(self._lost_highest, number)
