import pytest

from lvsha.datapath.connections import Connection, ConnectionTable, reply_key
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import ConnectionFlag, ForwardMethod, connection_key, parse_address

C4, V4, S4 = map(parse_address, ("198.51.100.7", "192.0.2.1", "10.1.0.2"))
C6, V6, S6 = map(parse_address, ("2001:db8::7", "2001:db8:f::1", "fd00::2"))


def make(port: int, expires: float, *, timeout: float = 60.0) -> Connection:
    service = VirtualService("web", 6, V4, 80, "rr")
    server = RealServer(service, S4, 8080, 1, ForwardMethod.NAT)
    key = connection_key(6, C4, port, V4, 80)
    connection = Connection(key, server, server.connection_flags, timeout)
    connection.reply_key = reply_key(key, S4, 8080)
    connection.expires = expires
    return connection


def sweep(table: ConnectionTable, now: float, limit: int = 100) -> list[Connection]:
    ended = []
    for connection in table.expired(now, limit):
        table.remove(connection)
        ended.append(connection)
    return ended


@pytest.mark.parametrize(("client", "virtual", "server"), [(C4, V4, S4), (C6, V6, S6)])
def test_a_connection_tells_both_its_ends_from_its_key(
    client: bytes, virtual: bytes, server: bytes
) -> None:
    service = VirtualService("web", 6, virtual, 80, "rr")
    real = RealServer(service, server, 8080, 1, ForwardMethod.NAT)
    key = connection_key(6, client, 40000, virtual, 80)
    connection = Connection(key, real, 0, 3)
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
    assert table.inbound[connection.key] is connection
    assert table.outbound[connection.reply_key] is connection
    table.remove(connection)
    assert (len(table), table.inbound, table.outbound) == (0, {}, {})


def test_a_reply_key_that_a_later_connection_took_over_stays_with_it() -> None:
    table, old, new = ConnectionTable(10), make(1, 1060.0), make(2, 1060.0)
    new.reply_key = old.reply_key
    table.add(old)
    table.add(new)
    table.remove(old)
    assert table.outbound[new.reply_key] is new


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


def test_only_the_flag_says_whether_a_connection_is_active() -> None:
    connection = make(1, 1060.0)
    assert not connection.active
    connection.flags &= ~ConnectionFlag.INACTIVE
    assert connection.active
