"""What a director may ask the kernel for its process: to run in time, and to stay in memory.

Real-time scheduling lets the process run before all ordinary ones, so that a busy machine
does not make it late. What it starts does not inherit that: neither its worker threads nor
programs such as ``nft`` and scripts, any of which could then hold up the whole machine. Locked
memory is never paged out, so that no frame waits for a disk.

Neither is needed; what is asked for and not permitted is an error at start, not a surprise
under load.
"""

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lvsha.errors import HostError

# include/uapi/asm-generic/mman.h
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
# include/uapi/linux/capability.h
_CAP_IPC_LOCK: Final = 14

LockAll = Callable[[int], int]
"""Calls mlockall with these flags; returns 0 or the error number."""


THREAD_TURN: Final = 0.0001
"""Seconds for which one thread keeps the interpreter when another wants it."""


def let_threads_in() -> None:
    """Let the worker threads have their turns while the loop that forwards is busy.

    They talk with the kernel about addresses, and after each of some ten system calls they
    need the interpreter again. With the 5 ms for which Python keeps it from them, to ask for
    the addresses of an interface took 75 ms beside a busy loop. The loop waits as long for
    its turn after each frame that it sends beside a busy thread.
    """
    sys.setswitchinterval(THREAD_TURN)


def run_in_real_time(priority: int) -> None:
    """Let this thread run before all ordinary processes.

    Args:
        priority: 1 to 99, of SCHED_FIFO.

    Raises:
        HostError: that is not permitted.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        raise HostError(
            f"realtime_priority = {priority}: {error.strerror}; it needs CAP_SYS_NICE or a limit "
            f"LimitRTPRIO of at least {priority}, and in the unit RestrictRealtime=no and the "
            "system call sched_setscheduler"
        ) from error


def stay_in_memory(lock_all: LockAll | None = None) -> None:
    """Lock what this process has and will have into memory.

    Args:
        lock_all: the system call, unless a test has its own.

    Raises:
        HostError: that is not permitted, or only for a limited amount; past that the process
            would have no memory at all.
    """
    lock_all = _lock_all if lock_all is None else lock_all
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        pass
    elif hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    elif not _may_lock_all():
        raise HostError(
            f"lock_memory = true: no more than {hard} bytes may be locked; it needs CAP_IPC_LOCK "
            "or the limit LimitMEMLOCK=infinity"
        )
    # All that is here now, then all that comes when it is first used: a thread's stack takes
    # no more than it needs.
    for flags in (_MCL_CURRENT, _MCL_FUTURE | _MCL_ONFAULT):
        number = lock_all(flags)
        if number:
            raise HostError(f"lock_memory = true: {errno.errorcode.get(number, number)}")


def _lock_all(flags: int) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if library.mlockall(flags) else 0


def _may_lock_all() -> bool:
    """Whether this process has CAP_IPC_LOCK."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _CAP_IPC_LOCK & 1)
    return False
