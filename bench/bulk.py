"""One long TCP stream, as fast as it goes: bytes that arrive in a second.

Either end is a program of its own. The source sends until the sink closes the
connection; the sink counts during a window that begins some time after the first byte.
Both sides copy through large buffers and do nothing else.
"""

import socket
import sys
import time
from typing import Final

from bench.ends import END_TIME_MAX, End, describe_end, say

CHUNK_BYTES: Final = 512 * 1024


def sink(end: End) -> None:
    """Accept one connection and count what comes."""
    with socket.create_server(("", end.port), family=end.address_family) as listener:
        say({"ready": 1})
        listener.settimeout(END_TIME_MAX)
        stream, _ = listener.accept()
    with stream:
        stream.settimeout(END_TIME_MAX)
        buffer = bytearray(CHUNK_BYTES)
        begin_at = time.monotonic() + end.warm_up
        while time.monotonic() < begin_at and stream.recv_into(buffer):
            pass
        say({"begun": 1})
        total = 0
        begin_at = now = time.monotonic()
        while now < begin_at + end.window:
            received = stream.recv_into(buffer)
            if not received:
                break
            total += received
            now = time.monotonic()
    say({"rate": total / (now - begin_at)})


def source(end: End) -> None:
    """Send until the other side has had enough."""
    chunk = bytes(CHUNK_BYTES)
    with socket.create_connection((end.address, end.port), END_TIME_MAX) as stream:
        try:
            while True:
                stream.sendall(chunk)
        except ConnectionError:
            say({})


if __name__ == "__main__":
    (sink if sys.argv[1] == "sink" else source)(describe_end(sys.argv[2]))
