"""Watch over the life of the process: does the loop that forwards still go round?

A director must not look alive when it does not forward. Two things can hang:

* The whole process, in a call that does not return. Then nothing here runs either: no
  advertisement leaves, the addresses lapse by their lifetime, the watchdog is not fed.
* The task that carries frames alone, while all others go on. That is what this looks for. The
  task is asked again and again (`lvsha.datapath.pulse`); only its answer feeds the watchdog,
  and when it does not answer, every virtual router has a fault until it does.

A pause of the whole process is no such fault: by its end, the time to answer is over although
nobody could. So a question has a number of turns of the loop of all tasks to be answered in,
beside its time, and only two in a row without an answer are a fault.

The service manager is told when the node takes part, a line about what it is, and that it
stops. Times are Trio's clock.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from lvsha.counters import Counters
from lvsha.service_manager import ServiceManager

PATIENCE: Final = 2
"""Questions in a row that may stay unanswered, less one."""
TURNS: Final = 4
"""An answer takes three turns of the loop of all tasks, however long each of them is."""
ASKING_TIME_MIN: Final = 0.1
"""Seconds; a burst of frames takes 2 ms of a turn, the collector of cycles some tens."""
ASKING_INTERVAL_MIN: Final = 0.05
"""An idle loop that is asked waits a millisecond for frames before others have their turn."""
BEATS: Final = 2
"""Questions in the time after which a peer takes over."""
DISTURBING: Final = 6
"""A pause of this part of the time after which a peer takes over is remembered; it is half an
interval."""
PAUSES_MAX: Final = 64
SIGNS: Final = 4
"""Signs of life in the time that the watchdog waits, so that some may come late."""

_log = structlog.get_logger()


class Vigil:
    """Watches the loop that carries frames, for the peer's sake and the watchdog's.

    Args:
        beat: returns when that loop has had a turn.
        manager: who is told.
        down_interval: seconds after which a peer takes over.
        on_fault: called when `fault` is another.

    Attributes:
        fault: what is wrong, for people; None if nothing is.
        counters: questions that were not answered, and pauses of all tasks.
        lateness_max: of the loop of all tasks, the worst so far, in seconds.
        pauses: when such a lateness ended, and how long it was; the last `PAUSES_MAX`.
        takes_part: the service manager was told that the node does.
    """

    def __init__(
        self,
        beat: Callable[[], Awaitable[None]],
        manager: ServiceManager,
        down_interval: float,
        on_fault: Callable[[], None],
    ) -> None:
        self.fault: str | None = None
        self.counters = Counters()
        self.lateness_max = 0.0
        self.pauses: deque[tuple[float, float]] = deque(maxlen=PAUSES_MAX)
        self.takes_part = trio.Event()
        self._beat = beat
        self._manager = manager
        self._down_interval = down_interval
        self._on_fault = on_fault
        self._fed_at = -math.inf
        self._line = ""

    async def watch(self, describe: Callable[[], str]) -> None:
        """Watch until cancelled.

        Args:
            describe: says what the node is, in one line.
        """
        unanswered = 0
        while True:
            if await self._answers():
                unanswered = 0
                self._judge(None)
                self._feed(describe())
            else:
                unanswered += 1
                self.counters.add("beats_missed")
                if unanswered >= PATIENCE:
                    self._judge("the loop that forwards does not answer")
            await self._sleep(self._asking_interval())

    def _asking_interval(self) -> float:
        """Often enough for the peer, and for the watchdog."""
        watchdog = self._manager.watchdog
        wanted = self._down_interval / BEATS
        if watchdog is not None:
            wanted = min(wanted, watchdog / SIGNS)
        return max(wanted, ASKING_INTERVAL_MIN)

    def ready(self, status: str = "listening") -> None:
        """The node takes part."""
        self.takes_part.set()
        self._manager.tell(READY="1", STATUS=status)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends that."""
        self._manager.tell(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def stopping(self) -> None:
        """The node hands over and ends."""
        self._manager.tell(STOPPING="1", STATUS="handing over")

    def status(self) -> dict[str, object]:
        """What an operator may want to know, as JSON values."""
        return {
            "fault": self.fault,
            "lateness_max_seconds": round(self.lateness_max, 6),
            "watchdog_seconds": self._manager.watchdog,
            "counters": self.counters.snapshot(),
        }

    async def _answers(self) -> bool:
        """Ask, and wait for so long, and for so many turns of the loop of all tasks."""
        answered = trio.Event()

        async def ask() -> None:
            await self._beat()
            answered.set()

        asked_at = trio.current_time()
        limit = max(self._down_interval / PATIENCE, ASKING_TIME_MIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            for _ in range(TURNS):
                with trio.move_on_after(limit / TURNS):
                    await answered.wait()
            nursery.cancel_scope.cancel()
        took = trio.current_time() - asked_at
        self._note_late(took if answered.is_set() else took - limit)
        return answered.is_set()

    async def _sleep(self, seconds: float) -> None:
        due = trio.current_time() + seconds
        await trio.sleep_until(due)
        self._note_late(trio.current_time() - due)

    def _note_late(self, late: float) -> None:
        """Take note of how late this ran."""
        self.lateness_max = max(self.lateness_max, late)
        if late > self._down_interval / DISTURBING:
            self.counters.add("pauses")
            self.pauses.append((trio.current_time(), late))

    def _judge(self, fault: str | None) -> None:
        if fault == self.fault:
            return
        self.fault = fault
        if fault is None:
            _log.info("the loop that forwards answers again")
        else:
            _log.error("the loop that forwards hangs", watchdog=self._manager.watchdog)
            self._manager.tell(STATUS=fault)
            self._line = fault
        self._on_fault()

    def _feed(self, line: str) -> None:
        """Give a sign of life as often as one is wanted, and the line when it has changed."""
        told: dict[str, str] = {}
        now, watchdog = trio.current_time(), self._manager.watchdog
        if watchdog is not None and now >= self._fed_at + watchdog / SIGNS:
            self._fed_at = now
            told["WATCHDOG"] = "1"
        if line != self._line:
            self._line = told["STATUS"] = line
        if told:
            self._manager.tell(**told)
