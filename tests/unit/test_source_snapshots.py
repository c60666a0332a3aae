"""How a leader sends its table: paced, in parts, between live changes, to several at once."""

from collections.abc import Iterable, Iterator

import pytest

from lvsha.model import BUCKETS, ConnectionRecord, bucket_of
from lvsha.sync.actions import Action, ProvideSnapshot
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL_PLAIN,
    Changes,
    Heartbeat,
    PeerState,
    Progress,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
)
from lvsha.sync.pace import Pace
from lvsha.sync.peers import PROGRESS_PATIENCE
from lvsha.sync.replica import Replica
from lvsha.sync.source import (
    PROVIDE_PATIENCE,
    SLICE_READS,
    SNAPSHOT_CONNECTIONS,
    SNAPSHOT_READ_AHEAD,
    SNAPSHOT_READS_PER_TICK,
    WINDOW_STALL,
)
from lvsha.tally import Tally
from tests.replica_group import Group
from tests.replicas import (
    START,
    East,
    bits,
    changed,
    connection,
    ended,
    events,
    expire_until,
    leading,
    make_replica,
    members,
    peers,
    sent,
    sent_of,
)

ONE_AT_A_TIME = Pace(snapshot_datagrams_per_tick=1)


def follower(replica: Replica, node: str = "east") -> East:
    east = East(replica, node=node, epoch=len(node))
    east.role, east.term = Role.FOLLOW, 0
    east.heartbeat(leader="west")
    return east


def ask(
    east: East, position: int = 0, buckets: int = ALL_BUCKETS, now: float = START
) -> list[Action]:
    request = SnapshotRequest(east.origin(), "west", 77, position, buckets)
    return [action for action in east.say(request, now) if not is_heartbeat(action)]


def is_heartbeat(action: Action) -> bool:
    return bool(sent_of(Heartbeat, [action]))


def without_heartbeats(actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if not is_heartbeat(action)]


def asked(pace: Pace | None = None, buckets: int = ALL_BUCKETS) -> tuple[Replica, East]:
    """A leader that was asked for a snapshot just now."""
    replica = leading(pace=pace or Pace())
    east = follower(replica)
    assert ProvideSnapshot(buckets) in ask(east, buckets=buckets)
    return replica, east


def table_of(numbers: Iterable[int]) -> Iterator[ConnectionRecord]:
    return (connection(number) for number in numbers)


def chunks(actions: Iterable[Action]) -> list[ConnectionRecord]:
    return [record for chunk in sent_of(SnapshotChunk, actions) for record in chunk.records]


# --- pace -------------------------------------------------------------------------------------


def test_a_request_is_answered_by_a_paced_snapshot() -> None:
    replica, _ = asked(Pace(snapshot_datagrams_per_tick=2, tick=0.01))
    actions = replica.snapshot(table_of(range(400)), START)
    assert [type(message) for message in sent(actions)] == [
        SnapshotBegin,
        SnapshotChunk,
        SnapshotChunk,
    ]
    actions += without_heartbeats(expire_until(replica, START + 0.05))
    messages = sent(actions)
    end = messages[-1]
    assert isinstance(end, SnapshotEnd)
    assert (end.begin, end.records) == (messages[0].origin.sequence, 400)
    assert chunks(actions) == list(table_of(range(400)))
    numbers = [message.origin.sequence for message in messages]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_snapshot_is_read_only_as_it_is_sent() -> None:
    replica, _ = asked(ONE_AT_A_TIME)
    read: list[int] = []

    def table() -> Iterator[ConnectionRecord]:
        for number in range(1000):
            read.append(number)
            yield connection(number)

    replica.snapshot(table(), START)
    assert len(read) < 120 + SNAPSHOT_READ_AHEAD


def test_a_tick_passes_no_more_than_its_share_of_what_is_not_to_be_sent() -> None:
    replica, _ = asked()
    passed = 0

    def slices() -> Iterator[ConnectionRecord | None]:
        nonlocal passed
        for _ in range(1000):
            passed += 1
            yield None

    replica.snapshot(slices(), START)
    assert SNAPSHOT_READS_PER_TICK // SLICE_READS <= passed <= 50
    ticks = 1
    while replica._source.is_snapshotting:
        assert replica.deadline is not None
        before = passed
        replica.expire(replica.deadline)
        assert passed - before <= 50
        ticks += 1
    assert passed == 1000
    assert ticks >= 20


def test_live_changes_are_not_delayed_by_a_snapshot() -> None:
    replica, _ = asked(ONE_AT_A_TIME)
    replica.snapshot(table_of(range(1000)), START)
    assert len(sent_of(Changes, replica.tell([changed(5000)], START))) == 1


def test_a_snapshot_goes_on_one_by_one_while_live_changes_wait() -> None:
    replica, _ = asked(Pace(snapshot_datagrams_per_tick=8, live_datagrams_per_tick=1, tick=0.01))
    replica.snapshot(table_of(range(3000)), START)
    replica.tell([changed(5000 + n) for n in range(1000)], START)
    messages = sent(replica.expire(START + 0.01))
    assert [type(message) for message in messages] == [Changes, SnapshotChunk]


def test_a_caller_that_does_not_answer_is_asked_again() -> None:
    replica, _ = asked()
    later = expire_until(replica, START + PROVIDE_PATIENCE)
    assert later.count(ProvideSnapshot(ALL_BUCKETS)) == 1


# --- what is in it ----------------------------------------------------------------------------


def test_a_record_held_for_the_next_datagram_does_not_revive_an_ended_connection() -> None:
    replica, _ = asked(ONE_AT_A_TIME)
    first = chunks(replica.snapshot(table_of(range(200)), START))
    held = len(first)
    replica.tell([ended(held)], START)
    later = chunks(expire_until(replica, START + 1))
    assert connection(held) not in later
    assert later[0] == connection(held + 1)


def test_a_connection_that_waits_to_be_told_is_left_out_of_the_snapshot() -> None:
    replica = leading(pace=Pace(live_datagrams_per_tick=1))
    replica.tell([changed(0)], START)
    replica.tell([changed(1, 7)], START)
    ask(follower(replica))
    actions = replica.snapshot(table_of(range(3)), START)
    assert chunks(actions) == [connection(0), connection(2)]


def test_an_empty_snapshot_begins_and_ends() -> None:
    replica, _ = asked()
    messages = sent(replica.snapshot(iter(()), START))
    assert [type(message) for message in messages] == [SnapshotBegin, SnapshotEnd]


def test_the_caller_is_asked_for_the_buckets_that_are_wanted() -> None:
    replica, _ = asked(buckets=bits(1, 510))
    (begin, *_) = sent(replica.snapshot(table_of([1]), START))
    assert isinstance(begin, SnapshotBegin)
    assert begin.buckets == bits(1, 510)


def test_a_large_table_is_sent_in_parts_that_together_are_all_that_is_wanted() -> None:
    tally = Tally(1)
    tally.told = 10 * SNAPSHOT_CONNECTIONS
    replica = make_replica(tally=tally)
    replica.start(START)
    replica.lead(START)
    provided = [a for a in ask(follower(replica)) if isinstance(a, ProvideSnapshot)]
    begins: list[int] = []
    now = START
    while provided:
        part = provided.pop().buckets
        assert 0 < part.bit_count() <= BUCKETS // 10
        actions = replica.snapshot(table_of(members(part)), now)
        while replica._source._records is not None:
            now = replica.deadline or now
            actions += replica.expire(now)
        begins += [begin.buckets for begin in sent_of(SnapshotBegin, actions)]
        provided = [a for a in actions if isinstance(a, ProvideSnapshot)]
        if sum(begins) == ALL_BUCKETS:
            break
    assert sum(begins) == ALL_BUCKETS, "each bucket once"
    assert now - START < 0.1, "one part follows the other without a pause"


# --- requests ---------------------------------------------------------------------------------


def test_a_request_made_before_the_beginning_was_seen_is_served_already() -> None:
    replica = leading(pace=ONE_AT_A_TIME)
    replica.tell([changed(1)], START)
    east = follower(replica)
    ask(east, 1)
    replica.snapshot(table_of(range(500)), START)
    assert events(ask(follower(replica, "north"), 1)) == []
    assert replica.counters["snapshot_requests_served"] == 1
    later = expire_until(replica, START + 5)
    assert not [action for action in later if isinstance(action, ProvideSnapshot)]


def test_of_a_request_on_its_way_only_what_was_not_begun_is_served() -> None:
    replica = leading(pace=ONE_AT_A_TIME)
    replica.tell([changed(1)], START)
    east = follower(replica)
    ask(east, 1, bits(1, 2))
    replica.snapshot(table_of([1, 2]), START)
    actions = ask(follower(replica, "north"), 1, bits(2, 3))
    actions += expire_until(replica, START + 1)
    assert ProvideSnapshot(bits(3)) in actions
    assert ProvideSnapshot(bits(2, 3)) not in actions


def test_a_request_made_after_the_beginning_was_seen_is_served_again() -> None:
    replica, east = asked(buckets=bits(1))
    replica.snapshot(table_of([1]), START)
    position = replica._source.sequence
    actions = ask(east, position, bits(1), START + 1)
    assert ProvideSnapshot(bits(1)) in actions + expire_until(replica, START + 2)


def test_requests_of_several_followers_are_served_by_one_snapshot() -> None:
    replica = leading()
    replica.tell([changed(1)], START)
    east, north = follower(replica), follower(replica, "north")
    ask(east, 1, bits(1, 2))
    ask(north, 1, bits(2, 3))
    actions = replica.snapshot(table_of([1, 2]), START)
    provided = [a.buckets for a in actions if isinstance(a, ProvideSnapshot)]
    begins = [begin.buckets for begin in sent_of(SnapshotBegin, actions)]
    later = expire_until(replica, START + 1)
    provided += [a.buckets for a in later if isinstance(a, ProvideSnapshot)]
    assert begins == [bits(1, 2)]
    assert set(provided) == {bits(3)}, "what east asked for as well is not sent twice"


def test_a_request_during_a_snapshot_is_answered_after_it() -> None:
    replica, east = asked(Pace(snapshot_datagrams_per_tick=1, tick=0.1))
    replica.snapshot(table_of(range(400)), START)
    ask(east, replica._source.sequence, now=START + 0.01)
    seen: list[object] = []
    while not seen or not isinstance(seen[-1], ProvideSnapshot):
        assert replica.deadline is not None
        actions = replica.expire(replica.deadline)
        seen += sent_of(SnapshotEnd, actions)
        seen += [action for action in actions if isinstance(action, ProvideSnapshot)]
    assert [type(step) for step in seen] == [SnapshotEnd, ProvideSnapshot]


def test_only_the_leader_that_is_meant_answers_a_request() -> None:
    replica = leading()
    east = follower(replica)
    for request in (
        SnapshotRequest(east.origin(), "north", 77, 0),
        SnapshotRequest(east.origin(), "west", 76, 0),
    ):
        assert events(east.say(request)) == []
    assert replica.counters["requests_refused"] == 1


def test_a_leader_that_resigns_stops_its_snapshot() -> None:
    replica, _ = asked(ONE_AT_A_TIME)
    replica.snapshot(table_of(range(1000)), START)
    replica.follow(START)
    later = expire_until(replica, START + 1)
    assert chunks(later) == []
    assert sent_of(SnapshotEnd, later) == []
    assert replica.snapshot(table_of(range(10)), START) == []


def test_a_follower_of_version_0_1_0_is_sent_everything() -> None:
    replica = leading()
    east = East(replica, level=LEVEL_PLAIN)
    east.role = Role.FOLLOW
    east.heartbeat(leader="west")
    assert ProvideSnapshot(ALL_BUCKETS) in ask(east, buckets=bits(1))


# --- the window -------------------------------------------------------------------------------


def numbers_after(actions: Iterable[Action]) -> int:
    return max((message.origin.sequence for message in sent(actions)), default=0)


def test_a_snapshot_is_at_most_a_window_ahead_of_the_slowest_listener() -> None:
    replica, east = asked(Pace(window=10, snapshot_datagrams_per_tick=100))
    north = follower(replica, "north")
    ask(north)
    actions = replica.snapshot(table_of(range(20_000)), START)
    assert numbers_after(actions) == 10, "the beginning, and what is left of the window"
    assert sent(expire_until(replica, START + 0.02)) == []
    told = east.say(Progress(east.origin(), "west", 77, 10), START + 0.02)
    assert sent(told) == [], "the other is still behind"
    told = north.say(Progress(north.origin(), "west", 77, 4), START + 0.02)
    told += expire_until(replica, START + 0.03)
    assert numbers_after(told) == 14


def test_a_window_that_stays_shut_lets_one_ticks_share_through() -> None:
    replica, _ = asked(Pace(window=10, snapshot_datagrams_per_tick=5))
    replica.snapshot(table_of(range(20_000)), START)
    expire_until(replica, START + 0.05)
    before = replica._source.sequence
    assert before == 10
    actions = expire_until(replica, START + WINDOW_STALL + 0.02)
    assert len(sent_of(SnapshotChunk, actions)) == 5
    assert replica.counters["window_stalls"] == 1


def test_a_window_that_stays_shut_lets_one_through_while_live_changes_wait() -> None:
    replica, _ = asked(Pace(window=10, live_datagrams_per_tick=1, snapshot_datagrams_per_tick=5))
    replica.snapshot(table_of(range(20_000)), START)
    now, actions = START, []
    while now < START + WINDOW_STALL + 0.02:
        replica.tell([changed(30_000 + n) for n in range(500)], now)
        actions += replica.expire(now)
        if now < START + WINDOW_STALL:
            actions.clear()
        now += 0.001
    assert replica._source.queued
    assert len(sent_of(SnapshotChunk, actions)) == 1


def test_a_listener_that_has_all_does_not_hold_a_snapshot_up() -> None:
    replica, east = asked(Pace(window=10, snapshot_datagrams_per_tick=100))
    north = follower(replica, "north")
    north.say(Progress(north.origin(), "west", 77, 0))
    north.heartbeat(leader="west", state=PeerState.REPLICATE)
    replica.snapshot(table_of(range(20_000)), START)
    east.say(Progress(east.origin(), "west", 77, 10), START + 0.01)
    expire_until(replica, START + 0.02)
    assert replica._source.sequence == 20


def test_a_listener_that_tells_no_progress_does_not_hold_a_snapshot_up_for_long() -> None:
    replica, east = asked(Pace(window=10, snapshot_datagrams_per_tick=2))
    ask(follower(replica, "north"))
    replica.snapshot(table_of(range(20_000)), START)

    def go_on(until: float) -> int:
        """East tells its progress every 2 ms; how many chunks it was sent."""
        before = replica._source.sequence
        while now[0] < until:
            now[0] += 0.002
            east.say(Progress(east.origin(), "west", 77, replica._source.sequence), now[0])
            expire_until(replica, now[0])
        return replica._source.sequence - before

    now = [START]
    assert go_on(START + PROGRESS_PATIENCE - 0.01) <= 10 + 2 * 2
    assert go_on(START + PROGRESS_PATIENCE) <= 2
    assert go_on(START + PROGRESS_PATIENCE + 0.1) == 2 * 50


def test_one_that_dies_in_the_middle_of_a_snapshot_does_not_slow_another_for_long() -> None:
    group = Group()
    pace = Pace(tick=0.01, snapshot_datagrams_per_tick=1, window=4)
    west = group.join("west", table_of(range(SNAPSHOT_CONNECTIONS)), pace=pace)
    east, _ = group.join("east"), group.join("north")
    group.lead(west)
    group.run(0.1)
    del group.members["north"]
    died = group.now
    group.run(0.7)

    def rate(since: float, until: float) -> float:
        times = [at for at, message in group.said if isinstance(message, SnapshotChunk)]
        return sum(died + since <= at < died + until for at in times) / (until - since)

    full = 1 / pace.tick
    assert rate(-0.08, 0) == pytest.approx(full, rel=0.2)
    assert rate(0.05, PROGRESS_PATIENCE - 0.03) < 0.2 * full
    assert rate(PROGRESS_PATIENCE + 0.02, PROGRESS_PATIENCE + 0.32) == pytest.approx(full, rel=0.1)
    assert peers(west.replica, "north")[0]["silent"] is False
    group.run(0.5)
    assert east.table.content == west.table.content
    assert east.replica.complete


def test_progress_beyond_what_was_sent_counts_as_what_was_sent() -> None:
    replica, east = asked(Pace(window=10, snapshot_datagrams_per_tick=100))
    replica.snapshot(table_of(range(20_000)), START)
    east.say(Progress(east.origin(), "west", 77, 2**64 - 1), START + 0.01)
    expire_until(replica, START + 0.02)
    assert replica._source.sequence == 20


@pytest.mark.parametrize("count", [0, 1, 511, 5000])
def test_the_buckets_of_a_table_are_those_that_its_followers_compute(count: int) -> None:
    for number in range(count):
        assert bucket_of(connection(number).key) == number % 256
