"""What a bench of the sync has measured, as values; no judgement and no layout.

Durations are seconds unless they say otherwise. Shares are of one processor.
"""

from dataclasses import dataclass, field
from typing import Final

BYTES_MAX: Final = 36.0
"""Of a connection: what the kernel's own record takes, unsealed."""
DELAY_MS_MAX: Final = 50.0
"""Of a live change, while a snapshot is on its way."""
JOIN_SECONDS_MAX: Final = {260_000: 2.0, 1_000_000: 8.0}
"""From a join to a copy that can be used, by connections."""
RATE_MIN: Final = 50_000.0
"""Records a second."""
KEPT_MIN: Final = 0.8
"""Of the forwarding rate, with sync."""


@dataclass(frozen=True, slots=True)
class Delays:
    """For how long changes were under way: from the call that tells to the one that has applied.

    Attributes:
        count: how many were looked at.
        median_ms, most_of_all_ms, longest_ms: the middle, what 99 of 100 stay below, the end.
    """

    count: int
    median_ms: float
    most_of_all_ms: float
    longest_ms: float


def delays_of(delays: list[float]) -> Delays:
    """The figures of at least one delay in seconds."""
    ordered = sorted(delays)
    last = len(ordered) - 1
    middle, most = ordered[last // 2], ordered[round(0.99 * last)]
    return Delays(len(ordered), middle * 1e3, most * 1e3, ordered[last] * 1e3)


@dataclass(frozen=True, slots=True)
class SyncBytes:
    """Bytes of UDP payload for each connection, sealed, in full datagrams.

    Attributes:
        servers: real servers that the connections go round.
        live: of live changes, in the order in which connections were opened.
        snapshot: of a snapshot.
    """

    servers: int
    connections: int
    live: float
    snapshot: float


@dataclass(frozen=True, slots=True)
class SyncJoin:
    """One follower that joined a leader with connections.

    Attributes:
        connections: that the leader had.
        complete, usable: until the copy was complete; until it had been tried.
        own_follower, own_leader: processor time of either, until it was complete.
        blocked_follower, blocked_leader: the longest step of a task, in processor time.
        live: changes that were told meanwhile.
        lost, repaired: datagrams that never came; that were sent again.
    """

    connections: int
    complete: float
    usable: float
    own_follower: float
    own_leader: float
    blocked_follower: float
    blocked_leader: float
    live: Delays
    lost: int
    repaired: int


@dataclass(frozen=True, slots=True)
class SyncRecords:
    """Records told at a rate for some seconds.

    Attributes:
        wanted, told: records a second: asked for, and told.
        share_leader, share_follower: of a processor.
        delays: of those that were first in their datagram.
        lost, repaired: datagrams that never came; that were sent again.
        datagrams: that the leader sent.
    """

    wanted: float
    told: float
    seconds: float
    share_leader: float
    share_follower: float
    delays: Delays
    lost: int
    repaired: int
    datagrams: int

    @property
    def is_sustained(self) -> bool:
        """Whether the rate was reached, nearly nothing was late, and nothing lost."""
        in_time = self.delays.most_of_all_ms < DELAY_MS_MAX and not self.lost
        return in_time and self.told >= 0.99 * self.wanted


@dataclass(slots=True)
class SyncForwarding:
    """A director's rate with sync against that without, turn by turn.

    Attributes:
        name: of what is counted.
        target: the least ratio that is wanted; None where it is for information.
        with_sync, without: rates.
        share_with, share_without: of a processor, beside each rate.
        opened: new connections a second beside, turn by turn, without sync and with it.
        failed: connections that failed, in all turns.
    """

    name: str
    target: float | None
    with_sync: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)
    share_with: list[float] = field(default_factory=list)
    share_without: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)
    failed: float = 0.0

    def add(self, rate: float, share: float, *, synced: bool) -> None:
        """Take one turn's figures over."""
        (self.with_sync if synced else self.without).append(rate)
        (self.share_with if synced else self.share_without).append(share)

    def ratios(self) -> list[float]:
        """Rates with sync against those without, turn by turn."""
        return [a / b for a, b in zip(self.with_sync, self.without, strict=True)]

    def work_ratios(self) -> list[float]:
        """The same of what is done in a second of the director's processor time."""
        with_sync = [r / s for r, s in zip(self.with_sync, self.share_with, strict=True)]
        without = [r / s for r, s in zip(self.without, self.share_without, strict=True)]
        return [a / b for a, b in zip(with_sync, without, strict=True)]
