"""Short TCP connections: opened, one byte received, closed; how many in a second.

The client keeps a number of them in flight, or begins them at a pace, and counts those that
are complete. Both
ends wait with epoll in one thread, so that either costs one core at most. The client
closes first, after it has seen the server's byte, and so the connection is remembered on
its side (TIME-WAIT), where ports are many and may be used again.
"""

import contextlib
import errno
import select
import socket
import sys
import time
from typing import Final

from bench.ends import END_TIME_MAX, End, describe_end, say

IN_FLIGHT: Final = 64
BACKLOG: Final = 1024
ATTEMPT_TIME_MAX: Final = 1.0
"""The first repetition of a SYN comes after a second; an attempt that needs one failed."""
_EVENTS: Final = 256
_PACED_WAIT: Final = 0.001


def sink(end: End) -> None:
    """Serve until killed."""
    listener = socket.create_server(
        ("", end.port), family=end.address_family, backlog=BACKLOG, reuse_port=True
    )
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    streams: dict[int, socket.socket] = {}
    say({"ready": 1})
    while True:
        for number, _ in poll.poll(END_TIME_MAX, _EVENTS):
            if number != listener.fileno():
                streams.pop(number).close()
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    stream, _ = listener.accept()
                    stream.setblocking(False)
                    with contextlib.suppress(ConnectionError):
                        stream.send(b"1")
                    streams[stream.fileno()] = stream
                    poll.register(stream, select.EPOLLIN)


class _Client:
    """Keeps connections in flight; counts those that were complete and those that failed."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, float]] = {}
        self.complete = 0
        self.failed = 0
        self._began_at = time.monotonic()
        self._begun = 0

    def run_until(self, end_at: float) -> float:
        """Go on until a time; returns when it was over."""
        while True:
            # At a pace, those that fail must not hold up the others.
            limit = max(IN_FLIGHT, int(self._end.pace * ATTEMPT_TIME_MAX))
            while len(self._open) < limit and self._is_due():
                self._begin()
            for number, _ in self._poll.poll(_PACED_WAIT if self._end.pace else 0.1, _EVENTS):
                self._finish(number)
            now = time.monotonic()
            self._give_up(now)
            if now >= end_at:
                return now

    def _is_due(self) -> bool:
        """Whether the pace has come to another connection; what is late is left out."""
        pace = self._end.pace
        if not pace:
            return True
        due = (time.monotonic() - self._began_at) * pace
        self._begun = max(self._begun, int(due - IN_FLIGHT))
        return self._begun < due

    def _begin(self) -> None:
        self._begun += 1
        stream = socket.socket(self._end.address_family, socket.SOCK_STREAM)
        stream.setblocking(False)
        outcome = stream.connect_ex((self._end.address, self._end.port))
        if outcome not in {0, errno.EINPROGRESS}:
            raise OSError(outcome, "a connection cannot even be begun")
        self._open[stream.fileno()] = (stream, time.monotonic())
        self._poll.register(stream, select.EPOLLIN)

    def _finish(self, number: int) -> None:
        stream, _ = self._open.pop(number)
        with stream:
            try:
                served = stream.recv(2) == b"1"
            except OSError:
                served = False
        if served:
            self.complete += 1
        else:
            self.failed += 1

    def _give_up(self, now: float) -> None:
        """Abandon attempts that take too long; the oldest stand first."""
        for number, (stream, began_at) in list(self._open.items()):
            if now - began_at <= ATTEMPT_TIME_MAX:
                return
            del self._open[number]
            stream.close()
            self.failed += 1


def source(end: End) -> None:
    """Open connections; count them in the window."""
    client = _Client(end)
    client.run_until(time.monotonic() + end.warm_up)
    client.complete = client.failed = 0
    say({"begun": 1})
    begin_at = time.monotonic()
    ended_at = client.run_until(begin_at + end.window)
    say({"rate": client.complete / (ended_at - begin_at), "failed": float(client.failed)})


if __name__ == "__main__":
    (sink if sys.argv[1] == "sink" else source)(describe_end(sys.argv[2]))
