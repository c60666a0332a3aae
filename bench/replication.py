"""How fast a table is read for a snapshot, and entered at a peer, without a network.

Two stores in one process: the connections of one are read in runs, as a source reads them, and
entered at the other in runs as long as those of a datagram. What encoding, sealing
and sending cost is not in it. All is processor time of this process.

Run as ``python -m bench.replication METHOD NUMBER``; writes one line of JSON.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

from bench.footprint import METHODS
from bench.handmade import SERVER, SERVER_PORTS, SERVICE_PORTS, VIRTUAL, client_of, make_director
from lvsha.connection_store import ConnectionStore
from lvsha.datapath.garbage import short_pauses
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import (
    BUCKETS,
    ConnectionRecord,
    ForwardMethod,
    Protocol,
    connection_key,
)
from lvsha.runs import Run, Runs, runs_of

SYNC_ID: Final = 51
OF_A_DATAGRAM: Final = 90
TIMEOUT: Final = 900.0
NOW: Final = 1000.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rates:
    """Records per second.

    Attributes:
        read: at their source.
        entered: at a peer that has none of them.
        repeated: at one that has all of them.
    """

    read: float
    entered: float
    repeated: float


def make_store(connections_max: int) -> ConnectionStore:
    """A store over a director that has no connections yet."""
    return ConnectionStore(make_director(connections_max), {VIRTUAL: SYNC_ID}, lambda: NOW)


def established(number: int, method: ForwardMethod) -> Iterator[ConnectionRecord]:
    """So many established connections of one virtual end and one real server."""
    ends = VIRTUAL, SERVICE_PORTS[method]
    server = SERVER, SERVER_PORTS[method]
    for index in range(number):
        key = connection_key(Protocol.TCP, *client_of(index), *ends)
        yield ConnectionRecord(key, *server, method, int(TcpState.ESTABLISHED), 0, TIMEOUT)


def in_lists(records: Iterable[ConnectionRecord]) -> Iterator[list[ConnectionRecord]]:
    """Records as they come out of datagrams."""
    gathered: list[ConnectionRecord] = []
    for record in records:
        gathered.append(record)
        if len(gathered) == OF_A_DATAGRAM:
            yield gathered
            gathered = []
    yield gathered


def measure(number: int, method: ForwardMethod = ForwardMethod.NAT) -> Rates:
    """Read so many connections at their source, enter them at a peer, and enter them again."""
    source, peer = (make_store(connections_max=2 * number) for _ in range(2))
    for records in in_lists(established(number, method)):
        source.apply(records)

    def read() -> list[Run]:
        return list(filter(None, source.records(SYNC_ID, range(BUCKETS))))

    with short_pauses():
        reading, runs = _timed(read)
        lists = [Runs(runs_of(records)) for records in in_lists(Runs(runs))]
        del runs

        def enter() -> None:
            for records in lists:
                peer.apply(records)

        entering, _ = _timed(enter)
        assert peer.tally(SYNC_ID).sums == source.tally(SYNC_ID).sums, "all were entered"
        repeating, _ = _timed(enter)
    return Rates(number / reading, number / entering, number / repeating)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    gc.collect()
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    """Measure in this process."""
    rates = measure(int(sys.argv[2]), METHODS[sys.argv[1]])
    sys.stdout.write(json.dumps(asdict(rates)) + "\n")


if __name__ == "__main__":
    main()
