"""Let the virtual routers of a node displace a master once their copies are complete.

`lvsha.failover.readiness` decides; this asks the sync how complete the copies are, has the ways
to the clients warmed, and tells the speakers. Times are Trio's clock.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from lvsha.config import VirtualRouter
from lvsha.failover.readiness import Permission, Readiness
from lvsha.failover.speaker import Speaker
from lvsha.model import VrrpState
from lvsha.recorder import Recorder

_log = structlog.get_logger()


class Sync(Protocol):
    """What is asked of the sync."""

    def complete(self, sync_id: int) -> bool:
        """Whether this node has all that the leader of this sync id has."""
        ...


class Preemption:
    """The permissions of one node.

    Args:
        routers: all virtual routers of the pair file, by name.
        speakers: theirs on this node.
        masters: those of which this node is MASTER, as far as the sync has been told.
        together: a virtual router and all that move with it.
        sync: of this node.
        warm: asks for the neighbours on the ways to the clients.
        recorder: remembers when a copy was not waited for.
        now: the current time.
    """

    def __init__(
        self,
        routers: Mapping[str, VirtualRouter],
        speakers: Mapping[str, Speaker],
        masters: Collection[str],
        together: Callable[[str], Sequence[str]],
        sync: Sync,
        warm: Callable[[], None],
        recorder: Recorder,
        now: float,
    ) -> None:
        self._routers = routers
        self._speakers = speakers
        self._masters = masters
        self._together = together
        self._sync = sync
        self._warm = warm
        self._recorder = recorder
        self._readiness = {
            name: Readiness(routers[name].preempt_incomplete_after, now) for name in speakers
        }

    def look(self, now: float) -> None:
        """Permit what may be, and nothing else."""
        for name, readiness in self._readiness.items():
            permission = readiness.look(now, complete=self._is_complete(name))
            if permission is Permission.SOON:
                self._warm()
            may = permission in {Permission.YES, Permission.ANYWAY}
            if may == self._speakers[name].election.preemption_permitted:
                continue
            if permission is Permission.ANYWAY:
                seconds = round(readiness.waited(now), 1)
                self._recorder.note("preempts_incomplete", name, seconds=seconds)
                _log.warning("the copy stays incomplete", router=name, seconds=seconds)
            self._speakers[name].permit_preemption(may)

    def _is_complete(self, router: str) -> bool:
        """Whether this node has all connections of a virtual router and those it moves with."""
        return all(
            self._sync.complete(self._routers[one].sync_id)
            # Who leads is complete, and who has just left MASTER may lead for a moment more.
            and (one in self._masters) == (self._speakers[one].election.state is VrrpState.MASTER)
            for one in self._together(router)
        )
