"""Run a drill from a person's command to the exit code.

`run_drill` is what the command calls: it makes the private world and starts this
module in there as a program, which carries the drill out, writes the reports and ends
with the exit code: 0 if no established connection was lost, 1 if one was or the
service did not come back, 2 if an option is wrong, 3 if the drill cannot be carried
out here, 130 if a person stopped it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.status import Status
from rich.text import Text

from lvsha.drill import page, report
from lvsha.drill.directors import Director, program_environment
from lvsha.drill.options import DrillOptions, decode_options
from lvsha.drill.recording import Recording
from lvsha.drill.rehearsal import Rehearsal
from lvsha.drill.seclusion import extend_search_path, run_secluded, seclusion
from lvsha.drill.timeline import judge
from lvsha.errors import ConfigError, HostError

EXIT_KEPT: Final = 0
EXIT_LOST: Final = 1
EXIT_OPTIONS: Final = 2
EXIT_IMPOSSIBLE: Final = 3
EXIT_INTERRUPTED: Final = 130

DRILL_TIME_MAX: Final = 600.0
"""Above the sum of all limits of a drill with options in their ranges."""


def run_drill(options: DrillOptions, console: Console, module: str = "lvsha.drill.exercise") -> int:
    """Carry a drill out in a private world and print its result; the exit code.

    Args:
        options: which drill.
        console: where to complain.
        module: what runs in there, as this module does.
    """
    try:
        options.check()
        _prepare_directories(options)
        prefix = seclusion()
    except ConfigError as error:
        _complain(console, "error", str(error))
        return EXIT_OPTIONS
    except HostError as error:
        _complain(console, "cannot run the drill", str(error))
        return EXIT_IMPOSSIBLE
    command = [sys.executable, "-m", module, options.encode()]
    return run_secluded(prefix, command, program_environment())


class Narrator:
    """The course of the drill for a person: one line for each phase, and a live one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("", console=console)
        self._phase = ""
        self._began_at = 0.0

    def begin(self, phase: str) -> None:
        """Show that a phase runs."""
        self._phase = phase
        self._began_at = time.monotonic()
        self._status.update(Text(phase))
        self._status.start()

    def note(self, detail: str) -> None:
        """Show how it stands."""
        self._status.update(Text.assemble(self._phase, "  ", (detail, "dim")))

    def end(self, result: str) -> None:
        """Tick the phase off."""
        self._status.stop()
        took = time.monotonic() - self._began_at
        self._console.print(
            Text.assemble(
                ("\N{CHECK MARK} ", "green"), self._phase, (f"  {result}, {took:.1f} s", "dim")
            )
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._status.stop()


def _prepare_directories(options: DrillOptions) -> None:
    for place in (options.directory, options.json_path.parent, options.html_path.parent):
        absolute = place.absolute()
        if absolute.is_relative_to("/run"):
            raise ConfigError(f"drill: {place}: expected a directory outside /run")
        try:
            absolute.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{place} cannot be made: {error.strerror}") from error
        if not os.access(absolute, os.W_OK | os.X_OK):
            raise HostError(f"{place} cannot be written to by this user")


def _complain(console: Console, heading: str, message: str) -> None:
    console.print(Text.assemble((f"{heading}: ", "bold red"), message))


async def _carry_out(rehearsal: Rehearsal, lifeline: int) -> Recording:
    """Run the rehearsal while the process that started all this lives.

    Raises:
        HostError: it could not be carried out.
    """
    recording: Recording | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_lifeline, lifeline, nursery.cancel_scope)
        with trio.move_on_after(DRILL_TIME_MAX):
            recording = await rehearsal.run()
        nursery.cancel_scope.cancel()
    if recording is None:
        raise HostError(f"it was not over after {DRILL_TIME_MAX:.0f} s, or was abandoned")
    return recording


async def _watch_lifeline(lifeline: int, scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(lifeline) as stream:
        while await stream.receive_some(1):
            pass
    scope.cancel()


def perform(
    options: DrillOptions,
    lifeline: int,
    console: Console,
    make_director: Callable[[str, Path, Path], Director] = Director,
) -> int:
    """Carry a drill out in this private world; the exit code."""
    narrator = Narrator(console)
    rehearsal = Rehearsal(options, narrator, make_director)
    complaint = ""
    interrupted = False
    recording: Recording | None = None
    try:
        recording = trio.run(_carry_out, rehearsal, lifeline)
    except* HostError as group:
        complaint = str(_first(group))
    except* KeyboardInterrupt:
        interrupted = True
    finally:
        narrator.close()
    if interrupted:
        console.print("stopped")
        return EXIT_INTERRUPTED
    if recording is None:
        _complain(console, "cannot run the drill", complaint)
        return EXIT_IMPOSSIBLE
    verdict = judge(recording)
    content = json.dumps(report.to_json(verdict, recording, options), indent=2)
    options.json_path.write_text(content + "\n", encoding="utf-8")
    pair = rehearsal.pair_path.read_text(encoding="utf-8")
    options.html_path.write_text(page.render(verdict, recording, options, pair), encoding="utf-8")
    console.print(report.render(verdict, options))
    return EXIT_KEPT if verdict.passed else EXIT_LOST


def _first(group: BaseExceptionGroup[HostError]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def main() -> int:
    """The first process in the private world: options and lifeline are its arguments."""
    extend_search_path()
    return perform(decode_options(sys.argv[1]), int(sys.argv[2]), Console())


if __name__ == "__main__":
    sys.exit(main())
