import pytest

from lvsha.datapath import sctp_states, state_machines, tcp_states
from lvsha.datapath.sctp_states import SctpEvent
from lvsha.datapath.state_machines import StateMachine
from lvsha.datapath.tcp_states import ACK, RST, SYN, TcpState
from lvsha.model import Protocol

MACHINES = pytest.mark.parametrize(
    "machine",
    [
        state_machines.tcp(),
        state_machines.tcp(secure=True, sloppy=True),
        state_machines.udp(),
        state_machines.sctp(),
        state_machines.sctp(sloppy=True),
    ],
)


@MACHINES
def test_all_tables_of_a_machine_fit_together(machine: StateMachine) -> None:
    states, events = len(machine.names), len(machine.opens)
    for by_state in (machine.timeouts, machine.active, machine.told, machine.reusable):
        assert len(by_state) == states
    assert len(machine.may_open) == events
    for table in (machine.input, machine.output, machine.input_only):
        assert len(table) == events
        assert all(len(row) == states and max(row) < states for row in table)


def test_protocols_and_established_states_are_the_kernels_numbers() -> None:
    machines = (state_machines.tcp(), state_machines.udp(), state_machines.sctp())
    assert [machine.protocol for machine in machines] == [
        Protocol.TCP,
        Protocol.UDP,
        Protocol.SCTP,
    ]
    assert [machine.established for machine in machines] == [1, -1, 8]
    assert {type(machine.protocol) for machine in machines} == {int}


@MACHINES
@pytest.mark.parametrize("state", [-1, 14, 255])
def test_a_state_that_the_table_does_not_have_prints_as_an_error(
    machine: StateMachine, state: int
) -> None:
    assert machine.name_of(state) == "ERR!"


def test_states_print_as_in_the_kernels_listings() -> None:
    assert state_machines.tcp().name_of(TcpState.SYN_RECV) == "SYN_RECV"
    assert state_machines.tcp().name_of(len(TcpState)) == "ERR!"
    assert state_machines.udp().name_of(0) == "UDP"
    assert state_machines.udp().name_of(1) == "ERR!"
    assert state_machines.sctp().name_of(10) == "S-RECEIVED"


def test_a_datagram_may_always_open_but_never_looks_like_a_beginning() -> None:
    machine = state_machines.udp()
    assert machine.may_open[0]
    assert not machine.opens[0]
    for table in (machine.input, machine.output, machine.input_only):
        assert table[0][0] == 0
    assert not machine.active[0]
    assert machine.told[0]


def test_secure_tables_can_be_switched_on_and_off_in_place() -> None:
    plain = (tcp_states.INPUT, tcp_states.OUTPUT, tcp_states.INPUT_ONLY)
    secure = (tcp_states.SECURE_INPUT, tcp_states.SECURE_OUTPUT, tcp_states.SECURE_INPUT_ONLY)
    assert plain != secure
    machine = state_machines.tcp()
    for wanted, expected in ((False, plain), (True, secure), (None, secure), (False, plain)):
        machine.use(secure=wanted)
        assert (machine.input, machine.output, machine.input_only) == expected
        assert not machine.may_open[ACK]


def test_sloppiness_can_be_switched_on_and_off_in_place() -> None:
    tcp, sctp = state_machines.tcp(), state_machines.sctp()
    for sloppy in (False, True, False):
        tcp.use(sloppy=sloppy)
        sctp.use(sloppy=sloppy)
        assert tcp.may_open[ACK] is sloppy
        assert sctp.may_open[SctpEvent.DATA] is sloppy
        assert tcp.may_open[SYN]
        assert sctp.may_open[SctpEvent.INIT]
        assert not tcp.may_open[SYN | RST]
        assert not sctp.may_open[SctpEvent.ABORT]


def test_secure_changes_neither_timeouts_nor_protocols_without_such_tables() -> None:
    assert state_machines.tcp(secure=True).timeouts == tcp_states.timeouts()
    sctp, udp = state_machines.sctp(), state_machines.udp()
    sctp.use(secure=True)
    udp.use(secure=True, sloppy=True)
    assert sctp.input is sctp_states.INPUT
    assert udp.input == (bytes(1),)


def test_timeouts_are_set_by_state_and_zero_leaves_one_as_it_is() -> None:
    tcp, udp = state_machines.tcp(), state_machines.udp()
    assert tcp.timeouts == tcp_states.timeouts()
    tcp.set_timeouts({TcpState.ESTABLISHED: 333, TcpState.FIN_WAIT: 44})
    udp.set_timeouts({0: 55})
    assert tcp.timeouts == tcp_states.timeouts(333, 44)
    assert list(udp.timeouts) == [55]
    tcp.set_timeouts({TcpState.ESTABLISHED: 0, TcpState.FIN_WAIT: 45})
    udp.set_timeouts({0: 0})
    assert tcp.timeouts == tcp_states.timeouts(333, 45)
    assert list(udp.timeouts) == [55]


def test_machines_of_two_directors_are_separate() -> None:
    one, other = state_machines.tcp(established=10, fin_wait=20), state_machines.tcp()
    one.use(secure=True)
    one.set_timeouts({TcpState.CLOSE: 1})
    assert other.timeouts == tcp_states.timeouts()
    assert other.input is tcp_states.INPUT
    assert one.timeouts[TcpState.ESTABLISHED] == 10
    assert one.timeouts[TcpState.FIN_WAIT] == 20
