"""The command line: exit codes, and sentences that say what to mend."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio
from typer.testing import CliRunner, Result

import lvsha
from lvsha import cli, control
from lvsha.config import load_pair
from lvsha.drill.options import DrillOptions
from lvsha.errors import ConfigError, HostError
from lvsha.host import LinuxHost
from lvsha.sync.key_file import load_keys
from lvsha.sync.seal import key_id

PAIR = """
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24"]

[[services]]
name = "http"
address = "192.0.2.10"
port = 80
scheduler = "rr"
servers = [{ address = "10.1.0.11", port = 8080 }]

[sync]

[nodes.east]
priority = 150
interfaces = { outside = "eth0", sync = "eth1" }

[nodes.west]
priority = 100
interfaces = { outside = "eth0", sync = "eth1" }
"""


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No director of this machine is asked, and logging is as before afterwards."""
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(tmp_path / "run"))
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    file = tmp_path / "pair.toml"
    file.write_text(PAIR)
    return file


def lvsha_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_version() -> None:
    result = lvsha_command("--version")
    assert result.exit_code == 0
    assert result.stdout == f"lvsha {lvsha.__version__}\n"


def test_without_a_command_it_shows_the_help() -> None:
    result = lvsha_command()
    for command in ("run", "check", "status", "clean", "drill"):
        assert command in result.output


def test_an_unknown_command_or_option_is_an_error_of_the_command_line(pair_file: Path) -> None:
    assert lvsha_command("explode").exit_code == cli.EXIT_CONFIGURATION
    assert lvsha_command("check", pair_file, "--loud").exit_code == cli.EXIT_CONFIGURATION
    assert lvsha_command("check").exit_code == cli.EXIT_CONFIGURATION


# check


def test_check_says_what_is_in_a_sound_file(pair_file: Path) -> None:
    result = lvsha_command("check", pair_file)
    assert result.exit_code == 0
    assert result.stdout.startswith(
        f"{pair_file}: in order: 2 nodes, 1 virtual routers, 1 services; digest "
    )
    assert result.stderr == ""


def test_check_says_the_same_digest_for_the_same_content(pair_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("# a comment\n" + PAIR)
    different = tmp_path / "different.toml"
    different.write_text(PAIR.replace("port = 80\n", "port = 81\n"))
    digests = [
        lvsha_command("check", file).stdout.split()[-1] for file in (pair_file, other, different)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        ("vrid = 51", "vrid = 300", "virtual_routers[0].vrid", "less than or equal to 255"),
        ("port = 80\n", 'port = "http"\n', "services[0].port", "a valid integer"),
        ('"192.0.2.10/24"', '"192.0.2.10"', "virtual_routers[0].addresses", "prefix length"),
        ("[sync]", "[sync]\ncolour = 1", "sync.colour", "unknown key"),
        ('address = "192.0.2.10"\n', "", "services[0].address", "missing"),
        ("priority = 100", "priority = 150", "virtual_routers.web", "a different priority"),
        (', sync = "eth1" }', " }", "nodes.east.interfaces", "expected a key 'sync'"),
        ('"rr"', '"best"', "services.http.scheduler", "expected one of rr, "),
    ],
)
def test_a_mistake_is_named_with_file_key_and_what_was_expected(
    pair_file: Path, old: str, new: str, key: str, expected: str
) -> None:
    assert old in PAIR
    pair_file.write_text(PAIR.replace(old, new, 1))
    result = lvsha_command("check", pair_file)
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert result.stdout == ""
    line = result.stderr.splitlines()[0]
    assert line.startswith(f"lvsha: {pair_file}: {key}")
    assert expected in line


def test_all_mistakes_are_named_at_once(pair_file: Path) -> None:
    pair_file.write_text(PAIR.replace("vrid = 51", "vrid = 0").replace("port = 80\n", "port = 0\n"))
    result = lvsha_command("check", pair_file)
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert "virtual_routers[0].vrid" in result.stderr
    assert "services[0].port" in result.stderr


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for command in ("check", "run", "clean"):
        result = lvsha_command(command, tmp_path / "none.toml")
        assert result.exit_code == cli.EXIT_CONFIGURATION
        assert "none.toml: cannot be read" in result.stderr


def test_a_file_that_is_not_toml_is_named_with_the_line(pair_file: Path) -> None:
    pair_file.write_text("[nodes\n")
    result = lvsha_command("check", pair_file)
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert f"{pair_file}: not valid TOML" in result.stderr
    assert "line 1" in result.stderr


def sealed_pair(pair_file: Path) -> Path:
    """Let the pair have a key file, and say where it would be."""
    keys = pair_file.with_name("sync.key")
    pair_file.write_text(PAIR.replace("[sync]", f'[sync]\nkey_file = "{keys}"'))
    return keys


def test_check_looks_at_the_key_file_where_it_is(pair_file: Path) -> None:
    keys = sealed_pair(pair_file)
    result = lvsha_command("check", pair_file)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].startswith(f"{keys}: not looked at: ")
    keys.touch(0o600)
    result = lvsha_command("check", pair_file)
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert result.stderr == f"lvsha: {keys}: expected a line with a key that is current\n"
    assert result.stdout == ""
    keys.unlink()
    lvsha_command("keygen", keys)
    result = lvsha_command("check", pair_file)
    assert result.exit_code == 0
    (key,) = load_keys(keys)
    assert result.stdout.splitlines()[1] == f"{keys}: in order: key {key_id(key):02x} seals"


# keygen


def test_keygen_leads_through_a_rotation(tmp_path: Path) -> None:
    keys = tmp_path / "sync.key"
    result = lvsha_command("keygen", keys)
    assert result.exit_code == 0
    (old,) = load_keys(keys)
    old_id = f"{key_id(old):02x}"
    copy = "Copy the file to the other nodes"
    assert result.stdout == f"{keys}: key {old_id} seals. {copy}.\n"

    result = lvsha_command("keygen", "--rotate", keys)
    _, new = load_keys(keys)
    new_id = f"{key_id(new):02x}"
    assert result.stdout == (
        f"{keys}: key {old_id} seals; key {new_id} is accepted too, and seals after the next "
        f"step. {copy}, then: lvsha keygen --rotate {keys}\n"
    )
    result = lvsha_command("keygen", "--rotate", keys)
    assert load_keys(keys) == (new, old)
    assert result.stdout == (
        f"{keys}: key {new_id} seals; key {old_id} is accepted still. "
        f"{copy}, then: lvsha keygen --finish {keys}\n"
    )
    result = lvsha_command("keygen", "--finish", keys)
    assert load_keys(keys) == (new,)
    assert result.stdout == f"{keys}: key {new_id} seals. {copy}.\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "is there already; to change the key: lvsha keygen --rotate"),
        (["--finish"], "there is no rotation to finish"),
        (["--rotate", "--finish"], "expected --rotate or --finish, not both"),
    ],
)
def test_a_step_that_cannot_be_taken_changes_nothing(
    tmp_path: Path, options: list[str], expected: str
) -> None:
    keys = tmp_path / "sync.key"
    lvsha_command("keygen", keys)
    before = keys.read_bytes()
    result = lvsha_command("keygen", *options, keys)
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert expected in result.stderr
    assert result.stdout == ""
    assert keys.read_bytes() == before


def test_keygen_in_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    keys = tmp_path / "none" / "sync.key"
    result = lvsha_command("keygen", keys)
    assert result.exit_code == cli.EXIT_HOST
    assert result.stderr == f"lvsha: {keys}: cannot be written: No such file or directory\n"
    assert lvsha_command("keygen", "--rotate", keys).exit_code == cli.EXIT_CONFIGURATION


def test_no_command_shows_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "sync.key"
    said = [lvsha_command("keygen", *options, keys).output for options in ([], ["--rotate"])]
    words = [line.split()[2] for line in keys.read_text().splitlines() if line[0] != "#"]
    assert len(words) == 2
    for word in words:
        assert word not in "".join(said)


# Which node


def test_a_host_that_the_file_does_not_name_is_asked_for_the_node(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere.example.org")
    for command in ("run", "clean"):
        result = lvsha_command(command, pair_file)
        assert result.exit_code == cli.EXIT_CONFIGURATION
        assert f"{pair_file}: nodes: expected one called like this host" in result.stderr
        assert "--node with one of east, west" in result.stderr


def test_the_node_is_found_by_the_first_part_of_the_host_name(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "west.example.org")
    pair = load_pair(pair_file)
    assert cli._node_name(pair, pair_file, None) == "west"
    assert cli._node_name(pair, pair_file, "east") == "east"


def test_a_node_that_the_file_does_not_have_is_refused(pair_file: Path) -> None:
    for command in ("run", "clean"):
        result = lvsha_command(command, pair_file, "--node", "south")
        assert result.exit_code == cli.EXIT_CONFIGURATION
        assert (
            result.stderr == f"lvsha: {pair_file}: nodes: expected a node called 'south'; "
            "the file has east, west\n"
        )


# What the machine lacks


def test_status_without_a_director_is_one_sentence() -> None:
    for arguments in (["status"], ["status", "--json"]):
        result = lvsha_command(*arguments)
        assert result.exit_code == cli.EXIT_HOST
        assert result.stderr == "lvsha: no lvsha director runs in this network namespace\n"
        assert result.stdout == ""


def test_a_second_director_in_the_namespace_is_refused(pair_file: Path) -> None:
    with control.lock_namespace():
        for command in ("run", "clean"):
            result = lvsha_command(command, pair_file, "--node", "east")
            assert result.exit_code == cli.EXIT_HOST
            assert "another lvsha director runs in this network namespace" in result.stderr


def test_clean_without_the_right_to_is_one_sentence(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch)
    result = lvsha_command("clean", pair_file, "--node", "east")
    assert result.exit_code == cli.EXIT_HOST
    assert result.stderr == "lvsha: cannot remove it (it needs CAP_NET_ADMIN)\n"


def test_run_without_the_right_to_is_one_sentence_and_no_traceback(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch)
    result = lvsha_command("run", pair_file, "--node", "east")
    assert result.exit_code == cli.EXIT_HOST
    assert result.stderr == "lvsha: cannot remove it (it needs CAP_NET_ADMIN)\n"


def test_run_does_not_hide_our_fault_behind_one_of_the_machine(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def clean(_host: LinuxHost, _addresses: object) -> None:
        await trio.lowlevel.checkpoint()
        raise BaseExceptionGroup("", [HostError("no right"), AssertionError("ours")])

    monkeypatch.setattr(LinuxHost, "clean", clean)
    result = lvsha_command("run", pair_file, "--node", "east")
    assert isinstance(result.exception, BaseExceptionGroup)
    assert result.exception.subgroup(AssertionError) is not None


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that says no."""

    async def clean(_host: LinuxHost, _addresses: object) -> None:
        await trio.lowlevel.checkpoint()
        raise HostError("cannot remove it (it needs CAP_NET_ADMIN)")

    monkeypatch.setattr(LinuxHost, "clean", clean)


def test_a_runtime_directory_that_cannot_be_made_is_named(
    pair_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(pair_file / "run"))
    result = lvsha_command("clean", pair_file, "--node", "east")
    assert result.exit_code == cli.EXIT_HOST
    assert f"{pair_file / 'run'} cannot be used" in result.stderr


# What a command is for


def test_clean_takes_away_the_addresses_of_the_node(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[list[str]] = []

    async def clean(_host: LinuxHost, addresses: list[object]) -> None:
        await trio.lowlevel.checkpoint()
        cleaned.append([str(address) for address in addresses])

    monkeypatch.setattr(LinuxHost, "clean", clean)
    result = lvsha_command("clean", pair_file, "--node", "east")
    assert result.exit_code == 0
    assert cleaned == [["192.0.2.10/24 on eth0"]]


def test_status_shows_what_the_director_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"node": "east", "version": "1.2.3", "connections": 7}
    monkeypatch.setattr(control, "ask", lambda _command: said)
    result = lvsha_command("status", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == said
    result = lvsha_command("status")
    assert result.exit_code == 0
    assert "east" in result.stdout
    assert "7 connections" in result.stdout


def test_a_status_that_a_program_reads_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a-long-name-" * 5
    service = {"protocol": "tcp", "address": "192.0.2.10:80", "scheduler": "rr"}
    monkeypatch.setattr(control, "ask", lambda _command: {"services": {name: service}})
    result = lvsha_command("status")
    assert f"{name} tcp 192.0.2.10:80 rr" in result.stdout


def test_the_drills_answer_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DrillOptions] = []

    def run_drill(options: DrillOptions, _console: object) -> int:
        asked.append(options)
        return 1

    monkeypatch.setattr(cli, "run_drill", run_drill)
    result = lvsha_command(
        "drill", "--method", "dr", "--family", "6", "--failure", "handover", "--streams", "5",
        "--idle", "6", "--churn", "7", "--advert-interval", "0.5", "--no-then-return",
        "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert result.exit_code == 1
    (options,) = asked
    assert (options.method, options.family, options.failure) == ("dr", 6, "handover")
    assert (options.streams, options.idle, options.churn) == (5, 6, 7.0)
    assert (options.advert_interval, options.then_return) == (0.5, False)
    assert options.json == tmp_path / "report.json"


def test_a_drill_with_a_method_that_is_none_is_an_error_of_the_command_line() -> None:
    result = lvsha_command("drill", "--method", "pigeon")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert "pigeon" in result.stderr


def test_what_is_nobodys_fault_but_ours_is_not_hidden(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_file: Path) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(cli, "load_pair", broken)
    result = lvsha_command("check", pair_file)
    assert isinstance(result.exception, AssertionError)


def test_an_error_within_groups_is_the_one_that_is_told() -> None:
    error = HostError("the first")
    group = BaseExceptionGroup[ConfigError | HostError]("", [error, ConfigError("the second")])
    assert cli._first(group) is error


def test_run_refuses_what_the_machine_does_not_permit(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pair_file.read_text()
    pair_file.write_text(text.replace("[nodes.east]\n", "[nodes.east]\nrealtime_priority = 5\n"))

    def refuse(priority: int) -> None:
        raise HostError(f"realtime_priority = {priority}: no")

    monkeypatch.setattr(cli, "run_in_real_time", refuse)
    result = lvsha_command("run", pair_file, "--node", "east")
    assert result.exit_code == cli.EXIT_HOST
    assert "realtime_priority = 5: no" in result.output
