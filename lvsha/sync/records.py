"""Connections as entries of a datagram: in groups of one virtual end and real server.

Most connections of a director share a handful of virtual ends and real servers, so a group
names both once, and a connection of IPv4 takes 13 bytes in it. This is level 2 of the
format; level 1 is in `lvsha.sync.plain_records`, and docs/sync-protocol.md has both.

Reading checks everything that the format says of a value; what only the tables know, whether
a protocol has a state, is not of the format. All values fit their fields, so nothing that was
read needs another check before it is written again.

Time-outs are seconds; in a group they are hundredths.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, TypeVar

import msgpack

from lvsha.errors import SyncError
from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionDetails,
    ConnectionRecord,
    ForwardMethod,
    IPv4_BYTES,
    IPv6_BYTES,
)
from lvsha.runs import FEW, Run, Runs, cut, filled, runs_of

# A year and a day; the longest time-out that ipvsadm takes is 31 days.
TIMEOUT_MAX: Final = 366 * 86_400
UINT16_MAX: Final = 0xFFFF
UINT32_MAX: Final = 0xFFFF_FFFF
# A Call-ID, as the kernel bounds it.
FOUND_BYTES_MAX: Final = 255
FIELDS_MAX: Final = 24

# Of one entry's details: each field counts its value and 5 bytes. The most that this version
# has is the parent of a call, an IPv6 template's key with the longest Call-ID: 298.
DETAILS_BYTES_MAX: Final = 300
_FIELD_BYTES: Final = 5
# The largest entry: a group of its own for an IPv6 template with all fields. Together with
# the longest names it fits the smallest datagram that may be configured, so that whatever
# was read can be told again.
ENTRY_BYTES_MAX: Final = 380
# The smallest: the end of a connection of IPv4, in a group.
ENTRY_BYTES_MIN: Final = 6

_KEY_BYTES: Final = {4: 14, 6: 38}
METHODS: Final = {method.value: method for method in ForwardMethod}
_TICKS: Final = 100
"""In a second, for time-outs in groups."""

# Ends of a group: family (with the bit of a template), protocol, method, virtual port, server
# port; behind it the virtual address and the server's.
_ENDS: Final = struct.Struct("!BBBHH")
# An entry: client address and port, state, flags, time-out.
_ENTRIES: Final = {4: struct.Struct("!4s2sBHI"), 6: struct.Struct("!16s2sBHI")}
# What of an entry is not of the client, and where the client's bytes stand in a key and here.
_RESTS: Final = {4: struct.Struct("!6xBHI"), 6: struct.Struct("!18xBHI")}
_CLIENTS: Final = {
    4: [*zip(range(2, 6), range(4), strict=True), (10, 4), (11, 5)],
    6: [*zip(range(2, 18), range(16), strict=True), (34, 16), (35, 17)],
}
_TO_ENTRIES: Final = {
    family: [(to, of) for of, to in places] for family, places in _CLIENTS.items()
}
_ENDED: Final = {4: 6, 6: 18}
"""Bytes of an ended connection in a group: client address and port."""

# Numbers of the fields of `ConnectionDetails`; those above go on as they came.
_MARK: Final = 1
_SHIFTS: Final = 2
_FOUND: Final = 3
_ENGINE: Final = 4
_PARENT: Final = 5
_DIALOGUE: Final = 6
_KNOWN_MAX: Final = _DIALOGUE
_SHIFT_NUMBERS: Final = struct.Struct("!6I")
# The mode of an FTP dialogue; and of one with an answer, its number and the mode it had.
_DIALOGUE_BEGUN: Final = struct.Struct("!B")
_DIALOGUE_ANSWERED: Final = struct.Struct("!BIB")
_NO_DETAILS: Final = ConnectionDetails()
_Entry = TypeVar("_Entry")
_new_record: Final = tuple.__new__  # cheaper than to call the class

_packer: Final = msgpack.Packer(autoreset=True)
pack: Final[Callable[[object], bytes]] = _packer.pack


def array_head(length: int) -> bytes:
    """The head of a msgpack array."""
    return bytes((0x90 | length,)) if length < 16 else b"\xdc" + length.to_bytes(2)


# --- writing groups ------------------------------------------------------------------


class _Group:
    """What is gathered for one virtual end, and the real server unless all of it ended."""

    __slots__ = ("details", "ends", "entries")

    def __init__(self, ends: bytes) -> None:
        self.ends = ends
        self.entries = bytearray()
        self.details: list[bytes] = []

    def encoded(self) -> bytes:
        body = array_head(3 if self.details else 2) + pack(self.ends)
        body += pack(self.entries)
        if self.details:
            body += array_head(len(self.details)) + b"".join(self.details)
        return body


_GROUP_BYTES: Final = 1 + 2 + 3
"""Of a group beside its ends and entries: heads of an array and of two strings of bytes."""
_DETAILS_BYTES: Final = 3


class Packing:
    """Gathers the entries of one datagram, and knows how much room they take.

    Args:
        room: for all entries, in bytes.
    """

    __slots__ = ("_ended", "_groups", "_keys", "_room", "count")

    def __init__(self, room: int) -> None:
        self._room = room - 3 * len(array_head(UINT16_MAX))
        self._groups: dict[object, _Group] = {}
        self._ended: dict[object, _Group] = {}
        self._keys: list[bytes] = []
        self.count = 0

    def add(self, record: ConnectionRecord) -> bool:
        """Take a connection in; False if there is no room for it."""
        return self._place(record) is not None

    def add_all(self, records: Sequence[ConnectionRecord]) -> int:
        """Take connections in, as far as there is room; those of one group in one go.

        Returns:
            How many there was room for.
        """
        at = 0
        while at < len(records) and (group := self._place(records[at])) is not None:
            at += 1 + self._add_alike(group, records, at)
        return at

    def add_run(self, record: ConnectionRecord, keys: Sequence[bytes]) -> int:
        """Take in connections with these keys that differ from one in nothing but the client.

        They have no details: what has any is told by itself.

        Returns:
            How many there was room for.
        """
        group = self._place(record if record.key == keys[0] else record._replace(key=keys[0]))
        if group is None or len(keys) == 1:
            return int(group is not None)
        family = keys[0][0] & ~TEMPLATE_BIT
        entry_bytes = _ENTRIES[family].size
        others = keys[1 : 1 + self._room // entry_bytes]
        row, rows = group.entries[-entry_bytes:], b"".join(others)
        group.entries += filled(row, rows, _KEY_BYTES[family], _TO_ENTRIES[family])
        self._room -= len(others) * entry_bytes
        self.count += len(others)
        return 1 + len(others)

    def _add_alike(self, group: _Group, records: Sequence[ConnectionRecord], at: int) -> int:
        """Take in what follows a record, is of its group and has no details; how many it was."""
        key, own_server, own_port, own_method, *_ = records[at]
        family = key[0] & ~TEMPLATE_BIT
        size = IPv4_BYTES if family == 4 else IPv6_BYTES
        client_end, ports_at, port_end, end = 2 + size, 2 + 2 * size, 4 + 2 * size, 6 + 2 * size
        head, virtual, tail = key[:2], key[client_end:ports_at], key[port_end:end]
        entries, encode, entry_bytes = group.entries, _ENTRIES[family].pack, _ENTRIES[family].size
        added = 0
        for record in records[at + 1 : at + 1 + self._room // entry_bytes]:
            key, server, port, method, state, flags, timeout, details = record
            if (
                server != own_server
                or port != own_port
                or method is not own_method
                or details is not None
                or key[client_end:ports_at] != virtual
                or key[port_end:] != tail
                or key[:2] != head
            ):
                break
            entries += encode(
                key[2:client_end],
                key[ports_at:port_end],
                state,
                flags & UINT16_MAX,
                round(timeout * _TICKS),
            )
            added += 1
        self._room -= added * entry_bytes
        self.count += added
        return added

    def _place(self, record: ConnectionRecord) -> _Group | None:
        """The group in which a connection has been taken in; None if there is no room for it."""
        key, server, server_port, method, state, flags, timeout, details = record
        family = key[0] & ~TEMPLATE_BIT
        size = IPv4_BYTES if family == 4 else IPv6_BYTES
        virtual = key[2 + size : 2 + 2 * size]
        ports = key[2 + 2 * size : 6 + 2 * size]
        identity = (key[:2], virtual, ports[2:], server, server_port, method)
        group = self._groups.get(identity)
        needed = _ENTRIES[family].size
        ends = b""
        if group is None:
            ends = (
                _ENDS.pack(key[0], key[1], method, int.from_bytes(ports[2:]), server_port)
                + virtual
                + server
            )
            needed += _GROUP_BYTES + len(ends)
        told = b""
        if details is not None or len(key) > 6 + 2 * size:
            index = 0 if group is None else len(group.entries) // _ENTRIES[family].size
            told = _encode_details(index, key[6 + 2 * size :], details)
            needed += len(told) + (_DETAILS_BYTES if group is None or not group.details else 0)
        if needed > self._room:
            return None
        self._room -= needed
        if group is None:
            group = self._groups[identity] = _Group(ends)
        group.entries += _ENTRIES[family].pack(
            key[2 : 2 + size], ports[:2], state, flags & UINT16_MAX, round(timeout * _TICKS)
        )
        if told:
            group.details.append(told)
        self.count += 1
        return group

    def add_ended(self, key: bytes) -> bool:
        """Take the end of a connection in; False if there is no room for it."""
        family = key[0] & ~TEMPLATE_BIT
        if len(key) > _KEY_BYTES[family]:
            return self.add_key(key)
        size = IPv4_BYTES if family == 4 else IPv6_BYTES
        identity = (key[:2], key[2 + size : 2 + 2 * size], key[-2:])
        group = self._ended.get(identity)
        needed = _ENDED[family]
        if group is None:
            needed += _GROUP_BYTES + 4 + size
        if needed > self._room:
            return False
        self._room -= needed
        if group is None:
            group = self._ended[identity] = _Group(b"".join((key[:2], key[-2:], identity[1])))
        group.entries += key[2 : 2 + size] + key[-4:-2]
        self.count += 1
        return True

    def add_all_ended(self, keys: Sequence[bytes]) -> int:
        """Take ends in, as far as there is room; returns how many there was room for."""
        return taken(keys, self.add_ended)

    def add_key(self, key: bytes) -> bool:
        """Take a key in as it is, such as that of a template with a Call-ID."""
        packed = pack(key)
        if len(packed) > self._room:
            return False
        self._room -= len(packed)
        self._keys.append(packed)
        self.count += 1
        return True

    def groups(self) -> bytes:
        """The array of all groups."""
        return _joined([group.encoded() for group in self._groups.values()])

    def ended(self) -> bytes:
        """The array of the groups of what ended, and the array of single keys."""
        return _joined([group.encoded() for group in self._ended.values()]) + self.keys()

    def keys(self) -> bytes:
        """The array of single keys."""
        return _joined(self._keys)


def _joined(elements: Sequence[bytes]) -> bytes:
    return array_head(len(elements)) + b"".join(elements)


def _encode_details(index: int, found: bytes, details: ConnectionDetails | None) -> bytes:
    """What one entry of a group has beside: its place, then numbers and values in turn.

    What would be more than a reader takes is left out: the last first, which are fields that
    this version does not know.
    """
    fields: list[object] = [index]
    room = DETAILS_BYTES_MAX
    for number, value in _fields(found, details):
        room -= _FIELD_BYTES + len(value)
        if room < 0 or len(fields) > 2 * FIELDS_MAX:
            break
        fields += (number, value)
    return pack(fields)


def _fields(found: bytes, details: ConnectionDetails | None) -> Iterator[tuple[int, bytes]]:
    if found:
        yield _FOUND, found
    if details is None:
        return
    if details.mark:
        yield _MARK, details.mark.to_bytes(4)
    if details.shifts:
        yield _SHIFTS, _SHIFT_NUMBERS.pack(*details.shifts)
    if details.engine:
        yield _ENGINE, details.engine.encode("ascii")
    if details.dialogue:
        layout = _DIALOGUE_BEGUN if len(details.dialogue) == 1 else _DIALOGUE_ANSWERED
        yield _DIALOGUE, layout.pack(*details.dialogue)
    if details.parent:
        yield _PARENT, details.parent
    yield from details.others


# --- reading groups ------------------------------------------------------------------


def read_groups(groups: object) -> Runs:
    """All connections of an array of groups.

    Raises:
        SyncError: something in it is not as the format has it.
    """
    runs: list[Run] = []
    for group in read_array(groups):
        runs += _read_group(read_array(group))
    return Runs(runs)


def _read_group(group: list[Any]) -> Sequence[Run]:
    if len(group) < 2:
        raise SyncError("a group without its entries")
    ends, entries = _bytes(group[0]), _bytes(group[1])
    if len(ends) < _ENDS.size:
        raise SyncError("a group whose ends are cut short")
    kind, protocol, number, virtual_port, server_port = _ENDS.unpack_from(ends)
    family = kind & ~TEMPLATE_BIT
    rests = _RESTS.get(family)
    method = METHODS.get(number)
    size = IPv4_BYTES if family == 4 else IPv6_BYTES
    virtual, server = ends[_ENDS.size : _ENDS.size + size], ends[_ENDS.size + size :]
    if rests is None or method is None or len(entries) % rests.size:
        raise SyncError("a group of no family, no method, or cut entries")
    if len(server) != size and (
        # Only a tunnel can lead from one family to the other.
        method is not ForwardMethod.TUNNEL or len(server) != IPv4_BYTES + IPv6_BYTES - size
    ):
        raise SyncError("a group whose server has a wrong address")
    head, tail, step = bytes((kind, protocol)), virtual_port.to_bytes(2), rests.size
    if len(entries) < FEW * step:
        keys = [
            head + entries[at : at + size] + virtual + entries[at + size : at + size + 2] + tail
            for at in range(0, len(entries), step)
        ]
    else:
        row = head + bytes(size) + virtual + bytes(2) + tail
        keys = cut(filled(row, entries, step, _CLIENTS[family]), len(row))
    runs: list[Run] = []
    at = 0
    for (state, flags, timeout), alike in groupby(rests.iter_unpack(entries)):
        own = keys[at : at + len(list(alike))]
        values = (own[0], server, server_port, method, state, flags, timeout / _TICKS, None)
        runs.append(Run(_new_record(ConnectionRecord, values), own))
        at += len(own)
    if len(group) < 3:
        return runs
    records = list(Runs(runs))
    last = -1
    for details in read_array(group[2]):
        last = _read_details(read_array(details), records, last)
    return runs_of(records)


def _read_details(fields: list[Any], records: list[ConnectionRecord], last: int) -> int:
    """Add to one record of a group what it has beside; returns its place, behind the last."""
    index = fields[0] if fields else None
    if type(index) is not int or not last < index < len(records) or not len(fields) & 1:
        raise SyncError("details of no entry")
    if len(fields) > 1 + 2 * FIELDS_MAX:
        raise SyncError("too many details")
    record = records[index]
    known: dict[int, bytes] = {}
    others: list[tuple[int, bytes]] = []
    length = 0
    for number, value in zip(fields[1::2], fields[2::2], strict=True):
        if type(number) is not int or not 0 < number <= UINT16_MAX:
            raise SyncError("a field with a number that is none")
        if type(value) is not bytes or not value:
            raise SyncError("a field of a wrong type or length")
        length += _FIELD_BYTES + len(value)
        if number <= _KNOWN_MAX:
            known[number] = value
        else:
            others.append((number, value))
    if length > DETAILS_BYTES_MAX:
        raise SyncError("details that are too long")
    found = known.get(_FOUND, b"")
    if found and (record.key[0] < TEMPLATE_BIT or len(found) > FOUND_BYTES_MAX):
        raise SyncError("what an engine found, of no template or too long")
    details = ConnectionDetails(
        mark=_mark(known.get(_MARK)),
        shifts=_shifts(known.get(_SHIFTS)),
        engine=_engine(known.get(_ENGINE)),
        parent=read_key(known[_PARENT]) if _PARENT in known else b"",
        dialogue=_dialogue(known.get(_DIALOGUE)),
        others=tuple(others),
    )
    records[index] = record._replace(
        key=record.key + found, details=None if details == _NO_DETAILS else details
    )
    return index


def _mark(value: bytes | None) -> int:
    if value is None:
        return 0
    if len(value) != 4:
        raise SyncError("a firewall mark of a wrong length")
    return int.from_bytes(value)


def _shifts(value: bytes | None) -> tuple[int, ...]:
    if value is None:
        return ()
    if len(value) != _SHIFT_NUMBERS.size:
        raise SyncError("sequence shifts of a wrong length")
    return _SHIFT_NUMBERS.unpack(value)


def _dialogue(value: bytes | None) -> tuple[int, ...]:
    if value is None:
        return ()
    for layout in (_DIALOGUE_BEGUN, _DIALOGUE_ANSWERED):
        if len(value) == layout.size:
            return layout.unpack(value)
    raise SyncError("an FTP dialogue of a wrong length")


def _engine(value: bytes | None) -> str:
    if value is None:
        return ""
    if len(value) > 16 or not value.isascii() or not value.isalnum():
        raise SyncError("a persistence engine with a name that is none")
    return value.decode("ascii")


def read_ended(groups: object, keys: object) -> list[bytes]:
    """The keys of what ended.

    Raises:
        SyncError: something in it is not as the format has it.
    """
    ended: list[bytes] = []
    for group in read_array(groups):
        fields = read_array(group)
        if len(fields) < 2:
            raise SyncError("a group without its entries")
        ends, entries = _bytes(fields[0]), _bytes(fields[1])
        family = ends[0] & ~TEMPLATE_BIT if ends else 0
        size = IPv4_BYTES if family == 4 else IPv6_BYTES
        step = _ENDED.get(family)
        if step is None or len(ends) != 4 + size or len(entries) % step:
            raise SyncError("a group of what ended that cannot be")
        head, tail, virtual = ends[:2], ends[2:4], ends[4:]
        for at in range(0, len(entries), step):
            entry = entries[at : at + step]
            ended.append(head + entry[:-2] + virtual + entry[-2:] + tail)
    ended += [read_key(key) for key in read_array(keys)]
    return ended


def read_key(value: object) -> bytes:
    """A key of a connection or template.

    Raises:
        SyncError: it is none.
    """
    if type(value) is bytes and value:
        length = _KEY_BYTES.get(value[0] & ~TEMPLATE_BIT, 0)
        found = len(value) - length
        if length and found >= 0 and (not found or value[0] >= TEMPLATE_BIT):
            if found > FOUND_BYTES_MAX:
                raise SyncError("a key that is too long")
            return value
    raise SyncError("a key that is none")


def taken(entries: Sequence[_Entry], add: Callable[[_Entry], bool]) -> int:
    """Add entries one by one while there is room; returns how many there was room for."""
    return next((at for at, entry in enumerate(entries) if not add(entry)), len(entries))


def read_array(value: object) -> list[Any]:
    """An array of a decoded datagram.

    Raises:
        SyncError: it is none.
    """
    if type(value) is not list:
        raise SyncError("entries that are not an array")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise SyncError("ends or entries that are not bytes")
    return value
