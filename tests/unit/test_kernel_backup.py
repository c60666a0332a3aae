import pytest

from lvsha.model import ConnectionDetails, ConnectionRecord, ForwardMethod, connection_key
from lvsha.sync.ipvs.actions import Apply, Refused
from lvsha.sync.ipvs.backup import TIMEOUT_MAX, Backup
from lvsha.sync.ipvs.messages import Message, emit

CLIENT, VIRTUAL, SERVER = bytes((10, 9, 0, 1)), bytes((192, 0, 2, 61)), bytes((10, 1, 0, 31))
KEY = connection_key(6, CLIENT, 40_000, VIRTUAL, 80)
TEMPLATE_KEY = bytes((0x84,)) + KEY[1:-4] + bytes(2) + KEY[-2:]
RECORD = ConnectionRecord(KEY, SERVER, 8080, ForwardMethod.NAT, 1, 0, 900.0)
TEMPLATE = RECORD._replace(key=TEMPLATE_KEY, flags=0x1000, timeout=300.0)
STATES = {6: 11, 17: 1}
SYNC = 0x20


def backup(*sync_ids: int) -> Backup:
    return Backup(sync_ids or (5,), STATES)


def received(*records: ConnectionRecord, sync_id: int = 5) -> list[Apply | Refused]:
    return backup().receive(emit(Message(1, sync_id, records)), 1.0)


def test_records_are_taken_over_as_what_a_peer_has_told() -> None:
    assert received(RECORD, TEMPLATE) == [
        Apply((RECORD._replace(flags=SYNC), TEMPLATE._replace(flags=0x1000 | SYNC)))
    ]


@pytest.mark.parametrize(
    ("own", "other", "accepted"),
    [((5,), 5, True), ((5,), 6, False), ((0,), 6, True), ((5,), 0, False), ((5, 6), 6, True)],
)
def test_a_message_of_another_sync_id_is_refused(
    own: tuple[int, ...], other: int, accepted: bool
) -> None:
    receiver = backup(*own)
    actions = receiver.receive(emit(Message(1, other, (RECORD,))), 1.0)
    assert isinstance(actions[0], Apply) is accepted
    assert (actions == [Refused("sync_id")]) is not accepted
    assert (receiver.heard_at == 1.0) is accepted


def test_flags_that_are_a_receivers_own_affair_are_taken_away() -> None:
    [apply] = received(RECORD._replace(flags=0xFFFF_CFB8 & ~0x3000))
    assert isinstance(apply, Apply)
    assert apply.records[0].flags == 0x0F80 | SYNC


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("flags_impossible", RECORD._replace(flags=0x2000)),
        ("flags_impossible", TEMPLATE._replace(flags=0x1800)),
        ("protocol_unknown", RECORD._replace(key=b"\x04\x63" + KEY[2:])),
        ("state_unknown", RECORD._replace(state=11)),
        ("state_unknown", RECORD._replace(key=b"\x04\x11" + KEY[2:])),
        ("state_unknown", TEMPLATE._replace(state=2)),
        (
            "engine_unknown",
            TEMPLATE._replace(key=TEMPLATE_KEY + b"x", details=ConnectionDetails(engine="odd")),
        ),
    ],
)
def test_an_impossible_record_is_left_out(kind: str, record: ConnectionRecord) -> None:
    actions = received(RECORD, record, TEMPLATE)
    assert isinstance(actions[0], Apply)
    assert [one.key for one in actions[0].records] == [KEY, TEMPLATE_KEY]
    assert actions[1:] == [Refused(kind)]


def test_a_template_of_any_protocol_is_taken_over() -> None:
    of_a_mark = TEMPLATE._replace(key=b"\x84\x00" + TEMPLATE_KEY[2:])
    assert isinstance(received(of_a_mark)[0], Apply)


def test_what_an_engine_found_goes_with_its_template() -> None:
    found = TEMPLATE._replace(key=TEMPLATE_KEY + b"call", details=ConnectionDetails(engine="sip"))
    [apply] = received(found)
    assert isinstance(apply, Apply)
    assert apply.records[0] == found._replace(flags=0x1000 | SYNC)


def test_no_time_out_is_endless() -> None:
    [apply] = received(RECORD._replace(timeout=2.0**32 - 1))
    assert isinstance(apply, Apply)
    assert apply.records[0].timeout == TIMEOUT_MAX


def test_what_is_no_message_is_refused_and_changes_nothing() -> None:
    receiver = backup()
    good = emit(Message(1, 5, (RECORD,)))
    for datagram in (b"", b"\0\5\0", good[:-1], good + b"\0"):
        assert receiver.receive(datagram, 1.0) == [Refused("malformed")]
    assert receiver.heard_at is None
    assert receiver.counters.snapshot() == {"refused_malformed": 4}


def test_what_came_before_a_fault_is_taken_over() -> None:
    datagram = bytearray(emit(Message(1, 5, (RECORD, RECORD))))
    datagram[8 + 36] = 2
    receiver = backup()
    actions = receiver.receive(bytes(datagram), 1.0)
    assert actions == [Apply((RECORD._replace(flags=SYNC),)), Refused("record_type")]
    assert receiver.counters.snapshot() == {
        "datagrams": 1,
        "records": 1,
        "refused_record_type": 1,
    }
