"""The course of a bench: build the laboratory, let the carriers take turns, report.

This is the first process in the private world. It runs the programs, one measurement at a
time, and collects what they say. In each repetition the yardstick comes first, then the
director, then the way without either, so that what else the machine does falls on all.

Every wait has a limit. Times are seconds.
"""

import json
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import trio
from rich.console import Console

from bench import laboratory, report
from bench.carriers import Carrier, Port, carrying
from bench.ends import END_TIME_MAX, End
from bench.laboratory import Method, Plan
from bench.options import BENCHES, Options, decode_options
from bench.programs import numbers_of, processor_time, program
from bench.results import Footprint, Processing, Results, Traffic
from bench.sync_course import SERVERS, SyncCourse, bytes_of
from bench.sync_forwarding import Forwarding
from lvsha.drill.seclusion import extend_search_path
from lvsha.errors import HostError
from lvsha.model import Protocol

EXIT_DONE: Final = 0
EXIT_IMPOSSIBLE: Final = 3
COURSE_TIME_MAX: Final = 2400.0
PROGRAM_TIME_MAX: Final = 120.0
MEGABIT: Final = 125_000
SYNC_BYTES_CONNECTIONS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of traffic under one method, what it is compared with, and which end counts."""

    module: str
    method: Method
    port: Port
    carriers: tuple[Carrier, ...]
    yardstick: Carrier
    target: float | None
    unit: str
    counts: str


_BULK: Final = Port("bulk", 5001, Protocol.TCP)
_SMALL: Final = Port("small", 5002, Protocol.UDP)
_CHURN: Final = Port("churn", 5003, Protocol.TCP)
_PORTS: Final = (_BULK, _SMALL, _CHURN)
_ALL: Final[tuple[Carrier, ...]] = ("yardstick", "director", "none")

KINDS: Final[Mapping[str, Kind]] = {
    "bulk-dr": Kind("bulk", "dr", _BULK, _ALL, "yardstick", 0.8, "bytes", "sink"),
    "bulk-nat": Kind("bulk", "nat", _BULK, _ALL, "yardstick", 0.7, "bytes", "sink"),
    "small-dr": Kind("small", "dr", _SMALL, _ALL, "yardstick", 0.5, "packets", "sink"),
    "small-nat": Kind("small", "nat", _SMALL, _ALL, "yardstick", None, "packets", "sink"),
    "churn-dr": Kind("churn", "dr", _CHURN, _ALL, "none", None, "connections", "source"),
}
_SYNC_BENCHES: Final = frozenset(name for name in BENCHES if name.startswith("sync-"))


class Course:
    """One run of the chosen benches.

    Args:
        options: what was chosen.
        console: where a person sees how it goes.
    """

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._plan = Plan(options.family)
        available = self._available = sorted(os.sched_getaffinity(0))
        self._pinned = options.pin and len(available) > 1
        self._carrier_on = available[-1:] if self._pinned else []
        self._ends_on = available[:-1] if self._pinned else []
        self.results = Results(
            {
                "kernel": platform.release(),
                "machine": platform.machine(),
                "processors": len(available),
                "python": platform.python_version(),
                "load_average": os.getloadavg()[0],
                "pinned": self._pinned,
                "options": json.loads(options.encode()),
            }
        )

    async def run(self) -> None:
        """Measure everything that was chosen.

        Raises:
            HostError: the machine cannot do it.
        """
        chosen = [name for name in BENCHES if name in self._options.benches]
        if any(name in KINDS or name in _SYNC_BENCHES for name in chosen):
            laboratory.build(self._plan)
        for method in ("dr", "nat"):
            names = [name for name in chosen if name in KINDS and KINDS[name].method == method]
            if names:
                await self._compare(method, names)
        if "footprint" in chosen:
            await self._measure_footprint()
        if "processing" in chosen:
            await self._measure_processing()
        await self._measure_sync(chosen)

    async def _measure_sync(self, chosen: Collection[str]) -> None:
        options, results = self._options, self.results
        if "sync-bytes" in chosen:
            self._note("sync: bytes of a connection")
            numbers = map(str, (SYNC_BYTES_CONNECTIONS, *SERVERS))
            results.sync_bytes += bytes_of(await self._alone(["-m", "bench.sync_bytes", *numbers]))
        leader_on, follower_on = self._available[-1:], self._available[:1]
        if len(self._available) == 1:
            leader_on = follower_on = []
        course = SyncCourse(options, self._note, leader_on, follower_on)
        if "sync-join" in chosen:
            for connections in options.join_sizes:
                results.sync_joins += await course.measure_joins(connections)
        if "sync-records" in chosen:
            results.sync_records += await course.measure_records()
        if "sync-forwarding" in chosen:
            forwarding = Forwarding(self._plan, options, self._note, leader_on, follower_on)
            results.sync_forwarding += await forwarding.measure()

    async def _compare(self, method: Method, names: Sequence[str]) -> None:
        laboratory.send_replies(self._plan, method)
        measured = {
            name: Traffic(name, KINDS[name].yardstick, KINDS[name].target, KINDS[name].unit)
            for name in names
        }
        self.results.traffic += measured.values()
        for repetition in range(self._options.repetitions):
            for carrier in _ALL:
                self._note(f"{method}: turn {repetition + 1}, {report.CARRIERS[carrier]}")
                async with carrying(carrier, self._plan, method, _PORTS, self._carrier_on) as pid:
                    for name, traffic in measured.items():
                        traffic.add(carrier, await self._measure(KINDS[name], carrier, pid))

    async def _measure(
        self, kind: Kind, carrier: Carrier, process: int | None
    ) -> Mapping[str, float]:
        """One turn: start both ends, merge what they say, and look at the carrier's time."""
        past = self._plan.address("direct", "server")
        end = End(
            self._plan.family,
            past if carrier == "none" else self._plan.virtual,
            kind.port.number,
            self._options.warm_up,
            self._options.window,
        )
        module = f"bench.{kind.module}"
        limit = END_TIME_MAX + end.warm_up + end.window
        async with program("server", ["-m", module, "sink", end.encode()], self._ends_on) as sink:
            await numbers_of(sink, limit)
            source_arguments = ["-m", module, "source", end.encode()]
            async with program("client", source_arguments, self._ends_on) as source:
                counts, other = (sink, source) if kind.counts == "sink" else (source, None)
                await numbers_of(counts, limit)
                begin = processor_time(process), trio.current_time()
                heard = dict(await numbers_of(counts, limit))
                taken = processor_time(process) - begin[0]
                heard["share"] = taken / (trio.current_time() - begin[1])
                if other is not None:
                    heard |= await numbers_of(other, limit)
        return heard

    async def _alone(self, arguments: Sequence[str]) -> str:
        """What a program without network writes."""
        with trio.move_on_after(PROGRAM_TIME_MAX):
            done = await trio.run_process(
                [sys.executable, *arguments], capture_stdout=True, check=False
            )
            if done.returncode == 0:
                return done.stdout.decode()
        raise HostError(f"{' '.join(arguments)!r} failed or took too long")

    async def _measure_footprint(self) -> None:
        number = self._options.connections
        for method in ("nat", "dr"):
            self._note(f"memory of {number} connections, {method}")
            said = json.loads(await self._alone(["-m", "bench.footprint", method, str(number)]))
            self.results.footprints.append(
                Footprint(method, number, said["bytes"], said["breakdown"])
            )

    async def _measure_processing(self) -> None:
        self._note("decisions without I/O")
        said = json.loads(await self._alone(["-m", "bench.processing", str(self._options.rounds)]))
        self.results.processing = Processing(said["empty_call_us"], said["kinds"])

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim")


async def _watch_lifeline(lifeline: int, scope: trio.CancelScope) -> None:
    """Stop when the process that a person started is gone."""
    async with trio.lowlevel.FdStream(lifeline) as stream:
        while await stream.receive_some(1):
            pass
    scope.cancel()


async def _carry_out(course: Course, lifeline: int) -> bool:
    finished = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_lifeline, lifeline, nursery.cancel_scope)
        with trio.move_on_after(COURSE_TIME_MAX):
            await course.run()
            finished = True
        nursery.cancel_scope.cancel()
    return finished


def perform(options: Options, lifeline: int, console: Console) -> int:
    """Carry a run out in this private world; the exit code."""
    course = Course(options, console)
    finished = False
    complaint = "it took too long, or was abandoned"
    try:
        finished = trio.run(_carry_out, course, lifeline)
    except* HostError as group:
        complaint = "; ".join(str(error) for error in _leaves(group))
    except* KeyboardInterrupt:
        complaint = "it was interrupted"
    if not finished:
        console.print(f"no result: {complaint}", style="bold red", markup=False)
        return EXIT_IMPOSSIBLE
    if options.json is not None:
        content = json.dumps(asdict(course.results), indent=2)
        options.json.write_text(content + "\n", encoding="utf-8")
    report.show(course.results, console)
    return EXIT_DONE


def _leaves(group: BaseExceptionGroup[HostError]) -> list[HostError]:
    found: list[HostError] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(error)
        else:
            found.append(error)
    return found


if __name__ == "__main__":
    extend_search_path()
    sys.exit(perform(decode_options(sys.argv[1]), int(sys.argv[2]), Console(highlight=False)))
