"""Decide which servers of one service take connections: the judges of all of them together.

A `Judge` knows one server; here are the quorum, the sorry server, and what becomes of a
server that is down. Nothing is probed and no clock read: `start`, `receive`, `expire` and
`set_own_weight` return the actions that the caller must carry out, in order.

What always holds:

* `Place` is returned only when a server shall have another weight than it was last given.
* `QuorumReached` and `QuorumLost` alternate. Neither comes before every server has been
  checked, unless the quorum is reached earlier, so that a start is no alarm; nor is the quorum of
  a service that runs lost before its new servers were checked.
* The sorry server takes connections exactly while the quorum is lost; then those that are
  up, but too few, have weight 0, and their connections go on.
* What a finding costs does not grow with the number of servers, unless the sorry server comes
  or goes: thousands of them are looked after beside the loop that forwards.

Times are seconds on a monotonic clock.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Heritage:
    """What is known when the configuration of a service that runs becomes another.

    Attributes:
        judges: of servers whose checks are the same, by their number from now on.
        others: of those whose checks are others.
        in_use: of those that were not checked, and took connections.
        placed: the weight that each server has now; None or not there: it is not listed.
        quorum: whether it is reached.
        regained_at: since when the sorry server is not needed, if it lingers.
    """

    judges: Mapping[int, Judge]
    others: Mapping[int, Judge]
    in_use: Collection[int]
    placed: Mapping[int, int | None]
    quorum: bool | None
    regained_at: float | None


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
        regained_at: when it was reached again; None if it never was lost.
        own_weights: of the servers, as the pair file or the operator gave them; before the
            `start` others may be set.
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
        self._checks = [counts for counts, _ in servers]
        self.own_weights = [weight for _, weight in servers]
        self._sorry_weight = sorry_weight
        self.regained_at: float | None = None
        self._placed: dict[int, int | None] = {SORRY: None}
        self._counted = [0] * len(servers)
        self._weight_up = 0
        self._unknown: set[int] = set()
        self._follows = False
        self._agenda = _Agenda()

    def start(self, now: float, heritage: Heritage | None = None) -> list[Action]:
        """Begin: nobody has been checked, or go on with what is known."""
        self._follows = heritage is not None
        if heritage is None:
            heritage = Heritage({}, {}, (), dict(enumerate(self.own_weights)), None, None)
        self.quorum, self.regained_at = heritage.quorum, heritage.regained_at
        self._placed.update(dict.fromkeys(range(len(self._checks))) | dict(heritage.placed))
        for number, counts in enumerate(self._checks):
            judge, weight = heritage.judges.get(number), self.own_weights[number]
            if judge is not None:
                judge.follow(self._rules, weight)
            elif counts:
                rules = self._rules
                if number in heritage.in_use:
                    rules = replace(rules, unchecked_up=True)
                judge = Judge(rules, counts, weight, now, heritage.others.get(number))
            self.judges.append(judge)
        return list(self._decide(range(len(self.judges)), now))

    def receive(self, found: CheckFinding, now: float) -> list[Action]:
        """Take note of what a probe found."""
        judge = self.judges[found.server]
        assert judge is not None, "only checks find anything"
        old = judge.opinion
        self.settled = judge.receive(found.check, found.finding, now)
        actions: list[Action] = []
        if judge.opinion is not old:
            actions.append(OpinionChanged(found.server, old, judge.opinion, judge.reason))
        return [*actions, *self._decide({found.server, *self._due(now)}, now)]

    def set_own_weight(self, server: int, weight: int, now: float) -> list[Action]:
        """Take note of the weight that the operator gave a server; it has it already.

        One that the operator has removed has 0, and counts nowhere.
        """
        self.own_weights[server] = weight
        judge = self.judges[server]
        if judge is not None:
            judge.own_weight = weight
        self._placed[server] = weight
        return list(self._decide({server, *self._due(now)}, now))

    def expire(self, now: float) -> list[Action]:
        """Carry out what was due until now."""
        return list(self._decide(self._due(now), now))

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None for never."""
        return self._agenda.next

    # Decisions

    def _due(self, now: float) -> set[int]:
        due = self._agenda.take(now)
        for server in due - {SORRY}:
            judge = self.judges[server]
            if judge is not None:
                judge.expire(now)
        return due

    def _decide(self, changed: Collection[int], now: float) -> Iterator[Action]:
        """Decide about servers of which something has changed, or whose time has come."""
        stood_in = self.sorry
        for server in changed:
            self._count(server)
        yield from self._decide_quorum(now)
        concerned = changed if self.sorry is stood_in else range(len(self.judges))
        for server in [*sorted(set(concerned) - {SORRY}), SORRY]:
            weight = self._sorry(now) if server == SORRY else self._wanted(server, now)
            if weight != self._placed[server]:
                self._placed[server] = weight
                yield Place(server, weight)
            self._agenda.put(server, self._time_of(server, now))

    def _count(self, server: int) -> None:
        """Keep what the servers come to together."""
        if server == SORRY:
            return
        judge, weight = self.judges[server], self.own_weights[server]
        if judge is not None:
            weight = judge.full_weight if judge.opinion is Opinion.UP else 0
            is_unknown = judge.opinion is Opinion.UNKNOWN
            (self._unknown.add if is_unknown else self._unknown.discard)(server)
        self._weight_up += weight - self._counted[server]
        self._counted[server] = weight

    def _decide_quorum(self, now: float) -> Iterator[Action]:
        weight, hysteresis = self._weight_up, self._rules.hysteresis
        if self.quorum:
            if weight < self._rules.quorum - hysteresis and not (self._follows and self._unknown):
                self.quorum = False
                yield QuorumLost(weight)
        elif weight >= self._rules.quorum + hysteresis:
            if self.quorum is False:
                self.regained_at = now
            self.quorum = True
            yield QuorumReached(weight)
        elif self.quorum is None and not self._unknown:
            self.quorum = False
            yield QuorumLost(weight)

    def weight_up(self) -> int:
        """What the servers that are up have together, as if all had grown to it."""
        return self._weight_up

    @property
    def sorry(self) -> bool:
        """Whether the sorry server stands in."""
        return self.quorum is False and self._sorry_weight is not None

    def _wanted(self, server: int, now: float) -> int | None:
        judge = self.judges[server]
        if judge is None:
            return 0 if self.sorry else self.own_weights[server]
        if judge.opinion is Opinion.UP:
            return 0 if self.sorry else judge.weight(now)
        gone = judge.opinion is Opinion.DOWN and self._rules.remove
        return None if gone and now >= judge.since + self._rules.drain else 0

    def _sorry(self, now: float) -> int | None:
        if self.sorry:
            return self._sorry_weight
        if self.regained_at is None or now >= self.regained_at + self._rules.drain:
            return None
        return 0 if self._placed[SORRY] is not None else None

    def _time_of(self, server: int, now: float) -> float | None:
        """When something about a server is to be done again by itself; None for never."""
        if server == SORRY:
            lingers = not self.sorry and self._is_placed(SORRY)
            since = self.regained_at if lingers else None
            return None if since is None else since + self._rules.drain
        judge = self.judges[server]
        if judge is None:
            return None
        if judge.opinion is Opinion.DOWN and self._rules.remove and self._is_placed(server):
            return judge.since + self._rules.drain
        return judge.deadline(now)

    def _is_placed(self, server: int) -> bool:
        return self._placed[server] is not None


class _Agenda:
    """One time for each of many servers, the earliest first."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        # May hold times that have been changed since; `_times` is right.
        self._heap: list[tuple[float, int]] = []

    def put(self, server: int, at: float | None) -> None:
        """Set the time of a server; None for none."""
        if at is None:
            self._times.pop(server, None)
        elif self._times.get(server) != at:
            self._times[server] = at
            heapq.heappush(self._heap, (at, server))

    @property
    def next(self) -> float | None:
        """The earliest time."""
        while self._heap:
            at, server = self._heap[0]
            if self._times.get(server) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def take(self, now: float) -> set[int]:
        """The servers whose time has come; they have none any more."""
        due: set[int] = set()
        while (at := self.next) is not None and at <= now:
            server = heapq.heappop(self._heap)[1]
            del self._times[server]
            due.add(server)
        return due
