"""What holds of the election for every sequence of events, sensible or not."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.failover.actions import (
    AcquireAddresses,
    Actions,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
)
from lvsha.failover.election import Election
from lvsha.model import VrrpState
from lvsha.wire.vrrp import Advertisement

OWN = bytes((10, 0, 0, 5))

Event = tuple[str, float, int, int, bytes]

events = st.tuples(
    st.sampled_from(
        [
            "receive",
            "receive",
            "receive",
            "expire",
            "expire",
            "permit",
            "forbid",
            "hand_over",
            "take_over",
            "step_aside",
            "fault",
            "recover",
            "stop",
            "start",
            "priority",
            "join masters",
            "join backups",
        ]
    ),
    # How long after the deadline (or the event before) it happens.
    st.sampled_from([0.0, 0.0, 0.001, 0.5, 1.0, 3.0, 10.0]),
    st.integers(0, 255),
    st.sampled_from([1, 10, 100, 4095]),
    st.sampled_from([OWN, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 9))]),
)


delays = st.sampled_from([0.0, 0.0, 0.5, 7.0])


def happen(election: Election, event: Event, now: float, started: bool) -> Actions:
    kind, _, priority, interval_cs, source = event
    match kind:
        case "receive":
            heard = Advertisement(1, priority, interval_cs, (bytes(4),))
            return election.receive(heard, source, now)
        case "expire":
            return election.expire(now)
        case "permit" | "forbid":
            return election.permit_preemption(kind == "permit", now)
        case "hand_over":
            return election.hand_over(now)
        case "take_over":
            return election.take_over(now)
        case "step_aside":
            return election.step_aside(now)
        case "fault":
            return election.fault("a reason", now)
        case "recover":
            return election.recover(now)
        case "stop":
            return election.stop(now)
        case "priority":
            return election.change_priority(min(max(priority, 1), 254), now)
        case "join masters":
            return election.join_masters(now)
        case "join backups":
            return election.join_backups(now)
        case _:
            return () if started else election.start(now)


@settings(max_examples=300)
@given(
    st.lists(events, max_size=60),
    st.integers(1, 255),
    st.booleans(),
    st.sampled_from([2, 3]),
    delays,
    delays,
)
def test_promises_hold_whatever_happens(
    sequence: list[Event],
    priority: int,
    preempt: bool,
    version: int,
    preempt_delay: float,
    startup_delay: float,
) -> None:
    election = Election(
        vrid=1,
        priority=priority,
        interval=1.0,
        preempt=preempt,
        address=OWN,
        version=version,
        preempt_delay=preempt_delay,
        startup_delay=startup_delay,
    )
    quiet_until = 0.0
    now, started, holds, state = 0.0, False, False, VrrpState.INIT
    for event in sequence:
        if event[0] == "expire" and election.deadline is not None:
            now = max(now, election.deadline)
        now += event[1]
        if event[0] == "start" and not started:
            quiet_until = now + startup_delay
        actions = happen(election, event, now, started)
        started = event[0] == "start" or (started and event[0] != "stop")
        for action in actions:
            match action:
                case AcquireAddresses():
                    assert not holds
                    # One that is called, or whose group has the addresses, need not listen.
                    assert now >= quiet_until or event[0] in {"take_over", "join masters"}
                    holds = True
                case ReleaseAddresses():
                    assert holds
                    holds = False
                case Advertise(0):
                    assert not holds
                case StateChanged(old, new, _):
                    assert old is state
                    assert new is not old
                    state = new
                case Advertise() | AnnounceAddresses():
                    pass
        assert state is election.state
        assert holds is (state is VrrpState.MASTER)
        assert (election.deadline is None) is (state in {VrrpState.INIT, VrrpState.FAULT})
        if election.deadline is not None:
            assert math.isfinite(election.deadline)
        assert (election.fault_reason is not None) is (state is VrrpState.FAULT)


@given(st.integers(1, 254), st.integers(1, 4095))
def test_lower_priorities_wait_longer_and_never_four_intervals(
    priority: int, interval_cs: int
) -> None:
    def down(own: int) -> float:
        election = Election(vrid=1, priority=own, interval=1.0, preempt=False, address=OWN)
        election.start(0.0)
        election.receive(Advertisement(1, 255, interval_cs, (bytes(4),)), bytes(4), 0.0)
        assert election.deadline is not None
        return election.deadline

    interval = interval_cs / 100
    assert 3 * interval < down(priority) < 4 * interval
    if priority > 1:
        assert down(priority) < down(priority - 1)


@given(st.lists(st.sampled_from([0.0, 0.3, 0.9, 1.0, 1.7, 3.9]), max_size=80))
def test_expire_before_the_deadline_changes_nothing(steps: list[float]) -> None:
    election = Election(vrid=1, priority=100, interval=1.0, preempt=True, address=OWN)
    election.start(0.0)
    now = 0.0
    for step in steps:
        now += step
        deadline = election.deadline
        assert deadline is not None
        if now < deadline:
            assert election.expire(now) == ()
            assert election.deadline == deadline
        else:
            assert election.expire(now) != ()
