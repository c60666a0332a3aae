"""Tell local readers what happens, as lines of JSON on a Unix socket.

A reader connects, gets one line that says how things are, and from then on one line for each
event. Nobody waits for a reader: each has a queue of its own, and one that reads too slowly
loses the oldest lines and is told how many (``{"event": "lost", "count": 12}``). What readers
send is read and thrown away.

The socket belongs to the director's user alone (mode 0600), or to a group as well (0660). It
stands beside the control socket; its name carries the network namespace too.
"""

import grp
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from lvsha.control import namespace_number, runtime_directory
from lvsha.counters import Counters
from lvsha.errors import HostError

LINES_MAX: Final = 256
"""Lines that wait for one reader."""
READERS_MAX: Final = 16
"""Further ones are turned away."""
SEND_SECONDS_MAX: Final = 60.0
"""A reader that takes nothing for so long is given up."""
_READ_BYTES: Final = 4096
_ACCEPT_PAUSE: Final = 0.1


class Reader:
    """The lines that wait for one reader."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._arrived = trio.Event()

    def put(self, line: bytes) -> None:
        """Append a line; the oldest goes if there are too many."""
        if len(self._lines) >= LINES_MAX:
            self._lines.popleft()
            self._lost += 1
        self._lines.append(line)
        self._arrived.set()

    async def next(self) -> bytes:
        """The oldest line, or how many were lost before it."""
        while not self._lines:
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return _line({"event": "lost", "time": time.time(), "count": lost})
        return self._lines.popleft()


class EventStream:
    """Carries events to all readers.

    Args:
        present: what a new reader is told first; JSON-able.

    Attributes:
        counters: events, readers that came, were turned away or given up.
    """

    def __init__(self, present: Callable[[], Mapping[str, object]]) -> None:
        self.counters = Counters()
        self._present = present
        self._readers: set[Reader] = set()

    def publish(self, event: str, **fields: object) -> None:
        """Tell all readers; never waits."""
        self.counters.add("events")
        if not self._readers:
            return
        line = _line({"event": event, "time": time.time(), **fields})
        for reader in self._readers:
            reader.put(line)

    def add(self) -> Reader | None:
        """A new reader; None if there are too many."""
        if len(self._readers) >= READERS_MAX:
            self.counters.add("readers_refused")
            return None
        self.counters.add("readers")
        reader = Reader()
        reader.put(_line({"event": "present", "time": time.time(), **self._present()}))
        self._readers.add(reader)
        return reader

    def remove(self, reader: Reader) -> None:
        """A reader has gone."""
        self._readers.discard(reader)

    def status(self) -> dict[str, object]:
        """For an operator, as JSON-able values."""
        return {"readers": len(self._readers), "counters": self.counters.snapshot()}


def _line(event: Mapping[str, object]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def event_socket_path() -> Path:
    """The event socket of the director in this network namespace."""
    return runtime_directory() / f"events-{namespace_number()}.sock"


class EventServer:
    """Serves an `EventStream` on the event socket.

    Args:
        stream: what is served.
        group: who may read beside the director's own user; None for nobody.
    """

    def __init__(self, stream: EventStream, group: str | None = None) -> None:
        self._stream = stream
        self._group = group

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            HostError: the socket cannot be made, or there is no such group.
        """
        path = event_socket_path()
        listener = trio.socket.from_stdlib_socket(_listener(path, self._group))
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    try:
                        client, _ = await listener.accept()
                    except OSError:
                        # Out of file descriptors, or the reader left: no reason to stop.
                        self._stream.counters.add("readers_refused")
                        await trio.sleep(_ACCEPT_PAUSE)
                        continue
                    nursery.start_soon(self._serve, client)
        finally:
            listener.close()
            _remove(path)

    async def _serve(self, client: trio.socket.SocketType) -> None:
        reader = self._stream.add()
        try:
            if reader is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notice_end, client, nursery.cancel_scope)
                stream = trio.SocketStream(client)
                while True:
                    line = await reader.next()
                    with trio.fail_after(SEND_SECONDS_MAX):
                        await stream.send_all(line)
        except* (trio.BrokenResourceError, trio.TooSlowError):
            self._stream.counters.add("readers_given_up")
        finally:
            if reader is not None:
                self._stream.remove(reader)
            client.close()

    @staticmethod
    async def _notice_end(client: trio.socket.SocketType, scope: trio.CancelScope) -> None:
        # A reset is an end as well.
        with suppress(OSError):
            while await client.recv(_READ_BYTES):
                pass
        scope.cancel()


def _listener(path: Path, group: str | None) -> socket.socket:
    """The socket; nobody but its owner can open it before its group may.

    Raises:
        HostError: it cannot be made, or there is no such group.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove(path)
        mask = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
            path.chmod(0o660)
        made.listen(READERS_MAX)
    except KeyError as error:
        made.close()
        _remove(path)
        raise HostError(f"this machine has no group {group!r}, which is to read events") from error
    except OSError as error:
        made.close()
        raise HostError(f"{path} cannot be made: {error.strerror}") from error
    return made


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
