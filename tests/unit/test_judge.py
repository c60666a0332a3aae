"""One real server is judged by what its checks find."""

import pytest

from lvsha.health.judge import SLOW_START_STEPS, Counts, Judge, Rules
from lvsha.health.opinions import REASON_CHARACTERS_MAX, Finding, Opinion, quoted

GOOD = Finding(passed=True, reason="good")
BAD = Finding(passed=False, reason="bad")
PLAIN = Rules()


def a_judge(
    rules: Rules = PLAIN, *, checks: int = 1, rise: int = 2, fall: int = 3, weight: int = 10
) -> Judge:
    return Judge(rules, [Counts(rise, fall)] * checks, weight, 0.0)


def opinions(judge: Judge, *findings: Finding) -> list[str]:
    said = []
    for finding in findings:
        judge.receive(0, finding, 1.0)
        said.append(judge.opinion.value)
    return said


def test_a_server_takes_nothing_before_its_first_check_which_decides_alone() -> None:
    judge = a_judge()
    assert (judge.opinion, judge.weight(0.0)) == (Opinion.UNKNOWN, 0)
    assert opinions(judge, GOOD) == ["up"]
    assert judge.weight(1.0) == 10
    assert opinions(a_judge(), BAD) == ["down"]


def test_a_server_that_is_believed_takes_connections_until_checks_have_failed_in_a_row() -> None:
    judge = a_judge(Rules(unchecked_up=True))
    assert judge.weight(0.0) == 10
    assert opinions(judge, BAD, BAD, GOOD, BAD, BAD, BAD) == ["up"] * 5 + ["down"]


def test_an_opinion_changes_after_rise_or_fall_findings_in_a_row() -> None:
    judge = a_judge(rise=2, fall=3)
    assert opinions(judge, GOOD, BAD, BAD, GOOD) == ["up"] * 4
    assert opinions(judge, BAD, BAD, BAD) == ["up", "up", "down"]
    assert opinions(judge, GOOD, BAD, GOOD, GOOD) == ["down", "down", "down", "up"]


def test_a_finding_says_whether_it_agrees_with_the_opinion() -> None:
    judge = a_judge(fall=2)
    assert judge.receive(0, GOOD, 1.0)
    assert not judge.receive(0, BAD, 2.0)
    assert judge.receive(0, BAD, 3.0)
    assert not judge.receive(0, GOOD, 4.0)


def test_all_checks_must_pass() -> None:
    judge = a_judge(checks=2, rise=1, fall=1)
    assert opinions(judge, GOOD) == ["unknown"]
    judge.receive(1, GOOD, 1.0)
    assert opinions(judge, GOOD) == ["up"]
    judge.receive(1, Finding(passed=False, reason="no page"), 2.0)
    assert (judge.opinion, judge.since, judge.weight(2.0)) == (Opinion.DOWN, 2.0, 0)
    judge.receive(0, GOOD, 3.0)
    assert (judge.opinion, judge.reason, judge.since) == (Opinion.DOWN, "no page", 2.0)


def test_a_server_that_comes_back_grows_step_by_step() -> None:
    judge = a_judge(Rules(slow_start=10.0), rise=1, fall=1, weight=5)
    judge.receive(0, BAD, 0.0)
    judge.receive(0, GOOD, 100.0)
    assert [judge.weight(100.0 + second) for second in (0, 1.9, 2, 4, 6, 8, 10, 99)] == [
        1, 1, 2, 3, 4, 5, 5, 5,
    ]  # fmt: skip
    now, seen = 100.0, []
    while (deadline := judge.deadline(now)) is not None:
        assert deadline > now
        now = deadline
        judge.expire(now)
        seen.append(judge.weight(now))
    assert (now, seen) == (110.0, [2, 3, 4, 5, 5])


def test_a_large_weight_grows_in_a_limited_number_of_steps() -> None:
    judge = a_judge(Rules(slow_start=1.0), rise=1, fall=1, weight=60_000)
    judge.receive(0, BAD, 0.0)
    judge.receive(0, GOOD, 0.0)
    now, steps = 0.0, 0
    while (deadline := judge.deadline(now)) is not None:
        assert deadline > now
        now, steps = deadline, steps + 1
        judge.expire(now)
    assert steps <= SLOW_START_STEPS + 1
    assert judge.weight(now) == 60_000


def test_a_server_that_was_never_down_starts_with_all_of_its_weight() -> None:
    judge = a_judge(Rules(slow_start=10.0))
    judge.receive(0, GOOD, 5.0)
    assert (judge.weight(5.0), judge.deadline(5.0)) == (10, None)


def test_growing_ends_when_the_server_goes_down() -> None:
    judge = a_judge(Rules(slow_start=10.0), rise=1, fall=1)
    for finding, now in ((BAD, 0.0), (GOOD, 1.0), (BAD, 2.0)):
        judge.receive(0, finding, now)
    assert (judge.weight(2.0), judge.deadline(2.0)) == (0, None)


def test_a_script_asks_for_a_weight_and_the_least_of_several_counts() -> None:
    judge = a_judge(checks=2)
    judge.receive(0, Finding(passed=True, reason="", weight=7), 1.0)
    judge.receive(1, Finding(passed=True, reason="", weight=3), 1.0)
    assert judge.weight(1.0) == 3
    judge.receive(1, GOOD, 2.0)
    assert judge.weight(2.0) == 7


def test_a_server_that_the_operator_drains_stays_at_zero_whatever_a_script_asks() -> None:
    judge = a_judge()
    judge.own_weight = 0
    judge.receive(0, Finding(passed=True, reason="", weight=7), 1.0)
    assert (judge.opinion, judge.weight(1.0)) == (Opinion.UP, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"220 ready\r\n", "220 ready"),
        (b"\x1b[31m\x00\xff", ".[31m.\ufffd"),
        ("x" * 500, "x" * (REASON_CHARACTERS_MAX - 3) + "..."),
        (b"\xe2\x82\xac" * 10_000, "\u20ac" * (REASON_CHARACTERS_MAX - 3) + "..."),
    ],
)
def test_what_a_stranger_says_is_quoted_short_and_without_control_characters(
    text: bytes | str, expected: str
) -> None:
    assert quoted(text) == expected
