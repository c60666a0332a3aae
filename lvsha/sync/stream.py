"""Keep the order of one sender's numbered datagrams without making any of them wait.

The network may drop, double and swap datagrams. Holding back what came early until what
is missing has come would keep the order, but a connection would then be told late just
because another datagram was lost. So every datagram is used when it comes, and the order
is kept for each connection instead:

* `admit` says whether a number is new. A number that was skipped is missing for a short
  time, and counts as lost after it. A number that is neither next nor missing is refused,
  so a datagram is used at most once, and never after it was given up.
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

# A switched link reorders by far less than a millisecond; a busy receiver by a few. This
# only decides how long a copy waits before it asks for a snapshot.
REORDER_WAIT: Final = 0.05
# Two seconds of datagrams at 2,000 a second; a longer gap is a cut, not a reordering.
MISSING_MAX: Final = 4096
TOUCHED_MAX: Final = 65_536


class Admission(Enum):
    """What `Stream.admit` makes of a number."""

    NEXT = auto()
    LATE = auto()
    REFUSED = auto()


class Stream:
    """The numbers of one sender in one epoch."""

    __slots__ = (
        "_lost",
        "_missing",
        "_missing_max",
        "_next",
        "_touched",
        "_touched_max",
        "gaps",
        "lost_total",
    )

    def __init__(
        self, first: int, *, missing_max: int = MISSING_MAX, touched_max: int = TOUCHED_MAX
    ) -> None:
        self._next = first
        self._missing: dict[int, float] = {}
        self._touched: dict[bytes, int] = {}
        self._missing_max = missing_max
        self._touched_max = touched_max
        self._lost = 0
        self.gaps = 0
        self.lost_total = 0

    @property
    def position(self) -> int:
        """The highest number that is known to have been sent."""
        return self._next - 1

    @property
    def deadline(self) -> float | None:
        """When the oldest missing number counts as lost."""
        # Numbers become missing in the order of time, so the first is the oldest.
        return next(iter(self._missing.values()), None)

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
        if self._missing.pop(sequence, None) is not None:
            return Admission.LATE
        return Admission.REFUSED

    def reach(self, sequence: int, now: float) -> None:
        """Note that the sender says to have sent all numbers up to this one."""
        if sequence >= self._next:
            self._skip_to(sequence + 1, now)
            self._next = sequence + 1

    def fresh(self, key: bytes, sequence: int) -> bool:
        """Whether this number tells something newer of a connection than what was used."""
        if self._touched.get(key, -1) > sequence:
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

    def is_missing_before(self, sequence: int) -> bool:
        """Whether a number below this one may still come."""
        return bool(self._missing) and min(self._missing) < sequence

    def abandon(self) -> None:
        """Give up all that is missing: it is refused should it still come."""
        self._lose(len(self._missing))
        self._missing.clear()

    def expire(self, now: float) -> None:
        """Give up what has been missing for too long."""
        while self._missing:
            sequence, deadline = next(iter(self._missing.items()))
            if deadline > now:
                return
            del self._missing[sequence]
            self._lose(1)
        self.settle()

    def take_lost(self) -> int:
        """How many numbers were given up since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _skip_to(self, sequence: int, now: float) -> None:
        skipped = sequence - self._next
        if skipped == 0:
            return
        self.gaps += 1
        if len(self._missing) + skipped > self._missing_max:
            self.abandon()
            self._lose(skipped)
            return
        self._missing.update(dict.fromkeys(range(self._next, sequence), now + REORDER_WAIT))

    def _lose(self, count: int) -> None:
        self._lost += count
        self.lost_total += count
