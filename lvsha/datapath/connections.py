"""The connection table: who talks to which real server, and until when.

One table is the authority. A connection stands in it under the key of its request
direction and, with NAT, under that of its replies, so that either direction is one
dictionary look-up.

Expiry never scans the table. Connections lie in a wheel of sets, one for each second in
which one is to be looked at. A packet only moves the connection's `expires` forward; when
its second comes the wheel finds that out and puts it into a later one. Only where a state
shortens the time-out is the connection moved at once. So a packet costs one assignment,
and a connection is touched about once for each time-out that passes.

What always holds: a connection is in exactly one set of the wheel, and never in one later
than its `expires` rounded up to the next second.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Final

from lvsha.datapath.services import RealServer
from lvsha.model import ConnectionFlag, ConnectionRecord, connection_key

UNTOLD: Final = -1
"""The `told_state` of a connection that no backup knows of."""

_INACTIVE: Final = int(ConnectionFlag.INACTIVE)


class Connection:
    """One connection; only the director changes it.

    Attributes:
        key: of the request direction; ``reply_key`` is empty where replies pass elsewhere.
        server: the real server it is bound to.
        state: number in the protocol's state table.
        flags: `ConnectionFlag` bits.
        timeout: seconds that the state gives it after each packet.
        expires: when it ends, on the director's clock.
        second: the second of the wheel in which it lies; -1 outside the table.
        packets: requests seen, as the kernel's in_pkts counts them.
        report_at: when a request should next be reported to the backups.
        told_state: the state that was last reported; `UNTOLD` if none was.
        generation: of the snapshot that last confirmed it.
    """

    __slots__ = (
        "expires",
        "flags",
        "generation",
        "key",
        "packets",
        "reply_key",
        "report_at",
        "second",
        "server",
        "state",
        "timeout",
        "told_state",
    )

    def __init__(self, key: bytes, server: RealServer, flags: int, timeout: float) -> None:
        self.key = key
        self.reply_key = b""
        self.server = server
        self.state = 0
        self.flags = flags
        self.timeout = timeout
        self.expires = 0.0
        self.second = -1
        self.packets = 0
        self.report_at = 0.0
        self.told_state = UNTOLD
        self.generation = 0

    @property
    def protocol(self) -> int:
        """The transport protocol number."""
        return self.key[1]

    @property
    def client(self) -> tuple[bytes, int]:
        """Address and port of the client."""
        size = (len(self.key) - 6) // 2
        return self.key[2 : 2 + size], int.from_bytes(self.key[-4:-2])

    @property
    def virtual(self) -> tuple[bytes, int]:
        """Virtual address and port that the client talks to."""
        size = (len(self.key) - 6) // 2
        return self.key[2 + size : 2 + 2 * size], int.from_bytes(self.key[-2:])

    @property
    def active(self) -> bool:
        """Whether the real server counts it as active."""
        return not self.flags & _INACTIVE

    def record(self) -> ConnectionRecord:
        """The connection as a value for other directors."""
        client, client_port = self.client
        virtual, virtual_port = self.virtual
        return ConnectionRecord(
            protocol=self.key[1],
            client=client,
            client_port=client_port,
            virtual=virtual,
            virtual_port=virtual_port,
            server=self.server.address,
            server_port=self.server.port,
            method=self.server.method,
            state=self.state,
            flags=self.flags,
            timeout=self.timeout,
        )


def reply_key(key: bytes, server: bytes, server_port: int) -> bytes:
    """The key of what a NAT real server sends back, from that of the request."""
    size = (len(key) - 6) // 2
    client, client_port = key[2 : 2 + size], int.from_bytes(key[-4:-2])
    return connection_key(key[1], server, server_port, client, client_port)


class ConnectionTable:
    """All connections of a director.

    Args:
        limit: how many it holds; `full` tells when that is reached, and the director then
            opens no new ones.
    """

    def __init__(self, limit: int) -> None:
        self.inbound: dict[bytes, Connection] = {}
        self.outbound: dict[bytes, Connection] = {}
        self._limit = limit
        self._wheel: dict[int, set[Connection]] = {}
        self._seconds: list[int] = []

    def __len__(self) -> int:
        return len(self.inbound)

    @property
    def full(self) -> bool:
        """Whether no further connection may be added."""
        return len(self.inbound) >= self._limit

    def add(self, connection: Connection) -> None:
        """Enter a connection; its `expires` must be set."""
        assert connection.key not in self.inbound, "a key is entered once"
        self.inbound[connection.key] = connection
        if connection.reply_key:
            self.outbound[connection.reply_key] = connection
        self._arm(connection)

    def remove(self, connection: Connection) -> None:
        """Take a connection out."""
        del self.inbound[connection.key]
        if connection.reply_key and self.outbound.get(connection.reply_key) is connection:
            del self.outbound[connection.reply_key]
        self._wheel[connection.second].discard(connection)
        connection.second = -1

    def hasten(self, connection: Connection) -> None:
        """Look at a connection earlier, after its `expires` has moved back."""
        if connection.expires < connection.second - 1:
            self._wheel[connection.second].discard(connection)
            self._arm(connection)

    def expired(self, now: float, limit: int) -> Iterator[Connection]:
        """Those that have ended by ``now``, each to be removed by the caller.

        Args:
            now: the director's clock.
            limit: look at no more than so many, to bound the time that it takes; the rest
                comes with the next call.
        """
        while self._seconds and self._seconds[0] <= now:
            second = self._seconds[0]
            lying = self._wheel[second]
            while lying:
                if limit <= 0:
                    return
                limit -= 1
                connection = lying.pop()
                if connection.expires <= now:
                    lying.add(connection)
                    yield connection
                    assert connection.second == -1, "the caller removes what has expired"
                else:
                    self._arm(connection, now + connection.timeout)
            heapq.heappop(self._seconds)
            del self._wheel[second]

    @property
    def deadline(self) -> float | None:
        """When `expired` next has something to look at; None for an empty table."""
        return float(self._seconds[0]) if self._seconds else None

    def _arm(self, connection: Connection, latest: float = math.inf) -> None:
        """Put a connection into the second in which it ends, or in which it may be ``latest``.

        A copy of another director's connection ends later than its own next packet would
        have it end, so it is looked at once before.
        """
        second = int(min(connection.expires, latest)) + 1
        lying = self._wheel.get(second)
        if lying is None:
            lying = self._wheel[second] = set()
            heapq.heappush(self._seconds, second)
        lying.add(connection)
        connection.second = second
