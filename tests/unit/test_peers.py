"""Who the other nodes are: epochs, terms, silence, and what is not believed."""

import pytest

from lvsha.sync.actions import Alarm, Apply, PeerChanged, Refused, Send
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import (
    HEARD_MAX,
    Heartbeat,
    Message,
    Origin,
    PeerState,
    Role,
    SnapshotChunk,
)
from lvsha.sync.overlap import DRAIN
from lvsha.sync.peers import (
    ALARM_INTERVAL,
    EPOCHS_REMEMBERED,
    PEER_FORGOTTEN,
    PEERS_MAX,
    TERM_JUMP_MAX,
)
from lvsha.sync.replica import Replica
from tests.replica_group import Group, Member
from tests.replicas import (
    DIGEST,
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
    assert replica.counters["refused_own_name"] == 3


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
    assert east.replica.counters["refused_malformed"] == 1


def test_a_message_of_a_later_version_is_counted_and_ignored() -> None:
    east = replicating()
    datagram = bytearray(encode(Heartbeat(east.origin(), 0, DIGEST, "", PeerState.PROBE, 0, True)))
    datagram[5] = 100
    assert east.replica.receive(bytes(datagram), START) == []
    assert east.replica.counters["unknown_type"] == 1


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


def test_a_role_that_comes_late_is_not_believed() -> None:
    east = replicating()
    east.role = Role.FOLLOW
    east.heartbeat()
    east.role = Role.LEAD
    east.heartbeat()
    assert peers(east.replica, "east")[0]["role"] == "FOLLOW"


@pytest.mark.parametrize("term", [TERM_JUMP_MAX + 1, 2**32 - 1])
def test_a_false_term_does_not_leave_the_next_leader_without_one(term: int) -> None:
    replica = started()
    east = East(replica)
    east.term = term
    assert east.heartbeat() == []
    assert replica.counters["refused_term"] == 1
    (message,) = sent(replica.lead(START))
    assert message.origin.term == 1


def test_a_peer_is_silent_after_its_time_and_heard_again() -> None:
    east = replicating()
    east.role = Role.FOLLOW
    east.heartbeat()
    assert PeerChanged("east", PeerState.REPLICATE, "silent") not in expire_until(
        east.replica, START + SILENCE - 0.001
    )
    assert PeerChanged("east", PeerState.REPLICATE, "silent") in east.replica.expire(
        START + SILENCE
    )
    actions = east.heartbeat(START + SILENCE)
    assert PeerChanged("east", PeerState.REPLICATE, "heard again") in actions


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
    listed = replica.status(START)["peers"]
    assert isinstance(listed, list)
    assert len(listed) == PEERS_MAX


def test_the_place_of_the_leader_is_given_to_nobody() -> None:
    east = replicating()
    for number in range(2 * PEERS_MAX):
        now = START + PEER_FORGOTTEN + number
        other = East(east.replica, node=f"node-{number}")
        other.role = Role.FOLLOW
        other.heartbeat(now)
    assert len(peers(east.replica, "east")) == 1


# --- epochs -----------------------------------------------------------------------------------


def test_an_old_epoch_that_goes_on_when_its_successor_is_silent_is_heard_again() -> None:
    # A datagram of a dead process that came late must not shut out the living one.
    replica = started()
    living = East(replica, epoch=6)
    living.heartbeat()
    East(replica, epoch=5).heartbeat()
    assert events(living.heartbeat()) == []
    assert replica.counters["refused_old_epoch"] == 1
    expire_until(replica, START + SILENCE)
    living.heartbeat(START + SILENCE)
    assert peers(replica, "east", START + SILENCE)[0]["epoch"] == 6


def test_the_epochs_that_were_replaced_are_remembered_up_to_a_number() -> None:
    replica = started()
    for epoch in range(EPOCHS_REMEMBERED + 2):
        East(replica, epoch=epoch).heartbeat()
    for epoch in range(EPOCHS_REMEMBERED + 1):
        East(replica, epoch=epoch).heartbeat()
    # The first was forgotten, and pushed the second out when it came again.
    assert replica.counters["refused_old_epoch"] < EPOCHS_REMEMBERED + 1
    peer = replica._home.peers.get("east")
    assert peer is not None
    assert len(peer.retired) <= EPOCHS_REMEMBERED


def test_a_restart_resets_what_the_old_process_had_said() -> None:
    replica = leading()
    old = East(replica, epoch=5)
    old.role = Role.FOLLOW
    old.heartbeat(leader="west", state=PeerState.REPLICATE, position=3)
    assert peers(replica, "east")[0]["state"] == "REPLICATE"
    new = East(replica, epoch=6)
    new.role, new.term = Role.FOLLOW, 0
    new.heartbeat()
    (peer,) = peers(replica, "east")
    assert (peer["state"], peer["position"], peer["term"]) == ("PROBE", 0, 0)


# --- proof ------------------------------------------------------------------------------------


def test_an_epoch_is_believed_only_when_it_has_named_ours() -> None:
    replica = started(proven=True)
    east = East(replica)
    assert events(east.heartbeat()) == []
    assert events(east.changes(connection(1))) == []
    assert events(east.heartbeat(heard=(78, 79))) == []
    assert peers(replica, "east") == []
    assert replica.counters["refused_unproven"] == 3
    assert PeerChanged("east", PeerState.PROBE, "heard") in east.heartbeat(heard=(78, 77))


def test_a_stranger_is_named_in_the_next_heartbeat_which_is_not_waited_for() -> None:
    replica = started(proven=True)
    expire_until(replica, START + 0.1)
    East(replica).heartbeat(START + 0.1)
    assert replica.deadline == START + 0.1
    (heartbeat,) = sent_of(Heartbeat, replica.expire(START + 0.1))
    assert heartbeat.heard == (5,)
    East(replica).heartbeat(START + 0.11)
    assert replica.deadline is not None
    assert replica.deadline > START + 0.2, "a stranger that goes on is not worth another"


def proven_pair() -> tuple[Group, Member, Member]:
    group = Group()
    east = group.join("east", [connection(1)], proven=True, epoch=1)
    west = group.join("west", proven=True, epoch=2)
    group.lead(east)
    return group, east, west


def test_two_nodes_believe_each_other_within_two_heartbeats() -> None:
    group, east, west = proven_pair()
    group.run(2 * HEARTBEAT)
    assert "west" in east.replica._home.peers
    assert "east" in west.replica._home.peers
    group.run(2 * HEARTBEAT)
    assert west.replica.complete
    assert west.table.content == east.table.content


def test_a_node_that_takes_every_sync_id_and_the_others_believe_each_other() -> None:
    group, east, _ = proven_pair()
    zero = group.join("zero", proven=True, epoch=3, sync_id=0)
    group.run(4 * HEARTBEAT)
    (seen,) = peers(east.replica, "zero", group.now)
    assert (seen["role"], seen["state"], seen["follows"]) == ("FOLLOW", "REPLICATE", "east")
    assert zero.table.content == east.table.content
    assert (seen["complete"], zero.replica.complete) == (True, True)
    origins = {(m.origin.sync_id, m.origin.role, m.origin.term) for m in said_by(group, "zero")}
    assert origins == {(0, Role.FOLLOW, 0), (1, Role.FOLLOW, 0)}
    group.change(east, changed(9))
    assert zero.table.content == east.table.content
    assert len(zero.table.content) == 2


def test_a_node_that_takes_every_sync_id_is_complete_only_when_it_has_all() -> None:
    group, _, _ = proven_pair()
    group.join("zero", proven=True, epoch=3, sync_id=0)
    group.lost = lambda message, _to: isinstance(message, SnapshotChunk)
    group.run(5 * SILENCE)
    heartbeats = [m for m in said_by(group, "zero") if m.origin.sync_id == 1]
    assert len(heartbeats) >= 4 * SILENCE / HEARTBEAT
    assert not any(heartbeat.complete for heartbeat in heartbeats)
    group.lost = lambda _message, _to: False
    group.run(4 * HEARTBEAT)
    assert said_by(group, "zero")[-1].complete
    del group.members["east"], group.members["west"]
    group.run(2 * SILENCE)
    assert not said_by(group, "zero")[-1].complete, "what its leader told last may be lost"


def said_by(group: Group, node: str) -> list[Heartbeat]:
    return group.messages(Heartbeat, node)


def test_a_recording_of_an_old_epoch_is_refused_by_a_node_that_has_restarted() -> None:
    group, east, _ = proven_pair()
    recorded: list[bytes] = []

    def record(message: Message, to: Member) -> bool:
        if message.origin.node == "east":
            recorded.append(encode(message))
        return False

    group.lost = record
    group.run(2)
    group.change(east, changed(9))
    group.run(2)
    assert len(recorded) > 5
    # Nobody is there but the recording, which is of an epoch that this process never heard.
    alone = started("west", proven=True, epoch=3)
    happened = [action for d in recorded for action in alone.receive(d, START)]
    assert [a for a in happened if isinstance(a, Apply | PeerChanged)] == []
    assert peers(alone, "east") == []
    assert alone.counters["refused_unproven"] == len(recorded)
    assert leader_of(alone) is None


def leader_of(replica: Replica) -> object:
    return replica.status(START)["leader"]


def test_a_recording_does_not_replace_the_process_that_lives() -> None:
    group, east, west = proven_pair()
    group.run(2)
    ghost = Origin(1, "east", 999, Role.LEAD, 50, 1)
    heartbeat = Heartbeat(
        ghost, 0, DIGEST, "", PeerState.PROBE, 0, True, level=2, speaks=2, heard=(1, 7)
    )
    assert events(west.replica.receive(encode(heartbeat), group.now)) == []
    assert peers(west.replica, "east")[0]["epoch"] == east.replica.epoch


def test_strangers_that_are_remembered_are_bounded_and_forgotten() -> None:
    replica = started(proven=True)
    for number in range(100):
        East(replica, epoch=number, node=f"node-{number}").heartbeat()
    assert len(replica._home.peers._strangers) <= HEARD_MAX
    heard = replica._home.peers.heard_epochs(START)
    assert heard == tuple(range(99, 99 - HEARD_MAX, -1)), "the newest are named"
    assert replica._home.peers.heard_epochs(START + SILENCE) == ()


def test_a_living_node_is_believed_in_spite_of_many_strangers() -> None:
    group, _, _ = proven_pair()
    group.run(2)
    north = group.join("north", proven=True, epoch=12)
    for number in range(100, 150):
        for member in group.members.values():
            East(member.replica, epoch=number, node=f"node-{number}").heartbeat(group.now)
    group.run(2 * HEARTBEAT)
    assert len(list(north.replica._home.peers)) == 2
