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
environment on purpose.

A user is changed by ``setpriv`` (util-linux), not between fork and exec of this process: that
would copy the page tables of a director with a million connections first. It also takes
ambient capabilities away. No shell is asked.
"""

import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from lvsha.errors import HostError

OUTPUT_BYTES_MAX: Final = 512
"""Of its output the end is kept, where programs say what went wrong."""
_READ_BYTES: Final = 16_384
_SEARCHES_MAX: Final = 10
"""Whoever forks faster than it is looked for and killed so many times is given up."""
_SETTLING: Final = 0.02
_END_SECONDS_MAX: Final = 5.0
"""So long may the kernel take to end what was killed (a process that waits for a disk)."""
_MARK: Final = "LVSHA_RUN"
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
_PROC: Final = Path("/proc")


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


def check_user(user: str | None) -> None:
    """Make sure that programs can be run as a user.

    Raises:
        HostError: there is none of this name, or this process may not become it.
    """
    if user is None:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise HostError(f"this machine has no user {user!r}, as which a program is to run") from (
            error
        )
    if os.geteuid() not in {0, entry.pw_uid} and not _may_change_users():
        raise HostError(
            f"to run a program as {user} the director needs CAP_SETUID, CAP_SETGID and CAP_KILL"
        )


def _may_change_users() -> bool:
    # linux/capability.h: KILL 5, SETGID 6, SETUID 7.
    held = _capabilities("CapEff")
    return all(held >> number & 1 for number in (5, 6, 7))


def _capabilities(which: str) -> int:
    """One of the capability sets of this process (proc(5), status)."""
    lines = (_PROC / "self" / "status").read_text("ascii", errors="replace").splitlines()
    line = next((line for line in lines if line.startswith(f"{which}:")), "")
    return int(line.partition(":")[2] or "0", 16)


async def run_program(
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
        seconds_max: after which it is ended.
        environment: what it finds there beside a path and a language.
    """
    try:
        return await carry_out([*_as_user(user), *command], seconds_max, environment or {})
    except OSError as error:
        return Outcome(None, f"cannot be run: {error.strerror}")
    except KeyError:
        return Outcome(None, f"cannot be run: there is no user {user}")


async def carry_out(
    command: Sequence[str], seconds_max: float, environment: Mapping[str, str]
) -> Outcome:
    """Run a program as the director's own user, to its end or to that of its time.

    Args:
        command: the program and its arguments.
        seconds_max: after which it is ended.
        environment: what it finds there beside a path and a language.

    Raises:
        OSError: it cannot be started.
    """
    mark = secrets.token_hex(16)
    reader, writer = os.pipe()
    try:
        try:
            process = await trio.lowlevel.open_process(
                command,
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
        return await _follow(process, _Family(process, mark, reader), seconds_max)
    finally:
        os.close(reader)


def _as_user(user: str | None) -> list[str]:
    """What stands before a command, so that it runs as a user and without capabilities."""
    words = ["--ambient-caps=-all"] if _capabilities("CapAmb") else []
    if user is not None and user != pwd.getpwuid(os.geteuid()).pw_name:
        entry = pwd.getpwnam(user)
        words += [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups"]
    return ["setpriv", *words, "--"] if words else []


async def _follow(process: trio.Process, family: "_Family", seconds_max: float) -> Outcome:
    output = bytearray()
    survivors = 0
    in_time = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_output, process, output)
            with trio.move_on_after(seconds_max) as limit:
                await process.wait()
            in_time = not limit.cancelled_caught
            survivors = await family.end()
            nursery.cancel_scope.deadline = trio.current_time() + _SETTLING
    finally:
        # The director may be on its way out: nothing of the program is to outlive it.
        with trio.move_on_after(_END_SECONDS_MAX, shield=True):
            await family.end()
            await process.wait()
        if process.stdout is not None:
            await trio.aclose_forcefully(process.stdout)
    said = _one_line(output)
    if not in_time:
        return Outcome(None, f"ended after {seconds_max:g} s", said, survivors)
    return Outcome(process.returncode, "", said, survivors)


async def _keep_output(process: trio.Process, output: bytearray) -> None:
    """Read everything, so that the program does not block, and keep the end of it."""
    assert process.stdout is not None
    while data := await process.stdout.receive_some(_READ_BYTES):
        output += data
        del output[:-OUTPUT_BYTES_MAX]


def _one_line(output: bytearray) -> str:
    text = " ".join(output.decode(errors="replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class _Family:
    """Everything that a program has started."""

    def __init__(self, leader: trio.Process, mark: str, pipe: int) -> None:
        self._process = leader
        self._leader = leader.pid
        self._mark = f"{_MARK}={mark}".encode()
        self._pipe = pipe
        os.set_blocking(pipe, False)

    async def end(self) -> int:
        """Kill it; returns how many had to be looked for."""
        found: set[int] = set()
        if self._is_gone():
            return 0
        # While the group has members its number is nobody else's. When it has none left and
        # the leader was waited for, a process of that number is a stranger.
        if self._process.returncode is None or not (_PROC / str(self._leader)).exists():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader, signal.SIGKILL)
        for _ in range(_SEARCHES_MAX):
            if await self._gone_soon():
                break
            # In a thread: the files of a process that hangs may be slow to read.
            members = await trio.to_thread.run_sync(self._search, abandon_on_cancel=True)
            for member in members:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(member, signal.SIGKILL)
            found |= members
        return len(found - {self._leader})

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

    def _search(self) -> set[int]:
        """The descendants of the leader, and all who carry the mark."""
        parents = dict(_parents())
        members = {pid for pid in parents if _is_marked(pid, self._mark)}
        members |= _descendants(parents, {self._leader, *members})
        return members - {os.getpid()}


def _parents() -> Iterator[tuple[int, int]]:
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_bytes()
        except OSError:
            continue
        # The name in parentheses may hold anything; behind it come state and parent.
        fields = text.rpartition(b")")[2].split()
        if len(fields) > 1 and fields[0] != b"Z":
            yield int(entry.name), int(fields[1])


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


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
