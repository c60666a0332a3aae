"""Turn what a drill saw into figures and a verdict; a pure function of the recording.

The rules:

* A connection is established when the client received an answer through it. From
  then on it is lost if it breaks for whatever reason: a reset, a close by the other
  end, silence to the end of the drill, or an answer from another server.
* A loss belongs to the act in whose time it was seen; what breaks before the first act
  belongs to the first. So each loss is counted once.
* The outage of an act is the longest time between two answers to a UDP flow that
  follow each other, of those that end after the act's moment. A flow that never
  recovers has an outage up to the end of the act and `recovered` is false. Beside it
  stands for how long the machine itself stood still within it: that is nobody's fault;
  and the longest of those times that touch the moments after the takeover, `CHANGE`, which
  is less if the longest was elsewhere.
* A datagram is lost if its answer did not come, or only after `DATAGRAM_LATE`; such late
  answers end no outage either.
* Connections still in their handshake at the moment of an act, and those tried after
  it, are reported but cost nobody an established connection.

Times are seconds unless a name ends in ``_ms``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from lvsha.drill.recording import (
    OTHER_SERVER,
    Act,
    Datagram,
    Load,
    Recording,
    ShortConnection,
    Standstill,
    StateSeen,
    SyncFrames,
)

BEFORE: Final = 0.5
"""How long before an act its steady state is looked at."""

CHANGE: Final = 0.25
"""For how long after a takeover a gap in the answers is its own."""

DATAGRAM_LATE: Final = 1.0
"""An answer that takes longer counts as none: no user of UDP waits for it."""

PLANNED: Final = frozenset({"handover", "back", "home", "stop", "reload", "restore"})
"""Acts in which no new connection may fail either: an operator chose their moment."""

MASTER: Final = "MASTER"
TWO_MASTERS_MIN: Final = 0.05
"""One says that it is MASTER, and the other hears of it: shorter overlaps are nothing but that."""


@dataclass(frozen=True, slots=True)
class KindFigures:
    """What became of the established connections of one kind in one act."""

    opened: int
    kept: int
    broken: int
    reasons: Mapping[str, int]
    servers: Mapping[str, int]
    moved: int
    stall_max_ms: float | None

    @property
    def same_server(self) -> bool:
        """Whether every connection stayed with the real server it began with."""
        return self.moved == 0


@dataclass(frozen=True, slots=True)
class AttemptFigures:
    """What became of connections that were not yet established."""

    tried: int
    succeeded: int
    failed: int
    reasons: Mapping[str, int]
    slowest_ms: float | None


@dataclass(frozen=True, slots=True)
class ActFigures:
    """One act, judged."""

    act: Act
    outage_ms: float
    outage_from: float
    outage_until: float
    recovered: bool
    usual_gap_ms: float
    standstill_ms: float
    change_ms: float | None
    lost_datagrams: int
    sent_datagrams: int
    takeover_ms: float | None
    two_masters_ms: float
    streams: KindFigures
    idle: KindFigures
    young: KindFigures
    later: KindFigures
    handshakes: AttemptFigures
    attempts: AttemptFigures

    @property
    def broken(self) -> int:
        """Established connections lost in this act."""
        return sum(figures.broken for _, figures in self.kinds)

    @property
    def kinds(self) -> Sequence[tuple[str, KindFigures]]:
        """The four kinds of established connections, with their names for a person."""
        return (
            ("streams", self.streams),
            ("idle", self.idle),
            ("young", self.young),
            ("new", self.later),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole drill, judged."""

    acts: Sequence[ActFigures]
    never_opened: int
    lateness_max_ms: float
    sync_frames: SyncFrames

    @property
    def broken(self) -> int:
        """All established connections that were lost."""
        return sum(act.broken for act in self.acts)

    @property
    def refused(self) -> int:
        """New connections that failed while nothing but what was planned happened."""
        planned = [act for act in self.acts if act.act.name in PLANNED]
        return sum(act.handshakes.failed + act.attempts.failed for act in planned)

    @property
    def passed(self) -> bool:
        """Whether nothing was lost and the drill was what it was meant to be."""
        return (
            bool(self.acts)
            and self.broken == 0
            and self.refused == 0
            and self.never_opened == 0
            and all(act.recovered and act.takeover_ms is not None for act in self.acts)
        )

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.broken:
            return f"{_count(self.broken, 'established connection')} lost"
        if self.refused:
            return f"{_count(self.refused, 'new connection')} failed during what was planned"
        if self.never_opened:
            return f"{_count(self.never_opened, 'connection')} could not even be opened"
        if not all(act.recovered for act in self.acts):
            return "the virtual address was not reachable again"
        for act in self.acts:
            if act.takeover_ms is None:
                return f"{act.act.heir} did not take the virtual address over"
        if not self.acts:
            return "nothing was rehearsed"
        return "no established connection was lost"


def judge(recording: Recording) -> Verdict:
    """Evaluate a drill."""
    acts = []
    for index, act in enumerate(recording.acts):
        # The first act answers for what came before it, the last for what came after it.
        since = float("-inf") if index == 0 else act.at
        is_last = index + 1 == len(recording.acts)
        until = float("inf") if is_last else recording.acts[index + 1].at
        acts.append(_judge_act(recording, act, since, until))
    return Verdict(
        acts=tuple(acts),
        never_opened=sum(entry.opened_at is None for entry in recording.load.long),
        lateness_max_ms=recording.load.lateness_max * 1000,
        sync_frames=recording.sync_frames,
    )


def _judge_act(recording: Recording, act: Act, since: float, until: float) -> ActFigures:
    load = recording.load
    gap = longest_gap(load, act)
    window = [entry for entry in load.probe if act.at - BEFORE <= entry.sent_at < act.until]
    takeover = _takeover(recording.states, act)
    return ActFigures(
        act=act,
        outage_ms=(gap.until - gap.since) * 1000,
        outage_from=gap.since,
        outage_until=gap.until,
        recovered=gap.closed,
        usual_gap_ms=_usual_gap(load, act) * 1000,
        standstill_ms=_standstill(recording.standstills, gap) * 1000,
        change_ms=None if takeover is None else _change(load, act.at + takeover) * 1000,
        lost_datagrams=sum(_is_lost(entry) for entry in window),
        sent_datagrams=len(window),
        takeover_ms=None if takeover is None else takeover * 1000,
        two_masters_ms=1000
        * sum(
            min(end, act.until) - max(start, act.at)
            for start, end in two_masters(recording.states, recording.ended_at)
            if start < act.until and end > act.at and end - start >= TWO_MASTERS_MIN
        ),
        streams=_long_figures(load, "stream", act, since, until),
        idle=_long_figures(load, "idle", act, since, until),
        young=_short_figures(
            [
                entry
                for entry in load.short
                if entry.established_at is not None
                and entry.established_at < act.at
                # What ended well before the act has no part in it.
                and entry.ended_at >= (since if entry.reason else act.at)
            ],
            until,
        ),
        later=_short_figures(
            [
                entry
                for entry in load.short
                if entry.established_at is not None
                and act.at <= entry.established_at < until
                # One that outlived this act is young in the next.
                and entry.ended_at < until
            ],
            until,
        ),
        handshakes=_attempts(
            [
                entry
                for entry in load.short
                if entry.started_at < act.at <= (entry.established_at or entry.ended_at)
            ]
        ),
        attempts=_attempts([entry for entry in load.short if act.at <= entry.started_at < until]),
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without answers; ``closed`` if an answer ended it."""

    since: float
    until: float
    closed: bool


def longest_gap(load: Load, act: Act) -> Gap:
    """The longest time without an answer to a UDP flow that an act caused."""
    gaps = [_longest_gap(flow, act) for flow in _flows(load)] or [_longest_gap((), act)]
    return max(gaps, key=lambda gap: (not gap.closed, gap.until - gap.since))


def _flows(load: Load) -> Iterable[Sequence[Datagram]]:
    """The datagrams of each flow."""
    flows: dict[int, list[Datagram]] = {}
    for entry in load.probe:
        flows.setdefault(entry.flow, []).append(entry)
    return flows.values()


def _longest_gap(flow: Sequence[Datagram], act: Act) -> Gap:
    answers = sorted(
        entry.answered_at for entry in flow if entry.answered_at is not None and not _is_lost(entry)
    )
    before = [at for at in answers if at < act.at]
    after = [at for at in answers if act.at <= at <= act.until]
    start = before[-1] if before else act.at
    if not after:
        return Gap(start, act.until, closed=False)
    gaps = [Gap(since, until, closed=True) for since, until in pairwise([start, *after])]
    tail = Gap(after[-1], act.until, closed=False)
    worst = max(gaps, key=lambda gap: gap.until - gap.since)
    # Silence at the end is only an outage if it is worse than all that was before it.
    return tail if tail.until - tail.since > max(worst.until - worst.since, BEFORE) else worst


def _standstill(standstills: Sequence[Standstill], gap: Gap) -> float:
    """The longest time for which the machine itself stood still within a gap."""
    return max(
        (
            min(one.until, gap.until) - max(one.since, gap.since)
            for one in standstills
            if one.since < gap.until and one.until > gap.since
        ),
        default=0.0,
    )


def two_masters(states: Sequence[StateSeen], ended_at: float) -> Iterable[tuple[float, float]]:
    """The spans of time in which both directors said that they are MASTER of one router."""
    now: dict[tuple[str, str], str] = {}
    since: dict[str, float] = {}
    for seen in states:
        now[seen.router, seen.node] = seen.state
        masters = [state for (of, _), state in now.items() if of == seen.router and state == MASTER]
        if len(masters) > 1:
            since.setdefault(seen.router, seen.at)
        elif seen.router in since:
            yield since.pop(seen.router), seen.at
    for start in since.values():
        yield start, ended_at


def _takeover(states: Sequence[StateSeen], act: Act) -> float | None:
    """How long after the act's moment its heir said that it is MASTER; 0 if it was already."""
    of_heir = [seen for seen in states if (seen.node, seen.router) == (act.heir, act.router)]
    before = [seen.state for seen in of_heir if seen.at < act.at]
    if before[-1:] == [MASTER]:
        return 0.0
    for seen in of_heir:
        if act.at <= seen.at < act.until and seen.state == MASTER:
            return seen.at - act.at
    return None


def _is_lost(entry: Datagram) -> bool:
    """Whether a datagram was of no use; what a stopped director kept until it woke is not."""
    return entry.answered_at is None or entry.answered_at - entry.sent_at > DATAGRAM_LATE


def _usual_gap(load: Load, act: Act) -> float:
    """The longest time between two answers in the steady state before an act."""
    return max(
        (
            until - since
            for since, until in _between_answers(load)
            if act.at - BEFORE <= since and until < act.at
        ),
        default=0.0,
    )


def _change(load: Load, at: float) -> float:
    """The longest time between two answers that touches the moments after a takeover."""
    return max(
        (
            until - since
            for since, until in _between_answers(load)
            if until > at and since < at + CHANGE
        ),
        default=0.0,
    )


def _between_answers(load: Load) -> Iterable[tuple[float, float]]:
    """The times between the answers to each flow."""
    for flow in _flows(load):
        yield from pairwise(
            sorted(entry.answered_at for entry in flow if entry.answered_at is not None)
        )


def _long_figures(load: Load, kind: str, act: Act, since: float, until: float) -> KindFigures:
    alive = [
        entry
        for entry in load.long
        if entry.kind == kind
        and entry.opened_at is not None
        and (entry.broken_at is None or entry.broken_at >= since)
    ]
    broken = [entry for entry in alive if entry.broken_at is not None and entry.broken_at < until]
    stalls = [
        end - start
        for entry in alive
        for start, end in entry.stalls
        if end >= act.at and start < act.until
    ]
    return KindFigures(
        opened=len(alive),
        kept=len(alive) - len(broken),
        broken=len(broken),
        reasons=dict(Counter(entry.reason for entry in broken)),
        servers=dict(Counter(entry.server for entry in alive)),
        moved=sum(entry.reason == OTHER_SERVER for entry in broken),
        stall_max_ms=max(stalls) * 1000 if stalls else None,
    )


def _short_figures(entries: Sequence[ShortConnection], until: float) -> KindFigures:
    broken = [entry for entry in entries if entry.reason and entry.ended_at < until]
    return KindFigures(
        opened=len(entries),
        kept=len(entries) - len(broken),
        broken=len(broken),
        reasons=dict(Counter(entry.reason for entry in broken)),
        servers=dict(Counter(entry.server for entry in entries)),
        moved=sum(entry.reason == OTHER_SERVER for entry in broken),
        stall_max_ms=None,
    )


def _attempts(entries: Sequence[ShortConnection]) -> AttemptFigures:
    waits = [
        entry.established_at - entry.started_at
        for entry in entries
        if entry.established_at is not None
    ]
    failed = [entry for entry in entries if entry.established_at is None]
    return AttemptFigures(
        tried=len(entries),
        succeeded=len(waits),
        failed=len(failed),
        reasons=dict(Counter(entry.reason for entry in failed)),
        slowest_ms=max(waits) * 1000 if waits else None,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
