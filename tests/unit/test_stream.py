"""The order of one sender's numbers, what is asked for again, and what is given up."""

import pytest

from lvsha.sync.stream import (
    ASK_INTERVAL,
    ASK_RANGES_MAX,
    ASKS_MAX,
    MISSING_MAX,
    PATIENCE,
    REORDER_WAIT,
    Admission,
    Range,
    Stream,
)

NOW = 50.0


def with_gap(first: int = 2, last: int = 4) -> Stream:
    """A stream that misses these numbers since `NOW`."""
    stream = Stream(1)
    for number in range(1, first):
        stream.admit(number, NOW)
    stream.admit(last + 1, NOW)
    return stream


def asked(stream: Stream, until: float, *, may_ask: bool = True) -> list[tuple[float, list[Range]]]:
    """What is asked for at each deadline."""
    rounds = []
    while (deadline := stream.deadline) is not None and deadline <= until:
        if ranges := stream.expire(deadline, may_ask=may_ask):
            rounds.append((round(deadline - NOW, 6), ranges))
    return rounds


def test_numbers_in_order_are_admitted_and_nothing_is_remembered() -> None:
    stream = Stream(5)
    assert [stream.admit(number, NOW) for number in (5, 6, 7)] == [Admission.NEXT] * 3
    assert stream.fresh(b"key", 7)
    stream.settle()
    assert (stream.position, stream.missing, stream.deadline, stream.guarded) == (7, 0, None, False)


def test_a_number_is_admitted_once() -> None:
    stream = with_gap()
    assert stream.admit(3, NOW) is Admission.LATE
    assert stream.admit(3, NOW) is Admission.REFUSED
    assert stream.admit(5, NOW) is Admission.REFUSED
    assert stream.admit(0, NOW) is Admission.REFUSED


def test_what_was_told_by_a_later_number_is_not_told_by_an_earlier_one() -> None:
    stream = with_gap(2, 2)
    assert stream.fresh(b"key", 3)
    stream.settle()
    assert stream.guarded
    stream.admit(2, NOW)
    assert not stream.fresh(b"key", 2)
    assert stream.fresh(b"other", 2)
    stream.settle()
    assert not stream.guarded


def test_what_is_missing_is_asked_for_after_the_network_may_have_reordered() -> None:
    stream = with_gap()
    assert stream.deadline == NOW + REORDER_WAIT
    assert stream.expire(NOW + REORDER_WAIT - 0.001, may_ask=True) == []
    assert stream.expire(NOW + REORDER_WAIT, may_ask=True) == [(2, 3)]


def test_what_only_came_late_is_not_asked_for() -> None:
    stream = with_gap(2, 2)
    stream.admit(2, NOW + REORDER_WAIT / 2)
    assert stream.deadline is None
    assert stream.repaired_total == 0


def test_what_does_not_come_is_asked_for_again_and_then_given_up() -> None:
    stream = with_gap()
    rounds = asked(stream, NOW + 10)
    assert [ranges for _, ranges in rounds] == [[(2, 3)]] * ASKS_MAX
    times = [at for at, _ in rounds]
    assert times == pytest.approx([REORDER_WAIT + ASK_INTERVAL * n for n in range(ASKS_MAX)])
    assert stream.take_lost() == (3, 4)
    assert (stream.missing, stream.lost_total, stream.deadline) == (0, 3, None)
    assert stream.admit(3, NOW + 10) is Admission.REFUSED


def test_what_came_after_it_was_asked_for_is_repaired() -> None:
    stream = with_gap()
    stream.expire(NOW + REORDER_WAIT, may_ask=True)
    assert stream.admit(3, NOW + 0.01) is Admission.LATE
    assert (stream.repaired_total, stream.lost_total) == (1, 0)
    assert stream.expire(NOW + 1, may_ask=True) == [(2, 1), (4, 1)]


def test_ranges_are_in_order_whatever_order_the_gaps_came_in() -> None:
    stream = Stream(1)
    for number in (3, 6, 9):
        stream.admit(number, NOW)
    assert stream.expire(NOW + 1, may_ask=True) == [(1, 2), (4, 2), (7, 2)]


def test_more_ranges_than_fit_wait_for_their_turn_without_being_counted_as_asked() -> None:
    stream = Stream(1)
    for number in range(2, 2 * (ASK_RANGES_MAX + 20), 2):
        stream.admit(number, NOW)
    assert len(stream.expire(NOW + 1, may_ask=True)) == ASK_RANGES_MAX
    for number in range(1, 2 * ASK_RANGES_MAX, 2):
        stream.admit(number, NOW + 1)
    assert stream.repaired_total == ASK_RANGES_MAX
    (first, _), *others = stream.expire(NOW + 2, may_ask=True)
    assert (first, len(others)) == (2 * ASK_RANGES_MAX + 1, 18)


def test_of_a_sender_that_cannot_send_again_what_is_missing_is_given_up_after_its_time() -> None:
    stream = with_gap(2, 2)
    stream.admit(5, NOW + 0.03)
    assert asked(stream, NOW + PATIENCE, may_ask=False) == []
    assert stream.take_lost() == (1, 2)
    assert stream.missing == 1
    assert asked(stream, NOW + 1, may_ask=False) == []
    assert stream.take_lost() == (1, 4)
    assert stream.take_lost() == (0, 4)


def test_what_the_sender_does_not_have_any_more_is_given_up_at_once() -> None:
    stream = with_gap(2, 6)
    stream.abandon_before(5)
    assert stream.take_lost() == (3, 4)
    assert stream.expire(NOW + 1, may_ask=True) == [(5, 2)]
    stream.abandon_before(100)
    assert stream.take_lost() == (2, 6)
    assert not stream.guarded


def test_a_number_that_was_said_to_be_sent_is_missing() -> None:
    stream = Stream(1)
    stream.reach(4, NOW)
    assert (stream.position, stream.missing, stream.gaps) == (4, 4, 1)
    stream.reach(3, NOW)
    assert stream.missing == 4


def test_a_gap_too_wide_to_be_remembered_is_given_up_at_once() -> None:
    stream = with_gap(2, 3)
    stream.admit(2**64 - 1, NOW)
    assert stream.missing == 0
    assert stream.take_lost() == (2**64 - 1 - 3, 2**64 - 2)


def test_the_widest_gap_that_is_remembered_is_asked_for() -> None:
    stream = Stream(1)
    stream.admit(MISSING_MAX + 1, NOW)
    assert stream.expire(NOW + 1, may_ask=True) == [(1, MISSING_MAX)]


def test_the_numbers_between_two_can_be_asked_about() -> None:
    stream = with_gap(4, 6)
    assert stream.is_missing_between(1, 4)
    assert stream.is_missing_between(6, 9)
    assert not stream.is_missing_between(1, 3)
    assert not stream.is_missing_between(7, 9)


def test_more_connections_than_can_be_remembered_give_up_what_is_missing() -> None:
    stream = Stream(1, touched_max=3)
    stream.admit(2, NOW)
    for number in range(4):
        stream.fresh(bytes((number,)), 2)
        stream.settle()
    assert (stream.missing, stream.guarded) == (0, False)
    assert stream.take_lost() == (1, 1)
