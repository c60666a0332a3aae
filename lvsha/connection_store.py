"""The director's connections as the sync sees them: by sync id and bucket.

Each virtual router has a sync id, so the virtual address of a connection tells which id it
belongs to; a firewall mark has one, too, for its templates and for its connections to other
addresses. What belongs to none is not synced.

What always holds: every call returns at once, within some milliseconds. What takes longer goes
on as a chore of the director, between frames.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lvsha.counters import Counters
from lvsha.datapath.connections import Connection
from lvsha.datapath.director import Director
from lvsha.datapath.replication import SWEEP_MAX
from lvsha.model import TEMPLATE_BIT, ConnectionRecord
from lvsha.runs import Run
from lvsha.tally import NO_SYNC_ID, Tally

_Restored = tuple[Connection, float, float]
"""A connection, when it ends as a copy, and when it ends of its own."""


class ConnectionStore:
    """A director's table for a courier.

    Args:
        director: whose table it is.
        sync_ids: the sync id of each virtual address.
        clock: tells the time, in seconds.
        marks: the sync id of each firewall mark that has one.
    """

    def __init__(
        self,
        director: Director,
        sync_ids: Mapping[bytes, int],
        clock: Callable[[], float],
        marks: Mapping[int, int] | None = None,
    ) -> None:
        self.counters = Counters()
        self._director = director
        self._replication = director.replication
        self._clock = clock
        self._tallies: dict[int, Tally] = {}
        registry = director.registry
        for address, sync_id in sync_ids.items():
            registry.tallies[address] = self.tally(sync_id)
        self.follow_marks(marks or {})
        self._generations: dict[tuple[int, int | None], int] = {}
        self._to_sweep: dict[int, int] = {}
        self._sweeping: set[int] = set()
        self._restored: dict[int, list[_Restored]] = {}

    def follow_marks(self, marks: Mapping[int, int]) -> None:
        """Have other sync ids of firewall marks, for what is opened from now on."""
        tallies = self._director.registry.mark_tallies
        tallies.clear()
        tallies.update((mark, self.tally(sync_id)) for mark, sync_id in marks.items())

    def tally(self, sync_id: int) -> Tally:
        """The counts and sums of a sync id; always the same object."""
        tally = self._tallies.get(sync_id)
        if tally is None:
            tally = self._tallies[sync_id] = Tally(sync_id)
        return tally

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        """Enter connections, or bring them to the state that a peer has told."""
        for refusal, number in self._replication.apply(records, self._clock()).items():
            self.counters.add(f"records_refused_{refusal.value}", number)

    def remaining(self) -> Iterator[list[tuple[ConnectionRecord, float]]]:
        """All that there is, with the seconds that each has left, slice by slice."""
        for part in self._director.registry.table.slices():
            now = self._clock()
            yield [
                (connection.record(), connection.expires - now)
                for connection in part
                if connection.second >= 0 and not connection.is_poisoned
            ]

    def restore(self, entries: Sequence[tuple[ConnectionRecord, float]]) -> int:
        """Enter connections that had so many seconds left; returns how many are in the table.

        What belongs to a sync id lives as a copy does, until `settle_restored` says which.
        """
        self.apply([record for record, _ in entries])
        table, now, restored = self._director.registry.table, self._clock(), 0
        for (key, *_), left in entries:
            connection = table.template(key) if key[0] >= TEMPLATE_BIT else table.find(key)
            if connection is None:
                continue
            restored += 1
            tally, ends = connection.tally, min(connection.expires, now + left)
            if tally is None or tally.sync_id == NO_SYNC_ID:
                connection.expires = ends
                table.hasten(connection)
            else:
                waiting = self._restored.setdefault(tally.sync_id, [])
                waiting.append((connection, connection.expires, ends))
        return restored

    def settle_restored(self, sync_id: int, *, alone: bool) -> None:
        """This node leads now; what was restored and had no packet since has its own time.

        Args:
            sync_id: of which.
            alone: no peer was heard. One that was may have had packets of these connections
                since they were saved, and tells nothing of what both have, so that they go
                on as copies.
        """
        restored = self._restored.pop(sync_id, None)
        if restored is not None and alone:
            self._director.add_chore(self._shorten(restored))

    def _shorten(self, restored: Sequence[_Restored]) -> Iterator[None]:
        table = self._director.registry.table
        for start in range(0, len(restored), SWEEP_MAX):
            for connection, expires, ends in restored[start : start + SWEEP_MAX]:
                if connection.second >= 0 and connection.expires == expires:
                    connection.expires = ends
                    table.hasten(connection)
            yield

    def forget(self, keys: Sequence[bytes]) -> None:
        """Remove what is there of these; that is reported to nobody."""
        self._replication.forget(keys)

    def deny(self, keys: Sequence[bytes]) -> None:
        """Let packets of these connections be refused: no peer knows them."""
        self.counters.add("connections_denied", len(keys))
        self._director.deny(keys)

    def begin(self, sync_id: int, bucket: int | None) -> None:
        """From now on mark what is applied, of a bucket or of all; again is anew."""
        self._generations[sync_id, bucket] = self._replication.begin()

    def end(self, sync_id: int, bucket: int | None) -> None:
        """Remove what was neither applied nor opened here since the begin.

        Of a bucket that happens now, but for a crowd, the rest of which goes on as a chore;
        of all it is a chore. Of these there is at most one for each sync id: when another has
        begun and ended meanwhile, it begins anew.
        """
        generation = self._generations.pop((sync_id, bucket), None)
        if generation is None:
            return
        if bucket is not None:
            sweeping = self._replication.sweep_bucket(self.tally(sync_id), bucket, generation)
            swept = next(sweeping, 0)
            self.counters.add("connections_swept", swept)
            if swept == SWEEP_MAX:
                self._director.add_chore(self._counted(sweeping))
            return
        self._to_sweep[sync_id] = generation
        if sync_id not in self._sweeping:
            self._sweeping.add(sync_id)
            self._director.add_chore(self._sweep(sync_id))

    def _sweep(self, sync_id: int) -> Iterator[None]:
        while (generation := self._to_sweep.pop(sync_id, None)) is not None:
            for _ in self._counted(self._replication.sweep(self.tally(sync_id), generation)):
                yield
                if sync_id in self._to_sweep:
                    break
        self._sweeping.discard(sync_id)

    def _counted(self, sweeping: Iterator[int]) -> Iterator[None]:
        for swept in sweeping:
            self.counters.add("connections_swept", swept)
            yield

    def records(self, sync_id: int, buckets: Iterable[int]) -> Iterator[Run | None]:
        """What was told of some buckets; see `Replication.records`."""
        return self._replication.records(self.tally(sync_id), buckets)

    def lookup(self, keys: Sequence[bytes]) -> list[ConnectionRecord]:
        """Those connections and templates of these keys that are here."""
        return self._replication.lookup(keys)
