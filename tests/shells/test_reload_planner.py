"""The process that plans a reload: what comes back, and what is said when none does."""

import sys
from pathlib import Path

import pytest
import trio

from lvsha.config import load_pair
from lvsha.errors import ConfigError, HostError
from lvsha.reload_planner import make_proposal, pack, propose

PAIR = """
[[services]]
name = "http"
address = "192.0.2.10"
port = 80
servers = [{ address = "10.1.0.11" }]
checks = [{ type = "udp", payload_hex = "00 ff" }, { type = "http", status = ["200-299", 404] }]

[[services]]
name = "dns"
address = "192.0.2.10"
port = 53
servers = [{ address = "10.1.0.11" }]

[nodes.east]
interfaces = { outside = "eth0" }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pair.toml"
    path.write_text(PAIR)
    return path


def test_another_process_plans_as_this_one_would(file: Path) -> None:
    running = pack(load_pair(file))
    file.write_text(PAIR.replace("11", "12").replace('"dns"', '"names"'))
    proposal = trio.run(propose, running, file)
    here = make_proposal(running, file)
    assert (proposal.plan, proposal.order) == (here.plan, here.order)
    found = load_pair(file)
    assert proposal.plan.digest == found.digest()
    assert proposal.plan.pair.services == ()
    assert proposal.order == ("http", "names")
    assert [(change.before, change.unpack()) for change in proposal.changes] == [
        ("http", found.services[0]),
        ("dns", found.services[1]),
    ]
    # What comes back is what the next reload begins with.
    again = trio.run(propose, proposal.followed, file)
    assert (again.changes, again.plan.taken, again.plan.waiting) == ((), (), ())


def test_what_is_wrong_with_the_file_is_said_by_key(file: Path) -> None:
    running = pack(load_pair(file))
    file.write_text(PAIR.replace("port = 80", "port = 80000"))
    with pytest.raises(ConfigError, match=r"pair.toml: services\[0\].port: .*80000"):
        trio.run(propose, running, file)
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        trio.run(propose, running, file)


@pytest.mark.parametrize(
    ("program", "why"), [("/bin/false", "status 1"), ("/nonexistent", "No such file")]
)
def test_a_process_that_fails_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    running = pack(load_pair(file))
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(HostError, match=f"could not be looked at: .*{why}"):
        trio.run(propose, running, file)


def test_what_else_is_printed_is_no_part_of_the_answer(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = pack(load_pair(file))
    site = tmp_path / "site"
    site.mkdir()
    # Of all processes of Python that are started now.
    (site / "sitecustomize.py").write_text(
        "import atexit; print('hello'); atexit.register(print, 'good bye')"
    )
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    assert trio.run(propose, running, file).changes == ()


def test_an_answer_that_makes_no_sense_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = pack(load_pair(file))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(HostError, match="not understood"):
        trio.run(propose, running, file)


def test_nothing_is_imported_from_where_the_director_stands(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = pack(load_pair(file))
    strange = tmp_path / "lvsha"
    strange.mkdir()
    (strange / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert trio.run(propose, running, file).changes == ()


def test_a_process_that_hangs_is_ended(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = pack(load_pair(file))
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("lvsha.reload_planner.TIME_MAX", 0.2)
    with pytest.raises(HostError, match="not within"):
        trio.run(propose, running, file)
