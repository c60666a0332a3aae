"""Change a packet on its way: addresses, ports, checksums, time to live, an outer header.

Everything that is the same for all packets of a virtual service and a real server is
computed once, in the constructor: the bytes to write, and what writing them adds to each
checksum. A packet then costs two reads and four writes.

What always holds: rewriting there and back is the identity, apart from the time to live,
and a checksum that was right before is right after. A checksum that is still partial (see
`lvsha.wire.vnet`) covers the pseudo-header only, so a port does not change it.

SCTP is the exception. Its checksum is a CRC, made anew when a port changes; and a partial
one must be completed here, because the virtio header can only ask for an Internet checksum.
"""

import struct
from typing import Final

from lvsha.datapath.flow import L3, Frame
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import crc32c, vnet
from lvsha.wire.checksum import (
    checksum,
    difference,
    pseudo_header_sum,
    update,
    update_partial,
)

_TWO: Final = struct.Struct("!HH")
_ONE: Final = struct.Struct("!H")
_read_two: Final = _TWO.unpack_from
_write_two: Final = _TWO.pack_into
_read_one: Final = _ONE.unpack_from
_write_one: Final = _ONE.pack_into
_TTL_AT: Final = L3 + 8
_HOP_LIMIT_AT: Final = L3 + 7
_TCP: Final = int(Protocol.TCP)
_UDP: Final = int(Protocol.UDP)
_SCTP: Final = int(Protocol.SCTP)
_TTL_STEP: Final = 0x0100
_TTL_CHANGE: Final = 0xFFFF - _TTL_STEP
"""What counting the time to live down by one adds to the sum of the header."""
_TCP_CHECKSUM: Final = 16
_UDP_CHECKSUM: Final = 6


def count_down(frame: Frame) -> None:
    """Take one from the time to live (RFC 1812, section 5.2.2) or hop limit (RFC 8200)."""
    buffer = frame.buffer
    if frame.family == 6:
        buffer[_HOP_LIMIT_AT] -= 1
        return
    ttl_protocol, field = _read_two(buffer, _TTL_AT)
    field += _TTL_STEP  # RFC 1141: the sum shrinks by what the field grows
    _write_two(buffer, _TTL_AT, ttl_protocol - _TTL_STEP, (field + (field >= 0xFFFF)) & 0xFFFF)


def complete_sctp(frame: Frame) -> None:
    """Compute an SCTP packet's checksum, whether it was wrong, partial or right.

    The virtio header then no longer says that something is missing: the kernel would add
    an Internet checksum, for the mark that a CRC was meant does not cross a packet socket.
    """
    buffer = frame.buffer
    l4 = frame.l4
    field_at = l4 + crc32c.CHECKSUM_AT
    buffer[field_at : field_at + 4] = crc32c.checksum(frame.view[l4 : L3 + frame.length])
    buffer[0] &= ~vnet.NEEDS_CHECKSUM


def count_up(frame: Frame) -> None:
    """Give back what `count_down` took, for a packet that does not leave this host."""
    buffer = frame.buffer
    if frame.family == 6:
        buffer[_HOP_LIMIT_AT] += 1
        return
    ttl_protocol, field = _read_two(buffer, _TTL_AT)
    field -= _TTL_STEP
    _write_two(buffer, _TTL_AT, ttl_protocol + _TTL_STEP, (field - (field < 0)) & 0xFFFF)


class Translation:
    """Write another address and port: network address translation in one direction.

    Of TCP, UDP and SCTP; of every other protocol, as AH and ESP, only the address changes.

    Args:
        old: the address and port that packets carry.
        new: those that they shall carry; of the same family.
        source: whether these are the source's or the destination's.

    Attributes:
        address: the one that is written.
    """

    __slots__ = (
        "_address_at",
        "_address_change",
        "_change",
        "_header_change",
        "_port",
        "_port_at",
        "_port_changes",
        "address",
    )

    def __init__(self, old: tuple[bytes, int], new: tuple[bytes, int], *, source: bool) -> None:
        self.address = new[0]
        self._port = new[1].to_bytes(2)
        size = len(new[0])
        first = L3 + (12 if size == IPv4_BYTES else 8)
        self._address_at = (
            slice(first, first + size) if source else slice(first + size, first + 2 * size)
        )
        self._port_at = 0 if source else 2
        self._port_changes = old[1] != new[1]
        self._address_change = difference(old[0], new[0])
        # Together with the time to live that is counted down.
        self._header_change = (self._address_change + _TTL_CHANGE) % 0xFFFF
        self._change = (self._address_change + difference(old[1].to_bytes(2), self._port)) % 0xFFFF

    def apply(self, frame: Frame) -> None:
        """Rewrite the packet in the frame and count its time to live down."""
        buffer = frame.buffer
        if frame.family == 4:
            ttl_protocol, field = _read_two(buffer, _TTL_AT)
            total = (~field & 0xFFFF) + self._header_change
            total = (total & 0xFFFF) + (total >> 16)
            _write_two(buffer, _TTL_AT, ttl_protocol - _TTL_STEP, ~total & 0xFFFF)
        else:
            buffer[_HOP_LIMIT_AT] -= 1
        buffer[self._address_at] = self.address
        l4 = frame.l4
        protocol = frame.protocol
        if protocol != _TCP:
            if protocol == _UDP:
                self._finish_udp(frame, l4)
            elif protocol == _SCTP:
                self._finish_sctp(frame, l4)
            return
        port_at = l4 + self._port_at
        buffer[port_at : port_at + 2] = self._port
        field_at = l4 + _TCP_CHECKSUM
        (field,) = _read_one(buffer, field_at)
        if buffer[0] & vnet.NEEDS_CHECKSUM:
            _write_one(buffer, field_at, update_partial(field, self._address_change))
        else:
            total = (~field & 0xFFFF) + self._change
            _write_one(buffer, field_at, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)

    def _finish_udp(self, frame: Frame, l4: int) -> None:
        """UDP differs in that zero says "no checksum"; the kernel then computes one."""
        buffer = frame.buffer
        port_at = l4 + self._port_at
        buffer[port_at : port_at + 2] = self._port
        field_at = l4 + _UDP_CHECKSUM
        (field,) = _read_one(buffer, field_at)
        if buffer[0] & vnet.NEEDS_CHECKSUM:
            value = update_partial(field, self._address_change)
        elif field:
            value = update(field, self._change) or 0xFFFF
        else:
            datagram = frame.view[l4 : L3 + frame.length]
            pseudo = pseudo_header_sum(frame.source, frame.destination, _UDP, len(datagram))
            value = checksum(datagram, pseudo) or 0xFFFF
        _write_one(buffer, field_at, value)

    def _finish_sctp(self, frame: Frame, l4: int) -> None:
        """SCTP's checksum does not cover the addresses; with the same port it stays."""
        buffer = frame.buffer
        if self._port_changes or buffer[0] & vnet.NEEDS_CHECKSUM:
            port_at = l4 + self._port_at
            buffer[port_at : port_at + 2] = self._port
            complete_sctp(frame)
