import pytest

from lvsha.datapath import tcp_states
from lvsha.datapath.tcp_states import ACK, FIN, RST, SYN, TcpState


def test_every_flag_byte_has_a_next_state_for_every_state() -> None:
    for table in (
        tcp_states.INPUT,
        tcp_states.OUTPUT,
        tcp_states.INPUT_ONLY,
        tcp_states.SECURE_INPUT,
        tcp_states.SECURE_OUTPUT,
        tcp_states.SECURE_INPUT_ONLY,
    ):
        assert len(table) == 256
        assert all(len(row) == len(TcpState) for row in table)
        assert all(state < len(TcpState) for row in table for state in row)


@pytest.mark.parametrize(
    ("flags", "event"),
    [
        (RST | SYN | FIN | ACK, RST),
        (SYN | FIN | ACK, SYN),
        (SYN | ACK, SYN),
        (FIN | ACK, FIN),
        (ACK | 0x08, ACK),
    ],
)
def test_the_first_of_rst_syn_fin_ack_is_the_event(flags: int, event: int) -> None:
    assert tcp_states.INPUT[flags] == tcp_states.INPUT[event]


def test_a_segment_without_any_flag_closes() -> None:
    assert set(tcp_states.INPUT[0x08]) == {TcpState.CLOSE}


def test_a_connection_through_nat_goes_its_usual_way() -> None:
    state = TcpState.NONE
    for table, flags, expected in (
        (tcp_states.INPUT, SYN, TcpState.SYN_RECV),
        (tcp_states.OUTPUT, SYN | ACK, TcpState.SYN_RECV),
        (tcp_states.INPUT, ACK, TcpState.ESTABLISHED),
        (tcp_states.OUTPUT, FIN | ACK, TcpState.FIN_WAIT),
        (tcp_states.INPUT, FIN | ACK, TcpState.TIME_WAIT),
    ):
        state = TcpState(table[flags][state])
        assert state is expected


def test_without_output_a_fin_only_means_that_the_client_is_done() -> None:
    assert tcp_states.INPUT[FIN][TcpState.ESTABLISHED] == TcpState.CLOSE_WAIT
    assert tcp_states.INPUT_ONLY[FIN][TcpState.ESTABLISHED] == TcpState.FIN_WAIT


def test_states_that_count_as_active_are_the_kernels() -> None:
    active = {state.name for state in TcpState if tcp_states.ACTIVE[state]}
    assert active == {"ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"}


def test_timeouts_are_the_kernels_and_two_can_be_set() -> None:
    assert tcp_states.timeouts() == (2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120)
    assert tcp_states.timeouts(333, 44) == (2, 333, 120, 60, 44, 120, 10, 60, 30, 120, 120)


def test_only_closed_and_waiting_connections_may_be_replaced() -> None:
    reusable = {state.name for state in TcpState if tcp_states.REUSABLE[state]}
    assert reusable == {"TIME_WAIT", "CLOSE"}


def test_with_secure_tables_the_clients_word_alone_establishes_nothing() -> None:
    state = TcpState.NONE
    for table, flags, expected in (
        (tcp_states.SECURE_INPUT, SYN, TcpState.SYN_RECV),
        (tcp_states.SECURE_OUTPUT, SYN | ACK, TcpState.SYNACK),
        (tcp_states.SECURE_INPUT, ACK, TcpState.SYNACK),
        (tcp_states.SECURE_OUTPUT, ACK, TcpState.ESTABLISHED),
    ):
        state = TcpState(table[flags][state])
        assert state is expected


def test_secure_tables_differ_from_the_plain_ones_in_fifteen_cells() -> None:
    pairs = {
        "in": (tcp_states.INPUT, tcp_states.SECURE_INPUT),
        "out": (tcp_states.OUTPUT, tcp_states.SECURE_OUTPUT),
        "only": (tcp_states.INPUT_ONLY, tcp_states.SECURE_INPUT_ONLY),
    }
    found = {
        (direction, flags, state.name)
        for direction, (plain, secure) in pairs.items()
        for flags in (SYN, FIN, ACK, RST)
        for state in TcpState
        if plain[flags][state] != secure[flags][state]
    }
    syn_only = {state.name for state in TcpState} - {"ESTABLISHED", "SYN_SENT", "SYN_RECV"}
    assert found == {
        ("in", SYN, "SYNACK"),
        ("in", FIN, "SYNACK"),
        ("in", ACK, "SYN_RECV"),
        ("in", ACK, "SYNACK"),
        ("in", RST, "SYNACK"),
        ("out", SYN, "SYN_RECV"),
        ("out", SYN, "SYNACK"),
    } | {("only", SYN, name) for name in syn_only}


@pytest.mark.parametrize(
    ("flags", "opens", "may_open", "sloppy"),
    [
        (SYN, True, True, True),
        (SYN | ACK, True, True, True),
        (SYN | RST, True, False, False),
        (RST | ACK, False, False, False),
        (ACK, False, False, True),
        (FIN | ACK, False, False, True),
        (0, False, False, True),
    ],
)
def test_a_syn_opens_and_a_sloppy_director_takes_all_but_resets(
    flags: int, opens: bool, may_open: bool, sloppy: bool
) -> None:
    assert tcp_states.OPENS[flags] is opens
    assert tcp_states.MAY_OPEN[flags] is may_open
    assert tcp_states.MAY_OPEN_SLOPPY[flags] is sloppy
