"""The recorded behaviour of a Linux 6.1 kernel director, repeated by lvsha's.

Each recorded scenario is a test. Where lvsha is meant to differ, the step stands in
`tests.vectors.differences` with the reason; a scenario that has such steps is a second test,
which asks for all of it and is expected to fail.
"""

from functools import cache

import pytest

from tests.vectors.differences import DIFFERENCES, Difference, covers, named, stated
from tests.vectors.recordings import Scenario, files, load
from tests.vectors.rerun import Outcome, rerun

SCENARIOS = {
    f"{recording['kind']}-{scenario['name']}": (recording["kind"], scenario)
    for recording in map(load, files())
    for scenario in recording["scenarios"]
}


@cache
def outcomes(name: str) -> tuple[tuple[Outcome, Difference | None], ...]:
    """The outcomes of a scenario that differ, each with what says so."""
    kind, scenario = SCENARIOS[name]
    return tuple(
        (outcome, stated(kind, scenario["name"], outcome))
        for outcome in rerun(scenario)
        if outcome.words
    )


def _in_words(name: str, outcome: Outcome) -> str:
    return f"{name} step {outcome.number} ({named(outcome.step)}): {outcome.words}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_director_does_as_the_kernel_did(name: str) -> None:
    unstated = [outcome for outcome, difference in outcomes(name) if difference is None]
    assert not unstated, _in_words(name, unstated[0])


MEANT_TO_DIFFER = [
    name
    for name, (kind, scenario) in SCENARIOS.items()
    if any(
        covers(d, kind, scenario["name"], step) for d in DIFFERENCES for step in scenario["steps"]
    )
]
"""Scenarios of which a step is covered by a stated difference, if it differs at all."""


@pytest.mark.parametrize("name", MEANT_TO_DIFFER)
def test_no_step_differs_at_all(name: str) -> None:
    differing = outcomes(name)
    if differing:
        outcome, difference = differing[0]
        assert difference is not None, _in_words(name, outcome)
        pytest.xfail(f"{len(differing)} steps, the first because {difference.reason}")


def test_every_stated_difference_is_still_one() -> None:
    found = {difference for name in SCENARIOS for _, difference in outcomes(name)}
    for difference in DIFFERENCES:
        assert difference in found, difference


def test_a_scenario_shows_something() -> None:
    def shows(scenario: Scenario) -> bool:
        return any(True for _ in rerun(scenario))

    silent = [name for name, (_, scenario) in SCENARIOS.items() if not shows(scenario)]
    assert silent == []
