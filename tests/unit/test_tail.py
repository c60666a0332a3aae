"""What was told last is said again while nothing follows it."""

from lvsha.sync.messages import Changes
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.sync.tail import WAITS, Tail
from tests.replicas import START, changed, expire_until, leading, sent_of

LATER = START + sum(WAITS) + 0.01


def told(replica: Replica, until: float) -> list[int]:
    return [m.origin.sequence for m in sent_of(Changes, expire_until(replica, until))]


def test_the_newest_is_due_after_each_wait_and_then_no_more() -> None:
    tail, now = Tail(), START
    tail.left(7, now)
    for wait in WAITS:
        now += wait
        assert tail.due(now - 1e-6) is None
        assert tail.at == now
        assert tail.due(now) == 7
    assert tail.at is None
    assert tail.due(now + 1) is None


def test_the_last_change_leaves_again_under_its_number() -> None:
    replica = leading()
    (first,) = sent_of(Changes, replica.tell([changed(1)], START))
    assert told(replica, LATER) == [first.origin.sequence] * len(WAITS)
    assert replica.counters["datagrams_repeated"] == len(WAITS)


def test_what_is_followed_by_another_is_not_repeated() -> None:
    replica = leading()
    replica.tell([changed(1)], START)
    replica.tell([changed(2)], START + WAITS[0] / 2)
    assert told(replica, LATER) == [2] * len(WAITS)


def test_nothing_is_repeated_while_something_waits_to_follow() -> None:
    replica = leading(pace=Pace(eager_datagrams_max=1, gather=WAITS[0] * 1.5))
    replica.tell([changed(1)], START)
    replica.tell([changed(2)], START)
    assert told(replica, START + WAITS[0] * 1.6) == [2]


def test_a_caller_that_tells_learns_when_to_call_again() -> None:
    replica = leading()
    assert replica.tell_deadline == float("inf")
    replica.tell([changed(1)], START)
    assert replica.tell_deadline == START + WAITS[0]


def test_who_leads_no_more_repeats_nothing() -> None:
    replica = leading()
    replica.tell([changed(1)], START)
    replica.follow(START)
    replica.stop(START)
    assert replica.tell_deadline == float("inf")
