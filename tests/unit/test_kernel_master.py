import random
from collections import Counter

from lvsha.model import (
    ConnectionChanged,
    ConnectionDetails,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
)
from lvsha.sync.ipvs.actions import Send
from lvsha.sync.ipvs.master import FLUSH_DELAY, WAKE_DELAY, Master
from lvsha.sync.ipvs.messages import parse

VIRTUAL, SERVER = bytes((192, 0, 2, 61)), bytes((10, 1, 0, 31))
PER_MESSAGE = 5
LENGTH_MAX = 8 + PER_MESSAGE * 36


def record(number: int, **changes: object) -> ConnectionRecord:
    key = connection_key(6, bytes((10, 9, *number.to_bytes(2))), 40_000, VIRTUAL, 80)
    one = ConnectionRecord(key, SERVER, 8080, ForwardMethod.NAT, 1, 0, 900.0)
    return one._replace(**changes)  # type: ignore[arg-type]  # fields by name


def told(*numbers: int) -> list[ConnectionChanged]:
    return [ConnectionChanged(record(number)) for number in numbers]


def master(ports: int = 1) -> Master:
    return Master(5, ports=ports, length_max=LENGTH_MAX)


def keys(sends: list[Send]) -> list[bytes]:
    return [record.key for send in sends for record in parse(send.datagram).records]


def test_a_record_leaves_two_seconds_after_it_was_told() -> None:
    speaker = master()
    assert speaker.tell(told(1), 10.0) == []
    assert speaker.tell(told(2), 11.0) == []
    assert speaker.deadline == 10.0 + FLUSH_DELAY
    assert speaker.expire(11.9) == []
    [send] = speaker.expire(12.0)
    assert parse(send.datagram).sync_id == 5
    assert keys([send]) == [record(1).key, record(2).key]
    assert master().deadline is None


def test_a_full_message_leaves_after_twenty_milliseconds() -> None:
    speaker = master()
    assert speaker.tell(told(*range(PER_MESSAGE + 1)), 10.0) == []
    assert speaker.deadline == 10.0 + WAKE_DELAY
    sends = speaker.expire(10.0 + WAKE_DELAY)
    assert keys(sends) == [record(number).key for number in range(PER_MESSAGE)]
    assert speaker.deadline == 10.0 + FLUSH_DELAY


def test_eight_full_messages_leave_at_once() -> None:
    speaker = master()
    assert speaker.tell(told(*range(8 * PER_MESSAGE)), 10.0) == []
    sends = speaker.tell(told(999), 10.0)
    assert [len(send.datagram) for send in sends] == [LENGTH_MAX] * 8


def test_the_end_of_a_connection_is_not_spoken_of() -> None:
    speaker = master()
    assert speaker.tell([ConnectionEnded(record(1).key)], 10.0) == []
    assert speaker.deadline is None


def test_connections_of_one_packet_are_not_spoken_of() -> None:
    speaker = master()
    speaker.tell([ConnectionChanged(record(1, flags=0x2000))], 10.0)
    assert speaker.stop() == []


def test_what_the_format_has_no_place_for_is_counted() -> None:
    speaker = master()
    speaker.tell([ConnectionChanged(record(1, server=bytes(16)))], 10.0)
    assert speaker.counters["records_not_carried"] == 1
    assert speaker.stop() == []


def test_another_version_begins_another_message() -> None:
    speaker = master()
    speaker.tell(told(1), 10.0)
    speaker.version = 0
    speaker.tell(told(2), 10.0)
    sends = speaker.expire(12.0)
    assert [parse(send.datagram).version for send in sends] == [1, 0]


def test_nothing_is_merged() -> None:
    speaker = master()
    speaker.tell([*told(1), ConnectionChanged(record(1, state=4)), *told(1)], 10.0)
    [send] = speaker.stop()
    assert [one.state for one in parse(send.datagram).records] == [1, 4, 1]


def test_a_connection_keeps_its_port() -> None:
    speaker = master(ports=4)
    changes = told(*range(200)) * 2
    random.Random(1).shuffle(changes)
    sends = speaker.tell(changes, 10.0) + speaker.stop()
    ports: dict[bytes, set[int]] = {}
    for send in sends:
        for key in keys([send]):
            ports.setdefault(key, set()).add(send.port_index)
    assert all(len(of_one) == 1 for of_one in ports.values())
    used = Counter(port for of_one in ports.values() for port in of_one)
    assert sorted(used) == [0, 1, 2, 3]
    assert min(used.values()) > 25


def test_what_the_socket_refuses_is_sent_first_when_it_takes_something_again() -> None:
    speaker = master()
    sends = speaker.tell(told(*range(8 * PER_MESSAGE + 1)), 10.0)
    for send in sends[3:]:
        speaker.refuse(send)
    assert speaker.deadline is None
    assert speaker.tell(told(*range(100, 100 + 2 * PER_MESSAGE)), 10.1) == []
    assert speaker.expire(20.0) == []
    again = speaker.resume(0)
    assert again[:5] == sends[3:]
    assert len(again) == 7
    assert keys(again + speaker.expire(20.0)) == [
        record(n).key
        for n in [*range(3 * PER_MESSAGE, 8 * PER_MESSAGE + 1), *range(100, 100 + 2 * PER_MESSAGE)]
    ]


def test_messages_beyond_the_limit_of_the_queue_are_lost_and_counted() -> None:
    speaker = master()
    speaker.queue_max = 10
    refused = speaker.tell(told(*range(8 * PER_MESSAGE + 1)), 10.0)
    for send in refused:
        speaker.refuse(send)
    speaker.tell(told(*range(1000, 1000 + 10 * PER_MESSAGE)), 10.0)
    assert speaker.waiting == 10
    assert speaker.counters["messages_dropped"] == 8
    assert speaker.counters["records_dropped"] == 8 * PER_MESSAGE
    assert len(speaker.resume(0)) == 10


def test_nothing_told_is_lost_on_the_way_without_a_count() -> None:
    for seed in range(40):
        dice = random.Random(seed)
        speaker = Master(5, ports=dice.choice((1, 2, 4)), length_max=dice.randint(1, 400))
        speaker.queue_max = dice.randint(1, 30)
        told_keys: list[bytes] = []
        sent: list[Send] = []
        now, number = 0.0, 0
        for _ in range(200):
            now += dice.choice((0.0, 0.01, 0.5))
            actions = speaker.expire(now)
            changes = told(*range(number, number + dice.randint(0, 20)))
            number += len(changes)
            told_keys += [change.record.key for change in changes]
            actions += speaker.tell(changes, now)
            if dice.random() < 0.2:
                actions += speaker.resume(0)
            blocked = dice.random() < 0.3
            for action in actions:
                if blocked and action.port_index == 0:
                    speaker.refuse(action)
                else:
                    sent.append(action)
            assert speaker.waiting <= speaker.queue_max * 4
        sent += speaker.stop()
        assert len(keys(sent)) + speaker.counters["records_dropped"] == len(told_keys)
        if not speaker.counters["records_dropped"]:
            order = {key: place for place, key in enumerate(told_keys)}
            for port in range(4):
                places = [order[key] for s in sent if s.port_index == port for key in keys([s])]
                assert places == sorted(places)


def test_a_template_is_spoken_of_in_both_versions() -> None:
    key = bytes((0x84,)) + record(1).key[1:-4] + bytes(2) + record(1).key[-2:]
    template = record(1, key=key, flags=0x1000, details=ConnectionDetails(mark=8))
    for version in (0, 1):
        speaker = master()
        speaker.version = version
        speaker.tell([ConnectionChanged(template)], 10.0)
        [send] = speaker.stop()
        assert keys([send]) == [key]


def test_the_mark_of_a_connection_goes_with_it() -> None:
    speaker = Master(5, ports=1, length_max=LENGTH_MAX, mark_of=lambda key: key[5])
    speaker.tell(told(8), 10.0)
    [send] = speaker.stop()
    [one] = parse(send.datagram).records
    assert one.details == ConnectionDetails(mark=8)
