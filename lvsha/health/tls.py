"""TLS for probes: the standard library's, driven over a Trio stream.

Trio's own ``SSLStream`` is not used, because each one is part of a reference cycle. Python's
collector would have to find a hundred thousand such objects in ten minutes of a thousand
checks, and while a director's connection table is large it is not let look
(`lvsha.datapath.garbage`).

What TLS makes of a piece of a handshake takes up to some milliseconds of the processor. When
the answers of fifty servers come together, others must have their turn in between: whoever
works holds a lock, and takes it in a pass of the loop of its own.

Nobody says goodbye: a probe has what it wanted, and closes. A server may close without
goodbye as well, as many do.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

READ_BYTES: Final = 4_096
OVERHEAD_BYTES_MAX: Final = 262_144
"""Of handshake, certificates and framing, beside what the caller reads."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Tls:
    """What probes share.

    Attributes:
        context: whom they trust.
        turns: who holds it may work.
    """

    context: ssl.SSLContext
    turns: trio.Lock


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
        self._turns = tls.turns
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._secured = tls.context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._left = bytes_max + OVERHEAD_BYTES_MAX

    async def do_handshake(self) -> None:
        """Agree on keys, and look at the certificate.

        Raises:
            ssl.SSLError: that failed.
        """
        await self._drive(self._secured.do_handshake)

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

    async def _drive(self, work: Callable[[], _Result]) -> _Result:
        """Work until there is a result, and carry bytes to and fro meanwhile."""
        while True:
            async with self._turns:
                await trio.lowlevel.checkpoint()
            result: list[_Result] = []
            with suppress(ssl.SSLWantReadError):
                result.append(work())
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
