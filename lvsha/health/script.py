"""Run a program for a limited time, as another user, and end it with all it has started.

A program runs in a session and process group of its own, without standard input and output,
in an environment that holds only a path and what it is told. When it has ended, and when the
time is up or the caller is cancelled, its whole process group is killed; a child that left the
group on purpose is not found.

Another user's identity is taken by ``setpriv``, which also takes away the (ambient)
capabilities that a director without root has for itself and would leave to its children. Doing
it in the child of this process would need a fork with a copy of all page tables, for which a
director with millions of connections stands still; without it the child shares them until it
runs.
"""

import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

from lvsha.errors import ConfigError
from lvsha.health.opinions import Finding

NOBODY: Final = "nobody"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DYNAMIC_OFFSET: Final = 2
"""keepalived's MISC_CHECK: exit status 2 to 255 is the weight and 2."""
END_SECONDS_MAX: Final = 1.0
_WITHOUT_CAPABILITIES: Final = ("setpriv", "--ambient-caps=-all", "--no-new-privs", "--")


def identity(user: str | None) -> tuple[str, ...]:
    """The words before a command that give up what it must not have.

    Args:
        user: who is to run it. By default that is nobody, or, if this program is not root,
            who runs this program, without its capabilities.

    Raises:
        ConfigError: there is no such user, or this program cannot become another.
    """
    own = os.geteuid()
    if user is None and own:
        return _WITHOUT_CAPABILITIES
    name = user or NOBODY
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigError(f"user: expected one of this machine, not {name!r}") from error
    if entry.pw_uid == own:
        return _WITHOUT_CAPABILITIES if own else ()
    if own:
        raise ConfigError(f"user: expected none, not {name!r}, because root does not run this")
    return (
        "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups",
        "--no-new-privs", "--",
    )  # fmt: skip


async def run_program(
    prefix: Sequence[str], command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Run a program to its end.

    Args:
        prefix: from `identity`.
        command: the program and its arguments.
        environment: what it is told.

    Returns:
        Its exit status; negative: the signal that ended it.

    Raises:
        OSError: it cannot be started.
    """
    process = await trio.lowlevel.open_process(
        [*prefix, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": PATH, **environment},
        start_new_session=True,
    )
    try:
        await _ended(process.pid)
    finally:
        # Until it is waited for, nobody else can have its number.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that the kernel does not let go, such as for a dead disk, is left to itself.
        with trio.CancelScope(deadline=trio.current_time() + END_SECONDS_MAX, shield=True):
            await process.wait()
    status = process.returncode
    return -signal.SIGKILL if status is None else status


async def _ended(pid: int) -> None:
    """Wait until a child has ended, and leave its status there."""
    handle = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(handle)
    finally:
        os.close(handle)


async def probe_script(
    prefix: Sequence[str], command: Sequence[str], environment: Mapping[str, str], *, dynamic: bool
) -> Finding:
    """Run a check: exit status 0 is good, and others are as `DYNAMIC_OFFSET` says."""
    status = await run_program(prefix, command, environment)
    if not status:
        return Finding(passed=True, reason="exit status 0")
    if status < 0:
        return Finding(passed=False, reason=f"ended by signal {-status}")
    if dynamic and status >= DYNAMIC_OFFSET:
        weight = status - DYNAMIC_OFFSET
        return Finding(passed=True, reason=f"asks for weight {weight}", weight=weight)
    return Finding(passed=False, reason=f"exit status {status}")
