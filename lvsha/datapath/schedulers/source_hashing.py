"""Source hashing: the client's address decides, so a client keeps its real server.

A table of 256 slots is dealt out in list order, to each server as many slots in a row as
its weight; the slot is a multiplicative hash of the address (the kernel's ``hash_32``). The
table depends on nothing but the configuration, so both directors choose alike.

With a seed, the address (and port) goes through SipHash with the seed as both halves of its
key before it is hashed, so that another seed spreads the clients in an unrelated way. Seed 0
is the kernel's hash.
"""

from collections.abc import Sequence
from typing import Final

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.hashing import WORD, falls_back, hash_32, port_of, source_of
from lvsha.datapath.schedulers.siphash import hsiphash
from lvsha.datapath.services import RealServer

SLOTS: Final = 256
_BITS: Final = 8


class SourceHashing:
    """The server of the client's slot.

    Flags: ``sh-port`` hashes the client's port too; ``sh-fallback`` looks on in further
    slots where the server of the slot is not usable.
    """

    def __init__(self, servers: Sequence[RealServer], options: SchedulerOptions) -> None:
        self._servers = servers
        self._options = options
        self._slots: list[RealServer] = []
        self.updated()

    def updated(self, _removed: RealServer | None = None) -> None:
        """Deal out the slots again; a server of weight 0 still takes one."""
        dealt: list[RealServer] = []
        while self._servers and len(dealt) < SLOTS:
            for server in self._servers:
                dealt += [server] * max(1, min(server.weight, SLOTS))
                if len(dealt) >= SLOTS:
                    break
        self._slots = dealt[:SLOTS]

    def schedule(self, key: bytes, _now: float) -> RealServer | None:
        """The server of the client's slot, if it is usable."""
        slots, options = self._slots, self._options
        if not slots:
            return None
        value = source_of(key) + port_of(key, options.flags)
        if options.seed:
            value = hsiphash(value & WORD, options.seed)
        first = hash_32(value, _BITS)
        server = slots[first]
        if server.usable:
            return server
        if falls_back(options.flags):
            # The kernel adds the slot's number to each offset, and again when it hashes.
            for offset in range(SLOTS):
                server = slots[(2 * first + offset) % SLOTS]
                if server.usable:
                    return server
        return None
