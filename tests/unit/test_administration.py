"""What the control socket lets an operator do."""

import json
import random

import pytest

from lvsha.administration import Administration
from lvsha.control import WithArguments
from lvsha.datapath.director import Director
from lvsha.errors import ConfigError, WireError
from lvsha.settings import NAMES


@pytest.fixture
def director() -> Director:
    return Director(connections_max=1000, dice=random.Random(1))


@pytest.fixture
def administration(director: Director) -> Administration:
    return Administration(director, lambda: 1000.0)


def test_its_commands_take_arguments_and_answer_with_json(administration: Administration) -> None:
    commands = administration.commands()
    assert set(commands) == {"ipvsadm", "settings"}
    for command in commands.values():
        assert isinstance(command, WithArguments)
    assert json.loads(json.dumps(commands["settings"]()))["drop_entry"] == "0"


def test_a_command_line_of_ipvsadm_is_carried_out(
    administration: Administration, director: Director
) -> None:
    answer = administration.ipvsadm(
        {
            "words": ["-A", "-t", "www:http"],
            "addresses": [["www", 4, "192.0.2.10"], ["www", 6, None]],
            "ports": [["http", 6, 80]],
        }
    )
    assert answer == {
        "status": 0,
        "out": "",
        "err": "",
        "following": None,
        "ends_restore": False,
        "asked_hosts": [],
        "asked_services": [],
    }
    assert [str(service.port) for service in director.services] == ["80"]


def test_an_answer_says_what_it_would_like_to_have_names_for(
    administration: Administration,
) -> None:
    administration.ipvsadm({"words": ["-A", "-t", "192.0.2.10:80"]})
    answer = administration.ipvsadm({"words": ["-L"]})
    assert isinstance(answer, dict)
    assert answer["asked_hosts"] == ["192.0.2.10"]
    assert answer["asked_services"] == [(80, 6)] or answer["asked_services"] == [[80, 6]]
    again = administration.ipvsadm(
        {"words": ["-L"], "hosts": [["192.0.2.10", "www"]], "services": [[80, 6, None]]}
    )
    assert isinstance(again, dict)
    assert again["asked_hosts"] == []
    assert "TCP  www:80 wlc\n" in again["out"]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"words": "-L"},
        {"words": [1]},
        {"words": [], "following": -1},
        {"words": [], "colour": 1},
        {"words": [], "hosts": [["nonsense", "www"]]},
        {"words": [], "addresses": [["www", 4, "nonsense"]]},
        {"words": [], "ports": [["http", 6, 99_999]]},
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    administration: Administration, arguments: dict[str, object]
) -> None:
    with pytest.raises(WireError):
        administration.ipvsadm(arguments)


# Settings


def test_settings_are_shown_as_a_sysctl_shows_them(administration: Administration) -> None:
    everything = administration.settings({})
    assert isinstance(everything, dict)
    assert list(everything) == list(NAMES)
    assert administration.settings({"get": ["sync_threshold", "pmtu_disc"]}) == {
        "sync_threshold": "3\t50",
        "pmtu_disc": "1",
    }


def test_settings_are_changed_at_once(administration: Administration, director: Director) -> None:
    assert administration.settings({"set": {"drop_entry": "3", "sync_threshold": "1 5"}}) == {}
    assert director.settings.drop_entry == 3
    assert director.settings.sync_threshold == (1, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"set": {"nosuch": "1"}},
        {"set": {"drop_entry": "4"}},
        {"set": {"drop_entry": "3", "sync_threshold": "5 5"}},
        {"get": ["nosuch"]},
        {"get": ["__class__"]},
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_nothing_changes(
    administration: Administration, director: Director, arguments: dict[str, object]
) -> None:
    before = director.settings
    with pytest.raises(ConfigError):
        administration.settings(arguments)
    assert director.settings == before


@pytest.mark.parametrize("arguments", [{"set": 3}, {"get": "drop_entry"}])
def test_a_request_for_settings_that_makes_no_sense_is_refused(
    administration: Administration, arguments: dict[str, object]
) -> None:
    with pytest.raises(WireError):
        administration.settings(arguments)
