"""The receiving half of a replica: follow one leader and keep a copy of its connections.

A `Copy` knows the peers of one sync id, chooses among them the one to follow, keeps its
datagrams in order (see `lvsha.sync.stream`), and asks for a snapshot until it has all.

Whom it follows: of the peers that were heard lately and say that they lead, the one with
the highest term. Each node that begins to lead takes a term above all it has heard, so
the newest leader wins, and two nodes that do not hear each other are told apart by their
epochs and names, alike everywhere. A leader that resigned is followed until another
leads: what it still tells while it drains is wanted.

The state of the followed peer:

* PROBE: something may be missing. What comes is used, and a snapshot is asked for, at
  most once in ``REQUEST_INTERVAL``.
* SNAPSHOT: the beginning of a snapshot came. What is used from here on is confirmed. If
  any number after the beginning is lost, or the count at the end is another, it is back
  to PROBE. Numbers missing from before the beginning are given up: a record among them
  could otherwise confirm a connection whose delete is lost.
* REPLICATE: the snapshot came whole, what was not confirmed is swept, and no number was
  lost since. A lost number leads back to PROBE.

A node that drains still changes connections by itself, and tells the new leader; only when
that is over does it ask for a snapshot, so that the two agree about them as well.

Epochs are random, so which of two is the newer one shows only by which came first. A peer's
epoch that was replaced is refused while its successor is heard. Should the successor fall
silent, the old one may come back: else a late datagram of a dead process, heard by a node
that has itself just started, would shut out the living one for ever.

While this node leads it follows nobody. For ``OVERLAP`` seconds it still takes records of
the leader before it, which carries on with the packets that are on their way and drains;
but never a delete (a connection ends there because its packets now come here), and never
a connection of which this node has told itself. Two nodes that lead for longer than a
heartbeat are an alarm.

Times are seconds on a monotonic clock.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, assert_never

from lvsha.counters import Counters
from lvsha.model import ConnectionRecord
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    EndSnapshot,
    Forget,
    PeerChanged,
)
from lvsha.sync.messages import (
    Configuration,
    Heartbeat,
    Message,
    Origin,
    PeerState,
    Records,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Unknown,
)
from lvsha.sync.stream import MISSING_MAX, Admission, Stream

# How long a node that has stopped to lead still tells what happens to it.
DRAIN: Final = 2.0
# How long the next leader takes what the one before tells: the drain, and as much again
# because the two do not change roles at the same instant.
OVERLAP: Final = 2 * DRAIN
REQUEST_INTERVAL: Final = 0.25
# A snapshot that does not advance has lost its end; the source sends a part in every tick.
SNAPSHOT_STALL: Final = 2.0
# A pair file has at most 16 nodes.
PEERS_MAX: Final = 16
# A silent peer's place is given to a new one after this.
PEER_FORGOTTEN: Final = 60.0
EPOCHS_REMEMBERED: Final = 16
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


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request for a snapshot to this leader; never leaves the replica."""

    sync_id: int
    leader: str
    leader_epoch: int
    position: int


Outcome = list[Action | Ask]


@dataclass(slots=True)
class Peer:
    """Another node, as its datagrams show it."""

    node: str
    epoch: int
    heard: float
    stream: Stream
    retired: deque[int] = field(default_factory=lambda: deque(maxlen=EPOCHS_REMEMBERED))
    role: Role = Role.FOLLOW
    term: int = 0
    state: PeerState = PeerState.PROBE
    silent: bool = False
    connections: int = 0
    leader: str = ""
    position: int = 0
    complete: bool = False
    overlap_since: float = float("-inf")
    overlap_last: float = float("-inf")
    alarm_at: float = float("-inf")


@dataclass(slots=True)
class _Snapshot:
    """The snapshot that is being received."""

    begin: int
    stalled_at: float
    records: int = 0
    end: int | None = None
    records_expected: int = 0


class Copy:
    """What one node knows of the connections of one sync id that others lead."""

    def __init__(
        self,
        *,
        sync_id: int,
        node: str,
        heartbeat_interval: float,
        own_max: int,
        counters: Counters,
    ) -> None:
        self._sync_id = sync_id
        self._node = node
        self._heartbeat_interval = heartbeat_interval
        self._silence = silence_limit(heartbeat_interval)
        self._own_max = own_max
        self._counters = counters
        self.peers: dict[str, Peer] = {}
        self.leading = False
        self._draining = False
        self._leader: Peer | None = None
        self._listening_until: float | None = None
        self._listened = False
        self._request_at = float("-inf")
        self._snapshot: _Snapshot | None = None
        self._overlap_until = float("-inf")
        self._own: set[bytes] = set()

    # --- what can be asked ---------------------------------------------------------

    @property
    def leader(self) -> Peer | None:
        """The peer that is followed."""
        return self._leader

    @property
    def term(self) -> int:
        """The highest term heard."""
        return max((peer.term for peer in self.peers.values()), default=0)

    @property
    def complete(self) -> bool:
        """Whether nothing that a leader has is known or feared to be missing here."""
        if self.leading:
            return True
        leader = self._leader
        if leader is None:
            return self._listened
        return (
            leader.state is PeerState.REPLICATE
            and leader.stream.deadline is None
            # A leader that resigned has nothing more to tell; one that fell silent may.
            and not (leader.silent and leader.role is Role.LEAD)
        )

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        times = [] if self._listening_until is None else [self._listening_until]
        for peer in self.peers.values():
            if not peer.silent:
                times.append(peer.heard + self._silence)
            if (missing := peer.stream.deadline) is not None:
                times.append(missing)
        if self._is_asking():
            times.append(self._request_at)
        if self._snapshot is not None:
            times.append(self._snapshot.stalled_at)
        return min(times, default=None)

    # --- what happens --------------------------------------------------------------

    def listen(self, now: float) -> None:
        """Begin to find out whether anybody leads."""
        self._listened = False
        self._listening_until = now + self._silence

    def lead(self, now: float) -> None:
        """This node leads from now on."""
        self.leading = True
        self._draining = False
        self._leader = None
        self._snapshot = None
        self._listening_until = None
        self._overlap_until = now + OVERLAP
        self._own.clear()
        for peer in self.peers.values():
            peer.state = PeerState.PROBE

    def follow(self, now: float) -> Outcome:
        """This node leads no longer; it drains until `drained`."""
        self.leading = False
        self._draining = True
        self._own.clear()
        self.listen(now)
        actions: Outcome = []
        for peer in self.peers.values():
            peer.state = PeerState.PROBE
        self._choose(now, actions)
        return actions

    def drained(self, now: float) -> Outcome:
        """Nothing of what happens here is told any more: now a snapshot is of use."""
        self._draining = False
        actions: Outcome = []
        self._ask(now, actions)
        return actions

    def resync(self, now: float) -> Outcome:
        """Datagrams may have been missed unseen: trust nothing until a snapshot has come."""
        actions: Outcome = []
        if self._leader is None:
            self.listen(now)
        else:
            self._probe("resync", now, actions)
            self._ask(now, actions)
        return actions

    def own(self, key: bytes, now: float) -> None:
        """This node, while it leads, tells of a connection itself."""
        if now < self._overlap_until:
            self._own.add(key)
            if len(self._own) > self._own_max:
                # Without room to remember what is ours, nothing more is taken.
                self._overlap_until = now
                self._own.clear()

    def receive(self, message: Message, now: float) -> tuple[Outcome, list[ConnectionRecord]]:
        """Use a peer's message.

        Returns:
            The actions, and the records that a leading node took from the leader before
            it and must now tell as its own.
        """
        actions: Outcome = []
        taken: list[ConnectionRecord] = []
        origin = message.origin
        numbered = isinstance(message, Records | SnapshotBegin | SnapshotChunk | SnapshotEnd)
        # The stream of a sender that is new begins with this datagram, or after it.
        first = origin.sequence if numbered else origin.sequence + 1
        peer = self._hear(origin, first, now, actions)
        if peer is None:
            return actions, taken
        match message:
            case Records() | SnapshotBegin() | SnapshotChunk() | SnapshotEnd():
                taken = self._numbered(peer, message, now, actions)
            case Heartbeat():
                if origin.sequence + MISSING_MAX < peer.stream.position:
                    self._rewind(peer, origin, now, actions)
                peer.stream.reach(origin.sequence, now)
                self._heartbeat(peer, message, actions)
            case SnapshotRequest() | Configuration() | Unknown():
                peer.stream.reach(origin.sequence, now)
            case _:
                assert_never(message)
        self._advance(peer, now, actions)
        self._ask(now, actions)
        return actions, taken

    def expire(self, now: float) -> Outcome:
        """Do what time alone demands."""
        actions: Outcome = []
        if self._listening_until is not None and now >= self._listening_until:
            self._listening_until = None
            self._listened = True
        for peer in self.peers.values():
            if not peer.silent and now >= peer.heard + self._silence:
                peer.silent = True
                actions.append(PeerChanged(peer.node, peer.state, "silent"))
            peer.stream.expire(now)
            self._advance(peer, now, actions)
        self._choose(now, actions)
        if self._snapshot is not None and now >= self._snapshot.stalled_at:
            self._counters.add("snapshots_stalled")
            self._probe("the snapshot does not advance", now, actions)
        self._ask(now, actions)
        if now >= self._overlap_until:
            self._own.clear()
        return actions

    # --- peers ---------------------------------------------------------------------

    def _hear(self, origin: Origin, first: int, now: float, actions: Outcome) -> Peer | None:
        """The peer that sent this, brought up to date; None if it must not be believed."""
        if origin.term > TERM_JUMP_MAX and origin.term > self.term + TERM_JUMP_MAX:
            self._counters.add("refused_term")
            return None
        peer = self.peers.get(origin.node)
        if peer is None:
            if not self._make_room(now):
                self._counters.add("refused_too_many_peers")
                return None
            peer = Peer(origin.node, origin.epoch, now, Stream(first))
            self.peers[origin.node] = peer
            actions.append(PeerChanged(peer.node, peer.state, "heard"))
        elif origin.epoch != peer.epoch:
            if origin.epoch in peer.retired:
                if now < peer.heard + self._silence:
                    self._counters.add("refused_old_epoch")
                    return None
                peer.retired.remove(origin.epoch)
            fresh = Peer(peer.node, origin.epoch, now, Stream(first), peer.retired)
            self._restarted(peer, fresh, now, actions)
            peer = fresh
        peer.heard = now
        if peer.silent:
            peer.silent = False
            actions.append(PeerChanged(peer.node, peer.state, "heard again"))
        if (origin.term, origin.role) > (peer.term, peer.role):
            peer.term, peer.role = origin.term, origin.role
            if peer is self._leader:
                self._leader_changed(peer, now, actions)
        self._choose(now, actions)
        if origin.role is peer.role is Role.LEAD and peer is not self._leader:
            self._note_second_leader(peer, now, actions)
        return peer

    def _leader_changed(self, leader: Peer, now: float, actions: Outcome) -> None:
        """The followed peer has another role or term."""
        if leader.role is Role.LEAD:
            # Between two terms it told nothing of what happened to it.
            self._probe("leads anew", now, actions)
            return
        if leader.state is PeerState.REPLICATE:
            return
        if self._snapshot is not None:
            self._probe("the leader resigned", now, actions)
        if leader.role is Role.FOLLOW:
            # It tells nothing any more, and what is missing here it will not send.
            self._lose_leader(now)

    def _make_room(self, now: float) -> bool:
        if len(self.peers) < PEERS_MAX:
            return True
        oldest = min(self.peers.values(), key=lambda peer: peer.heard)
        if now - oldest.heard < PEER_FORGOTTEN or oldest is self._leader:
            return False
        del self.peers[oldest.node]
        return True

    def _restarted(self, peer: Peer, fresh: Peer, now: float, actions: Outcome) -> None:
        """A peer's process is another one than before: nothing of the old one holds."""
        fresh.retired.append(peer.epoch)
        self.peers[peer.node] = fresh
        actions.append(PeerChanged(peer.node, fresh.state, "restarted"))
        self._counters.add("peer_restarts")
        if peer is self._leader:
            self._lose_leader(now)

    def _lose_leader(self, now: float) -> None:
        self._leader = None
        self._snapshot = None
        self.listen(now)

    def _choose(self, now: float, actions: Outcome) -> None:
        """Follow the newest of the peers that lead; stay if none does."""
        if self.leading:
            return
        leaders = [p for p in self.peers.values() if p.role is Role.LEAD and not p.silent]
        best = max(leaders, key=lambda peer: (peer.term, peer.epoch, peer.node), default=None)
        if best is None or best is self._leader:
            return
        if self._leader is not None:
            self._leader.state = PeerState.PROBE
        self._leader = best
        self._listening_until = None
        self._probe("leads", now, actions)
        self._request_at = now

    def _note_second_leader(self, peer: Peer, now: float, actions: Outcome) -> None:
        if not self.leading and (
            self._leader is None or self._leader.silent or self._leader.role is not Role.LEAD
        ):
            return
        self._counters.add("second_leader_datagrams")
        if now - peer.overlap_last > self._silence:
            peer.overlap_since = now
        peer.overlap_last = now
        # A change of roles makes two leaders for a moment; that is no alarm.
        if now - peer.overlap_since >= self._heartbeat_interval and now >= peer.alarm_at:
            peer.alarm_at = now + ALARM_INTERVAL
            actions.append(Alarm("second_leader", peer.node))

    def _heartbeat(self, peer: Peer, message: Heartbeat, actions: Outcome) -> None:
        peer.connections = message.connections
        peer.leader = message.leader
        peer.position = message.position
        peer.complete = message.complete
        if self.leading:
            # Of a follower, its state is what it says of itself.
            state = message.state if message.leader == self._node else PeerState.PROBE
            if state is not peer.state:
                peer.state = state
                actions.append(PeerChanged(peer.node, state, "reported by the peer"))

    # --- the stream ----------------------------------------------------------------

    def _numbered(
        self,
        peer: Peer,
        message: Records | SnapshotBegin | SnapshotChunk | SnapshotEnd,
        now: float,
        actions: Outcome,
    ) -> list[ConnectionRecord]:
        """Use a datagram that has a number of its own."""
        stream, sequence = peer.stream, message.origin.sequence
        admission = stream.admit(sequence, now)
        taken: list[ConnectionRecord] = []
        if admission is Admission.REFUSED:
            self._counters.add("refused_late_or_repeated")
        elif self.leading:
            taken = self._take_over(stream, message, now, actions)
        elif peer is not self._leader:
            self._counters.add("refused_not_leader")
        else:
            match message:
                case Records():
                    self._use(stream, sequence, message.entries, actions)
                case SnapshotBegin():
                    if admission is Admission.NEXT:
                        self._begin(peer, sequence, now, actions)
                case SnapshotChunk():
                    self._chunk(peer, message, now, actions)
                case SnapshotEnd():
                    if self._snapshot is not None and self._snapshot.begin == message.begin:
                        self._snapshot.end = sequence
                        self._snapshot.records_expected = message.records
                case _:
                    assert_never(message)
        stream.settle()
        return taken

    def _use(
        self,
        stream: Stream,
        sequence: int,
        entries: tuple[ConnectionRecord | bytes, ...],
        actions: Outcome,
    ) -> None:
        guarded = stream.guarded
        for entry in entries:
            if isinstance(entry, bytes):
                if not guarded or stream.fresh(entry, sequence):
                    actions.append(Forget(entry))
            elif not guarded or stream.fresh(entry.key, sequence):
                actions.append(Apply(entry))

    def _take_over(
        self,
        stream: Stream,
        message: Records | SnapshotBegin | SnapshotChunk | SnapshotEnd,
        now: float,
        actions: Outcome,
    ) -> list[ConnectionRecord]:
        """While leading: take what the leader before still tells."""
        if now >= self._overlap_until or not isinstance(message, Records):
            self._counters.add("refused_while_leading")
            return []
        used: Outcome = []
        self._use(stream, message.origin.sequence, message.entries, used)
        taken = [
            action.record
            for action in used
            if isinstance(action, Apply) and action.record.key not in self._own
        ]
        actions.extend(map(Apply, taken))
        self._counters.add("records_taken_over", len(taken))
        return taken

    def _begin(self, peer: Peer, sequence: int, now: float, actions: Outcome) -> None:
        if peer.state is PeerState.REPLICATE or self._draining:
            return
        peer.stream.abandon()
        peer.stream.take_lost()
        self._snapshot = _Snapshot(sequence, now + SNAPSHOT_STALL)
        actions.append(BeginSnapshot(self._sync_id))
        self._enter(peer, PeerState.SNAPSHOT, "a snapshot began", actions)

    def _chunk(self, peer: Peer, message: SnapshotChunk, now: float, actions: Outcome) -> None:
        if peer.state is PeerState.REPLICATE:
            # It is for another node; all that it holds is here already.
            return
        if self._snapshot is not None and self._snapshot.begin == message.begin:
            self._snapshot.records += len(message.records)
            self._snapshot.stalled_at = now + SNAPSHOT_STALL
        self._use(peer.stream, message.origin.sequence, message.records, actions)

    def _rewind(self, peer: Peer, origin: Origin, now: float, actions: Outcome) -> None:
        """A sender says to have sent far less than was seen: what was seen was not its own.

        Otherwise one false number near the end of the range would have all true ones
        refused for ever.
        """
        self._counters.add("streams_rewound")
        peer.stream = Stream(origin.sequence + 1)
        if peer is self._leader:
            self._probe("the numbers went back", now, actions)

    def _advance(self, peer: Peer, now: float, actions: Outcome) -> None:
        """Draw the conclusions from what is missing, lost or finished."""
        lost = peer.stream.take_lost()
        if peer is not self._leader:
            return
        if lost:
            self._counters.add("datagrams_lost", lost)
            if peer.state is not PeerState.PROBE:
                self._probe("datagrams were lost", now, actions)
        snapshot = self._snapshot
        if snapshot is None or snapshot.end is None:
            return
        if peer.stream.is_missing_before(snapshot.end):
            return
        if snapshot.records != snapshot.records_expected:
            self._counters.add("snapshots_incomplete")
            self._probe("the snapshot was incomplete", now, actions)
            return
        self._snapshot = None
        self._counters.add("snapshots_received")
        actions.append(EndSnapshot(self._sync_id))
        self._enter(peer, PeerState.REPLICATE, "the snapshot is complete", actions)

    def _enter(self, peer: Peer, state: PeerState, reason: str, actions: Outcome) -> None:
        peer.state = state
        actions.append(PeerChanged(peer.node, state, reason))

    def _probe(self, reason: str, now: float, actions: Outcome) -> None:
        assert self._leader is not None
        self._snapshot = None
        self._request_at = max(now, self._request_at)
        self._enter(self._leader, PeerState.PROBE, reason, actions)

    def _is_asking(self) -> bool:
        leader = self._leader
        return (
            leader is not None
            and leader.state is PeerState.PROBE
            and leader.role is Role.LEAD
            and not leader.silent
            and not self._draining
        )

    def _ask(self, now: float, actions: Outcome) -> None:
        leader = self._leader
        if leader is None or not self._is_asking() or now < self._request_at:
            return
        self._request_at = now + REQUEST_INTERVAL
        self._counters.add("snapshots_requested")
        actions.append(Ask(self._sync_id, leader.node, leader.epoch, leader.stream.position))
