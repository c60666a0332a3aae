"""Decide whether a returning node may take over from a master that works.

A node with the higher priority has nothing to gain from its place before it has what the
master has. So preemption is permitted while the copy of the connection table is complete, and
has been for one look: in the time until the next, the neighbours on the ways to the clients
are asked for, whose answers the first frames after the takeover would have to wait for.

A copy that cannot become complete does not keep a node from its place for ever.

Times are seconds on a monotonic clock.
"""

from enum import Enum, auto


class Permission(Enum):
    """Whether a node may preempt."""

    NO = auto()
    """The copy is not complete."""
    SOON = auto()
    """It has become complete; the neighbours should be asked for now."""
    YES = auto()
    ANYWAY = auto()
    """It has not been complete for longer than was to be waited."""


class Readiness:
    """One virtual router on one node.

    Args:
        patience: for how long an incomplete copy is waited for; `math.inf` for ever.
        now: the current time.
    """

    def __init__(self, patience: float, now: float) -> None:
        self._patience = patience
        self._complete_at = now
        self._was_complete = False

    def look(self, now: float, *, complete: bool) -> Permission:
        """What holds now that the copy is complete, or is not."""
        was_complete, self._was_complete = self._was_complete, complete
        if complete:
            self._complete_at = now
            return Permission.YES if was_complete else Permission.SOON
        return Permission.ANYWAY if self.waited(now) >= self._patience else Permission.NO

    def waited(self, now: float) -> float:
        """For how long the copy has not been complete."""
        return now - self._complete_at
