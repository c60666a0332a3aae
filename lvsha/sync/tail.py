"""Say the last word again, which a listener could miss without knowing.

A datagram that was lost shows by the number of the next one, and is asked for again. The
newest has no next one: until a heartbeat tells its number nobody misses it, and if its sender
dies before, what it told is lost with it. So when nothing follows the newest changes, the same
datagram leaves again after each of `WAITS`. Who has it ignores it by its number. A director
that is busy always has a next one, and repeats nothing.

Times are seconds on a monotonic clock.
"""

from collections.abc import Sequence
from typing import Final

# With one in five lost, what is older than the sum of three is missed once in 600 times.
WAITS: Final = (0.002, 0.006, 0.018, 0.054)


class Tail:
    """The newest datagram with changes.

    Args:
        waits: seconds before each repeat.

    Attributes:
        at: when it is to leave again; None if it is not.
    """

    __slots__ = ("_number", "_repeats", "_waits", "at")

    def __init__(self, waits: Sequence[float] = WAITS) -> None:
        self._waits = waits
        self.at: float | None = None
        self._number = 0
        self._repeats = 0

    def left(self, number: int, now: float) -> None:
        """A newer one has left."""
        self._number, self._repeats = number, 0
        self.at = now + self._waits[0] if self._waits else None

    def forget(self) -> None:
        """Nothing is told any more."""
        self.at = None

    def due(self, now: float) -> int | None:
        """The number of what leaves again now, if anything does."""
        if self.at is None or now < self.at:
            return None
        self._repeats += 1
        waits = self._waits
        self.at = now + waits[self._repeats] if self._repeats < len(waits) else None
        return self._number
