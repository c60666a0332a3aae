"""Probes over TCP: a connection alone, HTTP with or without TLS, and SMTP.

What always holds: every byte that is read counts towards a limit, so that a server that never
stops is left soon; and the connection is closed at the end without waiting for the server,
whatever has happened. The time limit is the caller's.
"""

import socket
from typing import Final

import h11
import regex
import trio

from lvsha.config_health import Check
from lvsha.health.opinions import Finding, quoted
from lvsha.health.target import Target, a_socket, connect
from lvsha.health.tls import SecuredStream, Tls
from lvsha.wire.http_lines import HeldLines, first_piece

READ_BYTES: Final = 4_096
HEAD_BYTES_MAX: Final = 16_384
"""Of status line and headers, and for provisional responses and the frames of chunks."""
EVENTS_IN_ONE_GO: Final = 64
"""Pieces of a response that are looked at before others have their turn."""
SMTP_BYTES_MAX: Final = 8_192
"""Of a greeting or an answer to EHLO; RFC 5321, section 4.5.3.1.5, has 512 for one line."""
REGEX_SECONDS_MAX: Final = 1.0
"""A search that takes longer fails; it runs in a thread and lets the loop go on."""
REGEX_THREADS_MAX: Final = 2

_GREETING: Final = 220
_OK: Final = 250


async def probe_tcp(target: Target) -> Finding:
    """Connect, and close."""
    with a_socket(target, socket.SOCK_STREAM) as opened:
        await connect(opened, target)
    return Finding(passed=True, reason="connected")


async def probe_smtp(check: Check, target: Target) -> Finding:
    """Wait for the greeting, and say EHLO."""
    with a_socket(target, socket.SOCK_STREAM) as opened:
        await connect(opened, target)
        stream = trio.SocketStream(opened)
        lines = _SmtpLines(stream)
        code, text = await lines.reply()
        if code != _GREETING:
            return Finding(passed=False, reason=f"greeted with {quoted(text)}")
        await stream.send_all(f"EHLO {check.helo}\r\n".encode("ascii"))
        code, text = await lines.reply()
        if code != _OK:
            return Finding(passed=False, reason=f"EHLO was answered with {quoted(text)}")
        await stream.send_all(b"QUIT\r\n")
    return Finding(passed=True, reason=f"greeted: {quoted(text)}")


class _SmtpLines:
    """What an SMTP server says, in replies of one or more lines."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = bytearray()

    async def reply(self) -> tuple[int, bytes]:
        """The code and the last line of a reply; code 0 if it is none of SMTP.

        Raises:
            EOFError: the server closes.
        """
        taken = 0
        while True:
            end = self._data.find(b"\n")
            if end < 0:
                if len(self._data) + taken > SMTP_BYTES_MAX:
                    return 0, b"more than a reply holds"
                part = await self._stream.receive_some(READ_BYTES)
                if not part:
                    raise EOFError
                self._data += part
                continue
            line = bytes(self._data[:end]).rstrip(b"\r")
            del self._data[: end + 1]
            taken += end + 1
            if taken > SMTP_BYTES_MAX:
                return 0, b"more than a reply holds"
            code, mark = line[:3], line[3:4]
            if not code.isdigit() or mark not in {b"", b" ", b"-"}:
                return 0, line
            if mark != b"-":
                return int(code), line


async def probe_http(check: Check, target: Target, tls: Tls | None) -> Finding:
    """Ask for a page, and look at its status and body.

    Args:
        check: what is asked and expected.
        target: whom.
        tls: for HTTPS.
    """
    with a_socket(target, socket.SOCK_STREAM) as opened:
        await connect(opened, target)
        stream = trio.SocketStream(opened)
        if tls is None:
            return await _Exchange(check, stream).run(_host(check, target))
        name = check.server_name or target.address
        secured = SecuredStream(stream, tls, name, HEAD_BYTES_MAX + check.body_max)
        await secured.do_handshake()
        return await _Exchange(check, secured).run(_host(check, target))


def _host(check: Check, target: Target) -> str:
    """The value of the Host field (RFC 9110, section 7.2)."""
    if check.host is not None:
        return check.host
    address = f"[{target.address}]" if target.family == socket.AF_INET6 else target.address
    default = 443 if check.type == "https" else 80
    return address if target.port == default else f"{address}:{target.port}"


class _Exchange:
    """One request and its response, which is read as far as it matters.

    Redirects are answers like any other: they are not followed.
    """

    def __init__(self, check: Check, stream: trio.SocketStream | SecuredStream) -> None:
        self._check = check
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._body = bytearray()
        self._left = HEAD_BYTES_MAX + check.body_max
        self._events = 0
        # What h11 was given last, and what it will be given.
        self._given = self._waiting = b""
        self._held = HeldLines()

    async def run(self, host: str) -> Finding:
        check = self._check
        request = h11.Request(
            method=check.method,
            target=check.path,
            headers=[
                ("Host", host), ("User-Agent", "lvsha"), ("Accept", "*/*"), ("Connection", "close")
            ],
        )  # fmt: skip
        end = h11.EndOfMessage()
        await self._stream.send_all(
            (self._http.send(request) or b"") + (self._http.send(end) or b"")
        )
        status = await self._status()
        if not check.accepts(status):
            return Finding(passed=False, reason=f"status {status}")
        if check.body is None and check.body_regex is None:
            return Finding(passed=True, reason=f"status {status}")
        reason = f"status {status}, body as expected"
        searched = 0
        while await self._read_on():
            if check.body is not None:
                wanted = check.body.encode()
                if self._body.find(wanted, searched) >= 0:
                    return Finding(passed=True, reason=reason)
                searched = max(0, len(self._body) - len(wanted) + 1)
        if check.body_regex is not None and await _matches(check.body_regex, bytes(self._body)):
            return Finding(passed=True, reason=reason)
        return Finding(
            passed=False,
            reason=f"status {status}, but the first {len(self._body)} bytes are not as expected",
        )

    async def _status(self) -> int:
        """The status of the final response."""
        while True:
            match await self._event():
                case h11.Response(status_code=status):
                    return status
                case h11.InformationalResponse():
                    continue
                case h11.ConnectionClosed():
                    raise EOFError
                case _:
                    raise h11.RemoteProtocolError("no response to the request")

    async def _read_on(self) -> bool:
        """Add a piece of the body; False at its end or at the limit."""
        left = self._check.body_max - len(self._body)
        if not left:
            return False
        event = await self._event()
        if not isinstance(event, h11.Data):
            return False
        self._body += event.data[:left]
        return True

    async def _event(self) -> object:
        """The next piece of the response.

        Raises:
            h11.RemoteProtocolError: it is none, or longer than the limit.
            WireError: it holds lines that h11 is not to look at.
        """
        while True:
            self._events += 1
            if not self._events % EVENTS_IN_ONE_GO:
                await trio.lowlevel.checkpoint()
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                self._held.clear()
                self._given = b""
                return event
            self._held.add(self._given)
            if not self._waiting:
                self._waiting = bytes(await self._stream.receive_some(READ_BYTES))
                self._left -= len(self._waiting)
                if self._left < 0:
                    raise h11.RemoteProtocolError("the response is longer than the limit")
            length = first_piece(self._waiting)
            self._given, self._waiting = self._waiting[:length], self._waiting[length:]
            self._http.receive_data(self._given)


async def _matches(pattern: str, body: bytes) -> bool:
    """Whether a regular expression is found.

    Raises:
        TimeoutError: the search took too long.
    """

    def search() -> bool:
        found = regex.search(pattern.encode(), body, timeout=REGEX_SECONDS_MAX, concurrent=True)
        return found is not None

    return await trio.to_thread.run_sync(search, abandon_on_cancel=True, limiter=_threads())


_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("regex threads")


def _threads() -> trio.CapacityLimiter:
    """Two searches at once; others wait."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(REGEX_THREADS_MAX)
        _limiter.set(limiter)
        return limiter
