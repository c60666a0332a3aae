"""The receiving half of a replica: follow one leader and keep a copy of its connections.

A `Copy` follows the newest leader among its `Peers`, keeps that one's datagrams in order
(see `lvsha.sync.stream`), has those sent again that it misses, and compares and asks until
it has all. A leader that resigned is followed until another leads: what it still tells
while it drains is wanted.

The state of the followed peer:

* PROBE: something may be missing. What comes is used, and the sums of the leader's buckets
  are asked for, at most once in `REQUEST_INTERVAL`, and compared with those of the copy.
* SNAPSHOT: some buckets differ, and are asked for. From where a snapshot of them begins
  what is used of them is confirmed; when all of it came, what was not confirmed is swept.
  If a number is lost for good, it is back to PROBE, where only what still differs shows.
* REPLICATE: no bucket is wanted, and no number was lost since. A lost number leads back to
  PROBE, and so does a heartbeat whose sum differs from that of the copy.

A leader of level 1 has no sums and sends nothing again: it is asked for everything, and
one lost number costs all of it.

What differs although it came whole is an alarm, and is asked for again later; see
`lvsha.sync.catching_up`, which knows what is wanted and what is on its way.

A node that drains still changes connections by itself, and tells the new leader; only when
that is over does it compare, so that the two agree about them as well.

While this node leads it follows nobody, but for what it takes of another that leads or has
just led (see `lvsha.sync.overlap`). Two that lead for longer than a heartbeat are an alarm.

Times are seconds on a monotonic clock.
"""

from typing import Final, assert_never

from lvsha.counters import Counters
from lvsha.model import BUCKETS, ConnectionRecord
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    EndSnapshot,
    Forget,
    PeerChanged,
    Send,
)
from lvsha.sync.catching_up import CatchingUp, Conclusion
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL_PLAIN,
    RANGES_MAX,
    Changes,
    GapRequest,
    Heartbeat,
    Message,
    Numbered,
    Origin,
    PeerState,
    Progress,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Sums,
    SumsRequest,
)
from lvsha.sync.overlap import Overlap
from lvsha.sync.peers import Peer, Peers
from lvsha.sync.stream import MISSING_MAX, Admission, Stream
from lvsha.tally import Tally

REQUEST_INTERVAL: Final = 0.25
# Buckets that were asked for and do not begin to come, or stop to, are asked for again.
SNAPSHOT_PATIENCE: Final = 0.5
# Progress is told after so many datagrams, or after this time.
PROGRESS_DATAGRAMS: Final = 8
PROGRESS_WAIT: Final = 0.02


class Copy:
    """What one node knows of the connections of one sync id that others lead.

    Args:
        tally: of the node's connections of this sync id, with those copied.
        node: this node's name.
        peers: the others.
        level: what this node understands.
        compares: whether the tally has just the connections of one leader, so that sums say
            something; else everything is asked for.
        own_max: how many connections of its own a leader remembers in an overlap.
        counters: for everything that is counted.

    Attributes:
        peers: the others.
        overlap: with another leader.
        catching_up: what is lacking of the followed leader.
    """

    def __init__(
        self,
        *,
        tally: Tally,
        node: str,
        peers: Peers,
        own_max: int,
        level: int,
        compares: bool,
        counters: Counters,
    ) -> None:
        self._level = level
        self._compares = compares
        self._tally = tally
        self._node = node
        self.peers = peers
        self.overlap = Overlap(own_max)
        self._counters = counters
        self.leading = False
        self._draining = False
        self._leader: Peer | None = None
        self._listening_until: float | None = None
        self._listened = False
        self._request_at = float("-inf")
        self.catching_up = CatchingUp()
        self._unacknowledged = 0
        self._progress_at: float | None = None

    # --- what can be asked ---------------------------------------------------------

    @property
    def leader(self) -> Peer | None:
        """The peer that is followed."""
        return self._leader

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
            and not leader.stream.missing
            and not self.catching_up.mismatched
            # A leader that resigned has nothing more to tell; one that fell silent may.
            and not (leader.silent and leader.role is Role.LEAD)
        )

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        times = [peer.stream.deadline for peer in self.peers]
        times += [self.peers.deadline, self.catching_up.deadline, self._listening_until]
        times.append(self._progress_at)
        if self._is_asking():
            times.append(self._request_at)
        return min((time for time in times if time is not None), default=None)

    # --- what happens --------------------------------------------------------------

    def listen(self, now: float) -> None:
        """Begin to find out whether anybody leads."""
        self._listened = False
        self._listening_until = now + self.peers.silence

    def lead(self, now: float) -> None:
        """This node leads from now on."""
        self.leading = True
        self._draining = False
        self._leader = None
        self._forget_progress()
        self._listening_until = None
        self.overlap.begin(now)
        for peer in self.peers:
            peer.state = PeerState.PROBE
            peer.acknowledged = None

    def follow(self, now: float) -> list[Action]:
        """This node leads no longer; it drains until `drained`."""
        self.leading = False
        self._draining = True
        self.overlap.end()
        self.listen(now)
        for peer in self.peers:
            peer.state = PeerState.PROBE
        actions: list[Action] = []
        self._choose(now, actions)
        return actions

    def drained(self, origin: Origin, now: float) -> list[Action]:
        """Nothing of what happens here is told any more: now a comparison is of use."""
        self._draining = False
        actions: list[Action] = []
        self._ask(origin, now, actions)
        return actions

    def resync(self, origin: Origin, now: float) -> list[Action]:
        """Datagrams may have been missed unseen: trust nothing until sums have agreed."""
        actions: list[Action] = []
        if self._leader is None:
            self.listen(now)
        else:
            self._probe("resync", now, actions)
            self._ask(origin, now, actions)
        return actions

    def receive(
        self, message: Message, origin: Origin, now: float
    ) -> tuple[list[Action], list[ConnectionRecord]]:
        """Use a peer's message.

        Args:
            message: what came.
            origin: what this node's datagrams say of it.
            now: the clock.

        Returns:
            The actions, and the records that a leading node took and must tell as its own.
        """
        actions, taken = list[Action](), list[ConnectionRecord]()
        sequence = message.origin.sequence
        # The stream of a sender that is new begins with this datagram, or after it.
        first = sequence if isinstance(message, Numbered) else sequence + 1
        if (peer := self._hear(message, first, now, actions)) is None:
            return actions, taken
        match message:
            case Changes() | SnapshotBegin() | SnapshotChunk() | SnapshotEnd():
                taken = self._numbered(peer, message, now, actions)
            case Heartbeat():
                if sequence + MISSING_MAX < peer.stream.position:
                    self._rewind(peer, sequence, now, actions)
                peer.stream.reach(sequence, now)
                self._heartbeat(peer, message, now, actions)
            case Sums():
                peer.stream.reach(sequence, now)
                self._compare(peer, message, now, actions)
            case _:
                # What is asked and answered is the replica's; it says how far its sender is.
                peer.stream.reach(sequence, now)
        self._advance(peer, now, actions)
        self._ask(origin, now, actions)
        self._tell_progress(origin, now, actions)
        return actions, taken

    def expire(self, origin: Origin, now: float) -> list[Action]:
        """Do what time alone demands."""
        actions: list[Action] = []
        if self._listening_until is not None and now >= self._listening_until:
            self._listening_until = None
            self._listened = True
        self.peers.expire(now, actions)
        for peer in self.peers:
            ranges = peer.stream.expire(now, may_ask=self._may_ask(peer, now))
            if ranges:
                self._counters.add("datagrams_asked_for", sum(count for _, count in ranges))
                for first in range(0, len(ranges), RANGES_MAX):
                    part = tuple(ranges[first : first + RANGES_MAX])
                    request = GapRequest(origin, peer.node, peer.epoch, part)
                    actions.append(Send(encode(request)))
            self._advance(peer, now, actions)
        self._choose(now, actions)
        stalled = self.catching_up.drop_stalled(now)
        if stalled:
            self._counters.add("snapshots_stalled", stalled)
            if self._leader is not None and self._leader.speaks <= LEVEL_PLAIN:
                self._probe("the snapshot does not advance", now, actions)
        self._ask(origin, now, actions)
        self._tell_progress(origin, now, actions)
        return actions

    # --- peers ---------------------------------------------------------------------

    def _hear(self, message: Message, first: int, now: float, actions: list[Action]) -> Peer | None:
        """The peer that sent this, brought up to date; None if it must not be believed."""
        hearing = self.peers.hear(message, first, now, self._leader, actions)
        if hearing is None:
            return None
        peer = hearing.peer
        if hearing.replaced is not None and hearing.replaced is self._leader:
            self._lose_leader(now)
        if hearing.is_new_role and peer is self._leader:
            self._leader_changed(peer, now, actions)
        self._choose(now, actions)
        if message.origin.role is peer.role is Role.LEAD and peer is not self._leader:
            self._note_second_leader(peer, now, actions)
        return peer

    def _leader_changed(self, leader: Peer, now: float, actions: list[Action]) -> None:
        """The followed peer has another role or term."""
        if leader.role is Role.LEAD:
            # Between two terms it told nothing of what happened to it.
            self._probe("leads anew", now, actions)
            return
        if leader.state is PeerState.REPLICATE:
            return
        if leader.state is PeerState.SNAPSHOT:
            self._probe("the leader resigned", now, actions)
        if leader.role is Role.FOLLOW:
            # It tells nothing any more, and what is missing here it will not send.
            self._lose_leader(now)

    def _lose_leader(self, now: float) -> None:
        self._leader = None
        self._forget_progress()
        self.listen(now)

    def _forget_progress(self) -> None:
        """Begin anew with another leader, or none."""
        self.catching_up.forget()
        self._unacknowledged = 0
        self._progress_at = None

    def _choose(self, now: float, actions: list[Action]) -> None:
        """Follow the newest of the peers that lead; stay if none does."""
        if self.leading:
            return
        best = self.peers.best_leader()
        if best is None or best is self._leader:
            return
        if self._leader is not None:
            self._leader.state = PeerState.PROBE
        self._forget_progress()
        self._leader = best
        self._listening_until = None
        self._probe("leads", now, actions)
        self._request_at = now

    def _note_second_leader(self, peer: Peer, now: float, actions: list[Action]) -> None:
        if self.leading:
            self.overlap.contest(now)
        elif self._leader is None or not self._leader.leads:
            return
        self._counters.add("second_leader_datagrams")
        if self.peers.leads_too_long(peer, now):
            actions.append(Alarm("second_leader", peer.node))

    def _heartbeat(self, peer: Peer, message: Heartbeat, now: float, actions: list[Action]) -> None:
        peer.level = min(message.level, self._level)
        speaks = min(message.speaks, self._level)
        if peer.speaks != speaks:
            peer.speaks = speaks
            if peer is self._leader:
                self._probe("the leader speaks otherwise", now, actions)
        peer.connections = message.connections
        peer.leader = message.leader
        peer.position = message.position
        peer.complete = message.complete
        peer.standing = message.standing
        if self.leading:
            # Of a follower, its state is what it says of itself.
            state = message.state if message.leader == self._node else PeerState.PROBE
            if state is not peer.state:
                peer.state = state
                actions.append(PeerChanged(peer.node, state, "reported by the peer"))
        elif peer is self._leader and peer.level > LEVEL_PLAIN:
            if message.oldest:
                peer.stream.abandon_before(message.oldest)
            self._compare_total(peer, message, now, actions)

    # --- the stream ----------------------------------------------------------------

    def _numbered(
        self, peer: Peer, message: Numbered, now: float, actions: list[Action]
    ) -> list[ConnectionRecord]:
        """Use a datagram that has a number of its own."""
        stream, sequence = peer.stream, message.origin.sequence
        admission = stream.admit(sequence, now)
        taken: list[ConnectionRecord] = []
        if admission is Admission.REFUSED:
            is_newest = sequence == stream.position
            self._counters.add("repeats_ignored" if is_newest else "refused_late_or_repeated")
        elif self.leading:
            taken = self._take_over(stream, message, now, actions)
        elif peer is not self._leader:
            self._counters.add("refused_not_leader")
        else:
            # Only a snapshot waits for word of it; who has all tells it now and then.
            self._unacknowledged += peer.state is not PeerState.REPLICATE
            if self._progress_at is None:
                self._progress_at = now + PROGRESS_WAIT
            match message:
                case Changes():
                    self._use(stream, sequence, message.records, message.ended, actions)
                case SnapshotBegin():
                    if admission is Admission.NEXT:
                        self._begin(peer, message, now, actions)
                case SnapshotChunk():
                    self._chunk(peer, message, now, actions)
                case SnapshotEnd():
                    self.catching_up.end(message.begin, sequence)
                case _:
                    assert_never(message)
        stream.settle()
        return taken

    def _use(
        self,
        stream: Stream,
        sequence: int,
        records: list[ConnectionRecord],
        ended: list[bytes],
        actions: list[Action],
    ) -> None:
        if stream.guarded or sequence < stream.position:
            old = self.catching_up.superseded(sequence)
            records = [record for record in records if stream.fresh(record.key, sequence, old)]
            ended = [key for key in ended if stream.fresh(key, sequence, old)]
        if ended:
            actions.append(Forget(ended))
        if records:
            actions.append(Apply(records))

    def _take_over(
        self, stream: Stream, message: Numbered, now: float, actions: list[Action]
    ) -> list[ConnectionRecord]:
        """While leading: take what another tells who leads, or has led."""
        if not self.overlap.is_on(now) or not isinstance(message, Changes):
            self._counters.add("refused_while_leading")
            return []
        records = message.records
        if stream.guarded:
            sequence = message.origin.sequence
            records = [record for record in records if stream.fresh(record.key, sequence)]
        taken = self.overlap.wanted(records)
        if taken:
            actions.append(Apply(taken))
            self._counters.add("records_taken_over", len(taken))
        return taken

    def _rewind(self, peer: Peer, sequence: int, now: float, actions: list[Action]) -> None:
        """A sender says to have sent far less than was seen: what was seen was not its own.

        Otherwise one false number near the end of the range would have all true ones
        refused for ever.
        """
        self._counters.add("streams_rewound")
        peer.stream = Stream(sequence + 1)
        if peer is self._leader:
            self._forget_progress()
            self._probe("the numbers went back", now, actions)

    def _advance(self, peer: Peer, now: float, actions: list[Action]) -> None:
        """Draw the conclusions from what is missing, lost or finished."""
        lost, highest = peer.stream.take_lost()
        if peer is not self._leader:
            return
        if lost:
            self._counters.add("datagrams_lost", lost)
            self.catching_up.lose(highest)
            if peer.state is not PeerState.PROBE:
                self._probe("datagrams were lost", now, actions)
        for buckets in self.catching_up.finished(peer.stream):
            self._counters.add("snapshots_received")
            actions.append(EndSnapshot(self._tally.sync_id, buckets))
            if not self.catching_up.wanted and peer.state is PeerState.SNAPSHOT:
                self._enter(peer, PeerState.REPLICATE, "the snapshot is complete", actions)

    # --- snapshots -----------------------------------------------------------------

    def _begin(self, peer: Peer, message: SnapshotBegin, now: float, actions: list[Action]) -> None:
        if peer.state is PeerState.REPLICATE or self._draining or not peer.speaks:
            return
        if peer.speaks == LEVEL_PLAIN:
            # A record among what is missing from before could confirm a connection whose
            # delete is lost, and nothing would show it.
            peer.stream.abandon()
            peer.stream.take_lost()
            self.catching_up.begin_anew()
            self.catching_up.wanted = ALL_BUCKETS
            self._enter(peer, PeerState.SNAPSHOT, "a snapshot began", actions)
        buckets = self.catching_up.begin(message.origin.sequence, message.buckets, now)
        if buckets:
            self._request_at = now + SNAPSHOT_PATIENCE
            actions.append(BeginSnapshot(self._tally.sync_id, buckets))

    def _chunk(self, peer: Peer, message: SnapshotChunk, now: float, actions: list[Action]) -> None:
        if peer.state is PeerState.REPLICATE:
            # It is for another node; all that it holds is here already.
            return
        if self.catching_up.advance(message.begin, now):
            self._request_at = now + SNAPSHOT_PATIENCE
        elif peer.speaks > LEVEL_PLAIN:
            return
        self._use(peer.stream, message.origin.sequence, message.records, [], actions)

    def _may_compare(self, peer: Peer) -> bool:
        """Whether a peer's sums say something, which others may have asked for."""
        is_leader = peer is self._leader and not self._draining
        return self._compares and is_leader and peer.speaks > LEVEL_PLAIN

    def _is_exact(self, peer: Peer, sequence: int) -> bool:
        """Whether the copy is now what its leader had told at this number."""
        return peer.stream.position == sequence and not peer.stream.missing

    def _compare_total(
        self, leader: Peer, message: Heartbeat, now: float, actions: list[Action]
    ) -> None:
        """Compare the sum of all buckets with what a heartbeat says."""
        standing = message.standing
        if (
            leader.state is not PeerState.REPLICATE
            or not self._may_compare(leader)
            or not standing.is_current
            or not self._is_exact(leader, message.origin.sequence)
        ):
            return
        if (standing.told, standing.total) == (self._tally.told, self._tally.total):
            self.catching_up.agrees()
        elif self.catching_up.may_compare(now):
            self._counters.add("sums_differed")
            self._probe("the sums differ", now, actions)

    def _compare(self, peer: Peer, message: Sums, now: float, actions: list[Action]) -> None:
        """Compare the sums of some buckets; when all were, ask for those that differ."""
        if peer.state is not PeerState.PROBE or not self._may_compare(peer):
            return
        number, ours = message.origin.sequence, self._tally.sums
        exact = message.is_current and self._is_exact(peer, number)
        catching_up = self.catching_up
        if not catching_up.compare(number, message.first, message.sums, ours, exact=exact):
            return
        match catching_up.conclude(now):
            case Conclusion.AGREES:
                self._enter(peer, PeerState.REPLICATE, "all sums agree", actions)
            case Conclusion.WANTED:
                count = catching_up.wanted.bit_count()
                self._counters.add("buckets_wanted", count)
                self._request_at = now
                reason = f"{count} of {BUCKETS} sums differ"
                self._enter(peer, PeerState.SNAPSHOT, reason, actions)
            case Conclusion.MISMATCHED:
                self._counters.add("buckets_mismatched", catching_up.mismatched.bit_count())
                actions.append(Alarm("mismatch", peer.node))
                reason = "some sums cannot be made to agree"
                self._enter(peer, PeerState.REPLICATE, reason, actions)

    def _enter(self, peer: Peer, state: PeerState, reason: str, actions: list[Action]) -> None:
        peer.state = state
        actions.append(PeerChanged(peer.node, state, reason))

    def _probe(self, reason: str, now: float, actions: list[Action]) -> None:
        assert self._leader is not None
        self.catching_up.begin_anew()
        self._request_at = max(now, min(self._request_at, now + REQUEST_INTERVAL))
        self._enter(self._leader, PeerState.PROBE, reason, actions)

    # --- what is asked and told ------------------------------------------------------

    def _may_ask(self, peer: Peer, now: float) -> bool:
        """Whether a peer would send its numbers again: the leader, or the one that drains."""
        tells = peer is self._leader or (self.leading and self.overlap.is_on(now))
        return (
            tells and peer.level > LEVEL_PLAIN and peer.role is not Role.FOLLOW and not peer.silent
        )

    def _is_asking(self) -> bool:
        leader = self._leader
        if leader is None or not leader.leads or not leader.speaks or self._draining:
            return False
        if leader.state is PeerState.SNAPSHOT:
            return leader.speaks > LEVEL_PLAIN
        return leader.state is PeerState.PROBE

    def _ask(self, origin: Origin, now: float, actions: list[Action]) -> None:
        leader = self._leader
        if leader is None or not self._is_asking() or now < self._request_at:
            return
        self._request_at = now + REQUEST_INTERVAL
        buckets = ALL_BUCKETS
        if leader.speaks > LEVEL_PLAIN:
            if leader.state is PeerState.PROBE and self._compares:
                self._counters.add("sums_requested")
                self.catching_up.ask_sums()
                actions.append(Send(encode(SumsRequest(origin, leader.node, leader.epoch))))
                return
            if leader.state is PeerState.PROBE:
                self.catching_up.wanted = ALL_BUCKETS
                self._enter(leader, PeerState.SNAPSHOT, "all is asked for", actions)
            buckets = self.catching_up.unasked
            if not buckets:
                return
        self._counters.add("snapshots_requested")
        request = SnapshotRequest(
            origin, leader.node, leader.epoch, leader.stream.position, buckets
        )
        actions.append(Send(encode(request)))

    def _tell_progress(self, origin: Origin, now: float, actions: list[Action]) -> None:
        leader = self._leader
        due = self._progress_at is not None and now >= self._progress_at
        if self._unacknowledged < PROGRESS_DATAGRAMS and not due:
            return
        self._unacknowledged = 0
        self._progress_at = None
        if leader is not None and leader.level > LEVEL_PLAIN:
            progress = Progress(origin, leader.node, leader.epoch, leader.stream.position)
            actions.append(Send(encode(progress)))
