"""The nouns that more than one part of lvsha speaks.

Only values live here: addresses as network-order bytes, the numbers of protocols
and flags as the kernel's IPVS numbers them, and the record by which one director
tells another about a connection. Nothing here has behaviour beyond its own layout.

Times are seconds. Addresses are 4 or 16 bytes in network order, which is also how
they stand in a packet and in a key.
"""

import ipaddress
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

IPv4_BYTES: Final = 4
IPv6_BYTES: Final = 16


class Protocol(IntEnum):
    """IP protocol numbers (IANA) that a director looks at."""

    IP = 0
    ICMP = 1
    IPIP = 4
    TCP = 6
    UDP = 17
    IPV6 = 41
    GRE = 47
    ESP = 50
    AH = 51
    ICMPV6 = 58
    VRRP = 112
    SCTP = 132


class ForwardMethod(IntEnum):
    """How packets reach a real server; the kernel's IP_VS_CONN_F_FWD_MASK codes."""

    NAT = 0
    TUNNEL = 2
    DIRECT_ROUTE = 3
    BYPASS = 4


class ConnectionFlag(IntFlag):
    """Flags of a connection; the kernel's IP_VS_CONN_F_* bits."""

    SYNC = 0x0020
    NO_OUTPUT = 0x0080
    INACTIVE = 0x0100
    OUT_SEQUENCE = 0x0200
    IN_SEQUENCE = 0x0400
    NO_CLIENT_PORT = 0x0800
    TEMPLATE = 0x1000
    ONE_PACKET = 0x2000


class VrrpState(IntEnum):
    """What a node is for one virtual router; the words keepalived's operators know."""

    INIT = 0
    BACKUP = 1
    MASTER = 2
    FAULT = 3


@dataclass(frozen=True, slots=True)
class ConnectionRecord:
    """One connection as a director describes it to another.

    ``timeout`` is the full time-out in seconds that the state gives the connection,
    not what is left of it, and not an absolute time (the kernel's sync protocol does
    the same). ``state`` is the number of the kernel's state table of the protocol.
    """

    protocol: int
    client: bytes
    client_port: int
    virtual: bytes
    virtual_port: int
    server: bytes
    server_port: int
    method: ForwardMethod
    state: int
    flags: int
    timeout: float

    @property
    def key(self) -> bytes:
        """The key of the request direction in the connection table."""
        return connection_key(
            self.protocol, self.client, self.client_port, self.virtual, self.virtual_port
        )


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """A connection exists or has changed in a way that a backup must know."""

    record: ConnectionRecord


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """A connection was removed; ``key`` is that of its request direction."""

    key: bytes
    virtual: bytes


ConnectionChange = ConnectionChanged | ConnectionEnded


def connection_key(
    protocol: int, source: bytes, source_port: int, destination: bytes, destination_port: int
) -> bytes:
    """Lay out the key of one direction of a connection.

    The layout is stable, for tables shared with other languages: family (4 or 6),
    protocol, source address, destination address, source port, destination port; 14
    bytes for IPv4 and 38 for IPv6, all in network order. Addresses and ports stand in
    the order in which an option-less packet carries them, so that the key of a packet
    is one slice of it behind a constant prefix.
    """
    family = 4 if len(source) == IPv4_BYTES else 6
    return (
        bytes((family, protocol))
        + source
        + destination
        + source_port.to_bytes(2)
        + destination_port.to_bytes(2)
    )


def parse_address(text: str) -> bytes:
    """Turn ``192.0.2.1`` or ``2001:db8::1`` into network-order bytes.

    Raises:
        ValueError: the text is not an IP address.
    """
    return ipaddress.ip_address(text).packed


def format_address(address: bytes) -> str:
    """Turn network-order bytes into the text people write."""
    return str(ipaddress.ip_address(address))


def format_endpoint(address: bytes, port: int) -> str:
    """Write an address and port as ipvsadm does: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    text = format_address(address)
    return f"{text}:{port}" if len(address) == IPv4_BYTES else f"[{text}]:{port}"
