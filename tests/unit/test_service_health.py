"""The servers of one service together: weights, quorum, sorry server, removal."""

import random
from collections.abc import Sequence

import pytest

from lvsha.health import service_health
from lvsha.health.judge import Counts, Judge, Rules
from lvsha.health.opinions import Finding, Opinion
from lvsha.health.service_health import (
    SORRY,
    Action,
    CheckFinding,
    OpinionChanged,
    Place,
    QuorumLost,
    QuorumReached,
    ServiceHealth,
)

ONCE = Counts(1, 1)
PLAIN = Rules()


def a_service(
    rules: Rules = PLAIN, weights: Sequence[int] = (1, 1), sorry: int | None = None
) -> tuple[ServiceHealth, list[Action]]:
    core = ServiceHealth(rules, [([ONCE], weight) for weight in weights], sorry)
    return core, core.start(0.0)


def find(core: ServiceHealth, server: int, passed: bool, now: float = 1.0) -> list[Action]:
    return core.receive(CheckFinding(server, 0, Finding(passed, "so")), now)


def places(actions: list[Action]) -> list[tuple[int, int | None]]:
    return [(each.server, each.weight) for each in actions if isinstance(each, Place)]


def quorums(actions: list[Action]) -> list[Action]:
    return [each for each in actions if isinstance(each, QuorumReached | QuorumLost)]


def test_unchecked_servers_get_weight_zero_and_their_own_when_they_have_passed() -> None:
    core, started = a_service(weights=(3, 5))
    assert started == [Place(0, 0), Place(1, 0)]
    assert find(core, 1, True) == [
        OpinionChanged(1, Opinion.UNKNOWN, Opinion.UP, "so"),
        QuorumReached(5),
        Place(1, 5),
    ]
    assert find(core, 1, True) == []


def test_a_server_without_checks_is_always_up() -> None:
    core = ServiceHealth(Rules(), [([], 4), ([ONCE], 1)])
    assert core.start(0.0) == [QuorumReached(4), Place(1, 0)]


def test_believed_servers_keep_their_weights_at_the_start() -> None:
    core, started = a_service(Rules(unchecked_up=True), weights=(3, 5))
    assert started == [QuorumReached(8)]
    assert places(find(core, 0, False)) == [(0, 0)]


def test_a_start_is_no_alarm_before_every_server_was_checked() -> None:
    core, started = a_service()
    assert not quorums(started)
    assert not quorums(find(core, 0, False))
    assert quorums(find(core, 1, False)) == [QuorumLost(0)]


def test_the_quorum_is_reached_above_and_lost_below_the_hysteresis() -> None:
    core, _ = a_service(Rules(quorum=5, hysteresis=2), weights=(1,) * 10)
    reached = [quorums(find(core, server, True)) for server in range(8)]
    assert reached == [[]] * 6 + [[QuorumReached(7)], []]
    lost = [quorums(find(core, server, False)) for server in range(8)]
    assert lost == [[]] * 5 + [[QuorumLost(2)], [], []]
    again = [quorums(find(core, server, True)) for server in range(8)]
    assert again == [[]] * 6 + [[QuorumReached(7)], []]


def test_the_sorry_server_stands_in_while_all_are_down() -> None:
    core, _ = a_service(sorry=9)
    find(core, 0, False)
    assert places(find(core, 1, False)) == [(SORRY, 9)]
    assert places(find(core, 0, True)) == [(0, 1), (SORRY, None)]


def test_those_that_are_up_but_too_few_rest_while_the_sorry_server_stands_in() -> None:
    core, _ = a_service(Rules(quorum=2), sorry=1)
    find(core, 0, True)
    assert places(find(core, 1, False)) == [(0, 0), (SORRY, 1)]
    assert places(find(core, 1, True)) == [(0, 1), (1, 1), (SORRY, None)]


def test_the_sorry_server_drains_before_it_is_removed() -> None:
    core, _ = a_service(Rules(drain=30.0), weights=(1,), sorry=1)
    find(core, 0, False)
    assert places(find(core, 0, True, 10.0)) == [(0, 1), (SORRY, 0)]
    assert core.deadline == 40.0
    assert core.expire(39.0) == []
    assert core.expire(40.0) == [Place(SORRY, None)]
    assert core.deadline is None


def test_a_server_that_is_down_drains_and_is_removed_and_comes_back() -> None:
    core, _ = a_service(Rules(remove=True, drain=5.0))
    find(core, 0, True, 1.0)
    assert places(find(core, 0, False, 2.0)) == [(0, 0)]
    assert core.deadline == 7.0
    assert core.expire(6.9) == []
    assert core.expire(7.0) == [Place(0, None)]
    assert places(find(core, 0, True, 9.0)) == [(0, 1)]


def test_one_that_recovers_while_it_drains_is_not_removed() -> None:
    core, _ = a_service(Rules(remove=True, drain=5.0))
    find(core, 0, True, 1.0)
    find(core, 0, False, 2.0)
    find(core, 0, True, 4.0)
    assert core.deadline is None
    assert core.expire(8.0) == []


def test_one_that_fails_while_its_weight_grows_is_removed_when_it_has_drained() -> None:
    core, _ = a_service(Rules(remove=True, drain=5.0, slow_start=400.0), weights=(4, 4))
    find(core, 0, False, 0.0)
    find(core, 0, True, 10.0)
    assert core.deadline == 110.0
    assert places(find(core, 0, False, 20.0)) == [(0, 0)]
    assert core.deadline == 25.0


def test_what_is_due_is_done_with_whatever_happens_next() -> None:
    for happen in (
        lambda core: find(core, 1, True, 8.0),
        lambda core: core.set_own_weight(1, 3, 8.0),
        lambda core: core.expire(8.0),
    ):
        core, _ = a_service(Rules(remove=True, drain=5.0))
        find(core, 0, True, 1.0)
        find(core, 1, True, 1.0)
        find(core, 0, False, 2.0)
        assert places(happen(core)) == [(0, None)]
        assert core.deadline is None


def test_a_script_that_asks_for_less_weight_takes_it_from_the_quorum() -> None:
    core, _ = a_service(Rules(quorum=4), weights=(3, 3))
    find(core, 0, True)
    busy = core.receive(CheckFinding(1, 0, Finding(passed=True, reason="busy", weight=0)), 1.0)
    assert quorums(busy) == [QuorumLost(3)]
    half = core.receive(CheckFinding(1, 0, Finding(passed=True, reason="busy", weight=1)), 2.0)
    assert half == [QuorumReached(4), Place(1, 1)]


def test_a_finding_is_settled_when_the_opinion_agrees_with_it() -> None:
    core = ServiceHealth(PLAIN, [([Counts(1, 2)], 1)])
    core.start(0.0)
    settled = []
    for passed in (True, False, False, True):
        find(core, 0, passed)
        settled.append(core.settled)
    assert settled == [True, False, True, True]


def test_a_server_that_was_never_checked_is_not_removed() -> None:
    core, started = a_service(Rules(remove=True))
    assert started == [Place(0, 0), Place(1, 0)]
    assert core.expire(1000.0) == []


def test_the_operators_weight_is_what_a_server_has_while_it_is_up() -> None:
    core, _ = a_service()
    find(core, 0, True)
    find(core, 1, False)
    assert core.set_own_weight(0, 7, 2.0) == []
    assert places(find(core, 0, False)) == [(0, 0)]
    # It is down: what the operator wants is kept for later.
    assert core.set_own_weight(1, 8, 3.0) == [Place(1, 0)]
    assert places(find(core, 1, True)) == [(1, 8)]


def test_a_server_that_the_operator_drains_counts_for_no_quorum() -> None:
    core, _ = a_service(weights=(1,), sorry=1)
    find(core, 0, True)
    assert core.set_own_weight(0, 0, 2.0) == [QuorumLost(0), Place(SORRY, 1)]


def test_slow_start_is_carried_out_by_the_deadline_and_counts_in_full_for_the_quorum() -> None:
    core, _ = a_service(Rules(slow_start=4.0, quorum=4), weights=(4,))
    find(core, 0, False, 0.0)
    assert find(core, 0, True, 10.0)[1:] == [QuorumReached(4), Place(0, 1)]
    seen = []
    while core.deadline is not None:
        seen += places(core.expire(core.deadline))
    assert seen == [(0, 2), (0, 3), (0, 4)]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_quorums_alternate_and_places_are_news(seed: int) -> None:
    dice = random.Random(seed)
    rules = Rules(
        unchecked_up=dice.random() < 0.5,
        remove=dice.random() < 0.5,
        drain=dice.choice((0.0, 3.0)),
        slow_start=dice.choice((0.0, 2.0)),
        quorum=3,
        hysteresis=dice.randrange(3),
    )
    weights = [dice.randrange(6) for _ in range(4)]
    core = ServiceHealth(rules, [([Counts(2, 2)] * 2, w) for w in weights], dice.choice((None, 2)))
    now, placed = 0.0, dict[int, int | None](enumerate(weights))
    placed[SORRY] = None
    last: type[Action] | None = None
    actions = core.start(now)
    for _ in range(400):
        for action in actions:
            if isinstance(action, Place):
                assert placed[action.server] != action.weight
                placed[action.server] = action.weight
            elif isinstance(action, QuorumReached | QuorumLost):
                assert type(action) is not last
                last = type(action)
            elif isinstance(action, OpinionChanged):
                assert action.old is not action.new
        assert core.deadline is None or core.deadline > now
        assert bool(placed[SORRY]) == core.sorry
        for server, judge in enumerate(core.judges):
            assert judge is not None
            if judge.opinion is not Opinion.UP or core.sorry:
                assert not placed[server]
            elif judge.own_weight:
                assert placed[server]
        now += dice.random()
        if core.deadline is not None and core.deadline <= now:
            now = core.deadline
            actions = core.expire(now)
        elif dice.random() < 0.1:
            server, weight = dice.randrange(4), dice.randrange(6)
            placed[server] = weight
            actions = core.set_own_weight(server, weight, now)
        else:
            finding = Finding(dice.random() < 0.5, "so")
            actions = core.receive(CheckFinding(dice.randrange(4), dice.randrange(2), finding), now)


@pytest.mark.parametrize("servers", [10, 1000])
def test_a_finding_is_weighed_against_nobody_else(
    monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    """Thousands of servers are looked after in the loop that forwards."""
    looked: list[float] = []

    class Noted(Judge):
        def weight(self, now: float) -> int:
            looked.append(now)
            return super().weight(now)

    monkeypatch.setattr(service_health, "Judge", Noted)
    core = ServiceHealth(Rules(quorum=2), [([ONCE], 1)] * servers, sorry_weight=1)
    core.start(0.0)
    for server in range(3):
        core.receive(CheckFinding(server, 0, Finding(True, "so")), 1.0)
    looked.clear()
    for now, passed in ((2.0, False), (3.0, True), (4.0, True)):
        core.receive(CheckFinding(2, 0, Finding(passed, "so")), now)
    core.set_own_weight(2, 7, 5.0)
    assert looked == [3.0, 4.0, 5.0]
