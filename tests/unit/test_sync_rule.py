"""Each step of the kernel's rule for what a sync daemon tells."""

import pytest

from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.sync_rule import (
    HZ,
    NEVER_TOLD,
    SyncFacts,
    SyncSettings,
    needed,
    sync_settings,
    tick,
)
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import Protocol
from lvsha.settings import Settings

NOW = tick(1000.0)
DEFAULTS = SyncSettings(threshold=3, period=50, refresh_period=0, retries=0, persist_mode=False)
ONCE = DEFAULTS._replace(period=0)
REFRESH = DEFAULTS._replace(threshold=0, period=0, refresh_period=40 * HZ)
LIVE = SyncFacts(
    protocol=Protocol.TCP,
    state=TcpState.ESTABLISHED,
    told_state=TcpState.ESTABLISHED,
    timeout=900 * HZ,
    sync_end=NEVER_TOLD,
    is_template=False,
    in_persistence=False,
    packets=3,
)
TEMPLATE = LIVE._replace(is_template=True, state=1, told_state=-1, timeout=300 * HZ, packets=4)


def sends(
    settings: SyncSettings, now: int = NOW, facts: SyncFacts = LIVE, **changed: int | bool
) -> bool:
    facts = SyncFacts(**{**facts._asdict(), **changed})
    decision = needed(facts, settings, now)
    if decision.send:
        assert decision.told_state == facts.state
        assert decision.sync_end & ~3 == (now + facts.timeout) & ~3
    else:
        assert decision == (False, facts.sync_end, None)
    return decision.send


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (DEFAULTS, [3, 53, 103]),
        (ONCE, [3]),
        (DEFAULTS._replace(threshold=1, period=4), [1, 5, 9]),
        (DEFAULTS._replace(threshold=0, period=3), [3, 6, 9]),
    ],
)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_the_count_of_requests_decides(
    settings: SyncSettings, told: list[int], protocol: Protocol
) -> None:
    state = int(protocol is Protocol.TCP)
    counts = range(1, told[-1] + 1)
    found = [n for n in counts if sends(settings, protocol=protocol, state=state, packets=n)]
    assert found == told


TOLD_TCP = {
    *(TcpState.ESTABLISHED, TcpState.FIN_WAIT, TcpState.CLOSE),
    *(TcpState.CLOSE_WAIT, TcpState.TIME_WAIT),
}
TOLD_SCTP = {
    *(SctpState.ESTABLISHED, SctpState.SHUTDOWN_SENT, SctpState.SHUTDOWN_RECEIVED),
    *(SctpState.SHUTDOWN_ACK_SENT, SctpState.CLOSED),
}


@pytest.mark.parametrize("state", TcpState)
def test_a_closing_tcp_state_that_is_new_is_told_at_once_and_others_never(state: TcpState) -> None:
    is_new = sends(DEFAULTS, state=state, told_state=-1, packets=1)
    assert is_new is (state in TOLD_TCP - {TcpState.ESTABLISHED})
    assert not sends(DEFAULTS, state=state, told_state=state, packets=1)
    assert sends(DEFAULTS, state=state, told_state=state, packets=3) is (state in TOLD_TCP)


@pytest.mark.parametrize("state", SctpState)
def test_so_it_is_with_sctp(state: SctpState) -> None:
    sctp = LIVE._replace(protocol=Protocol.SCTP, state=state)
    is_new = sends(DEFAULTS, facts=sctp, told_state=-1, packets=1)
    assert is_new is (state in TOLD_SCTP - {SctpState.ESTABLISHED})
    assert not sends(DEFAULTS, facts=sctp, told_state=state, packets=1)
    assert sends(DEFAULTS, facts=sctp, told_state=state, packets=3) is (state in TOLD_SCTP)


def test_a_new_closing_state_passes_all_other_steps() -> None:
    settings = REFRESH._replace(threshold=7)
    end = NOW + 120 * HZ
    closing = LIVE._replace(state=TcpState.FIN_WAIT, timeout=120 * HZ, packets=1)
    assert needed(closing._replace(sync_end=end), settings, NOW) == (True, end, TcpState.FIN_WAIT)


def test_a_template_passes_whatever_the_count_while_there_is_a_period() -> None:
    assert sends(DEFAULTS, facts=TEMPLATE)
    assert not sends(ONCE, facts=TEMPLATE)
    assert sends(ONCE, facts=TEMPLATE, packets=3)


def test_with_persist_mode_templates_are_told_and_their_connections_are_not() -> None:
    settings = DEFAULTS._replace(persist_mode=True)
    assert sends(settings, facts=TEMPLATE)
    assert sends(settings)
    assert not sends(settings, in_persistence=True)
    assert not sends(settings, in_persistence=True, state=TcpState.CLOSE)
    assert sends(DEFAULTS, in_persistence=True)


# The refresh period


def test_a_connection_is_told_again_when_its_end_has_moved_by_the_period() -> None:
    told = needed(LIVE._replace(packets=1), REFRESH, NOW)
    assert told.send
    assert not sends(REFRESH, NOW + 40 * HZ - 4, sync_end=told.sync_end)
    assert sends(REFRESH, NOW + 40 * HZ, sync_end=told.sync_end)


@pytest.mark.parametrize(("timeout", "moved"), [(60, 30), (12, 10), (4, 10), (900, 40)])
def test_or_by_half_of_its_time_out_but_not_by_less_than_ten_seconds(
    timeout: int, moved: int
) -> None:
    facts = LIVE._replace(protocol=Protocol.UDP, state=0, timeout=timeout * HZ)
    told = needed(facts, REFRESH, NOW)
    assert not sends(REFRESH, NOW + moved * HZ - 4, facts, sync_end=told.sync_end)
    assert sends(REFRESH, NOW + moved * HZ, facts, sync_end=told.sync_end)


def test_the_end_may_have_moved_back() -> None:
    told = needed(LIVE, REFRESH, NOW)
    udp = LIVE._replace(protocol=Protocol.UDP, state=0, sync_end=told.sync_end)
    assert sends(REFRESH, facts=udp, timeout=860 * HZ)
    assert not sends(REFRESH, facts=udp, timeout=861 * HZ)


def test_the_same_end_is_told_as_often_as_retries_say_each_an_eighth_of_the_period_later() -> None:
    settings = REFRESH._replace(retries=2)
    eighth = 5 * HZ
    first = needed(LIVE, settings, NOW)
    assert first.sync_end & 3 == 0
    assert not sends(settings, NOW + eighth - 4, sync_end=first.sync_end)
    second = needed(LIVE._replace(sync_end=first.sync_end), settings, NOW + eighth)
    assert (second.send, second.sync_end & 3) == (True, 1)
    third = needed(LIVE._replace(sync_end=second.sync_end), settings, NOW + 2 * eighth)
    assert (third.send, third.sync_end & 3) == (True, 2)
    assert not sends(settings, NOW + 3 * eighth, sync_end=third.sync_end)


def test_with_a_refresh_period_a_count_without_period_does_not_matter() -> None:
    settings = REFRESH._replace(threshold=3)
    assert sends(settings, packets=1)
    assert sends(settings._replace(period=50), packets=53)
    assert not sends(settings._replace(period=50), packets=54)


def test_settings_and_times_are_turned_into_ticks() -> None:
    settings = Settings(
        sync_threshold=(2, 9), sync_refresh_period=6, sync_retries=3, sync_persist_mode=True
    )
    assert sync_settings(settings) == SyncSettings(2, 9, 6 * HZ, 3, persist_mode=True)
    assert tick(2.5) - tick(0.0) == 2.5 * HZ


def test_what_was_never_told_is_far_from_any_end_whatever_the_clock_says() -> None:
    settings = REFRESH._replace(refresh_period=2**31 * HZ)
    assert needed(LIVE._replace(timeout=2 * HZ), settings, tick(0.0)).send
