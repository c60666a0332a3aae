"""What the connections of one sync id come to, so that two directors can compare theirs.

A `Tally` is kept by whoever holds the connections, at each change, and read by the sync: a
count, and for each bucket a sum that does not depend on any order. Two directors whose sums
are equal have told each other the same; where they differ, the bucket says where to look.

The term of a connection is (CRC-32 of its key, server address and server port, plus 1) times
(2 * state + 1); a bucket's sum is that of its terms, modulo 2**64. So one connection more or
less, or another state, always shows; that two differences hide each other happens once in
some 2**32 cases, and the next change shows them.

What counts is what was told: a connection that no other director knows of is in no sum.
"""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

from lvsha.model import BUCKETS, TEMPLATE_BIT, bucket_of

UNTOLD: Final = -1
"""The state that backups were told last, of a connection that no backup knows of."""
NO_SYNC_ID: Final = -1
"""In place of the sync id of connections that belong to no virtual router and are told all the
same, to whoever listens to a daemon of the kernel's protocol."""
SUM_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


class Tally:
    """Counts and sums of one sync id.

    Attributes:
        sync_id: which, or `NO_SYNC_ID`.
        connections: connections and templates in the table.
        told: those that backups were told of.
        established: connections whose loss a client would notice.
        exposed: those of them that no backup was told of yet.
        sums: of what was told, by bucket.
    """

    __slots__ = ("connections", "established", "exposed", "sums", "sync_id", "told")

    def __init__(self, sync_id: int) -> None:
        self.sync_id = sync_id
        self.connections = 0
        self.told = 0
        self.established = 0
        self.exposed = 0
        self.sums = [0] * BUCKETS

    def retell(self, key: bytes, server: bytes, port: int, old: int, new: int) -> None:
        """What backups know of a connection goes from one state to another.

        Args:
            key: of its record.
            server: the address of its real server.
            port: of its real server.
            old: the state; `UNTOLD` where they know nothing of it.
            new: the same, from now on.
        """
        term = crc32(key + server + port.to_bytes(2)) + 1
        weight = 0
        if new >= 0:
            weight = 2 * new + 1
            self.told += 1
        if old >= 0:
            weight -= 2 * old + 1
            self.told -= 1
        sums = self.sums
        bucket = key[-3] + key[5] if key[0] < TEMPLATE_BIT else bucket_of(key)  # spares a call
        sums[bucket] = sums[bucket] + term * weight & SUM_MASK

    def tell(self, keys: Sequence[bytes], server: bytes, port: int, state: int) -> None:
        """Backups come to know connections of which they knew nothing; as `retell` for each.

        Args:
            keys: of their records, none of a template.
            server: the address of their real server.
            port: of their real server.
            state: the same of all.
        """
        sums, tail, weight = self.sums, server + port.to_bytes(2), 2 * state + 1
        for key in keys:
            bucket = key[-3] + key[5]  # as `bucket_of`
            sums[bucket] = sums[bucket] + (crc32(key + tail) + 1) * weight & SUM_MASK
        self.told += len(keys)

    @property
    def total(self) -> int:
        """The sum of all buckets, which differs where two tallies differ, but for chance."""
        return sum(self.sums) & SUM_MASK
