from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from lvsha.model import ConnectionChanged, ConnectionEnded, ConnectionRecord, ForwardMethod
from lvsha.sync.courier import BACKLOG_MAX, EVENTS_MAX, REFRESH_INTERVAL, Courier, SyncEvent
from lvsha.sync.loopback import LoopbackGroup, LoopbackTransport
from lvsha.sync.messages import PeerState, Role, decode
from lvsha.sync.replica import Pace, PeerChanged, Replica


def connection(number: int, state: int = 1) -> ConnectionRecord:
    return ConnectionRecord.between(
        protocol=6,
        client=(0x0A000000 + number).to_bytes(4),
        client_port=1024,
        virtual=bytes((192, 0, 2, 1)),
        virtual_port=80,
        server=bytes((10, 1, 0, 1)),
        server_port=8080,
        method=ForwardMethod.NAT,
        state=state,
        flags=0,
        timeout=900.0,
    )


class Table:
    """A naive table; in it, all connections are of all sync ids."""

    def __init__(self, count: int = 0) -> None:
        records = map(connection, range(count))
        self.content = {record.key: record for record in records}
        self.confirmed: set[bytes] = set()

    def apply(self, record: ConnectionRecord) -> None:
        self.content[record.key] = record
        self.confirmed.add(record.key)

    def forget(self, key: bytes) -> None:
        self.content.pop(key, None)

    def begin_snapshot(self, sync_id: int) -> None:
        self.confirmed.clear()

    def end_snapshot(self, sync_id: int) -> None:
        for key in self.content.keys() - self.confirmed:
            del self.content[key]

    def records(self, sync_id: int) -> Iterator[ConnectionRecord]:
        return (self.content[key] for key in list(self.content) if key in self.content)

    def count(self, sync_id: int) -> int:
        return len(self.content)


class Site:
    """A node with its courier on the group."""

    def __init__(
        self,
        group: LoopbackGroup,
        name: str,
        *,
        sync_ids: tuple[int, ...] = (1,),
        connections: int = 0,
        pace: Pace | None = None,
    ) -> None:
        self.table = Table(connections)
        self.transport = group.join()
        self.replicas = [
            Replica(
                sync_id=sync_id,
                node=name,
                epoch=sync_id + 1000 * len(name),
                configuration_digest=bytes(16),
                digests={},
                heartbeat_interval=0.5,
                datagram_max=1400,
                pace=pace,
            )
            for sync_id in sync_ids
        ]
        self.courier = Courier(self.replicas, self.transport, self.table)

    def counter(self, name: str) -> int:
        counters = self.courier.status()["counters"]
        assert isinstance(counters, dict)
        count = counters.get(name, 0)
        assert isinstance(count, int)
        return count


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


def test_a_joining_backup_gets_all_connections_and_then_the_changes() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", connections=5000), Site(group, "west")
        async with running(east) as nursery:
            east.courier.lead(1)
            await nursery.start(west.courier.run)
            await trio.sleep(1)
            assert west.courier.complete(1)
            assert west.table.content == east.table.content
            east.table.content[connection(9999).key] = connection(9999)
            east.courier.tell(1, [ConnectionChanged(connection(9999))])
            gone = connection(0)
            del east.table.content[gone.key]
            east.courier.tell(1, [ConnectionEnded(gone.key)])
            await trio.sleep(0.1)
            assert west.table.content == east.table.content

    virtually(main)


def test_a_change_leaves_in_the_same_turn_of_the_loop() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, listener = Site(group, "east"), group.join()
        async with running(east):
            east.courier.lead(1)
            waiting(listener)
            east.courier.tell(1, [ConnectionChanged(connection(1))])
            assert len(waiting(listener)) == 1

    virtually(main)


def test_a_pause_asked_for_by_another_task_ends_in_time() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        pace = Pace(live_datagrams_per_tick=1, tick=0.01)
        east, listener = Site(group, "east", pace=pace), group.join()
        async with running(east):
            east.courier.lead(1)
            await trio.sleep(0.1)
            waiting(listener)
            # The courier sleeps until its next heartbeat; what waits must wake it sooner.
            east.courier.tell(1, [ConnectionChanged(connection(n)) for n in range(90)])
            await trio.sleep(0.025)
            assert len(waiting(listener)) == 3

    virtually(main)


def test_what_a_full_socket_does_not_take_waits_in_order() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, listener = Site(group, "east"), group.join()
        async with running(east):
            east.courier.lead(1)
            waiting(listener)
            east.transport.block()
            for number in range(20):
                east.courier.tell(1, [ConnectionChanged(connection(number))])
            assert waiting(listener) == []
            assert east.courier.status()["backlog_datagrams"] == 20
            east.transport.unblock()
            east.courier.tell(1, [ConnectionChanged(connection(20))])
            await trio.sleep(0.01)
            sequences = [decode(d).origin.sequence for d in waiting(listener)]
            assert sequences == list(range(1, 22))
            assert east.courier.status()["backlog_datagrams"] == 0

    virtually(main)


def test_a_socket_that_stays_full_costs_a_bounded_memory_and_followers_recover() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        pace = Pace(live_datagrams_per_tick=10**6)
        east, west = Site(group, "east", pace=pace), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            east.transport.block()
            for number in range(BACKLOG_MAX + 100):
                east.table.content[connection(number).key] = connection(number)
                east.courier.tell(1, [ConnectionChanged(connection(number))])
            assert east.courier.status()["backlog_datagrams"] == BACKLOG_MAX
            assert east.counter("backlog_overflow") == 100
            east.transport.unblock()
            await trio.sleep(5)
            assert west.courier.complete(1)
            assert west.table.content == east.table.content

    virtually(main)


def test_an_error_of_the_network_is_counted_and_the_link_works_again() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            east.transport.error = OSError(101, "Network is unreachable")
            east.table.content[connection(1).key] = connection(1)
            east.courier.tell(1, [ConnectionChanged(connection(1))])
            await trio.sleep(5)
            assert east.counter("send_errors") > 5
            assert not west.courier.complete(1)
            east.transport.error = None
            await trio.sleep(2)
            assert west.courier.complete(1)
            assert west.table.content == east.table.content

    virtually(main)


def test_the_transport_is_refreshed_now_and_then() -> None:
    async def main() -> None:
        east = Site(LoopbackGroup(), "east")
        async with running(east):
            await trio.sleep(3.5 * REFRESH_INTERVAL)
            assert east.transport.refreshes == 3

    virtually(main)


def test_mutual_backup_leads_one_id_and_follows_the_other() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east = Site(group, "east", sync_ids=(1, 2))
        west = Site(group, "west", sync_ids=(1, 2))
        async with running(east, west):
            east.courier.lead(1)
            west.courier.lead(2)
            await trio.sleep(1)
            east.courier.tell(1, [ConnectionChanged(connection(1))])
            west.courier.tell(2, [ConnectionChanged(connection(2))])
            await trio.sleep(0.1)
            assert list(west.table.content) == [connection(1).key]
            assert list(east.table.content) == [connection(2).key]
            assert west.courier.complete(1)
            assert east.courier.complete(2)

    virtually(main)


def test_a_replica_with_id_0_gets_every_datagram_and_others_only_their_own() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east = Site(group, "east", sync_ids=(5,))
        observer, stranger = Site(group, "observer", sync_ids=(0,)), Site(group, "other")
        async with running(east, observer, stranger):
            east.courier.lead(5)
            await trio.sleep(1)
            east.courier.tell(5, [ConnectionChanged(connection(1))])
            await trio.sleep(0.1)
            assert list(observer.table.content) == [connection(1).key]
            assert stranger.table.content == {}
            assert stranger.counter("refused_sync_id") > 0

    virtually(main)


@pytest.mark.parametrize(
    "noise", [b"", b"\x00" * 80, b"\x01\x01\xff\xff\xc1", b"\x02\x01\xff\xff\x90"]
)
def test_noise_is_counted_and_changes_nothing(noise: bytes) -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east = Site(group, "east")
        async with running(east):
            for _ in range(100):
                east.transport.deliver(noise)
            await trio.sleep(0.1)
            replica_counts = east.replicas[0].counters["refused_malformed"]
            assert east.counter("refused_malformed") + replica_counts == 100

    virtually(main)


def test_a_cancelled_courier_says_that_it_leads_no_longer() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, listener = Site(group, "east"), group.join()
        async with running(east):
            east.courier.lead(1)
            waiting(listener)
        (last,) = waiting(listener)
        assert decode(last).origin.role is Role.FOLLOW
        east.courier.tell(1, [ConnectionChanged(connection(1))])
        assert waiting(listener) == []

    virtually(main)


def test_the_node_reads_what_replicas_report() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            event = await west.courier.events.receive()
            assert event == SyncEvent(1, PeerChanged("east", PeerState.PROBE, "heard"))

    virtually(main)


def test_events_that_nobody_reads_are_counted_beyond_a_limit() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            for _ in range(EVENTS_MAX):
                east.courier.lead(1)
                await trio.sleep(0.5)
                east.courier.follow(1)
                await trio.sleep(0.5)
            assert west.counter("events_dropped") > 0

    virtually(main)


def test_a_stalled_node_follows_and_is_complete_only_after_a_new_snapshot() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", connections=10), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            assert west.courier.complete(1)
            west.courier.follow(1)
            west.courier.resync(1)
            assert not west.courier.complete(1)
            await trio.sleep(1)
            assert west.courier.complete(1)

    virtually(main)
