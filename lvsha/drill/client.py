"""The client of the drill: real sockets that use the services through the virtual address.

It is told what to do by words on its standard input, one a line, and answers with
JSON, one object a line; what it saw goes to a file at the end:

    open      open the streams and idle connections, start churn and probe
    use-idle  exchange one message on every idle connection
    finish    open nothing more, wait for what is still out, write the file, end

End of input is an order to stop at once. Every wait has a limit. Connections are
never repaired: what breaks stays broken and is recorded with its reason.

Times are seconds on the host's monotonic clock.
"""

import argparse
import errno
import json
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import chain, cycle
from pathlib import Path
from typing import Final

import trio

from lvsha.drill.recording import (
    CLOSED,
    GARBLED,
    OTHER_SERVER,
    REFUSED,
    RESET,
    TIMED_OUT,
    UNREACHABLE,
    Datagram,
    Kind,
    Load,
    LongConnection,
    ShortConnection,
    encode_load,
)

OPENING_AT_ONCE: Final = 40
"""Connections being opened at the same time; the drill measures failover, not bursts."""

STALL_MIN: Final = 0.05
STALLS_MAX: Final = 500
"""Stalls kept of one stream; later ones only lengthen a picture that is bad already."""

TICK: Final = 0.25
OPEN_TIME_MAX: Final = 8.0
IDLE_USE_SECONDS: Final = 0.5
"""In which every idle connection is used once."""
SHORT_PAYLOAD_BYTES: Final = 4000
"""More than two full segments, so that every short connection carries full-size packets."""

SHORT_HOLD: Final = (1.0, 2.0)
STREAM_PAYLOAD_BYTES: Final = 32
READ_MAX: Final = 64 * 1024
PROBE_WAITING_MAX: Final = 100_000
"""Datagrams kept for the report; at one each 5 ms, more than eight minutes."""


class _BrokenError(Exception):
    """A connection can no longer be used; the text is the reason."""


@dataclass(slots=True)
class _Line:
    """One TCP connection that exchanges lines."""

    socket: trio.socket.SocketType
    server: str = ""
    pending: bytes = b""
    sequence: int = 0

    async def exchange(self, payload_bytes: int) -> None:
        """Send one line and receive its answer.

        Raises:
            _BrokenError: the connection is of no more use.
        """
        self.sequence += 1
        text = b"%d %s" % (self.sequence, b"x" * payload_bytes)
        try:
            await _send_all(self.socket, text + b"\n")
            while b"\n" not in self.pending:
                received = await self.socket.recv(READ_MAX)
                if not received:
                    raise _BrokenError(CLOSED)
                self.pending += received
        except OSError as error:
            raise _BrokenError(_reason(error)) from error
        answer, _, self.pending = self.pending.partition(b"\n")
        name, _, echoed = answer.partition(b" ")
        if echoed != text:
            raise _BrokenError(GARBLED)
        server = name.decode("ascii", "replace")
        if self.server and server != self.server:
            raise _BrokenError(OTHER_SERVER)
        self.server = server


@dataclass(slots=True)
class _Long:
    """What is recorded of one long connection while it lives."""

    kind: Kind
    line: _Line | None = None
    opened_at: float | None = None
    server: str = ""
    answers: int = 0
    waiting_since: float | None = None
    stalls: list[tuple[float, float]] = field(default_factory=list)
    broken_at: float | None = None
    reason: str = ""

    async def exchange(self) -> None:
        """Exchange one message; a failure is recorded, not raised."""
        assert self.line is not None
        self.waiting_since = time.monotonic()
        try:
            await self.line.exchange(STREAM_PAYLOAD_BYTES)
        except _BrokenError as error:
            self.fail(str(error), time.monotonic())
            return
        now = time.monotonic()
        self.answers += 1
        if now - self.waiting_since > STALL_MIN and len(self.stalls) < STALLS_MAX:
            self.stalls.append((self.waiting_since, now))
        self.waiting_since = None

    def fail(self, reason: str, at: float) -> None:
        """Record that the connection is broken; the first reason stays."""
        if self.broken_at is None:
            self.broken_at = at
            self.reason = reason
        if self.line is not None:
            self.line.socket.close()

    def record(self) -> LongConnection:
        """The value for the report."""
        return LongConnection(
            self.kind,
            self.opened_at,
            self.server,
            self.answers,
            tuple(self.stalls),
            self.broken_at,
            self.reason,
        )


@dataclass(slots=True)
class _Flow:
    """One UDP flow: a datagram at regular times, and what came back."""

    number: int
    address: str
    sent: list[float] = field(default_factory=list)
    answers: dict[int, tuple[float, str]] = field(default_factory=dict)
    last_answer_at: float | None = None

    async def receive(self, probe: trio.socket.SocketType) -> None:
        """Note the answers, until cancelled."""
        while True:
            try:
                answer = await probe.recv(READ_MAX)
            except OSError as error:
                # An ICMP error that some packet met; the datagram counts as unanswered.
                _expect_network_error(error)
                continue
            server, _, sequence = answer.partition(b" ")
            now = time.monotonic()
            if sequence.isdigit() and int(sequence) < len(self.sent):
                self.answers.setdefault(int(sequence), (now, server.decode("ascii", "replace")))
                self.last_answer_at = now

    def datagrams(self) -> Iterator[Datagram]:
        """All that were sent."""
        for sequence, sent_at in enumerate(self.sent):
            answered_at, server = self.answers.get(sequence, (None, ""))
            yield Datagram(sent_at, answered_at, server, self.number)


@dataclass(frozen=True, slots=True)
class Demand:
    """What the client is asked to do.

    The connections use the addresses in turn, and a UDP flow goes to each.
    """

    address: tuple[str, ...]
    tcp_port: int
    udp_port: int
    streams: int
    idle: int
    churn: float
    message_interval: float
    probe_interval: float
    patience: float
    result: Path


class Client:
    """All connections of one drill."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._family = socket.AF_INET6 if ":" in demand.address[0] else socket.AF_INET
        self._addresses = cycle(demand.address)
        self._dice = random.Random(7)  # noqa: S311 - spreads load, keeps no secret
        self._long: list[_Long] = []
        self._short: list[ShortConnection] = []
        self._short_open = 0
        self._flows = [_Flow(number, address) for number, address in enumerate(demand.address)]
        self._lateness_max = 0.0
        self._finishing = False

    async def obey(self) -> None:
        """Follow the words on standard input to the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_ticks)
            async for word in _words():
                match word:
                    case "open":
                        await self._open(nursery)
                    case "use-idle":
                        await self._use_idle()
                    case "finish":
                        await self._finish()
                        break
                    case _:
                        _say({"error": f"unknown word {word!r}"})
            nursery.cancel_scope.cancel()
        if self._finishing:
            self._demand.result.write_text(encode_load(self._load()), encoding="utf-8")
            _say({"finished": True})

    async def _open(self, nursery: trio.Nursery) -> None:
        limiter = trio.CapacityLimiter(OPENING_AT_ONCE)
        self._long = [_Long("stream") for _ in range(self._demand.streams)]
        self._long += [_Long("idle") for _ in range(self._demand.idle)]
        for flow in self._flows:
            nursery.start_soon(self._probe, flow)
        async with trio.open_nursery() as opening:
            for connection in self._long:
                opening.start_soon(self._open_long, connection, limiter)
        for connection in self._long:
            if connection.kind == "stream" and connection.broken_at is None:
                nursery.start_soon(self._stream, connection)
        if self._demand.churn:
            nursery.start_soon(self._churn, nursery)
        opened = sum(connection.opened_at is not None for connection in self._long)
        _say({"opened": opened, "wanted": len(self._long)})

    async def _open_long(self, connection: _Long, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                with trio.fail_after(OPEN_TIME_MAX):
                    connection.line = await self._connect()
                    await connection.exchange()
            except trio.TooSlowError:
                connection.fail(TIMED_OUT, time.monotonic())
            except _BrokenError as error:
                connection.fail(str(error), time.monotonic())
        if connection.broken_at is None:
            assert connection.line is not None
            connection.opened_at = time.monotonic()
            connection.server = connection.line.server
            connection.stalls.clear()  # the first exchange is part of opening

    async def _connect(self) -> _Line:
        opened = trio.socket.socket(self._family, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await opened.connect((next(self._addresses), self._demand.tcp_port))
        except OSError as error:
            opened.close()
            raise _BrokenError(_reason(error)) from error
        except trio.Cancelled:
            opened.close()
            raise
        return _Line(opened)

    async def _stream(self, connection: _Long) -> None:
        interval = self._demand.message_interval
        due = trio.current_time() + self._dice.uniform(0, interval)
        while connection.broken_at is None:
            await trio.sleep_until(due)
            if self._finishing:
                return
            await connection.exchange()
            due = max(due + interval, trio.current_time())

    async def _use_idle(self) -> None:
        idle = [
            connection
            for connection in self._long
            if connection.kind == "idle" and connection.broken_at is None
        ]
        with trio.move_on_after(self._demand.patience):
            async with trio.open_nursery() as nursery:
                for connection in idle:
                    nursery.start_soon(connection.exchange)
                    # All at once would keep this process, and look like an outage of the probe.
                    await trio.sleep(IDLE_USE_SECONDS / len(idle))
        for connection in idle:
            if connection.waiting_since is not None:
                self._fall_silent(connection)
        _say({"used": len(idle)})

    async def _churn(self, nursery: trio.Nursery) -> None:
        due = trio.current_time()
        while not self._finishing:
            nursery.start_soon(self._short_life)
            due += 1 / self._demand.churn
            await trio.sleep_until(due)

    async def _short_life(self) -> None:
        """Connect, exchange, hold, exchange, close; one record whatever happens."""
        started_at = time.monotonic()
        established_at: float | None = None
        line: _Line | None = None
        reason = TIMED_OUT
        self._short_open += 1
        try:
            with trio.fail_after(self._demand.patience):
                line = await self._connect()
                await line.exchange(SHORT_PAYLOAD_BYTES)
            established_at = time.monotonic()
            await trio.sleep(self._dice.uniform(*SHORT_HOLD))
            with trio.fail_after(self._demand.patience):
                await line.exchange(SHORT_PAYLOAD_BYTES)
            reason = ""
        except _BrokenError as error:
            reason = str(error)
        except trio.TooSlowError:
            reason = TIMED_OUT
        finally:
            self._short_open -= 1
            if line is not None:
                line.socket.close()
            server = "" if line is None else line.server
            self._short.append(
                ShortConnection(started_at, established_at, time.monotonic(), server, reason)
            )

    async def _probe(self, flow: _Flow) -> None:
        probe = trio.socket.socket(self._family, socket.SOCK_DGRAM)
        with probe:
            await probe.connect((flow.address, self._demand.udp_port))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flow.receive, probe)
                due = trio.current_time()
                while len(flow.sent) < PROBE_WAITING_MAX and not self._finishing:
                    sequence = len(flow.sent)
                    flow.sent.append(time.monotonic())
                    try:
                        await probe.send(b"%d" % sequence)
                    except OSError as error:
                        _expect_network_error(error)
                    due += self._demand.probe_interval
                    late = trio.current_time() - due
                    if late > 0:
                        # A pause of this program must show as such, not as lost answers.
                        self._lateness_max = max(self._lateness_max, late)
                        due = trio.current_time()
                    await trio.sleep_until(due)

    async def _finish(self) -> None:
        """Stop opening; what waits for an answer gets ``patience`` to receive it."""
        self._finishing = True
        limit = trio.current_time() + self._demand.patience
        # Polling: the condition spans a thousand tasks and is asked for once in a drill.
        while trio.current_time() < limit and (  # noqa: ASYNC110
            self._short_open or self._streams_waiting()
        ):
            await trio.sleep(0.02)
        for connection in self._long:
            if connection.broken_at is None and connection.waiting_since is not None:
                self._fall_silent(connection)

    def _load(self) -> Load:
        return Load(
            long=tuple(connection.record() for connection in self._long),
            short=tuple(self._short),
            probe=tuple(chain.from_iterable(flow.datagrams() for flow in self._flows)),
            lateness_max=self._lateness_max,
        )

    def _fall_silent(self, connection: _Long) -> None:
        """Record a connection whose answer never came as broken when the next was due."""
        assert connection.waiting_since is not None
        connection.fail(TIMED_OUT, connection.waiting_since + self._demand.message_interval)

    def _last_answer_at(self) -> float | None:
        """Of the flow that has waited longest."""
        times = [flow.last_answer_at for flow in self._flows]
        return min((at for at in times if at is not None), default=None)

    def _streams_waiting(self) -> bool:
        return any(
            connection.waiting_since is not None and connection.broken_at is None
            for connection in self._long
        )

    async def _report_ticks(self) -> None:
        while True:
            await trio.sleep(TICK)
            kept = [connection for connection in self._long if connection.broken_at is None]
            _say(
                {
                    "tick": {
                        "streams": sum(entry.kind == "stream" for entry in kept),
                        "idle": sum(entry.kind == "idle" for entry in kept),
                        "broken": len(self._long) - len(kept),
                        "short": len(self._short),
                        "short_lost": sum(
                            entry.established_at is not None and bool(entry.reason)
                            for entry in self._short
                        ),
                        "short_open": self._short_open,
                        "answers": sum(len(flow.answers) for flow in self._flows),
                        "last_answer_at": self._last_answer_at(),
                    }
                }
            )


async def _send_all(sending: trio.socket.SocketType, content: bytes) -> None:
    while content:
        content = content[await sending.send(content) :]


_REASONS: Final = {
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.ECONNREFUSED: REFUSED,
    errno.EHOSTUNREACH: UNREACHABLE,
    errno.ENETUNREACH: UNREACHABLE,
    errno.ETIMEDOUT: TIMED_OUT,
}


def _reason(error: OSError) -> str:
    known = _REASONS.get(error.errno or 0)
    return known or (error.strerror or "unknown error").lower()


def _expect_network_error(error: OSError) -> None:
    if error.errno not in _REASONS and error.errno != errno.ENOBUFS:
        raise error


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _words() -> AsyncIterator[str]:
    """The lines of standard input, until it ends."""
    pending = b""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for received in stream:
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                yield line.decode("ascii", "replace").strip()


def main() -> None:
    """Read the arguments and obey."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, nargs="+")
    parser.add_argument("--tcp-port", type=int, required=True)
    parser.add_argument("--udp-port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--idle", type=int, required=True)
    parser.add_argument("--churn", type=float, required=True)
    parser.add_argument("--message-interval", type=float, required=True)
    parser.add_argument("--probe-interval", type=float, required=True)
    parser.add_argument("--patience", type=float, required=True)
    parser.add_argument("--result", type=Path, required=True)
    values = vars(parser.parse_args())
    demand = Demand(**values | {"address": tuple(values["address"])})
    trio.run(Client(demand).obey)


if __name__ == "__main__":
    main()
