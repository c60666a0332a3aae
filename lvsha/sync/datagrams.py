"""The sync protocol on the wire: one datagram to one message and back.

This is the format that docs/sync-protocol.md describes, and nothing else: it keeps no
state and judges no sender. `decode` returns a value or raises `SyncError`, whatever the
bytes are; `encode` never changes what it encodes. How connections are written is in
`lvsha.sync.records`.

A datagram is a head of four bytes (version, sync id, and 0xffff) and one msgpack array.
The sync id lies where the kernel's IPVS sync protocol has it, and 0xffff lies where that
protocol has the length: no datagram is so long, so a kernel on the same group and port
drops ours, and ours drops the kernel's.

Every array may grow at its end. Elements behind those known here are ignored, so an
older node understands a newer one. A wrong length, type or range is an error.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgpack

from lvsha.errors import SyncError
from lvsha.model import (
    BUCKETS,
    ConnectionRecord,
    IPv4_BYTES,
    IPv6_BYTES,
    VrrpState,
    Witness,
)
from lvsha.sync import checked
from lvsha.sync import records as entries
from lvsha.sync.messages import (
    ALL_BUCKETS,
    DATAGRAM_BYTES_MAX,
    DIGEST_BYTES,
    HEARD_MAX,
    KEYS_MAX,
    LEVEL,
    LEVEL_PLAIN,
    RANGES_MAX,
    SUM_BYTES,
    SUMS_MAX,
    Answer,
    Changes,
    Configuration,
    Duty,
    GapRequest,
    Handover,
    Heartbeat,
    Message,
    MessageType,
    Opinions,
    Origin,
    PeerState,
    Progress,
    Question,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Standing,
    Sums,
    SumsRequest,
    Unknown,
)
from lvsha.sync.plain_records import PlainPacking, read_plain
from lvsha.sync.records import UINT16_MAX, Packing, array_head
from lvsha.tally import SUM_MASK

VERSION: Final = 1
# Of a datagram that `lvsha.sync.seal` has sealed.
SEALED_VERSION: Final = 2
HEAD_BYTES: Final = 4
NOT_A_LENGTH: Final = b"\xff\xff"

# A delete of level 1 is the shortest entry, 16 bytes: no datagram holds more of them.
ARRAY_ELEMENTS_MAX: Final = 4096
STRING_BYTES_MAX: Final = 255
NODE_CHARACTERS_MAX: Final = 63
PIECE_CHARACTERS_MAX: Final = 127
PIECE_DIGEST_BYTES_MAX: Final = 32
PARTS_MAX: Final = 4096
LEVEL_MAX: Final = 0xFF
UINT32_MAX: Final = 0xFFFF_FFFF
UINT64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
_BUCKETS_BYTES: Final = (BUCKETS + 7) // 8


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


def _begin(kind: MessageType, origin: Origin, fields: int) -> bytes:
    """The head and the fields that all messages share; ``fields`` more must follow."""
    return b"".join(
        (
            bytes((VERSION, origin.sync_id)),
            NOT_A_LENGTH,
            array_head(6 + fields),
            _pack(kind.value),
            _pack(origin.node),
            _pack(origin.epoch),
            _pack(origin.role.value),
            _pack(origin.term),
            _pack(origin.sequence),
        )
    )


def encode_changes(origin: Origin, packing: Packing) -> bytes:
    """A datagram of live changes that were gathered before."""
    return _begin(MessageType.CHANGES, origin, 3) + packing.groups() + packing.ended()


def encode_chunk(origin: Origin, begin: int, packing: Packing) -> bytes:
    """A datagram of a snapshot's connections that were gathered before."""
    return _begin(MessageType.PART_CHUNK, origin, 2) + _pack(begin) + packing.groups()


def encode_plain_changes(origin: Origin, encoded: Sequence[bytes]) -> bytes:
    """A datagram of live changes of level 1, each encoded before."""
    return _begin(MessageType.RECORDS, origin, 1) + array_head(len(encoded)) + b"".join(encoded)


def encode_plain_chunk(origin: Origin, begin: int, encoded: Sequence[bytes]) -> bytes:
    """A datagram of a snapshot's connections of level 1, each encoded before."""
    head = _begin(MessageType.SNAPSHOT_CHUNK, origin, 2) + _pack(begin)
    return head + array_head(len(encoded)) + b"".join(encoded)


def entries_room(origin: Origin, datagram_max: int) -> int:
    """How many bytes of entries fit in a datagram beside everything else."""
    # A snapshot's begin takes up to 9 bytes, the head of an array 3.
    return datagram_max - len(_begin(MessageType.PART_CHUNK, origin, 2)) - 9 - 3


def encode_answers(answer: Answer, datagram_max: int) -> Iterator[bytes]:
    """An answer in as many datagrams as it takes.

    What fits in none, since the names in it are too long, is left out.
    """
    origin = answer.origin
    head = _begin(MessageType.ANSWER, origin, 3) + _pack(answer.asker)
    room = entries_room(origin, datagram_max) - len(_pack(answer.asker))
    records, keys = list(reversed(answer.records)), list(reversed(answer.unknown))
    while True:
        packing = Packing(room)
        while records and packing.add(records[-1]):
            records.pop()
        full = packing.count + KEYS_MAX
        while keys and packing.count < full and packing.add_key(keys[-1]):
            keys.pop()
        if packing.count or not (records or keys):
            yield head + packing.groups() + packing.keys()
        else:
            (records or keys).pop()
        if not (records or keys):
            return


def encode(message: Message, level: int = LEVEL) -> bytes:
    """Turn a message into a datagram. The inverse of `decode`.

    Args:
        message: anything but `Unknown`.
        level: to keep to.
    """
    origin = message.origin
    is_plain = level == LEVEL_PLAIN
    match message:
        case Heartbeat():
            return _encode(MessageType.HEARTBEAT, origin, _heartbeat_fields(message))
        case Changes() if is_plain:
            plain = _filled(PlainPacking(DATAGRAM_BYTES_MAX), message.records, message.ended)
            return encode_plain_changes(origin, plain.encoded)
        case Changes():
            return encode_changes(origin, _packed(message.records, message.ended))
        case SnapshotRequest():
            fields = (message.leader, message.leader_epoch, message.position)
            return _encode(
                MessageType.SNAPSHOT_REQUEST, origin, (*fields, _set_bytes(message.buckets))
            )
        case SnapshotBegin():
            if is_plain:
                return _encode(MessageType.SNAPSHOT_BEGIN, origin, ())
            return _encode(MessageType.PART_BEGIN, origin, (_set_bytes(message.buckets),))
        case SnapshotChunk() if is_plain:
            plain = _filled(PlainPacking(DATAGRAM_BYTES_MAX), message.records, ())
            return encode_plain_chunk(origin, message.begin, plain.encoded)
        case SnapshotChunk():
            return encode_chunk(origin, message.begin, _packed(message.records, ()))
        case SnapshotEnd():
            kind = MessageType.SNAPSHOT_END if is_plain else MessageType.PART_END
            return _encode(kind, origin, (message.begin, message.records))
        case Configuration():
            described = (message.digest, message.part, message.parts, message.pieces)
            return _encode(MessageType.CONFIGURATION, origin, described)
        case GapRequest():
            asked = (message.leader, message.leader_epoch, message.ranges)
            return _encode(MessageType.GAP_REQUEST, origin, asked)
        case SumsRequest():
            return _encode(MessageType.SUMS_REQUEST, origin, (message.leader, message.leader_epoch))
        case Sums():
            sums = b"".join([value.to_bytes(SUM_BYTES) for value in message.sums])
            return _encode(MessageType.SUMS, origin, (message.first, sums, message.is_current))
        case Progress():
            seen = (message.leader, message.leader_epoch, message.position)
            return _encode(MessageType.PROGRESS, origin, seen)
        case Handover():
            fields = (message.node, message.node_epoch, message.moment)
            return _encode(MessageType.HANDOVER, origin, fields)
        case Question():
            return _encode(MessageType.QUESTION, origin, (message.keys,))
        case Answer():
            (whole,) = encode_answers(message, DATAGRAM_BYTES_MAX)
            return whole
        case Opinions():
            part = (message.number, message.part, message.parts, message.checked)
            return _encode(MessageType.OPINIONS, origin, (*part, message.opinions))
        case Unknown():
            raise AssertionError("a message of an unknown type is never sent")


def _encode(kind: MessageType, origin: Origin, fields: tuple[object, ...]) -> bytes:
    return _begin(kind, origin, len(fields)) + b"".join(map(_pack, fields))


def _heartbeat_fields(message: Heartbeat) -> tuple[object, ...]:
    alive = (
        message.connections,
        message.digest,
        message.leader,
        message.state.value,
        message.position,
        message.complete,
    )
    if message.level <= LEVEL_PLAIN and not message.heard:
        return alive
    standing, duty = message.standing, message.duty
    return (
        *alive,
        message.level,
        message.speaks,
        message.oldest,
        message.heard,
        (
            *(standing.told, standing.total, standing.is_current),
            *(standing.established, standing.exposed),
            *(standing.missing, standing.wanted, standing.mismatched),
            *(standing.lost, standing.repaired),
        ),
        *(() if duty is None else ((duty.state.value, duty.witness.value, duty.priority),)),
    )


def _packed(records: Iterable[ConnectionRecord], ended: Iterable[bytes]) -> Packing:
    return _filled(Packing(DATAGRAM_BYTES_MAX), records, ended)


_Filled = TypeVar("_Filled", Packing, PlainPacking)


def _filled(
    packing: _Filled, records: Iterable[ConnectionRecord], ended: Iterable[bytes]
) -> _Filled:
    fits = [packing.add(record) for record in records]
    fits += [packing.add_ended(key) for key in ended]
    assert all(fits), "a message fits in the largest datagram"
    return packing


def _set_bytes(buckets: int) -> bytes:
    return buckets.to_bytes(_BUCKETS_BYTES)


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
            max_bin_len=DATAGRAM_BYTES_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        # UnicodeDecodeError, a limit exceeded, bytes missing and bytes left over are all
        # ValueErrors; their texts can hold parts of the input, so they are not repeated.
        raise SyncError("a body that is not msgpack within its limits") from error
    if not isinstance(body, list) or len(body) < 6:
        raise SyncError("a body that is not an array of a head and fields")
    kind = checked.integer(body[0], 0xFF, "message type")
    origin = Origin(
        sync_id,
        _node(body[1]),
        checked.integer(body[2], UINT64_MAX, "epoch"),
        _role(body[3]),
        checked.integer(body[4], UINT32_MAX, "term"),
        checked.integer(body[5], UINT64_MAX, "sequence number"),
    )
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return Unknown(origin, kind)
    needed, read = decoder
    if len(body) < 6 + needed:
        raise SyncError("a message with too few fields")
    return read(origin, body)


def _heartbeat(origin: Origin, body: list[Any]) -> Heartbeat:
    state = checked.integer(body[9], PeerState.REPLICATE, "peer state")
    leader = body[8]
    alive = (
        checked.integer(body[6], UINT64_MAX, "number of connections"),
        _digest(body[7]),
        "" if leader == "" else _node(leader),
        PeerState(state),
        checked.integer(body[10], UINT64_MAX, "position"),
        checked.boolean(body[11]),
    )
    if len(body) < 17:
        return Heartbeat(origin, *alive)
    heard = checked.array(body[15], HEARD_MAX)
    return Heartbeat(
        origin,
        *alive,
        level=max(checked.integer(body[12], LEVEL_MAX, "level"), LEVEL_PLAIN),
        speaks=max(checked.integer(body[13], LEVEL_MAX, "level"), LEVEL_PLAIN),
        oldest=checked.integer(body[14], UINT64_MAX, "sequence number"),
        heard=tuple(checked.integer(epoch, UINT64_MAX, "epoch") for epoch in heard),
        standing=_standing(body[16]),
        duty=_duty(body[17]) if len(body) > 17 else None,
    )


def _duty(value: object) -> Duty | None:
    # What else may stand there was promised to be ignored before there were duties.
    if type(value) is not list:
        return None
    fields = checked.array(value, ARRAY_ELEMENTS_MAX)
    if len(fields) < 3:
        raise SyncError("a duty with too few fields")
    return Duty(
        VrrpState(checked.integer(fields[0], VrrpState.FAULT, "state")),
        Witness(checked.integer(fields[1], Witness.UNREACHABLE, "witness")),
        checked.integer(fields[2], 0xFF, "priority"),
    )


def _standing(value: object) -> Standing:
    fields = checked.array(value, ARRAY_ELEMENTS_MAX)
    if len(fields) < 10:
        raise SyncError("a standing with too few fields")
    told, total, is_current, *counts = fields[:10]
    return Standing(
        checked.integer(told, UINT64_MAX, "number of connections"),
        checked.integer(total, SUM_MASK, "sum"),
        checked.boolean(is_current),
        *(checked.integer(count, UINT64_MAX, "count") for count in counts),
    )


def _records(origin: Origin, body: list[Any]) -> Changes:
    return Changes(origin, *read_plain(body[6]))


def _changes(origin: Origin, body: list[Any]) -> Changes:
    ended = entries.read_ended(body[7], body[8])
    return Changes(origin, entries.read_groups(body[6]), ended)


def _snapshot_request(origin: Origin, body: list[Any]) -> SnapshotRequest:
    return SnapshotRequest(
        origin,
        *_addressed(body),
        checked.integer(body[8], UINT64_MAX, "position"),
        _buckets(body[9]) if len(body) > 9 else ALL_BUCKETS,
    )


def _snapshot_begin(origin: Origin, _body: list[Any]) -> SnapshotBegin:
    return SnapshotBegin(origin)


def _part_begin(origin: Origin, body: list[Any]) -> SnapshotBegin:
    return SnapshotBegin(origin, _buckets(body[6]))


def _snapshot_chunk(origin: Origin, body: list[Any]) -> SnapshotChunk:
    begin = checked.integer(body[6], UINT64_MAX, "snapshot")
    records, ended = read_plain(body[7])
    if ended:
        raise SyncError("the end of a connection in a snapshot")
    return SnapshotChunk(origin, begin, records)


def _part_chunk(origin: Origin, body: list[Any]) -> SnapshotChunk:
    begin = checked.integer(body[6], UINT64_MAX, "snapshot")
    return SnapshotChunk(origin, begin, entries.read_groups(body[7]))


def _snapshot_end(origin: Origin, body: list[Any]) -> SnapshotEnd:
    return SnapshotEnd(
        origin,
        checked.integer(body[6], UINT64_MAX, "snapshot"),
        checked.integer(body[7], UINT64_MAX, "number of records"),
    )


def _configuration(origin: Origin, body: list[Any]) -> Configuration:
    part = checked.integer(body[7], PARTS_MAX - 1, "part")
    parts = checked.integer(body[8], PARTS_MAX, "number of parts")
    if part >= parts or not isinstance(body[9], list):
        raise SyncError("a part of a configuration that cannot be")
    pieces = tuple(_piece(piece) for piece in body[9])
    return Configuration(origin, _digest(body[6]), part, parts, pieces)


def _gap_request(origin: Origin, body: list[Any]) -> GapRequest:
    return GapRequest(
        origin, *_addressed(body), tuple(map(_range, checked.array(body[8], RANGES_MAX)))
    )


def _range(value: object) -> tuple[int, int]:
    fields = checked.array(value, ARRAY_ELEMENTS_MAX)
    if len(fields) < 2:
        raise SyncError("a range that is not two numbers")
    first = checked.integer(fields[0], UINT64_MAX, "sequence number")
    return first, checked.integer(fields[1], UINT32_MAX, "count")


def _sums_request(origin: Origin, body: list[Any]) -> SumsRequest:
    return SumsRequest(origin, *_addressed(body))


def _sums(origin: Origin, body: list[Any]) -> Sums:
    first, packed = checked.integer(body[6], BUCKETS, "bucket"), body[7]
    if type(packed) is not bytes or len(packed) % SUM_BYTES:
        raise SyncError("sums that are cut short")
    count = len(packed) // SUM_BYTES
    if not 0 < count <= SUMS_MAX or first + count > BUCKETS:
        raise SyncError("sums of more buckets than there are")
    sums = tuple(
        int.from_bytes(packed[at : at + SUM_BYTES]) for at in range(0, len(packed), SUM_BYTES)
    )
    return Sums(origin, first, sums, checked.boolean(body[8]) if len(body) > 8 else True)


def _progress(origin: Origin, body: list[Any]) -> Progress:
    return Progress(origin, *_addressed(body), checked.integer(body[8], UINT64_MAX, "position"))


def _handover(origin: Origin, body: list[Any]) -> Handover:
    return Handover(origin, *_addressed(body), checked.integer(body[8], UINT64_MAX, "moment"))


def _question(origin: Origin, body: list[Any]) -> Question:
    return Question(origin, _keys(body[6]))


def _answer(origin: Origin, body: list[Any]) -> Answer:
    return Answer(origin, _node(body[6]), entries.read_groups(body[7]), _keys(body[8]))


def _opinions(origin: Origin, body: list[Any]) -> Opinions:
    part = checked.integer(body[7], PARTS_MAX - 1, "part")
    parts = checked.integer(body[8], PARTS_MAX, "number of parts")
    if part >= parts:
        raise SyncError("a part of a list of opinions that cannot be")
    number = checked.integer(body[6], UINT64_MAX, "number of a list")
    servers = checked.integer(body[9], UINT32_MAX, "number of servers")
    opinions = tuple(map(_opinion, checked.array(body[10], ARRAY_ELEMENTS_MAX)))
    return Opinions(origin, number, part, parts, servers, opinions)


def _opinion(value: object) -> tuple[str, bytes, int, int]:
    fields = checked.array(value, ARRAY_ELEMENTS_MAX)
    if len(fields) < 4:
        raise SyncError("an opinion of no service or server")
    service, address = checked.name(fields[0], PIECE_CHARACTERS_MAX), fields[1]
    if type(address) is not bytes or len(address) not in {IPv4_BYTES, IPv6_BYTES}:
        raise SyncError("an opinion of a server with a wrong address")
    return (
        service,
        address,
        checked.integer(fields[2], UINT16_MAX, "port"),
        checked.integer(fields[3], 1, "opinion"),
    )


# The number of fields behind the head, and who reads them.
_DECODERS: Final[dict[int, tuple[int, Callable[[Origin, list[Any]], Message]]]] = {
    MessageType.HEARTBEAT: (6, _heartbeat),
    MessageType.RECORDS: (1, _records),
    MessageType.SNAPSHOT_REQUEST: (3, _snapshot_request),
    MessageType.SNAPSHOT_BEGIN: (0, _snapshot_begin),
    MessageType.SNAPSHOT_CHUNK: (2, _snapshot_chunk),
    MessageType.SNAPSHOT_END: (2, _snapshot_end),
    MessageType.CONFIGURATION: (4, _configuration),
    MessageType.GAP_REQUEST: (3, _gap_request),
    MessageType.SUMS: (2, _sums),
    MessageType.CHANGES: (3, _changes),
    MessageType.PART_BEGIN: (1, _part_begin),
    MessageType.PART_CHUNK: (2, _part_chunk),
    MessageType.PART_END: (2, _snapshot_end),
    MessageType.SUMS_REQUEST: (2, _sums_request),
    MessageType.PROGRESS: (3, _progress),
    MessageType.HANDOVER: (3, _handover),
    MessageType.QUESTION: (1, _question),
    MessageType.ANSWER: (3, _answer),
    MessageType.OPINIONS: (5, _opinions),
}


def _addressed(body: list[Any]) -> tuple[str, int]:
    """The node that a message is for, and its epoch."""
    return _node(body[6]), checked.integer(body[7], UINT64_MAX, "epoch")


def _buckets(value: object) -> int:
    if type(value) is not bytes or len(value) != _BUCKETS_BYTES:
        raise SyncError("a set of buckets of a wrong length")
    return int.from_bytes(value) & ALL_BUCKETS


def _keys(value: object) -> tuple[bytes, ...]:
    return tuple(map(entries.read_key, checked.array(value, KEYS_MAX)))


def _role(value: object) -> Role:
    number = checked.integer(value, Role.FOLLOW, "role")
    if number < Role.LEAD:
        raise SyncError("a role out of range")
    return Role(number)


def _node(value: object) -> str:
    return checked.name(value, NODE_CHARACTERS_MAX)


def _digest(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
        raise SyncError("a digest of a wrong length")
    return value


def _piece(value: object) -> tuple[str, bytes]:
    if not isinstance(value, list) or len(value) < 2:
        raise SyncError("a piece of a configuration that is not a name and a digest")
    name, digest = checked.name(value[0], PIECE_CHARACTERS_MAX), value[1]
    if not isinstance(digest, bytes) or not 0 < len(digest) <= PIECE_DIGEST_BYTES_MAX:
        raise SyncError("a digest of a wrong length")
    return name, digest
