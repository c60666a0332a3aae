"""The sync protocol on the wire: one datagram to one value and back.

This is the format that docs/sync-protocol.md describes, and nothing else: it keeps no
state and judges no sender. `decode` returns a value or raises `SyncError`, whatever the
bytes are; `encode` and `encode_changes` never change what they encode.

A datagram is a head of four bytes (version, sync id, and 0xffff) and one msgpack array.
The sync id lies where the kernel's IPVS sync protocol has it, and 0xffff lies where that
protocol has the length: no datagram is so long, so a kernel on the same group and port
drops ours, and ours drops the kernel's.

Every array may grow at its end. Elements behind those known here are ignored, so an
older node understands a newer one. A message type that is not known is a value,
`Unknown`; a wrong length, type or range is an error.

Times are seconds, and none of them is a time of day or of a clock.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgpack

from lvsha.errors import SyncError
from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionRecord, ForwardMethod

VERSION: Final = 1
# Of a datagram that `lvsha.sync.seal` has sealed.
SEALED_VERSION: Final = 2
HEAD_BYTES: Final = 4
NOT_A_LENGTH: Final = b"\xff\xff"

# The payload of the largest UDP datagram over IPv4 (65,535 less 20 and 8).
DATAGRAM_BYTES_MAX: Final = 65_507
# A delete is the shortest entry, 16 bytes: no datagram holds more of them than this.
ARRAY_ELEMENTS_MAX: Final = 4096
STRING_BYTES_MAX: Final = 255
BINARY_BYTES_MAX: Final = 1024
NODE_CHARACTERS_MAX: Final = 63
PIECE_CHARACTERS_MAX: Final = 127
PIECE_DIGEST_BYTES_MAX: Final = 32
DIGEST_BYTES: Final = 16
PARTS_MAX: Final = 4096
# A year and a day; the longest time-out that ipvsadm takes is 31 days.
TIMEOUT_MAX: Final = 366 * 86_400
UINT16_MAX: Final = 0xFFFF
UINT32_MAX: Final = 0xFFFF_FFFF
UINT64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF

# An IPv6 record whose integers are all of the longest form and whose time-out is a float.
ENTRY_BYTES_MAX: Final = 1 + 40 + 18 + 3 + 1 + 2 + 5 + 9

_KEY_BYTES_IPV4: Final = 14
_KEY_BYTES_IPV6: Final = 38


class MessageType(IntEnum):
    """The numbers of all messages; docs/sync-protocol.md has their fields."""

    HEARTBEAT = 1
    RECORDS = 2
    SNAPSHOT_REQUEST = 3
    SNAPSHOT_BEGIN = 4
    SNAPSHOT_CHUNK = 5
    SNAPSHOT_END = 6
    CONFIGURATION = 7
    # Reserved: the numbers are taken, and a node that does not know them ignores them.
    GAP_REQUEST = 8
    BUCKET_DIGESTS = 9
    HANDOVER = 10
    SEALED = 11


class Role(IntEnum):
    """What the sender is for its sync id.

    Within one term a node passes through the roles in the order of the numbers, so that
    the pair (term, role) of a sender only grows and a datagram that comes late shows.
    """

    LEAD = 1
    DRAIN = 2
    FOLLOW = 3


class PeerState(IntEnum):
    """How far a follower is with the stream of its leader."""

    PROBE = 0
    SNAPSHOT = 1
    REPLICATE = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """What every datagram says of its sender.

    ``sequence`` is the number of this datagram for those that carry connections, and the
    highest number used so far for all others.
    """

    sync_id: int
    node: str
    epoch: int
    role: Role
    term: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sender is alive; says what it has, and how far it is with whom it follows."""

    origin: Origin
    connections: int
    digest: bytes
    leader: str
    state: PeerState
    position: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Records:
    """Live changes in their order: a record, or the key of a connection that ended."""

    origin: Origin
    entries: tuple[ConnectionRecord | bytes, ...]


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A follower asks ``leader`` for all it has; ``position`` is the highest number it saw."""

    origin: Origin
    leader: str
    leader_epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """All connections follow; the datagram's own number names the snapshot."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Some connections of the snapshot that began with number ``begin``."""

    origin: Origin
    begin: int
    records: tuple[ConnectionRecord, ...]


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The snapshot that began with number ``begin`` had ``records`` records."""

    origin: Origin
    begin: int
    records: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """One part of a description of a configuration: the digests of its named pieces."""

    origin: Origin
    digest: bytes
    part: int
    parts: int
    pieces: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that this version does not speak."""

    origin: Origin
    kind: int


Message = (
    Heartbeat
    | Records
    | SnapshotRequest
    | SnapshotBegin
    | SnapshotChunk
    | SnapshotEnd
    | Configuration
    | Unknown
)


def sync_id_of(datagram: bytes) -> int:
    """The sync id of a datagram, by its head alone.

    Raises:
        SyncError: the datagram is not of this protocol, or of another version.
    """
    if len(datagram) <= HEAD_BYTES or len(datagram) > DATAGRAM_BYTES_MAX:
        raise SyncError("a datagram of an impossible length")
    if datagram[2:HEAD_BYTES] != NOT_A_LENGTH:
        raise SyncError("a datagram of another protocol, perhaps the kernel's sync")
    if datagram[0] == SEALED_VERSION:
        raise SyncError("a sealed datagram, and this node has no key")
    if datagram[0] != VERSION:
        raise SyncError("a datagram of another version of the protocol")
    return datagram[1]


# --- encoding ------------------------------------------------------------------------


_packer: Final = msgpack.Packer(autoreset=True)
_pack: Final[Callable[[object], bytes]] = _packer.pack


def _array(length: int) -> bytes:
    """The head of a msgpack array."""
    return bytes((0x90 | length,)) if length < 16 else b"\xdc" + length.to_bytes(2)


def _begin(kind: MessageType, origin: Origin, fields: int) -> bytes:
    """The head and the fields that all messages share; ``fields`` more must follow."""
    return b"".join(
        (
            bytes((VERSION, origin.sync_id)),
            NOT_A_LENGTH,
            _array(6 + fields),
            _pack(kind.value),
            _pack(origin.node),
            _pack(origin.epoch),
            _pack(origin.role.value),
            _pack(origin.term),
            _pack(origin.sequence),
        )
    )


def encode_record(record: ConnectionRecord) -> bytes:
    """One connection as an entry of a datagram."""
    timeout = record.timeout
    whole = int(timeout)
    return _pack(
        (
            record.key,
            record.server,
            record.server_port,
            record.method.value,
            record.state,
            record.flags,
            whole if whole == timeout else timeout,
        )
    )


def encode_change(change: ConnectionChange) -> bytes:
    """One live change as an entry of a datagram."""
    if isinstance(change, ConnectionChanged):
        return encode_record(change.record)
    return _pack(change.key)


def encode_records(origin: Origin, entries: Sequence[bytes]) -> bytes:
    """A datagram of live changes that were encoded one by one before."""
    head = _begin(MessageType.RECORDS, origin, 1)
    return b"".join((head, _array(len(entries)), *entries))


def encode_chunk(origin: Origin, begin: int, entries: Sequence[bytes]) -> bytes:
    """A datagram of snapshot records that were encoded one by one before."""
    head = _begin(MessageType.SNAPSHOT_CHUNK, origin, 2)
    return b"".join((head, _pack(begin), _array(len(entries)), *entries))


def entries_room(origin: Origin, datagram_max: int) -> int:
    """How many bytes of entries fit in a datagram beside everything else."""
    return datagram_max - len(_begin(MessageType.SNAPSHOT_CHUNK, origin, 2)) - 9 - 3


def encode(message: Message) -> bytes:
    """Turn a message into a datagram. The inverse of `decode`."""
    origin = message.origin
    match message:
        case Heartbeat():
            fields = (
                message.connections,
                message.digest,
                message.leader,
                message.state.value,
                message.position,
                message.complete,
            )
            return _encode(MessageType.HEARTBEAT, origin, fields)
        case Records():
            return encode_records(origin, _encode_entries(message.entries))
        case SnapshotRequest():
            fields_request = (message.leader, message.leader_epoch, message.position)
            return _encode(MessageType.SNAPSHOT_REQUEST, origin, fields_request)
        case SnapshotBegin():
            return _encode(MessageType.SNAPSHOT_BEGIN, origin, ())
        case SnapshotChunk():
            return encode_chunk(origin, message.begin, _encode_entries(message.records))
        case SnapshotEnd():
            return _encode(MessageType.SNAPSHOT_END, origin, (message.begin, message.records))
        case Configuration():
            fields_configuration = (message.digest, message.part, message.parts, message.pieces)
            return _encode(MessageType.CONFIGURATION, origin, fields_configuration)
        case Unknown():
            raise AssertionError("a message of an unknown type is never sent")


def _encode(kind: MessageType, origin: Origin, fields: tuple[object, ...]) -> bytes:
    return _begin(kind, origin, len(fields)) + b"".join(map(_pack, fields))


def _encode_entries(entries: Iterable[ConnectionRecord | bytes]) -> list[bytes]:
    return [_pack(entry) if isinstance(entry, bytes) else encode_record(entry) for entry in entries]


# --- decoding ------------------------------------------------------------------------


def decode(datagram: bytes) -> Message:
    """Turn a datagram into a message. The inverse of `encode`.

    Raises:
        SyncError: the datagram is not of this protocol and version, or a part of it has
            a length, type or range that the protocol does not allow.
    """
    sync_id = sync_id_of(datagram)
    try:
        body: object = msgpack.unpackb(
            datagram[HEAD_BYTES:],
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_array_len=ARRAY_ELEMENTS_MAX,
            max_str_len=STRING_BYTES_MAX,
            max_bin_len=BINARY_BYTES_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        # UnicodeDecodeError, a limit exceeded, bytes missing and bytes left over are all
        # ValueErrors; their texts can hold parts of the input, so they are not repeated.
        raise SyncError("a body that is not msgpack within its limits") from error
    if not isinstance(body, list) or len(body) < 6:
        raise SyncError("a body that is not an array of a head and fields")
    kind = _integer(body[0], 0xFF, "message type")
    origin = Origin(
        sync_id,
        _node(body[1]),
        _integer(body[2], UINT64_MAX, "epoch"),
        _role(body[3]),
        _integer(body[4], UINT32_MAX, "term"),
        _integer(body[5], UINT64_MAX, "sequence number"),
    )
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return Unknown(origin, kind)
    needed, read = decoder
    if len(body) < 6 + needed:
        raise SyncError("a message with too few fields")
    return read(origin, body)


def _heartbeat(origin: Origin, body: list[Any]) -> Heartbeat:
    complete = body[11]
    if type(complete) is not bool:
        raise SyncError("completeness that is not true or false")
    state = _integer(body[9], PeerState.REPLICATE, "peer state")
    leader = body[8]
    return Heartbeat(
        origin,
        _integer(body[6], UINT64_MAX, "number of connections"),
        _digest(body[7]),
        "" if leader == "" else _node(leader),
        PeerState(state),
        _integer(body[10], UINT64_MAX, "position"),
        complete,
    )


def _records(origin: Origin, body: list[Any]) -> Records:
    return Records(origin, _entries(body[6]))


def _snapshot_request(origin: Origin, body: list[Any]) -> SnapshotRequest:
    return SnapshotRequest(
        origin,
        _node(body[6]),
        _integer(body[7], UINT64_MAX, "epoch"),
        _integer(body[8], UINT64_MAX, "position"),
    )


def _snapshot_begin(origin: Origin, _body: list[Any]) -> SnapshotBegin:
    return SnapshotBegin(origin)


def _snapshot_chunk(origin: Origin, body: list[Any]) -> SnapshotChunk:
    begin = _integer(body[6], UINT64_MAX, "snapshot")
    return SnapshotChunk(origin, begin, tuple(map(_record, _array_of_entries(body[7]))))


def _snapshot_end(origin: Origin, body: list[Any]) -> SnapshotEnd:
    return SnapshotEnd(
        origin,
        _integer(body[6], UINT64_MAX, "snapshot"),
        _integer(body[7], UINT64_MAX, "number of records"),
    )


def _configuration(origin: Origin, body: list[Any]) -> Configuration:
    part = _integer(body[7], PARTS_MAX - 1, "part")
    parts = _integer(body[8], PARTS_MAX, "number of parts")
    if part >= parts or not isinstance(body[9], list):
        raise SyncError("a part of a configuration that cannot be")
    pieces = tuple(_piece(piece) for piece in body[9])
    return Configuration(origin, _digest(body[6]), part, parts, pieces)


# The number of fields behind the head, and who reads them.
_DECODERS: Final[dict[int, tuple[int, Callable[[Origin, list[Any]], Message]]]] = {
    MessageType.HEARTBEAT: (6, _heartbeat),
    MessageType.RECORDS: (1, _records),
    MessageType.SNAPSHOT_REQUEST: (3, _snapshot_request),
    MessageType.SNAPSHOT_BEGIN: (0, _snapshot_begin),
    MessageType.SNAPSHOT_CHUNK: (2, _snapshot_chunk),
    MessageType.SNAPSHOT_END: (2, _snapshot_end),
    MessageType.CONFIGURATION: (4, _configuration),
}


def _integer(value: object, largest: int, name: str) -> int:
    # A bool is an int to isinstance, but not on the wire.
    if type(value) is not int or not 0 <= value <= largest:
        raise SyncError(f"a {name} out of range")
    return value


def _role(value: object) -> Role:
    number = _integer(value, Role.FOLLOW, "role")
    if number < Role.LEAD:
        raise SyncError("a role out of range")
    return Role(number)


def _name(value: object, characters_max: int) -> str:
    # Names end in logs and on terminals, so nothing in them may control either.
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= characters_max
        or not value.isascii()
        or not value.isprintable()
    ):
        raise SyncError("a name that is none")
    return value


def _node(value: object) -> str:
    return _name(value, NODE_CHARACTERS_MAX)


def _digest(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
        raise SyncError("a digest of a wrong length")
    return value


def _piece(value: object) -> tuple[str, bytes]:
    if not isinstance(value, list) or len(value) < 2:
        raise SyncError("a piece of a configuration that is not a name and a digest")
    name, digest = _name(value[0], PIECE_CHARACTERS_MAX), value[1]
    if not isinstance(digest, bytes) or not 0 < len(digest) <= PIECE_DIGEST_BYTES_MAX:
        raise SyncError("a digest of a wrong length")
    return name, digest


def _array_of_entries(value: object) -> list[Any]:
    if type(value) is not list:
        raise SyncError("entries that are not an array")
    return value


def _entries(value: object) -> tuple[ConnectionRecord | bytes, ...]:
    entries = _array_of_entries(value)
    return tuple([_record(entry) if type(entry) is list else _key(entry) for entry in entries])


def _key(value: object) -> bytes:
    if type(value) is bytes:
        length = len(value)
        if (length == _KEY_BYTES_IPV4 and value[0] == 4) or (
            length == _KEY_BYTES_IPV6 and value[0] == 6
        ):
            return value
    raise SyncError("a key that is none")


_METHODS: Final = {method.value: method for method in ForwardMethod}


def _record(fields: list[Any]) -> ConnectionRecord:
    """Read one record; this runs for every connection that a peer tells of."""
    if type(fields) is not list or len(fields) < 7:
        raise SyncError("a record that is not an array of all its fields")
    key, server, server_port, method, state, flags, timeout = (
        fields if len(fields) == 7 else fields[:7]
    )
    _key(key)
    if not (
        type(server) is bytes
        and type(server_port) is int
        and type(method) is int
        and type(state) is int
        and type(flags) is int
        and type(timeout) in _NUMBERS
        and 0 <= server_port <= UINT16_MAX
        and method in _METHODS
        and 0 <= state <= 0xFF
        and 0 <= flags <= UINT32_MAX
        # Written so that a NaN fails it.
        and 0 <= timeout <= TIMEOUT_MAX
    ):
        raise SyncError("a record with a field out of range")
    wide = key[0] == 6
    if len(server) != (16 if wide else 4) and (
        # Only a tunnel can lead from one family to the other.
        method != ForwardMethod.TUNNEL or len(server) != (4 if wide else 16)
    ):
        raise SyncError("a record whose server has a wrong address")
    if wide:
        return ConnectionRecord(
            key[1],
            key[2:18],
            key[34] << 8 | key[35],
            key[18:34],
            key[36] << 8 | key[37],
            server,
            server_port,
            _METHODS[method],
            state,
            flags,
            float(timeout),
        )
    return ConnectionRecord(
        key[1],
        key[2:6],
        key[10] << 8 | key[11],
        key[6:10],
        key[12] << 8 | key[13],
        server,
        server_port,
        _METHODS[method],
        state,
        flags,
        float(timeout),
    )


_NUMBERS: Final = frozenset({int, float})
