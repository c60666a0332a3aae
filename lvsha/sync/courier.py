"""Carry datagrams between the network and the replicas of a node.

A thin shell: it waits for input or for the earliest deadline, calls the replicas, and
carries out their actions. It decides nothing about connections. What a replica asks of the
node's table is a plain call on the `ConnectionTable`; what it reports goes to a bounded
channel, `Courier.events`, from which the node reads; what does not fit there is counted.

What always holds:

* `Courier.tell` sends in the same turn of the loop. What the socket does not take waits in
  order and leaves when it does, at most ``BACKLOG_MAX`` datagrams; what does not fit is
  counted, and the followers notice a gap.
* No error of the network ends the courier. A datagram that could not be sent is lost and
  counted; the numbers of the stream make that known to whoever missed it.
* When it is cancelled, each replica still says that it leaves.

Times are Trio's clock.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.errors import SyncError
from lvsha.log import LimitedLog
from lvsha.model import ConnectionChange, ConnectionRecord
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    ConfigurationAgrees,
    ConfigurationDiffers,
    EndSnapshot,
    Forget,
    PeerChanged,
    ProvideSnapshot,
    Refused,
    Send,
)
from lvsha.sync.messages import sync_id_of
from lvsha.sync.replica import SYNC_ID_ANY, Replica
from lvsha.sync.transport import Transport

# About 600 records of IPv4: two or three milliseconds, then other tasks have their turn.
BATCH_DATAGRAMS: Final = 16
# A snapshot's datagrams of a second; a socket that blocks for longer is in trouble.
BACKLOG_MAX: Final = 2048
EVENTS_MAX: Final = 256
REFRESH_INTERVAL: Final = 1.0


class ConnectionTable(Protocol):
    """What a courier asks of the node's connections. Every call returns at once."""

    def apply(self, record: ConnectionRecord) -> None:
        """Enter or change a connection; it is confirmed by that."""
        ...

    def forget(self, key: bytes) -> None:
        """Remove a connection if there is one; this is not reported as a change."""
        ...

    def begin_snapshot(self, sync_id: int) -> None:
        """From now on, mark what is applied; a second call begins anew."""
        ...

    def end_snapshot(self, sync_id: int) -> None:
        """Remove the connections of this sync id that were not applied since the begin."""
        ...

    def records(self, sync_id: int) -> Iterator[ConnectionRecord | None]:
        """All connections of this sync id, each as it is when it is read.

        The table changes between two reads; that must not disturb the iterator. None among
        them says that the iterator has looked at some hundred connections of other sync ids
        or of this one, so that whoever reads knows what it costs.
        """
        ...

    def count(self, sync_id: int) -> int:
        """How many connections of this sync id there are; called often."""
        ...


@dataclass(frozen=True, slots=True)
class SyncEvent:
    """Something that a replica reports to the node."""

    sync_id: int
    happening: PeerChanged | ConfigurationDiffers | ConfigurationAgrees | Alarm


class Courier:
    """The replicas of a node on one transport.

    Attributes:
        events: where the node reads what the replicas report.
        counters: what the network refused.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        transport: Transport,
        table: ConnectionTable,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._replicas = {replica.sync_id: replica for replica in replicas}
        assert len(self._replicas) == len(replicas), "one replica for each sync id"
        self._transport = transport
        self._table = table
        self._log = LimitedLog(structlog.get_logger("sync") if log is None else log)
        self.counters = Counters()
        self._backlog: deque[bytes] = deque()
        self._has_backlog = trio.Event()
        self._waiting = trio.CancelScope()
        self._is_running = False
        self._report, self.events = trio.open_memory_channel[SyncEvent](EVENTS_MAX)

    # --- for the node --------------------------------------------------------------

    def tell(self, sync_id: int, changes: Sequence[ConnectionChange]) -> None:
        """Tell the peers of changes; they leave in this turn of the loop."""
        replica = self._replicas[sync_id]
        self._perform(replica, replica.tell(changes, trio.current_time()))

    def lead(self, sync_id: int) -> None:
        """This node holds the addresses of this sync id now."""
        assert self._is_running, "the courier runs before roles change"
        replica = self._replicas[sync_id]
        self._count(replica)
        self._perform(replica, replica.lead(trio.current_time()))

    def follow(self, sync_id: int) -> None:
        """This node does not hold the addresses of this sync id any more."""
        assert self._is_running, "the courier runs before roles change"
        replica = self._replicas[sync_id]
        self._count(replica)
        self._perform(replica, replica.follow(trio.current_time()))

    def resync(self, sync_id: int) -> None:
        """This node was stalled: believe the copy only after a new snapshot."""
        replica = self._replicas[sync_id]
        self._perform(replica, replica.resync(trio.current_time()))

    def complete(self, sync_id: int) -> bool:
        """Whether this node has all that the leader of this sync id has."""
        return self._replicas[sync_id].complete

    def status(self) -> dict[str, object]:
        """All that an operator may want to see, as JSON values."""
        now = trio.current_time()
        return {
            "replicas": [replica.status(now) for replica in self._replicas.values()],
            "backlog_datagrams": len(self._backlog),
            "counters": self.counters.snapshot(),
        }

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled."""
        self._is_running = True
        try:
            for replica in self._replicas.values():
                self._count(replica)
                self._perform(replica, replica.start(trio.current_time()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._refresh)
                task_status.started()
                await self._carry()
        finally:
            self._is_running = False
            for replica in self._replicas.values():
                self._perform(replica, replica.stop(trio.current_time()))

    # --- tasks ---------------------------------------------------------------------

    async def _carry(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadline()) as self._waiting:
                await self._transport.wait_readable()
            self._read()
            now = trio.current_time()
            for replica in self._replicas.values():
                if (deadline := replica.deadline) is not None and deadline <= now:
                    self._count(replica)
                    self._perform(replica, replica.expire(now))

    async def _write(self) -> None:
        while True:
            await self._has_backlog.wait()
            await self._transport.wait_writable()
            while self._backlog and self._try(self._backlog[0]):
                self._backlog.popleft()
            if not self._backlog:
                self._has_backlog = trio.Event()

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(REFRESH_INTERVAL)
            try:
                self._transport.refresh()
            except OSError as error:
                self._trouble("refresh_errors", error)

    # --- parts ---------------------------------------------------------------------

    def _deadline(self) -> float:
        deadlines = (replica.deadline for replica in self._replicas.values())
        return min((d for d in deadlines if d is not None), default=float("inf"))

    def _count(self, replica: Replica) -> None:
        replica.connections = self._table.count(replica.sync_id)

    def _read(self) -> None:
        for _ in range(BATCH_DATAGRAMS):
            try:
                datagram = self._transport.receive()
            except OSError as error:
                self._trouble("receive_errors", error)
                return
            if datagram is None:
                return
            self._deliver(datagram)

    def _deliver(self, datagram: bytes) -> None:
        now = trio.current_time()
        try:
            sync_id = sync_id_of(datagram)
        except SyncError as error:
            self.counters.add("refused_malformed")
            self._log.warning("sync datagram refused", now, reason=str(error))
            return
        receivers = [
            self._replicas[own]
            for own in dict.fromkeys((sync_id, SYNC_ID_ANY))
            if own in self._replicas
        ]
        if not receivers:
            self.counters.add("refused_sync_id")
        for replica in receivers:
            self._perform(replica, replica.receive(datagram, now))

    def _perform(self, replica: Replica, actions: Sequence[Action]) -> None:
        table = self._table
        for action in actions:
            match action:
                case Apply():
                    table.apply(action.record)
                case Send():
                    self._send(action.datagram)
                case Forget():
                    table.forget(action.key)
                case BeginSnapshot():
                    table.begin_snapshot(action.sync_id)
                case EndSnapshot():
                    table.end_snapshot(action.sync_id)
                case ProvideSnapshot():
                    records = table.records(replica.sync_id)
                    self._perform(replica, replica.snapshot(records, trio.current_time()))
                case PeerChanged() | ConfigurationDiffers() | ConfigurationAgrees() | Alarm():
                    self._tell_node(SyncEvent(replica.sync_id, action))
                case Refused():
                    now = trio.current_time()
                    self._log.warning("sync datagram refused", now, reason=action.reason)
                case _:
                    assert_never(action)
        # A call from another task may have brought the next deadline nearer.
        if self._is_running:
            self._waiting.deadline = self._deadline()

    def _tell_node(self, event: SyncEvent) -> None:
        try:
            self._report.send_nowait(event)
        except trio.WouldBlock:
            self.counters.add("events_dropped")

    def _send(self, datagram: bytes) -> None:
        if not self._backlog and self._try(datagram):
            return
        if len(self._backlog) >= BACKLOG_MAX:
            self.counters.add("backlog_overflow")
            return
        self._backlog.append(datagram)
        self._has_backlog.set()

    def _try(self, datagram: bytes) -> bool:
        """Send a datagram unless that would block; one that cannot be sent is lost."""
        try:
            return self._transport.send(datagram)
        except OSError as error:
            self._trouble("send_errors", error)
            return True

    def _trouble(self, counter: str, error: OSError) -> None:
        self.counters.add(counter)
        self._log.warning("sync network error", trio.current_time(), error=str(error))
