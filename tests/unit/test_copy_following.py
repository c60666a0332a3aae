"""How a follower uses its leader's stream: order, gaps, leaders that come and go."""

from lvsha.model import ConnectionRecord
from lvsha.sync.actions import Action, Alarm, Apply, EndSnapshot, Forget, PeerChanged, Send
from lvsha.sync.copy import REQUEST_INTERVAL
from lvsha.sync.messages import (
    LEVEL_PLAIN,
    Changes,
    GapRequest,
    Heartbeat,
    PeerState,
    Progress,
    Role,
    SnapshotChunk,
    SnapshotRequest,
    SumsRequest,
)
from lvsha.sync.overlap import DRAIN, OVERLAP
from lvsha.sync.peers import ALARM_INTERVAL
from lvsha.sync.stream import ASK_INTERVAL, ASKS_MAX, PATIENCE, REORDER_WAIT
from tests.replica_group import Group
from tests.replicas import (
    HEARTBEAT,
    SILENCE,
    START,
    East,
    changed,
    connection,
    ended,
    events,
    expire_until,
    leading,
    peers,
    replicating,
    sent_of,
    started,
    template,
)


def gaps(actions: list[Action]) -> list[tuple[tuple[int, int], ...]]:
    return [request.ranges for request in sent_of(GapRequest, actions)]


def asked_sums(actions: list[Action]) -> list[str]:
    return [request.leader for request in sent_of(SumsRequest, actions)]


# --- order ------------------------------------------------------------------------------------


def test_live_changes_are_applied() -> None:
    east = replicating()
    actions = events(east.changes(connection(1), template(3), connection(2).key))
    assert actions == [Forget([connection(2).key]), Apply([connection(1), template(3)])]


def test_a_datagram_that_comes_twice_is_used_once() -> None:
    east = replicating()
    east.changes(connection(1), sequence=10)
    assert events(east.changes(connection(1), sequence=10)) == []
    assert east.replica.counters["repeats_ignored"] == 1
    east.changes(connection(2), sequence=11)
    assert events(east.changes(connection(1), sequence=10)) == []
    assert east.replica.counters["refused_late_or_repeated"] == 1


def test_a_record_that_comes_after_a_later_delete_does_not_revive_the_connection() -> None:
    east = replicating()
    first = east.sequence + 1
    actions = events(east.changes(connection(1).key, sequence=first + 1))
    assert actions == [Forget([connection(1).key])]
    actions = events(east.changes(connection(1), connection(2), sequence=first))
    assert actions == [Apply([connection(2)])]


def test_a_delete_that_comes_after_a_later_record_does_not_remove_the_connection() -> None:
    east = replicating()
    first = east.sequence + 1
    east.changes(connection(1, 5), sequence=first + 1)
    assert events(east.changes(connection(1).key, sequence=first)) == []


def test_a_datagram_that_only_came_late_costs_nothing() -> None:
    east = replicating()
    first = east.sequence + 1
    east.changes(connection(2), sequence=first + 1)
    east.changes(connection(1), sequence=first)
    actions = expire_until(east.replica, START + REORDER_WAIT)
    assert gaps(actions) == []
    assert east.replica.complete


# --- gaps -------------------------------------------------------------------------------------


def test_a_copy_that_misses_a_number_is_not_complete_and_stays_where_it_is() -> None:
    east = replicating()
    east.changes(connection(1), sequence=east.sequence + 2)
    assert not east.replica.complete
    assert east.state() == "REPLICATE"


def test_what_is_missing_is_asked_for_and_the_copy_is_complete_when_it_has_come() -> None:
    east = replicating()
    missed = east.sequence + 1
    east.changes(connection(2), sequence=missed + 1)
    assert gaps(expire_until(east.replica, START + REORDER_WAIT - 0.001)) == []
    actions = expire_until(east.replica, START + REORDER_WAIT)
    (request,) = sent_of(GapRequest, actions)
    assert (request.leader, request.leader_epoch, request.ranges) == ("east", 5, ((missed, 1),))
    actions = east.changes(connection(1), sequence=missed, now=START + 0.01)
    assert Apply([connection(1)]) in actions
    assert east.replica.complete
    assert east.replica.status(START)["counters"] == {
        **east.replica.counters.snapshot(),
        "datagrams_asked_for": 1,
    }
    (peer,) = peers(east.replica, "east")
    assert (peer["datagrams_repaired"], peer["datagrams_lost"]) == (1, 0)


def test_what_does_not_come_is_asked_for_again_and_given_up_in_the_end() -> None:
    east = replicating()
    east.changes(connection(1), sequence=east.sequence + 2)
    given_up = START + REORDER_WAIT + ASKS_MAX * ASK_INTERVAL + 0.001
    actions = expire_until(east.replica, given_up)
    assert len(gaps(actions)) == ASKS_MAX
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert asked_sums(actions) == ["east"]
    assert east.replica.counters["datagrams_lost"] == 1


def test_many_gaps_take_several_requests() -> None:
    east = replicating()
    first = east.sequence
    for number in range(first + 2, first + 92, 2):
        east.changes(connection(number), sequence=number)
    requests = gaps(expire_until(east.replica, START + REORDER_WAIT))
    assert [len(ranges) for ranges in requests] == [20, 20, 5]
    assert requests[0][0] == (first + 1, 1)


def test_a_heartbeat_reveals_that_the_last_datagram_was_lost() -> None:
    east = replicating()
    east.sequence += 1
    east.heartbeat()
    assert not east.replica.complete
    assert gaps(expire_until(east.replica, START + REORDER_WAIT)) == [((east.sequence, 1),)]


def test_what_the_leader_cannot_send_again_is_lost_at_once() -> None:
    east = replicating()
    east.changes(connection(1), sequence=east.sequence + 3)
    east.oldest = east.sequence
    actions = east.heartbeat(START + 0.001)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert east.replica.counters["datagrams_lost"] == 2
    assert gaps(expire_until(east.replica, START + 1)) == []


def test_a_jump_too_far_to_remember_counts_as_lost_at_once() -> None:
    east = replicating()
    east.changes(connection(1), sequence=10**15)
    assert east.state() == "PROBE"


def test_a_leader_that_is_silent_is_not_asked_for_what_is_missing() -> None:
    east = replicating()
    expire_until(east.replica, START + SILENCE - 0.01)
    east.replica.expire(START + SILENCE)
    assert peers(east.replica, "east")[0]["silent"]
    east.changes(connection(1), sequence=east.sequence + 2, now=START + SILENCE)
    assert len(gaps(expire_until(east.replica, START + SILENCE + REORDER_WAIT))) == 1
    east = replicating()
    east.changes(connection(1), sequence=east.sequence + 2)
    expire_until(east.replica, START + 0.02)
    east.replica._home.peers.get("east").silent = True  # type: ignore[union-attr]
    assert gaps(expire_until(east.replica, START + PATIENCE + 0.01)) == []
    assert east.replica.counters["datagrams_lost"] == 1


def test_a_leader_of_level_1_is_not_asked_and_a_gap_costs_a_whole_snapshot() -> None:
    east = replicating(level=LEVEL_PLAIN)
    later = START + 0.99
    expire_until(east.replica, later)
    east.changes(connection(1), sequence=east.sequence + 2, now=later)
    assert not east.replica.complete
    actions = expire_until(east.replica, later + PATIENCE)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert gaps(actions) == []
    assert len(sent_of(SnapshotRequest, actions)) == 1


def test_what_a_follower_lost_and_repaired_is_in_its_heartbeats() -> None:
    east = replicating()
    expire_until(east.replica, START + 0.1)
    due = east.replica.deadline
    assert due is not None
    first, later = east.sequence, due - 0.02
    east.changes(connection(1), sequence=first + 3, now=later)
    expire_until(east.replica, later + REORDER_WAIT)
    east.changes(connection(2), sequence=first + 1, now=later + 0.01)
    (said,) = sent_of(Heartbeat, expire_until(east.replica, due))
    assert (said.standing.missing, said.standing.repaired, said.standing.lost) == (1, 1, 0)
    *_, last = sent_of(Heartbeat, expire_until(east.replica, due + HEARTBEAT))
    assert (last.standing.missing, last.standing.repaired, last.standing.lost) == (0, 1, 1)


def test_a_connection_that_changes_while_much_is_missing_does_not_grow_the_memory() -> None:
    east = replicating()
    peer = east.replica._home.peers.get("east")
    assert peer is not None
    peer.stream._touched_max = 100
    first = east.sequence + 1
    for number in range(300):
        east.changes(connection(number), sequence=first + 1 + number)
    assert len(peer.stream._touched) <= 101
    assert east.state() == "PROBE"


def test_a_false_number_does_not_shut_out_the_true_ones_for_ever() -> None:
    east = replicating()
    true_sequence = east.sequence
    east.changes(sequence=2**64 - 1)
    east.sequence = true_sequence
    later = START + REQUEST_INTERVAL
    assert asked_sums(east.heartbeat(later)) == ["east"]
    assert east.replica.counters["streams_rewound"] == 1
    east.sums(later)
    assert east.replica.complete
    assert Apply([connection(1)]) in east.changes(connection(1), now=later)


# --- progress ---------------------------------------------------------------------------------


def test_who_lacks_something_tells_progress_after_some_datagrams() -> None:
    east = East(started())
    east.heartbeat()
    assert east.state() == "PROBE"
    told = [sent_of(Progress, east.changes(connection(n))) for n in range(8)]
    assert [len(progress) for progress in told] == [0] * 7 + [1]
    assert told[-1][0].position == east.sequence
    assert (told[-1][0].leader, told[-1][0].leader_epoch) == ("east", 5)


def test_who_has_all_tells_progress_after_a_short_time_only() -> None:
    east = replicating()
    actions = [action for n in range(20) for action in east.changes(connection(n))]
    assert sent_of(Progress, actions) == []
    (progress,) = sent_of(Progress, expire_until(east.replica, START + 0.03))
    assert progress.position == east.sequence
    assert sent_of(Progress, expire_until(east.replica, START + 0.4)) == []


def test_a_leader_of_level_1_is_told_no_progress() -> None:
    east = replicating(level=LEVEL_PLAIN)
    actions = [action for n in range(20) for action in east.changes(connection(n))]
    assert sent_of(Progress, actions + expire_until(east.replica, START + 0.4)) == []


# --- leaders ----------------------------------------------------------------------------------


def test_the_newest_leader_is_followed() -> None:
    east = replicating()
    north = East(east.replica, node="north")
    north.term = 2
    later = START + REQUEST_INTERVAL
    actions = north.heartbeat(later)
    assert PeerChanged("north", PeerState.PROBE, "leads") in actions
    assert asked_sums(actions) == ["north"]
    assert events(east.changes(connection(1), now=later)) == []
    assert east.replica.counters["refused_not_leader"] == 1
    assert Apply([connection(2)]) in north.changes(connection(2), now=later)


def test_a_leader_that_leads_again_is_compared_with() -> None:
    east = replicating()
    east.role = Role.DRAIN
    east.heartbeat()
    east.role, east.term = Role.LEAD, 2
    later = START + REQUEST_INTERVAL
    assert asked_sums(east.heartbeat(later)) == ["east"]
    assert not east.replica.complete


def test_a_draining_leader_is_followed_until_another_leads() -> None:
    east = replicating()
    east.role = Role.DRAIN
    assert Apply([connection(1)]) in east.changes(connection(1))
    assert east.replica.complete


def test_what_a_draining_leader_has_sent_is_asked_for_again() -> None:
    east = replicating()
    east.role = Role.DRAIN
    east.changes(connection(1), sequence=east.sequence + 2)
    assert len(gaps(expire_until(east.replica, START + REORDER_WAIT))) == 1


def test_a_restarted_leader_is_followed_anew_and_its_old_epoch_refused() -> None:
    east = replicating()
    successor = East(east.replica, epoch=6)
    successor.term = 2
    later = START + REQUEST_INTERVAL
    actions = successor.heartbeat(later)
    assert PeerChanged("east", PeerState.PROBE, "restarted") in actions
    assert asked_sums(actions) == ["east"]
    assert events(east.changes(connection(1), now=later)) == []
    assert east.replica.counters["refused_old_epoch"] == 1


def test_a_restarted_leader_that_does_not_lead_is_not_followed() -> None:
    east = replicating()
    successor = East(east.replica, epoch=6)
    successor.role, successor.term = Role.FOLLOW, 0
    successor.heartbeat()
    assert east.replica.status(START)["leader"] is None


def test_two_leaders_are_an_alarm_when_they_last() -> None:
    replica = leading()
    east = East(replica)
    assert Alarm("second_leader", "east") not in east.heartbeat()
    assert Alarm("second_leader", "east") in east.heartbeat(START + HEARTBEAT)
    assert Alarm("second_leader", "east") not in east.heartbeat(START + 2 * HEARTBEAT)
    assert replica.counters["second_leader_datagrams"] == 3
    alarms = 0
    for step in range(3, 60):
        alarms += Alarm("second_leader", "east") in east.heartbeat(START + step * HEARTBEAT)
    assert alarms == int((60 * HEARTBEAT - HEARTBEAT) / ALARM_INTERVAL)


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


# --- taking over ------------------------------------------------------------------------------


def told(actions: list[Action]) -> list[ConnectionRecord]:
    return [record for message in sent_of(Changes, actions) for record in message.records]


def test_a_new_leader_takes_what_the_old_one_still_tells_and_tells_it_on() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.DRAIN
    actions = east.changes(connection(1), connection(2).key)
    assert Apply([connection(1)]) in actions
    assert not [action for action in actions if isinstance(action, Forget)]
    assert told(actions) == [connection(1)]


def test_a_new_leader_does_not_take_back_what_it_has_told_of_itself() -> None:
    east = replicating()
    east.replica.lead(START)
    east.replica.tell([changed(1, 5), ended(2)], START)
    east.role = Role.DRAIN
    assert events(east.changes(connection(1, 1), connection(2, 1))) == []


def test_a_new_leader_takes_no_older_state_after_a_newer_one() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.DRAIN
    first = east.sequence + 1
    east.changes(connection(1, 5), sequence=first + 1)
    assert told(east.changes(connection(1, 1), connection(2), sequence=first)) == [connection(2)]


def test_a_new_leader_asks_the_one_that_drains_for_what_it_misses() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.DRAIN
    first = east.sequence + 1
    east.changes(connection(2), sequence=first + 1)
    assert gaps(expire_until(east.replica, START + REORDER_WAIT)) == [((first, 1),)]
    assert told(east.changes(connection(1), sequence=first)) == [connection(1)]


def test_a_new_leader_asks_nobody_who_has_drained() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.FOLLOW
    first = east.sequence + 1
    east.changes(connection(2), sequence=first + 1)
    assert gaps(expire_until(east.replica, START + PATIENCE)) == []
    assert events(east.changes(connection(1), sequence=first, now=START + PATIENCE)) == []


def test_a_leader_asks_for_nothing_after_the_overlap() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.DRAIN
    east.heartbeat(START + OVERLAP)
    east.changes(connection(2), sequence=east.sequence + 2, now=START + OVERLAP)
    assert gaps(expire_until(east.replica, START + OVERLAP + PATIENCE)) == []


def test_what_a_draining_node_tells_reaches_the_next_leader_though_a_datagram_is_lost() -> None:
    group = Group()
    east, west = group.join("east", [connection(1)]), group.join("west")
    group.lead(east)
    group.run(5)
    group.follow(east)
    group.lead(west)
    group.lost = lambda message, _to: isinstance(message, Changes)
    group.change(east, changed(9))
    group.lost = lambda _message, _to: False
    group.change(east, changed(10))
    assert connection(9).key not in west.table.content
    group.run(0.1)
    assert connection(9).key in west.table.content
    group.run(10)
    assert west.table.content == east.table.content
    assert connection(9).key in east.table.content


def test_what_a_second_leader_tells_is_taken_for_as_long_as_it_leads() -> None:
    east = replicating()
    west = east.replica
    west.lead(START)
    assert not west.is_contested(START)
    late = START + 10 * OVERLAP
    east.heartbeat(late)
    assert west.is_contested(late)
    assert Apply([connection(1)]) in east.changes(connection(1), connection(2).key, now=late)
    west.tell([changed(3)], late)
    assert Apply([connection(4)]) in east.changes(connection(3), connection(4), now=late)
    east.role = Role.FOLLOW
    east.heartbeat(late + OVERLAP - 0.01)
    assert west.is_contested(late + OVERLAP - 0.01)
    assert not west.is_contested(late + OVERLAP)
    assert events(east.changes(connection(5), now=late + OVERLAP)) == []


def test_a_second_leader_does_not_matter_to_who_follows_one() -> None:
    east = replicating()
    north = East(east.replica, node="north", epoch=6)
    north.term = east.term - 1
    north.heartbeat()
    assert not east.replica.is_contested(START)


def test_a_leader_takes_nothing_after_the_overlap() -> None:
    east = replicating()
    east.replica.lead(START)
    east.role = Role.DRAIN
    actions = east.changes(connection(1), now=START + OVERLAP)
    assert events(actions) == []
    assert east.replica.counters["refused_while_leading"] == 1


def test_a_leader_takes_nothing_of_a_snapshot() -> None:
    east = replicating()
    east.replica.lead(START)
    assert events(east.whole_snapshot(connection(1))) == []
    assert east.replica.counters["refused_while_leading"] == 3


def test_a_draining_node_compares_only_when_it_has_drained() -> None:
    replica = leading()
    replica.follow(START)
    east = East(replica)
    east.term = 2
    assert asked_sums(east.heartbeat()) == []
    assert events(east.begin()) == []
    actions: list[Action] = []
    for step in range(1, 5):
        actions += expire_until(replica, START + step * HEARTBEAT - 0.001)
        east.heartbeat(START + step * HEARTBEAT - 0.001)
        east.sums(START + step * HEARTBEAT - 0.001)
    assert asked_sums(actions) == []
    assert not replica.complete
    assert asked_sums(expire_until(replica, START + DRAIN)) == ["east"]


def test_a_late_change_of_the_old_leader_survives_the_takeover() -> None:
    group = Group()
    east, west = group.join("east", [connection(n) for n in range(5)]), group.join("west")
    group.lead(east)
    group.run(5)
    group.follow(east)
    group.change(east, changed(9))
    group.lead(west)
    group.change(east, changed(10))
    group.run(10)
    assert connection(9).key in west.table.content
    assert connection(10).key in west.table.content
    assert east.table.content == west.table.content
    assert east.replica.complete


def test_nothing_received_is_sent_on() -> None:
    group = Group()
    east, west, north = group.join("east"), group.join("west"), group.join("north")
    group.lead(east)
    group.run(2)
    group.change(east, changed(1))
    group.run(2)
    assert west.table.content == north.table.content == east.table.content != {}
    for name in ("west", "north"):
        assert group.messages(Changes, name) == []
        assert group.messages(SnapshotChunk, name) == []


def test_a_follower_sweeps_nothing_that_it_did_not_ask_for() -> None:
    east = replicating()
    actions = east.whole_snapshot(connection(1))
    assert [a for a in actions if isinstance(a, EndSnapshot | Apply)] == []
    assert all(isinstance(action, Send) for action in actions)
