"""What time brings, in pieces that take some milliseconds at most.

Connections, fragments and questions end, rates are estimated, the trash is emptied, the
defence looks at its share of the table. Whatever walks a table is an iterator, a chore, of
which one part is done at a time, so that a caller can let frames pass in between. Times are
seconds on the caller's clock.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from lvsha.datapath.connections import Connection
from lvsha.datapath.defence import Defence
from lvsha.datapath.estimator import Estimator
from lvsha.datapath.questions import Questions
from lvsha.datapath.reassembly import Reassembler
from lvsha.datapath.registry import Registry
from lvsha.datapath.replication import Replication
from lvsha.datapath.service_table import ServiceTable
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.settings import Settings

CHORE_INTERVAL: Final = 1.0
"""Seconds between two rounds of what is to be done now and then."""
ESTIMATES_IN_ONE_GO: Final = 200
CHORES_MAX: Final = 8
"""Chores that wait; while there are so many, what comes up each second is left out."""


class Housekeeping:
    """Does what is due."""

    def __init__(
        self,
        registry: Registry,
        services: ServiceTable,
        replication: Replication,
        defence: Defence,
        reassembler: Reassembler,
        questions: Questions,
    ) -> None:
        self._registry = registry
        self._services = services
        self._replication = replication
        self._defence = defence
        self._reassembler = reassembler
        self._questions = questions
        self._estimator = Estimator(self._rated)
        self._ends_orphans = False
        self._orphans_wait = False
        self._removals_seen = 0
        self._unbound_wait = False
        self._additions_seen = 0
        self._chores: deque[Iterator[None]] = deque()
        self._chores_at: float | None = None

    def configure(self, settings: Settings) -> None:
        """Take over settings."""
        self._estimator.switch(running=settings.run_estimation)
        self._ends_orphans = settings.expire_nodest_conn

    def add(self, chore: Iterator[None]) -> None:
        """Have something done in the time between frames, in parts that take a moment each."""
        self._chores.append(chore)

    def run(self, now: float) -> bool:
        """Do a bounded part of what is due; returns whether more is waiting."""
        self._registry.expire(now)
        self._questions.expire(now)
        behind = self._registry.teller.tell_due(now)
        behind |= self._estimator.run(now, ESTIMATES_IN_ONE_GO)
        self._look_for_orphans()
        self._look_for_unbound()
        if self._chores_at is None or now >= self._chores_at:
            self._chores_at = now + CHORE_INTERVAL
            self._begin_chores(now)
        elif self._chores:
            try:
                next(self._chores[0])
            except StopIteration:
                self._chores.popleft()
        deadline = self._registry.table.deadline
        return behind or bool(self._chores) or (deadline is not None and deadline <= now)

    def _begin_chores(self, now: float) -> None:
        self._reassembler.expire(now)
        self._defence.update(self._defence.settings)
        if len(self._chores) > CHORES_MAX:
            return  # behind; what is due comes again
        self._chores.append(self._services.sweep(now))
        self._chores.append(self._defence.drop_entries(now))

    def _look_for_orphans(self) -> None:
        """After servers were removed have their connections ended, if that is asked for."""
        if self._removals_seen == self._services.removals:
            return
        self._removals_seen = self._services.removals
        # A walk that has not begun will see these as well.
        if self._ends_orphans and not self._orphans_wait:
            self._orphans_wait = True
            self._chores.append(self._end_orphans())

    def _look_for_unbound(self) -> None:
        """After servers were added bind what has waited for them, if there is anything."""
        if self._additions_seen == self._services.additions:
            return
        self._additions_seen = self._services.additions
        # A walk that has not begun will look for these as well.
        if not self._unbound_wait and self._replication.unbound:
            self._unbound_wait = True
            self._chores.append(self._bind_unbound())

    def _bind_unbound(self) -> Iterator[None]:
        self._unbound_wait = False
        yield from self._replication.bind_unbound()

    def _end_orphans(self) -> Iterator[None]:
        """End the connections of servers that were removed (``expire_nodest_conn``)."""
        self._orphans_wait = False
        for part in self._registry.table.slices():
            for connection in part:
                orphan = connection.second >= 0 and not connection.server.serving
                if orphan and not connection.children:
                    self._end_with_parent(connection)
            yield

    def _end_with_parent(self, connection: Connection) -> None:
        """End a connection, and then what has no other child, be it assured or not."""
        parent = connection.parent
        self._registry.delete(connection)
        if parent is not None and not parent.children and parent.second >= 0:
            self._registry.delete(parent)

    def _rated(self) -> Sequence[VirtualService | RealServer | ServiceTable]:
        """Everything that has rates."""
        rated: list[VirtualService | RealServer | ServiceTable] = []
        for service in self._services:
            rated.append(service)
            rated += service.servers
        rated.append(self._services)
        return rated
