"""In which order what waits to be told is put into datagrams."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lvsha.model import (
    ConnectionChange,
    ConnectionChanged,
    ConnectionDetails,
    ConnectionEnded,
    ConnectionRecord,
    connection_key,
)
from lvsha.sync.datagrams import decode, encode_changes, entries_room
from lvsha.sync.grouping import Grouping
from lvsha.sync.messages import Changes, Origin, Role
from lvsha.sync.records import Packing
from tests.replicas import changed, connection, ended, template

ORIGIN = Origin(1, "west", 77, Role.LEAD, 1, 1)
ROOM = entries_room(ORIGIN, 500)


def key_of(change: ConnectionChange) -> bytes:
    return change.record.key if isinstance(change, ConnectionChanged) else change.key


def datagrams(*changes: ConnectionChange) -> list[Changes]:
    """What leaves in datagrams of 500 bytes."""
    grouping = Grouping((key_of(change), change) for change in changes)
    messages = []
    while grouping:
        packing = Packing(ROOM)
        moved = grouping.fill(packing)
        datagram = encode_changes(ORIGIN, packing)
        assert len(datagram) <= 500
        message = decode(datagram)
        assert isinstance(message, Changes)
        assert sorted(moved) == sorted([*(each.key for each in message.records), *message.ended])
        messages.append(message)
    return messages


def told(messages: Sequence[Changes]) -> list[ConnectionRecord]:
    return [record for message in messages for record in message.records]


def test_connections_of_one_server_and_state_follow_one_another() -> None:
    mixed = [changed(n, state=1 + n % 2, server=1 + n // 2 % 2) for n in range(12)]
    runs = [(record.server, record.state) for record in told(datagrams(*mixed))]
    assert len([at for at in range(1, 12) if runs[at] != runs[at - 1]]) == 3


def test_the_group_of_the_oldest_is_first_and_none_waits_for_ever() -> None:
    oldest = changed(1000, server=9)
    newer = [changed(n) for n in range(200)]
    first, *_ = datagrams(oldest, *newer)
    assert first.records[0] == oldest.record
    alone = datagrams(ended(1001), *newer)[0]
    assert alone.ended == [ended(1001).key]


def test_groups_keep_their_order_from_datagram_to_datagram() -> None:
    records = told(datagrams(*(changed(n, server=1 + n % 40) for n in range(120))))
    servers = [record.server[-1] for record in records]
    assert servers == sorted(servers)


def test_what_others_may_belong_to_comes_before_them() -> None:
    child, parent = changed(3), ConnectionChanged(template(3))
    control = ConnectionChanged(connection(4)._replace(details=ConnectionDetails(dialogue=(1,))))
    data = ConnectionChanged(
        connection(5)._replace(details=ConnectionDetails(parent=control.record.key))
    )
    records = told(datagrams(child, parent, control, data))
    assert records == [parent.record, control.record, data.record, child.record]


def test_nothing_is_left_out_and_nothing_is_told_twice() -> None:
    @given(
        st.dictionaries(
            st.integers(0, 400),
            st.tuples(st.integers(0, 10), st.integers(1, 3), st.booleans(), st.booleans()),
            max_size=200,
        )
    )
    def holds(drawn: dict[int, tuple[int, int, bool, bool]]) -> None:
        records, keys, changes = set(), set(), list[ConnectionChange]()
        for number, (state, server, has_ended, is_long) in drawn.items():
            record = connection(number, state, server)
            if is_long:
                key = connection_key(6, bytes(15) + bytes((number % 256,)), number, bytes(16), 80)
                record = record._replace(key=key, server=bytes(16))
            if has_ended:
                keys.add(record.key)
                changes.append(ConnectionEnded(record.key))
            else:
                records.add(record)
                changes.append(ConnectionChanged(record))
        messages = datagrams(*changes)
        assert len(told(messages)) == len(records)
        assert set(told(messages)) == records
        assert sorted(key for each in messages for key in each.ended) == sorted(keys)

    holds()
