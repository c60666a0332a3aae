from dataclasses import replace

import msgpack
import pytest

from lvsha.errors import SyncError
from lvsha.model import (
    ConnectionRecord,
    ForwardMethod,
    VrrpState,
    Witness,
    connection_key,
    parse_address,
)
from lvsha.sync import datagrams
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.messages import (
    ALL_BUCKETS,
    DATAGRAM_BYTES_MAX,
    LEVEL_PLAIN,
    RANGES_MAX,
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
from lvsha.sync.records import Packing
from lvsha.sync.replica import DATAGRAM_BYTES_MIN
from lvsha.sync.seal import SEAL_BYTES
from tests.replicas import bits, template

ORIGIN = Origin(1, "east", 0x0123456789ABCDEF, Role.LEAD, 3, 70_000)
LONGEST = Origin(255, "n" * 63, 2**64 - 1, Role.FOLLOW, 2**32 - 1, 2**64 - 1)

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
CALL = template(1, b"call@there")

# What both levels say; a request for all is the same message in both.
PLAIN_EXAMPLES: list[Message] = [
    Heartbeat(ORIGIN, 12, bytes(range(16)), "west", PeerState.SNAPSHOT, 9, False),
    Heartbeat(ORIGIN, 0, bytes(16), "", PeerState.PROBE, 0, True),
    Changes(ORIGIN, [IPV4, IPV6], [IPV6.key]),
    SnapshotRequest(ORIGIN, "west", 2**64 - 1, 0),
    SnapshotBegin(ORIGIN),
    SnapshotChunk(ORIGIN, 69_000, [IPV4, IPV6]),
    SnapshotEnd(ORIGIN, 69_000, 20_000),
    Configuration(ORIGIN, bytes(16), 0, 1, (("nodes.east", bytes(16)), ("sync", b"\x01"))),
]
EXAMPLES: list[Message] = [
    *PLAIN_EXAMPLES,
    Heartbeat(
        ORIGIN,
        *(12, bytes(range(16)), "west", PeerState.SNAPSHOT, 9, False),
        level=2,
        speaks=1,
        oldest=7,
        heard=(1, 2**64 - 1),
        standing=Standing(1, 2**64 - 1, True, 4, 5, 6, 7, 8, 9, 10),
    ),
    Heartbeat(
        ORIGIN,
        *(12, bytes(range(16)), "west", PeerState.SNAPSHOT, 9, False),
        level=2,
        duty=Duty(VrrpState.FAULT, Witness.UNREACHABLE, 255),
    ),
    Changes(ORIGIN, [IPV4, IPV6, CALL], [IPV4.key, IPV6.key, template(2).key, CALL.key]),
    SnapshotRequest(ORIGIN, "west", 1, 0, bits(0, 7, 510)),
    SnapshotBegin(ORIGIN, bits(510)),
    SnapshotChunk(ORIGIN, 69_000, [CALL]),
    GapRequest(ORIGIN, "west", 7, ((1, 2), (2**64 - 1, 2**32 - 1))),
    SumsRequest(ORIGIN, "west", 7),
    Sums(ORIGIN, 384, tuple(range(127))),
    Sums(ORIGIN, 0, (2**64 - 1,), is_current=False),
    Progress(ORIGIN, "west", 7, 69_999),
    Handover(ORIGIN, "west", 7, 8),
    Question(ORIGIN, (IPV4.key, CALL.key)),
    Answer(ORIGIN, "west", [IPV4], (IPV6.key, CALL.key)),
]
names = [f"{number} {type(message).__name__}" for number, message in enumerate(EXAMPLES)]
every_message = pytest.mark.parametrize("message", EXAMPLES, ids=names)


def datagram_of(body: object, head: bytes = b"\x01\x01\xff\xff") -> bytes:
    packed: bytes = msgpack.packb(body)
    return head + packed


@every_message
def test_what_is_encoded_is_decoded_again(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", PLAIN_EXAMPLES, ids=lambda m: type(m).__name__)
def test_level_1_says_the_same_in_its_own_words(message: Message) -> None:
    assert decode(encode(message, LEVEL_PLAIN)) == message


@pytest.mark.parametrize("message", PLAIN_EXAMPLES, ids=lambda m: type(m).__name__)
def test_level_1_has_the_types_of_version_0_1_0_alone(message: Message) -> None:
    kind = msgpack.unpackb(encode(message, LEVEL_PLAIN)[4:])[0]
    assert MessageType.HEARTBEAT <= kind <= MessageType.CONFIGURATION


def test_level_1_has_no_words_for_templates() -> None:
    told = Changes(ORIGIN, [CALL, IPV4, template(1)], [CALL.key, IPV4.key])
    assert decode(encode(told, LEVEL_PLAIN)) == Changes(ORIGIN, [IPV4], [IPV4.key])


def test_the_bytes_of_level_1_are_those_of_the_description() -> None:
    origin = Origin(1, "east", 5, Role.LEAD, 2, 9)
    assert encode(Changes(origin, [IPV4], [IPV4.key]), LEVEL_PLAIN).hex(" ") == (
        "01 01 ff ff "  # version, sync id, no length
        "97 02 a4 65 61 73 74 05 01 02 09 "  # records, "east", epoch, LEAD, term, sequence
        "92 "  # two entries
        "97 c4 0e 04 06 c6 33 64 07 c0 00 02 01 9c 40 00 50 c4 04 0a 00 00 05 cd 1f 90 "
        "00 01 cd 01 20 cd 03 84 "
        "c4 0e 04 06 c6 33 64 07 c0 00 02 01 9c 40 00 50"
    )


def test_the_bytes_of_level_2_are_those_of_the_description() -> None:
    origin = Origin(1, "east", 5, Role.LEAD, 2, 9)
    assert encode(Changes(origin, [IPV4], [IPV4.key])).hex(" ") == (
        "01 01 ff ff "
        "99 0c a4 65 61 73 74 05 01 02 09 "  # changes, "east", epoch, LEAD, term, sequence
        "91 92 "  # one group: its ends, and its entries
        "c4 0f 04 06 00 00 50 1f 90 c0 00 02 01 0a 00 00 05 "
        "c4 0d c6 33 64 07 9c 40 01 01 20 00 01 5f 90 "
        "91 92 "  # one group of what ended
        "c4 08 04 06 00 50 c0 00 02 01 "
        "c4 06 c6 33 64 07 9c 40 "
        "90"  # no other keys
    )


def test_a_full_sealed_datagram_of_level_2_needs_far_fewer_bytes_than_the_kernels_record() -> None:
    packing = Packing(datagrams.entries_room(ORIGIN, 1400 - SEAL_BYTES))
    client = 0
    while packing.add(IPV4._replace(key=IPV4.key[:2] + client.to_bytes(4) + IPV4.key[6:])):
        client += 1
    sealed = len(datagrams.encode_changes(ORIGIN, packing)) + SEAL_BYTES
    assert sealed <= 1400
    assert sealed / client < 15


@every_message
def test_fields_added_by_a_newer_node_are_ignored(message: Message) -> None:
    datagram = encode(message)
    body = msgpack.unpackb(datagram[4:])
    if isinstance(message, Heartbeat | SnapshotRequest) and message in PLAIN_EXAMPLES:
        return  # of these, level 2 has added some
    body += ["newer", 7, [1, 2]]
    assert decode(datagram[:4] + msgpack.packb(body)) == message


def test_a_standing_may_have_more_fields_than_are_known() -> None:
    standing = Standing(1, 2, False, 3, 4, 5, 6, 7, 8, 9)
    message = Heartbeat(
        ORIGIN, 0, bytes(16), "", PeerState.PROBE, 0, True, level=3, speaks=2, standing=standing
    )
    body = msgpack.unpackb(encode(message)[4:])
    body[16] += [[], "newer"]
    assert decode(datagram_of(body)) == message


def test_a_duty_is_left_out_or_whole_and_may_have_more_fields_than_are_known() -> None:
    silent = Heartbeat(ORIGIN, 0, bytes(16), "", PeerState.PROBE, 0, True, level=2)
    body = msgpack.unpackb(encode(silent)[4:])
    assert len(body) == 17
    duty = Duty(VrrpState.MASTER, Witness.UNKNOWN, 7)
    assert decode(datagram_of([*body, [2, 1, 7, "newer"]])) == replace(silent, duty=duty)
    assert decode(datagram_of([*body, "later"])) == silent
    for wrong in ([], [2, 1], [4, 0, 0], [0, 4, 0], [-1, 0, 0], [True, 0, 0], [2, 1, 256]):
        with pytest.raises(SyncError):
            decode(datagram_of([*body, wrong]))


def test_sums_that_do_not_say_whether_they_are_current_are() -> None:
    body = [9, "east", 1, 1, 1, 1, 0, bytes(8)]
    sums = Sums(Origin(1, "east", 1, Role.LEAD, 1, 1), 0, (0,))
    assert decode(datagram_of(body)) == sums
    assert decode(datagram_of([*body, False])) == replace(sums, is_current=False)
    with pytest.raises(SyncError):
        decode(datagram_of([*body, 1]))


def test_a_range_may_have_more_fields_than_are_known() -> None:
    body = [8, "east", 1, 1, 1, 1, "west", 7, [[5, 2, "newer"]]]
    decoded = decode(datagram_of(body))
    assert isinstance(decoded, GapRequest)
    assert decoded.ranges == ((5, 2),)


@pytest.mark.parametrize("kind", [0, 11, 21, 200])
def test_a_message_of_an_unknown_type_is_a_value(kind: int) -> None:
    decoded = decode(datagram_of([kind, "east", 1, 1, 1, 1, b"anything"]))
    assert decoded == Unknown(Origin(1, "east", 1, Role.LEAD, 1, 1), kind)


def test_the_numbers_of_types_are_given_for_ever() -> None:
    assert {kind.name: kind.value for kind in MessageType} == {
        "HEARTBEAT": 1,
        "RECORDS": 2,
        "SNAPSHOT_REQUEST": 3,
        "SNAPSHOT_BEGIN": 4,
        "SNAPSHOT_CHUNK": 5,
        "SNAPSHOT_END": 6,
        "CONFIGURATION": 7,
        "GAP_REQUEST": 8,
        "SUMS": 9,
        "HANDOVER": 10,
        "SEALED": 11,
        "CHANGES": 12,
        "PART_BEGIN": 13,
        "PART_CHUNK": 14,
        "PART_END": 15,
        "SUMS_REQUEST": 16,
        "PROGRESS": 17,
        "QUESTION": 18,
        "ANSWER": 19,
        "OPINIONS": 20,
    }


@every_message
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
        datagrams.sync_id_of(datagram)


def test_no_datagram_has_the_length_that_the_kernel_would_read_in_it() -> None:
    for message in EXAMPLES:
        assert int.from_bytes(encode(message)[2:4]) > DATAGRAM_BYTES_MAX


def test_a_datagram_longer_than_any_is_refused() -> None:
    with pytest.raises(SyncError, match="impossible length"):
        decode(encode(EXAMPLES[0]).ljust(DATAGRAM_BYTES_MAX + 1))


def test_another_version_is_refused() -> None:
    with pytest.raises(SyncError, match="another version"):
        decode(b"\x03" + encode(EXAMPLES[0])[1:])


def test_a_sealed_datagram_is_refused_as_what_it_is() -> None:
    with pytest.raises(SyncError, match="has no key"):
        decode(b"\x02" + encode(EXAMPLES[0])[1:])


ALIVE = [0, bytes(16), "", 0, 0, True]
STANDING = [0, 0, True, 0, 0, 0, 0, 0, 0, 0]
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
    "delete in a snapshot": [5, "east", 1, 1, 1, 1, 1, [IPV4.key]],
    "part beyond parts": [7, "east", 1, 1, 1, 1, bytes(16), 1, 1, []],
    "piece without digest": [7, "east", 1, 1, 1, 1, bytes(16), 0, 1, [["name"]]],
    "piece with an empty digest": [7, "east", 1, 1, 1, 1, bytes(16), 0, 1, [["name", b""]]],
    "digest too short": [1, "east", 1, 1, 1, 1, 0, bytes(15), "", 0, 0, True],
    "state 3": [1, "east", 1, 1, 1, 1, 0, bytes(16), "", 3, 0, True],
    "complete is 1": [1, "east", 1, 1, 1, 1, 0, bytes(16), "", 0, 0, 1],
    "level 256": [1, "east", 1, 1, 1, 1, *ALIVE, 256, 1, 0, [], STANDING],
    "oldest is negative": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, -1, [], STANDING],
    "too many heard": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, 0, [1] * 17, STANDING],
    "an epoch heard is a name": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, 0, ["e"], STANDING],
    "standing too short": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, 0, [], STANDING[:9]],
    "standing is none": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, 0, [], 7],
    "told is true": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, 0, [], [True, *STANDING[1:]]],
    "current is 1": [1, "east", 1, 1, 1, 1, *ALIVE, 2, 1, 0, [], [0, 0, 1, *STANDING[3:]]],
    "buckets cut short": [13, "east", 1, 1, 1, 1, bytes(63)],
    "buckets are a number": [3, "east", 1, 1, 1, 1, "west", 1, 1, 7],
    "too many ranges": [8, "east", 1, 1, 1, 1, "west", 1, [[1, 1]] * (RANGES_MAX + 1)],
    "a range of one": [8, "east", 1, 1, 1, 1, "west", 1, [[1]]],
    "a count too large": [8, "east", 1, 1, 1, 1, "west", 1, [[1, 2**32]]],
    "no sums": [9, "east", 1, 1, 1, 1, 0, b""],
    "sums cut short": [9, "east", 1, 1, 1, 1, 0, bytes(15)],
    "too many sums": [9, "east", 1, 1, 1, 1, 0, bytes(8 * (SUMS_MAX + 1))],
    "sums beyond the last": [9, "east", 1, 1, 1, 1, 510, bytes(16)],
    "sums are a list": [9, "east", 1, 1, 1, 1, 0, [1]],
    "too many keys": [18, "east", 1, 1, 1, 1, [IPV4.key] * 33],
    "a key that is none": [18, "east", 1, 1, 1, 1, [IPV4.key[:-1]]],
    "an answer to nobody": [19, "east", 1, 1, 1, 1, "", [], []],
    "a map": [4, "east", 1, 1, 1, 1, {}, {"a": 1}],
    "an extension": [4, "east", 1, 1, 1, 1, msgpack.ExtType(5, b"x")],
    "a time stamp": [4, "east", 1, 1, 1, 1, msgpack.Timestamp(1)],
    "too many elements": [2, "east", 1, 1, 1, 1, [IPV4.key] * 4097],
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_refused(body: object) -> None:
    with pytest.raises(SyncError):
        decode(datagram_of(body))


def test_a_bucket_that_there_is_not_is_left_out() -> None:
    decoded = decode(datagram_of([13, "east", 1, 1, 1, 1, b"\xff" * 64]))
    assert isinstance(decoded, SnapshotBegin)
    assert decoded.buckets == ALL_BUCKETS


def test_a_body_that_nests_deeply_is_refused() -> None:
    with pytest.raises(SyncError):
        decode(b"\x01\x01\xff\xff" + b"\x91" * 60_000)


def test_the_message_of_an_error_holds_nothing_of_the_input() -> None:
    with pytest.raises(SyncError) as caught:
        decode(datagram_of([4, "secret\x1b", 1, 1, 1, 1]))
    assert "secret" not in str(caught.value)


LONGEST_MESSAGES: list[Message] = [
    Heartbeat(
        LONGEST,
        *(2**64 - 1, bytes(16), "n" * 63, PeerState.REPLICATE, 2**64 - 1, True),
        level=255,
        speaks=255,
        oldest=2**64 - 1,
        heard=(2**64 - 1,) * 16,
        standing=Standing(2**64 - 1, 2**64 - 1, True, *(2**64 - 1,) * 7),
        duty=Duty(VrrpState.FAULT, Witness.UNREACHABLE, 255),
    ),
    SnapshotRequest(LONGEST, "n" * 63, 2**64 - 1, 2**64 - 1),
    SnapshotBegin(LONGEST, ALL_BUCKETS),
    GapRequest(LONGEST, "n" * 63, 2**64 - 1, ((2**64 - 1, 2**32 - 1),) * RANGES_MAX),
    SumsRequest(LONGEST, "n" * 63, 2**64 - 1),
    Progress(LONGEST, "n" * 63, 2**64 - 1, 2**64 - 1),
    Handover(LONGEST, "n" * 63, 2**64 - 1, 2**64 - 1),
    Question(LONGEST, (template(1, b"c" * 255).key,)),
]


@pytest.mark.parametrize("message", LONGEST_MESSAGES, ids=lambda m: type(m).__name__)
def test_what_is_never_divided_fits_the_smallest_datagram(message: Message) -> None:
    assert len(encode(message)) <= DATAGRAM_BYTES_MIN
