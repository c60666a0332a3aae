import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.errors import SyncError
from lvsha.model import (
    ConnectionDetails,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    template_key,
)
from lvsha.sync.ipvs.messages import FAULTS, RECORDS_MAX, Message, can_carry, emit, encode, parse

PORTS = st.integers(0, 65_535)
UINT32 = st.integers(0, 2**32 - 1)
TEMPLATE = 0x1000
NOT_SENT = 0x47
"""Flags that are the method's, or the sender's own affair."""


@st.composite
def records(draw: st.DrawFn, version: int = 1) -> ConnectionRecord:
    size = draw(st.sampled_from((4, 16))) if version else 4
    address = st.binary(min_size=size, max_size=size)
    key = connection_key(
        draw(st.integers(0, 255)), draw(address), draw(PORTS), draw(address), draw(PORTS)
    )
    flags = draw(UINT32 if version else PORTS) & ~NOT_SENT & ~TEMPLATE
    engine = ""
    if draw(st.booleans()):
        found = draw(st.binary(max_size=255)) if version else b""
        engine = draw(st.sampled_from(("sip", "e" * 16))) if found else ""
        key, flags = template_key(key, found), flags | TEMPLATE
    shifts: tuple[int, ...] = ()
    if draw(st.booleans()) and (version or flags & 0x600):
        shifts = tuple(draw(st.lists(UINT32, min_size=6, max_size=6)))
    elif not version and flags & 0x600:
        shifts = (0,) * 6
    mark = draw(UINT32) if version else 0
    some = mark or shifts or engine
    return ConnectionRecord(
        key,
        draw(address),
        draw(PORTS),
        draw(st.sampled_from(ForwardMethod)),
        draw(PORTS),
        flags,
        float(draw(UINT32)) if version else 0.0,
        ConnectionDetails(mark=mark, shifts=shifts, engine=engine) if some else None,
    )


MESSAGES = st.sampled_from((0, 1)).flatmap(
    lambda version: st.builds(
        Message,
        st.just(version),
        st.integers(0, 255),
        st.lists(records(version), max_size=20).map(tuple),
        st.just(()),
    )
)


@given(MESSAGES)
def test_what_was_written_is_read(message: Message) -> None:
    assert parse(emit(message)) == message


@given(st.lists(records(), max_size=40), st.sampled_from((0, 1)), st.integers(400, 2000))
def test_no_message_is_longer_than_it_may_be(
    several: list[ConnectionRecord], version: int, length_max: int
) -> None:
    datagrams = encode(version, 7, several, length_max)
    assert all(len(datagram) <= length_max for datagram in datagrams)
    carried = [record.key for record in several if can_carry(version, record)]
    read = [parse(datagram) for datagram in datagrams]
    assert [record.key for message in read for record in message.records] == carried
    assert all(0 < len(message.records) <= RECORDS_MAX for message in read)


@settings(max_examples=400)
@given(MESSAGES, st.data())
def test_a_damaged_message_raises_nothing_but_a_sync_error(
    message: Message, data: st.DataObject
) -> None:
    damaged = bytearray(emit(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
        damaged[2:4] = len(damaged).to_bytes(2)
    with contextlib.suppress(SyncError):
        assert set(parse(bytes(damaged)).faults) <= FAULTS


@settings(max_examples=400)
@given(st.binary(max_size=300), st.integers(0, 255), st.booleans())
def test_any_bytes_raise_nothing_but_a_sync_error(body: bytes, count: int, first: bool) -> None:
    length = (len(body) + 8).to_bytes(2)
    head = bytes((0, 5)) + length + bytes((count, 1, 0, 0))
    if not first:
        head = bytes((count, 5)) + length + bytes(4)
    read = parse(head + body)
    assert set(read.faults) <= FAULTS
    assert len(read.records) <= count
