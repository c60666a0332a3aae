"""Small UDP datagrams, more than can be carried: datagrams that arrive in a second.

The source sends without pause, or at a pace, over several flows, and says how many it sent, so
that a reader sees that the load was above what arrived. The sink must not take from the
director the processor time that is measured, so it reads nothing: a filter on its socket
refuses every datagram, which the kernel does only after it has found the checksum right,
and it is the kernel's counter of what it refused there that is read.
"""

import ctypes
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final

from bench.ends import END_TIME_MAX, End, describe_end, say

PAYLOAD: Final = bytes(22)
"""With UDP, IPv4 and Ethernet headers a frame of 64 bytes."""
FLOWS: Final = 64
POLL: Final = 0.01
PAUSE: Final = 0.0002
"""Between two rounds of all flows, at a pace."""
_SO_ATTACH_FILTER: Final = 26
_REFUSE: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""Classic BPF: return 0."""


def sink(end: End) -> None:
    """Count datagrams."""
    with socket.socket(end.address_family, socket.SOCK_DGRAM) as receiver:
        program = ctypes.create_string_buffer(_REFUSE)
        descriptor = struct.pack("@HP", 1, ctypes.addressof(program))
        receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
        receiver.bind(("", end.port))
        before = refused(end.family)
        say({"ready": 1})
        give_up_at = time.monotonic() + END_TIME_MAX
        while refused(end.family) == before and time.monotonic() < give_up_at:
            time.sleep(POLL)
        time.sleep(end.warm_up)
        say({"begun": 1})
        before, begin_at = refused(end.family), time.monotonic()
        time.sleep(end.window)
        after, ended_at = refused(end.family), time.monotonic()
    say({"rate": (after - before) / (ended_at - begin_at)})


def refused(family: int) -> int:
    """Datagrams with a right checksum that no socket took, in this network namespace."""
    if family == 6:
        text = Path("/proc/net/snmp6").read_text(encoding="ascii")
        counters = dict(line.split() for line in text.splitlines())
        return int(counters["Udp6InErrors"]) - int(counters["Udp6InCsumErrors"])
    text = Path("/proc/net/snmp").read_text(encoding="ascii")
    names, values = (line.split() for line in text.splitlines() if line.startswith("Udp: "))
    counters = dict(zip(names, values, strict=True))
    return int(counters["InErrors"]) - int(counters["InCsumErrors"])


def source(end: End) -> None:
    """Send for a little longer than the sink counts."""
    senders = []
    for _ in range(FLOWS):
        sender = socket.socket(end.address_family, socket.SOCK_DGRAM)
        sender.connect((end.address, end.port))
        senders.append(sender.send)
    sent, pace = 0, end.pace
    begin_at = now = time.monotonic()
    end_at = begin_at + end.warm_up + end.window + 0.3
    while now < end_at:
        if pace and sent > (now - begin_at) * pace:
            time.sleep(PAUSE)
            now = time.monotonic()
            continue
        try:
            for send in senders:
                send(PAYLOAD)
                sent += 1
        except OSError:
            pass  # a full queue, or the error of an earlier one: it was not sent
        now = time.monotonic()
    say({"offered": sent / (now - begin_at)})


if __name__ == "__main__":
    (sink if sys.argv[1] == "sink" else source)(describe_end(sys.argv[2]))
