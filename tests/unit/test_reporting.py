"""When a connection is told to the backups."""

import pytest

from lvsha.datapath.connections import SLICE
from lvsha.datapath.registry import Reporting
from lvsha.model import (
    ConnectionChanged,
    ConnectionEnded,
    Protocol,
    connection_key,
    parse_address,
    virtual_of,
)
from lvsha.tally import Tally
from tests import packets
from tests.laboratory import C4, V4, V6, Laboratory
from tests.packets import ACK, FIN, PSH, RST, SYN

VIP = parse_address(V4)


def build(reporting: Reporting | None, *, udp: bool = False) -> Laboratory:
    laboratory = Laboratory(reporting=reporting)
    laboratory.server(laboratory.service(protocol=Protocol.UDP if udp else Protocol.TCP))
    return laboratory


def told(laboratory: Laboratory) -> list[str]:
    """The changes since the last time, as words."""
    words = []
    told = laboratory.director.registry.take_changes()
    assert set(told) <= {laboratory.tally.sync_id}
    for change in told.get(laboratory.tally.sync_id, ()):
        match change:
            case ConnectionChanged(record):
                words.append(f"state {record.state}")
            case ConnectionEnded(key):
                assert virtual_of(key) == (VIP, 80)
                words.append("ended")
    assert laboratory.mistallied() == []
    return words


def send(laboratory: Laboratory, *flags: int) -> list[str]:
    for each in flags:
        laboratory.send("client", packets.tcp(C4, 40000, V4, 80, each))
    return told(laboratory)


def tell_all(laboratory: Laboratory, addresses: list[bytes]) -> None:
    """Tell everything, however many pauses that takes."""
    for _ in laboratory.director.registry.tell_all(addresses):
        pass


def test_without_reporting_nothing_is_told() -> None:
    laboratory = build(None)
    assert send(laboratory, SYN, ACK, FIN | ACK) == []
    tell_all(laboratory, [VIP])
    assert not laboratory.director.registry.untold


def test_a_connection_is_told_once_it_is_established_and_not_before() -> None:
    laboratory = build(Reporting())
    assert send(laboratory, SYN) == []
    assert send(laboratory, ACK) == ["state 1"]
    assert send(laboratory, ACK | PSH, ACK) == []


def test_only_the_newest_word_about_a_connection_is_told() -> None:
    laboratory = build(Reporting())
    assert send(laboratory, SYN, ACK, FIN | ACK) == ["state 7"]
    assert send(laboratory, RST) == ["state 6"]


def test_a_connection_in_use_is_told_again_before_a_copy_could_end() -> None:
    laboratory = build(Reporting())
    send(laboratory, SYN, ACK)
    laboratory.sleep(224)
    assert send(laboratory, ACK) == []
    laboratory.sleep(1)
    assert send(laboratory, ACK) == ["state 1"]


def test_a_datagram_flow_is_told_with_its_first_datagram() -> None:
    laboratory = build(Reporting(), udp=True)
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    assert told(laboratory) == ["state 0"]
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    assert told(laboratory) == []
    laboratory.sleep(76)
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    assert told(laboratory) == ["state 0"]


def test_the_end_of_a_connection_is_told_if_the_connection_was() -> None:
    laboratory = build(Reporting())
    send(laboratory, SYN)
    laboratory.sleep(61)
    assert told(laboratory) == []
    send(laboratory, SYN, ACK)
    laboratory.sleep(901)
    assert told(laboratory) == ["ended"]


def test_a_connection_that_ended_and_began_anew_is_told_as_new() -> None:
    laboratory = build(Reporting())
    send(laboratory, SYN, ACK)
    assert send(laboratory, RST, SYN) == ["ended"]
    assert send(laboratory, RST, SYN, ACK) == ["state 1"]


def test_on_leaving_all_is_told_that_was_not_told_yet_half_open_ones_too() -> None:
    laboratory = build(Reporting())
    laboratory.director.registry.tallies[parse_address(V6)] = Tally(2)
    send(laboratory, SYN)
    tell_all(laboratory, [parse_address(V6)])
    assert told(laboratory) == []
    tell_all(laboratory, [VIP])
    assert told(laboratory) == ["state 3"]
    tell_all(laboratory, [VIP])
    assert told(laboratory) == []


def test_on_leaving_many_are_told_with_pauses() -> None:
    laboratory = build(Reporting())
    for port in range(1001, 3001):
        laboratory.send("client", packets.tcp(C4, port, V4, 80, SYN))
    telling = laboratory.director.registry.tell_all([VIP])
    next(telling)
    assert 0 < len(told(laboratory)) <= SLICE
    assert sum(len(told(laboratory)) for _ in telling) >= 2000 - SLICE


def test_a_connection_that_was_taken_over_is_told_with_its_first_packet() -> None:
    source = build(Reporting())
    send(source, SYN)
    laboratory = build(Reporting())
    tell_all(source, [VIP])
    send(source, ACK)
    key = connection_key(6, parse_address(C4), 40000, VIP, 80)
    laboratory.director.replication.apply(source.director.replication.lookup([key]), laboratory.now)
    assert not laboratory.director.registry.untold
    assert send(laboratory, ACK) == ["state 1"]


@pytest.mark.parametrize(
    ("threshold", "period", "packets_told"),
    [(3, 50, [3, 53, 103]), (3, 5, [3, 8, 13]), (4, 0, [4]), (0, 3, [3, 6, 9])],
)
def test_by_threshold_the_count_of_requests_decides(
    threshold: int, period: int, packets_told: list[int]
) -> None:
    laboratory = build(Reporting("threshold", threshold, period))
    found = [
        number
        for number in range(1, packets_told[-1] + 1)
        if send(laboratory, SYN if number == 1 else ACK)
    ]
    assert found == packets_told


def test_by_threshold_a_closing_state_is_told_at_once() -> None:
    laboratory = build(Reporting("threshold", 3, 50))
    assert send(laboratory, SYN, ACK) == []
    assert send(laboratory, FIN | ACK) == ["state 7"]
    assert send(laboratory, FIN | ACK) == []


def test_by_threshold_a_closing_state_that_comes_back_is_not_told_twice() -> None:
    laboratory = build(Reporting("threshold", 3, 50))
    assert send(laboratory, SYN, FIN | ACK) == ["state 5"]
    assert send(laboratory, RST) == ["state 6"]
    laboratory = build(Reporting("threshold", 49, 50))
    assert send(laboratory, SYN, ACK, FIN | ACK) == ["state 7"]
    assert send(laboratory, SYN, ACK) == []
    assert send(laboratory, FIN | ACK) == []
