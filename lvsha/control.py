"""The control socket: how the ``lvsha`` command talks to a running director.

A Unix socket that only its owner may open (mode 0600). A request is one JSON object on one
line, the answer likewise: ``{"command": "status"}``, perhaps with ``"arguments": {...}``
beside it, is answered by ``{"result": {...}}`` or ``{"error": "..."}``. The directory of the
socket also holds the lock: one director per network namespace, because two would forward
every frame twice. Both names carry the namespace's inode number, so
``ip netns exec NAME lvsha status`` finds the director of that namespace.
"""

import fcntl
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

from lvsha.counters import Counters
from lvsha.errors import HostError, LvshaError
from lvsha.turns import Turns

REQUEST_BYTES_MAX: Final = 1024 * 1024
ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
REQUEST_SECONDS_MAX: Final = 10.0
CLIENTS_MAX: Final = 32
"""Further clients wait in the socket's queue until one of these is done."""

ACCEPT_PAUSE: Final = 0.1
_DIVIDED: Final = 5
"""Levels of an answer that are encoded piece by piece: down to one server of one service."""


@dataclass(frozen=True, slots=True)
class WithArguments:
    """The handler of a command that takes arguments.

    Attributes:
        handle: gets the arguments, which are whatever JSON object was sent.
    """

    handle: Callable[[Mapping[str, object]], object]

    def __call__(self) -> object:
        """Answer the command without arguments."""
        return self.handle({})


@dataclass(frozen=True, slots=True)
class Lasting:
    """The handler of a command that takes a while.

    Attributes:
        handle: gets the arguments, which are whatever JSON object was sent.
        seconds: so long at most; who has asked waits as long (`ask`).
    """

    handle: Callable[[Mapping[str, object]], Awaitable[object]]
    seconds: float = REQUEST_SECONDS_MAX


Handler = Callable[[], object] | Lasting
"""Answers a command; what it raises as an `LvshaError` is told to who asked."""


def runtime_directory() -> Path:
    """Where sockets and locks live: $LVSHA_RUNTIME_DIR, or /run/lvsha."""
    return Path(os.environ.get("LVSHA_RUNTIME_DIR", "/run/lvsha"))


def namespace_number() -> int:
    """The inode number of the network namespace, which stands in the names of sockets."""
    return Path("/proc/self/ns/net").stat().st_ino


def socket_path() -> Path:
    """The control socket of the director in this network namespace."""
    return runtime_directory() / f"control-{namespace_number()}.sock"


def lock_namespace() -> IO[str]:
    """Become the one director of this network namespace, while the result is open.

    Raises:
        HostError: another one runs, or the directory cannot be used.
    """
    directory = runtime_directory()
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = (directory / f"lock-{namespace_number()}").open("a", encoding="ascii")
    except OSError as error:
        raise HostError(f"{directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise HostError(
            "another lvsha director runs in this network namespace; only one may forward"
        ) from error
    return lock


class ControlServer:
    """Answers requests until cancelled.

    Args:
        commands: what can be asked, by name.
    """

    def __init__(self, commands: Mapping[str, Handler]) -> None:
        self.counters = Counters()
        self._commands = commands
        self._places = trio.CapacityLimiter(CLIENTS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on the control socket.

        Raises:
            HostError: the socket cannot be made.
        """
        path = socket_path()
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                await listener.bind(str(path))
            finally:
                os.umask(mask)
            listener.listen(CLIENTS_MAX)
        except OSError as error:
            listener.close()
            raise HostError(f"{path} cannot be made: {error.strerror}") from error
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    try:
                        client, _ = await listener.accept()
                    except OSError:
                        # Out of file descriptors, or the client left: no reason to stop.
                        self.counters.add("clients_refused")
                        await trio.sleep(ACCEPT_PAUSE)
                        continue
                    await self._places.acquire_on_behalf_of(client)
                    nursery.start_soon(self._serve, client)
        finally:
            listener.close()
            path.unlink(missing_ok=True)

    async def _serve(self, client: trio.socket.SocketType) -> None:
        stream = trio.SocketStream(client)
        try:
            with trio.move_on_after(REQUEST_SECONDS_MAX) as limit:
                answer = await self._answer(await _line(stream, REQUEST_BYTES_MAX), limit)
                await stream.send_all(await encoded(answer) + b"\n")
        except trio.BrokenResourceError:
            self.counters.add("clients_gone")
        finally:
            self._places.release_on_behalf_of(client)
            client.close()

    async def _answer(self, line: bytes, limit: trio.CancelScope) -> dict[str, object]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        name = request.get("command") if isinstance(request, dict) else None
        handler = self._commands.get(name) if isinstance(name, str) else None
        if handler is None:
            self.counters.add("requests_refused")
            known = ", ".join(sorted(self._commands))
            return {"error": f"unknown request; known commands: {known}"}
        given = request.get("arguments", {})
        arguments = given if isinstance(given, dict) else {}
        try:
            if isinstance(handler, Lasting):
                limit.deadline += handler.seconds - REQUEST_SECONDS_MAX
                return {"result": await handler.handle(arguments)}
            if isinstance(handler, WithArguments):
                return {"result": handler.handle(arguments)}
            return {"result": handler()}
        except LvshaError as error:
            self.counters.add("requests_refused")
            return {"error": str(error)}


async def encoded(answer: object) -> bytes:
    """An answer as JSON, in turns with all else on the loop: it may be megabytes."""
    parts: list[str] = []
    await _encode(answer, parts, Turns(), _DIVIDED)
    return "".join(parts).encode()


async def _encode(value: object, parts: list[str], turns: Turns, levels: int) -> None:
    """Append a value; containers down to so many levels piece by piece."""
    opening, closing = "[]" if isinstance(value, list) else "{}"
    if not isinstance(value, dict | list) or not value or not levels:
        parts.append(json.dumps(value))
        await turns.pass_on()
        return
    for entry in value:
        parts.append(opening)
        opening = ", "
        if isinstance(value, dict):
            # What is no text becomes one: the name of a number is its digits.
            name = entry if isinstance(entry, str) else json.dumps(entry)
            parts.append(f"{json.dumps(name)}: ")
            await _encode(value[entry], parts, turns, levels - 1)
        else:
            await _encode(entry, parts, turns, levels - 1)
    parts.append(closing)


async def _line(stream: trio.SocketStream, limit: int) -> bytes:
    """Read up to the first newline, the end, or the limit."""
    data = bytearray()
    while len(data) < limit:
        part = await stream.receive_some(limit - len(data))
        data += part
        if not part or b"\n" in part:
            break
    return bytes(data).partition(b"\n")[0]


def ask(
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    path: Path | None = None,
    seconds: float = REQUEST_SECONDS_MAX,
) -> object:
    """Ask the director of this network namespace, or another.

    Args:
        command: what.
        arguments: of the command; must become JSON.
        path: of the control socket of another director.
        seconds: to wait for the answer.

    Raises:
        HostError: none is running, it does not answer, or it says no.
    """
    path = socket_path() if path is None else path
    request: dict[str, object] = {"command": command}
    if arguments is not None:
        request["arguments"] = arguments
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer = json.loads(answers.readline(ANSWER_BYTES_MAX))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise HostError("no lvsha director runs in this network namespace") from error
    except PermissionError as error:
        raise HostError(f"{path} may be opened only by the user who runs the director") from error
    except (OSError, ValueError) as error:
        raise HostError(f"the director does not answer: {error}") from error
    if "error" in answer:
        raise HostError(str(answer["error"]))
    result: object = answer["result"]
    return result
