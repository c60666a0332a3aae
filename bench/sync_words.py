"""What the ends of a sync that is measured say to the course, as values and as lines of JSON.

Times are those of CLOCK_MONOTONIC, durations seconds unless they say otherwise.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """What an end has, and what has happened to it.

    Attributes:
        connections, told, established, total: of its tally; ends that agree have the same.
        counters: of its replica, courier and store, by name.
        blocked: the longest step of a task since the last standing.
        blocked_own: the longest in processor time.
    """

    connections: int
    told: int
    established: int
    total: int
    counters: Mapping[str, int]
    blocked: float
    blocked_own: float

    def agrees(self, other: "Standing") -> bool:
        """Whether both have the same connections in the same states."""
        mine = (self.connections, self.told, self.established, self.total)
        return mine == (other.connections, other.told, other.established, other.total)


@dataclass(frozen=True, slots=True)
class Told:
    """What a leader has told.

    Attributes:
        standing: how it stands.
        sequence: the newest number of its stream.
        told: the numbers of connections, and when they were.
    """

    standing: Standing
    sequence: int
    told: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Joined:
    """How a follower joined.

    Attributes:
        joined_at: when it began, with its first heartbeat.
        followed_at: when it followed the leader.
        complete_at: when its copy was complete.
        usable_at: when it was tried.
        own: processor time of its process, from when it joined until it was complete.
    """

    joined_at: float
    followed_at: float
    complete_at: float
    usable_at: float
    own: float


@dataclass(frozen=True, slots=True)
class Settled:
    """What a follower has in the end.

    Attributes:
        standing: how it stands.
        arrivals: when live connections were there, by number.
        lost, repaired: datagrams of the leader that never came; that came when they were
            asked for again.
    """

    standing: Standing
    arrivals: list[tuple[int, float]]
    lost: int
    repaired: int


@dataclass(frozen=True, slots=True)
class Carried:
    """How many records a leader told, in which time, and in how much of its processor's."""

    records: int
    seconds: float
    own: float


def encode(word: Told | Joined | Settled | Carried) -> str:
    """A line without its end."""
    # `asdict` would look at each of a hundred thousand times by itself.
    values = {name: getattr(word, name) for name in word.__slots__}
    return json.dumps(values, default=asdict)


def read_told(line: bytes) -> Told:
    """Read what `encode` wrote of a `Told`."""
    values = json.loads(line)
    told = [(number, at) for number, at in values["told"]]
    return Told(Standing(**values["standing"]), values["sequence"], told)


def read_joined(line: bytes) -> Joined:
    """Read what `encode` wrote of a `Joined`."""
    return Joined(**json.loads(line))


def read_settled(line: bytes) -> Settled:
    """Read what `encode` wrote of a `Settled`."""
    values = json.loads(line)
    arrivals = [(number, at) for number, at in values["arrivals"]]
    return Settled(Standing(**values["standing"]), arrivals, values["lost"], values["repaired"])


def read_carried(line: bytes) -> Carried:
    """Read what `encode` wrote of a `Carried`."""
    return Carried(**json.loads(line))
