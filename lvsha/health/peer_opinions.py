"""What the checks of other nodes find, and where this node finds otherwise.

A node tells of those servers that it does not find up, in a list of several parts that has a
number; a list counts when all its parts have come, and for `LASTING` seconds. Nothing follows
from it but that people see it: a server that one node reaches and another does not.

Times are seconds on a monotonic clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lvsha.health.opinions import Opinion

LASTING: Final = 10.0
"""A node that tells nothing for so long is asleep, or an older one."""
SETTLING: Final = 5.0
"""Two nodes do not look at the same time; only what differs for so long is said."""
NODES_MAX: Final = 32
PARTS_MAX: Final = 512

Server = tuple[str, bytes, int]
"""The name of a service, and the address and port of a server."""


@dataclass(slots=True)
class _Heard:
    """What one node has told."""

    number: int = -1
    parts: dict[int, Sequence[tuple[Server, Opinion]]] = field(default_factory=dict)
    checked: int = 0
    opinions: dict[Server, Opinion] = field(default_factory=dict)
    at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Of a server another node thinks otherwise than this one; or no more (``theirs`` None)."""

    node: str
    server: Server
    ours: Opinion
    theirs: Opinion | None


class PeerOpinions:
    """What other nodes think of the servers that this node checks."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._since: dict[tuple[str, Server], float] = {}
        self._told: dict[tuple[str, Server], tuple[Opinion, Opinion]] = {}

    def hear(
        self,
        node: str,
        number: int,
        part: int,
        parts: int,
        checked: int,
        opinions: Sequence[tuple[Server, Opinion]],
        now: float,
    ) -> bool:
        """Take one part of a node's list; whether the list is whole with it.

        Args:
            node: whose.
            number: of the list.
            part: which.
            parts: how many there are.
            checked: how many servers the node checks; 0 for none.
            opinions: of those that it does not find up.
            now: the clock.
        """
        if parts > PARTS_MAX or (node not in self._heard and len(self._heard) >= NODES_MAX):
            return False
        heard = self._heard.setdefault(node, _Heard())
        if heard.number != number:
            heard.number, heard.parts = number, {}
        heard.parts[part] = opinions
        if len(heard.parts) < parts:
            return False
        heard.opinions = dict(one for listed in heard.parts.values() for one in listed)
        heard.parts, heard.checked, heard.at = {}, checked, now
        return True

    def of(self, server: Server, now: float) -> dict[str, Opinion]:
        """What each node thinks of a server that has told lately, and checks any."""
        return {
            node: opinions.get(server, Opinion.UP) for node, opinions in self._lists(now).items()
        }

    def _lists(self, now: float) -> dict[str, dict[Server, Opinion]]:
        return {
            node: heard.opinions
            for node, heard in self._heard.items()
            if heard.checked and now < heard.at + LASTING
        }

    def compare(
        self, not_up: Mapping[Server, Opinion], checked: Mapping[Server, int], now: float
    ) -> Iterator[Disagreement]:
        """What has differed for `SETTLING`, and what differs no more; each is said once.

        Where either has no opinion yet nothing differs. Only servers that are not up here or
        there are looked at: no packet is forwarded meanwhile, and the others may be thousands.

        Args:
            not_up: what this node thinks of the servers that it does not find up.
            checked: the number of each server that it checks, in the order to say them in.
            now: the clock.
        """
        lists = self._lists(now)
        named = {server for opinions in lists.values() for server in opinions if server in checked}
        differing: dict[tuple[str, Server], tuple[Opinion, Opinion]] = {}
        for server in sorted(not_up.keys() | named, key=checked.__getitem__):
            own = not_up.get(server, Opinion.UP)
            for node, opinions in lists.items():
                theirs = opinions.get(server, Opinion.UP)
                if Opinion.UNKNOWN not in {own, theirs} and own is not theirs:
                    differing[node, server] = own, theirs
        self._since = {key: self._since.get(key, now) for key in differing}
        for key, (own, theirs) in differing.items():
            if self._told.get(key) != (own, theirs) and now >= self._since[key] + SETTLING:
                self._told[key] = own, theirs
                yield Disagreement(*key, own, theirs)
        for key in self._told.keys() - differing.keys():
            del self._told[key]
            node, server = key
            unnamed = Opinion.UP if server in checked else Opinion.UNKNOWN
            yield Disagreement(node, server, not_up.get(server, unnamed), None)
