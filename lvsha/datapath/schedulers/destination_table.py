"""What lblc and lblcr remember of each destination address, and when they forget it.

The table is the kernel's: 1,024 buckets, and a collection of garbage every 60 seconds. One
collection in thirty forgets all entries that were not used for the expiration time. The
others do nothing while there are 16,384 entries or fewer; with more they forget some that
were not used for six minutes, whole buckets at a time, going round the table.

A collection begins when a connection is scheduled and one is due; those missed in a pause are
made up for by one. It walks over a sixteenth of the table with each connection, so that none
waits long. What a collection of the first kind is to forget is not found any more from its
beginning, wherever the walk has come to.

A full table keeps what it has and refuses new addresses, whose connections are then scheduled
without memory.

Times are seconds.
"""

import math
from typing import Final, Generic, Protocol, TypeVar

from lvsha.datapath.schedulers.hashing import fold, hash_32

ENTRIES_WANTED: Final = 16 * 1024
ENTRIES_MAX: Final = ENTRIES_WANTED * 3 // 2
COLLECTION_INTERVAL: Final = 60.0
COLLECTIONS_IN_ROUND: Final = 30
UNUSED_MAX: Final = 360.0
"""After so long an entry may be forgotten while there are more than wanted."""
_BITS: Final = 10
_BUCKETS: Final = 1 << _BITS
_BUCKETS_AT_ONCE: Final = _BUCKETS // 16


class Entry(Protocol):
    """What is remembered of one address.

    Attributes:
        used: when a connection to the address was last scheduled.
    """

    used: float


E = TypeVar("E", bound=Entry)


class DestinationTable(Generic[E]):
    """Entries by destination address."""

    def __init__(self) -> None:
        self._buckets: list[dict[bytes, E]] = [{} for _ in range(_BUCKETS)]
        self._count = 0
        self._collections = 0
        self._due: float | None = None
        self._expired = -math.inf  # entries not used since have expired
        # The walk of the present collection, and where the last one stopped.
        self._last_walked = 0
        self._to_walk = 0
        self._to_forget = 0
        self._unused_since = -math.inf

    def __len__(self) -> int:
        return self._count

    def find(self, address: bytes, now: float) -> E | None:
        """The entry of an address, which thereby is used."""
        bucket = self._buckets[_bucket(address)]
        entry = bucket.get(address)
        if entry is None:
            return None
        if entry.used <= self._expired:
            del bucket[address]
            self._count -= 1
            return None
        entry.used = now
        return entry

    def store(self, address: bytes, entry: E) -> bool:
        """Remember an address that is not in the table; whether there was room."""
        if self._count >= ENTRIES_MAX:
            return False
        bucket = self._buckets[_bucket(address)]
        assert address not in bucket
        bucket[address] = entry
        self._count += 1
        return True

    def collect(self, now: float, expiration: float) -> None:
        """Begin a collection if one is due, and go on with the one that has begun."""
        if self._due is None:
            self._due = now + COLLECTION_INTERVAL
        if now >= self._due:
            passed = 1 + int((now - self._due) // COLLECTION_INTERVAL)
            self._due += passed * COLLECTION_INTERVAL
            self._begin(self._due - COLLECTION_INTERVAL, passed, expiration)
        if self._to_walk:
            self._walk()

    def _begin(self, latest: float, passed: int, expiration: float) -> None:
        """So many collections are due, the latest at this time: prepare the walk."""
        if self._count > ENTRIES_WANTED and self._collections < COLLECTIONS_IN_ROUND - 1:
            # Not counted, as in the kernel: a round lasts longer while there are too many.
            excess = (self._count - ENTRIES_WANTED) * 4 // 3
            self._to_walk, self._to_forget = _BUCKETS, min(excess, ENTRIES_WANTED // 2)
            self._unused_since = latest - UNUSED_MAX
            return
        rounds, self._collections = divmod(self._collections + passed, COLLECTIONS_IN_ROUND)
        if rounds:
            full = latest - self._collections * COLLECTION_INTERVAL
            self._to_walk, self._to_forget = _BUCKETS, ENTRIES_MAX
            self._unused_since = full - expiration
            self._expired = max(self._expired, self._unused_since)

    def _walk(self) -> None:
        """Forget what is due in the next buckets; whole buckets, until enough is forgotten."""
        for _ in range(min(_BUCKETS_AT_ONCE, self._to_walk)):
            self._to_walk -= 1
            self._last_walked = (self._last_walked + 1) % _BUCKETS
            bucket = self._buckets[self._last_walked]
            unused = [at for at, entry in bucket.items() if entry.used <= self._unused_since]
            for address in unused:
                del bucket[address]
            self._count -= len(unused)
            self._to_forget -= len(unused)
            if self._to_forget <= 0:
                self._to_walk = 0
                break


def _bucket(address: bytes) -> int:
    return hash_32(fold(address), _BITS)
