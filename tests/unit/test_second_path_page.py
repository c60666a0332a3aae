"""docs/second-path.md has the table of the code, and every key with its default."""

import re
from pathlib import Path

from lvsha.config import load_pair
from lvsha.config_second_path import FencingTable, SecondPathTable
from lvsha.failover.second_path import ALIVE_INTERVALS, FRESH_INTERVALS, TABLE
from lvsha.fencing import FENCE_AGAIN
from lvsha.model import VrrpState, Witness

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "second-path.md").read_text(encoding="utf-8")
WITNESSES = {
    frozenset(Witness): "any",
    frozenset({Witness.REACHABLE}): "reached",
    frozenset({Witness.UNREACHABLE}): "not reached",
    frozenset({Witness.UNREACHABLE, Witness.UNKNOWN}): "not reached, unknown",
}


def cells() -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in PAGE.splitlines()
        if line.startswith("|")
    ]


def heard(states: frozenset[VrrpState | None]) -> str:
    if states == {None}:
        return "nothing"
    named = sorted((one for one in states if one is not None), reverse=VrrpState.MASTER in states)
    return "any" if None in states else ", ".join(one.name for one in named)


def test_the_rows_are_those_of_the_code() -> None:
    described = [row for row in cells() if row[0] in VrrpState.__members__]
    assert described == [
        [
            row.state.name,
            heard(row.heard) + (", better" if row.better else ""),
            WITNESSES[row.own],
            WITNESSES[row.peer],
            ("`master_heard`" if row.ruling.verdict is None else row.ruling.verdict.value)
            + (", lasting" if row.ruling.lasting else ""),
            row.ruling.reason,
        ]
        for row in TABLE
    ]


def test_every_key_is_described_with_its_default() -> None:
    described = {row[0].strip("`"): row[2].strip('`"') for row in cells() if len(row) == 4}
    fields = {**SecondPathTable.model_fields, **FencingTable.model_fields}
    assert set(described) - {"key", "---"} == set(fields)
    for name, field in fields.items():
        default = "required" if field.is_required() else field.default
        shown = "none" if default is None else f"{default:g}" if default == 30 else str(default)
        assert described[name] == shown, name


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"{FRESH_INTERVALS} advertisement intervals" in PAGE.replace("\n", " ")
    assert f"at most A / {1 / ALIVE_INTERVALS:g} apart" in PAGE
    assert f"every {FENCE_AGAIN:g} s" in PAGE


def test_the_example_is_in_order(tmp_path: Path) -> None:
    example = re.search(r"(?:^    .*\n|^\n)+", PAGE[PAGE.index("    [[trackers]]") :], re.MULTILINE)
    assert example is not None
    base = (ROOT / "deploy" / "examples" / "mutual-backup.toml").read_text(encoding="utf-8")
    path = tmp_path / "pair.toml"
    path.write_text(base + re.sub(r"^    ", "", example[0], flags=re.MULTILINE), encoding="utf-8")
    table = load_pair(path).second_path
    assert table is not None
    assert table.fencing is not None
    assert table.fencing.timeout == 20
