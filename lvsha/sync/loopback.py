"""A sync group in memory: transports that hear each other within one process.

For tests and rehearsals. It keeps what the real group keeps: datagrams are whole, a sender
does not hear itself, nothing blocks, and a receiver that does not read loses what does not
fit. Faults are switched on by setting attributes; nothing happens at random.
"""

from collections import deque
from typing import Final

import trio

# As many of the usual size as a real socket's buffer holds.
WAITING_MAX: Final = 2048


class LoopbackGroup:
    """What connects the transports."""

    def __init__(self) -> None:
        self.members: list[LoopbackTransport] = []

    def join(self) -> "LoopbackTransport":
        """A new member."""
        member = LoopbackTransport(self)
        self.members.append(member)
        return member


class LoopbackTransport:
    """A member of a group; see `lvsha.sync.transport.Transport`.

    Attributes:
        error: raised by every `send` while it is set.
        is_blocked: whether `send` would block; set it with `block` and `unblock`.
        refreshes: how often `refresh` was called.
    """

    def __init__(self, group: LoopbackGroup) -> None:
        self._group = group
        self._waiting: deque[bytes] = deque()
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._writable.set()
        self.error: OSError | None = None
        self.refreshes = 0

    @property
    def is_blocked(self) -> bool:
        """Whether `send` would block."""
        return not self._writable.is_set()

    def close(self) -> None:
        """Leave the group."""
        if self in self._group.members:
            self._group.members.remove(self)

    def block(self) -> None:
        """From now on `send` would block."""
        self._writable = trio.Event()

    def unblock(self) -> None:
        """`send` works again."""
        self._writable.set()

    def deliver(self, datagram: bytes) -> None:
        """A datagram has come."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(datagram)
            self._readable.set()

    def send(self, datagram: bytes) -> bool:
        """See `Transport.send`."""
        if self.error is not None:
            raise self.error
        if self.is_blocked:
            return False
        for member in self._group.members:
            if member is not self:
                member.deliver(datagram)
        return True

    def receive(self) -> bytes | None:
        """See `Transport.receive`."""
        if not self._waiting:
            return None
        datagram = self._waiting.popleft()
        if not self._waiting:
            self._readable = trio.Event()
        return datagram

    async def wait_readable(self) -> None:
        """See `Transport.wait_readable`."""
        await self._readable.wait()

    async def wait_writable(self) -> None:
        """See `Transport.wait_writable`."""
        await self._writable.wait()

    def refresh(self) -> None:
        """See `Transport.refresh`."""
        self.refreshes += 1
