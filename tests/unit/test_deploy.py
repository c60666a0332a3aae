"""What is installed on a director: the unit file and the kernel settings."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
from annotated_types import Le
from pydantic import BaseModel

from lvsha import cli
from lvsha.config import Limits, Node

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "lvsha.service"
DROP_INS = {
    path.name.removeprefix("lvsha.service.d-").removesuffix(".conf"): path
    for path in sorted((ROOT / "deploy").glob("lvsha.service.d-*.conf"))
}
SETTINGS = sorted((ROOT / "deploy").glob("sysctl.d-*.conf"))
FILES_OF_A_SCRIPT = 3
"""That the director has open while one runs; `tests/shells/test_programs.py` counts them."""
FILES_FOR_ALL_ELSE = 10_000
EXPOSURE_MAX = 20
"""Tenths, as ``systemd-analyze security`` counts; docs/operating.md names the figure."""

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs the program systemd-analyze"
)


def unit(path: Path = UNIT) -> dict[str, list[str]]:
    """The values of each key of the unit or of a drop-in, of all sections."""
    values: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            values.setdefault(key, []).append(value)
    return values


def test_unit_grants_two_capabilities_and_no_more() -> None:
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert unit()[key] == ["CAP_NET_ADMIN CAP_NET_RAW"]


def test_unit_allows_the_address_families_that_are_used() -> None:
    used = {"AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_UNIX"}
    assert set(unit()["RestrictAddressFamilies"][0].split()) == used
    # The search is for every family that the sources name.
    named = set()
    for path in (ROOT / "lvsha").rglob("*.py"):
        if "drill" not in path.parts:
            named |= set(re.findall(r"\bAF_[A-Z0-9]+\b", path.read_text(encoding="utf-8")))
    assert named - {"AF_UNSPEC"} <= used  # a value in netlink messages, not a socket's


@pytest.mark.parametrize(
    ("key", "command"), [("ExecStart", "run"), ("ExecStopPost", "clean")], ids=str
)
def test_unit_runs_commands_that_exist(key: str, command: str) -> None:
    (line,) = unit()[key]
    program, given, pair = line.split()
    assert program == "/opt/lvsha/bin/lvsha"
    assert given == command
    assert pair == "/etc/lvsha/pair.toml"
    group = typer.main.get_command(cli.app)
    assert command in group.list_commands(typer.Context(group))  # type: ignore[attr-defined]


def test_unit_does_not_restart_what_a_wrong_pair_file_stopped() -> None:
    assert unit()["RestartPreventExitStatus"] == [str(cli.EXIT_CONFIGURATION)]


def test_unit_is_told_how_the_director_is() -> None:
    assert unit()["Type"] == ["notify"]
    assert int(unit()["WatchdogSec"][0]) >= 5  # the collector of cycles must not end a director
    assert unit()["ExecReload"] == ["/opt/lvsha/bin/lvsha reload"]


def greatest(table: type[BaseModel], key: str) -> int:
    """The greatest value that the pair file may have."""
    (bound,) = (one.le for one in table.model_fields[key].metadata if isinstance(one, Le))
    assert isinstance(bound, int)
    return bound


def test_unit_has_files_for_as_many_scripts_as_there_may_be() -> None:
    (number,) = unit()["LimitNOFILE"]
    assert int(number) >= FILES_OF_A_SCRIPT * greatest(Limits, "probes") + FILES_FOR_ALL_ELSE


def test_drop_in_permits_every_real_time_priority() -> None:
    (number,) = unit(DROP_INS["realtime"])["LimitRTPRIO"]
    assert int(number) == greatest(Node, "realtime_priority")


@systemd
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    # The program is not installed where tests run, so another one stands for it.
    copy = tmp_path / "lvsha.service"
    text = UNIT.read_text(encoding="utf-8").replace("/opt/lvsha/bin/lvsha", "/bin/true")
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "lvsha.service" in line]
    assert complaints == []
    assert done.returncode == 0


@systemd
@pytest.mark.parametrize("name", DROP_INS)
def test_systemd_understands_the_drop_ins(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "lvsha.service"
    text = UNIT.read_text(encoding="utf-8").replace("/opt/lvsha/bin/lvsha", "/bin/true")
    copy.write_text(text, encoding="utf-8")
    drop_in = tmp_path / "lvsha.service.d" / f"{name}.conf"
    drop_in.parent.mkdir()
    shutil.copy(DROP_INS[name], drop_in)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert drop_in.name not in done.stderr
    assert done.returncode == 0


@systemd
def test_exposure_of_the_unit_does_not_grow() -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={EXPOSURE_MAX}",
            str(UNIT),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unrecognized option" in done.stderr or "Unknown option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at unit files offline")
    assert done.returncode == 0, done.stdout[-200:]


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_kernel_settings_exist_and_are_set_once(path: Path) -> None:
    keys = [
        line.partition("=")[0].strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert len(keys) == len(set(keys))
    for key in keys:
        setting = Path("/proc/sys", *key.split("."))
        assert setting.exists() or not setting.parent.exists(), key
