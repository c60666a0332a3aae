"""Virtual services and their real servers, as the director holds them.

What always holds: a real server's active and inactive counts are those of the connections
bound to it; a new server stands at the head of its service's list, where the kernel's
director puts it, because every scheduler's ties go by that order.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from lvsha.datapath.network import NextHop
from lvsha.datapath.rewrite import Translation
from lvsha.model import ConnectionFlag, ForwardMethod, format_endpoint


class Scheduler(Protocol):
    """What a virtual service asks of its scheduler."""

    def schedule(self, key: bytes, /) -> "RealServer | None":
        """Choose a real server for the connection with this key; None if none is usable."""

    def updated(self, removed: "RealServer | None" = None, /) -> None:
        """Real servers were added, removed or edited; ``removed`` is no longer listed."""


@dataclass(frozen=True, slots=True, eq=False)
class ToServer:
    """The verdict to forward a request to a real server, by its method."""

    server: "RealServer"


@dataclass(frozen=True, slots=True, eq=False)
class ToClient:
    """The verdict to forward a real server's reply to the client (NAT)."""

    server: "RealServer"


@dataclass(slots=True)
class Statistics:
    """What the kernel counts for services and servers; bytes are those of IP packets."""

    connections: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0

    def add(self, other: "Statistics") -> None:
        """Add another's counts to these."""
        self.connections += other.connections
        self.in_packets += other.in_packets
        self.out_packets += other.out_packets
        self.in_bytes += other.in_bytes
        self.out_bytes += other.out_bytes


class RealServer:
    """One destination of one virtual service.

    Attributes:
        address, port: where it listens; the port is the service's own unless NAT changes it.
        available: still in its service's list; connections of a removed one are dropped.
        overloaded: above its upper threshold; gets no new connections.
        request, reply: how NAT rewrites either direction; None with other methods.
        hop, generation: the remembered way to it; see `lvsha.datapath.network`.
        path_mtu: of a tunnel to it, learned from an error; holds until ``path_mtu_until``.
        to_server, to_client: the verdicts for its packets in either direction.
    """

    __slots__ = (
        "active",
        "address",
        "available",
        "connection_flags",
        "generation",
        "hop",
        "inactive",
        "method",
        "overloaded",
        "path_mtu",
        "path_mtu_until",
        "port",
        "reply",
        "request",
        "service",
        "statistics",
        "to_client",
        "to_server",
        "weight",
    )

    def __init__(
        self,
        service: "VirtualService",
        address: bytes,
        port: int,
        weight: int,
        method: ForwardMethod,
    ) -> None:
        self.service = service
        self.address = address
        self.port = port
        self.weight = weight
        self.method = method
        self.available = True
        self.overloaded = False
        self.active = 0
        self.inactive = 0
        self.statistics = Statistics()
        self.hop: NextHop | None = None
        self.generation = -1
        self.path_mtu = 0
        self.path_mtu_until = -math.inf
        self.request: Translation | None = None
        self.reply: Translation | None = None
        flags = ConnectionFlag.INACTIVE
        if method is ForwardMethod.NAT:
            virtual, own = (service.address, service.port), (address, port)
            self.request = Translation(virtual, own, source=False)
            self.reply = Translation(own, virtual, source=True)
        else:
            flags |= ConnectionFlag.NO_OUTPUT
        self.connection_flags = int(flags)
        self.to_server = ToServer(self)
        self.to_client = ToClient(self)

    @property
    def usable(self) -> bool:
        """Whether a scheduler may choose it."""
        return self.weight > 0 and not self.overloaded

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


@dataclass(slots=True, eq=False)
class VirtualService:
    """A protocol, address and port that clients connect to.

    Attributes:
        held: whether this node holds the address, and so may open connections.
        in_transition: whether some still send to another node; see `Director.hold`.
        retired: what servers counted that are no longer listed.
    """

    name: str
    protocol: int
    address: bytes
    port: int
    scheduler_name: str
    scheduler: Scheduler = field(init=False)
    servers: list[RealServer] = field(default_factory=list)
    held: bool = True
    in_transition: bool = False
    retired: Statistics = field(default_factory=Statistics)

    @property
    def key(self) -> bytes:
        """What a request's key says of its service: family, protocol, address and port."""
        family = 4 if len(self.address) == 4 else 6
        return bytes((family, self.protocol)) + self.address + self.port.to_bytes(2)

    def server(self, address: bytes, port: int) -> RealServer | None:
        """The listed server at this address and port."""
        for server in self.servers:
            if server.port == port and server.address == address:
                return server
        return None

    @property
    def statistics(self) -> Statistics:
        """The counts of all servers, past ones too."""
        total = Statistics()
        total.add(self.retired)
        for server in self.servers:
            total.add(server.statistics)
        return total
