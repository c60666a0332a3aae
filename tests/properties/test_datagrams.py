import contextlib
from dataclasses import replace

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.errors import SyncError
from lvsha.model import ConnectionRecord
from lvsha.sync.datagrams import decode, encode, encode_answers, encode_changes, entries_room
from lvsha.sync.messages import (
    DATAGRAM_BYTES_MAX,
    LEVEL_PLAIN,
    Answer,
    Changes,
    Message,
    Origin,
    Role,
    SnapshotChunk,
)
from lvsha.sync.records import Packing
from tests.sync_strategies import MESSAGES, PLAIN_MESSAGES, keys, records

ORIGIN = Origin(1, "east", 5, Role.LEAD, 2, 9)
# Values that a msgpack body may hold, well-formed or not, of the shapes that are expected.
ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=40),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=20,
)


def in_any_order(message: Message) -> Message:
    """A message whose connections stand in the order of their keys.

    In groups they come in another order than they went. A source says each connection once
    in a message; of one that stands there more often, what belongs to one group keeps its order.
    """

    def key(record: ConnectionRecord) -> tuple[bytes, bytes, int, int]:
        return record.key, record.server, record.server_port, record.method

    match message:
        case Changes():
            ended = sorted(message.ended)
            return replace(message, records=sorted(message.records, key=key), ended=ended)
        case SnapshotChunk() | Answer():
            return replace(message, records=sorted(message.records, key=key))
        case _:
            return message


@given(MESSAGES)
def test_every_message_comes_back_as_it_went(message: Message) -> None:
    assert in_any_order(decode(encode(message))) == in_any_order(message)


@given(PLAIN_MESSAGES)
def test_every_message_of_level_1_comes_back_as_it_went(message: Message) -> None:
    assert decode(encode(message, LEVEL_PLAIN)) == message


@given(MESSAGES)
def test_what_was_decoded_is_encoded_to_the_same_bytes(message: Message) -> None:
    once = encode(decode(encode(message)))
    assert encode(decode(once)) == once


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_message_or_a_sync_error(noise: bytes, with_head: bool) -> None:
    with contextlib.suppress(SyncError):
        decode(b"\x01\x07\xff\xff" + noise if with_head else noise)


@settings(max_examples=300)
@given(st.integers(0, 20), st.lists(ANYTHING, max_size=11))
def test_any_values_give_a_message_or_a_sync_error(kind: int, fields: list[object]) -> None:
    body = [kind, "east", 1, 1, 1, 1, *fields]
    with contextlib.suppress(SyncError):
        decode(b"\x01\x07\xff\xff" + msgpack.packb(body))


@settings(max_examples=500)
@given(MESSAGES, st.data())
def test_a_damaged_datagram_gives_a_sync_error_or_a_message_that_can_be_told_on(
    message: Message, data: st.DataObject
) -> None:
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SyncError):
        understood = decode(bytes(damaged))
        if isinstance(understood, Changes):
            encode(understood)
            encode(understood, LEVEL_PLAIN)


@given(MESSAGES, st.data())
def test_a_datagram_cut_short_is_never_a_message(message: Message, data: st.DataObject) -> None:
    datagram = encode(message)
    cut = datagram[: data.draw(st.integers(0, len(datagram) - 1))]
    try:
        decode(cut)
    except SyncError:
        return
    raise AssertionError("a part was taken for the whole")


@given(MESSAGES)
def test_encoding_keeps_within_a_datagram(message: Message) -> None:
    assert 4 < len(encode(message)) <= DATAGRAM_BYTES_MAX


@given(st.lists(records(), max_size=30), st.lists(keys(), max_size=30), st.integers(500, 1400))
def test_packings_hold_every_connection_once_and_keep_within_the_datagram(
    several: list[ConnectionRecord], ended: list[bytes], datagram_max: int
) -> None:
    waiting: list[ConnectionRecord | bytes] = [*several, *ended]
    back: list[ConnectionRecord | bytes] = []
    while waiting:
        packing = Packing(entries_room(ORIGIN, datagram_max))
        while waiting:
            first = waiting[0]
            if not (packing.add_ended(first) if isinstance(first, bytes) else packing.add(first)):
                break
            del waiting[0]
        assert packing.count, "there is room for at least one entry"
        datagram = encode_changes(ORIGIN, packing)
        assert len(datagram) <= datagram_max
        decoded = decode(datagram)
        assert isinstance(decoded, Changes)
        back += [*decoded.records, *decoded.ended]
    assert sorted(map(repr, back)) == sorted(map(repr, [*several, *ended]))


@given(st.lists(records(), max_size=20), st.lists(keys(), max_size=99), st.integers(500, 1400))
def test_an_answer_has_all_that_was_asked_in_datagrams_that_fit(
    several: list[ConnectionRecord], unknown: list[bytes], datagram_max: int
) -> None:
    whole = Answer(ORIGIN, "west", several, tuple(unknown))
    back: list[Answer] = []
    for datagram in encode_answers(whole, datagram_max):
        assert len(datagram) <= datagram_max
        decoded = decode(datagram)
        assert isinstance(decoded, Answer)
        back.append(decoded)
    assert sorted(map(repr, several)) == sorted(repr(r) for a in back for r in a.records)
    assert [key for answer in back for key in answer.unknown] == unknown
