"""A short run of the fuzzer, and proof that it finds what is wrong."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.network import Outgoing
from lvsha.datapath.reasons import Reason
from lvsha.datapath.verdicts import Drop, Verdict
from tests.fuzz import craft, mutations
from tests.fuzz.draw import Corpus
from tests.fuzz.run import Failure, Statistics, replay, run, shrink
from tests.fuzz.steps import Plan, Receive, decode, encode
from tests.fuzz.trace import Lines
from tests.fuzz.world import World

RUNS = 16
STEPS = 1200


def fuzz(runs: int, name: str = "test", steps: int = STEPS) -> tuple[list[int], Statistics, Corpus]:
    """Runs without a failure: their fingerprints, and what they came to."""
    corpus, lines, statistics = Corpus(), Lines(), Statistics()
    fingerprints = []
    for number in range(runs):
        ended = run(f"{name}/{number}", corpus, lines, statistics, steps=steps)
        assert not isinstance(ended, Failure), ended.report
        fingerprints.append(ended)
    return fingerprints, statistics, corpus


def first_failure(make: Callable[[Plan], World], runs: int = 10) -> Failure:
    """The first run that fails with a bad world."""
    corpus, lines, statistics = Corpus(), Lines(), Statistics()
    for number in range(runs):
        ended = run(f"planted/{number}", corpus, lines, statistics, make=make)
        if isinstance(ended, Failure):
            return ended
    pytest.fail("the planted fault was not found")


def test_hostile_frames_break_no_rule() -> None:
    _, statistics, corpus = fuzz(RUNS)
    assert statistics.runs == RUNS
    assert len(statistics.drops) > 15
    assert statistics.sent > 100
    if sys.gettrace() is None:
        assert corpus.frames


def test_a_seed_gives_the_same_run_in_another_process() -> None:
    program = (
        "from tests.fuzz.test_fuzz import fuzz\n"
        "fingerprints, statistics, _ = fuzz(2, 'again', 400)\n"
        "print(fingerprints, sorted(statistics.drops.items()))\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert told != {""}


class RaisingDirector(Director):
    """A director that cannot bear a reset of a packet with an odd length."""

    def handle(self, frame: Frame, now: float) -> Verdict:
        """Raise on a rare condition."""
        if frame.event & craft.RST and frame.length & 1:
            raise ZeroDivisionError("planted")
        return super().handle(frame, now)


def raising_world(plan: Plan) -> World:
    """One with such a director."""
    world = World(plan)
    world.director.__class__ = RaisingDirector
    return world


def forgetful_world(plan: Plan) -> World:
    """One whose director does not count what finds no server."""
    world = World(plan)
    carry_out = world.director.carry_out

    def lossy(frame: Frame, verdict: Verdict, now: float) -> Sequence[Outgoing]:
        if isinstance(verdict, Drop) and verdict.reason is Reason.NO_SERVER:
            return ()
        return carry_out(frame, verdict, now)

    world.director.carry_out = lossy
    return world


def test_a_planted_exception_is_found_shrunk_and_repeated_from_a_file() -> None:
    make = raising_world
    failure = first_failure(make)
    assert failure.signature.startswith("ZeroDivisionError")
    shortest = shrink(failure, make, replays=200)
    assert shortest.signature == failure.signature
    assert len(shortest.steps) <= len(failure.steps)
    assert isinstance(shortest.steps[-1], Receive)
    reproduction = decode(encode(shortest.reproduction))
    assert (reproduction.plan, reproduction.steps) == (shortest.plan, shortest.steps)
    again = replay(reproduction.plan, reproduction.steps, make)
    assert again is not None
    assert again.signature == failure.signature
    assert replay(reproduction.plan, reproduction.steps) is None


def test_a_drop_that_is_not_counted_is_found() -> None:
    failure = first_failure(forgetful_world)
    assert "not counted under its reason" in failure.report


def test_every_mutation_fits_the_buffer_and_takes_any_frame() -> None:
    dice = Random(1)
    frame = craft.frame(craft.ip(bytes(4), bytes(4), 17, bytes(65_000)))
    for _ in range(300):
        size = dice.choice((0, 5, 10, 24, 30, 44, 64, 100, len(frame)))
        data = mutations.mutate(dice, frame[:size], frame[: dice.randrange(100)])
        assert len(data) <= mutations.LENGTH_MAX
        assert len(mutations.noise(dice)) <= mutations.LENGTH_MAX
