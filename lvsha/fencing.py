"""Run the operator's fencing program, and remember for whom it has worked.

A peer is fenced by one program at a time, whoever asks for it; so the virtual routers that it
held share one run. What a run has found holds until the peer is heard again. A run that
failed is repeated after `FENCE_AGAIN`, as long as somebody asks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog
import trio

from lvsha.config_second_path import FencingTable
from lvsha.counters import Counters
from lvsha.notifications import RunProgram
from lvsha.programs import Outcome

FENCE_AGAIN: Final = 10.0

_log = structlog.get_logger()


class Standing(Enum):
    """How far the fencing of a peer is."""

    RUNNING = "running"
    FENCED = "fenced"
    FAILED = "failed"


@dataclass(slots=True)
class Attempt:
    """One run of the program.

    Attributes:
        peer, router, reason: what it was told.
        began_at: Trio's clock.
        took: seconds; None while it runs.
        outcome: how it ended; None while it runs.
    """

    peer: str
    router: str
    reason: str
    began_at: float
    took: float | None = None
    outcome: Outcome | None = None

    @property
    def standing(self) -> Standing:
        """What it has come to."""
        if self.outcome is None:
            return Standing.RUNNING
        return Standing.FENCED if self.outcome.code == 0 else Standing.FAILED


class Fencing:
    """The fencing of all peers of one node.

    Args:
        table: what to run.
        node: this node.
        run_program: runs it.
        changed: called when a run begins and when it has ended.

    Attributes:
        goes_on: whether addresses are taken although fencing failed.
        counters: runs, and how they ended.
    """

    def __init__(
        self,
        table: FencingTable,
        node: str,
        run_program: RunProgram,
        changed: Callable[[Attempt], None],
    ) -> None:
        self.goes_on = table.on_failure == "take_over"
        self.user = table.user
        self.counters = Counters()
        self._table = table
        self._node = node
        self._run_program = run_program
        self._changed = changed
        self._attempts: dict[str, Attempt] = {}
        self._waiting: list[Attempt] = []
        self._arrived = trio.Event()

    async def run(self) -> None:
        """Run programs until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._waiting:
                    nursery.start_soon(self._fence, self._waiting.pop(0))
                self._arrived = trio.Event()
                await self._arrived.wait()

    def fence(self, peer: str, router: str, reason: str, heard_at: float) -> Standing:
        """Have a peer fenced, unless it is; never waits.

        Args:
            peer: its name.
            router: whose addresses are to be taken.
            reason: why.
            heard_at: when the peer was heard last; what was found before does not hold.
        """
        now, attempt = trio.current_time(), self._attempts.get(peer)
        if attempt is not None:
            standing = attempt.standing
            if standing is Standing.RUNNING:
                return standing
            ended_at = attempt.began_at + (attempt.took or 0.0)
            due = standing is Standing.FAILED and now >= ended_at + FENCE_AGAIN
            if attempt.began_at >= heard_at and not due:
                return standing
        attempt = self._attempts[peer] = Attempt(peer, router, reason, now)
        self._waiting.append(attempt)
        self._arrived.set()
        return attempt.standing

    def status(self) -> dict[str, object]:
        """What an operator may want to know, as JSON values."""
        now = trio.current_time()
        return {
            "peers": {
                peer: {
                    "state": one.standing.value,
                    "router": one.router,
                    "reason": one.reason,
                    "outcome": None if one.outcome is None else str(one.outcome),
                    "began_seconds_ago": now - one.began_at,
                    "took_seconds": one.took,
                }
                for peer, one in self._attempts.items()
            },
            "on_failure": self._table.on_failure,
            "counters": self.counters.snapshot(),
        }

    async def _fence(self, attempt: Attempt) -> None:
        table = self._table
        said = {"peer": attempt.peer, "router": attempt.router}
        self.counters.add("fencing_runs")
        _log.warning("fencing a peer", reason=attempt.reason, **said)
        self._changed(attempt)
        outcome = await self._run_program(
            [*table.command, attempt.peer, attempt.router, attempt.reason],
            user=table.user,
            seconds_max=table.timeout,
            environment={"LVSHA_NODE": self._node},
        )
        attempt.took = trio.current_time() - attempt.began_at
        attempt.outcome = outcome
        if outcome.code == 0:
            self.counters.add("fenced")
            _log.info("the peer is fenced", **said)
        else:
            self.counters.add("fencing_failed")
            _log.error("the peer could not be fenced", outcome=str(outcome), **said)
        self._changed(attempt)
