from collections.abc import Iterable, Iterator, Sequence

import pytest

from lvsha.model import ConnectionChanged, ConnectionEnded, ConnectionRecord, ForwardMethod
from lvsha.sync.configuration import NAMES_MAX
from lvsha.sync.copy import (
    ALARM_INTERVAL,
    DRAIN,
    OVERLAP,
    PEER_FORGOTTEN,
    PEERS_MAX,
    REQUEST_INTERVAL,
    SNAPSHOT_STALL,
    silence_limit,
)
from lvsha.sync.messages import (
    Heartbeat,
    Message,
    Origin,
    Records,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    decode,
    encode,
)
from lvsha.sync.replica import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    ConfigurationAgrees,
    ConfigurationDiffers,
    EndSnapshot,
    Forget,
    Pace,
    PeerChanged,
    PeerState,
    ProvideSnapshot,
    Refused,
    Replica,
    Role,
    Send,
)
from lvsha.sync.source import SNAPSHOT_PAUSE_MIN
from lvsha.sync.stream import REORDER_WAIT

HEARTBEAT = 0.5
SILENCE = silence_limit(HEARTBEAT)
DIGEST = bytes(16)
START = 100.0


def make_replica(
    node: str = "west",
    *,
    sync_id: int = 1,
    epoch: int = 77,
    digest: bytes = DIGEST,
    digests: dict[str, bytes] | None = None,
    datagram_max: int = 1400,
    pace: Pace | None = None,
) -> Replica:
    return Replica(
        sync_id=sync_id,
        node=node,
        epoch=epoch,
        configuration_digest=digest,
        digests=digests or {},
        heartbeat_interval=HEARTBEAT,
        datagram_max=datagram_max,
        pace=pace,
    )


def started(node: str = "west", pace: Pace | None = None, epoch: int = 77) -> Replica:
    replica = make_replica(node, pace=pace, epoch=epoch)
    replica.start(START)
    return replica


def leading(pace: Pace | None = None) -> Replica:
    replica = started(pace=pace)
    replica.lead(START)
    return replica


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


def changed(number: int, state: int = 1) -> ConnectionChanged:
    return ConnectionChanged(connection(number, state))


def ended(number: int) -> ConnectionEnded:
    record = connection(number)
    return ConnectionEnded(record.key)


def sent(actions: Iterable[Action]) -> list[Message]:
    return [decode(action.datagram) for action in actions if isinstance(action, Send)]


def sent_records(actions: Iterable[Action]) -> list[Records]:
    return [message for message in sent(actions) if isinstance(message, Records)]


def requests(actions: Iterable[Action]) -> list[SnapshotRequest]:
    return [message for message in sent(actions) if isinstance(message, SnapshotRequest)]


def events(actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Send)]


def expire_until(replica: Replica, until: float) -> list[Action]:
    """Call `expire` at each deadline, as a shell does."""
    actions: list[Action] = []
    while (deadline := replica.deadline) is not None and deadline <= until:
        actions += replica.expire(deadline)
    return actions


class East:
    """A scripted leader that speaks to the replica under test."""

    def __init__(self, replica: Replica, epoch: int = 5, node: str = "east") -> None:
        self.replica = replica
        self.node = node
        self.epoch = epoch
        self.role = Role.LEAD
        self.term = 1
        self.sequence = 0
        self.sync_id = 1

    def origin(self) -> Origin:
        return Origin(self.sync_id, self.node, self.epoch, self.role, self.term, self.sequence)

    def numbered(self, sequence: int | None) -> Origin:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        return self.origin()

    def say(self, message: Message, now: float = START) -> list[Action]:
        return self.replica.receive(encode(message), now)

    def heartbeat(self, now: float = START, digest: bytes = DIGEST) -> list[Action]:
        message = Heartbeat(self.origin(), 0, digest, "", PeerState.PROBE, 0, True)
        return self.say(message, now)

    def records(
        self, *entries: ConnectionRecord | bytes, now: float = START, sequence: int | None = None
    ) -> list[Action]:
        return self.say(Records(self.numbered(sequence), entries), now)

    def begin(self, now: float = START, sequence: int | None = None) -> list[Action]:
        return self.say(SnapshotBegin(self.numbered(sequence)), now)

    def chunk(
        self,
        begin: int,
        *records: ConnectionRecord,
        now: float = START,
        sequence: int | None = None,
    ) -> list[Action]:
        return self.say(SnapshotChunk(self.numbered(sequence), begin, records), now)

    def end(
        self, begin: int, count: int, now: float = START, sequence: int | None = None
    ) -> list[Action]:
        return self.say(SnapshotEnd(self.numbered(sequence), begin, count), now)

    def whole_snapshot(self, *records: ConnectionRecord, now: float = START) -> list[Action]:
        actions = self.begin(now)
        begin = self.sequence
        actions += self.chunk(begin, *records, now=now)
        return actions + self.end(begin, len(records), now)

    def state(self) -> object:
        (peer,) = peers(self.replica, self.node)
        return peer["state"]


def peers(replica: Replica, node: str, now: float = START) -> list[dict[str, object]]:
    listed = replica.status(now)["peers"]
    assert isinstance(listed, list)
    return [peer for peer in listed if peer["node"] == node]


def replicating(replica: Replica | None = None) -> East:
    east = East(replica or started())
    east.heartbeat()
    east.whole_snapshot()
    assert east.state() == "REPLICATE"
    return east


# --- start, roles, completeness ---------------------------------------------------------


def test_start_says_that_the_node_follows() -> None:
    (message,) = sent(make_replica().start(START))
    assert isinstance(message, Heartbeat)
    assert message.origin == Origin(1, "west", 77, Role.FOLLOW, 0, 0)


def test_nothing_happens_before_the_start_and_after_the_stop() -> None:
    replica = make_replica()
    assert replica.deadline is None
    assert replica.receive(b"x", START) == replica.expire(START) == replica.lead(START) == []
    replica.start(START)
    replica.stop(START)
    assert replica.deadline is None
    assert replica.receive(b"x", START) == replica.tell([changed(1)], START) == []


def test_heartbeats_are_sent_at_their_interval_and_carry_the_count() -> None:
    replica = started()
    replica.connections = 12
    assert replica.deadline == START + HEARTBEAT
    (message,) = sent(replica.expire(START + HEARTBEAT))
    assert isinstance(message, Heartbeat)
    assert message.connections == 12
    assert replica.deadline == START + 2 * HEARTBEAT


def test_a_copy_is_complete_when_nobody_leads_for_the_listening_time() -> None:
    replica = started()
    expire_until(replica, START + SILENCE - 0.001)
    assert not replica.complete
    expire_until(replica, START + SILENCE)
    assert replica.complete


def test_a_leader_is_complete_at_once() -> None:
    assert leading().complete


def test_a_copy_is_complete_only_after_the_whole_snapshot_of_a_leader() -> None:
    replica = started()
    east = East(replica)
    actions = east.heartbeat()
    assert [request.leader for request in requests(actions)] == ["east"]
    east.begin()
    begin = east.sequence
    east.chunk(begin, connection(1))
    expire_until(replica, START + 1)
    assert not replica.complete
    east.end(begin, 1, now=START + 1)
    assert replica.complete


def test_a_leader_that_falls_silent_makes_a_copy_incomplete_until_it_is_heard_again() -> None:
    east = replicating()
    actions = expire_until(east.replica, START + SILENCE)
    assert PeerChanged("east", PeerState.REPLICATE, "silent") in actions
    assert not east.replica.complete
    expire_until(east.replica, START + 100)
    assert not east.replica.complete
    east.heartbeat(START + 100)
    assert east.replica.complete


def test_a_leader_that_resigned_and_fell_silent_leaves_a_complete_copy() -> None:
    east = replicating()
    east.role = Role.FOLLOW
    east.heartbeat()
    expire_until(east.replica, START + 10)
    assert east.replica.complete


def test_a_leader_that_resigns_before_its_snapshot_is_not_waited_for() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.role = Role.FOLLOW
    east.heartbeat()
    assert not replica.complete
    expire_until(replica, START + SILENCE)
    assert replica.complete


def test_resync_asks_for_a_snapshot_and_makes_the_copy_incomplete() -> None:
    east = replicating()
    later = START + REQUEST_INTERVAL
    actions = east.replica.resync(later)
    assert len(requests(actions)) == 1
    assert not east.replica.complete
    east.whole_snapshot(now=later)
    assert east.replica.complete


def test_resync_without_a_leader_listens_again() -> None:
    replica = started()
    expire_until(replica, START + SILENCE)
    replica.resync(START + SILENCE)
    assert not replica.complete
    expire_until(replica, START + 2 * SILENCE)
    assert replica.complete


def test_roles_and_terms_advance_so_that_late_datagrams_show() -> None:
    replica = started()
    lead, follow = replica.lead(START), replica.follow(START + 1)
    drained = expire_until(replica, START + 1 + DRAIN)
    again = replica.lead(START + 5)
    origins = [message.origin for message in sent(lead + follow + drained + again)]
    seen = [(origin.term, origin.role) for origin in origins]
    assert seen == sorted(seen)
    assert seen[0] == (1, Role.LEAD)
    assert (1, Role.DRAIN) in seen
    assert (1, Role.FOLLOW) in seen
    assert seen[-1] == (2, Role.LEAD)


def test_a_new_leader_takes_a_term_above_all_it_has_heard() -> None:
    replica = started()
    east = East(replica)
    east.term = 41
    east.heartbeat()
    (message,) = sent(replica.lead(START))
    assert message.origin.term == 42


def test_stop_tells_what_is_queued_and_that_the_node_leads_no_longer() -> None:
    replica = leading(Pace(live_datagrams_per_tick=1))
    replica.tell([changed(1)], START)
    assert sent_records(replica.tell([changed(2)], START)) == []
    records, heartbeat = sent(replica.stop(START))
    assert isinstance(records, Records)
    assert records.entries == (connection(2),)
    assert heartbeat.origin.role is Role.FOLLOW


# --- telling ------------------------------------------------------------------------------


def test_a_change_leaves_at_once_when_nothing_waits() -> None:
    (message,) = sent(leading().tell([changed(1), ended(2)], START))
    assert isinstance(message, Records)
    assert message.entries == (connection(1), connection(2).key)
    assert message.origin.sequence == 1


def test_a_follower_tells_nothing() -> None:
    assert started().tell([changed(1)], START) == []


def test_a_node_that_stopped_to_lead_still_tells_for_a_while() -> None:
    replica = leading()
    replica.follow(START)
    (message,) = sent_records(replica.tell([changed(1)], START + DRAIN - 0.1))
    assert message.origin.role is Role.DRAIN
    expire_until(replica, START + DRAIN)
    assert replica.tell([changed(2)], START + DRAIN) == []


def test_what_waits_is_one_entry_for_each_connection_with_its_newest_state() -> None:
    replica = leading(Pace(live_datagrams_per_tick=1, tick=0.01))
    replica.tell([changed(0)], START)
    assert replica.tell([changed(1, 1), changed(2, 1), changed(1, 5)], START) == []
    assert replica.tell([ended(2)], START) == []
    assert replica.deadline == START + 0.01
    (message,) = sent_records(replica.expire(START + 0.01))
    assert message.entries == (connection(1, 5), connection(2).key)


def test_the_lag_of_what_waits_is_shown() -> None:
    replica = leading(Pace(live_datagrams_per_tick=1))
    replica.tell([changed(0)], START)
    replica.tell([changed(1, 1)], START + 0.001)
    replica.tell([changed(1, 2)], START + 0.002)
    lag = replica.status(START + 0.004)["lag"]
    assert lag == {"changes_queued": 1, "oldest_ms": pytest.approx(3.0)}


def test_many_changes_leave_in_full_datagrams_at_the_stated_pace() -> None:
    replica = leading(Pace(live_datagrams_per_tick=2, tick=0.01))
    first = sent(replica.tell([changed(number) for number in range(200)], START))
    second = sent_records(replica.expire(START + 0.01))
    assert len(first) == len(second) == 2
    for message in first:
        assert 1300 < len(encode(message)) <= 1400


def test_a_full_queue_makes_followers_notice_a_gap() -> None:
    replica = leading(Pace(queue_max=2, live_datagrams_per_tick=1))
    (first,) = sent(replica.tell([changed(0)], START))
    replica.tell([changed(number) for number in range(1, 6)], START)
    (second,) = sent_records(replica.expire(START + 1))
    assert second.origin.sequence == first.origin.sequence + 2
    assert replica.counters["queue_overflow"] == 3
    (third,) = sent_records(replica.tell([changed(9)], START + 2))
    assert third.origin.sequence == second.origin.sequence + 1


# --- snapshots, the sending side -------------------------------------------------------------


def ask(replica: Replica, position: int, now: float, node: str = "east") -> list[Action]:
    origin = Origin(1, node, 5, Role.FOLLOW, 0, 0)
    request = SnapshotRequest(origin, replica.node, replica.epoch, position)
    return replica.receive(encode(request), now)


def table_of(numbers: Iterable[int]) -> Iterator[ConnectionRecord]:
    return (connection(number) for number in numbers)


def test_a_request_is_answered_by_a_paced_snapshot() -> None:
    replica = leading(Pace(snapshot_datagrams_per_tick=2, tick=0.01))
    assert ProvideSnapshot() in ask(replica, 0, START)
    messages = sent(replica.snapshot(table_of(range(200)), START))
    assert [type(message) for message in messages] == [
        SnapshotBegin,
        SnapshotChunk,
        SnapshotChunk,
    ]
    later = sent(expire_until(replica, START + 0.05))
    messages += [message for message in later if not isinstance(message, Heartbeat)]
    end = messages[-1]
    assert isinstance(end, SnapshotEnd)
    assert (end.begin, end.records) == (messages[0].origin.sequence, 200)
    chunks = [message for message in messages if isinstance(message, SnapshotChunk)]
    told = [record for chunk in chunks for record in chunk.records]
    assert told == [connection(number) for number in range(200)]
    numbers = [message.origin.sequence for message in messages]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_snapshot_is_read_only_as_it_is_sent() -> None:
    replica = leading(Pace(snapshot_datagrams_per_tick=1))
    read: list[int] = []

    def table() -> Iterator[ConnectionRecord]:
        for number in range(1000):
            read.append(number)
            yield connection(number)

    ask(replica, 0, START)
    replica.snapshot(table(), START)
    assert len(read) < 60


def test_live_changes_are_not_delayed_by_a_snapshot() -> None:
    replica = leading(Pace(snapshot_datagrams_per_tick=1))
    ask(replica, 0, START)
    replica.snapshot(table_of(range(1000)), START)
    assert len(sent_records(replica.tell([changed(5000)], START))) == 1


def test_a_record_held_for_the_next_datagram_does_not_revive_an_ended_connection() -> None:
    replica = leading(Pace(snapshot_datagrams_per_tick=1))
    ask(replica, 0, START)
    messages = sent(replica.snapshot(table_of(range(100)), START))
    first = messages[-1]
    assert isinstance(first, SnapshotChunk)
    held = len(first.records)
    replica.tell([ended(held)], START)
    later = sent(expire_until(replica, START + 1))
    keys = [r.key for m in later if isinstance(m, SnapshotChunk) for r in m.records]
    assert connection(held).key not in keys
    assert connection(held + 1).key in keys


def test_a_connection_that_waits_to_be_told_is_left_out_of_the_snapshot() -> None:
    replica = leading(Pace(live_datagrams_per_tick=1))
    replica.tell([changed(0)], START)
    replica.tell([changed(1, 7)], START)
    ask(replica, 0, START)
    messages = sent(replica.snapshot(table_of(range(3)), START))
    (chunk,) = [message for message in messages if isinstance(message, SnapshotChunk)]
    assert chunk.records == (connection(0), connection(2))


def test_a_request_made_before_the_beginning_was_seen_starts_no_second_snapshot() -> None:
    replica = leading(Pace(snapshot_datagrams_per_tick=1))
    replica.tell([changed(1)], START)
    ask(replica, 1, START)
    replica.snapshot(table_of(range(500)), START)
    assert events(ask(replica, 1, START, "north"))[1:] == []
    assert ProvideSnapshot() not in expire_until(replica, START + 5)


def test_a_request_during_a_snapshot_is_answered_after_a_pause_as_long_as_it_took() -> None:
    replica = leading(Pace(snapshot_datagrams_per_tick=1, tick=0.1))
    ask(replica, 0, START)
    replica.snapshot(table_of(range(200)), START)
    ask(replica, 3, START + 0.01)
    ends: list[float] = []
    provided: list[float] = []
    while not provided:
        deadline = replica.deadline
        assert deadline is not None
        actions = replica.expire(deadline)
        ends += [deadline for message in sent(actions) if isinstance(message, SnapshotEnd)]
        provided += [deadline for action in actions if isinstance(action, ProvideSnapshot)]
    (end,) = ends
    assert end - START > SNAPSHOT_PAUSE_MIN
    assert provided[0] - end == pytest.approx(end - START)


def test_only_the_leader_that_is_meant_answers_a_request() -> None:
    replica = leading()
    origin = Origin(1, "east", 5, Role.FOLLOW, 0, 0)
    for request in (
        SnapshotRequest(origin, "north", 77, 0),
        SnapshotRequest(origin, "west", 76, 0),
    ):
        assert ProvideSnapshot() not in replica.receive(encode(request), START)
    follower = started()
    assert ProvideSnapshot() not in ask(follower, 0, START)


# --- snapshots, the receiving side ------------------------------------------------------------


def test_a_snapshot_is_marked_applied_and_swept_in_order() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    actions = events(east.whole_snapshot(connection(1), connection(2)))
    assert actions == [
        BeginSnapshot(1),
        PeerChanged("east", PeerState.SNAPSHOT, "a snapshot began"),
        Apply(connection(1)),
        Apply(connection(2)),
        EndSnapshot(1),
        PeerChanged("east", PeerState.REPLICATE, "the snapshot is complete"),
    ]


def test_requests_are_repeated_at_a_limited_rate() -> None:
    replica = started()
    East(replica).heartbeat()
    actions = expire_until(replica, START + 1)
    assert len(requests(actions)) == int(1 / REQUEST_INTERVAL)


def test_a_lost_part_of_a_snapshot_is_noticed_and_all_is_asked_for_again() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.begin()
    begin = east.sequence
    east.sequence += 1
    actions = east.end(begin, 1)
    assert EndSnapshot(1) not in actions
    actions = expire_until(replica, START + REQUEST_INTERVAL)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert len(requests(actions)) == 1
    assert not replica.complete


def test_a_snapshot_with_another_count_than_its_end_says_is_asked_for_again() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.begin()
    begin = east.sequence
    east.chunk(begin, connection(1))
    actions = east.end(begin, 2)
    assert EndSnapshot(1) not in actions
    assert east.state() == "PROBE"


def test_a_part_that_comes_after_the_end_still_counts() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.begin(sequence=1)
    assert EndSnapshot(1) not in east.end(1, 1, sequence=3)
    actions = east.chunk(1, connection(1), sequence=2)
    assert Apply(connection(1)) in actions
    assert EndSnapshot(1) in actions


def test_a_beginning_that_comes_late_is_not_used() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    # Told after the beginning, but used before it: it would not be marked.
    east.records(connection(1), sequence=2)
    assert BeginSnapshot(1) not in east.begin(sequence=1)


def test_what_was_missing_before_the_beginning_is_given_up() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.begin(sequence=3)
    assert events(east.records(connection(1), sequence=1)) == []
    assert EndSnapshot(1) in east.end(3, 0, sequence=4)


def test_a_snapshot_that_stops_to_advance_is_asked_for_again() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.begin()
    actions: list[Action] = []
    now = START
    while now < START + SNAPSHOT_STALL:
        actions += expire_until(replica, now)
        now += HEARTBEAT
        east.heartbeat(now)
    actions += expire_until(replica, START + SNAPSHOT_STALL)
    assert PeerChanged("east", PeerState.PROBE, "the snapshot does not advance") in actions


def test_a_snapshot_for_another_node_is_not_applied_again() -> None:
    east = replicating()
    assert events(east.whole_snapshot(connection(1))) == []
    assert east.replica.complete


# --- order ------------------------------------------------------------------------------------


def test_live_changes_are_applied_in_their_order() -> None:
    east = replicating()
    actions = events(east.records(connection(1), connection(2).key))
    assert actions == [Apply(connection(1)), Forget(connection(2).key)]


def test_a_datagram_that_comes_twice_is_used_once() -> None:
    east = replicating()
    east.records(connection(1), sequence=10)
    assert events(east.records(connection(1), sequence=10)) == []


def test_a_record_that_comes_after_a_later_delete_does_not_revive_the_connection() -> None:
    east = replicating()
    first = east.sequence + 1
    assert events(east.records(connection(1).key, sequence=first + 1)) == [
        Forget(connection(1).key)
    ]
    actions = events(east.records(connection(1), connection(2), sequence=first))
    assert actions == [Apply(connection(2))]


def test_a_datagram_that_only_came_late_costs_nothing() -> None:
    east = replicating()
    first = east.sequence + 1
    east.records(connection(2), sequence=first + 1)
    east.records(connection(1), sequence=first)
    expire_until(east.replica, START + REORDER_WAIT)
    assert east.state() == "REPLICATE"


def test_a_gap_in_the_live_stream_leads_to_a_new_snapshot() -> None:
    east = replicating()
    later = START + REQUEST_INTERVAL
    east.records(connection(1), sequence=east.sequence + 2, now=later)
    assert not east.replica.complete
    actions = expire_until(east.replica, later + REORDER_WAIT)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert len(requests(actions)) == 1
    assert east.replica.counters["datagrams_lost"] == 1


def test_a_heartbeat_reveals_that_the_last_datagram_was_lost() -> None:
    east = replicating()
    east.sequence += 1
    east.heartbeat()
    expire_until(east.replica, START + REORDER_WAIT)
    assert east.state() == "PROBE"


def test_a_jump_too_far_to_remember_counts_as_lost_at_once() -> None:
    east = replicating()
    east.records(connection(1), sequence=10**15)
    assert east.state() == "PROBE"


def test_a_false_number_does_not_shut_out_the_true_ones_for_ever() -> None:
    east = replicating()
    true_sequence = east.sequence
    east.records(sequence=2**64 - 1)
    east.sequence = true_sequence
    later = START + REQUEST_INTERVAL
    assert len(requests(east.heartbeat(later))) == 1
    east.whole_snapshot(connection(1), now=later)
    assert east.replica.complete


def test_a_false_term_does_not_leave_the_next_leader_without_one() -> None:
    replica = started()
    east = East(replica)
    east.term = 2**32 - 1
    assert east.heartbeat() == []
    assert replica.counters["refused_term"] == 1
    (message,) = sent(replica.lead(START))
    assert message.origin.term == 1


def test_a_connection_that_changes_while_much_is_missing_does_not_grow_the_memory() -> None:
    east = replicating()
    stream = east.replica._home.peers["east"].stream
    stream._touched_max = 100
    first = east.sequence + 1
    for number in range(300):
        east.records(connection(number), sequence=first + 1 + number)
    assert len(stream._touched) <= 101
    assert east.state() == "PROBE"


# --- peers ------------------------------------------------------------------------------------


def test_a_restarted_leader_is_followed_anew_and_its_old_epoch_refused() -> None:
    east = replicating()
    successor = East(east.replica, epoch=6)
    successor.term = 2
    later = START + REQUEST_INTERVAL
    actions = successor.heartbeat(later)
    assert PeerChanged("east", PeerState.PROBE, "restarted") in actions
    assert len(requests(actions)) == 1
    assert events(east.records(connection(1), now=later)) == []
    assert east.replica.counters["refused_old_epoch"] == 1


def test_an_old_epoch_that_goes_on_when_its_successor_is_silent_is_heard_again() -> None:
    # A datagram of a dead process that came late must not shut out the living one.
    replica = started()
    living = East(replica, epoch=6)
    living.heartbeat()
    East(replica, epoch=5).heartbeat()
    assert events(living.heartbeat()) == []
    expire_until(replica, START + SILENCE)
    living.heartbeat(START + SILENCE)
    assert peers(replica, "east", START + SILENCE)[0]["epoch"] == 6


def test_a_restarted_leader_that_does_not_lead_is_not_followed() -> None:
    east = replicating()
    successor = East(east.replica, epoch=6)
    successor.role, successor.term = Role.FOLLOW, 0
    successor.heartbeat()
    assert east.replica.status(START)["leader"] is None


def test_own_datagrams_are_ignored() -> None:
    replica = make_replica()
    (own,) = [action for action in replica.start(START) if isinstance(action, Send)]
    assert replica.receive(own.datagram, START) == []
    assert replica.counters["own_datagrams"] == 1
    assert replica.status(START)["peers"] == []


def test_another_node_with_the_own_name_is_an_alarm_at_a_limited_rate() -> None:
    replica = started()
    twin = East(replica, node="west")
    assert twin.heartbeat() == [Alarm("duplicate_node", "west")]
    assert twin.heartbeat() == []
    assert twin.heartbeat(START + ALARM_INTERVAL) == [Alarm("duplicate_node", "west")]


def test_a_datagram_of_another_sync_id_is_refused() -> None:
    east = East(started())
    east.sync_id = 2
    assert east.heartbeat() == []
    assert east.replica.counters["refused_sync_id"] == 1


def test_what_cannot_be_understood_is_refused_and_changes_nothing() -> None:
    east = replicating()
    before = east.replica.status(START)
    (refused,) = east.replica.receive(b"\x01\x01\xff\xff\xc1", START)
    assert isinstance(refused, Refused)
    after = east.replica.status(START)
    del before["counters"], after["counters"]
    assert before == after


def test_a_replica_with_id_0_copies_every_id_and_asks_under_the_id_it_heard() -> None:
    replica = make_replica(sync_id=0)
    replica.start(START)
    five, six = East(replica), East(replica, node="north")
    five.sync_id, six.sync_id = 5, 6
    (request,) = requests(five.heartbeat())
    assert request.origin == Origin(5, "west", 77, Role.FOLLOW, 0, 0)
    six.heartbeat()
    assert BeginSnapshot(5) in five.whole_snapshot(connection(1))
    expire_until(replica, START + SILENCE - 0.1)
    assert not replica.complete
    six.whole_snapshot(connection(2), now=START + SILENCE - 0.1)
    five.heartbeat(START + SILENCE - 0.1)
    expire_until(replica, START + SILENCE)
    assert replica.counters["second_leader_datagrams"] == 0
    assert replica.complete


def test_the_newest_leader_is_followed() -> None:
    east = replicating()
    north = East(east.replica, node="north")
    north.term = 2
    later = START + REQUEST_INTERVAL
    actions = north.heartbeat(later)
    assert PeerChanged("north", PeerState.PROBE, "leads") in actions
    assert requests(actions)[0].leader == "north"
    assert events(east.records(connection(1), now=later)) == []
    assert Apply(connection(2)) in north.records(connection(2), now=later)


def test_a_leader_that_leads_again_is_asked_for_a_snapshot() -> None:
    east = replicating()
    east.role = Role.DRAIN
    east.heartbeat()
    east.role, east.term = Role.LEAD, 2
    later = START + REQUEST_INTERVAL
    actions = east.heartbeat(later)
    assert len(requests(actions)) == 1
    assert not east.replica.complete


def test_a_draining_leader_is_followed_until_another_leads() -> None:
    east = replicating()
    east.role = Role.DRAIN
    assert Apply(connection(1)) in east.records(connection(1))
    assert east.replica.complete


def test_two_leaders_are_an_alarm_when_they_last() -> None:
    replica = leading()
    east = East(replica)
    assert Alarm("second_leader", "east") not in east.heartbeat()
    assert Alarm("second_leader", "east") in east.heartbeat(START + HEARTBEAT)
    assert Alarm("second_leader", "east") not in east.heartbeat(START + 2 * HEARTBEAT)
    assert replica.counters["second_leader_datagrams"] == 3


def test_a_follower_sees_two_leaders_as_well() -> None:
    east = replicating()
    north = East(east.replica, node="north")
    north.term = 9
    alarms: list[Action] = []
    for step in range(3):
        now = START + step * HEARTBEAT
        alarms += [
            action
            for action in north.heartbeat(now) + east.heartbeat(now)
            if isinstance(action, Alarm)
        ]
    assert alarms == [Alarm("second_leader", "east")]


def test_a_role_that_comes_late_is_not_believed() -> None:
    east = replicating()
    east.role = Role.FOLLOW
    east.heartbeat()
    east.role = Role.LEAD
    east.heartbeat()
    assert peers(east.replica, "east")[0]["role"] == "FOLLOW"


def test_a_new_leader_takes_what_the_old_one_still_tells_and_tells_it_on() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.DRAIN
    actions = east.records(connection(1), connection(2).key)
    assert Apply(connection(1)) in actions
    assert Forget(connection(2).key) not in actions
    (told,) = sent_records(actions)
    assert told.entries == (connection(1),)


def test_a_new_leader_does_not_take_back_what_it_has_told_of_itself() -> None:
    east = replicating()
    east.replica.lead(START)
    east.replica.tell([changed(1, 5), ended(2)], START)
    east.role = Role.DRAIN
    assert events(east.records(connection(1, 1), connection(2, 1))) == []


def test_a_leader_takes_nothing_after_the_overlap() -> None:
    east = replicating()
    east.replica.lead(START)
    actions = east.records(connection(1), now=START + OVERLAP)
    assert Apply(connection(1)) not in actions
    assert east.replica.counters["refused_while_leading"] == 1


def test_a_draining_node_asks_for_a_snapshot_only_when_it_has_drained() -> None:
    replica = leading()
    replica.follow(START)
    east = East(replica)
    east.term = 2
    assert requests(east.heartbeat()) == []
    assert events(east.begin()) == []
    actions: list[Action] = []
    for step in range(1, 5):
        actions += expire_until(replica, START + step * HEARTBEAT - 0.001)
        east.heartbeat(START + step * HEARTBEAT - 0.001)
    assert requests(actions) == []
    actions = expire_until(replica, START + DRAIN)
    assert len(requests(actions)) == 1


def test_a_leader_shows_what_its_followers_report() -> None:
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    message = Heartbeat(east.origin(), 9, DIGEST, "west", PeerState.REPLICATE, 3, True)
    assert PeerChanged("east", PeerState.REPLICATE, "reported by the peer") in east.say(message)
    (peer,) = peers(replica, "east")
    assert (peer["connections"], peer["position"], peer["complete"]) == (9, 3, True)


def test_a_change_of_state_is_reported_before_the_next_heartbeat_is_due() -> None:
    replica = started()
    expire_until(replica, START + 0.1)
    east = East(replica)
    east.heartbeat(START + 0.1)
    assert replica.deadline is not None
    assert replica.deadline < START + 0.2


def test_more_peers_than_there_is_room_for_are_refused_until_one_is_forgotten() -> None:
    replica = started()
    for number in range(PEERS_MAX + 1):
        east = East(replica, node=f"node-{number}")
        east.role = Role.FOLLOW
        east.heartbeat()
    assert replica.counters["refused_too_many_peers"] == 1
    late = East(replica, node="late")
    late.heartbeat(START + PEER_FORGOTTEN)
    assert len(peers(replica, "late")) == 1


# --- configuration ------------------------------------------------------------------------------


def exchange(ours: Replica, theirs: Replica, until: float) -> list[Action]:
    """Let two replicas talk; what ours reports."""
    seen: list[Action] = []
    now = START
    while now < until:
        for speaker, hearer in ((ours, theirs), (theirs, ours)):
            for action in speaker.expire(now):
                if isinstance(action, Send):
                    actions = hearer.receive(action.datagram, now)
                    seen += actions if hearer is ours else []
        now += HEARTBEAT
    return seen


def differences(actions: Sequence[Action]) -> list[ConfigurationDiffers]:
    return [action for action in actions if isinstance(action, ConfigurationDiffers)]


def test_a_difference_of_configuration_is_named() -> None:
    same = {"sync": b"1", "nodes.east": b"2"}
    ours = make_replica(digests=same | {"services.web": b"3", "services.dns": b"4"})
    theirs = make_replica(
        "east", digest=b"x" * 16, digests=same | {"services.web": b"5", "limits": b"6"}
    )
    ours.start(START)
    theirs.start(START)
    seen = differences(exchange(ours, theirs, START + 5))
    assert seen == [
        ConfigurationDiffers("east", ()),
        ConfigurationDiffers("east", ("limits", "services.dns", "services.web")),
    ]


def test_a_long_description_takes_several_datagrams_and_many_names_are_counted() -> None:
    ours = make_replica(digests={f"services.a{number}": b"1" * 16 for number in range(500)})
    theirs = make_replica("east", digest=b"x" * 16, digests={"sync": b"1" * 16})
    ours.start(START)
    theirs.start(START)
    unknown, known = differences(exchange(theirs, ours, START + 5))
    assert unknown.names == ()
    names = known.names
    assert len(names) == NAMES_MAX
    assert names[-1] == f"and {501 - NAMES_MAX + 1} more"


def test_agreement_after_a_difference_is_reported() -> None:
    east = replicating()
    assert east.heartbeat(digest=b"x" * 16) == [ConfigurationDiffers("east", ())]
    assert east.heartbeat(digest=b"x" * 16) == []
    assert east.heartbeat() == [ConfigurationAgrees("east")]


def test_a_configuration_in_agreement_sends_no_description() -> None:
    ours, theirs = make_replica(), make_replica("east")
    ours.start(START)
    theirs.start(START)
    exchange(ours, theirs, START + 5)
    assert ours.counters["datagrams_sent"] <= 12


# --- bounds ---------------------------------------------------------------------------------------


def test_the_table_of_own_connections_is_bounded() -> None:
    replica = leading(Pace(queue_max=10))
    replica.tell([changed(number) for number in range(30)], START)
    assert len(replica._home._own) <= 10
    east = East(replica)
    east.role = Role.DRAIN
    assert Apply(connection(99)) not in east.records(connection(99))


def test_a_record_is_told_on_only_with_its_own_values() -> None:
    record = connection(1)._replace(flags=0x120, timeout=0.5)
    (message,) = sent(leading().tell([ConnectionChanged(record)], START))
    assert isinstance(message, Records)
    assert message.entries == (record,)
