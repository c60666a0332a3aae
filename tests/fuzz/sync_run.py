"""Drive replicas through drawn steps, or through those of a file, and shrink what fails."""

import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz import sync_mutations as mutations
from tests.fuzz.checks import BrokenRuleError
from tests.fuzz.sync_steps import (
    Call,
    CallName,
    Change,
    Hostile,
    Lose,
    Plan,
    Reproduction,
    Sleep,
    Step,
)
from tests.fuzz.sync_world import CLIENTS, SyncWorld, everything
from tests.fuzz.trace import Lines
from tests.vectors.sync_recordings import LEVEL_2, load

STEPS = 1200
CHECK_EVERY = 50
TRACED = 0.3
"""The share of steps that are watched line by line."""
PATIENCE = 30
"""Seconds after which a step hangs."""
REPLAYS_MAX = 400
CORPUS_MAX = 256
A_MINUTE = 61.0
"""After this a peer that is silent gives its place away."""
PAUSES = (0.0, 0.0, 0.001, 0.005, 0.03, 0.03, 0.2, 0.3, 1.2, 3.0)

_CALLS: tuple[CallName, ...] = ("lead", "follow", "resync", "ask", "configure", "restart")

Make = Callable[[Plan], SyncWorld]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that went wrong; see `tests.fuzz.run.Failure`."""

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
    hostile: int = 0
    counters: Counter[str] = field(default_factory=Counter)

    def close(self, world: SyncWorld) -> None:
        """Count what a run has come to."""
        self.runs += 1
        for node in world.nodes:
            self.counters.update(node.replica.counters.snapshot())


class Corpus:
    """Datagrams of all kinds, and those that reached something new; the oldest give way."""

    def __init__(self) -> None:
        self._seeds = [*load("sync-0.1.0").datagrams, *load(LEVEL_2).datagrams]
        self._found: deque[bytes] = deque(maxlen=CORPUS_MAX)

    def add(self, data: bytes) -> None:
        """Keep one that was interesting."""
        self._found.append(data)

    def draw(self, dice: Random) -> bytes:
        """One of them."""
        return dice.choice(self._found if self._found and dice.random() < 0.5 else self._seeds)


def plan(dice: Random) -> Plan:
    """How a run's replicas are made."""
    return Plan(
        levels=dice.choice(((2, 2, 2), (2, 2, 2), (2, 1, 2), (1, 2, 2))),
        key=dice.choice((b"", b"", b"", dice.randbytes(32))),
        datagram_max=dice.choice((500, 700, 1400)),
        queue_max=dice.choice((5, 1000)),
        bytes_per_second=dice.choice((0, 0, 20_000)),
        window=dice.choice((2, 32)),
    )


def draw(dice: Random, world: SyncWorld, corpus: Corpus) -> Step:
    """What happens next."""
    chance = dice.random()
    if chance < 0.62:
        return Hostile(dice.randrange(3), _hostile(dice, world, corpus))
    if chance < 0.78:
        count = dice.choice((1, 3, 40))
        changes = tuple((dice.randrange(CLIENTS), dice.randrange(-3, 9)) for _ in range(count))
        return Change(dice.randrange(2), changes)
    if chance < 0.92:
        return Sleep(dice.choice(PAUSES) if dice.random() < 0.995 else A_MINUTE)
    if chance < 0.96:
        return Lose(dice.choice((1, 2, 10, 300)))
    names: tuple[CallName, ...] = (
        "lead",
        "lead",
        "follow",
        "resync",
        "ask",
        "ask",
        "configure",
        "restart",
    )
    return Call(dice.randrange(2), dice.choice(names))


def _hostile(dice: Random, world: SyncWorld, corpus: Corpus) -> bytes:
    if dice.random() < 0.05:
        return mutations.noise(dice)
    recorded = list(world.recorded)
    data = dice.choice(recorded) if recorded and dice.random() < 0.6 else corpus.draw(dice)
    if dice.random() < 0.1:
        return data
    return mutations.mutate(dice, data, corpus.draw(dice), world.hints())


def run(
    seed: str,
    corpus: Corpus,
    lines: Lines,
    statistics: Statistics,
    *,
    steps: int = STEPS,
    make: Make = SyncWorld,
) -> Failure | None:
    """One run from its beginning to its end; returns how it failed, if it did."""
    dice = Random(seed)
    drawn = plan(dice)
    world = make(drawn)
    taken: list[Step] = [Call(0, "lead")]
    try:
        with _limited():
            world.take(taken[0])
        for number in range(steps):
            step = draw(dice, world, corpus)
            taken.append(step)
            statistics.steps += 1
            statistics.hostile += isinstance(step, Hostile)
            lines.found = 0
            with lines if dice.random() < TRACED else nullcontext(), _limited():
                world.take(step)
                if number % CHECK_EVERY == 0:
                    everything(world)
            if lines.found and isinstance(step, Hostile):
                corpus.add(step.data)
        with _limited():
            world.finish()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
        return _failure(drawn, taken, error)
    finally:
        statistics.close(world)
    return None


def replay(drawn: Plan, steps: Sequence[Step], make: Make = SyncWorld) -> Failure | None:
    """Repeat a run. Returns how it fails, if it does."""
    taken: list[Step] = []
    try:
        world = make(drawn)
        for step in steps:
            taken.append(step)
            with _limited():
                world.take(step)
        with _limited():
            everything(world)
            world.finish()
    except Exception as error:  # noqa: BLE001 - as in `run`
        return _failure(drawn, taken, error)
    return None


class HangingError(Exception):
    """A step does not come to an end."""


@contextmanager
def _limited() -> Iterator[None]:
    """A step that takes this long hangs."""

    def hangs(_number: int, _frame: FrameType | None) -> None:
        raise HangingError

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _failure(drawn: Plan, steps: list[Step], error: Exception) -> Failure:
    report = "".join(traceback.format_exception(error))
    where = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in where if "/lvsha/" in frame.filename] or list(where)
    if isinstance(error, BrokenRuleError):
        inside = [frame for frame in where if frame.name != "demand"]
    last = inside[-1]
    place = f"{Path(last.filename).name}:{last.name}:{last.lineno}"
    signature = type(error).__name__ if isinstance(error, HangingError) else place
    return Failure(drawn, list(steps), f"{signature} {type(error).__name__}", report)


def shrink(failure: Failure, make: Make = SyncWorld, replays: int = REPLAYS_MAX) -> Failure:
    """Leave out steps as long as the run fails in the same way."""
    best = replay(failure.plan, failure.steps, make)
    if best is None or best.signature != failure.signature:
        return failure
    size = max(len(best.steps) // 2, 1)
    while replays > 0:
        at, before = len(best.steps) - size, len(best.steps)
        while at > -size and replays > 0:
            steps = best.steps[: max(at, 0)] + best.steps[max(at, 0) + size :]
            replays -= 1
            found = replay(best.plan, steps, make)
            if found is not None and found.signature == failure.signature:
                best = found
            at = min(at, len(best.steps)) - size
        if size == 1 and len(best.steps) == before:
            break
        size = max(size // 2, 1)
    return best
