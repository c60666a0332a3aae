"""Records that differ in nothing but the client, gathered so that all are handled at once.

Most of what one director tells another in a datagram differs only in the client's address and
port. A `Run` says the rest once. `Runs` is still a sequence of records, for whoever looks at
each of them; they are made one by one when they are asked for.

The keys of many connections, and the entries of a datagram, are rows of equal length with the
client at the same places. `filled` copies it for all rows, byte by byte of a row.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from struct import Struct
from typing import Final, NamedTuple, overload

from lvsha.model import ConnectionRecord

FEW: Final = 10
"""With fewer rows it takes less time to look at them one by one."""

_new_record: Final = tuple.__new__  # cheaper than to call the class


class Run(NamedTuple):
    """Records that differ in nothing but the client's end in their keys.

    Attributes:
        record: one that differs from all in nothing else, either; as a rule the first.
        keys: of all.
    """

    record: ConnectionRecord
    keys: Sequence[bytes]

    def records(self) -> Iterator[ConnectionRecord]:
        """Each of them."""
        values = self.record[1:]
        return (_new_record(ConnectionRecord, (key, *values)) for key in self.keys)


class Runs(Sequence[ConnectionRecord]):
    """The records of some runs, one after the other.

    Attributes:
        runs: in their order.
    """

    __slots__ = ("runs",)

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        self.runs = runs

    def __len__(self) -> int:
        return sum([len(run.keys) for run in self.runs])

    def __iter__(self) -> Iterator[ConnectionRecord]:
        return chain.from_iterable([run.records() for run in self.runs])

    @overload
    def __getitem__(self, index: int) -> ConnectionRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ConnectionRecord]: ...
    def __getitem__(self, index: int | slice) -> ConnectionRecord | Sequence[ConnectionRecord]:
        if index == 0 and self.runs:
            return next(self.runs[0].records())
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(list(self))


def runs_of(records: Sequence[ConnectionRecord]) -> Sequence[Run]:
    """Records in runs, as long as these can be."""
    if isinstance(records, Runs):
        return records.runs
    runs: list[Run] = []
    values: object = None
    length = head = virtual = tail = None
    keys: list[bytes] = []
    for record in records:
        key = record[0]
        size = (len(key) - 6) // 2
        if (
            record[1:] == values
            and len(key) == length
            and key[2 + size : 2 + 2 * size] == virtual
            and key[-2:] == tail
            and key[:2] == head
        ):
            keys.append(key)
            continue
        keys = [key]
        runs.append(Run(record, keys))
        values, length = record[1:], len(key)
        head, virtual, tail = key[:2], key[2 + size : 2 + 2 * size], key[-2:]
    return runs


def filled(
    row: bytes | bytearray, rows: bytes, length: int, places: Sequence[tuple[int, int]]
) -> bytes:
    """Copies of a row, as many as there are other rows, with some bytes of each of those.

    Args:
        row: what is copied.
        rows: the others, one behind the other.
        length: of each of them.
        places: where a byte goes to in a copy, and where it comes from.
    """
    copies, step = bytearray(row * (len(rows) // length)), len(row)
    for to, of in places:
        copies[to::step] = rows[of::length]
    return bytes(copies)


_ROWS: Final[dict[int, Struct]] = {length: Struct(f"{length}s") for length in (14, 38)}


def cut(rows: bytes, length: int) -> list[bytes]:
    """Rows of this length, each by itself."""
    return [row for (row,) in _ROWS[length].iter_unpack(rows)]
