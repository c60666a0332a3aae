"""How fast connections are read for a snapshot, and entered at the peer.

Two directors in one process, and no network: one is filled as a peer would fill it, its
connections are read bucket by bucket, and entered at the other in lists as long as a
datagram's. The figures are records per second of each half, by the process's own time.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.handmade import SERVER, SERVER_PORTS, SERVICE_PORTS, VIRTUAL, client_of, make_director
from lvsha.connection_store import ConnectionStore
from lvsha.datapath.garbage import short_pauses
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import (
    BUCKETS,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    Protocol,
    connection_key,
)

SYNC_ID: Final = 51
OF_A_DATAGRAM: Final = 90
TIMEOUT: Final = 900.0
NOW: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Records per second.

    Attributes:
        entered: at a node that had none of them.
        read: at their source.
        repeated: at a node that has them all.
    """

    entered: float
    read: float
    repeated: float


def make_store(connections_max: int) -> ConnectionStore:
    """A store over a director that has nothing yet."""
    director = make_director(connections_max)
    return ConnectionStore(director, {VIRTUAL: SYNC_ID}, lambda: NOW)


def told(number: int, method: ForwardMethod) -> Iterator[list[ConnectionRecord]]:
    """So many established connections, in lists as a decoder makes them of datagrams."""
    gathered: list[ConnectionRecord] = []
    for index in range(number):
        client, port = client_of(index)
        key = connection_key(Protocol.TCP, client, port, VIRTUAL, SERVICE_PORTS[method])
        gathered.append(
            ConnectionRecord(
                key,
                SERVER,
                SERVER_PORTS[method],
                method,
                int(TcpState.ESTABLISHED),
                int(ConnectionFlag.SYNC),
                float(TIMEOUT),
            )
        )
        if len(gathered) == OF_A_DATAGRAM:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(number: int, method: ForwardMethod = ForwardMethod.NAT) -> Rates:
    """Enter so many connections, read them, and enter them again."""
    lists = list(told(number, method))
    with short_pauses():
        store = make_store(connections_max=2 * number)

        def enter() -> None:
            for records in lists:
                store.apply(records)

        def read() -> None:
            for bucket in range(BUCKETS):
                for _ in store.records(SYNC_ID, bucket):
                    pass

        entering = _timed(enter)
        assert store.tally(SYNC_ID).told == number, "all have been entered"
        return Rates(number / entering, number / _timed(read), number / _timed(enter))
