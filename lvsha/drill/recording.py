"""What a drill saw, as values: the client's samples and the conductor's moments.

The client writes its part as JSON and the conductor reads it again: `encode_load` and
`decode_load` are a pair. Nothing is judged here; `timeline` does that.

All times are seconds on the host's monotonic clock, which the processes of one
machine share.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final, Literal

Kind = Literal["stream", "idle"]

ROUTER: Final = "web"
"""The virtual router of a drill; the first where there are two."""

RESET: Final = "reset"
CLOSED: Final = "closed by the other end"
REFUSED: Final = "refused"
UNREACHABLE: Final = "unreachable"
TIMED_OUT: Final = "no answer in time"
OTHER_SERVER: Final = "answered by another server"
GARBLED: Final = "wrong answer"


@dataclass(frozen=True, slots=True)
class LongConnection:
    """A stream or an idle connection.

    Attributes:
        kind: which of the two.
        opened_at: when the first answer came through it; None if none ever did.
        server: who gave that answer.
        answers: how many came.
        stalls: from sending to the answer, of exchanges that took noticeably long.
        broken_at: when it was seen broken, or when the message after the last was due.
        reason: why, in words for a person; empty while it is whole.
    """

    kind: Kind
    opened_at: float | None
    server: str
    answers: int
    stalls: tuple[tuple[float, float], ...]
    broken_at: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class ShortConnection:
    """One connection of the churn, from connect to close.

    It is established when an answer was received through it.
    """

    started_at: float
    established_at: float | None
    ended_at: float
    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram of a UDP flow and its answer, if one came.

    ``flow``: which of them; there is one to each virtual address.
    """

    sent_at: float
    answered_at: float | None
    server: str
    flow: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Everything the client program recorded.

    ``lateness_max`` is how far behind its schedule the probe ever was: no outage
    shorter than that can be told from a pause of the client itself.
    """

    long: tuple[LongConnection, ...]
    short: tuple[ShortConnection, ...]
    probe: tuple[Datagram, ...]
    lateness_max: float


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that was done to a director, and how long its effect was watched.

    Attributes:
        name: a failure of the options, or "return".
        node: the director that it was done to.
        heir: the director that should hold the virtual address afterwards.
        at: the moment.
        until: the end of watching.
        router: whose virtual address.
    """

    name: str
    node: str
    heir: str
    at: float
    until: float
    router: str = ROUTER


@dataclass(frozen=True, slots=True)
class StateSeen:
    """What a director was from this moment on for a virtual router, as it said itself."""

    at: float
    node: str
    state: str
    router: str = ROUTER


@dataclass(frozen=True, slots=True)
class SyncFrames:
    """What came to the directors on the sync network of a drill that drops some of it.

    Attributes:
        seen: how many frames.
        dropped: how many of them the director did not get.
    """

    seen: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Standstill:
    """A time in which a processor of the machine ran not even a program that only sleeps."""

    since: float
    until: float
    processor: int


@dataclass(frozen=True, slots=True)
class Recording:
    """One whole drill."""

    acts: tuple[Act, ...]
    states: tuple[StateSeen, ...]
    load: Load
    began_at: float
    ended_at: float
    sync_frames: SyncFrames = SyncFrames()
    standstills: tuple[Standstill, ...] = ()


def encode_load(load: Load) -> str:
    """Write the client's part as JSON; the probe as rows, as it is long."""
    return json.dumps(
        {
            "long": [asdict(connection) for connection in load.long],
            "short": [asdict(connection) for connection in load.short],
            "probe": [
                [entry.sent_at, entry.answered_at, entry.server, entry.flow] for entry in load.probe
            ],
            "lateness_max": load.lateness_max,
        }
    )


def decode_load(text: str) -> Load:
    """Read what `encode_load` wrote."""
    content = json.loads(text)
    return Load(
        long=tuple(
            LongConnection(**{**entry, "stalls": tuple((a, b) for a, b in entry["stalls"])})
            for entry in content["long"]
        ),
        short=tuple(ShortConnection(**entry) for entry in content["short"]),
        probe=tuple(Datagram(*entry) for entry in content["probe"]),
        lateness_max=content["lateness_max"],
    )
