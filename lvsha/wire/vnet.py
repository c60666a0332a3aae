"""The virtio network header that a packet socket puts before each frame.

With PACKET_VNET_HDR (``linux/if_packet.h``) the kernel tells of a frame what a network
card would otherwise have to work out: that its transport checksum is still partial, and
that it is a super-frame to be cut into segments of a given size. Fields are in the byte
order of the host (``linux/virtio_net.h``, the legacy layout of 10 bytes).
"""

import struct
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError

LENGTH_BYTES: Final = 10

GSO_TYPE_AT: Final = 1
GSO_SIZE_AT: Final = 4
"""Offsets of two fields, for a reader that needs no more than these."""

NEEDS_CHECKSUM: Final = 1
CHECKSUM_VALID: Final = 2

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

NOTHING: Final = bytes(LENGTH_BYTES)

_LAYOUT: Final = struct.Struct("=BBHHHH")


@dataclass(frozen=True, slots=True)
class VnetHeader:
    """One header; offsets are from the start of the Ethernet frame, in bytes."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_bytes: int = 0
    gso_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0


def parse(data: bytes | bytearray | memoryview, offset: int = 0) -> VnetHeader:
    """Read the header at ``offset``.

    Raises:
        WireError: fewer than 10 bytes are there.
    """
    if len(data) - offset < LENGTH_BYTES:
        raise WireError("virtio header cut short")
    return VnetHeader(*_LAYOUT.unpack_from(data, offset))


def emit(header: VnetHeader) -> bytes:
    """The bytes of a header."""
    return _LAYOUT.pack(
        header.flags,
        header.gso_type,
        header.header_bytes,
        header.gso_size,
        header.checksum_start,
        header.checksum_offset,
    )
