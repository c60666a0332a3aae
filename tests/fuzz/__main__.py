"""``python -m tests.fuzz``: drive a director, and replicas, with what is hostile.

It is a fuzzer of its own: seeded, stateful, and led by coverage. It has two targets, which
share the time that it is given. For the first, run after run a director is
made (`landscape`), conversations of all kinds are held through it (`conversations`), frames
are broken (`mutations`), and the configuration, the network, peers and the clock change in
between (`draw`). After each step rules are checked (`world`, `checks`, `judge`). Frames that
reach lines of the datapath which none has reached (`trace`) are kept and broken again, in
all runs that follow. The second is the same for the sync: three replicas on a network, and
datagrams that are broken (`sync_run`, `sync_world`, `sync_mutations`).
docs/decisions/0009-fuzzing.md says why it is neither atheris nor
hypothesis.

A seed gives the same runs in the same order; only how many of them fit into the time is the
machine's. A run that fails is made shorter and written to a file, which ``--replay`` repeats.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lvsha.datapath.reasons import Reason
from tests.fuzz import sync_run, sync_steps
from tests.fuzz.draw import Corpus
from tests.fuzz.run import Failure, Statistics, replay, run, shrink
from tests.fuzz.steps import Receive, decode, encode
from tests.fuzz.trace import SYNC, Lines

NOT_THE_DIRECTORS = frozenset(
    {
        Reason.LINK_DOWN,
        Reason.SEND_QUEUE_FULL,
        Reason.SEND_REFUSED,
        Reason.SURPRISE,
        Reason.STALE,
    }
)
"""Reasons that only the shell around the director gives."""


SYNC_SHARE = 0.25
"""Of the time, for the sync."""


class Target(Protocol):
    """What is fuzzed: runs of it, and what they come to."""

    name: str
    share: float

    def run(self, seed: str) -> "Found | None":
        """One run; how it failed, if it did."""
        ...

    def print_statistics(self, seconds: float, *, list_lines: bool) -> None:
        """Say what was done in all runs."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A run that failed: what is said of it, and how it is made shorter and written."""

    steps: Sequence[object]
    report: str
    shorter: Callable[[], tuple[int, bytes]]


class DirectorTarget:
    """A director, by frames."""

    name, share = "director", 1 - SYNC_SHARE

    def __init__(self) -> None:
        self._statistics, self._corpus, self._lines = Statistics(), Corpus(), Lines()

    def run(self, seed: str) -> Found | None:
        """See `Target.run`."""
        ended = run(seed, self._corpus, self._lines, self._statistics)
        if not isinstance(ended, Failure):
            return None

        def shorter() -> tuple[int, bytes]:
            shortest = shrink(ended)
            return len(shortest.steps), encode(shortest.reproduction)

        return Found(ended.steps, ended.report, shorter)

    def print_statistics(self, seconds: float, *, list_lines: bool) -> None:
        """See `Target.print_statistics`."""
        statistics = self._statistics
        rate = statistics.frames / max(seconds, 1e-9)
        print(
            f"{seconds:.0f} s, {statistics.runs} runs, {statistics.steps} steps, "
            f"{statistics.frames} frames ({rate:.0f}/s), {statistics.sent} frames sent"
        )
        print("steps: " + _listed(statistics.kinds))
        _print_lines("datapath", self._lines, list_lines=list_lines)
        print("drops: " + _listed(Counter({r.name: n for r, n in statistics.drops.items()})))
        possible = set(Reason) - NOT_THE_DIRECTORS
        missing_reasons = sorted(possible - set(statistics.drops))
        print("reasons not reached: " + (", ".join(r.name for r in missing_reasons) or "none"))


class SyncTarget:
    """Replicas, by datagrams."""

    name, share = "sync", SYNC_SHARE

    def __init__(self) -> None:
        self._statistics, self._corpus = sync_run.Statistics(), sync_run.Corpus()
        self._lines = Lines(SYNC)

    def run(self, seed: str) -> Found | None:
        """See `Target.run`."""
        failure = sync_run.run(seed, self._corpus, self._lines, self._statistics)
        if failure is None:
            return None

        def shorter() -> tuple[int, bytes]:
            shortest = sync_run.shrink(failure)
            return len(shortest.steps), sync_steps.encode(shortest.reproduction)

        return Found(failure.steps, failure.report, shorter)

    def print_statistics(self, seconds: float, *, list_lines: bool) -> None:
        """See `Target.print_statistics`."""
        statistics = self._statistics
        rate = statistics.hostile / max(seconds, 1e-9)
        print(
            f"{seconds:.0f} s, {statistics.runs} runs, {statistics.steps} steps, "
            f"{statistics.hostile} hostile datagrams ({rate:.0f}/s)"
        )
        _print_lines("sync", self._lines, list_lines=list_lines)
        print("counted: " + _listed(statistics.counters))


TARGETS: dict[str, Callable[[], Target]] = {"director": DirectorTarget, "sync": SyncTarget}


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="what all is drawn from")
    parser.add_argument("--target", choices=[*TARGETS], help="only this one")
    parser.add_argument("--replay", type=Path, help="repeat the run in this file")
    parser.add_argument("--directory", type=Path, help="where to write runs that fail")
    parser.add_argument("--lines", action="store_true", help="list lines that were not reached")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Fuzz, or repeat; returns the exit status."""
    arguments = parse_arguments(words)
    if arguments.replay is not None:
        return _replay(arguments.replay)
    names = [arguments.target] if arguments.target else list(TARGETS)
    targets = [TARGETS[name]() for name in names]
    spent = dict.fromkeys(names, 0.0)
    numbers = dict.fromkeys(names, 0)
    began = time.monotonic()
    failed: tuple[Target, Found] | None = None
    while failed is None and (now := time.monotonic()) < began + arguments.seconds:
        # Whoever has had least of its share.
        target = min(targets, key=lambda each: spent[each.name] / each.share)
        found = target.run(f"{arguments.seed}/{numbers[target.name]}")
        spent[target.name] += time.monotonic() - now
        if found is None:
            numbers[target.name] += 1
        else:
            failed = target, found
    for target in targets:
        print(f"-- {target.name}")
        target.print_statistics(spent[target.name], list_lines=arguments.lines)
    if failed is None:
        runs = " and ".join(f"{numbers[name]} of the {name}" for name in names)
        print(f"seed {arguments.seed}: {runs}, no rule broken")
        return 0
    target, found = failed
    _keep(target.name, f"{arguments.seed}-{numbers[target.name]}", found, arguments.directory)
    return 1


def _keep(name: str, seed: str, found: Found, directory: Path | None) -> None:
    """Say how a run failed, and write it to a file, as short as it can be made."""
    print(f"\n{name}, seed and run {seed}, step {len(found.steps)} failed:")
    _print_failure(found.steps, found.report)
    print("making it shorter ...", flush=True)
    count, written = found.shorter()
    directory = directory or Path(tempfile.gettempdir())
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"fuzz-{name}-{seed}.json"
    path.write_bytes(written)
    print(f"{count} of {len(found.steps)} steps are left, in {path}")
    print(f"repeat it with: python -m tests.fuzz --replay {path}")


def _replay(path: Path) -> int:
    failure: Failure | sync_run.Failure | None
    steps: Sequence[object]
    try:
        sync = sync_steps.decode(path.read_bytes())
    except ValueError:
        reproduction = decode(path.read_bytes())
        steps = reproduction.steps
        failure = replay(reproduction.plan, reproduction.steps)
    else:
        steps = sync.steps
        failure = sync_run.replay(sync.plan, sync.steps)
    if failure is None:
        print(f"{len(steps)} steps, no rule broken")
        return 0
    for number, step in enumerate(failure.steps):
        print(number, step)
    _print_failure(failure.steps, failure.report)
    return 1


def _print_failure(steps: Sequence[object], report: str) -> None:
    last = steps[-1]
    if isinstance(last, Receive | sync_steps.Hostile):
        print(f"the data: {last.data.hex()}")
    else:
        print(f"the step: {last}")
    print(report)


def _print_lines(name: str, lines: Lines, *, list_lines: bool) -> None:
    print(f"lines of the {name} reached: {len(lines)} of {lines.total()}")
    if list_lines:
        for module, missing in lines.unreached().items():
            if missing:
                print(f"  {module}: {' '.join(map(str, missing))}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
