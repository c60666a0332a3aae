"""What a `Replica` asks of its caller, as values.

Actions are carried out in the order in which they were returned. None of them can fail
as far as the replica is concerned: what the caller cannot do, it counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lvsha.model import ConnectionRecord
from lvsha.sync.messages import Opinions, PeerState


@dataclass(frozen=True, slots=True)
class Send:
    """Send this datagram to the group."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Apply:
    """Enter these connections, or bring them to these states; they are confirmed by that."""

    records: Sequence[ConnectionRecord]


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the connections with these keys, where there are any."""

    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class BeginSnapshot:
    """From now on, mark the connections in these buckets of the sync id that are applied."""

    sync_id: int
    buckets: int


@dataclass(frozen=True, slots=True)
class EndSnapshot:
    """Remove those in these buckets that were not applied since the last begin."""

    sync_id: int
    buckets: int


@dataclass(frozen=True, slots=True)
class ProvideSnapshot:
    """Call `Replica.snapshot` with all told connections in these buckets of its sync id."""

    buckets: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Call `Replica.answer` with those of these connections that are here."""

    asker: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Deny:
    """No other director knows these connections."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """A peer was heard, lost, or went from one state to another."""

    node: str
    state: PeerState
    reason: str


@dataclass(frozen=True, slots=True)
class ConfigurationDiffers:
    """A peer has another configuration; ``names`` is empty until it is known where."""

    node: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigurationAgrees:
    """A peer whose configuration differed has the same one again."""

    node: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is wrong that an operator must see.

    ``kind`` is ``second_leader`` (two nodes lead one sync id), ``duplicate_node`` (two
    nodes have one name), or ``mismatch`` (connections differ from the leader's although
    they came whole).
    """

    kind: str
    node: str


@dataclass(frozen=True, slots=True)
class OpinionsHeard:
    """A part of what a peer's health checks find."""

    message: Opinions


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The leader wants this node to hold the addresses, and it has all that the leader has."""

    leader: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A datagram was dropped; ``reason`` holds nothing that came from it."""

    reason: str


Action = (
    Send
    | Apply
    | Forget
    | BeginSnapshot
    | EndSnapshot
    | ProvideSnapshot
    | LookUp
    | Deny
    | PeerChanged
    | ConfigurationDiffers
    | ConfigurationAgrees
    | Alarm
    | TakeOver
    | OpinionsHeard
    | Refused
)
