"""What the two ends of every kind of traffic have in common: how they are told and tell.

An end is a program with one argument, an `End` as JSON. It writes lines of JSON, each a
table of numbers: ``ready`` once it can be used; ``begun`` when it begins to count, and then
what it has counted, with ``rate``, the figure that is compared. Which end counts is the
traffic's affair.

Times are seconds.
"""

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

END_TIME_MAX: Final = 10.0
"""No end waits longer for the other."""


@dataclass(frozen=True, slots=True)
class End:
    """What an end must know.

    Attributes:
        family: 4 or 6.
        address: where the source sends to; the sink is bound to all addresses.
        port: of the sink.
        warm_up: how long traffic flows before anything is counted.
        window: how long is counted.
        pace: of what a source begins in a second; 0 for as fast as it goes.
    """

    family: int
    address: str
    port: int
    warm_up: float
    window: float
    pace: float = 0.0

    @property
    def address_family(self) -> socket.AddressFamily:
        """The family as sockets know it."""
        return socket.AF_INET if self.family == 4 else socket.AF_INET6

    def encode(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self))


def describe_end(text: str) -> End:
    """Read what `End.encode` wrote."""
    return End(**json.loads(text))


def say(numbers: Mapping[str, float]) -> None:
    """Tell the course something, at once."""
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()
