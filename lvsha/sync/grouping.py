"""Put what waits to be told in groups, which take little room and little time.

In the order in which connections change, a datagram has a few of each real server. In groups
of one virtual end, server and state it has more of them, and who reads it finds runs of
connections that differ in nothing but the client, and takes them in together. A connection
waits but once, so the order of two says nothing, unless one belongs to the other: templates,
and what has details, come before all others, in the order in which they changed.

The group whose oldest has waited longest is first, so that nothing waits for ever.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final, Protocol, Self

from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionChange,
    ConnectionChanged,
    ConnectionRecord,
    IPv4_BYTES,
)

_IPv4_KEY_BYTES: Final = 6 + 2 * IPv4_BYTES
_Group = tuple[list[ConnectionRecord], list[bytes]]
"""Records that changed, or keys of what ended; one of the two is empty."""


class Room(Protocol):
    """A datagram that is being filled."""

    def add_all(self, records: Sequence[ConnectionRecord]) -> int:
        """Take connections in; returns how many there was room for."""
        ...

    def add_all_ended(self, keys: Sequence[bytes]) -> int:
        """Take ends of connections in; returns how many there was room for."""
        ...


class Grouping:
    """Changes in groups.

    Args:
        changes: by the keys of their records, the oldest first.
    """

    __slots__ = ("_groups",)

    def __init__(self, changes: Iterable[tuple[bytes, ConnectionChange]]) -> None:
        first: list[_Group] = []
        groups: dict[object, _Group] = {}
        for key, change in changes:
            is_short = len(key) == _IPv4_KEY_BYTES
            ends = key[:2], key[6:10] if is_short else key[18:34], key[-2:]
            if not isinstance(change, ConnectionChanged):
                group = groups.get(ends)
                if group is None:
                    groups[ends] = ([], [key])
                else:
                    group[1].append(key)
                continue
            record = change.record
            _, server, port, method, state, _, _, details = record
            if details is not None or key[0] >= TEMPLATE_BIT:
                first.append(([record], []))
                continue
            identity = ends, server, port, method, state
            group = groups.get(identity)
            if group is None:
                groups[identity] = ([record], [])
            else:
                group[0].append(record)
        self._groups = deque(chain(first, groups.values()))

    @classmethod
    def one_by_one(cls, changes: Iterable[tuple[bytes, ConnectionChange]]) -> Self:
        """Changes in their order, for a format that has no groups."""
        ordered = cls(())
        for key, change in changes:
            if isinstance(change, ConnectionChanged):
                ordered._groups.append(([change.record], []))
            else:
                ordered._groups.append(([], [key]))
        return ordered

    def __bool__(self) -> bool:
        return bool(self._groups)

    def fill(self, room: Room) -> list[bytes]:
        """Move what there is room for into a datagram; returns the keys of that."""
        moved: list[bytes] = []
        groups = self._groups
        while groups:
            records, keys = groups[0]
            if records:
                number = room.add_all(records)
                moved += [record.key for record in records[:number]]
            else:
                number = room.add_all_ended(keys)
                moved += keys[:number]
            if number < len(records or keys):
                del (records or keys)[:number]
                break
            groups.popleft()
        return moved
