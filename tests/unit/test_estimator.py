"""Rates: the kernel's numbers, and everything in its turn."""

from dataclasses import dataclass, field

import pytest

from lvsha.datapath.estimator import INTERVAL, Estimator, Rates
from lvsha.datapath.services import Statistics


def ticked(*counts: Statistics) -> Rates:
    rates = Rates()
    for counted in counts:
        rates.tick(counted)
    return rates


def test_constant_counts_give_the_kernels_rates() -> None:
    rates = Rates()
    connections, bytes_in = [], []
    for tick in range(1, 13):
        rates.tick(Statistics(connections=100 * tick, in_bytes=64_000 * tick))
        connections.append(rates.connections)
        bytes_in.append(rates.in_bytes)
    assert connections == [12, 22, 29, 34, 38, 41, 43, 45, 46, 47, 48, 48]
    assert bytes_in == [
        8000, 14000, 18500, 21875, 24406, 26305, 27728, 28796, 29597, 30198, 30648, 30986,
    ]  # fmt: skip


def test_rates_fall_to_zero_when_nothing_passes() -> None:
    counted = Statistics(5, 1000, 500, 64_000, 32_000)
    rates = ticked(counted)
    shown = []
    for _ in range(80):
        shown.append(rates.in_bytes)
        rates.tick(counted)
    assert shown == sorted(shown, reverse=True)
    assert (rates.connections, rates.in_packets, rates.out_packets) == (0, 0, 0)
    assert (rates.in_bytes, rates.out_bytes) == (0, 0)


def test_each_rate_follows_its_own_count() -> None:
    rates = ticked(Statistics(8, 80, 800, 8000, 80_000))
    assert rates.connections == 1
    assert rates.in_packets == 10
    assert rates.out_packets == 100
    assert rates.in_bytes == 1000
    assert rates.out_bytes == 10_000


def test_an_average_that_falls_is_rounded_down_as_a_shift_does() -> None:
    rates = ticked(Statistics(in_bytes=30), Statistics(in_bytes=30))
    # 480 >> 2 = 120; 120 + (-120 >> 2) = 90; (90 + 15) >> 5 = 3
    assert rates.in_bytes == 3


def test_zeroed_rates_begin_at_zero_and_take_no_old_counts_in() -> None:
    rates = ticked(Statistics(in_packets=1000))
    rates.zero()
    assert rates.in_packets == 0
    rates.tick(Statistics(in_packets=8))
    assert rates.in_packets == 1


def test_rates_may_begin_with_counts_that_are_there_already() -> None:
    rates = Rates()
    rates.zero(Statistics(in_packets=1_000_000))
    rates.tick(Statistics(in_packets=1_000_008))
    assert rates.in_packets == 1


def test_a_count_that_goes_back_counts_as_nothing() -> None:
    rates = ticked(Statistics(in_packets=1000))
    before = rates.in_packets
    rates.tick(Statistics(in_packets=10))
    assert 0 <= rates.in_packets < before


# Turns


@dataclass
class Counting:
    """Counts how often it is looked at, and when."""

    rates: Rates = field(default_factory=Rates)
    looks: int = 0

    def sampled(self) -> Statistics:
        self.looks += 1
        return Statistics(connections=100 * self.looks)


def test_everything_is_looked_at_once_in_each_interval() -> None:
    things = [Counting() for _ in range(1000)]
    estimator = Estimator(lambda: things)
    for step in range(601):
        estimator.run(step / 100, 10_000)
        if step % 200 == 0:
            assert {thing.looks for thing in things} == {step // 200}


def test_turns_are_spread_over_the_interval() -> None:
    things = [Counting() for _ in range(10_000)]
    estimator = Estimator(lambda: things)
    estimator.run(0.0, 10_000)
    most = looked = 0
    for step in range(1, 201):
        estimator.run(step * 0.01, 10_000)
        total = sum(thing.looks for thing in things)
        most, looked = max(most, total - looked), total
    assert looked == 10_000
    assert most <= 51


def test_one_call_looks_at_no_more_than_its_limit() -> None:
    things = [Counting() for _ in range(1000)]
    estimator = Estimator(lambda: things)
    assert not estimator.run(0.0, 10)
    assert estimator.run(1.99, 10)
    assert sum(thing.looks for thing in things) == 10
    assert all(estimator.run(2.0, 10) for _ in range(98))
    assert not estimator.run(2.0, 10)
    assert sum(thing.looks for thing in things) == 1000


def test_the_deadline_is_the_next_turn() -> None:
    things = [Counting() for _ in range(4)]
    estimator = Estimator(lambda: things)
    assert estimator.deadline == float("-inf")
    estimator.run(100.0, 10)
    assert estimator.deadline == 100.5
    estimator.run(100.5, 10)
    assert [thing.looks for thing in things] == [1, 0, 0, 0]
    assert estimator.deadline == 101.0


def test_with_nothing_to_look_at_it_asks_again_after_an_interval() -> None:
    things: list[Counting] = []
    estimator = Estimator(lambda: things)
    estimator.run(0.0, 10)
    assert estimator.deadline == INTERVAL
    things.append(Counting())
    estimator.run(INTERVAL, 10)
    estimator.run(2 * INTERVAL, 10)
    assert things[0].looks == 1


def test_a_standstill_is_not_made_up_for() -> None:
    thing = Counting()
    estimator = Estimator(lambda: [thing])
    estimator.run(0.0, 100)
    estimator.run(1000.0, 100)
    assert thing.looks == 1
    estimator.run(1002.0, 100)
    assert thing.looks == 2


def test_switched_off_the_shown_rates_stay_as_they_are() -> None:
    thing = Counting()
    estimator = Estimator(lambda: [thing])
    estimator.run(0.0, 100)
    estimator.run(INTERVAL, 100)
    shown = thing.rates.connections
    assert shown == 12
    estimator.switch(running=False)
    assert not estimator.running
    assert estimator.deadline is None
    estimator.run(100.0, 100)
    assert thing.looks == 1
    assert thing.rates.connections == shown
    estimator.switch(running=True)
    estimator.run(200.0, 100)
    estimator.run(200.0 + INTERVAL, 100)
    assert thing.looks == 2


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_any_limit_gives_everything_its_turn_in_order(limit: int) -> None:
    things = [Counting() for _ in range(20)]
    estimator = Estimator(lambda: things)
    for step in range(400):
        estimator.run(step * 0.01, limit)
    looks = [thing.looks for thing in things]
    assert looks == sorted(looks, reverse=True)
    assert set(looks) <= {1, 2}
