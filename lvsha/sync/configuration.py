"""Compare this node's configuration with its peers', and name what differs.

Every heartbeat carries one digest of the whole configuration. While some peer's digest
is another, each node also sends a description, the digests of the named pieces, in as
many parts as it takes; whoever has all parts of a peer's description knows where the two
differ. No configuration crosses the wire, only digests and names.

A description is sent a few parts with each heartbeat, again and again with a pause, so a
lost part comes with a later round. What is kept of a peer is bounded by ``PIECES_MAX``; a
peer with more is reported as different without saying where.

Times are seconds on a monotonic clock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lvsha.sync.actions import Action, ConfigurationAgrees, ConfigurationDiffers
from lvsha.sync.messages import Configuration, Origin

# Of each of the 10,000 services that a pair file can hold two, and as many that were added.
PIECES_MAX: Final = 50_000
PARTS_PER_HEARTBEAT: Final = 8
ROUND_PAUSE: Final = 5.0
# An operator reads the first few; the rest is counted by the last name.
NAMES_MAX: Final = 64
# What a part needs beside its pieces, with a sender's name of the longest kind.
PART_OVERHEAD_BYTES: Final = 150


@dataclass(slots=True)
class _Difference:
    """What is known of a peer whose digest is another than ours."""

    digest: bytes
    parts: int = 0
    received: dict[int, tuple[tuple[str, bytes], ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()


class Comparison:
    """This node's configuration against that of each peer."""

    def __init__(self, digest: bytes, digests: Mapping[str, bytes], datagram_max: int) -> None:
        self._room = datagram_max - PART_OVERHEAD_BYTES
        self._set(digest, digests)
        self._differences: dict[str, _Difference] = {}
        self._next_part = 0
        self._next_round = float("-inf")

    def _set(self, digest: bytes, digests: Mapping[str, bytes]) -> None:
        self.digest = digest
        self._digests = dict(digests)
        self._parts = list(_divide(self._digests, self._room))

    def change(self, digest: bytes, digests: Mapping[str, bytes]) -> list[Action]:
        """Our own configuration is another from now on; every peer is compared anew."""
        if digest == self.digest:
            return []
        self._set(digest, digests)
        self._next_part, self._next_round = 0, float("-inf")
        agreeing = [n for n, known in self._differences.items() if known.digest == digest]
        for node in agreeing:
            del self._differences[node]
        for known in self._differences.values():
            # What was named differs no more, perhaps; the next description tells.
            known.parts, known.received, known.names = 0, {}, ()
        return [ConfigurationAgrees(node) for node in agreeing]

    @property
    def differing(self) -> dict[str, tuple[str, ...]]:
        """The peers that differ, and in what."""
        return {node: difference.names for node, difference in self._differences.items()}

    def heard(self, node: str, digest: bytes) -> list[Action]:
        """A peer's heartbeat says what its digest is."""
        known = self._differences.get(node)
        if digest == self.digest:
            if known is None:
                return []
            del self._differences[node]
            return [ConfigurationAgrees(node)]
        if known is not None and known.digest == digest:
            return []
        self._differences[node] = _Difference(digest)
        self._next_round = float("-inf")
        return [ConfigurationDiffers(node, ())]

    def forget(self, node: str) -> None:
        """A peer is no longer known."""
        self._differences.pop(node, None)

    def described(self, node: str, message: Configuration) -> list[Action]:
        """A part of a peer's description came."""
        known = self._differences.get(node)
        if known is None or known.digest != message.digest:
            # Late, or ahead of the heartbeat that will make us want it.
            return []
        if known.parts != message.parts:
            known.parts, known.received = message.parts, {}
        known.received[message.part] = message.pieces
        if sum(map(len, known.received.values())) > PIECES_MAX:
            known.received = {}
            return []
        if len(known.received) < known.parts:
            return []
        theirs = dict(piece for pieces in known.received.values() for piece in pieces)
        names = _differing_names(self._digests, theirs)
        if names == known.names:
            return []
        known.names = names
        return [ConfigurationDiffers(node, names)]

    def description(self, origin: Origin, now: float) -> list[Configuration]:
        """The parts of our own description that are due with this heartbeat."""
        if not self._differences or now < self._next_round:
            return []
        first, total = self._next_part, len(self._parts)
        last = min(first + PARTS_PER_HEARTBEAT, total)
        self._next_part = last
        if last == total:
            self._next_part, self._next_round = 0, now + ROUND_PAUSE
        return [
            Configuration(origin, self.digest, part, total, self._parts[part])
            for part in range(first, last)
        ]


def _divide(digests: Mapping[str, bytes], room: int) -> Iterator[tuple[tuple[str, bytes], ...]]:
    """Pieces in groups that each fit in a datagram; at least one group, perhaps empty."""
    group: list[tuple[str, bytes]] = []
    size = 0
    for name, digest in sorted(digests.items()):
        length = 1 + 2 + len(name) + 2 + len(digest)
        if group and size + length > room:
            yield tuple(group)
            group, size = [], 0
        group.append((name, digest))
        size += length
    yield tuple(group)


def _differing_names(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> tuple[str, ...]:
    names = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if len(names) > NAMES_MAX:
        names[NAMES_MAX - 1 :] = [f"and {len(names) - NAMES_MAX + 1} more"]
    return tuple(names)
