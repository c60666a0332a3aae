"""What proc(5) tells of processes, and what it does not."""

import os
import subprocess
from pathlib import Path

import pytest

from lvsha.process_table import list_processes, newest_process, read_of_process, state_and_parent
from tests.shells.test_programs import no_files_left


def test_this_process_is_listed_with_its_name_and_parent() -> None:
    own = os.getpid()
    assert own in list_processes()
    assert read_of_process(own, "comm") == Path("/proc/self/comm").read_bytes()
    known = state_and_parent(own)
    assert known is not None
    assert known[1] == os.getppid()


def test_a_process_that_is_gone_says_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert read_of_process(gone.pid, "comm") == b""
    assert state_and_parent(gone.pid) is None


def test_who_was_started_last_has_the_newest_number_for_a_while() -> None:
    before = newest_process()
    with subprocess.Popen(["true"]) as started:
        assert before != started.pid
        assert newest_process() > 0


def test_a_zombie_is_told_by_its_state() -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert state_and_parent(zombie.pid) == (b"Z", os.getpid())
    zombie.wait()


def test_without_a_file_left_nothing_is_said_that_would_be_wrong() -> None:
    with no_files_left():
        with pytest.raises(OSError, match="Too many open files"):
            list_processes()
        with pytest.raises(OSError, match="Too many open files"):
            read_of_process(os.getpid(), "comm")
