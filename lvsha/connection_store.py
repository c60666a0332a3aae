"""The director's connections as the sync sees them: by sync id.

Each virtual router has a sync id, so the virtual address of a connection tells which id it
belongs to. Connections of addresses that no virtual router moves are not synced.
"""

from collections.abc import Callable, Iterator, Mapping

from lvsha.counters import Counters
from lvsha.datapath.director import Director
from lvsha.model import ConnectionRecord
from lvsha.tally import Tally


class ConnectionStore:
    """A director's table for a courier.

    Args:
        director: whose table it is.
        sync_ids: the sync id of each virtual address.
        clock: tells the time, in seconds.
    """

    def __init__(
        self, director: Director, sync_ids: Mapping[bytes, int], clock: Callable[[], float]
    ) -> None:
        self.counters = Counters()
        self._director = director
        self._sync_ids = sync_ids
        self._clock = clock
        self._tallies = {sync_id: Tally(sync_id) for sync_id in sync_ids.values()}
        for address, sync_id in sync_ids.items():
            director.registry.tallies[address] = self._tallies[sync_id]
        self._generations: dict[int, int] = {}
        self._to_sweep: dict[int, int] = {}
        self._sweeping: set[int] = set()

    def addresses(self, sync_id: int) -> set[bytes]:
        """The virtual addresses of a sync id."""
        return {address for address, of in self._sync_ids.items() if of == sync_id}

    def apply(self, record: ConnectionRecord) -> None:
        """Take a connection over from a peer, or count why that cannot be."""
        refusal = self._director.replication.apply(record, self._clock())
        if refusal is not None:
            self.counters.add(f"records_refused_{refusal.name.lower()}")

    def forget(self, key: bytes) -> None:
        """Remove a connection that its source has ended."""
        self._director.replication.forget(key)

    def count(self, sync_id: int) -> int:
        """How many connections there are of a sync id."""
        return self._tallies[sync_id].connections

    def begin_snapshot(self, sync_id: int) -> None:
        """Mark what is applied from now on."""
        self._generations[sync_id] = self._director.replication.begin_snapshot()

    def end_snapshot(self, sync_id: int) -> None:
        """Remove what was not applied since the snapshot began; that goes on for a while.

        It is a chore of the director. Of each sync id there is at most one: when another
        snapshot has ended meanwhile, it begins anew.
        """
        generation = self._generations.pop(sync_id, None)
        if generation is None:
            return
        self._to_sweep[sync_id] = generation
        if sync_id not in self._sweeping:
            self._sweeping.add(sync_id)
            self._director.add_chore(self._sweep(sync_id))

    def _sweep(self, sync_id: int) -> Iterator[None]:
        addresses = self.addresses(sync_id)
        while (generation := self._to_sweep.pop(sync_id, None)) is not None:
            for swept in self._director.replication.sweep(generation, addresses):
                self.counters.add("connections_swept", swept)
                yield
                if sync_id in self._to_sweep:
                    break
        self._sweeping.discard(sync_id)

    def records(self, sync_id: int) -> Iterator[ConnectionRecord | None]:
        """All connections of a sync id, each as it is when it is read.

        None says that some of the table were looked at since the None before.
        """
        return self._director.replication.records(self.addresses(sync_id))
