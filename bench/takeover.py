"""How long an address is dead when the power of its director is cut: lvsha and keepalived.

Both in the laboratory of `lvsha drill`, in turns, with the same intervals and priorities, and a
UDP flow with a datagram every millisecond through the virtual address: the outage is the
longest time between two of its answers. lvsha is measured without other load, as keepalived is,
and under the drill's usual one.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

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
    table = Table("advertisements every", "directors", "outage ms", "least to most", "usual gap ms")
    for seconds in interval or INTERVALS:
        measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for turn in range(turns):
            for kind in KINDS:
                console.print(f"{1000 * seconds:g} ms, {kind}, turn {turn + 1}", style="dim")
                measured[kind].append(_outage(kind, seconds, console))
        for kind, figures in measured.items():
            table.add_row(f"{1000 * seconds:g} ms", kind, *_shown(figures))
    console.print(table)


def _outage(kind: str, interval: float, console: Console) -> tuple[float, float]:
    """The outage of one drill, and the longest gap before it; milliseconds."""
    module, options = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="takeover-") as directory:
        chosen = replace(options, advert_interval=interval, directory=Path(directory))
        code = run_drill(chosen, console, module)
        if code == EXIT_IMPOSSIBLE:
            raise typer.Exit(code)
        (act,) = json.loads(chosen.json_path.read_text())["acts"]
    return float(act["outage_ms"]), float(act["usual_gap_ms"])


def _shown(figures: Sequence[tuple[float, float]]) -> tuple[str, str, str]:
    outages, gaps = zip(*figures, strict=True)
    return (
        f"{statistics.median(outages):.0f}",
        f"{min(outages):.0f} to {max(outages):.0f}",
        f"{statistics.median(gaps):.0f}",
    )


if __name__ == "__main__":
    typer.run(takeover)
