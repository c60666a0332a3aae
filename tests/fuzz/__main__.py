"""``python -m tests.fuzz``: drive a director with hostile frames for as long as asked.

It is a fuzzer of its own: seeded, stateful, and led by coverage. Run after run a director is
made (`landscape`), conversations of all kinds are held through it (`conversations`), frames
are broken (`mutations`), and the configuration, the network, peers and the clock change in
between (`draw`). After each step rules are checked (`world`, `checks`, `judge`). Frames that
reach lines of the datapath which none has reached (`trace`) are kept and broken again, in
all runs that follow. docs/decisions/0009-fuzzing.md says why it is neither atheris nor
hypothesis.

A seed gives the same runs in the same order; only how many of them fit into the time is the
machine's. A run that fails is made shorter and written to a file, which ``--replay`` repeats.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lvsha.datapath.reasons import Reason
from tests.fuzz.draw import Corpus
from tests.fuzz.run import Failure, Statistics, replay, run, shrink
from tests.fuzz.steps import Receive, decode, encode
from tests.fuzz.trace import Lines

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


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="what all is drawn from")
    parser.add_argument("--replay", type=Path, help="repeat the run in this file")
    parser.add_argument("--directory", type=Path, help="where to write runs that fail")
    parser.add_argument("--lines", action="store_true", help="list lines that were not reached")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Fuzz, or repeat; returns the exit status."""
    arguments = parse_arguments(words)
    if arguments.replay is not None:
        return _replay(arguments.replay)
    statistics, corpus, lines = Statistics(), Corpus(), Lines()
    began = time.monotonic()
    number = 0
    failure: Failure | None = None
    while time.monotonic() < began + arguments.seconds:
        ended = run(f"{arguments.seed}/{number}", corpus, lines, statistics)
        if isinstance(ended, Failure):
            failure = ended
            break
        number += 1
    seconds = time.monotonic() - began
    _print_statistics(statistics, lines, seconds, list_lines=arguments.lines)
    if failure is None:
        print(f"seed {arguments.seed}: {number} runs, no rule broken")
        return 0
    print(f"\nseed {arguments.seed}, run {number}, step {len(failure.steps)} failed:")
    _print_failure(failure)
    print("making it shorter ...", flush=True)
    shortest = shrink(failure)
    directory = arguments.directory or Path(tempfile.gettempdir())
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"fuzz-{arguments.seed}-{number}.json"
    path.write_bytes(encode(shortest.reproduction))
    print(f"{len(shortest.steps)} of {len(failure.steps)} steps are left, in {path}")
    print(f"repeat it with: python -m tests.fuzz --replay {path}")
    return 1


def _replay(path: Path) -> int:
    reproduction = decode(path.read_bytes())
    failure = replay(reproduction.plan, reproduction.steps)
    if failure is None:
        print(f"{len(reproduction.steps)} steps, no rule broken")
        return 0
    for number, step in enumerate(failure.steps):
        print(number, step)
    _print_failure(failure)
    return 1


def _print_failure(failure: Failure) -> None:
    last = failure.steps[-1]
    print(f"the frame: {last.data.hex()}" if isinstance(last, Receive) else f"the step: {last}")
    print(failure.report)


def _print_statistics(
    statistics: Statistics, lines: Lines, seconds: float, *, list_lines: bool
) -> None:
    rate = statistics.frames / max(seconds, 1e-9)
    print(
        f"{seconds:.0f} s, {statistics.runs} runs, {statistics.steps} steps, "
        f"{statistics.frames} frames ({rate:.0f}/s), {statistics.sent} frames sent"
    )
    print("steps: " + _listed(statistics.kinds))
    print(f"lines of the datapath reached: {len(lines)} of {lines.total()}")
    if list_lines:
        for module, missing in lines.unreached().items():
            if missing:
                print(f"  {module}: {' '.join(map(str, missing))}")
    print("drops: " + _listed(Counter({r.name: n for r, n in statistics.drops.items()})))
    possible = set(Reason) - NOT_THE_DIRECTORS
    missing_reasons = sorted(possible - set(statistics.drops))
    print("reasons not reached: " + (", ".join(r.name for r in missing_reasons) or "none"))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
