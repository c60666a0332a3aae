"""Frames and a director for measurements without a network.

The director knows two links and its neighbours on them, has one virtual service with a
real server behind NAT and one with direct routing, and is fed with frames that were
made here. Frames have partial checksums, as a neighbouring virtual machine sends them.
"""

import random
from typing import Final

from lvsha.datapath.director import Director
from lvsha.datapath.flow import ETHERTYPE_IPV4, Frame
from lvsha.datapath.network import LinkChange, NeighbourChange, RouteChange
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tcp_states import ACK, SYN
from lvsha.model import ForwardMethod, Protocol, parse_address
from lvsha.wire import ipv4, vnet

OUTSIDE: Final = 1
INSIDE: Final = 2
VIRTUAL: Final = parse_address("192.0.2.10")
GATEWAY: Final = parse_address("192.0.2.1")
SERVER: Final = parse_address("10.1.0.11")
SERVICE_PORTS: Final = {ForwardMethod.NAT: 80, ForwardMethod.DIRECT_ROUTE: 81}
SERVER_PORTS: Final = {ForwardMethod.NAT: 8080, ForwardMethod.DIRECT_ROUTE: 81}
SEED: Final = 1
CLIENTS: Final = 1024
"""Client addresses among which connections are spread."""

_ETHERNET: Final = bytes(12) + ETHERTYPE_IPV4.to_bytes(2)
_TTL: Final = 64

Endpoint = tuple[bytes, int]


def client_of(number: int) -> Endpoint:
    """The address and port from which the client opens connection ``number``."""
    return (
        (0xC612_0000 + number % CLIENTS).to_bytes(4),  # 198.18.0.0/15, RFC 2544
        1024 + number // CLIENTS,
    )


def make_director(connections_max: int) -> Director:
    """A director with both services, that knows its network."""
    director = Director(connections_max=connections_max, dice=random.Random(SEED))
    for method, port in SERVICE_PORTS.items():
        for protocol in (Protocol.TCP, Protocol.UDP):
            service = ServiceIdentity(4, protocol, VIRTUAL, port)
            director.services.add(service, ServiceOptions())
            options = ServerOptions(method)
            director.services.add_server(service, SERVER, SERVER_PORTS[method], options)
    for index, name in ((OUTSIDE, "outside"), (INSIDE, "inside")):
        director.learn(LinkChange(index, name, bytes((2, 0, 0, 0, 0, index)), 1500, up=True))
    inside, nothing = parse_address("10.1.0.0"), b""
    director.learn(RouteChange(inside, 24, INSIDE, nothing, nothing, 0, present=True))
    director.learn(RouteChange(bytes(4), 0, OUTSIDE, GATEWAY, nothing, 0, present=True))
    director.learn(NeighbourChange(INSIDE, SERVER, bytes.fromhex("020000000011")))
    director.learn(NeighbourChange(OUTSIDE, GATEWAY, bytes.fromhex("020000000012")))
    return director


def tcp_frame(source: Endpoint, destination: Endpoint, flags: int) -> bytes:
    """A TCP segment without data, in its frame, behind a virtio header."""
    segment = (
        source[1].to_bytes(2)
        + destination[1].to_bytes(2)
        + bytes(8)
        + bytes((0x50, flags))
        + bytes(6)
    )
    return _frame(source, destination, Protocol.TCP, segment, checksum_offset=16)


def udp_frame(source: Endpoint, destination: Endpoint, payload: bytes) -> bytes:
    """A UDP datagram in its frame, behind a virtio header."""
    ports = source[1].to_bytes(2) + destination[1].to_bytes(2)
    datagram = ports + (8 + len(payload)).to_bytes(2) + bytes(2) + payload
    return _frame(source, destination, Protocol.UDP, datagram, checksum_offset=6)


def _frame(
    source: Endpoint,
    destination: Endpoint,
    protocol: Protocol,
    transport: bytes,
    *,
    checksum_offset: int,
) -> bytes:
    length = ipv4.HEADER_BYTES + len(transport)
    header = ipv4.emit(ipv4.Ipv4Header(source[0], destination[0], protocol, length, _TTL))
    start = len(_ETHERNET) + len(header)
    virtio = vnet.emit(
        vnet.VnetHeader(
            flags=vnet.NEEDS_CHECKSUM, checksum_start=start, checksum_offset=checksum_offset
        )
    )
    return virtio + _ETHERNET + header + transport


def put(frame: Frame, data: bytes) -> int:
    """Lay a frame into the buffer, as a socket does; its length."""
    frame.view[: len(data)] = data
    return len(data)


def open_connection(
    director: Director, frame: Frame, method: ForwardMethod, number: int, now: float
) -> None:
    """Take one TCP connection through its handshake.

    The director sees the server's answer with NAT only.
    """
    client = client_of(number)
    service = (VIRTUAL, SERVICE_PORTS[method])
    server = (SERVER, SERVER_PORTS[method])
    director.process(frame, put(frame, tcp_frame(client, service, SYN)), now)
    if method is ForwardMethod.NAT:
        director.process(frame, put(frame, tcp_frame(server, client, SYN | ACK)), now)
    director.process(frame, put(frame, tcp_frame(client, service, ACK)), now)
