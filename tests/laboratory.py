"""A `Director` between two made-up links, for tests of cores.

The client's side is link 1 (10.0.0.1/24, default route via 10.0.0.254), the servers' side
link 2 (10.1.0.1/16); the same for IPv6 with fd00:c::/64 and fd00:5::/64. All neighbours are
known unless a test forgets them. Time stands still until `sleep`.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from lvsha.datapath.director import Director, Reporting
from lvsha.datapath.flow import Frame
from lvsha.datapath.network import AddressChange, LinkChange, NeighbourChange, RouteChange
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import ForwardMethod, Protocol, parse_address
from tests.packets import NO_VNET

CLIENT, SERVER = 1, 2
SIDES = {"client": CLIENT, "server": SERVER}
NAMES = {number: name for name, number in SIDES.items()}
MACS = {CLIENT: bytes.fromhex("02000c000001"), SERVER: bytes.fromhex("020005000001")}
CLIENT_MAC = bytes.fromhex("02000c0000fe")
SERVERS_KNOWN = 64

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
        reporting: Reporting | None = None,
        answers_per_second: float = 1e6,
        mtu: int = 1500,
    ) -> None:
        self.director = Director(
            connections_max=connections_max,
            reporting=reporting,
            answers_per_second=answers_per_second,
        )
        self.frame = Frame()
        self.now = 1000.0
        self._attach(mtu)
        for vip in vips:
            address = parse_address(vip.partition("/")[0])
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
    ) -> VirtualService:
        """Add a virtual service."""
        name = f"{protocol.name} {address} {port}"
        return self.director.add_service(
            name, protocol, parse_address(address), port, scheduler, flags
        )

    def server(
        self,
        service: VirtualService,
        address: str = S4,
        port: int | None = None,
        *,
        method: ForwardMethod = NAT,
        weight: int = 1,
    ) -> RealServer:
        """Add a real server."""
        return self.director.add_server(
            service,
            parse_address(address),
            service.port if port is None else port,
            weight,
            method,
        )

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
        self.director.expire(self.now)

    def drops(self) -> dict[Reason, int]:
        """What was dropped so far."""
        return dict(self.director.drops)

    def miscounted(self) -> list[str]:
        """Servers whose counts are not those of the connections bound to them."""
        active: dict[RealServer, int] = {}
        inactive: dict[RealServer, int] = {}
        for connection in self.director.table.inbound.values():
            counts = active if connection.active else inactive
            counts[connection.server] = counts.get(connection.server, 0) + 1
        servers = {c.server for c in self.director.table.inbound.values()}
        servers.update(s for v in self.director.services.values() for s in v.servers)
        return [
            f"{server}: {server.active}/{server.inactive}, recounted "
            f"{active.get(server, 0)}/{inactive.get(server, 0)}"
            for server in servers
            if (server.active, server.inactive) != (active.get(server, 0), inactive.get(server, 0))
        ]


def server_mac(address: bytes) -> bytes:
    """The made-up link-layer address of a server."""
    return bytes((0x02, 0x05, 4 if len(address) == 4 else 6, 0)) + address[-2:]
