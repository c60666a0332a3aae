"""Answer ``GET /metrics`` of HTTP for whoever collects metrics.

One request for each connection, in bounded time and memory. It has no TLS and asks nobody who
he is: what it tells are numbers, but it belongs on an address of the management network.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import trio
from prometheus_client import CONTENT_TYPE_LATEST

from lvsha.counters import Counters
from lvsha.errors import HostError, WireError
from lvsha.wire.http_lines import HeldLines

CLIENTS_MAX: Final = 8
"""Further ones are turned away."""
REQUEST_SECONDS_MAX: Final = 10.0
HEAD_BYTES_MAX: Final = 8192
PATH: Final = b"/metrics"
_READ_BYTES: Final = 4096

Page = Callable[[], Awaitable[bytes]]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class MetricsServer:
    """Serves one page.

    Args:
        address: where to listen.
        port: of TCP.
        page: makes what is answered.

    Attributes:
        clients: how many are being served.
        counters: pages served, clients turned away, requests that were none.
    """

    def __init__(self, address: IpAddress, port: int, page: Page) -> None:
        self.counters = Counters()
        self._address = address
        self._port = port
        self._page = page
        self.clients = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            HostError: the address cannot be listened on.
        """
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=str(self._address))
        except OSError as error:
            where = f"[metrics] address {self._address}, port {self._port}"
            raise HostError(f"{where}: cannot listen: {error.strerror}") from error
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self.clients >= CLIENTS_MAX:
            self.counters.add("clients_refused")
            await stream.aclose()
            return
        self.clients += 1
        try:
            with trio.move_on_after(REQUEST_SECONDS_MAX) as limit:
                await self._answer(stream)
            if limit.cancelled_caught:
                self.counters.add("clients_too_slow")
        except trio.BrokenResourceError:
            self.counters.add("clients_gone")
        finally:
            self.clients -= 1
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        held = HeldLines()
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                data = bytes(await stream.receive_some(_READ_BYTES))
                held.add(data)
                http.receive_data(data)
        except h11.RemoteProtocolError as error:
            self.counters.add("requests_malformed")
            await _send(stream, http, error.error_status_hint, b"This is no request of HTTP.\n")
            return
        except WireError:
            self.counters.add("requests_malformed")
            await _send(stream, http, 431, b"That is more than is looked at.\n")
            return
        if not isinstance(event, h11.Request):
            return
        if event.method != b"GET":
            await _send(stream, http, 405, b"", ("Allow", "GET"))
        elif event.target.partition(b"?")[0] != PATH:
            await _send(stream, http, 404, b"There is only " + PATH + b".\n")
        else:
            page = await self._page()
            self.counters.add("pages_served")
            await _send(stream, http, 200, page, ("Content-Type", CONTENT_TYPE_LATEST))


async def _send(
    stream: trio.SocketStream,
    http: h11.Connection,
    status: int,
    body: bytes,
    *headers: tuple[str, str],
) -> None:
    length = ("Content-Length", str(len(body)))
    response = h11.Response(status_code=status, headers=[length, ("Connection", "close"), *headers])
    parts = [http.send(one) for one in (response, h11.Data(body), h11.EndOfMessage())]
    await stream.send_all(b"".join(part for part in parts if part))
