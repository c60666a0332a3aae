"""Questions about connections that a node does not know."""

import pytest

from lvsha.model import ConnectionEnded
from lvsha.sync.actions import Apply, Deny, LookUp
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import KEYS_MAX, Answer, Origin, Question, Role
from lvsha.sync.questions import OPEN_MAX, PATIENCE, WAITS, Questions
from lvsha.sync.replica import Replica
from tests.replica_group import Group
from tests.replicas import (
    HEARTBEAT,
    START,
    East,
    changed,
    connection,
    events,
    expire_until,
    leading,
    replicating,
    sent_of,
    started,
    template,
)

WEST = Origin(1, "west", 77, Role.LEAD, 1, 0)
DATAGRAM_MAX = 1400


def key(number: int) -> bytes:
    return connection(number).key


def asked(
    questions: Questions,
    *keys: bytes,
    listeners: tuple[str, ...] = ("east", "north"),
    now: float = 0.0,
) -> list[tuple[bytes, ...]]:
    return [question.keys for question in questions.ask(keys, listeners, WEST, now)]


def answer(node: str, known: tuple[int, ...] = (), unknown: tuple[int, ...] = ()) -> Answer:
    origin = Origin(1, node, 5, Role.FOLLOW, 0, 0)
    records = [connection(number) for number in known]
    return Answer(origin, "west", records, tuple(map(key, unknown)))


def test_a_question_is_asked_once_while_it_is_open() -> None:
    questions = Questions(DATAGRAM_MAX)
    assert asked(questions, key(1), key(2)) == [(key(1), key(2))]
    assert asked(questions, key(2), key(3)) == [(key(3),)]
    assert not list(questions.expire(WEST, PATIENCE))
    assert not questions
    assert asked(questions, key(2), now=PATIENCE) == [(key(2),)]


def test_nobody_is_asked_when_nobody_listens() -> None:
    questions = Questions(DATAGRAM_MAX)
    assert asked(questions, key(1), listeners=()) == []
    assert not questions


def test_many_keys_take_several_datagrams() -> None:
    parts = asked(Questions(DATAGRAM_MAX), *map(key, range(100)))
    assert [len(part) for part in parts] == [KEYS_MAX, KEYS_MAX, KEYS_MAX, 4]
    parts = asked(Questions(150), *map(key, range(100)))
    assert max(len(encode(Question(WEST, part))) for part in parts) <= 150
    assert [k for part in parts for k in part] == list(map(key, range(100)))


def test_a_key_longer_than_the_room_is_asked_alone() -> None:
    long = template(1, b"c" * 255).key
    parts = asked(Questions(300), key(1), long, key(2))
    assert parts == [(key(1),), (long,), (key(2),)]


def test_no_more_questions_are_open_than_there_is_room_for() -> None:
    questions = Questions(DATAGRAM_MAX)
    parts = asked(questions, *map(key, range(OPEN_MAX + 50)))
    assert sum(map(len, parts)) == OPEN_MAX
    assert asked(questions, key(OPEN_MAX + 1)) == []


def test_the_first_who_knows_a_connection_answers() -> None:
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1))
    assert questions.answered(answer("east", known=(1,)), ("east",)) == ([connection(1)], ())
    assert questions.answered(answer("north", known=(1,)), ("east",)) == ([], ())


def test_what_was_not_asked_is_not_brought_in() -> None:
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1))
    assert questions.answered(answer("east", (2,), (3,)), ("east",)) == ([], ())


def test_all_who_are_heard_must_deny_a_connection() -> None:
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1))
    assert questions.answered(answer("east", (), (1,)), ("east", "north")) == ([], ())
    assert questions.answered(answer("east", (), (1,)), ("east", "north")) == ([], ())
    assert questions.answered(answer("north", (), (1,)), ("east", "north")) == ([], (key(1),))
    assert not questions


def test_a_question_that_something_newer_has_answered_is_closed() -> None:
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1))
    questions.close([key(1), key(2)])
    assert questions.answered(answer("east", known=(1,)), ("east",)) == ([], ())


def test_questions_are_closed_when_their_time_is_over() -> None:
    assert Questions(DATAGRAM_MAX).deadline is None
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1))
    asked(questions, key(2), now=0.2)
    again(questions, until=0.4)
    assert questions.deadline == PATIENCE
    assert not list(questions.expire(WEST, PATIENCE))
    assert questions.deadline == 0.2 + PATIENCE


def again(questions: Questions, until: float) -> list[tuple[float, tuple[bytes, ...]]]:
    """What is asked again, and when."""
    found: list[tuple[float, tuple[bytes, ...]]] = []
    while (now := questions.deadline) is not None and now <= until:
        found += [(now, question.keys) for question in questions.expire(WEST, now)]
    return found


def test_a_question_that_nobody_answers_is_asked_again_a_few_times() -> None:
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1), key(2))
    asked(questions, key(3), now=WAITS[0] / 2)
    questions.close([key(2)])
    at = [sum(WAITS[:count]) for count in range(1, len(WAITS) + 1)]
    expected = [(each, (key(1),)) for each in at]
    expected += [(WAITS[0] / 2 + each, (key(3),)) for each in at]
    found = again(questions, until=PATIENCE * 2)
    assert [keys for _, keys in found] == [keys for _, keys in sorted(expected)]
    assert [now for now, _ in found] == pytest.approx([now for now, _ in sorted(expected)])


def test_who_leads_no_more_asks_nothing_again() -> None:
    questions = Questions(DATAGRAM_MAX)
    asked(questions, key(1))
    questions.forget()
    assert questions.deadline is None
    assert not questions


# --- between replicas -------------------------------------------------------------------------


def test_a_leader_gets_a_connection_from_the_peer_that_has_it_and_tells_it_to_all() -> None:
    group = Group()
    west, east, north = group.join("west"), group.join("east"), group.join("north")
    group.run(5)
    group.lead(west)
    group.run(5)
    # Only east knows it: the answer to a question that was asked before it was swept, say.
    east.table.apply([connection(1, 4)])
    group.ask(west, key(1))
    assert west.table.content == {key(1): connection(1, 4)}
    assert north.table.content == west.table.content
    assert west.table.denied == []
    assert west.replica.counters["connections_found"] == 1


def test_a_connection_that_no_peer_knows_is_denied() -> None:
    group = Group()
    west = group.join("west")
    group.join("east")
    group.join("north")
    group.run(5)
    group.lead(west)
    group.run(1)
    group.ask(west, key(1))
    assert west.table.denied == [key(1)]


def test_a_peer_whose_copy_is_not_complete_denies_nothing() -> None:
    group = Group()
    west = group.join("west")
    group.run(5)
    group.lead(west)
    group.lost = lambda message, _to: message.origin.node == "west"
    group.join("east", [connection(1)])
    group.run(1)
    group.lost = lambda message, _to: not isinstance(message, Question | Answer)
    group.ask(west, key(1), key(2))
    assert west.table.denied == []
    assert list(west.table.content) == [key(1)]


def test_only_a_leader_asks() -> None:
    replica = started()
    East(replica).heartbeat()
    assert replica.ask([key(1)], START) == []


def asking() -> East:
    """A follower that the replica, which leads, has asked for two connections."""
    replica = leading()
    east = East(replica)
    east.role = Role.FOLLOW
    east.heartbeat()
    (question,) = sent_of(Question, replica.ask([key(1), key(2)], START))
    assert question.keys == (key(1), key(2))
    return east


def test_what_is_found_is_applied_and_told_and_what_is_denied_is_reported() -> None:
    east = asking()
    actions = east.say(Answer(east.origin(), "west", [connection(1)], (key(2),)))
    assert events(actions) == [Apply([connection(1)]), Deny((key(2),))]
    assert east.replica.counters["changes_sent"] == 1


def test_an_answer_to_another_node_is_not_used() -> None:
    east = asking()
    assert east.say(Answer(east.origin(), "north", [connection(1)], (key(2),))) == []


def test_an_answer_to_who_leads_no_longer_is_not_used() -> None:
    east = asking()
    east.replica.follow(START)
    assert events(east.say(Answer(east.origin(), "west", [connection(1)], (key(2),)))) == []


def test_an_answer_does_not_undo_what_has_happened_since() -> None:
    east = asking()
    east.replica.tell([changed(1, 7), ConnectionEnded(key(2))], START)
    assert events(east.say(Answer(east.origin(), "west", [connection(1), connection(2)], ()))) == []


def test_what_the_leader_before_still_tells_is_newer_than_an_answer() -> None:
    replica = started()
    replicating(replica)
    north = East(replica, node="north")
    north.role = Role.FOLLOW
    north.heartbeat()
    replica.lead(START)
    replica.ask([key(1)], START)
    east = East(replica, epoch=5)
    east.role, east.sequence = Role.DRAIN, 0
    assert Apply([connection(1, 9)]) in east.changes(connection(1, 9))
    assert events(north.say(Answer(north.origin(), "west", [connection(1, 1)], ()))) == []


def test_a_peer_that_is_silent_is_not_waited_for() -> None:
    east = asking()
    replica = east.replica
    later = START + 10
    replica.expire(later)
    assert replica.ask([key(3)], later) == []
    east.heartbeat(later)
    assert len(sent_of(Question, replica.ask([key(3)], later))) == 1


def test_a_leader_asks_again_until_it_leads_no_more() -> None:
    def asked_later(replica: Replica) -> int:
        return len(sent_of(Question, expire_until(replica, START + PATIENCE)))

    assert asked_later(asking().replica) == len(WAITS)
    replica = asking().replica
    replica.follow(START)
    assert asked_later(replica) == 0


def test_a_question_is_looked_up_by_any_node() -> None:
    east = replicating()
    question = Question(east.origin(), (key(1),))
    assert events(east.say(question)) == [LookUp("east", (key(1),))]
    assert events(east.say(Question(east.origin(), ()))) == []
    (said,) = sent_of(Answer, east.replica.answer("east", [key(1), key(2)], [connection(1)], START))
    assert (said.asker, said.records, said.unknown) == ("east", [connection(1)], (key(2),))


def test_a_question_opens_no_longer_than_its_patience() -> None:
    east = asking()
    assert east.replica.deadline is not None
    assert east.replica.deadline <= START + min(PATIENCE, HEARTBEAT)
    east.replica.expire(START + PATIENCE)
    answer = Answer(east.origin(), "west", [connection(1)], (key(2),))
    assert events(east.say(answer, START + PATIENCE)) == []
