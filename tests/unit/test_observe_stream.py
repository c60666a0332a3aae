from typing import cast

from lvsha.datapath import state_machines
from lvsha.model import ConnectionDetails, ConnectionRecord, ForwardMethod, connection_key
from lvsha.observe import stream as stream_module
from lvsha.observe.stream import SyncStream
from lvsha.sync.ipvs.messages import Message, emit

EAST, WEST = bytes((10, 2, 0, 1)), bytes((10, 2, 0, 2))
VIRTUAL = bytes((192, 0, 2, 61))
ESTABLISHED, FIN_WAIT, CLOSE = 1, 4, 6


def record(number: int, state: int = ESTABLISHED, server: int = 1) -> ConnectionRecord:
    key = connection_key(6, bytes((10, 9, *number.to_bytes(2))), 40_000, VIRTUAL, 80)
    server_address = bytes((10, 1, 0, server))
    return ConnectionRecord(key, server_address, 8080, ForwardMethod.NAT, state, 0, 900.0)


class Ear:
    """A stream that hears messages, one a second."""

    def __init__(self) -> None:
        self.stream = SyncStream(
            {6: state_machines.tcp(), 17: state_machines.udp(), 132: state_machines.sctp()}
        )
        self.now = 100.0

    def hear(
        self, *records: ConnectionRecord, source: bytes = EAST, sync_id: int = 5, version: int = 1
    ) -> None:
        self.now += 1.0
        datagram = emit(Message(version, sync_id, records))
        self.stream.receive(datagram, source, 8848, self.now)

    @property
    def status(self) -> dict[str, object]:
        return self.stream.status(self.now)

    def sender(self) -> dict[str, object]:
        [sender] = cast("list[dict[str, object]]", self.status["senders"])
        return sender

    def findings(self) -> str:
        return "\n".join(self.stream.findings(self.now))


def test_connections_are_known_by_state_and_service() -> None:
    ear = Ear()
    template = record(9)._replace(
        key=b"\x84" + record(9).key[1:-4] + b"\0\0" + record(9).key[-2:] + b"call",
        flags=0x1000,
        details=ConnectionDetails(engine="sip"),
    )
    of_mark = record(9)._replace(
        key=b"\x84\0" + record(9).key[2:6] + bytes((0, 0, 0, 8, 0, 0, 0, 0)), flags=0x1000
    )
    ear.hear(record(1), record(2, FIN_WAIT), template, of_mark)
    assert ear.status["connections"] == 4
    assert ear.status["states"] == {
        "TCP ESTABLISHED": 1,
        "TCP FIN_WAIT": 1,
        "template ASSURED": 2,
    }
    assert ear.status["services"] == {"TCP 192.0.2.61:80": 3, "mark 8": 1}


def test_a_connection_is_forgotten_when_its_time_is_over() -> None:
    ear = Ear()
    ear.hear(record(1), record(2, CLOSE)._replace(timeout=10.0))
    ear.now += 11.0
    assert ear.status["connections"] == 1
    # Version 0 tells no time-out: the state's counts.
    ear.hear(record(3, CLOSE), version=0)
    ear.now += 11.0
    ear.now += 900.0
    assert ear.status["states"] == {}


def test_rates_and_senders_are_told() -> None:
    ear = Ear()
    ear.hear(record(1), record(2))
    ear.hear(record(3), version=0)
    sender = ear.sender()
    assert (sender["address"], sender["sync_id"], sender["versions"]) == ("10.2.0.1", 5, [0, 1])
    assert (sender["datagrams"], sender["records"]) == (2, 3)
    ear.sender()
    ear.hear(*map(record, range(10)))
    ear.now += 1.0
    assert ear.sender()["records_per_second"] == 5.0


def test_records_that_repeat_and_connections_that_move_are_counted() -> None:
    ear = Ear()
    ear.hear(record(1), record(1), record(1, FIN_WAIT), record(1, FIN_WAIT, server=2))
    counters = ear.stream.counters
    assert (counters["records_repeated"], counters["connections_moved"]) == (1, 1)


def test_coverage_is_the_share_of_ends_that_were_told_before() -> None:
    ear = Ear()
    assert ear.stream.coverage() is None
    ear.hear(*map(record, range(3)))
    ear.hear(*(record(number, FIN_WAIT) for number in range(4)))
    ear.hear(*(record(number, CLOSE) for number in range(4)))
    assert ear.stream.coverage() == 0.75
    assert "1 connections ended that no backup was told of" in ear.findings()


def test_a_sender_that_falls_silent_is_a_finding() -> None:
    ear = Ear()
    for _ in range(5):
        ear.hear(record(1))
    assert ear.findings() == ""
    ear.now += 5.5
    assert "10.2.0.1, sync id 5, has been silent for 6 s" in ear.findings()


def test_two_masters_of_one_sync_id_are_a_finding() -> None:
    ear = Ear()
    ear.hear(record(1))
    ear.hear(record(1), source=WEST, sync_id=6)
    assert ear.findings() == ""
    ear.hear(record(1), source=WEST)
    assert "2 masters speak for sync id 5: 10.2.0.1, 10.2.0.2" in ear.findings()


def test_impossible_content_is_a_finding() -> None:
    ear = Ear()
    ear.hear(record(1, state=99), record(2))
    ear.stream.receive(b"nonsense", EAST, 8848, ear.now)
    assert "10.2.0.1, sync id 5: 1 times state unknown" in ear.findings()
    assert "1 datagrams were no messages" in ear.findings()
    assert ear.status["connections"] == 1


def test_memory_is_bounded() -> None:
    ear = Ear()
    stream_module_limit = stream_module.CONNECTIONS_MAX
    try:
        stream_module.CONNECTIONS_MAX = 100  # type: ignore[misc]  # a smaller one for the test
        ear.hear(*map(record, range(120)))
        assert ear.status["connections"] == 100
        assert ear.stream.counters["connections_not_followed"] == 20
    finally:
        stream_module.CONNECTIONS_MAX = stream_module_limit  # type: ignore[misc]
    for number in range(200):
        ear.hear(record(1), source=bytes((10, 3, 0, number)))
    assert len(cast("list[object]", ear.status["senders"])) == stream_module.SENDERS_MAX
    assert ear.stream.counters["senders_not_followed"] == 200 - stream_module.SENDERS_MAX + 1
