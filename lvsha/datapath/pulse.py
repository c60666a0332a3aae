"""Find out whether the loop that carries frames still goes round.

Whoever wants to know asks by an event descriptor that the loop waits for together with its
packet sockets, so that an answer proves the whole way: waiting, waking and handling. A loop
that has enough to do is asked for nothing in addition but to look at one descriptor more.
"""

import os

import trio


class Pulse:
    """A question that is answered by the loop that it is about."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._answered = trio.Event()

    def open(self) -> None:
        """Make the descriptor."""
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """What the loop waits for."""
        return self._descriptor

    async def beat(self) -> None:
        """Ask, and return when the loop has answered; several may ask together."""
        if self._answered.is_set():
            self._answered = trio.Event()
        os.eventfd_write(self._descriptor, 1)
        await self._answered.wait()

    def answer(self) -> None:
        """Say that the loop has had a turn since the question."""
        os.eventfd_read(self._descriptor)
        self._answered.set()

    def close(self) -> None:
        """Ask no more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
