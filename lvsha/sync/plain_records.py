"""Connections as entries of a datagram of level 1, that of version 0.1.0.

It has an array of its own for each connection. It is still read, and written where a peer
understands nothing else. docs/sync-protocol.md has the format.

Time-outs are seconds.
"""

from collections.abc import Sequence
from typing import Any, Final

from lvsha.errors import SyncError
from lvsha.model import TEMPLATE_BIT, ConnectionRecord, ForwardMethod
from lvsha.sync.records import (
    METHODS,
    TIMEOUT_MAX,
    UINT16_MAX,
    UINT32_MAX,
    pack,
    read_array,
    read_key,
    taken,
)

_NUMBERS: Final = frozenset({int, float})


def encode_plain(record: ConnectionRecord) -> bytes:
    """A connection as level 1 has it."""
    key, server, server_port, method, state, flags, timeout, _ = record
    timeout = min(timeout, TIMEOUT_MAX)
    whole = int(timeout)
    number = whole if whole == timeout else timeout
    return pack((key, server, server_port, method.value, state, flags, number))


def encode_plain_ended(key: bytes) -> bytes:
    """The end of a connection as level 1 has it."""
    return pack(key)


def read_plain(entries: object) -> tuple[list[ConnectionRecord], list[bytes]]:
    """The connections of an array of entries of level 1, and the keys of those that ended.

    Raises:
        SyncError: something in it is not as the format has it.
    """
    records: list[ConnectionRecord] = []
    ended: list[bytes] = []
    for entry in read_array(entries):
        if type(entry) is list:
            records.append(_read_plain_record(entry))
        else:
            ended.append(_plain_key(entry))
    return records, ended


def _plain_key(value: object) -> bytes:
    key = read_key(value)
    if key[0] >= TEMPLATE_BIT:
        raise SyncError("a key that is none")
    return key


def _read_plain_record(fields: list[Any]) -> ConnectionRecord:
    if len(fields) < 7:
        raise SyncError("a record that is not an array of all its fields")
    key, server, server_port, method, state, flags, timeout = fields[:7]
    _plain_key(key)
    if not (
        type(server) is bytes
        and type(server_port) is int
        and type(method) is int
        and type(state) is int
        and type(flags) is int
        and type(timeout) in _NUMBERS
        and 0 <= server_port <= UINT16_MAX
        and method in METHODS
        and 0 <= state <= 0xFF
        and 0 <= flags <= UINT32_MAX
        # Written so that a NaN fails it.
        and 0 <= timeout <= TIMEOUT_MAX
    ):
        raise SyncError("a record with a field out of range")
    wide = key[0] == 6
    if len(server) != (16 if wide else 4) and (
        method != ForwardMethod.TUNNEL or len(server) != (4 if wide else 16)
    ):
        raise SyncError("a record whose server has a wrong address")
    return ConnectionRecord(key, server, server_port, METHODS[method], state, flags, float(timeout))


class PlainPacking:
    """As `Packing`, of level 1. What that has no words for, templates and bypass, is left out.

    Attributes:
        encoded: the entries.
    """

    __slots__ = ("_room", "encoded")

    def __init__(self, room: int) -> None:
        self._room = room
        self.encoded: list[bytes] = []

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self.encoded)

    def add(self, record: ConnectionRecord) -> bool:
        """Take a connection in; False if there is no room for it."""
        unknown = record.is_template or record.method is ForwardMethod.BYPASS
        return unknown or self._add(encode_plain(record))

    def add_all(self, records: Sequence[ConnectionRecord]) -> int:
        """Take connections in, as far as there is room; returns how many there was room for."""
        return taken(records, self.add)

    def add_run(self, record: ConnectionRecord, keys: Sequence[bytes]) -> int:
        """Take in connections like one, with these keys; returns how many there was room for."""
        return self.add_all([record._replace(key=key) for key in keys])

    def add_ended(self, key: bytes) -> bool:
        """Take the end of a connection in; False if there is no room for it."""
        return key[0] >= TEMPLATE_BIT or self._add(encode_plain_ended(key))

    def add_all_ended(self, keys: Sequence[bytes]) -> int:
        """Take ends in, as far as there is room; returns how many there was room for."""
        return taken(keys, self.add_ended)

    def _add(self, entry: bytes) -> bool:
        if len(entry) > self._room:
            return False
        self._room -= len(entry)
        self.encoded.append(entry)
        return True
