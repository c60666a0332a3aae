"""What was told last is said again while nothing follows it."""

from lvsha.sync.messages import Changes
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.sync.tail import TOGETHER_BYTES, WAITS, Tail
from tests.replicas import START, changed, expire_until, leading, sent_of

LATER = START + sum(WAITS) + 0.01


def told(replica: Replica, until: float) -> list[int]:
    return [m.origin.sequence for m in sent_of(Changes, expire_until(replica, until))]


def test_the_newest_is_due_after_each_wait_and_then_no_more() -> None:
    tail, now = Tail(), START
    tail.left(7, 80, now)
    for wait in WAITS:
        now += wait
        assert tail.due(now - 1e-6) == []
        assert tail.at == now
        assert tail.due(now) == [7]
    assert tail.at is None
    assert tail.due(now + 1) == []


def test_those_before_the_newest_are_due_too_each_in_its_time() -> None:
    tail, later = Tail(), START + WAITS[0] / 2
    tail.left(7, 80, START)
    tail.left(8, 80, later)
    assert tail.at == START + WAITS[0]
    assert tail.due(START + WAITS[0]) == [7]
    assert tail.due(later + WAITS[0]) == [8]
    assert tail.due(later + sum(WAITS[:2])) == [7, 8]


def test_only_the_newest_that_are_small_together_are_due() -> None:
    tail = Tail()
    half = TOGETHER_BYTES // 2
    tail.left(7, half, START)
    tail.left(8, half, START)
    tail.left(9, half, START)
    assert tail.due(START + WAITS[0]) == [8, 9]
    tail.left(10, TOGETHER_BYTES + 1, START)
    assert tail.due(START + sum(WAITS[:2])) == [10]
    tail.left(11, half, START + 1)
    tail.left(12, half, START + 1)
    assert tail.due(START + 2) == [11, 12], "what was dropped takes no room"


def test_what_was_repeated_often_enough_takes_no_room() -> None:
    tail, now = Tail(), START
    tail.left(7, TOGETHER_BYTES, now)
    for wait in WAITS:
        now += wait
        tail.due(now)
    tail.left(8, TOGETHER_BYTES // 2, now)
    tail.left(9, TOGETHER_BYTES // 2, now)
    assert tail.due(now + WAITS[0]) == [8, 9]


def test_the_last_change_leaves_again_under_its_number() -> None:
    replica = leading()
    (first,) = sent_of(Changes, replica.tell([changed(1)], START))
    assert told(replica, LATER) == [first.origin.sequence] * len(WAITS)
    assert replica.counters["datagrams_repeated"] == len(WAITS)


def test_what_is_followed_by_another_is_repeated_beside_it() -> None:
    replica = leading()
    replica.tell([changed(1)], START)
    replica.tell([changed(2)], START + WAITS[0] / 2)
    assert told(replica, START + WAITS[0] * 1.6) == [1, 2]
    assert sorted(told(replica, LATER)) == [1] * (len(WAITS) - 1) + [2] * (len(WAITS) - 1)


def test_what_a_limit_of_bytes_lets_through_is_for_what_is_new() -> None:
    replica = leading(pace=Pace(bytes_per_second=100))
    assert len(sent_of(Changes, replica.tell([changed(1)], START))) == 1
    assert told(replica, LATER) == []


def test_nothing_is_repeated_while_something_waits_to_follow() -> None:
    gather = sum(WAITS[:3])
    replica, now = leading(pace=Pace(eager_datagrams_max=1, gather=gather)), START + 30
    expire_until(replica, now)
    replica.tell([changed(1)], now)
    replica.tell([changed(2)], now)
    assert told(replica, now + gather * 0.99) == []
    assert told(replica, now + gather * 1.01) == [2, 1]


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
