"""The three modes of the defence, and who must go."""

import pytest

from lvsha.datapath.connections import Connection
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import VirtualService
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import Protocol
from lvsha.settings import Settings
from tests import packets
from tests.laboratory import C4, S4, V4, Laboratory
from tests.packets import ACK, SYN

THRESHOLD = Settings().amemthresh


def make(protocol: Protocol = Protocol.TCP, **settings: int) -> tuple[Laboratory, VirtualService]:
    laboratory = Laboratory()
    service = laboratory.service(protocol=protocol)
    laboratory.server(service)
    laboratory.set(**settings)
    return laboratory, service


def opened(laboratory: Laboratory, count: int) -> list[bool]:
    """Which of so many new connections were opened."""
    first = 1000 + laboratory.director.services.counted().connections * 7
    return [
        bool(laboratory.send("client", packets.tcp(C4, first + number, V4, 80, SYN)))
        for number in range(count)
    ]


def all_of(laboratory: Laboratory) -> list[Connection]:
    return list(laboratory.director.registry.table.connections())


# Modes


@pytest.mark.parametrize("name", ["drop_entry", "drop_packet", "secure_tcp"])
def test_an_automatic_mode_follows_the_memory_and_others_do_not(name: str) -> None:
    laboratory, _ = make()

    def mode() -> int:
        value = getattr(laboratory.director.settings, name)
        assert isinstance(value, int)
        return value

    laboratory.set(**{name: 1})
    assert mode() == 1
    laboratory.director.learn_memory(THRESHOLD - 1)
    assert mode() == 1
    laboratory.sleep(1)
    assert mode() == 2
    laboratory.director.learn_memory(THRESHOLD)
    laboratory.sleep(1)
    assert mode() == 1
    for fixed in (0, 3):
        laboratory.director.learn_memory(0)
        laboratory.set(**{name: fixed})
        laboratory.sleep(1)
        assert mode() == fixed


def test_a_mode_that_is_set_takes_effect_at_once() -> None:
    laboratory, _ = make()
    laboratory.director.learn_memory(0)
    laboratory.set(secure_tcp=1)
    assert laboratory.director.settings.secure_tcp == 2
    laboratory.set(secure_tcp=2, amemthresh=0)
    assert laboratory.director.settings.secure_tcp == 1


def test_without_word_about_the_memory_it_is_not_low() -> None:
    laboratory, _ = make(drop_packet=2, drop_entry=2, secure_tcp=2)
    settings = laboratory.director.settings
    assert (settings.drop_packet, settings.drop_entry, settings.secure_tcp) == (1, 1, 1)
    assert all(opened(laboratory, 20))


# drop_packet


def test_every_so_many_new_connections_one_is_refused() -> None:
    laboratory, _ = make(drop_packet=3, am_droprate=5)
    drawn = opened(laboratory, 21)
    # The counter begins at its end, as the kernel's does.
    assert [number for number, done in enumerate(drawn) if not done] == [0, 5, 10, 15, 20]
    assert laboratory.drops() == {Reason.DEFENCE: 5}


def test_only_what_would_open_a_connection_is_refused() -> None:
    laboratory, _ = make()
    assert opened(laboratory, 1) == [True]
    laboratory.set(drop_packet=3, am_droprate=1)
    assert opened(laboratory, 3) == [False] * 3
    for _ in range(20):
        assert len(laboratory.send("client", packets.tcp(C4, 1000, V4, 80, ACK))) == 1
    laboratory.send("client", packets.tcp(C4, 2, V4, 81, SYN))
    laboratory.send("client", packets.tcp(C4, 2, V4, 80, ACK))
    assert laboratory.drops() == {Reason.DEFENCE: 3, Reason.RESET: 1}


@pytest.mark.parametrize(("free", "rate"), [(0, 1), (512, 2), (768, 4), (1020, 256)])
def test_the_rate_of_the_automatic_mode_is_the_kernels(free: int, rate: int) -> None:
    laboratory, _ = make(drop_packet=1)
    laboratory.director.learn_memory(free)
    laboratory.sleep(1)
    drawn = opened(laboratory, 2 * rate)
    assert [number for number, done in enumerate(drawn) if not done] == [rate - 1, 2 * rate - 1]


# secure_tcp


def test_in_the_secure_table_the_clients_word_alone_establishes_nothing() -> None:
    laboratory, _ = make(secure_tcp=3)
    for flags in (SYN, ACK):
        laboratory.send("client", packets.tcp(C4, 1, V4, 80, flags))
    (connection,) = all_of(laboratory)
    assert connection.state == TcpState.SYN_RECV
    laboratory.send("server", packets.tcp(S4, 80, C4, 1, SYN | ACK))
    laboratory.send("client", packets.tcp(C4, 1, V4, 80, ACK))
    assert connection.state == TcpState.SYNACK
    laboratory.send("server", packets.tcp(S4, 80, C4, 1, ACK))
    assert connection.state == TcpState.ESTABLISHED
    laboratory.set(secure_tcp=0)
    for flags in (SYN, ACK):
        laboratory.send("client", packets.tcp(C4, 2, V4, 80, flags))
    assert {each.state for each in all_of(laboratory)} == {TcpState.ESTABLISHED}


# drop_entry


def fill(laboratory: Laboratory, *flags: int, count: int = 400) -> None:
    for number in range(count):
        for each in flags:
            laboratory.send("client", packets.tcp(C4, 1000 + number, V4, 80, each))


def left_after(laboratory: Laboratory, seconds: int) -> int:
    for _ in range(seconds):
        laboratory.sleep(1)
    assert laboratory.miscounted() == []
    return len(laboratory.director.registry.table)


def test_nothing_is_dropped_while_the_mode_is_off() -> None:
    laboratory, _ = make()
    fill(laboratory, SYN)
    assert left_after(laboratory, 50) == 400


def test_half_open_connections_are_dropped_a_share_each_second() -> None:
    laboratory, _ = make(drop_entry=3)
    fill(laboratory, SYN)
    after_one = left_after(laboratory, 1)
    assert 360 <= after_one < 400
    assert 400 * (31 / 32) ** 50 * 0.5 < left_after(laboratory, 49) < 400 * (31 / 32) ** 50 * 2


def test_connections_in_other_states_than_half_open_or_idle_stay() -> None:
    laboratory, _ = make(drop_entry=3)
    fill(laboratory, SYN, ACK)
    assert left_after(laboratory, 55) == 400


def test_idle_established_connections_are_dropped_the_rarer_the_more_they_were_used() -> None:
    counts = {}
    for used in (1, 4, 8, 9):
        laboratory, _ = make()
        fill(laboratory, SYN, *[ACK] * (used - 1))
        for connection in all_of(laboratory):
            laboratory.director.registry.become(connection, TcpState.ESTABLISHED, laboratory.now)
            connection.timeout = 900.0
            connection.expires = laboratory.now + 900
        laboratory.sleep(62)
        laboratory.set(drop_entry=3)
        counts[used] = 400 - left_after(laboratory, 32)
    assert counts[1] > counts[4] > counts[8] > counts[9] == 0


def test_datagram_flows_are_dropped_when_they_are_idle() -> None:
    laboratory, _ = make(Protocol.UDP, drop_entry=3)
    for number in range(400):
        laboratory.send("client", packets.udp(C4, 1000 + number, V4, 80))
    assert left_after(laboratory, 55) == 400
    assert left_after(laboratory, 60) < 250


def test_half_open_sctp_associations_are_dropped() -> None:
    laboratory, _ = make(Protocol.SCTP, drop_entry=3)
    for number in range(400):
        for chunk in (1, 1):
            laboratory.send("client", packets.sctp(C4, 1000 + number, V4, 80, chunk))
    assert left_after(laboratory, 30) < 250


def test_a_parent_stays_as_long_as_it_has_children_and_an_assured_template_for_ever() -> None:
    laboratory = Laboratory()
    service = laboratory.service(persistence=3600)
    laboratory.server(service)
    for number in range(50):
        client = f"198.51.100.{number + 1}"
        for flags in (SYN, ACK):
            laboratory.send("client", packets.tcp(client, 1, V4, 80, flags))
    laboratory.set(drop_entry=3)
    assert left_after(laboratory, 59) == 100
    for number in range(50):
        laboratory.send("client", packets.tcp(f"198.51.100.{number + 1}", 1, V4, 80, packets.RST))
    laboratory.sleep(15)
    assert [each.is_template for each in all_of(laboratory)] == [True] * 50
    assert left_after(laboratory, 300) == 50


def test_the_template_of_half_open_connections_goes_with_the_last_of_them() -> None:
    laboratory = Laboratory()
    service = laboratory.service(persistence=3600)
    laboratory.server(service)
    for number in range(200):
        laboratory.send("client", packets.tcp(f"198.51.100.{number + 1}", 1, V4, 80, SYN))
    laboratory.set(drop_entry=3)
    before = left_after(laboratory, 20)
    assert before < 300
    kinds = [each.is_template for each in all_of(laboratory)]
    assert kinds.count(True) == kinds.count(False)


# Chores


def test_no_removal_is_forgotten_though_chores_pile_up() -> None:
    laboratory, service = make(expire_nodest_conn=1, drop_entry=3)
    fill(laboratory, SYN, ACK, count=20)
    director = laboratory.director
    # One step for each second: the chores come faster than they are done.
    for _ in range(30):
        laboratory.now += 1
        director.housekeep(laboratory.now)
    laboratory.remove(service.servers[0])
    for _ in range(30):
        laboratory.now += 1
        director.housekeep(laboratory.now)
    laboratory.sleep(1)
    laboratory.sleep(1)
    assert all_of(laboratory) == []


def test_housekeeping_says_when_it_has_nothing_more_to_do() -> None:
    laboratory, _ = make(drop_entry=3)
    director = laboratory.director
    calls = 0
    while director.housekeep(laboratory.now):
        calls += 1
        assert calls < 1000
    assert calls > 0
    assert not director.housekeep(laboratory.now + 0.5)
