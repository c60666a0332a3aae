"""Many checks on one loop, under a virtual clock."""

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import pytest
import trio
import trio.testing

from lvsha.config_health import Check
from lvsha.health.opinions import Finding
from lvsha.health.runner import STARTS_PER_SECOND, Assignment, Runner
from lvsha.health.target import Target
from tests.probers import BAD, ScriptedProber

INTERVAL = 10.0


def a_check(**keys: object) -> Check:
    return Check.model_validate({"type": "tcp", "interval": INTERVAL, "jitter": 0.0, **keys})


def run_for(
    seconds: float,
    prober: ScriptedProber,
    checks: list[Check],
    *,
    probes_max: int = 1000,
    agrees: bool = True,
) -> Runner[int]:
    """Try checks, each on an address that ends in its number."""

    def report(_: Assignment[int], finding: Finding) -> bool:
        return agrees

    runner = Runner(prober, report, probes_max, random.Random(7))

    async def run() -> None:
        with trio.move_on_after(seconds):
            await runner.run(
                [
                    Assignment(number, check, Target(f"10.{number >> 8}.{number & 255}.1", 80))
                    for number, check in enumerate(checks)
                ]
            )

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    return runner


def times(prober: ScriptedProber) -> Iterator[list[float]]:
    by_address: defaultdict[str, list[float]] = defaultdict(list)
    start = min(at for at, _ in prober.tried)
    for at, address in prober.tried:
        by_address[address].append(at - start)
    yield from by_address.values()


def gaps(tried: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(tried)]


def test_checks_are_tried_at_their_interval_after_a_shorter_second_one() -> None:
    prober = ScriptedProber()
    run_for(100.0, prober, [a_check()])
    (tried,) = times(prober)
    first, *others = gaps(tried)
    assert 0 <= first <= INTERVAL
    assert others == pytest.approx([INTERVAL] * len(others))
    assert len(tried) >= 10


def test_a_start_is_spread_and_the_second_turn_over_the_whole_interval() -> None:
    prober, number = ScriptedProber(), 1000
    run_for(100.0, prober, [a_check()] * number)
    tried = list(times(prober))
    assert len(tried) == number
    assert max(each[0] for each in tried) <= number / STARTS_PER_SECOND
    # From then on no second has much more than its part.
    for second in range(20, 90):
        within = sum(second <= at < second + 1 for each in tried for at in each)
        assert within < 1.5 * number / INTERVAL


def test_jitter_moves_each_interval_within_its_bounds() -> None:
    prober = ScriptedProber()
    run_for(300.0, prober, [a_check(jitter=0.2)])
    (tried,) = times(prober)
    between = gaps(tried)[1:]
    assert all(0.8 * INTERVAL <= each <= 1.2 * INTERVAL for each in between)
    assert len({round(each, 6) for each in between}) > 10


def test_a_finding_that_contradicts_the_opinion_is_looked_at_again_soon() -> None:
    prober = ScriptedProber()
    run_for(60.0, prober, [a_check(retry_interval=1.0)], agrees=False)
    (tried,) = times(prober)
    assert gaps(tried) == pytest.approx([1.0] * (len(tried) - 1))
    assert len(tried) >= 59


def test_a_slow_server_is_not_asked_twice_at_once() -> None:
    prober = ScriptedProber()
    prober.seconds = 2.5 * INTERVAL
    run_for(100.0, prober, [a_check()])
    (tried,) = times(prober)
    assert prober.running_max == 1
    assert gaps(tried) == pytest.approx([prober.seconds] * (len(tried) - 1))


def test_beyond_the_limit_probes_wait_for_their_turn_and_none_is_lost() -> None:
    prober = ScriptedProber()
    prober.seconds = 1.0
    runner = run_for(60.0, prober, [a_check()] * 40, probes_max=2)
    assert prober.running_max == 2
    tried = list(times(prober))
    assert len(tried) == 40
    assert min(map(len, tried)) >= 2
    assert runner.counters["probes_delayed"] > 0


def test_findings_are_counted() -> None:
    prober = ScriptedProber()
    prober.findings["10.0.1.1"] = BAD
    runner = run_for(25.0, prober, [a_check()] * 2)
    counted = runner.counters.snapshot()
    assert counted["probes_passed"] >= 2
    assert counted["probes_failed"] >= 2
