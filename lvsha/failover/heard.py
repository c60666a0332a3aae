"""What an election remembers of whom it has heard.

Times are seconds on a monotonic clock; intervals with the suffix ``_cs`` are centiseconds.
"""

from dataclasses import dataclass
from typing import Final, Self

from lvsha.wire.vrrp import Advertisement

# An advertisement that comes after more than so many intervals is late, or another was lost.
LATE: Final = 1.5


@dataclass(frozen=True, slots=True)
class Gap:
    """Two advertisements that were further apart than they should be; the second came at ``at``."""

    at: float
    seconds: float
    interval: float


@dataclass(frozen=True, slots=True)
class Peer:
    """The router that was heard last, and when."""

    address: bytes
    priority: int
    interval_cs: int
    pseudo_header: bool
    heard_at: float

    @classmethod
    def of(cls, advertisement: Advertisement, source: bytes, now: float) -> Self:
        """Who has sent an advertisement."""
        said = advertisement
        return cls(source, said.priority, said.interval_cs, said.pseudo_header, now)

    @property
    def interval(self) -> float:
        """Seconds between its advertisements."""
        return self.interval_cs / 100

    def is_late(self, now: float) -> bool:
        """Whether its next advertisement is late."""
        return now - self.heard_at > LATE * self.interval
