"""Priorities that change while an election runs, and routers that move together."""

import pytest

from lvsha.failover.actions import (
    AcquireAddresses,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
)
from lvsha.failover.election import Election
from lvsha.model import VrrpState
from lvsha.wire.vrrp import Advertisement

OWN, OTHER = bytes((10, 0, 0, 5)), bytes((10, 0, 0, 1))
INIT, BACKUP, MASTER, FAULT = VrrpState


def down(priority: int) -> float:
    return 3 + (256 - priority) / 256


def backup(priority: int = 100, *, preempt: bool = True, permitted: bool = True) -> Election:
    made = Election(vrid=7, priority=priority, interval=1.0, preempt=preempt, address=OWN)
    made.permit_preemption(permitted, 0.0)
    made.start(0.0)
    return made


def master() -> Election:
    made = backup()
    made.expire(down(100))
    assert made.state is MASTER
    return made


def heard(priority: int) -> Advertisement:
    return Advertisement(7, priority, 100, (bytes((192, 0, 2, 10)),))


# Priorities


def test_a_master_tells_its_new_priority_at_once_and_then_in_turn() -> None:
    made = master()
    now = down(100) + 0.4
    assert made.change_priority(60, now) == (Advertise(60),)
    assert made.expire(now + 0.5) == ()
    # The first announcement of the series is due then as well.
    assert made.expire(now + 1.0) == (Advertise(60), AnnounceAddresses())


def test_a_master_whose_priority_flaps_tells_it_once_in_an_interval() -> None:
    made = master()
    now = down(100) + 0.1
    changes = [made.change_priority(60 + step % 2, now + step / 100) for step in range(20)]
    assert sum(map(len, changes)) == 1
    assert Advertise(61) in made.expire(now + 1.0)


def test_the_same_priority_changes_nothing() -> None:
    assert master().change_priority(100, down(100) + 0.1) == ()


def test_the_timer_of_a_backup_moves_with_its_skew() -> None:
    made = backup()
    made.receive(heard(200), OTHER, 1.0)
    assert made.change_priority(156, 1.5) == ()
    assert made.deadline == pytest.approx(1.0 + down(156))


def test_a_backup_that_became_better_displaces_the_master() -> None:
    made = backup()
    made.receive(heard(150), OTHER, 1.0)
    made.change_priority(200, 1.5)
    made.receive(heard(150), OTHER, 2.0)
    made.receive(heard(150), OTHER, 3.0)
    actions = made.expire(1.0 + down(200))
    assert actions[-1] == StateChanged(BACKUP, MASTER, "preempted_lower_priority")


def test_a_backup_that_became_worse_while_it_waited_lets_the_master_be() -> None:
    made = backup(200)
    made.receive(heard(150), OTHER, 1.0)
    made.change_priority(100, 1.5)
    assert made.deadline == pytest.approx(1.0 + down(100))
    made.receive(heard(150), OTHER, 2.0)
    assert made.expire(1.0 + down(100)) == ()
    assert made.expire(2.0 + down(100))[-1] == StateChanged(BACKUP, MASTER, "master_silent")


def test_a_priority_may_change_before_the_start_and_in_a_fault() -> None:
    made = Election(vrid=7, priority=100, interval=1.0, preempt=True, address=OWN)
    assert made.change_priority(90, 0.0) == ()
    made.fault("cable", 0.1)
    assert made.change_priority(80, 0.2) == ()
    made.start(0.3)
    made.recover(1.0)
    assert made.deadline == pytest.approx(1.0 + down(80))


# Groups


def test_a_backup_joins_a_master_at_once() -> None:
    made = backup()
    made.receive(heard(200), OTHER, 1.0)
    assert made.join_masters(1.1) == (
        Advertise(100),
        AcquireAddresses(),
        AnnounceAddresses(),
        StateChanged(BACKUP, MASTER, "group_took_over"),
    )
    assert made.join_masters(1.2) == ()


def test_a_master_that_gives_way_with_its_group_calls_the_successor_and_listens() -> None:
    made = master()
    now = down(100) + 0.2
    assert made.join_backups(now) == (
        ReleaseAddresses(),
        Advertise(0),
        StateChanged(MASTER, BACKUP, "group_gave_way"),
    )
    assert made.deadline == pytest.approx(now + down(100))
    assert made.join_backups(now + 0.1) == ()


@pytest.mark.parametrize("state", [INIT, FAULT])
def test_a_router_that_takes_no_part_joins_nobody(state: VrrpState) -> None:
    made = Election(vrid=7, priority=100, interval=1.0, preempt=True, address=OWN)
    if state is FAULT:
        made.fault("cable", 0.0)
    assert made.join_masters(1.0) == ()
    assert made.join_backups(1.0) == ()
    assert made.state is state


def test_a_stalled_master_that_is_to_join_gives_way_as_stalled() -> None:
    made = master()
    assert made.join_masters(down(100) + 10)[-1] == StateChanged(MASTER, BACKUP, "stalled")


def companions() -> tuple[Election, Election]:
    cut, whole = backup(), backup()
    cut.companions, whole.companions = (whole,), (cut,)
    return cut, whole


def test_whose_link_alone_is_cut_stands_back_while_a_companion_hears_the_master() -> None:
    cut, whole = companions()
    cut.receive(heard(200), OTHER, 1.0)
    for second in range(1, 11):
        whole.receive(heard(200), OTHER, float(second))
    assert cut.expire(1.0 + down(100)) == ()
    assert cut.deadline == pytest.approx(1.0 + down(100) + 1.0)
    assert cut.counters["stood_back_for_the_group"] == 1
    # When the master is heard nowhere any more, nobody stands back.
    assert cut.expire(10.0 + down(100) + 0.01)[-1] == StateChanged(BACKUP, MASTER, "master_silent")


def test_nobody_stands_back_for_a_master_that_died() -> None:
    cut, whole = companions()
    cut.receive(heard(200), OTHER, 1.0)
    whole.receive(heard(200), OTHER, 1.99)
    assert cut.expire(1.0 + down(100))[-1] == StateChanged(BACKUP, MASTER, "master_silent")


@pytest.mark.parametrize(("priority", "stands_back"), [(90, False), (0, False), (100, True)])
def test_nobody_stands_back_for_a_master_that_is_about_to_be_displaced(
    priority: int, stands_back: bool
) -> None:
    cut, whole = companions()
    cut.receive(heard(200), OTHER, 1.0)
    whole.receive(heard(200), OTHER, 3.3)
    whole.receive(heard(priority), OTHER, 3.5)
    assert (cut.expire(1.0 + down(100)) == ()) is stands_back


def test_where_displacing_is_not_permitted_a_worse_master_counts_too() -> None:
    cut, whole = companions()
    whole.permit_preemption(False, 0.0)
    whole.receive(heard(90), OTHER, 3.5)
    assert cut.expire(down(100)) == ()


# Handovers


def masters() -> tuple[Election, Election]:
    pair = (master(), master())
    pair[0].companions, pair[1].companions = (pair[1],), (pair[0],)
    return pair


def test_who_is_handed_over_lets_its_companions_go_as_well() -> None:
    called, companion = masters()
    now = down(100) + 0.1
    called.hand_over(now)
    # Whichever of the successor's advertisements is heard first.
    actions = companion.receive(heard(1), OTHER, now + 0.01)
    assert actions[-1] == StateChanged(MASTER, BACKUP, "handed_over")
    assert called.join_backups(now + 0.01)[-1] == StateChanged(MASTER, BACKUP, "group_gave_way")


def test_who_follows_a_companion_that_stepped_aside_displaces_nobody_either() -> None:
    called, companion = masters()
    now = down(100) + 0.1
    called.step_aside(now)
    companion.join_backups(now)
    assert companion.stepped_aside
    companion.receive(heard(1), OTHER, now + 0.5)
    assert companion.deadline is not None
    assert companion.deadline > now + 0.5 + 3


def test_who_follows_a_companion_that_was_called_stays_when_the_old_master_is_heard() -> None:
    called, companion = companions()
    for one in (called, companion):
        one.receive(heard(200), OTHER, 1.0)
    called.take_over(1.1)
    companion.join_masters(1.1)
    companion.receive(heard(200), OTHER, 1.11)
    assert companion.state is MASTER
    # Not for ever: then the higher priority counts again.
    companion.expire(2.1)
    companion.receive(heard(200), OTHER, 2.5)
    assert companion.state is BACKUP
