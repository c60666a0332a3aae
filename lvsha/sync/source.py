"""The sending half of a replica: queue, number and pace what is told.

A `Source` turns changes of connections into datagrams with consecutive numbers, and a
table read record by record into snapshots between them. It does not know who listens,
and never decides by itself to lead.

What always holds:

* The queue has at most one entry for each connection, the newest, and at most
  ``queue_max`` entries. A change that finds it full is not told; instead one number is
  left out, so that every listener notices a gap and compares. Nothing is lost in silence.
* A connection stands in the stream in the order of its states. A snapshot's record is
  read, encoded and numbered in one step, except that a part of a run may wait for the next
  datagram, and such a one is dropped when the connection is told of meanwhile. A connection
  that is in the queue is left out of the snapshot: it will be told anyway, and later.
* When no other waits, a change leaves at once, if a datagram was saved up for it: each
  ``gather`` gives one, which what has gathered uses up, and ``eager_datagrams_max`` are kept.
  If none was, it waits for ``gather``, or for the next tick of a snapshot, and what comes
  meanwhile leaves with it, so that many changes cost few datagrams.
* In each tick at most ``live_datagrams_per_tick`` of live changes leave, and at most
  ``snapshot_datagrams_per_tick`` of a snapshot: one if live changes wait, so that neither
  keeps the other from advancing. What was sent before and is asked for again goes first.
* A snapshot is never more than ``window`` datagrams ahead of the slowest listener that tells
  its progress, so that it does not overrun a receive buffer of the usual size. Live changes
  are not counted: they are small, and many of them must not close the window. A window
  that stays shut for `WINDOW_STALL` lets one tick's share through: the word of progress may
  be lost, or the listener gone.
* With ``bytes_per_second`` no more than that of numbered datagrams leaves, but for what
  `BURST` lets be saved up and the last datagram, which may be larger than what is left. What
  must wait for it waits in the queue, where newer states replace older ones.
  Live changes and a snapshot share it by turns.

Times are seconds on a monotonic clock.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Final

from lvsha.counters import Counters
from lvsha.model import BUCKETS, ConnectionChange, ConnectionChanged, ConnectionRecord
from lvsha.runs import Run
from lvsha.sync.actions import Action, ProvideSnapshot, Send
from lvsha.sync.datagrams import (
    encode,
    encode_changes,
    encode_chunk,
    encode_plain_changes,
    encode_plain_chunk,
    entries_room,
)
from lvsha.sync.grouping import Grouping
from lvsha.sync.history import History
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL,
    LEVEL_PLAIN,
    SUM_BYTES,
    SUMS_MAX,
    Origin,
    Role,
    SnapshotBegin,
    SnapshotEnd,
    Sums,
)
from lvsha.sync.pace import Meter, Pace
from lvsha.sync.plain_records import PlainPacking
from lvsha.sync.records import ENTRY_BYTES_MIN, Packing
from lvsha.sync.stream import Range
from lvsha.sync.tail import Tail
from lvsha.tally import Tally

# When all that was wanted was sent, the next snapshot waits as long as that took, but no
# longer than this, so that a listener on a bad link does not keep the sender busy all the
# time.
SNAPSHOT_PAUSE_MAX: Final = 1.0
# A caller that was asked for connections and has not answered is asked again.
PROVIDE_PATIENCE: Final = 0.1
# A table whose records all wait in the queue must not make one step read all of it.
SNAPSHOT_READS_PER_TICK: Final = 4096
SLICE_READS: Final = 250
# Connections in one snapshot: what is asked for again if a part of it is lost.
SNAPSHOT_CONNECTIONS: Final = 8_000
# Requests that were on their way when what they ask for began are of the last moment.
SNAPSHOTS_REMEMBERED: Final = 32
WINDOW_STALL: Final = 0.1
# Numbers that wait to be sent again; a listener asks again for the others.
RESEND_MAX: Final = 4096
# A number asked for by several listeners at once is sent once.
RESEND_PAUSE: Final = 0.01
# Sums are only right while nothing waits to be sent; this long they wait for that.
SUMS_PATIENCE: Final = 0.25
# Four datagrams for a request of twenty bytes: listeners that ask within this share them.
SUMS_PAUSE: Final = 0.02


class Source:
    """What one replica sends while it leads or drains.

    Attributes:
        role, term: as every datagram says them.
        sequence: the highest number used.
        level: what all who listen understand.
        progress: the number up to which the slowest of those has heard that tell it; None
            if nobody does.
    """

    def __init__(
        self,
        *,
        tally: Tally,
        node: str,
        epoch: int,
        datagram_max: int,
        pace: Pace,
        counters: Counters,
    ) -> None:
        self._tally = tally
        self._node = node
        self._epoch = epoch
        self._datagram_max = datagram_max
        self._pace = pace
        self._counters = counters
        self.role = Role.FOLLOW
        self.term = 0
        self.sequence = 0
        self.level = LEVEL
        self.progress: int | None = None
        self.history = History()
        # key -> (when the oldest untold change of it was reported, the newest change)
        self._queue: dict[bytes, tuple[float, ConnectionChange]] = {}
        self._overflowed = False
        self._tail = Tail(pace.tail_waits)
        self._meter = Meter(pace)
        # When what waits has its turn. A tick may also begin with a call of `tell`; that must
        # not put the turn off, or who tells often enough would keep all else waiting for ever.
        self._turn_at = float("-inf")
        self._resend: dict[int, None] = {}
        self._resent: dict[int, float] = {}
        self._is_snapshots_turn = False
        self._records: Iterator[Run | None] | None = None
        # What of the run that was read last waits for the next datagram, and a record like it.
        self._held: dict[bytes, ConnectionRecord] = {}
        self._snapshot_begin = 0
        self._snapshot_records = 0
        # The newest numbers of snapshots that the slowest listener may not have seen.
        self._ahead: deque[int] = deque(maxlen=pace.window)
        self._moved_at = float("-inf")
        self._wanted = 0
        self._wanted_since = float("-inf")
        self._offered = 0
        self._snapshots: deque[tuple[int, int]] = deque(maxlen=SNAPSHOTS_REMEMBERED)
        self._provide_at = float("-inf")
        self._sums_by: float | None = None
        self._sums_at = float("-inf")

    @property
    def origin(self) -> Origin:
        """What a datagram without connections says of its sender."""
        return Origin(
            self._tally.sync_id, self._node, self._epoch, self.role, self.term, self.sequence
        )

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        times = []
        if self._is_busy:
            times.append(max(self._turn_at, self._meter.allowed_at()))
        if self._wanted and self._records is None:
            times.append(self._provide_at)
        if self._sums_by is not None:
            times.append(self._sums_by if self._queue else self._sums_at)
        if self._tail.at is not None and not self._queue:
            times.append(self._tail.at)
        return min(times, default=None)

    @property
    def tell_deadline(self) -> float:
        """As `deadline`, but only because of what was told; infinity for never."""
        if self._queue:
            return max(self._turn_at, self._meter.allowed_at())
        return float("inf") if self._tail.at is None else self._tail.at

    @property
    def _is_busy(self) -> bool:
        """Whether something waits for its turn."""
        return bool(self._queue or self._resend) or self._records is not None

    @property
    def queued(self) -> int:
        """How many connections have changes that were not sent yet."""
        return len(self._queue)

    @property
    def is_snapshotting(self) -> bool:
        """Whether a snapshot is being sent, or will be."""
        return self._records is not None or bool(self._wanted)

    def age_of_oldest(self, now: float) -> float:
        """For how long the oldest unsent change has waited."""
        return now - next(iter(self._queue.values()))[0] if self._queue else 0.0

    # Roles

    def lead(self, term: int) -> None:
        """Begin to be the source, in a term that no sender has had."""
        assert term > self.term
        self.role, self.term = Role.LEAD, term

    def drain(self) -> None:
        """Stop to be the source; what still happens here is told for a while."""
        assert self.role is Role.LEAD
        self.role = Role.DRAIN
        self._records = None
        self._held.clear()
        self._wanted = self._offered = 0
        self._sums_by = None

    def follow(self) -> None:
        """Tell nothing any more."""
        assert self.role is Role.DRAIN
        self.role = Role.FOLLOW
        if self._queue:
            self._counters.add("changes_untold", len(self._queue))
        self._queue.clear()
        self._resend.clear()
        self._tail.forget()
        self._overflowed = False

    # What is asked of it

    def tell(
        self, changes: Sequence[ConnectionChange], now: float, *, in_haste: bool = False
    ) -> list[Action]:
        """Queue changes, and send at once what the pace allows.

        Args:
            changes: what is told.
            now: the clock.
            in_haste: whether changes leave at once although nothing was saved up for them, a
                few in each tick, and the others at its end.
        """
        assert self.role is not Role.FOLLOW
        queue, held = self._queue, self._held
        was_waiting, was_busy = bool(queue), self._is_busy
        for change in changes:
            key = change.record.key if isinstance(change, ConnectionChanged) else change.key
            if held:
                held.pop(key, None)
            waiting = queue.get(key)
            if waiting is not None:
                queue[key] = (waiting[0], change)
            elif len(queue) < self._pace.queue_max:
                queue[key] = (now, change)
            else:
                self._overflowed = True
                self._counters.add("queue_overflow")
        pace = self._pace
        if was_waiting and not in_haste:
            return []
        limit = self._meter.eager_limit(now)
        if in_haste:
            limit = max(limit, min(pace.hasty_datagrams_per_tick, pace.live_datagrams_per_tick))
            self._turn_at = min(self._turn_at, self._meter.tick_end)
        actions = self._send_live(limit, now)
        self._meter.left_eagerly(len(actions))
        if not was_busy:
            tick_end = self._meter.tick_end
            self._turn_at = tick_end if in_haste else max(tick_end, now + pace.gather)
        return actions

    def flush(self, now: float) -> list[Action]:
        """Send all that waits, whatever the pace; for the moment before an end."""
        actions: list[Action] = []
        grouping = self._grouped(len(self._queue))
        while self._queue:
            actions.append(self._live_datagram(grouping, now))
        return actions

    def request(self, buckets: int, position: int, now: float) -> list[Action]:
        """A follower that has seen numbers up to ``position`` asks for these buckets."""
        for begin, sent in self._snapshots:
            if position < begin:
                buckets &= ~sent  # it asked before it saw them begin
        if not buckets:
            self._counters.add("snapshot_requests_served")
            return []
        if not self._wanted and self._records is None:
            self._wanted_since = now
        self._wanted |= buckets
        return self._provide(now)

    def resend(self, ranges: Sequence[Range], now: float) -> list[Action]:
        """A follower asks for numbers again."""
        asked = chain.from_iterable(
            range(first, min(first + count, self.sequence + 1)) for first, count in ranges
        )
        if len(self._resent) > RESEND_MAX:
            self._resent.clear()
        # However often the same is asked for, no more is looked at.
        for number in islice(asked, RESEND_MAX):
            if len(self._resend) >= RESEND_MAX:
                self._counters.add("resends_dropped")
                break
            if self._resent.get(number, float("-inf")) + RESEND_PAUSE <= now:
                self._resend[number] = None
        return self._send_again(now)

    def ask_sums(self, now: float) -> list[Action]:
        """A follower asks for the sums of all buckets."""
        if self._sums_by is None:
            self._sums_by = now + SUMS_PATIENCE
        return self._send_sums(now)

    def snapshot(self, records: Iterator[Run | None], now: float) -> list[Action]:
        """Begin to send the records of these runs; they are read as they are sent.

        A None among them counts as `SLICE_READS` records; it says that a part of the table was
        looked at, whatever of it is to be sent.
        """
        if self.role is not Role.LEAD or self._records is not None or not self._offered:
            return []
        buckets, self._offered = self._offered, 0
        self._wanted &= ~buckets
        self._number()
        was_busy = self._is_busy
        self._records = records
        self._snapshot_begin = self.sequence
        self._snapshots.append((self.sequence, buckets))
        self._moved_at = now
        self._snapshot_records = 0
        begin = encode(SnapshotBegin(self.origin, buckets), self.level)
        actions = [self._sent(begin, 0, now), *self._send_snapshot(now)]
        if not was_busy:
            self._turn_at = self._meter.tick_end
        return actions

    def progressed(self, now: float) -> list[Action]:
        """A listener has told its progress, which is in `progress` now."""
        self._moved_at = now
        return self._send_snapshot(now)

    def expire(self, now: float) -> list[Action]:
        """Send what the next tick allows."""
        actions = self._send_again(now)
        actions += self._send_tail(now)
        gathered = self._send_live(self._pace.live_datagrams_per_tick, now)
        self._meter.left_together(len(gathered), now)
        actions += gathered
        actions += self._send_sums(now)
        actions += self._send_snapshot(now)
        actions += self._provide(now)
        self._turn_at = self._meter.tick_end
        return actions

    # Numbers

    def _number(self) -> None:
        """Take the next number, and leave one out if a change could not be queued."""
        if self._overflowed:
            self._overflowed = False
            self.sequence += 1
            # So that nobody asks for the number that never was.
            self.history.clear()
        self.sequence += 1

    def _sent(self, datagram: bytes, changes: int, now: float) -> Send:
        """Note that the datagram with the newest number leaves."""
        self.history.add(self.sequence, datagram, changes, now)
        if changes:
            self._tail.left(self.sequence, len(datagram), now)
        else:
            self._ahead.append(self.sequence)
        self._meter.left(len(datagram))
        return Send(datagram)

    # Live changes

    def _send_live(self, limit: int, now: float) -> list[Action]:
        self._meter.renew(now)
        actions: list[Action] = []
        grouping: Grouping | None = None
        while (
            self._queue
            and self._meter.live_sent < limit
            and self._meter.may_send
            and not self._yields(now)
        ):
            self._meter.live_sent += 1
            self._is_snapshots_turn = True
            if not grouping:
                grouping = self._grouped(limit * self._datagram_max // ENTRY_BYTES_MIN)
            actions.append(self._live_datagram(grouping, now))
        return actions

    def _grouped(self, most: int) -> Grouping:
        """So many of the changes that have waited longest."""
        waiting = islice(((key, change) for key, (_, change) in self._queue.items()), most)
        return Grouping.one_by_one(waiting) if self.level == LEVEL_PLAIN else Grouping(waiting)

    def _yields(self, now: float) -> bool:
        """Whether live changes leave what the limit of bytes lets through to a snapshot."""
        return (
            self._pace.bytes_per_second > 0
            and self._is_snapshots_turn
            and self._records is not None
            and not self._is_window_shut(now)
        )

    def _live_datagram(self, grouping: Grouping, now: float) -> Send:
        self._number()
        origin = self.origin
        room = entries_room(origin, self._datagram_max)
        packing = Packing(room) if self.level > LEVEL_PLAIN else PlainPacking(room)
        sent = grouping.fill(packing)
        assert sent, "datagram_max leaves room for at least one entry"
        for key in sent:
            del self._queue[key]
        self._counters.add("changes_sent", len(sent))
        if isinstance(packing, Packing):
            datagram = encode_changes(origin, packing)
        else:
            datagram = encode_plain_changes(origin, packing.encoded)
        return self._sent(datagram, len(sent), now)

    def _send_again(self, now: float) -> list[Action]:
        self._meter.renew(now)
        actions: list[Action] = []
        while (
            self._resend
            and self._meter.live_sent < self._pace.live_datagrams_per_tick
            and self._meter.may_send
        ):
            number = next(iter(self._resend))
            del self._resend[number]
            datagram = self.history.find(number)
            if datagram is None:
                self._counters.add("resends_too_old")
                continue
            self._meter.live_sent += 1
            self._resent[number] = now
            self._meter.left(len(datagram))
            self._counters.add("datagrams_sent_again")
            actions.append(Send(datagram))
        return actions

    def _send_tail(self, now: float) -> list[Action]:
        if self._queue:
            return []  # something follows
        actions: list[Action] = []
        for datagram in filter(None, map(self.history.find, self._tail.due(now))):
            if not self._meter.may_send:
                break  # the limit is for what is new
            self._meter.left(len(datagram))
            self._counters.add("datagrams_repeated")
            actions.append(Send(datagram))
        return actions

    # Sums and snapshots

    def _send_sums(self, now: float) -> list[Action]:
        if self._sums_by is None or now < self._sums_at or (self._queue and now < self._sums_by):
            return []
        self._sums_by, self._sums_at = None, now + SUMS_PAUSE
        sums, origin = self._tally.sums, self.origin
        step = min(SUMS_MAX, entries_room(origin, self._datagram_max) // SUM_BYTES)
        is_current = not self._queue
        return [
            Send(encode(Sums(origin, first, tuple(sums[first : first + step]), is_current)))
            for first in range(0, BUCKETS, step)
        ]

    def _next_buckets(self) -> int:
        """The buckets of the next snapshot: as many as hold some thousand connections."""
        if self.level == LEVEL_PLAIN:
            return ALL_BUCKETS
        count = max(1, BUCKETS * SNAPSHOT_CONNECTIONS // max(self._tally.told, 1))
        wanted = buckets = self._wanted
        if count < wanted.bit_count():
            buckets = 0
            for _ in range(count):
                lowest = wanted & -wanted
                buckets |= lowest
                wanted ^= lowest
        return buckets

    def _provide(self, now: float) -> list[Action]:
        if not self._wanted or self._records is not None or now < self._provide_at:
            return []
        # Asked again should the caller not answer.
        self._provide_at = now + PROVIDE_PATIENCE
        self._offered = self._next_buckets()
        return [ProvideSnapshot(self._offered)]

    def _is_far_ahead(self) -> bool:
        """Whether the slowest listener has not told yet that it has heard enough."""
        ahead, progress = self._ahead, self.progress
        if self.level == LEVEL_PLAIN or progress is None:
            return False
        while ahead and ahead[0] <= progress:
            ahead.popleft()
        return len(ahead) >= self._pace.window

    def _is_window_shut(self, now: float) -> bool:
        return self._is_far_ahead() and now < self._moved_at + WINDOW_STALL

    def _send_snapshot(self, now: float) -> list[Action]:
        self._meter.renew(now)
        actions: list[Action] = []
        reads = SNAPSHOT_READS_PER_TICK
        limit = 1 if self._queue else self._pace.snapshot_datagrams_per_tick
        is_stalled = False
        while (
            self._records is not None
            and self._meter.snapshot_sent < limit
            and self._meter.may_send
            and (is_stalled or not self._is_window_shut(now))
        ):
            self._is_snapshots_turn = False
            if not is_stalled and self._is_far_ahead():
                # All that this tick may send leaves, not one datagram.
                is_stalled = True
                self._moved_at = now
                self._counters.add("window_stalls")
            room = entries_room(self.origin, self._datagram_max)
            packing = Packing(room) if self.level > LEVEL_PLAIN else PlainPacking(room)
            reads, ended = self._read(self._records, packing, reads)
            if packing.count:
                self._number()
                self._meter.snapshot_sent += 1
                self._snapshot_records += packing.count
                actions.append(self._sent(self._chunk(packing), 0, now))
            if ended:
                actions.append(self._end_snapshot(now))
                actions += self._provide(now)
            elif reads <= 0:
                break
        return actions

    def _chunk(self, packing: Packing | PlainPacking) -> bytes:
        if isinstance(packing, Packing):
            return encode_chunk(self.origin, self._snapshot_begin, packing)
        return encode_plain_chunk(self.origin, self._snapshot_begin, packing.encoded)

    def _read(
        self, runs: Iterator[Run | None], packing: Packing | PlainPacking, reads: int
    ) -> tuple[int, bool]:
        """Read records for one datagram; how many reads are left, and whether none followed."""
        queue, held = self._queue, self._held
        waiting = [Run(next(iter(held.values())), list(held))] if held else []
        held.clear()
        for run in chain(waiting, runs):
            if run is None:
                reads -= SLICE_READS
            else:
                record, keys = run
                reads -= len(keys)
                if queue:
                    keys = [key for key in keys if key not in queue]
                taken = packing.add_run(record, keys) if keys else 0
                if taken < len(keys):
                    held.update(dict.fromkeys(keys[taken:], record))
                    return reads, False
            if reads <= 0:
                return reads, False
        return reads, True

    def _end_snapshot(self, now: float) -> Send:
        self._records = None
        self._number()
        self._counters.add("snapshots_sent")
        self._provide_at = now
        if not self._wanted or self.level == LEVEL_PLAIN:
            self._provide_at += min(now - self._wanted_since, SNAPSHOT_PAUSE_MAX)
        end = SnapshotEnd(self.origin, self._snapshot_begin, self._snapshot_records)
        return self._sent(encode(end, self.level), 0, now)
