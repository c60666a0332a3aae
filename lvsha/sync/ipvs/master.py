"""Speak about connections as the kernel's master daemon does.

`Master` turns changes of connections into messages of the kernel's sync protocol and says
when each of them is to leave. It sends nothing itself. When a connection is worth telling is
decided elsewhere; here every change that is told becomes a record. The format knows no
deletes, so the end of a connection is not spoken of.

What always holds:

* The records of one connection leave in the order in which they were told, by one port:
  which one follows from the connection's key. Between two ports there is no order.
* A record leaves at most `FLUSH_DELAY` after it was told, unless the socket takes nothing.
* Of each port at most ``queue_max`` messages wait; what does not fit is counted and lost, as
  in the kernel. Nothing is merged: each record that was told is one that leaves.

The pace is the kernel's: its thread wakes up `WAKE_DELAY` after the first full message, or
when `WAKE_MESSAGES` wait.

Times are seconds on the caller's clock, lengths are bytes.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final
from zlib import crc32

from lvsha.counters import Counters
from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionDetails, ConnectionFlag
from lvsha.sync.ipvs.actions import Send
from lvsha.sync.ipvs.messages import Buffer, ByteOrder, can_carry, emit_record

FLUSH_DELAY: Final = 2.0
"""The kernel's IPVS_SYNC_FLUSH_TIME."""
WAKE_DELAY: Final = 0.02
"""The kernel's IPVS_SYNC_SEND_DELAY."""
WAKE_MESSAGES: Final = 8
"""The kernel's IPVS_SYNC_WAKEUP_RATE."""
QUEUE_MAX: Final = 8192
"""Messages of a port that wait where ``sync_qlen_max`` is 0. The kernel's default follows
from the machine's memory, and is this with 1 GiB; it is 12 MB of messages."""

_ONE_PACKET: Final = int(ConnectionFlag.ONE_PACKET)
_NO_DETAILS: Final = ConnectionDetails()


class Master:
    """The master of one sync id.

    Args:
        sync_id: 0 to 255.
        ports: how many UDP ports the records are spread over.
        length_max: of a message.
        mark_of: tells the firewall mark of a connection by its key, 0 for none. The kernel
            tells the mark with each record, so that a backup finds the service by it.
        byte_order: that of this machine.

    Attributes:
        version: of the format; may be changed at any time (``sync_version``).
        queue_max: as the description says; may be changed at any time.
        counters: what was told and what was lost.
    """

    def __init__(
        self,
        sync_id: int,
        *,
        ports: int,
        length_max: int,
        mark_of: Callable[[bytes], int] = lambda _: 0,
        byte_order: ByteOrder = "little",
    ) -> None:
        assert 0 <= sync_id <= 255
        assert ports >= 1
        self.sync_id = sync_id
        self.version = 1
        self.queue_max = QUEUE_MAX
        self.counters = Counters()
        self._ports = [_Port(index) for index in range(ports)]
        self._length_max = length_max
        self._mark_of = mark_of
        self._byte_order = byte_order

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None while nothing waits that the socket would take."""
        times = [port.deadline for port in self._ports if not port.is_blocked]
        return min((time for time in times if time is not None), default=None)

    @property
    def waiting(self) -> int:
        """Messages in the queues of all ports."""
        return sum(port.waiting for port in self._ports)

    def tell(self, changes: Iterable[ConnectionChange], now: float) -> list[Send]:
        """Tell of changes."""
        sends: list[Send] = []
        version = self.version
        for change in changes:
            if not isinstance(change, ConnectionChanged) or change.record.flags & _ONE_PACKET:
                continue
            record = change.record
            if not can_carry(version, record):
                self.counters.add("records_not_carried")
                continue
            if mark := self._mark_of(record.key):
                details = replace(record.details or _NO_DETAILS, mark=mark)
                record = record._replace(details=details)
            port = self._ports[crc32(record.key) % len(self._ports)]
            self._add(port, emit_record(version, record, self._byte_order), now)
            if port.is_awake and not port.is_blocked:
                sends += port.drain()
        return sends

    def expire(self, now: float) -> list[Send]:
        """Send what has waited long enough."""
        sends: list[Send] = []
        for port in self._ports:
            if port.deadline is None or port.deadline > now or port.is_blocked:
                continue
            sends += port.drain()
            if port.flush_at is not None and port.flush_at <= now:
                sends.append(port.flush())
        return sends

    def refuse(self, send: Send) -> None:
        """The socket did not take this now: it is the next of its port, after others refused."""
        port = self._ports[send.port_index]
        port.is_blocked = True
        port.refused.append(send.datagram)

    def resume(self, port_index: int) -> list[Send]:
        """The socket of a port takes something again."""
        port = self._ports[port_index]
        port.is_blocked = False
        return port.drain()

    def stop(self) -> list[Send]:
        """Send at once all that waits; nothing is left then."""
        sends: list[Send] = []
        for port in self._ports:
            sends += port.drain()
            if port.flush_at is not None:
                sends.append(port.flush())
        return sends

    def _add(self, port: "_Port", record: bytes, now: float) -> None:
        self.counters.add("records")
        buffer = port.buffer
        if buffer is not None:
            if buffer.version == self.version and buffer.add(record):
                return
            if port.waiting >= self.queue_max:
                self.counters.add("messages_dropped")
                self.counters.add("records_dropped", len(buffer.records))
            else:
                port.enqueue(buffer.datagram(), now)
        port.buffer = Buffer.empty(self.version, self.sync_id, self._length_max)
        port.buffer.add(record)
        port.flush_at = now + FLUSH_DELAY


class _Port:
    """What waits to leave by one port.

    Attributes:
        buffer: the message that is being filled, with `flush_at`, when it is to leave.
        queue: full messages; the first of them has waited since `WAKE_DELAY` before `wake_at`.
        refused: messages that the socket did not take; they go before the queue.
    """

    __slots__ = ("buffer", "flush_at", "index", "is_blocked", "queue", "refused", "wake_at")

    def __init__(self, index: int) -> None:
        self.index = index
        self.buffer: Buffer | None = None
        self.flush_at: float | None = None
        self.queue: deque[bytes] = deque()
        self.refused: deque[bytes] = deque()
        self.wake_at: float | None = None
        self.is_blocked = False

    @property
    def deadline(self) -> float | None:
        if self.wake_at is None or self.flush_at is None:
            return self.wake_at if self.flush_at is None else self.flush_at
        return min(self.wake_at, self.flush_at)

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self.refused)

    @property
    def is_awake(self) -> bool:
        return len(self.queue) >= WAKE_MESSAGES

    def enqueue(self, datagram: bytes, now: float) -> None:
        if not self.queue:
            self.wake_at = now + WAKE_DELAY
        self.queue.append(datagram)

    def drain(self) -> list[Send]:
        """Take all full messages out."""
        datagrams = (*self.refused, *self.queue)
        self.refused.clear()
        self.queue.clear()
        self.wake_at = None
        return [Send(self.index, datagram) for datagram in datagrams]

    def flush(self) -> Send:
        """Take the message out that is being filled."""
        assert self.buffer is not None
        datagram = self.buffer.datagram()
        self.buffer = self.flush_at = None
        return Send(self.index, datagram)
