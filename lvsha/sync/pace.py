"""How much of what is told may leave when: ticks, what is saved up for haste, a limit of bytes.

A `Meter` knows the time and the sizes that it is told of, not what is sent.

Times are seconds on a monotonic clock.
"""

from dataclasses import dataclass
from typing import Final

from lvsha.sync.tail import WAITS

# What a limit of bytes lets through at once after an idle time, in seconds of its rate.
BURST: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much may wait, and how much may leave in one tick.

    The defaults let some million live changes a second and 200,000 snapshot records a second
    leave in datagrams of 1,400 bytes; a snapshot then costs a core some 50 %.

    Attributes:
        queue_max: connections whose changes wait.
        tick: seconds.
        eager_datagrams_max: datagrams of live changes that are saved up to leave at once.
        gather: seconds that give one of them; without one a change waits so long for others.
        hasty_datagrams_per_tick: of live changes that leave at once while the addresses move.
        live_datagrams_per_tick: of live changes, and of what is sent again.
        snapshot_datagrams_per_tick: chunks.
        window: datagrams of snapshots that the slowest listener may not have seen.
        bytes_per_second: the limit; 0 for none.
        tail_waits: see `lvsha.sync.tail`.
    """

    queue_max: int = 200_000
    tick: float = 0.002
    eager_datagrams_max: int = 8
    gather: float = 0.005
    hasty_datagrams_per_tick: int = 2
    live_datagrams_per_tick: int = 32
    snapshot_datagrams_per_tick: int = 5
    window: int = 32
    bytes_per_second: int = 0
    tail_waits: tuple[float, ...] = WAITS


class Meter:
    """Counts what leaves, and says what may.

    Attributes:
        tick_end: when the next tick may begin.
        live_sent, snapshot_sent: datagrams in this tick.
    """

    __slots__ = (
        "_allowance",
        "_allowance_at",
        "_pace",
        "_saved",
        "_saved_at",
        "live_sent",
        "snapshot_sent",
        "tick_end",
    )

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.tick_end = float("-inf")
        self.live_sent = self.snapshot_sent = 0
        self._saved = float(pace.eager_datagrams_max)
        self._saved_at = float("-inf")
        self._allowance = 0.0
        self._allowance_at = float("-inf")

    def renew(self, now: float) -> None:
        """Begin the next tick when it is time, and take in what the limit of bytes gives."""
        if now >= self.tick_end:
            self.tick_end = now + self._pace.tick
            self.live_sent = self.snapshot_sent = 0
        rate = self._pace.bytes_per_second
        if rate and now > self._allowance_at:
            earned = rate * (now - self._allowance_at)
            self._allowance = min(self._allowance + earned, rate * BURST)
            self._allowance_at = now

    def left(self, size: int) -> None:
        """So many numbered bytes leave."""
        self._allowance -= size

    @property
    def may_send(self) -> bool:
        """Whether the limit of bytes lets another datagram leave."""
        return self._allowance >= 0 or not self._pace.bytes_per_second

    def allowed_at(self) -> float:
        """When it does."""
        if self.may_send:
            return float("-inf")
        # A byte more than is needed, so that no rounding makes it too early.
        return self._allowance_at + (1 - self._allowance) / self._pace.bytes_per_second

    # Haste

    def eager_limit(self, now: float) -> int:
        """How many datagrams of live changes this tick may have with what is saved up."""
        self.renew(now)
        self._save_up(now)
        return min(self.live_sent + int(self._saved), self._pace.live_datagrams_per_tick)

    def left_together(self, datagrams: int, now: float) -> None:
        """So many left that had gathered; they use up what the time meanwhile has given.

        So where changes never cease none leaves by itself between two gatherings.
        """
        if datagrams:
            self._save_up(now)
            self._saved = max(self._saved - 1, 0.0)

    def _save_up(self, now: float) -> None:
        earned = (now - self._saved_at) / self._pace.gather
        self._saved = min(self._saved + earned, self._pace.eager_datagrams_max)
        self._saved_at = now

    def left_eagerly(self, datagrams: int) -> None:
        """So many left because something was saved up."""
        self._saved = max(self._saved - datagrams, 0.0)
