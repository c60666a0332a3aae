"""The end of a sync that has the connections, and tells of them.

It opens so many connections by their frames, leads, and then does what it is told, a line
each: ``load RATE`` opens that many more each second, by their frames; ``quiet`` stops it and
says what was told and when; ``records RATE SECONDS`` tells of that many records each second,
without frames, and says how many they were; ``end`` ends it.

Half of the records of ``records`` are of connections that are new, half of those that begin
to close, and each of them ends a while later; that is told in addition. Every one is told by
itself, as it would be after the frame that brought it about. They are opened before, so that
it is the telling that is measured.

Run as ``python -m bench.sync_leader NUMBER``.
"""

import sys
import time
from collections import deque
from typing import Final

import trio

from bench.crowd import SERVICE_PORT, SYNC_ID, Crowd
from bench.sync_node import LIVE, READY, Steps, SyncNode, say, words
from bench.sync_words import Carried, Told, encode
from lvsha.datapath.connections import Connection
from lvsha.datapath.flow import Frame
from lvsha.datapath.garbage import short_pauses
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import connection_key

TICK: Final = 0.001
"""The least pause between two bursts of what is due."""
TURN: Final = 0.002
BEHIND: Final = 0.1
"""Seconds of connections that may wait to be opened."""
UNTOLD_MAX: Final = 1000
QUIET_TIME_MAX: Final = 10.0
"""For what waits to be told: a burst of ends waits for its turn longer than this end loads."""
PREPARED: Final = 60.0
"""For how long a connection of ``records`` may wait to be told of."""
LIFE: Final = 0.5
"""Seconds for which a connection of ``records`` is established, and again for its closing."""


class Leader:
    """What is told, and when."""

    def __init__(self, node: SyncNode, number: int) -> None:
        self._node = node
        self._number = number
        self._next = LIVE
        self._told: list[tuple[int, float]] = []

    def fill(self) -> None:
        """Open the connections that are there from the start."""
        director = self._node.director
        process, registry = director.process, director.registry

        def feed(frame: Frame, received: int, now: float) -> None:
            process(frame, received, now)
            if len(registry.untold) > UNTOLD_MAX:
                registry.take_changes()

        self._node.crowd.fill(self._number, lambda _: trio.current_time(), feed)
        registry.take_changes()

    def take_told(self, steps: Steps) -> Told:
        """What was told since the last call, and how this end stands."""
        told, self._told = self._told, []
        sequence = self._node.replica.status(trio.current_time())["sequence"]
        assert isinstance(sequence, int)
        return Told(self._node.standing(steps), sequence, told)

    def open(self) -> None:
        """Open a connection by its frames."""
        node, number = self._node, self._next
        crowd, process = node.crowd, node.director.process
        self._next += 1
        *before, last = crowd.handshake(number)
        for data in before:
            process(crowd.frame, crowd.lay(data), trio.current_time())
        process(crowd.frame, crowd.lay(last), trio.current_time())
        self._told.append((number, time.monotonic()))
        node.tell()

    async def load(self, rate: float) -> None:
        """Open so many connections a second, until cancelled.

        A burst ends after `TURN`, as the forwarder's do, and what could not be opened in time
        is left out, as frames are lost of which a socket has too many.
        """
        begin_at, done = trio.current_time(), 0
        while True:
            now = trio.current_time()
            due = int((now - begin_at) * rate)
            done = max(done, due - int(BEHIND * rate))
            while done < due and trio.current_time() < now + TURN:
                self.open()
                done += 1
            await trio.sleep(0 if done < due else TICK)

    async def tell_records(self, rate: float, seconds: float) -> Carried:
        """Tell of so many records a second."""
        node, registry = self._node, self._node.director.registry
        waiting = self._prepare(int(rate * seconds / 2))
        opened: deque[tuple[float, Connection]] = deque()
        closing: deque[tuple[float, Connection]] = deque()
        begin_at, own_at = trio.current_time(), time.process_time()
        records = 0
        while waiting and (now := trio.current_time()) < begin_at + seconds:
            due = int((now - begin_at) * rate)
            while waiting and records < due and trio.current_time() < now + TURN:
                number, connection = waiting.popleft()
                self._told.append((number, time.monotonic()))
                registry.enter(connection, TcpState.ESTABLISHED, now)
                node.tell()
                opened.append((now + LIFE, connection))
                records += 1
                if opened[0][0] <= now:
                    _, connection = opened.popleft()
                    registry.enter(connection, TcpState.FIN_WAIT, now)
                    node.tell()
                    closing.append((now + LIFE, connection))
                    records += 1
                if closing and closing[0][0] <= now:
                    registry.end(closing.popleft()[1])
                    node.tell()
            await trio.sleep(0 if records < due else TICK)
        taken = trio.current_time() - begin_at
        own = time.process_time() - own_at
        for _, connection in (*waiting, *opened, *closing):
            registry.end(connection)
            node.tell()
        return Carried(records, taken, own)

    def _prepare(self, count: int) -> deque[tuple[int, Connection]]:
        """Connections of which nothing was told yet, so that opening them takes no time later."""
        node, registry = self._node, self._node.director.registry
        crowd, table = node.crowd, registry.table
        # The key of a connection of each service leads to its real server.
        models = [table.find(_key(crowd, number)) for number in range(len(crowd.virtual))]
        bindings = [model.binding for model in models if model is not None]
        assert len(bindings) == len(models), "there is a connection of each service"
        first, self._next = self._next, self._next + count
        later = trio.current_time() + PREPARED
        return deque(
            (n, registry.open(_key(crowd, n), bindings[n % len(bindings)], later))
            for n in range(first, first + count)
        )


def _key(crowd: Crowd, number: int) -> bytes:
    client, port = crowd.client(number)
    virtual = crowd.virtual[number % len(crowd.virtual)]
    return connection_key(crowd.kind.protocol, client, port, virtual, SERVICE_PORT)


async def lead(number: int, steps: Steps) -> None:
    """Fill, lead, and do what is told."""
    node = SyncNode("leader")
    leader = Leader(node, number)
    leader.fill()
    async with node.running() as nursery:
        node.courier.lead(SYNC_ID)
        loading = trio.CancelScope()
        steps.clear()
        say(READY)
        async for word, *arguments in words():
            match word:
                case "load":
                    loading = trio.CancelScope()
                    nursery.start_soon(_within, loading, leader, float(arguments[0]))
                case "records":
                    say(encode(await leader.tell_records(*map(float, arguments))))
                case "quiet":
                    loading.cancel()
                    await node.tell_all(QUIET_TIME_MAX)
                    say(encode(leader.take_told(steps)))
                case "end":
                    return


async def _within(scope: trio.CancelScope, leader: Leader, rate: float) -> None:
    with scope:
        await leader.load(rate)


def main() -> None:
    """Lead in this process."""
    steps = Steps()
    with short_pauses():
        trio.run(lead, int(sys.argv[1]), steps, instruments=[steps])


if __name__ == "__main__":
    main()
