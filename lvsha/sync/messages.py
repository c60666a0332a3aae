"""What directors say to each other about connections, as values.

docs/sync-protocol.md has the meaning of each; `lvsha.sync.datagrams` turns them into bytes
and back.

A node understands the protocol up to a level. Level 1 is that of version 0.1.0; a sender
keeps to the highest level that all who hear it understand. Messages that only differ in
their level are one value here.

A message of a type that is not known is a value, too: `Unknown`.

Times are seconds, and none of them is a time of day or of a clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from lvsha.model import BUCKETS, ConnectionRecord, VrrpState, Witness

LEVEL: Final = 2
"""What this implementation understands."""
LEVEL_PLAIN: Final = 1
"""What it falls back to: no groups, no templates, snapshots of everything."""

DIGEST_BYTES: Final = 16
# The payload of the largest UDP datagram over IPv4 (65,535 less 20 and 8).
DATAGRAM_BYTES_MAX: Final = 65_507
# A pair file has at most 16 nodes.
HEARD_MAX: Final = 16
# They fit in the smallest datagram that may be configured.
RANGES_MAX: Final = 20
SUM_BYTES: Final = 8
# Four datagrams of 1,400 bytes for all sums.
SUMS_MAX: Final = 128
KEYS_MAX: Final = 32

ALL_BUCKETS: Final = (1 << BUCKETS) - 1
"""A set of buckets is a number, in which bit n stands for bucket n."""


class MessageType(IntEnum):
    """The numbers of all messages; docs/sync-protocol.md has their fields."""

    HEARTBEAT = 1
    RECORDS = 2
    SNAPSHOT_REQUEST = 3
    SNAPSHOT_BEGIN = 4
    SNAPSHOT_CHUNK = 5
    SNAPSHOT_END = 6
    CONFIGURATION = 7
    GAP_REQUEST = 8
    SUMS = 9
    HANDOVER = 10
    # Never sent: a sealed datagram is known by its version.
    SEALED = 11
    CHANGES = 12
    PART_BEGIN = 13
    PART_CHUNK = 14
    PART_END = 15
    SUMS_REQUEST = 16
    PROGRESS = 17
    QUESTION = 18
    ANSWER = 19
    OPINIONS = 20


class Role(IntEnum):
    """What the sender is for its sync id.

    Within one term a node passes through the roles in the order of the numbers, so that
    the pair (term, role) of a sender only grows and a datagram that comes late shows.
    """

    LEAD = 1
    DRAIN = 2
    FOLLOW = 3


class PeerState(IntEnum):
    """How far a follower is with the stream of its leader."""

    PROBE = 0
    SNAPSHOT = 1
    REPLICATE = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """What every datagram says of its sender.

    ``sequence`` is the number of this datagram for those that carry connections, and the
    highest number used so far for all others.
    """

    sync_id: int
    node: str
    epoch: int
    role: Role
    term: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a sender has, and how complete it is.

    Attributes:
        told: connections that were told.
        total: the sum of the tally's buckets.
        is_current: whether these two hold at the origin's number: nothing waits to be sent.
        established: connections whose loss a client would notice.
        exposed: those of them that nobody was told of.
        missing: numbers of its leader that it waits for.
        wanted: buckets that it waits for.
        mismatched: buckets that differ although they came whole.
        lost: datagrams of its leader that never came.
        repaired: datagrams of its leader that came when they were asked for again.
    """

    told: int = 0
    total: int = 0
    is_current: bool = False
    established: int = 0
    exposed: int = 0
    missing: int = 0
    wanted: int = 0
    mismatched: int = 0
    lost: int = 0
    repaired: int = 0


@dataclass(frozen=True, slots=True)
class Duty:
    """What a sender is for the virtual router of its sync id, and what its witness says.

    ``priority`` is the one that it has there now.
    """

    state: VrrpState
    witness: Witness
    priority: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sender is alive; says what it has, and how far it is with whom it follows.

    Attributes:
        connections: how many it has.
        digest: of its configuration.
        leader: whom it follows; empty for nobody.
        state, position: how far it is with that one.
        complete: whether its copy is.
        level: what it understands.
        speaks: the level that it keeps to now.
        oldest: the oldest number that it can send again.
        heard: the epochs of the senders that it hears.
        standing: of level 2.
        duty: None if it does not say.
    """

    origin: Origin
    connections: int
    digest: bytes
    leader: str
    state: PeerState
    position: int
    complete: bool
    level: int = LEVEL_PLAIN
    speaks: int = LEVEL_PLAIN
    oldest: int = 0
    heard: tuple[int, ...] = ()
    standing: Standing = field(default_factory=Standing)
    duty: Duty | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """Live changes: connections as they are, and the keys of those that ended."""

    origin: Origin
    records: Sequence[ConnectionRecord]
    ended: list[bytes]


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A follower asks ``leader`` for these buckets; ``position`` is the highest number it saw."""

    origin: Origin
    leader: str
    leader_epoch: int
    position: int
    buckets: int = ALL_BUCKETS


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """All of these buckets follows; the datagram's own number names the snapshot."""

    origin: Origin
    buckets: int = ALL_BUCKETS


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Some connections of the snapshot that began with number ``begin``."""

    origin: Origin
    begin: int
    records: Sequence[ConnectionRecord]


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The snapshot that began with number ``begin`` had ``records`` records."""

    origin: Origin
    begin: int
    records: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """One part of a description of a configuration: the digests of its named pieces."""

    origin: Origin
    digest: bytes
    part: int
    parts: int
    pieces: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class GapRequest:
    """A follower asks ``leader`` for numbers again: (first, how many) each."""

    origin: Origin
    leader: str
    leader_epoch: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SumsRequest:
    """A follower asks ``leader`` for the sums of all buckets."""

    origin: Origin
    leader: str
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of some buckets, from ``first`` on.

    They are those at the origin's number; unless ``is_current`` is false, because changes
    wait to be sent that are in the sums already.
    """

    origin: Origin
    first: int
    sums: tuple[int, ...]
    is_current: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """The highest number of ``leader`` that a follower knows of; some below may be missing."""

    origin: Origin
    leader: str
    leader_epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Handover:
    """A leader calls who shall lead next, as soon as it has all up to this number; the answer.

    Attributes:
        node, node_epoch: for whom it is.
        moment: of an answer, the microsecond of the sender's clock; of a call, that of the
            newest answer, 0 before there is one. So a call that was late shows.
    """

    origin: Origin
    node: str
    node_epoch: int
    moment: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """Who knows these connections?"""

    origin: Origin
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """To ``asker``: what this node has of what was asked, and what it does not have."""

    origin: Origin
    asker: str
    records: Sequence[ConnectionRecord]
    unknown: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Opinions:
    """A part of a list of the real servers that the sender's health checks do not find up.

    Attributes:
        number: of the list; each has the next.
        part, parts: of it.
        checked: how many servers are checked; 0 says that all this means nothing.
        opinions: service, address and port of a server, and 1 if it is down, 0 if that is
            not known.
    """

    origin: Origin
    number: int
    part: int
    parts: int
    checked: int
    opinions: tuple[tuple[str, bytes, int, int], ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that this version does not speak."""

    origin: Origin
    kind: int


Numbered = Changes | SnapshotBegin | SnapshotChunk | SnapshotEnd
"""What carries connections, and so has a number of its own."""

Message = (
    Numbered
    | Heartbeat
    | SnapshotRequest
    | Configuration
    | GapRequest
    | SumsRequest
    | Sums
    | Progress
    | Handover
    | Question
    | Answer
    | Opinions
    | Unknown
)
