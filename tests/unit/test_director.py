import pytest

from lvsha.datapath.connections import SLICE, Connection
from lvsha.datapath.network import NeighbourChange
from lvsha.datapath.reasons import Reason
from lvsha.datapath.registry import EXPIRE_BATCH
from lvsha.datapath.services import VirtualService
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ConnectionFlag, Protocol, parse_address
from tests import packets
from tests.laboratory import (
    C4,
    C6,
    DR,
    S4,
    S6,
    SERVER,
    V4,
    V6,
    Laboratory,
    Left,
    server_mac,
)
from tests.packets import ACK, FIN, RST, SYN

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])


def request(laboratory: Laboratory, flags: int = SYN, port: int = 40000) -> list[Left]:
    return laboratory.send("client", packets.tcp(C4, port, V4, 80, flags))


def connections(laboratory: Laboratory) -> list[Connection]:
    return list(laboratory.director.registry.table.connections())


def only_service(laboratory: Laboratory) -> VirtualService:
    (service,) = laboratory.director.services
    return service


def state(laboratory: Laboratory) -> str:
    (connection,) = connections(laboratory)
    return TcpState(connection.state).name


@pytest.fixture
def web() -> Laboratory:
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    return laboratory


@FAMILIES
def test_a_syn_opens_a_connection_that_stays_with_its_server(
    client: str, vip: str, server: str
) -> None:
    laboratory = Laboratory()
    service = laboratory.service(vip)
    for last in (2, 3, 11):
        laboratory.server(service, server.replace("11", str(last)).replace("::b", f"::{last:x}"))
    first = laboratory.send("client", packets.tcp(client, 40000, vip, 80, SYN))
    again = [laboratory.send("client", packets.tcp(client, 40000, vip, 80, ACK)) for _ in range(4)]
    assert {left.dmac for (left,) in again} == {first[0].dmac}
    other = laboratory.send("client", packets.tcp(client, 40001, vip, 80, SYN))
    assert other[0].dmac != first[0].dmac


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, RST, SYN | RST, 0])
def test_what_may_not_open_a_connection_opens_none_and_is_dropped(
    web: Laboratory, flags: int
) -> None:
    assert all(left.side == "client" for left in request(web, flags))
    assert web.drops() == {Reason.NO_CONNECTION if flags & RST else Reason.RESET: 1}
    assert len(web.director.registry.table) == 0


def test_a_packet_for_no_service_is_the_hosts_business(web: Laboratory) -> None:
    assert web.send("client", packets.tcp(C4, 1, V4, 81)) == []
    assert web.send("client", packets.udp(C4, 1, V4, 80)) == []
    assert web.send("client", packets.tcp(C4, 1, "192.0.2.99", 80)) == []
    assert web.drops() == {}


def test_a_service_that_is_not_held_opens_nothing_but_carries_what_exists(
    web: Laboratory,
) -> None:
    request(web)
    web.director.hold(parse_address(V4), held=False)
    assert request(web, SYN, 40001) == []
    assert web.drops() == {Reason.NOT_MASTER: 1}
    assert len(request(web, ACK)) == 1
    web.director.hold(parse_address(V4), held=True)
    assert len(request(web, SYN, 40001)) == 1


def test_a_full_table_opens_nothing_but_carries_what_exists() -> None:
    laboratory = Laboratory(connections_max=1)
    laboratory.server(laboratory.service())
    request(laboratory)
    assert request(laboratory, SYN, 40001) == []
    assert laboratory.drops() == {Reason.TABLE_FULL: 1}
    assert len(request(laboratory, ACK)) == 1


def test_no_usable_server_is_told_to_the_client() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(), weight=0)
    (left,) = request(laboratory)
    assert (left.side, left.packet[20:22]) == ("client", b"\x03\x03")
    assert laboratory.drops() == {Reason.NO_SERVER: 1}


def test_a_server_of_weight_zero_keeps_its_connections(web: Laboratory) -> None:
    request(web)
    service = only_service(web)
    web.edit(service.servers[0], 0)
    assert len(request(web, ACK)) == 1
    request(web, SYN, 40001)
    assert web.drops() == {Reason.NO_SERVER: 1}


def test_counts_follow_the_states(web: Laboratory) -> None:
    service = only_service(web)
    server = service.servers[0]
    for step, flags, counts in (
        (request, SYN, (1, 0)),
        (request, ACK, (1, 0)),
        (request, FIN | ACK, (0, 1)),
    ):
        step(web, flags)
        assert (server.active, server.inactive) == counts
    web.sleep(61)
    assert (server.active, server.inactive) == (0, 0)
    assert len(web.director.registry.table) == 0


def test_udp_always_counts_as_inactive_and_ends_after_its_timeout() -> None:
    laboratory = Laboratory()
    server = laboratory.server(laboratory.service(protocol=Protocol.UDP))
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    assert (server.active, server.inactive) == (0, 1)
    laboratory.sleep(299)
    assert len(laboratory.director.registry.table) == 1
    laboratory.sleep(2)
    assert len(laboratory.director.registry.table) == 0


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_changed_udp_timeout_holds_from_the_next_packet_in_either_direction(
    direction: str,
) -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(protocol=Protocol.UDP))
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    laboratory.director.set_timeouts(tcp=900, tcp_fin=120, udp=5)
    laboratory.sleep(10)
    assert len(laboratory.director.registry.table) == 1
    if direction == "request":
        laboratory.send("client", packets.udp(C4, 1, V4, 80))
    else:
        laboratory.send("server", packets.udp(S4, 80, C4, 1))
    laboratory.sleep(7)
    assert len(laboratory.director.registry.table) == 0


def test_a_shorter_tcp_timeout_holds_from_the_next_packet(web: Laboratory) -> None:
    request(web)
    request(web, ACK)
    web.sleep(5)  # now it is only looked at again at the end of the longer one
    web.director.set_timeouts(tcp=30, tcp_fin=120, udp=300)
    request(web, ACK)
    web.sleep(32)
    assert len(web.director.registry.table) == 0


def test_a_state_with_a_shorter_timeout_ends_the_connection_sooner(web: Laboratory) -> None:
    request(web)
    request(web, ACK)
    web.sleep(5)
    request(web, RST)
    web.sleep(9)
    assert state(web) == "CLOSE"
    web.sleep(2)
    assert len(web.director.registry.table) == 0


def test_what_a_removed_server_sends_is_the_hosts_business(web: Laboratory) -> None:
    service = only_service(web)
    web.remove(service.servers[0])
    assert web.send("server", packets.tcp(S4, 80, C4, 40000, ACK)) == []
    assert web.drops() == {}


def test_a_syn_on_a_closed_connection_opens_a_new_one_elsewhere(web: Laboratory) -> None:
    service = only_service(web)
    first = request(web)[0].dmac
    web.server(service, "10.1.0.12")
    request(web, ACK)
    request(web, RST)
    assert state(web) == "CLOSE"
    assert request(web, SYN)[0].dmac != first
    assert state(web) == "SYN_RECV"
    assert web.miscounted() == []


def test_a_syn_on_a_closed_connection_leaves_a_removed_server_behind(web: Laboratory) -> None:
    service = only_service(web)
    request(web)
    request(web, ACK)
    request(web, RST)
    web.remove(service.servers[0])
    web.server(service, "10.1.0.12")
    (left,) = request(web, SYN)
    assert left.dmac == "02:05:04:00:00:0c"


def test_connections_of_a_removed_server_are_dropped_until_it_comes_back(
    web: Laboratory,
) -> None:
    service = only_service(web)
    server = service.servers[0]
    request(web)
    web.remove(server)
    assert request(web, ACK) == []
    assert web.drops() == {Reason.SERVER_GONE: 1}
    assert web.server(service) is server
    assert (server.active, server.inactive) == (1, 0)
    assert len(request(web, ACK)) == 1


def test_a_removed_server_is_forgotten_some_time_after_its_last_connection(
    web: Laboratory,
) -> None:
    service = only_service(web)
    old = service.servers[0]
    request(web)
    web.remove(old)
    web.sleep(61)  # the connection ends
    web.sleep(60)  # the server is seen to be idle
    web.sleep(60)
    assert web.server(service) is old
    web.remove(old)
    for _ in range(4):
        web.sleep(60)
    assert web.server(service) is not old


def test_the_end_of_an_older_connection_does_not_forget_a_removed_server(web: Laboratory) -> None:
    service = only_service(web)
    server = service.servers[0]
    request(web, SYN, 40000)
    web.remove(server)
    assert web.server(service, method=DR) is server
    web.sleep(30)
    request(web, SYN, 40001)
    web.remove(server)
    web.sleep(31)  # the older connection ends
    assert (server.active, server.inactive) == (1, 0)
    assert web.server(service, method=DR) is server
    assert web.miscounted() == []


def test_a_server_that_comes_back_by_another_method_keeps_that_of_its_connections(
    web: Laboratory,
) -> None:
    service = only_service(web)
    server = service.servers[0]
    request(web, SYN, 40000)
    web.remove(server)
    assert web.server(service, method=DR) is server
    (old,), (new,) = request(web, ACK, 40000), request(web, SYN, 40001)
    assert old.packet[16:20] == parse_address(S4)
    assert new.packet[16:20] == parse_address(V4)
    assert (server.active, server.inactive) == (2, 0)


def test_a_reply_without_connection_is_dropped_and_other_traffic_passes(web: Laboratory) -> None:
    assert web.send("server", packets.tcp(S4, 80, C4, 40000, ACK)) == []
    assert web.drops() == {Reason.UNKNOWN_REPLY: 1}
    web.send("server", packets.tcp(S4, 80, "10.1.0.1", 40000, ACK))  # to the director itself
    web.send("server", packets.tcp(S4, 22, C4, 40000, ACK))
    assert web.drops() == {Reason.UNKNOWN_REPLY: 1}


def test_a_reply_does_not_pass_for_a_direct_routing_server() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(), method=DR)
    request(laboratory)
    assert laboratory.send("server", packets.tcp(S4, 80, C4, 40000, SYN | ACK)) == []
    assert laboratory.drops() == {}


def test_statistics_are_the_kernels(web: Laboratory) -> None:
    service = only_service(web)
    request(web)
    web.send("server", packets.tcp(S4, 80, C4, 40000, SYN | ACK))
    web.send("client", packets.tcp(C4, 40000, V4, 80, ACK, b"x" * 60))
    statistics = service.servers[0].statistics
    assert (statistics.connections, statistics.in_packets, statistics.out_packets) == (1, 2, 1)
    assert (statistics.in_bytes, statistics.out_bytes) == (140, 40)


def test_an_icmp_error_with_a_wrong_checksum_is_dropped_where_it_would_be_translated(
    web: Laboratory,
) -> None:
    request(web)
    packet = bytearray(packets.icmp(C4, V4, 3, 3, packets.tcp(V4, 80, C4, 40000)))
    packet[-1] ^= 1
    assert web.send("client", bytes(packet)) == []
    assert web.drops() == {Reason.ICMP_CHECKSUM: 1}


def test_an_icmp_error_does_not_prolong_a_connection(web: Laboratory) -> None:
    request(web)
    web.sleep(40)
    web.send("client", packets.icmp(C4, V4, 3, 3, packets.tcp(V4, 80, C4, 40000)))
    web.sleep(25)
    assert len(web.director.registry.table) == 0


def test_a_sweep_is_done_in_bounded_parts() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(protocol=Protocol.UDP))
    for port in range(1000, 1000 + EXPIRE_BATCH + 100):
        laboratory.send("client", packets.udp(C4, port, V4, 80))
    laboratory.sleep(3.5)  # moves on the connections that were entered with 3 s
    laboratory.sleep(0)
    laboratory.now += 301
    assert laboratory.director.housekeep(laboratory.now)
    assert len(laboratory.director.registry.table) == 100
    laboratory.sleep(0)
    assert len(laboratory.director.registry.table) == 0


def test_the_ways_to_all_servers_are_asked_for_before_a_packet_needs_them() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(), "10.1.9.9")
    laboratory.director.network.wanted.clear()
    laboratory.director.keep_ways_warm()
    assert list(laboratory.director.network.wanted) == [(2, parse_address("10.1.9.9"))]


def test_the_ways_to_clients_are_asked_for_before_a_packet_needs_them() -> None:
    """To a default gateway, and to clients on the link of connections that are known."""
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    gateway, neighbour = map(parse_address, ("10.0.0.254", "10.0.0.77"))
    for client in ("10.0.0.77", C4):
        laboratory.send("client", packets.tcp(client, 40000, V4, 80, SYN))
    network = laboratory.director.network
    laboratory.director.learn(NeighbourChange(1, gateway, b""))
    network.wanted.clear()
    laboratory.director.keep_ways_warm()
    assert set(network.wanted) == {(1, gateway), (1, neighbour)}
    laboratory.director.learn(NeighbourChange(1, gateway, bytes(6)))
    laboratory.director.learn(NeighbourChange(1, neighbour, bytes(6)))
    network.wanted.clear()
    laboratory.director.keep_ways_warm()
    assert not network.wanted


def test_default_gateways_are_asked_for_before_there_is_a_client() -> None:
    laboratory = Laboratory()
    gateway = parse_address("10.0.0.254")
    laboratory.director.learn(NeighbourChange(1, gateway, b""))
    laboratory.director.network.wanted.clear()
    laboratory.director.keep_ways_warm()
    assert list(laboratory.director.network.wanted) == [(1, gateway)]


def test_a_way_that_is_kept_warm_is_confirmed_when_the_kernel_doubts_it() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    network, server = laboratory.director.network, parse_address(S4)
    laboratory.director.keep_ways_warm()
    assert not network.wanted
    laboratory.director.learn(NeighbourChange(SERVER, server, server_mac(server), stale=True))
    assert list(network.wanted) == [(SERVER, server)]


def test_nobody_is_asked_for_the_network_that_persistence_is_for() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(persistence=60, netmask=bytes((255, 255, 255, 0))))
    laboratory.send("client", packets.tcp("10.0.0.77", 40000, V4, 80, SYN))
    laboratory.director.network.wanted.clear()
    laboratory.director.keep_ways_warm()
    assert list(laboratory.director.network.wanted) == [(1, parse_address("10.0.0.77"))]


def test_ways_are_asked_for_in_parts_between_which_services_may_change() -> None:
    laboratory = Laboratory()
    director, many = laboratory.director, laboratory.service()
    for number in range(SLICE + 50):
        laboratory.server(many, f"10.1.{1 + number // 100}.{1 + number % 100}")
    servers = list(many.servers)
    last = laboratory.server(laboratory.service(port=81), "10.1.9.9")
    wanted = director.network.wanted
    wanted.clear()
    chore = director.warm_ways()
    next(chore)
    assert 0 < len(wanted) <= SLICE < len(servers)
    laboratory.remove(servers[0])
    laboratory.remove(servers[-1])
    laboratory.service(port=82)
    assert list(chore) == []
    assert set(wanted) == {(SERVER, server.address) for server in [*servers[:-1], last]}


def test_of_many_clients_those_of_one_slice_are_asked_for() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    for number in range(2 * SLICE):
        client = f"10.1.{100 + number // SLICE}.{1 + number % SLICE}"
        laboratory.send("server", packets.tcp(client, 40000, V4, 80, SYN))
    assert len(connections(laboratory)) == 2 * SLICE
    laboratory.director.network.wanted.clear()
    laboratory.director.keep_ways_warm()
    assert len(laboratory.director.network.wanted) == SLICE


def test_a_reply_that_passes_but_comes_no_further_is_not_seen() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(), method=DR)
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN))
    (connection,) = laboratory.director.registry.table.connections()
    for ttl, seen in ((1, False), (2, True)):
        laboratory.send("server", packets.tcp(V4, 80, C4, 40000, ACK, ttl=ttl))
        assert bool(connection.flags & ConnectionFlag.NO_OUTPUT) is not seen
        assert (connection.state == TcpState.ESTABLISHED) is seen
