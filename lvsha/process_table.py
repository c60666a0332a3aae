"""Read of the machine's processes what proc(5) tells.

A process that has ended, or that is not ours to read, says nothing, and that is no error. That
this process lacks what it takes to read is one: an answer without it would be wrong, for
nobody would be seen to run.
"""

import errno
from pathlib import Path
from typing import Final

OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What this process lacks; whatever it asked for then is not to blame."""
_PROC: Final = Path("/proc")


def list_processes() -> list[int]:
    """The numbers of all processes that can be seen.

    Raises:
        OSError: they cannot be listed.
    """
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def newest_process() -> int:
    """The number that was given last, perhaps to one that is gone; 0 if that is hidden."""
    try:
        return int((_PROC / "loadavg").read_bytes().split()[-1])
    except OSError as error:
        if error.errno in OWN_FAULTS:
            raise
        return 0


def read_of_process(pid: int, file: str) -> bytes:
    """What a file of a process says; nothing if it cannot be read. May block.

    Raises:
        OSError: this process lacks what it takes to read.
    """
    try:
        return (_PROC / str(pid) / file).read_bytes()
    except OSError as error:
        if error.errno in OWN_FAULTS:
            raise
        return b""


def state_and_parent(pid: int) -> tuple[bytes, int] | None:
    """The letter of its state and the number of its parent; None if it is gone.

    Raises:
        OSError: this process lacks what it takes to read.
    """
    # The name in parentheses may hold anything; behind it come state and parent.
    fields = read_of_process(pid, "stat").rpartition(b")")[2].split()
    return (fields[0], int(fields[1])) if len(fields) > 1 else None


def capabilities(which: str) -> int:
    """One of the capability sets of this process, as "CapEff"."""
    lines = (_PROC / "self" / "status").read_text("ascii", errors="replace").splitlines()
    line = next((line for line in lines if line.startswith(f"{which}:")), "")
    return int(line.partition(":")[2] or "0", 16)
