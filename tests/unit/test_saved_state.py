"""The connection table as a file: whole, or refused with a reason."""

import random
from collections.abc import Sequence
from zlib import crc32

import msgpack
import pytest

from lvsha.model import (
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    template_key,
)
from lvsha.saved_state import MAGIC, Entry, StateError, Writing, read

NODE, NOW = "east", 1_700_000_000.0
AGE_MAX = 300.0


def connections(number: int, seed: int = 1) -> list[Entry]:
    """Of both families, some templates and some with details, in no order."""
    dice = random.Random(seed)
    made: list[Entry] = []
    for index in range(number):
        size = dice.choice([4, 16])
        client, virtual = dice.randbytes(size), bytes((dice.randrange(3),)) * size
        key = connection_key(6, client, dice.randrange(65_536), virtual, dice.choice([80, 443]))
        flags, details, state = int(ConnectionFlag.SYNC), None, 1
        if not index % 7:
            key, flags = template_key(key[:-4] + b"\0\0" + key[-2:]), ConnectionFlag.TEMPLATE
        elif not index % 5:
            details = ConnectionDetails(mark=index + 1)
        server, method = bytes((dice.randrange(4),)) * size, dice.choice(list(ForwardMethod))
        record = ConnectionRecord(
            key, server, 8080, method, state, int(flags), dice.choice([120.0, 900.0]), details
        )
        made.append((record, round(dice.uniform(5, 900), 2)))
    return made


def write(entries: Sequence[Entry], node: str = NODE, at: float = NOW) -> bytes:
    writing = Writing(node, at)
    parts = [entries[start : start + 250] for start in range(0, len(entries), 250)]
    return b"".join([writing.begin(), *(writing.part(part) for part in parts), writing.end()])


def back(data: bytes, at: float = NOW) -> list[Entry]:
    state = read(data, node=NODE, time_of_day=at, age_max=AGE_MAX)
    return [entry for part in state.entries() for entry in part]


@pytest.mark.parametrize("number", [0, 1, 3, 250, 3000])
def test_every_connection_comes_back_with_its_own_time(number: int) -> None:
    entries = connections(number)
    found = back(write(entries))
    assert {record: pytest.approx(left, abs=0.011) for record, left in entries} == dict(found)
    assert len(found) == number


def test_times_that_are_over_meanwhile_are_left_out() -> None:
    (old, _), (young, _), (dead, _) = connections(3)
    data = write([(old, 10.0), (young, 100.0), (dead, -1.0)])
    ((found, left),) = back(data, NOW + 40.0)
    assert found == young
    assert left == pytest.approx(60.0)


def test_a_time_out_that_has_no_room_is_as_long_as_there_is() -> None:
    (record, _) = connections(1)[0]
    ((found, left),) = back(write([(record._replace(timeout=2.0**32), 2.0**32)]))
    assert found.timeout == 366 * 86_400
    assert left == pytest.approx(2**32 / 100)


def test_a_file_that_is_cut_or_damaged_anywhere_is_refused() -> None:
    data = write(connections(40))
    for end in range(len(data)):
        with pytest.raises(StateError):
            back(data[:end])
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(StateError):
            back(bytes(damaged))
    with pytest.raises(StateError):
        back(data + b"\0")


@pytest.mark.parametrize("seed", range(300))
def test_nothing_but_a_state_error_comes_of_any_bytes(seed: int) -> None:
    dice = random.Random(seed)
    data = bytearray(MAGIC + dice.randbytes(dice.randrange(200)))
    with pytest.raises(StateError):
        back(bytes(data))


def test_bodies_with_a_right_checksum_and_a_wrong_form_are_refused() -> None:
    def framed(*values: object) -> bytes:
        bodies = [msgpack.packb(value) for value in values]
        return MAGIC + b"".join(
            len(body).to_bytes(4) + crc32(body).to_bytes(4) + body for body in bodies
        )

    head, end = [1, NODE, NOW], [0]
    assert back(framed(head, end)) == []
    wrong: Sequence[Sequence[object]] = (
        (end, end),
        ([2, NODE, NOW], end),
        ([1, NODE], end),
        ([1, NODE, "now"], end),
        ([1, NODE, float("nan")], end),
        ({}, end),
        (head, [1]),
        (head, [], end),
        (head, [[]], end),
        (head, [[], "left"], end),
        (head, [[], b"left"], end),
        (head, [[[b"", b""]], b""], end),
        (head, [7, b""], end),
    )
    for values in wrong:
        with pytest.raises(StateError):
            back(framed(*values))


@pytest.mark.parametrize(
    ("node", "at", "reason"),
    [
        ("west", NOW, "of the node 'west'"),
        (NODE, NOW - AGE_MAX - 1, "301 s old, and 300 s is the most"),
        (NODE, NOW + 60, "from the future, by 60 s"),
    ],
)
def test_a_file_of_another_node_or_time_is_refused(node: str, at: float, reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        back(write(connections(2), node, at))


def test_a_clock_that_was_set_back_a_little_makes_nothing_younger() -> None:
    ((record, left),) = connections(1)
    ((found, still_left),) = back(write([(record, left)]), NOW - 1.0)
    assert found == record
    assert still_left == pytest.approx(left, abs=0.011)


def test_a_table_without_room_is_refused_when_it_is_written() -> None:
    writing = Writing(NODE, NOW, size_max=1000)
    entries = connections(100)
    with pytest.raises(StateError, match="more than 1000 bytes"):
        writing.part(entries)
