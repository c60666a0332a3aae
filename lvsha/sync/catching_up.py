"""What a follower lacks of its leader, bucket by bucket, and what of it is coming.

It begins with sums: those of the leader's buckets, which come in some datagrams, against
those of the copy. Buckets whose sums differ are *wanted*. They come in snapshots, several
of which may be on their way at once, each of its own buckets; when all of a snapshot has
come, its buckets are wanted no more. What was told of a bucket before its snapshot began
and comes late is of no use: the snapshot knows better, also of what has ended meanwhile.

What cannot be mended so comes whole, and differs again, and again, although nothing was lost:
this node could not take something in. After `ROUNDS_MAX` times such buckets count as
*mismatched*, and are left alone for `MISMATCH_PAUSE`.

A set of buckets is a number, in which bit n stands for bucket n. Times are seconds on a
monotonic clock.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from lvsha.sync.messages import ALL_BUCKETS
from lvsha.sync.stream import Stream

# A snapshot that does not advance has lost its end; the source sends a part in every tick.
SNAPSHOT_STALL: Final = 2.0
SNAPSHOTS_MAX: Final = 8
# A datagram that is asked for comes within half a second, a table of a million has 130 parts.
SNAPSHOTS_REMEMBERED: Final = 128
# Sums come in four datagrams. Under changes that overtake each other none may ever come at
# its own number; after so many they are compared all the same, and too much is asked for.
INEXACT_MAX: Final = 16
ROUNDS_MAX: Final = 3
MISMATCH_PAUSE: Final = 10.0


class Conclusion(Enum):
    """What the comparison of all sums has shown."""

    AGREES = auto()
    WANTED = auto()
    MISMATCHED = auto()


@dataclass(slots=True)
class _Snapshot:
    """One that is being received."""

    buckets: int
    stalled_at: float
    end: int | None = None


class CatchingUp:
    """How far a follower is.

    Attributes:
        wanted: buckets that are to come.
        mismatched: buckets that came whole and differ.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self.mismatched = 0
        self._mismatch_until = float("-inf")
        self._compared = 0
        self._differing = 0
        self._inexact = 0
        self._lost_highest = 0
        self._rounds = 0
        # By the number of its beginning, which is its name.
        self._snapshots: dict[int, _Snapshot] = {}
        # Those that came whole: begin and buckets.
        self._finished: deque[tuple[int, int]] = deque(maxlen=SNAPSHOTS_REMEMBERED)

    @property
    def deadline(self) -> float | None:
        """When a snapshot has stalled, if it does not advance until then."""
        return min((s.stalled_at for s in self._snapshots.values()), default=None)

    @property
    def is_receiving(self) -> bool:
        """Whether a snapshot is on its way."""
        return bool(self._snapshots)

    @property
    def unasked(self) -> int:
        """Buckets that are wanted and not on their way."""
        unasked = self.wanted
        for snapshot in self._snapshots.values():
            unasked &= ~snapshot.buckets
        return unasked

    def begin_anew(self) -> None:
        """Something may be lacking that nothing tells of yet: compare again."""
        self._snapshots.clear()
        self._compared = self._differing = self._inexact = self.wanted = 0

    def forget(self) -> None:
        """Another leader, or none."""
        self.begin_anew()
        self._finished.clear()
        self._rounds = self.mismatched = self._lost_highest = 0

    def lose(self, highest: int) -> None:
        """Numbers up to ``highest`` are lost: what differs now is explained by that.

        What agreed before may have agreed without them, and so may sums from before.
        """
        self.ask_sums()
        self._rounds = 0
        self._lost_highest = highest

    # Comparing

    def ask_sums(self) -> None:
        """Sums are asked for: what was compared before counts no more."""
        self._compared = self._differing = 0

    def compare(
        self, number: int, first: int, theirs: Sequence[int], ours: Sequence[int], *, exact: bool
    ) -> bool:
        """Compare the sums of some buckets; returns whether all have been.

        Args:
            number: the leader's, at which it had these sums.
            first: the first of these buckets.
            theirs: sums of the leader.
            ours: sums of all buckets of the copy.
            exact: whether the copy is now what the leader had told then.
        """
        if number < self._lost_highest:
            return False
        if not exact:
            self._inexact += 1
            if self._inexact < INEXACT_MAX:
                return False
        for bucket, value in enumerate(theirs, first):
            bit = 1 << bucket
            self._compared |= bit
            if ours[bucket] != value:
                self._differing |= bit
        return self._compared == ALL_BUCKETS

    def conclude(self, now: float) -> Conclusion:
        """All sums were compared: what now?"""
        differing, self._differing, self._compared = self._differing, 0, 0
        self._inexact = self.mismatched = 0
        if not differing:
            self._rounds = 0
            return Conclusion.AGREES
        if self._rounds < ROUNDS_MAX:
            self.wanted = differing
            return Conclusion.WANTED
        self._rounds = 0
        self.mismatched = differing
        self._mismatch_until = now + MISMATCH_PAUSE
        return Conclusion.MISMATCHED

    def agrees(self) -> None:
        """The copy has turned out to be what the leader has."""
        self._rounds = self.mismatched = 0

    def may_compare(self, now: float) -> bool:
        """Whether another comparison may be of use."""
        return not self.mismatched or now >= self._mismatch_until

    # Snapshots

    def begin(self, number: int, buckets: int, now: float) -> int:
        """A snapshot of buckets begins; returns which of them are received by it."""
        # Each has one begin and one end, so what is on its way already is left out.
        buckets &= self.unasked
        if not buckets:
            return 0
        if len(self._snapshots) >= SNAPSHOTS_MAX:
            del self._snapshots[next(iter(self._snapshots))]
        self._snapshots[number] = _Snapshot(buckets, now + SNAPSHOT_STALL)
        return buckets

    def advance(self, number: int, now: float) -> bool:
        """A part of a snapshot has come; returns whether that one is received."""
        snapshot = self._snapshots.get(number)
        if snapshot is None:
            return False
        snapshot.stalled_at = now + SNAPSHOT_STALL
        return True

    def superseded(self, number: int) -> int:
        """The buckets of which a snapshot has begun behind this number."""
        buckets = 0
        for begin, snapshot in self._snapshots.items():
            if number < begin:
                buckets |= snapshot.buckets
        for begin, finished in self._finished:
            if number < begin:
                buckets |= finished
        return buckets

    def end(self, number: int, last: int) -> None:
        """The last number of a snapshot is known."""
        if number in self._snapshots:
            self._snapshots[number].end = last

    def finished(self, stream: Stream) -> Iterator[int]:
        """The buckets of each snapshot of which all has come."""
        for begin, snapshot in list(self._snapshots.items()):
            if snapshot.end is None or stream.is_missing_between(begin, snapshot.end):
                continue
            del self._snapshots[begin]
            self._finished.append((begin, snapshot.buckets))
            self.wanted &= ~snapshot.buckets
            if not self.wanted:
                self._rounds += 1
            yield snapshot.buckets

    def drop_stalled(self, now: float) -> int:
        """Give snapshots up that do not advance; returns how many there were."""
        stalled = [number for number, s in self._snapshots.items() if now >= s.stalled_at]
        for number in stalled:
            del self._snapshots[number]
        return len(stalled)
