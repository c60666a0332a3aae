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
from typing import Final, NamedTuple
from zlib import crc32

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


class Witness(IntEnum):
    """What a node finds of its witness, a third party that it asks whether it is cut off."""

    NONE = 0
    UNKNOWN = 1
    REACHABLE = 2
    UNREACHABLE = 3


@dataclass(frozen=True, slots=True)
class VirtualMac:
    """The MAC address of a virtual router, and the virtual addresses that are behind it."""

    mac: bytes
    addresses: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class ConnectionDetails:
    """What few connections have beside the rest of their record.

    Attributes:
        mark: the firewall mark of the service of a template.
        shifts: how sequence numbers have moved: none, or six numbers of 32 bits, init_seq,
            delta and previous_delta of what goes to the server, then of what comes from it.
            The flags IN_SEQUENCE and OUT_SEQUENCE say which three count.
        engine: the persistence engine whose find stands in a template's key.
        parent: the key of what this one belongs to, where its own key does not tell: the
            control connection of FTP data, the template of a call.
        dialogue: where an FTP control connection is: nothing; or the mode that its client
            asked for last; or behind that the sequence number of the server's reply that was
            rewritten last, and the mode of that reply.
        others: fields of a later version, by number, which go on as they came.
    """

    mark: int = 0
    shifts: tuple[int, ...] = ()
    engine: str = ""
    parent: bytes = b""
    dialogue: tuple[int, ...] = ()
    others: tuple[tuple[int, bytes], ...] = ()


class ConnectionRecord(NamedTuple):
    """One connection or template as a director describes it to another.

    A tuple, because a million of them may come in some seconds.

    Attributes:
        key: of the request direction, see `connection_key`; of a template `template_key`.
        server, server_port: the real server, 4 or 16 bytes.
        method: how its packets are forwarded.
        state: the number in the kernel's state table of the protocol.
        flags: `ConnectionFlag` bits.
        timeout: the full time-out in seconds that the state gives it, not what is left of
            it, and not an absolute time (the kernel's sync protocol does the same).
        details: what few connections have.
    """

    key: bytes
    server: bytes
    server_port: int
    method: ForwardMethod
    state: int
    flags: int
    timeout: float
    details: ConnectionDetails | None = None

    @classmethod
    def between(
        cls,
        protocol: int,
        client: bytes,
        client_port: int,
        virtual: bytes,
        virtual_port: int,
        server: bytes,
        server_port: int,
        method: ForwardMethod,
        state: int,
        flags: int,
        timeout: float,
    ) -> "ConnectionRecord":
        """The record of a connection between a client and a virtual end."""
        key = connection_key(protocol, client, client_port, virtual, virtual_port)
        return cls(key, server, server_port, method, state, flags, timeout)

    @property
    def is_template(self) -> bool:
        """Whether it is a persistence template."""
        return self.key[0] >= TEMPLATE_BIT


class ConnectionChanged(NamedTuple):
    """A connection exists or has changed in a way that a backup must know."""

    record: ConnectionRecord


class ConnectionEnded(NamedTuple):
    """A connection was removed; ``key`` is that of its record."""

    key: bytes


ConnectionChange = ConnectionChanged | ConnectionEnded

TEMPLATE_BIT: Final = 0x80
"""Set in the first byte of a template's key, so that none is a connection's."""
BUCKETS: Final = 511
"""Parts of a connection table that directors compare and repair one by one."""


def virtual_of(key: bytes) -> tuple[bytes, int]:
    """The virtual address and port in a connection's key."""
    size = (len(key) - 6) // 2
    return key[2 + size : 2 + 2 * size], int.from_bytes(key[-2:])


def template_key(key: bytes, found: bytes = b"") -> bytes:
    """The key of a template.

    Args:
        key: laid out as a connection's: family, protocol (0 for a firewall mark), the
            client's masked address, the virtual address (or the mark), port 0, virtual port.
        found: what a persistence engine found in the packet; it stands at the end.
    """
    return bytes((key[0] | TEMPLATE_BIT,)) + key[1:] + found


def bucket_of(key: bytes) -> int:
    """The bucket, below `BUCKETS`, of a connection or template.

    A connection's is the sum of the low byte of the client's port and of byte 5 of the key,
    the last of an IPv4 client's address. A template may have nothing but a Call-ID that
    varies, so its bucket is the CRC-32 of the whole key.
    """
    if key[0] < TEMPLATE_BIT:
        return key[-3] + key[5]
    return crc32(key) % BUCKETS


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


def format_mac(mac: bytes) -> str:
    """The usual text of a MAC address."""
    return mac.hex(":")


def format_endpoint(address: bytes, port: int) -> str:
    """Write an address and port as ipvsadm does: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    text = format_address(address)
    return f"{text}:{port}" if len(address) == IPv4_BYTES else f"[{text}]:{port}"
