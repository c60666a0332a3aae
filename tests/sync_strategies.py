"""Strategies for everything that the sync protocol can say, for hypothesis."""

from hypothesis import strategies as st

from lvsha.model import (
    ConnectionDetails,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    template_key,
)
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL,
    LEVEL_PLAIN,
    Answer,
    Changes,
    Configuration,
    GapRequest,
    Handover,
    Heartbeat,
    Message,
    Opinions,
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
from lvsha.tally import SUM_MASK

UINT16 = st.integers(0, 2**16 - 1)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
PORTS = st.integers(0, 65_535)
NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=63)
DIGESTS = st.binary(min_size=16, max_size=16)


@st.composite
def keys(draw: st.DrawFn, length: int | None = None, *, templates: bool = True) -> bytes:
    """A key of a connection or template, of addresses with ``length`` bytes."""
    length = length or draw(st.sampled_from((4, 16)))
    address = st.binary(min_size=length, max_size=length)
    protocol, ports = draw(st.integers(0, 255)), (draw(PORTS), draw(PORTS))
    key = connection_key(protocol, draw(address), ports[0], draw(address), ports[1])
    if templates and draw(st.booleans()):
        return template_key(key, draw(st.binary(max_size=100)))
    return key


# Fields of a later version have higher numbers than those of this one, and little room.
DETAILS = st.builds(
    ConnectionDetails,
    mark=UINT32,
    shifts=st.one_of(st.just(()), st.lists(UINT32, min_size=6, max_size=6).map(tuple)),
    engine=st.sampled_from(("", "sip", "a" * 16)),
    parent=st.one_of(st.just(b""), keys(templates=False)),
    dialogue=st.one_of(
        st.just(()),
        st.tuples(st.integers(0, 255)),
        st.tuples(st.integers(0, 255), UINT32, st.integers(0, 255)),
    ),
    others=st.lists(
        st.tuples(st.integers(7, 65_535), st.binary(min_size=1, max_size=20)), max_size=2
    ).map(tuple),
)


@st.composite
def plain_records(draw: st.DrawFn, *, templates: bool = False) -> ConnectionRecord:
    """What both levels can say."""
    length = draw(st.sampled_from((4, 16)))
    methods = [m for m in ForwardMethod if templates or m is not ForwardMethod.BYPASS]
    method = draw(st.sampled_from(methods))
    server_length = draw(st.sampled_from((4, 16))) if method == ForwardMethod.TUNNEL else length
    return ConnectionRecord(
        key=draw(keys(length, templates=templates)),
        server=draw(st.binary(min_size=server_length, max_size=server_length)),
        server_port=draw(PORTS),
        method=method,
        state=draw(st.integers(0, 255)),
        flags=draw(PORTS),
        timeout=draw(st.integers(0, 366 * 86_400_00)) / 100,
    )


@st.composite
def records(draw: st.DrawFn) -> ConnectionRecord:
    """What level 2 can say."""
    record = draw(plain_records(templates=True))
    details = draw(st.one_of(st.none(), st.none(), DETAILS))
    return record._replace(details=None if details == ConnectionDetails() else details)


ORIGINS = st.builds(
    Origin, st.integers(0, 255), NAMES, UINT64, st.sampled_from(Role), UINT32, UINT64
)
STANDINGS = st.builds(
    Standing,
    UINT64,
    st.integers(0, SUM_MASK),
    st.booleans(),
    *(UINT64,) * 7,
)
PIECES = st.lists(st.tuples(NAMES, st.binary(min_size=1, max_size=32)), max_size=5).map(tuple)
BUCKETS = st.integers(1, ALL_BUCKETS)
ALIVE = (
    ORIGINS,
    UINT64,
    DIGESTS,
    st.one_of(st.just(""), NAMES),
    st.sampled_from(PeerState),
    UINT64,
    st.booleans(),
)
PLAIN_MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Heartbeat, *ALIVE),
    st.builds(
        Changes,
        ORIGINS,
        st.lists(plain_records(), max_size=5),
        st.lists(keys(templates=False), max_size=5),
    ),
    st.builds(SnapshotRequest, ORIGINS, NAMES, UINT64, UINT64),
    st.builds(SnapshotBegin, ORIGINS),
    st.builds(SnapshotChunk, ORIGINS, UINT64, st.lists(plain_records(), max_size=5)),
    st.builds(SnapshotEnd, ORIGINS, UINT64, UINT64),
    st.builds(Configuration, ORIGINS, DIGESTS, st.integers(0, 3), st.integers(4, 9), PIECES),
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    PLAIN_MESSAGES,
    st.builds(
        Heartbeat,
        *ALIVE,
        level=st.integers(LEVEL, 255),
        speaks=st.integers(LEVEL_PLAIN, 255),
        oldest=UINT64,
        heard=st.lists(UINT64, max_size=16).map(tuple),
        standing=STANDINGS,
    ),
    st.builds(Changes, ORIGINS, st.lists(records(), max_size=5), st.lists(keys(), max_size=5)),
    st.builds(SnapshotRequest, ORIGINS, NAMES, UINT64, UINT64, BUCKETS),
    st.builds(SnapshotBegin, ORIGINS, BUCKETS),
    st.builds(SnapshotChunk, ORIGINS, UINT64, st.lists(records(), max_size=5)),
    st.builds(
        GapRequest,
        ORIGINS,
        NAMES,
        UINT64,
        st.lists(st.tuples(UINT64, UINT32), max_size=20).map(tuple),
    ),
    st.builds(SumsRequest, ORIGINS, NAMES, UINT64),
    st.builds(
        Sums,
        ORIGINS,
        st.integers(0, 383),
        st.lists(UINT64, min_size=1, max_size=128).map(tuple),
        st.booleans(),
    ),
    st.builds(Progress, ORIGINS, NAMES, UINT64, UINT64),
    st.builds(Handover, ORIGINS, NAMES, UINT64, UINT64),
    st.builds(
        lambda origin, number, part, more, checked, opinions: Opinions(
            origin, number, part, part + more, checked, tuple(opinions)
        ),
        ORIGINS,
        UINT64,
        st.integers(0, 4000),
        st.integers(1, 96),
        UINT32,
        st.lists(
            st.tuples(NAMES, st.binary(min_size=4, max_size=4), UINT16, st.integers(0, 1))
            | st.tuples(NAMES, st.binary(min_size=16, max_size=16), UINT16, st.integers(0, 1)),
            max_size=5,
        ),
    ),
    st.builds(Question, ORIGINS, st.lists(keys(), max_size=32).map(tuple)),
    st.builds(
        Answer,
        ORIGINS,
        NAMES,
        st.lists(records(), max_size=5),
        st.lists(keys(), max_size=5).map(tuple),
    ),
)
