"""Try thousands of checks again and again on one Trio loop.

Each check has a task that sleeps for most of its life. What always holds:

* A check is tried by one probe at a time, and never twice within its interval, so a server
  that is slow to answer is not asked more often.
* At a start the first probes are spread over a time that grows with their number
  (`STARTS_PER_SECOND`), and the second ones over the whole interval; after that each interval
  is longer or shorter by the check's jitter, so that no two stay in step.
* At most ``probes_max`` are under way. Others wait in the order of their arrival, their
  time-out begins when it is their turn, and ``probes_delayed`` counts them: findings come
  later then, and none is lost.

Times are seconds.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import trio

from lvsha.config_health import Check
from lvsha.counters import Counters
from lvsha.health.opinions import Finding
from lvsha.health.prober import Prober
from lvsha.health.target import Target

STARTS_PER_SECOND: Final = 500
TASKS_AT_ONCE: Final = 20
"""So many begin in one turn of the loop that forwards, too."""

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Assignment(Generic[_Key]):
    """A check that is to be tried on a server.

    Attributes:
        key: by which the caller knows it.
    """

    key: _Key
    check: Check
    target: Target


class Runner(Generic[_Key]):
    """Tries checks, each until its `run` is cancelled.

    Args:
        prober: what tries them.
        report: takes each finding, and says whether it agrees with the opinion there is. If
            not, the check is tried again after its ``retry_interval``.
        probes_max: so many at once.
        dice: for the spread.
    """

    def __init__(
        self,
        prober: Prober,
        report: Callable[[Assignment[_Key], Finding], bool],
        probes_max: int,
        dice: random.Random,
    ) -> None:
        self.counters = Counters()
        self._prober = prober
        self._report = report
        self._places = trio.Semaphore(probes_max)
        self._dice = dice

    async def run(
        self, assignments: Collection[Assignment[_Key]], beginning: int | None = None
    ) -> None:
        """Try them.

        Args:
            assignments: which.
            beginning: so many begin now, others among them; by default these alone.
        """
        spread = (len(assignments) if beginning is None else beginning) / STARTS_PER_SECOND
        async with trio.open_nursery() as nursery:
            for number, assignment in enumerate(assignments, 1):
                nursery.start_soon(self._repeat, assignment, spread)
                if not number % TASKS_AT_ONCE:
                    await trio.lowlevel.checkpoint()

    async def _repeat(self, assignment: Assignment[_Key], spread: float) -> None:
        check = assignment.check
        await trio.sleep(self._dice.uniform(0, min(spread, check.interval)))
        share: float | None = self._dice.uniform(0, 1)
        while True:
            began = trio.current_time()
            settled = self._report(assignment, await self._probe(assignment))
            interval = check.interval
            if not settled:
                interval = min(interval, check.retry_interval or interval)
            elif share is not None:
                interval, share = interval * share, None
            interval *= 1 + self._dice.uniform(-check.jitter, check.jitter)
            await trio.sleep_until(max(began + interval, trio.current_time()))

    async def _probe(self, assignment: Assignment[_Key]) -> Finding:
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            self.counters.add("probes_delayed")
            await self._places.acquire()
        try:
            finding = await self._prober.probe(assignment.check, assignment.target)
        finally:
            self._places.release()
        self.counters.add("probes_passed" if finding.passed else "probes_failed")
        return finding
