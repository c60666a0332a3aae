"""What many connections and many services cost: time, memory, and the longest pause.

A director is fed in this process, without network and without privileges. Three questions:

* ``packets``: does a packet cost the same whatever the table holds? Packets go round all
  connections at random, and beside that to always the same one: with a million of them
  the first kind finds nothing in the processor's caches, and that is a cost of the memory,
  not of the algorithm. Directors of all sizes take turns; the ratio is to the smallest.
* ``memory``: what a connection takes, as the growth of this process.
* ``pauses``: the longest time for which one call keeps everything else waiting.

Times of packets are processor time of this process, the least of some rounds. A pause is
processor time, too, with what Python's garbage collector does left out: the forwarder
keeps it from running by itself, and it is shown in a row of its own.

Run as ``python -m bench.scale``; with ``--quick`` in a minute, with smaller numbers.
"""

import gc
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from bench.crowd import SEED, Crowd, Kind
from bench.footprint import resident_bytes
from bench.pauses import measure_pauses
from lvsha.model import ForwardMethod, Protocol

PARTS: Final = ("packets", "memory", "pauses")
NAT, DIRECT = ForwardMethod.NAT, ForwardMethod.DIRECT_ROUTE
KINDS: Final = (
    Kind(NAT, Protocol.TCP),
    Kind(DIRECT, Protocol.TCP),
    Kind(NAT, Protocol.UDP),
    Kind(DIRECT, Protocol.UDP),
)
MEMORY_KINDS: Final = {
    "NAT, IPv4": Kind(NAT),
    "direct routing, IPv4": Kind(DIRECT),
    "NAT, IPv6": Kind(NAT, family=6),
    "direct routing, IPv6": Kind(DIRECT, family=6),
    "NAT, IPv4, a template for each": Kind(NAT, persistence=300),
}
SIZES: Final = (1, 10_000, 1_000_000)
QUICK_SIZES: Final = (1, 1_000, 50_000)
SERVICES: Final = 1_000
PACKETS: Final = 2_000
"""Packets of one round: so few that their frames stay in the processor's caches."""
OPENING_TIME: Final = 100.0
"""Connections are opened evenly over so many seconds of the director's clock."""
BEGIN: Final = 1000.0
PART_TIME_MAX: Final = 1800.0


class Feeding:
    """A crowd of one size that is measured in turns with others."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.number = number
        self.now = BEGIN + OPENING_TIME
        self.taken: dict[str, list[float]] = {}
        self._dice = random.Random(SEED)
        crowd.fill(number, lambda each: BEGIN + OPENING_TIME * each / number)

    def take_turn(self) -> None:
        """Measure one round of each kind of packet."""
        crowd = self.crowd
        anyone = [self._dice.randrange(self.number) for _ in range(PACKETS)]
        self._time("request, any", [crowd.request(each) for each in anyone])
        self._time("request, the same", [crowd.request(anyone[0])] * PACKETS)
        if crowd.kind.method is NAT:
            self._time("reply, any", [crowd.reply(each) for each in anyone])
            self._time("reply, the same", [crowd.reply(anyone[0])] * PACKETS)

    def _time(self, name: str, frames: list[bytearray]) -> None:
        """Add µs for each packet; laying the frames into the buffer is taken off."""
        crowd, process, now = self.crowd, self.crowd.director.process, self.now
        frame, view = crowd.frame, crowd.frame.view
        assert process(frame, crowd.lay(frames[0]), now), "the packets are forwarded"
        length = len(frames[0])
        window = view[:length]
        begin_at = time.process_time()
        for data in frames:
            window[:] = data
        laid_at = time.process_time()
        for data in frames:
            window[:] = data
            process(frame, length, now)
        end_at = time.process_time()
        taken = (end_at - laid_at) - (laid_at - begin_at)
        self.taken.setdefault(name, []).append(taken / len(frames) * 1e6)


def measure_packets(sizes: tuple[int, ...], rounds: int) -> Iterator[dict[str, object]]:
    """Rows of what packets cost, for each kind and size, and with many services."""
    for kind in KINDS:
        turns: dict[str, Feeding] = {
            f"{size:,} connections": Feeding(Crowd(kind), size) for size in sizes
        }
        turns[f"{SERVICES:,} services"] = Feeding(Crowd(kind, services=SERVICES), SERVICES)
        for _ in range(rounds):
            for feeding in turns.values():
                feeding.take_turn()
        first = turns[f"{sizes[0]:,} connections"]
        for label, feeding in turns.items():
            for name, taken in feeding.taken.items():
                yield {
                    "kind": str(kind),
                    "with": label,
                    "packets": name,
                    "us": min(taken),
                    "median": statistics.median(taken),
                    "most": max(taken),
                    "ratio": min(taken) / min(first.taken[name]),
                }
        yield from _measure_openings(kind, turns, rounds)


def _measure_openings(
    kind: Kind, turns: dict[str, Feeding], rounds: int
) -> Iterator[dict[str, object]]:
    """Rows of what the first packet of a connection costs."""
    crowds = {label: feeding.crowd for label, feeding in turns.items()}
    crowds[f"{SERVICES:,} marks"] = Crowd(kind, services=SERVICES, marked=True)
    taken: dict[str, list[float]] = {label: [] for label in crowds}
    for turn in range(rounds):
        for label, crowd in crowds.items():
            first = 2_000_000 + turn * PACKETS
            frames = [crowd.handshake(first + each)[0] for each in range(PACKETS)]
            process, frame, now = crowd.director.process, crowd.frame, BEGIN + OPENING_TIME
            begin_at = time.process_time()
            for data in frames:
                process(frame, crowd.lay(data), now)
            taken[label].append((time.process_time() - begin_at) / PACKETS * 1e6)
    least = min(next(iter(taken.values())))
    for label, times in taken.items():
        yield {
            "kind": str(kind),
            "with": label,
            "packets": "first of a connection",
            "us": min(times),
            "median": statistics.median(times),
            "most": max(times),
            "ratio": min(times) / least,
            "per_second": 1e6 / min(times),
        }


def measure_memory(name: str, number: int) -> dict[str, object]:
    """What so many connections add to the memory of this process."""
    crowd = Crowd(MEMORY_KINDS[name])
    gc.collect()
    before = resident_bytes()
    crowd.fill(number, lambda each: BEGIN + OPENING_TIME * each / number)
    gc.collect()
    grown = resident_bytes() - before
    return {
        "connections": name,
        "number": number,
        "bytes": grown / number,
        "mebibytes": grown / 2**20,
        "process_mebibytes": resident_bytes() / 2**20,
    }


def _rows_of(part: str, *, quick: bool) -> Iterator[dict[str, object]]:
    """Measure a part of the bench; parts of memory each in a process of their own."""
    sizes = QUICK_SIZES if quick else SIZES
    if part == "packets":
        yield from measure_packets(sizes, 10 if quick else 40)
    elif part == "pauses":
        yield from measure_pauses(sizes[-1], services=1_000 if quick else 10_000)
    elif part == "memory":
        for name in MEMORY_KINDS:
            yield from _measured_elsewhere(name, quick=quick)
    else:
        yield measure_memory(part, sizes[-1])


def _measured_elsewhere(part: str, *, quick: bool) -> list[dict[str, object]]:
    """What a fresh process has measured."""
    command = [sys.executable, "-m", "bench.scale", "--part", part]
    done = subprocess.run(
        [*command, "--quick"] if quick else command,
        stdout=subprocess.PIPE,
        check=True,
        timeout=PART_TIME_MAX,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


TITLES: Final = {
    "packets": "One packet, in µs of processor time",
    "memory": "Memory of connections",
    "pauses": "The longest call, in ms of processor time",
}
_FORMATS: Final[dict[str, Callable[[float], str]]] = {
    "us": "{:.2f}".format,
    "median": "{:.2f}".format,
    "most": "{:.2f}".format,
    "ratio": "{:.2f}".format,
    "per_second": "{:,.0f}".format,
    "number": "{:,}".format,
    "bytes": "{:.0f}".format,
    "mebibytes": "{:.0f}".format,
    "process_mebibytes": "{:.0f}".format,
    "longest_ms": "{:.2f}".format,
    "calls": "{:,}".format,
    "total_ms": "{:,.0f}".format,
}


def show(part: str, rows: list[dict[str, object]], console: Console) -> None:
    """Print the rows of one part."""
    table = Table(title=TITLES[part], title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right" if name in _FORMATS else "left")
    for row in rows:
        cells = []
        for name in columns:
            value = row.get(name)
            if isinstance(value, int | float):
                cells.append(_FORMATS[name](value))
            else:
                cells.append(str(value or ""))
        table.add_row(*cells)
    console.print(table)


def scale(
    only: Annotated[
        list[str] | None,
        typer.Option("--bench", metavar="NAME", help=f"Only this one, of {', '.join(PARTS)}."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller numbers, in a minute.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    part: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure what many connections and services cost."""
    if part is not None:
        gc.disable()
        for row in _rows_of(part, quick=quick):
            sys.stdout.write(json.dumps(row) + "\n")
        return
    for name in only or ():
        if name not in PARTS:
            raise typer.BadParameter(f"--bench: expected one of {', '.join(PARTS)}, not {name!r}")
    console = Console(highlight=False)
    results = {}
    for name in only or PARTS:
        console.print(f"{name} ...", style="dim")
        results[name] = _measured_elsewhere(name, quick=quick)
        show(name, results[name], console)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(scale)
