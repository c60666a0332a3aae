"""The commands that change a running director: what they send, and how they end."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lvsha import cli, control
from lvsha.ipvsadm import client


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No director of this machine is asked."""
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What a director was asked; it answers with one setting."""
    requests: list[tuple[str, object]] = []

    def ask(command: str, arguments: object) -> object:
        requests.append((command, arguments))
        return {"drop_entry": "3"}

    monkeypatch.setattr(control, "ask", ask)
    return requests


def lvsha_command(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-Ln"],
        ["--help"],
        ["-A", "-t", "192.0.2.10:80", "-s", "rr", "-p", "60", "--pe=sip"],
        ["-at", "192.0.2.10:80", "-r10.1.0.2", "-mw", "-1"],
        ["--set", "1", "2", "3", "foo"],
    ],
)
def test_the_words_of_ipvsadm_are_passed_on(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[list[str]] = []

    def run(given: list[str]) -> int:
        passed.append(given)
        return 255

    monkeypatch.setattr(client, "run", run)
    assert lvsha_command("ipvsadm", *words).exit_code == 255
    assert passed == [words]


def test_settings_are_changed(asked: list[tuple[str, object]]) -> None:
    result = lvsha_command("set", "drop_entry=3", "sync_threshold=1 5")
    assert (result.exit_code, result.output) == (0, "")
    assert asked == [("settings", {"set": {"drop_entry": "3", "sync_threshold": "1 5"}})]


@pytest.mark.parametrize("word", ["drop_entry", "drop_entry=4", "nosuch=1", "=1", ""])
def test_a_setting_that_cannot_be_is_not_sent(word: str, asked: list[tuple[str, object]]) -> None:
    assert lvsha_command("set", word).exit_code == cli.EXIT_CONFIGURATION
    assert asked == []


def test_settings_are_shown(asked: list[tuple[str, object]]) -> None:
    result = lvsha_command("get", "drop_entry")
    assert (result.exit_code, result.output) == (0, "drop_entry = 3\n")
    assert lvsha_command("get").exit_code == 0
    assert asked == [("settings", {"get": ["drop_entry"]}), ("settings", {"get": []})]


def test_a_setting_that_is_not_there_is_named(asked: list[tuple[str, object]]) -> None:
    result = lvsha_command("get", "nosuch")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert "nosuch: no such setting" in result.stderr
    assert asked == []


def test_an_answer_of_another_kind_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ask", lambda *_: 3)
    assert lvsha_command("get").exit_code == cli.EXIT_HOST


@pytest.mark.parametrize(
    ("words", "status"),
    [(["ipvsadm", "-Ln"], 255), (["set", "drop_entry=1"], cli.EXIT_HOST), (["get"], cli.EXIT_HOST)],
)
def test_without_a_director_each_says_so(words: list[str], status: int) -> None:
    result = lvsha_command(*words)
    assert result.exit_code == status
    assert "no lvsha director runs" in result.stderr
