import pytest

from lvsha.datapath import connections, state_machines
from lvsha.datapath.connections import (
    SLICE,
    Connection,
    ConnectionTable,
    _reply_keys,
    reply_key,
)
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.model import ConnectionFlag, ForwardMethod, connection_key, parse_address
from lvsha.runs import FEW

C4, V4, S4 = map(parse_address, ("198.51.100.7", "192.0.2.1", "10.1.0.2"))
C6, V6, S6 = map(parse_address, ("2001:db8::7", "2001:db8:f::1", "fd00::2"))


TCP = state_machines.tcp()


def make_server(virtual: bytes = V4, server: bytes = S4) -> RealServer:
    identity = ServiceIdentity(4 if len(virtual) == 4 else 6, 6, virtual, 80)
    service = VirtualService("web", identity, ServiceOptions())
    return RealServer(service, server, 8080, ServerOptions(ForwardMethod.NAT))


def make(
    port: int, expires: float, *, timeout: float = 60.0, flags: int = 0, client: bytes = C4
) -> Connection:
    server = make_server()
    key = connection_key(6, client, port, V4, 80)
    binding = server.bind(V4, 80, 8080)
    connection = Connection(key, binding, TCP, server.connection_flags | flags, timeout)
    connection.reply_key = reply_key(key, S4, 8080)
    connection.expires = expires
    return connection


def sweep(table: ConnectionTable, now: float, limit: int = 100) -> list[Connection]:
    ended = []
    for connection in table.due(now, limit):
        if connection.expires <= now:
            table.remove(connection)
            ended.append(connection)
    return ended


@pytest.mark.parametrize(("client", "virtual", "server"), [(C4, V4, S4), (C6, V6, S6)])
def test_a_connection_tells_both_its_ends_from_its_key(
    client: bytes, virtual: bytes, server: bytes
) -> None:
    real = make_server(virtual, server)
    key = connection_key(6, client, 40000, virtual, 80)
    connection = Connection(key, real.bind(virtual, 80, 8080), TCP, 0, 3)
    assert connection.server is real
    assert connection.protocol == 6
    assert connection.client == (client, 40000)
    assert connection.virtual == (virtual, 80)
    assert reply_key(key, server, 8080) == connection_key(6, server, 8080, client, 40000)
    record = connection.record()
    assert record.key == key
    assert (record.server, record.server_port) == (server, 8080)


def test_both_directions_are_found_and_both_go() -> None:
    table, connection = ConnectionTable(10), make(1, 1060.0)
    table.add(connection)
    assert table.find(connection.key) is connection
    assert table.find_reply(connection.reply_key) is connection
    table.remove(connection)
    assert (len(table), list(table.connections())) == (0, [])
    assert not any((*table.inbound, *table.outbound))


def test_a_reply_key_that_a_later_connection_took_over_stays_with_it() -> None:
    table, old, new = ConnectionTable(10), make(1, 1060.0), make(2, 1060.0)
    new.reply_key = old.reply_key
    table.add(old)
    table.add(new)
    table.remove(old)
    assert table.find_reply(new.reply_key) is new
    table.remove(new)
    assert table.find_reply(new.reply_key) is None


def test_when_the_newest_with_a_reply_key_ends_the_one_before_it_is_found_again() -> None:
    table = ConnectionTable(10)
    first, second, third = made = [make(port, 1060.0) for port in (1, 2, 3)]
    for connection in made:
        connection.reply_key = first.reply_key
        table.add(connection)
    table.remove(second)
    assert table.find_reply(first.reply_key) is third
    table.remove(third)
    assert table.find_reply(first.reply_key) is first
    table.remove(first)
    assert not any(table.outbound)


def test_a_port_that_is_learned_leaves_the_reply_key_to_the_connection_before() -> None:
    table = ConnectionTable(10)
    older, newer = make(1, 1060.0), make(0, 1060.0, flags=ConnectionFlag.NO_CLIENT_PORT)
    newer.reply_key = older.reply_key
    table.add(older)
    table.add(newer)
    table.learn_client_port(newer, (7).to_bytes(2))
    assert table.find_reply(older.reply_key) is older
    assert table.find_reply(newer.reply_key) is newer != older


def test_the_table_is_full_at_its_limit() -> None:
    table = ConnectionTable(2)
    table.add(make(1, 1060.0))
    assert not table.full
    table.add(make(2, 1060.0))
    assert table.full


def test_a_connection_ends_in_the_second_after_its_end_and_not_before() -> None:
    table, connection = ConnectionTable(10), make(1, 1060.4)
    table.add(connection)
    assert table.deadline == 1061.0
    assert sweep(table, 1060.9) == []
    assert sweep(table, 1061.0) == [connection]
    assert table.deadline is None


def test_a_packet_in_between_puts_the_end_off_without_telling_the_wheel() -> None:
    table, connection = ConnectionTable(10), make(1, 1060.0)
    table.add(connection)
    connection.expires = 1100.0
    assert sweep(table, 1061.0) == []
    assert connection.second == 1101
    assert sweep(table, 1101.0) == [connection]


def test_a_shorter_timeout_moves_the_end_nearer() -> None:
    table, connection = ConnectionTable(10), make(1, 1900.0)
    table.add(connection)
    connection.expires = 1010.0
    table.hasten(connection)
    assert table.deadline == 1011.0
    assert sweep(table, 1011.0) == [connection]


def test_a_copy_that_lives_longer_is_looked_at_before_its_next_packet_would_end_it() -> None:
    table, connection = ConnectionTable(10), make(1, 1003.0, timeout=100.0)
    table.add(connection)
    connection.expires = 1125.0  # as a record from another director says
    assert sweep(table, 1004.0) == []
    connection.expires = 1004.0 + 100.0  # a packet comes here
    assert connection.second <= 1105
    assert sweep(table, 1105.0) == [connection]


def test_a_sweep_looks_at_no_more_than_its_limit_and_goes_on_later() -> None:
    table = ConnectionTable(100)
    for port in range(10):
        table.add(make(port, 1010.0))
    assert len(sweep(table, 1011.0, limit=4)) == 4
    assert table.deadline == 1011.0
    assert len(sweep(table, 1011.0, limit=100)) == 6
    assert table.deadline is None


def test_a_crowded_second_has_several_sets_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CROWD", 3)
    table = ConnectionTable(100)
    crowd = [make(port, 1010.0) for port in range(10)]
    for connection in crowd:
        table.add(connection)
    table.remove(crowd[0])
    table.postpone(crowd[1], 1020.0)
    crowd[2].expires = 1005.0
    table.hasten(crowd[2])
    assert sweep(table, 1006.0) == [crowd[2]]
    assert len(sweep(table, 1011.0, limit=4)) == 4
    assert {*sweep(table, 1011.0)} < {*crowd[3:]}
    assert len(table) == 1
    assert sweep(table, 1021.0) == [crowd[1]]
    assert table.deadline is None


def test_slices_are_bounded_even_if_all_clients_use_one_port() -> None:
    table = ConnectionTable(10_000)
    for number in range(3000):
        client = (0x0A000000 + number * 256).to_bytes(4)
        table.add(make(5060, 1010.0, client=client))
    parts = list(table.slices())
    assert [len(part) for part in parts] == [SLICE] * (3000 // SLICE)
    assert len({connection for part in parts for connection in part}) == 3000


@pytest.mark.parametrize(("ports", "addresses"), [(0, 1), (1, 0), (1, 1)])
def test_clients_are_spread_over_the_shards(ports: int, addresses: int) -> None:
    table = ConnectionTable(10_000)
    for number in range(2560):
        client = (0x0A000000 + number * addresses).to_bytes(4)
        table.add(make(5060 + number * ports, 1010.0, client=client))
    for shards in (table.inbound, table.outbound):
        assert max(map(len, shards)) <= 20
        assert sum(map(len, shards)) == 2560


def test_only_the_flag_says_whether_a_connection_is_active() -> None:
    connection = make(1, 1060.0)
    assert not connection.active
    connection.flags &= ~ConnectionFlag.INACTIVE
    assert connection.active


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("number", [0, 1, FEW - 1, FEW, 50])
def test_the_reply_keys_of_a_run_are_those_of_each(size: int, number: int) -> None:
    family, server = {4: 4, 16: 6}[size], b"s" * size
    keys = [
        bytes((family, 6)) + (n << 9).to_bytes(size) + b"v" * size + n.to_bytes(2) + b"\0P"
        for n in range(number)
    ]
    first = object.__new__(Connection)
    first.reply_key = reply_key(bytes((family, 6)) + bytes(2 * size + 4), server, 8080)
    assert list(_reply_keys(first, keys)) == [reply_key(key, server, 8080) for key in keys]
