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
* `complete` is true only if this node leads, or has all that the leader has, or has
  listened for `silence_limit` seconds and heard no leader.

A replica whose own sync id is 0 accepts every id, as in the kernel, and keeps a copy for
each. It leads, and sends heartbeats, under id 0 only.

Times are seconds on a monotonic clock; none of them crosses the wire.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from lvsha.counters import Counters
from lvsha.errors import SyncError
from lvsha.model import (
    ConnectionChange,
    ConnectionChanged,
    ConnectionRecord,
)
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    ConfigurationAgrees,
    ConfigurationDiffers,
    EndSnapshot,
    Forget,
    PeerChanged,
    ProvideSnapshot,
    Refused,
    Send,
)
from lvsha.sync.configuration import Comparison
from lvsha.sync.copy import ALARM_INTERVAL, DRAIN, Ask, Copy, Outcome
from lvsha.sync.messages import (
    DATAGRAM_BYTES_MAX,
    DIGEST_BYTES,
    Configuration,
    Heartbeat,
    Message,
    Origin,
    PeerState,
    Role,
    SnapshotRequest,
    Unknown,
    decode,
    encode,
)
from lvsha.sync.source import Pace, Source

__all__ = [
    "Action",
    "Alarm",
    "Apply",
    "BeginSnapshot",
    "ConfigurationAgrees",
    "ConfigurationDiffers",
    "EndSnapshot",
    "Forget",
    "Pace",
    "PeerChanged",
    "PeerState",
    "ProvideSnapshot",
    "Refused",
    "Replica",
    "Role",
    "Send",
]

DATAGRAM_BYTES_MIN: Final = 500
# A change of a peer's state is told at once, but not more often than this part of the
# heartbeat interval.
HEARTBEAT_SPACING: Final = 0.1
SYNC_ID_ANY: Final = 0


class Replica:
    """A node's part in the sync of one sync id.

    Attributes:
        connections: how many connections of this sync id the node has; the caller keeps
            it up to date, and every heartbeat carries it.
        counters: everything that was counted.
    """

    def __init__(
        self,
        *,
        sync_id: int,
        node: str,
        epoch: int,
        configuration_digest: bytes,
        digests: Mapping[str, bytes],
        heartbeat_interval: float,
        datagram_max: int,
        pace: Pace | None = None,
    ) -> None:
        """Describe the replica.

        Args:
            sync_id: 0 to 255; a replica with 0 accepts any id.
            node: this node's name.
            epoch: a random number of 64 bits, another one at each start of the process.
            configuration_digest: 16 bytes, equal on nodes that are configured alike.
            digests: digests of the named pieces of the configuration.
            heartbeat_interval: seconds between heartbeats.
            datagram_max: the most bytes that a datagram may have, 500 to 65,507.
            pace: limits of the queue and of sending.
        """
        assert 0 <= sync_id <= 0xFF
        assert len(configuration_digest) == DIGEST_BYTES
        assert DATAGRAM_BYTES_MIN <= datagram_max <= DATAGRAM_BYTES_MAX
        assert heartbeat_interval > 0
        self.sync_id = sync_id
        self.node = node
        self.epoch = epoch
        self.connections = 0
        self.counters = Counters()
        self._heartbeat_interval = heartbeat_interval
        self._pace = pace or Pace()
        self._comparison = Comparison(configuration_digest, digests, datagram_max)
        self._source = Source(
            sync_id=sync_id,
            node=node,
            epoch=epoch,
            datagram_max=datagram_max,
            pace=self._pace,
            counters=self.counters,
        )
        self._home = self._new_copy(sync_id)
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
        times = [self._source.deadline, self._home.deadline]
        times += [copy.deadline for copy in self._others.values()]
        first = min(self._heartbeat_at, self._drained_at)
        return min([first, *(time for time in times if time is not None)])

    def status(self, now: float) -> dict[str, object]:
        """All that an operator may want to see, as JSON values."""
        source, leader = self._source, self._home.leader
        return {
            "sync_id": self.sync_id,
            "node": self.node,
            "epoch": self.epoch,
            "role": source.role.name,
            "term": source.term,
            "sequence": source.sequence,
            "complete": self.complete,
            "leader": None if leader is None else leader.node,
            "connections": self.connections,
            "lag": {
                "changes_queued": source.queued,
                "oldest_ms": round(1000 * source.age_of_oldest(now), 3),
            },
            "snapshotting": source.is_snapshotting,
            "configuration_differs": {
                node: list(names) for node, names in sorted(self._comparison.differing.items())
            },
            "peers": self._peers_status(now),
            "counters": self.counters.snapshot(),
        }

    def _peers_status(self, now: float) -> list[dict[str, object]]:
        return [
            {
                "node": peer.node,
                "sync_id": sync_id,
                "epoch": peer.epoch,
                "role": peer.role.name,
                "term": peer.term,
                "state": peer.state.name,
                "silent": peer.silent,
                "heard_ms_ago": round(1000 * (now - peer.heard), 3),
                "connections": peer.connections,
                "complete": peer.complete,
                "follows": peer.leader or None,
                "position": peer.position,
                "sequence": peer.stream.position,
                "gaps": peer.stream.gaps,
                "datagrams_lost": peer.stream.lost_total,
            }
            for sync_id, copy in ((self.sync_id, self._home), *sorted(self._others.items()))
            for peer in copy.peers.values()
        ]

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
        actions: Outcome = []
        if self._source.role is not Role.FOLLOW:
            actions.extend(self._source.flush())
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
        self._source.lead(max(self._source.term, self._home.term) + 1)
        self._home.lead(now)
        return self._performed([], now, heartbeat=True)

    def follow(self, now: float) -> list[Action]:
        """This node is a backup now; for ``DRAIN`` seconds it still tells."""
        if not self._running or self._source.role is not Role.LEAD:
            return []
        self._source.drain()
        self._drained_at = now + DRAIN
        return self._performed(self._home.follow(now), now, heartbeat=True)

    def resync(self, now: float) -> list[Action]:
        """The process was stalled: believe nothing until a leader's snapshot has come."""
        if not self._running or self._source.role is Role.LEAD:
            return []
        actions = self._home.resync(now)
        for copy in self._others.values():
            actions += copy.resync(now)
        return self._performed(actions, now)

    def tell(self, changes: Sequence[ConnectionChange], now: float) -> list[Action]:
        """The datapath's connections have changed; ignored unless this node tells."""
        if self._source.role is Role.FOLLOW or not self._running:
            return []
        if self._home.leading:
            for change in changes:
                self._home.own(
                    change.record.key if isinstance(change, ConnectionChanged) else change.key,
                    now,
                )
        return self._performed([*self._source.tell(changes, now)], now)

    def snapshot(self, records: Iterator[ConnectionRecord | None], now: float) -> list[Action]:
        """The answer to `ProvideSnapshot`.

        The iterator is read a little in each tick. It must yield each connection as it is
        when it is read, must not yield one that has ended, and may leave out those that
        came after the call, since they are told as changes.
        """
        return self._performed([*self._source.snapshot(records, now)], now)

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
        actions: Outcome = []
        received, taken = self._copy_of(message.origin.sync_id, now).receive(message, now)
        actions.extend(received)
        if taken:
            actions.extend(self._source.tell([ConnectionChanged(record) for record in taken], now))
        if message.origin.sync_id == self.sync_id:
            actions.extend(self._answer(message, now))
        return self._performed(actions, now)

    def expire(self, now: float) -> list[Action]:
        """The deadline has passed."""
        if not self._running:
            return []
        actions: Outcome = []
        if now >= self._drained_at:
            self._drained_at = float("inf")
            self._source.follow()
            actions += self._home.drained(now)
            self._heartbeat_at = now
        if self._source.role is not Role.FOLLOW:
            actions.extend(self._source.expire(now))
        for copy in (self._home, *self._others.values()):
            actions += copy.expire(now)
        return self._performed(actions, now, heartbeat=now >= self._heartbeat_at)

    # --- parts ---------------------------------------------------------------------

    def _new_copy(self, sync_id: int) -> Copy:
        return Copy(
            sync_id=sync_id,
            node=self.node,
            heartbeat_interval=self._heartbeat_interval,
            own_max=self._pace.queue_max,
            counters=self.counters,
        )

    def _copy_of(self, sync_id: int, now: float) -> Copy:
        if sync_id == self.sync_id:
            return self._home
        copy = self._others.get(sync_id)
        if copy is None:
            copy = self._others[sync_id] = self._new_copy(sync_id)
            copy.listen(now)
        return copy

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
        node = message.origin.node
        if node not in self._home.peers or self._home.peers[node].epoch != message.origin.epoch:
            return []
        match message:
            case SnapshotRequest() if message.leader == self.node:
                if self._source.role is not Role.LEAD or message.leader_epoch != self.epoch:
                    self.counters.add("snapshot_requests_refused")
                    return []
                self.counters.add("snapshot_requests")
                return self._source.request(message.position, now)
            case Heartbeat():
                return self._comparison.heard(node, message.digest)
            case Configuration():
                return self._comparison.described(node, message)
            case _:
                return []

    def _performed(self, actions: Outcome, now: float, *, heartbeat: bool = False) -> list[Action]:
        """Give requests their sender, add what is due, and count what is sent."""
        finished: list[Action] = []
        for action in actions:
            if isinstance(action, Ask):
                finished.append(self._request(action))
                continue
            finished.append(action)
            if isinstance(action, PeerChanged):
                # Peers show this node's state; let them see that it changed.
                spacing = HEARTBEAT_SPACING * self._heartbeat_interval
                self._heartbeat_at = min(
                    self._heartbeat_at, max(now, self._heartbeat_last + spacing)
                )
        if heartbeat:
            finished += self._heartbeat(now)
        self.counters.add("datagrams_sent", sum(isinstance(action, Send) for action in finished))
        return finished

    def _request(self, ask: Ask) -> Send:
        origin = self._source.origin
        if ask.sync_id != self.sync_id:
            # Of ids that are not its own, this node never leads any.
            origin = Origin(ask.sync_id, self.node, self.epoch, Role.FOLLOW, 0, 0)
        return Send(encode(SnapshotRequest(origin, ask.leader, ask.leader_epoch, ask.position)))

    def _heartbeat(self, now: float) -> list[Action]:
        self._heartbeat_last = now
        self._heartbeat_at = now + self._heartbeat_interval
        leader = self._home.leader
        origin = self._source.origin
        message = Heartbeat(
            origin,
            self.connections,
            self._comparison.digest,
            "" if leader is None else leader.node,
            PeerState.PROBE if leader is None else leader.state,
            0 if leader is None else leader.stream.position,
            self.complete,
        )
        for node in self._comparison.differing:
            if node not in self._home.peers:
                self._comparison.forget(node)
        parts = self._comparison.description(origin, now)
        return [Send(encode(message)), *(Send(encode(part)) for part in parts)]
