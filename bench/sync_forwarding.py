"""What the sync takes from a director's forwarding: with it and without, in turns.

Each turn starts the director anew. First come small datagrams at a pace, while new TCP
connections are opened at another, and the datagrams that arrive are counted; then connections
as fast as they come. The pace of the datagrams is what a director without sync can carry, as
was measured before, less what the connections take: more would only have frames of handshakes
be lost. Without sync the peer does not run. Both ends of both kinds of traffic, and the peer,
share what processors the director leaves.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from bench import laboratory
from bench.carriers import Port
from bench.ends import END_TIME_MAX, End
from bench.laboratory import Plan
from bench.options import Options
from bench.programs import numbers_of, processor_time, program
from bench.sync_pair import pair
from bench.sync_results import KEPT_MIN, SyncForwarding
from lvsha.model import Protocol

PACE: Final = 2000
"""New connections a second, beside the flood."""
FLOOD: Final = Port("flood", 5012, Protocol.UDP)
CONNECTIONS: Final = Port("connections", 5013, Protocol.TCP)
FLOOD_SHARE: Final = 0.85
"""Of what a director carries that has nothing else to do."""
FLOODS: Final = 3
"""Counted in each turn: a machine that others share is not as fast in every second."""


class Forwarding:
    """One comparison.

    Args:
        plan: the addresses.
        options: what was chosen.
        note: shows a person how it goes.
        director_on, others_on: processors; anywhere, if there are none.
    """

    def __init__(
        self,
        plan: Plan,
        options: Options,
        note: Callable[[str], None],
        director_on: Collection[int],
        others_on: Collection[int],
    ) -> None:
        self._plan = plan
        self._options = options
        self._note = note
        self._director_on = director_on
        self._others_on = others_on
        self._pace = 0.0
        self._flood = SyncForwarding(f"packets, at {PACE:,} new connections a second", KEPT_MIN)
        self._connections = SyncForwarding("new connections, as many as go", None)

    async def measure(self) -> list[SyncForwarding]:
        """Take turns.

        Raises:
            HostError: a director or an end of the traffic did not do its part.
        """
        laboratory.send_replies(self._plan, "dr")
        laboratory.give_peer_its_places()
        for turn in range(self._options.repetitions):
            for synced in (False, True):
                how = "with" if synced else "without"
                self._note(f"sync: forwarding {how} it, turn {turn + 1}")
                async with pair(
                    self._plan,
                    (FLOOD, CONNECTIONS),
                    synced=synced,
                    director_on=self._director_on,
                    peer_on=self._others_on,
                ) as director:
                    if not self._pace:
                        rate, _ = await self._flooded(director, 0.0)
                        self._pace = FLOOD_SHARE * rate
                    await self._take_turn(director, synced=synced)
        laboratory.restore_virtual(self._plan)
        return [self._flood, self._connections]

    async def _take_turn(self, director: int, *, synced: bool) -> None:
        for _ in range(FLOODS):
            paced = await self._beside(director, synced=synced)
            self._flood.opened.append(paced["rate"])
            self._flood.failed += paced["failed"]
        counted = await self._opened(director, pace=0.0)
        self._connections.add(counted["rate"], counted["share"], synced=synced)
        self._connections.failed += counted["failed"]

    async def _beside(self, director: int, *, synced: bool) -> Mapping[str, float]:
        """Flood while connections are opened at a pace; what is said of these."""
        options = self._options
        # Connections are opened for a while before and behind what is counted of the flood.
        longer = 3 * options.warm_up + options.window
        paced: dict[str, float] = {}

        async def open_meanwhile() -> None:
            paced.update(await self._opened(director, pace=PACE, window=longer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_meanwhile)
            await trio.sleep(options.warm_up)
            rate, share = await self._flooded(director, self._pace)
            self._flood.add(rate, share, synced=synced)
        return paced

    async def _flooded(self, director: int, pace: float) -> tuple[float, float]:
        """Send datagrams; how many a second arrive, and the director's share of a processor."""
        end = self._end(FLOOD, pace)
        limit = END_TIME_MAX + end.warm_up + end.window
        sink_arguments = _arguments("small", "sink", end)
        source_arguments = _arguments("small", "source", end)
        async with self._traffic("server", sink_arguments) as sink:
            await numbers_of(sink, limit)
            async with self._traffic("client", source_arguments):
                await numbers_of(sink, limit)
                own_at, begin_at = processor_time(director), trio.current_time()
                counted = await numbers_of(sink, limit)
                own = processor_time(director) - own_at
        return counted["rate"], own / (trio.current_time() - begin_at)

    async def _opened(
        self, director: int, *, pace: float, window: float | None = None
    ) -> Mapping[str, float]:
        """Open connections, at a pace or as fast as it goes; what the client says."""
        end = self._end(CONNECTIONS, pace, window)
        limit = END_TIME_MAX + end.warm_up + end.window
        sink_arguments = _arguments("churn", "sink", end)
        source_arguments = _arguments("churn", "source", end)
        async with self._traffic("server", sink_arguments) as sink:
            await numbers_of(sink, limit)
            async with self._traffic("client", source_arguments) as source:
                await numbers_of(source, limit)
                own_at, begin_at = processor_time(director), trio.current_time()
                counted = await numbers_of(source, limit)
                own = processor_time(director) - own_at
        return {**counted, "share": own / (trio.current_time() - begin_at)}

    def _traffic(
        self, namespace: str, arguments: list[str]
    ) -> AbstractAsyncContextManager[trio.Process]:
        """An end of traffic, which goes first as the directors do: else they had nothing to do."""
        return program(namespace, arguments, self._others_on, goes_first=True)

    def _end(self, port: Port, pace: float = 0.0, window: float | None = None) -> End:
        options = self._options
        return End(
            self._plan.family,
            self._plan.virtual,
            port.number,
            options.warm_up,
            options.window if window is None else window,
            pace,
        )


def _arguments(module: str, side: str, end: End) -> list[str]:
    return ["-m", f"bench.{module}", side, end.encode()]
