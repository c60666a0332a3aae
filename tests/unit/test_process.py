"""Real-time scheduling and locked memory: given, or refused with a reason."""

import os
import resource
import subprocess
import sys

import pytest

from lvsha.errors import HostError
from lvsha.process import THREAD_TURN, let_threads_in, run_in_real_time, stay_in_memory

REAL_TIME = """
import os, subprocess, sys
from lvsha.process import run_in_real_time
from lvsha.errors import HostError
if sys.argv[1] == "refused":
    import resource
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    os.setuid(65534)
try:
    run_in_real_time(7)
except HostError as error:
    print("refused", error)
else:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"],
        capture_output=True, text=True, check=True,
    )
    print(os.sched_getscheduler(0) & 7, os.sched_getparam(0).sched_priority, child.stdout)
"""


def run(word: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", REAL_TIME, word], capture_output=True, text=True, check=True
    ).stdout


def may_be_real_time() -> bool:
    probe = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not may_be_real_time(), reason="this machine permits no real-time scheduling")
def test_the_process_runs_in_real_time_and_what_it_starts_does_not() -> None:
    assert run("granted").split() == [str(os.SCHED_FIFO), "7", str(os.SCHED_OTHER)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_real_time_that_is_not_permitted_is_refused_with_what_is_missing() -> None:
    refusal = run("refused")
    assert refusal.startswith("refused realtime_priority = 7: ")
    assert "LimitRTPRIO" in refusal


def test_real_time_with_no_such_priority_is_refused() -> None:
    with pytest.raises(HostError, match="realtime_priority = 1000"):
        run_in_real_time(1000)


def test_memory_is_locked_now_and_then_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    asked: list[int] = []

    def lock_all(flags: int) -> int:
        asked.append(flags)
        return 0

    stay_in_memory(lock_all)
    assert asked == [1, 2 | 4]


def test_memory_that_may_not_be_locked_without_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65_536, 65_536))
    monkeypatch.setattr("lvsha.process._may_lock_all", lambda: False)
    with pytest.raises(HostError, match=r"65536 bytes .* LimitMEMLOCK=infinity"):
        stay_in_memory(lambda _: 0)


def test_a_kernel_that_refuses_to_lock_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvsha.process._may_lock_all", lambda: True)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65_536, 65_536))
    with pytest.raises(HostError, match="ENOMEM"):
        stay_in_memory(lambda _: 12)


def test_threads_have_their_turns_soon() -> None:
    before = sys.getswitchinterval()
    try:
        let_threads_in()
        assert sys.getswitchinterval() == pytest.approx(THREAD_TURN)
    finally:
        sys.setswitchinterval(before)
