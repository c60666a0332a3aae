"""The two directors of a drill, as processes that run the real program.

A `Director` starts, signals and asks; when to do so is the rehearsal's affair. What
the program says goes to its log file, which outlives restarts.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import trio

import lvsha
from lvsha.drill import laboratory
from lvsha.errors import HostError

LOG_TAIL_LINES: Final = 15
STATUS_TIME_MAX: Final = 1.0
ANSWER_TIME_MAX: Final = 5.0
COMMAND_TIME_MAX: Final = 20.0
STATUS_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Status:
    """What the drill needs to know of a director.

    Attributes:
        states: of its virtual routers, by name.
        complete: whether it has a copy of all connections that others lead.
    """

    states: Mapping[str, str]
    complete: bool


class Director:
    """One director: its process and what it says of itself.

    Attributes:
        name: which node it is.
        log: where its output goes.
        stopped: whether it was told to stop without ending (SIGSTOP).
        killed: whether it was told to end without another word (SIGKILL).
        expected: whether it should be running; the rehearsal says when not.
    """

    def __init__(self, name: str, pair: Path, log: Path) -> None:
        self.name = name
        self._pair = pair
        self.log = log
        self._runtime = Path("/run") / f"lvsha-{name}"
        self._process: trio.Process | None = None
        self.stopped = False
        self.killed = False
        self.expected = False

    @property
    def running(self) -> bool:
        """Whether its process exists."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the real program from the pair file."""
        assert not self.running
        self.expected, self.killed = True, False
        self._runtime.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-m", "lvsha", "run", str(self._pair), "--node", self.name]
        with self.log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                laboratory.enter(self.name, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )

    def _deliver(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.killed = number is signal.SIGKILL
        self._deliver(number)

    def end(self) -> None:
        """Kill the process, whatever it does; the private world buries it."""
        if self._process is not None:
            self._process.kill()

    async def wait_end(self, limit: float) -> bool:
        """Whether the process ended within a time."""
        assert self._process is not None
        with trio.move_on_after(limit):
            await self._process.wait()
        return not self.running

    async def status(self) -> Status | None:
        """What it says of itself; None if it says nothing."""
        if not self.running or self.stopped:
            return None
        # A socket in the file system is reached from any network namespace.
        for path in self._runtime.glob("control-*.sock"):
            answer = b""
            with trio.move_on_after(STATUS_TIME_MAX):
                answer = await _ask(path, "status")
            return parse_status(answer)
        return None

    async def follow(self, saw: Callable[[str, str], None]) -> None:
        """Tell each virtual router and its state, until it has no more to say."""
        for path in self._runtime.glob("events-*.sock"):
            try:
                async with await trio.open_unix_socket(path) as stream:
                    pending = b""
                    async for part in stream:
                        *lines, pending = (pending + part).split(b"\n")
                        for router, state in chain.from_iterable(map(parse_event, lines)):
                            saw(router, state)
            except (OSError, trio.BrokenResourceError):
                return  # it has just ended, or has not begun to listen

    async def hand_over(self, router: str) -> None:
        """Have it hand a virtual router over, as ``lvsha handover`` does.

        Raises:
            HostError: it did not; with what it said.
        """
        said = await self._command("handover", router=router)
        if not said.startswith('{"result"'):
            raise HostError(f"{self.name} did not hand over; it said {said}")

    async def reload(self) -> None:
        """Have it take its changed pair file over, as ``lvsha reload`` does.

        Raises:
            HostError: it did not, or not all of it; with what it said.
        """
        said = await self._command("reload")
        if '"troubles": []' not in said:
            raise HostError(f"{self.name} did not reload; it said {said}")

    async def _command(self, name: str, **arguments: str) -> str:
        """What it answers to a command on its control socket."""
        answer = b""
        for path in self._runtime.glob("control-*.sock"):
            with trio.move_on_after(ANSWER_TIME_MAX):
                answer = await _ask(path, name, **arguments)
        return answer.decode("utf-8", "replace").strip() or "nothing"

    async def administer(self, words: Sequence[str]) -> None:
        """Have it carry out an ``lvsha ipvsadm`` command.

        Raises:
            HostError: it refuses; with what it said.
        """
        command = [sys.executable, "-m", "lvsha", "ipvsadm", *words]
        with trio.fail_after(COMMAND_TIME_MAX):
            done = await trio.run_process(
                laboratory.enter(self.name, command),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self._environment(),
            )
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
            raise HostError(f"{self.name}: ipvsadm {' '.join(words)}: {said}")

    def _environment(self) -> dict[str, str]:
        return program_environment() | {"LVSHA_RUNTIME_DIR": str(self._runtime)}

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


async def _ask(path: Path, command: str, **arguments: str) -> bytes:
    """What the control socket answers to a command; empty if it does not."""
    answer = bytearray()
    try:
        async with await trio.open_unix_socket(path) as stream:
            request = {"command": command, "arguments": arguments}
            await stream.send_all(json.dumps(request).encode() + b"\n")
            async for part in stream:
                answer += part
                if b"\n" in part or len(answer) > STATUS_BYTES_MAX:
                    break
    except (OSError, trio.BrokenResourceError):
        return b""  # it has just ended, or has not begun to listen
    return bytes(answer)


def parse_status(text: bytes) -> Status | None:
    """Read the answer of a control socket to ``status``; None if it is not that."""
    try:
        content = json.loads(text)["result"]
        states = {name: str(entry["state"]) for name, entry in content["routers"].items()}
        complete = all(entry["complete"] for entry in content["sync"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Status(states, complete)


def parse_event(line: bytes) -> list[tuple[str, str]]:
    """The virtual routers and their states that a line of the event socket tells."""
    try:
        content = json.loads(line)
        if content["event"] == "present":
            return [(name, str(entry["state"])) for name, entry in content["routers"].items()]
        if content["event"] == "state":
            return [(str(content["router"]), str(content["new"]))]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return []


def program_environment() -> dict[str, str]:
    """The environment in which a program of the drill finds this very lvsha."""
    home = str(Path(lvsha.__file__).resolve().parents[1])
    known = os.environ.get("PYTHONPATH", "")
    paths = [home, *(known.split(os.pathsep) if known else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
