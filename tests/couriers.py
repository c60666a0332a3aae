"""Nodes with couriers on a group in memory, for tests of the courier."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionEnded, ConnectionRecord
from lvsha.runs import Run
from lvsha.sync.courier import Courier
from lvsha.sync.loopback import LoopbackGroup, LoopbackTransport
from lvsha.sync.messages import (
    LEVEL,
)
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.sync.seal import Seal
from tests.replicas import Table, connection

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))


class Site:
    """A node with its courier on the group; its first sync id is that of its table."""

    def __init__(
        self,
        group: LoopbackGroup,
        name: str,
        *,
        sync_ids: tuple[int, ...] = (1,),
        connections: int = 0,
        pace: Pace | None = None,
        level: int = LEVEL,
        keys: tuple[bytes, ...] = (),
    ) -> None:
        self.tables = {sync_id: Table(sync_id=sync_id) for sync_id in sync_ids}
        self.table = self.tables[sync_ids[0]]
        self.table.apply([connection(number) for number in range(connections)])
        self.transport = group.join()
        self.replicas = [
            Replica(
                tally=self.tables[sync_id].tally,
                node=name,
                epoch=sync_id + 256 * int.from_bytes(name.encode()[:7]),
                configuration_digest=bytes(16),
                digests={},
                heartbeat_interval=0.5,
                datagram_max=1400,
                pace=pace,
                level=level,
                proven=bool(keys),
            )
            for sync_id in sync_ids
        ]
        self.seal = Seal(keys, int.from_bytes(name.encode()[:8])) if keys else None
        self.held_back: list[ConnectionChange] = []
        self.courier = Courier(
            self.replicas,
            self.transport,
            Joined(self.tables),
            seal=self.seal,
            collect=self._collect,
        )

    def _collect(self) -> None:
        if self.held_back:
            told, self.held_back = self.held_back, []
            self.courier.tell(next(iter(self.tables)), told)

    def change(self, *changes: ConnectionRecord | bytes) -> None:
        """Connections of the first sync id change, or end, and are told of."""
        told: list[ConnectionChange] = []
        for change in changes:
            if isinstance(change, bytes):
                self.table.drop(change)
                told.append(ConnectionEnded(change))
            else:
                self.table.apply([change])
                told.append(ConnectionChanged(change))
        self.courier.tell(next(iter(self.tables)), told)

    def counter(self, name: str) -> int:
        counters = self.courier.status()["counters"]
        assert isinstance(counters, dict)
        count = counters.get(name, 0)
        assert isinstance(count, int)
        return count


class Joined(Table):
    """The tables of some sync ids as one; what is told of a connection names no id."""

    def __init__(self, tables: dict[int, Table]) -> None:
        super().__init__()
        self.tables = tables

    def _of(self, key: bytes) -> Table:
        """That of the connection's virtual port, if there is one: port 80 is of the first."""
        port = int.from_bytes(key[-2:]) if key[0] < 0x80 else 80
        return self.tables.get(port, next(iter(self.tables.values())))

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        # The base class calls it while it is made.
        for record in records:
            self._of(record.key).apply([record])

    def forget(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._of(key).forget([key])

    def begin(self, sync_id: int, bucket: int | None) -> None:
        self._by_id(sync_id).begin(sync_id, bucket)

    def end(self, sync_id: int, bucket: int | None) -> None:
        self._by_id(sync_id).end(sync_id, bucket)

    def records(self, sync_id: int, buckets: Iterable[int]) -> Iterator[Run | None]:
        return self._by_id(sync_id).records(sync_id, buckets)

    def lookup(self, keys: Sequence[bytes]) -> list[ConnectionRecord]:
        return [record for key in keys for record in self._of(key).lookup([key])]

    def deny(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._of(key).deny([key])

    def _by_id(self, sync_id: int) -> Table:
        return self.tables.get(sync_id, next(iter(self.tables.values())))


@asynccontextmanager
async def running(*sites: Site) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for site in sites:
            await nursery.start(site.courier.run)
        yield nursery
        nursery.cancel_scope.cancel()


def virtually(test: object) -> None:
    """Run an async test under a clock that jumps to the next deadline."""
    trio.run(test, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def waiting(transport: LoopbackTransport) -> list[bytes]:
    datagrams = []
    while (datagram := transport.receive()) is not None:
        datagrams.append(datagram)
    return datagrams
