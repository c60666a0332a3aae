"""What can happen to a pair of replicas, as values that can be written to a file.

As `tests.fuzz.steps`: nothing is drawn any more, so a list of steps repeats a run, and any
part of the list is a run as well. Nodes are named by their place, times are seconds.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, TypeAdapter


@dataclass(frozen=True, slots=True)
class Plan:
    """How the replicas are made.

    ``levels``: what each understands. ``key``: the wire is sealed with it, and epochs are
    proven; none if it is empty. A third node has sync id 0.
    """

    levels: tuple[int, int, int]
    key: bytes
    datagram_max: int
    queue_max: int
    bytes_per_second: int
    window: int


@dataclass(frozen=True, slots=True)
class Hostile:
    """A datagram comes that no node has sent so."""

    node: int
    data: bytes
    kind: Literal["hostile"] = "hostile"


@dataclass(frozen=True, slots=True)
class Change:
    """Connections change at a node, which tells of it: (client, state); ended if negative."""

    node: int
    changes: tuple[tuple[int, int], ...]
    kind: Literal["change"] = "change"


CallName = Literal["lead", "follow", "resync", "ask", "configure", "restart"]


@dataclass(frozen=True, slots=True)
class Call:
    """Something is asked of a node."""

    node: int
    name: CallName
    kind: Literal["call"] = "call"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Time passes."""

    seconds: float
    kind: Literal["sleep"] = "sleep"


@dataclass(frozen=True, slots=True)
class Lose:
    """The network loses the next datagrams."""

    count: int
    kind: Literal["lose"] = "lose"


Step = Annotated[Hostile | Change | Call | Sleep | Lose, Discriminator("kind")]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A run that failed: ``complaint`` says how."""

    plan: Plan
    steps: list[Step]
    complaint: str


_CODEC = TypeAdapter(
    tuple[Literal["sync"], Plan, list[Step], str],
    config=ConfigDict(ser_json_bytes="hex", val_json_bytes="hex"),
)


def encode(reproduction: Reproduction) -> bytes:
    """A reproduction as JSON."""
    parts = (reproduction.plan, reproduction.steps, reproduction.complaint)
    return _CODEC.dump_json(("sync", *parts), indent=1)


def decode(data: bytes) -> Reproduction:
    """A reproduction from JSON.

    Raises:
        ValueError: it is none.
    """
    _, plan, steps, complaint = _CODEC.validate_json(data)
    return Reproduction(plan, steps, complaint)
