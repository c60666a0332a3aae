"""What a person may choose about a bench, and nothing else.

The values cross to the process in the private world as one JSON text. Times are seconds.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.laboratory import Family

BENCHES: Final = {
    "bulk-dr": "bulk TCP, direct routing",
    "bulk-nat": "bulk TCP, NAT",
    "small-dr": "small UDP packets, direct routing",
    "small-nat": "small UDP packets, NAT",
    "churn-dr": "new TCP connections, direct routing",
    "footprint": "memory of a connection",
    "processing": "one decision, without I/O",
    "sync-bytes": "bytes of a connection on the sync wire",
    "sync-join": "a peer joins, and has a copy",
    "sync-records": "records told and taken in",
    "sync-forwarding": "forwarding with sync",
}
"""Every bench, by the name it is chosen by."""


@dataclass(frozen=True, slots=True)
class Options:
    """One run, in full.

    Attributes:
        benches: which of `BENCHES`.
        family: 4 or 6, of every address in the laboratory.
        repetitions: turns of each carrier.
        warm_up: traffic before each window.
        window: how long is counted, in each turn.
        connections: for the memory of a connection.
        rounds: of the decision without I/O.
        join_sizes: how many connections a leader has that a peer joins, in turn.
        joins: turns of each.
        records_time: for how long each rate of records is kept up.
        pin: whether the carrier and the ends of the traffic get processors of their own.
        json: where all samples are written; nowhere by default.
    """

    benches: tuple[str, ...]
    family: Family
    repetitions: int
    warm_up: float
    window: float
    connections: int
    rounds: int
    join_sizes: tuple[int, ...]
    joins: int
    records_time: float
    pin: bool
    json: Path | None

    def encode(self) -> str:
        """Write the options as JSON, the path absolute."""
        values = asdict(self)
        values["json"] = None if self.json is None else str(self.json.absolute())
        return json.dumps(values)


def decode_options(text: str) -> Options:
    """Read what `Options.encode` wrote."""
    values = json.loads(text)
    values["benches"] = tuple(values["benches"])
    values["join_sizes"] = tuple(values["join_sizes"])
    values["json"] = None if values["json"] is None else Path(values["json"])
    return Options(**values)
