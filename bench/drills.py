"""Every drill, one after the other: each failure with each method, and one table of all.

Each is ``lvsha drill`` as a person runs it, in a process of its own. One during which the machine
itself stood still for long is carried out again, as its times say nothing; what it lost counts
nevertheless. Exit codes: 0 all drills passed; 1 one did not; 3 one could not be carried out.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from lvsha.drill.exercise import EXIT_KEPT, EXIT_LOST
from lvsha.drill.options import FAILURES, METHODS

DRILL_TIME_MAX: Final = 300.0
EXIT_IMPOSSIBLE: Final = 3
DRAINED: Final = ("return",)
"""Those that are carried out with one server drained, too."""
STANDSTILL_MAX_MS: Final = 10.0
"""A machine that never stands still for less is rare."""


def drills(
    failure: Annotated[
        list[str] | None, typer.Option(help=f"Only this one, of {', '.join(FAILURES)}; repeatable.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help=f"Only this one, of {', '.join(METHODS)}; repeatable.")
    ] = None,
    advert_interval: Annotated[float, typer.Option(help="Of VRRP, in seconds.")] = 0.1,
    probe_interval: Annotated[float, typer.Option(help="Of the UDP flow, in seconds.")] = 0.001,
    again: Annotated[
        int, typer.Option(min=0, help="Times that a drill is repeated if the machine stood still.")
    ] = 2,
    directory: Annotated[Path, typer.Option(help="Where reports are left.")] = Path("drill"),
) -> None:
    """Rehearse every failure with every method."""
    for chosen, known in ((failure, FAILURES), (method, METHODS)):
        for name in chosen or ():
            if name not in known:
                raise typer.BadParameter(f"expected one of {', '.join(known)}, not {name!r}")
    console = Console()
    table = Table(
        "drill",
        "act",
        "outage ms",
        "at the change ms",
        "usual gap ms",
        "machine ms",
        "broken",
        "refused",
        "longest wait ms",
    )
    worst = EXIT_KEPT
    plain: list[tuple[str, list[str]]] = [(each, []) for each in failure or FAILURES]
    drained = [(each, ["--drain"]) for each in failure or FAILURES if each in DRAINED]
    for each, more in plain + drained:
        title = " ".join([each, *more])
        for how in method or METHODS:
            console.print(f"{title}, {how}", style="dim")
            place = directory / f"{title.replace(' --', '-')}-{how}"
            options = ["--failure", each, "--method", how, *more, "--directory", str(place)]
            options += ["--advert-interval", str(advert_interval)]
            options += ["--probe-interval", str(probe_interval)]
            code = _drill(options)
            for _ in range(again):
                if code != EXIT_KEPT or not _is_disturbed(place):
                    break
                console.print("the machine stood still; once more", style="dim")
                code = _drill(options)
            worst = max(worst, code if code in {EXIT_KEPT, EXIT_LOST} else EXIT_IMPOSSIBLE)
            if code in {EXIT_KEPT, EXIT_LOST}:
                _add(table, f"{title}, {how}", json.loads((place / "report.json").read_text()))
            else:
                table.add_row(f"{title}, {how}", "could not be carried out")
    console.print(table)
    raise typer.Exit(worst)


def _drill(options: list[str]) -> int:
    command = [sys.executable, "-m", "lvsha", "drill", *options]
    try:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, timeout=DRILL_TIME_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return EXIT_IMPOSSIBLE
    return done.returncode


def _is_disturbed(place: Path) -> bool:
    """Whether the machine stood still during an outage."""
    acts = json.loads((place / "report.json").read_text())["acts"]
    return any(act["standstill_ms"] >= STANDSTILL_MAX_MS for act in acts)


def _add(table: Table, name: str, report: dict[str, Any]) -> None:
    for act in report["acts"]:
        kinds = act["connections"].values()
        stalls = [kind["stall_max_ms"] for kind in kinds if kind["stall_max_ms"] is not None]
        table.add_row(
            name,
            act["name"],
            f"{act['outage_ms']:.1f}",
            "-" if act["change_ms"] is None else f"{act['change_ms']:.1f}",
            f"{act['usual_gap_ms']:.0f}",
            f"{act['standstill_ms']:.0f}",
            str(sum(kind["broken"] for kind in kinds)),
            str(act["attempts"]["failed"]),
            f"{max(stalls):.0f}" if stalls else "-",
        )


if __name__ == "__main__":
    typer.run(drills)
