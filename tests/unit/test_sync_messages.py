import msgpack
import pytest

from lvsha.errors import SyncError
from lvsha.model import (
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    parse_address,
)
from lvsha.sync import messages
from lvsha.sync.messages import (
    Configuration,
    Heartbeat,
    Message,
    MessageType,
    Origin,
    PeerState,
    Records,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Unknown,
    decode,
    encode,
)

ORIGIN = Origin(1, "east", 0x0123456789ABCDEF, Role.LEAD, 3, 70_000)

IPV4 = ConnectionRecord.between(
    protocol=6,
    client=parse_address("198.51.100.7"),
    client_port=40_000,
    virtual=parse_address("192.0.2.1"),
    virtual_port=80,
    server=parse_address("10.0.0.5"),
    server_port=8080,
    method=ForwardMethod.NAT,
    state=1,
    flags=0x0120,
    timeout=900.0,
)
IPV6 = IPV4._replace(
    key=connection_key(6, parse_address("2001:db8::7"), 40_000, parse_address("2001:db8::1"), 80),
    server=parse_address("fd00::5"),
    method=ForwardMethod.DIRECT_ROUTE,
    timeout=0.25,
)

EXAMPLES: list[Message] = [
    Heartbeat(ORIGIN, 12, bytes(range(16)), "west", PeerState.SNAPSHOT, 9, False),
    Heartbeat(ORIGIN, 0, bytes(16), "", PeerState.PROBE, 0, True),
    Records(ORIGIN, (IPV4, IPV6.key, IPV6)),
    SnapshotRequest(ORIGIN, "west", 2**64 - 1, 0),
    SnapshotBegin(ORIGIN),
    SnapshotChunk(ORIGIN, 69_000, (IPV4, IPV6)),
    SnapshotEnd(ORIGIN, 69_000, 20_000),
    Configuration(ORIGIN, bytes(16), 0, 1, (("nodes.east", bytes(16)), ("sync", b"\x01"))),
]


def datagram_of(body: object, head: bytes = b"\x01\x01\xff\xff") -> bytes:
    packed: bytes = msgpack.packb(body)
    return head + packed


def records_body(entry: object) -> list[object]:
    return [2, "east", 1, 1, 1, 1, [entry]]


def record_fields(record: ConnectionRecord = IPV4) -> list[object]:
    return [record.key, record.server, 8080, 0, 1, 0x120, 900]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded_again(message: Message) -> None:
    assert decode(encode(message)) == message


def test_the_bytes_of_a_datagram_are_those_of_the_description() -> None:
    origin = Origin(1, "east", 5, Role.LEAD, 2, 9)
    ended = ConnectionEnded(IPV4.key)
    entries = [messages.encode_change(ConnectionChanged(IPV4)), messages.encode_change(ended)]
    assert messages.encode_records(origin, entries).hex(" ") == (
        "01 01 ff ff "  # version, sync id, no length
        "97 02 a4 65 61 73 74 05 01 02 09 "  # records, "east", epoch, LEAD, term, sequence
        "92 "  # two entries
        "97 c4 0e 04 06 c6 33 64 07 c0 00 02 01 9c 40 00 50 c4 04 0a 00 00 05 cd 1f 90 "
        "00 01 cd 01 20 cd 03 84 "
        "c4 0e 04 06 c6 33 64 07 c0 00 02 01 9c 40 00 50"
    )


def test_a_full_datagram_needs_at_most_forty_bytes_for_a_connection() -> None:
    entry = messages.encode_record(IPV4)
    count = messages.entries_room(ORIGIN, 1400) // len(entry)
    datagram = messages.encode_records(ORIGIN, [entry] * count)
    assert len(datagram) <= 1400
    assert len(datagram) / count <= 40


def test_no_entry_is_longer_than_its_stated_maximum() -> None:
    longest = IPV6._replace(server_port=65_535, state=255, flags=0xFFFF_FFFF, timeout=0.1)
    assert len(messages.encode_record(longest)) == messages.ENTRY_BYTES_MAX


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_fields_added_by_a_newer_node_are_ignored(message: Message) -> None:
    datagram = encode(message)
    body = msgpack.unpackb(datagram[4:])
    body += ["newer", 7, [1, 2]]
    assert decode(datagram[:4] + msgpack.packb(body)) == message


def test_a_record_may_have_more_fields_than_are_known() -> None:
    decoded = decode(datagram_of(records_body([*record_fields(), "newer", [1]])))
    assert isinstance(decoded, Records)
    assert decoded.entries == (IPV4,)


@pytest.mark.parametrize("kind", [8, 9, 10, 11, 200])
def test_a_message_of_an_unknown_type_is_a_value(kind: int) -> None:
    decoded = decode(datagram_of([kind, "east", 1, 1, 1, 1, b"anything"]))
    assert decoded == Unknown(Origin(1, "east", 1, Role.LEAD, 1, 1), kind)


def test_reserved_numbers_are_not_given_to_anything_else() -> None:
    assert {kind.name: kind.value for kind in MessageType if kind >= 8} == {
        "GAP_REQUEST": 8,
        "BUCKET_DIGESTS": 9,
        "HANDOVER": 10,
        "SEALED": 11,
    }


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_datagram_cut_at_any_byte_or_with_a_tail_is_refused(message: Message) -> None:
    datagram = encode(message)
    for length in range(len(datagram)):
        with pytest.raises(SyncError):
            decode(datagram[:length])
    with pytest.raises(SyncError):
        decode(datagram + b"\xa5")


@pytest.mark.parametrize(
    "datagram",
    [
        # The kernel's version 1: zero, sync id, size, count, version, spare, one record.
        bytes.fromhex("00 01 00 2c 01 01 00 00") + bytes(36),
        # The kernel's version 0: count, sync id, size, one record.
        bytes.fromhex("01 01 00 1c") + bytes(24),
    ],
    ids=["version 1", "version 0"],
)
def test_the_kernels_datagrams_are_refused(datagram: bytes) -> None:
    with pytest.raises(SyncError, match="another protocol"):
        messages.sync_id_of(datagram)


def test_no_datagram_has_the_length_that_the_kernel_would_read_in_it() -> None:
    for message in EXAMPLES:
        assert int.from_bytes(encode(message)[2:4]) > messages.DATAGRAM_BYTES_MAX


def test_another_version_is_refused() -> None:
    with pytest.raises(SyncError, match="another version"):
        decode(b"\x03" + encode(EXAMPLES[0])[1:])


def test_a_sealed_datagram_is_refused_as_what_it_is() -> None:
    with pytest.raises(SyncError, match="has no key"):
        decode(b"\x02" + encode(EXAMPLES[0])[1:])


BAD_BODIES: dict[str, object] = {
    "no array": 5,
    "short head": [1, "east", 1, 1, 1],
    "no fields": [1, "east", 1, 1, 1, 1],
    "type is a name": ["1", "east", 1, 1, 1, 1],
    "type is true": [True, "east", 1, 1, 1, 1],
    "empty node": [4, "", 1, 1, 1, 1],
    "long node": [4, "n" * 64, 1, 1, 1, 1],
    "node of bytes": [4, b"east", 1, 1, 1, 1],
    "node that moves the cursor": [4, "ea\x1b[2Jst", 1, 1, 1, 1],
    "node beyond ascii": [4, "öst", 1, 1, 1, 1],
    "negative epoch": [4, "east", -1, 1, 1, 1],
    "role 0": [4, "east", 1, 0, 1, 1],
    "role 4": [4, "east", 1, 4, 1, 1],
    "term too large": [4, "east", 1, 1, 2**32, 1],
    "sequence is a float": [4, "east", 1, 1, 1, 1.0],
    "entries no array": [2, "east", 1, 1, 1, 1, 7],
    "key of a wrong family": records_body(b"\x06" + IPV4.key[1:]),
    "key too short": records_body(IPV4.key[:-1]),
    "entry a number": records_body(7),
    "record too short": records_body(record_fields()[:6]),
    "delete in a snapshot": [5, "east", 1, 1, 1, 1, 1, [IPV4.key]],
    "part beyond parts": [7, "east", 1, 1, 1, 1, bytes(16), 1, 1, []],
    "piece without digest": [7, "east", 1, 1, 1, 1, bytes(16), 0, 1, [["name"]]],
    "piece with an empty digest": [7, "east", 1, 1, 1, 1, bytes(16), 0, 1, [["name", b""]]],
    "digest too short": [1, "east", 1, 1, 1, 1, 0, bytes(15), "", 0, 0, True],
    "state 3": [1, "east", 1, 1, 1, 1, 0, bytes(16), "", 3, 0, True],
    "complete is 1": [1, "east", 1, 1, 1, 1, 0, bytes(16), "", 0, 0, 1],
    "a map": [4, "east", 1, 1, 1, 1, {}, {"a": 1}],
    "an extension": [4, "east", 1, 1, 1, 1, msgpack.ExtType(5, b"x")],
    "a time stamp": [4, "east", 1, 1, 1, 1, msgpack.Timestamp(1)],
    "too many elements": [2, "east", 1, 1, 1, 1, [IPV4.key] * 4097],
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_refused(body: object) -> None:
    with pytest.raises(SyncError):
        decode(datagram_of(body))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, b""),
        (0, "key"),
        (1, bytes(5)),
        (1, bytes(16)),
        (1, None),
        (2, 65_536),
        (2, True),
        (3, 1),
        (3, [0]),
        (4, 256),
        (5, 2**32),
        (6, -1),
        (6, float("nan")),
        (6, float("inf")),
        (6, 10**9),
        (6, False),
    ],
)
def test_a_record_with_a_bad_field_is_refused(field: int, value: object) -> None:
    fields = record_fields()
    fields[field] = value
    with pytest.raises(SyncError):
        decode(datagram_of(records_body(fields)))


def test_only_a_tunnel_leads_to_a_server_of_the_other_family() -> None:
    mixed = IPV4._replace(server=IPV6.server)
    with pytest.raises(SyncError):
        decode(encode(Records(ORIGIN, (mixed,))))
    tunnelled = mixed._replace(method=ForwardMethod.TUNNEL)
    assert decode(encode(Records(ORIGIN, (tunnelled,)))) == Records(ORIGIN, (tunnelled,))


def test_a_body_that_nests_deeply_is_refused() -> None:
    with pytest.raises(SyncError):
        decode(b"\x01\x01\xff\xff" + b"\x91" * 60_000)


def test_the_message_of_an_error_holds_nothing_of_the_input() -> None:
    with pytest.raises(SyncError) as caught:
        decode(datagram_of([4, "secret\x1b", 1, 1, 1, 1]))
    assert "secret" not in str(caught.value)
