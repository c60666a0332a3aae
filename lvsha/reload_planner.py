"""Plan a reload in a process of its own, so that no frame waits for it.

To read and check a file of thousands of services takes Python seconds, and parts of that keep
every thread of a process from running. So another process does it, and what comes back is
packed piece by piece: the director unpacks one service at a time, and only those that change.

Both processes are of the same program and user, so what they exchange is pickled.
"""

import os
import pickle
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from lvsha.config import Pair, Service, load_pair
from lvsha.errors import ConfigError, HostError
from lvsha.reload import Plan, plan
from lvsha.service_changes import service_changes

TIME_MAX: Final = 120.0
"""Seconds; ten thousand services take three."""
EXIT_REFUSED: Final = 2
_PROGRAM: Final = f"""
import contextlib, os, sys
with contextlib.suppress(OSError):
    os.nice(19)
from {__name__} import main
sys.exit(main())
"""
"""Where that is permitted, it works when nobody else wants the processor."""
_BEGINNING: Final = b"\0lvsha proposal\0"
"""Of the answer: what else is printed, by whatever Python loads at its start, is before it."""
_PACKING: Final = 1
"""The quickest."""


@dataclass(frozen=True, slots=True)
class PackedChange:
    """A service that is another now.

    Attributes:
        before: the name of the one that it was; None if it is new.
        after: as it is, packed; None if it is gone.
    """

    before: str | None
    after: bytes | None

    def unpack(self) -> Service | None:
        """The service as it is."""
        service: Service | None = None if self.after is None else _unpacked(self.after)
        return service


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan whose services are packed.

    Attributes:
        plan: its pair file has no services, and marks only if they change.
        order: the names of the services that are followed.
        changes: how they become so.
        followed: the pair file that is followed, packed, for the next reload.
    """

    plan: Plan
    order: tuple[str, ...]
    changes: tuple[PackedChange, ...]
    followed: bytes


def pack(pair: Pair) -> bytes:
    """A pair file as another process takes it."""
    return zlib.compress(pickle.dumps(pair), _PACKING)


def make_proposal(running: bytes, file: Path) -> Proposal:
    """Plan; takes long.

    Args:
        running: what is followed until now, packed.
        file: what was found.

    Raises:
        ConfigError: the file is wrong, or cannot be followed.
    """
    old: Pair = _unpacked(zlib.decompress(running))
    planned = plan(old, load_pair(file))
    new = planned.pair
    changes = tuple(
        PackedChange(
            None if change.old is None else change.old.name,
            None if change.new is None else pickle.dumps(change.new),
        )
        for change in service_changes(old, new)
    )
    without = new.model_copy(
        update={"services": (), "marks": new.marks if new.marks != old.marks else ()}
    )
    order = tuple(service.name for service in new.services)
    return Proposal(replace(planned, pair=without), order, changes, pack(new))


async def propose(running: bytes, file: Path) -> Proposal:
    """Plan in another process.

    Args:
        running: what is followed until now, packed.
        file: what was found.

    Raises:
        ConfigError: the file is wrong, or cannot be followed.
        HostError: it could not be looked at.
    """
    # Not from where this process happens to stand (-P).
    words = [sys.executable, "-P", "-c", _PROGRAM, str(file)]
    try:
        with trio.fail_after(TIME_MAX):
            done = await trio.run_process(
                words, stdin=running, capture_stdout=True, capture_stderr=True, check=False
            )
    except OSError as error:
        raise HostError(f"{file} could not be looked at: {error.strerror}") from error
    except trio.TooSlowError as error:
        raise HostError(f"{file} could not be looked at: not within {TIME_MAX:g} s") from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == EXIT_REFUSED:
        raise ConfigError(said)
    if done.returncode:
        last = said.rpartition("\n")[2]
        raise HostError(f"{file} could not be looked at: status {done.returncode}: {last}")
    proposal: Proposal = _unpacked(done.stdout.partition(_BEGINNING)[2])
    return proposal


def main() -> int:
    """Plan, from standard input to standard output; what is wrong goes to standard error."""
    # What is printed from now on is no part of the answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        proposal = make_proposal(sys.stdin.buffer.read(), Path(sys.argv[1]))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    with answers:
        answers.write(_BEGINNING + pickle.dumps(proposal))
    return 0


def _unpacked(data: bytes) -> Any:
    try:
        return pickle.loads(data)  # noqa: S301 - by this program, in a process of this user
    except Exception as error:
        # Cut short, or of another version of this program.
        raise HostError(f"what was planned was not understood: {error}") from error
