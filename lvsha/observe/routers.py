"""The health of virtual routers, from their advertisements alone.

It reads versions 2 and 3 of VRRP and answers: which virtual routers are there, who speaks for
each, at what priority and interval, how many advertisements were missed, how often the master
has changed, and whether there are two.

What always holds: memory is bounded by the limits below, and what is beyond them is counted.

Times are seconds on the caller's clock.
"""

from dataclasses import dataclass, field
from typing import Final

from lvsha.counters import Counters
from lvsha.errors import WireError
from lvsha.model import IPv4_BYTES, format_address
from lvsha.wire import vrrp, vrrp2

ROUTERS_MAX: Final = 256
SPEAKERS_MAX: Final = 8
_LATE: Final = 1.5
"""Intervals after which an advertisement counts as missed."""
_DOWN: Final = 3
"""Intervals after which a speaker is gone (Active_Down_Interval, without the skew)."""


@dataclass(slots=True)
class _Speaker:
    """One address that speaks for a virtual router.

    Attributes:
        since: when it began to speak, after it had been silent or had resigned.
        missed: advertisements that should have come while it was speaking.
    """

    version: int
    priority: int
    interval: float
    addresses: tuple[bytes, ...]
    checksum: str
    authentication: int
    since: float
    heard: float
    advertisements: int = 0
    missed: int = 0
    longest_gap: float = 0.0

    def is_speaking(self, now: float) -> bool:
        """Whether it holds the addresses, as far as one can hear."""
        return self.priority != vrrp.PRIORITY_RESIGN and now - self.heard <= _DOWN * self.interval


@dataclass(slots=True)
class _Router:
    speakers: dict[bytes, _Speaker] = field(default_factory=dict)
    master: bytes = b""
    changes: int = 0


class VirtualRouters:
    """The virtual routers of a link.

    Attributes:
        counters: messages that were refused, by cause, and what is beyond the limits.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        self._routers: dict[tuple[int, int], _Router] = {}

    def receive(
        self, message: bytes, source: bytes, destination: bytes, hop_limit: int, now: float
    ) -> None:
        """Take note of a message.

        Args:
            message: the payload of the IP packet.
            source: the address of its sender.
            destination: where it was sent to.
            hop_limit: of the packet.
            now: the clock.
        """
        if hop_limit != vrrp.HOP_LIMIT:
            self.counters.add("hop limit is not 255")
            return
        try:
            vrid, heard = _read(message, source, destination, now)
        except WireError as error:
            # The texts are constants of `lvsha.wire`.
            self.counters.add(str(error))
            return
        identity = (4 if len(source) == IPv4_BYTES else 6, vrid)
        router = self._routers.get(identity)
        if router is None:
            if len(self._routers) >= ROUTERS_MAX:
                self.counters.add("routers not followed")
                return
            router = self._routers[identity] = _Router()
        self._note(router, source, heard, now)

    def _note(self, router: _Router, source: bytes, new: _Speaker, now: float) -> None:
        old = router.speakers.get(source)
        if old is None and len(router.speakers) >= SPEAKERS_MAX:
            self.counters.add("speakers not followed")
            return
        new.advertisements = 1
        if old is not None:
            new.advertisements += old.advertisements
            new.missed, new.longest_gap = old.missed, old.longest_gap
            gap = now - old.heard
            if old.is_speaking(now):
                new.since = old.since
            elif new.priority != vrrp.PRIORITY_RESIGN and router.master == source:
                # Nobody else has spoken meanwhile: it was late, not away.
                new.since = old.since if old.priority != vrrp.PRIORITY_RESIGN else now
            if new.since == old.since and gap > _LATE * old.interval:
                new.missed += max(round(gap / old.interval) - 1, 1)
                new.longest_gap = max(new.longest_gap, gap)
        router.speakers[source] = new
        if new.priority != vrrp.PRIORITY_RESIGN and router.master != source:
            speaking = self._speaking(router, now)
            if speaking[-1] == source:
                router.changes += bool(router.master)
                router.master = source

    def _speaking(self, router: _Router, now: float) -> list[bytes]:
        """The speakers that hold the addresses, the one that began last at the end."""
        speaking = [
            (speaker.since, source)
            for source, speaker in router.speakers.items()
            if speaker.is_speaking(now)
        ]
        return [source for _, source in sorted(speaking)]

    def _rivals(self, router: _Router, now: float) -> list[bytes]:
        """Speakers of which each has been heard since the last of them began."""
        speaking = self._speaking(router, now)
        if len(speaking) < 2:
            return []
        last = router.speakers[speaking[-1]].since
        rivals = [source for source in speaking if router.speakers[source].heard > last]
        return [*rivals, speaking[-1]] if rivals and speaking[-1] not in rivals else rivals

    # What is shown

    def findings(self, now: float) -> list[str]:
        """What an operator should look at, in words."""
        found = [f"{count} advertisements: {cause}" for cause, count in self._refused()]
        for (family, vrid), router in self._routers.items():
            name = f"virtual router {vrid} (IPv{family})"
            speakers = router.speakers
            rivals = self._rivals(router, now)
            if len(rivals) > 1:
                found.append(f"{name} has two masters: {', '.join(map(format_address, rivals))}")
            elif not self._speaking(router, now):
                found.append(f"{name} has no master")
            for what, values in (
                ("intervals", {f"{speaker.interval:g} s" for speaker in speakers.values()}),
                ("versions", {str(speaker.version) for speaker in speakers.values()}),
                ("addresses", {_addresses(speaker) for speaker in speakers.values()}),
            ):
                if len(values) > 1:
                    found.append(f"{name}: speakers differ in {what}: {'; '.join(sorted(values))}")
            found += [
                f"{name}: {speaker.missed} of {speaker.advertisements + speaker.missed} "
                f"advertisements of {format_address(source)} missed, longest gap "
                f"{speaker.longest_gap:.2f} s"
                for source, speaker in speakers.items()
                if speaker.missed
            ]
        return found

    def status(self, now: float) -> dict[str, object]:
        """All that is known, as JSON values."""
        return {
            "routers": [
                {
                    "vrid": vrid,
                    "family": family,
                    "masters": [format_address(one) for one in self._speaking(router, now)],
                    "two_masters": len(self._rivals(router, now)) > 1,
                    "changes": router.changes,
                    "speakers": [
                        _speaker_status(source, speaker, now)
                        for source, speaker in router.speakers.items()
                    ],
                }
                for (family, vrid), router in sorted(self._routers.items())
            ],
            "refused": dict(self._refused()),
        }

    def _refused(self) -> list[tuple[str, int]]:
        return list(self.counters.snapshot().items())


def _read(message: bytes, source: bytes, destination: bytes, now: float) -> tuple[int, _Speaker]:
    """The virtual router of a message, and what it says of its sender."""
    if message[:1] and message[0] >> 4 == vrrp2.VERSION and len(source) == IPv4_BYTES:
        old = vrrp2.parse(message)
        return old.vrid, _Speaker(
            vrrp2.VERSION,
            old.priority,
            float(old.interval),
            old.addresses,
            "message",
            old.authentication,
            since=now,
            heard=now,
        )
    new = vrrp.parse(message, source=source, destination=destination)
    return new.vrid, _Speaker(
        new.version,
        new.priority,
        new.interval_cs / 100,
        new.addresses,
        "pseudo-header" if new.pseudo_header else "message",
        vrrp2.NO_AUTHENTICATION,
        since=now,
        heard=now,
    )


def _addresses(speaker: _Speaker) -> str:
    return ", ".join(map(format_address, speaker.addresses))


def _speaker_status(source: bytes, speaker: _Speaker, now: float) -> dict[str, object]:
    return {
        "address": format_address(source),
        "is_speaking": speaker.is_speaking(now),
        "version": speaker.version,
        "priority": speaker.priority,
        "interval_seconds": speaker.interval,
        "addresses": [format_address(address) for address in speaker.addresses],
        "checksum_over": speaker.checksum,
        "authentication": speaker.authentication,
        "heard_seconds_ago": now - speaker.heard,
        "speaking_seconds": speaker.heard - speaker.since,
        "advertisements": speaker.advertisements,
        "missed": speaker.missed,
        "longest_gap_seconds": speaker.longest_gap,
    }
