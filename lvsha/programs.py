"""Run an operator's program within a time limit, and leave nothing of it behind.

A script that checks something, or is told of a change, may hang, start children, send them
into the background or write without end. Here it gets a session of its own, no input, a small
environment, and the user it was given; what it writes is read to its end and kept to
`OUTPUT_BYTES_MAX`. When it ends, or its time is up, everything that it started is ended with
SIGKILL:

* its process group;
* its descendants, found by their parents while it lives;
* whoever has left both: all of them have inherited one end of a pipe of ours, so an end of
  file tells, without a look at other processes, that none is left; and a mark in the
  environment finds those that are.

What escapes is a program that leaves its session, closes all files and clears its
environment on purpose, and one that forks faster for `_END_SECONDS_MAX` than it is killed.

Every program is started by ``setpriv`` (util-linux), which is local: the system call that
makes a process of a file on a server that does not answer takes for ever, and takes it in a
process that can be ended, not in a thread of this one, at its start. ``setpriv`` also changes
the user and takes ambient capabilities away; between fork and exec of this process that would
copy the page tables of a director with a million connections first. The user database, which
may be on a server too, is asked once for each user, in a thread. No shell is asked.

What this process lacks (files, memory) makes a run fail, and the run says so. So does what
cannot be ended in `_END_SECONDS_MAX`, whatever the exit code.
"""

import os
import pwd
import secrets
import signal
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from lvsha.errors import HostError
from lvsha.process_table import (
    capabilities,
    list_processes,
    newest_process,
    read_of_process,
    state_and_parent,
)

WITHOUT_CAPABILITIES: Final = "--ambient-caps=-all"
"""A director without root has (ambient) capabilities, and would leave them to its children."""
OUTPUT_BYTES_MAX: Final = 512
"""Of its output the end is kept, where programs say what went wrong."""
_READ_BYTES: Final = 16_384
LOOK_UP_SECONDS_MAX: Final = 10.0
"""So long a director that starts waits for the user database."""
_HUNTS_MAX: Final = 4
"""So many threads may hang over the files of processes that hang."""
_NEWEST: Final = 4
_CHASES: Final = 50
"""So often the newest processes are looked at in a hunt, which takes some milliseconds."""
_FRUITLESS_MAX: Final = 10
"""Whoever keeps our pipe open and is not found, or not ended, so many times is given up."""
_SETTLING: Final = 0.02
_END_SECONDS_MAX: Final = 5.0
"""So long may it take to end a program, and the kernel to end what was killed (a process that
waits for a disk)."""
_NOT_STARTED: Final = frozenset({126, 127})
"""With these exit codes ``setpriv`` says that it could not execute the command."""
_MARK: Final = "LVSHA_RUN"
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        code: its exit code; minus the number of a signal; None if it could not be started
            or was ended for its time.
        trouble: why there is no code.
        output: the end of what it wrote, as one line of printable text.
        survivors: how many processes of it had to be looked for and ended.
    """

    code: int | None
    trouble: str = ""
    output: str = ""
    survivors: int = 0

    def __str__(self) -> str:
        if self.code is None:
            said = self.trouble
        elif self.code < 0:
            said = f"ended by signal {-self.code}"
        else:
            said = f"exit code {self.code}"
        return f"{said}: {self.output}" if self.output else said


def starter(*options: str) -> tuple[str, ...]:
    """The words before a command that have it started with these options of ``setpriv``."""
    return ("setpriv", *options, "--")


def becoming(user: pwd.struct_passwd) -> tuple[str, ...]:
    """The options with which it becomes a user."""
    return (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups")


def starter_as(user: str | None) -> tuple[str, ...]:
    """The words before a command that is to run as a user and without capabilities; may block.

    Args:
        user: by name; None for the director's own.

    Raises:
        HostError: there is none of this name, or this process may not become it.
    """
    options = (WITHOUT_CAPABILITIES,) if capabilities("CapAmb") else ()
    if user is None:
        return starter(*options)
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise HostError(f"this machine has no user {user!r}, as which a program is to run") from (
            error
        )
    own = os.geteuid()
    if own == entry.pw_uid:
        return starter(*options)
    if own and not _may_change_users():
        raise HostError(
            f"to run a program as {user} the director needs CAP_SETUID, CAP_SETGID and CAP_KILL"
        )
    return starter(*options, *becoming(entry))


def _may_change_users() -> bool:
    # linux/capability.h: KILL 5, SETGID 6, SETUID 7.
    held = capabilities("CapEff")
    return all(held >> number & 1 for number in (5, 6, 7))


class Programs:
    """Runs programs, and remembers as whom."""

    def __init__(self) -> None:
        self._starters: dict[str | None, tuple[str, ...]] = {}
        # While the look-up of a user hangs, and so many hunts, no others are begun.
        self._look_ups: defaultdict[str | None, trio.CapacityLimiter]
        self._look_ups = defaultdict(lambda: trio.CapacityLimiter(1))
        self._hunts = trio.CapacityLimiter(_HUNTS_MAX)

    async def check_user(self, user: str | None) -> None:
        """Make sure that programs can be run as a user; None is the director's own.

        Raises:
            HostError: there is none of this name, or this process may not become it.
        """
        with trio.move_on_after(LOOK_UP_SECONDS_MAX):
            await self._starter(user)
            return
        raise HostError(f"the user {user!r} could not be looked up in {LOOK_UP_SECONDS_MAX:g} s")

    async def run(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run a program to its end, or to the end of its time.

        Args:
            command: the program and its arguments.
            user: as whom; None for the director's own.
            seconds_max: after which it is ended. Who it is must be known as soon.
            environment: what it finds there beside a path and a language.
        """
        words: tuple[str, ...] = ()
        try:
            with trio.move_on_after(seconds_max):
                words = await self._starter(user)
            if not words:
                return Outcome(None, f"cannot be run: user {user} takes too long to look up")
            return await self.carry_out(words, command, seconds_max, environment or {})
        except HostError as error:
            return Outcome(None, f"cannot be run: {error}")
        except OSError as error:
            return Outcome(None, f"cannot be run: {error.strerror}")

    async def _starter(self, user: str | None) -> tuple[str, ...]:
        if user not in self._starters:
            self._starters[user] = await trio.to_thread.run_sync(
                starter_as, user, abandon_on_cancel=True, limiter=self._look_ups[user]
            )
        return self._starters[user]

    async def carry_out(
        self,
        words: Sequence[str],
        command: Sequence[str],
        seconds_max: float,
        environment: Mapping[str, str],
    ) -> Outcome:
        """Run a program with other rights than those that the pair file gives it by name.

        Args:
            words: from `starter`.
            command: the program and its arguments.
            seconds_max: after which it is ended.
            environment: what it finds there beside a path and a language.

        Raises:
            OSError: nothing can be started.
        """
        end = trio.current_time() + seconds_max
        mark = secrets.token_hex(16)
        reader, writer = os.pipe()
        process = None
        try:
            try:
                with trio.move_on_at(end):
                    process = await trio.lowlevel.open_process(
                        [*words, *command],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        cwd="/",
                        env={**_ENVIRONMENT, **environment, _MARK: mark},
                        start_new_session=True,
                        pass_fds=(writer,),
                    )
            finally:
                os.close(writer)
            if process is None:
                return Outcome(None, f"not started within {seconds_max:g} s")
            family = _Family(process, mark, reader, self._hunts)
            outcome = await _follow(process, family, end, seconds_max)
        finally:
            os.close(reader)
        return _unless_not_started(outcome, command[0])


def _unless_not_started(outcome: Outcome, program: str) -> Outcome:
    """Tell a program that was not started from one that ends with the same exit code."""
    complaint = _one_line(f"setpriv: failed to execute {program}:") + " "
    if outcome.code in _NOT_STARTED and outcome.output.startswith(complaint):
        return Outcome(None, f"cannot be run: {outcome.output.removeprefix(complaint)}")
    return outcome


async def _follow(
    process: trio.Process, family: "_Family", end: float, seconds_max: float
) -> Outcome:
    output = bytearray()
    in_time = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_output, process, output)
            with trio.move_on_at(end) as limit:
                await process.wait()
            in_time = not limit.cancelled_caught
            await family.end()
            nursery.cancel_scope.deadline = trio.current_time() + _SETTLING
    finally:
        # The director may be on its way out: nothing of the program is to outlive it.
        with trio.CancelScope(shield=True):
            await family.end()
            with trio.move_on_after(_END_SECONDS_MAX):
                await process.wait()
        if process.stdout is not None:
            await trio.aclose_forcefully(process.stdout)
    said = _one_line(output.decode(errors="replace"))
    troubles = [] if in_time else [f"ended after {seconds_max:g} s"]
    if family.trouble:
        troubles.append(family.trouble)
    if troubles:
        return Outcome(None, "; ".join(troubles), said, family.survivors)
    return Outcome(process.returncode, "", said, family.survivors)


async def _keep_output(process: trio.Process, output: bytearray) -> None:
    """Read everything, so that the program does not block, and keep the end of it."""
    assert process.stdout is not None
    while data := await process.stdout.receive_some(_READ_BYTES):
        output += data
        del output[:-OUTPUT_BYTES_MAX]


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class _Family:
    """Everything that a program has started.

    Attributes:
        trouble: why some of it may be left.
    """

    def __init__(
        self, leader: trio.Process, mark: str, pipe: int, hunts: trio.CapacityLimiter
    ) -> None:
        self.trouble = ""
        self._process = leader
        self._leader = leader.pid
        self._mark = f"{_MARK}={mark}".encode()
        self._pipe = pipe
        self._hunts = hunts
        self._found: set[int] = set()
        self._ended = False
        os.set_blocking(pipe, False)

    @property
    def survivors(self) -> int:
        """How many had to be looked for."""
        return len(self._found - {self._leader})

    async def end(self) -> None:
        """Kill it, if that was not done; in bounded time."""
        if self._ended:
            return
        with trio.move_on_after(_END_SECONDS_MAX) as limit:
            await self._kill()
        self._ended = True
        if limit.cancelled_caught:
            self.trouble = f"not all that it has started ended within {_END_SECONDS_MAX:g} s"

    async def _kill(self) -> None:
        if self._is_gone():
            return
        # While the group has members its number is nobody else's. When it has none left and
        # the leader was waited for, a process of that number is a stranger.
        if self._process.returncode is None or not _exists(self._leader):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader, signal.SIGKILL)
        fruitless = 0
        while fruitless < _FRUITLESS_MAX and not await self._gone_soon():
            found = await self._hunted(again=bool(fruitless or self._found))
            fruitless = 0 if found else fruitless + 1

    async def _hunted(self, *, again: bool) -> bool:
        """Whether a hunt has found others than those before."""
        try:
            # In a thread: the files of a process that hangs may be slow to read.
            found = await trio.to_thread.run_sync(
                partial(self._hunt, again=again), abandon_on_cancel=True, limiter=self._hunts
            )
        except OSError as error:
            self.trouble = f"what it has started cannot be looked for: {error.strerror}"
            return False
        self.trouble = ""
        fresh = not found <= self._found
        self._found |= found
        return fresh

    async def _gone_soon(self) -> bool:
        with trio.move_on_after(_SETTLING):
            while True:
                await trio.lowlevel.wait_readable(self._pipe)
                if self._is_gone():
                    return True
        return False

    def _is_gone(self) -> bool:
        """Whether nobody holds the other end of the pipe any more."""
        try:
            return os.read(self._pipe, _READ_BYTES) == b""
        except BlockingIOError:
            return False

    def _hunt(self, *, again: bool) -> set[int]:
        """Kill all who carry the mark, and the descendants of these.

        Each is stopped as soon as it is seen, from the oldest on, so that who starts ever more
        does not go on while others are looked for. Who forks and ends, again and again, is
        another by the time that all have been looked at: if this is not the first hunt, only
        the newest processes are looked at for a while.
        """
        pids = sorted(list_processes(), key=lambda pid: (pid < self._leader, pid))
        members: set[int] = set()
        try:
            members.update(pid for pid in pids if self._found_marked(pid, signal.SIGSTOP))
            descendants = _descendants(dict(_parents()), {self._leader, *members}) - {os.getpid()}
        finally:
            for pid in members:
                _send(pid, signal.SIGKILL)
        # Nobody waits for a hunt that took too long, and by then numbers may be others'.
        for pid in () if self._ended else descendants - members:
            _send(pid, signal.SIGKILL)
        for _ in range(_CHASES if again else 0):
            newest = newest_process()
            chased = range(max(newest - _NEWEST, 0) + 1, newest + 1)
            members |= {pid for pid in reversed(chased) if self._found_marked(pid, signal.SIGKILL)}
        return members | descendants

    def _found_marked(self, pid: int, told: signal.Signals) -> bool:
        """Whether a process carries the mark; if so, it is sent a signal."""
        if pid == os.getpid() or self._mark not in read_of_process(pid, "environ").split(b"\0"):
            return False
        _send(pid, told)
        return True


def _send(pid: int, told: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, told)


def _exists(pid: int) -> bool:
    try:
        os.getpgid(pid)
    except ProcessLookupError:
        return False
    return True


def _parents() -> Iterator[tuple[int, int]]:
    for pid in list_processes():
        known = state_and_parent(pid)
        if known is not None and known[0] != b"Z":
            yield pid, known[1]


def _descendants(parents: Mapping[int, int], roots: Collection[int]) -> set[int]:
    found: set[int] = set()
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    waiting = list(roots)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found
