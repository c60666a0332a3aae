"""The sending half of a replica: queue, number and pace what is told.

A `Source` turns changes of connections into datagrams with consecutive numbers, and a
table read record by record into a snapshot between them. It does not know who listens,
and never decides by itself to lead.

What always holds:

* The queue has at most one entry for each connection, the newest, and at most
  ``queue_max`` entries. A change that finds it full is not told; instead one number is
  left out, so that every listener notices a gap and asks for a snapshot. Nothing is lost
  in silence.
* A connection stands in the stream in the order of its states. A snapshot's record is
  read, encoded and numbered in one step, except that one record may wait for the next
  datagram, and that one is dropped when the connection is told of meanwhile. A connection
  that is in the queue is left out of the snapshot: it will be told anyway, and later.
* When nothing waits, a change leaves at once; in each tick at most
  ``live_datagrams_per_tick`` of live changes leave, and at most
  ``snapshot_datagrams_per_tick`` of a snapshot: one if live changes wait, so that neither
  keeps the other from advancing.

Times are seconds on a monotonic clock.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.counters import Counters
from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionRecord
from lvsha.sync.actions import Action, ProvideSnapshot, Send
from lvsha.sync.messages import (
    ENTRY_BYTES_MAX,
    Origin,
    Role,
    SnapshotBegin,
    SnapshotEnd,
    encode,
    encode_change,
    encode_chunk,
    encode_record,
    encode_records,
    entries_room,
)

# After a snapshot the next one waits as long as the last one took, within these bounds,
# so that a listener on a bad link can not keep the sender busy for more than half its time.
SNAPSHOT_PAUSE_MIN: Final = 0.1
SNAPSHOT_PAUSE_MAX: Final = 10.0
# A table whose records all wait in the queue must not make one step read all of it.
SNAPSHOT_READS_PER_TICK: Final = 4096
SLICE_READS: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much may wait, and how much may leave in one tick.

    The defaults let 480,000 live changes a second and 60,000 snapshot records a second
    leave in datagrams of 1,400 bytes; a snapshot then costs a core about 5 %.
    """

    queue_max: int = 200_000
    tick: float = 0.005
    live_datagrams_per_tick: int = 64
    snapshot_datagrams_per_tick: int = 8


class Source:
    """What one replica sends while it leads or drains."""

    def __init__(
        self,
        *,
        sync_id: int,
        node: str,
        epoch: int,
        datagram_max: int,
        pace: Pace,
        counters: Counters,
    ) -> None:
        self._sync_id = sync_id
        self._node = node
        self._epoch = epoch
        self._datagram_max = datagram_max
        self._pace = pace
        self._counters = counters
        self.role = Role.FOLLOW
        self.term = 0
        self.sequence = 0
        # key -> (when the oldest untold change of it was reported, the newest change)
        self._queue: dict[bytes, tuple[float, ConnectionChange]] = {}
        self._overflowed = False
        self._tick_end = float("-inf")
        self._live_sent = 0
        self._snapshot_sent = 0
        self._records: Iterator[ConnectionRecord | None] | None = None
        self._held: tuple[bytes, bytes] | None = None
        self._snapshot_begin = 0
        self._snapshot_begun = float("-inf")
        self._snapshot_records = 0
        self._wanted = False
        self._provide_at = float("-inf")

    @property
    def origin(self) -> Origin:
        """What a datagram without connections says of its sender."""
        return Origin(self._sync_id, self._node, self._epoch, self.role, self.term, self.sequence)

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        deadline = self._tick_end if self._queue or self._records is not None else None
        if self._wanted and self._records is None:
            wanted_at = self._provide_at
            deadline = wanted_at if deadline is None else min(deadline, wanted_at)
        return deadline

    @property
    def queued(self) -> int:
        """How many connections have changes that were not sent yet."""
        return len(self._queue)

    @property
    def is_snapshotting(self) -> bool:
        """Whether a snapshot is being sent."""
        return self._records is not None

    def age_of_oldest(self, now: float) -> float:
        """For how long the oldest unsent change has waited."""
        return now - next(iter(self._queue.values()))[0] if self._queue else 0.0

    def lead(self, term: int) -> None:
        """Begin to be the source, in a term that no sender has had."""
        assert term > self.term
        self.role, self.term = Role.LEAD, term

    def drain(self) -> None:
        """Stop to be the source; what still happens here is told for a while."""
        assert self.role is Role.LEAD
        self.role = Role.DRAIN
        self._records = self._held = None
        self._wanted = False

    def follow(self) -> None:
        """Tell nothing any more."""
        assert self.role is Role.DRAIN
        self.role = Role.FOLLOW
        self._queue.clear()
        self._overflowed = False

    def tell(self, changes: Sequence[ConnectionChange], now: float) -> list[Action]:
        """Queue changes, and send at once what the pace allows."""
        assert self.role is not Role.FOLLOW
        queue = self._queue
        for change in changes:
            key = change.record.key if isinstance(change, ConnectionChanged) else change.key
            if self._held is not None and self._held[0] == key:
                self._held = None
            waiting = queue.get(key)
            if waiting is not None:
                queue[key] = (waiting[0], change)
            elif len(queue) < self._pace.queue_max:
                queue[key] = (now, change)
            else:
                self._overflowed = True
                self._counters.add("queue_overflow")
        return self._send_live(now)

    def flush(self) -> list[Action]:
        """Send all that waits, whatever the pace; for the moment before an end."""
        actions: list[Action] = []
        while self._queue:
            actions.append(self._live_datagram())
        return actions

    def request(self, position: int, now: float) -> list[Action]:
        """A follower that has seen numbers up to ``position`` asks for a snapshot."""
        if self._records is not None and position < self._snapshot_begin:
            # It asked before it saw the beginning of the snapshot that is under way.
            self._counters.add("snapshot_requests_served")
            return []
        self._wanted = True
        return self._provide(now)

    def snapshot(self, records: Iterator[ConnectionRecord | None], now: float) -> list[Action]:
        """Begin to send these records; they are read as they are sent.

        A None among them counts as `SLICE_READS` records; it says that so many connections
        were looked at which are not to be sent.
        """
        if self.role is not Role.LEAD or self._records is not None:
            return []
        self._wanted = False
        self._number()
        self._records = records
        self._snapshot_begin = self.sequence
        self._snapshot_begun = now
        self._snapshot_records = 0
        begin = Send(encode(SnapshotBegin(self.origin)))
        return [begin, *self._send_snapshot(now)]

    def expire(self, now: float) -> list[Action]:
        """Send what the next tick allows."""
        actions = self._send_live(now)
        actions += self._send_snapshot(now)
        actions += self._provide(now)
        return actions

    def _number(self) -> None:
        """Take the next number, and leave one out if a change could not be queued."""
        if self._overflowed:
            self._overflowed = False
            self.sequence += 1
        self.sequence += 1

    def _renew_tick(self, now: float) -> None:
        if now >= self._tick_end:
            self._tick_end = now + self._pace.tick
            self._live_sent = self._snapshot_sent = 0

    def _send_live(self, now: float) -> list[Action]:
        self._renew_tick(now)
        actions: list[Action] = []
        while self._queue and self._live_sent < self._pace.live_datagrams_per_tick:
            self._live_sent += 1
            actions.append(self._live_datagram())
        return actions

    def _live_datagram(self) -> Send:
        self._number()
        origin = self.origin
        room = entries_room(origin, self._datagram_max)
        entries: list[bytes] = []
        sent: list[bytes] = []
        for key, (_, change) in self._queue.items():
            entry = encode_change(change)
            room -= len(entry)
            if room < 0:
                break
            entries.append(entry)
            sent.append(key)
        assert entries, "datagram_max leaves room for at least one entry"
        for key in sent:
            del self._queue[key]
        self._counters.add("changes_sent", len(entries))
        return Send(encode_records(origin, entries))

    def _provide(self, now: float) -> list[Action]:
        if not self._wanted or self._records is not None or now < self._provide_at:
            return []
        # Asked again should the caller not answer.
        self._provide_at = now + SNAPSHOT_PAUSE_MIN
        return [ProvideSnapshot()]

    def _send_snapshot(self, now: float) -> list[Action]:
        self._renew_tick(now)
        actions: list[Action] = []
        reads = SNAPSHOT_READS_PER_TICK
        while self._records is not None and self._snapshot_sent < (
            1 if self._queue else self._pace.snapshot_datagrams_per_tick
        ):
            entries, reads, ended = self._read(self._records, reads)
            if entries:
                self._number()
                self._snapshot_sent += 1
                self._snapshot_records += len(entries)
                actions.append(Send(encode_chunk(self.origin, self._snapshot_begin, entries)))
            if ended:
                actions.append(self._end_snapshot(now))
            elif reads <= 0:
                break
        return actions

    def _read(
        self, records: Iterator[ConnectionRecord | None], reads: int
    ) -> tuple[list[bytes], int, bool]:
        """Read records for one datagram; how many reads are left; whether none followed."""
        room = entries_room(self.origin, self._datagram_max)
        assert room >= ENTRY_BYTES_MAX
        entries: list[bytes] = []
        if self._held is not None:
            entries.append(self._held[1])
            room -= len(self._held[1])
            self._held = None
        while reads > 0:
            try:
                record = next(records)
            except StopIteration:
                return entries, reads, True
            if record is None:
                reads -= SLICE_READS
                continue
            reads -= 1
            key = record.key
            if key in self._queue:
                continue
            entry = encode_record(record)
            room -= len(entry)
            if room < 0:
                self._held = (key, entry)
                break
            entries.append(entry)
        return entries, reads, False

    def _end_snapshot(self, now: float) -> Send:
        self._records = None
        self._number()
        self._counters.add("snapshots_sent")
        pause = min(max(now - self._snapshot_begun, SNAPSHOT_PAUSE_MIN), SNAPSHOT_PAUSE_MAX)
        self._provide_at = now + pause
        return Send(encode(SnapshotEnd(self.origin, self._snapshot_begin, self._snapshot_records)))
