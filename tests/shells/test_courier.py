import pytest
import trio

from lvsha.model import ConnectionChanged
from lvsha.sync.actions import Alarm, ConfigurationAgrees, ConfigurationDiffers, PeerChanged
from lvsha.sync.courier import BACKLOG_MAX, EVENTS_MAX, REFRESH_INTERVAL, SyncEvent
from lvsha.sync.datagrams import decode
from lvsha.sync.loopback import LoopbackGroup, LoopbackTransport
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL_PLAIN,
    Changes,
    PeerState,
    Role,
    SnapshotBegin,
)
from lvsha.sync.overlap import OVERLAP
from lvsha.sync.pace import Pace
from tests.couriers import Site, running, virtually, waiting
from tests.replicas import connection, template


def gathers(site: Site) -> bool:
    return site.courier.gathers


def changes(listener: LoopbackTransport) -> list[Changes]:
    """Live changes that have come; heartbeats are left out."""
    messages = [decode(datagram) for datagram in waiting(listener)]
    return [message for message in messages if isinstance(message, Changes)]


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
            east.change(connection(9999), connection(0).key)
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


def test_what_would_only_wait_may_be_held_back_and_is_collected_in_time() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        pace = Pace(eager_datagrams_max=1, tail_waits=())
        east, listener = Site(group, "east", pace=pace), group.join()
        async with running(east):
            east.courier.lead(1)
            await trio.sleep(OVERLAP + 1)
            waiting(listener)
            assert not gathers(east)
            east.change(connection(1))
            assert len(changes(listener)) == 1
            assert not gathers(east)  # nothing waits, so that nothing would wake it
            east.change(connection(2))
            assert changes(listener) == []
            assert gathers(east)
            east.held_back += [ConnectionChanged(connection(n)) for n in range(3, 9)]
            await trio.sleep(pace.gather + 0.001)
            (message,) = changes(listener)
            assert message.records == [connection(n) for n in range(2, 9)]
            assert not east.held_back
            assert not gathers(east)

    virtually(main)


def test_nothing_is_held_back_while_the_addresses_move_or_a_question_is_open() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        pace = Pace()

        def tell_much() -> None:
            for number in range(2 * pace.eager_datagrams_max):
                east.change(connection(number))

        async with running(east, west):
            east.courier.lead(1)
            tell_much()
            assert not gathers(east)
            await trio.sleep(OVERLAP + 1)
            tell_much()
            assert gathers(east)
            await trio.sleep(1)
            east.courier.ask(1, [connection(99).key])
            tell_much()
            assert not gathers(east)
            await trio.sleep(1)
            tell_much()
            assert gathers(east)
            east.courier.follow(1)
            tell_much()
            assert not gathers(east)

    virtually(main)


def test_what_is_held_back_is_told_before_anything_is_said_of_it() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(OVERLAP + 1)
            east.held_back.append(ConnectionChanged(connection(1)))
            east.courier.status()
            assert not east.held_back
            east.held_back.append(ConnectionChanged(connection(2)))
            east.courier.hand_over(1, "west")
            assert not east.held_back
            east.held_back.append(ConnectionChanged(connection(3)))
            east.courier.follow(1)
            assert not east.held_back
            await trio.sleep(0.1)
            assert set(west.table.content) == {connection(n).key for n in (1, 2, 3)}

    virtually(main)


def test_a_pause_asked_for_by_another_task_ends_in_time() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        pace = Pace(live_datagrams_per_tick=1, tick=0.01, tail_waits=())
        east, listener = Site(group, "east", pace=pace), group.join()
        async with running(east):
            east.courier.lead(1)
            await trio.sleep(0.1)
            waiting(listener)
            # The courier sleeps until its next heartbeat; what waits must wake it sooner.
            east.courier.tell(1, [ConnectionChanged(connection(n)) for n in range(270)])
            await trio.sleep(0.025)
            assert len(waiting(listener)) == 3

    virtually(main)


def test_what_a_full_socket_does_not_take_waits_in_order() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        pace = Pace(eager_datagrams_max=100, tail_waits=())
        east, listener = Site(group, "east", pace=pace), group.join()
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
        pace = Pace(live_datagrams_per_tick=10**6, eager_datagrams_max=10**6)
        east, west = Site(group, "east", pace=pace), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            east.transport.block()
            for number in range(BACKLOG_MAX + 100):
                east.change(connection(number))
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
            east.change(connection(1))
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
            other = connection(2)._replace(key=connection(2).key[:-2] + bytes((0, 2)))
            east.change(connection(1))
            west.tables[2].apply([other])
            west.courier.tell(2, [ConnectionChanged(other)])
            await trio.sleep(0.1)
            for site in (east, west):
                assert list(site.tables[1].content) == [connection(1).key]
                assert list(site.tables[2].content) == [other.key]
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
            refused = east.replicas[0].counters["refused_malformed"]
            refused += east.counter("refused_malformed") + east.counter("refused_sync_id")
            assert refused == 100

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


def test_a_stalled_node_follows_and_is_complete_only_when_it_has_compared() -> None:
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


def test_a_joining_backup_is_sent_templates_and_what_differs_alone() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", connections=3000), Site(group, "west", connections=3000)
        east.table.apply([template(1, b"call"), connection(7, 5)])
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            assert west.courier.complete(1)
            assert west.table.content == east.table.content
            assert west.replicas[0].counters["buckets_wanted"] == 2
            assert east.replicas[0].counters["snapshots_sent"] == 1

    virtually(main)


def test_what_is_lost_is_sent_again_without_a_snapshot() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", connections=100), Site(group, "west", connections=100)
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            group.members.remove(west.transport)
            east.change(connection(500))
            await trio.sleep(0.01)
            group.members.append(west.transport)
            east.change(connection(501))
            await trio.sleep(0.1)
            assert west.table.content == east.table.content
            assert west.courier.complete(1)
            assert west.replicas[0].counters["snapshots_received"] == 0

    virtually(main)


def test_an_older_node_is_sent_everything_in_its_own_words() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east = Site(group, "east", connections=500)
        old = Site(group, "old", level=LEVEL_PLAIN)
        listener = group.join()
        async with running(east, old):
            await trio.sleep(0.6)
            east.courier.lead(1)
            await trio.sleep(1)
            assert old.table.content == east.table.content
        begins = [m for m in map(decode, waiting(listener)) if isinstance(m, SnapshotBegin)]
        assert [begin.buckets for begin in begins] == [ALL_BUCKETS]

    virtually(main)


def test_a_connection_that_nobody_told_of_is_asked_for() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(1)
            west.table.apply([connection(1, 4)])
            east.courier.ask(1, [connection(1).key, connection(2).key])
            await trio.sleep(0.01)
            assert east.table.content == {connection(1).key: connection(1, 4)}
            assert east.table.denied == [connection(2).key]

    virtually(main)


def test_a_configuration_that_changes_while_the_node_runs_is_compared() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            await trio.sleep(1)
            east.courier.configure(b"x" * 16, {"services.web": b"1"})
            await trio.sleep(3)
            west.courier.configure(b"x" * 16, {"services.web": b"1"})
            await trio.sleep(1)
            seen = []
            while west.courier.events.statistics().current_buffer_used:
                seen.append(west.courier.events.receive_nowait().happening)
        kinds = [type(happening) for happening in seen if type(happening) is not PeerChanged]
        assert kinds == [ConfigurationDiffers, ConfigurationDiffers, ConfigurationAgrees]
        assert ConfigurationDiffers("east", ("services.web",)) in seen

    virtually(main)


def test_a_second_leader_is_reported() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east"), Site(group, "west")
        async with running(east, west):
            await trio.sleep(1)
            east.courier.lead(1)
            west.courier.lead(1)
            await trio.sleep(2)
            seen = []
            while east.courier.events.statistics().current_buffer_used:
                seen.append(east.courier.events.receive_nowait().happening)
        assert Alarm("second_leader", "west") in seen

    virtually(main)


def test_what_is_told_while_the_courier_stops_leaves_with_its_last_word() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        pace = Pace(live_datagrams_per_tick=1, tick=10.0)
        east, listener = Site(group, "east", pace=pace), group.join()
        async with running(east):
            east.courier.lead(1)
            east.change(connection(1))
            east.change(connection(2))
            waiting(listener)
        *told, last = map(decode, waiting(listener))
        assert [m.records for m in told if isinstance(m, Changes)] == [[connection(2)]]
        assert last.origin.role is Role.FOLLOW

    virtually(main)
