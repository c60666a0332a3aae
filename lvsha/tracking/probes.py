"""Look at what a tracker watches outside the director: programs, files, processes.

A `Probe` makes one reading when asked, within its own time limit, whatever the thing does.
It never raises for the state of what it looks at: what cannot be read is a reading too. What
may block (a file on a file system that hangs, the memory of a stuck process) is read in a
thread; while that thread hangs no other is started for the same tracker.
"""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from lvsha.failover.tracking import Reading
from lvsha.notifications import RunProgram
from lvsha.process_table import list_processes, read_of_process, state_and_parent

_FILE_BYTES_MAX: Final = 4096
_NUMBER_MAX: Final = 2**31 - 1
_NAME_BYTES_MAX: Final = 15
"""The kernel cuts the name of a process to this (TASK_COMM_LEN)."""


class Probe(Protocol):
    """Looks at one thing."""

    async def look(self) -> Reading:
        """Make one reading, in bounded time."""
        ...


class Script:
    """A program whose exit code 0 means that all is well.

    Args:
        name: of the tracker, for messages and for the program's environment.
        command: the program and its arguments.
        user: as whom it runs; None for the director's own.
        seconds_max: after which it is ended, and counts as failed.
        run_program: runs it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        user: str | None,
        seconds_max: float,
        run_program: RunProgram,
    ) -> None:
        self._name = name
        self._run_program = run_program
        self._command = tuple(command)
        self._user = user
        self._seconds_max = seconds_max

    async def look(self) -> Reading:
        """Run it."""
        outcome = await self._run_program(
            self._command,
            user=self._user,
            seconds_max=self._seconds_max,
            environment={"LVSHA_TRACKER": self._name},
        )
        return Reading(up=outcome.code == 0, detail=f"{self._name}: {outcome}")


class InThread:
    """Asks a function that may block, in a thread, within a time limit.

    Args:
        read: makes the reading.
        seconds_max: for which it is waited for.
        late: the reading if it does not come, made when it did not.
    """

    def __init__(
        self, read: Callable[[], Reading], seconds_max: float, late: Callable[[], Reading]
    ) -> None:
        self._read = read
        self._seconds_max = seconds_max
        self._late = late
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def look(self) -> Reading:
        """Ask, and wait no longer than allowed."""
        with trio.move_on_after(self._seconds_max):
            # A thread that hangs keeps its place, so that the next one waits in vain.
            return await trio.to_thread.run_sync(
                self._read, abandon_on_cancel=True, limiter=self._one_at_a_time
            )
        return self._late()


class NumberInFile:
    """Reads the number in the first line of a file.

    A file that is not there or empty says 0. What is no number, or cannot be read, leaves the
    last number as it was, because half a line must not move an address.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0

    def read(self) -> Reading:
        """Read the file; may block."""
        trouble = ""
        try:
            line = _first_line(self._path)
            number = int(line) if line else 0
            self._number = max(-_NUMBER_MAX, min(_NUMBER_MAX, number))
        except FileNotFoundError:
            self._number = 0
        except OSError as error:
            trouble = f"{self._path} cannot be read: {error.strerror}"
        except ValueError:
            trouble = f"{self._path} does not begin with a number"
        return self._reading(trouble)

    def late(self) -> Reading:
        """The last number, because the file could not be read in time."""
        return self._reading(f"{self._path} takes too long to read")

    def _reading(self, trouble: str) -> Reading:
        detail = f"{self._path} says {self._number}" if self._number else ""
        words = "; ".join(part for part in (detail, trouble) if part)
        return Reading(up=self._number == 0, detail=words, number=self._number)


def read_existence(path: Path) -> Reading:
    """Whether something is at a path; may block."""
    try:
        path.lstat()
    except OSError as error:
        return Reading(up=False, detail=f"{path}: {error.strerror}")
    return Reading(up=True)


def read_processes(
    process: str, *, full_command: bool, quorum: int, quorum_max: int | None
) -> Reading:
    """Whether enough processes of a name run, and not too many; may block.

    Args:
        process: their name, of which the kernel keeps 15 bytes; or with ``full_command`` their
            whole command line, its words separated by single spaces.
        full_command: which of these it is.
        quorum: how many there must be.
        quorum_max: and how many at most; None for any number.
    """
    wanted = process.encode() if full_command else process.encode()[:_NAME_BYTES_MAX]
    try:
        count = sum(_is_called(pid, wanted, full_command) for pid in list_processes())
    except OSError as error:
        return Reading(up=False, detail=f"the processes cannot be read: {error.strerror}")
    if count < quorum:
        return Reading(up=False, detail=f"{count} processes {process}, needs {quorum}")
    if quorum_max is not None and count > quorum_max:
        return Reading(up=False, detail=f"{count} processes {process}, at most {quorum_max}")
    return Reading(up=True)


def _is_called(pid: int, wanted: bytes, full_command: bool) -> bool:
    """Whether a process has this name or command line, and lives; a zombie has a name, too."""
    if full_command:
        found = read_of_process(pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ")
    else:
        found = read_of_process(pid, "comm").rstrip(b"\n")
    if found != wanted:
        return False
    known = state_and_parent(pid)
    return known is not None and known[0] != b"Z"


def _first_line(path: Path) -> bytes:
    # A pipe would block, a device might never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("no regular file")
        data = os.read(descriptor, _FILE_BYTES_MAX)
    finally:
        os.close(descriptor)
    return data.partition(b"\n")[0].strip()
