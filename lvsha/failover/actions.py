"""What an election has its caller do, in the order in which it says so."""

from dataclasses import dataclass
from typing import Final

from lvsha.model import VrrpState


@dataclass(frozen=True, slots=True)
class Advertise:
    """Send an advertisement with this priority; 0 resigns."""

    priority: int


@dataclass(frozen=True, slots=True)
class AcquireAddresses:
    """Put the virtual addresses on their interfaces."""


@dataclass(frozen=True, slots=True)
class ReleaseAddresses:
    """Take the virtual addresses off their interfaces."""


@dataclass(frozen=True, slots=True)
class AnnounceAddresses:
    """Send gratuitous ARP or unsolicited neighbour advertisements now."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state is another; ``reason`` is a word of `REASONS`, or says what the fault is."""

    old: VrrpState
    new: VrrpState
    reason: str


@dataclass(frozen=True, slots=True)
class TakeoverDue:
    """The master is missed; call `Election.consent` if this node is to be it."""


@dataclass(frozen=True, slots=True)
class TwoMasters:
    """Another one is MASTER as well, and is told to give way: its address and priority."""

    address: bytes
    priority: int


Action = (
    Advertise
    | AcquireAddresses
    | ReleaseAddresses
    | AnnounceAddresses
    | StateChanged
    | TakeoverDue
    | TwoMasters
)
Actions = tuple[Action, ...]

REASONS: Final = frozenset(
    {
        "started",
        "owner_started",
        "stopped",
        "master_silent",
        "master_resigned",
        "preempted_lower_priority",
        "higher_priority_heard",
        "greater_address_heard",
        "handed_over",
        "stalled",
        "fault",
        "recovered",
        "group_took_over",
        "group_gave_way",
    }
)
