"""When the backups are told of a connection, and what they are told."""

from dataclasses import replace
from math import inf

import pytest

from lvsha.datapath import telling
from lvsha.datapath.connections import SLICE, Connection
from lvsha.datapath.service_policy import (
    ESTABLISHED,
    NEVER,
    ServicePolicy,
    TellRule,
    TellWhen,
)
from lvsha.datapath.telling import DUE_BATCH, REFRESH_PART
from lvsha.model import (
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    Protocol,
    parse_address,
    virtual_of,
)
from tests import packets
from tests.laboratory import C4, NAT, S4, SYNC_ID, V4, Laboratory
from tests.packets import ACK, FIN, PSH, RST, SYN

VIP = parse_address(V4)
THRESHOLD = TellRule(TellWhen.THRESHOLD)
TEMPLATES = TellRule(TellWhen.TEMPLATES)
FIVE_PACKETS = TellRule(TellWhen.PACKETS, packets=5)
HALF_A_SECOND = TellRule(TellWhen.DELAY, delay=0.5)
ALL_RULES = [ESTABLISHED, THRESHOLD, FIVE_PACKETS, HALF_A_SECOND, TEMPLATES, NEVER]
UDP_SECONDS = 300.0


def build(
    rule: TellRule | None,
    *,
    udp: bool = False,
    persistence: int = 0,
    one_packet: bool = False,
    **settings: int | str,
) -> Laboratory:
    laboratory = Laboratory(reporting=rule)
    service = laboratory.service(
        protocol=Protocol.UDP if udp else Protocol.TCP,
        persistence=persistence,
        one_packet=one_packet,
    )
    laboratory.server(service)
    laboratory.set(**settings)
    return laboratory


def told(laboratory: Laboratory) -> list[str]:
    """The changes since the last time, as words."""
    words = []
    told = laboratory.director.registry.take_changes()
    assert set(told) <= {laboratory.tally.sync_id}
    for change in told.get(laboratory.tally.sync_id, ()):
        match change:
            case ConnectionChanged(record):
                what = "template" if record.is_template else "state"
                words.append(f"{what} {record.state}")
            case ConnectionEnded(key):
                assert virtual_of(key) == (VIP, 80)
                words.append("ended")
    assert laboratory.mistallied() == []
    assert laboratory.miscounted() == []
    return words


def send(laboratory: Laboratory, *flags: int, port: int = 40000) -> list[str]:
    for each in flags:
        laboratory.send("client", packets.tcp(C4, port, V4, 80, each))
    return told(laboratory)


def datagram(laboratory: Laboratory, port: int = 40000) -> list[str]:
    laboratory.send("client", packets.udp(C4, port, V4, 80))
    return told(laboratory)


def answer(laboratory: Laboratory, port: int = 40000) -> list[str]:
    laboratory.send("server", packets.udp(S4, 80, C4, port))
    return told(laboratory)


def sleep(laboratory: Laboratory, seconds: float) -> list[str]:
    """Let time pass, in steps as short as those between two turns of the housekeeping."""
    end = laboratory.now + seconds
    while laboratory.now < end:
        laboratory.sleep(min(0.1, end - laboratory.now))
    return told(laboratory)


def tell_all(laboratory: Laboratory, sync_id: int = SYNC_ID) -> list[str]:
    """Tell everything, however many pauses that takes."""
    for _ in laboratory.director.registry.tell_all({sync_id}):
        pass
    return told(laboratory)


def connection(laboratory: Laboratory) -> Connection:
    (one,) = (c for c in laboratory.director.registry.table.connections() if not c.is_template)
    return one


def apply(laboratory: Laboratory, record: ConnectionRecord) -> None:
    assert not laboratory.director.replication.apply([record], laboratory.now)
    assert told(laboratory) == []


# As soon as it is established


def test_without_a_rule_nothing_is_told() -> None:
    laboratory = build(None)
    assert send(laboratory, SYN, ACK, FIN | ACK) == []
    assert tell_all(laboratory) == []


def test_a_connection_is_told_once_it_is_established_and_not_before() -> None:
    laboratory = build(ESTABLISHED)
    assert send(laboratory, SYN) == []
    assert send(laboratory, ACK) == ["state 1"]
    assert send(laboratory, ACK | PSH, ACK) == []


def test_only_the_newest_word_about_a_connection_is_told() -> None:
    laboratory = build(ESTABLISHED)
    assert send(laboratory, SYN, ACK, FIN | ACK) == ["state 7"]
    assert send(laboratory, RST) == ["state 6"]


def test_a_connection_in_use_is_told_again_before_a_copy_could_end() -> None:
    laboratory = build(ESTABLISHED)
    send(laboratory, SYN, ACK)
    laboratory.sleep(224)
    assert send(laboratory, ACK) == []
    laboratory.sleep(1)
    assert send(laboratory, ACK) == ["state 1"]


def test_a_datagram_flow_is_told_with_its_first_datagram() -> None:
    laboratory = build(ESTABLISHED, udp=True)
    assert datagram(laboratory) == ["state 0"]
    assert datagram(laboratory) == []
    laboratory.sleep(76)
    assert datagram(laboratory) == ["state 0"]


@pytest.mark.parametrize("rule", [ESTABLISHED, FIVE_PACKETS, HALF_A_SECOND])
def test_a_copy_of_what_only_its_server_speaks_on_is_there_as_long_as_its_original(
    rule: TellRule,
) -> None:
    laboratory = build(rule, udp=True)
    for _ in range(5):
        datagram(laboratory)
    sleep(laboratory, 1)
    assert laboratory.tally.exposed == 0
    copy_ends = laboratory.now + UDP_SECONDS * (1 + REFRESH_PART)
    for _ in range(100):
        laboratory.sleep(20)
        if answer(laboratory):
            copy_ends = laboratory.now + UDP_SECONDS * (1 + REFRESH_PART)
        assert copy_ends > laboratory.now
    assert laboratory.tally.connections == 1


def test_the_end_of_a_connection_is_told_if_the_connection_was() -> None:
    laboratory = build(ESTABLISHED)
    send(laboratory, SYN)
    laboratory.sleep(61)
    assert told(laboratory) == []
    send(laboratory, SYN, ACK)
    laboratory.sleep(901)
    assert told(laboratory) == ["ended"]


def test_a_connection_that_ended_and_began_anew_is_told_as_new() -> None:
    laboratory = build(ESTABLISHED)
    send(laboratory, SYN, ACK)
    assert send(laboratory, RST, SYN) == ["ended"]
    assert send(laboratory, RST, SYN, ACK) == ["state 1"]


# Templates


def test_a_template_is_told_with_the_first_of_its_connections_and_before_it() -> None:
    laboratory = build(ESTABLISHED, persistence=600)
    assert send(laboratory, SYN) == []
    assert send(laboratory, ACK) == ["template 1", "state 1"]
    assert send(laboratory, SYN, ACK, port=40001) == ["state 1"]


def test_a_template_is_told_though_its_connections_are_not_synced() -> None:
    laboratory = build(ESTABLISHED, persistence=600)
    send(laboratory, SYN)
    laboratory.director.registry.tallies.clear()
    for flags in (SYN, ACK):
        laboratory.send("client", packets.tcp(C4, 40001, V4, 80, flags))
    (change,) = laboratory.director.registry.take_changes()[SYNC_ID]
    assert isinstance(change, ConnectionChanged)
    assert change.record.is_template


def test_a_template_of_datagrams_is_told_again_when_it_becomes_assured() -> None:
    laboratory = build(ESTABLISHED, udp=True, persistence=600)
    assert datagram(laboratory) == ["template 0", "state 0"]
    assert answer(laboratory) == ["template 1"]
    assert answer(laboratory) == []


def test_a_template_is_told_again_when_another_connection_joins_before_a_copy_could_end() -> None:
    laboratory = build(ESTABLISHED, persistence=600)
    send(laboratory, SYN, ACK)
    laboratory.sleep(149)
    assert send(laboratory, SYN, port=40001) == []
    laboratory.sleep(1)
    assert send(laboratory, SYN, port=40002) == ["template 1"]


def test_a_template_is_told_again_when_it_lives_on_for_the_sake_of_its_connections() -> None:
    laboratory = build(ESTABLISHED, persistence=100)
    send(laboratory, SYN, ACK)
    laboratory.sleep(99)
    assert told(laboratory) == []
    laboratory.sleep(3)
    (change,) = laboratory.director.registry.take_changes()[laboratory.tally.sync_id]
    assert isinstance(change, ConnectionChanged)
    assert (change.record.is_template, change.record.timeout) == (True, 60.0)


def test_a_template_whose_time_has_moved_on_is_told_again_when_the_wheel_finds_it_alive() -> None:
    laboratory = build(ESTABLISHED, udp=True, persistence=600)
    datagram(laboratory)
    answer(laboratory)
    assert sleep(laboratory, 140) == []
    assert datagram(laboratory, 40001) == ["state 0"]
    told_at = [second for second in range(141, 612) if "template 1" in sleep(laboratory, 1)]
    assert told_at == [601]


def test_a_template_that_is_found_no_more_is_told_no_more() -> None:
    laboratory = build(ESTABLISHED, persistence=600)
    send(laboratory, SYN, ACK)
    (template,) = (c for c in laboratory.director.registry.table.connections() if c.is_template)
    laboratory.director.registry.poison(template)
    assert told(laboratory) == ["ended"]
    laboratory.sleep(300)
    assert send(laboratory, ACK) == ["state 1"]


def test_a_template_of_single_packets_is_told_though_they_are_not() -> None:
    laboratory = build(ESTABLISHED, udp=True, persistence=600, one_packet=True)
    assert datagram(laboratory) == ["template 0"]
    assert datagram(laboratory) == []
    laboratory.sleep(150)
    assert datagram(laboratory) == ["template 0"]


def test_an_ftp_control_connection_is_told_before_its_data() -> None:
    laboratory = build(ESTABLISHED)
    registry = laboratory.director.registry
    send(laboratory, SYN)
    control = connection(laboratory)
    key = control.key[:-4] + (40001).to_bytes(2) + control.key[-2:]
    data = registry.open(key, control.binding, laboratory.now, parent=control)
    registry.enter(data, 1, laboratory.now)
    assert told(laboratory) == ["state 3", "state 1"]


# After so many packets


def test_it_is_told_with_the_packet_that_was_asked_for_and_then_at_each_change() -> None:
    laboratory = build(FIVE_PACKETS)
    assert [send(laboratory, flags) for flags in (SYN, ACK, ACK, ACK)] == [[]] * 4
    assert send(laboratory, ACK) == ["state 1"]
    assert send(laboratory, ACK) == []
    laboratory.sleep(226)
    assert send(laboratory, ACK) == ["state 1"]
    assert send(laboratory, FIN | ACK) == ["state 7"]


def test_it_must_be_established_for_that() -> None:
    laboratory = build(FIVE_PACKETS)
    assert send(laboratory, *[SYN] * 7) == []
    assert send(laboratory, ACK) == ["state 1"]
    laboratory = build(FIVE_PACKETS)
    assert send(laboratory, SYN, ACK, FIN | ACK, *[ACK] * 5) == []
    assert connection(laboratory).report_at == inf
    sleep(laboratory, 61)
    assert laboratory.tally.connections == 0


def test_the_packets_of_a_flow_of_datagrams_are_counted_from_its_first() -> None:
    laboratory = build(FIVE_PACKETS, udp=True)
    assert [datagram(laboratory) for _ in range(6)] == [*[[]] * 4, ["state 0"], []]


# After so much time


def test_an_idle_connection_is_told_when_its_time_has_come() -> None:
    laboratory = build(HALF_A_SECOND)
    assert send(laboratory, SYN, ACK) == []
    assert sleep(laboratory, 0.45) == []
    assert sleep(laboratory, 0.15) == ["state 1"]
    assert sleep(laboratory, 60) == []


def test_a_packet_after_that_time_does_not_wait_for_the_housekeeping() -> None:
    laboratory = build(HALF_A_SECOND)
    send(laboratory, SYN, ACK)
    laboratory.now += 0.4
    assert send(laboratory, ACK) == []
    laboratory.now += 0.2
    assert send(laboratory, ACK) == ["state 1"]
    assert sleep(laboratory, 1) == []


def test_what_ends_or_closes_before_is_never_told() -> None:
    laboratory = build(HALF_A_SECOND)
    send(laboratory, SYN, ACK)
    laboratory.director.registry.end(connection(laboratory))
    send(laboratory, SYN, ACK, FIN | ACK, port=40001)
    assert sleep(laboratory, 1) == []
    assert send(laboratory, ACK, port=40001) == []
    laboratory = build(HALF_A_SECOND)
    send(laboratory, SYN, ACK)
    laboratory.director.registry.listen(connection(laboratory), laboratory.now)
    assert sleep(laboratory, 1) == []


def test_its_time_begins_anew_when_it_is_established_anew() -> None:
    laboratory = build(HALF_A_SECOND)
    send(laboratory, SYN, ACK)
    laboratory.sleep(0.4)
    send(laboratory, FIN | ACK, SYN, ACK)
    assert sleep(laboratory, 0.3) == []
    assert sleep(laboratory, 0.3) == ["state 1"]


def test_a_flow_of_datagrams_waits_from_its_first() -> None:
    laboratory = build(HALF_A_SECOND, udp=True)
    assert datagram(laboratory) == []
    assert sleep(laboratory, 0.6) == ["state 0"]


def test_those_with_different_times_do_not_wait_for_each_other() -> None:
    laboratory = build(None)
    for number, delay in enumerate((5.0, 0.5, 1.0)):
        policy = ServicePolicy(TellRule(TellWhen.DELAY, delay=delay))
        laboratory.server(laboratory.service(port=81 + number, policy=policy))
        for flags in (SYN, ACK):
            laboratory.send("client", packets.tcp(C4, 40000, V4, 81 + number, flags))
    assert [len(sleep(laboratory, 1)) for _ in range(8)] == [2, 0, 0, 0, 1, 0, 0, 0]


def test_of_many_that_wait_some_are_told_at_a_time() -> None:
    laboratory = build(HALF_A_SECOND, udp=True)
    for port in range(1001, 1001 + DUE_BATCH + 49):
        laboratory.send("client", packets.udp(C4, port, V4, 80))
    laboratory.now += 1
    assert laboratory.director.registry.teller.tell_due(laboratory.now)
    assert len(told(laboratory)) == DUE_BATCH
    assert not laboratory.director.registry.teller.tell_due(laboratory.now)
    assert len(told(laboratory)) == 49


def test_when_too_many_wait_a_further_one_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "DELAYED_MAX", 2)
    laboratory = build(HALF_A_SECOND)
    for port, found in ((1, []), (2, []), (3, ["state 1"])):
        assert send(laboratory, SYN, ACK, port=port) == found
    assert sleep(laboratory, 0.6) == ["state 1", "state 1"]
    assert send(laboratory, SYN, ACK, port=4) == []


# Templates only, or nothing


def test_of_templates_only_connections_are_not_told() -> None:
    laboratory = build(TEMPLATES, persistence=600)
    assert send(laboratory, SYN) == []
    assert send(laboratory, ACK, FIN | ACK) == ["template 1"]
    assert send(laboratory, SYN, ACK, port=40001) == []
    assert laboratory.tally.exposed == 1
    laboratory.sleep(150)
    assert send(laboratory, SYN, port=40002) == ["template 1"]
    assert tell_all(laboratory) == []


def test_of_templates_only_those_of_datagrams_too_are_told_with_the_first() -> None:
    laboratory = build(TEMPLATES, udp=True, persistence=600)
    assert datagram(laboratory) == ["template 0"]
    assert datagram(laboratory) == []
    assert answer(laboratory) == ["template 1"]


@pytest.mark.parametrize("udp", [False, True])
def test_what_is_never_told_is_not_told_and_counts_as_at_risk(udp: bool) -> None:
    laboratory = build(NEVER, udp=udp, persistence=600)
    laboratory.director.registry.in_transition.add(VIP)
    if udp:
        assert datagram(laboratory) == []
        assert answer(laboratory) == []
    else:
        assert send(laboratory, SYN, ACK, ACK) == []
    assert tell_all(laboratory) == []
    assert laboratory.tally.exposed == 1
    (service,) = laboratory.director.services
    assert service.at_risk == 1


# A service of its own


def test_each_service_has_its_own_rule_and_an_edit_leaves_it() -> None:
    laboratory = build(ESTABLISHED)
    rare = laboratory.service(port=81, policy=ServicePolicy(FIVE_PACKETS))
    laboratory.server(rare)
    laboratory.director.services.edit(rare.identity, replace(rare.options, scheduler="wlc"))
    for port in (80, 81):
        for flags in (SYN, ACK):
            laboratory.send("client", packets.tcp(C4, 40000, V4, port, flags))
    assert told(laboratory) == ["state 1"]
    assert [s.at_risk for s in laboratory.director.services] == [0, 1]


# While an address moves, and when it goes


@pytest.mark.parametrize("rule", [ESTABLISHED, THRESHOLD, FIVE_PACKETS, HALF_A_SECOND])
def test_while_an_address_moves_its_connections_are_told_from_the_first_packet_on(
    rule: TellRule,
) -> None:
    laboratory = build(rule, persistence=600)
    laboratory.director.registry.in_transition.add(VIP)
    assert send(laboratory, SYN) == ["template 0", "state 3"]
    assert sorted(send(laboratory, ACK)) == ["state 1", "template 1"]
    laboratory = build(rule, udp=True)
    laboratory.director.registry.in_transition.add(VIP)
    assert datagram(laboratory) == ["state 0"]


@pytest.mark.parametrize("rule", [ESTABLISHED, THRESHOLD, FIVE_PACKETS, HALF_A_SECOND])
def test_on_leaving_all_is_told_that_was_not_told_yet_half_open_ones_too(rule: TellRule) -> None:
    laboratory = build(rule)
    send(laboratory, SYN)
    assert tell_all(laboratory, SYNC_ID + 1) == []
    assert tell_all(laboratory) == ["state 3"]
    assert tell_all(laboratory) == []


def test_on_leaving_a_template_is_told_before_its_connections() -> None:
    laboratory = build(FIVE_PACKETS, persistence=600)
    for port in (0x9C00, 0x9C80, 0x9CFF):  # before and behind the template in the table
        send(laboratory, SYN, port=port)
    assert tell_all(laboratory) == ["template 0", *["state 3"] * 3]


def test_on_leaving_many_are_told_with_pauses() -> None:
    laboratory = build(ESTABLISHED)
    for port in range(1001, 3001):
        laboratory.send("client", packets.tcp(C4, port, V4, 80, SYN))
    telling = laboratory.director.registry.tell_all({SYNC_ID})
    next(telling)
    assert 0 < len(told(laboratory)) <= SLICE
    assert sum(len(told(laboratory)) for _ in telling) >= 2000 - SLICE


# Copies


def a_copy(laboratory: Laboratory, *, udp: bool = False) -> None:
    protocol, state = (Protocol.UDP, 0) if udp else (Protocol.TCP, 1)
    apply(
        laboratory,
        ConnectionRecord.between(
            protocol,
            parse_address(C4),
            40000,
            VIP,
            80,
            parse_address(S4),
            80,
            NAT,
            state,
            0,
            900.0,
        ),
    )


@pytest.mark.parametrize("rule", [ESTABLISHED, FIVE_PACKETS, HALF_A_SECOND])
@pytest.mark.parametrize("udp", [False, True])
def test_a_connection_that_was_taken_over_is_told_with_its_first_packet(
    rule: TellRule, udp: bool
) -> None:
    laboratory = build(rule, udp=udp)
    a_copy(laboratory, udp=udp)
    assert sleep(laboratory, 1) == []
    assert (datagram(laboratory) if udp else send(laboratory, ACK)) == [f"state {1 - udp}"]


def test_a_copy_does_not_take_the_place_of_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "DELAYED_MAX", 1)
    laboratory = build(HALF_A_SECOND, udp=True)
    a_copy(laboratory, udp=True)
    assert datagram(laboratory, 40001) == []
    assert datagram(laboratory, 40002) == ["state 0"]


def test_by_threshold_the_count_of_one_that_was_taken_over_goes_on_behind_the_threshold() -> None:
    laboratory = build(THRESHOLD)
    a_copy(laboratory)
    assert connection(laboratory).packets == 3
    found = [number for number in range(1, 60) if send(laboratory, ACK)]
    assert found == [50]


# As the kernel does


@pytest.mark.parametrize(
    ("threshold", "packets_told"),
    [("3 50", [3, 53, 103]), ("3 5", [3, 8, 13]), ("4 0", [4]), ("0 3", [3, 6, 9])],
)
def test_by_threshold_the_count_of_requests_decides(
    threshold: str, packets_told: list[int]
) -> None:
    laboratory = build(THRESHOLD, sync_threshold=threshold)
    found = [
        number
        for number in range(1, packets_told[-1] + 1)
        if send(laboratory, SYN if number == 1 else ACK)
    ]
    assert found == packets_told


def test_by_threshold_replies_do_not_have_a_connection_told() -> None:
    laboratory = build(THRESHOLD, udp=True)
    assert [datagram(laboratory) for _ in range(3)] == [[], [], ["state 0"]]
    for _ in range(40):
        laboratory.sleep(20)
        assert answer(laboratory) == []
    assert laboratory.tally.connections == 1
    assert [number for number in range(4, 60) if datagram(laboratory)] == [53]


def test_by_threshold_a_closing_state_is_told_at_once() -> None:
    laboratory = build(THRESHOLD)
    assert send(laboratory, SYN, ACK) == []
    assert send(laboratory, FIN | ACK) == ["state 7"]
    assert send(laboratory, FIN | ACK) == []


def test_by_threshold_a_state_that_a_reply_brings_is_told_with_the_next_request() -> None:
    laboratory = build(THRESHOLD)
    send(laboratory, SYN, ACK, ACK)
    laboratory.send("server", packets.tcp(S4, 80, C4, 40000, FIN | ACK))
    assert told(laboratory) == []
    assert send(laboratory, ACK) == ["state 4"]


def test_by_threshold_a_closing_state_that_comes_back_is_not_told_twice() -> None:
    laboratory = build(THRESHOLD)
    assert send(laboratory, SYN, FIN | ACK) == ["state 5"]
    assert send(laboratory, RST) == ["state 6"]
    laboratory = build(THRESHOLD, sync_threshold="49 50")
    assert send(laboratory, SYN, ACK, FIN | ACK) == ["state 7"]
    assert send(laboratory, SYN, ACK) == []
    assert send(laboratory, FIN | ACK) == []


def test_by_threshold_settings_take_effect_at_once() -> None:
    laboratory = build(THRESHOLD)
    assert send(laboratory, SYN, ACK, ACK) == ["state 1"]
    laboratory.set(sync_threshold="0 1")
    assert [send(laboratory, ACK) for _ in range(2)] == [["state 1"]] * 2
    laboratory.set(sync_refresh_period=60)
    assert [send(laboratory, ACK) for _ in range(2)] == [[]] * 2
    laboratory.sleep(60)
    assert send(laboratory, ACK) == ["state 1"]


def test_by_threshold_a_template_is_offered_with_each_packet_of_its_connections() -> None:
    laboratory = build(THRESHOLD, persistence=600)
    assert [send(laboratory, flags) for flags in (SYN, ACK)] == [["template 0"], ["template 1"]]
    assert send(laboratory, ACK) == ["template 1", "state 1"]
    assert connection(laboratory).parent is not None
    laboratory = build(THRESHOLD, persistence=600, sync_threshold="4 0")
    found = [send(laboratory, (SYN, ACK)[n > 1], port=40000 + n % 2) for n in range(8)]
    # Each connection is told with its fourth packet, the template with that of both.
    assert found == [[], [], [], ["template 1"], [], [], ["state 1"], ["state 1"]]


def test_by_threshold_and_persist_mode_only_templates_are_told() -> None:
    laboratory = build(THRESHOLD, persistence=600, sync_persist_mode=1)
    assert send(laboratory, SYN, ACK, ACK, FIN | ACK) == ["template 1"]
    laboratory.set(sync_persist_mode=0)
    assert send(laboratory, RST) == ["template 1", "state 6"]


def test_by_threshold_the_packets_of_one_packet_connections_count_for_their_template() -> None:
    laboratory = build(THRESHOLD, udp=True, persistence=600, one_packet=True, sync_threshold="3 0")
    assert [datagram(laboratory) for _ in range(4)] == [[], [], ["template 0"], []]


def test_by_threshold_a_parent_whose_time_is_over_is_offered_when_it_lives_on() -> None:
    laboratory = build(THRESHOLD, persistence=100)
    send(laboratory, SYN, ACK)
    laboratory.sleep(102)
    assert told(laboratory) == ["template 1"]


# What is at risk


@pytest.mark.parametrize("rule", ALL_RULES)
@pytest.mark.parametrize("udp", [False, True])
def test_what_is_at_risk_is_what_is_established_and_was_not_told(rule: TellRule, udp: bool) -> None:
    laboratory = build(rule, udp=udp)
    (service,) = laboratory.director.services

    def speak() -> None:
        if udp:
            datagram(laboratory)
        else:
            send(laboratory, SYN if not laboratory.tally.connections else ACK)

    exposed = []
    for _ in range(6):
        speak()
        assert service.at_risk == laboratory.tally.exposed
        exposed.append(laboratory.tally.exposed)
    sleep(laboratory, 1)
    exposed.append(laboratory.tally.exposed)
    established = [1] * 7 if udp else [0] + [1] * 6
    safe_from = {ESTABLISHED: 0, THRESHOLD: 2, FIVE_PACKETS: 4, HALF_A_SECOND: 6}.get(rule, 7)
    assert exposed == [*established[:safe_from], *[0] * (7 - safe_from)]
