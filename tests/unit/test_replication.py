"""What records of another director do, and what it is told of this one's connections."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from lvsha.datapath.connections import Connection
from lvsha.datapath.families import WAITING_MAX
from lvsha.datapath.marks import MarkRule, whole
from lvsha.datapath.memories import FtpDialogue, TemplateIdentity, Unread
from lvsha.datapath.reasons import Reason
from lvsha.datapath.replication import READ_MAX, RUN_MAX, SWEEP_MAX, TEMPLATE_TIMEOUT, Refusal
from lvsha.datapath.service_policy import ESTABLISHED, TellRule, TellWhen
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.datapath.stand_ins import STAND_INS_MAX, StandIn
from lvsha.datapath.tcp_states import TcpState
from lvsha.ipvsadm.views import view_connection
from lvsha.model import (
    BUCKETS,
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    Protocol,
    bucket_of,
    connection_key,
    parse_address,
    template_key,
)
from lvsha.runs import Runs
from lvsha.settings import Settings
from lvsha.tally import Tally
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, TUN, V4, V6, Laboratory, Left
from tests.packets import ACK, FIN, RST, SYN

OTHER, NOWHERE = "10.1.0.12", "10.1.0.55"
INACTIVE, SYNC = ConnectionFlag.INACTIVE, ConnectionFlag.SYNC
TEMPLATE, NO_CLIENT_PORT = ConnectionFlag.TEMPLATE, ConnectionFlag.NO_CLIENT_PORT
NO_OUTPUT, ONE_PACKET = ConnectionFlag.NO_OUTPUT, ConnectionFlag.ONE_PACKET
OF_TEMPLATE = TEMPLATE | INACTIVE | SYNC
MARK = 7


def record(
    *,
    client: str = C4,
    port: int = 40000,
    virtual: str = V4,
    virtual_port: int = 80,
    server: str = S4,
    server_port: int = 80,
    method: ForwardMethod = NAT,
    flags: int = 0,
    state: int = 1,
    protocol: int = 6,
    timeout: float = 900,
    details: ConnectionDetails | None = None,
) -> ConnectionRecord:
    ends = parse_address(client), port, parse_address(virtual), virtual_port
    key = connection_key(protocol, *ends)
    return ConnectionRecord(
        key, parse_address(server), server_port, method, state, flags, timeout, details
    )


def template(
    *,
    client: str = C4,
    virtual: bytes = parse_address(V4),
    port: int = 80,
    server: str = S4,
    server_port: int = 80,
    protocol: int = 6,
    found: bytes = b"",
    flags: int = OF_TEMPLATE,
    state: int = 1,
    timeout: float = 300,
    details: ConnectionDetails | None = None,
) -> ConnectionRecord:
    key = template_key(connection_key(protocol, parse_address(client), 0, virtual, port), found)
    return ConnectionRecord(
        key, parse_address(server), server_port, NAT, state, flags, timeout, details
    )


def apply(laboratory: Laboratory, *records: ConnectionRecord) -> dict[Refusal, int]:
    refused = laboratory.director.replication.apply(records, laboratory.now)
    assert laboratory.miscounted() == []
    assert laboratory.mistallied() == []
    assert not laboratory.director.registry.untold
    return dict(refused)


def all_of(laboratory: Laboratory) -> list[Connection]:
    return list(laboratory.director.registry.table.connections())


def connections(laboratory: Laboratory) -> list[Connection]:
    return [each for each in all_of(laboratory) if not each.is_template]


def only(laboratory: Laboratory) -> Connection:
    (connection,) = connections(laboratory)
    return connection


def only_template(laboratory: Laboratory) -> Connection:
    (found,) = [each for each in all_of(laboratory) if each.is_template]
    return found


def only_service(laboratory: Laboratory) -> VirtualService:
    (service,) = laboratory.director.services
    return service


def request(laboratory: Laboratory, flags: int = SYN, port: int = 40000) -> list[Left]:
    return laboratory.send("client", packets.tcp(C4, port, V4, 80, flags))


@pytest.fixture
def web() -> Laboratory:
    laboratory = Laboratory(reporting=ESTABLISHED)
    laboratory.server(laboratory.service())
    return laboratory


@pytest.fixture
def shop() -> Laboratory:
    """A persistent service with two servers."""
    laboratory = Laboratory(reporting=ESTABLISHED)
    service = laboratory.service(persistence=300)
    for server in (S4, OTHER):
        laboratory.server(service, server)
    return laboratory


# One record


def test_a_record_makes_a_connection_that_is_carried_on(web: Laboratory) -> None:
    assert apply(web, record()) == {}
    connection = only(web)
    assert connection.flags & SYNC
    assert connection.active
    assert len(request(web, ACK)) == 1
    (left,) = web.send("server", packets.tcp(S4, 80, C4, 40000, ACK))
    assert left.side == "client"
    assert web.miscounted() == []


def test_a_copy_lives_a_quarter_longer_than_its_original(web: Laboratory) -> None:
    apply(web, record(timeout=100))
    web.sleep(124)
    assert len(all_of(web)) == 1
    web.sleep(2)
    assert len(all_of(web)) == 0


def test_a_copy_that_is_told_again_lives_longer_or_ends_earlier(web: Laboratory) -> None:
    apply(web, record(timeout=100))
    web.sleep(100)
    apply(web, record(timeout=100))
    web.sleep(124)
    assert len(all_of(web)) == 1
    apply(web, record(state=TcpState.CLOSE, timeout=10, flags=INACTIVE))
    web.sleep(14)
    assert len(all_of(web)) == 0


def test_a_copy_that_was_taken_over_ends_by_its_own_packets(web: Laboratory) -> None:
    apply(web, record(timeout=900))
    web.sleep(10)
    request(web, ACK)
    web.sleep(901)
    assert len(all_of(web)) == 0


def test_without_a_time_out_a_record_has_that_of_its_state(shop: Laboratory) -> None:
    apply(shop, record(timeout=0), template(timeout=0))
    assert only(shop).timeout == 900
    assert only_template(shop).timeout == TEMPLATE_TIMEOUT == 180


def test_what_is_found_takes_state_and_activity_over_and_keeps_the_rest(web: Laboratory) -> None:
    apply(web, record())
    connection = only(web)
    binding, flags = connection.binding, connection.flags
    apply(web, record(state=TcpState.FIN_WAIT, flags=0xFFFF & ~(ONE_PACKET | TEMPLATE)))
    assert only(web) is connection
    assert (connection.state, connection.active) == (TcpState.FIN_WAIT, False)
    assert connection.binding is binding
    # Of the flags only those that a message may change.
    assert connection.flags ^ flags == 0x0700


def test_a_new_ones_flags_are_those_of_a_message_and_of_its_server(web: Laboratory) -> None:
    web.server(only_service(web), OTHER, method=DR)
    apply(web, record(flags=0xFFFF_FFFF & ~(ONE_PACKET | TEMPLATE)))
    assert only(web).flags == 0x0720
    apply(web, record(server=OTHER, flags=0))
    assert only(web).flags == SYNC | NO_OUTPUT


@pytest.mark.parametrize(
    "told",
    [
        record(protocol=47, state=0),
        record(state=11),
        record(state=-1),
        record(protocol=17, state=1),
        record(timeout=-1),
        record(timeout=float("nan")),
        record(timeout=float("inf")),
        record(server_port=-1),
        record(server_port=65536),
        record(server=S6),
        record()._replace(key=b"\x05" + record().key[1:]),
        record()._replace(key=record().key + b"x"),
        record()._replace(key=record(client=C6, virtual=V6).key[:14]),
        template(state=2),
        template(server=S6),
        template(protocol=47),
        template()._replace(key=template().key[:13]),
        template()._replace(key=b"\x85" + template().key[1:]),
        record(details=ConnectionDetails(shifts=(1, 2, 3))),
        record(details=ConnectionDetails(shifts=(0, 0, 0, 0, 0, 2**32))),
        record(details=ConnectionDetails(dialogue=(2,))),
        record(details=ConnectionDetails(dialogue=(1, 5))),
        record(details=ConnectionDetails(dialogue=(1, 2**32, 1))),
        record(details=ConnectionDetails(dialogue=(1, 0, 2))),
    ],
    ids=repr,
)
def test_what_cannot_be_is_refused(web: Laboratory, told: ConnectionRecord) -> None:
    assert apply(web, told) == {Refusal.MALFORMED: 1}
    assert len(all_of(web)) == 0


@pytest.mark.parametrize(
    "told",
    [
        record(flags=ONE_PACKET),
        record(flags=TEMPLATE),
        template(flags=INACTIVE),
        template(flags=OF_TEMPLATE | ONE_PACKET),
        template(flags=OF_TEMPLATE | NO_CLIENT_PORT),
    ],
    ids=repr,
)
def test_flags_that_no_copy_can_have_are_refused(web: Laboratory, told: ConnectionRecord) -> None:
    assert apply(web, told) == {Refusal.FLAGS: 1}
    assert len(all_of(web)) == 0


def test_a_record_beyond_the_limit_is_refused_and_a_change_is_not(web: Laboratory) -> None:
    web.director.registry.table._limit = 1
    assert apply(web, record()) == {}
    assert apply(web, record(port=1), template()) == {Refusal.TABLE_FULL: 2}
    assert apply(web, record(state=TcpState.FIN_WAIT)) == {}


def test_a_record_moves_a_connection_unless_it_is_an_old_ones_late_end(web: Laboratory) -> None:
    web.server(only_service(web), OTHER)
    apply(web, record())
    assert apply(web, record(server=OTHER, flags=INACTIVE)) == {Refusal.LATE: 1}
    assert str(only(web).server) == f"{S4}:80"
    assert apply(web, record(server=OTHER)) == {}
    assert str(only(web).server) == f"{OTHER}:80"


def test_a_copy_follows_its_source_to_another_server_though_it_is_inactive(
    web: Laboratory,
) -> None:
    web.server(only_service(web), OTHER)
    web.director.hold(parse_address(V4), held=False)
    apply(web, record())
    assert apply(web, record(server=OTHER, flags=INACTIVE)) == {}
    assert str(only(web).server) == f"{OTHER}:80"


def test_another_port_of_the_same_server_is_another_server(web: Laboratory) -> None:
    web.server(only_service(web), S4, 8080)
    apply(web, record())
    apply(web, record(server_port=8080))
    assert only(web).binding.port == 8080


def test_forgetting_removes_connections_and_templates_and_tells_nobody(shop: Laboratory) -> None:
    apply(shop, record(), template())
    replication = shop.director.replication
    for _ in range(2):
        replication.forget([template().key, record().key, record(port=9).key])
    assert all_of(shop) == []
    assert shop.director.registry.take_changes() == {}
    assert shop.miscounted() == []


def test_a_copy_counts_as_told_and_as_little_as_told_when_it_is_taken_over(
    web: Laboratory,
) -> None:
    apply(web, record())
    assert (web.tally.told, web.tally.established, web.tally.exposed) == (1, 1, 0)
    request(web, ACK)
    assert len(web.director.registry.take_changes()) == 1


def test_by_the_kernels_rule_a_copy_counts_its_packets_from_the_threshold_on() -> None:
    laboratory = Laboratory(
        reporting=TellRule(TellWhen.THRESHOLD), settings=Settings(sync_threshold=(3, 5))
    )
    laboratory.server(laboratory.service())
    apply(laboratory, record())
    told = []
    for number in range(1, 8):
        request(laboratory, ACK)
        if laboratory.director.registry.take_changes():
            told.append(number)
    assert told == [5]


# Runs of records that differ only in their client


ENDS = pytest.mark.parametrize(("client", "virtual", "server"), [(C4, V4, S4), (C6, V6, S6)])


def state_of(laboratory: Laboratory) -> tuple[object, ...]:
    """Everything that records may change."""
    table = laboratory.director.registry.table
    return (
        [
            tuple(
                getattr(c, name)
                for name in c.__slots__
                if name not in {"binding", "machine", "tally", "parent", "generation"}
            )
            for c in table.connections()
        ],
        [(key, connection.key) for shard in table.outbound for key, connection in shard.items()],
        {key: [c.key for c in hidden] for key, hidden in table._hidden.items()},
        {second: sorted(c.key for c in lying) for second, lying in table._wheel.items()},
        len(table),
        laboratory.tally.sums,
        [
            (s.active, s.inactive, s.overloaded)
            for service in laboratory.director.services
            for s in service.servers
        ],
    )


def twins(**service: object) -> tuple[Laboratory, Laboratory]:
    made = []
    for _ in range(2):
        laboratory = Laboratory(reporting=ESTABLISHED, connections_max=500)
        for virtual, servers in ((V4, (S4, OTHER)), (V6, (S6,))):
            web = laboratory.service(virtual)
            for server in servers:
                laboratory.server(web, server, upper=40)
        made.append(laboratory)
    return made[0], made[1]


@ENDS
@pytest.mark.parametrize("method", [NAT, DR])
def test_a_run_is_entered_as_its_records_one_by_one_would_be(
    client: str, virtual: str, server: str, method: ForwardMethod
) -> None:
    ends = {"client": client, "virtual": virtual, "server": server, "method": method}
    run = [record(port=port, **ends) for port in (*range(1, 60), 5, 7, 7)]  # type: ignore[arg-type]
    changed = [each._replace(state=TcpState.FIN_WAIT, flags=INACTIVE) for each in run[10:50]]
    at_once, one_by_one = twins()
    apply(at_once, *run, *changed, *run[20:70])
    for each in (*run, *changed, *run[20:70]):
        apply(one_by_one, each)
    assert state_of(at_once) == state_of(one_by_one)
    assert len(at_once.director.registry.table) == 59


def test_a_run_of_changes_is_carried_out_as_its_records_one_by_one_would_be() -> None:
    known = [record(port=port) for port in range(1, 20)]
    moved = [record(port=port, server=OTHER) for port in (4, 5, 12)]
    closed = {"state": int(TcpState.FIN_WAIT), "flags": int(INACTIVE), "timeout": 120.0}
    runs = [
        [record(port=port, **closed) for port in range(1, 30)],  # type: ignore[arg-type]
        [record(port=port, flags=int(ConnectionFlag.IN_SEQUENCE)) for port in range(3, 9)],
        [record(port=port, server=OTHER, flags=int(INACTIVE)) for port in range(2, 6)],
    ]
    at_once, one_by_one = twins()
    for laboratory in (at_once, one_by_one):
        apply(laboratory, *known)
        apply(laboratory, *moved)
    for run in runs:
        apply(at_once, *run)
        for each in run:
            apply(one_by_one, each)
        assert state_of(at_once) == state_of(one_by_one)


def test_a_run_ends_where_anything_but_the_client_differs(web: Laboratory) -> None:
    web.server(only_service(web), OTHER)
    for virtual, port, protocol in ((V4, 81, 6), (V4, 80, 17), ("192.0.2.99", 80, 6)):
        web.server(web.service(virtual, port, protocol=Protocol(protocol)), S4, 80)
    differing: list[dict[str, object]] = [
        {"state": int(TcpState.FIN_WAIT)},
        {"flags": int(INACTIVE)},
        {"timeout": 100.0},
        {"server": OTHER},
        {"virtual_port": 81},
        {"virtual": "192.0.2.99"},
        {"protocol": 17, "state": 0},
        {"details": ConnectionDetails(others=((99, b"x"),))},
    ]
    records = []
    for number, values in enumerate(differing):
        alike: dict[str, object] = {"state": 0} if "protocol" in values else {}
        for port in range(6):
            ends = alike if port < 3 else values
            records.append(record(port=100 * number + port, **ends))  # type: ignore[arg-type]
    apply(web, *records)
    lookup = web.director.replication.lookup
    for told in records:
        (found,) = lookup([told.key])
        assert found._replace(flags=found.flags & ~SYNC) == told
    for connection in connections(web):
        service = connection.server.service.identity
        own = connection.protocol, *connection.virtual
        assert own == (service.protocol, service.address, service.port)


def test_a_run_that_does_not_fit_is_entered_as_far_as_it_does(web: Laboratory) -> None:
    web.director.registry.table._limit = 10
    run = [record(port=port) for port in range(1, 16)]
    assert apply(web, *run) == {Refusal.TABLE_FULL: 5}
    assert len(all_of(web)) == 10
    assert apply(web, *run) == {Refusal.TABLE_FULL: 5}


def test_a_long_run_is_entered_in_parts(web: Laboratory) -> None:
    apply(web, *(record(port=port) for port in range(1, 3 * RUN_MAX)))
    assert web.tally.told == 3 * RUN_MAX - 1


def test_replies_find_each_connection_of_a_run_and_the_newest_of_two(web: Laboratory) -> None:
    other = web.service("192.0.2.99")
    web.server(other, S4)
    apply(web, *(record(port=port, virtual="192.0.2.99") for port in (1, 2, 3)))
    apply(web, *(record(port=port) for port in (1, 2, 3)))
    for port in (1, 2, 3):
        (left,) = web.send("server", packets.tcp(S4, 80, C4, port, ACK))
        assert left.packet[12:16] == parse_address(V4)
    web.director.replication.forget([record(port=2).key])
    (left,) = web.send("server", packets.tcp(S4, 80, C4, 2, ACK))
    assert left.packet[12:16] == parse_address("192.0.2.99")


def test_of_a_run_whose_clients_have_different_marks_each_gets_its_own() -> None:
    laboratory = Laboratory()
    virtual = "203.0.113.80"
    registry, director = laboratory.director.registry, laboratory.director
    rules = []
    for mark, client in ((1, "198.51.100.1"), (2, "198.51.100.2")):
        rules.append(MarkRule(mark, (parse_address(virtual), 32), (parse_address(client), 32)))
        identity = ServiceIdentity(4, 6, mark=mark)
        director.services.add(identity, ServiceOptions("rr"))
        director.services.add_server(identity, parse_address(S4), 0, ServerOptions(NAT))
        registry.mark_tallies[mark] = Tally(mark)
    director.marks.set(rules)
    run = [
        record(client=f"198.51.100.{last}", port=port, virtual=virtual)
        for last, port in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3))
    ]
    apply(laboratory, *run)
    found = {c.client: c.server.service.identity.mark for c in connections(laboratory)}
    assert found == {
        (parse_address(f"198.51.100.{mark}"), port): mark
        for mark, port in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2))
    }
    assert [registry.mark_tallies[mark].told for mark in (1, 2)] == [3, 2]


# Templates


def test_a_template_keeps_its_client_at_the_server_that_it_names(shop: Laboratory) -> None:
    apply(shop, template(server=OTHER))
    kept = only_template(shop)
    assert (kept.timeout, kept.expires) == (300, shop.now + 375)
    assert (kept.server.persistent, kept.is_established) == (1, False)
    for port in range(4):
        (left,) = request(shop, port=port)
        assert left.dmac.endswith("0c")
    assert {c.parent for c in connections(shop)} == {kept}


def test_a_template_that_is_told_again_takes_state_and_time_over(shop: Laboratory) -> None:
    apply(shop, template(state=0, timeout=100))
    kept = only_template(shop)
    assert shop.tally.sums[bucket_of(template().key)]
    apply(shop, template(state=1, timeout=500))
    assert only_template(shop) is kept
    assert (kept.state, kept.timeout, kept.expires) == (1, 500, shop.now + 625)


def test_a_template_that_names_another_server_replaces_the_older_one(shop: Laboratory) -> None:
    shop.director.hold(parse_address(V4), held=False)
    apply(shop, template(), record())
    assert apply(shop, template(server=OTHER)) == {}
    found = shop.director.registry.table.template(template().key)
    assert found is not None
    assert str(found.server) == f"{OTHER}:80"
    assert shop.tally.connections == 2
    for _ in range(2):
        shop.sleep(2000)
    assert all_of(shop) == []


def test_where_connections_are_opened_a_template_of_another_server_comes_too_late(
    shop: Laboratory,
) -> None:
    request(shop)
    own = only_template(shop).server
    other = OTHER if str(own) == f"{S4}:80" else S4
    assert apply(shop, template(server=other)) == {Refusal.LATE: 1}
    assert only_template(shop).server is own


def test_a_template_of_a_call_needs_its_engine() -> None:
    laboratory = Laboratory(reporting=ESTABLISHED)
    service = laboratory.service(port=5060, protocol=Protocol.UDP, persistence=300, engine="sip")
    laboratory.server(service)
    call = template(protocol=17, port=5060, server_port=5060, found=b"1@a")
    assert apply(laboratory, call) == {Refusal.ENGINE: 1}
    odd = call._replace(details=ConnectionDetails(engine="odd"))
    assert apply(laboratory, odd) == {Refusal.ENGINE: 1}
    assert apply(laboratory, call._replace(details=ConnectionDetails(engine="sip"))) == {}
    kept = only_template(laboratory)
    assert isinstance(kept.dialogue, TemplateIdentity)
    assert kept.dialogue.found == b"1@a"
    shown = view_connection(kept, laboratory.now)
    assert (shown.engine, shown.found, shown.synced) == ("sip", b"1@a", True)
    (again,) = laboratory.director.replication.lookup([call.key])
    assert again == call._replace(details=ConnectionDetails(engine="sip"))


def marked() -> tuple[Laboratory, VirtualService, RealServer]:
    """A persistent service of a mark, which has a sync id of its own."""
    laboratory = Laboratory(reporting=ESTABLISHED)
    director = laboratory.director
    identity = ServiceIdentity(4, 6, mark=MARK)
    service = director.services.add(identity, ServiceOptions("rr", persistence=300))
    server = director.services.add_server(identity, parse_address(S4), 0, ServerOptions(NAT))
    director.marks.set([MarkRule(MARK, (parse_address("203.0.113.0"), 24))])
    director.registry.mark_tallies[MARK] = Tally(MARK)
    return laboratory, service, server


def test_a_template_of_a_mark_belongs_to_the_service_and_the_sync_id_of_the_mark() -> None:
    laboratory, _, server = marked()
    told = template(virtual=MARK.to_bytes(4), port=0, protocol=0, server_port=0)
    assert apply(laboratory, told) == {}
    kept = only_template(laboratory)
    assert kept.server is server
    assert laboratory.director.registry.mark_tallies[MARK].told == 1
    (left,) = laboratory.send("client", packets.tcp(C4, 5, "203.0.113.9", 99, SYN))
    assert left.packet[16:20] == parse_address(S4)
    assert only(laboratory).parent is kept
    (again,) = laboratory.director.replication.lookup([told.key])
    assert again == told._replace(details=ConnectionDetails(mark=MARK))


def test_what_a_mark_opens_follows_its_source_while_its_sync_ids_addresses_are_elsewhere() -> None:
    laboratory, service, _ = marked()
    laboratory.director.services.add_server(
        service.identity, parse_address(OTHER), 0, ServerOptions(NAT)
    )
    registry = laboratory.director.registry
    registry.mark_tallies[MARK] = laboratory.tally
    virtual = MARK.to_bytes(4)
    told = template(virtual=virtual, port=0, protocol=0, server_port=0)
    connection = record(virtual="203.0.113.9", flags=INACTIVE)
    apply(laboratory, told, connection)
    other = [each._replace(server=parse_address(OTHER)) for each in (told, connection)]
    assert apply(laboratory, *other) == {Refusal.LATE: 2}
    for address in (V4, V6):
        laboratory.director.hold(parse_address(address), held=False)
    assert apply(laboratory, *other) == {}


def test_a_template_of_all_ports_and_one_of_ftp_find_their_servers() -> None:
    laboratory = Laboratory()
    ftp = laboratory.server(laboratory.service(port=21, persistence=300), S4, 2121)
    told = template(port=0, server_port=0)
    apply(laboratory, told)
    assert only_template(laboratory).server is ftp
    any_port = laboratory.server(laboratory.service(port=0, persistence=300), OTHER, 0)
    apply(laboratory, template(client="198.51.100.9", port=0, server=OTHER, server_port=0))
    found = {c.server for c in all_of(laboratory)}
    assert found == {ftp, any_port}


def test_a_templates_service_is_the_one_at_its_port_and_no_other(shop: Laboratory) -> None:
    shop.server(shop.service(port=21, persistence=300), S4)
    apply(shop, template(port=8080, server_port=8080))
    assert isinstance(only_template(shop).server, StandIn)


# Families


@pytest.mark.parametrize("template_first", [True, False])
def test_a_connection_belongs_to_the_template_of_its_client(
    shop: Laboratory, template_first: bool
) -> None:
    told = [template(timeout=10), record(), record(port=9)]
    apply(shop, *(told if template_first else reversed(told)))
    kept = only_template(shop)
    assert [c.parent for c in connections(shop)] == [kept, kept]
    shop.sleep(700)
    assert len(all_of(shop)) == 3
    for _ in range(2):
        shop.sleep(500)
    assert all_of(shop) == []


def test_a_connection_does_not_belong_to_a_template_of_another_server(shop: Laboratory) -> None:
    apply(shop, template(server=OTHER), record())
    assert only(shop).parent is None


def test_a_connection_that_was_told_before_its_template_is_linked_when_told_again(
    shop: Laboratory,
) -> None:
    apply(
        shop,
        *(
            record(
                port=port % 60_000, client=f"198.51.{port % 256}.{port // 60_000}", virtual_port=80
            )
            for port in range(1, 3)
        ),
    )
    laboratory, families = shop, shop.director.replication._families
    assert len(families) == 2
    families._waiting.clear()
    families._count = 0
    apply(laboratory, template(client="198.51.1.0"))
    first = next(c for c in connections(laboratory) if c.client[1] == 1)
    assert first.parent is None
    apply(laboratory, record(port=1, client="198.51.1.0"))
    assert first.parent is only_template(laboratory)


def test_only_so_many_connections_wait_for_their_template(shop: Laboratory) -> None:
    families = shop.director.replication._families
    for number in range(WAITING_MAX + 5):
        client = (0x0B000000 + number).to_bytes(4)
        key = connection_key(6, client, 1, parse_address(V4), 80)
        shop.director.replication.apply([record()._replace(key=key)], shop.now)
    assert len(families) == WAITING_MAX


def ftp(*, method: ForwardMethod = NAT, persistence: int = 0) -> Laboratory:
    laboratory = Laboratory(reporting=ESTABLISHED)
    laboratory.server(laboratory.service(port=21, persistence=persistence), S4, 21, method=method)
    return laboratory


CONTROL = record(virtual_port=21, server_port=21)
DATA = record(
    port=0,
    virtual_port=3000,
    server_port=3000,
    state=TcpState.LISTEN,
    flags=NO_CLIENT_PORT | INACTIVE,
    timeout=120,
    details=ConnectionDetails(parent=CONTROL.key),
)


@pytest.mark.parametrize("control_first", [True, False])
def test_ftp_data_belong_to_their_control_connection(control_first: bool) -> None:
    laboratory = ftp()
    apply(laboratory, *((CONTROL, DATA) if control_first else (DATA, CONTROL)))
    control = laboratory.director.registry.table.find(CONTROL.key)
    data = laboratory.director.registry.table.find(DATA.key)
    assert control is not None
    assert data is not None
    assert (data.parent, control.children) == (control, 1)
    assert laboratory.director.replication.lookup([DATA.key]) == [
        DATA._replace(flags=DATA.flags | SYNC)
    ]


@pytest.mark.parametrize("other_first", [True, False])
def test_ftp_data_that_another_session_expects_belong_to_that(other_first: bool) -> None:
    laboratory = ftp()
    other = CONTROL._replace(key=record(port=40001, virtual_port=21).key)
    apply(laboratory, CONTROL, DATA)
    now_of_other = DATA._replace(details=ConnectionDetails(parent=other.key))
    apply(laboratory, *((other, now_of_other) if other_first else (now_of_other, other)))
    controls = [laboratory.director.registry.table.find(c.key) for c in (CONTROL, other)]
    assert [c.children for c in controls if c is not None] == [0, 1]


@pytest.mark.parametrize("parent", [CONTROL.key, record().key, b"\x84" + CONTROL.key[1:]])
def test_no_record_makes_a_circle_of_families(parent: bytes) -> None:
    laboratory = ftp()
    laboratory.server(laboratory.service())
    details = ConnectionDetails(parent=parent)
    apply(laboratory, CONTROL, record(), CONTROL._replace(details=details), record(details=details))
    apply(laboratory, CONTROL._replace(details=details), record(details=details))
    laboratory.sleep(1200)
    assert all_of(laboratory) == []


def test_a_child_of_a_call_belongs_to_the_template_that_its_record_names() -> None:
    laboratory = Laboratory(reporting=ESTABLISHED)
    service = laboratory.service(port=5060, protocol=Protocol.UDP, persistence=300, engine="sip")
    laboratory.server(service)
    sip = ConnectionDetails(engine="sip")
    call = template(protocol=17, port=5060, server_port=5060, found=b"1@a", details=sip)
    of_call = record(
        protocol=17, virtual_port=5060, server_port=5060, state=0, flags=INACTIVE,
        details=ConnectionDetails(parent=call.key),
    )  # fmt: skip
    apply(laboratory, of_call, call)
    assert only(laboratory).parent is only_template(laboratory)
    assert laboratory.director.replication.lookup([of_call.key]) == [
        of_call._replace(flags=of_call.flags | SYNC)
    ]


# What few records have


SHIFTS = (1, 2, 3, 4, 5, 6)
SHIFTED = CONTROL._replace(
    flags=int(ConnectionFlag.OUT_SEQUENCE | SYNC),
    details=ConnectionDetails(shifts=SHIFTS, dialogue=(3, 77, 1)),
)


def test_a_dialogue_is_taken_over_and_told_on_as_it_was() -> None:
    laboratory = ftp()
    apply(laboratory, SHIFTED)
    dialogue = only(laboratory).dialogue
    assert isinstance(dialogue, FtpDialogue)
    assert (dialogue.adjustment.in_set, dialogue.adjustment.out_set) == (False, True)
    assert dialogue.adjustment.out.init_seq == 4
    assert dialogue.adjustment.in_.previous_delta == 3
    assert (dialogue.mode.value, dialogue.answered[0], dialogue.answered[1].value) == (3, 77, 1)
    assert laboratory.director.replication.lookup([CONTROL.key]) == [SHIFTED]
    apply(laboratory, CONTROL._replace(details=ConnectionDetails(dialogue=(1,))))
    assert (dialogue.mode.value, dialogue.answered[0]) == (1, -1)
    assert not dialogue.adjustment.out_set


def test_shifts_of_what_is_not_read_here_are_left_out(web: Laboratory) -> None:
    apply(web, record(details=SHIFTED.details))
    assert only(web).dialogue is None


def test_what_a_later_version_tells_goes_on_as_it_came(shop: Laboratory) -> None:
    later = ConnectionDetails(others=((9, b"nine"), (10, b"ten")))
    laboratory = ftp()
    shop_records = [record(details=later), template(details=later)]
    apply(shop, *shop_records)
    assert shop.director.replication.lookup([each.key for each in shop_records]) == [
        record(details=later, flags=SYNC), template(details=later)
    ]  # fmt: skip
    for connection in all_of(shop):
        assert isinstance(connection.dialogue, Unread)
    assert len(request(shop, ACK)) == 1
    shop.director.registry.take_changes()
    apply(shop, record(), template())
    assert [c.dialogue for c in all_of(shop)] == [None, None]
    apply(laboratory, CONTROL._replace(details=later))
    assert laboratory.director.replication.lookup([CONTROL.key])[0].details == later


# What has no server here


@pytest.mark.parametrize("told", [record(server=NOWHERE), record(protocol=17, state=0)])
def test_a_connection_without_server_or_service_exists_and_counts_at_no_server(
    web: Laboratory, told: ConnectionRecord
) -> None:
    assert apply(web, told) == {}
    connection = only(web)
    assert isinstance(connection.server, StandIn)
    assert (web.tally.told, web.director.replication.unbound) == (1, 1)
    assert all(server.idle for server in only_service(web).servers)
    shown = view_connection(connection, web.now)
    assert (shown.server, shown.server_port, shown.synced) == (told.server, 80, True)
    web.director.replication.forget([told.key])
    assert web.director.replication.unbound == 0
    del connection
    assert len(web.director.replication._stand_ins._servers) == 0


def test_an_unbound_connection_is_translated_both_ways(web: Laboratory) -> None:
    apply(web, record(server=NOWHERE, server_port=8080))
    (left,) = request(web, FIN | ACK)
    assert left.side == "server"
    assert (left.packet[16:20], left.packet[22:24]) == (parse_address(NOWHERE), b"\x1f\x90")
    (left,) = web.send("server", packets.tcp(NOWHERE, 8080, C4, 40000, ACK))
    assert (left.side, left.packet[12:16]) == ("client", parse_address(V4))
    assert only(web).state == TcpState.CLOSE_WAIT
    assert web.director.services.counted().in_packets == 0


def test_an_unbound_connection_is_routed_but_has_no_tunnel(web: Laboratory) -> None:
    apply(web, record(server=NOWHERE, method=DR), record(port=2, server=NOWHERE, method=TUN))
    (left,) = request(web, ACK)
    assert (left.side, left.dmac[-2:]) == ("server", "37")
    assert request(web, ACK, port=2) == []
    assert web.drops() == {Reason.SERVER_GONE: 1}


def test_an_unbound_connection_keeps_the_flags_that_were_told(web: Laboratory) -> None:
    apply(web, record(server=NOWHERE, flags=NO_OUTPUT | INACTIVE))
    assert only(web).flags == SYNC | NO_OUTPUT | INACTIVE


@pytest.mark.parametrize("told_again", [True, False])
def test_what_is_unbound_is_bound_when_its_server_is_there(
    web: Laboratory, told_again: bool
) -> None:
    told = [record(server=NOWHERE), record(port=2, server=NOWHERE, flags=INACTIVE)]
    apply(web, *told)
    sums = list(web.tally.sums)
    server = web.server(only_service(web), NOWHERE, method=DR)
    if told_again:
        apply(web, *told)
    else:
        web.sleep(0)
    assert {c.server for c in connections(web)} == {server}
    assert (server.active, server.inactive) == (1, 1)
    # The method and what follows from it are those of the own server.
    assert {c.flags for c in connections(web)} == {SYNC | NO_OUTPUT, SYNC | NO_OUTPUT | INACTIVE}
    (left,) = request(web, ACK)
    assert left.dmac.endswith("37")
    assert web.tally.sums == sums
    assert web.miscounted() == []


def test_what_is_bound_to_nat_late_has_its_replies_translated(web: Laboratory) -> None:
    apply(web, record(server=NOWHERE, method=DR, flags=NO_OUTPUT))
    web.server(only_service(web), NOWHERE)
    web.sleep(0)
    (left,) = web.send("server", packets.tcp(NOWHERE, 80, C4, 40000, ACK))
    assert left.packet[12:16] == parse_address(V4)
    assert not only(web).flags & NO_OUTPUT
    web.director.replication.forget([record().key])
    assert not any(web.director.registry.table.outbound)


def test_a_whole_service_that_is_added_later_gets_its_connections_and_templates() -> None:
    laboratory = Laboratory(reporting=ESTABLISHED)
    apply(laboratory, record(), template())
    assert laboratory.director.replication.unbound == 2
    server = laboratory.server(laboratory.service(persistence=300))
    laboratory.sleep(0)
    assert (server.active, server.persistent) == (1, 1)
    assert only(laboratory).parent is only_template(laboratory)
    assert laboratory.director.replication.unbound == 0


def test_a_server_that_is_added_binds_nothing_else(web: Laboratory) -> None:
    apply(web, record(server=NOWHERE))
    web.server(only_service(web), OTHER)
    web.sleep(0)
    assert isinstance(only(web).server, StandIn)
    assert web.director.replication.unbound == 1


def test_without_anything_unbound_a_server_that_is_added_causes_no_walk(web: Laboratory) -> None:
    apply(web, record())
    web.sleep(0)
    web.server(only_service(web), OTHER)
    web.director._housekeeping._look_for_unbound()
    assert not web.director._housekeeping._chores


def test_expire_nodest_conn_does_not_end_what_is_unbound(web: Laboratory) -> None:
    web.set(expire_nodest_conn=1)
    apply(web, record(server=NOWHERE))
    web.remove(only_service(web).servers[0])
    web.sleep(0)
    assert len(connections(web)) == 1


def test_there_are_only_so_many_unknown_servers(web: Laboratory) -> None:
    refused = web.director.replication.apply(
        [
            record(server="11.0.0.1", port=number % 60_000 + 1)._replace(
                server=(0x0B000000 + number).to_bytes(4)
            )
            for number in range(STAND_INS_MAX + 3)
        ],
        web.now,
    )
    assert dict(refused) == {Refusal.STAND_INS_FULL: 3}


def test_what_was_bypassed_is_bypassed(web: Laboratory) -> None:
    laboratory, service, _ = marked()
    told = record(virtual="203.0.113.9", method=ForwardMethod.BYPASS)._replace(
        server=bytes(4), server_port=0
    )
    apply(laboratory, told)
    assert only(laboratory).server is service.bypass
    (left,) = laboratory.send("client", packets.tcp(C4, 40000, "203.0.113.9", 80, ACK))
    assert left.packet[16:20] == parse_address("203.0.113.9")


@pytest.mark.parametrize(
    ("method", "ports", "found"),
    [(NAT, (80, 0), 80), (NAT, (0,), 0), (DR, (80, 0), 0), (DR, (80,), 80)],
)
def test_of_a_marks_servers_the_kernels_order_decides(
    method: ForwardMethod, ports: Sequence[int], found: int
) -> None:
    laboratory = Laboratory()
    director = laboratory.director
    director.marks.set([MarkRule(MARK, whole(parse_address("203.0.113.9")))])
    identity = ServiceIdentity(4, 6, mark=MARK)
    director.services.add(identity, ServiceOptions("rr"))
    for port in ports:
        director.services.add_server(identity, parse_address(S4), port, ServerOptions(method))
    apply(laboratory, record(virtual="203.0.113.9", method=method))
    assert only(laboratory).server.port == found


# Sweeps


def test_a_sweep_ends_what_was_not_named_since_it_began(shop: Laboratory) -> None:
    of_other = template(client="198.51.100.9")
    apply(shop, *(record(port=port) for port in (1, 2, 3)), template(), of_other)
    replication = shop.director.replication
    generation = replication.begin()
    apply(shop, record(port=2))
    request(shop, port=9)
    shop.director.registry.take_changes()  # of the template, which is in use here
    assert sum(replication.sweep(Tally(1), generation)) == 0
    # The template to which a connection was opened here since is not among them.
    assert sum(replication.sweep(shop.tally, generation)) == 2 + 1
    assert only_template(shop).record_key == template().key
    assert sorted(c.client[1] for c in connections(shop)) == [2, 9]
    assert not shop.director.registry.untold
    assert shop.mistallied() == []


def test_a_bucket_is_swept_and_no_other_one(shop: Laboratory) -> None:
    of_template = bucket_of(template().key)
    records = [record(port=port) for port in range(1, 2000)]
    records = [each for each in records if bucket_of(each.key) != of_template]
    apply(shop, *records, template())
    replication = shop.director.replication
    bucket = bucket_of(records[0].key)
    inside = [each for each in records if bucket_of(each.key) == bucket]
    generation = replication.begin()
    apply(shop, *inside[2:])
    assert sum(replication.sweep_bucket(Tally(1), bucket, generation)) == 0
    assert sum(replication.sweep_bucket(shop.tally, bucket, generation)) == 2
    assert len(all_of(shop)) == len(records) + 1 - 2
    assert sum(replication.sweep_bucket(shop.tally, of_template, generation)) == 1
    assert not any(c.is_template for c in all_of(shop))
    assert shop.mistallied() == []


def test_a_crowded_bucket_is_swept_in_parts_and_what_is_told_meanwhile_stays(
    web: Laboratory,
) -> None:
    records = [
        record(port=256 * high + 7, client=f"198.51.{third}.7")
        for high in range(256)
        for third in range(5)
    ]
    apply(web, *records)
    replication = web.director.replication
    sweeping = replication.sweep_bucket(web.tally, 14, replication.begin())
    assert next(sweeping) == SWEEP_MAX
    last = list(web.director.registry.table.part(14))[-1]
    apply(web, record()._replace(key=last.key))
    assert sum(sweeping) == len(records) - SWEEP_MAX - 1
    assert [c.key for c in all_of(web)] == [last.key]


# What others are told


def told_of(laboratory: Laboratory) -> list[ConnectionRecord]:
    replication = laboratory.director.replication
    return list(Runs(list(filter(None, replication.records(laboratory.tally, range(BUCKETS))))))


def test_the_records_of_all_buckets_are_what_was_told(shop: Laboratory) -> None:
    records = [*(record(port=port) for port in range(1, 600)), template()]
    apply(shop, *records)
    request(shop, port=30_000)
    told = told_of(shop)
    assert sorted(r._replace(flags=0) for r in told) == sorted(r._replace(flags=0) for r in records)
    other = Laboratory(reporting=ESTABLISHED)
    other.server(other.service(persistence=300))
    apply(other, *told)
    assert other.tally.sums == shop.tally.sums


def test_the_state_in_a_record_is_the_one_that_was_told(web: Laboratory) -> None:
    apply(web, record())
    connection = only(web)
    web.director.registry.enter(connection, TcpState.SYN_RECV, web.now)
    assert not web.director.registry.untold
    assert [r.state for r in told_of(web)] == [TcpState.ESTABLISHED]
    assert web.director.replication.lookup([record().key])[0].state == TcpState.SYN_RECV


def test_records_of_one_server_and_virtual_end_follow_one_another() -> None:
    laboratory, service, _ = marked()
    web = laboratory.service()
    for server in (S4, OTHER):
        laboratory.server(web, server)
    laboratory.director.services.add_server(
        service.identity, parse_address(OTHER), 0, ServerOptions(DR)
    )
    laboratory.director.registry.mark_tallies[MARK] = laboratory.tally
    virtual = (V4, "203.0.113.1", "203.0.113.2")
    records = [
        record(
            port=256 * number + 7,
            virtual=virtual[number % 3],
            server=(S4, OTHER)[number // 3 % 2],
        )
        for number in range(60)
    ]
    apply(laboratory, *records)
    ends = [(r.server, r.key[6:10]) for r in told_of(laboratory) if not r.is_template]
    changes = sum(one != other for one, other in pairwise(ends))
    assert (len(ends), changes) == (60, 5)


def test_records_are_read_while_the_table_goes_on_changing(web: Laboratory) -> None:
    records = [record(port=256 * high + 7) for high in range(READ_MAX + 4)]
    apply(web, *records)
    reading = web.director.replication.records(web.tally, [bucket_of(records[0].key)])
    first = next(reading)
    assert first is not None
    assert len(first.keys) == READ_MAX
    others = [each for each in records if each.key not in first.keys]
    web.director.replication.forget([others[0].key])
    apply(web, others[1]._replace(state=TcpState.FIN_WAIT), record(port=256 * 99 + 7))
    assert {r.key: r.state for r in Runs(list(filter(None, reading)))} == {
        others[1].key: TcpState.FIN_WAIT,
        others[2].key: 1,
        others[3].key: 1,
    }


def test_small_buckets_are_read_together_and_large_ones_are_not(web: Laboratory) -> None:
    apply(web, *(record(port=256 * high + low) for high in range(20) for low in (1, 2, 3)))
    apply(web, *(record(port=256 * high + 9) for high in range(150)))
    buckets = [bucket_of(record(port=port).key) for port in (1, 9, 2, 3)]
    read = list(web.director.replication.records(web.tally, buckets))
    assert [None if run is None else len(run.keys) for run in read] == [64, 64, 64, 18, None]
    keys = [key for run in read if run for key in run.keys]
    assert [bucket_of(keys[at]) for at in (0, 20, 170, 190)] == buckets


def test_no_more_is_looked_at_in_one_go_than_a_limit_and_a_bucket(
    web: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvsha.datapath.replication.LOOK_MAX", 5)
    apply(web, *(record(port=256 * high + low) for high in range(3) for low in range(1, 6)))
    buckets = [bucket_of(record(port=port).key) for port in range(1, 6)]
    read = list(web.director.replication.records(web.tally, buckets))
    assert [None if run is None else len(run.keys) for run in read] == [6, None, 6, None, 3, None]


def test_a_run_that_is_read_has_what_differs_in_nothing_but_the_client(shop: Laboratory) -> None:
    told = record()
    differing = [
        told,
        told._replace(state=4),
        told._replace(timeout=60.0),
        told._replace(flags=int(ConnectionFlag.IN_SEQUENCE)),
    ]
    key_of = [record(port=256 * n + 7).key for n in range(16)]
    apply(shop, *(differing[n // 4]._replace(key=key) for n, key in enumerate(key_of)))
    assert len(connections(shop)) == 16
    reading = shop.director.replication.records(shop.tally, [bucket_of(record(port=7).key)])
    runs = [run for run in reading if run]
    assert [len(run.keys) for run in runs] == [4, 4, 4, 4]
    by_key = {each.key: each for each in connections(shop)}
    assert all(each == by_key[each.key].record() for run in runs for each in run.records())


def test_a_lookup_finds_what_is_here_told_or_not(shop: Laboratory) -> None:
    request(shop)
    key, of_client = record().key, template().key
    found = shop.director.replication.lookup([key, record(port=1).key, of_client])
    assert [each.key for each in found] == [key, of_client]


def test_what_resets_a_copy_ends_it_as_any_other(web: Laboratory) -> None:
    apply(web, record())
    request(web, RST)
    assert only(web).state == TcpState.CLOSE
