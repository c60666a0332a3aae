"""Write into a node's black box what its parts do.

The parts know nothing of it. State changes come from the node; what happens to addresses is
seen by standing between a speaker and them; late advertisements and pauses of the loop are
remembered where they are noticed, and put in order when somebody asks.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

import trio

from lvsha.failover.addresses import Addresses
from lvsha.failover.black_box import BlackBox, Event, Value
from lvsha.failover.election import Election
from lvsha.failover.routes import Routes
from lvsha.failover.speaker import RouterStateChanged, Speaker
from lvsha.sync.messages import Standing
from lvsha.tally import Tally
from lvsha.vigil import Vigil

_MILLISECONDS: Final = 1000


class Recorder:
    """The black box of a node, with its clocks.

    Args:
        node: its name.
    """

    def __init__(self, node: str) -> None:
        self._box = BlackBox(node)

    def note(self, kind: str, router: str = "", **fields: Value) -> None:
        """Remember something that happens now."""
        self._box.note(kind, trio.current_time(), time.time(), router, **fields)

    def changed(self, change: RouterStateChanged, election: Election) -> None:
        """Remember a change of state, and how long the peer had been silent by then."""
        fields: dict[str, Value] = {
            "old": change.old.name,
            "new": change.new.name,
            "reason": change.reason,
        }
        now, peer = trio.current_time(), election.peer
        at = now if election.since is None or election.state is not change.new else election.since
        if peer is not None:
            silent = at - peer.heard_at
            fields["peer_priority"] = peer.priority
            fields["peer_silent_ms"] = round(silent * _MILLISECONDS, 1)
            fields["advertisements_missed"] = max(0, int(silent * 100 / max(peer.interval_cs, 1)))
        self._box.note("state_changed", at, _time_of_day(at), change.router, **fields)

    def carried(
        self, router: str, tally: Tally, *, complete: bool, before: Standing | None
    ) -> None:
        """Remember what a new master goes on with, and what the one before had said last."""
        said: dict[str, Value] = {}
        if before is not None:
            said = {"master_established": before.established, "master_untold": before.exposed}
        self.note(
            "connections_carried",
            router,
            connections=tally.connections,
            established=tally.established,
            copy_complete=complete,
            **said,
        )

    def told(self, router: str, tally: Tally) -> None:
        """Remember what a master has told when it gives way."""
        self.note(
            "connections_told",
            router,
            connections=tally.connections,
            established=tally.established,
            untold=tally.exposed,
        )

    def addresses(self, router: str, inner: Addresses) -> Addresses:
        """Addresses of which every coming and going is remembered."""
        return _RecordedAddresses(self, router, inner)

    def routes(self, router: str, inner: Routes) -> Routes:
        """Routes and rules of which every coming and going is remembered."""
        return _RecordedRoutes(self, router, inner)

    def export(self, speakers: Iterable[Speaker], vigil: Vigil) -> dict[str, object]:
        """All that is remembered, as JSON values."""
        return self._box.export([*_late(speakers), *_pauses(vigil)])


class _RecordedAddresses:
    """See `lvsha.failover.addresses.Addresses`."""

    def __init__(self, recorder: Recorder, router: str, inner: Addresses) -> None:
        self.counters = inner.counters
        self._recorder = recorder
        self._router = router
        self._inner = inner

    async def prepare(self) -> None:
        await self._inner.prepare()

    async def acquire(self) -> bool:
        return await self._do("addresses_acquired", self._inner.acquire)

    async def release(self) -> bool:
        return await self._do("addresses_released", self._inner.release)

    async def refresh(self) -> bool:
        """Every second: of these only what is refused is worth a place."""
        done = await self._inner.refresh()
        if not done:
            self._recorder.note("addresses_not_refreshed", self._router)
        return done

    async def announce(self) -> bool:
        return await self._do("addresses_announced", self._inner.announce)

    async def _do(self, kind: str, operation: Callable[[], Awaitable[bool]]) -> bool:
        began_at = trio.current_time()
        done = await operation()
        took = trio.current_time() - began_at
        self._recorder.note(kind, self._router, done=done, took_ms=round(took * _MILLISECONDS, 1))
        return done


class _RecordedRoutes:
    """See `lvsha.failover.routes.Routes`; where there are none, nothing is remembered."""

    def __init__(self, recorder: Recorder, router: str, inner: Routes) -> None:
        self._recorder = recorder
        self._router = router
        self._inner = inner
        self._whole = True

    async def install(self) -> bool:
        return await self._do("routes_installed", self._inner.install)

    async def keep(self) -> bool:
        """Every second: what counts is that some are missing, or that none is any more."""
        whole = await self._inner.keep()
        if whole != self._whole:
            self._whole = whole
            self._recorder.note("routes_kept", self._router, done=whole)
        return whole

    async def remove(self) -> bool:
        return await self._do("routes_removed", self._inner.remove)

    def status(self) -> dict[str, object]:
        return self._inner.status()

    async def _do(self, kind: str, operation: Callable[[], Awaitable[bool]]) -> bool:
        began_at = trio.current_time()
        self._whole = await operation()
        if self._inner.status()["pieces"]:
            took_ms = round((trio.current_time() - began_at) * _MILLISECONDS, 1)
            self._recorder.note(kind, self._router, done=self._whole, took_ms=took_ms)
        return self._whole


def _late(speakers: Iterable[Speaker]) -> Iterator[Event]:
    for speaker in speakers:
        for gap in speaker.election.gaps:
            fields: dict[str, Value] = {
                "after_ms": round(gap.seconds * _MILLISECONDS, 1),
                "interval_ms": round(gap.interval * _MILLISECONDS, 1),
            }
            day = _time_of_day(gap.at)
            yield Event(gap.at, day, "advertisement_late", speaker.name, fields)


def _pauses(vigil: Vigil) -> Iterator[Event]:
    for at, seconds in vigil.pauses:
        ms = round(seconds * _MILLISECONDS, 1)
        yield Event(at, _time_of_day(at), "loop_late", fields={"late_ms": ms})


def _time_of_day(at: float) -> float:
    """The time of day of a recent moment on Trio's clock."""
    return time.time() - (trio.current_time() - at)
