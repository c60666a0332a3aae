"""A `Director` between two made-up links, for tests of cores.

The client's side is link 1 (10.0.0.1/24, default route via 10.0.0.254), the servers' side
link 2 (10.1.0.1/16); the same for IPv6 with fd00:c::/64 and fd00:5::/64. All neighbours are
known unless a test forgets them. The virtual addresses are synced. Time stands still until
`sleep`.
"""

import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from lvsha.datapath.connections import Connection
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.network import HOST, AddressChange, LinkChange, NeighbourChange, RouteChange
from lvsha.datapath.reasons import Reason
from lvsha.datapath.registry import Registry
from lvsha.datapath.service_policy import ServicePolicy, TellRule, Unknown
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.datapath.stand_ins import StandIn
from lvsha.datapath.tunnels import IPIP, Tunnel
from lvsha.model import ForwardMethod, Protocol, parse_address
from lvsha.settings import Settings
from lvsha.tally import UNTOLD, Tally
from tests.packets import NO_VNET

CLIENT, SERVER = 1, 2
SIDES = {"client": CLIENT, "server": SERVER}
NAMES = {**{number: name for name, number in SIDES.items()}, HOST: "host"}
MACS = {CLIENT: bytes.fromhex("02000c000001"), SERVER: bytes.fromhex("020005000001")}
CLIENT_MAC = bytes.fromhex("02000c0000fe")
SERVERS_KNOWN = 64
SYNC_ID = 51

NAT, DR, TUN = ForwardMethod.NAT, ForwardMethod.DIRECT_ROUTE, ForwardMethod.TUNNEL

C4, V4, S4 = "198.51.100.71", "192.0.2.21", "10.1.0.11"
C6, V6, S6 = "2001:db8:1::77", "2001:db8:ffff::21", "fd00:5::b"


@dataclass(frozen=True, slots=True)
class Left:
    """One packet that left: the side, the MAC it went to, and its bytes."""

    side: str
    dmac: str
    packet: bytes
    vnet: bytes = NO_VNET


class Laboratory:
    """One director, its links and its clock."""

    def __init__(
        self,
        *,
        vips: Sequence[str] = (V4, V6),
        connections_max: int = 100_000,
        reporting: TellRule | None = None,
        unknown: Unknown = Unknown.RESET,
        answers_per_second: float = 1e6,
        mtu: int = 1500,
        settings: Settings | None = None,
    ) -> None:
        self.director = Director(
            connections_max=connections_max,
            dice=random.Random(1),
            reporting=reporting,
            unknown=unknown,
            settings=settings,
            answers_per_second=answers_per_second,
        )
        self.frame = Frame()
        self.now = 1000.0
        self._attach(mtu)
        self.tally = Tally(SYNC_ID)
        for vip in vips:
            address = parse_address(vip.partition("/")[0])
            self.director.registry.tallies[address] = self.tally
            self.director.learn(AddressChange(CLIENT, address, present=True))

    def _attach(self, mtu: int) -> None:
        learn = self.director.learn
        learn(LinkChange(CLIENT, "client", MACS[CLIENT], mtu, up=True))
        learn(LinkChange(SERVER, "server", MACS[SERVER], mtu, up=True))
        for side, network, gateway in (
            (CLIENT, "10.0.0.1/24", "10.0.0.254"),
            (CLIENT, "fd00:c::1/64", "fd00:c::fe"),
            (SERVER, "10.1.0.1/16", None),
            (SERVER, "fd00:5::1/64", None),
        ):
            interface = ipaddress.ip_interface(network)
            prefix = interface.network.network_address.packed
            own = interface.ip.packed
            learn(AddressChange(side, own, present=True))
            learn(RouteChange(prefix, interface.network.prefixlen, side, b"", own, 0, present=True))
            if gateway is not None:
                way = parse_address(gateway)
                learn(RouteChange(bytes(len(prefix)), 0, side, way, b"", 0, present=True))
                learn(NeighbourChange(side, way, CLIENT_MAC))
        for last in range(2, SERVERS_KNOWN):
            for text in (f"10.1.0.{last}", f"fd00:5::{last:x}"):
                address = parse_address(text)
                learn(NeighbourChange(SERVER, address, server_mac(address)))

    def service(
        self,
        address: str = V4,
        port: int = 80,
        *,
        protocol: Protocol = Protocol.TCP,
        scheduler: str = "rr",
        flags: Sequence[str] = (),
        persistence: int = 0,
        netmask: bytes = b"",
        one_packet: bool = False,
        engine: str = "",
        policy: ServicePolicy | None = None,
    ) -> VirtualService:
        """Add a virtual service."""
        there = parse_address(address)
        return self.director.services.add(
            ServiceIdentity(4 if len(there) == 4 else 6, protocol, there, port),
            ServiceOptions(scheduler, frozenset(flags), persistence, netmask, one_packet, engine),
            policy=policy,
        )

    def server(
        self,
        service: VirtualService,
        address: str = S4,
        port: int | None = None,
        *,
        method: ForwardMethod = NAT,
        weight: int = 1,
        upper: int = 0,
        lower: int = 0,
        tunnel: Tunnel = IPIP,
    ) -> RealServer:
        """Add a real server."""
        return self.director.services.add_server(
            service.identity,
            parse_address(address),
            service.port if port is None else port,
            ServerOptions(method, weight, upper, lower, tunnel),
        )

    def set(self, **settings: str | int) -> None:
        """Change settings, as one writes sysctls."""
        self.director.configure(self.director.settings.changed(settings))

    def edit(self, server: RealServer, weight: int) -> None:
        """Change a server's weight."""
        options = replace(server.options, weight=weight)
        self.director.services.edit_server(
            server.service.identity, server.address, server.port, options
        )

    def remove(self, server: RealServer) -> None:
        """Remove a server."""
        self.director.services.delete_server(server.service.identity, server.address, server.port)

    def put(self, side: str, packet: bytes, vnet: bytes = NO_VNET) -> int:
        """Put a packet into the frame buffer as if it had been received; returns its size."""
        link = SIDES[side]
        peer = CLIENT_MAC if link == CLIENT else bytes.fromhex("020504000002")
        ethertype = b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\x00"
        data = vnet + MACS[link] + peer + ethertype + packet
        self.frame.view[: len(data)] = data
        return len(data)

    def send(self, side: str, packet: bytes, vnet: bytes = NO_VNET) -> list[Left]:
        """Let a packet come in; returns all that left because of it."""
        return self.left(self.director.process(self.frame, self.put(side, packet, vnet), self.now))

    @staticmethod
    def left(outgoing: Sequence[tuple[int, bytes | bytearray | memoryview]]) -> list[Left]:
        """Outgoing frames as values."""
        return [
            Left(NAMES[link], bytes(data[10:16]).hex(":"), bytes(data[24:]), bytes(data[:10]))
            for link, data in outgoing
        ]

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        while self.director.housekeep(self.now):
            pass

    def drops(self) -> dict[Reason, int]:
        """What was dropped so far."""
        return dict(self.director.drops)

    def miscounted(self) -> list[str]:
        """Servers whose counts are not those of the connections bound to them."""
        counts: dict[RealServer, list[int]] = {}
        connections = list(self.director.registry.table.connections())
        for connection in connections:
            count = counts.setdefault(connection.server, [0, 0, 0, 0])
            count[2 if connection.is_template else 0 if connection.active else 1] += 1
            count[3] += _is_at_risk(connection)
        servers = {connection.server for connection in connections}
        servers.update(server for service in self.director.services for server in service.servers)
        return [
            f"{server}: {kept}, recounted {counts.get(server, [0, 0, 0, 0])}"
            for server in servers
            if (kept := [server.active, server.inactive, server.persistent, server.at_risk])
            != counts.get(server, [0, 0, 0, 0])
        ]

    def mistallied(self) -> list[str]:
        """Tallies that are not what a walk over the table gives."""
        registry = self.director.registry
        kept = {*registry.tallies.values(), *registry.mark_tallies.values(), registry._others}
        walked = {tally: Tally(tally.sync_id) for tally in kept}
        for connection in registry.table.connections():
            tally = tally_of(registry, connection)
            if tally is not None:
                count_in(walked[tally], connection)
            if connection.tally is not tally:
                return [f"{connection.key.hex()} counts at another sync id"]
        return [
            f"sync id {tally.sync_id}: {name} {getattr(tally, name)}, recounted {recounted}"
            for tally, again in walked.items()
            for name in ("connections", "told", "established", "exposed", "sums")
            if getattr(tally, name) != (recounted := getattr(again, name))
        ]


def tally_of(registry: Registry, connection: Connection) -> Tally | None:
    """Where a connection must count: at its address or mark, else with all others if these are
    told, and poisoned templates nowhere."""
    if connection in registry.table._poisoned:
        return None
    tally = sync_id_tally(registry, connection)
    return registry.other_tally if tally is None else tally


def sync_id_tally(registry: Registry, connection: Connection) -> Tally | None:
    """Where a connection must count because of its address or mark."""
    virtual, _ = connection.virtual
    if connection.is_template:
        if not connection.protocol:
            return registry.mark_tallies.get(int.from_bytes(virtual[:4]))
        return registry.tallies.get(virtual)
    if virtual in registry.tallies:
        return registry.tallies[virtual]
    if isinstance(connection.server, StandIn):
        return connection.tally  # its mark is that of rules which may have changed
    return registry.mark_tallies.get(connection.server.service.identity.mark)


def count_in(tally: Tally, connection: Connection) -> None:
    """Count a connection in a tally, by what docs/sync-protocol.md says of sums."""
    tally.connections += 1
    untold = connection.told_state == UNTOLD
    established = {Protocol.TCP: 1, Protocol.SCTP: 8}.get(Protocol(connection.protocol))
    if not connection.is_template and established in {None, connection.state}:
        tally.established += 1
        tally.exposed += untold
    if not untold:
        tally.told += 1
        key = connection.record_key
        end = connection.server.address + connection.binding.port.to_bytes(2)
        bucket = crc32(key) % 511 if connection.is_template else key[-3] + key[5]
        tally.sums[bucket] += (crc32(key + end) + 1) * (2 * connection.told_state + 1)
        tally.sums[bucket] %= 2**64


def server_mac(address: bytes) -> bytes:
    """The made-up link-layer address of a server."""
    return bytes((0x02, 0x05, 4 if len(address) == 4 else 6, 0)) + address[-2:]


def _is_at_risk(connection: Connection) -> bool:
    """Whether a client would notice the loss of a connection that only this director knows."""
    untold = connection.tally is not None and connection.told_state == UNTOLD
    return untold and connection.is_established
