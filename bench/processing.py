"""What a director's decision costs: `Director.process` on prepared frames, without I/O.

The yardstick is an empty Python call in the same loop, taken in turns. What laying the
frame into the buffer costs is measured alone and taken off. All is processor time of this
process, and the least of many rounds counts: what disturbs a round only makes it longer.

Run as ``python -m bench.processing ROUNDS``; writes one line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Final

from bench.handmade import (
    SERVER,
    SERVER_PORTS,
    SERVICE_PORTS,
    VIRTUAL,
    client_of,
    make_director,
    open_connection,
    put,
    tcp_frame,
    udp_frame,
)
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.tcp_states import ACK
from lvsha.model import ForwardMethod

CALLS: Final = 10_000
NOW: Final = 1000.0
NAT, DIRECT = ForwardMethod.NAT, ForwardMethod.DIRECT_ROUTE


def prepare() -> tuple[Director, dict[str, bytes]]:
    """A director with open connections, and a frame of each kind that belongs to one."""
    director = make_director(connections_max=1000)
    frame = Frame()
    client = client_of(0)
    for method in (NAT, DIRECT):
        open_connection(director, frame, method, 0, NOW)
    frames = {
        "TCP, direct routing": tcp_frame(client, (VIRTUAL, SERVICE_PORTS[DIRECT]), ACK),
        "TCP, NAT, request": tcp_frame(client, (VIRTUAL, SERVICE_PORTS[NAT]), ACK),
        "TCP, NAT, reply": tcp_frame((SERVER, SERVER_PORTS[NAT]), client, ACK),
        "UDP, direct routing": udp_frame(client, (VIRTUAL, SERVICE_PORTS[DIRECT]), bytes(22)),
        "UDP, NAT, request": udp_frame(client, (VIRTUAL, SERVICE_PORTS[NAT]), bytes(22)),
    }
    for data in frames.values():
        assert director.process(frame, put(frame, data), NOW), "the frame is forwarded"
    return director, frames


def _empty(frame: Frame, received: int, now: float) -> None:
    """The least that a call can be."""


def _time(call: Callable[[Frame, int, float], object], frame: Frame, data: bytes) -> float:
    """Seconds for one turn of laying the frame and calling."""
    view, length = frame.view[: len(data)], len(data)
    begin_at = time.process_time()
    for _ in range(CALLS):
        view[:] = data
        call(frame, length, NOW)
    return (time.process_time() - begin_at) / CALLS


def _time_laying(frame: Frame, data: bytes) -> float:
    view = frame.view[: len(data)]
    begin_at = time.process_time()
    for _ in range(CALLS):
        view[:] = data
    return (time.process_time() - begin_at) / CALLS


def main() -> None:
    """Measure in this process."""
    rounds = int(sys.argv[1])
    director, frames = prepare()
    frame = Frame()
    laying, empty = [], []
    taken: dict[str, list[float]] = {name: [] for name in frames}
    for _ in range(rounds):
        for name, data in frames.items():
            laying.append(_time_laying(frame, data))
            empty.append(_time(_empty, frame, data))
            taken[name].append(_time(director.process, frame, data))
    laid = min(laying)
    call = min(empty) - laid
    sys.stdout.write(
        json.dumps(
            {
                "empty_call_us": call * 1e6,
                "kinds": {
                    name: {
                        "us": (min(times) - laid) * 1e6,
                        "ratio": (min(times) - laid) / call,
                    }
                    for name, times in taken.items()
                },
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
