"""docs/tracking.md describes every key of trackers, groups and events, with its default."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from lvsha.config import load_pair
from lvsha.config_tracking import _KEYS_OF_KINDS, Events, Group, Notify, Track, Tracker
from lvsha.events import event_socket_path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")


def tables(title: str) -> dict[str, tuple[str, str]]:
    """Type and default of each key in the tables below a heading, to the next one."""
    start = re.search(rf"^#+ {re.escape(title)}$", PAGE, re.MULTILINE)
    assert start is not None, title
    rest = PAGE[start.end() :]
    following = re.search(r"^#+ ", rest, re.MULTILINE)
    lines = rest[: following.start() if following else None].splitlines()
    found = {}
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0].startswith("`"):
            found[cells[0].strip("`")] = (cells[1], cells[2])
    return found


def shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


@pytest.mark.parametrize(
    ("title", "model"),
    [("What a tracker means", Track), ("Groups", Group), ("Events", Events), ("Notify", Notify)],
    ids=str,
)
def test_every_key_of_a_table_is_described(title: str, model: type[BaseModel]) -> None:
    described = tables(title)
    assert set(described) == set(model.model_fields)
    _defaults_fit(model, described)


@pytest.mark.parametrize("kind", _KEYS_OF_KINDS)
def test_every_key_of_a_kind_is_described(kind: str) -> None:
    described = tables(f'`kind = "{kind}"`')
    # It stands in the table of all kinds.
    assert set(described) == set(_KEYS_OF_KINDS[kind]) - {"timeout"}
    _defaults_fit(Tracker, described)


def test_every_other_key_of_a_tracker_is_described() -> None:
    described = tables("Trackers")
    of_kinds = {key for keys in _KEYS_OF_KINDS.values() for key in keys} - {"timeout"}
    assert set(described) == set(Tracker.model_fields) - of_kinds
    _defaults_fit(Tracker, described)


def _defaults_fit(model: type[BaseModel], described: dict[str, tuple[str, str]]) -> None:
    for name, (_, default) in described.items():
        value = model.model_fields[name].default
        if isinstance(value, bool | int | float | str):
            assert default.strip('`"') == shown(value), name


def test_the_example_is_in_order(tmp_path: Path) -> None:
    example = "\n".join(
        line.removeprefix("    ")
        for line in PAGE[: PAGE.index("## What a tracker means")].splitlines()
        if line.startswith("    ")
    )
    rest = """
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24"]
[[services]]
name = "http"
address = "192.0.2.10"
port = 80
[nodes.east]
interfaces = { outside = "eth0" }
"""
    path = tmp_path / "pair.toml"
    path.write_text(example + rest)
    assert [tracker.kind for tracker in load_pair(path).trackers] == ["gateway", "quorum"]


def test_every_event_is_described() -> None:
    told = set()
    for name in ("node_tracking", "events"):
        text = (ROOT / "lvsha" / f"{name}.py").read_text(encoding="utf-8")
        told |= set(re.findall(r'publish\(\s*"(\w+)"', text))
        told |= set(re.findall(r'"event": "(\w+)"', text))
    assert len(told) >= 7
    for event in told:
        assert re.search(rf"^\| `{event}` \|", PAGE, re.MULTILINE), event
    assert event_socket_path().name.startswith("events-")
