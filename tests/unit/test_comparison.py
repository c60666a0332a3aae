"""Configurations that differ between nodes, and what is said of it."""

from collections.abc import Sequence

from lvsha.sync.actions import Action, ConfigurationAgrees, ConfigurationDiffers, Send
from lvsha.sync.configuration import NAMES_MAX, PARTS_PER_HEARTBEAT, PIECES_MAX, ROUND_PAUSE
from lvsha.sync.messages import Configuration, Heartbeat
from lvsha.sync.replica import Replica
from tests.replicas import (
    DIGEST,
    HEARTBEAT,
    START,
    East,
    make_replica,
    replicating,
    sent_of,
    started,
)

OTHER = b"x" * 16


def exchange(ours: Replica, theirs: Replica, until: float, since: float = START) -> list[Action]:
    """Let two replicas talk; what ours reports."""
    seen: list[Action] = []
    now = since
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


def pair(
    ours: dict[str, bytes], theirs: dict[str, bytes], theirs_digest: bytes = OTHER
) -> tuple[Replica, Replica]:
    west = make_replica(digests=ours)
    east = make_replica("east", digest=theirs_digest, digests=theirs)
    west.start(START)
    east.start(START)
    return west, east


def test_a_difference_of_configuration_is_named() -> None:
    same = {"sync": b"1", "nodes.east": b"2"}
    ours, theirs = pair(
        same | {"services.web": b"3", "services.dns": b"4"},
        same | {"services.web": b"5", "limits": b"6"},
    )
    seen = differences(exchange(ours, theirs, START + 5))
    assert seen == [
        ConfigurationDiffers("east", ()),
        ConfigurationDiffers("east", ("limits", "services.dns", "services.web")),
    ]
    assert ours.status(START + 5)["configuration_differs"] == {
        "east": ["limits", "services.dns", "services.web"]
    }


def test_a_long_description_takes_several_datagrams_and_many_names_are_counted() -> None:
    many = {f"services.a{number}": b"1" * 16 for number in range(500)}
    ours, theirs = pair(many, {"sync": b"1" * 16})
    unknown, known = differences(exchange(theirs, ours, START + 5))
    assert unknown.names == ()
    assert len(known.names) == NAMES_MAX
    assert known.names[-1] == f"and {501 - NAMES_MAX + 1} more"


def test_a_description_keeps_to_the_size_of_a_datagram_and_a_few_parts_at_once() -> None:
    many = {"n" * 127 + str(number): b"1" * 32 for number in range(500)}
    replica = make_replica("w" * 63, digests={name[-127:]: d for name, d in many.items()})
    replica.start(START)
    East(replica).heartbeat(digest=OTHER)
    actions = replica.expire(START + HEARTBEAT)
    parts = sent_of(Configuration, actions)
    assert len(parts) == PARTS_PER_HEARTBEAT
    assert max(len(a.datagram) for a in actions if isinstance(a, Send)) <= 1400


def test_a_lost_part_comes_with_a_later_round() -> None:
    many = {f"services.a{number}": b"1" * 16 for number in range(200)}
    ours, theirs = pair({"sync": b"1"}, many)
    dropped = False
    now, seen = START, list[Action]()
    while now < START + ROUND_PAUSE + 5:
        for speaker, hearer in ((ours, theirs), (theirs, ours)):
            for action in speaker.expire(now):
                if not isinstance(action, Send):
                    continue
                if not dropped and sent_of(Configuration, [action]) and speaker is theirs:
                    dropped = True
                    continue
                actions = hearer.receive(action.datagram, now)
                seen += actions if hearer is ours else []
        now += HEARTBEAT
    assert dropped
    assert [bool(d.names) for d in differences(seen)] == [False, True]


def test_a_peer_with_more_pieces_than_are_remembered_differs_without_saying_where() -> None:
    replica = started()
    east = East(replica)
    east.heartbeat(digest=OTHER)
    pieces = tuple((f"p{n}", b"1") for n in range(60))
    parts = PIECES_MAX // 60 + 2
    seen = [
        action
        for part in range(parts)
        for action in east.say(Configuration(east.origin(), OTHER, part, parts, pieces))
    ]
    assert differences(seen) == []
    difference = replica._comparison._differences["east"]
    assert sum(map(len, difference.received.values())) <= PIECES_MAX


def test_agreement_after_a_difference_is_reported() -> None:
    east = replicating()
    assert east.heartbeat(digest=OTHER) == [ConfigurationDiffers("east", ())]
    assert east.heartbeat(digest=OTHER) == []
    assert east.heartbeat() == [ConfigurationAgrees("east")]


def test_a_configuration_in_agreement_sends_no_description() -> None:
    ours, theirs = pair({}, {}, DIGEST)
    exchange(ours, theirs, START + 5)
    assert ours.counters["datagrams_sent"] <= 12


def test_a_description_of_another_configuration_than_the_heartbeats_is_not_used() -> None:
    east = replicating()
    east.heartbeat(digest=OTHER)
    part = Configuration(east.origin(), b"y" * 16, 0, 1, (("sync", b"1"),))
    assert differences(east.say(part)) == []


# --- changes while a node runs ----------------------------------------------------------------


def test_a_changed_configuration_is_in_the_next_heartbeat() -> None:
    replica = started()
    assert replica.configure(OTHER, {"sync": b"2"}, START) == []
    (heartbeat,) = sent_of(Heartbeat, replica.expire(START + HEARTBEAT))
    assert heartbeat.digest == OTHER


def test_who_changes_to_what_the_peer_has_agrees_with_it() -> None:
    east = replicating()
    east.heartbeat(digest=OTHER)
    assert east.replica.configure(OTHER, {}, START) == [ConfigurationAgrees("east")]
    assert east.replica.configure(OTHER, {}, START) == []
    assert east.heartbeat(digest=OTHER) == []


def test_a_service_changed_on_one_node_alone_is_named_until_the_other_follows() -> None:
    before, after = {"services.web": b"1"}, {"services.web": b"2"}
    ours, theirs = pair(before, before, DIGEST)
    assert differences(exchange(ours, theirs, START + 2)) == []
    theirs.configure(OTHER, after, START + 2)
    seen = exchange(ours, theirs, START + 4, START + 2)
    assert [d.names for d in differences(seen)] == [(), ("services.web",)]
    seen = ours.configure(OTHER, after, START + 4)
    seen += exchange(ours, theirs, START + 6, START + 4)
    assert ConfigurationAgrees("east") in seen
    assert ours.status(START + 6)["configuration_differs"] == {}
    assert theirs.status(START + 6)["configuration_differs"] == {}


def test_another_difference_after_a_change_is_named_anew() -> None:
    ours, theirs = pair({"services.web": b"1"}, {"services.web": b"2"})
    exchange(ours, theirs, START + 3)
    ours.configure(b"z" * 16, {"services.web": b"2", "limits": b"3"}, START + 3)
    seen = exchange(ours, theirs, START + 10, START + 3)
    assert [d.names for d in differences(seen)] == [("limits",)]
