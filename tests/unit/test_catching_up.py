"""How a follower finds out what it lacks, and gets it."""

import pytest

from lvsha.model import BUCKETS
from lvsha.sync.actions import Action, Alarm, Apply, BeginSnapshot, EndSnapshot, Forget, PeerChanged
from lvsha.sync.catching_up import (
    INEXACT_MAX,
    MISMATCH_PAUSE,
    ROUNDS_MAX,
    SNAPSHOT_STALL,
    SNAPSHOTS_MAX,
    CatchingUp,
    Conclusion,
)
from lvsha.sync.copy import REQUEST_INTERVAL, SNAPSHOT_PATIENCE
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL_PLAIN,
    SUMS_MAX,
    GapRequest,
    Heartbeat,
    PeerState,
    Role,
    SnapshotRequest,
    Standing,
    Sums,
    SumsRequest,
)
from lvsha.sync.stream import REORDER_WAIT, Stream
from tests.replicas import (
    HEARTBEAT,
    SILENCE,
    START,
    East,
    Table,
    bits,
    connection,
    events,
    expire_until,
    make_replica,
    replicating,
    sent_of,
    started,
)

NOW = 10.0
OURS = list(range(BUCKETS))


def theirs(*differing: int) -> list[int]:
    """Sums that differ from ours in these buckets."""
    return [value + 1 if bucket in differing else value for bucket, value in enumerate(OURS)]


def compared(catching_up: CatchingUp, *differing: int) -> Conclusion:
    sums = theirs(*differing)
    done = False
    for first in range(0, BUCKETS, SUMS_MAX):
        assert not done
        part = sums[first : first + SUMS_MAX]
        done = catching_up.compare(9, first, part, OURS, exact=True)
    assert done
    return catching_up.conclude(NOW)


# --- the comparison ---------------------------------------------------------------------------


def test_sums_that_are_all_equal_agree() -> None:
    catching_up = CatchingUp()
    assert compared(catching_up) is Conclusion.AGREES
    assert catching_up.wanted == 0


@pytest.mark.parametrize("bucket", [0, 127, 128, 255, 510])
def test_only_buckets_that_differ_are_wanted(bucket: int) -> None:
    catching_up = CatchingUp()
    assert compared(catching_up, bucket, 300) is Conclusion.WANTED
    assert catching_up.wanted == catching_up.unasked == bits(bucket, 300)


def test_nothing_is_concluded_before_all_sums_have_come_in_whatever_order() -> None:
    catching_up = CatchingUp()
    for first in (384, 0, 0, 128):
        part = theirs()[first : first + SUMS_MAX]
        assert not catching_up.compare(9, first, part, OURS, exact=True)
    assert catching_up.compare(9, 256, theirs()[256:384], OURS, exact=True)


def test_sums_of_another_number_say_nothing_but_not_for_ever() -> None:
    catching_up = CatchingUp()
    for _ in range(INEXACT_MAX - 1):
        assert not catching_up.compare(9, 0, theirs(), OURS, exact=False)
    assert catching_up.compare(9, 0, theirs(7), OURS, exact=False)
    assert catching_up.conclude(NOW) is Conclusion.WANTED


def test_what_differs_again_and_again_though_it_came_whole_is_mismatched() -> None:
    catching_up = CatchingUp()
    for _ in range(ROUNDS_MAX):
        assert compared(catching_up, 7) is Conclusion.WANTED
        receive(catching_up, bits(7))
    assert compared(catching_up, 7) is Conclusion.MISMATCHED
    assert (catching_up.wanted, catching_up.mismatched) == (0, bits(7))
    assert not catching_up.may_compare(NOW + MISMATCH_PAUSE - 0.1)
    assert catching_up.may_compare(NOW + MISMATCH_PAUSE)
    catching_up.agrees()
    assert catching_up.mismatched == 0
    assert catching_up.may_compare(NOW)


def test_the_count_of_rounds_begins_anew_when_all_sums_agree() -> None:
    catching_up = CatchingUp()
    for _ in range(ROUNDS_MAX):
        compared(catching_up, 7)
        receive(catching_up, bits(7))
    assert compared(catching_up) is Conclusion.AGREES
    assert compared(catching_up, 7) is Conclusion.WANTED


# --- snapshots --------------------------------------------------------------------------------


def receive(catching_up: CatchingUp, buckets: int) -> list[int]:
    """A whole snapshot comes."""
    stream = Stream(1)
    catching_up.begin(1, buckets, NOW)
    catching_up.end(1, 3)
    return list(catching_up.finished(stream))


def wanting(*buckets: int) -> CatchingUp:
    catching_up = CatchingUp()
    compared(catching_up, *buckets)
    return catching_up


def test_a_snapshot_is_received_of_what_is_wanted_and_not_on_its_way() -> None:
    catching_up = wanting(1, 2, 3)
    assert catching_up.begin(10, bits(2, 9), NOW) == bits(2)
    assert catching_up.unasked == bits(1, 3)
    assert catching_up.begin(11, bits(2), NOW) == 0
    assert catching_up.begin(12, ALL_BUCKETS, NOW) == bits(1, 3)
    assert catching_up.unasked == 0
    assert not catching_up.advance(11, NOW)


def test_a_snapshot_is_finished_when_its_end_is_known_and_nothing_in_it_is_missing() -> None:
    catching_up, stream = wanting(1, 2), Stream(10)
    catching_up.begin(10, bits(1), NOW)
    stream.admit(10, NOW)
    stream.admit(12, NOW)
    assert list(catching_up.finished(stream)) == []
    catching_up.end(10, 12)
    assert list(catching_up.finished(stream)) == []
    stream.admit(11, NOW)
    assert list(catching_up.finished(stream)) == [bits(1)]
    assert (catching_up.wanted, catching_up.is_receiving) == (bits(2), False)


def test_a_snapshot_that_does_not_advance_is_wanted_anew() -> None:
    catching_up = wanting(1)
    catching_up.begin(10, bits(1), NOW)
    assert catching_up.deadline == NOW + SNAPSHOT_STALL
    assert catching_up.advance(10, NOW + 1)
    assert catching_up.drop_stalled(NOW + SNAPSHOT_STALL) == 0
    assert catching_up.drop_stalled(NOW + 1 + SNAPSHOT_STALL) == 1
    assert catching_up.unasked == bits(1)


def test_no_more_snapshots_are_remembered_than_there_is_room_for() -> None:
    catching_up = wanting(*range(20))
    for bucket in range(20):
        catching_up.begin(100 + bucket, bits(bucket), NOW)
    assert len(catching_up._snapshots) == SNAPSHOTS_MAX
    assert catching_up.unasked == bits(*range(20 - SNAPSHOTS_MAX))


# --- with a leader ----------------------------------------------------------------------------


def requests(actions: list[Action]) -> list[int]:
    return [request.buckets for request in sent_of(SnapshotRequest, actions)]


def follower(*records: int) -> tuple[East, Table]:
    """A replica with these connections that has just heard of a leader, and its table."""
    table = Table([connection(n) for n in records])
    replica = make_replica(tally=table.tally)
    replica.start(START)
    return East(replica), table


def leader_has(east: East, *records: int) -> None:
    table = Table([connection(n) for n in records])
    east.tally = table.tally


def perform(table: Table, actions: list[Action]) -> list[Action]:
    for action in actions:
        match action:
            case Apply():
                table.apply(action.records)
            case BeginSnapshot():
                table.begin_all(action.buckets)
            case EndSnapshot():
                table.end_all(action.buckets)
            case _:
                pass
    return actions


def test_a_new_leader_is_asked_for_its_sums_and_again_while_they_do_not_come() -> None:
    east, _ = follower()
    (request,) = sent_of(SumsRequest, east.heartbeat())
    assert (request.leader, request.leader_epoch) == ("east", 5)
    actions = expire_until(east.replica, START + 1.01)
    assert len(sent_of(SumsRequest, actions)) == int(1 / REQUEST_INTERVAL)


def test_a_copy_whose_sums_agree_is_complete_without_a_snapshot() -> None:
    east, _ = follower(1, 2, 3)
    leader_has(east, 1, 2, 3)
    east.heartbeat()
    assert not east.replica.complete
    actions = east.sums()
    assert events(actions) == [PeerChanged("east", PeerState.REPLICATE, "all sums agree")]
    assert east.replica.complete


def test_only_what_differs_is_asked_for() -> None:
    east, table = follower(1, 2, 3)
    leader_has(east, 1, 3, 4)
    east.heartbeat()
    actions = east.sums()
    assert requests(actions) == [bits(2, 4)]
    assert PeerChanged("east", PeerState.SNAPSHOT, "2 of 511 sums differ") in actions
    actions = perform(table, east.whole_snapshot(connection(4), buckets=bits(2, 4)))
    assert events(actions) == [
        BeginSnapshot(1, bits(2, 4)),
        Apply([connection(4)]),
        EndSnapshot(1, bits(2, 4)),
        PeerChanged("east", PeerState.REPLICATE, "the snapshot is complete"),
    ]
    assert table.tally.sums == east.tally.sums


def test_sums_of_an_earlier_number_are_not_compared() -> None:
    east, _ = follower(1)
    leader_has(east, 1)
    east.heartbeat()
    east.sequence = 7
    east.heartbeat()
    east.sequence = 6
    assert events(east.sums()) == []


def test_sums_are_not_compared_while_a_number_is_missing() -> None:
    east, _ = follower(1)
    leader_has(east, 1)
    east.heartbeat()
    east.changes(sequence=2)
    assert events(east.sums()) == []
    east.changes(sequence=1)
    east.sequence = 2
    assert PeerChanged("east", PeerState.REPLICATE, "all sums agree") in east.sums()


def test_sums_that_are_ahead_of_what_was_sent_are_not_compared() -> None:
    east, _ = follower(1)
    leader_has(east, 1)
    east.heartbeat()
    assert events(east.sums(is_current=False)) == []
    assert PeerChanged("east", PeerState.REPLICATE, "all sums agree") in east.sums()


def test_sums_that_are_not_current_count_as_inexact() -> None:
    east, _ = follower(1)
    leader_has(east, 1, 2)
    east.heartbeat()
    assert INEXACT_MAX % 4 == 0
    for _ in range(INEXACT_MAX // 4 - 1):
        assert events(east.sums(is_current=False)) == []
    assert events(east.sums(is_current=False, parts=(0, 1, 2))) == []
    assert PeerChanged("east", PeerState.SNAPSHOT, "1 of 511 sums differ") in east.sums()


def test_sums_that_are_never_current_are_compared_all_the_same() -> None:
    east, _ = follower(1)
    leader_has(east, 1, 2)
    east.heartbeat()
    for _ in range(INEXACT_MAX // 4 + 1):
        east.sums(is_current=False)
    assert east.state() == "SNAPSHOT"


def test_what_agreed_before_a_loss_is_compared_again() -> None:
    east, _ = follower(1)
    leader_has(east, 1)
    east.heartbeat()
    east.sums(parts=(0, 1, 2))
    east.changes(sequence=2)
    east.oldest = 2
    east.heartbeat()
    assert east.replica.counters["datagrams_lost"] == 1
    assert events(east.sums(parts=(3,))) == []
    assert PeerChanged("east", PeerState.REPLICATE, "all sums agree") in east.sums()


def test_sums_from_before_a_loss_say_nothing_however_often_they_come() -> None:
    east, _ = follower(1)
    leader_has(east, 1)
    east.heartbeat()
    east.changes(sequence=2)
    east.oldest = 2
    east.heartbeat()
    east.sequence = 0
    for _ in range(INEXACT_MAX):
        assert events(east.sums()) == []
    east.sequence = 2
    east.sums()
    assert east.state() == "REPLICATE"


def test_sums_are_compared_after_the_numbers_of_a_leader_went_back() -> None:
    east, _ = follower(1)
    leader_has(east, 1)
    east.heartbeat()
    east.changes(sequence=2**64 - 1)
    east.sequence = 0
    east.heartbeat(START + 0.3)
    east.sums(START + 0.3)
    assert east.state() == "REPLICATE"


def test_under_changes_that_never_pause_sums_are_compared_all_the_same() -> None:
    east, _ = follower(1)
    leader_has(east, 1, 2)
    east.heartbeat()
    rounds = 0
    while east.state() == "PROBE":
        rounds += 1
        east.changes(sequence=rounds)
        east.sequence -= 1
        east.sums()
        east.sequence += 1
    assert rounds <= 1 + INEXACT_MAX / 4
    assert east.state() == "SNAPSHOT"


def test_a_heartbeat_whose_sum_differs_leads_to_a_comparison() -> None:
    east, _ = follower()
    east.heartbeat()
    east.sums()
    assert east.replica.complete
    leader_has(east, 1)
    later = START + 1
    actions = east.heartbeat(later)
    assert PeerChanged("east", PeerState.PROBE, "the sums differ") in actions
    assert len(sent_of(SumsRequest, actions)) == 1
    assert east.replica.counters["sums_differed"] == 1


@pytest.mark.parametrize("told", [Standing(9, 9), Standing(9, 9, is_current=False)])
def test_a_heartbeat_that_is_not_current_says_nothing_of_the_sums(told: Standing) -> None:
    east = replicating()
    assert events(east.heartbeat(standing=told)) == []
    assert events(east.heartbeat(standing=Standing(9, 9, is_current=True))) != []


def test_a_heartbeat_of_another_number_says_nothing_of_the_sums() -> None:
    east = replicating()
    leader_has(east, 1)
    east.sequence = 3
    assert events(east.heartbeat()) == [], "its own number is missing here"
    east = replicating()
    east.changes(connection(1))
    east.changes(connection(2))
    east.sequence = 1
    leader_has(east, 5)
    assert events(east.heartbeat()) == []


def test_buckets_that_do_not_begin_to_come_are_asked_for_again() -> None:
    east, _ = follower()
    leader_has(east, 1, 2)
    east.heartbeat()
    east.sums()
    east.begin(bits(1))
    actions = expire_until(east.replica, START + SNAPSHOT_PATIENCE)
    assert requests(actions) == [bits(2)]
    later = START + SNAPSHOT_PATIENCE + REQUEST_INTERVAL
    assert requests(expire_until(east.replica, later)) == [bits(2)]


def test_what_came_whole_is_not_asked_for_again_after_a_loss() -> None:
    east, table = follower()
    leader_has(east, 1, 2)
    east.heartbeat()
    east.sums()
    perform(table, east.whole_snapshot(connection(1), buckets=bits(1)))
    east.begin(bits(2))
    east.sequence += 2
    east.oldest = east.sequence + 1
    later = START + SNAPSHOT_PATIENCE
    actions = east.heartbeat(later)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert len(sent_of(SumsRequest, actions)) == 1
    assert requests(east.sums(later)) == [bits(2)]


def test_a_snapshot_whose_middle_is_repaired_is_not_lost() -> None:
    east, table = follower()
    leader_has(east, 1, 257)
    east.heartbeat()
    east.sums()
    perform(table, east.begin(bits(1)))
    begin = east.sequence
    perform(table, east.chunk(begin, connection(257), sequence=begin + 2))
    perform(table, east.end(begin, 2, sequence=begin + 3))
    assert table.tally.told == 1
    (request,) = sent_of(GapRequest, expire_until(east.replica, START + REORDER_WAIT))
    assert request.ranges == ((begin + 1, 1),)
    actions = perform(table, east.chunk(begin, connection(1), sequence=begin + 1))
    assert EndSnapshot(1, bits(1)) in actions
    assert table.tally.sums == east.tally.sums
    assert east.replica.complete


@pytest.mark.parametrize("is_whole", [False, True], ids=["while it comes", "when it has come"])
def test_what_was_told_before_a_snapshot_began_and_comes_late_is_of_no_use(
    is_whole: bool,
) -> None:
    """It may have ended where nothing tells of it: between two terms of its leader."""
    east, table = follower()
    leader_has(east, 1, 2)
    east.heartbeat()
    east.sums()
    perform(table, east.begin(bits(1), sequence=2))
    if is_whole:
        perform(table, east.chunk(2, connection(1), sequence=3))
        perform(table, east.end(2, 1, sequence=4))
    late = east.changes(connection(257), connection(2), connection(513).key, sequence=1)
    assert [a for a in late if isinstance(a, Apply | Forget)] == [Apply([connection(2)])]


def test_what_was_told_after_a_snapshot_began_and_comes_late_is_used() -> None:
    east, table = follower()
    leader_has(east, 1, 257)
    east.heartbeat()
    east.sums()
    perform(table, east.begin(bits(1), sequence=1))
    perform(table, east.end(1, 1, sequence=4))
    assert Apply([connection(257)]) in perform(table, east.changes(connection(257), sequence=3))
    late = perform(table, east.chunk(1, connection(1), sequence=2))
    assert EndSnapshot(1, bits(1)) in late
    assert table.tally.sums == east.tally.sums


def test_a_leader_that_falls_silent_in_the_middle_is_not_asked_until_it_is_heard() -> None:
    east, _ = follower()
    leader_has(east, 1)
    east.heartbeat()
    east.sums()
    expire_until(east.replica, START + SILENCE)
    actions = expire_until(east.replica, START + SILENCE + 2)
    assert requests(actions) == []
    assert requests(east.heartbeat(START + SILENCE + 2)) == [bits(1)]


def test_a_draining_leader_is_not_asked_for_anything() -> None:
    east, _ = follower()
    leader_has(east, 1)
    east.heartbeat()
    east.sums()
    east.role = Role.DRAIN
    east.heartbeat()
    assert requests(expire_until(east.replica, START + 1)) == []


# --- what cannot be mended --------------------------------------------------------------------


def mend(east: East, now: float) -> list[Action]:
    """The leader's sums differ in bucket 7; it is compared, and sent, and cannot be taken."""
    actions = east.heartbeat(now)
    actions += east.sums(now)
    return actions + east.whole_snapshot(connection(7), now=now, buckets=bits(7))


def test_what_cannot_be_taken_in_is_an_alarm_after_some_rounds_and_then_left_alone() -> None:
    east = replicating()
    leader_has(east, 7)
    now, rounds = START, 0
    actions: list[Action] = []
    while Alarm("mismatch", "east") not in actions:
        rounds += 1
        now += 1
        actions = mend(east, now)
    assert rounds == ROUNDS_MAX + 1
    assert east.state() == "REPLICATE"
    assert not east.replica.complete
    assert east.replica.counters["buckets_mismatched"] == 1
    heartbeats = sent_of(Heartbeat, expire_until(east.replica, now + 1))
    assert heartbeats[-1].standing.mismatched == 1
    for step in range(1, int(MISMATCH_PAUSE / HEARTBEAT)):
        assert events(east.heartbeat(now + step * HEARTBEAT)) == []
    actions = east.heartbeat(now + MISMATCH_PAUSE)
    assert PeerChanged("east", PeerState.PROBE, "the sums differ") in actions


def test_a_mismatch_is_over_when_the_sums_agree_again() -> None:
    east = replicating()
    leader_has(east, 7)
    now = START
    for _ in range(ROUNDS_MAX + 1):
        now += 1
        mend(east, now)
    leader_has(east)
    east.heartbeat(now + 1)
    assert east.replica.complete


def test_losses_are_no_mismatch_however_many_there_are() -> None:
    east = replicating()
    now = START
    for round_ in range(4 * ROUNDS_MAX):
        now += 1
        east.sequence += 1
        east.oldest = east.sequence + 1
        leader_has(east, round_)
        busy = Standing(east.tally.told, east.tally.total, is_current=False)
        east.heartbeat(now, standing=busy)
        actions = east.sums(now)
        assert Alarm("mismatch", "east") not in actions
        assert requests(actions) == [bits(round_)]
        east.whole_snapshot(connection(round_), now=now, buckets=bits(round_))
        assert east.replica.complete


# --- level 1 ----------------------------------------------------------------------------------


def test_a_leader_of_level_1_is_asked_for_everything() -> None:
    east = East(started(), level=LEVEL_PLAIN)
    actions = east.heartbeat()
    assert sent_of(SumsRequest, actions) == []
    assert requests(actions) == [ALL_BUCKETS]
    actions = events(east.whole_snapshot(connection(1), connection(2)))
    assert actions == [
        PeerChanged("east", PeerState.SNAPSHOT, "a snapshot began"),
        BeginSnapshot(1, ALL_BUCKETS),
        Apply([connection(1), connection(2)]),
        EndSnapshot(1, ALL_BUCKETS),
        PeerChanged("east", PeerState.REPLICATE, "the snapshot is complete"),
    ]


def test_a_snapshot_of_level_1_that_does_not_advance_is_asked_for_again() -> None:
    east = East(started(), level=LEVEL_PLAIN)
    east.heartbeat()
    east.begin()
    actions: list[Action] = []
    now = START
    while now < START + SNAPSHOT_STALL - HEARTBEAT:
        now += HEARTBEAT
        actions += expire_until(east.replica, now) + east.heartbeat(now)
    assert requests(actions) == []
    actions = expire_until(east.replica, START + SNAPSHOT_STALL)
    assert PeerChanged("east", PeerState.PROBE, "the snapshot does not advance") in actions
    assert requests(actions) == [ALL_BUCKETS]


def test_a_number_lost_in_a_snapshot_of_level_1_costs_all_of_it() -> None:
    east = East(started(), level=LEVEL_PLAIN)
    east.heartbeat()
    east.begin()
    begin = east.sequence
    east.chunk(begin, connection(1), sequence=begin + 2)
    actions = expire_until(east.replica, START + 0.4)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    actions = east.end(begin, 1, now=START + 0.4)
    assert EndSnapshot(1, ALL_BUCKETS) not in actions
    assert not east.replica.complete


def test_of_level_1_a_copy_is_complete_only_after_the_whole_snapshot() -> None:
    east = East(started(), level=LEVEL_PLAIN)
    east.heartbeat()
    east.begin()
    begin = east.sequence
    east.chunk(begin, connection(1))
    expire_until(east.replica, START + 1)
    assert not east.replica.complete
    east.end(begin, 1, now=START + 1)
    assert east.replica.complete


def test_sums_of_a_peer_that_is_not_followed_are_not_compared() -> None:
    east = replicating()
    north = East(east.replica, node="north")
    north.term = 0
    leader_has(north, 1, 2, 3)
    assert events(north.sums())[1:] == []
    assert east.replica.complete
    assert sent_of(Sums, north.sums()) == []
