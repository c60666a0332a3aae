"""How much memory a connection takes.

A fresh process builds a director and takes connections through their handshake, frame
by frame. The figure is what its resident memory has grown by, divided by the
connections; it includes the table, the expiry wheel and the allocator's loss. The
breakdown adds up what Python says of the sizes of the objects, each counted once however
many connections share it.

Run as ``python -m bench.footprint METHOD NUMBER``; writes one line of JSON.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Final

from bench.handmade import make_director, open_connection
from lvsha.datapath.connections import Connection
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.services import Binding
from lvsha.datapath.state_machines import StateMachine
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ForwardMethod

METHODS: Final = {"nat": ForwardMethod.NAT, "dr": ForwardMethod.DIRECT_ROUTE}
OPENING_TIME: Final = 100.0
"""Connections are opened evenly over so many seconds of the director's clock."""


def resident_bytes() -> int:
    """The memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def fill(director: Director, method: ForwardMethod, number: int) -> None:
    """Open so many connections and see that they are established."""
    frame = Frame()
    for index in range(number):
        now = OPENING_TIME * index / number
        open_connection(director, frame, method, index, now)
    established = [
        connection
        for connection in director.registry.table.connections()
        if connection.state == TcpState.ESTABLISHED and connection.active
    ]
    assert len(established) == number, "every connection is established"


def breakdown(director: Director) -> dict[str, float]:
    """Bytes for each connection, by what holds them; what is less than one is left out."""
    table = director.registry.table
    number = len(table)
    sizes = {
        "connection": sum(sys.getsizeof(c) for c in table.connections()),
        "tables": sum(sys.getsizeof(shard) for shard in (*table.inbound, *table.outbound)),
    }
    seen: set[int] = set()
    for name in Connection.__slots__:
        size = 0
        for connection in table.connections():
            value = getattr(connection, name)
            if isinstance(value, Binding | StateMachine) or id(value) in seen:
                continue
            seen.add(id(value))
            size += sys.getsizeof(value)
        sizes[name] = size
    return {name: size / number for name, size in sizes.items() if size / number >= 1}


def main() -> None:
    """Measure in this process."""
    method, number = METHODS[sys.argv[1]], int(sys.argv[2])
    director = make_director(connections_max=2 * number)
    fill(director, method, 1)
    (first,) = director.registry.table.connections()
    director.replication.forget([first.key])
    gc.collect()
    before = resident_bytes()
    fill(director, method, number)
    gc.collect()
    each = (resident_bytes() - before) / number
    parts = breakdown(director)
    parts["wheel and allocator"] = each - sum(parts.values())
    sys.stdout.write(json.dumps({"bytes": each, "breakdown": parts}) + "\n")


if __name__ == "__main__":
    main()
