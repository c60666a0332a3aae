import contextlib

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.errors import SyncError
from lvsha.model import ConnectionRecord, ForwardMethod
from lvsha.sync.messages import (
    DATAGRAM_BYTES_MAX,
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

UINT64 = st.integers(0, 2**64 - 1)
PORTS = st.integers(0, 65_535)
NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=63)
DIGESTS = st.binary(min_size=16, max_size=16)
TIMEOUTS = st.one_of(
    st.integers(0, 366 * 86_400).map(float),
    st.floats(0, 366 * 86_400, allow_nan=False),
)


@st.composite
def records(draw: st.DrawFn) -> ConnectionRecord:
    length = draw(st.sampled_from((4, 16)))
    address = st.binary(min_size=length, max_size=length)
    method = draw(st.sampled_from(ForwardMethod))
    server_length = draw(st.sampled_from((4, 16))) if method == ForwardMethod.TUNNEL else length
    return ConnectionRecord.between(
        protocol=draw(st.integers(0, 255)),
        client=draw(address),
        client_port=draw(PORTS),
        virtual=draw(address),
        virtual_port=draw(PORTS),
        server=draw(st.binary(min_size=server_length, max_size=server_length)),
        server_port=draw(PORTS),
        method=method,
        state=draw(st.integers(0, 255)),
        flags=draw(st.integers(0, 2**32 - 1)),
        timeout=draw(TIMEOUTS),
    )


ORIGINS = st.builds(
    Origin,
    st.integers(0, 255),
    NAMES,
    UINT64,
    st.sampled_from(Role),
    st.integers(0, 2**32 - 1),
    UINT64,
)
RECORDS = st.lists(records(), max_size=5).map(tuple)
ENTRIES = st.lists(st.one_of(records(), records().map(lambda r: r.key)), max_size=5).map(tuple)
PIECES = st.lists(st.tuples(NAMES, st.binary(min_size=1, max_size=32)), max_size=5).map(tuple)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Heartbeat,
        ORIGINS,
        UINT64,
        DIGESTS,
        st.one_of(st.just(""), NAMES),
        st.sampled_from(PeerState),
        UINT64,
        st.booleans(),
    ),
    st.builds(Records, ORIGINS, ENTRIES),
    st.builds(SnapshotRequest, ORIGINS, NAMES, UINT64, UINT64),
    st.builds(SnapshotBegin, ORIGINS),
    st.builds(SnapshotChunk, ORIGINS, UINT64, RECORDS),
    st.builds(SnapshotEnd, ORIGINS, UINT64, UINT64),
    st.builds(Configuration, ORIGINS, DIGESTS, st.integers(0, 3), st.integers(4, 9), PIECES),
)
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


@given(MESSAGES)
def test_every_message_comes_back_as_it_went(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_message_or_a_sync_error(noise: bytes, with_head: bool) -> None:
    with contextlib.suppress(SyncError):
        decode(b"\x01\x07\xff\xff" + noise if with_head else noise)


@given(st.integers(0, 12), st.lists(ANYTHING, max_size=8))
def test_any_values_give_a_message_or_a_sync_error(kind: int, fields: list[object]) -> None:
    body = [kind, "east", 1, 1, 1, 1, *fields]
    with contextlib.suppress(SyncError):
        decode(b"\x01\x07\xff\xff" + msgpack.packb(body))


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_a_damaged_datagram_gives_a_message_or_a_sync_error(
    message: Message, data: st.DataObject
) -> None:
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SyncError):
        decode(bytes(damaged))


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
