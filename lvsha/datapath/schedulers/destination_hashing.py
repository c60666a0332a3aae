"""Destination hashing: the address that clients connect to decides, for farms of caches.

A table of 256 slots is dealt out in list order, one slot to each server in turn; weights do
not matter to it, though a server of weight 0 gets nothing. The table depends on nothing but
the list, so both directors choose alike.
"""

from collections.abc import Sequence
from typing import Final

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.hashing import destination_of, fold, hash_32
from lvsha.datapath.services import RealServer

_BITS: Final = 8


class DestinationHashing:
    """The server of the destination's slot; none if that server is not usable."""

    def __init__(self, servers: Sequence[RealServer], _options: SchedulerOptions) -> None:
        self._servers = servers

    def schedule(self, key: bytes, _now: float) -> RealServer | None:
        """The server of the destination's slot, if it is usable."""
        servers = self._servers
        if not servers:
            return None
        server = servers[hash_32(fold(destination_of(key)), _BITS) % len(servers)]
        return server if server.usable else None

    def updated(self, removed: RealServer | None = None) -> None:
        """The deal follows from the list, so there is no table to deal out again."""
