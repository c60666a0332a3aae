"""Run the operator's fencing program, and remember for whom it has worked.

A peer is fenced by one program at a time, whoever asks for it; so the virtual routers that it
held share one run. A run that failed is repeated as long as somebody asks. No run begins
sooner than `FENCE_AGAIN` after the end of the one before, whatever became of that.

What a run has found is true at its end, whatever was heard while it ran. It holds for a
virtual router until the peer is heard later than that:

* by an advertisement of the virtual router: the peer is on the network of the clients;
* on the sync link, if that is another episode: the peer began later than the end to say what
  it says (after a pause, or after it said that it is no MASTER), or this node has not been a
  backup ever since.

Heartbeats that just go on mean nothing. A peer whose port was closed on the network of the
clients says for ever that it is MASTER; one whose power is off has words on their way; one that
was off and is back is silent first, and then says that it is a backup.
"""

import math
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
"""Between the end of a run and the next for the same peer."""

_log = structlog.get_logger()


class Standing(Enum):
    """How far the fencing of a peer is; WAITING if what was found holds no more."""

    RUNNING = "running"
    FENCED = "fenced"
    FAILED = "failed"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class LastHeard:
    """When a peer was heard last, for one virtual router; on Trio's clock, or minus infinity.

    Attributes:
        advertised_at: the newest advertisement of the virtual router.
        said_at: the newest words on the sync link.
        spell_began_at: the oldest words since which there was no pause, and which said the
            same: that the peer is MASTER, or that it is not.
        backup_since: since when this node has been a backup.
        on_the_way: seconds that words on the sync link may take.
    """

    advertised_at: float = -math.inf
    said_at: float = -math.inf
    spell_began_at: float = -math.inf
    backup_since: float = -math.inf
    on_the_way: float = 0.0

    def is_after(self, end: float) -> bool:
        """Whether what a run of the program has found at its end holds no more."""
        arrived = end + self.on_the_way
        return (
            self.advertised_at > end
            or self.spell_began_at > arrived
            or (self.backup_since > end and self.said_at > arrived)
        )


@dataclass(slots=True)
class Attempt:
    """One run of the program.

    Attributes:
        peer, router, reason: what it was told.
        began_at: Trio's clock.
        took: seconds; None while it runs.
        outcome: how it ended; None while it runs.
        is_void: whether what it found holds no more, for who asked last.
    """

    peer: str
    router: str
    reason: str
    began_at: float
    took: float | None = None
    outcome: Outcome | None = None
    is_void: bool = False

    @property
    def ended_at(self) -> float | None:
        """Trio's clock; None while it runs."""
        return None if self.took is None else self.began_at + self.took

    @property
    def standing(self) -> Standing:
        """What it has come to."""
        if self.outcome is None:
            return Standing.RUNNING
        if self.is_void:
            return Standing.WAITING
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

    def fence(self, peer: str, router: str, reason: str, heard: LastHeard) -> Standing:
        """Have a peer fenced, unless it is; never waits.

        Args:
            peer: its name.
            router: whose addresses are to be taken.
            reason: why.
            heard: when the peer was heard last.
        """
        now, attempt = trio.current_time(), self._attempts.get(peer)
        if attempt is not None:
            ended_at = attempt.ended_at
            if ended_at is None:
                return attempt.standing
            attempt.is_void = heard.is_after(ended_at)
            if attempt.standing is Standing.FENCED or now < ended_at + FENCE_AGAIN:
                return attempt.standing
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
