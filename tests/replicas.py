"""Connections, a naive table, replicas and a scripted peer, for tests of the sync core."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict, TypeVar, Unpack

from lvsha.model import (
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
    bucket_of,
    connection_key,
    template_key,
)
from lvsha.runs import Run
from lvsha.sync.actions import Action, Send
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.messages import (
    ALL_BUCKETS,
    LEVEL,
    SUMS_MAX,
    Changes,
    Heartbeat,
    Message,
    Origin,
    PeerState,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Standing,
    Sums,
)
from lvsha.sync.pace import Pace
from lvsha.sync.peers import silence_limit
from lvsha.sync.replica import Replica
from lvsha.tally import UNTOLD, Tally

SYNC_ID = 1
HEARTBEAT = 0.5
SILENCE = silence_limit(HEARTBEAT)
DIGEST = bytes(16)
START = 100.0
VIRTUAL = bytes((192, 0, 2, 1))


# --- connections ----------------------------------------------------------------------------


def connection(number: int, state: int = 1, server: int = 1) -> ConnectionRecord:
    """A connection of bucket ``number`` modulo 256."""
    return ConnectionRecord.between(
        protocol=6,
        client=(0x0A000000 + number).to_bytes(4),
        client_port=1024,
        virtual=VIRTUAL,
        virtual_port=80,
        server=bytes((10, 1, 0, server)),
        server_port=8080,
        method=ForwardMethod.NAT,
        state=state,
        flags=0,
        timeout=900.0,
    )


def template(number: int, found: bytes = b"") -> ConnectionRecord:
    """A persistence template of the same client."""
    client = (0x0A000000 + number).to_bytes(4)
    key = template_key(connection_key(6, client, 0, VIRTUAL, 80), found)
    return connection(number)._replace(key=key, flags=0x1000)


def changed(number: int, state: int = 1, server: int = 1) -> ConnectionChanged:
    return ConnectionChanged(connection(number, state, server))


def ended(number: int) -> ConnectionEnded:
    return ConnectionEnded(connection(number).key)


def bits(*buckets: int) -> int:
    """A set of buckets."""
    return sum(1 << bucket for bucket in set(buckets))


def members(buckets: int) -> list[int]:
    """The buckets in a set."""
    found = []
    while buckets:
        lowest = buckets & -buckets
        found.append(lowest.bit_length() - 1)
        buckets ^= lowest
    return found


class Table:
    """A naive table of one sync id, as `lvsha.sync.courier.ConnectionTable` describes it.

    Everything in it was told. What was applied bears the mark of the latest begin; a bucket
    that ends loses what bears an older one.
    """

    def __init__(self, records: Iterable[ConnectionRecord] = (), sync_id: int = SYNC_ID) -> None:
        self.content: dict[bytes, ConnectionRecord] = {}
        self.tally = Tally(sync_id)
        self.denied: list[bytes] = []
        self._marks: dict[int, dict[bytes, int]] = {}
        self._begun: dict[int, int] = {}
        self._generation = 0
        self.apply(list(records))

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        for record in records:
            self.drop(record.key)
            key, server, port, _, state, *_ = record
            self.content[key] = record
            self._marks.setdefault(bucket_of(key), {})[key] = self._generation
            self.tally.connections += 1
            self.tally.established += 1
            self.tally.retell(key, server, port, UNTOLD, state)

    def drop(self, key: bytes) -> ConnectionRecord | None:
        """Take one out; returns what was there."""
        known = self.content.pop(key, None)
        if known is not None:
            del self._marks[bucket_of(key)][key]
            self.tally.connections -= 1
            self.tally.established -= 1
            self.tally.retell(key, known.server, known.server_port, known.state, UNTOLD)
        return known

    def forget(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.drop(key)

    def begin_all(self, buckets: int) -> None:
        """Mark what is applied from now on in all of these buckets."""
        self._generation += 1
        for bucket in members(buckets):
            self._begun[bucket] = self._generation

    def end_all(self, buckets: int) -> list[ConnectionRecord]:
        """Sweep all of these buckets; returns what went."""
        swept = []
        for bucket in members(buckets):
            marks, begun = self._marks.get(bucket, {}), self._begun.get(bucket, 0)
            for key in [key for key, mark in marks.items() if mark < begun]:
                swept += [record for record in [self.drop(key)] if record is not None]
        return swept

    def begin(self, sync_id: int, bucket: int | None) -> None:
        self.begin_all(ALL_BUCKETS if bucket is None else 1 << bucket)

    def end(self, sync_id: int, bucket: int | None) -> None:
        self.end_all(ALL_BUCKETS if bucket is None else 1 << bucket)

    def records_of(self, buckets: int) -> Iterator[Run | None]:
        """What was told of these buckets, each as it is when it is read; None has ended."""
        if buckets == ALL_BUCKETS:
            wanted = list(self.content)
        else:
            wanted = [key for b in members(buckets) for key in self._marks.get(b, ())]
        for key in wanted:
            record = self.content.get(key)
            yield None if record is None else Run(record, [key])

    def records(self, sync_id: int, buckets: Iterable[int]) -> Iterator[Run | None]:
        for bucket in buckets:
            yield from filter(None, self.records_of(1 << bucket))
            yield None

    def lookup(self, keys: Sequence[bytes]) -> list[ConnectionRecord]:
        return [self.content[key] for key in keys if key in self.content]

    def deny(self, keys: Sequence[bytes]) -> None:
        self.denied += keys


# --- replicas -------------------------------------------------------------------------------


class Options(TypedDict, total=False):
    """What a test may say of a replica."""

    sync_id: int
    tally: Tally
    epoch: int
    digest: bytes
    digests: dict[str, bytes]
    datagram_max: int
    pace: Pace
    proven: bool
    alive_interval: float
    level: int


def make_replica(node: str = "west", **options: Unpack[Options]) -> Replica:
    tally = options.get("tally")
    return Replica(
        tally=Tally(options.get("sync_id", SYNC_ID)) if tally is None else tally,
        node=node,
        epoch=options.get("epoch", 77),
        configuration_digest=options.get("digest", DIGEST),
        digests=options.get("digests", {}),
        heartbeat_interval=HEARTBEAT,
        datagram_max=options.get("datagram_max", 1400),
        pace=options.get("pace"),
        proven=options.get("proven", False),
        alive_interval=options.get("alive_interval"),
        level=options.get("level", LEVEL),
    )


def started(node: str = "west", **options: Unpack[Options]) -> Replica:
    replica = make_replica(node, **options)
    replica.start(START)
    return replica


def leading(**options: Unpack[Options]) -> Replica:
    replica = started(**options)
    replica.lead(START)
    return replica


_Kind = TypeVar("_Kind", bound=Message)


def sent(actions: Iterable[Action]) -> list[Message]:
    return [decode(action.datagram) for action in actions if isinstance(action, Send)]


def sent_of(kind: type[_Kind], actions: Iterable[Action]) -> list[_Kind]:
    return [message for message in sent(actions) if isinstance(message, kind)]


def events(actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Send)]


def expire_until(replica: Replica, until: float) -> list[Action]:
    """Call `expire` at each deadline, as a shell does."""
    actions: list[Action] = []
    last, again = float("-inf"), 0
    while (deadline := replica.deadline) is not None and deadline <= until:
        # Something that is due may make something else due at once, but not for ever.
        again = again + 1 if deadline <= last else 0
        assert again < 3, "the shell would spin"
        last = max(deadline, last)
        actions += replica.expire(last)
    return actions


def peers(replica: Replica, node: str, now: float = START) -> list[dict[str, object]]:
    listed = replica.status(now)["peers"]
    assert isinstance(listed, list)
    return [peer for peer in listed if peer["node"] == node]


class East:
    """A scripted leader that speaks to the replica under test.

    Args:
        replica: who hears it.
        epoch, node, level: what it says of itself; with level 1 it speaks as version 0.1.0.

    Attributes:
        tally: what its sums and heartbeats say that it has.
    """

    def __init__(
        self, replica: Replica, epoch: int = 5, node: str = "east", level: int = LEVEL
    ) -> None:
        self.replica = replica
        self.node = node
        self.epoch = epoch
        self.level = level
        self.role = Role.LEAD
        self.term = 1
        self.sequence = 0
        self.sync_id = SYNC_ID
        self.oldest = 0
        self.tally = Tally(SYNC_ID)

    def origin(self) -> Origin:
        return Origin(self.sync_id, self.node, self.epoch, self.role, self.term, self.sequence)

    def numbered(self, sequence: int | None) -> Origin:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        return self.origin()

    def say(self, message: Message, now: float = START) -> list[Action]:
        return self.replica.receive(encode(message, self.level), now)

    def heartbeat(
        self,
        now: float = START,
        *,
        digest: bytes = DIGEST,
        leader: str = "",
        state: PeerState = PeerState.PROBE,
        position: int = 0,
        heard: tuple[int, ...] = (),
        standing: Standing | None = None,
    ) -> list[Action]:
        told = Standing(self.tally.told, self.tally.total, is_current=True)
        message = Heartbeat(
            self.origin(),
            self.tally.connections,
            digest,
            leader,
            state,
            position,
            True,
            level=self.level,
            speaks=self.level,
            oldest=self.oldest,
            heard=heard,
            standing=told if standing is None else standing,
        )
        return self.say(message, now)

    def changes(
        self, *entries: ConnectionRecord | bytes, now: float = START, sequence: int | None = None
    ) -> list[Action]:
        """Live changes: records, and the keys of what ended."""
        records = [entry for entry in entries if isinstance(entry, ConnectionRecord)]
        keys = [entry for entry in entries if not isinstance(entry, ConnectionRecord)]
        return self.say(Changes(self.numbered(sequence), records, keys), now)

    def sums(
        self, now: float = START, *, parts: Sequence[int] = range(4), is_current: bool = True
    ) -> list[Action]:
        """The sums of what it has; all four datagrams unless said otherwise."""
        actions: list[Action] = []
        for first in (SUMS_MAX * part for part in parts):
            sums = tuple(self.tally.sums[first : first + SUMS_MAX])
            actions += self.say(Sums(self.origin(), first, sums, is_current), now)
        return actions

    def begin(
        self, buckets: int = ALL_BUCKETS, now: float = START, sequence: int | None = None
    ) -> list[Action]:
        return self.say(SnapshotBegin(self.numbered(sequence), buckets), now)

    def chunk(
        self,
        begin: int,
        *records: ConnectionRecord,
        now: float = START,
        sequence: int | None = None,
    ) -> list[Action]:
        return self.say(SnapshotChunk(self.numbered(sequence), begin, list(records)), now)

    def end(
        self, begin: int, count: int, now: float = START, sequence: int | None = None
    ) -> list[Action]:
        return self.say(SnapshotEnd(self.numbered(sequence), begin, count), now)

    def whole_snapshot(
        self, *records: ConnectionRecord, now: float = START, buckets: int = ALL_BUCKETS
    ) -> list[Action]:
        actions = self.begin(buckets, now)
        begin = self.sequence
        actions += self.chunk(begin, *records, now=now)
        return actions + self.end(begin, len(records), now)

    def state(self) -> object:
        (peer,) = peers(self.replica, self.node)
        return peer["state"]


def replicating(replica: Replica | None = None, level: int = LEVEL) -> East:
    """A leader whose follower, the replica, has all that it has: nothing."""
    east = East(replica or started(), level=level)
    east.heartbeat()
    if level == LEVEL:
        east.sums()
    else:
        east.whole_snapshot()
    assert east.state() == "REPLICATE"
    return east
