"""One sync id on one node: start and stop, roles, completeness, and several ids at once."""

from dataclasses import replace

import msgpack
import pytest

from lvsha.model import ConnectionChanged, VrrpState, Witness
from lvsha.sync.actions import Action, Apply, BeginSnapshot, PeerChanged, Send, TakeOver
from lvsha.sync.calls import CALL_AGE_MAX, HAND_OVER_INTERVAL
from lvsha.sync.copy import REQUEST_INTERVAL
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import (
    ALL_BUCKETS,
    Changes,
    Duty,
    Handover,
    Heartbeat,
    Origin,
    PeerState,
    Role,
    SnapshotRequest,
    SumsRequest,
)
from lvsha.sync.overlap import DRAIN, OVERLAP
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.tally import Tally
from tests.replica_group import Group
from tests.replicas import (
    HEARTBEAT,
    SILENCE,
    START,
    East,
    changed,
    connection,
    events,
    expire_until,
    leading,
    make_replica,
    peers,
    replicating,
    sent,
    sent_of,
    started,
)

# --- start, heartbeats, stop ------------------------------------------------------------------


def test_start_says_that_the_node_follows() -> None:
    (message,) = sent(make_replica().start(START))
    assert isinstance(message, Heartbeat)
    assert message.origin == Origin(1, "west", 77, Role.FOLLOW, 0, 0)
    assert (message.level, message.speaks, message.heard) == (2, 2, ())


def test_nothing_happens_before_the_start_and_after_the_stop() -> None:
    replica = make_replica()
    assert replica.deadline is None
    assert replica.receive(b"x", START) == replica.expire(START) == replica.lead(START) == []
    assert replica.stop(START) == replica.ask([connection(1).key], START) == []
    replica.start(START)
    replica.stop(START)
    assert replica.deadline is None
    assert replica.receive(b"x", START) == replica.tell([changed(1)], START) == []
    assert replica.follow(START) == replica.resync(START) == []


def test_heartbeats_are_sent_at_their_interval_and_carry_the_counts() -> None:
    tally = Tally(1)
    replica = make_replica(tally=tally)
    replica.start(START)
    tally.connections, tally.told, tally.established, tally.exposed = 12, 11, 10, 9
    assert replica.deadline == START + HEARTBEAT
    (message,) = sent(replica.expire(START + HEARTBEAT))
    assert isinstance(message, Heartbeat)
    standing = message.standing
    assert (message.connections, standing.told) == (12, 11)
    assert (standing.established, standing.exposed) == (10, 9)
    assert replica.deadline == START + 2 * HEARTBEAT


def test_a_duty_is_said_soon_and_in_every_heartbeat_from_then_on() -> None:
    replica = make_replica()
    (first,) = sent_of(Heartbeat, replica.start(START))
    assert first.duty is None
    duty = Duty(VrrpState.MASTER, Witness.REACHABLE, 100)
    now = START + HEARTBEAT / 2
    (said,) = sent_of(Heartbeat, replica.say(duty, now))
    assert said.duty == duty
    assert replica.say(duty, now) == []
    (again,) = sent_of(Heartbeat, expire_until(replica, now + HEARTBEAT))
    assert again.duty == duty


def test_duties_that_flap_do_not_make_more_heartbeats_than_other_news() -> None:
    replica = started()
    heartbeats = 0
    for step in range(1000):
        now = START + step / 1000
        said = replica.say(Duty(VrrpState(1 + step % 2), Witness.NONE, 1), now)
        heartbeats += len(sent_of(Heartbeat, [*said, *expire_until(replica, now)]))
    assert heartbeats <= 1 / (0.1 * HEARTBEAT) + 1


def test_what_a_peer_says_of_its_duty_is_kept_until_it_is_another_process() -> None:
    replica, duty = started(), Duty(VrrpState.MASTER, Witness.NONE, 1)
    heartbeat = Heartbeat(
        *(Origin(1, "east", 5, Role.FOLLOW, 0, 0), 0, bytes(16), "", PeerState.PROBE, 0, True),
        level=2,
        duty=duty,
    )
    replica.receive(encode(heartbeat), START + 1)
    (peer,) = replica.peers
    assert (peer.node, peer.duty, peer.duty_at) == ("east", duty, START + 1)
    origin = replace(heartbeat.origin, epoch=6)
    replica.receive(encode(replace(heartbeat, origin=origin, duty=None)), START + 2)
    (peer,) = replica.peers
    assert peer.duty is None


def test_an_alive_interval_makes_heartbeats_more_frequent_and_nothing_else() -> None:
    replica = make_replica(alive_interval=HEARTBEAT / 5)
    replica.start(START)
    heartbeats = sent_of(Heartbeat, expire_until(replica, START + HEARTBEAT))
    assert len(heartbeats) == 5
    slower = make_replica(alive_interval=5 * HEARTBEAT)
    slower.start(START)
    assert slower.deadline == START + HEARTBEAT


def test_a_change_of_state_is_reported_before_the_next_heartbeat_is_due() -> None:
    replica = started()
    expire_until(replica, START + 0.1)
    East(replica).heartbeat(START + 0.1)
    assert replica.deadline is not None
    assert replica.deadline < START + 0.2


def test_however_often_states_change_heartbeats_stay_apart() -> None:
    replica = started()
    heartbeats = 0
    for step in range(1000):
        now = START + step / 1000
        East(replica, epoch=step).heartbeat(now)
        heartbeats += len(sent_of(Heartbeat, expire_until(replica, now)))
    assert heartbeats <= 1 / (0.1 * HEARTBEAT) + 1


def test_stop_tells_what_is_queued_and_that_the_node_leads_no_longer() -> None:
    replica = leading(pace=Pace(live_datagrams_per_tick=1))
    replica.tell([changed(1)], START)
    assert sent_of(Changes, replica.tell([changed(2)], START)) == []
    told, heartbeat = sent(replica.stop(START))
    assert isinstance(told, Changes)
    assert told.records == [connection(2)]
    assert heartbeat.origin.role is Role.FOLLOW


# --- completeness -----------------------------------------------------------------------------


def test_a_copy_is_complete_when_nobody_leads_for_the_listening_time() -> None:
    replica = started()
    expire_until(replica, START + SILENCE - 0.001)
    assert not replica.complete
    expire_until(replica, START + SILENCE)
    assert replica.complete


def test_a_leader_is_complete_at_once() -> None:
    assert leading().complete


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


def test_a_leader_that_resigns_before_the_copy_has_all_is_not_waited_for() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat()
    east.role = Role.FOLLOW
    east.heartbeat()
    assert not replica.complete
    expire_until(replica, START + SILENCE)
    assert replica.complete


def test_resync_compares_and_makes_the_copy_incomplete() -> None:
    east = replicating()
    later = START + REQUEST_INTERVAL
    assert len(sent_of(SumsRequest, east.replica.resync(later))) == 1
    assert not east.replica.complete
    east.sums(later)
    assert east.replica.complete


def test_resync_without_a_leader_listens_again() -> None:
    replica = started()
    expire_until(replica, START + SILENCE)
    replica.resync(START + SILENCE)
    assert not replica.complete
    expire_until(replica, START + 2 * SILENCE)
    assert replica.complete


def test_a_leader_does_not_resync() -> None:
    replica = leading()
    assert replica.resync(START) == []
    assert replica.complete


# --- roles ------------------------------------------------------------------------------------


def test_to_lead_or_follow_twice_is_to_do_it_once() -> None:
    replica = leading()
    assert replica.lead(START) == []
    replica.follow(START)
    assert replica.follow(START) == []
    assert replica.status(START)["term"] == 1


def test_a_node_that_leads_again_while_it_drains_leads_in_a_new_term() -> None:
    replica = leading()
    replica.follow(START)
    (message,) = sent(replica.lead(START + DRAIN / 2))
    assert (message.origin.role, message.origin.term) == (Role.LEAD, 2)
    expire_until(replica, START + 2 * DRAIN)
    assert replica.role is Role.LEAD


def test_a_leader_shows_what_its_followers_report() -> None:
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    actions = east.heartbeat(leader="west", state=PeerState.REPLICATE, position=3)
    assert PeerChanged("east", PeerState.REPLICATE, "reported by the peer") in actions
    (peer,) = peers(replica, "east")
    assert (peer["state"], peer["position"], peer["complete"]) == ("REPLICATE", 3, True)


# --- several sync ids -------------------------------------------------------------------------


def test_a_replica_with_id_0_copies_every_id_and_asks_under_the_id_it_heard() -> None:
    replica = started(sync_id=0)
    five, six = East(replica), East(replica, node="north")
    five.sync_id, six.sync_id = 5, 6
    actions = five.heartbeat()
    assert sent_of(SumsRequest, actions) == [], "its tally is not that of one id"
    (request,) = sent_of(SnapshotRequest, actions)
    assert request.origin == Origin(5, "west", 77, Role.FOLLOW, 0, 0)
    assert request.buckets == ALL_BUCKETS
    six.heartbeat()
    actions = five.whole_snapshot(connection(1))
    assert BeginSnapshot(5, ALL_BUCKETS) in actions
    assert Apply([connection(1)]) in actions
    expire_until(replica, START + SILENCE - 0.1)
    assert not replica.complete
    six.whole_snapshot(connection(2), now=START + SILENCE - 0.1)
    five.heartbeat(START + SILENCE - 0.1)
    expire_until(replica, START + SILENCE)
    assert replica.counters["second_leader_datagrams"] == 0
    assert replica.complete


def test_a_copy_that_cannot_compare_trusts_the_numbers_alone() -> None:
    replica = started(sync_id=0)
    east = East(replica)
    east.sync_id = 5
    east.heartbeat()
    east.whole_snapshot(connection(1))
    (peer,) = peers(replica, "east")
    assert peer["state"] == "REPLICATE"
    east.tally.told = 99
    assert events(east.heartbeat()) == [], "sums that differ say nothing"
    east.sequence += 1
    east.oldest = east.sequence + 1
    actions = east.heartbeat(START + 1)
    assert PeerChanged("east", PeerState.PROBE, "datagrams were lost") in actions
    assert len(sent_of(SnapshotRequest, actions)) == 1


def test_sums_that_others_asked_for_say_nothing_to_who_cannot_compare() -> None:
    replica = started(sync_id=0)
    east = East(replica)
    east.sync_id = 5
    east.changes(connection(1))
    assert peers(replica, "east")[0]["state"] == "PROBE"
    assert events(east.sums()) == [], "its own sums are those of nothing"
    east.heartbeat()
    assert peers(replica, "east")[0]["state"] == "SNAPSHOT"
    replica.resync(START)
    assert events(east.sums()) == []


def test_a_replica_with_id_0_leads_under_id_0_only() -> None:
    replica = started(sync_id=0)
    east = East(replica)
    east.sync_id = 5
    east.heartbeat()
    messages = sent(replica.lead(START) + replica.tell([changed(1)], START))
    roles = {(message.origin.sync_id, message.origin.role) for message in messages}
    assert roles == {(0, Role.LEAD), (5, Role.FOLLOW)}
    (told,) = [message for message in messages if isinstance(message, Changes)]
    assert told.origin.sync_id == 0


def test_a_replica_with_id_0_speaks_under_no_id_that_nobody_uses_any_more() -> None:
    replica = started(sync_id=0)
    for sync_id in range(1, 256):
        east = East(replica)
        east.sync_id = sync_id
        east.heartbeat()
    said = sent_of(Heartbeat, expire_until(replica, START + HEARTBEAT))
    assert {heartbeat.origin.sync_id for heartbeat in said} == set(range(256))
    expire_until(replica, START + SILENCE + HEARTBEAT)
    said = sent_of(Heartbeat, expire_until(replica, START + SILENCE + 3 * HEARTBEAT))
    assert {heartbeat.origin.sync_id for heartbeat in said} == {0}


def test_a_resync_of_a_replica_with_id_0_concerns_every_copy() -> None:
    replica = started(sync_id=0)
    for sync_id in (5, 6):
        east = East(replica)
        east.sync_id = sync_id
        east.heartbeat()
        east.whole_snapshot(connection(sync_id))
    later = START + 1
    requests = sent_of(SnapshotRequest, replica.resync(later))
    assert {request.origin.sync_id for request in requests} == {5, 6}


@pytest.mark.parametrize("sync_id", [0, 1])
def test_requests_under_another_id_are_not_answered(sync_id: int) -> None:
    replica = started(sync_id=sync_id)
    replica.lead(START)
    east = East(replica)
    east.sync_id, east.role = 5, Role.FOLLOW
    east.heartbeat()
    actions = east.say(SumsRequest(east.origin(), "west", 77))
    actions += east.say(SnapshotRequest(east.origin(), "west", 77, 0))
    assert [a for a in actions if isinstance(a, Send) or type(a).__name__ == "Provide"] == []


# --- bounds -----------------------------------------------------------------------------------


def test_the_table_of_own_connections_is_bounded() -> None:
    replica = leading(pace=Pace(queue_max=10))
    replica.tell([changed(number) for number in range(30)], START)
    assert len(replica._home.overlap) <= 10
    east = East(replica)
    east.role = Role.DRAIN
    assert events(east.changes(connection(99)))[1:] == []
    assert replica.counters["refused_while_leading"] == 1


def test_a_record_is_told_with_its_own_values() -> None:
    record = connection(1)._replace(flags=0x120, timeout=0.5)
    (message,) = sent_of(Changes, leading().tell([ConnectionChanged(record)], START))
    assert message.records == [record]


def test_more_details_than_fit_in_a_datagram_bring_no_leader_down() -> None:
    """What a node that drains, or says so, has of a later version."""
    replica = leading()
    east = East(replica)
    east.role = Role.DRAIN
    east.heartbeat()
    body = encode(Changes(east.numbered(None), [connection(1)], []))
    fields = [part for number in range(20) for part in (100 + number, bytes(255))]
    elements = msgpack.unpackb(body[4:])
    elements[6][0].append([[0, *fields]])
    replica.receive(body[:4] + msgpack.packb(elements), START)
    assert replica.counters["refused_malformed"] == 1
    assert replica.counters["changes_sent"] == 0


def test_a_flood_of_requests_from_many_names_is_bounded_in_memory() -> None:
    replica = leading()
    for number in range(3000):
        east = East(replica, node=f"node-{number}", epoch=number)
        east.role = Role.FOLLOW
        east.heartbeat(digest=number.to_bytes(16))
    assert replica.counters["refused_too_many_peers"] == 3000 - 16
    differing = replica.status(START)["configuration_differs"]
    assert isinstance(differing, dict)
    assert len(differing) <= 16


def test_a_leader_in_a_group_of_16_serves_all() -> None:
    group = Group()
    east = group.join("east", [connection(n) for n in range(300)])
    group.lead(east)
    others = [group.join(f"node-{number}") for number in range(15)]
    group.run(5)
    for other in others:
        assert other.replica.complete
        assert other.table.content == east.table.content
    assert east.replica.counters["snapshots_sent"] <= 15


# --- handover ---------------------------------------------------------------------------------


def test_a_leader_calls_its_successor_until_it_leads_no_more() -> None:
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    east.heartbeat(leader="west", state=PeerState.REPLICATE)
    (first,) = sent_of(Handover, replica.hand_over("east", START))
    assert (first.node, first.node_epoch, first.moment) == ("east", east.epoch, 0)
    later = sent_of(Handover, expire_until(replica, START + 5 * HAND_OVER_INTERVAL))
    assert later == [first] * 5
    replica.follow(START + 5 * HAND_OVER_INTERVAL)
    assert sent_of(Handover, expire_until(replica, START + 1)) == []
    assert replica.hand_over("east", START + 1) == []


def test_a_call_ends_when_nobody_is_wanted_any_more_and_calls_no_stranger() -> None:
    replica = leading()
    East(replica).heartbeat(leader="west")
    replica.hand_over("east", START)
    replica.hand_over("", START)
    assert sent_of(Handover, expire_until(replica, START + 1)) == []
    assert sent_of(Handover, replica.hand_over("north", START + 1)) == []


def test_all_that_waits_leaves_before_the_successor_is_called() -> None:
    replica = leading(pace=Pace(eager_datagrams_max=0))
    East(replica).heartbeat(leader="west")
    replica.tell([changed(1)], START + OVERLAP)
    messages = sent(replica.hand_over("east", START + OVERLAP))
    assert [type(message) for message in messages] == [Changes, Handover]
    assert messages[1].origin.sequence == messages[0].origin.sequence


def test_who_is_called_takes_over_when_it_has_all_that_the_leader_has() -> None:
    replica = started()
    east = replicating(replica)

    def call(epoch: int, moment: int = 0, now: float = START) -> list[Action]:
        return east.say(Handover(east.origin(), "west", epoch, moment), now)

    def is_called() -> bool:
        answers = sent_of(Handover, call(replica.epoch))
        again = [action for each in answers for action in call(replica.epoch, each.moment)]
        return TakeOver("east") in again

    (answer,) = sent_of(Handover, call(replica.epoch))
    assert (answer.node, answer.node_epoch, answer.origin.role) == ("east", 5, Role.FOLLOW)
    assert is_called()
    assert events(call(replica.epoch + 1)) == []
    # A change that is missing here must come first.
    east.sequence += 1
    assert not is_called()
    east.changes(connection(1), sequence=1)
    assert is_called()
    # Only whom this node follows can call it, while it leads.
    north = East(replica, node="north", epoch=9)
    moment = round(START * 1_000_000)
    forged = Handover(north.origin(), "west", replica.epoch, moment)
    assert TakeOver("north") not in north.say(forged)
    east.role = Role.DRAIN
    assert not is_called()


def test_a_call_that_has_waited_for_long_is_only_answered() -> None:
    replica = started()
    east = replicating(replica)
    moment = round(START * 1_000_000)
    call = Handover(east.origin(), "west", replica.epoch, moment)
    assert TakeOver("east") in east.say(call, START + CALL_AGE_MAX)
    late = START + CALL_AGE_MAX + 0.01
    actions = east.say(call, late)
    assert TakeOver("east") not in actions
    assert [answer.moment for answer in sent_of(Handover, actions)] == [round(late * 1_000_000)]
    assert TakeOver("east") not in east.say(replace(call, moment=moment + 1), START)


def test_a_leader_calls_again_at_once_with_the_answer() -> None:
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    east.heartbeat(leader="west", state=PeerState.REPLICATE)
    answer = Handover(east.origin(), "west", replica.epoch, 77)
    assert sent_of(Handover, east.say(answer)) == [], "nobody was called"
    replica.hand_over("east", START)
    (again,) = sent_of(Handover, east.say(answer))
    assert (again.node, again.moment) == ("east", 77)
    north = East(replica, node="north", epoch=9)
    north.role = Role.FOLLOW
    north.heartbeat(leader="west")
    assert sent_of(Handover, north.say(Handover(north.origin(), "west", replica.epoch, 78))) == []


def test_changes_leave_at_once_while_the_addresses_move() -> None:
    def at_once(replica: Replica, now: float = START) -> bool:
        return bool(replica.tell([changed(1)], now))

    pace = Pace(eager_datagrams_max=0, gather=1.0)
    assert at_once(leading(pace=pace)), "for a while behind a takeover"
    settled = leading(pace=pace)
    assert not at_once(settled, START + OVERLAP)
    settled = leading(pace=pace)
    settled.follow(START + OVERLAP)
    assert at_once(settled, START + OVERLAP), "while it drains"
