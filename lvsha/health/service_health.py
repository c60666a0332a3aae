"""Decide which servers of one service take connections: the judges of all of them together.

A `Judge` knows one server; here are the quorum, the sorry server, and what becomes of a
server that is down. Nothing is probed and no clock read: `start`, `receive`, `expire` and
`set_own_weight` return the actions that the caller must carry out, in order.

What always holds:

* `Place` is returned only when a server shall have another weight than it was last given.
* `QuorumReached` and `QuorumLost` alternate. Neither comes before every server has been
  checked, unless the quorum is reached earlier, so that a start is no alarm.
* The sorry server takes connections exactly while the quorum is lost; then those that are
  up, but too few, have weight 0, and their connections go on.

Times are seconds on a monotonic clock.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.health.judge import Counts, Judge, Rules
from lvsha.health.opinions import Finding, Opinion

SORRY: Final = -1
"""The number of the sorry server in `Place`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Give a server a weight; None: remove it."""

    server: int
    weight: int | None


@dataclass(frozen=True, slots=True)
class OpinionChanged:
    """This node thinks otherwise of a server now."""

    server: int
    old: Opinion
    new: Opinion
    reason: str


@dataclass(frozen=True, slots=True)
class QuorumReached:
    """Enough servers are up; ``weight`` is what theirs come to."""

    weight: int


@dataclass(frozen=True, slots=True)
class QuorumLost:
    """Too few servers are up; ``weight`` is what theirs come to."""

    weight: int


Action = Place | OpinionChanged | QuorumReached | QuorumLost


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """What a check of a server has found, both by number."""

    server: int
    check: int
    finding: Finding


class ServiceHealth:
    """The servers of one service.

    Args:
        rules: of the service.
        servers: the checks of each, and its own weight. One without checks is always up.
        sorry_weight: of the sorry server; None if there is none.

    Attributes:
        judges: by server; None for one without checks.
        quorum: whether it is reached; None before that is known.
        settled: whether the last finding agreed with the opinion on its check.
    """

    def __init__(
        self,
        rules: Rules,
        servers: Sequence[tuple[Sequence[Counts], int]],
        sorry_weight: int | None = None,
    ) -> None:
        self.judges: list[Judge | None] = []
        self.quorum: bool | None = None
        self.settled = True
        self._rules = rules
        self._servers = servers
        self._own_weights = [weight for _, weight in servers]
        self._sorry_weight = sorry_weight
        self._regained_at: float | None = None
        self._placed: dict[int, int | None] = {SORRY: None}
        self.deadline: float | None = None

    def start(self, now: float) -> list[Action]:
        """Begin: nobody has been checked."""
        self.judges = [
            Judge(self._rules, counts, weight, now) if counts else None
            for counts, weight in self._servers
        ]
        self._placed.update(enumerate(self._own_weights))
        return list(self._decide(now))

    def receive(self, found: CheckFinding, now: float) -> list[Action]:
        """Take note of what a probe found."""
        judge = self.judges[found.server]
        assert judge is not None, "only checks find anything"
        old = judge.opinion
        self.settled = judge.receive(found.check, found.finding, now)
        actions: list[Action] = []
        if judge.opinion is not old:
            actions.append(OpinionChanged(found.server, old, judge.opinion, judge.reason))
        return [*actions, *self._decide(now)]

    def set_own_weight(self, server: int, weight: int, now: float) -> list[Action]:
        """Take note of the weight that the operator gave a server; it has it already.

        One that the operator has removed has 0, and counts nowhere.
        """
        self._own_weights[server] = weight
        judge = self.judges[server]
        if judge is not None:
            judge.own_weight = weight
        self._placed[server] = weight
        return list(self._decide(now))

    def expire(self, now: float) -> list[Action]:
        """Carry out what was due until now."""
        for judge in self.judges:
            if judge is not None:
                judge.expire(now)
        return list(self._decide(now))

    # Decisions

    def _decide(self, now: float) -> Iterator[Action]:
        yield from self._decide_quorum(now)
        for server in [*range(len(self.judges)), SORRY]:
            weight = self._sorry(now) if server == SORRY else self._wanted(server, now)
            if weight != self._placed[server]:
                self._placed[server] = weight
                yield Place(server, weight)
        self.deadline = min(self._deadlines(now), default=None)

    def _decide_quorum(self, now: float) -> Iterator[Action]:
        weight, unknown = self.weight_up(), self._is_unknown()
        hysteresis = self._rules.hysteresis
        if self.quorum:
            if weight < self._rules.quorum - hysteresis:
                self.quorum = False
                yield QuorumLost(weight)
        elif weight >= self._rules.quorum + hysteresis:
            if self.quorum is False:
                self._regained_at = now
            self.quorum = True
            yield QuorumReached(weight)
        elif self.quorum is None and not unknown:
            self.quorum = False
            yield QuorumLost(weight)

    def weight_up(self) -> int:
        """What the servers that are up have together, as if all had grown to it."""
        total = 0
        for own, judge in zip(self._own_weights, self.judges, strict=True):
            if judge is None:
                total += own
            elif judge.opinion is Opinion.UP:
                total += judge.full_weight
        return total

    def _is_unknown(self) -> bool:
        return any(judge is not None and judge.opinion is Opinion.UNKNOWN for judge in self.judges)

    @property
    def sorry(self) -> bool:
        """Whether the sorry server stands in."""
        return self.quorum is False and self._sorry_weight is not None

    def _wanted(self, server: int, now: float) -> int | None:
        judge = self.judges[server]
        if judge is None:
            return 0 if self.sorry else self._own_weights[server]
        if judge.opinion is Opinion.UP:
            return 0 if self.sorry else judge.weight(now)
        gone = judge.opinion is Opinion.DOWN and self._rules.remove
        return None if gone and now >= judge.since + self._rules.drain else 0

    def _sorry(self, now: float) -> int | None:
        if self.sorry:
            return self._sorry_weight
        if self._regained_at is None or now >= self._regained_at + self._rules.drain:
            return None
        return 0 if self._placed[SORRY] is not None else None

    def _deadlines(self, now: float) -> Iterator[float]:
        for server, judge in enumerate(self.judges):
            if judge is None:
                continue
            if judge.opinion is Opinion.DOWN and self._rules.remove and self._is_placed(server):
                yield judge.since + self._rules.drain
            growing = judge.deadline(now)
            if growing is not None:
                yield growing
        if not self.sorry and self._is_placed(SORRY) and self._regained_at is not None:
            yield self._regained_at + self._rules.drain

    def _is_placed(self, server: int) -> bool:
        return self._placed[server] is not None
