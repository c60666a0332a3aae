"""How long an address is dead when the power of its director is cut: lvsha and keepalived.

Both in the laboratory of `lvsha drill`, in turns, with the same intervals and priorities, and a
UDP flow with a datagram every millisecond through the virtual address: the outage is the
longest time between two of its answers. lvsha is measured without other load, as keepalived is,
and under the drill's usual one.

Turns in which the machine itself stood still for long during the outage say nothing of either:
they are left out of the figures, and listed.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from bench.drills import STANDSTILL_MAX_MS
from lvsha.drill.exercise import EXIT_IMPOSSIBLE, run_drill
from lvsha.drill.options import DrillOptions

INTERVALS: Final = (0.1, 0.01)
CALM: Final = DrillOptions(
    failure="power",
    then_return=False,
    streams=0,
    idle=0,
    churn=0,
    probe_interval=0.001,
    observe=3.0,
)
LOADED: Final = replace(CALM, streams=200, idle=200, churn=20)
KINDS: Final = {
    "keepalived": ("bench.keepalived_drill", CALM),
    "lvsha": ("lvsha.drill.exercise", CALM),
    "lvsha, 420 connections": ("lvsha.drill.exercise", LOADED),
}


def takeover(
    turns: Annotated[int, typer.Option(min=1, max=100, help="Of each kind.")] = 5,
    interval: Annotated[
        list[float] | None, typer.Option(help="Between advertisements, in seconds; repeatable.")
    ] = None,
) -> None:
    """Cut the power of a director, of lvsha and of keepalived in turns."""
    console = Console()
    table = Table(
        "advertisements every",
        "directors",
        "outage ms",
        "least to most",
        "usual gap ms",
        "turns",
        "left out",
    )
    for seconds in interval or INTERVALS:
        measured: dict[str, list[_Turn]] = {kind: [] for kind in KINDS}
        for turn in range(turns):
            for kind in KINDS:
                console.print(f"{1000 * seconds:g} ms, {kind}, turn {turn + 1}", style="dim")
                measured[kind].append(_outage(kind, seconds, console))
        for kind, figures in measured.items():
            table.add_row(f"{1000 * seconds:g} ms", kind, *_shown(figures))
    console.print(table)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One drill; milliseconds.

    Attributes:
        outage: of the UDP flow.
        usual_gap: the longest before it.
        standstill: of the machine, during the outage.
    """

    outage: float
    usual_gap: float
    standstill: float


def _outage(kind: str, interval: float, console: Console) -> _Turn:
    module, options = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="takeover-") as directory:
        chosen = replace(options, advert_interval=interval, directory=Path(directory))
        code = run_drill(chosen, console, module)
        if code == EXIT_IMPOSSIBLE:
            raise typer.Exit(code)
        (act,) = json.loads(chosen.json_path.read_text())["acts"]
    return _Turn(*(float(act[name]) for name in ("outage_ms", "usual_gap_ms", "standstill_ms")))


def _shown(turns: Sequence[_Turn]) -> Sequence[str]:
    told = [turn for turn in turns if turn.standstill < STANDSTILL_MAX_MS]
    left_out = ", ".join(f"{turn.outage:.0f}" for turn in turns if turn not in told)
    if not told:
        return "", "", "", "0", left_out
    outages = [turn.outage for turn in told]
    return (
        f"{statistics.median(outages):.1f}",
        f"{min(outages):.1f} to {max(outages):.1f}",
        f"{statistics.median(turn.usual_gap for turn in told):.0f}",
        str(len(told)),
        left_out,
    )


if __name__ == "__main__":
    typer.run(takeover)
