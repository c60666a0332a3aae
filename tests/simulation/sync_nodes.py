"""The nodes of the sync simulation, and the connections that they tell of."""

from dataclasses import dataclass, field

from lvsha.model import (
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    template_key,
)
from lvsha.sync.replica import Replica
from lvsha.sync.seal import Seal
from tests.replicas import Table

VIRTUAL = bytes((192, 0, 2, 1))
# A sender: name, epoch and term; and with the sequence number of its datagram.
Leader = tuple[str, int, int]
Sender = tuple[Leader, int]


def connection(client: int, incarnation: int, state: int = 1) -> ConnectionRecord:
    """A connection whose server's address says which of all with its key it is."""
    return ConnectionRecord(
        key_of(client), incarnation.to_bytes(4), 8080, ForwardMethod.NAT, state, 0, 900.0
    )


def key_of(client: int) -> bytes:
    """Of a connection, or of a template of one of the clients."""
    address = (0x0A000000 + client).to_bytes(4)
    if client % 5:
        return connection_key(6, address, 1024 + client % 7, VIRTUAL, 80)
    found = b"call" if client % 2 else b""
    return template_key(connection_key(6, address, 0, VIRTUAL, 80), found)


@dataclass
class Node:
    """One machine: its replica and its table.

    Attributes:
        behind: by how much its clock is, since it stood still with the machine.
        forgotten: (key, incarnation) -> whose delete took it away.
        believed: peer -> epoch -> when it was last heard; the last one is believed now.
    """

    name: str
    replica: Replica
    epoch: int
    table: Table
    seal: Seal | None = None
    up: bool = True
    behind: float = 0.0
    stalled_until: float = 0.0
    notices: bool = True
    backlog: list[bytes] = field(default_factory=list)
    forgotten: dict[tuple[bytes, bytes], Leader] = field(default_factory=dict)
    believed: dict[str, dict[int, float]] = field(default_factory=dict)
    asked: set[bytes] = field(default_factory=set)
    wake: int = 0
