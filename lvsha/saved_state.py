"""The connection table as a file: what one run of a director leaves for the next.

A director that has no peer, or whose peer died before it, would lose all connections by a
restart. So it writes them down: each as the sync tells it, and the seconds that it had left.
Nothing here opens a file or reads a clock.

    magic, then frames: length (4 bytes), CRC-32 of the body (4 bytes), body (msgpack)
    first frame:    [version, node, time of day when it was written]
    each other:     [groups of connections (`lvsha.sync.records`), hundredths of seconds left]
    last frame:     [number of all connections]

What always holds: a file is believed as a whole or refused as a whole, with a reason. One that
was cut short has no last frame; one of another node, of a later version, too old or from the
future is not taken over. Times of day are seconds since 1970.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import msgpack

from lvsha.errors import LvshaError, SyncError
from lvsha.model import TEMPLATE_BIT, ConnectionRecord
from lvsha.sync.records import TIMEOUT_MAX, Packing, read_groups

MAGIC: Final = b"lvsha-state\n"
VERSION: Final = 1
FRAME_BYTES_MAX: Final = 1024 * 1024
"""More than a slice of the table ever takes."""
FILE_BYTES_MAX: Final = 2 * 1024**3
"""Fifty million connections, the most that a pair file can ask for, take half of it."""
SKEW_MAX: Final = 2.0
"""Seconds by which a clock may have been set back since; a step that is no accident."""

_FRAME: Final = struct.Struct("!II")
_TICKS: Final = 100
_TICKS_MAX: Final = 2**32 - 1

Entry = tuple[ConnectionRecord, float]
"""A connection or template, and the seconds that it has left."""


class StateError(LvshaError):
    """A file that is not, or not any more, the state of this node."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A file that may be believed.

    Attributes:
        age: seconds since it was written.
        connections: how many it has.
        frames: the bodies of those that hold them.
    """

    age: float
    connections: int
    frames: tuple[memoryview, ...]

    def entries(self) -> Iterator[list[Entry]]:
        """What is still alive, in parts; the first call has checked all of it."""
        for body in self.frames:
            yield [
                (record, left - self.age)
                for record, left in _read_connections(body)
                if left > self.age
            ]


class Writing:
    """Turns a table into the bytes of a file, part by part.

    Args:
        node: whose it is.
        time_of_day: now.
        size_max: of all parts, in bytes.

    Attributes:
        connections: how many were taken in.
    """

    def __init__(self, node: str, time_of_day: float, size_max: int = FILE_BYTES_MAX // 2) -> None:
        self.connections = 0
        self._size = 0
        self._size_max = size_max
        self._head: bytes = MAGIC + _frame(msgpack.packb([VERSION, node, time_of_day]))

    def begin(self) -> bytes:
        """What the file begins with."""
        return self._head

    def part(self, entries: Iterable[Entry]) -> bytes:
        """Some connections; what has no time left is left out.

        Raises:
            StateError: there is no room for them.
        """
        # In this order the groups have them, so that the times go with the right ones.
        waiting = sorted((entry for entry in entries if entry[1] > 0), key=_group)
        frames = bytearray()
        while waiting:
            packing = Packing(FRAME_BYTES_MAX // 4)
            taken = 0
            for record, _ in waiting:
                if not packing.add(record._replace(timeout=min(record.timeout, TIMEOUT_MAX))):
                    break
                taken += 1
            assert taken, "there is room for any connection"
            left = b"".join(
                min(int(seconds * _TICKS), _TICKS_MAX).to_bytes(4) for _, seconds in waiting[:taken]
            )
            frames += _frame(b"\x92" + packing.groups() + msgpack.packb(left))
            self.connections += taken
            waiting = waiting[taken:]
        self._size += len(frames)
        if self._size > self._size_max:
            raise StateError(f"the connections take more than {self._size_max} bytes")
        return bytes(frames)

    def end(self) -> bytes:
        """What the file ends with."""
        return _frame(msgpack.packb([self.connections]))


def read(data: bytes, *, node: str, time_of_day: float, age_max: float) -> SavedState:
    """Check a file.

    Args:
        data: all of it.
        node: who reads it.
        time_of_day: now.
        age_max: seconds after which it is not believed any more.

    Raises:
        StateError: it must not be taken over; says why.
    """
    if not data.startswith(MAGIC):
        raise StateError("it is no saved state")
    frames = list(_frames(memoryview(data)[len(MAGIC) :]))
    if len(frames) < 2:
        raise StateError("it is cut short")
    head, *bodies, last = frames
    age = time_of_day - _written_at(_unpacked(head), node)
    if age < -SKEW_MAX:
        raise StateError(f"it is from the future, by {-age:.0f} s: a clock was set back")
    if age > age_max:
        raise StateError(f"it is {age:.0f} s old, and {age_max:.0f} s is the most")
    connections = sum(len(_read_connections(body)) for body in bodies)
    if _unpacked(last) != [connections]:
        raise StateError(f"it is cut short: {connections} connections, and no end")
    return SavedState(max(age, 0.0), connections, tuple(bodies))


def _frame(body: bytes) -> bytes:
    return _FRAME.pack(len(body), crc32(body)) + body


def _frames(rest: memoryview) -> Iterator[memoryview]:
    while rest:
        if len(rest) < _FRAME.size:
            raise StateError("it is cut short")
        length, checksum = _FRAME.unpack_from(rest)
        body = rest[_FRAME.size : _FRAME.size + length]
        if length > FRAME_BYTES_MAX or len(body) < length:
            raise StateError("it is cut short")
        if crc32(body) != checksum:
            raise StateError("it is damaged: a checksum is wrong")
        yield body
        rest = rest[_FRAME.size + length :]


def _unpacked(body: memoryview) -> object:
    try:
        value: object = msgpack.unpackb(body, strict_map_key=True, use_list=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise StateError("it is not in the form of a saved state") from error
    return value


def _written_at(head: object, node: str) -> float:
    """The time of day in the first frame, if it is of this node and version."""
    if not isinstance(head, list) or not head or head[0] != VERSION:
        raise StateError(f"it is not of version {VERSION}")
    if len(head) != 3 or not isinstance(head[2], float) or not math.isfinite(head[2]):
        raise StateError("it is not in the form of a saved state")
    if head[1] != node:
        raise StateError(f"it is of the node {str(head[1])[:64]!r}, not of {node!r}")
    return head[2]


def _read_connections(body: memoryview) -> Sequence[Entry]:
    value = _unpacked(body)
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], bytes):
        raise StateError("it is not in the form of a saved state")
    groups, left = value
    try:
        records = read_groups(groups)
    except SyncError as error:
        raise StateError(f"it is not in the form of a saved state: {error}") from error
    if len(left) != 4 * len(records):
        raise StateError("it is not in the form of a saved state")
    numbers = struct.unpack(f"!{len(records)}I", left)
    return [(record, ticks / _TICKS) for record, ticks in zip(records, numbers, strict=True)]


def _group(entry: Entry) -> tuple[bytes, bytes, bytes, bytes, int, int]:
    """What connections of one group have in common; those without a common group differ."""
    key, server, server_port, method = entry[0][:4]
    size = 4 if key[0] & ~TEMPLATE_BIT == 4 else 16
    virtual, port = key[2 + size : 2 + 2 * size], key[4 + 2 * size : 6 + 2 * size]
    return key[:2], virtual, port, server, server_port, method
