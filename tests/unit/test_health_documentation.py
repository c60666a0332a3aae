"""docs/health.md has every key, every type and every counter of the health checks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from lvsha.config_health import Check, CheckType, Health

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "health.md").read_text(encoding="utf-8")


def tables() -> Iterator[dict[str, dict[str, str]]]:
    """Each table of the page: rows by their first cell, cells by the head of their column."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        lines = [[cell.strip() for cell in row[1:-1].split("|")] for row in block.splitlines()]
        head, _, *body = lines
        yield {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in body}


def described(*names: str) -> dict[str, dict[str, str]]:
    """The rows of the tables of keys that have all these."""
    found = [table for table in tables() if set(names) <= table.keys()]
    assert found, names
    return {name: row for table in found for name, row in table.items()}


def shown(default: object) -> str:
    """A default as the page has it."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:,}" if isinstance(default, int) else str(default)


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (Check, described("interval", "mark") | described("path", "dynamic")),
        (Health, described("quorum", "drain")),
    ],
)
def test_every_key_is_described_with_its_default(
    model: type[BaseModel], rows: dict[str, dict[str, str]]
) -> None:
    assert rows.keys() == model.model_fields.keys()
    for name, field in model.model_fields.items():
        if isinstance(field.default, bool | int | float | str):
            assert rows[name]["default"].strip('`"') == shown(field.default), name


def test_every_type_is_described() -> None:
    names = {name for row in described("dns", "ping") for name in re.findall(r"\w+", row)}
    assert names == set(get_args(CheckType))


def test_keys_of_some_types_name_these_types() -> None:
    for name, row in described("path", "dynamic").items():
        for kind in re.findall(r"\w+", row["for"]):
            keys = {"type": kind, "command": ["/x"]} if kind == "script" else {"type": kind}
            assert Check.model_validate(keys).type == kind, name
