"""What a bench has measured, as values; no judgement and no layout.

Rates are per second: bytes, datagrams or connections, by the bench.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.carriers import Carrier
from bench.sync_results import SyncBytes, SyncForwarding, SyncJoin, SyncRecords


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of some figures."""

    median: float
    least: float
    most: float


def spread_of(figures: list[float]) -> Spread:
    """The spread of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


@dataclass(slots=True)
class Traffic:
    """One kind of traffic, each turn of each carrier in order.

    Attributes:
        name: of the bench.
        yardstick: the carrier that the director is compared with.
        target: the least ratio that is wanted; None where it is for information.
        unit: what the rates count.
        rates: by carrier, one for each repetition.
        offered: what the source sent, for each turn of the director; empty where that is
            the same as what arrives.
        failed: connections that failed, in all turns.
        shares: the part of a processor that the carrier used, beside each of its rates.
    """

    name: str
    yardstick: Carrier
    target: float | None
    unit: str
    rates: dict[Carrier, list[float]] = field(default_factory=dict)
    offered: list[float] = field(default_factory=list)
    failed: dict[Carrier, float] = field(default_factory=dict)
    shares: dict[Carrier, list[float]] = field(default_factory=dict)

    def add(self, carrier: Carrier, said: Mapping[str, float]) -> None:
        """Take over what the ends of one turn said."""
        self.rates.setdefault(carrier, []).append(said["rate"])
        self.shares.setdefault(carrier, []).append(said["share"])
        if carrier == "director" and "offered" in said:
            self.offered.append(said["offered"])
        self.failed[carrier] = self.failed.get(carrier, 0.0) + said.get("failed", 0.0)

    def ratios(self, carrier: Carrier = "director", to: Carrier | None = None) -> Spread:
        """A carrier against another, turn by turn."""
        yardstick = self.rates[to or self.yardstick]
        return spread_of([a / b for a, b in zip(self.rates[carrier], yardstick, strict=True)])

    def work(self, carrier: Carrier) -> list[float]:
        """What a carrier carries in a second of its own processor time.

        What else the machine does changes this much less than it changes a rate.
        """
        return [r / s for r, s in zip(self.rates[carrier], self.shares[carrier], strict=True)]

    def work_ratios(self) -> Spread:
        """The director's work against that of the bare loop."""
        pairs = zip(self.work("director"), self.work("yardstick"), strict=True)
        return spread_of([a / b for a, b in pairs])


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a connection, whole and by part."""

    method: str
    connections: int
    bytes: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Processing:
    """One decision: µs and multiples of an empty call, by kind of frame."""

    empty_call_us: float
    kinds: Mapping[str, Mapping[str, float]]


@dataclass(slots=True)
class Results:
    """Everything of one run."""

    environment: dict[str, object]
    traffic: list[Traffic] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    processing: Processing | None = None
    sync_bytes: list[SyncBytes] = field(default_factory=list)
    sync_joins: list[SyncJoin] = field(default_factory=list)
    sync_records: list[SyncRecords] = field(default_factory=list)
    sync_forwarding: list[SyncForwarding] = field(default_factory=list)
