"""Servers that retire: no new connections, and the old ones to their end."""

import errno

import pytest

from lvsha.datapath.claims import claims_of
from lvsha.datapath.connections import Connection
from lvsha.datapath.reasons import Reason
from lvsha.datapath.service_table import describe
from lvsha.datapath.services import RealServer, Statistics, VirtualService
from lvsha.datapath.tunnels import Tunnel, TunnelType
from lvsha.errors import AdministrationError
from lvsha.model import ConnectionRecord, ForwardMethod
from tests import packets
from tests.laboratory import C4, DR, NAT, S4, TUN, V4, Laboratory, Left
from tests.packets import ACK, RST, SYN

OTHER = "10.1.0.12"


def request(
    laboratory: Laboratory, flags: int = SYN, port: int = 40000, *, client: str = C4, to: int = 80
) -> list[Left]:
    return laboratory.send("client", packets.tcp(client, port, V4, to, flags))


def opened(laboratory: Laboratory, server: RealServer, port: int = 40000) -> Connection:
    """A connection to this server, which is the only one."""
    request(laboratory, SYN, port)
    request(laboratory, ACK, port)
    (connection,) = laboratory.director.registry.table.connections()
    assert connection.server is server
    return connection


def of_port(record: ConnectionRecord, port: int) -> ConnectionRecord:
    """The record of another connection of the same client."""
    key = record.key
    return record._replace(key=key[:-4] + port.to_bytes(2) + key[-2:])


def retire(laboratory: Laboratory, server: RealServer) -> None:
    laboratory.director.services.retire_server(server.service.identity, server.address, server.port)


@pytest.fixture
def web() -> Laboratory:
    return Laboratory()


@pytest.fixture
def service(web: Laboratory) -> VirtualService:
    return web.service()


@pytest.mark.parametrize("method", [NAT, DR, TUN])
def test_connections_go_on_and_new_ones_go_elsewhere(
    web: Laboratory, service: VirtualService, method: ForwardMethod
) -> None:
    leaving = web.server(service, S4, method=method)
    opened(web, leaving)
    (before,) = request(web, ACK)
    staying = web.server(service, OTHER, method=method)
    retire(web, leaving)
    assert service.servers == [staying]
    assert request(web, ACK) == [before]
    if method is NAT:
        assert len(web.send("server", packets.tcp(S4, 80, C4, 40000, ACK))) == 1
    for port in range(40001, 40005):
        assert request(web, SYN, port) != []
    assert (leaving.active, staying.active + staying.inactive) == (1, 4)
    assert web.drops() == {}
    assert web.miscounted() == []
    assert web.mistallied() == []


def test_it_leaves_with_the_last_of_them(web: Laboratory, service: VirtualService) -> None:
    server = web.server(service)
    services = web.director.services
    opened(web, server)
    retire(web, server)
    assert services.bury_idle() == []
    assert claims_of(web.director).servers
    request(web, RST)
    web.sleep(60)
    assert services.bury_idle() == [server]
    assert not services.leaving
    assert not claims_of(web.director).servers
    # A connection that came late would be of a removed server.
    assert (server.available, server.serving) == (False, False)


def test_one_without_connections_is_removed_at_once(
    web: Laboratory, service: VirtualService
) -> None:
    server = web.server(service)
    retire(web, server)
    assert not web.director.services.leaving
    assert not server.serving


def test_it_comes_back_with_its_connections_and_counts(
    web: Laboratory, service: VirtualService
) -> None:
    server = web.server(service)
    opened(web, server)
    counted = service.counted()
    retire(web, server)
    assert service.counted() == counted
    request(web, ACK)
    assert service.counted().in_packets == counted.in_packets + 1
    counted = service.counted()
    assert web.server(service, weight=7) is server
    assert (service.counted(), server.weight, service.leaving) == (counted, 7, [])
    request(web, ACK)
    assert service.counted().in_packets == counted.in_packets + 1
    assert web.miscounted() == []
    # Or not: what it has counted is its service's still.
    retire(web, server)
    request(web, RST)
    counted = service.counted()
    web.sleep(60)
    web.director.services.bury_idle()
    assert service.counted() == counted


def test_an_operator_can_end_it(web: Laboratory, service: VirtualService) -> None:
    server = web.server(service)
    opened(web, server)
    retire(web, server)
    services = web.director.services
    services.delete_server(service.identity, server.address, server.port)
    assert request(web, ACK) == []
    assert web.drops() == {Reason.SERVER_GONE: 1}
    with pytest.raises(AdministrationError) as refused:
        services.delete_server(service.identity, server.address, server.port)
    assert refused.value.code == errno.ENOENT


@pytest.mark.parametrize("flush", [False, True])
def test_to_delete_a_service_ends_what_was_leaving_it(
    web: Laboratory, service: VirtualService, *, flush: bool
) -> None:
    server = web.server(service)
    opened(web, server)
    retire(web, server)
    services = web.director.services
    if flush:
        services.flush()
    else:
        services.delete(service.identity)
    assert not services.leaving
    assert request(web, ACK) == []
    assert web.server(web.service()) is server
    assert len(request(web, ACK)) == 1


def test_a_service_that_is_gone_hides_no_other(web: Laboratory, service: VirtualService) -> None:
    server = web.server(service)
    opened(web, server)
    every = web.service(V4, 0, persistence=50)
    other = web.server(every, OTHER)
    web.director.services.retire(service.identity)
    assert list(web.director.services) == [every]
    assert len(request(web, ACK)) == 1
    assert len(request(web, SYN, 40001)) == 1
    assert (server.active, other.inactive + other.active) == (1, 1)
    assert describe(service.identity) == "TCP 192.0.2.21:80"
    # A service of the same name takes its server over, with the connections.
    again = web.service()
    assert web.server(again) is server
    assert (again.leaving, service.leaving, server.service) == ([], [], again)
    assert again.counted() == Statistics()
    assert len(request(web, ACK)) == 1
    assert web.miscounted() == []


def test_clients_of_a_persistent_service_go_elsewhere_with_new_connections(
    web: Laboratory,
) -> None:
    service = web.service(persistence=300)
    leaving = web.server(service)
    request(web, SYN)
    request(web, ACK)
    staying = web.server(service, OTHER)
    retire(web, leaving)
    request(web, SYN, 40001)
    assert (leaving.active, staying.inactive + staying.active) == (1, 1)
    assert len(request(web, ACK)) == 1


@pytest.mark.parametrize("scheduler", ["mh", "sh", "dh", "rr", "wlc", "lblcr"])
def test_every_new_client_is_served_whatever_the_scheduler(web: Laboratory, scheduler: str) -> None:
    service = web.service(scheduler=scheduler)
    servers = [web.server(service, address) for address in (S4, OTHER)]
    for last in range(1, 60):
        request(web, SYN, client=f"198.51.100.{last}")
    busiest = max(servers, key=lambda server: server.active + server.inactive)
    retire(web, busiest)
    before = web.drops()
    for last in range(60, 120):
        assert len(request(web, SYN, client=f"198.51.100.{last}")) == 1
    assert web.drops() == before


def test_errors_of_its_tunnel_are_understood(web: Laboratory, service: VirtualService) -> None:
    tunnel = Tunnel(TunnelType.GUE, 6080)
    server = web.server(service, method=TUN, tunnel=tunnel)
    opened(web, server)
    services = web.director.services
    retire(web, server)
    assert services.has_tunnel(server.address, TunnelType.GUE, 6080)
    request(web, RST)
    web.sleep(60)
    services.bury_idle()
    assert not services.has_tunnel(server.address, TunnelType.GUE, 6080)


def test_what_a_peer_tells_is_bound_to_it(web: Laboratory, service: VirtualService) -> None:
    server = web.server(service, method=TUN)
    record = opened(web, server).record()
    retire(web, server)
    later = of_port(record, 40001)
    web.director.replication.apply([later], web.now)
    assert server.active + server.inactive == 2
    assert len(request(web, ACK, 40001)) == 1
    # Also when its service is gone.
    web.director.services.retire(service.identity)
    web.director.replication.apply([of_port(record, 40002)], web.now)
    assert server.active + server.inactive == 3
    assert web.director.replication.unbound == 0
