"""Firewall marks: which packets a mark's service is for.

In the kernel the packet filter gives a packet its mark before the director sees it. Frames
come to lvsha before any packet filter does, so the director itself gives marks, by rules as
one would write them for nftables. A rule looks at addresses, protocol and destination port;
the first that fits decides. A mark is only asked for when no connection matches, so rules
cost nothing per packet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.model import IPv4_BYTES

_ANY: Final = -1

Prefix = tuple[bytes, int]
"""An address in network order and a prefix length in bits."""


@dataclass(frozen=True, slots=True)
class MarkRule:
    """Packets that get a mark.

    Attributes:
        mark: a number other than 0.
        destination: the prefix that their destination lies in; its family is theirs.
        source: the prefix of their source; None for any.
        protocol: IP protocol number; 0 for any.
        ports: ranges of destination ports, first and last; empty for any.
    """

    mark: int
    destination: Prefix
    source: Prefix | None = None
    protocol: int = 0
    ports: tuple[tuple[int, int], ...] = ()

    def covers(self, address: bytes) -> bool:
        """Whether its destination has this address."""
        return len(self.destination[0]) == len(address) and _lies_in(address, self.destination)

    def fits(self, key: bytes) -> bool:
        """Whether a packet with this key (`lvsha.model.connection_key`) gets the mark."""
        size = (len(key) - 6) // 2
        if self.protocol and self.protocol != key[1]:
            return False
        if not self.covers(key[2 + size : 2 + 2 * size]):
            return False
        if self.source is not None and not _lies_in(key[2 : 2 + size], self.source):
            return False
        port = int.from_bytes(key[-2:])
        return not self.ports or any(first <= port <= last for first, last in self.ports)


class Marks:
    """The rules in force.

    They are found by the destination, with one look-up for each length of prefix that they
    have, and by the port of those that have but one. So a thousand rules for a thousand
    addresses or ports cost no more than one.
    """

    def __init__(self) -> None:
        self.rules: tuple[MarkRule, ...] = ()
        self._lengths: dict[tuple[int, int], None] = {}
        self._placed: dict[tuple[int, int, int, int], list[tuple[int, MarkRule]]] = {}

    def set(self, rules: Sequence[MarkRule]) -> None:
        """Put other rules into force."""
        self.rules = tuple(rules)
        self._lengths = {}
        self._placed = {}
        for order, rule in enumerate(self.rules):
            address, length = rule.destination
            size, shift = len(address), len(address) * 8 - length
            self._lengths[size, shift] = None
            place = (size, shift, int.from_bytes(address) >> shift, _only_port(rule))
            self._placed.setdefault(place, []).append((order, rule))

    def of(self, key: bytes) -> int:
        """The mark of a packet; 0 for none."""
        size = (len(key) - 6) // 2
        destination, port = int.from_bytes(key[2 + size : 2 + 2 * size]), int.from_bytes(key[-2:])
        first, mark = len(self.rules), 0
        for of_size, shift in self._lengths:
            if of_size != size:
                continue
            for only in (port, _ANY):
                for order, rule in self._placed.get((size, shift, destination >> shift, only), ()):
                    if order >= first:
                        break
                    if rule.fits(key):
                        first, mark = order, rule.mark
                        break
        return mark


def _only_port(rule: MarkRule) -> int:
    """The one port that a rule is for; `_ANY` where there is not just one."""
    if len(rule.ports) == 1 and rule.ports[0][0] == rule.ports[0][1]:
        return rule.ports[0][0]
    return _ANY


def _lies_in(address: bytes, prefix: Prefix) -> bool:
    network, length = prefix
    shift = len(address) * 8 - length
    return int.from_bytes(address) >> shift == int.from_bytes(network) >> shift


def whole(address: bytes) -> Prefix:
    """The prefix that holds one address."""
    return address, 32 if len(address) == IPv4_BYTES else 128
