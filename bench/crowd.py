"""A director with many connections and many services, and frames of any of them.

Frames are cut from templates, for a million handshakes are to be fed in less than a minute.
They have partial checksums, as a neighbouring virtual machine sends them. Connection
``number`` comes from an address and a port of its own, or from one port that all have.

Times are seconds on the director's clock.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lvsha.datapath.director import Director
from lvsha.datapath.flow import ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame
from lvsha.datapath.marks import MarkRule, whole
from lvsha.datapath.network import LinkChange, NeighbourChange, RouteChange
from lvsha.datapath.service_policy import TellRule
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tcp_states import ACK, SYN
from lvsha.model import ForwardMethod, IPv4_BYTES, Protocol, parse_address
from lvsha.settings import Settings
from lvsha.tally import Tally
from lvsha.wire import ipv4, ipv6, vnet

SEED: Final = 1
SYNC_ID: Final = 1
OUTSIDE: Final = 1
INSIDE: Final = 2
SERVICE_PORT: Final = 80
NAT_PORT: Final = 8080
ONE_PORT: Final = 5060
HANDSHAKE_TIMES: Final = (SYN, SYN | ACK, ACK)
"""The flags of the client, of the server, and of the client again."""

_ETHERNET: Final = bytes(12)
_TTL: Final = 64
_FIRST_PORT: Final = 1024
_PORTS: Final = 60_000
_PORT_STEP: Final = 2_654_435_761
"""Knuth's multiplier: neighbouring connections have ports that look as if drawn at random."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What all connections of a crowd have in common.

    Attributes:
        method: NAT or direct routing.
        protocol: TCP or UDP.
        family: 4 or 6.
        persistence: of the service, in seconds; each client is one connection.
        one_port: all clients use `ONE_PORT`.
    """

    method: ForwardMethod = ForwardMethod.NAT
    protocol: Protocol = Protocol.TCP
    family: int = 4
    persistence: int = 0
    one_port: bool = False

    def __str__(self) -> str:
        method = "NAT" if self.method is ForwardMethod.NAT else "DR"
        return f"{self.protocol.name} {method} IPv{self.family}"


@dataclass(frozen=True, slots=True)
class _Template:
    """A frame in which the client's address and port are still 0.

    Attributes:
        data: the frame.
        client_at, port_at: where they are to be written.
        field: the header checksum without them; that of IPv6 has none.
    """

    data: bytes
    client_at: int
    port_at: int
    field: int


class Crowd:
    """One director and its clients.

    Args:
        kind: of all connections.
        services: how many virtual services there are; connections go round them.
        servers: of each service.
        marked: services are identified by firewall marks, with a rule for each.
        settings, reporting: of the director.
        connections_max: the limit of its table.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        services: int = 1,
        servers: int = 1,
        marked: bool = False,
        settings: Settings | None = None,
        reporting: TellRule | None = None,
        connections_max: int = 3_000_000,
    ) -> None:
        self.kind = kind
        self.frame = Frame()
        self.director = Director(
            connections_max=connections_max,
            dice=random.Random(SEED),
            settings=settings,
            reporting=reporting,
        )
        self.tally = Tally(SYNC_ID)
        size = IPv4_BYTES if kind.family == 4 else 16
        self._client_base = int.from_bytes(parse_address("11.0.0.0" if size == 4 else "2001:db8::"))
        self._size = size
        virtual_base = int.from_bytes(parse_address("12.0.0.0" if size == 4 else "2001:db9::"))
        server_base = int.from_bytes(parse_address("10.0.0.0" if size == 4 else "fd00::"))
        self._virtual = [(virtual_base + n).to_bytes(size) for n in range(services)]
        self._servers = [
            (server_base + 1 + n).to_bytes(size) for n in range(min(services * servers, 60_000))
        ]
        if reporting is not None:
            self.director.registry.tallies.update(dict.fromkeys(self._virtual, self.tally))
        self.identities: list[ServiceIdentity] = []
        self._learn_network()
        self._add_services(servers, marked=marked)
        self._templates: dict[tuple[int, int, bool], _Template] = {}

    def _learn_network(self) -> None:
        learn, nothing = self.director.learn, b""
        for index, name in ((OUTSIDE, "outside"), (INSIDE, "inside")):
            learn(LinkChange(index, name, bytes((2, 0, 0, 0, 0, index)), 1500, up=True))
        inside = self._servers[0][:1] + bytes(self._size - 1)
        gateway = parse_address("192.0.2.1" if self._size == IPv4_BYTES else "fe80::1")
        learn(RouteChange(inside, 8, INSIDE, nothing, nothing, 0, present=True))
        learn(RouteChange(bytes(self._size), 0, OUTSIDE, gateway, nothing, 0, present=True))
        learn(NeighbourChange(OUTSIDE, gateway, bytes.fromhex("020000000012")))
        for address in self._servers:
            learn(NeighbourChange(INSIDE, address, b"\x02" + address[-5:].rjust(5, b"\0")))

    def _add_services(self, servers: int, *, marked: bool) -> None:
        kind, table = self.kind, self.director.services
        options = ServiceOptions(persistence=kind.persistence)
        port = NAT_PORT if kind.method is ForwardMethod.NAT else SERVICE_PORT
        rules = []
        for number, address in enumerate(self._virtual):
            if marked:
                identity = ServiceIdentity(kind.family, Protocol.TCP, mark=number + 1)
                rules.append(MarkRule(number + 1, whole(address), protocol=kind.protocol))
            else:
                identity = ServiceIdentity(kind.family, kind.protocol, address, SERVICE_PORT)
            table.add(identity, options)
            self.identities.append(identity)
            for each in range(servers):
                server = self._servers[(number * servers + each) % len(self._servers)]
                table.add_server(identity, server, port, ServerOptions(kind.method))
        self.director.marks.set(rules)

    @property
    def virtual(self) -> list[bytes]:
        """The virtual addresses, one for each service."""
        return self._virtual

    # Frames

    def client(self, number: int) -> tuple[bytes, int]:
        """Where connection ``number`` comes from."""
        port = (
            ONE_PORT if self.kind.one_port else _FIRST_PORT + (number * _PORT_STEP >> 16) % _PORTS
        )
        return (self._client_base + number).to_bytes(self._size), port

    def request(self, number: int, flags: int = ACK) -> bytearray:
        """A packet from the client of a connection."""
        return self._frame(number, flags, reply=False)

    def reply(self, number: int, flags: int = ACK) -> bytearray:
        """A packet from its real server; with one server for each service."""
        return self._frame(number, flags, reply=True)

    def _frame(self, number: int, flags: int, *, reply: bool) -> bytearray:
        which = (number % len(self._virtual), flags, reply)
        template = self._templates.get(which)
        if template is None:
            template = self._templates[which] = self._template(which[0], flags, reply=reply)
        client, port = self.client(number)
        frame = bytearray(template.data)
        at = template.client_at
        frame[at : at + len(client)] = client
        frame[template.port_at : template.port_at + 2] = port.to_bytes(2)
        if len(client) == IPv4_BYTES:
            total = (~template.field & 0xFFFF) + int.from_bytes(client) % 0xFFFF
            field = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            header_at = vnet.LENGTH_BYTES + 14
            frame[header_at + 10 : header_at + 12] = field.to_bytes(2)
        return frame

    def _template(self, service: int, flags: int, *, reply: bool) -> _Template:
        kind, nobody = self.kind, bytes(self._size)
        if reply:
            server = self._servers[service % len(self._servers)]
            ends = ((server, NAT_PORT), (nobody, 0))
        else:
            ends = ((nobody, 0), (self._virtual[service], SERVICE_PORT))
        (source, source_port), (destination, destination_port) = ends
        ports = source_port.to_bytes(2) + destination_port.to_bytes(2)
        if kind.protocol is Protocol.TCP:
            transport, field_at = ports + bytes(8) + bytes((0x50, flags)) + bytes(6), 16
        else:
            transport, field_at = ports + (30).to_bytes(2) + bytes(2 + 22), 6
        if self._size == IPv4_BYTES:
            length = ipv4.HEADER_BYTES + len(transport)
            header = ipv4.emit(ipv4.Ipv4Header(source, destination, kind.protocol, length, _TTL))
            ethertype, addresses_at = ETHERTYPE_IPV4, 12
        else:
            header = ipv6.emit(
                ipv6.Ipv6Header(source, destination, kind.protocol, len(transport), _TTL)
            )
            ethertype, addresses_at = ETHERTYPE_IPV6, 8
        start = len(_ETHERNET) + 2 + len(header)
        virtio = vnet.emit(
            vnet.VnetHeader(
                flags=vnet.NEEDS_CHECKSUM, checksum_start=start, checksum_offset=field_at
            )
        )
        before = len(virtio) + len(_ETHERNET) + 2
        return _Template(
            virtio + _ETHERNET + ethertype.to_bytes(2) + header + transport,
            before + addresses_at + (self._size if reply else 0),
            before + len(header) + (2 if reply else 0),
            int.from_bytes(header[10:12]) if self._size == IPv4_BYTES else 0,
        )

    # Connections

    def lay(self, data: bytearray) -> int:
        """Lay a frame into the buffer, as a socket does; its length."""
        self.frame.view[: len(data)] = data
        return len(data)

    def handshake(self, number: int) -> list[bytearray]:
        """The frames after which a connection is established."""
        if self.kind.protocol is not Protocol.TCP:
            return [self.request(number, 0)]
        first, answer, last = HANDSHAKE_TIMES
        frames = [self.request(number, first), self.request(number, last)]
        if self.kind.method is ForwardMethod.NAT:
            frames.insert(1, self.reply(number, answer))
        return frames

    def fill(
        self,
        number: int,
        when: Callable[[int], float],
        process: Callable[[Frame, int, float], object] | None = None,
    ) -> None:
        """Open connections up to ``number``, each at its time.

        Args:
            number: of connections.
            when: the director's clock for each of them.
            process: what is called with each frame; the director, by default.
        """
        process = process or self.director.process
        frame = self.frame
        for each in range(number):
            now = when(each)
            for data in self.handshake(each):
                process(frame, self.lay(data), now)
