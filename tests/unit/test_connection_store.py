"""A director's table as the sync sees it: sorted by sync id, and nothing of other addresses."""

from lvsha.connection_store import ConnectionStore
from lvsha.datapath.connections import SLICE
from lvsha.datapath.replication import SWEEP_MAX
from lvsha.datapath.service_policy import ESTABLISHED, TellRule
from lvsha.datapath.tcp_states import ACK, SYN
from lvsha.datapath.telling import REFRESH_PART
from lvsha.model import (
    BUCKETS,
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
    bucket_of,
    connection_key,
    parse_address,
)
from lvsha.runs import Runs
from tests import packets
from tests.laboratory import C4, Laboratory

WEB, MAIL, LOCAL = "192.0.2.10", "192.0.2.20", "192.0.2.30"
WEB_ID, MAIL_ID = 51, 52


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(virtual: str = WEB, port: int = 40000, server: str = "10.1.0.11") -> ConnectionRecord:
    """An established connection that a peer tells of."""
    return ConnectionRecord.between(
        protocol=6,
        client=parse_address("198.51.100.1"),
        client_port=port,
        virtual=parse_address(virtual),
        virtual_port=80,
        server=parse_address(server),
        server_port=80,
        method=ForwardMethod.NAT,
        state=1,
        flags=0,
        timeout=900.0,
    )


def key_of(port: int, virtual: str) -> bytes:
    return connection_key(6, parse_address(C4), port, parse_address(virtual), 80)


def client_port(told: ConnectionRecord) -> int:
    return int.from_bytes(told.key[-4:-2])


def make(
    connections_max: int = 5, reporting: TellRule | None = None
) -> tuple[ConnectionStore, Laboratory, Clock]:
    """Three services, two of them on addresses that virtual routers move."""
    laboratory = Laboratory(
        vips=[WEB, MAIL, LOCAL], connections_max=connections_max, reporting=reporting
    )
    laboratory.director.registry.tallies.clear()
    for address in (WEB, MAIL, LOCAL):
        laboratory.server(laboratory.service(address))
    clock = Clock()
    sync_ids = {parse_address(WEB): WEB_ID, parse_address(MAIL): MAIL_ID}
    return ConnectionStore(laboratory.director, sync_ids, clock), laboratory, clock


def ports(store: ConnectionStore, sync_id: int) -> list[int]:
    told = Runs(list(filter(None, store.records(sync_id, range(BUCKETS)))))
    return sorted(client_port(r) for r in told)


def finish(laboratory: Laboratory) -> None:
    """Let the director do all its chores."""
    while laboratory.director.housekeep(laboratory.now):
        pass


def test_a_record_enters_the_table_at_the_time_of_the_clock() -> None:
    store, laboratory, clock = make()
    clock.now = 5000.0
    store.apply([record()])
    (connection,) = laboratory.director.registry.table.connections()
    assert connection.expires == 5000.0 + 900.0 * (1 + REFRESH_PART)
    assert store.counters.snapshot() == {}


def test_what_cannot_be_taken_over_is_counted_by_its_reason() -> None:
    store, laboratory, _ = make()
    store.apply([record()._replace(state=99), record()._replace(flags=0x2000)])
    store.apply([record(port=port) for port in range(1, 8)])
    assert store.counters.snapshot() == {
        "records_refused_flags": 1,
        "records_refused_malformed": 1,
        "records_refused_table_full": 2,
    }
    assert len(laboratory.director.registry.table) == 5


def test_each_sync_id_has_its_own_connections_and_count() -> None:
    store, _, _ = make()
    store.apply([record(WEB, 1)])
    store.apply([record(WEB, 2)])
    store.apply([record(MAIL, 3)])
    store.apply([record(LOCAL, 4)])
    assert ports(store, WEB_ID) == [1, 2]
    assert ports(store, MAIL_ID) == [3]
    assert (store.tally(WEB_ID).connections, store.tally(MAIL_ID).connections) == (2, 1)
    assert store.tally(7).connections == 0
    assert ports(store, 7) == []


def test_a_connection_that_its_source_ended_is_forgotten() -> None:
    store, laboratory, _ = make()
    store.apply([record()])
    store.forget([record().key])
    store.forget([record().key])
    assert len(laboratory.director.registry.table) == 0
    assert not laboratory.director.registry.untold


def test_a_snapshot_sweeps_only_its_own_sync_id() -> None:
    store, laboratory, _ = make()
    for port in (1, 2):
        store.apply([record(WEB, port)])
    store.apply([record(MAIL, 3)])
    store.begin(WEB_ID, None)
    store.apply([record(WEB, 2)])
    store.end(WEB_ID, None)
    finish(laboratory)
    assert ports(store, WEB_ID) == [2]
    assert ports(store, MAIL_ID) == [3]
    assert store.counters["connections_swept"] == 1


def test_snapshots_of_two_sync_ids_may_overlap() -> None:
    store, laboratory, _ = make()
    for virtual, port in ((WEB, 1), (WEB, 2), (MAIL, 3), (MAIL, 4)):
        store.apply([record(virtual, port)])
    store.begin(WEB_ID, None)
    store.apply([record(WEB, 1)])
    store.begin(MAIL_ID, None)
    store.apply([record(MAIL, 3)])
    store.end(WEB_ID, None)
    finish(laboratory)
    assert (ports(store, WEB_ID), ports(store, MAIL_ID)) == ([1], [3, 4])
    store.end(MAIL_ID, None)
    finish(laboratory)
    assert ports(store, MAIL_ID) == [3]


def test_a_second_begin_begins_anew() -> None:
    store, laboratory, _ = make()
    store.begin(WEB_ID, None)
    store.apply([record(WEB, 1)])
    store.begin(WEB_ID, None)
    store.end(WEB_ID, None)
    finish(laboratory)
    assert ports(store, WEB_ID) == []


def test_a_sweep_is_done_in_parts_and_counted_as_it_goes_on() -> None:
    store, laboratory, _ = make(connections_max=2000)
    for port in range(1, 1501):
        store.apply([record(WEB, port)])
    store.begin(WEB_ID, None)
    store.end(WEB_ID, None)
    assert store.counters["connections_swept"] == 0
    for _ in range(2):
        laboratory.director.housekeep(laboratory.now)
    assert 0 < store.counters["connections_swept"] <= 2 * SLICE
    assert store.tally(WEB_ID).connections == 1500 - store.counters["connections_swept"] > 0
    finish(laboratory)
    assert store.counters["connections_swept"] == 1500
    assert len(laboratory.director.registry.table) == 0


def test_what_is_applied_or_opened_while_a_sweep_goes_on_stays() -> None:
    store, laboratory, _ = make(connections_max=2000)
    for port in range(1, 1501):
        store.apply([record(WEB, port)])
    store.begin(WEB_ID, None)
    laboratory.send("client", packets.tcp(C4, 40001, WEB, 80, SYN))
    store.end(WEB_ID, None)
    laboratory.send("client", packets.tcp(C4, 40002, WEB, 80, SYN))
    store.apply([record(WEB, 1500)])
    store.apply([record(WEB, 40003)])
    finish(laboratory)
    left = laboratory.director.registry.table.connections()
    assert sorted(c.client[1] for c in left) == [1500, 40001, 40002, 40003]


def test_a_sweep_begins_anew_when_the_next_snapshot_ends_first() -> None:
    store, laboratory, _ = make(connections_max=2000)
    for port in range(1, 1501):
        store.apply([record(WEB, port)])
    for named in (range(1, 1501), range(1, 11)):
        store.begin(WEB_ID, None)
        for port in named:
            store.apply([record(WEB, port)])
        store.end(WEB_ID, None)
        for _ in range(3):
            laboratory.director.housekeep(laboratory.now)
    finish(laboratory)
    assert ports(store, WEB_ID) == list(range(1, 11))
    assert store.counters["connections_swept"] == 1490
    assert not laboratory.director.housekeep(laboratory.now)


def test_after_a_sweep_there_may_be_another() -> None:
    store, laboratory, _ = make()
    for port in (1, 2):
        store.apply([record(WEB, port)])
        store.begin(WEB_ID, None)
        store.end(WEB_ID, None)
        finish(laboratory)
        assert store.counters["connections_swept"] == port
        assert ports(store, WEB_ID) == []


def test_an_end_without_a_begin_sweeps_nothing() -> None:
    store, _, _ = make()
    store.apply([record()])
    store.end(WEB_ID, None)
    assert store.tally(WEB_ID).connections == 1


def test_changes_are_sorted_by_sync_id_and_those_of_others_left_out() -> None:
    store, laboratory, _ = make(reporting=ESTABLISHED)
    for number, virtual in enumerate((WEB, MAIL, WEB, LOCAL)):
        for flags in (SYN, ACK):
            laboratory.send("client", packets.tcp(C4, number, virtual, 80, flags))
    told = laboratory.director.registry.take_changes()
    assert {
        sync_id: [client_port(c.record) for c in changes if isinstance(c, ConnectionChanged)]
        for sync_id, changes in told.items()
    } == {WEB_ID: [0, 2], MAIL_ID: [1]}
    for connection in list(laboratory.director.registry.table.connections()):
        laboratory.director.registry.end(connection)
    told = laboratory.director.registry.take_changes()
    assert told[MAIL_ID] == [ConnectionEnded(key_of(1, MAIL))]
    assert (len(told[WEB_ID]), set(told)) == (2, {WEB_ID, MAIL_ID})
    assert store.tally(WEB_ID).connections == store.tally(MAIL_ID).connections == 0


def test_a_bucket_is_swept_at_once() -> None:
    store, laboratory, _ = make()
    store.apply([record(port=port) for port in (1, 2, 257)])
    bucket = bucket_of(record(port=1).key)
    assert bucket_of(record(port=257).key) == bucket
    store.begin(WEB_ID, bucket)
    store.apply([record(port=257)])
    store.end(WEB_ID, bucket)
    assert ports(store, WEB_ID) == [2, 257]
    assert store.counters["connections_swept"] == 1
    assert not laboratory.director._housekeeping._chores
    store.end(WEB_ID, bucket)
    assert ports(store, WEB_ID) == [2, 257]


def test_buckets_and_all_may_be_marked_at_the_same_time() -> None:
    store, laboratory, _ = make()
    store.apply([record(port=port) for port in (1, 2, 257)])
    bucket = bucket_of(record(port=1).key)
    store.begin(WEB_ID, None)
    store.apply([record(port=1)])
    store.begin(WEB_ID, bucket)
    store.apply([record(port=257)])
    store.end(WEB_ID, bucket)
    assert ports(store, WEB_ID) == [2, 257]
    store.end(WEB_ID, None)
    finish(laboratory)
    assert ports(store, WEB_ID) == [257]


def test_the_rest_of_a_crowded_bucket_is_swept_between_frames() -> None:
    store, laboratory, _ = make(connections_max=2000)
    crowd = [
        record(port=256 * high + 7)._replace(
            key=key_of(256 * high + 7, WEB)[:2]
            + bytes((10, 0, low, 1))
            + key_of(256 * high + 7, WEB)[6:]
        )
        for high in range(256)
        for low in range(5)
    ]
    store.apply(crowd)
    store.begin(WEB_ID, 8)
    store.end(WEB_ID, 8)
    assert store.counters["connections_swept"] == SWEEP_MAX
    finish(laboratory)
    assert store.counters["connections_swept"] == len(crowd) == 1280
    assert store.tally(WEB_ID).connections == 0


def test_what_a_peer_asks_for_is_looked_up() -> None:
    store, _, _ = make()
    store.apply([record(port=1)])
    (found,) = store.lookup([record(port=1).key, record(port=2).key])
    assert client_port(found) == 1


def test_what_nobody_knows_is_counted() -> None:
    store, _, _ = make()
    store.deny([record().key])
    assert store.counters["connections_denied"] == 1


def test_a_mark_has_the_tally_of_its_sync_id() -> None:
    laboratory = Laboratory()
    sync_ids = {parse_address(WEB): WEB_ID}
    store = ConnectionStore(laboratory.director, sync_ids, Clock(), {7: WEB_ID, 8: MAIL_ID})
    marks = laboratory.director.registry.mark_tallies
    assert marks == {7: store.tally(WEB_ID), 8: store.tally(MAIL_ID)}
    assert laboratory.director.registry.tallies[parse_address(WEB)] is marks[7]
