"""The messages of the kernel's IPVS sync protocol: one datagram to one value and back.

Versions 1 and 0 of the format, which docs/kernel-sync.md describes. It keeps no state and
judges no sender: `parse` returns a `Message` or raises `SyncError`, whatever the bytes are;
`emit` never changes what it emits.

A receiver in the kernel works through a message record by record. A record that says
something it does not know is left out; where a record cannot be told from the next one it
gives the rest of the message up, and what came before stays. So does `parse`: the head of a
datagram is right or an error, and what was wrong behind it is told in `Message.faults`.

What does not survive the way through a `ConnectionRecord`: the method LOCALNODE, which says
that the real server was the sender itself, and becomes direct routing; options that the
kernel does not write, and their order; what a persistence engine found, on a record that is
no template; parts of a second.

A time-out of 0 means that the receiver takes the one that its own table has for the state;
version 0 has no other. Times are seconds.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from lvsha.errors import SyncError
from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    IPv4_BYTES,
    IPv6_BYTES,
)

VERSIONS: Final = (0, 1)
RECORDS_MAX: Final = 255
"""A message counts its records in one byte."""
DATAGRAM_BYTES_MAX: Final = 65_535
FOUND_BYTES_MAX: Final = 255
ENGINE_BYTES_MAX: Final = 16

ByteOrder = Literal["little", "big"]

_HEAD_V0: Final = struct.Struct(">BBH")  # count, sync id, length
_HEAD_V1: Final = struct.Struct(">BBHBBH")  # 0, sync id, length, count, version, 0
_COUNT_V1_AT: Final = 4
_RECORD_V0: Final = struct.Struct(">BBHHH4s4s4sHH")
_RECORDS_V1: Final = {
    IPv4_BYTES: struct.Struct(">BBHIHHHHII4s4s4s"),
    IPv6_BYTES: struct.Struct(">BBHIHHHHII16s16s16s"),
}
_SHIFTS: Final = struct.Struct(">6I")
_SHIFTS_NATIVE: Final[dict[ByteOrder, struct.Struct]] = {
    "little": struct.Struct("<6I"),
    "big": _SHIFTS,
}
_NO_SHIFTS: Final = (0,) * 6

_RECORD_IPV4_BYTES: Final = _RECORDS_V1[IPv4_BYTES].size
_SIZE_MASK: Final = 0x0FFF
_SIZE_BITS: Final = 12
_TYPE_IPV6: Final = 0x01
_ALIGNMENT: Final = 4

_OPTION_SHIFTS: Final = 1
_OPTION_FOUND: Final = 2
_OPTION_ENGINE: Final = 3
_OPTION_MAY_BE_SKIPPED: Final = 0x40

_METHOD_MASK: Final = 0x0007
_LOCAL_NODE: Final = 1
_HASHED: Final = 0x0040
_SEQUENCES: Final = int(ConnectionFlag.IN_SEQUENCE | ConnectionFlag.OUT_SEQUENCE)
_TEMPLATE: Final = int(ConnectionFlag.TEMPLATE)
_FLAGS_MASK: Final = 0xFFFF_FFFF & ~_METHOD_MASK & ~_HASHED
_UINT16_MAX: Final = 0xFFFF
_UINT32_MAX: Final = 0xFFFF_FFFF

_METHODS: Final = {
    **{method.value: method for method in ForwardMethod},
    _LOCAL_NODE: ForwardMethod.DIRECT_ROUTE,
}


class Message(NamedTuple):
    """What one datagram says.

    Attributes:
        version: of the format.
        sync_id: 0 to 255.
        records: those that could be read, in their order; `flags` of each has all bits that
            were sent but the method's, and HASHED, which is the sender's own affair.
        faults: a word for each record that was left out, and one for what made an end to
            the message before its last record; see `FAULTS`.
    """

    version: int
    sync_id: int
    records: tuple[ConnectionRecord, ...]
    faults: tuple[str, ...] = ()


LEFT_OUT: Final = frozenset({"option_unknown", "engine_unnamed", "method_unknown"})
"""Faults that leave out one record; all others end the message."""
FAULTS: Final = LEFT_OUT | {
    "record_truncated",
    "record_version",
    "record_type",
    "record_length",
    "option_malformed",
}


def parse(datagram: bytes, byte_order: ByteOrder = "little") -> Message:
    """Turn a datagram into a value.

    Args:
        datagram: the payload of the UDP datagram.
        byte_order: that of a sender of version 0, which writes sequence numbers in its own.

    Raises:
        SyncError: it is no message, or not all of one.
    """
    version, sync_id = head(datagram)
    if version:
        records, faults = _parse_v1(datagram, datagram[_COUNT_V1_AT])
    else:
        records, faults = _parse_v0(datagram, datagram[0], byte_order)
    return Message(version, sync_id, tuple(records), tuple(faults))


def head(datagram: bytes) -> tuple[int, int]:
    """The version and the sync id of a message; what is not of version 1 is of version 0.

    Raises:
        SyncError: it is no message, or not all of one.
    """
    if len(datagram) < _HEAD_V0.size:
        raise SyncError("a sync message of the kernel's has at least 4 bytes")
    count, sync_id, length = _HEAD_V0.unpack_from(datagram)
    if length != len(datagram):
        raise SyncError("the length in the sync message is not that of its datagram")
    if count == 0 and len(datagram) >= _HEAD_V1.size:
        *_, version, spare = _HEAD_V1.unpack_from(datagram)
        if version == 1 and not spare:
            return 1, sync_id
    return 0, sync_id


def _parse_v0(
    datagram: bytes, count: int, byte_order: ByteOrder
) -> tuple[list[ConnectionRecord], list[str]]:
    records: list[ConnectionRecord] = []
    faults: list[str] = []
    at = _HEAD_V0.size
    for _ in range(count):
        if at + _RECORD_V0.size > len(datagram):
            faults.append("record_truncated")
            break
        (_, protocol, client_port, virtual_port, server_port, *_, flags, state) = (
            _RECORD_V0.unpack_from(datagram, at)
        )
        addresses_at = at + 8
        ends = datagram[addresses_at : addresses_at + 2 * IPv4_BYTES]
        server = datagram[addresses_at + 2 * IPv4_BYTES : addresses_at + 3 * IPv4_BYTES]
        at += _RECORD_V0.size
        details = None
        if flags & _SEQUENCES:
            if at + _SHIFTS.size > len(datagram):
                faults.append("record_truncated")
                break
            shifts = _SHIFTS_NATIVE[byte_order].unpack_from(datagram, at)
            details = ConnectionDetails(shifts=shifts)
            at += _SHIFTS.size
        method = _METHODS.get(flags & _METHOD_MASK)
        if method is None:
            faults.append("method_unknown")
            continue
        key = b"%c%c%b%b%b" % (
            4 | TEMPLATE_BIT if flags & _TEMPLATE else 4,
            protocol,
            ends,
            client_port.to_bytes(2),
            virtual_port.to_bytes(2),
        )
        records.append(
            ConnectionRecord(
                key, server, server_port, method, state, flags & _FLAGS_MASK, 0.0, details
            )
        )
    return records, faults


def _parse_v1(datagram: bytes, count: int) -> tuple[list[ConnectionRecord], list[str]]:
    records: list[ConnectionRecord] = []
    faults: list[str] = []
    at, end = _HEAD_V1.size, len(datagram)
    for _ in range(count):
        if at + _RECORD_IPV4_BYTES > end:
            faults.append("record_truncated")
            break
        version_and_length = datagram[at + 2] << 8 | datagram[at + 3]
        length = version_and_length & _SIZE_MASK
        if at + length > end:
            faults.append("record_truncated")
            break
        if version_and_length >> _SIZE_BITS:
            faults.append("record_version")
            break
        read = _parse_record(datagram, at, at + length)
        if isinstance(read, ConnectionRecord):
            records.append(read)
        else:
            faults.append(read)
            if read not in LEFT_OUT:
                break
        at += length + (-length % _ALIGNMENT)
    return records, faults


def _parse_record(datagram: bytes, at: int, end: int) -> ConnectionRecord | str:
    """One record of version 1, or its fault."""
    kind = datagram[at]
    if kind & _TYPE_IPV6:
        size, family = IPv6_BYTES, 6
    elif not kind:
        size, family = IPv4_BYTES, 4
    else:
        return "record_type"
    layout = _RECORDS_V1[size]
    options_at = at + layout.size
    if options_at > end:
        return "record_length"
    _, protocol, _, flags, state, _, _, server_port, mark, timeout, client, virtual, server = (
        layout.unpack_from(datagram, at)
    )
    options = _Options()
    if options_at < end:
        fault = options.read(datagram[options_at:end])
        if fault is not None:
            return fault
    method = _METHODS.get(flags & _METHOD_MASK)
    if method is None:
        return "method_unknown"
    # The ports of client and virtual end stand behind one another, as in the key.
    key = b"%c%c%b%b%b" % (family, protocol, client, virtual, datagram[at + 10 : at + 14])
    if flags & _TEMPLATE:
        key = b"%c%b%b" % (family | TEMPLATE_BIT, key[1:], options.found)
    details = None
    if mark or options.shifts or options.engine:
        details = ConnectionDetails(mark=mark, shifts=options.shifts, engine=options.engine)
    return ConnectionRecord(
        key, server, server_port, method, state, flags & _FLAGS_MASK, float(timeout), details
    )


class _Options:
    """What stands behind a record of version 1."""

    __slots__ = ("engine", "found", "shifts")

    def __init__(self) -> None:
        self.shifts: tuple[int, ...] = ()
        self.found = b""
        self.engine = ""

    def read(self, data: bytes) -> str | None:
        """Read all of them; returns the fault, if there is one."""
        at = 0
        seen: set[int] = set()
        while at < len(data):
            content_at = at + 2
            length = data[at + 1] if content_at <= len(data) else 0
            if not length or content_at + length > len(data):
                return "option_malformed"
            kind = data[at] & ~_OPTION_MAY_BE_SKIPPED
            at = content_at + length
            if kind not in _LENGTHS:
                if not data[content_at - 2] & _OPTION_MAY_BE_SKIPPED:
                    # A receiver that does not understand it does not read on either.
                    return "option_unknown"
                continue
            shortest, longest = _LENGTHS[kind]
            if kind in seen or not shortest <= length <= longest:
                return "option_malformed"
            seen.add(kind)
            self._take(kind, data[content_at:at])
        if not self.found:
            self.engine = ""  # a name alone means nothing
        return "engine_unnamed" if self.found and not self.engine else None

    def _take(self, kind: int, content: bytes) -> None:
        match kind:
            case 1:
                self.shifts = _SHIFTS.unpack(content)
            case 2:
                self.found = content
            case _:
                self.engine = content.decode("latin-1")


_LENGTHS: Final = {
    _OPTION_SHIFTS: (_SHIFTS.size, _SHIFTS.size),
    _OPTION_FOUND: (1, FOUND_BYTES_MAX),
    _OPTION_ENGINE: (1, ENGINE_BYTES_MAX),
}


# Emitting


def can_carry(version: int, record: ConnectionRecord) -> bool:
    """Whether a version of the format has a place for all that a record must say.

    Neither has one for a server of another family than the client. Version 0 knows nothing
    of IPv6, nor of what a persistence engine found; a template without that would be
    another's.
    """
    size = _address_bytes(record)
    if len(record.server) != size:
        return False
    found = len(record.key) - 2 * size - 6
    if not found:
        return version > 0 or size == IPv4_BYTES
    engine = "" if record.details is None else record.details.engine
    return version > 0 and found <= FOUND_BYTES_MAX and 0 < len(engine) <= ENGINE_BYTES_MAX


def emit_record(version: int, record: ConnectionRecord, byte_order: ByteOrder = "little") -> bytes:
    """The bytes of one record, without padding; `can_carry` holds."""
    return _emit_v1(record) if version else _emit_v0(record, byte_order)


def emit_message(version: int, sync_id: int, records: Sequence[bytes]) -> bytes:
    """The datagram that holds these records.

    Args:
        version: of the format.
        sync_id: 0 to 255.
        records: at most `RECORDS_MAX`, each as `emit_record` makes it for this version.
    """
    if not version:
        body = b"".join(records)
        return _HEAD_V0.pack(len(records), sync_id, _HEAD_V0.size + len(body)) + body
    # No padding behind the last one.
    aligned = [record + bytes(-len(record) % _ALIGNMENT) for record in records[:-1]]
    body = b"".join((*aligned, *records[-1:]))
    return _HEAD_V1.pack(0, sync_id, _HEAD_V1.size + len(body), len(records), 1, 0) + body


def emit(message: Message, byte_order: ByteOrder = "little") -> bytes:
    """Turn a value into a datagram; its faults are not emitted.

    Raises:
        SyncError: it has more records than fit into one message, or one of them does not
            fit into this version.
    """
    if len(message.records) > RECORDS_MAX:
        raise SyncError(f"a message holds at most {RECORDS_MAX} records")
    if not all(can_carry(message.version, record) for record in message.records):
        raise SyncError(f"version {message.version} has no place for what a record says")
    records = [emit_record(message.version, record, byte_order) for record in message.records]
    datagram = emit_message(message.version, message.sync_id, records)
    if len(datagram) > DATAGRAM_BYTES_MAX:
        raise SyncError(f"a message has at most {DATAGRAM_BYTES_MAX} bytes")
    return datagram


@dataclass(slots=True)
class Buffer:
    """A message that is being filled.

    It is at most ``length_max`` bytes long, but holds one record even if that alone is
    longer, as in the kernel.

    Attributes:
        version, sync_id: of the message.
        length_max: in bytes.
        records: so far, each as `emit_record` made it.
    """

    version: int
    sync_id: int
    length_max: int
    records: list[bytes]
    _length: int

    @classmethod
    def empty(cls, version: int, sync_id: int, length_max: int) -> "Buffer":
        """One without records."""
        head = _HEAD_V1.size if version else _HEAD_V0.size
        return cls(version, sync_id, length_max, [], head)

    def add(self, record: bytes) -> bool:
        """Append a record; False if there is no room for it."""
        padding = -self._length % _ALIGNMENT if self.version else 0
        length = self._length + padding + len(record)
        if self.records and (length > self.length_max or len(self.records) == RECORDS_MAX):
            return False
        self.records.append(record)
        self._length = length
        return True

    def datagram(self) -> bytes:
        """The message."""
        return emit_message(self.version, self.sync_id, self.records)


def encode(
    version: int,
    sync_id: int,
    records: Iterable[ConnectionRecord],
    length_max: int,
    byte_order: ByteOrder = "little",
) -> list[bytes]:
    """Records in their order, in as few datagrams as they fit; those that a version can carry."""
    datagrams: list[bytes] = []
    buffer = Buffer.empty(version, sync_id, length_max)
    for record in records:
        if not can_carry(version, record):
            continue
        data = emit_record(version, record, byte_order)
        if not buffer.add(data):
            datagrams.append(buffer.datagram())
            buffer = Buffer.empty(version, sync_id, length_max)
            buffer.add(data)
    if buffer.records:
        datagrams.append(buffer.datagram())
    return datagrams


def _address_bytes(record: ConnectionRecord) -> int:
    return IPv4_BYTES if record.key[0] & ~TEMPLATE_BIT == 4 else IPv6_BYTES


def _flags(record: ConnectionRecord) -> int:
    flags = record.flags & _FLAGS_MASK | record.method
    return flags | _TEMPLATE if record.is_template else flags & ~_TEMPLATE


def _emit_v0(record: ConnectionRecord, byte_order: ByteOrder) -> bytes:
    key, flags = record.key, _flags(record) & _UINT16_MAX
    data = b"\0%c%b%b%b%b%b" % (
        key[1],
        key[10:14],
        record.server_port.to_bytes(2),
        key[2:10],
        record.server,
        struct.pack(">HH", flags, record.state),
    )
    if flags & _SEQUENCES:
        data += _SHIFTS_NATIVE[byte_order].pack(*(_shifts(record) or _NO_SHIFTS))
    return data


def _emit_v1(record: ConnectionRecord) -> bytes:
    key, details = record.key, record.details
    size = _address_bytes(record)
    ports_at = 2 + 2 * size
    options = b""
    if details is not None:
        if details.shifts:
            options = bytes((_OPTION_SHIFTS, _SHIFTS.size)) + _SHIFTS.pack(*details.shifts)
        found = key[ports_at + 4 :]
        if found:
            engine = details.engine.encode("latin-1", "replace")
            options += bytes((_OPTION_FOUND, len(found))) + found
            options += bytes((_OPTION_ENGINE, len(engine))) + engine
    layout = _RECORDS_V1[size]
    return (
        layout.pack(
            _TYPE_IPV6 if size == IPv6_BYTES else 0,
            key[1],
            layout.size + len(options),
            _flags(record),
            record.state & _UINT16_MAX,
            int.from_bytes(key[ports_at : ports_at + 2]),
            int.from_bytes(key[ports_at + 2 : ports_at + 4]),
            record.server_port,
            0 if details is None else details.mark,
            min(math.ceil(record.timeout), _UINT32_MAX),
            key[2 : 2 + size],
            key[2 + size : ports_at],
            record.server,
        )
        + options
    )


def _shifts(record: ConnectionRecord) -> tuple[int, ...]:
    return () if record.details is None else record.details.shifts
