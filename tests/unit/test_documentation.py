"""The documentation names what is there: keys, drop reasons, commands, files."""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer.main
from pydantic import BaseModel

from lvsha import cli
from lvsha.config import (
    Limits,
    Mark,
    Node,
    Pair,
    Scheduling,
    Server,
    Service,
    Sync,
    Timeouts,
    VirtualRouter,
)
from lvsha.config_life import MetricsTable, SavedStateTable
from lvsha.config_second_path import SecondPathTable
from lvsha.config_services import TunnelTable
from lvsha.config_tracking import Events, Group
from lvsha.datapath.reasons import Reason
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.model import VrrpState
from lvsha.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "vagrant/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def section(title: str) -> str:
    """The part of operating.md below a heading, to the next one."""
    start = OPERATING.index(f"# {title}\n") + len(title)
    following = re.search(r"^#+ ", OPERATING[start:], re.MULTILINE)
    return OPERATING[start : start + following.start() if following else None]


def shown(default: object) -> str:
    """A default as TOML has it."""
    return str(default).lower() if isinstance(default, bool) else str(default)


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("`[[virtual_routers]]`", VirtualRouter),
        ("`[[groups]]`", Group),
        ("`[events]`", Events),
        ("`[second_path]`", SecondPathTable),
        ("`[[services]]`", Service),
        ("`[sync]`", Sync),
        ("A tunnel", TunnelTable),
        ("`[[marks]]`", Mark),
        ("`[timeouts]`", Timeouts),
        ("`[ipvs]`", Settings),
        ("`[scheduling]`", Scheduling),
        ("`[limits]`", Limits),
        ("`[saved_state]`", SavedStateTable),
        ("`[metrics]`", MetricsTable),
        ("`[nodes.NAME]`", Node),
    ],
    ids=str,
)
def test_every_key_of_the_pair_file_is_described_with_its_default(
    title: str, model: type[BaseModel]
) -> None:
    header, _, *body = rows(section(title))
    described: dict[str, list[str]] = {}
    for row in body:
        described.setdefault(row[0].strip("`"), row)
    for name, field in model.model_fields.items():
        assert name in described, name
        if isinstance(field.default, bool | int | float | str):
            default = described[name][header.index("default")]
            assert default.strip('`"').replace(",", "") == shown(field.default), name
    known = set(model.model_fields) | set(Server.model_fields) | {"key", "---"}
    assert set(described) <= known


def test_every_key_of_a_server_is_described() -> None:
    described = [row[0].strip("`") for row in rows(section("`[[services]]`"))]
    for name in Server.model_fields:
        assert described.count(name) >= 1, name


def test_every_section_of_the_pair_file_has_a_heading() -> None:
    for name, field in Pair.model_fields.items():
        kinds = {type(argument) for argument in get_args(field.annotation)}
        assert types.NoneType not in kinds
        assert re.search(rf"^### `\[+{name}[.\]]", OPERATING, re.MULTILINE), name


def test_every_drop_reason_is_explained_with_its_number() -> None:
    explained = {row[0].strip("`"): row[1] for row in rows(section("Drops"))}
    explained = {name: number for name, number in explained.items() if number.isdigit()}
    assert explained == {reason.name.lower(): str(reason.value) for reason in Reason}


def test_every_state_scheduler_and_command_is_named() -> None:
    for state in VrrpState:
        assert f"| {state.name} |" in OPERATING
    for scheduler in SCHEDULERS:
        assert f"`{scheduler}`" in OPERATING
    group = typer.main.get_command(cli.app)
    for command in group.list_commands(typer.Context(group)):  # type: ignore[attr-defined]
        assert f"`lvsha {command}" in OPERATING


def anchor(heading: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, fragment = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "bench|deploy|docs|lvsha|tests|tools|vagrant"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|sh|toml|conf|service|md))`", text):
        assert (ROOT / name).exists(), name


def test_decisions_are_numbered_once() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert sorted(numbers) == [f"{number:04}" for number in range(1, len(numbers) + 1)]
