"""Programs of a bench: started in a namespace, listened to line by line, and ended.

Each line that a program writes is JSON; what it means is between it and who started it.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from bench.carriers import place
from lvsha.drill.laboratory import enter
from lvsha.errors import HostError

_FIRST: Final = -20


@asynccontextmanager
async def program(
    namespace: str | None,
    arguments: Sequence[str],
    processors: Collection[int],
    *,
    listens: bool = False,
    goes_first: bool = False,
) -> AsyncIterator[trio.Process]:
    """A Python program that is ended with the context.

    Args:
        namespace: where it runs; None for here.
        arguments: of Python.
        processors: where it may run; anywhere, if there are none.
        listens: whether it is told lines, too.
        goes_first: before all else that this machine does, if that is allowed.
    """
    command = [sys.executable, *arguments]
    process = await trio.lowlevel.open_process(
        command if namespace is None else enter(namespace, command),
        stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=goes_first,
    )
    try:
        if processors:
            place(process.pid, processors)
        if goes_first:
            put_first(process.pid)
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


def put_first(process: int) -> None:
    """Give a process precedence, as far as this machine lets it."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process, _FIRST)
    # Where the kernel groups processes by session, only the group's own value counts
    # (sched(7), "The autogroup feature").
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text(str(_FIRST), encoding="ascii")


async def line_of(process: trio.Process, limit: float) -> bytes:
    """The next line that a program writes.

    Raises:
        HostError: it wrote none in time.
    """
    assert process.stdout is not None
    parts: list[bytes | bytearray] = []
    with trio.move_on_after(limit):
        while not parts or not parts[-1].endswith(b"\n"):
            part = await process.stdout.receive_some(65_536)
            if not part:
                break
            parts.append(part)
    line = b"".join(parts)
    if not line.endswith(b"\n"):
        raise HostError(f"a program of the bench said nothing in time: {process.args!r}")
    return line


async def numbers_of(process: trio.Process, limit: float) -> Mapping[str, float]:
    """The next line of a program that says numbers by name.

    Raises:
        HostError: it wrote none in time.
    """
    answer: Mapping[str, float] = json.loads(await line_of(process, limit))
    return answer


async def tell(process: trio.Process, line: str) -> None:
    """Write a line to a program that listens.

    Raises:
        HostError: it has ended.
    """
    assert process.stdin is not None
    try:
        await process.stdin.send_all(line.encode() + b"\n")
    except trio.BrokenResourceError as error:
        raise HostError(f"a program of the bench ended early: {process.args!r}") from error


def processor_time(process: int | None) -> float:
    """Seconds for which a process has run; 0 without one."""
    if process is None:
        return 0.0
    # Of its only busy thread; nanoseconds (Linux Documentation/scheduler/sched-stats).
    text = Path(f"/proc/{process}/schedstat").read_text(encoding="ascii")
    return int(text.split()[0]) / 1e9
