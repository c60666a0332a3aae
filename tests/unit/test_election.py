"""The election, step by step: what it returns and when it wants to be called again."""

import math

import pytest

from lvsha.failover.actions import (
    AcquireAddresses,
    Actions,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
    TwoMasters,
)
from lvsha.failover.election import DOWN_ADVERTISEMENTS, HAND_OVER_TIME, Election
from lvsha.failover.series import Series
from lvsha.model import VrrpState
from lvsha.wire.vrrp import Advertisement

OWN = bytes((10, 0, 0, 5))
SMALLER = bytes((10, 0, 0, 1))
GREATER = bytes((10, 0, 0, 9))
INIT, BACKUP, MASTER, FAULT = VrrpState
# Priority 100 at one second: 3 s and 156/256 s.
DOWN = 3 + 156 / 256
SKEW = 156 / 256


def election(*, priority: int = 100, preempt: bool = True, permitted: bool = True) -> Election:
    made = Election(vrid=7, priority=priority, interval=1.0, preempt=preempt, address=OWN)
    made.permit_preemption(permitted, 0.0)
    return made


def backup(*, preempt: bool = True, permitted: bool = True) -> Election:
    made = election(preempt=preempt, permitted=permitted)
    made.start(0.0)
    return made


def master(*, permitted: bool = True) -> Election:
    """A master since 3.609 s, whose next advertisement is due at 4.609 s."""
    made = backup(permitted=permitted)
    made.expire(DOWN)
    assert made.state is MASTER
    return made


def heard(priority: int, interval_cs: int = 100) -> Advertisement:
    return Advertisement(7, priority, interval_cs, (bytes((192, 0, 2, 10)),))


def run_until(made: Election, end: float) -> list[tuple[float, Actions]]:
    """Call `expire` exactly at each deadline up to ``end``."""
    done: list[tuple[float, Actions]] = []
    while made.deadline is not None and made.deadline <= end:
        now = made.deadline
        done.append((now, made.expire(now)))
    return done


def test_start_listens_first() -> None:
    made = election()
    assert made.deadline is None
    assert made.start(0.0) == (StateChanged(INIT, BACKUP, "started"),)
    assert made.deadline == DOWN


def test_backup_takes_over_after_three_missed_advertisements_and_skew() -> None:
    made = backup()
    assert made.receive(heard(200), GREATER, 1.0) == ()
    assert made.expire(1.0 + DOWN - 0.001) == ()
    assert made.expire(1.0 + DOWN) == (
        Advertise(100),
        AcquireAddresses(),
        AnnounceAddresses(),
        StateChanged(BACKUP, MASTER, "master_silent"),
    )


def test_resignation_hands_over_after_the_skew_alone() -> None:
    made = backup()
    made.receive(heard(200), GREATER, 1.0)
    made.receive(heard(0), GREATER, 1.5)
    assert made.deadline == 1.5 + SKEW
    assert made.expire(1.5 + SKEW)[-1] == StateChanged(BACKUP, MASTER, "master_resigned")


def test_interval_is_learned_from_the_master() -> None:
    made = backup()
    made.receive(heard(200, interval_cs=10), GREATER, 1.0)
    assert made.deadline == pytest.approx(1.0 + DOWN / 10)
    made.receive(heard(0), GREATER, 1.1)
    assert made.deadline == pytest.approx(1.1 + SKEW / 10)


def test_own_interval_counts_again_as_master() -> None:
    made = backup()
    made.receive(heard(200, interval_cs=10), GREATER, 1.0)
    now = made.deadline
    assert now is not None
    made.expire(now)
    assert made.deadline == now + 1.0


@pytest.mark.parametrize(
    ("preempt", "permitted", "takes_over"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_lower_priority_is_displaced_only_if_that_is_wanted_and_permitted(
    preempt: bool, permitted: bool, takes_over: bool
) -> None:
    made = backup(preempt=preempt, permitted=permitted)
    for tick in range(1, 10):
        made.receive(heard(50), SMALLER, float(tick))
        made.expire(float(tick))
    assert (made.state is MASTER) is takes_over


def test_displacement_is_told_as_such() -> None:
    made = backup()
    made.receive(heard(50), SMALLER, 1.0)
    assert made.expire(DOWN)[-1] == StateChanged(BACKUP, MASTER, "preempted_lower_priority")


def test_without_any_master_takes_over_although_not_permitted() -> None:
    made = backup(permitted=False)
    assert made.expire(DOWN)[1] == AcquireAddresses()


def test_permission_given_later_lets_the_timer_run_out() -> None:
    made = backup(permitted=False)
    made.receive(heard(50), SMALLER, 3.0)
    made.permit_preemption(True, 3.5)
    made.receive(heard(50), SMALLER, 4.0)
    assert made.deadline == 3.0 + DOWN


def test_permission_withdrawn_counts_the_master_that_was_being_ignored() -> None:
    made = backup()
    made.receive(heard(50), SMALLER, 3.5)
    assert made.deadline == DOWN
    made.permit_preemption(False, 3.55)
    assert made.deadline == 3.5 + DOWN
    assert made.expire(DOWN) == ()


def test_permission_withdrawn_does_not_prolong_the_wait_for_a_silent_master() -> None:
    made = backup()
    made.receive(heard(200), GREATER, 3.5)
    made.permit_preemption(False, 3.55)
    assert made.deadline == 3.5 + DOWN


def test_announces_again_after_one_and_five_seconds_then_every_minute() -> None:
    made = master()
    times = [at - DOWN for at, actions in run_until(made, 200.0) if AnnounceAddresses() in actions]
    assert times == pytest.approx([1.0, 5.0, 65.0, 125.0, 185.0])


@pytest.mark.parametrize(
    ("again", "every", "expected"),
    [
        ((5.0, 0.5), 100.0, [0.5, 5.0, 105.0]),
        ((), 90.0, [90.0, 180.0]),
        ((2.0,), math.inf, [2.0]),
        ((), math.inf, []),
    ],
)
def test_announces_again_when_it_is_told_to(
    again: tuple[float, ...], every: float, expected: list[float]
) -> None:
    made = Election(
        vrid=7,
        priority=100,
        interval=1.0,
        preempt=True,
        address=OWN,
        series=Series(again, every),
    )
    made.start(0.0)
    made.expire(DOWN)
    times = [at - DOWN for at, actions in run_until(made, 190.0) if AnnounceAddresses() in actions]
    assert times == pytest.approx(expected)


def test_master_advertises_every_interval() -> None:
    made = master()
    times = [at - DOWN for at, actions in run_until(made, 10.0) if Advertise(100) in actions]
    assert times == pytest.approx([1, 2, 3, 4, 5, 6])


def test_higher_priority_takes_the_addresses_away() -> None:
    made = master()
    assert made.receive(heard(101, interval_cs=50), SMALLER, 4.0) == (
        ReleaseAddresses(),
        StateChanged(MASTER, BACKUP, "higher_priority_heard"),
    )
    assert made.deadline == 4.0 + DOWN / 2


def test_equal_priority_is_decided_by_the_greater_address() -> None:
    made = master()
    assert made.receive(heard(100), SMALLER, 4.0)[0] == Advertise(100)
    assert made.receive(heard(100), GREATER, 4.1)[-1] == StateChanged(
        MASTER, BACKUP, "greater_address_heard"
    )


def test_master_answers_a_lower_one_at_once_and_announces_last() -> None:
    made = master()
    assert made.receive(heard(50), SMALLER, 4.0) == (Advertise(100), AnnounceAddresses())
    again = [at for at, actions in run_until(made, 12.0) if AnnounceAddresses() in actions]
    assert again == [5.0, 9.0]


def test_another_master_is_told_once_for_as_long_as_it_is_heard() -> None:
    made = master()
    for at in (DOWN, DOWN + 0.99):
        # It may not have heard of this one yet.
        made.receive(heard(50), SMALLER, at)
    assert made.counters["two_masters_seen"] == 0
    told = []
    for at in (5.0, 6.0, 7.0, 8.0, 20.0):
        run_until(made, at)
        told += [one for one in made.receive(heard(50), SMALLER, at) if type(one) is TwoMasters]
    assert told == [TwoMasters(SMALLER, 50)] * 2
    assert made.counters["two_masters_seen"] == 5


def test_announcement_right_after_a_takeover_is_put_off_not_left_out() -> None:
    made = master()
    assert made.receive(heard(50), SMALLER, DOWN + 0.01) == (Advertise(100),)
    assert made.deadline == DOWN + 0.1
    assert made.expire(DOWN + 0.1) == (AnnounceAddresses(),)


def test_a_flood_of_lower_priority_is_not_answered_in_kind() -> None:
    made = master()
    sent = [
        action
        for count in range(1000)
        for action in made.receive(heard(50), SMALLER, 4.0 + count / 1000)
    ]
    assert sent.count(Advertise(100)) == 1
    assert sent.count(AnnounceAddresses()) == 10
    assert made.counters["answers_held_back"] == 999


def test_a_flood_of_resignations_is_not_answered_in_kind() -> None:
    made = master()
    sent = [made.receive(heard(0), SMALLER, 4.0 + count / 1000) for count in range(1000)]
    assert sent.count((Advertise(100),)) == 1


def test_stop_removes_the_addresses_and_then_resigns() -> None:
    assert master().stop(4.0) == (
        ReleaseAddresses(),
        Advertise(0),
        StateChanged(MASTER, INIT, "stopped"),
    )


def test_stopped_backup_says_nothing() -> None:
    made = backup()
    assert made.stop(1.0) == (StateChanged(BACKUP, INIT, "stopped"),)
    assert made.stop(1.0) == ()
    assert made.start(2.0) == (StateChanged(INIT, BACKUP, "started"),)


def test_fault_of_a_master_resigns() -> None:
    made = master()
    assert made.fault("eth0 is down", 4.0) == (
        ReleaseAddresses(),
        Advertise(0),
        StateChanged(MASTER, FAULT, "fault: eth0 is down"),
    )
    assert made.deadline is None
    assert made.expire(100.0) == ()
    assert made.receive(heard(50), SMALLER, 100.0) == ()
    assert made.recover(101.0) == (StateChanged(FAULT, BACKUP, "recovered"),)
    assert made.deadline == 101.0 + DOWN


def test_the_newest_fault_is_the_one_told() -> None:
    made = backup()
    made.fault("eth0 is down", 1.0)
    assert made.fault("eth1 is down", 2.0) == ()
    assert made.fault_reason == "eth1 is down"


def test_fault_before_the_start_keeps_it_from_listening() -> None:
    made = election()
    assert made.fault("eth0 is down", 0.0) == (StateChanged(INIT, FAULT, "fault: eth0 is down"),)
    assert made.start(1.0) == ()
    assert made.recover(2.0) == (StateChanged(FAULT, BACKUP, "recovered"),)


def test_fault_that_is_over_before_the_start_leaves_nothing() -> None:
    made = election()
    made.fault("eth0 is down", 0.0)
    assert made.recover(1.0) == (StateChanged(FAULT, INIT, "recovered"),)
    assert made.deadline is None


STALLED = (ReleaseAddresses(), StateChanged(MASTER, BACKUP, "stalled"))
# Its last advertisement was sent at DOWN, and the peer's timer is at least this long.
LATEST = DOWN + DOWN_ADVERTISEMENTS * 1.0


def test_a_master_that_is_silent_for_less_than_any_peers_timer_goes_on() -> None:
    assert Advertise(100) in master().expire(LATEST)


def test_stalled_master_gives_up_the_addresses_before_it_sends() -> None:
    made = master()
    assert made.expire(LATEST + 0.01) == STALLED
    assert not made.preemption_permitted
    assert made.deadline == pytest.approx(LATEST + 0.01 + DOWN)


def test_stalled_master_listens_to_what_it_then_hears() -> None:
    made = master()
    assert made.receive(heard(50), SMALLER, 20.0) == STALLED
    assert made.deadline == 20.0 + DOWN
    for tick in range(21, 40):
        assert made.receive(heard(50), SMALLER, float(tick)) == ()
        assert made.expire(float(tick)) == ()


def test_every_method_notices_the_stall() -> None:
    assert master().permit_preemption(False, 20.0) == STALLED
    assert master().recover(20.0) == STALLED
    assert master().stop(20.0) == (*STALLED, StateChanged(BACKUP, INIT, "stopped"))
    assert master().fault("x", 20.0) == (*STALLED, StateChanged(BACKUP, FAULT, "fault: x"))


def test_own_words_coming_back_are_ignored() -> None:
    made = master()
    assert made.receive(heard(200), OWN, 4.0) == ()
    assert made.counters["own_advertisements"] == 1


def test_transitions_are_counted_by_reason_and_the_peer_is_remembered() -> None:
    made = master()
    made.receive(heard(200, interval_cs=50), GREATER, 4.0)
    made.stop(4.5)
    assert made.transitions.snapshot() == {
        "higher_priority_heard": 1,
        "master_silent": 1,
        "started": 1,
        "stopped": 1,
    }
    assert made.peer is not None
    assert (made.peer.address, made.peer.priority, made.peer.interval_cs) == (GREATER, 200, 50)
    assert made.peer.heard_at == 4.0


def delayed(*, preempt_delay: float = 0.0, startup_delay: float = 0.0) -> Election:
    made = Election(
        vrid=7,
        priority=100,
        interval=1.0,
        preempt=True,
        address=OWN,
        preempt_delay=preempt_delay,
        startup_delay=startup_delay,
    )
    made.permit_preemption(True, 0.0)
    made.start(0.0)
    return made


def hear_every_second(made: Election, priority: int, begin: int, end: int) -> float | None:
    """Hear a master each second; tells when this node became MASTER."""
    for second in range(begin, end):
        while made.deadline is not None and made.deadline < second:
            made.expire(made.deadline)
        if made.state is MASTER:
            return made.since
        made.receive(heard(priority), SMALLER, float(second))
    return None


def test_preemption_waits_for_the_delay_since_the_lower_master_was_heard_first() -> None:
    # Heard at 1 s, obeyed up to 10 s, and displaced a down interval later.
    assert hear_every_second(delayed(preempt_delay=10.0), 50, 1, 30) == 10.0 + DOWN


def test_a_better_master_starts_the_preempt_delay_anew() -> None:
    made = delayed(preempt_delay=10.0)
    assert hear_every_second(made, 50, 1, 8) is None
    assert hear_every_second(made, 200, 8, 9) is None
    assert hear_every_second(made, 50, 9, 40) == 18.0 + DOWN


def test_the_preempt_delay_does_not_hold_up_a_takeover_from_nobody() -> None:
    made = delayed(preempt_delay=100.0)
    made.receive(heard(50), SMALLER, 1.0)
    assert made.expire(1.0 + DOWN)[-1] == StateChanged(BACKUP, MASTER, "master_silent")


def test_nothing_is_taken_within_the_startup_delay() -> None:
    made = delayed(startup_delay=10.0)
    assert made.deadline == 10.0
    made.receive(heard(0), SMALLER, 5.0)
    assert made.expire(9.99) == ()
    assert made.expire(10.0)[1] == AcquireAddresses()


def test_after_the_startup_delay_the_master_counts_as_ever() -> None:
    made = delayed(startup_delay=10.0)
    made.receive(heard(200), GREATER, 9.0)
    assert made.deadline == 9.0 + DOWN


def test_a_startup_delay_is_not_repeated_after_a_fault() -> None:
    made = delayed(startup_delay=10.0)
    made.expire(10.0)
    made.fault("eth0 is down", 11.0)
    made.recover(12.0)
    assert made.deadline == 12.0 + DOWN


@pytest.mark.parametrize(
    ("permitted", "preempt_delay", "startup_delay"),
    [(False, 0.0, 0.0), (True, 1.0, 0.0), (True, 0.0, 1.0)],
)
def test_an_owner_that_must_wait_listens_as_others_do(
    permitted: bool, preempt_delay: float, startup_delay: float
) -> None:
    made = Election(
        vrid=7,
        priority=255,
        interval=1.0,
        preempt=False,
        address=OWN,
        preempt_delay=preempt_delay,
        startup_delay=startup_delay,
    )
    made.permit_preemption(permitted, 0.0)
    assert made.start(0.0) == (StateChanged(INIT, BACKUP, "started"),)
    assert made.deadline == 3 + 1 / 256


def test_the_start_of_an_owner_is_told_as_such() -> None:
    made = Election(vrid=7, priority=255, interval=1.0, preempt=True, address=OWN)
    made.permit_preemption(True, 0.0)
    assert made.start(0.0)[-1] == StateChanged(BACKUP, MASTER, "owner_started")
    assert made.transitions.snapshot() == {"owner_started": 1, "started": 1}


# Handover


def is_aside(made: Election) -> bool:
    return made.stepped_aside


def test_a_master_goes_on_until_it_hears_its_successor_and_displaces_it_no_more() -> None:
    made = master()
    now = DOWN + 0.1
    assert made.hand_over(now) == ()
    assert made.state is MASTER
    assert made.receive(heard(50), SMALLER, now + 0.01) == (
        ReleaseAddresses(),
        StateChanged(MASTER, BACKUP, "handed_over"),
    )
    assert is_aside(made)
    later = now + 0.01
    for _ in range(20):
        later += 1.0
        made.receive(heard(50), SMALLER, later)
        assert made.expire(later) == ()
    # The successor dies: then it is as always.
    assert made.expire(later + DOWN)[-1] == StateChanged(BACKUP, MASTER, "master_silent")
    assert not is_aside(made)
    made.receive(heard(50), SMALLER, later + DOWN + 0.1)
    assert made.state is MASTER


def test_a_handover_that_nobody_answers_is_over_after_a_while() -> None:
    made = master()
    made.hand_over(DOWN)
    run_until(made, DOWN + HAND_OVER_TIME)
    made.receive(heard(50), SMALLER, DOWN + HAND_OVER_TIME)
    assert made.state is MASTER


def test_a_backup_that_is_called_takes_over_at_once_and_stays() -> None:
    made = backup()
    made.receive(heard(200), GREATER, 1.0)
    assert made.take_over(1.1) == (
        Advertise(100),
        AcquireAddresses(),
        AnnounceAddresses(),
        StateChanged(BACKUP, MASTER, "handed_over"),
    )
    # On its way when its sender called.
    assert made.receive(heard(200), GREATER, 1.101) == (Advertise(100),)
    assert made.state is MASTER
    # A third one did not call.
    other = backup()
    other.receive(heard(200), GREATER, 1.0)
    other.take_over(1.1)
    other.receive(heard(200), SMALLER, 1.2)
    assert other.state is BACKUP
    # Who still says so after that did not mean it.
    made.expire(1.1 + HAND_OVER_TIME)
    made.receive(heard(200), GREATER, 1.1 + HAND_OVER_TIME)
    assert made.state is BACKUP


def test_nobody_else_hands_over_or_is_called() -> None:
    for made in (backup(), election()):
        made.hand_over(0.5)
        assert made.step_aside(0.5) == ()
    made = master()
    assert made.take_over(DOWN + 0.1) == ()
    idle = election()
    assert idle.take_over(0.5) == ()


def test_who_steps_aside_resigns_and_takes_over_again_only_if_nobody_does() -> None:
    made = master()
    assert made.step_aside(DOWN + 0.5) == (
        ReleaseAddresses(),
        Advertise(0),
        StateChanged(MASTER, BACKUP, "handed_over"),
    )
    made.receive(heard(50), SMALLER, DOWN + 1.0)
    assert made.deadline == DOWN + 1.0 + DOWN
    assert made.expire(DOWN + 1.0 + DOWN)[-1] == StateChanged(BACKUP, MASTER, "master_silent")


def test_an_owner_that_has_handed_over_does_not_come_back_by_itself() -> None:
    made = Election(vrid=7, priority=255, interval=1.0, preempt=True, address=OWN)
    made.permit_preemption(True, 0.0)
    made.start(0.0)
    made.step_aside(1.0)
    made.fault("eth0 is down", 1.1)
    assert made.recover(1.2) == (StateChanged(FAULT, BACKUP, "recovered"),)
    made.receive(heard(50), SMALLER, 1.3)
    assert made.deadline == pytest.approx(1.3 + made.down_interval)
