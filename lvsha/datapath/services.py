"""Virtual services and their real servers, as the director holds them.

What always holds: a real server's counts are those of the connections bound to it; a new
server stands at the head of its service's list, where the kernel's director puts it, because
every scheduler's ties go by that order.

A `Binding` is how the connections of one real server are forwarded that have the same
virtual end. Most services have one for each server; one that stands for many ports or
addresses has more, made when they are needed and gone with their last connection.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, final
from weakref import WeakValueDictionary

from lvsha.datapath.estimator import Rates
from lvsha.datapath.network import NextHop
from lvsha.datapath.rewrite import Translation
from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.service_policy import ServicePolicy
from lvsha.datapath.tunnels import Tunnel
from lvsha.model import ConnectionFlag, ForwardMethod, IPv4_BYTES, IPv6_BYTES, format_endpoint


class Scheduler(Protocol):
    """What a virtual service asks of its scheduler."""

    def schedule(self, key: bytes, now: float, /) -> "RealServer | None":
        """Choose a real server for the connection with this key; None if none is usable."""

    def updated(self, removed: "RealServer | None" = None, /) -> None:
        """Real servers were added, removed or edited; ``removed`` is no longer listed."""


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

    def since(self, earlier: "Statistics") -> "Statistics":
        """What was counted since these had the values of ``earlier``."""
        return Statistics(
            self.connections - earlier.connections,
            self.in_packets - earlier.in_packets,
            self.out_packets - earlier.out_packets,
            self.in_bytes - earlier.in_bytes,
            self.out_bytes - earlier.out_bytes,
        )


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What may be changed of a real server while connections to it exist.

    Attributes:
        weight: 0 keeps connections and takes no new ones.
        upper, lower: connections at which it takes no new ones, and below which it takes
            them again; 0 for none.
        tunnel: of the method TUNNEL.
    """

    method: ForwardMethod = ForwardMethod.DIRECT_ROUTE
    weight: int = 1
    upper: int = 0
    lower: int = 0
    tunnel: Tunnel = field(default_factory=Tunnel)


@final
@dataclass(frozen=True, slots=True, eq=False)
class ToServer:
    """The verdict to forward a request to a real server, by the method of its connection.

    ``translation`` is how NAT rewrites it; None with other methods.
    """

    server: "RealServer"
    method: ForwardMethod
    translation: Translation | None


@final
@dataclass(frozen=True, slots=True, eq=False)
class ToClient:
    """The verdict to forward a real server's reply to the client (NAT)."""

    server: "RealServer"
    translation: Translation


class Binding:
    """How the packets of a connection are forwarded.

    Attributes:
        server: the real server.
        method: as it was when the connection was opened.
        port: of the real server; the virtual one unless NAT changes it.
        to_server, to_client: the verdicts for its packets in either direction; replies of
            other methods than NAT pass elsewhere.
    """

    __slots__ = ("__weakref__", "method", "port", "server", "to_client", "to_server")

    def __init__(self, server: "RealServer", virtual: bytes, virtual_port: int, port: int) -> None:
        self.server = server
        self.method = server.method
        self.port = port
        self.to_client: ToClient | None = None
        request: Translation | None = None
        if self.method is ForwardMethod.NAT:
            there, here = (virtual, virtual_port), (server.address, port)
            request = Translation(there, here, source=False)
            self.to_client = ToClient(server, Translation(here, there, source=True))
        self.to_server = ToServer(server, self.method, request)


class RealServer:
    """One destination of one virtual service.

    Attributes:
        address, port: where it listens; port 0 takes the port of the packet.
        available: still in its service's list, and so may take new connections.
        serving: its connections are forwarded; those of a removed one are dropped.
        overloaded: above its upper threshold; gets no new connections.
        last_weight: the newest weight that was not 0, for Maglev hashing.
        active, inactive: its connections; ``persistent``, its templates.
        at_risk: of its connections those that are established and synced, and that no backup
            was told of.
        statistics: all it ever counted; ``zeroed``, what was there when it was zeroed.
        rates: what passes per second.
        hop, generation: the remembered way to it; see `lvsha.datapath.network`.
        path_mtu: of a tunnel to it, learned from an error; holds until ``path_mtu_until``.
    """

    __slots__ = (
        "_bindings",
        "active",
        "address",
        "at_risk",
        "available",
        "connection_flags",
        "generation",
        "hop",
        "inactive",
        "last_weight",
        "lower",
        "method",
        "overloaded",
        "path_mtu",
        "path_mtu_until",
        "persistent",
        "port",
        "rates",
        "service",
        "serving",
        "statistics",
        "tunnel",
        "upper",
        "weight",
        "zeroed",
    )

    def __init__(
        self, service: "VirtualService", address: bytes, port: int, options: ServerOptions
    ) -> None:
        self.service = service
        self.address = address
        self.port = port
        self.available = self.serving = True
        self.overloaded = False
        self.active = self.inactive = self.persistent = self.at_risk = 0
        self.statistics = Statistics()
        self.zeroed = Statistics()
        self.rates = Rates()
        self.hop: NextHop | None = None
        self.generation = -1
        self.path_mtu = 0
        self.path_mtu_until = -math.inf
        self.upper = self.lower = 0
        self.last_weight = options.weight
        self.method = options.method
        self._bindings: WeakValueDictionary[tuple[bytes, int, int], Binding] = WeakValueDictionary()
        self.change(options)

    def change(self, options: ServerOptions) -> None:
        """Take over other options; connections that exist keep their method."""
        if options.upper == 0 or options.upper > self.upper:
            self.overloaded = False
        if options.method is not self.method:
            self._bindings = WeakValueDictionary()
        self.method = options.method
        self.weight = options.weight
        self.upper = options.upper
        self.lower = options.lower
        self.tunnel = options.tunnel
        if options.weight > 0:
            self.last_weight = options.weight
        flags = ConnectionFlag.INACTIVE
        if options.method not in {ForwardMethod.NAT, ForwardMethod.BYPASS}:
            flags |= ConnectionFlag.NO_OUTPUT
        self.connection_flags = int(flags)

    def bind(self, virtual: bytes, virtual_port: int, port: int) -> Binding:
        """The binding of connections to a virtual end that go to a port of this server."""
        if self.method is not ForwardMethod.NAT:
            virtual, virtual_port = b"", 0  # nothing of theirs is rewritten
        key = (virtual, virtual_port, port)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = Binding(self, virtual, virtual_port, port)
        return binding

    @property
    def options(self) -> ServerOptions:
        """The options in force."""
        return ServerOptions(self.method, self.weight, self.upper, self.lower, self.tunnel)

    @property
    def usable(self) -> bool:
        """Whether a scheduler may choose it."""
        return self.weight > 0 and not self.overloaded

    @property
    def idle(self) -> bool:
        """Whether nothing refers to it."""
        return not (self.active or self.inactive or self.persistent)

    def note_bound(self) -> None:
        """A connection or template was bound: look whether the upper threshold is reached.

        As Linux up to 6.12; later ones do not look when a template is bound.
        """
        if self.upper and self.active + self.inactive >= self.upper:
            self.overloaded = True

    def note_unbound(self) -> None:
        """One has ended: look whether it takes new ones again.

        That is below the lower threshold or, without one, below three quarters of the upper.
        """
        total = self.active + self.inactive
        if self.lower:
            if total < self.lower:
                self.overloaded = False
        elif not self.upper or total * 4 < self.upper * 3:
            self.overloaded = False

    def count(self, length: int, *, to_server: bool) -> None:
        """Count a packet of so many bytes; for a removed server none counts."""
        if not self.serving:
            return
        statistics = self.statistics
        if to_server:
            statistics.in_packets += 1
            statistics.in_bytes += length
        else:
            statistics.out_packets += 1
            statistics.out_bytes += length

    def counted(self) -> Statistics:
        """What was counted since it was zeroed."""
        return self.statistics.since(self.zeroed)

    sampled = counted

    def zero(self) -> None:
        """Let counters and rates begin at zero."""
        self.zeroed = self.statistics.since(Statistics())
        self.rates.zero()

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """What a virtual service is known by: a firewall mark, or a protocol, address and port.

    Attributes:
        family: 4 or 6.
        protocol: IP protocol number; of a mark's service the kernel says TCP.
        address, port: port 0 stands for all ports; empty and 0 where a mark identifies it.
        mark: the firewall mark; 0 for none.
    """

    family: int
    protocol: int
    address: bytes = b""
    port: int = 0
    mark: int = 0


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What may be changed of a virtual service.

    Attributes:
        scheduler: a name in `lvsha.datapath.schedulers.SCHEDULERS`, or ``none``.
        flags: of the scheduler.
        persistence: seconds for which a client keeps its real server; 0 for no persistence.
        netmask: what of a client's address persistence looks at; empty for all of it.
        one_packet: each UDP datagram is scheduled by itself.
        engine: of persistence: ``sip``, or empty.
    """

    scheduler: str = "wlc"
    flags: frozenset[str] = frozenset()
    persistence: int = 0
    netmask: bytes = b""
    one_packet: bool = False
    engine: str = ""


class VirtualService:
    """What clients connect to.

    Attributes:
        name: as the operator calls it.
        identity, options: as it was added and last edited.
        policy: what is asked of it beside the options; an edit leaves it.
        servers: newest first; `enlist` and `strike` change them.
        leaving: no more in the list, and serving their connections to the end.
        scheduler: None where the options name none.
        rates: what passes per second.
        bypass: stands for the destinations of packets that no server was found for and that
            go on to where they were sent (``cache_bypass``).
        retired: what servers counted that are no longer listed.
        seen: what had been counted when rates were last computed; ``whole``, the sum of that
            for all services of a table, past ones too.
        zeroed: what had been counted when it was zeroed.
    """

    __slots__ = (
        "_ends",
        "bypass",
        "identity",
        "leaving",
        "name",
        "options",
        "policy",
        "rates",
        "retired",
        "scheduler",
        "scheduler_options",
        "seen",
        "servers",
        "whole",
        "zeroed",
    )

    def __init__(
        self,
        name: str,
        identity: ServiceIdentity,
        options: ServiceOptions,
        policy: ServicePolicy | None = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.options = options
        self.policy = policy or ServicePolicy()
        self.servers: list[RealServer] = []
        self._ends: dict[tuple[bytes, int], RealServer] = {}
        self.leaving: list[RealServer] = []
        self.scheduler: Scheduler | None = None
        self.bypass: RealServer | None = None
        self.scheduler_options = SchedulerOptions()
        self.rates = Rates()
        self.retired = Statistics()
        self.seen = Statistics()
        self.whole = Statistics()
        self.zeroed = Statistics()

    @property
    def protocol(self) -> int:
        """The transport protocol number; 0 where a mark stands for all."""
        return 0 if self.identity.mark else self.identity.protocol

    @property
    def address(self) -> bytes:
        """The virtual address; empty where a mark identifies the service."""
        return self.identity.address

    @property
    def port(self) -> int:
        """The virtual port; 0 for all."""
        return self.identity.port

    def bypass_server(self) -> RealServer:
        """What stands for the destinations of packets that no server was found for."""
        if self.bypass is None:
            nowhere = bytes(IPv4_BYTES if self.identity.family == 4 else IPv6_BYTES)
            options = ServerOptions(method=ForwardMethod.BYPASS)
            self.bypass = RealServer(self, nowhere, 0, options)
        return self.bypass

    def server(self, address: bytes, port: int) -> RealServer | None:
        """The listed server at this address and port."""
        return self._ends.get((address, port))

    def enlist(self, server: RealServer) -> None:
        """Put a server at the head of the list."""
        self.servers.insert(0, server)
        self._ends[server.address, server.port] = server

    def strike(self, server: RealServer) -> None:
        """Take one from the list."""
        self.servers.remove(server)
        del self._ends[server.address, server.port]

    @property
    def at_risk(self) -> int:
        """Its connections that are established and synced, and that no backup was told of."""
        return sum(server.at_risk for server in self.servers)

    def all_counted(self) -> Statistics:
        """The counts of all servers, past ones too, since the service was added."""
        total = Statistics()
        total.add(self.retired)
        for servers in (self.servers, self.leaving):
            for server in servers:
                total.add(server.statistics)
        return total

    def counted(self) -> Statistics:
        """What was counted since the service was zeroed."""
        return self.all_counted().since(self.zeroed)

    def sampled(self) -> Statistics:
        """As `counted`, and what is new goes into the sum for all services."""
        everything = self.all_counted()
        self.whole.add(everything.since(self.seen))
        self.seen = everything
        return everything.since(self.zeroed)
