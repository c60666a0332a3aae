"""Run a director through drawn steps, or through those of a file, and shrink what fails."""

import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from lvsha.datapath.reasons import Reason
from tests.fuzz import checks, craft, landscape
from tests.fuzz.checks import demand
from tests.fuzz.draw import Corpus, Drawer
from tests.fuzz.judge import is_fragment, judge
from tests.fuzz.steps import Plan, Receive, Reproduction, Step
from tests.fuzz.trace import Lines
from tests.fuzz.world import World

STEPS = 1500
STEPS_OF_A_LONG_RUN = 30_000
LONG_RUNS = 0.02
"""How many steps a director is driven for before another one is made; what only grows slowly
is seen in long runs."""
CHECK_EVERY = 64
"""Steps between two looks at everything."""
TRACED = 0.25
JUDGED = 0.15
"""The shares of frames that are watched line by line, and whose outcome scapy judges."""
REPLAYS_MAX = 1500
"""How often a run is repeated to make it shorter."""

_Make = Callable[[Plan], World]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that went wrong.

    Attributes:
        steps: up to the one that showed it.
        signature: the same for failures that have the same cause, as far as one can tell.
        report: for people: the traceback.
    """

    plan: Plan
    steps: list[Step]
    signature: str
    report: str

    @property
    def reproduction(self) -> Reproduction:
        """For a file."""
        return Reproduction(self.plan, self.steps, self.report)


@dataclass(slots=True)
class Statistics:
    """What all runs did together."""

    runs: int = 0
    steps: int = 0
    frames: int = 0
    sent: int = 0
    drops: Counter[Reason] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def note(self, step: Step) -> None:
        """Count a step."""
        self.steps += 1
        self.kinds[step.kind] += 1
        self.frames += isinstance(step, Receive)

    def close(self, world: World) -> None:
        """Count what a run has come to."""
        self.runs += 1
        self.drops += world.director.drops


class Pair:
    """A world, and its twin if the plan has one; what they did, as one number.

    Args:
        plan: of both.
        make: makes the world; for tests that make a bad one.
    """

    def __init__(self, plan: Plan, make: _Make = World) -> None:
        self.world = make(plan)
        self._twin = World(plan, fresh=True) if plan.twin else None
        self._taken = 0
        self.fingerprint = 0

    def take(self, step: Step) -> None:
        """Let both take a step, and demand that all is well."""
        world, plan, director = self.world, self.world.plan, self.world.director
        world.take(step)
        checks.sizes(director, plan.connections_max, plan.fragment_bytes)
        if self._twin is not None:
            self._twin.take(step)
            _compare(world, self._twin)
        for _, data in world.sent:
            self.fingerprint = zlib.crc32(data, self.fingerprint)
        told = repr((sorted(director.drops.items()), len(world.changes)))
        self.fingerprint = zlib.crc32(told.encode(), self.fingerprint)
        self._taken += 1
        if self._taken % CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Look at everything."""
        checks.everything(self.world, self.world.now)


def _compare(world: World, twin: World) -> None:
    """Demand that two worlds have done the same."""
    demand(world.sent == twin.sent, "a fresh frame gives something else to send")
    demand(world.director.drops == twin.director.drops, "a fresh frame gives other drops")
    demand(world.changes == twin.changes, "a fresh frame gives other changes")


def run(
    seed: str,
    corpus: Corpus,
    lines: Lines,
    statistics: Statistics,
    *,
    steps: int | None = None,
    make: _Make = World,
) -> Failure | int:
    """One director from its making to the end of its run.

    Returns:
        How it failed, or its fingerprint.
    """
    dice = Random(seed)
    plan = landscape.plan(dice)
    drawer = Drawer(dice, corpus)
    with lines:
        pair = Pair(plan, make)
    taken: list[Step] = []
    beginning = drawer.beginning()
    if steps is None:
        steps = STEPS_OF_A_LONG_RUN if dice.random() < LONG_RUNS else STEPS
    for number in range(steps):
        step = beginning[number] if number < len(beginning) else drawer.step(pair.world)
        taken.append(step)
        statistics.note(step)
        lines.found = 0
        watched, judged = dice.random() < TRACED, dice.random() < JUDGED
        try:
            with lines if watched else nullcontext():
                pair.take(step)
            if judged:
                _judge(step, pair)
            if number == steps - 1:
                pair.check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            statistics.close(pair.world)
            return _failure(plan, taken, error)
        statistics.sent += len(pair.world.sent)
        drawer.told(step, pair.world, is_new=bool(lines.found))
    statistics.close(pair.world)
    return pair.fingerprint


def replay(plan: Plan, steps: Sequence[Step], make: _Make = World) -> Failure | None:
    """Repeat a run; everything that left is judged. Returns how it fails, if it does."""
    pair = Pair(plan, make)
    taken: list[Step] = []
    try:
        for step in steps:
            taken.append(step)
            pair.take(step)
            _judge(step, pair)
        pair.check()
    except Exception as error:  # noqa: BLE001 - as in `run`
        return _failure(plan, taken, error)
    return None


def _judge(step: Step, pair: Pair) -> None:
    """Judge what left because of a frame in order; fragments may be completed by others' ones."""
    if isinstance(step, Receive) and step.sound and not is_fragment(step.data[craft.L3 :]):
        judge(pair.world.sent)


def _failure(plan: Plan, steps: list[Step], error: Exception) -> Failure:
    report = "".join(traceback.format_exception(error))
    where = traceback.extract_tb(error.__traceback__)
    # The innermost place in lvsha names the fault; of a broken rule, the rule does.
    inside = [frame for frame in where if "/lvsha/" in frame.filename] or list(where)
    if isinstance(error, checks.BrokenRuleError):
        inside = [frame for frame in where if frame.name != "demand"]
    last = inside[-1]
    signature = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}:{last.lineno}"
    return Failure(plan, list(steps), signature, report)


def shrink(failure: Failure, make: _Make = World, replays: int = REPLAYS_MAX) -> Failure:
    """Leave out steps as long as the run fails in the same way."""
    best = replay(failure.plan, failure.steps, make)
    if best is None or best.signature != failure.signature:
        return failure
    if best.plan.twin:
        alone = replay(replace(best.plan, twin=False), best.steps, make)
        if alone is not None and alone.signature == failure.signature:
            best = alone
    size = max(len(best.steps) // 2, 1)
    while replays > 0:
        shorter, replays = _without(best, size, make, replays)
        if size == 1 and len(shorter.steps) == len(best.steps):
            break
        best = shorter
        size = max(min(size // 2, len(best.steps) // 2), 1)
    return best


def _without(failure: Failure, size: int, make: _Make, replays: int) -> tuple[Failure, int]:
    """Try to leave out each stretch of so many steps, from the end on."""
    best = failure
    at = len(best.steps) - size
    while at > -size and replays > 0:
        first = max(at, 0)
        steps = best.steps[:first] + best.steps[max(at, 0) + size :]
        replays -= 1
        found = replay(best.plan, steps, make) if steps else None
        if found is not None and found.signature == failure.signature:
            best = found
            at = min(at, len(best.steps))
        at -= size
    return best, replays
