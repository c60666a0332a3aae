"""Files, processes and slow readings, on the real thing."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lvsha.config_tracking import Tracker
from lvsha.failover.tracking import Reading
from lvsha.programs import Programs
from lvsha.tracking.gateways import Gateway
from lvsha.tracking.outside import make_probe
from lvsha.tracking.probes import InThread, NumberInFile, read_existence, read_processes
from tests.shells.test_programs import no_files_left

UP = Reading(up=True)


def number(text: bytes, path: Path) -> tuple[int, bool]:
    path.write_bytes(text)
    found = NumberInFile(path).read()
    return found.number, found.up


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", 0),
        (b"0\n", 0),
        (b"7\n", 7),
        (b" -12 \nmore\n", -12),
        (b"\n5\n", 0),
        (b"9" * 4000, 2**31 - 1),
    ],
)
def test_the_first_line_of_a_file_is_a_number(text: bytes, found: int, tmp_path: Path) -> None:
    assert number(text, tmp_path / "n") == (found, found == 0)


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert NumberInFile(tmp_path / "n").read() == UP


@pytest.mark.parametrize("text", [b"many\n", b"1.5", b"0x10", b"\xff\xfe"])
def test_what_is_no_number_leaves_the_last_one(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "n"
    file = NumberInFile(path)
    path.write_bytes(b"-40")
    assert file.read().number == -40
    path.write_bytes(text)
    found = file.read()
    assert found.number == -40
    assert "does not begin with a number" in found.detail


def test_a_pipe_or_a_directory_does_not_hold_anybody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        found = NumberInFile(path).read()
        assert (found.number, "does not begin" in found.detail) == (0, True)


def test_existence_is_enough_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "there"
    assert not read_existence(path).up
    path.touch()
    assert read_existence(path) == UP


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    words = ["sleep", "601.5"]
    started = [subprocess.Popen(words, executable="/bin/sleep") for _ in range(2)]
    deadline = time.monotonic() + 10
    while processes(2) != UP and time.monotonic() < deadline:
        time.sleep(0.01)  # a busy machine may show them late
    yield started
    for one in started:
        one.kill()
        one.wait()


def processes(quorum: int, quorum_max: int | None = None) -> Reading:
    return read_processes("sleep 601.5", full_command=True, quorum=quorum, quorum_max=quorum_max)


def test_processes_are_counted_by_their_command_line(
    sleepers: list[subprocess.Popen[bytes]],
) -> None:
    assert processes(2) == UP
    assert processes(3).detail == "2 processes sleep 601.5, needs 3"
    assert processes(0, 1).detail == "2 processes sleep 601.5, at most 1"
    sleepers[0].kill()
    # Not waited for: it is a zombie, and counts no more.
    os.waitid(os.P_PID, sleepers[0].pid, os.WEXITED | os.WNOWAIT)
    assert processes(1, 1) == UP


def test_processes_are_counted_by_name() -> None:
    own = Path("/proc/self/comm").read_text().strip()
    assert read_processes(own, full_command=False, quorum=1, quorum_max=None) == UP
    long = "a-process-of-a-long-name-that-nobody-has"
    assert not read_processes(long, full_command=False, quorum=1, quorum_max=None).up


def test_without_a_file_left_processes_cannot_be_read_and_that_is_no_reading_of_them() -> None:
    own = Path("/proc/self/comm").read_text().strip()
    for quorum, quorum_max in ((1, None), (0, 0)):
        with no_files_left():
            found = read_processes(own, full_command=False, quorum=quorum, quorum_max=quorum_max)
        assert found == Reading(
            up=False, detail="the processes cannot be read: Too many open files"
        )


def test_a_reading_that_hangs_is_given_up_and_not_started_again() -> None:
    go_on = threading.Event()
    started: list[int] = []

    def hang() -> Reading:
        started.append(1)
        go_on.wait(60)
        return UP

    async def main() -> None:
        late = Reading(up=False, detail="late")
        probe = InThread(hang, 0.05, lambda: late)
        assert [await probe.look() for _ in range(4)] == [late] * 4
        assert len(started) == 1
        go_on.set()
        with trio.fail_after(10):
            while await probe.look() != UP:
                pass

    trio.run(main)


def look(tracker: Tracker, interface: str | None = None) -> Reading:
    async def main() -> Reading:
        return await make_probe(tracker, interface, frozenset(), Programs().run).look()

    return trio.run(main)


def test_every_kind_of_the_pair_file_that_looks_outside_has_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "n"
    path.write_text("3")
    file = {"name": "t", "kind": "file", "path": str(path)}
    assert look(Tracker.model_validate(file)).number == 3
    assert look(Tracker.model_validate({**file, "content": "existence"})) == UP
    own = Path("/proc/self/comm").read_text().strip()
    assert look(Tracker(name="t", kind="process", process=own)) == UP
    failing = Tracker(name="t", kind="script", command=("/bin/sh", "-c", "echo no; exit 1"))
    assert look(failing) == Reading(up=False, detail="t: exit code 1: no")
    told = ("/bin/sh", "-c", '[ "$LVSHA_TRACKER" = t ]')
    assert look(Tracker(name="t", kind="script", command=told)).up


def test_a_gateway_on_an_interface_that_is_not_there_is_down() -> None:
    async def main() -> list[Reading]:
        return [
            await Gateway(address, "nowhere-0", method, 0.1).look()
            for address in (bytes((192, 0, 2, 1)), bytes(15) + b"\x02")
            for method in ("neighbour", "icmp")
        ]

    for found in trio.run(main):
        assert not found.up
        assert "cannot be asked" in found.detail
