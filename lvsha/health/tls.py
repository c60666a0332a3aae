"""TLS for probes: the standard library's, driven over a Trio stream.

Trio's own ``SSLStream`` is not used, because each one is part of a reference cycle. Python's
collector would have to find a hundred thousand such objects in ten minutes of a thousand
checks, and while a director's connection table is large it is not let look
(`lvsha.datapath.garbage`).

What a server sends decides how long TLS works on it: about a millisecond for most handshakes,
tens of them for a long chain of certificates, hundreds for a large Diffie-Hellman group. So
that is done in threads, `THREADS_MAX` at once. OpenSSL does not hold the interpreter's lock
meanwhile, and the loop goes on. When the answers of fifty servers come together, others must
have their turn in between: whoever works, or has a thread work, holds a lock before that, and
takes it in a pass of the loop of its own.

Nobody says goodbye: a probe has what it wanted, and closes. A server may close without
goodbye as well, as many do.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

READ_BYTES: Final = 16_384
"""As much as a record holds."""
THREADS_MAX: Final = 2
"""So that one server with a slow handshake does not keep the others waiting."""
LIGHT_BYTES_MAX: Final = 1_024
"""Of version 1.3, once keys are agreed on: so much takes a millisecond even if all of it asks
for new keys. A thread costs the loop 0.05 ms. Before 1.3 a server may begin a new handshake."""
OVERHEAD_BYTES_MAX: Final = 262_144
"""Of handshake, certificates and framing, beside what the caller reads."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Tls:
    """What probes share.

    Attributes:
        context: whom they trust.
        turns: who holds it may begin to work.
        threads: how many of them may work.
    """

    context: ssl.SSLContext
    turns: trio.Lock
    threads: trio.CapacityLimiter


class SecuredStream:
    """The client's side of one connection.

    Args:
        stream: below.
        tls: shared with others.
        name: of the server, for SNI and the certificate.
        bytes_max: that the caller will read.
    """

    def __init__(self, stream: trio.SocketStream, tls: Tls, name: str, bytes_max: int) -> None:
        self._stream = stream
        self._turns, self._threads = tls.turns, tls.threads
        self._agreed = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._secured = tls.context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._left = bytes_max + OVERHEAD_BYTES_MAX

    async def do_handshake(self) -> None:
        """Agree on keys, and look at the certificate.

        Raises:
            ssl.SSLError: that failed.
        """
        await self._drive(self._secured.do_handshake)
        self._agreed = True

    async def send_all(self, data: bytes) -> None:
        """Send; what is sent here is small.

        Raises:
            ssl.SSLError: the server breaks the protocol.
        """
        await self._drive(lambda: self._secured.write(data))

    async def receive_some(self, length: int) -> bytes:
        """What comes; nothing at the end.

        Raises:
            ssl.SSLError: the server breaks the protocol, or sends more than the limit.
        """
        try:
            return await self._drive(lambda: self._secured.read(length))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    @property
    def _is_light(self) -> bool:
        """Whether what is to be done now takes little time, whatever the server has sent."""
        pending = self._incoming.pending
        is_new = self._secured.version() == "TLSv1.3"
        return self._agreed and (not pending or (is_new and pending <= LIGHT_BYTES_MAX))

    async def _drive(self, work: Callable[[], _Result]) -> _Result:
        """Work until there is a result, and carry bytes to and fro meanwhile."""

        def attempt() -> list[_Result]:
            with suppress(ssl.SSLWantReadError):
                return [work()]
            return []

        while True:
            async with self._turns:
                await trio.lowlevel.checkpoint()
            if self._is_light:
                result = attempt()
            else:
                result = await trio.to_thread.run_sync(
                    attempt, abandon_on_cancel=True, limiter=self._threads
                )
            if self._outgoing.pending:
                await self._stream.send_all(self._outgoing.read())
            if result:
                return result[0]
            data = await self._stream.receive_some(READ_BYTES)
            self._left -= len(data)
            if self._left < 0:
                raise ssl.SSLError("more than the limit")
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
