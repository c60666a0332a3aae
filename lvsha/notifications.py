"""Run programs that are told of changes of state, without ever waiting for them.

Each receiver has a queue of its own and hears of one change after the other, in order, because
a program that learns of BACKUP after a newer MASTER does harm. A receiver that is behind by
`WAITING_MAX` changes loses the oldest. Programs of different receivers run side by side, at
most `RUNNING_MAX` at once.

A program gets four words behind its own arguments, as keepalived's notify scripts do:
``INSTANCE`` or ``GROUP``, the name, the state, the priority.
"""

from collections import deque
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from lvsha.counters import Counters
from lvsha.log import LimitedLog
from lvsha.model import VrrpState
from lvsha.programs import Outcome

WAITING_MAX: Final = 64
RUNNING_MAX: Final = 8

WORDS: Final = {
    VrrpState.INIT: "STOP",
    VrrpState.BACKUP: "BACKUP",
    VrrpState.MASTER: "MASTER",
    VrrpState.FAULT: "FAULT",
}
"""What keepalived calls the states towards scripts."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """A virtual router (``INSTANCE``) or group (``GROUP``) has entered a state."""

    kind: str
    name: str
    state: str
    priority: int

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of a program."""
        return (self.kind, self.name, self.state, str(self.priority))


@dataclass(frozen=True, slots=True)
class Receiver:
    """A program, and what it hears of.

    Attributes:
        command: the program and its first arguments.
        user: as whom it runs; None for the director's own.
        seconds_max: after which it is ended.
        states: those that it wants to hear of.
        about: kind and name; None for everything.
    """

    command: tuple[str, ...]
    user: str | None
    seconds_max: float
    states: frozenset[str]
    about: tuple[str, str] | None

    def wants(self, change: Change) -> bool:
        """Whether it hears of a change."""
        fits = self.about in {None, (change.kind, change.name)}
        return fits and change.state in self.states


class RunProgram(Protocol):
    """Runs a program; see `lvsha.programs.Programs.run`."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Awaitable[Outcome]:
        """Run it to its end."""
        ...


class _Queue:
    """The changes that one receiver has not heard of yet."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.waiting: deque[Change] = deque()
        self.busy = False
        self.arrived = trio.Event()


class Notifications:
    """All receivers of one node.

    Args:
        receivers: the programs.
        run_program: runs one.
        environment: what programs find there.

    Attributes:
        counters: programs that were run, failed, or were not run because of the limit.
    """

    def __init__(
        self,
        receivers: Iterable[Receiver],
        run_program: RunProgram,
        environment: Mapping[str, str],
    ) -> None:
        self.counters = Counters()
        self._queues = [_Queue(receiver) for receiver in receivers]
        self._run_program = run_program
        self._environment = environment
        self._places = trio.CapacityLimiter(RUNNING_MAX)
        self._limited = LimitedLog(_log)
        self._done = trio.Event()

    @property
    def users(self) -> set[str | None]:
        """As whom programs are run."""
        return {queue.receiver.user for queue in self._queues}

    def tell(self, change: Change) -> None:
        """Tell all who want to hear of it; never waits."""
        for queue in self._queues:
            if not queue.receiver.wants(change):
                continue
            if len(queue.waiting) >= WAITING_MAX:
                queue.waiting.popleft()
                self.counters.add("notifications_dropped")
            queue.waiting.append(change)
            queue.arrived.set()

    async def run(self) -> None:
        """Run programs until cancelled."""
        async with trio.open_nursery() as nursery:
            for queue in self._queues:
                nursery.start_soon(self._serve, queue)

    async def finish(self, seconds_max: float) -> None:
        """Wait until everybody has heard of everything, or for so long."""
        with trio.move_on_after(seconds_max):
            while any(queue.waiting or queue.busy for queue in self._queues):
                self._done = trio.Event()
                await self._done.wait()

    def status(self) -> dict[str, object]:
        """For an operator, as JSON-able values."""
        return {
            "waiting": sum(len(queue.waiting) for queue in self._queues),
            "counters": self.counters.snapshot(),
        }

    async def _serve(self, queue: _Queue) -> None:
        while True:
            if not queue.waiting:
                queue.arrived = trio.Event()
                await queue.arrived.wait()
            queue.busy = True
            change = queue.waiting.popleft()
            async with self._places:
                await self._notify(queue.receiver, change)
            queue.busy = False
            self._done.set()

    async def _notify(self, receiver: Receiver, change: Change) -> None:
        outcome = await self._run_program(
            [*receiver.command, *change.words],
            user=receiver.user,
            seconds_max=receiver.seconds_max,
            environment=self._environment,
        )
        self.counters.add("notifications")
        if outcome.code != 0:
            self.counters.add("notifications_failed")
            self._limited.warning(
                "notification failed",
                trio.current_time(),
                program=receiver.command[0],
                told=" ".join(change.words),
                outcome=str(outcome),
            )
