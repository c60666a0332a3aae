"""What a leader takes of another one: of that before it, or of a second one.

For `OVERLAP` seconds the leader before carries on with the packets that are on their way to
it, and tells of them while it drains. Where two nodes lead at once, because they do not hear
each other's advertisements, the packets of one connection come to either as long as that
lasts. What the other tells is taken, but never a delete (a connection ends there because its
packets now come here), and never a connection of which this node has told itself: its word is
the newer one.

Times are seconds on a monotonic clock.
"""

from collections.abc import Iterable
from typing import Final

from lvsha.model import ConnectionRecord

# How long a node that has stopped to lead still tells what happens to it.
DRAIN: Final = 2.0
# How long the next leader takes what the one before tells: the drain, and as much again
# because the two do not change roles at the same instant.
OVERLAP: Final = 2 * DRAIN


class Overlap:
    """The time in which another node may have packets of this leader's connections.

    Args:
        own_max: how many connections of its own are remembered; past that nothing more is
            taken.
    """

    def __init__(self, own_max: int) -> None:
        self._own_max = own_max
        self._until = float("-inf")
        self._contested_until = float("-inf")
        self._own: set[bytes] = set()

    def begin(self, now: float) -> None:
        """This node leads from now on."""
        self._until = now + OVERLAP
        self._own.clear()

    def contest(self, now: float) -> None:
        """Another node leads as well."""
        self._contested_until = now + OVERLAP
        self._until = max(self._until, self._contested_until)

    def is_contested(self, now: float) -> bool:
        """Whether another node has led as well a moment ago."""
        return now < self._contested_until

    def end(self) -> None:
        """This node leads no longer."""
        self._until = self._contested_until = float("-inf")
        self._own.clear()

    def is_on(self, now: float) -> bool:
        """Whether anything is taken still; forgets what is remembered when not."""
        if now < self._until:
            return True
        self._own.clear()
        return False

    def own(self, keys: Iterable[bytes], now: float) -> None:
        """This node tells of these connections itself."""
        if self.is_on(now):
            self._own.update(keys)
            if len(self._own) > self._own_max:
                self.end()

    def wanted(self, records: Iterable[ConnectionRecord]) -> list[ConnectionRecord]:
        """Those of the records that are taken."""
        return [record for record in records if record.key not in self._own]

    def __len__(self) -> int:
        """How many connections are remembered."""
        return len(self._own)
