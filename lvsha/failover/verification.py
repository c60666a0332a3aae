"""Find out whether a takeover has reached the neighbours, and hold on to what was taken.

To announce an address is not to have it: a switch may learn from one form of announcement only,
a frame may be lost, a neighbour may be asleep. What proves it is a frame that arrives. This is
the logic of that, and nothing else: it is told how many frames for the addresses of a virtual
router were counted, and says what to do.

* Until the first frame, the addresses are announced again at `AGAIN_AFTER`, each time later.
  That series ends. A network in which nobody asks for anything looks just the same, so silence
  is said, not taken for a fault; and the first frame is noticed whenever it comes.
* Another that announces an address that is held here is answered by an announcement, at most
  one in `ANSWER_GAP`. Two who both believe to be right so send one in a second each, and no more.
  The answer comes `ANSWER_AFTER` it: a new master announces what it takes together with its
  first advertisement, which this node may not have read yet, and must not be contradicted.

Nothing is done per frame: counters that exist are read, ever more rarely while nothing comes.
Times are seconds on a monotonic clock.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

from lvsha.counters import Counters

AGAIN_AFTER: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds after the takeover. The election's own series has 1 and 5 s, and then every minute."""
SILENT_AFTER: Final = 60.0
LOOK_MIN: Final = 0.01
LOOK_MAX: Final = 5.0
LOOK_PART: Final = 0.1
"""The time of the first frame is known to a tenth of itself."""
ANSWER_GAP: Final = 1.0
ANSWER_AFTER: Final = 0.05


class Arrival(Enum):
    """Whether frames for the addresses arrive here."""

    NOT_HELD = "not held"
    UNKNOWN = "unknown"
    """There is no service at the addresses whose frames could be counted."""
    AWAITED = "awaited"
    SILENT = "silent"
    """None has come for `SILENT_AFTER`."""
    SEEN = "seen"


@dataclass(frozen=True, slots=True)
class AnnounceAgain:
    """Announce the addresses now; ``reason`` is a word for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """The first frame since the takeover has come, so many seconds after it."""

    after: float


@dataclass(frozen=True, slots=True)
class NoFrame:
    """No frame has come for so long that this should be said."""

    after: float


@dataclass(frozen=True, slots=True)
class RivalHeard:
    """Another has announced an address that is held here."""

    address: bytes
    mac: bytes


Action = AnnounceAgain | FirstFrame | NoFrame | RivalHeard
Actions = tuple[Action, ...]


class Verification:
    """The addresses of one virtual router on one node.

    Attributes:
        arrival: whether frames come.
        counters: announcements that this has asked for, and those of others.
    """

    def __init__(self) -> None:
        self.arrival = Arrival.NOT_HELD
        self.counters = Counters()
        self._began_at = 0.0
        self._frames = 0
        self._announced = 0
        self._look_at = math.inf
        self._rival: RivalHeard | None = None
        self._heard_at = -math.inf

    @property
    def deadline(self) -> float | None:
        """When to call `look`; None for never."""
        answer_at = math.inf if self._rival is None else self._heard_at + ANSWER_AFTER
        due = min(self._look_at, answer_at)
        return None if due == math.inf else due

    def begin(self, frames: int | None, now: float) -> None:
        """The addresses are held from now on.

        Args:
            frames: counted for them so far; None if none can be.
            now: the current time.
        """
        self._began_at = now
        self._announced = 0
        if frames is None:
            self.arrival = Arrival.UNKNOWN
            self._look_at = math.inf
            return
        self.arrival = Arrival.AWAITED
        self._frames = frames
        self._look_at = now + LOOK_MIN

    def end(self) -> None:
        """The addresses are not held any more."""
        self.arrival = Arrival.NOT_HELD
        self._look_at = math.inf
        self._rival = None

    def look(self, frames: int | None, now: float) -> Actions:
        """Do what is due, knowing how many frames were counted by now."""
        actions: Actions = ()
        if self._rival is not None and now >= self._heard_at + ANSWER_AFTER:
            actions = (self._rival, AnnounceAgain("another has announced an address"))
            self._rival = None
        return actions if now < self._look_at else actions + self._watch(frames, now)

    def _watch(self, frames: int | None, now: float) -> Actions:
        after = now - self._began_at
        if frames is not None and frames > self._frames:
            self.arrival = Arrival.SEEN
            self._look_at = math.inf
            return (FirstFrame(after),)
        if frames is not None:
            # Less than before: the counters are others, of services that were changed.
            self._frames = frames
        self._look_at = now + min(max(after * LOOK_PART, LOOK_MIN), LOOK_MAX)
        actions: Actions = ()
        due = sum(1 for again in AGAIN_AFTER if again <= after)
        if due > self._announced:
            # One that was late for several sends one.
            self._announced = due
            self.counters.add("announced_again")
            actions = (AnnounceAgain("no frame has come"),)
        if after >= SILENT_AFTER and self.arrival is Arrival.AWAITED:
            self.arrival = Arrival.SILENT
            self.counters.add("silences")
            actions += (NoFrame(after),)
        return actions

    def claimed(self, address: bytes, mac: bytes, now: float) -> None:
        """Another has said that one of the addresses is at its ``mac``."""
        if self.arrival is Arrival.NOT_HELD:
            return
        self.counters.add("rival_announcements")
        if now < self._heard_at + ANSWER_GAP:
            self.counters.add("answers_held_back")
            return
        self._rival, self._heard_at = RivalHeard(address, mac), now
