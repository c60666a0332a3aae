"""Programs of the operator: real ones, that hang, fork, hide and write without end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from lvsha.errors import HostError
from lvsha.programs import OUTPUT_BYTES_MAX, Outcome, check_user, run_program

LATE = 5.0
"""What a busy machine may add to the time of a program."""


def run(script: str, *, seconds_max: float = 30.0, user: str | None = None) -> Outcome:
    async def main() -> Outcome:
        return await run_program(["/bin/sh", "-c", script], user=user, seconds_max=seconds_max)

    return trio.run(main)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file to which programs write the numbers of their processes."""
    path = tmp_path / "pids"
    path.touch()
    yield path
    for pid in map(int, path.read_text().split()):
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def survivors(pids: Path) -> list[int]:
    started = list(map(int, pids.read_text().split()))
    assert started
    # Who was killed has closed its files, and may be about to go.
    end = time.monotonic() + LATE
    while any(map(lives, started)) and time.monotonic() < end:
        time.sleep(0.01)
    return [pid for pid in started if lives(pid)]


def test_the_exit_code_and_the_end_of_the_output_are_kept() -> None:
    assert run("echo one; echo two >&2; exit 3") == Outcome(3, "", "one two")
    assert str(run("exit 0")) == "exit code 0"


def test_output_without_end_is_read_and_cut() -> None:
    said = run("yes x | head -c 3000000; printf '\\033[31mthe end'")
    assert said.code == 0
    assert said.output.endswith("x ?[31mthe end")
    assert len(said.output) <= OUTPUT_BYTES_MAX


def test_a_program_that_hangs_is_ended_in_time_with_its_children(pids: Path) -> None:
    began = time.monotonic()
    said = run(f"sleep 600 & echo $! $$ > {pids}; wait", seconds_max=0.3)
    assert time.monotonic() - began < 0.3 + LATE
    assert (said.code, said.trouble) == (None, "ended after 0.3 s")
    assert survivors(pids) == []


def test_a_program_that_ignores_signals_is_ended(pids: Path) -> None:
    said = run(
        f"trap '' TERM INT HUP; echo $$ > {pids}; while :; do sleep 0.1; done", seconds_max=0.3
    )
    assert said.code is None
    assert survivors(pids) == []


def test_children_in_the_background_end_with_their_program(pids: Path) -> None:
    began = time.monotonic()
    said = run(f"sleep 600 & echo $! > {pids}; sleep 600 & echo $! >> {pids}; exit 0")
    # They are of the group, so nobody had to be looked for.
    assert (said.code, said.survivors) == (0, 0)
    assert time.monotonic() - began < LATE
    assert survivors(pids) == []


# It waits until its child is in a session of its own.
HIDES = "setsid sh -c 'echo $$ > {pids}; exec sleep 600' {to} & until [ -s {pids} ]; do :; done"


@pytest.mark.parametrize("to", ["", "> /dev/null 2>&1 < /dev/null"])
def test_children_that_left_the_session_are_found(pids: Path, to: str) -> None:
    said = run(HIDES.format(pids=pids, to=to))
    assert said.code == 0
    assert survivors(pids) == []
    assert said.survivors == 1


def test_what_left_no_children_is_not_looked_for() -> None:
    assert run("true & wait; exit 0").survivors == 0


def test_what_cannot_be_run_says_why() -> None:
    async def main() -> Outcome:
        return await run_program(["/nowhere/x"], user=None, seconds_max=1.0)

    assert "No such file" in str(trio.run(main))


def _until_written(pids: Path) -> None:
    end = time.monotonic() + LATE
    while not pids.read_text() and time.monotonic() < end:
        time.sleep(0.01)


def test_a_cancelled_program_leaves_nothing(pids: Path) -> None:
    async def main() -> None:
        command = ["/bin/sh", "-c", f"sleep 600 & echo $! $$ > {pids}; wait"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_program, command, user=None, seconds_max=60))
            await trio.to_thread.run_sync(_until_written, pids)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert survivors(pids) == []


def test_no_file_of_ours_stays_open() -> None:
    run("exit 0")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run("sleep 600", seconds_max=0.01)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_program_finds_a_small_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    names = {word.partition("=")[0] for word in run("env").output.split()}
    assert names == {"PATH", "LANG", "LVSHA_RUN", "PWD"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_program_runs_as_its_user() -> None:
    assert run("id -un; id -Gn", user="nobody").output == "nobody nogroup"


AMBIENT = "+net_admin,+setuid,+setgid,+kill"
LOOK = """
import sys, trio
from lvsha.programs import check_user, run_program
check_user("daemon")
for user in (None, "daemon"):
    command = ["/bin/sh", "-c", "id -un; grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status"]
    print(trio.run(lambda: run_program(command, user=user, seconds_max=10)).output)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give capabilities")
def test_a_program_has_none_of_the_directors_capabilities() -> None:
    caps = [f"--inh-caps={AMBIENT}", f"--ambient-caps={AMBIENT}"]
    who = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *caps]
    done = subprocess.run(
        [*who, "--", sys.executable, "-c", LOOK],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "Permission denied" in done.stderr:
        pytest.skip("others may not read this Python")
    none = "0000000000000000"
    assert done.stdout.splitlines() == [
        f"{user} CapPrm: {none} CapEff: {none} CapAmb: {none}" for user in ("nobody", "daemon")
    ], done.stderr


def test_a_user_that_is_not_there_is_refused() -> None:
    check_user(None)
    with pytest.raises(HostError, match="no user 'nobody-here'"):
        check_user("nobody-here")
