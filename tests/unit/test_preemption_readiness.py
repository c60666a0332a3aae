"""When a returning node may preempt."""

from lvsha.failover.readiness import Permission, Readiness

START = 100.0


def test_preemption_is_permitted_one_look_after_the_copy_is_complete() -> None:
    readiness = Readiness(300.0, START)
    told = [readiness.look(START + at, complete=at >= 2) for at in range(5)]
    assert told == [Permission.NO, Permission.NO, Permission.SOON, Permission.YES, Permission.YES]


def test_it_is_withdrawn_while_the_copy_is_incomplete_and_the_ways_are_asked_for_again() -> None:
    readiness = Readiness(300.0, START)
    copies = [True, True, False, True, True]
    told = [readiness.look(START + at, complete=whole) for at, whole in enumerate(copies)]
    assert told == [
        Permission.SOON,
        Permission.YES,
        Permission.NO,
        Permission.SOON,
        Permission.YES,
    ]


def test_a_copy_that_stays_incomplete_is_not_waited_for_for_ever() -> None:
    readiness = Readiness(3.0, START)
    told = [readiness.look(START + at, complete=at == 2) for at in range(7)]
    assert told[:5] == [Permission.NO, Permission.NO, Permission.SOON, Permission.NO, Permission.NO]
    assert told[5:] == [Permission.ANYWAY, Permission.ANYWAY]
    assert readiness.waited(START + 6) == 4.0


def test_who_has_no_patience_does_not_wait() -> None:
    assert Readiness(0.0, START).look(START, complete=False) is Permission.ANYWAY
