"""The other nodes of one sync id: who they are, what they are, and which one leads.

Epochs are random, so which of two is the newer one shows only by which came first. A peer's
epoch that was replaced is refused while its successor is heard. Should the successor fall
silent, the old one may come back: else a late datagram of a dead process, heard by a node
that has itself just started, would shut out the living one for ever.

On a sealed wire that is not enough: whoever has recorded datagrams may send those of an
epoch that this node never heard. So there an epoch is believed only once a heartbeat of it
has named this node's own epoch among those that it hears. A recording cannot: this node's
epoch is a random number that did not exist then. Each heartbeat names what it hears, also
what is not believed yet, so that two nodes believe each other after a heartbeat or two.

A peer leads if it says so and is not silent; of several the one with the highest term. Each
node that begins to lead takes a term above all it has heard, so the newest leader wins, and
two nodes that do not hear each other are told apart by their epochs and names, alike
everywhere.

Times are seconds on a monotonic clock.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from lvsha.counters import Counters
from lvsha.sync.actions import Action, PeerChanged
from lvsha.sync.messages import HEARD_MAX, Duty, Heartbeat, Message, PeerState, Role, Standing
from lvsha.sync.stream import Stream

# A pair file has at most 16 nodes.
PEERS_MAX: Final = 16
# A silent peer's place is given to a new one after this.
PEER_FORGOTTEN: Final = 60.0
EPOCHS_REMEMBERED: Final = 16
# A listener that is sent a snapshot tells its progress every few datagrams; who has told
# nothing for so long is not waited for.
PROGRESS_PATIENCE: Final = 0.3
ALARM_INTERVAL: Final = 10.0
# No pair sees so many takeovers; a false term near the end of its range must not leave the
# next leader without one above it.
TERM_JUMP_MAX: Final = 1_000_000


def silence_limit(heartbeat_interval: float) -> float:
    """After how long without a datagram a peer counts as silent.

    Three heartbeats may be lost, as VRRP allows three advertisements; half a second more
    lets a machine that has just joined the group be admitted by a snooping switch, and a
    peer's loop be late.
    """
    return 3 * heartbeat_interval + 0.5


@dataclass(slots=True)
class Peer:
    """Another node, as its datagrams show it.

    Attributes:
        level: what it understands; 0 until a heartbeat has said.
        speaks: the level that it keeps to.
        acknowledged: the number of this node up to which it has told its progress, at
            ``acknowledged_at``; None until it has.
        duty: what it is for its virtual router, as it said at ``duty_at``; None if it does not.
    """

    node: str
    epoch: int
    heard: float
    stream: Stream
    retired: deque[int] = field(default_factory=lambda: deque(maxlen=EPOCHS_REMEMBERED))
    role: Role = Role.FOLLOW
    term: int = 0
    state: PeerState = PeerState.PROBE
    silent: bool = False
    level: int = 0
    speaks: int = 0
    connections: int = 0
    leader: str = ""
    position: int = 0
    complete: bool = False
    standing: Standing = field(default_factory=Standing)
    acknowledged: int | None = None
    acknowledged_at: float = float("-inf")
    duty: Duty | None = None
    duty_at: float = float("-inf")
    overlap_since: float = float("-inf")
    overlap_last: float = float("-inf")
    alarm_at: float = float("-inf")

    @property
    def leads(self) -> bool:
        """Whether it says that it leads, and is heard."""
        return self.role is Role.LEAD and not self.silent


@dataclass(frozen=True, slots=True)
class Hearing:
    """What a datagram has shown of its sender.

    Attributes:
        peer: the sender.
        replaced: the same node's process before, if this is the first of a new one.
        is_new_role: it has another role or term than before.
    """

    peer: Peer
    replaced: Peer | None = None
    is_new_role: bool = False


class Peers:
    """All that are known.

    Args:
        epoch: this node's own.
        heartbeat_interval: seconds.
        proven: whether an epoch must have named ours before it is believed.
        counters: for what is refused.

    Attributes:
        silence: see `silence_limit`.
    """

    def __init__(
        self, epoch: int, heartbeat_interval: float, *, proven: bool, counters: Counters
    ) -> None:
        self._epoch = epoch
        self._heartbeat_interval = heartbeat_interval
        self.silence = silence_limit(heartbeat_interval)
        self._proven = proven
        self._counters = counters
        self._known: dict[str, Peer] = {}
        self._strangers: dict[int, float] = {}
        self._stranger_heard = False

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._known.values())

    def __contains__(self, node: str) -> bool:
        return node in self._known

    def get(self, node: str) -> Peer | None:
        """The peer with this name."""
        return self._known.get(node)

    @property
    def term(self) -> int:
        """The highest term heard."""
        return max((peer.term for peer in self), default=0)

    @property
    def deadline(self) -> float | None:
        """When the next one counts as silent."""
        times = (peer.heard + self.silence for peer in self if not peer.silent)
        return min(times, default=None)

    def best_leader(self) -> Peer | None:
        """The newest of those that lead."""
        leaders = [peer for peer in self if peer.leads]
        return max(leaders, key=lambda peer: (peer.term, peer.epoch, peer.node), default=None)

    def heard_epochs(self, now: float) -> tuple[int, ...]:
        """The epochs that a heartbeat of this node names."""
        strangers = self._strangers
        for epoch in [e for e, heard in strangers.items() if heard + self.silence <= now]:
            del strangers[epoch]
        # Peers first: however many recordings are played, they never push out who is alive.
        epochs = [*(peer.epoch for peer in self if not peer.silent), *reversed(strangers)]
        return tuple(epochs[:HEARD_MAX])

    def hear(
        self, message: Message, first: int, now: float, keep: Peer | None, actions: list[Action]
    ) -> Hearing | None:
        """Bring the sender of a message up to date; None if it must not be believed.

        Args:
            message: what it has sent.
            first: the first number of its stream, should it be new.
            now: the clock.
            keep: whose place is not given away.
            actions: where what has changed is added.
        """
        origin = message.origin
        if origin.term > TERM_JUMP_MAX and origin.term > self.term + TERM_JUMP_MAX:
            self._counters.add("refused_term")
            return None
        peer, replaced = self._known.get(origin.node), None
        if peer is None or peer.epoch != origin.epoch:
            if not self._believes(message, now):
                return None
            if peer is None:
                peer = self._admit(origin.node, origin.epoch, first, now, keep, actions)
            else:
                replaced = peer
                peer = self._succeed(peer, origin.epoch, first, now, actions)
            if peer is None:
                return None
        peer.heard = now
        if peer.silent:
            peer.silent = False
            actions.append(PeerChanged(peer.node, peer.state, "heard again"))
        is_new_role = (origin.term, origin.role) > (peer.term, peer.role)
        if is_new_role:
            peer.term, peer.role = origin.term, origin.role
        return Hearing(peer, replaced, is_new_role)

    def take_stranger(self) -> bool:
        """Whether somebody was heard since the last call who is not believed yet.

        A heartbeat would help.
        """
        heard, self._stranger_heard = self._stranger_heard, False
        return heard

    def expire(self, now: float, actions: list[Action]) -> None:
        """Note who has fallen silent."""
        for peer in self:
            if not peer.silent and now >= peer.heard + self.silence:
                peer.silent = True
                actions.append(PeerChanged(peer.node, peer.state, "silent"))

    def weakest(self, level: int, now: float) -> tuple[int, int | None]:
        """What all who listen understand, and how far the slowest of them says to be.

        Args:
            level: what this node understands.
            now: the clock.

        Returns:
            The level; and a number, or None if nobody who needs anything has told one lately.
        """
        listening = [peer for peer in self if not peer.silent]
        levels = (peer.level or level for peer in listening)
        told = [
            peer.acknowledged
            for peer in listening
            if peer.acknowledged is not None
            and peer.state is not PeerState.REPLICATE
            and now < peer.acknowledged_at + PROGRESS_PATIENCE
        ]
        return min(level, min(levels, default=level)), min(told, default=None)

    def leads_too_long(self, peer: Peer, now: float) -> bool:
        """Whether it is an alarm that a second leader is heard, too.

        A change of roles makes two leaders for a moment; that is none.
        """
        if now - peer.overlap_last > self.silence:
            peer.overlap_since = now
        peer.overlap_last = now
        if now - peer.overlap_since < self._heartbeat_interval or now < peer.alarm_at:
            return False
        peer.alarm_at = now + ALARM_INTERVAL
        return True

    def _believes(self, message: Message, now: float) -> bool:
        """Whether an epoch that is new here is that of a living process."""
        if not self._proven:
            return True
        epoch = message.origin.epoch
        if isinstance(message, Heartbeat) and self._epoch in message.heard:
            self._strangers.pop(epoch, None)
            return True
        self._counters.add("refused_unproven")
        # Named again as the newest; the oldest goes.
        self._stranger_heard |= self._strangers.pop(epoch, None) is None
        self._strangers[epoch] = now
        if len(self._strangers) > HEARD_MAX:
            del self._strangers[next(iter(self._strangers))]
        return False

    def _admit(
        self,
        node: str,
        epoch: int,
        first: int,
        now: float,
        keep: Peer | None,
        actions: list[Action],
    ) -> Peer | None:
        if len(self._known) >= PEERS_MAX:
            oldest = min(self, key=lambda peer: peer.heard)
            if now - oldest.heard < PEER_FORGOTTEN or oldest is keep:
                self._counters.add("refused_too_many_peers")
                return None
            del self._known[oldest.node]
        peer = self._known[node] = Peer(node, epoch, now, Stream(first))
        actions.append(PeerChanged(node, peer.state, "heard"))
        return peer

    def _succeed(
        self, peer: Peer, epoch: int, first: int, now: float, actions: list[Action]
    ) -> Peer | None:
        """A peer's process is another one than before: nothing of the old one holds."""
        if epoch in peer.retired:
            if now < peer.heard + self.silence:
                self._counters.add("refused_old_epoch")
                return None
            peer.retired.remove(epoch)
        peer.retired.append(peer.epoch)
        fresh = self._known[peer.node] = Peer(peer.node, epoch, now, Stream(first), peer.retired)
        self._counters.add("peer_restarts")
        actions.append(PeerChanged(peer.node, fresh.state, "restarted"))
        return fresh
