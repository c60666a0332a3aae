"""The commands of ipvsadm, with the kernel's error numbers, and how a service is found."""

import errno
import random
from dataclasses import replace

import pytest

from lvsha.datapath.reasons import Reason
from lvsha.datapath.service_table import (
    SWEEP_SLICE,
    TRASH_INTERVAL,
    TRASH_TIME,
    ServiceTable,
    describe,
)
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    Statistics,
    VirtualService,
)
from lvsha.datapath.tunnels import Tunnel, TunnelType
from lvsha.errors import AdministrationError
from lvsha.model import Protocol, connection_key, parse_address
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, TUN, V4, V6, Laboratory
from tests.packets import ACK, SYN

WEB = ServiceIdentity(4, Protocol.TCP, parse_address(V4), 80)
OTHER = ServiceIdentity(4, Protocol.TCP, parse_address(V4), 81)
WEB6 = ServiceIdentity(6, Protocol.TCP, parse_address(V6), 80)
RR = ServiceOptions(scheduler="rr")
A, B = parse_address(S4), parse_address("10.1.0.12")
FAR = ServerOptions(DR)


def make(*identities: ServiceIdentity) -> ServiceTable:
    table = ServiceTable(random.Random(1))
    for identity in identities:
        table.add(identity, RR)
    return table


def refused(code: int) -> "pytest.RaisesExc[AdministrationError]":
    return pytest.raises(AdministrationError, check=lambda error: error.code == code)


def key(
    port: int, *, protocol: Protocol = Protocol.TCP, client: str = C4, virtual: str = V4
) -> bytes:
    return connection_key(protocol, parse_address(client), 40000, parse_address(virtual), port)


def _sweep(table: ServiceTable, now: float) -> None:
    """Look through all of the trash."""
    for _ in table.sweep(now):
        pass


def addresses(service: VirtualService) -> list[str]:
    return [str(server) for server in service.servers]


# Services


def test_a_service_that_is_there_is_not_added_again() -> None:
    table = make(WEB)
    with refused(errno.EEXIST):
        table.add(WEB, RR)
    with refused(errno.EEXIST):
        table.add(WEB, ServiceOptions(scheduler="no such"))
    assert len(table) == 1


def test_services_differ_by_family_protocol_address_port_and_mark() -> None:
    make(
        WEB,
        WEB6,
        OTHER,
        replace(WEB, protocol=Protocol.UDP),
        replace(WEB, protocol=Protocol.SCTP),
        replace(WEB, address=parse_address("192.0.2.22")),
        replace(WEB, port=0),
        ServiceIdentity(4, Protocol.TCP, mark=7),
        ServiceIdentity(6, Protocol.TCP, mark=7),
        ServiceIdentity(4, Protocol.TCP, mark=8),
    )


def test_a_mark_alone_identifies_its_service() -> None:
    table = make(ServiceIdentity(4, Protocol.TCP, mark=7))
    with refused(errno.EEXIST):
        table.add(ServiceIdentity(4, Protocol.UDP, parse_address(V4), 80, mark=7), RR)


@pytest.mark.parametrize("command", ["add", "edit"])
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (ServiceOptions(scheduler="best"), errno.ENOENT),
        (ServiceOptions(scheduler=""), errno.ENOENT),
        (ServiceOptions(engine="h323"), errno.ENOENT),
        (ServiceOptions(netmask=b"\xff" * 16), errno.EINVAL),
        (ServiceOptions(netmask=b"\xff" * 3), errno.EINVAL),
    ],
)
def test_options_that_cannot_be_are_refused_and_change_nothing(
    command: str, options: ServiceOptions, code: int
) -> None:
    table = make(WEB)
    identity = OTHER if command == "add" else WEB
    with refused(code):
        (table.add if command == "add" else table.edit)(identity, options)
    (service,) = table
    assert (service.identity, service.options) == (WEB, RR)
    assert service.scheduler is not None


def test_a_family_that_is_none_is_refused() -> None:
    with refused(errno.EAFNOSUPPORT):
        make(replace(WEB, family=5))


def test_a_service_may_have_no_scheduler_at_all() -> None:
    table = ServiceTable(random.Random(1))
    assert table.add(WEB, ServiceOptions(scheduler="none")).scheduler is None
    assert table.edit(WEB, RR).scheduler is not None
    assert table.edit(WEB, ServiceOptions(scheduler="none")).scheduler is None
    table.add_server(WEB, A, 80, FAR)


@pytest.mark.parametrize("identity", [OTHER, replace(WEB, protocol=Protocol.UDP), WEB6])
def test_commands_for_a_service_that_is_not_there_are_refused(identity: ServiceIdentity) -> None:
    table = make(WEB)
    with refused(errno.ESRCH):
        table.edit(identity, RR)
    with refused(errno.ESRCH):
        table.delete(identity)
    with refused(errno.ESRCH):
        table.zero(identity)
    with refused(errno.ESRCH):
        table.add_server(identity, A, 80, FAR)
    with refused(errno.ESRCH):
        table.edit_server(identity, A, 80, FAR)
    with refused(errno.ESRCH):
        table.delete_server(identity, A, 80)


def test_a_service_is_looked_up_for_a_command_without_falling_back_to_another() -> None:
    table = make(replace(WEB, port=0), replace(WEB, port=21))
    assert table.get(WEB) is None
    with refused(errno.ESRCH):
        table.delete(WEB)


def test_another_scheduler_begins_anew_and_the_same_one_goes_on() -> None:
    table = make(WEB)
    (service,) = table
    before = service.scheduler
    table.edit(WEB, replace(RR, persistence=10))
    assert service.scheduler is before
    table.edit(WEB, ServiceOptions(scheduler="wlc"))
    assert service.scheduler is not before
    assert service.options.persistence == 0


def test_flush_removes_everything() -> None:
    table = make(WEB, OTHER, WEB6)
    server = table.add_server(WEB, A, 80, FAR)
    table.flush()
    assert (len(table), list(table)) == (0, [])
    assert not server.available


def test_a_service_is_spoken_of_as_ipvsadm_does() -> None:
    assert describe(WEB) == f"TCP {V4}:80"
    assert describe(replace(WEB6, protocol=Protocol.SCTP)) == f"SCTP [{V6}]:80"
    assert describe(ServiceIdentity(4, Protocol.TCP, mark=7)) == "FWM 7"
    assert describe(ServiceIdentity(6, Protocol.TCP, mark=7)) == "FWM 7 IPv6"


# Servers


def test_a_server_that_is_there_is_not_added_again_but_one_at_another_port_is() -> None:
    table = make(WEB)
    table.add_server(WEB, A, 80, FAR)
    with refused(errno.EEXIST):
        table.add_server(WEB, A, 80, ServerOptions(NAT))
    table.add_server(WEB, A, 81, FAR)
    (service,) = table
    assert addresses(service) == [f"{S4}:81", f"{S4}:80"]


@pytest.mark.parametrize("command", ["add", "edit"])
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (ServerOptions(weight=-1), errno.ERANGE),
        (ServerOptions(weight=2**31), errno.ERANGE),
        (ServerOptions(upper=5, lower=6), errno.ERANGE),
        (ServerOptions(lower=1), errno.ERANGE),
        (ServerOptions(TUN, tunnel=Tunnel(TunnelType.GUE)), errno.EINVAL),
    ],
)
def test_a_server_that_cannot_be_is_refused_and_changes_nothing(
    command: str, options: ServerOptions, code: int
) -> None:
    table = make(WEB)
    server = table.add_server(WEB, A, 80, FAR)
    with refused(code):
        if command == "add":
            table.add_server(WEB, B, 80, options)
        else:
            table.edit_server(WEB, A, 80, options)
    (service,) = table
    assert service.servers == [server]
    assert server.options == FAR


def test_the_greatest_weight_and_equal_thresholds_are_allowed() -> None:
    table = make(WEB)
    options = ServerOptions(NAT, 2**31 - 1, upper=5, lower=5)
    assert table.add_server(WEB, A, 80, options).options == options


@pytest.mark.parametrize("method", [NAT, DR])
def test_only_a_tunnel_may_go_to_another_family(method: object) -> None:
    table = make(WEB, WEB6)
    for identity, address in ((WEB, S6), (WEB6, S4)):
        with refused(errno.EINVAL):
            table.add_server(
                identity, parse_address(address), 80, ServerOptions(NAT if method is NAT else DR)
            )
        table.add_server(identity, parse_address(address), 80, ServerOptions(TUN))


def test_an_edited_server_keeps_its_place_and_its_counts() -> None:
    table = make(WEB)
    server = table.add_server(WEB, A, 80, FAR)
    table.add_server(WEB, B, 80, FAR)
    server.active, server.statistics.connections = 3, 4
    assert table.edit_server(WEB, A, 80, ServerOptions(NAT, 7)) is server
    (service,) = table
    assert service.servers[1] is server
    assert (server.weight, server.method, server.active) == (7, NAT, 3)
    assert server.counted().connections == 4


def test_commands_for_a_server_that_is_not_there_are_refused() -> None:
    table = make(WEB)
    table.add_server(WEB, A, 80, FAR)
    for address, port in ((B, 80), (A, 81)):
        with refused(errno.ENOENT):
            table.edit_server(WEB, address, port, FAR)
        with refused(errno.ENOENT):
            table.delete_server(WEB, address, port)
    table.delete_server(WEB, A, 80)
    with refused(errno.ENOENT):
        table.edit_server(WEB, A, 80, FAR)
    with refused(errno.ENOENT):
        table.delete_server(WEB, A, 80)


def test_removals_are_counted_for_who_must_look_after_connections() -> None:
    table = make(WEB)
    for address in (A, B):
        table.add_server(WEB, address, 80, FAR)
    table.delete_server(WEB, A, 80)
    assert table.removals == 1
    table.delete(WEB)
    assert table.removals == 2


def test_the_last_weight_that_was_not_zero_is_remembered() -> None:
    table = make(WEB)
    server = table.add_server(WEB, A, 80, ServerOptions(weight=0))
    assert server.last_weight == 0
    for weight, remembered in ((5, 5), (0, 5), (3, 3)):
        table.edit_server(WEB, A, 80, ServerOptions(weight=weight))
        assert (server.weight, server.last_weight) == (weight, remembered)


def test_without_any_service_of_a_family_all_its_packets_are_the_hosts_business() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    laboratory.server(service)
    open_one(laboratory)
    laboratory.service(V6)
    laboratory.director.services.flush()
    laboratory.service(V6)
    assert laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK)) == []
    assert laboratory.drops() == {}


# The look-up


def test_a_mark_comes_before_the_address_and_is_ignored_where_no_service_has_it() -> None:
    marked = ServiceIdentity(4, Protocol.TCP, mark=7)
    table = make(WEB, marked)
    assert table.find(key(80), 7) is table.get(marked)
    assert table.find(key(80), 8) is table.get(WEB)
    assert table.find(key(80), 0) is table.get(WEB)
    assert table.find(key(9, protocol=Protocol.UDP), 7) is table.get(marked)
    assert table.find(key(80, client=C6, virtual=V6), 7) is None


def test_the_exact_port_comes_before_port_zero() -> None:
    any_port = replace(WEB, port=0)
    table = make(WEB, any_port)
    assert table.find(key(80), 0) is table.get(WEB)
    assert table.find(key(81), 0) is table.get(any_port)
    assert table.find(key(81, protocol=Protocol.UDP), 0) is None
    table.delete(any_port)
    assert table.find(key(81), 0) is None


@pytest.mark.parametrize(("port", "found"), [(20, True), (21, True), (22, False), (1023, False),
                                             (1024, True), (65535, True)])  # fmt: skip
def test_what_may_be_ftp_data_finds_the_service_of_port_21(port: int, found: bool) -> None:
    ftp, any_port = replace(WEB, port=21), replace(WEB, port=0)
    table = make(ftp)
    assert table.find(key(port), 0) is (table.get(ftp) if found else None)
    assert table.find(key(port, virtual="192.0.2.22"), 0) is None
    if port != 21:
        assert table.find(key(port, protocol=Protocol.UDP), 0) is None
    table.add(any_port, RR)
    assert table.find(key(port), 0) is table.get(ftp if found else any_port)
    table.delete(ftp)
    assert table.find(key(port), 0) is table.get(any_port)


def test_a_real_server_is_found_by_where_it_sends_from_if_its_method_is_nat() -> None:
    marked = ServiceIdentity(4, Protocol.TCP, mark=7)
    table = make(WEB, marked)
    server = table.add_server(WEB, A, 8080, ServerOptions(NAT))
    table.add_server(WEB, B, 80, FAR)
    assert table.nat_server(Protocol.TCP, A, 8080) is server
    assert table.nat_server(Protocol.UDP, A, 8080) is None
    assert table.nat_server(Protocol.TCP, A, 80) is None
    assert table.nat_server(Protocol.TCP, B, 80) is None
    table.edit_server(WEB, B, 80, ServerOptions(NAT))
    assert table.nat_server(Protocol.TCP, B, 80) is not None
    # A server of a mark may send by any protocol.
    of_mark = table.add_server(marked, A, 9, ServerOptions(NAT))
    assert table.nat_server(Protocol.UDP, A, 9) is of_mark
    table.delete(WEB)
    assert table.nat_server(Protocol.TCP, A, 8080) is None


# The trash


def open_one(laboratory: Laboratory, port: int = 40000) -> None:
    laboratory.send("client", packets.tcp(C4, port, V4, 80, SYN))


def test_a_server_from_the_trash_comes_back_with_its_connections_and_new_settings() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    server = laboratory.server(service)
    open_one(laboratory)
    laboratory.remove(server)
    laboratory.server(service, "10.1.0.12")
    assert laboratory.server(service, weight=5, upper=9) is server
    assert addresses(service) == [f"{S4}:80", "10.1.0.12:80"]
    assert (server.active, server.inactive, server.weight, server.upper) == (1, 0, 5, 9)
    assert server.counted() == Statistics(1, 1, 0, 40, 0)
    assert len(laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))) == 1
    assert service.counted() == Statistics(1, 2, 0, 80, 0)


def test_a_server_is_in_the_trash_of_its_own_service_only() -> None:
    table = make(WEB, OTHER)
    server = table.add_server(WEB, A, 80, FAR)
    table.delete_server(WEB, A, 80)
    assert table.add_server(OTHER, A, 80, FAR) is not server
    assert table.add_server(WEB, A, 81, FAR) is not server
    assert table.add_server(WEB, A, 80, FAR) is server


def test_a_service_that_is_added_again_has_its_servers_back_and_counts_from_zero() -> None:
    laboratory = Laboratory()
    laboratory.service(port=81)
    service = laboratory.service()
    server = laboratory.server(service)
    open_one(laboratory)
    laboratory.director.services.delete(service.identity)
    assert laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK)) == []
    assert laboratory.drops() == {Reason.SERVER_GONE: 1}
    again = laboratory.service()
    assert laboratory.server(again) is server
    assert server.service is again
    assert (server.active, server.counted(), again.counted()) == (1, Statistics(), Statistics())
    assert len(laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))) == 1
    assert again.counted() == Statistics(0, 1, 0, 40, 0)
    assert laboratory.director.services.counted() == Statistics(1, 2, 0, 80, 0)


def lives_until(table: ServiceTable, server: RealServer, step: float) -> float:
    """When a removed server is forgotten, if the trash is looked at every so many seconds."""
    now = 0.0
    while server in [found for found, _ in table._trash.values()]:
        _sweep(table, now)
        now += step
        assert now < 1000
    return now - step


@pytest.mark.parametrize("step", [0.1, 1.0, 7.0])
def test_an_idle_server_is_forgotten_two_minutes_after_the_first_look(step: float) -> None:
    table = make(WEB)
    server = table.add_server(WEB, A, 80, FAR)
    table.delete_server(WEB, A, 80)
    ended = lives_until(table, server, step)
    assert TRASH_INTERVAL + TRASH_TIME <= ended <= 240
    assert table.add_server(WEB, A, 80, FAR) is not server


def test_a_server_with_connections_is_not_forgotten() -> None:
    table = make(WEB)
    server = table.add_server(WEB, A, 80, FAR)
    table.delete_server(WEB, A, 80)
    for kind in ("active", "inactive", "persistent"):
        setattr(server, kind, 1)
        for now in range(1000):
            _sweep(table, float(now))
        setattr(server, kind, 0)
    assert table.add_server(WEB, A, 80, FAR) is server


def test_the_trash_is_looked_at_once_a_minute() -> None:
    table = make(WEB)
    server = table.add_server(WEB, A, 80, FAR)
    table.delete_server(WEB, A, 80)
    server.active = 1
    for now in range(120):
        _sweep(table, float(now))
    server.active = 0  # seen at the look of 120 and not before
    for now in range(120, 240):
        _sweep(table, float(now))
    assert [found for found, _ in table._trash.values()] == [server]
    _sweep(table, 240.0)
    assert not table._trash


# Counters and rates


def test_zero_begins_anew_and_what_goes_on_counting_is_not_touched() -> None:
    laboratory = Laboratory()
    table = laboratory.director.services
    web, other = laboratory.service(port=80), laboratory.service(port=81)
    for service in (web, other):
        laboratory.server(service)
    for port in (80, 81):
        laboratory.send("client", packets.tcp(C4, 1, V4, port, SYN))
    one = Statistics(1, 1, 0, 40, 0)
    table.zero(web.identity)
    assert [service.counted() for service in (web, other)] == [Statistics(), one]
    assert [s.counted() for service in (web, other) for s in service.servers] == [Statistics(), one]
    assert table.counted() == Statistics(2, 2, 0, 80, 0)
    table.zero()
    assert other.counted() == table.counted() == Statistics()
    laboratory.send("client", packets.tcp(C4, 1, V4, 81, ACK))
    assert other.counted() == table.counted() == Statistics(0, 1, 0, 40, 0)


def test_what_removed_servers_and_services_counted_stays_in_the_total() -> None:
    laboratory = Laboratory()
    table = laboratory.director.services
    service = laboratory.service()
    server = laboratory.server(service)
    open_one(laboratory)
    expected = Statistics(1, 1, 0, 40, 0)
    laboratory.remove(server)
    assert service.counted() == table.counted() == expected
    laboratory.server(service)
    assert service.counted() == table.counted() == expected
    table.delete(service.identity)
    assert table.counted() == expected
    laboratory.service()
    assert table.counted() == expected


def test_rates_are_estimated_for_servers_services_and_the_whole() -> None:
    laboratory = Laboratory()
    service = laboratory.service(protocol=Protocol.UDP)
    server = laboratory.server(service)
    everything = (server, service, laboratory.director.services)
    laboratory.sleep(0)
    for step in range(120):
        for _ in range(10):
            laboratory.send("client", packets.udp(C4, 1000 + step, V4, 80, bytes(72)))
        laboratory.sleep(1)
    for rated in everything:
        assert (rated.rates.connections, rated.rates.in_packets) == (1, 10)
        assert 990 <= rated.rates.in_bytes <= 1000
        assert (rated.rates.out_packets, rated.rates.out_bytes) == (0, 0)
    laboratory.director.services.zero()
    assert [rated.rates.in_packets for rated in everything] == [0, 0, 0]


def test_the_rates_of_the_whole_go_on_without_jumps_when_a_service_is_deleted() -> None:
    laboratory = Laboratory()
    table = laboratory.director.services
    for protocol in (Protocol.UDP, Protocol.TCP):
        laboratory.server(laboratory.service(protocol=protocol))
    laboratory.sleep(0)
    for step in range(60):
        for _ in range(10):
            laboratory.send("client", packets.udp(C4, 1000, V4, 80, bytes(72)))
        if step == 45:
            laboratory.send("client", packets.tcp(C4, 1000, V4, 80, SYN))
            table.delete(ServiceIdentity(4, Protocol.TCP, parse_address(V4), 80))
        if step > 45:
            assert table.rates.in_packets == 10
        laboratory.sleep(1)
    for _ in range(3):
        laboratory.sleep(1)
    assert table.sampled() == table.counted() == Statistics(2, 601, 0, 60040, 0)
    laboratory.send("client", packets.udp(C4, 1000, V4, 80, bytes(72)))
    table.zero()
    laboratory.send("client", packets.udp(C4, 1000, V4, 80, bytes(72)))
    for _ in range(3):
        laboratory.sleep(1)
    assert table.sampled() == table.counted() == Statistics(0, 1, 0, 100, 0)


def test_what_a_deleted_service_counted_is_in_the_samples_of_the_whole() -> None:
    laboratory = Laboratory()
    table, service = laboratory.director.services, laboratory.service(protocol=Protocol.UDP)
    laboratory.server(service)
    laboratory.send("client", packets.udp(C4, 1000, V4, 80, bytes(72)))
    table.delete(service.identity)
    assert table.sampled() == table.counted() == Statistics(1, 1, 0, 100, 0)


def test_a_great_trash_is_looked_at_with_pauses() -> None:
    laboratory = Laboratory()
    table, service = laboratory.director.services, laboratory.service()
    for number in range(2 * SWEEP_SLICE):
        address = (0x0A010000 + number).to_bytes(4)
        table.add_server(service.identity, address, 80, ServerOptions())
    table.delete(service.identity)
    _sweep(table, 0.0)
    assert [sum(1 for _ in table.sweep(now)) for now in (60.0, 120.0, 180.0, 240.0)] == [2, 2, 2, 0]


def test_rates_stand_still_while_estimation_is_off() -> None:
    laboratory = Laboratory()
    service = laboratory.service(protocol=Protocol.UDP)
    laboratory.server(service)

    def flow() -> None:
        for _ in range(30):
            laboratory.send("client", packets.udp(C4, 1, V4, 80))
            laboratory.sleep(0.5)

    laboratory.sleep(0)
    flow()
    before = service.rates.in_packets
    assert before == 2
    laboratory.set(run_estimation=0)
    laboratory.sleep(60)
    assert service.rates.in_packets == before
    laboratory.set(run_estimation=1)
    for _ in range(60):
        laboratory.sleep(1)
    assert service.rates.in_packets == 0


def test_a_server_from_the_trash_has_no_rate_of_what_it_counted_long_ago() -> None:
    laboratory = Laboratory()
    service = laboratory.service(protocol=Protocol.UDP)
    server = laboratory.server(service)
    for port in range(1000, 2000):
        laboratory.send("client", packets.udp(C4, port, V4, 80))
    for _ in range(120):
        laboratory.sleep(1)
    laboratory.remove(server)
    laboratory.server(service)
    for _ in range(5):
        laboratory.sleep(1)
    assert (server.rates.connections, server.rates.in_packets) == (0, 0)
