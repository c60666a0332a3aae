"""An election that asks before it takes over from a silent master."""

import pytest

from lvsha.failover.actions import (
    AcquireAddresses,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
    TakeoverDue,
)
from lvsha.failover.election import Election
from lvsha.model import VrrpState
from tests.unit.test_election import DOWN, GREATER, SKEW, SMALLER, election, heard

INIT, BACKUP, MASTER, FAULT = VrrpState
BECOMES_MASTER = (
    Advertise(100),
    AcquireAddresses(),
    AnnounceAddresses(),
    StateChanged(BACKUP, MASTER, "master_silent"),
)


def asking(*, permitted: bool = True) -> Election:
    made = election(permitted=permitted)
    made.needs_consent = True
    made.start(0.0)
    return made


def waiting() -> Election:
    """It misses its master since `DOWN`, and has said so."""
    made = asking()
    assert made.expire(DOWN) == (TakeoverDue(),)
    return made


def test_a_backup_that_misses_its_master_asks_and_takes_over_with_consent() -> None:
    made = asking()
    assert made.expire(DOWN - 0.001) == ()
    assert not made.awaits_consent
    assert made.expire(DOWN) == (TakeoverDue(),)
    assert (made.state, made.awaits_consent) == (BACKUP, True)
    assert made.consent(DOWN) == BECOMES_MASTER
    assert not made.awaits_consent


def test_it_asks_again_in_each_interval_and_never_sleeps_for_ever() -> None:
    made = waiting()
    for _ in range(5):
        assert made.deadline is not None
        assert made.expire(made.deadline) == (TakeoverDue(),)
    assert made.deadline == pytest.approx(DOWN + 6.0)
    assert made.counters.snapshot()["takeovers_asked_for"] == 6


@pytest.mark.parametrize("source", [SMALLER, GREATER])
def test_a_master_that_is_heard_again_makes_consent_void(source: bytes) -> None:
    made = waiting()
    made.receive(heard(200), source, DOWN + 0.5)
    assert made.consent(DOWN + 0.6) == ()
    assert made.state is BACKUP
    assert made.deadline == pytest.approx(DOWN + 0.5 + DOWN)


def test_consent_that_was_not_asked_for_is_void() -> None:
    made = asking()
    assert made.consent(DOWN - 0.1) == ()
    made.fault("a link", DOWN)
    assert made.consent(DOWN) == ()
    made = waiting()
    made.fault("a link", DOWN + 0.1)
    assert made.consent(DOWN + 0.2) == ()


def test_nobody_is_asked_after_a_resignation() -> None:
    made = asking()
    made.receive(heard(0), GREATER, 1.0)
    assert made.expire(1.0 + SKEW)[-1] == StateChanged(BACKUP, MASTER, "master_resigned")
    made = waiting()
    made.receive(heard(0), GREATER, DOWN + 0.1)
    assert not made.awaits_consent
    assert made.expire(DOWN + 0.1 + SKEW)[-1].reason == "master_resigned"  # type: ignore[union-attr]


def test_nobody_is_asked_in_a_handover_nor_where_a_lower_priority_is_heard() -> None:
    made = asking()
    made.receive(heard(200), GREATER, 1.0)
    assert made.take_over(1.5)[-1] == StateChanged(BACKUP, MASTER, "handed_over")
    made = asking()
    for second in (1.0, 2.0, 3.0):
        made.receive(heard(50), GREATER, second)
    assert made.expire(DOWN)[-1] == StateChanged(BACKUP, MASTER, "preempted_lower_priority")


def test_a_lower_priority_that_has_fallen_silent_is_asked_about_like_any_master() -> None:
    made = asking()
    made.receive(heard(50), GREATER, 1.0)
    assert made.expire(DOWN) == (TakeoverDue(),)
    assert made.consent(DOWN)[-1] == StateChanged(BACKUP, MASTER, "master_silent")


def test_the_owner_listens_before_it_asks() -> None:
    made = election(priority=255)
    made.needs_consent = True
    assert made.start(0.0) == (StateChanged(INIT, BACKUP, "started"),)
    assert made.deadline is not None
    assert made.expire(made.deadline) == (TakeoverDue(),)


def test_a_master_that_gives_way_lets_go_calls_nobody_and_listens() -> None:
    made = waiting()
    made.consent(DOWN)
    now = DOWN + 0.5
    assert made.give_way(now) == (
        ReleaseAddresses(),
        StateChanged(MASTER, BACKUP, "higher_priority_heard"),
    )
    assert made.deadline == pytest.approx(now + DOWN)
    assert made.give_way(now) == ()
    assert made.expire(now + DOWN) == (TakeoverDue(),)
