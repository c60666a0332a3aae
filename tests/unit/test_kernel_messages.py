"""The kernel's sync messages: its own samples and datagrams, and every way to damage one."""

import pytest

from lvsha.errors import SyncError
from lvsha.model import (
    ConnectionDetails,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    parse_address,
    template_key,
)
from lvsha.sync.ipvs.messages import FAULTS, LEFT_OUT, Message, can_carry, emit, encode, parse
from tests.vectors.recordings import Scenario, scenarios

CLIENT, VIRTUAL, SERVER = map(parse_address, ("203.0.113.7", "198.51.100.10", "192.168.1.1"))
RECORD = ConnectionRecord(
    connection_key(6, CLIENT, 40000, VIRTUAL, 80), SERVER, 8080, ForwardMethod.NAT, 1, 0, 900.0
)
SHIFTED = ConnectionRecord(
    connection_key(6, CLIENT, 40001, VIRTUAL, 21),
    SERVER,
    21,
    ForwardMethod.NAT,
    1,
    0x600,
    900.0,
    ConnectionDetails(shifts=(1000, 5, 0, 2000, 2**32 - 3, 0)),
)
ADDRESSES = "cb007107c633640ac0a80101"
FIXED = f"000600240000000000019c4000501f900000000000000384{ADDRESSES}"
SHIFTED_SAMPLE = bytes.fromhex(
    f"0006003e0000060000019c41001500150000000000000384{ADDRESSES}"
    "0118000003e80000000500000000000007d0fffffffd00000000"
)
V1 = bytes.fromhex(f"0015002c01010000{FIXED}")
V0 = bytes.fromhex("0115001c00069c4000501f90cb007107c633640ac0a8010100000001")


def message(*records: bytes, count: int | None = None) -> bytes:
    """A message of version 1 that holds these bytes."""
    body = b"".join(records)
    number = len(records) if count is None else count
    return bytes((0, 21)) + (8 + len(body)).to_bytes(2) + bytes((number, 1, 0, 0)) + body


def record_with(options: str = "", **changed: str) -> bytes:
    """The sample record with options, and with other bytes at some places."""
    data = bytearray(bytes.fromhex(FIXED + options))
    data[2:4] = len(data).to_bytes(2)
    for place, content in changed.items():
        at = int(place[1:])
        data[at : at + len(content) // 2] = bytes.fromhex(content)
    return bytes(data)


def test_version_1_is_read_and_written_as_the_kernel_has_it() -> None:
    assert parse(V1) == Message(1, 21, (RECORD,))
    assert emit(Message(1, 21, (RECORD,))) == V1


def test_version_0_is_read_and_written_as_the_kernel_has_it() -> None:
    without_timeout = RECORD._replace(timeout=0.0)
    assert parse(V0) == Message(0, 21, (without_timeout,))
    assert emit(Message(0, 21, (RECORD,))) == V0


def test_shifts_stand_in_an_option_and_padding_before_the_next_record() -> None:
    alone = emit(Message(1, 21, (SHIFTED,)))
    assert alone[8:] == SHIFTED_SAMPLE
    both = emit(Message(1, 21, (SHIFTED, RECORD)))
    assert both[8:] == SHIFTED_SAMPLE + b"\0\0" + bytes.fromhex(FIXED)
    assert parse(alone).records == (SHIFTED,)
    assert parse(both).records == (SHIFTED, RECORD)


@pytest.mark.parametrize("order", ["little", "big"])
def test_version_0_has_shifts_in_the_byte_order_of_its_sender(order: str) -> None:
    datagram = emit(Message(0, 21, (SHIFTED,)), "little" if order == "little" else "big")
    assert datagram[-24:-20] == (1000).to_bytes(4, "little" if order == "little" else "big")
    [record] = parse(datagram, "little" if order == "little" else "big").records
    assert record == SHIFTED._replace(timeout=0.0)


def test_flags_without_shifts_are_followed_by_zeros_in_version_0() -> None:
    datagram = emit(Message(0, 21, (RECORD._replace(flags=0x200), RECORD)))
    assert len(datagram) == 4 + 48 + 24
    assert len(parse(datagram).records) == 2


def test_a_template_carries_its_mark_and_what_an_engine_found() -> None:
    address = parse_address("2001:db8::1")
    key = template_key(connection_key(17, address, 0, address, 5060), b"call-0@example.test")
    template = ConnectionRecord(
        key,
        address,
        5060,
        ForwardMethod.TUNNEL,
        1,
        0x1100,
        120.0,
        ConnectionDetails(mark=7, engine="sip"),
    )
    datagram = emit(Message(1, 0, (template,)))
    assert datagram[8 + 72 :].hex() == "0213" + b"call-0@example.test".hex() + "0303736970"
    assert parse(datagram).records == (template,)


def _recorded(scenario: Scenario) -> list[bytes]:
    return [
        bytes.fromhex(datagram["payload"])
        for step in scenario["steps"]
        if step["op"] == "sync_out"
        for datagram in step["datagrams"]
    ]


def _received(scenario: Scenario) -> list[bytes]:
    return [bytes.fromhex(s["payload"]) for s in scenario["steps"] if s["op"] == "sync_in"]


@pytest.mark.parametrize("scenario", scenarios("sync"), ids=lambda scenario: scenario["name"])
def test_what_the_kernel_has_sent_is_written_again_byte_for_byte(scenario: Scenario) -> None:
    damaged = scenario["name"].endswith(("-option", "-options", "damaged"))
    for datagram in _recorded(scenario) if damaged else _recorded(scenario) + _received(scenario):
        read = parse(datagram)
        assert not read.faults
        if scenario["name"].startswith("backup-seq"):
            # Made by hand: with padding behind the last record, which the kernel leaves away.
            padded = (len(datagram) - 2).to_bytes(2)
            datagram = datagram[:2] + padded + datagram[4:-2]
        assert emit(read) == datagram


def test_records_go_into_as_few_messages_as_they_fit() -> None:
    datagrams = encode(1, 5, [RECORD] * 90, 1472)
    assert [len(datagram) for datagram in datagrams] == [8 + 40 * 36, 8 + 40 * 36, 8 + 10 * 36]
    # The kernel's own, recorded with --sync-maxlen 500.
    [many] = [s for s in scenarios("sync") if s["name"] == "many-maxlen-500"]
    recorded = _recorded(many)
    records = [record for datagram in recorded for record in parse(datagram).records]
    assert encode(1, 5, records, 500) == recorded


def test_a_message_holds_a_record_that_is_longer_than_it_may_be() -> None:
    assert [len(datagram) for datagram in encode(1, 5, [RECORD] * 2, 1)] == [44, 44]


def test_a_message_holds_no_more_records_than_it_can_count() -> None:
    datagrams = encode(0, 5, [RECORD] * 300, 65_000)
    assert [len(parse(datagram).records) for datagram in datagrams] == [255, 45]
    with pytest.raises(SyncError):
        emit(Message(0, 5, (RECORD,) * 256))


def test_what_a_version_has_no_place_for_is_not_carried() -> None:
    address = parse_address("2001:db8::1")
    key = connection_key(6, address, 1, address, 2)
    wide = RECORD._replace(key=key, server=address)
    found = ConnectionRecord(
        template_key(connection_key(17, CLIENT, 0, VIRTUAL, 5060), b"call"),
        SERVER,
        5060,
        ForwardMethod.NAT,
        0,
        0x1000,
        120.0,
        ConnectionDetails(engine="sip"),
    )
    assert can_carry(1, wide)
    assert not can_carry(0, wide)
    assert can_carry(1, found)
    assert not can_carry(0, found)
    assert not can_carry(1, RECORD._replace(server=address))
    assert encode(0, 5, [wide, found], 1472) == []
    with pytest.raises(SyncError):
        emit(Message(0, 5, (wide,)))


def test_parts_of_a_second_are_rounded_up() -> None:
    [record] = parse(emit(Message(1, 5, (RECORD._replace(timeout=59.1),)))).records
    assert record.timeout == 60.0


def test_the_senders_own_server_is_reached_directly() -> None:
    [record] = parse(message(record_with(_4="00000001"))).records
    assert record.method is ForwardMethod.DIRECT_ROUTE


@pytest.mark.parametrize(
    ("fault", "data"),
    [
        ("record_version", record_with(_2="1024")),
        ("record_type", record_with(_0="02")),
        ("record_length", record_with(_2="0008")),
        ("record_length", record_with(_0="01")),
        ("option_malformed", record_with("01")),
        ("option_malformed", record_with("0100")),
        ("option_malformed", record_with("020461")),
        ("option_malformed", record_with("0117" + "00" * 23)),
        ("option_malformed", record_with(("0118" + "00" * 24) * 2)),
        ("option_malformed", record_with("0311" + "61" * 17)),
    ],
)
def test_a_fault_that_hides_the_next_record_ends_the_message(fault: str, data: bytes) -> None:
    good = bytes.fromhex(FIXED)
    read = parse(message(good, data, good))
    assert fault not in LEFT_OUT
    assert read.faults == (fault,)
    assert read.records == (RECORD,)


@pytest.mark.parametrize("data", [record_with()[:-1], record_with(_2="0025"), b""])
def test_a_record_that_goes_beyond_the_message_ends_it(data: bytes) -> None:
    read = parse(message(bytes.fromhex(FIXED), data))
    assert read == Message(1, 21, (RECORD,), ("record_truncated",))


@pytest.mark.parametrize(
    ("fault", "data"),
    [
        ("option_unknown", record_with("050461626364")),
        ("option_unknown", record_with("810461626364")),
        ("engine_unnamed", record_with("020461626364")),
        ("method_unknown", record_with(_4="00000006")),
    ],
)
def test_a_fault_of_one_record_leaves_it_out(fault: str, data: bytes) -> None:
    good = bytes.fromhex(FIXED)
    padded = data + bytes(-len(data) % 4)
    read = parse(message(good, padded, good))
    assert fault in LEFT_OUT
    assert read.faults == (fault,)
    assert read.records == (RECORD, RECORD)


def test_an_option_that_may_be_skipped_is() -> None:
    read = parse(message(record_with("450461626364")))
    assert read == Message(1, 21, (RECORD,))


@pytest.mark.parametrize("good", [V1, V0, emit(Message(1, 21, (SHIFTED, RECORD)))])
def test_a_datagram_that_is_cut_or_too_long_is_refused(good: bytes) -> None:
    for length in range(len(good)):
        with pytest.raises(SyncError):
            parse(good[:length])
    with pytest.raises(SyncError):
        parse(good + b"\0")


def test_a_cut_message_whose_length_is_right_keeps_what_is_whole() -> None:
    whole = emit(Message(1, 21, (RECORD, RECORD)))
    for length in range(8, len(whole)):
        cut = bytearray(whole[:length])
        cut[2:4] = length.to_bytes(2)
        read = parse(bytes(cut))
        assert len(read.records) == (length - 8) // 36
        assert set(read.faults) <= FAULTS
        assert len(read.faults) == 1


def test_version_0_is_what_is_not_version_1() -> None:
    assert parse(V1[:5] + b"\x02" + V1[6:]).version == 0
    assert parse(V1[:6] + b"\x01" + V1[7:]).version == 0
    assert parse(V1[:5] + b"\x02" + V1[6:]).records == ()
    assert parse(bytes((0, 9, 0, 4))) == Message(0, 9, ())
