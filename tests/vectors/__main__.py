"""Compare lvsha's director with recordings of another one.

``python -m tests.vectors [FOLDER]``: any folder of files of the schema that
``kernel/README.md`` describes. For each file it says how many scenarios and steps agree, and
of each scenario that does not it tells the first difference. Exit status 1 if there is one
that is not stated in `tests.vectors.differences`.
"""

import sys
from pathlib import Path

from tests.vectors.differences import named, stated
from tests.vectors.recordings import KERNEL, Recording, files, load
from tests.vectors.rerun import rerun

USAGE = "usage: python -m tests.vectors [FOLDER]"


def main(arguments: list[str]) -> int:
    """Compare all files of a folder."""
    if len(arguments) > 1:
        sys.stderr.write(f"{USAGE}\n")
        return 2
    folder = Path(arguments[0]) if arguments else KERNEL
    recordings = files(folder)
    if not recordings:
        sys.stderr.write(f"{folder}: no recordings (*.json) there\n")
        return 2
    unstated = sum(_compare(path.name, load(path)) for path in recordings)
    return 1 if unstated else 0


def _compare(name: str, recording: Recording) -> int:
    """Compare a file; returns how many steps differ that are not stated."""
    steps = agreeing = meant = whole = 0
    unstated = 0
    words: list[str] = []
    for scenario in recording["scenarios"]:
        first = ""
        for outcome in rerun(scenario):
            steps += 1
            if not outcome.words:
                agreeing += 1
                continue
            difference = stated(recording["kind"], scenario["name"], outcome)
            meant += difference is not None
            unstated += difference is None
            why = "" if difference is None else f"\n      as meant: {difference.reason}"
            where = f"step {outcome.number} ({named(outcome.step)})"
            first = first or f"  {scenario['name']}, {where}: {outcome.words}{why}"
        whole += not first
        if first:
            words.append(first)
    sys.stdout.write(
        f"{name}: {whole} of {len(recording['scenarios'])} scenarios and {agreeing} of {steps} "
        f"steps agree; {meant} steps differ as stated, {unstated} otherwise\n"
    )
    for line in words:
        sys.stdout.write(f"{line}\n")
    return unstated


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
