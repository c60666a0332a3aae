"""What would survive if a leader died now, and the status as an operator reads it."""

import json

import pytest

from lvsha.model import BUCKETS
from lvsha.sync.messages import Changes, PeerState, Progress, Role, SnapshotChunk, Standing
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.tally import Tally
from tests.replica_group import Group
from tests.replicas import (
    START,
    East,
    changed,
    connection,
    leading,
    make_replica,
    peers,
    replicating,
    started,
)

SLOW = Pace(live_datagrams_per_tick=1, tick=0.01)


def tally_of(established: int, exposed: int = 0, told: int | None = None) -> Tally:
    tally = Tally(1)
    tally.connections = tally.established = established
    tally.exposed = exposed
    tally.told = established - exposed if told is None else told
    return tally


def leader_of(tally: Tally, pace: Pace | None = None) -> Replica:
    replica = make_replica(tally=tally, pace=pace or Pace())
    replica.start(START)
    replica.lead(START)
    return replica


def follower(
    replica: Replica,
    node: str = "east",
    *,
    state: PeerState = PeerState.REPLICATE,
    position: int = 0,
    standing: Standing | None = None,
) -> East:
    east = East(replica, node=node)
    east.role, east.term = Role.FOLLOW, 0
    standing = standing or Standing(told=replica._tally.told)
    east.heartbeat(leader="west", state=state, position=position, standing=standing)
    return east


def ready(replica: Replica, now: float = START) -> dict[str, object]:
    figures = replica.status(now)["readiness"]
    assert isinstance(figures, dict)
    return figures


def coverage(replica: Replica) -> object:
    return ready(replica)["coverage"]


def test_only_a_leader_has_figures() -> None:
    assert started().status(START)["readiness"] is None
    assert ready(leading())["coverage"] == 0


def test_without_a_peer_nothing_would_survive() -> None:
    figures = ready(leader_of(tally_of(100)))
    assert figures == {
        "coverage": 0,
        "established": 100,
        "at_risk": 0,
        "lag_connections": 0,
        "lag_ms": 0,
    }


def test_with_a_peer_that_has_all_everything_would() -> None:
    replica = leader_of(tally_of(100))
    follower(replica)
    assert coverage(replica) == 1


def test_of_no_connections_all_would_survive() -> None:
    replica = leader_of(tally_of(0))
    follower(replica)
    assert coverage(replica) == 1


def test_what_was_not_told_yet_is_at_risk() -> None:
    replica = leader_of(tally_of(100, exposed=10))
    follower(replica)
    assert ready(replica)["at_risk"] == 10
    assert coverage(replica) == 0.9


def test_what_waits_in_the_queue_is_not_covered_and_its_age_is_the_lag() -> None:
    replica = leader_of(tally_of(100), SLOW)
    replica.tell([changed(0)], START)
    east = follower(replica, position=1)
    east.say(Progress(east.origin(), "west", 77, 1))
    replica.tell([changed(n) for n in range(1, 6)], START + 0.001)
    figures = ready(replica, START + 0.005)
    assert (figures["coverage"], figures["lag_connections"]) == (0.95, 5)
    assert figures["lag_ms"] == pytest.approx(4)


def test_what_is_on_its_way_is_not_covered_until_the_peer_has_told_its_progress() -> None:
    replica = leader_of(tally_of(100))
    east = follower(replica)
    replica.tell([changed(n) for n in range(20)], START)
    figures = ready(replica, START + 0.25)
    assert (figures["coverage"], figures["lag_connections"]) == (0.8, 20)
    assert figures["lag_ms"] == pytest.approx(250)
    east.say(Progress(east.origin(), "west", 77, 1))
    figures = ready(replica, START + 0.25)
    assert (figures["coverage"], figures["lag_connections"], figures["lag_ms"]) == (1, 0, 0)


def test_a_word_of_progress_that_is_lost_is_made_up_for_by_the_next_heartbeat() -> None:
    replica = leader_of(tally_of(100))
    east = follower(replica)
    east.say(Progress(east.origin(), "west", 77, 0))
    replica.tell([changed(n) for n in range(20)], START)
    assert ready(replica)["lag_connections"] == 20
    east.heartbeat(leader="west", state=PeerState.REPLICATE, position=1)
    figures = ready(replica, START + 1)
    assert (figures["coverage"], figures["lag_connections"], figures["lag_ms"]) == (1, 0, 0)


def test_numbers_that_a_peer_misses_count_as_so_many_changes_as_the_others_told() -> None:
    replica = leader_of(tally_of(100), Pace(eager_datagrams_max=3))
    for first in (0, 20):
        replica.tell([changed(n) for n in range(first, first + 10)], START)
    replica.tell([changed(40)], START + 0.01)
    follower(replica, position=3, standing=Standing(told=100, missing=2))
    figures = ready(replica)
    assert (figures["coverage"], figures["lag_connections"]) == (0.86, 14)
    follower(replica, position=3, standing=Standing(told=100))
    assert coverage(replica) == 1


def test_of_a_peer_that_has_not_compared_yet_what_it_has_counts() -> None:
    replica = leader_of(tally_of(100))
    follower(replica, state=PeerState.PROBE, standing=Standing(told=60))
    assert coverage(replica) == 0.6


@pytest.mark.parametrize("standing", [Standing(5110, wanted=51), Standing(5110, mismatched=51)])
def test_of_a_peer_that_is_behind_what_is_in_the_buckets_that_it_lacks_does_not_count(
    standing: Standing,
) -> None:
    replica = leader_of(tally_of(BUCKETS * 10))
    follower(replica, state=PeerState.SNAPSHOT, standing=standing)
    assert coverage(replica) == pytest.approx(1 - 51 / BUCKETS, abs=1e-6)


def test_one_peer_that_has_all_is_enough() -> None:
    replica = leader_of(tally_of(100))
    follower(replica, state=PeerState.PROBE, standing=Standing(told=0))
    assert coverage(replica) == 0
    follower(replica, "north")
    assert coverage(replica) == 1


def test_a_peer_that_is_silent_or_follows_another_does_not_count() -> None:
    replica = leader_of(tally_of(100))
    east = follower(replica)
    east.heartbeat(leader="north", state=PeerState.REPLICATE)
    assert coverage(replica) == 0
    east.heartbeat(leader="west", state=PeerState.REPLICATE)
    assert coverage(replica) == 1
    replica.expire(START + 10)
    assert ready(replica, START + 10)["coverage"] == 0


def test_a_peer_that_takes_every_sync_id_covers_nothing_before_it_has_all() -> None:
    group = Group()
    west = group.join("west", [connection(n) for n in range(1000)])
    zero = group.join("zero", sync_id=0)
    group.lost = lambda message, _to: isinstance(message, SnapshotChunk)
    group.lead(west)
    group.run(3)
    (seen,) = peers(west.replica, "zero", group.now)
    assert (seen["state"], ready(west.replica, group.now)["coverage"]) == ("SNAPSHOT", 0)
    group.lost = lambda _message, _to: False
    group.run(3)
    assert zero.table.content == west.table.content
    assert ready(west.replica, group.now)["coverage"] == 1


def test_coverage_is_never_below_nothing() -> None:
    replica = leader_of(tally_of(3, exposed=2), SLOW)
    follower(replica)
    replica.tell([changed(n) for n in range(50)], START)
    replica.tell([changed(n) for n in range(50, 90)], START)
    assert coverage(replica) == 0


def test_the_figures_of_a_whole_group_follow_what_happens() -> None:
    group = Group()
    east = group.join("east", [connection(n) for n in range(1000)])
    group.lead(east)
    assert ready(east.replica, group.now)["coverage"] == 0
    group.join("west")
    group.run(2)
    assert ready(east.replica, group.now)["coverage"] == 1
    group.lost = lambda message, _to: isinstance(message, Changes)
    group.change(east, *(changed(n, 7) for n in range(100)))
    group.run(0.1)
    figures = ready(east.replica, group.now)
    assert figures["lag_connections"] == 100
    assert figures["coverage"] == 0.9
    assert figures["lag_ms"] == pytest.approx(100)
    group.lost = lambda _message, _to: False
    group.run(1)
    figures = ready(east.replica, group.now)
    assert (figures["coverage"], figures["lag_connections"], figures["lag_ms"]) == (1, 0, 0)


# --- the status -------------------------------------------------------------------------------


def test_the_status_is_json() -> None:
    group = Group()
    east, west = group.join("east", [connection(1)]), group.join("west", digest=b"x" * 16)
    group.lead(east)
    group.run(3)
    for member in (east, west):
        status = member.replica.status(group.now)
        assert json.loads(json.dumps(status)) == status


def test_the_status_says_of_a_peer_how_far_it_is() -> None:
    group = Group()
    east, west = group.join("east", [connection(1)], epoch=5), group.join("west")
    group.lead(east)
    group.run(2)
    group.change(east, changed(2))
    group.run(1)
    (seen,) = peers(east.replica, "west", group.now)
    assert {name: seen[name] for name in ("role", "state", "follows", "complete", "level")} == {
        "role": "FOLLOW",
        "state": "REPLICATE",
        "follows": "east",
        "complete": True,
        "level": 2,
    }
    assert (seen["coverage"], seen["lag_ms"], seen["lag_connections"]) == (1, 0, 0)
    assert seen["position"] == east.replica.status(group.now)["sequence"]
    (led,) = peers(west.replica, "east", group.now)
    assert (led["role"], led["state"], led["epoch"]) == ("LEAD", "REPLICATE", 5)
    assert "coverage" not in led
    assert led["sequence"] == seen["position"]


def test_the_status_says_what_a_peer_has_reported_of_its_losses() -> None:
    replica = leader_of(tally_of(5))
    standing = Standing(told=5, missing=1, wanted=2, mismatched=3, lost=4, repaired=5)
    follower(replica, standing=standing)
    (peer,) = peers(replica, "east")
    assert peer["reported"] == {
        "datagrams_missing": 1,
        "datagrams_lost": 4,
        "datagrams_repaired": 5,
        "buckets_wanted": 2,
        "buckets_mismatched": 3,
    }


def test_the_status_of_a_follower_shows_its_own_losses() -> None:
    east = replicating()
    east.changes(connection(1), sequence=east.sequence + 3)
    (peer,) = peers(east.replica, "east", START + 0.004)
    assert (peer["gaps"], peer["datagrams_missing"], peer["heard_ms_ago"]) == (1, 2, 4.0)
    assert east.replica.status(START)["leader"] == "east"
    assert east.replica.status(START)["complete"] is False
