"""One sync id on one node: tell what this node leads, keep a copy of what others lead.

A `Replica` joins a `Source` and a `Copy` under one role and one clock. It opens no
socket, reads no clock and draws no random number; every method takes the current time
and returns the actions to carry out, in order. A node with several sync ids has a replica
for each, and one may lead while another follows: that is mutual backup.

What holds whatever comes from the network:

* No input raises. What cannot be understood or must not be believed is counted under a
  name that begins with ``refused`` and changes nothing.
* Nothing received is sent on, but for the records that a new leader takes from the one
  before it: they are its own from then on.
* A record never brings back a connection that a later datagram of its sender deleted.
* With ``proven`` nothing of a process is used that has not shown to hear this one.
* `complete` is true only if this node leads, or has all that the leader has, or has
  listened for `silence_limit` seconds and heard no leader.

A replica whose own sync id is 0 accepts every id, as in the kernel, and keeps a copy for
each. It leads under id 0 only; under the others it sends heartbeats of a follower, so that
it is believed and its progress seen.

Times are seconds on a monotonic clock; none of them crosses the wire.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from lvsha.counters import Counters
from lvsha.errors import SyncError
from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionRecord
from lvsha.runs import Run
from lvsha.sync import readiness
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    Deny,
    Forget,
    LookUp,
    OpinionsHeard,
    PeerChanged,
    Refused,
    Send,
)
from lvsha.sync.calls import Calls, called
from lvsha.sync.configuration import Comparison
from lvsha.sync.copy import Copy
from lvsha.sync.datagrams import decode, encode, encode_answers
from lvsha.sync.messages import (
    DATAGRAM_BYTES_MAX,
    DIGEST_BYTES,
    LEVEL,
    Answer,
    Configuration,
    Duty,
    GapRequest,
    Handover,
    Heartbeat,
    Message,
    Opinions,
    Origin,
    Progress,
    Question,
    Role,
    SnapshotRequest,
    SumsRequest,
    Unknown,
)
from lvsha.sync.opinions import NotUp, divide
from lvsha.sync.overlap import DRAIN
from lvsha.sync.pace import Pace
from lvsha.sync.peers import ALARM_INTERVAL, Peer, Peers
from lvsha.sync.questions import Questions
from lvsha.sync.source import Source
from lvsha.tally import Tally

DATAGRAM_BYTES_MIN: Final = 500
# A peer's state is told as it changes, once in this part of the heartbeat interval at most.
HEARTBEAT_SPACING: Final = 0.1
SYNC_ID_ANY: Final = 0


class Replica:
    """A node's part in the sync of one sync id.

    Attributes:
        counters: everything that was counted.
    """

    def __init__(
        self,
        *,
        tally: Tally,
        node: str,
        epoch: int,
        digests: Mapping[str, bytes],
        configuration_digest: bytes,
        heartbeat_interval: float,
        datagram_max: int,
        alive_interval: float | None = None,
        pace: Pace | None = None,
        proven: bool = False,
        level: int = LEVEL,
    ) -> None:
        """Describe the replica.

        Args:
            tally: of the node's connections of this sync id, 0 to 255; the caller keeps it
                up to date. A replica with id 0 accepts any id.
            node: this node's name.
            epoch: a random number of 64 bits, another one at each start of the process.
            configuration_digest: 16 bytes, equal on nodes that are configured alike.
            digests: digests of the named pieces of the configuration.
            heartbeat_interval: seconds between heartbeats.
            alive_interval: a shorter time between them, for who must miss this node sooner.
            datagram_max: the most bytes that a datagram may have, 500 to 65,507.
            pace: limits of the queue and of sending.
            proven: whether a peer must show that it hears this node before it is believed;
                for a sealed wire, on which nobody but a recording can lie.
            level: what this node understands; less than `LEVEL` only to stand for an older
                one.
        """
        assert 0 <= tally.sync_id <= 0xFF
        assert len(configuration_digest) == DIGEST_BYTES
        assert DATAGRAM_BYTES_MIN <= datagram_max <= DATAGRAM_BYTES_MAX
        assert heartbeat_interval > 0
        self.sync_id = tally.sync_id
        self.node = node
        self.epoch = epoch
        self.counters = Counters()
        self._tally = tally
        self._proven = proven
        self._level = level
        self._heartbeat_interval = heartbeat_interval
        self._alive_interval = min(heartbeat_interval, alive_interval or heartbeat_interval)
        self._duty: Duty | None = None
        self._datagram_max = datagram_max
        self._pace = pace or Pace()
        self._comparison = Comparison(configuration_digest, digests, datagram_max)
        self._questions = Questions(datagram_max)
        self._calls = Calls()
        self._source = Source(
            tally=tally,
            node=node,
            epoch=epoch,
            datagram_max=datagram_max,
            pace=self._pace,
            counters=self.counters,
        )
        self._home = self._new_copy(tally, compares=tally.sync_id != SYNC_ID_ANY)
        # Of a replica with id 0: the copies of other ids. At most 255.
        self._others: dict[int, Copy] = {}
        self._running = False
        self._heartbeat_at = float("-inf")
        self._heartbeat_last = float("-inf")
        self._drained_at = float("inf")
        self._duplicate_alarm_at = float("-inf")

    # --- what can be asked ---------------------------------------------------------

    @property
    def role(self) -> Role:
        """What this node is for its sync id."""
        return self._source.role

    @property
    def complete(self) -> bool:
        """Whether this node has all connections that any leader of its sync id has."""
        return self._home.complete and all(copy.complete for copy in self._others.values())

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None before the start and after the stop."""
        if not self._running:
            return None
        times = [self._source.deadline, self._home.deadline, self._questions.deadline]
        times += [copy.deadline for copy in self._others.values()]
        first = min(self._heartbeat_at, self._drained_at, self._calls.deadline)
        return min([first, *(time for time in times if time is not None)])

    @property
    def tell_deadline(self) -> float:
        """As `deadline`, but only because of what was told; infinity for never."""
        return self._source.tell_deadline

    def gathers(self, now: float) -> bool:
        """Whether what is told until `tell_deadline` only waits, unless anything else happens."""
        return bool(self._source.queued and not self._questions) and not self._is_in_haste(now)

    def _is_in_haste(self, now: float) -> bool:
        """Whether the packets of one connection come to either node: the addresses move."""
        is_draining = self._source.role is Role.DRAIN
        return is_draining or bool(self._calls) or self._home.overlap.is_on(now)

    def status(self, now: float) -> dict[str, object]:
        """All that an operator may want to see, as JSON values."""
        return {
            "complete": self.complete,
            **readiness.replica_status(self._home, self._others, self._source, self._tally, now),
            "configuration_differs": {
                node: list(names) for node, names in sorted(self._comparison.differing.items())
            },
            "counters": self.counters.snapshot(),
        }

    def unready(self) -> dict[str, str]:
        """Of each peer, why it cannot lead next without a loss; empty words if it can."""
        known = (self.node, self._tally, self._comparison.differing)
        return {peer.node: readiness.unready(peer, *known) for peer in self._home.peers}

    def coverage(self, now: float) -> float:
        """The share of the established connections that some follower has said it has."""
        return readiness.coverage(self._home, self._source, self._tally, now)

    def is_contested(self, now: float) -> bool:
        """Whether this node leads, and another one as well."""
        return self._home.overlap.is_contested(now)

    @property
    def peers(self) -> Iterator[Peer]:
        """The other nodes of this sync id."""
        return iter(self._home.peers)

    @property
    def leader(self) -> str | None:
        """The node that is followed."""
        return None if (leader := self._home.leader) is None else leader.node

    # --- what happens --------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Join the group as a follower."""
        assert not self._running
        self._running = True
        self._home.listen(now)
        return self._performed([], now, heartbeat=True)

    def stop(self, now: float) -> list[Action]:
        """Leave: tell what is queued, and that this node leads no longer."""
        if not self._running:
            return []
        actions: list[Action] = []
        if self._source.role is not Role.FOLLOW:
            actions.extend(self._source.flush(now))
            if self._source.role is Role.LEAD:
                self._source.drain()
                self._home.follow(now)
            self._source.follow()
        self._drained_at = float("inf")
        finished = self._performed(actions, now, heartbeat=True)
        self._running = False
        return finished

    def lead(self, now: float) -> list[Action]:
        """This node holds the addresses now: it is the source."""
        if not self._running or self._source.role is Role.LEAD:
            return []
        if self._source.role is Role.DRAIN:
            self._source.follow()
        self._drained_at = float("inf")
        self._source.lead(max(self._source.term, self._home.peers.term) + 1)
        self._home.lead(now)
        return self._performed([], now, heartbeat=True)

    def follow(self, now: float) -> list[Action]:
        """This node is a backup now; for ``DRAIN`` seconds it still tells."""
        if not self._running or self._source.role is not Role.LEAD:
            return []
        self._source.drain()
        self._questions.forget()
        self._calls.end()
        self._drained_at = now + DRAIN
        return self._performed(self._home.follow(now), now, heartbeat=True)

    def hand_over(self, successor: str, now: float) -> list[Action]:
        """Call who shall lead next, until this node leads no longer; nobody, if empty."""
        if not self._running or self._source.role is not Role.LEAD:
            return []
        self._calls.end()
        peer = self._home.peers.get(successor)
        if peer is None:
            return []
        actions = self._source.flush(now)
        actions += self._calls.begin(peer, self._source.origin, now)
        return self._performed(actions, now)

    def resync(self, now: float) -> list[Action]:
        """The process was stalled: believe nothing until the leader's sums have agreed."""
        if not self._running or self._source.role is Role.LEAD:
            return []
        actions = self._home.resync(self._source.origin, now)
        for sync_id, copy in self._others.items():
            actions += copy.resync(self._origin(sync_id), now)
        return self._performed(actions, now)

    def say(self, duty: Duty, now: float) -> list[Action]:
        """This node is something else for the virtual router of its sync id: peers hear it soon."""
        if duty == self._duty:
            return []
        self._duty = duty
        self._hurry(now)
        return self._performed([], now, heartbeat=self._running and now >= self._heartbeat_at)

    def tell(self, changes: Sequence[ConnectionChange], now: float) -> list[Action]:
        """The datapath's connections have changed; ignored unless this node tells."""
        if self._source.role is Role.FOLLOW or not self._running:
            return []
        if self._questions or self._home.overlap.is_on(now):
            keys = [
                change.record.key if isinstance(change, ConnectionChanged) else change.key
                for change in changes
            ]
            self._questions.close(keys)
            if self._home.leading:
                self._home.overlap.own(keys, now)
        sent = self._source.tell(changes, now, in_haste=self._is_in_haste(now))
        self.counters.add("datagrams_sent", len(sent))
        return sent

    def snapshot(self, records: Iterator[Run | None], now: float) -> list[Action]:
        """The answer to `ProvideSnapshot`.

        The iterator is read a little in each tick. It must yield each connection as it is
        when it is read, must not yield one that has ended, and may leave out those that
        came after the call, since they are told as changes.
        """
        return self._performed([*self._source.snapshot(records, now)], now)

    def ask(self, keys: Sequence[bytes], now: float) -> list[Action]:
        """Packets of these connections have come, and this node does not know them.

        Only who leads asks: a follower has what its leader has.
        """
        if not self._running or self._source.role is not Role.LEAD:
            return []
        listeners = {peer.node for peer in self._home.peers if not peer.silent}
        messages = self._questions.ask(keys, listeners, self._source.origin, now)
        return self._performed([Send(encode(message)) for message in messages], now)

    def answer(
        self, asker: str, keys: Sequence[bytes], records: Sequence[ConnectionRecord], now: float
    ) -> list[Action]:
        """The answer to `LookUp`: what is here of what was asked.

        What is not here is only denied by a node whose copy is complete.
        """
        known = {record.key for record in records}
        unknown = tuple(key for key in keys if key not in known) if self.complete else ()
        if not records and not unknown:
            return []
        answer = Answer(self._source.origin, asker, list(records), unknown)
        datagrams = encode_answers(answer, self._datagram_max)
        return self._performed([Send(datagram) for datagram in datagrams], now)

    def share(
        self, number: int, checked: int, opinions: Sequence[NotUp], now: float
    ) -> list[Action]:
        """Tell the peers what this node's health checks find; see `lvsha.sync.opinions`."""
        if not self._running:
            return []
        parts = divide(self._source.origin, number, checked, opinions, self._datagram_max)
        return self._performed([Send(encode(part)) for part in parts], now)

    def configure(self, digest: bytes, digests: Mapping[str, bytes], now: float) -> list[Action]:
        """This node's configuration has changed while it runs."""
        return self._performed(self._comparison.change(digest, digests), now)

    def receive(self, datagram: bytes, now: float) -> list[Action]:
        """A datagram came."""
        if not self._running:
            return []
        self.counters.add("datagrams_received")
        try:
            message = decode(datagram)
        except SyncError as error:
            self.counters.add("refused_malformed")
            return [Refused(str(error))]
        refusal = self._refuse(message, now)
        if refusal is not None:
            return refusal
        copy, origin = self._copy_of(message.origin.sync_id, now)
        received, taken = copy.receive(message, origin, now)
        if self._questions:
            for action in received:
                if isinstance(action, Apply):
                    self._questions.close(record.key for record in action.records)
                elif isinstance(action, Forget):
                    self._questions.close(action.keys)
        actions: list[Action] = [*received]
        if taken:
            actions.extend(self._source.tell([ConnectionChanged(record) for record in taken], now))
        if message.origin.sync_id == self.sync_id:
            actions.extend(self._answer(message, now))
        return self._performed(actions, now)

    def expire(self, now: float) -> list[Action]:
        """The deadline has passed."""
        if not self._running:
            return []
        actions: list[Action] = []
        if now >= self._drained_at:
            self._drained_at = float("inf")
            # What still waits for a limit of bytes leaves now, or the next leader lacks it.
            actions.extend(self._source.flush(now))
            self._source.follow()
            actions += self._home.drained(self._source.origin, now)
            self._heartbeat_at = now
        if self._source.role is not Role.FOLLOW:
            actions.extend(self._source.expire(now))
        actions += self._home.expire(self._source.origin, now)
        for sync_id, copy in self._others.items():
            actions += copy.expire(self._origin(sync_id), now)
        again = self._questions.expire(self._source.origin, now)
        actions += [Send(encode(question)) for question in again]
        if now >= self._calls.deadline:
            actions += self._calls.repeat(self._source.origin, now)
        self._adapt(now)
        return self._performed(actions, now, heartbeat=now >= self._heartbeat_at)

    # --- parts ---------------------------------------------------------------------

    def _new_copy(self, tally: Tally, *, compares: bool) -> Copy:
        peers = Peers(
            self.epoch,
            self._heartbeat_interval,
            proven=self._proven,
            counters=self.counters,
        )
        return Copy(
            tally=tally,
            node=self.node,
            peers=peers,
            level=self._level,
            compares=compares,
            own_max=self._pace.queue_max,
            counters=self.counters,
        )

    def _origin(self, sync_id: int) -> Origin:
        """What this node's datagrams say of it; of ids that are not its own it never leads any."""
        if sync_id == self.sync_id:
            return self._source.origin
        return Origin(sync_id, self.node, self.epoch, Role.FOLLOW, 0, 0)

    def _copy_of(self, sync_id: int, now: float) -> tuple[Copy, Origin]:
        if sync_id == self.sync_id:
            return self._home, self._source.origin
        copy = self._others.get(sync_id)
        if copy is None:
            copy = self._others[sync_id] = self._new_copy(Tally(sync_id), compares=False)
            copy.listen(now)
        return copy, self._origin(sync_id)

    def _adapt(self, now: float) -> None:
        """Keep to what all who listen understand, and to the slowest of them."""
        self._source.level, self._source.progress = self._home.peers.weakest(self._level, now)

    def _refuse(self, message: Message, now: float) -> list[Action] | None:
        """The actions for a message that is not used; None for one that is."""
        origin = message.origin
        if origin.node == self.node:
            if origin.epoch == self.epoch:
                self.counters.add("own_datagrams")
                return []
            self.counters.add("refused_own_name")
            if now < self._duplicate_alarm_at:
                return []
            self._duplicate_alarm_at = now + ALARM_INTERVAL
            return [Alarm("duplicate_node", self.node)]
        if self.sync_id not in {SYNC_ID_ANY, origin.sync_id}:
            self.counters.add("refused_sync_id")
            return []
        if isinstance(message, Unknown):
            # A newer node says more than this one understands; that is no fault.
            self.counters.add("unknown_type")
        return None

    def _answer(self, message: Message, now: float) -> list[Action]:
        """What a message asks of the node itself, beside its copy."""
        origin = message.origin
        peer = self._home.peers.get(origin.node)
        if peer is None or peer.epoch != origin.epoch:
            return []
        self._adapt(now)
        match message:
            case SnapshotRequest() | SumsRequest() | GapRequest() | Progress():
                if message.leader == self.node:
                    return self._serve(peer, message, now)
            case Heartbeat():
                peer.duty, peer.duty_at = message.duty, now
                return self._comparison.heard(origin.node, message.digest)
            case Handover() if message.node_epoch == self.epoch:
                # Complete means that it has all up to the number that this was said with.
                if peer is self._home.leader and peer.leads and self.complete:
                    return [called(peer, message, self._source.origin, now)]
                return self._calls.answered(peer, message, self._source.origin, now)
            case Opinions():
                return [OpinionsHeard(message)]
            case Configuration():
                return self._comparison.described(origin.node, message)
            case Question() if message.keys:
                return [LookUp(origin.node, message.keys)]
            case Answer() if message.asker == self.node and self._source.role is Role.LEAD:
                return self._answered(message, now)
            case _:
                pass
        return []

    def _serve(
        self,
        peer: Peer,
        message: SnapshotRequest | SumsRequest | GapRequest | Progress,
        now: float,
    ) -> list[Action]:
        """What a follower of this node asks for."""
        source = self._source
        if message.leader_epoch != self.epoch or source.role is Role.FOLLOW:
            self.counters.add("requests_refused")
            return []
        if isinstance(message, GapRequest):
            self.counters.add("gap_requests")
            return source.resend(message.ranges, now)
        if source.role is not Role.LEAD:
            self.counters.add("requests_refused")
            return []
        if isinstance(message, SumsRequest):
            self.counters.add("sums_requests")
            return source.ask_sums(now)
        peer.acknowledged = min(message.position, source.sequence)
        peer.acknowledged_at = now
        self._adapt(now)
        if isinstance(message, Progress):
            return source.progressed(now)
        self.counters.add("snapshot_requests")
        return source.request(message.buckets, message.position, now)

    def _answered(self, message: Answer, now: float) -> list[Action]:
        """What a peer says to this node's question; only what was asked is used."""
        listeners = {peer.node for peer in self._home.peers if not peer.silent}
        records, denied = self._questions.answered(message, listeners)
        actions: list[Action] = []
        if records:
            self.counters.add("connections_found", len(records))
            actions.append(Apply(records))
            actions += self._source.tell([ConnectionChanged(record) for record in records], now)
        if denied:
            self.counters.add("connections_denied", len(denied))
            actions.append(Deny(denied))
        return actions

    def _performed(
        self, actions: list[Action], now: float, *, heartbeat: bool = False
    ) -> list[Action]:
        """Add what is due, and count what is sent."""
        copies = (self._home, *self._others.values())
        strangers = [copy for copy in copies if copy.peers.take_stranger()]
        if strangers or any(isinstance(action, PeerChanged) for action in actions):
            self._hurry(now)
        if heartbeat:
            actions = [*actions, *self._heartbeat(now)]
        self.counters.add("datagrams_sent", sum(isinstance(action, Send) for action in actions))
        return actions

    def _hurry(self, now: float) -> None:
        """Let peers, which show this node's state, see soon that it changed."""
        soon = self._heartbeat_last + HEARTBEAT_SPACING * self._heartbeat_interval
        self._heartbeat_at = min(self._heartbeat_at, max(now, soon))

    def _heartbeat(self, now: float) -> list[Action]:
        self._heartbeat_last = now
        self._heartbeat_at = now + self._alive_interval
        source, origin = self._source, self._source.origin
        message = Heartbeat(
            origin,
            self._tally.connections,
            self._comparison.digest,
            *readiness.following(self._home),
            self.complete,
            level=self._level,
            speaks=source.level,
            oldest=source.history.oldest or source.sequence + 1,
            heard=self._home.peers.heard_epochs(now),
            standing=readiness.standing(self._home, source, self._tally),
            duty=self._duty,
        )
        for node in self._comparison.differing:
            if node not in self._home.peers:
                self._comparison.forget(node)
        parts = self._comparison.description(origin, now)
        messages: list[Message] = [message, *parts, *self._other_heartbeats(now)]
        return [Send(encode(each)) for each in messages]

    def _other_heartbeats(self, now: float) -> Iterator[Heartbeat]:
        """What a replica with id 0 says to those whose ids it only follows, if there are any."""
        digest = self._comparison.digest
        for sync_id, copy in self._others.items():
            heard, origin = copy.peers.heard_epochs(now), self._origin(sync_id)
            if heard:
                yield readiness.of_a_follower(copy, origin, digest, self._level, heard)
