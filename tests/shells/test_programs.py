"""Programs of the operator: real ones, that hang, fork, hide and write without end."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pwd import getpwuid, struct_passwd

import pytest
import trio

from lvsha.errors import HostError
from lvsha.programs import OUTPUT_BYTES_MAX, Outcome, Programs

F_SETSIG = 10
"""fcntl(2); the module has no name for it."""
LATE = 5.0
"""What a busy machine may add to the time of a program."""


def start(command: Sequence[str], *, seconds_max: float = 30.0, user: str | None = None) -> Outcome:
    async def main() -> Outcome:
        return await Programs().run(command, user=user, seconds_max=seconds_max)

    return trio.run(main)


def run(script: str, *, seconds_max: float = 30.0, user: str | None = None) -> Outcome:
    return start(["/bin/sh", "-c", script], seconds_max=seconds_max, user=user)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file to which programs write the numbers of their processes."""
    path = tmp_path / "pids"
    path.touch()
    yield path
    for pid in started(path):
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def started(pids: Path) -> list[int]:
    return list(map(int, pids.read_text().split()))


def survivors(pids: Path) -> list[int]:
    assert started(pids)
    # Who was killed has closed its files, and may be about to go.
    end = time.monotonic() + LATE
    while any(map(lives, started(pids))) and time.monotonic() < end:
        time.sleep(0.01)
    return [pid for pid in started(pids) if lives(pid)]


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


@pytest.mark.parametrize("user", [None, getpwuid(os.geteuid()).pw_name, "nobody"])
def test_what_cannot_be_run_says_why(user: str | None, tmp_path: Path) -> None:
    if user == "nobody" and os.geteuid():
        pytest.skip("only root may become somebody else")
    (tmp_path / "no program").touch()
    for program, why in (
        ("/nowhere/x", "No such file or directory"),
        (str(tmp_path / "no program"), "Permission denied"),
    ):
        said = start([program, "y"], user=user)
        assert said == Outcome(None, f"cannot be run: {why}")


def test_an_exit_code_that_shells_have_for_what_is_not_there_is_the_programs_own() -> None:
    said = run("echo setpriv: failed to execute /bin/x: No such file or directory; exit 127")
    assert said.code == 127


def _until_written(pids: Path) -> None:
    end = time.monotonic() + LATE
    while not pids.read_text() and time.monotonic() < end:
        time.sleep(0.01)


def test_a_cancelled_program_leaves_nothing(pids: Path) -> None:
    async def main() -> None:
        command = ["/bin/sh", "-c", f"sleep 600 & echo $! $$ > {pids}; wait"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(Programs().run, command, user=None, seconds_max=60))
            await trio.to_thread.run_sync(_until_written, pids)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert survivors(pids) == []


def test_no_file_of_ours_stays_open() -> None:
    run("exit 0")
    before = open_files()
    for _ in range(5):
        run("sleep 600", seconds_max=0.01)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_program_that_runs_takes_three_files_of_ours(pids: Path) -> None:
    # deploy/lvsha.service allows for as many.
    command = ["/bin/sh", "-c", f"echo $$ >> {pids}; exec sleep 60"]

    async def main() -> None:
        programs = Programs()
        before = open_files()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(partial(programs.run, command, user=None, seconds_max=60))
            with trio.fail_after(LATE):
                # To start one takes some more for a moment.
                while len(started(pids)) < 10 or open_files() > before + 30:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)


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
from lvsha.programs import Programs
programs = Programs()
trio.run(programs.check_user, "daemon")
for user in (None, "daemon"):
    command = ["/bin/sh", "-c", "id -un; grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status"]
    print(trio.run(lambda: programs.run(command, user=user, seconds_max=10)).output)
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


# What hangs


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A program that takes longer to be executed than a server of files to answer.

    Who has a lease on a file is asked to give it back before anybody else opens it; we do not.
    """
    path = tmp_path / "hanging"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # SIGURG instead of SIGIO, because it is ignored.
        fcntl.fcntl(descriptor, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path
    finally:
        os.close(descriptor)


def test_a_program_whose_file_cannot_be_read_is_ended_in_time(hanging: Path) -> None:
    began = time.monotonic()
    said = start([str(hanging)], seconds_max=0.3)
    assert time.monotonic() - began < 0.3 + LATE
    assert said == Outcome(None, "ended after 0.3 s")


def test_a_cancelled_program_whose_file_cannot_be_read_holds_nobody_up(hanging: Path) -> None:
    async def main() -> None:
        with trio.move_on_after(0.3):
            await Programs().run([str(hanging)], user=None, seconds_max=60)

    began = time.monotonic()
    trio.run(main)
    assert time.monotonic() - began < 0.3 + LATE


class UserDatabase:
    """One that does not answer until it is told to, as that of a server that is away."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = 0

    def getpwnam(self, name: str) -> struct_passwd:
        self.asked += 1
        self.answers.wait(60)
        return getpwuid(os.geteuid())


def test_a_user_database_that_hangs_holds_up_nothing_but_its_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = UserDatabase()
    monkeypatch.setattr("lvsha.programs.pwd.getpwnam", database.getpwnam)

    async def main() -> None:
        programs = Programs()
        command = ["/bin/true"]

        async def tell(user: str | None) -> Outcome:
            return await programs.run(command, user=user, seconds_max=0.3)

        with trio.fail_after(LATE):
            for _ in range(3):
                assert "takes too long to look up" in str(await tell("me"))
            assert database.asked == 1
            assert (await tell(None)).code == 0
            database.answers.set()
            while (await tell("me")).code != 0:
                pass
            asked = database.asked
            await tell("me")
            assert database.asked == asked

    trio.run(main)


def test_a_director_does_not_start_with_a_user_database_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = UserDatabase()
    monkeypatch.setattr("lvsha.programs.pwd.getpwnam", database.getpwnam)
    monkeypatch.setattr("lvsha.programs.LOOK_UP_SECONDS_MAX", 0.1)
    with pytest.raises(HostError, match=r"user 'me' could not be looked up in 0\.1 s"):
        trio.run(Programs().check_user, "me")
    database.answers.set()


# What this process lacks


@contextmanager
def no_files_left() -> Iterator[None]:
    """While this lasts nothing more can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What is open stays open; input, output and errors are.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_file_left_a_program_is_not_run_and_says_why() -> None:
    async def main() -> Outcome:
        with no_files_left():
            return await Programs().run(["/bin/true"], user=None, seconds_max=1.0)

    assert trio.run(main) == Outcome(None, "cannot be run: Too many open files")


def test_without_a_file_left_what_cannot_be_ended_is_a_failed_run(pids: Path) -> None:
    async def main() -> Outcome:
        said: list[Outcome] = []
        # It waits until nothing can be opened; a folder is made without.
        script = f"{HIDES.format(pids=pids, to='')}; until [ -e {pids}.d ]; do :; done"
        command = ["/bin/sh", "-c", script]

        async def tell() -> None:
            said.append(await Programs().run(command, user=None, seconds_max=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            await trio.to_thread.run_sync(_until_written, pids)
            with no_files_left():
                Path(f"{pids}.d").mkdir()  # noqa: ASYNC240 - takes no time
                while not said:  # noqa: ASYNC110 - programs have no events
                    await trio.sleep(0.01)
        return said[0]

    said = trio.run(main)
    assert said.code is None
    assert said.trouble == "what it has started cannot be looked for: Too many open files"
    (left,) = started(pids)
    os.kill(left, signal.SIGKILL)
    # And the next run finds its own again.
    pids.write_text("")
    test_children_that_left_the_session_are_found(pids, "")


# What forks on and on

# All of them end by themselves after a while, should nobody else do it.
LOOPS = """
setsid sh -c 'i=0; while [ $i -lt 1000 ]; do setsid sleep 30 & i=$((i + 1)); sleep 0.005; done' &
echo $! > {pids}; sleep 30
"""
REPLACED = """#!/bin/sh
[ $1 -gt 0 ] || exit
: > {told}
setsid "$0" $(($1 - 1)) &
"""


def test_a_program_that_keeps_forking_out_of_its_group_is_ended(pids: Path) -> None:
    said = run(LOOPS.format(pids=pids), seconds_max=0.5)
    assert (said.code, said.trouble) == (None, "ended after 0.5 s")
    assert said.survivors > 2
    assert survivors(pids) == []


@pytest.mark.parametrize("go", range(3))
def test_a_program_that_is_another_process_all_the_time_is_ended(go: int, tmp_path: Path) -> None:
    program, told = tmp_path / "program", tmp_path / f"told{go}"
    program.write_text(REPLACED.format(told=told))
    program.chmod(0o755)
    # Until then there were dozens of them; without an end there would be for seconds.
    said = start(["/bin/sh", "-c", 'setsid "$0" 3000 & sleep 0.2', str(program)])
    assert said.code == 0
    told.unlink()
    time.sleep(0.2)
    assert not told.exists()


def test_a_user_that_is_not_there_is_refused() -> None:
    trio.run(Programs().check_user, None)
    with pytest.raises(HostError, match="no user 'nobody-here'"):
        trio.run(Programs().check_user, "nobody-here")
