"""Connections as entries of a datagram, of both levels."""

from dataclasses import replace
from itertools import islice

import msgpack
import pytest

from lvsha.errors import SyncError
from lvsha.model import ConnectionDetails, ConnectionRecord, ForwardMethod, template_key
from lvsha.sync.datagrams import (
    decode,
    encode,
    encode_answers,
    encode_changes,
    entries_room,
)
from lvsha.sync.messages import KEYS_MAX, LEVEL_PLAIN, Answer, Changes, Origin, Role
from lvsha.sync.plain_records import PlainPacking, encode_plain
from lvsha.sync.records import (
    DETAILS_BYTES_MAX,
    ENTRY_BYTES_MAX,
    FIELDS_MAX,
    FOUND_BYTES_MAX,
    TIMEOUT_MAX,
    Packing,
    read_groups,
)
from lvsha.sync.replica import DATAGRAM_BYTES_MIN
from tests.replicas import connection, template

ORIGIN = Origin(1, "east", 5, Role.LEAD, 2, 9)
LONGEST = Origin(255, "n" * 63, 2**64 - 1, Role.FOLLOW, 2**32 - 1, 2**64 - 1)
IPV4 = connection(7)
IPV6 = ConnectionRecord.between(
    17, b"c" * 16, 1, b"v" * 16, 53, b"s" * 16, 5353, ForwardMethod.TUNNEL, 255, 0xFFFF, 42e6
)
DETAILS = ConnectionDetails(
    mark=7,
    shifts=(1, 2, 3, 2**32 - 1, 5, 6),
    engine="sip",
    parent=IPV6.key,
    dialogue=(1, 2**32 - 1, 3),
    others=((9, b"newer"), (65_535, b"\0")),
)
ENDS = bytes((4, 6, 0, 0, 80, 31, 144)) + bytes((192, 0, 2, 1, 10, 1, 0, 1))
ENTRY = bytes((10, 0, 0, 7, 4, 0, 1, 0, 0, 0, 1, 95, 144))


def told(*records: ConnectionRecord, ended: tuple[bytes, ...] = ()) -> Changes:
    """What comes of these on the other side."""
    decoded = decode(encode(Changes(ORIGIN, list(records), list(ended))))
    assert isinstance(decoded, Changes)
    return decoded


def datagram_of(kind: int, *fields: object) -> bytes:
    packed: bytes = msgpack.packb([kind, "east", 1, 1, 1, 1, *fields])
    return b"\x01\x01\xff\xff" + packed


# --- groups -----------------------------------------------------------------------------------


def test_connections_of_one_virtual_end_and_real_server_are_one_group() -> None:
    packing = Packing(1000)
    for number in (1, 2, 3):
        packing.add(connection(number))
    packing.add(connection(4, server=2))
    packing.add(template(1))
    assert packing.count == 5
    assert len(msgpack.unpackb(packing.groups())) == 3


def test_a_group_is_laid_out_as_described() -> None:
    packing = Packing(1000)
    packing.add(IPV4)
    assert msgpack.unpackb(packing.groups()) == [[ENDS, ENTRY]]


@pytest.mark.parametrize("record", [IPV4, IPV6, template(1)], ids=["IPv4", "IPv6", "template"])
@pytest.mark.parametrize("room", [50, 99, 100, 300, 1400])
def test_a_run_is_packed_as_its_records_one_by_one(record: ConnectionRecord, room: int) -> None:
    size = (len(record.key) - 6) // 2
    head, rest = record.key[: size - 2], record.key[2 + size : -4]
    keys = [
        head + n.to_bytes(4) + rest + (n * 7919 % 65536).to_bytes(2) + record.key[-2:]
        for n in range(100)
    ]
    at_once, one_by_one = Packing(room), Packing(room)
    for packing in (at_once, one_by_one):
        packing.add(IPV4)
    fits = [one_by_one.add(record._replace(key=key)) for key in keys]
    assert at_once.add_run(record, keys) == sum(fits)
    assert at_once.groups() == one_by_one.groups()
    assert (at_once.count, at_once._room) == (one_by_one.count, one_by_one._room)
    read = read_groups(msgpack.unpackb(at_once.groups()))
    assert read == [IPV4, *(record._replace(key=key) for key in keys[: sum(fits)])]


def test_a_run_of_level_1_is_packed_as_its_records_one_by_one() -> None:
    keys = [connection(number).key for number in range(100)]
    at_once, one_by_one = PlainPacking(1000), PlainPacking(1000)
    fits = [one_by_one.add(IPV4._replace(key=key)) for key in keys]
    assert 0 < sum(fits) < 100
    assert at_once.add_run(IPV4, keys) == sum(fits)
    assert at_once.encoded == one_by_one.encoded


@pytest.mark.parametrize(
    "record",
    [
        IPV4,
        IPV6,
        IPV4._replace(details=DETAILS),
        IPV6._replace(details=DETAILS),
        IPV6._replace(key=template_key(IPV6.key, b"c" * 255)),
        template(1, b"call")._replace(details=ConnectionDetails(mark=2**32 - 1)),
        IPV4._replace(details=ConnectionDetails(dialogue=(7,))),
        IPV4._replace(server=bytes(16), method=ForwardMethod.TUNNEL),
        IPV4._replace(timeout=0.01),
        IPV4._replace(details=ConnectionDetails(dialogue=(1, 0, 0))),
        IPV4._replace(details=ConnectionDetails(others=((9, bytes(295)),))),
        IPV4._replace(details=ConnectionDetails(others=tuple((n, b"x") for n in range(9, 33)))),
    ],
)
def test_a_connection_comes_back_with_all_that_it_has(record: ConnectionRecord) -> None:
    assert told(IPV4, record, IPV6, record).records[1] == record


def test_details_stand_with_the_entry_that_has_them() -> None:
    plain = [connection(number) for number in range(5)]
    plain[3] = plain[3]._replace(details=DETAILS)
    assert told(*plain).records == plain


def test_details_without_anything_in_them_are_none() -> None:
    (record,) = told(IPV4._replace(details=ConnectionDetails())).records
    assert record == IPV4


def test_time_outs_are_told_in_hundredths_of_a_second() -> None:
    (record,) = told(IPV4._replace(timeout=1.2345)).records
    assert record.timeout == 1.23


def test_what_ended_comes_back_whatever_kind_of_key_it_has() -> None:
    keys = (IPV4.key, IPV6.key, template(1).key, template(1, b"call").key, connection(9).key)
    assert sorted(told(ended=keys).ended) == sorted(keys)


def test_what_does_not_fit_leaves_the_packing_as_it_was() -> None:
    packing = Packing(9 + 6 + 15 + 13 * 2)
    assert packing.add(connection(1))
    assert not packing.add(connection(2, server=2))
    assert not packing.add_ended(IPV6.key)
    assert packing.add(connection(3))
    assert not packing.add(connection(4))
    assert packing.count == 2
    assert len(msgpack.unpackb(packing.groups())) == 1
    assert packing.ended() == b"\x90\x90"


@pytest.mark.parametrize("room", range(60, 1400, 7))
def test_a_packing_never_takes_more_room_than_it_has(room: int) -> None:
    packing = Packing(room)
    several = [connection(n, server=n % 3)._replace(details=DETAILS) for n in range(3)]
    several += [template(n, b"c" * n) for n in range(1, 60)]
    several += [connection(n, server=n % 4) for n in range(60)]
    for record in several:
        packing.add(record)
        packing.add_ended(record.key)
    assert len(packing.groups()) + len(packing.ended()) <= room


def longest(family: int = 6) -> ConnectionRecord:
    """A template whose details leave no room for more."""
    base = IPV6 if family == 6 else IPV4
    details = ConnectionDetails(mark=1, engine="e" * 16)
    left = DETAILS_BYTES_MAX - (255 + 5) - (4 + 5) - (16 + 5) - 5
    others = ((65_535, bytes(left)),) if left > 0 else ()
    key = template_key(base.key, b"c" * 255)
    return base._replace(
        key=key,
        details=ConnectionDetails(mark=details.mark, engine=details.engine, others=others),
    )


def call() -> ConnectionRecord:
    """A connection whose parent is the template of a call with the longest Call-ID."""
    parent = template_key(IPV6.key, b"c" * FOUND_BYTES_MAX)
    return IPV6._replace(details=ConnectionDetails(parent=parent))


@pytest.mark.parametrize("record", [longest(), call()], ids=["longest", "call"])
def test_the_longest_entry_fits_the_smallest_datagram_between_the_longest_names(
    record: ConnectionRecord,
) -> None:
    packing = Packing(entries_room(LONGEST, DATAGRAM_BYTES_MIN))
    assert packing.add(record)
    assert len(packing.groups()) <= ENTRY_BYTES_MAX
    datagram = encode_changes(LONGEST, packing)
    assert len(datagram) <= DATAGRAM_BYTES_MIN
    assert decode(datagram) == Changes(LONGEST, [record], [])


def test_details_that_would_fit_in_no_datagram_are_refused() -> None:
    fields: list[object] = [0, 9, bytes(250), 10, bytes(40)]
    decode(datagram_of(12, [[ENDS, ENTRY, [fields]]], [], []))
    fields[-1] = bytes(41)
    with pytest.raises(SyncError, match="too long"):
        decode(datagram_of(12, [[ENDS, ENTRY, [fields]]], [], []))


@pytest.mark.parametrize("length", [1, 2, 7, 60, 150, 255, 300])
def test_of_details_that_are_too_long_the_last_fields_are_left_out_and_nothing_else(
    length: int,
) -> None:
    others = tuple((number, bytes(length)) for number in range(9, 60))
    record = IPV4._replace(details=replace(DETAILS, others=others))
    (came,) = told(record).records
    assert came.details is not None
    left = came.details.others
    assert came == record._replace(details=replace(DETAILS, others=left))
    assert left == others[: len(left)]
    room = DETAILS_BYTES_MAX - 9 - 29 - 8 - 11 - 43
    assert len(left) == min(room // (5 + length), FIELDS_MAX - 5)
    assert told(came).records == [came], "what was read can be told again"


def test_a_field_that_does_not_fit_takes_all_behind_it_along() -> None:
    details = ConnectionDetails(others=((9, b"first"), (10, bytes(290)), (11, b"last")))
    (came,) = told(IPV4._replace(details=details)).records
    assert came == IPV4._replace(details=ConnectionDetails(others=((9, b"first"),)))


BAD_GROUPS: dict[str, object] = {
    "no array": 7,
    "a group of bytes": [ENDS],
    "no entries": [[ENDS]],
    "ends are text": [["ends", ENTRY]],
    "ends cut short": [[ENDS[:6], ENTRY]],
    "no family": [[b"\x05" + ENDS[1:], ENTRY]],
    "no method": [[ENDS[:2] + b"\x01" + ENDS[3:], ENTRY]],
    "server cut short": [[ENDS[:-1], ENTRY]],
    "server of the other family": [[ENDS + bytes(12), ENTRY]],
    "entry cut short": [[ENDS, ENTRY[:-1]]],
    "details are no array": [[ENDS, ENTRY, 7]],
    "details of nothing": [[ENDS, ENTRY, [[]]]],
    "details of no entry": [[ENDS, ENTRY, [[1, 1, bytes(4)]]]],
    "details twice": [[ENDS, ENTRY, [[0, 1, bytes(4)], [0, 1, bytes(4)]]]],
    "details of a negative entry": [[ENDS, ENTRY, [[-1, 1, bytes(4)]]]],
    "details of true": [[ENDS, ENTRY * 2, [[True, 1, bytes(4)]]]],
    "a number without a value": [[ENDS, ENTRY, [[0, 1]]]],
    "field 0": [[ENDS, ENTRY, [[0, 0, b"x"]]]],
    "field 65536": [[ENDS, ENTRY, [[0, 65_536, b"x"]]]],
    "an empty field": [[ENDS, ENTRY, [[0, 9, b""]]]],
    "a long field": [[ENDS, ENTRY, [[0, 9, bytes(296)]]]],
    "a field of text": [[ENDS, ENTRY, [[0, 9, "x"]]]],
    "too many fields": [[ENDS, ENTRY, [[0, *(9, b"x") * (FIELDS_MAX + 1)]]]],
    "a short mark": [[ENDS, ENTRY, [[0, 1, bytes(3)]]]],
    "short shifts": [[ENDS, ENTRY, [[0, 2, bytes(23)]]]],
    "a find of no template": [[ENDS, ENTRY, [[0, 3, b"call"]]]],
    "a long find": [[b"\x84" + ENDS[1:], ENTRY, [[0, 3, bytes(256)]]]],
    "an engine with a long name": [[ENDS, ENTRY, [[0, 4, b"e" * 17]]]],
    "an engine with a bad name": [[ENDS, ENTRY, [[0, 4, b"s/p"]]]],
    "a dialogue cut short": [[ENDS, ENTRY, [[0, 6, bytes(5)]]]],
    "a parent that is no key": [[ENDS, ENTRY, [[0, 5, bytes(14)]]]],
    "a dialogue of 2 bytes": [[ENDS, ENTRY, [[0, 6, bytes(2)]]]],
    "a dialogue of 7 bytes": [[ENDS, ENTRY, [[0, 6, bytes(7)]]]],
}


@pytest.mark.parametrize("groups", BAD_GROUPS.values(), ids=BAD_GROUPS.keys())
def test_a_bad_group_is_refused(groups: object) -> None:
    with pytest.raises(SyncError):
        decode(datagram_of(12, groups, [], []))
    with pytest.raises(SyncError):
        decode(datagram_of(14, 1, groups))


BAD_ENDED: dict[str, tuple[object, object]] = {
    "no array": (7, []),
    "no keys": ([], 7),
    "no entries": ([[ENDS[:2]]], []),
    "no family": ([[b"\x05\x06\0P\xc0\0\x02\x01", bytes(6)]], []),
    "empty ends": ([[b"", bytes(6)]], []),
    "long ends": ([[b"\x04\x06\0P\xc0\0\x02\x01\0", bytes(6)]], []),
    "an entry cut short": ([[b"\x04\x06\0P\xc0\0\x02\x01", bytes(5)]], []),
    "an empty key": ([], [b""]),
    "a key with a find of no template": ([], [IPV4.key + b"x"]),
    "a key that is too long": ([], [template(1).key + bytes(256)]),
    "a key of text": ([], ["key"]),
}


@pytest.mark.parametrize(("groups", "keys"), BAD_ENDED.values(), ids=BAD_ENDED.keys())
def test_a_bad_group_of_what_ended_is_refused(groups: object, keys: object) -> None:
    with pytest.raises(SyncError):
        decode(datagram_of(12, [], groups, keys))


def test_elements_added_to_a_group_by_a_newer_node_are_ignored() -> None:
    groups = [[ENDS, ENTRY, [], "newer", 7]]
    ended = [[b"\x04\x06\0P\xc0\0\x02\x01", bytes((10, 0, 0, 7, 4, 0)), "newer"]]
    decoded = decode(datagram_of(12, groups, ended, []))
    assert isinstance(decoded, Changes)
    assert (decoded.records, decoded.ended) == ([IPV4], [IPV4.key])


def test_only_a_tunnel_leads_to_a_server_of_the_other_family() -> None:
    mixed = IPV4._replace(server=IPV6.server)
    for level in (LEVEL_PLAIN, 2):
        with pytest.raises(SyncError):
            decode(encode(Changes(ORIGIN, [mixed], []), level))
        tunnelled = Changes(ORIGIN, [mixed._replace(method=ForwardMethod.TUNNEL)], [])
        assert decode(encode(tunnelled, level)) == tunnelled


# --- answers ----------------------------------------------------------------------------------


def test_a_long_answer_takes_several_datagrams_and_leaves_nothing_out() -> None:
    records = [connection(n, server=n % 7) for n in range(300)]
    unknown = tuple(template(n, b"c" * (n % 99 + 1)).key for n in range(100))
    parts = list(encode_answers(Answer(ORIGIN, "west", records, unknown), 1400))
    assert max(map(len, parts)) <= 1400
    answers = [answer for answer in map(decode, parts) if isinstance(answer, Answer)]
    assert sorted(record for answer in answers for record in answer.records) == sorted(records)
    assert tuple(key for answer in answers for key in answer.unknown) == unknown
    assert max(len(answer.unknown) for answer in answers) <= KEYS_MAX


@pytest.mark.parametrize("origin", [ORIGIN, LONGEST], ids=["short names", "long names"])
@pytest.mark.parametrize("datagram_max", [DATAGRAM_BYTES_MIN, 700, 1400])
def test_an_answer_comes_to_an_end_whatever_was_asked(origin: Origin, datagram_max: int) -> None:
    key = template_key(IPV6.key, b"c" * 255)
    answer = Answer(origin, origin.node, [longest(), IPV4], (key, IPV4.key))
    parts = list(islice(encode_answers(answer, datagram_max), 100))
    assert 1 <= len(parts) <= 4
    assert max(map(len, parts)) <= datagram_max
    answers = [answer for answer in map(decode, parts) if isinstance(answer, Answer)]
    assert IPV4 in [record for answer in answers for record in answer.records]
    assert IPV4.key in [key for answer in answers for key in answer.unknown]


def test_an_answer_without_anything_in_it_can_be_written() -> None:
    assert decode(encode(Answer(ORIGIN, "west", [], ()))) == Answer(ORIGIN, "west", [], ())


# --- level 1 ----------------------------------------------------------------------------------


def plain_fields(record: ConnectionRecord = IPV4) -> list[object]:
    return [record.key, record.server, 8080, 0, 1, 0x120, 900]


def test_a_connection_of_level_1_needs_at_most_forty_bytes() -> None:
    packing = PlainPacking(entries_room(ORIGIN, 1400))
    while packing.add(IPV4):
        pass
    assert packing.count >= 1400 // 40


def test_a_record_of_level_1_may_have_more_fields_than_are_known() -> None:
    decoded = decode(datagram_of(2, [[*plain_fields(), "newer", [1]]]))
    assert isinstance(decoded, Changes)
    assert decoded.records == [IPV4._replace(flags=0x120)]


def test_level_1_leaves_details_out() -> None:
    packing = PlainPacking(1000)
    packing.add(IPV4._replace(details=DETAILS))
    packing.add(template(1))
    packing.add_ended(template(1).key)
    assert packing.encoded == [encode_plain(IPV4)]


def test_level_1_leaves_out_what_bypasses_as_version_0_1_0_knows_no_such_method() -> None:
    bypass = IPV4._replace(method=ForwardMethod.BYPASS)
    assert told(bypass).records == [bypass]
    packing = PlainPacking(1000)
    assert packing.add(bypass)
    assert packing.add(IPV6)
    assert packing.encoded == [encode_plain(IPV6)]


def test_level_1_bounds_time_outs_as_version_0_1_0_does() -> None:
    decoded = decode(encode(Changes(ORIGIN, [IPV4._replace(timeout=42e6)], []), LEVEL_PLAIN))
    assert isinstance(decoded, Changes)
    assert decoded.records[0].timeout == TIMEOUT_MAX


BAD_ENTRIES: dict[str, object] = {
    "no array": 7,
    "a number": [7],
    "a key of a wrong family": [b"\x06" + IPV4.key[1:]],
    "a key cut short": [IPV4.key[:-1]],
    "the key of a template": [template(1).key],
    "a record that is a template": [[template(1).key, *plain_fields()[1:]]],
    "a record cut short": [plain_fields()[:6]],
}


@pytest.mark.parametrize("body", BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_a_bad_entry_of_level_1_is_refused(body: object) -> None:
    with pytest.raises(SyncError):
        decode(datagram_of(2, body))


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
def test_a_record_of_level_1_with_a_bad_field_is_refused(field: int, value: object) -> None:
    fields = plain_fields()
    fields[field] = value
    with pytest.raises(SyncError):
        decode(datagram_of(2, [fields]))
