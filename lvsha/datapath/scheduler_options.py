"""What a scheduler is told beside its servers.

One object belongs to one virtual service. The director changes it while the scheduler is at
work, so a scheduler reads it when it chooses, as the kernel's do.
"""

from dataclasses import dataclass, field
from typing import Protocol


class Dice(Protocol):
    """Where random numbers come from; a `random.Random` is one."""

    def randint(self, smallest: int, largest: int, /) -> int:
        """A number from ``smallest`` to ``largest``, both included."""


class _Always:
    """Dice that always show the smallest number, until real ones are given."""

    def randint(self, smallest: int, _largest: int, /) -> int:
        """The smallest."""
        return smallest


@dataclass(slots=True)
class SchedulerOptions:
    """Options of one service's scheduler.

    Attributes:
        flags: as ipvsadm names them.
        seed: of the hash of mh and sh; 0 gives the kernel's.
        lblc_expiration, lblcr_expiration: seconds.
        dice: for schedulers that draw lots.
    """

    flags: frozenset[str] = frozenset()
    seed: int = 0
    lblc_expiration: float = 86400.0
    lblcr_expiration: float = 86400.0
    dice: Dice = field(default_factory=_Always)
