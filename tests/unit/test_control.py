import errno
import json
import socket
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lvsha import control
from lvsha.control import (
    ControlServer,
    Lasting,
    WithArguments,
    ask,
    encoded,
    lock_namespace,
    socket_path,
)
from lvsha.errors import ConfigError, HostError
from lvsha.turns import Turns


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def serving(server: ControlServer, work: Callable[[], Awaitable[None]]) -> None:
    """Run a server, do something with it, and end."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            with trio.fail_after(20):
                await work()
            nursery.cancel_scope.cancel()

    trio.run(run)


async def exchange(data: bytes) -> dict[str, object]:
    """Send bytes, read the answer."""
    stream = await trio.open_unix_socket(str(socket_path()))
    async with stream:
        await stream.send_all(data)
        answer = b"".join([part async for part in stream])
    decoded: dict[str, object] = json.loads(answer)
    return decoded


def test_a_command_is_answered() -> None:
    server = ControlServer({"status": lambda: {"connections": 3}})

    async def work() -> None:
        answer = await trio.to_thread.run_sync(ask, "status")
        assert answer == {"connections": 3}

    serving(server, work)


def test_a_command_may_take_arguments() -> None:
    server = ControlServer({"echo": WithArguments(lambda arguments: [arguments])})

    async def work() -> None:
        def asked() -> None:
            assert ask("echo", {"words": ["-L"]}) == [{"words": ["-L"]}]
            assert ask("echo", {}) == [{}]
            assert ask("echo") == [{}]

        await trio.to_thread.run_sync(asked)
        assert await exchange(b'{"command": "echo", "arguments": 3}\n') == {"result": [{}]}

    serving(server, work)


def test_a_command_may_take_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS_MAX", 0.2)

    async def wait(_: object) -> object:
        await trio.sleep(0.5)
        return "done"

    server = ControlServer({"long": Lasting(wait, 5.0), "short": Lasting(wait, 0.2)})

    async def work() -> None:
        def asked() -> None:
            assert ask("long", seconds=5.0) == "done"
            with pytest.raises(HostError, match="does not answer"):
                ask("short", seconds=5.0)

        await trio.to_thread.run_sync(asked)

    serving(server, work)


def test_a_command_that_takes_none_ignores_arguments() -> None:
    async def work() -> None:
        assert await exchange(b'{"command": "status", "arguments": {"a": 1}}\n') == {"result": 1}

    serving(ControlServer({"status": lambda: 1}), work)


def test_what_a_handler_refuses_is_told() -> None:
    def refuse(_: object) -> object:
        raise ConfigError("drop_entry: expected 0 to 3")

    server = ControlServer({"settings": WithArguments(refuse)})

    async def work() -> None:
        answer = await exchange(b'{"command": "settings", "arguments": {}}\n')
        assert answer == {"error": "drop_entry: expected 0 to 3"}

    serving(server, work)
    assert server.counters["requests_refused"] == 1


def test_the_socket_is_its_owners_alone_and_goes_with_the_server() -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        assert stat.S_IMODE(socket_path().stat().st_mode) == 0o600

    serving(ControlServer({}), work)
    assert not socket_path().exists()


def test_a_socket_that_a_dead_director_left_is_replaced(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path()))

    async def work() -> None:
        assert await trio.to_thread.run_sync(ask, "status") == 1

    serving(ControlServer({"status": lambda: 1}), work)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"command": 3}\n',
        b'{"command": "halt"}\n',
        b'{"cmd": "status"}\n',
        b"[" * 60_000 + b"\n",
        b"1" * 6_000 + b"\n",
        b"x" * control.REQUEST_BYTES_MAX,
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_request_that_makes_no_sense_gets_an_error_and_the_next_an_answer(line: bytes) -> None:
    server = ControlServer({"status": lambda: 1})

    async def work() -> None:
        stream = await trio.open_unix_socket(str(socket_path()))
        async with stream:
            await stream.send_all(line)
            stream.socket.shutdown(socket.SHUT_WR)
            answer = json.loads(b"".join([part async for part in stream]))
        assert answer == {"error": "unknown request; known commands: status"}
        assert await exchange(b'{"command": "status"}\n') == {"result": 1}

    serving(server, work)
    assert server.counters["requests_refused"] == 1


def test_a_client_that_leaves_without_its_answer_disturbs_nobody() -> None:
    server = ControlServer({"status": lambda: "x" * 4_000_000})

    async def work() -> None:
        for _ in range(control.CLIENTS_MAX + 3):
            stream = await trio.open_unix_socket(str(socket_path()))
            await stream.send_all(b'{"command": "status"}\n')
            await stream.aclose()
        assert await exchange(b'{"command": "status"}\n') == {"result": "x" * 4_000_000}

    serving(server, work)


def test_a_silent_client_is_sent_away_after_its_time() -> None:
    server = ControlServer({"status": lambda: 1})

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            stream = await trio.open_unix_socket(str(socket_path()))
            async with stream:
                started = trio.current_time()
                assert await stream.receive_some() == b""
                assert trio.current_time() - started == pytest.approx(control.REQUEST_SECONDS_MAX)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0.05))


class Listener:
    """A socket whose first accept fails."""

    def __init__(self, real: trio.socket.SocketType) -> None:
        self._real = real
        self._failures = [OSError(errno.EMFILE, "too many open files")]

    async def accept(self) -> tuple[trio.socket.SocketType, object]:
        if self._failures:
            raise self._failures.pop()
        return await self._real.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_an_accept_that_fails_is_counted_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ControlServer({"status": lambda: 1})
    make = trio.socket.socket
    monkeypatch.setattr(trio.socket, "socket", lambda *arguments: Listener(make(*arguments)))

    async def work() -> None:
        assert await trio.to_thread.run_sync(ask, "status") == 1

    serving(server, work)
    assert server.counters["clients_refused"] == 1


def test_without_a_director_the_reason_is_one_sentence() -> None:
    with pytest.raises(HostError, match="no lvsha director runs"):
        ask("status")


def test_an_error_in_an_answer_is_raised() -> None:
    async def work() -> None:
        def refused() -> None:
            with pytest.raises(HostError, match="unknown request"):
                ask("halt")

        await trio.to_thread.run_sync(refused)

    serving(ControlServer({}), work)


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"\xff\n"])
def test_an_answer_that_is_none_is_one_sentence(answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path()))
        listener.listen(1)

        def reply() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(HostError, match="does not answer"):
            ask("status")
        thread.join()


def test_only_one_director_may_hold_a_namespace() -> None:
    with lock_namespace(), pytest.raises(HostError, match="another lvsha director runs"):
        lock_namespace()
    with lock_namespace():
        pass


def test_a_runtime_directory_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(file))
    with pytest.raises(HostError, match=str(file)):
        lock_namespace()


NAMES = st.text() | st.integers() | st.booleans() | st.none() | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=40,
)


@given(JSON)
def test_an_answer_is_encoded_as_the_library_does(answer: object) -> None:
    assert trio.run(encoded, answer) == json.dumps(answer).encode()


def test_a_long_answer_is_encoded_in_turns_with_the_others() -> None:
    answer: object = {"result": {"services": {str(n): {"servers": [{}] * 100} for n in range(500)}}}
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def work() -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            told = await encoded(answer)
            nursery.cancel_scope.cancel()
        return told

    assert json.loads(trio.run(work)) == answer
    assert turns > 1


def test_one_service_with_many_servers_is_encoded_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = 0

    class Counted(Turns):
        async def pass_on(self) -> None:
            nonlocal pieces
            pieces += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(control, "Turns", Counted)
    servers = [{"weight": number} for number in range(100)]
    answer = {"result": {"services": {"web": {"servers": servers}}}}
    assert trio.run(encoded, answer) == json.dumps(answer).encode()
    assert pieces >= len(servers)
