"""What can happen to a director, as values that can be written to a file and read again.

A `Step` says all that is needed to take it: frames are bytes, addresses are bytes, nothing
is drawn any more. So a list of steps, with the `Plan` by which the director was made,
repeats a run wherever it is read, and any part of the list is a run as well.

Times are seconds, lengths bytes. In a file, bytes are written in hexadecimal.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, TypeAdapter

from lvsha.datapath.marks import MarkRule
from lvsha.datapath.network import NetworkChange
from lvsha.datapath.service_policy import ServicePolicy, TellRule, Unknown
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.model import ConnectionRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """How a director is made; ``seed`` is that of its dice.

    ``twin``: another one, made likewise, is to do the same; see `tests.fuzz.world`.
    """

    seed: int
    connections_max: int
    fragment_bytes: int
    answers_per_second: float
    mtu: int
    reporting: TellRule | None
    unknown: Unknown = Unknown.RESET
    twin: bool = False


@dataclass(frozen=True, slots=True)
class Receive:
    """A frame comes in: virtio header and Ethernet frame.

    ``sound``: it is in order, so what leaves because of it must be so, too.
    """

    data: bytes
    sound: bool = False
    kind: Literal["receive"] = "receive"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Time passes, and the director does what it brings."""

    seconds: float
    kind: Literal["sleep"] = "sleep"


@dataclass(frozen=True, slots=True)
class Learn:
    """The host's network changes."""

    change: NetworkChange
    kind: Literal["learn"] = "learn"


@dataclass(frozen=True, slots=True)
class SetService:
    """A service is added or changed."""

    action: Literal["add", "edit"]
    identity: ServiceIdentity
    options: ServiceOptions
    policy: ServicePolicy | None = None
    kind: Literal["set service"] = "set service"


@dataclass(frozen=True, slots=True)
class UnsetService:
    """A service is deleted, or its counters are zeroed."""

    action: Literal["delete", "zero"]
    identity: ServiceIdentity
    kind: Literal["unset service"] = "unset service"


@dataclass(frozen=True, slots=True)
class SetServer:
    """A real server is added or changed."""

    action: Literal["add", "edit"]
    identity: ServiceIdentity
    address: bytes
    port: int
    options: ServerOptions
    kind: Literal["set server"] = "set server"


@dataclass(frozen=True, slots=True)
class DeleteServer:
    """A real server is deleted."""

    identity: ServiceIdentity
    address: bytes
    port: int
    kind: Literal["delete server"] = "delete server"


@dataclass(frozen=True, slots=True)
class Command:
    """One of the commands without arguments."""

    name: Literal["flush", "zero", "clear network", "keep ways warm", "read snapshot", "tell all"]
    kind: Literal["command"] = "command"


@dataclass(frozen=True, slots=True)
class Configure:
    """Settings change."""

    changes: dict[str, int | str]
    kind: Literal["configure"] = "configure"


@dataclass(frozen=True, slots=True)
class SetMarks:
    """The rules for firewall marks change."""

    rules: tuple[MarkRule, ...]
    kind: Literal["set marks"] = "set marks"


@dataclass(frozen=True, slots=True)
class Tune:
    """Numbers that are set one by one."""

    name: Literal["seed", "memory", "clock", "tcp", "tcp_fin", "udp"]
    value: float
    kind: Literal["tune"] = "tune"


@dataclass(frozen=True, slots=True)
class Hold:
    """A virtual address comes to this node, or goes."""

    address: bytes
    held: bool
    in_transition: bool
    kind: Literal["hold"] = "hold"


@dataclass(frozen=True, slots=True)
class BackUp:
    """This node is a backup of these addresses."""

    addresses: tuple[bytes, ...]
    kind: Literal["back up"] = "back up"


@dataclass(frozen=True, slots=True)
class Apply:
    """A peer tells of a connection."""

    record: ConnectionRecord
    kind: Literal["apply"] = "apply"


@dataclass(frozen=True, slots=True)
class Forget:
    """A peer has ended a connection."""

    key: bytes
    kind: Literal["forget"] = "forget"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a peer begins, names these connections, and is swept after."""

    records: tuple[ConnectionRecord, ...]
    addresses: tuple[bytes, ...]
    kind: Literal["snapshot"] = "snapshot"


@dataclass(frozen=True, slots=True)
class Answer:
    """The peers answer what they were asked: they know some connections, and deny others."""

    known: tuple[ConnectionRecord, ...]
    denied: tuple[bytes, ...]
    kind: Literal["answer"] = "answer"


Step = Annotated[
    Receive
    | Sleep
    | Learn
    | SetService
    | UnsetService
    | SetServer
    | DeleteServer
    | Command
    | Configure
    | SetMarks
    | Tune
    | Hold
    | BackUp
    | Apply
    | Forget
    | Snapshot
    | Answer,
    Discriminator("kind"),
]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A run that failed: ``complaint`` says how."""

    plan: Plan
    steps: list[Step]
    complaint: str


_CODEC = TypeAdapter(
    tuple[Plan, list[Step], str], config=ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
)


def encode(reproduction: Reproduction) -> bytes:
    """A reproduction as JSON."""
    parts = (reproduction.plan, reproduction.steps, reproduction.complaint)
    return _CODEC.dump_json(parts, indent=1)


def decode(data: bytes) -> Reproduction:
    """A reproduction from JSON.

    Raises:
        ValueError: it is none.
    """
    return Reproduction(*_CODEC.validate_json(data))
