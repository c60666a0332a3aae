"""The HTTP server of the metrics, on the loopback interface, with all kinds of clients."""

import ipaddress
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import h11
import pytest
import trio
import trio.testing

from lvsha import metrics_server
from lvsha.errors import HostError
from lvsha.metrics_server import CLIENTS_MAX, HEAD_BYTES_MAX, MetricsServer

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
PAGE = b"lvsha_connections 7.0\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def page() -> bytes:
    await trio.lowlevel.checkpoint()
    return PAGE


def served(test: Callable[[int, MetricsServer], Awaitable[None]]) -> dict[str, int]:
    """Run a test beside a server; returns what the server has counted."""

    async def main() -> dict[str, int]:
        port = free_port()
        server = MetricsServer(LOOPBACK, port, page)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                await test(port, server)
                nursery.cancel_scope.cancel()
        return server.counters.snapshot()

    return trio.run(main)


async def ask(port: int, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """The answer to a request: its status, headers and body."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    http.send(h11.EndOfMessage())
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        http.receive_data(b"".join([part async for part in stream]))
        http.receive_data(b"")
    response = http.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    return response.status_code, dict(response.headers), body


def test_the_page_is_served() -> None:
    async def test(port: int, server: MetricsServer) -> None:
        for target in (b"/metrics", b"/metrics?of=all"):
            request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"
            status, headers, body = await ask(port, request)
            assert (status, body) == (200, PAGE)
            assert headers[b"content-type"].startswith(b"text/plain")
            assert headers[b"connection"] == b"close"

    assert served(test) == {"pages_served": 2}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"what?\r\n\r\n", 400),
    ],
)
def test_anything_else_is_refused(request_: bytes, status: int) -> None:
    async def test(port: int, server: MetricsServer) -> None:
        answered, headers, _ = await ask(port, request_)
        assert answered == status
        assert headers.get(b"allow") == (b"GET" if status == 405 else None)
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200

    assert served(test)["pages_served"] == 1


def test_a_request_without_an_end_is_not_read_for_long() -> None:
    async def test(port: int, server: MetricsServer) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"X: " + bytes(HEAD_BYTES_MAX))

    assert served(test) == {"requests_malformed": 1}


def test_a_head_that_is_too_long_is_told_so() -> None:
    async def test(port: int, server: MetricsServer) -> None:
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: "
        assert (await ask(port, request.ljust(HEAD_BYTES_MAX + 1, b"x")))[0] == 431

    assert served(test) == {"requests_malformed": 1}


def test_a_client_that_is_suddenly_gone_disturbs_nobody() -> None:
    async def test(port: int, server: MetricsServer) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /met")
        await trio.testing.wait_all_tasks_blocked(0.05)
        reset_when_closed = struct.pack("@ii", 1, 0)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_when_closed)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.clients == 0
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200

    assert served(test) == {"clients_gone": 1, "pages_served": 1}


def test_who_asks_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_SECONDS_MAX", 0.2)

    async def test(port: int, server: MetricsServer) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /met")
            assert await stream.receive_some() == b""

    assert served(test) == {"clients_too_slow": 1}


def test_too_many_at_once_are_turned_away() -> None:
    async def test(port: int, server: MetricsServer) -> None:
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CLIENTS_MAX)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.clients == CLIENTS_MAX
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b""
        for stream in streams:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.clients == 0
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200

    assert served(test) == {"clients_refused": 1, "pages_served": 1}


def test_an_address_that_is_taken_is_named() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            await MetricsServer(LOOPBACK, taken.getsockname()[1], page).run()

    with pytest.raises(HostError, match=r"\[metrics\] address 127.0.0.1, port \d+: cannot listen"):
        trio.run(main)


@pytest.mark.parametrize("line", [b"X:" + b" " * 4000 + b"\0\r\n", b"X:\r\n" * 1000])
def test_a_head_that_would_take_long_is_not_looked_at(line: bytes) -> None:
    async def test(port: int, server: MetricsServer) -> None:
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n"
        assert (await ask(port, request))[0] == 431

    assert served(test) == {"requests_malformed": 1}
