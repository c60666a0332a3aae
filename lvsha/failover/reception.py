"""Judge what arrives for one virtual router, before the election hears of it.

These are the checks of RFC 9568 and RFC 3768, section 7.1, on a message and its IP header,
and nothing else: no state changes here, and what is refused never reaches the election.
Who is heard depends on the mode. With multicast it is anybody on the link, by messages to
the group. With peers it is those alone, by messages to the own address.

The virtual router id is looked at first: several virtual routers share a link, and each
hears the messages of all. A fault in the message of another is not this one's affair.

What version 3 accepts and only tells (another interval, other addresses) is a `Difference`.
In version 2 another interval is a fault, because nobody learns it. Other addresses are
told there too: RFC 3768 lets a router look at them or not, and to ignore a live master for
them would make two.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lvsha.errors import AdvertisementError
from lvsha.model import IPv4_BYTES, format_address
from lvsha.wire import vrrp, vrrp2, vrrp_versions

_VERSION_AT: Final = 0
_VRID_AT: Final = 1
_IPv6_MULTICAST: Final = 0xFF
_IPv4_MULTICAST: Final = 0xE0


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message with what its IP header says."""

    message: bytes
    source: bytes
    destination: bytes
    hop_limit: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that must be discarded.

    Attributes:
        counter: what to count and log it as: ``refused_`` and an `AdvertisementFault` for
            what is wrong in the message, or ``own``, ``stranger``, ``destination`` or
            ``hop_limit`` for its header.
        details: for people.
    """

    counter: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """What is likely a mistake of configuration, but no reason to refuse a message."""

    counter: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Heard:
    """An advertisement for the election."""

    advertisement: vrrp.Advertisement
    differences: tuple[Difference, ...]


class OtherRouter:
    """The message is of another virtual router; that is no mistake."""


def is_multicast(address: bytes) -> bool:
    """Whether an address is that of a group."""
    if len(address) == IPv4_BYTES:
        return address[0] & 0xF0 == _IPv4_MULTICAST
    return address[0] == _IPv6_MULTICAST


class Reception:
    """What one virtual router expects of the messages that it hears."""

    def __init__(
        self,
        *,
        version: int,
        vrid: int,
        interval_cs: int,
        source: bytes,
        destinations: Sequence[bytes],
        addresses: Collection[bytes],
        hop_limit_min: int = vrrp.HOP_LIMIT,
        speakers: Collection[bytes] = (),
    ) -> None:
        """Describe what is expected.

        Args:
            version: of the protocol, 2 or 3.
            vrid: the number of the virtual router.
            interval_cs: the own one.
            source: the own address.
            destinations: where own messages go: the group, or the peers.
            addresses: the virtual ones of the family.
            hop_limit_min: what a message of a peer must have left at least.
            speakers: who alone is heard on the group; empty for everybody.
        """
        self._version = version
        self._vrid = vrid
        self._interval_cs = interval_cs
        self._speakers = speakers
        self._addresses = frozenset(addresses)
        self._hop_limit_min = hop_limit_min
        self.follow(source, destinations)

    def follow(self, source: bytes, destinations: Sequence[bytes]) -> None:
        """Take note of another own address, or of where own messages go now."""
        multicast = any(map(is_multicast, destinations))
        assert not multicast or len(destinations) == 1
        assert not multicast or self._hop_limit_min == vrrp.HOP_LIMIT
        self._source = source
        self._destination = destinations[0] if multicast else source
        known = self._speakers if multicast else destinations
        self._known = frozenset(known) if known else None

    def judge(self, received: ReceivedMessage) -> Heard | Refused | OtherRouter:
        """Say what a message is worth."""
        message = received.message
        if len(message) > _VRID_AT and message[_VRID_AT] not in {0, self._vrid}:
            return OtherRouter()
        refused = self._judge_header(received)
        if refused is not None:
            return refused
        try:
            advertisement = vrrp_versions.parse(
                message,
                self._version,
                source=received.source,
                destination=received.destination,
            )
        except AdvertisementError as error:
            details: dict[str, object] = {"error": str(error)}
            if error.fault == "version":
                details |= {"theirs": message[_VERSION_AT] >> 4, "ours": self._version}
            return Refused(f"refused_{error.fault}", details)
        if self._version == vrrp2.VERSION and advertisement.interval_cs != self._interval_cs:
            return Refused("refused_interval", self._intervals(advertisement))
        return Heard(advertisement, tuple(self._differences(advertisement)))

    def _judge_header(self, received: ReceivedMessage) -> Refused | None:
        if received.source == self._source:
            # A loop in the network sends our own words back to us.
            return Refused("refused_own")
        if self._known is not None and received.source not in self._known:
            return Refused("refused_stranger")
        if received.destination != self._destination:
            theirs = format_address(received.destination)
            return Refused("refused_destination", {"destination": theirs})
        if received.hop_limit < self._hop_limit_min:
            return Refused("refused_hop_limit", {"hop_limit": received.hop_limit})
        return None

    def _differences(self, advertisement: vrrp.Advertisement) -> list[Difference]:
        found: list[Difference] = []
        if frozenset(advertisement.addresses) != self._addresses:
            theirs = [format_address(one) for one in advertisement.addresses]
            found.append(Difference("address_list_differs", {"theirs": theirs}))
        if advertisement.interval_cs != self._interval_cs:
            found.append(Difference("interval_differs", self._intervals(advertisement)))
        return found

    def _intervals(self, advertisement: vrrp.Advertisement) -> dict[str, object]:
        return {
            "theirs_seconds": advertisement.interval_cs / 100,
            "ours_seconds": self._interval_cs / 100,
        }
