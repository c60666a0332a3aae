"""Tell the peers what this node's health checks find, and hear it of them.

Both nodes check, and each goes by what it finds itself. What they tell each other is for
people: a server that one node reaches and the other does not is a fault of a network, and at
a takeover all its connections would feel it. So a list is sent now and then, nothing of it is
asked for again, and only a whole one counts.

A list names the servers that are not up, of which there are few; who is not named is up.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from lvsha.sync.messages import Opinions, Origin

OPINIONS_MAX: Final = 2048
"""In a list; where so many servers are down nobody looks at the rest."""
_HEAD_BYTES: Final = 160
"""Of a message without its opinions, with a sender's name of the longest kind."""
_OPINION_BYTES: Final = 32
"""Of an opinion beside the service's name."""

NotUp = tuple[str, bytes, int, int]
"""Service, address and port of a server, and 1 if it is down, 0 if that is not known."""


def divide(
    origin: Origin, number: int, checked: int, opinions: Sequence[NotUp], datagram_max: int
) -> Iterator[Opinions]:
    """A list in as many messages as it takes, one at least.

    Args:
        origin: what this node's datagrams say of it.
        number: of the list.
        checked: how many servers are checked.
        opinions: of those that are not up.
        datagram_max: the most bytes of a datagram.
    """
    parts: list[list[NotUp]] = [[]]
    room = datagram_max - _HEAD_BYTES
    left = room
    for opinion in opinions[:OPINIONS_MAX]:
        size = len(opinion[0].encode()) + _OPINION_BYTES
        if size > left and parts[-1]:
            parts.append([])
            left = room
        left -= size
        parts[-1].append(opinion)
    for part, listed in enumerate(parts):
        yield Opinions(origin, number, part, len(parts), checked, tuple(listed))
