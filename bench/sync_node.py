"""One end of a sync that is measured: a director and its courier, without packets of its own.

All of it is what a node runs: connections in a `Director`, a `ConnectionStore`, one
`Replica`, a `Courier` on a multicast socket, sealed. Frames do not come from a network but
from a `Crowd`. The socket keeps the buffers that the system gives to any socket.

Beside it stands what is measured: for how long one step of a task kept the others waiting
(`Steps`), and when connections arrived (`Arrivals`). Times are those of CLOCK_MONOTONIC,
which two processes of one machine share; those of the director are Trio's.
"""

import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from bench.crowd import SYNC_ID, Crowd, Kind
from bench.sync_words import Standing
from lvsha.config import Sync
from lvsha.connection_store import ConnectionStore
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ConnectionRecord, Protocol
from lvsha.sync.courier import Courier
from lvsha.sync.messages import DIGEST_BYTES
from lvsha.sync.replica import Replica
from lvsha.sync.seal import KEY_BYTES, Seal
from lvsha.sync.transport import MulticastTransport

WIRE: Final = "sync"
SERVICES: Final = 16
"""Virtual services, each with a real server of its own, that connections go round."""
LIVE: Final = 4_000_000
"""The number of the first connection that is opened while others look on."""
CONNECTIONS_MAX: Final = 8_000_000
HOUSEKEEPING: Final = 0.1
POLL: Final = 0.002
KEY: Final = bytes(range(KEY_BYTES))
READY: Final = "ready"
_LINE_BYTES_MAX: Final = 4096
_ESTABLISHED: Final = int(TcpState.ESTABLISHED)


class Steps(trio.abc.Instrument):
    """The longest step of any task, in wall time and in this thread's processor time."""

    def __init__(self) -> None:
        self._wall = self._own = 0.0
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.longest_wall = self.longest_own = 0.0

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self._wall, self._own = time.monotonic(), time.thread_time()

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self.longest_wall = max(self.longest_wall, time.monotonic() - self._wall)
        self.longest_own = max(self.longest_own, time.thread_time() - self._own)


class Arrivals(ConnectionStore):
    """A store that notes when live connections, those from a number on, were there.

    A datagram has either live changes or a part of a snapshot, so its first record tells
    which, and the others need not be looked at one by one.
    """

    first_live: bytes = b"\xff" * 4
    times: dict[bytes, float]

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        """See `ConnectionStore.apply`."""
        super().apply(records)
        first = records[0]
        if first.key[2:6] >= self.first_live and first.state == _ESTABLISHED:
            now, times = time.monotonic(), self.times
            for record in records:
                client = record.key[2:6]
                if client >= self.first_live and record.state == _ESTABLISHED:
                    times.setdefault(client, now)


class SyncNode:
    """One end.

    Attributes:
        crowd: the director, and frames for it.
        store: its connections as the sync sees them.
        replica, courier: of the only sync id.
        changed: what tells of changes, as the forwarder calls it after each frame.
    """

    def __init__(self, name: str) -> None:
        sync = Sync()
        self.crowd = Crowd(
            Kind(protocol=Protocol.TCP),
            services=SERVICES,
            reporting=ESTABLISHED,
            connections_max=CONNECTIONS_MAX,
        )
        self.director = self.crowd.director
        self.store = Arrivals(
            self.director, dict.fromkeys(self.crowd.virtual, SYNC_ID), trio.current_time
        )
        self.store.first_live = self.crowd.client(LIVE)[0]
        self.store.times = {}
        self.tally = self.store.tally(SYNC_ID)
        self.replica = Replica(
            tally=self.tally,
            node=name,
            epoch=secrets.randbits(64),
            digests={},
            configuration_digest=bytes(DIGEST_BYTES),
            heartbeat_interval=sync.heartbeat_interval,
            datagram_max=sync.datagram_max,
            proven=True,
        )
        self._transport = MulticastTransport(
            WIRE, sync.group.packed, sync.port, send_buffer_bytes=0, receive_buffer_bytes=0
        )
        seal = Seal([KEY], secrets.randbits(64))
        self.courier = Courier(
            [self.replica], self._transport, self.store, seal=seal, collect=self._collect
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        """Take part in the sync, and do what time brings, while the context lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._housekeep)
            nursery.start_soon(self._discard_events)
            await nursery.start(self.courier.run)
            yield nursery
            nursery.cancel_scope.cancel()
        self._transport.close()

    async def _housekeep(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING)
            while self.director.housekeep(trio.current_time()):
                self.tell()
                await trio.lowlevel.checkpoint()

    async def _discard_events(self) -> None:
        async for _ in self.courier.events:
            pass

    def tell(self) -> None:
        """Tell of what has changed; as the forwarder has it done after each frame."""
        if self.director.registry.untold and not self.courier.gathers:
            self._collect()

    def _collect(self) -> None:
        for sync_id, changes in self.director.registry.take_changes().items():
            self.courier.tell(sync_id, changes)

    async def tell_all(self, time_max: float) -> None:
        """Wait until all that has happened has left for the peer.

        Raises:
            trio.TooSlowError: it did not within so many seconds.
        """
        with trio.fail_after(time_max):
            while not self._has_told_all():  # noqa: ASYNC110  # nothing says when
                await trio.sleep(POLL)

    def _has_told_all(self) -> bool:
        backlog = self.courier.status()["backlog_datagrams"]
        lag = self.replica.status(trio.current_time())["lag"]
        assert isinstance(lag, dict), "the status has one"
        return not backlog and not lag["changes_queued"]

    def standing(self, steps: Steps) -> Standing:
        """How this end stands; the longest step is forgotten."""
        tally, counters = self.tally, Counter[str]()
        for part in (self.replica.counters, self.courier.counters, self.store.counters):
            counters.update(part.snapshot())
        standing = Standing(
            tally.connections,
            tally.told,
            tally.established,
            tally.total,
            dict(counters),
            steps.longest_wall,
            steps.longest_own,
        )
        steps.clear()
        return standing

    @property
    def leader(self) -> object:
        """The name of whom this node follows, if it does."""
        return self.replica.status(trio.current_time())["leader"]

    def of_peer(self, name: str) -> int:
        """A figure of the only peer."""
        peers = self.replica.status(trio.current_time())["peers"]
        assert isinstance(peers, list), "the status has a list of them"
        figure = peers[0][name]
        assert isinstance(figure, int), "what is asked for is a number"
        return figure


async def words() -> AsyncIterator[list[str]]:
    """What the course writes to this process, line by line."""
    pending = b""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for part in stream:
            *lines, pending = (pending + part).split(b"\n")
            assert len(pending) < _LINE_BYTES_MAX
            for line in lines:
                yield line.decode().split()


def say(line: str) -> None:
    """Answer the course."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
