"""Trio with one order of tasks, and processes that hang; for simulations only.

Both need private names of Trio, which is why they stand in one small file. Trio orders the
tasks that may run at random, by intent, and has no public way to repeat an order; the two
names that make it repeatable are kept in Trio for the plugin of hypothesis, which uses them
in the same way. Nor can a part of a program be stopped in public: the tasks of a hanging
process are taken out of the queue when they become runnable, and put back when it goes on.
"""

import contextlib
import random
from collections.abc import Iterator
from contextvars import ContextVar
from unittest import mock

import outcome
import trio._core._run as trio_run
from trio.lowlevel import Task


class Process:
    """Tasks that hang together. Tasks belong to the process of the one that started them.

    Attributes:
        hangs: none of its tasks takes a step.
    """

    def __init__(self) -> None:
        self.hangs = False
        self._stalled: list[Task] = []

    def adopt(self) -> None:
        """Make the current task, and those that it starts, part of this process."""
        _OWNER.set(self)

    def hang(self) -> None:
        self.hangs = True

    def wake(self) -> None:
        """Go on, with everything that has happened meanwhile."""
        self.hangs = False
        trio_run.GLOBAL_RUN_CONTEXT.runner.runq.extend(self._stalled)
        self._stalled.clear()

    def hold_back(self, task: Task) -> None:
        """Keep a runnable task until the process goes on."""
        self._stalled.append(task)


_OWNER: ContextVar[Process | None] = ContextVar("owner", default=None)


def current_process() -> Process | None:
    """Whose task this is."""
    return _OWNER.get()


@contextlib.contextmanager
def one_order_of_tasks(seed: int) -> Iterator[None]:
    """Let the order of tasks follow from a seed, and make `Process.hang` work."""
    original = trio_run.Runner.reschedule

    def reschedule(runner: trio_run.Runner, task: Task, *value: outcome.Outcome[object]) -> None:
        original(runner, task, *value)
        process = task.context.get(_OWNER)
        if process is not None and process.hangs:
            process.hold_back(runner.runq.pop())

    generator: random.Random = trio_run._r
    state = generator.getstate()
    generator.seed(seed)
    try:
        with (
            mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True),
            mock.patch.object(trio_run.Runner, "reschedule", new=reschedule),
        ):
            yield
    finally:
        generator.setstate(state)
