"""Hand virtual routers over to another node, on purpose and without a loss.

The order: everything that the successor does not know is told; the successor is called over
the sync link, and takes over when it has all of it; this node goes on until it hears the
successor's advertisement, and serves frames that still come here for a while after that. At no
time nobody serves the addresses. Virtual routers of one sync id go together.

A successor must have a complete copy of the connections and the same configuration. If none
has, the handover is refused, with the reason. Forced, this node resigns with priority 0, as
any speaker of VRRP understands it: a backup then takes over after its Skew_Time (RFC 9568,
section 6.4.2), with what it has.

Afterwards this node does not displace its successor, whatever the priorities, until it was
MASTER again.

Times are seconds on Trio's clock.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Protocol

import structlog
import trio

from lvsha.config import VirtualRouter
from lvsha.errors import ConfigError, HandoverError, WireError
from lvsha.failover.election import HAND_OVER_TIME
from lvsha.tally import Tally

LEADS_TIME_MAX: Final = 0.5
"""How long it is waited for the word that the successor leads, which the receipt needs."""
CONFIRM_TIME_MAX: Final = 0.5
"""How long whoever resigns waits for the word of those that follow that they have all."""
LOOK_INTERVAL: Final = 0.002

_log = structlog.get_logger("handover")


class Sync(Protocol):
    """What a handover asks of the sync."""

    def unready(self, sync_id: int) -> dict[str, str]:
        """Of each peer, why it cannot take over without a loss; empty words if it can."""
        ...

    def coverage(self, sync_id: int) -> float | None:
        """The share of the established connections that some peer has; None if none can say."""
        ...

    def hand_over(self, sync_id: int, successor: str) -> None:
        """Call a peer to take over, when it has all that this node has; nobody, if empty."""
        ...

    def leader(self, sync_id: int) -> str | None:
        """The node that leads, if it is another one."""
        ...


class Router(Protocol):
    """What a handover asks of a virtual router of this node."""

    def hand_over(self) -> None:
        """Let a backup that was chosen displace this node."""
        ...

    def step_aside(self) -> None:
        """Resign, and displace nobody afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a handover has brought.

    Attributes:
        routers: the virtual routers that have moved.
        successor: who has them now; None if this node only resigned.
        connections: established ones that the successor was told of; without one, those that
            some peer has said it has. None if no peer can say.
        lost: the other established ones: a rule of their service says so, or there is nobody
            who has all. None if that is not known.
        taken_over_ms: from the call to the successor's first advertisement.
        gap_ms: from when this node gave the addresses up to when it heard that the successor
            serves them; frames that came here meanwhile were forwarded. None if that is not
            known.
    """

    routers: tuple[str, ...]
    successor: str | None
    connections: int | None
    lost: int | None
    taken_over_ms: float | None
    gap_ms: float | None


class Handover:
    """The handovers of one node.

    Args:
        routers: all virtual routers of the pair file, by name.
        speakers: theirs on this node.
        masters: those of which this node is MASTER; always the same object.
        sync: of this node.
        tally: what is counted of a sync id.
        begin: has the backups told all of some virtual routers that they do not know, and from
            then on each connection from its first packet on, because its replies may come to
            the successor.
        abandon: the virtual router stays after all.
        priority: of a node in a virtual router.
        together: a virtual router and all that move with it.
    """

    def __init__(
        self,
        routers: Mapping[str, VirtualRouter],
        speakers: Mapping[str, Router],
        masters: Collection[str],
        sync: Sync,
        tally: Callable[[int], Tally],
        begin: Callable[[Collection[str]], Awaitable[None]],
        abandon: Callable[[str], None],
        priority: Callable[[str, str], int],
        together: Callable[[str], Sequence[str]],
    ) -> None:
        self._routers = routers
        self._speakers = speakers
        self._masters = masters
        self._sync = sync
        self._tally = tally
        self._begin = begin
        self._abandon = abandon
        self._priority = priority
        self._together = together
        self._left = trio.Event()
        self._under_way: set[int] = set()

    def left(self) -> None:
        """A virtual router of this node is MASTER no more."""
        self._left.set()
        self._left = trio.Event()

    async def command(self, arguments: Mapping[str, object]) -> object:
        """Hand over as ``lvsha handover`` asks for it; the receipts.

        Raises:
            HandoverError: nobody can take over, or nobody did.
            ConfigError: there is no such virtual router.
            WireError: the arguments make no sense.
        """
        name, force = arguments.get("router"), arguments.get("force", False)
        if not isinstance(name, str | None) or not isinstance(force, bool):
            raise WireError("handover: expected a string 'router' and a boolean 'force'")
        if name is not None and name not in self._routers:
            known = ", ".join(self._routers)
            raise ConfigError(f"there is no virtual router {name!r}; the pair file has {known}")
        if name is not None and name not in self._masters:
            raise HandoverError(f"{name}: this node is not MASTER")
        names = sorted(self._masters) if name is None else self._masters_among(self._together(name))
        if not names:
            raise HandoverError("this node is MASTER of nothing")
        sync_ids = dict.fromkeys(self._routers[each].sync_id for each in names)
        if not force:
            # All are asked before the first is moved.
            for sync_id in sync_ids:
                self._successor(sync_id)
        # With the first of a group the others have gone, too.
        return [
            asdict(await self.hand_over(sync_id, force=force))
            for sync_id in sync_ids
            if self._names(sync_id)
        ]

    async def hand_over(self, sync_id: int, *, force: bool = False) -> Receipt:
        """Hand over all virtual routers of a sync id that this node is MASTER of.

        Raises:
            HandoverError: nobody can take over, or nobody did; then all is as before.
        """
        if sync_id in self._under_way:
            raise HandoverError(f"sync id {sync_id}: a handover is under way already")
        names = self._names(sync_id)
        if not names:
            raise HandoverError(f"sync id {sync_id}: this node is MASTER of none of its routers")
        moving = self._masters_among(
            dict.fromkeys(one for name in names for one in self._together(name))
        )
        self._under_way.add(sync_id)
        try:
            await self._begin(moving)
            if force:
                receipt = await self._resign(names, moving)
            else:
                receipt = await self._call(sync_id, names, moving)
        finally:
            self._under_way.discard(sync_id)
            for name in self._masters_among(moving):
                self._abandon(name)
        _log.info("handed over", **asdict(receipt))
        return receipt

    def _names(self, sync_id: int) -> tuple[str, ...]:
        return tuple(n for n in sorted(self._masters) if self._routers[n].sync_id == sync_id)

    def _successor(self, sync_id: int) -> str:
        """Who can take over without a loss.

        Raises:
            HandoverError: nobody can.
        """
        unready = self._sync.unready(sync_id)
        names = self._names(sync_id)
        ready = [node for node, reason in unready.items() if not reason]
        if ready:
            # Any other would be displaced by this one.
            return max(ready, key=lambda node: (self._priority(node, names[0]), node))
        reasons = "; ".join(f"{node} {reason}" for node, reason in sorted(unready.items()))
        raise HandoverError(
            f"{', '.join(names)}: {reasons or 'no other node is heard'} "
            "(--force resigns all the same)"
        )

    def _carried(self, moving: Iterable[str]) -> tuple[int, int]:
        """Established connections of virtual routers: those known elsewhere, and the others."""
        tallies = [self._tally(sync_id) for sync_id in self._sync_ids(moving)]
        exposed = sum(tally.exposed for tally in tallies)
        return sum(tally.established for tally in tallies) - exposed, exposed

    async def _resign(self, names: Sequence[str], moving: Sequence[str]) -> Receipt:
        with trio.move_on_after(CONFIRM_TIME_MAX):
            while self._awaits_word(moving):  # noqa: ASYNC110  # nobody says when
                await trio.sleep(LOOK_INTERVAL)
        confirmed = self._confirmed(moving)
        for name in names:
            self._speakers[name].step_aside()
        return Receipt(tuple(moving), None, *confirmed, None, None)

    def _sync_ids(self, routers: Iterable[str]) -> set[int]:
        return {self._routers[name].sync_id for name in routers}

    def _awaits_word(self, moving: Iterable[str]) -> bool:
        """Whether somebody follows who may have more than was heard of yet."""
        for sync_id in self._sync_ids(moving):
            tally, coverage = self._tally(sync_id), self._sync.coverage(sync_id)
            if coverage and coverage * tally.established < tally.established - tally.exposed:
                return True
        return False

    def _confirmed(self, moving: Iterable[str]) -> tuple[int | None, int | None]:
        """Established connections that some peer has said it has, and the others."""
        carried = lost = 0
        for sync_id in self._sync_ids(moving):
            established, coverage = self._tally(sync_id).established, self._sync.coverage(sync_id)
            if coverage is None:
                return None, None
            has = round(coverage * established)
            carried, lost = carried + has, lost + established - has
        return carried, lost

    async def _call(self, sync_id: int, names: Sequence[str], moving: Sequence[str]) -> Receipt:
        successor = self._successor(sync_id)
        carried, lost = self._carried(moving)
        began_at = trio.current_time()
        for name in names:
            self._speakers[name].hand_over()
        self._sync.hand_over(sync_id, successor)
        try:
            with trio.move_on_after(HAND_OVER_TIME):
                # The others of a group go in the same step, but are noticed one after the other.
                while self._masters_among(moving):
                    await self._left.wait()
        finally:
            self._sync.hand_over(sync_id, "")
        staying = self._masters_among(names)
        if staying:
            raise HandoverError(
                f"{', '.join(staying)}: {successor} was called and did not take over within "
                f"{HAND_OVER_TIME:g} s; this node is MASTER still"
            )
        left_at = trio.current_time()
        serves_at = await self._serves(sync_id, successor)
        return Receipt(
            tuple(name for name in moving if name not in self._masters),
            successor,
            carried,
            lost,
            round(1000 * (left_at - began_at), 1),
            None if serves_at is None else round(1000 * (serves_at - left_at), 1),
        )

    def _masters_among(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self._masters]

    async def _serves(self, sync_id: int, successor: str) -> float | None:
        """When it was heard that the successor leads; None if it was not in time."""
        for _ in range(round(LEADS_TIME_MAX / LOOK_INTERVAL)):
            if self._sync.leader(sync_id) == successor:
                return trio.current_time()
            await trio.sleep(LOOK_INTERVAL)
        return None
