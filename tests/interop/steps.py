"""What a scenario consists of: nouns, drawn by `draw` and carried out by `compare`.

Steps are intentions, not bytes: a server's reply needs to know which server the director
chose, which only the run tells. `traffic` makes packets of them.
"""

from dataclasses import dataclass

CLIENT, SERVER = "client", "server"


@dataclass(frozen=True, slots=True)
class Flow:
    """A client's conversation with a virtual address."""

    protocol: int
    client: str
    client_port: int
    virtual: str
    virtual_port: int


@dataclass(frozen=True, slots=True)
class Say:
    """One packet of a flow, from one of its ends.

    ``flags`` are TCP's, ``chunks`` the types of SCTP's chunks. A packet that is sent in
    ``fragments`` is one IP packet in several pieces.
    """

    flow: Flow
    side: str
    flags: int = 0
    chunks: tuple[int, ...] = ()
    payload_bytes: int = 0
    ttl: int = 64
    tos: int = 0
    dont_fragment: bool = True
    checksum: bool = True
    record_route: bool = False
    fragments: int = 1


@dataclass(frozen=True, slots=True)
class Complain:
    """An ICMP error about the last packet of a flow that went to a side, from that side."""

    flow: Flow
    side: str
    kind: int
    code: int
    reporter: str
    rest: int = 0
    quote_bytes_max: int = 1000


@dataclass(frozen=True, slots=True)
class Stray:
    """A packet of no flow."""

    side: str
    packet: bytes
    note: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command of ipvsadm, without that word."""

    text: str
    accepted: bool = True
    """Whether the command is right. One that is not must be refused by both."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A change of one of IPVS's settings."""

    name: str
    value: str


Step = Say | Complain | Stray | Command | Setting


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a seed says: a configuration and what happens then, in order."""

    seed: int
    schedulers: tuple[str, ...]
    marks: tuple[tuple[str, int], ...]
    configuration: tuple[Setting | Command, ...]
    steps: tuple[Step, ...]
