import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.model import (
    BUCKETS,
    ConnectionChange,
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
)
from lvsha.runs import Run
from lvsha.sync.actions import Action, Apply, Deny, Forget, LookUp, ProvideSnapshot, Send
from lvsha.sync.catching_up import SNAPSHOTS_MAX
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.history import History
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL,
    LEVEL_PLAIN,
    Answer,
    Changes,
    Configuration,
    GapRequest,
    Heartbeat,
    Message,
    Origin,
    PeerState,
    Progress,
    Question,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Standing,
    Sums,
    SumsRequest,
)
from lvsha.sync.pace import Pace
from lvsha.sync.questions import OPEN_MAX, Questions
from lvsha.sync.replica import Replica
from lvsha.sync.source import RESEND_MAX
from lvsha.sync.stream import REORDER_WAIT, Admission, Stream
from tests.replica_group import Group, Member
from tests.replicas import DIGEST, Table, connection, make_replica, template

KEYS = st.one_of(
    st.integers(0, 5).map(lambda number: connection(number).key),
    st.integers(0, 2).map(lambda number: template(number, b"call").key),
)
RECORDS = st.one_of(
    st.builds(connection, st.integers(0, 5), st.integers(0, 9)),
    st.builds(template, st.integers(0, 2), st.just(b"call")),
)
SMALL = st.integers(0, 12)
NODES = st.sampled_from(("west", "east"))
EPOCHS = st.sampled_from((1, 2, 7))
SETS = st.one_of(st.just(ALL_BUCKETS), st.integers(0, 2**7 - 1))
SEVERAL = st.lists(RECORDS, max_size=3)
ORIGINS = st.builds(
    Origin,
    st.sampled_from((0, 1, 1, 1, 1, 2)),
    st.sampled_from(("east", "north", "west")),
    st.integers(1, 3),
    st.sampled_from(Role),
    st.integers(0, 3),
    st.one_of(SMALL, SMALL, SMALL, st.integers(0, 2**64 - 1)),
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Heartbeat,
        ORIGINS,
        SMALL,
        st.sampled_from((DIGEST, b"x" * 16)),
        st.sampled_from(("", "west", "east")),
        st.sampled_from(PeerState),
        SMALL,
        st.booleans(),
        level=st.sampled_from((LEVEL_PLAIN, LEVEL, LEVEL, 9)),
        speaks=st.sampled_from((LEVEL_PLAIN, LEVEL, LEVEL)),
        oldest=SMALL,
        heard=st.sampled_from(((), (7,), (8, 7))),
        standing=st.builds(Standing, SMALL, SMALL, st.booleans()),
    ),
    st.builds(Changes, ORIGINS, SEVERAL, st.lists(KEYS, max_size=3)),
    st.builds(SnapshotRequest, ORIGINS, NODES, EPOCHS, SMALL, SETS),
    st.builds(SnapshotBegin, ORIGINS, SETS),
    st.builds(SnapshotChunk, ORIGINS, SMALL, SEVERAL),
    st.builds(SnapshotEnd, ORIGINS, SMALL, SMALL),
    st.builds(
        Configuration,
        ORIGINS,
        st.just(b"x" * 16),
        st.integers(0, 2),
        st.integers(3, 4),
        st.lists(st.tuples(st.sampled_from("abc"), st.just(b"1")), max_size=2).map(tuple),
    ),
    st.builds(
        GapRequest,
        ORIGINS,
        NODES,
        EPOCHS,
        st.lists(st.tuples(SMALL, st.integers(0, 2**32 - 1)), max_size=3).map(tuple),
    ),
    st.builds(SumsRequest, ORIGINS, NODES, EPOCHS),
    st.builds(
        Sums,
        ORIGINS,
        st.sampled_from((0, 128, 256, 383)),
        st.sampled_from(((0,) * 128, (1,) * 128)),
        st.booleans(),
    ),
    st.builds(Progress, ORIGINS, NODES, EPOCHS, st.integers(0, 2**64 - 1)),
    st.builds(Question, ORIGINS, st.lists(KEYS, max_size=3).map(tuple)),
    st.builds(Answer, ORIGINS, NODES, SEVERAL, st.lists(KEYS, max_size=3).map(tuple)),
)
CALLS = ("lead", "follow", "resync", "expire", "tell", "ask", "configure", "wait")
STEPS = st.lists(
    st.one_of(st.tuples(MESSAGES, st.sampled_from((LEVEL, LEVEL_PLAIN))), st.sampled_from(CALLS)),
    max_size=60,
)


def call(replica: Replica, step: str, now: float) -> list[Action]:
    match step:
        case "lead":
            return replica.lead(now)
        case "follow":
            return replica.follow(now)
        case "resync":
            return replica.resync(now)
        case "tell":
            ended = ConnectionEnded(connection(2).key)
            return replica.tell([ConnectionChanged(connection(1)), ended], now)
        case "ask":
            return replica.ask([connection(number).key for number in range(6)], now)
        case "configure":
            return replica.configure(b"x" * 16, {"a": b"2"}, now)
        case _:
            return replica.expire(now)


def within_bounds(replica: Replica) -> None:
    source = replica._source
    assert len(source._resend) <= RESEND_MAX
    assert source.queued <= replica._pace.queue_max
    assert len(replica._questions._open) <= OPEN_MAX
    for copy in (replica._home, *replica._others.values()):
        assert len(copy.catching_up._snapshots) <= SNAPSHOTS_MAX
        assert 0 <= copy.catching_up.unasked <= copy.catching_up.wanted <= ALL_BUCKETS


@settings(max_examples=400)
@given(st.sampled_from((0, 1)), st.booleans(), st.sampled_from((0, 3000)), STEPS)
def test_no_sequence_of_messages_and_calls_breaks_a_replica(
    sync_id: int, proven: bool, rate: int, steps: list[tuple[Message, int] | str]
) -> None:
    replica = make_replica(
        sync_id=sync_id,
        epoch=7,
        digests={"a": b"1"},
        datagram_max=500,
        pace=Pace(bytes_per_second=rate, queue_max=3),
        proven=proven,
    )
    now = 0.0
    replica.start(now)
    for step in steps:
        if isinstance(step, str):
            spinning = 0
            if step == "wait":
                now += 0.3
            elif step == "expire":
                assert replica.deadline is not None
                now = max(now, replica.deadline)
            actions = call(replica, step, now)
            while step == "expire" and replica.deadline is not None and replica.deadline <= now:
                # A deadline that stays in the past would make the shell spin.
                spinning += 1
                assert spinning < 3
                actions += replica.expire(now)
        else:
            message, level = step
            actions = replica.receive(encode(message, level), now)
        for action in list(actions):
            match action:
                case ProvideSnapshot():
                    actions += replica.snapshot(
                        iter([Run(connection(1), [connection(1).key]), None]), now
                    )
                case LookUp():
                    actions += replica.answer(action.asker, action.keys, [connection(1)], now)
                case _:
                    pass
        for action in actions:
            if isinstance(action, Send):
                assert len(action.datagram) <= 500
                assert decode(action.datagram).origin.node == "west"
        within_bounds(replica)
        assert replica.deadline is not None
        assert replica.status(now)["node"] == "west"


@given(st.binary(max_size=100))
def test_no_bytes_break_a_replica(noise: bytes) -> None:
    replica = make_replica()
    replica.start(0.0)
    before = replica.deadline
    assert not any(isinstance(action, Send) for action in replica.receive(noise, 0.0))
    assert replica.deadline == before


# --- order ------------------------------------------------------------------------------------


CHANGES: st.SearchStrategy[list[ConnectionChange]] = st.lists(
    st.one_of(
        st.builds(
            lambda number, state: ConnectionChanged(connection(number, state)),
            st.integers(0, 9),
            st.integers(0, 9),
        ),
        st.builds(lambda number: ConnectionEnded(connection(number).key), st.integers(0, 9)),
    ),
    max_size=60,
)


def used(table: Table, actions: list[Action]) -> None:
    for action in actions:
        if isinstance(action, Apply):
            table.apply(action.records)
        elif isinstance(action, Forget):
            table.forget(action.keys)


def pair(level: int) -> tuple[Replica, Replica, Table]:
    pace = Pace(eager_datagrams_max=1000, live_datagrams_per_tick=1000)
    source = make_replica("east", epoch=1, datagram_max=500, pace=pace, level=level)
    table = Table()
    copy = make_replica("west", epoch=2, datagram_max=500, tally=table.tally)
    source.start(0.0)
    copy.start(0.0)
    return source, copy, table


@given(CHANGES, st.integers(1, 6), st.integers(0, 2**32), st.sampled_from((LEVEL, LEVEL_PLAIN)))
def test_datagrams_in_any_order_leave_the_state_that_their_order_of_sending_gives(
    changes: list[ConnectionChange], group: int, seed: int, level: int
) -> None:
    source, copy, table = pair(level)
    datagrams = [a.datagram for a in source.lead(0.0) if isinstance(a, Send)]
    used(table, copy.receive(datagrams.pop(), 0.0))
    truth: dict[bytes, ConnectionRecord] = {}
    for first in range(0, len(changes), group):
        part = changes[first : first + group]
        for change in part:
            if isinstance(change, ConnectionChanged):
                truth[change.record.key] = change.record
            else:
                truth.pop(change.key, None)
        datagrams += [a.datagram for a in source.tell(part, 0.0) if isinstance(a, Send)]
    shuffled = datagrams * 2
    random.Random(seed).shuffle(shuffled)
    for datagram in shuffled:
        used(table, copy.receive(datagram, 0.0))
    assert table.content == truth


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 40), st.booleans())
def test_a_stream_admits_each_number_once_and_remembers_no_more_than_it_may(
    sequences: list[int], missing_max: int, may_ask: bool
) -> None:
    stream = Stream(1, missing_max=missing_max, touched_max=5)
    admitted: set[int] = set()
    for step, sequence in enumerate(sequences):
        now = step * REORDER_WAIT / 4
        for first, count in stream.expire(now, may_ask=may_ask):
            asked = set(range(first, first + count))
            assert not asked & admitted, "what is here is not asked for"
            assert max(asked) <= stream.position
        if stream.admit(sequence, now) is not Admission.REFUSED:
            assert sequence not in admitted
            admitted.add(sequence)
            stream.fresh(sequence.to_bytes(), sequence)
        stream.settle()
        assert len(stream._missing) <= missing_max
        assert len(stream._touched) <= 5
        assert stream.guarded == bool(stream._missing)
    now = 1e9
    while stream.deadline is not None:
        now += 1
        stream.expire(now, may_ask=may_ask)
    # Every number up to the highest was either used or is counted as lost.
    assert len(admitted) + stream.lost_total == stream.position
    lost, highest = stream.take_lost()
    assert lost == stream.lost_total
    assert lost == 0 or (highest not in admitted and highest <= stream.position)


@given(st.lists(st.integers(0, 400), max_size=80), st.integers(0, 2000))
def test_a_history_has_the_newest_and_no_more_than_it_may(
    lengths: list[int], bytes_max: int
) -> None:
    history = History(bytes_max)
    for number, length in enumerate(lengths):
        history.add(number, bytes(length), length % 5, float(number))
    here = [n for n in range(len(lengths)) if history.find(n) is not None]
    assert sum(lengths[n] for n in here) <= bytes_max
    assert here == list(range(len(lengths)))[len(lengths) - len(here) :]
    assert history.oldest == (here[0] if here else None)
    changes = [lengths[n] % 5 for n in here]
    assert history.mean_changes == (sum(changes) / len(here) if here else 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), max_size=60))
def test_a_question_is_denied_once_and_by_all_or_not_at_all(
    answers: list[tuple[int, str]],
) -> None:
    questions = Questions(1400)
    me = Origin(1, "west", 7, Role.LEAD, 1, 0)
    asked = [connection(number).key for number in range(20)]
    list(questions.ask(asked, "abc", me, 0.0))
    said: dict[bytes, set[str]] = {}
    denied: list[bytes] = []
    for number, node in answers:
        key = connection(number).key
        said.setdefault(key, set()).add(node)
        origin = Origin(1, node, 5, Role.FOLLOW, 0, 0)
        _, more = questions.answered(Answer(origin, "west", [], (key,)), "abc")
        denied += more
    assert len(set(denied)) == len(denied)
    assert set(denied) == {key for key, by in said.items() if by == set("abc") and key in asked}


# --- whole groups -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.sets(st.integers(0, 400), max_size=200),
    st.sets(st.integers(0, 400), max_size=200),
    st.integers(1, 8),
    st.sampled_from((LEVEL, LEVEL, LEVEL_PLAIN)),
    st.integers(0, 2**32),
)
def test_a_copy_is_equal_whatever_it_had_and_whatever_changes_meanwhile(
    theirs: set[int], ours: set[int], paced: int, level: int, seed: int
) -> None:
    dice = random.Random(seed)
    group = Group()
    pace = Pace(snapshot_datagrams_per_tick=paced)
    east = group.join("east", map(connection, theirs), pace=pace, datagram_max=500, level=level)
    west = group.join("west", (connection(n, 2) for n in ours), datagram_max=500)
    group.lead(east)

    def lose(message: Message, to: Member) -> bool:
        return dice.random() < 0.05

    group.lost = lose
    for _ in range(40):
        number = dice.randrange(400)
        if connection(number).key in east.table.content and dice.random() < 0.6:
            group.change(east, ConnectionEnded(connection(number).key))
        else:
            group.change(east, ConnectionChanged(connection(number, dice.randrange(9))))
        group.run(dice.choice((0.0005, 0.003, 0.1)))
    group.lost = lambda _message, _to: False
    group.run(12)
    assert west.replica.complete
    assert west.table.content == east.table.content
    assert west.table.tally.sums == east.table.tally.sums
    assert len(west.table.tally.sums) == BUCKETS
    denied = [action for _, action in west.happened if isinstance(action, Deny)]
    assert denied == []
