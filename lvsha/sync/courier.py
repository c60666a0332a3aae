"""Carry datagrams between the network and the replicas of a node.

A thin shell: it waits for input or for the earliest deadline, calls the replicas, and
carries out their actions. It decides nothing about connections. What a replica asks of the
node's table is a plain call on the `ConnectionTable`; what it reports goes to a bounded
channel, `Courier.events`, from which the node reads; what does not fit there is counted.

What always holds:

* `Courier.tell` sends in the same turn of the loop what the pace lets leave. What the socket
  does not take waits in order and leaves when it does, at most ``BACKLOG_MAX`` datagrams;
  what does not fit is counted, and the followers notice a gap.
* While it `gathers`, the node may hold back what has changed, so that many changes are told
  in one go and of each connection but the newest. It is asked for them before anything is
  sent, read or decided.
* No error of the network ends the courier. A datagram that could not be sent is lost and
  counted; the numbers of the stream make that known to whoever missed it.
* When it is cancelled, each replica still says that it leaves.

Times are Trio's clock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.errors import SealError, SyncError
from lvsha.log import LimitedLog
from lvsha.model import BUCKETS, ConnectionChange, ConnectionRecord
from lvsha.runs import Run
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    ConfigurationAgrees,
    ConfigurationDiffers,
    Deny,
    EndSnapshot,
    Forget,
    LookUp,
    OpinionsHeard,
    PeerChanged,
    ProvideSnapshot,
    Refused,
    Send,
    TakeOver,
)
from lvsha.sync.datagrams import sync_id_of
from lvsha.sync.messages import ALL_BUCKETS, Duty, Role
from lvsha.sync.opinions import NotUp
from lvsha.sync.replica import SYNC_ID_ANY, Replica
from lvsha.sync.transport import Transport

# Then other tasks have their turn, whatever comes; a full datagram takes half of it.
BATCH_SECONDS: Final = 0.001
BATCH_DATAGRAMS: Final = 16
# A snapshot's datagrams of a second; a socket that blocks for longer is in trouble.
BACKLOG_MAX: Final = 2048
EVENTS_MAX: Final = 256
REFRESH_INTERVAL: Final = 1.0


class ConnectionTable(Protocol):
    """What a courier asks of the node's connections. Every call returns at once."""

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        """Enter or change connections; they are confirmed by that."""
        ...

    def forget(self, keys: Sequence[bytes]) -> None:
        """Remove connections where there are any; this is not reported as a change."""
        ...

    def begin(self, sync_id: int, bucket: int | None) -> None:
        """From now on, mark what is applied of a bucket, or of all; a second call begins anew."""
        ...

    def end(self, sync_id: int, bucket: int | None) -> None:
        """Remove what was not applied of a bucket, or of all, since the begin."""
        ...

    def records(self, sync_id: int, buckets: Iterable[int]) -> Iterator[Run | None]:
        """What was told of some buckets, in runs, each as it is when the run is read.

        The table changes between two reads; that must not disturb the iterator, which
        leaves out what has ended. None says that much was looked at, told or not.
        """
        ...

    def lookup(self, keys: Sequence[bytes]) -> list[ConnectionRecord]:
        """Those of these connections that are here."""
        ...

    def deny(self, keys: Sequence[bytes]) -> None:
        """No other director knows these connections."""
        ...


class Sealing(Protocol):
    """What seals datagrams; see `lvsha.sync.seal.Seal`."""

    def seal(self, datagram: bytes) -> bytes:
        """A datagram as it crosses the wire."""
        ...

    def open(self, datagram: bytes) -> bytes:
        """A datagram as it was before.

        Raises:
            SyncError: it must not be believed.
        """
        ...


@dataclass(frozen=True, slots=True)
class SyncEvent:
    """Something that a replica reports to the node."""

    sync_id: int
    happening: (
        PeerChanged | ConfigurationDiffers | ConfigurationAgrees | Alarm | OpinionsHeard | TakeOver
    )


class Courier:
    """The replicas of a node on one transport.

    Args:
        replicas: one for each sync id.
        transport: what carries datagrams.
        table: the node's connections.
        seal: what seals datagrams, if anything does.
        collect: has the node `tell` what it has held back.
        log: where to write.

    Attributes:
        events: where the node reads what the replicas report.
        gathers: whether what is told now would only wait, so that it can be told later as well:
            when it is collected.
        counters: what the network refused.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        transport: Transport,
        table: ConnectionTable,
        *,
        seal: Sealing | None = None,
        collect: Callable[[], None] = lambda: None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._replicas = {replica.sync_id: replica for replica in replicas}
        assert len(self._replicas) == len(replicas), "one replica for each sync id"
        self._transport = transport
        self._table = table
        self._seal = seal
        self._collect = collect
        self.gathers = False
        self._log = LimitedLog(structlog.get_logger("sync") if log is None else log)
        self.counters = Counters()
        self._backlog: deque[bytes] = deque()
        self._has_backlog = trio.Event()
        self._waiting = trio.CancelScope()
        self._is_running = False
        self._report, self.events = trio.open_memory_channel[SyncEvent](EVENTS_MAX)

    # --- for the node --------------------------------------------------------------

    def tell(self, sync_id: int, changes: Sequence[ConnectionChange]) -> None:
        """Tell the peers of changes; what the pace lets leave does so in this turn of the loop."""
        now = trio.current_time()
        replica = self._replicas[sync_id]
        actions = replica.tell(changes, now)
        if actions:
            self._perform(replica, actions)
        deadline = replica.tell_deadline
        if deadline < self._waiting.deadline:
            self._waiting.deadline = deadline
        telling = [each for each in self._replicas.values() if each.role is not Role.FOLLOW]
        self.gathers = bool(telling) and all(each.gathers(now) for each in telling)

    def lead(self, sync_id: int) -> None:
        """This node holds the addresses of this sync id now."""
        assert self._is_running, "the courier runs before roles change"
        self._collect()
        replica = self._replicas[sync_id]
        self._perform(replica, replica.lead(trio.current_time()))
        self._wake_in_time()

    def follow(self, sync_id: int) -> None:
        """This node does not hold the addresses of this sync id any more."""
        assert self._is_running, "the courier runs before roles change"
        self._collect()
        replica = self._replicas[sync_id]
        self._perform(replica, replica.follow(trio.current_time()))
        self._wake_in_time()

    def hand_over(self, sync_id: int, successor: str) -> None:
        """Say who shall lead this sync id next; empty for nobody."""
        self._collect()
        replica = self._replicas[sync_id]
        self._perform(replica, replica.hand_over(successor, trio.current_time()))
        self._wake_in_time()

    def unready(self, sync_id: int) -> dict[str, str]:
        """Of each peer, why it cannot lead this sync id next; empty words if it can."""
        self._collect()
        return self._replicas[sync_id].unready()

    def coverage(self, sync_id: int) -> float:
        """The share of the established connections that some peer has, as far as it has said."""
        self._collect()
        return self._replicas[sync_id].coverage(trio.current_time())

    def say(self, sync_id: int, duty: Duty) -> None:
        """What this node is for the virtual router of this sync id."""
        replica = self._replicas[sync_id]
        self._perform(replica, replica.say(duty, trio.current_time()))
        self._wake_in_time()

    def resync(self, sync_id: int) -> None:
        """This node was stalled: believe the copy only after a new snapshot."""
        replica = self._replicas[sync_id]
        self._perform(replica, replica.resync(trio.current_time()))
        self._wake_in_time()

    def ask(self, sync_id: int, keys: Sequence[bytes]) -> None:
        """Ask the peers about connections of which packets have come."""
        replica = self._replicas[sync_id]
        self._perform(replica, replica.ask(keys, trio.current_time()))
        self._wake_in_time()

    def configure(self, digest: bytes, digests: Mapping[str, bytes]) -> None:
        """This node's configuration has changed while it runs."""
        for replica in self._replicas.values():
            self._perform(replica, replica.configure(digest, digests, trio.current_time()))
        self._wake_in_time()

    def share(self, number: int, checked: int, opinions: Sequence[NotUp]) -> None:
        """Tell the peers what this node's health checks find; each list has the next number.

        It is told under one sync id, for it is of the node.
        """
        if self._is_running:
            replica = next(iter(self._replicas.values()))
            shared = replica.share(number, checked, opinions, trio.current_time())
            self._perform(replica, shared)

    def complete(self, sync_id: int) -> bool:
        """Whether this node has all that the leader of this sync id has."""
        return self._replicas[sync_id].complete

    def status(self) -> dict[str, object]:
        """All that an operator may want to see, as JSON values."""
        self._collect()
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
                self._perform(replica, replica.start(trio.current_time()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._refresh)
                nursery.start_soon(self._keep_time)
                task_status.started()
                await self._listen()
        finally:
            self._collect()
            self._is_running = False
            for replica in self._replicas.values():
                self._perform(replica, replica.stop(trio.current_time()))

    # --- tasks ---------------------------------------------------------------------

    # Two tasks, for time passes far more often than anything comes: who only waits for time
    # leaves the socket's registration with the kernel as it is.

    async def _listen(self) -> None:
        while True:
            await self._transport.wait_readable()
            self._read()
            self._wake_in_time()

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadline()) as self._waiting:
                await trio.sleep_forever()
            self._collect()
            now = trio.current_time()
            for replica in self._replicas.values():
                if (deadline := replica.deadline) is not None and deadline <= now:
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

    def _wake_in_time(self) -> None:
        """A call from another task may have brought the next deadline nearer."""
        if self._is_running:
            self._waiting.deadline = self._deadline()

    def _read(self) -> None:
        until = trio.current_time() + BATCH_SECONDS
        for _ in range(BATCH_DATAGRAMS):
            try:
                datagram = self._transport.receive()
            except OSError as error:
                self._trouble("receive_errors", error)
                return
            if datagram is None:
                return
            self._receive(datagram)
            if trio.current_time() >= until:
                return

    def _receive(self, datagram: bytes) -> None:
        """Open a datagram, and give it to the replicas that its sync id is for."""
        now = trio.current_time()
        # It stands at the same place whether the datagram is sealed or not, so that nothing
        # is spent on what is for others.
        sync_id = datagram[1] if len(datagram) > 1 else -1
        receivers = [
            self._replicas[own]
            for own in dict.fromkeys((sync_id, SYNC_ID_ANY))
            if own in self._replicas
        ]
        if not receivers:
            self.counters.add("refused_sync_id")
            return
        try:
            if self._seal is not None:
                datagram = self._seal.open(datagram)
            sync_id_of(datagram)
        except SealError as error:
            self.counters.add(f"refused_{error.kind}")
            self._log.warning("sync datagram refused", now, reason=str(error))
            return
        except SyncError as error:
            self.counters.add("refused_malformed")
            self._log.warning("sync datagram refused", now, reason=str(error))
            return
        self._collect()
        for replica in receivers:
            self._perform(replica, replica.receive(datagram, now))

    def _perform(self, replica: Replica, actions: Sequence[Action]) -> None:
        table = self._table
        self.gathers = False
        for action in actions:
            match action:
                case Apply():
                    table.apply(action.records)
                case Send():
                    self._send(action.datagram)
                case Forget():
                    table.forget(action.keys)
                case BeginSnapshot():
                    for bucket in _members(action.buckets):
                        table.begin(action.sync_id, bucket)
                case EndSnapshot():
                    for bucket in _members(action.buckets):
                        table.end(action.sync_id, bucket)
                case ProvideSnapshot():
                    wanted = [n for n in range(BUCKETS) if action.buckets >> n & 1]
                    records = table.records(replica.sync_id, wanted)
                    self._perform(replica, replica.snapshot(records, trio.current_time()))
                case LookUp():
                    known = table.lookup(action.keys)
                    answer = replica.answer(action.asker, action.keys, known, trio.current_time())
                    self._perform(replica, answer)
                case Deny():
                    table.deny(action.keys)
                case (
                    PeerChanged()
                    | ConfigurationDiffers()
                    | ConfigurationAgrees()
                    | Alarm()
                    | OpinionsHeard()
                    | TakeOver()
                ):
                    self._tell_node(SyncEvent(replica.sync_id, action))
                case Refused():
                    now = trio.current_time()
                    self._log.warning("sync datagram refused", now, reason=action.reason)
                case _:
                    assert_never(action)

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
            return self._transport.send(
                datagram if self._seal is None else self._seal.seal(datagram)
            )
        except OSError as error:
            self._trouble("send_errors", error)
            return True

    def _trouble(self, counter: str, error: OSError) -> None:
        self.counters.add(counter)
        self._log.warning("sync network error", trio.current_time(), error=str(error))


def _members(buckets: int) -> Iterator[int | None]:
    """The buckets in a set; None stands for all of them."""
    if buckets == ALL_BUCKETS:
        yield None
        return
    while buckets:
        lowest = buckets & -buckets
        yield lowest.bit_length() - 1
        buckets ^= lowest
