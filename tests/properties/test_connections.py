"""The connection table and its wheel against a plain list."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath import state_machines
from lvsha.datapath.connections import Connection, ConnectionTable, reply_key
from lvsha.datapath.services import (
    Binding,
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.model import ForwardMethod, connection_key

V, S, C = b"\xc0\x00\x02\x01", b"\x0a\x01\x00\x02", b"\xc6\x33\x64\x07"


@dataclass
class Entry:
    """The twin's connection."""

    connection: Connection
    expires: float


TCP = state_machines.tcp()


def _binding() -> Binding:
    service = VirtualService("web", ServiceIdentity(4, 6, V, 80), ServiceOptions())
    server = RealServer(service, S, 8080, ServerOptions(ForwardMethod.NAT))
    return server.bind(V, 80, 8080)


def _check_wheel(table: ConnectionTable) -> None:
    """Each connection lies in exactly one second, and in none later than its end."""
    lying = [c for second in table._wheel.values() for c in second]
    assert len(lying) == len(set(lying)) == len(table)
    for second, connections in table._wheel.items():
        for connection in connections:
            assert connection.second == second
            assert second <= int(connection.expires) + 1
    assert sorted(table._seconds) == sorted(table._wheel)


operations = st.lists(
    st.tuples(
        st.sampled_from(["open", "touch", "hasten", "remove", "sleep", "sleep"]),
        st.integers(0, 7),
        st.floats(0.1, 400, allow_nan=False),
        st.integers(1, 6),
    ),
    max_size=60,
)


@given(operations)
def test_what_ends_and_when_is_what_a_scan_would_find(
    steps: list[tuple[str, int, float, int]],
) -> None:
    table, binding, now = ConnectionTable(1000), _binding(), 1000.0
    twin: dict[bytes, Entry] = {}
    for operation, client, amount, batch in steps:
        key = connection_key(6, C, 40000 + client, V, 80)
        entry = twin.get(key)
        match operation:
            case "open" if entry is None:
                connection = Connection(key, binding, TCP, 0, amount)
                connection.reply_key = reply_key(key, S, 8080)
                connection.expires = now + amount
                table.add(connection)
                twin[key] = Entry(connection, now + amount)
            case "touch" if entry is not None:
                # A packet moves the end forward and tells the wheel nothing.
                later = max(entry.expires, now + entry.connection.timeout)
                entry.connection.expires = entry.expires = later
            case "hasten" if entry is not None:
                entry.connection.timeout = amount
                entry.connection.expires = entry.expires = now + amount
                table.hasten(entry.connection)
            case "remove" if entry is not None:
                table.remove(twin.pop(key).connection)
            case "sleep":
                now += amount
                _sweep(table, twin, now, batch)
        _check_wheel(table)
        assert {c.key for c in table.connections()} == set(twin)
        assert all(table.find(key) is entry.connection for key, entry in twin.items())
        assert {key for shard in table.outbound for key in shard} == {
            e.connection.reply_key for e in twin.values()
        }
        assert len(table) == len(twin)
        deadline = table.deadline
        assert all(deadline is not None and deadline <= e.expires + 1 for e in twin.values())


def _sweep(table: ConnectionTable, twin: dict[bytes, Entry], now: float, batch: int) -> None:
    ended: set[bytes] = set()
    for _ in range(1000):
        before = len(ended)
        for connection in table.due(now, batch):
            if connection.expires <= now:
                table.remove(connection)
                ended.add(connection.key)
        if table.deadline is None or table.deadline > now:
            break
        assert len(ended) - before <= batch
    # An end is found in the second after it, never before it and never later.
    must = {key for key, entry in twin.items() if int(entry.expires) + 1 <= now}
    may = {key for key, entry in twin.items() if entry.expires <= now}
    assert must <= ended <= may
    for key in ended:
        del twin[key]
