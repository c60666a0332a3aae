"""How many bytes a connection takes on the sync wire.

A director with a number of real servers opens connections by their frames, and a `Source`
tells of them: all at once, as live changes in the order in which they were opened, and in a
snapshot. Every datagram is sealed and counted whole, heads and ends of snapshots included,
as the payload of UDP. No network is needed.

Run as ``python -m bench.sync_bytes CONNECTIONS SERVERS...``; writes one line of JSON.
"""

import json
import secrets
import sys
from collections.abc import Iterable
from typing import Final

from bench.crowd import SYNC_ID, Crowd, Kind
from bench.sync_node import KEY
from lvsha.config import Sync
from lvsha.connection_store import ConnectionStore
from lvsha.counters import Counters
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.model import BUCKETS, ConnectionChange, ForwardMethod
from lvsha.sync.actions import Action, ProvideSnapshot, Send
from lvsha.sync.messages import ALL_BUCKETS
from lvsha.sync.pace import Pace
from lvsha.sync.seal import Seal
from lvsha.sync.source import Source

NOW: Final = 1000.0


class Told:
    """Counts what a source sends."""

    def __init__(self) -> None:
        self._seal = Seal([KEY], secrets.randbits(64))
        self.bytes = 0
        self.datagrams = 0

    def take(self, actions: Iterable[Action]) -> list[ProvideSnapshot]:
        """Count datagrams; what is asked for beside."""
        asked = []
        for action in actions:
            if isinstance(action, Send):
                self.bytes += len(self._seal.seal(action.datagram))
                self.datagrams += 1
            elif isinstance(action, ProvideSnapshot):
                asked.append(action)
        return asked


def _source(store: ConnectionStore) -> Source:
    source = Source(
        tally=store.tally(SYNC_ID),
        node="director-east",
        epoch=2**63,
        datagram_max=Sync().datagram_max,
        pace=Pace(queue_max=10**9),
        counters=Counters(),
    )
    source.lead(1)
    return source


def measure(connections: int, servers: int) -> dict[str, float]:
    """Bytes of a connection with so many real servers."""
    # Of a record the method is a byte like any other; direct routing needs no replies.
    crowd = Crowd(
        Kind(ForwardMethod.DIRECT_ROUTE),
        servers=servers,
        reporting=ESTABLISHED,
        connections_max=2 * connections,
    )
    store = ConnectionStore(crowd.director, dict.fromkeys(crowd.virtual, SYNC_ID), lambda: NOW)
    crowd.fill(connections, lambda _: NOW)
    changes: list[ConnectionChange] = crowd.director.registry.take_changes()[SYNC_ID]
    assert len(changes) == connections, "each is told once"
    live, snapshot = Told(), Told()
    source = _source(store)
    live.take(source.tell(changes, NOW))
    live.take(source.flush(NOW))
    _read_snapshot(_source(store), store, snapshot)
    return {
        "servers": servers,
        "connections": connections,
        "live": live.bytes / connections,
        "snapshot": snapshot.bytes / connections,
    }


def _read_snapshot(source: Source, store: ConnectionStore, told: Told) -> None:
    now = NOW
    asked = told.take(source.request(ALL_BUCKETS, 0, now))
    while asked or source.deadline is not None:
        if asked:
            buckets = asked.pop().buckets
            wanted = [bucket for bucket in range(BUCKETS) if buckets >> bucket & 1]
            asked += told.take(source.snapshot(store.records(SYNC_ID, wanted), now))
        else:
            now = max(now, source.deadline or now)
            asked += told.take(source.expire(now))


def main() -> None:
    """Measure in this process."""
    connections, *servers = map(int, sys.argv[1:])
    sys.stdout.write(json.dumps([measure(connections, each) for each in servers]) + "\n")


if __name__ == "__main__":
    main()
