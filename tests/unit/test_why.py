"""`lvsha why`: where it takes the other node's half from."""

import json
from pathlib import Path

import pytest

from lvsha import control, why
from lvsha.errors import ConfigError
from lvsha.failover.black_box import BlackBox


def exported(node: str, at: float, new: str) -> dict[str, object]:
    box = BlackBox(node)
    box.note("state_changed", at, at, "web", old="BACKUP", new=new, reason="master_silent")
    return box.export()


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(command: str, *, path: Path | None = None) -> object:
        assert command == "why"
        return exported("east" if path is None else "west", 1000.0, "MASTER")

    monkeypatch.setattr(control, "ask", ask)


def test_a_file_of_the_other_node_is_merged(tmp_path: Path) -> None:
    file = tmp_path / "west.json"
    file.write_text(json.dumps(exported("west", 1000.25, "MASTER")))
    lines = why.explain([file], None)
    assert lines[0] == "virtual router web, last transition at 1970-01-01 00:16:40.250Z"
    assert [line.split()[4] for line in lines[3:]] == ["east", "west"]


def test_without_a_change_that_is_said() -> None:
    assert why.explain([], "mail") == ["no node remembers a change of master of mail"]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "\ud800"])
def test_a_file_that_is_no_export_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "west.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"west\.json: expected"):
        why.explain([file], None)


def test_a_file_that_is_missing_or_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "west.json"
    with pytest.raises(ConfigError, match=r"west\.json: cannot be read"):
        why.explain([file], None)
    monkeypatch.setattr(why, "EXPORT_BYTES_MAX", 10)
    file.write_text(" " * 11)
    with pytest.raises(ConfigError, match="at most 10 bytes"):
        why.explain([file], None)
