"""The comparison of sync daemons: what it draws and how it judges; ``make interop`` runs it."""

from collections import Counter
from pathlib import Path

import pytest

from tests import packets
from tests.interop.sync import differences, draw, parse_lines

ROOT = Path(__file__).parents[2]
LINES = [
    "TCP 14:59  ESTABLISHED 198.51.100.31:40000 192.0.2.61:80      10.1.0.31:8080",
    "TCP 00:59  SYN_RECV    198.51.100.31:40001 192.0.2.61:80      10.1.0.31:8080",
    "TCP 04:59  NONE        198.51.100.31:0    192.0.2.61:80      10.1.0.31:8080",
]


def test_a_seed_gives_the_same_plan_again() -> None:
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_everything_is_drawn_at_some_time() -> None:
    drawn: Counter[object] = Counter()
    for seed in range(60):
        plan = draw(seed)
        drawn.update({("version", plan.version), ("family", plan.family), plan.method})
        drawn.update({("protocol", plan.protocol), plan.threshold, *plan.endings})
        drawn.update({("mark", plan.mark), ("mask", plan.netmask), bool(plan.persistence)})
        assert plan.version == 1 or plan.family == 4
    for thing in (
        *(("version", 0), ("version", 1), ("family", 4), ("family", 6), "-m", "-g", "-i"),
        *(("protocol", packets.TCP), ("protocol", packets.UDP), ("mark", True), ("mask", True)),
        *("3 50", "0 1", "1 4", "3 0", "open", "half", "fin", "reset", True, False),
    ):
        assert drawn[thing], thing


def test_sides_that_know_the_same_do_not_differ() -> None:
    told = parse_lines(LINES)
    # A connection in its handshake is not told.
    assert list(differences(told, parse_lines([LINES[0], LINES[2]]))) == []
    # In version 0 little is told of templates.
    for template in ([], [LINES[2].replace("04:59", "02:58")]):
        assert list(differences(told, parse_lines([LINES[0], *template]), version=0)) == []


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (LINES, "should not be known"),
        (LINES[:1], "is not known"),
        ([LINES[0].replace("14:59", "14:50"), LINES[2]], "is known to last 890 s"),
        ([LINES[0], LINES[2].replace("04:59", "03:00")], "is known to last 180 s"),
        ([LINES[0].replace("ESTABLISHED", "FIN_WAIT   "), LINES[2]], "known as FIN_WAIT"),
        ([LINES[0].replace("31:8080", "32:8080"), LINES[2]], "is not known"),
        ([*LINES[::2], LINES[0].replace("40000", "40007")], "does not exist"),
    ],
)
def test_sides_that_differ_are_told(known: list[str], words: str) -> None:
    assert words in "; ".join(differences(parse_lines(LINES), parse_lines(known)))
