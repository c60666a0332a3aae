import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.model import (
    ConnectionChange,
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
)
from lvsha.sync.messages import (
    Configuration,
    Heartbeat,
    Message,
    Origin,
    PeerState,
    Records,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    decode,
    encode,
)
from lvsha.sync.replica import Action, Apply, Forget, Pace, ProvideSnapshot, Replica, Send
from lvsha.sync.stream import REORDER_WAIT, Admission, Stream

DIGEST = bytes(16)


def connection(number: int, state: int) -> ConnectionRecord:
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


def make_replica(node: str, pace: Pace | None = None) -> Replica:
    replica = Replica(
        sync_id=1,
        node=node,
        epoch=len(node),
        configuration_digest=DIGEST,
        digests={},
        heartbeat_interval=0.5,
        datagram_max=500,
        pace=pace,
    )
    replica.start(0.0)
    return replica


KEYS = st.integers(0, 5).map(lambda number: connection(number, 0).key)
RECORDS = st.builds(connection, st.integers(0, 5), st.integers(0, 9))
SMALL = st.integers(0, 12)
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
    ),
    st.builds(Records, ORIGINS, st.lists(st.one_of(RECORDS, KEYS), max_size=3).map(tuple)),
    st.builds(SnapshotRequest, ORIGINS, st.sampled_from(("west", "east")), SMALL, SMALL),
    st.builds(SnapshotBegin, ORIGINS),
    st.builds(SnapshotChunk, ORIGINS, SMALL, st.lists(RECORDS, max_size=3).map(tuple)),
    st.builds(SnapshotEnd, ORIGINS, SMALL, SMALL),
    st.builds(
        Configuration,
        ORIGINS,
        st.just(b"x" * 16),
        st.integers(0, 2),
        st.integers(3, 4),
        st.lists(st.tuples(st.sampled_from("abc"), st.just(b"1")), max_size=2).map(tuple),
    ),
)
STEPS = st.lists(
    st.one_of(MESSAGES, st.sampled_from(("lead", "follow", "resync", "expire", "tell", "wait"))),
    max_size=60,
)


@settings(max_examples=300)
@given(st.sampled_from((0, 1)), STEPS)
def test_no_sequence_of_messages_and_calls_breaks_a_replica(
    sync_id: int, steps: list[Message | str]
) -> None:
    replica = Replica(
        sync_id=sync_id,
        node="west",
        epoch=7,
        configuration_digest=DIGEST,
        digests={"a": b"1"},
        heartbeat_interval=0.5,
        datagram_max=500,
    )
    now = 0.0
    replica.start(now)
    for step in steps:
        actions: list[Action]
        match step:
            case "lead":
                actions = replica.lead(now)
            case "follow":
                actions = replica.follow(now)
            case "resync":
                actions = replica.resync(now)
            case "tell":
                actions = replica.tell([ConnectionChanged(connection(1, 1))], now)
            case "wait":
                now += 0.3
                actions = replica.expire(now)
            case str():
                assert replica.deadline is not None
                now = max(now, replica.deadline)
                actions = replica.expire(now)
                # A deadline that stays in the past would make the shell spin.
                assert replica.deadline > now
            case _:
                actions = replica.receive(encode(step), now)
        if ProvideSnapshot() in actions:
            actions += replica.snapshot(iter([connection(1, 1)]), now)
        for action in actions:
            if isinstance(action, Send):
                assert decode(action.datagram).origin.node == "west"
        assert replica.deadline is not None
        assert replica.status(now)["node"] == "west"


@given(st.binary(max_size=100))
def test_no_bytes_break_a_replica(noise: bytes) -> None:
    replica = make_replica("west")
    before = replica.deadline
    assert not any(isinstance(action, Send) for action in replica.receive(noise, 0.0))
    assert replica.deadline == before


CHANGES: st.SearchStrategy[list[ConnectionChange]] = st.lists(
    st.one_of(
        st.builds(
            lambda number, state: ConnectionChanged(connection(number, state)),
            st.integers(0, 9),
            st.integers(0, 9),
        ),
        st.builds(
            lambda number: ConnectionEnded(connection(number, 0).key),
            st.integers(0, 9),
        ),
    ),
    max_size=60,
)


def used(table: dict[bytes, ConnectionRecord], actions: list[Action]) -> None:
    for action in actions:
        if isinstance(action, Apply):
            table[action.record.key] = action.record
        elif isinstance(action, Forget):
            table.pop(action.key, None)


@given(CHANGES, st.integers(1, 6), st.integers(0, 2**32))
def test_datagrams_in_any_order_leave_the_state_that_their_order_of_sending_gives(
    changes: list[ConnectionChange], group: int, seed: int
) -> None:
    source, copy = make_replica("east"), make_replica("west")
    datagrams = [a.datagram for a in source.lead(0.0) if isinstance(a, Send)]
    used({}, copy.receive(datagrams.pop(), 0.0))
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
    table: dict[bytes, ConnectionRecord] = {}
    for datagram in shuffled:
        used(table, copy.receive(datagram, 0.0))
    assert table == truth


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 40))
def test_a_stream_admits_each_number_once_and_remembers_no_more_than_it_may(
    sequences: list[int], missing_max: int
) -> None:
    stream = Stream(1, missing_max=missing_max, touched_max=5)
    admitted: set[int] = set()
    for step, sequence in enumerate(sequences):
        now = step * REORDER_WAIT / 4
        stream.expire(now)
        if stream.admit(sequence, now) is not Admission.REFUSED:
            assert sequence not in admitted
            admitted.add(sequence)
            stream.fresh(sequence.to_bytes(), sequence)
        stream.settle()
        assert len(stream._missing) <= missing_max
        assert len(stream._touched) <= 5
        assert stream.guarded == bool(stream._missing)
    stream.expire(1e9)
    # Every number up to the highest was either used or is counted as lost.
    assert len(admitted) + stream.lost_total == stream.position


@given(st.lists(st.integers(0, 400), unique=True, max_size=200), st.integers(1, 8))
def test_a_snapshot_holds_each_connection_once_whatever_is_told_meanwhile(
    numbers: list[int], paced: int
) -> None:
    source, copy = make_replica("east", Pace(snapshot_datagrams_per_tick=paced)), make_replica("w")
    table = {connection(n, 1).key: connection(n, 1) for n in numbers}
    copied: dict[bytes, ConnectionRecord] = {}
    now = 0.0
    waiting = source.lead(now)
    while not copy.complete or copy.status(now)["leader"] is None:
        for action in waiting:
            if not isinstance(action, Send):
                continue
            answers = copy.receive(action.datagram, now)
            used(copied, answers)
            for answer in answers:
                if isinstance(answer, Send) and ProvideSnapshot() in source.receive(
                    answer.datagram, now
                ):
                    records = (table[key] for key in list(table) if key in table)
                    now += 0.001
                    for sent in source.snapshot(records, now):
                        if isinstance(sent, Send):
                            used(copied, copy.receive(sent.datagram, now))
        if table and len(table) % 3:
            # The table changes between two ticks of the snapshot.
            key, _ = table.popitem()
            used(
                copied,
                [
                    action
                    for sent in source.tell([ConnectionEnded(key)], now)
                    if isinstance(sent, Send)
                    for action in copy.receive(sent.datagram, now)
                ],
            )
        assert source.deadline is not None
        now = max(now, source.deadline)
        waiting = source.expire(now)
        assert now < 30
    assert copied == table
