"""Groups of nodes that understand more and less, and nodes that come and go in them."""

from collections.abc import Iterable

from lvsha.model import ConnectionChanged, ConnectionDetails, ConnectionEnded, ConnectionRecord
from lvsha.sync.actions import Apply, Send
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL,
    LEVEL_PLAIN,
    Changes,
    Heartbeat,
    Message,
    PeerState,
    Role,
    SnapshotBegin,
    SnapshotRequest,
    SumsRequest,
)
from lvsha.sync.pace import Pace
from tests.replica_group import Group, Member
from tests.replicas import (
    SILENCE,
    START,
    East,
    Table,
    changed,
    connection,
    leading,
    replicating,
    sent_of,
    started,
    template,
)


def plain(table: Table) -> dict[bytes, ConnectionRecord]:
    """What level 1 has words for."""
    return {key: record for key, record in table.content.items() if not record.is_template}


def kinds(actions: Iterable[object]) -> set[int]:
    """The numbers of the types of what is sent."""
    heads = [a.datagram[4:] for a in actions if isinstance(a, Send)]
    # An array of at least 16 elements has a head of three bytes.
    return {head[3] if head[0] == 0xDC else head[1] for head in heads}


def test_a_leader_speaks_level_2_to_who_understands_it() -> None:
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    assert kinds(replica.tell([changed(1)], START)) == {12}


def test_a_leader_speaks_level_1_as_soon_as_it_hears_somebody_of_level_1() -> None:
    group = Group()
    east, west = group.join("east"), group.join("west")
    group.lead(east)
    group.run(1)
    assert east.replica.status(group.now)["level"] == LEVEL
    old = group.join("north", level=LEVEL_PLAIN)
    assert east.replica.status(group.now)["level"] == LEVEL_PLAIN
    group.run(2)
    group.change(east, changed(1), ConnectionChanged(template(1)))
    for member in (west, old):
        assert member.replica.complete
        assert plain(member.table) == plain(east.table) != {}
    assert template(1).key not in old.table.content


def test_a_pair_of_an_older_and_a_newer_node_works_both_ways() -> None:
    group = Group()
    old = group.join("old", [connection(n) for n in range(200)], level=LEVEL_PLAIN)
    new = group.join("new")
    group.lead(old)
    group.run(2)
    assert new.replica.complete
    assert new.table.content == old.table.content
    group.change(old, changed(300), ConnectionEnded(connection(3).key))
    assert new.table.content == old.table.content
    group.follow(old)
    group.lead(new)
    group.change(new, changed(400), ConnectionEnded(connection(4).key))
    group.run(5)
    assert old.replica.complete
    assert plain(old.table) == plain(new.table)
    group.follow(new)
    group.lead(old)
    group.run(5)
    assert new.replica.complete
    assert plain(old.table) == plain(new.table)


def test_templates_of_a_leader_of_level_1_are_not_swept_for_ever() -> None:
    group = Group()
    east, west = group.join("east", [template(1), connection(1)]), group.join("west")
    group.lead(east)
    group.run(1)
    assert west.table.content == east.table.content
    old = group.join("north", level=LEVEL_PLAIN)
    group.run(3)
    assert plain(west.table) == plain(east.table)
    del group.members[old.name]
    group.run(SILENCE + 3)
    assert east.replica.status(group.now)["level"] == LEVEL
    assert west.table.content == east.table.content
    assert west.replica.complete


def test_a_change_of_level_in_the_middle_of_a_snapshot_is_recovered_from() -> None:
    group = Group()
    records = [connection(n) for n in range(3000)] + [template(n) for n in range(100)]
    east = group.join("east", records, pace=Pace(snapshot_datagrams_per_tick=1))
    group.lead(east)
    group.run(1)
    west = group.join("west")
    while not east.replica.status(group.now)["snapshotting"]:
        group.run(0.002)
    old = group.join("north", level=LEVEL_PLAIN)
    group.run(5)
    for member in (west, old):
        assert member.replica.complete
        assert plain(member.table) == plain(east.table)


def test_a_node_of_level_1_that_comes_while_a_snapshot_is_sent_gets_one_of_its_own() -> None:
    group = Group()
    pace = Pace(snapshot_datagrams_per_tick=1)
    east = group.join("east", [connection(n) for n in range(3000)], pace=pace)
    group.lead(east)
    old = group.join("north", level=LEVEL_PLAIN)
    group.run(0.01)
    group.quiet()
    group.run(5)
    assert old.replica.complete
    assert old.table.content == east.table.content
    begins = group.messages(SnapshotBegin)
    assert all(begin.buckets == ALL_BUCKETS for begin in begins)


def test_a_silent_node_of_level_1_does_not_hold_the_others_back() -> None:
    group = Group()
    east, _ = group.join("east"), group.join("west")
    group.lead(east)
    old = group.join("north", level=LEVEL_PLAIN)
    group.run(1)
    assert east.replica.status(group.now)["level"] == LEVEL_PLAIN
    del group.members[old.name]
    group.run(SILENCE + 0.1)
    assert east.replica.status(group.now)["level"] == LEVEL


def test_who_has_not_said_what_it_understands_is_taken_for_one_like_us() -> None:
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    east.say(SumsRequest(east.origin(), "west", 77))
    assert replica.status(START)["level"] == LEVEL


def test_a_node_of_a_later_level_is_spoken_to_in_ours() -> None:
    replica = leading()
    east = East(replica)
    east.level = 200
    east.role = Role.FOLLOW
    east.heartbeat()
    assert replica.status(START)["level"] == LEVEL
    assert kinds(replica.tell([changed(1)], START)) == {12}


def test_a_leader_of_a_later_level_is_followed_in_ours() -> None:
    east = East(started())
    east.level = 200
    east.heartbeat()
    east.sums()
    assert east.state() == "REPLICATE"


def test_a_leader_that_speaks_otherwise_from_now_on_is_compared_with() -> None:
    east = replicating()
    message = Heartbeat(
        east.origin(), 0, bytes(16), "", PeerState.PROBE, 0, True, level=2, speaks=1
    )
    assert east.state() == "REPLICATE"
    east.say(message)
    assert east.state() == "PROBE"


def test_sums_that_a_leader_sent_before_it_spoke_level_1_are_not_compared() -> None:
    """Or only some buckets would be wanted, of which level 1 cannot be asked."""
    east = replicating()
    east.replica.resync(START)
    speaking_plainly = Heartbeat(
        east.origin(), 0, bytes(16), "", PeerState.PROBE, 0, True, level=2, speaks=1
    )
    east.say(speaking_plainly)
    east.tally = Table([connection(1)]).tally
    east.sums()
    assert east.state() == "PROBE"
    later = START + 1
    (request,) = sent_of(SnapshotRequest, east.replica.expire(later))
    assert request.buckets == ALL_BUCKETS


def test_the_snapshot_of_level_1_has_no_templates_and_counts_without_them() -> None:
    group = Group()
    records = [connection(1), template(1), template(2, b"call"), connection(2)]
    east = group.join("east", records)
    group.lead(east)
    old = group.join("north", level=LEVEL_PLAIN)
    group.run(2)
    assert old.replica.complete
    assert list(plain(old.table).values()) == [connection(1), connection(2)]
    assert len(old.table.content) == 2


def test_a_node_of_level_1_is_never_asked_for_sums_or_numbers() -> None:
    group = Group()
    old, new = group.join("old", level=LEVEL_PLAIN), group.join("new")
    group.lead(old)
    dropped: list[Message] = []

    def lose_some(message: Message, to: Member) -> bool:
        if isinstance(message, Changes) and not len(dropped) % 3:
            dropped.append(message)
            return True
        return False

    group.lost = lose_some
    for number in range(10):
        group.change(old, changed(number))
        group.run(0.2)
    group.run(2)
    assert dropped
    said = {type(message).__name__ for message in group.messages(object, "new")}  # type: ignore[type-var]
    assert said <= {"Heartbeat", "SnapshotRequest"}
    assert new.table.content == old.table.content


# --- fields of a later version ----------------------------------------------------------------


LATER = ConnectionDetails(mark=3, others=((77, b"later"), (40_000, bytes(20))))


def test_fields_of_a_later_version_are_applied_and_told_again_unchanged() -> None:
    record = connection(1)._replace(details=LATER)
    east = replicating()
    (applied,) = [a for a in east.changes(record) if isinstance(a, Apply)]
    assert applied.records == [record]
    replica = leading()
    (told,) = sent_of(Changes, replica.tell([ConnectionChanged(applied.records[0])], START))
    assert told.records == [record]


def test_fields_of_a_later_version_survive_a_takeover_and_a_snapshot() -> None:
    group = Group()
    record = connection(1)._replace(details=LATER)
    east, west = group.join("east", [record]), group.join("west")
    group.lead(east)
    group.run(2)
    assert west.table.content == {record.key: record}
    group.follow(east)
    group.lead(west)
    north = group.join("north")
    group.run(5)
    assert north.table.content == {record.key: record}


def test_fields_of_a_later_version_go_on_in_an_answer() -> None:
    group = Group()
    record = connection(1)._replace(details=LATER)
    east, west = group.join("east"), group.join("west")
    group.lead(east)
    group.run(2)
    west.table.apply([record])
    group.ask(east, record.key)
    assert east.table.content == {record.key: record}
