"""What lvsha can be asked of a service that ipvsadm has no word for.

When the backups are told of its connections (`TellRule`), and what becomes of a packet in
mid-stream that no connection matches (`Unknown`). Both stand in the pair file; a service that
is added while the director runs takes the defaults, and editing it by ipvsadm leaves them as
they are.

Times are seconds.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class TellWhen(Enum):
    """The kinds of rules."""

    ESTABLISHED = "established"
    """As soon as a connection is established, and again before a copy could end."""
    THRESHOLD = "threshold"
    """As the kernel's sync daemon does: `lvsha.datapath.sync_rule`."""
    PACKETS = "packets"
    """Once it is established and has sent so many packets; from then on as `ESTABLISHED`."""
    DELAY = "delay"
    """Once it has been established for so long; from then on as `ESTABLISHED`."""
    TEMPLATES = "templates"
    """Never, but the templates of clients are told."""
    NEVER = "never"
    """Not at all."""


@dataclass(frozen=True, slots=True)
class TellRule:
    """When the backups are told of a connection.

    Attributes:
        when: the kind of rule.
        packets: of a client's packets, with `TellWhen.PACKETS`.
        delay: with `TellWhen.DELAY`.
    """

    when: TellWhen = TellWhen.ESTABLISHED
    packets: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        match self.when:
            case TellWhen.PACKETS:
                return f"after {self.packets} packets"
            case TellWhen.DELAY:
                return f"after {self.delay * 1000:g} ms"
            case _:
                return str(self.when.value)


ESTABLISHED: Final = TellRule()
THRESHOLD: Final = TellRule(TellWhen.THRESHOLD)
NEVER: Final = TellRule(TellWhen.NEVER)


class Unknown(Enum):
    """What becomes of a packet that belongs to no connection and may not open one."""

    KERNEL = "kernel"
    """The host's own stack gets it, and answers with a reset if nothing listens there."""
    ADOPT = "adopt"
    """It opens a connection after all: a real server is chosen again."""
    ASK = "ask"
    """It waits until the peers have said whether they know its connection."""
    RESET = "reset"
    """Its sender gets a reset."""


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """Both.

    Attributes:
        tell: when the backups are told of its connections.
        unknown: what becomes of packets that no connection matches.
        asked: whether the pair file has asked for `tell`. What nobody has asked for changes
            when a sync daemon is started by a command, and when it is stopped.
    """

    tell: TellRule = ESTABLISHED
    unknown: Unknown = Unknown.RESET
    asked: bool = True
