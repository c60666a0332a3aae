"""A short run of the fuzzer of the sync, and proof that it finds what is wrong."""

from random import Random

import pytest

from lvsha.sync.actions import Action, Apply
from lvsha.sync.replica import Replica
from lvsha.sync.stream import Stream
from tests.fuzz import sync_mutations as mutations
from tests.fuzz.sync_run import (
    Corpus,
    Failure,
    Make,
    Statistics,
    plan,
    replay,
    run,
    shrink,
)
from tests.fuzz.sync_steps import Hostile, Plan, decode, encode
from tests.fuzz.sync_world import SyncWorld
from tests.fuzz.trace import SYNC, Lines
from tests.replicas import connection

RUNS = 5
STEPS = 300


def test_hostile_datagrams_break_no_rule() -> None:
    corpus, lines, statistics = Corpus(), Lines(SYNC), Statistics()
    for number in range(RUNS):
        failure = run(f"test/{number}", corpus, lines, statistics, steps=STEPS)
        assert failure is None, failure.report
    assert statistics.hostile > RUNS * STEPS / 2
    kinds = [name for name in statistics.counters if name.startswith("refused")]
    assert len(kinds) >= 5, kinds


def test_a_seed_gives_the_same_run_again() -> None:
    counted = []
    for _ in range(2):
        statistics = Statistics()
        assert run("again", Corpus(), Lines(()), statistics, steps=STEPS) is None
        counted.append(statistics.counters)
    assert counted[0] == counted[1]


class TrustingReplica(Replica):
    """A replica that uses what it has refused."""

    def receive(self, datagram: bytes, now: float) -> list[Action]:
        """Let something in that is malformed in a certain way."""
        actions = super().receive(datagram, now)
        if self.counters["refused_malformed"] % 7 == 6 and len(actions) == 1:
            actions.append(Apply([connection(1)]))
        return actions


class FragileReplica(Replica):
    """A replica that cannot bear a certain datagram."""

    def receive(self, datagram: bytes, now: float) -> list[Action]:
        """Raise on a rare condition."""
        if len(datagram) % 64 == 7 and self.counters["datagrams_received"] > 20:
            raise ZeroDivisionError("planted")
        return super().receive(datagram, now)


_skip_to = Stream._skip_to


def skip_without_limit(stream: Stream, sequence: int, now: float) -> None:
    """What a stream does whose memory has no limit, or hardly any."""
    stream._missing_max = 10_000
    _skip_to(stream, min(sequence, stream._next + 9000), now)


def with_replica(kind: type[Replica]) -> Make:
    """Makes worlds whose replicas are of this kind."""

    def make(drawn: Plan) -> SyncWorld:
        world = SyncWorld(drawn)
        for node in world.nodes:
            node.replica.__class__ = kind
        return world

    return make


def first_failure(make: Make, runs: int = 12) -> Failure:
    """The first run that fails with a bad world."""
    corpus, lines, statistics = Corpus(), Lines(SYNC), Statistics()
    for number in range(runs):
        failure = run(f"planted/{number}", corpus, lines, statistics, steps=STEPS, make=make)
        if failure is not None:
            return failure
    pytest.fail("the planted fault was not found")


def test_a_planted_exception_is_found_shrunk_and_repeated_from_a_file() -> None:
    make = with_replica(FragileReplica)
    failure = first_failure(make)
    assert "ZeroDivisionError" in failure.signature
    shortest = shrink(failure, make, replays=100)
    assert shortest.signature == failure.signature
    assert len(shortest.steps) <= len(failure.steps)
    reproduction = decode(encode(shortest.reproduction))
    assert (reproduction.plan, reproduction.steps) == (shortest.plan, shortest.steps)
    again = replay(reproduction.plan, reproduction.steps, make)
    assert again is not None
    assert again.signature == failure.signature
    assert replay(reproduction.plan, reproduction.steps) is None


def test_what_is_used_of_a_refused_datagram_is_found() -> None:
    failure = first_failure(with_replica(TrustingReplica))
    assert "nonsense that was used" in failure.report
    assert isinstance(failure.steps[-1], Hostile)


def test_a_table_without_a_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "_skip_to", skip_without_limit)
    failure = first_failure(SyncWorld)
    assert "too much is missing" in failure.report


def test_every_mutation_takes_any_datagram() -> None:
    dice = Random(1)
    world = SyncWorld(plan(dice))
    corpus, hints = Corpus(), world.hints()
    for _ in range(2000):
        data = corpus.draw(dice)[: dice.choice((0, 3, 4, 9, 2000))]
        broken = mutations.mutate(dice, data, corpus.draw(dice), hints)
        assert len(broken) <= mutations.LENGTH_MAX
        assert len(mutations.noise(dice)) <= mutations.LENGTH_MAX
