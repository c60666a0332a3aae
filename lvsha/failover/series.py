"""When a master announces its addresses: at once, again soon, and from time to time.

Times are seconds on a monotonic clock.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

# A neighbour that missed the first announcement gets another when its own link has settled
# (1 s) and one that follows the moment when a dead master's kernel lets go of the addresses
# (5 s; see failover/addresses.py). Forwarding databases of switches forget after 300 s by
# default, often less.
ANNOUNCE_AGAIN_AFTER: Final = (1.0, 5.0)
ANNOUNCE_EVERY: Final = 60.0
# However often another master is heard, announcements are at least this far apart.
ANNOUNCE_GAP: Final = 0.1


class Series:
    """The announcements of one master."""

    def __init__(
        self, again: Iterable[float] = ANNOUNCE_AGAIN_AFTER, every: float = ANNOUNCE_EVERY
    ) -> None:
        """Describe the series; nothing is due before `begin`.

        Args:
            again: how long after the first one there are others.
            every: how often there is one after these; infinity for never.
        """
        self._again = tuple(sorted(again)) or (every,)
        self._every = every
        self._at: deque[float] = deque()
        self._last = -math.inf

    @property
    def next(self) -> float:
        """When the next one is due; only after `begin`."""
        return self._at[0]

    def begin(self, now: float) -> None:
        """The first one is made now."""
        self._last = now
        self._at = deque(now + delay for delay in self._again)

    def begin_again(self, now: float) -> None:
        """Another was heard that may have announced, or may still."""
        last = self._last
        self.begin(now)
        self._last = last
        self._at.appendleft(max(now, last + ANNOUNCE_GAP))

    def take(self, now: float) -> bool:
        """Whether one is due; it is made then."""
        if now < self._at[0]:
            return False
        while self._at and now >= self._at[0]:
            self._at.popleft()
        if not self._at:
            self._at.append(now + self._every)
        self._last = now
        return True
