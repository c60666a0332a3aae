"""Maglev hashing: the client's address decides, and few clients move when a server goes.

The table is that of Eisenbud et al., "Maglev: a fast and reliable software network load
balancer" (NSDI 2016), section 3.4, as the kernel builds it with its default size: each
server has a permutation of the slots and takes, in its turns, the next that is free. Heavier
servers take more slots in a turn. The table depends on nothing but the configuration, so
both directors choose alike; a server of weight 0 keeps the slots of its last weight, and its
clients are refused, so that none moves for the time it is out.

Hashes are those of the kernel, `hsiphash` under two fixed keys. A seed is added, by exclusive
or, to both keys: another seed gives an unrelated table. Seed 0 is the kernel's.

To build the table takes some milliseconds with a thousand servers, so a change only marks
it, and the next connection builds it once for all changes.
"""

import errno
import math
from collections.abc import Sequence
from typing import Final

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.hashing import WORD, falls_back, fold, port_of, source_of
from lvsha.datapath.schedulers.siphash import hsiphash, hsiphash_each
from lvsha.datapath.services import RealServer
from lvsha.errors import AdministrationError

SLOTS: Final = 4093
"""The kernel's default (table index 12), a prime, so that every stride visits all slots."""

_TURN_BITS: Final = 6
"""No server takes 64 slots or more in a turn; the kernel's number for this size of table."""
_POSITION_KEY: Final = 2_654_435_761
_STRIDE_KEY: Final = 2_654_446_892
_FALLBACK_BATCH: Final = 64
"""Slots looked at in one go: many are needed only where few servers are left."""


class MaglevHashing:
    """The server of the client's slot.

    Flags: ``mh-port`` hashes the client's port too; ``mh-fallback`` looks on in further
    slots where the server of the slot is not usable.

    With more servers than slots the table stays that of the last list that was short enough,
    as in the kernel; servers that are no longer listed get nothing from it.

    Raises:
        AdministrationError: there are more servers than slots already (EINVAL).
    """

    def __init__(self, servers: Sequence[RealServer], options: SchedulerOptions) -> None:
        if len(servers) > SLOTS:
            raise AdministrationError(
                errno.EINVAL, f"mh: expected at most {SLOTS} real servers, not {len(servers)}"
            )
        self._servers = servers
        self._options = options
        self._slots: list[RealServer] = []
        self._hashes = _ServerHashes(options.seed)
        self._listed: list[RealServer] = []
        self._changed = False
        self.updated()

    def updated(self, _removed: RealServer | None = None) -> None:
        """The table has to be built again, unless there are too many servers."""
        if len(self._servers) <= SLOTS:
            self._listed = list(self._servers)
            self._changed = True

    def schedule(self, key: bytes, _now: float) -> RealServer | None:
        """The server of the client's slot, if it is usable."""
        if self._changed:
            self._slots = _deal(self._listed, self._hashes)
            self._changed = False
        slots, options = self._slots, self._options
        if not slots:
            return None
        value = source_of(key) + port_of(key, options.flags)
        first = hsiphash(value & WORD, _POSITION_KEY ^ options.seed) % SLOTS
        server = slots[first]
        if server.usable and server.available:
            return server
        return self._fallen_back(value, first) if falls_back(options.flags) else None

    def _fallen_back(self, value: int, first: int) -> RealServer | None:
        """The first usable server of the slots for further hashes of the client."""
        if not any(server.usable and server.available for server in self._listed):
            return None
        key = _POSITION_KEY ^ self._options.seed
        for start in range(0, SLOTS, _FALLBACK_BATCH):
            offsets = range(start, min(start + _FALLBACK_BATCH, SLOTS))
            words = [value + (first + offset) % SLOTS & WORD for offset in offsets]
            for hashed in hsiphash_each(words, key):
                server = self._slots[hashed % SLOTS]
                if server.usable and server.available:
                    return server
        return None


class _ServerHashes:
    """Where each server begins in the table and how far it strides, hashed only once."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[tuple[bytes, int], tuple[int, int]] = {}

    def of(self, servers: Sequence[RealServer]) -> list[tuple[int, int]]:
        """Positions and strides, in the order of servers; those of others are forgotten."""
        ends = [(server.address, server.port) for server in servers]
        new = [end for end in ends if end not in self._known]
        words = [fold(address) + port & WORD for address, port in new]
        positions = hsiphash_each(words, _POSITION_KEY ^ self._seed)
        strides = hsiphash_each(words, _STRIDE_KEY ^ self._seed)
        for end, position, stride in zip(new, positions, strides, strict=True):
            self._known[end] = (position % SLOTS, stride % (SLOTS - 1) + 1)
        self._known = {end: self._known[end] for end in ends}
        return [self._known[end] for end in ends]


def _deal(servers: Sequence[RealServer], hashes: _ServerHashes) -> list[RealServer]:
    """Let the servers take slots in turn until none is free; none, if no server ever weighed."""
    step = math.gcd(*(server.last_weight for server in servers))
    if step == 0:
        return []
    greatest = max(server.last_weight for server in servers) // step
    shift = max(0, greatest.bit_length() - _TURN_BITS)
    slots: list[RealServer | None] = [None] * SLOTS
    starts = hashes.of(servers)
    positions = [position for position, _ in starts]
    hands = [
        (index, server, starts[index][1], max(1, server.last_weight // step >> shift))
        for index, server in enumerate(servers)
        if server.last_weight
    ]
    free = SLOTS
    while free:
        for index, server, stride, turns in hands:
            position = positions[index]
            for _ in range(min(turns, free)):
                while slots[position] is not None:
                    position += stride
                    if position >= SLOTS:
                        position -= SLOTS
                slots[position] = server
                free -= 1
            positions[index] = position
    dealt = [server for server in slots if server is not None]
    assert len(dealt) == SLOTS
    return dealt
