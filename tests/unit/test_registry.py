"""Parents and children, templates, and the ends of connections."""

import pytest

from lvsha.datapath.connections import (
    TEMPLATE_ASSURED,
    TEMPLATE_NONE,
    Connection,
)
from lvsha.datapath.memories import TemplateIdentity
from lvsha.datapath.registry import EXPIRE_BATCH, PARENT_TIMEOUT, Registry
from lvsha.datapath.service_policy import NEVER, ServicePolicy, TellRule
from lvsha.datapath.services import (
    Binding,
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import (
    ConnectionChanged,
    ConnectionEnded,
    ConnectionFlag,
    ForwardMethod,
    Protocol,
    connection_key,
    template_key,
)
from lvsha.tally import Tally

V, S, C = bytes((192, 0, 2, 21)), bytes((10, 1, 0, 11)), bytes((198, 51, 100, 71))
NOW = 1000.0
ESTABLISHED, SYN_RECV, CLOSE = TcpState.ESTABLISHED, TcpState.SYN_RECV, TcpState.CLOSE


class Stand:
    """A registry and one real server."""

    def __init__(
        self,
        *,
        method: ForwardMethod = ForwardMethod.NAT,
        limit: int = 10_000,
        reporting: TellRule | None = None,
        upper: int = 0,
        lower: int = 0,
    ) -> None:
        self.registry = Registry(limit)
        self.tally = self.registry.tallies[V] = Tally(7)
        service = VirtualService(
            "web", ServiceIdentity(4, 6, V, 80), ServiceOptions(), ServicePolicy(reporting or NEVER)
        )
        self.server = RealServer(service, S, 8080, ServerOptions(method, 1, upper, lower))

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.server.active, self.server.inactive, self.server.persistent

    def usable(self) -> bool:
        return self.server.usable

    def binding(self) -> Binding:
        return self.server.bind(V, 80, 8080)

    def key(self, port: int, protocol: int = Protocol.TCP) -> bytes:
        return connection_key(protocol, C, port, V, 80)

    def open(
        self, port: int, parent: Connection | None = None, protocol: int = Protocol.TCP
    ) -> Connection:
        return self.registry.open(self.key(port, protocol), self.binding(), NOW, parent=parent)

    def template(self, timeout: float = 300.0, found: bytes = b"") -> Connection:
        return self.registry.open_template(self.key(0), found, self.binding(), timeout, NOW)

    def expire(self, now: float) -> None:
        deadline = self.registry.table.deadline
        while deadline is not None and deadline <= now:
            self.registry.expire(now)
            deadline = self.registry.table.deadline

    def listed(self) -> list[Connection]:
        return list(self.registry.table.connections())


# Opening


def test_an_opened_connection_is_found_in_both_directions_counted_and_ends_in_3_seconds() -> None:
    stand = Stand()
    connection = stand.open(1)
    table = stand.registry.table
    assert table.find(stand.key(1)) is connection
    assert table.find_reply(connection.reply_key) is connection
    assert connection.reply_key == connection_key(6, S, 8080, C, 1)
    assert (connection.state, connection.timeout, connection.expires) == (0, 3.0, NOW + 3)
    assert stand.counts == (0, 1, 0)
    stand.expire(NOW + 5)
    assert (stand.listed(), stand.counts) == ([], (0, 0, 0))


def test_replies_of_other_methods_than_nat_are_not_looked_for() -> None:
    stand = Stand(method=ForwardMethod.DIRECT_ROUTE)
    assert stand.open(1).reply_key == b""
    assert not any(stand.registry.table.outbound)


def test_a_connection_that_is_made_but_not_opened_is_counted_and_in_no_table() -> None:
    stand = Stand(reporting=TellRule())
    connection = stand.registry.make(stand.key(1, Protocol.UDP), stand.binding(), 0x2000)
    assert stand.counts == (0, 1, 0)
    assert stand.listed() == []
    assert connection.flags & ConnectionFlag.ONE_PACKET
    stand.registry.unbind(connection)
    assert stand.counts == (0, 0, 0)


# Templates


def test_a_template_is_found_by_its_key_and_what_an_engine_found_and_counted_apart() -> None:
    stand = Stand()
    plain, named = stand.template(), stand.template(found=b"call@host")
    table = stand.registry.table
    assert table.template(template_key(stand.key(0))) is plain
    assert table.template(template_key(stand.key(0), b"call@host")) is named
    assert table.template(stand.key(0) + b"other") is None
    assert table.find(stand.key(0)) is None
    assert isinstance(named.dialogue, TemplateIdentity)
    assert named.dialogue.found == b"call@host"
    assert (plain.is_template, plain.state) == (True, TEMPLATE_NONE)
    assert (stand.counts, len(table)) == ((0, 0, 2), 2)


def test_a_poisoned_template_is_found_no_more_and_ends_in_its_time() -> None:
    stand = Stand()
    old = stand.template(timeout=300.0)
    child = stand.open(1, parent=old)
    table = stand.registry.table
    stand.registry.poison(old)
    assert table.template(template_key(stand.key(0))) is None
    assert old.virtual == (V, 65535)
    new = stand.template(timeout=300.0)
    assert table.template(template_key(stand.key(0))) is new
    assert (len(table), stand.counts) == (3, (0, 1, 2))
    stand.registry.end(child)
    stand.expire(NOW + 299)
    assert old in stand.listed()
    stand.expire(NOW + 302)
    assert (stand.listed(), len(table), stand.counts) == ([], 0, (0, 0, 0))


def test_a_template_is_assured_by_a_connection_that_is_established() -> None:
    stand = Stand()
    template = stand.template()
    connection = stand.open(1, parent=template)
    stand.registry.enter(connection, SYN_RECV, NOW)
    assert template.state == TEMPLATE_NONE
    stand.registry.enter(connection, ESTABLISHED, NOW)
    assert template.state == TEMPLATE_ASSURED


def test_an_ftp_control_connection_is_not_assured_by_its_data() -> None:
    stand = Stand()
    control = stand.open(1)
    stand.registry.enter(stand.open(2, parent=control), ESTABLISHED, NOW)
    assert control.state == TcpState.NONE


# Parents and children


def test_a_parent_outlives_its_children_and_keeps_the_minute_it_was_given() -> None:
    stand = Stand()
    template = stand.template(timeout=10.0)
    child = stand.open(1, parent=template)
    child.timeout, child.expires = 900.0, NOW + 900
    stand.registry.table.hasten(child)
    assert template.children == 1
    stand.expire(NOW + 11)
    assert template in stand.listed()
    assert (template.timeout, template.expires) == (PARENT_TIMEOUT, NOW + 11 + PARENT_TIMEOUT)
    stand.expire(NOW + 500)
    assert template in stand.listed()
    stand.registry.end(child)
    assert template.children == 0
    stand.expire(NOW + 600)
    assert stand.listed() == []
    assert stand.counts == (0, 0, 0)


def test_an_end_in_its_time_leaves_the_parent_alone() -> None:
    stand = Stand()
    template = stand.template()
    stand.open(1, parent=template)
    stand.expire(NOW + 5)
    assert stand.listed() == [template]


@pytest.mark.parametrize("assured", [False, True])
def test_a_deleted_connection_takes_its_unassured_template_with_it(assured: bool) -> None:
    stand = Stand()
    template = stand.template()
    connection = stand.open(1, parent=template)
    if assured:
        stand.registry.enter(connection, ESTABLISHED, NOW)
    stand.registry.delete(connection)
    assert stand.listed() == ([template] if assured else [])
    assert stand.counts == (0, 0, 1 if assured else 0)


def test_a_template_stays_as_long_as_another_connection_is_of_it() -> None:
    stand = Stand()
    template = stand.template()
    one, other = stand.open(1, parent=template), stand.open(2, parent=template)
    stand.registry.delete(one)
    assert stand.listed() == [other, template]
    stand.registry.delete(other)
    assert stand.listed() == []


def test_a_deletion_goes_up_from_data_to_control_to_template() -> None:
    stand = Stand()
    template = stand.template()
    control = stand.open(1, parent=template)
    data = stand.open(2, parent=control)
    stand.registry.delete(data)
    assert stand.listed() == []
    assert stand.counts == (0, 0, 0)


def test_a_deletion_does_not_go_down() -> None:
    stand = Stand()
    control = stand.open(1)
    data = stand.open(2, parent=control)
    stand.registry.delete(control)
    assert stand.listed() == [data]
    stand.registry.delete(data)
    assert (stand.listed(), stand.counts) == ([], (0, 0, 0))


def test_whatever_ends_the_counts_are_right() -> None:
    stand = Stand()
    template = stand.template(timeout=5.0)
    connections = [stand.open(port, parent=template) for port in range(1, 6)]
    for connection, state in zip(
        connections, (SYN_RECV, ESTABLISHED, CLOSE, TcpState.LISTEN, SYN_RECV), strict=True
    ):
        stand.registry.enter(connection, state, NOW)
    assert stand.counts == (3, 2, 1)
    stand.registry.enter(connections[1], CLOSE, NOW)
    assert stand.counts == (2, 3, 1)
    stand.registry.delete(connections[0])
    stand.expire(NOW + 11)
    assert stand.counts == (1, 1, 1)
    stand.expire(NOW + 2000)
    stand.expire(NOW + 2100)
    assert (stand.listed(), stand.counts) == ([], (0, 0, 0))


def test_one_call_of_expire_looks_at_a_bounded_number() -> None:
    stand = Stand()
    for port in range(EXPIRE_BATCH + 5):
        stand.open(port)
    stand.registry.expire(NOW + 5)
    assert len(stand.registry.table) == 5
    stand.registry.expire(NOW + 5)
    assert len(stand.registry.table) == 0


# Thresholds, as Linux up to 6.12


def test_a_server_is_overloaded_from_its_upper_threshold_until_below_three_quarters() -> None:
    stand = Stand(upper=4)
    connections = [stand.open(port) for port in range(3)]
    assert stand.usable()
    connections.append(stand.open(3))
    assert not stand.usable()
    stand.registry.end(connections.pop())
    assert not stand.usable()  # three quarters
    stand.registry.end(connections.pop())
    assert stand.usable()


def test_a_server_with_a_lower_threshold_is_usable_again_below_it() -> None:
    stand = Stand(upper=4, lower=2)
    connections = [stand.open(port) for port in range(4)]
    for usable in (False, False, True):
        assert not stand.usable()
        stand.registry.end(connections.pop())
        assert stand.usable() is usable


def test_active_and_inactive_connections_count_for_thresholds_and_templates_do_not() -> None:
    stand = Stand(upper=2)
    stand.template()
    stand.registry.enter(stand.open(1), ESTABLISHED, NOW)
    assert stand.usable()
    stand.open(2)
    assert not stand.usable()


def test_a_higher_threshold_or_none_makes_a_server_usable_at_once() -> None:
    for upper, usable in ((3, True), (0, True), (2, False), (1, False)):
        stand = Stand(upper=2)
        for port in range(2):
            stand.open(port)
        assert not stand.usable()
        stand.server.change(ServerOptions(ForwardMethod.NAT, upper=upper))
        assert stand.usable() is usable


# What backups are told


def test_the_end_of_what_was_told_is_told_and_a_template_is_never() -> None:
    stand = Stand(reporting=TellRule())
    template = stand.template()
    connection = stand.open(1, parent=template)
    stand.registry.delete(connection)
    assert stand.registry.take_changes() == {}
    connection = stand.open(2)
    stand.registry.enter(connection, ESTABLISHED, NOW)
    stand.registry.take_changes()
    stand.registry.end(connection)
    assert stand.registry.take_changes() == {7: [ConnectionEnded(stand.key(2))]}


def test_what_is_told_is_the_state_at_the_time_when_it_is_told() -> None:
    stand = Stand(reporting=TellRule())
    connection = stand.open(1)
    stand.registry.enter(connection, ESTABLISHED, NOW)
    stand.registry.enter(connection, SYN_RECV, NOW)
    [told] = stand.registry.take_changes()[7]
    assert told == ConnectionChanged(connection.record())
    assert connection.told_state == SYN_RECV
    assert stand.tally.exposed == stand.tally.established == 0


def test_a_state_that_is_not_told_is_told_while_its_address_moves() -> None:
    stand = Stand(reporting=TellRule())
    stand.registry.in_transition.add(V)
    stand.registry.enter(stand.open(1), SYN_RECV, NOW)
    assert len(stand.registry.take_changes()[7]) == 1
    stand.registry.in_transition.clear()
    stand.registry.enter(stand.open(2), SYN_RECV, NOW)
    assert stand.registry.take_changes() == {}


# What is counted of a sync id


def counted(stand: Stand) -> tuple[int, int, int, int]:
    """Connections, told, established and exposed."""
    tally = stand.tally
    return tally.connections, tally.told, tally.established, tally.exposed


def test_a_connection_is_exposed_from_its_establishment_until_it_is_told() -> None:
    stand = Stand()
    connection = stand.open(1)
    assert counted(stand) == (1, 0, 0, 0)
    stand.registry.enter(connection, ESTABLISHED, NOW)
    assert counted(stand) == (1, 0, 1, 1)
    stand.registry.teller.tell(connection)
    assert counted(stand) == (1, 1, 1, 0)
    stand.registry.enter(connection, CLOSE, NOW)
    assert counted(stand) == (1, 1, 0, 0)
    stand.registry.teller.tell(connection)
    assert counted(stand) == (1, 1, 0, 0)
    stand.registry.end(connection)
    assert counted(stand) == (0, 0, 0, 0)
    assert not any(stand.tally.sums)


def test_of_a_protocol_without_such_a_state_all_connections_are_established() -> None:
    stand = Stand()
    connection = stand.open(1, protocol=Protocol.UDP)
    assert counted(stand) == (1, 0, 1, 1)
    stand.registry.teller.tell(connection)
    assert counted(stand) == (1, 1, 1, 0)
    stand.registry.end(connection)
    assert counted(stand) == (0, 0, 0, 0)


def test_a_state_that_another_director_tells_counts_as_told_and_a_templates_is_none() -> None:
    stand = Stand()
    connection, template = stand.open(1), stand.template()
    stand.registry.become(connection, ESTABLISHED, NOW)
    stand.registry.become(template, TEMPLATE_ASSURED, NOW)
    assert counted(stand) == (2, 2, 1, 0)
    stand.registry.become(connection, CLOSE, NOW)
    assert counted(stand) == (2, 2, 0, 0)


def test_a_connection_that_is_made_to_listen_again_is_not_established_any_more() -> None:
    stand = Stand()
    connection = stand.open(1)
    stand.registry.become(connection, ESTABLISHED, NOW)
    stand.registry.listen(connection, NOW)
    assert counted(stand) == (1, 1, 0, 0)


def test_what_nobody_syncs_counts_nowhere_and_is_never_told() -> None:
    stand = Stand(reporting=TellRule())
    stand.registry.tallies.clear()
    connection = stand.open(1)
    stand.registry.enter(connection, ESTABLISHED, NOW)
    stand.registry.teller.tell(connection)
    stand.registry.end(connection)
    assert stand.registry.take_changes() == {}
    assert counted(stand) == (0, 0, 0, 0)


def test_a_template_of_a_mark_counts_where_the_mark_belongs() -> None:
    stand = Stand()
    of_mark = stand.registry.mark_tallies[3] = Tally(8)
    for mark in (3, 4):
        stand.registry.open_template(stand.key(mark), b"", stand.binding(), 300.0, NOW, mark=mark)
    assert (of_mark.connections, stand.tally.connections) == (1, 0)


def test_a_poisoned_template_is_known_as_such_whatever_its_port_was() -> None:
    for port in (80, 65534, 65535):
        stand = Stand()
        key = connection_key(6, bytes((10, 9, 0, 1)), 0, V, port)
        template = stand.registry.open_template(key, b"", stand.binding(), 300.0, NOW)
        assert not template.is_poisoned
        stand.registry.poison(template)
        assert template.is_poisoned


def test_backups_forget_a_poisoned_template_at_once_and_hear_no_more_of_it() -> None:
    stand = Stand(reporting=TellRule())
    old = stand.template()
    stand.registry.teller.tell(old)
    stand.registry.take_changes()
    stand.registry.poison(old)
    key = template_key(stand.key(0))
    assert stand.registry.take_changes() == {7: [ConnectionEnded(key)]}
    new = stand.template()
    stand.registry.teller.tell(new)
    stand.registry.teller.tell(old)
    [told] = stand.registry.take_changes()[7]
    assert told == ConnectionChanged(new.record())
    stand.registry.end(old)
    assert stand.registry.take_changes() == {}
    assert counted(stand) == (1, 1, 0, 0)


def test_backups_forget_a_connection_whose_port_is_learned_and_hear_of_it_anew() -> None:
    stand = Stand(reporting=TellRule())
    flags = ConnectionFlag.NO_CLIENT_PORT
    connection = stand.registry.open(stand.key(0), stand.binding(), NOW, flags=flags)
    stand.registry.teller.tell(connection)
    stand.registry.learn_client_port(connection, (9).to_bytes(2))
    stand.registry.teller.tell(connection)
    assert stand.registry.take_changes() == {
        7: [ConnectionEnded(stand.key(0)), ConnectionChanged(connection.record())]
    }
    assert connection.record().key == stand.key(9)
