"""What listings show of a director, as plain values.

A view is made of a director's objects at one moment and does not change afterwards, so that
what formats it needs no director, and what is tested needs none either.

Times are seconds that are left; counts are since the last zeroing; rates are per second.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from lvsha.datapath.connections import Connection
from lvsha.datapath.memories import SIP, TemplateIdentity
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.datapath.tunnels import IPIP, Tunnel
from lvsha.model import ConnectionFlag, ForwardMethod
from lvsha.sync.ipvs.roster import Role

POISONED_PORT: Final = 65_535
"""What an invalidated template shows as both its ports that are not the client's."""


class Amounts(NamedTuple):
    """Counts, or rates."""

    connections: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0


NOTHING: Final = Amounts()


class _Amounting(Protocol):
    """What has these amounts: `Statistics` and `Rates`."""

    @property
    def connections(self) -> int: ...
    @property
    def in_packets(self) -> int: ...
    @property
    def out_packets(self) -> int: ...
    @property
    def in_bytes(self) -> int: ...
    @property
    def out_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ServerView:
    """One real server."""

    address: bytes
    port: int
    method: ForwardMethod
    tunnel: Tunnel = IPIP
    weight: int = 1
    upper: int = 0
    lower: int = 0
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    counted: Amounts = NOTHING
    rates: Amounts = NOTHING


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One virtual service; fields as in `ServiceIdentity` and `ServiceOptions`."""

    family: int
    protocol: int
    address: bytes
    port: int
    scheduler: str
    mark: int = 0
    flags: frozenset[str] = frozenset()
    persistence: int = 0
    netmask: bytes = b""
    one_packet: bool = False
    engine: str = ""
    counted: Amounts = NOTHING
    rates: Amounts = NOTHING
    servers: tuple[ServerView, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """One connection or template.

    Attributes:
        protocol: 0 of a firewall mark's template, whose virtual address is the mark.
        engine, found: the persistence engine, and what it found.
        synced: learned from another director.
    """

    protocol: int
    client: bytes
    client_port: int
    virtual: bytes
    virtual_port: int
    server: bytes
    server_port: int
    state: str
    remaining: int
    engine: str = ""
    found: bytes = b""
    synced: bool = False


@dataclass(frozen=True, slots=True)
class DaemonView:
    """One sync daemon that runs; None and empty where it does not tell."""

    role: Role
    interface: str
    sync_id: int
    length_max: int | None = None
    group: bytes = b""
    port: int | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class AppView:
    """One application helper."""

    protocol: int
    port: int
    uses: int
    name: str


def amounts(of: _Amounting) -> Amounts:
    """Counts or rates as they are now."""
    return Amounts(of.connections, of.in_packets, of.out_packets, of.in_bytes, of.out_bytes)


def view_server(server: RealServer) -> ServerView:
    """A real server as it is now."""
    return ServerView(
        address=server.address,
        port=server.port,
        method=server.method,
        tunnel=server.tunnel,
        weight=server.weight,
        upper=server.upper,
        lower=server.lower,
        active=server.active,
        inactive=server.inactive,
        persistent=server.persistent,
        counted=amounts(server.counted()),
        rates=amounts(server.rates),
    )


def view_service(service: VirtualService, servers: Iterable[RealServer]) -> ServiceView:
    """A service with its servers, in this order, as they are now."""
    identity, options = service.identity, service.options
    return ServiceView(
        family=identity.family,
        protocol=identity.protocol,
        address=identity.address,
        port=identity.port,
        scheduler=options.scheduler,
        mark=identity.mark,
        flags=options.flags,
        persistence=options.persistence,
        netmask=options.netmask,
        one_packet=options.one_packet,
        engine=options.engine,
        counted=amounts(service.counted()),
        rates=amounts(service.rates),
        servers=tuple(view_server(server) for server in servers),
    )


def view_connection(connection: Connection, now: float) -> ConnectionView:
    """A connection as it is now."""
    client, client_port = connection.client
    virtual, virtual_port = connection.virtual
    server_port = connection.binding.port
    found, engine = b"", ""
    if connection.is_template:
        state = "ASSURED" if connection.state else "NONE"
        template = connection.dialogue
        if isinstance(template, TemplateIdentity):
            found = template.found
            engine = SIP if found else ""
        if connection.is_poisoned:
            server_port = POISONED_PORT
    else:
        state = connection.machine.name_of(connection.state)
    return ConnectionView(
        protocol=connection.protocol,
        client=client,
        client_port=client_port,
        virtual=virtual,
        virtual_port=virtual_port,
        server=connection.server.address,
        server_port=server_port,
        state=state,
        remaining=max(int(connection.expires - now), 0),
        engine=engine,
        found=found,
        synced=bool(connection.flags & ConnectionFlag.SYNC),
    )
