"""The benches of the sync: bytes, a join, a stream of records.

The leader runs in the director's namespace and the follower in its peer's, each on a
processor of its own where there are two, and the course in a third process, idle while they
work. Each turn has a new follower: a process that has just been started. What they say is
checked before it counts: both ends have the same connections in the same states.

Every wait has a limit. Times are seconds.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from bench.options import Options
from bench.programs import line_of, processor_time, program, tell
from bench.sync_results import Delays, SyncBytes, SyncJoin, SyncRecords, delays_of
from bench.sync_words import (
    Joined,
    Settled,
    Told,
    read_carried,
    read_joined,
    read_settled,
    read_told,
)
from lvsha.errors import HostError
from lvsha.sync.overlap import OVERLAP

SERVERS: Final = (1, 3, 16, 250)
LIVE_RATE: Final = 2000
"""New connections a second while a follower joins."""
BEFORE: Final = 0.5
AFTER: Final = 0.5
"""For how long there are such before the join and behind it."""
RATES: Final = (50_000, 75_000, 100_000, 150_000, 200_000, 300_000)
RECORDS_FILL: Final = 10_000
SAY_TIME_MAX: Final = 60.0
FILL_TIME_MAX: Final = 600.0


class SyncCourse:
    """Measures with two ends.

    Args:
        options: what was chosen.
        note: shows a person how it goes.
        leader_on, follower_on: processors of the ends; anywhere, if there are none.
    """

    def __init__(
        self,
        options: Options,
        note: Callable[[str], None],
        leader_on: Sequence[int],
        follower_on: Sequence[int],
    ) -> None:
        self._options = options
        self._note = note
        self._leader_on = leader_on
        self._follower_on = follower_on

    async def measure_joins(self, connections: int) -> list[SyncJoin]:
        """Followers that join a leader with so many connections, one after the other."""
        self._note(f"sync: {connections:,} connections are opened")
        arguments = ["-m", "bench.sync_leader", str(connections)]
        joins = []
        async with _end("director", arguments, self._leader_on) as leader:
            await line_of(leader, FILL_TIME_MAX)
            for turn in range(self._options.joins):
                self._note(f"sync: turn {turn + 1}, a peer joins {connections:,} connections")
                joins.append(await self._join(leader, connections))
        return joins

    async def _join(self, leader: trio.Process, connections: int) -> SyncJoin:
        arguments = ["-m", "bench.sync_follower"]
        async with _end("peer", arguments, self._follower_on) as follower:
            await line_of(follower, SAY_TIME_MAX)
            await tell(leader, "quiet")
            await line_of(leader, SAY_TIME_MAX)
            await tell(leader, f"load {LIVE_RATE}")
            await trio.sleep(BEFORE)
            own_at = processor_time(leader.pid)
            await tell(follower, f"join {connections}")
            try:
                joined = read_joined(await line_of(follower, SAY_TIME_MAX))
            except HostError:
                await tell(leader, "quiet")
                await line_of(leader, 5)
                raise
            own = processor_time(leader.pid) - own_at
            await trio.sleep(AFTER)
            told, settled = await _quiet(leader, follower)
        return SyncJoin(
            connections,
            joined.complete_at - joined.joined_at,
            joined.usable_at - joined.joined_at,
            joined.own,
            own,
            settled.standing.blocked_own,
            told.standing.blocked_own,
            _delays(told, settled, joined),
            settled.lost,
            settled.repaired,
        )

    async def measure_records(self) -> list[SyncRecords]:
        """Rates of records, from the least on until one is not sustained."""
        self._note("sync: a leader and a follower for records")
        arguments = ["-m", "bench.sync_leader", str(RECORDS_FILL)]
        measured: list[SyncRecords] = []
        async with (
            _end("director", arguments, self._leader_on) as leader,
            _end("peer", ["-m", "bench.sync_follower"], self._follower_on) as peer,
        ):
            await line_of(leader, FILL_TIME_MAX)
            await line_of(peer, SAY_TIME_MAX)
            await tell(peer, f"join {RECORDS_FILL}")
            await line_of(peer, SAY_TIME_MAX)
            # What a leader tells in its first seconds leaves in haste, see lvsha.sync.overlap.
            await trio.sleep(OVERLAP)
            await _quiet(leader, peer)
            for rate in RATES:
                self._note(f"sync: {rate:,} records a second")
                measured.append(await self._carry(leader, peer, rate))
                if not measured[-1].is_sustained:
                    break
        return measured

    async def _carry(self, leader: trio.Process, peer: trio.Process, rate: int) -> SyncRecords:
        seconds = self._options.records_time
        before = read_standings(await _quiet(leader, peer))
        own_at = processor_time(peer.pid)
        await tell(leader, f"records {rate} {seconds}")
        carried = read_carried(await line_of(leader, SAY_TIME_MAX))
        own = processor_time(peer.pid) - own_at
        after = await _quiet(leader, peer)
        told, settled = after
        sent, lost, repaired = read_standings(after)
        return SyncRecords(
            rate,
            carried.records / carried.seconds,
            carried.seconds,
            carried.own / carried.seconds,
            own / carried.seconds,
            _delays(told, settled, None),
            lost - before[1],
            repaired - before[2],
            sent - before[0],
        )


def _end(
    namespace: str, arguments: Sequence[str], processors: Sequence[int]
) -> AbstractAsyncContextManager[trio.Process]:
    """One end, which goes first: what two ends do in turns must not wait for others."""
    return program(namespace, arguments, processors, listens=True, goes_first=True)


def read_standings(ends: tuple[Told, Settled]) -> tuple[int, int, int]:
    """Datagrams that the leader has sent, and those lost and repaired."""
    told, settled = ends
    return told.standing.counters.get("datagrams_sent", 0), settled.lost, settled.repaired


async def _quiet(leader: trio.Process, follower: trio.Process) -> tuple[Told, Settled]:
    """Let the leader tell no more, and the follower take everything in.

    Raises:
        HostError: they do not agree.
    """
    await tell(leader, "quiet")
    told = read_told(await line_of(leader, SAY_TIME_MAX))
    await tell(follower, f"settle {told.sequence}")
    settled = read_settled(await line_of(follower, SAY_TIME_MAX))
    if not told.standing.agrees(settled.standing):
        raise HostError(f"the ends do not agree: {told.standing} and {settled.standing}")
    return told, settled


def _delays(told: Told, settled: Settled, joined: Joined | None) -> Delays:
    """Of what was told while the follower followed and was not complete yet."""
    arrived = dict(settled.arrivals)
    told_at = dict(told.told)
    if joined is None:
        # Only the first of each datagram was looked at.
        counted = arrived.keys() & told_at.keys()
    else:
        meanwhile = (joined.followed_at, joined.complete_at)
        counted = {n for n, at in told_at.items() if meanwhile[0] <= at <= meanwhile[1]}
        if not counted <= arrived.keys():
            raise HostError("something was told and never seen to arrive")
    if not counted:
        raise HostError("nothing was told that could be timed")
    return delays_of([arrived[number] - told_at[number] for number in counted])


def bytes_of(text: str) -> list[SyncBytes]:
    """What `bench.sync_bytes` wrote."""
    return [SyncBytes(**values) for values in json.loads(text)]
