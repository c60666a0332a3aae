"""See a takeover through: until frames arrive, and against others who announce the addresses.

One of these for each virtual router. Whether frames arrive is read from the counters of its
services, which the director keeps anyway; a service by firewall mark has no address and tells
nothing. What is to be done says `lvsha.failover.verification`; here it is carried out, written
into the black box and logged.
"""

import math
from collections.abc import Collection, Sequence
from typing import Final, assert_never

import structlog
import trio

from lvsha.datapath.director import Director
from lvsha.failover.rivals import RivalListener
from lvsha.failover.speaker import Speaker
from lvsha.failover.verification import (
    Actions,
    AnnounceAgain,
    FirstFrame,
    NoFrame,
    RivalHeard,
    Verification,
)
from lvsha.log import LimitedLog
from lvsha.model import format_address
from lvsha.recorder import Recorder

_MILLISECONDS: Final = 1000

_log = structlog.get_logger()


class Takeover:
    """The addresses of one virtual router, while this node holds them.

    Args:
        speaker: of the virtual router, which announces them.
        addresses: they.
        director: who counts the frames for them.
        listeners: where others' announcements are heard.
        recorder: of the node.
    """

    def __init__(
        self,
        speaker: Speaker,
        addresses: Collection[bytes],
        director: Director,
        listeners: Sequence[RivalListener],
        recorder: Recorder,
    ) -> None:
        self._speaker = speaker
        self._addresses = frozenset(addresses)
        self._director = director
        self._listeners = listeners
        self._recorder = recorder
        self._verification = Verification()
        self._changed = trio.Event()
        self._limited = LimitedLog(_log)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._listen, listener)
            while True:
                deadline = self._verification.deadline
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._changed.wait()
                self._changed = trio.Event()
                if self._verification.deadline is not None:
                    self._perform(self._verification.look(self._frames(), trio.current_time()))

    def begin(self) -> None:
        """This node has become MASTER."""
        self._verification.begin(self._frames(), trio.current_time())
        self._changed.set()

    def end(self) -> None:
        """This node has left MASTER."""
        self._verification.end()

    def status(self) -> dict[str, object]:
        """What an operator may want to know, as JSON values."""
        heard: dict[str, int] = {}
        for listener in self._listeners:
            for name, number in listener.counters.snapshot().items():
                heard[name] = heard.get(name, 0) + number
        return {
            "frames": self._verification.arrival.value,
            "counters": {**self._verification.counters.snapshot(), **heard},
        }

    async def _listen(self, listener: RivalListener) -> None:
        while True:
            rival = await listener.rival()
            if rival is not None:
                self._verification.claimed(rival.address, rival.mac, trio.current_time())
                self._changed.set()

    def _frames(self) -> int | None:
        """How many frames of clients were counted; None if nothing at the addresses counts."""
        services = [s for s in self._director.services if s.address in self._addresses]
        if not services:
            return None
        return sum(service.all_counted().in_packets for service in services)

    def _perform(self, actions: Actions) -> None:
        router = self._speaker.name
        for action in actions:
            match action:
                case AnnounceAgain(reason):
                    self._recorder.note("announcing_again", router, reason=reason)
                    self._speaker.announce()
                case FirstFrame(after):
                    after_ms = round(after * _MILLISECONDS, 1)
                    self._recorder.note("first_frame", router, after_ms=after_ms)
                case NoFrame(after):
                    self._recorder.note("no_frame", router)
                    _log.warning(
                        "no frame for the addresses has come since the takeover",
                        router=router,
                        seconds=round(after),
                    )
                case RivalHeard(address, mac):
                    said = {"address": format_address(address), "mac": mac.hex(":")}
                    self._recorder.note("rival_announced", router, **said)
                    self._limited.warning(
                        "another has announced an address that is held here",
                        trio.current_time(),
                        router=router,
                        **said,
                    )
                case _:
                    assert_never(action)
