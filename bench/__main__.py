"""The command ``python -m bench``: choose, make a private world, run in there.

Exit codes: 0 measured, whatever the figures; 2 an option is wrong; 3 this machine cannot
do it.
"""

import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from bench.course import EXIT_IMPOSSIBLE
from bench.options import BENCHES, Options
from lvsha.drill.directors import program_environment
from lvsha.drill.seclusion import run_secluded, seclusion
from lvsha.errors import HostError

FULL: Final = (4, 1.0)
QUICK: Final = (2, 0.6)
"""Repetitions, and seconds that each turn counts."""


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--bench", metavar="NAME", help=f"Only this one, of {', '.join(BENCHES)}; repeatable."
        ),
    ] = None,
    family: Annotated[Literal["4", "6"], typer.Option(help="Of all addresses.")] = "4",
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of ten.")] = False,
    repetitions: Annotated[
        int | None, typer.Option(min=1, max=50, help="Turns of each carrier.")
    ] = None,
    window: Annotated[
        float | None, typer.Option(min=0.1, max=30, help="Seconds that each turn counts.")
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Give the carrier a processor of its own.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write all samples to this file.")] = None,
) -> None:
    """Measure a director against a bare packet loop on this machine."""
    for name in only or ():
        if name not in BENCHES:
            raise typer.BadParameter(f"--bench: expected one of {', '.join(BENCHES)}, not {name!r}")
    turns, counted = QUICK if quick else FULL
    options = Options(
        benches=tuple(only or BENCHES),
        family=6 if family == "6" else 4,
        repetitions=repetitions or turns,
        warm_up=0.2 if quick else 0.4,
        window=window or counted,
        connections=100_000,
        rounds=10 if quick else 40,
        join_sizes=(50_000,) if quick else (260_000, 1_000_000),
        joins=2 if quick else 5,
        records_time=1.0 if quick else 4.0,
        pin=pin,
        json=json,
    )
    try:
        prefix = seclusion()
    except HostError as error:
        sys.stderr.write(f"bench: {error}\n")
        raise typer.Exit(EXIT_IMPOSSIBLE) from error
    command = [sys.executable, "-m", "bench.course", options.encode()]
    raise typer.Exit(run_secluded(prefix, command, program_environment()))


typer.run(bench)
