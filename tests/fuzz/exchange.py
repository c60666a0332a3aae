"""A conversation as a generator: it gives frames, and is told what left because of each."""

from collections.abc import Generator, Sequence

from tests.fuzz import craft
from tests.fuzz.craft import Seen
from tests.fuzz.steps import Receive
from tests.fuzz.world import Sent

Conversation = Generator[Receive, Sequence[Sent], None]


def receive(packet: bytes, vnet: bytes = craft.NO_VNET) -> Receive:
    """A packet in order comes in."""
    return Receive(craft.frame(packet, vnet), sound=True)


def arrived(sent: Sequence[Sent], protocol: int) -> Seen | None:
    """What a real server gets to see, out of its tunnel, of this protocol."""
    for _, data in sent:
        seen = craft.read(craft.unwrapped(data[craft.L3 :]))
        if seen is not None and seen.protocol == protocol:
            return seen
    return None
