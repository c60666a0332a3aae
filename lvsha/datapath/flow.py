"""Find in a frame what a director decides by.

A `Frame` is a buffer, used again for every frame, and the few fields that the
director needs of the frame that lies in it. Nothing is built per frame but the key; the
fields of an ordinary packet are taken out by one `struct` call. That is the price of
speed: a `Frame` is not a value, and its fields hold until the next `read`.

Layout of the buffer: the virtio header, then the Ethernet frame; offsets are into the
buffer. What lies behind `end` is left over from earlier frames, so every length is
checked before it is used.
"""

import struct
from typing import Final

from lvsha.datapath import sctp_states
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import Reassembled
from lvsha.model import Protocol
from lvsha.wire import ipv6, vnet

ETHERNET_BYTES: Final = 14
FRAME_MAX: Final = 65_536 + ETHERNET_BYTES
"""A super-frame: 64 KiB of IP packet behind an Ethernet header."""

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_IPV6: Final = 0x86DD

L2: Final = vnet.LENGTH_BYTES
L3: Final = L2 + ETHERNET_BYTES

_IPV4: Final = struct.Struct("!12xHBxH2xHBB2x12s8xH")
_IPV6: Final = struct.Struct("!12xH4xHBB36s8xH")
_PREFIX4: Final = tuple(bytes((4, protocol)) for protocol in range(256))
_PREFIX6: Final = tuple(bytes((6, protocol)) for protocol in range(256))
# The members of an IntEnum are attributes, and slower to compare with than these.
_TCP: Final = int(Protocol.TCP)
_UDP: Final = int(Protocol.UDP)
_ICMP: Final = int(Protocol.ICMP)
_SCTP: Final = int(Protocol.SCTP)
_SECURED: Final = frozenset({int(Protocol.ESP), int(Protocol.AH)})
_REASSEMBLED: Final = frozenset(
    {int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP), int(Protocol.ICMP)}
)
_KEY_EXCHANGE_PORTS: Final = (500).to_bytes(2) * 2
"""The ports of ISAKMP (RFC 2408), whose connection AH and ESP follow."""
_PREFIX4_TCP: Final = _PREFIX4[_TCP]
_FRAGMENT_BITS: Final = 0x3FFF
_PLAIN_IPV4: Final = 0x45
_IPV4_END: Final = L3 + 20
_IPV4_HEADER: Final = slice(L3, _IPV4_END)
_IPV4_FRAME_MIN: Final = vnet.LENGTH_BYTES + ETHERNET_BYTES + 20
_read_ipv4: Final = _IPV4.unpack_from
_from_bytes: Final = int.from_bytes
_TCP_MIN: Final = 20
_UDP_MIN: Final = 8
_ICMP_MIN: Final = 8
_SECURED_MIN: Final = 8
_SCTP_MIN: Final = 12


class Frame:
    """One frame in its buffer.

    Attributes:
        buffer: the bytes; `view` is a window on them, into which frames are received.
        end: where the frame ends.
        protocol: the transport protocol number; 0 where the frame is not for a director.
        family: 4 or 6.
        l4: offset of the transport header; the IP header is always at `L3`.
        length: of the IP packet, in bytes.
        ttl: time to live or hop limit.
        key: connection key of this direction (`lvsha.model.connection_key`); empty for ICMP.
            That of AH and ESP is the key of their key exchange.
        event: what the packet means to its protocol's state machine: TCP's flag byte, an
            SCTP event; 0 for others.
        fragment: the frame holds a fragment, of which `read` has found no more than that.
        special: the packet has IPv4 options, was put together from fragments, or is of SCTP
            and its checksum is still partial.
        arrived: how it was put together; None where it came whole.
    """

    __slots__ = (
        "arrived",
        "buffer",
        "end",
        "event",
        "family",
        "fragment",
        "key",
        "l4",
        "length",
        "protocol",
        "special",
        "ttl",
        "view",
    )

    def __init__(self) -> None:
        self.buffer = bytearray(vnet.LENGTH_BYTES + FRAME_MAX)
        self.view = memoryview(self.buffer)
        self.end = 0
        self.family = self.protocol = self.l4 = self.length = self.ttl = self.event = 0
        self.fragment = self.special = False
        self.arrived: Reassembled | None = None
        self.key = b""

    def load(self, data: bytes, header: bytes = vnet.NOTHING) -> None:
        """Put an Ethernet frame into the buffer, as a replay or a test does."""
        self.buffer[: len(header) + len(data)] = header + data
        self.read(len(header) + len(data))

    def replace(self, whole: Reassembled) -> Reason | None:
        """Put a packet that is complete now into the place of its last fragment, and read it."""
        packet = whole.packet
        self.buffer[: len(vnet.NOTHING)] = vnet.NOTHING
        self.buffer[L3 : L3 + len(packet)] = packet
        reason = self.read(L3 + len(packet))
        self.special = True
        self.arrived = whole
        return reason

    def packet(self) -> bytes:
        """The IP packet, from its header on."""
        return bytes(self.view[L3 : L3 + self.length])

    @property
    def source(self) -> bytes:
        """The source address of the IP packet."""
        if self.family == 4:
            return bytes(self.view[L3 + 12 : L3 + 16])
        return bytes(self.view[L3 + 8 : L3 + 24])

    @property
    def destination(self) -> bytes:
        """The destination address of the IP packet."""
        if self.family == 4:
            return bytes(self.view[L3 + 16 : L3 + 20])
        return bytes(self.view[L3 + 24 : L3 + 40])

    @property
    def vnet_header(self) -> vnet.VnetHeader:
        """The virtio header; offsets in it count from the Ethernet header."""
        return vnet.parse(self.buffer)

    def read(self, received: int) -> Reason | None:
        """Read the frame of ``received`` bytes (virtio header included) in the buffer.

        Returns:
            Why the frame must be dropped; None where it may go on. A frame of none of the
            protocols that have connections has `protocol` 0 and is none of the director's
            business.
        """
        buffer = self.buffer
        self.end = received
        self.protocol = self.event = 0
        self.fragment = self.special = False
        self.arrived = None
        (ethertype, version_ihl, length, fragment, ttl, protocol, tail, tcp) = _read_ipv4(
            buffer, L2
        )
        if ethertype != ETHERTYPE_IPV4:
            if ethertype == ETHERTYPE_IPV6:
                return self._read_ipv6()
            # A frame that ends before its type shows that of an earlier one.
            return Reason.TRUNCATED if received < L3 else None
        if version_ihl != _PLAIN_IPV4:
            return self._read_ipv4_options()
        if L3 + length > received or received < _IPV4_FRAME_MIN:
            return Reason.TRUNCATED
        # A correct header sums to 0xFFFF, which is 0 modulo 65535.
        if _from_bytes(buffer[_IPV4_HEADER], "big") % 0xFFFF:
            return Reason.MALFORMED
        self.family = 4
        self.ttl = ttl
        self.length = length
        self.l4 = _IPV4_END
        if fragment & _FRAGMENT_BITS:
            return self._fragment(protocol)
        if protocol == _TCP:
            if length < 20 + _TCP_MIN or tcp < 0x5000:
                return Reason.MALFORMED
            self.event = tcp & 0xFF
            self.protocol = _TCP
            self.key = _PREFIX4_TCP + tail
            return None
        if protocol == _UDP:
            if length < 20 + _UDP_MIN:
                return Reason.MALFORMED
            self.protocol = protocol
            self.key = _PREFIX4[protocol] + tail
            return None
        return self._read_transport(_PREFIX4[protocol], protocol, slice(L3 + 12, L3 + 20))

    def _fragment(self, protocol: int) -> Reason | None:
        """A fragment says too little; those of AH and ESP need no more than addresses."""
        if protocol in _SECURED:
            return self._read_secured(protocol)
        if protocol in _REASSEMBLED and not (self.family == 6 and protocol == _ICMP):
            self.protocol = protocol
            self.fragment = True
        return None

    def _read_secured(self, protocol: int) -> Reason | None:
        """AH and ESP: their addresses, and the ports of the key exchange before them."""
        first, last = (12, 20) if self.family == 4 else (8, 40)
        prefix = _PREFIX4 if self.family == 4 else _PREFIX6
        addresses = bytes(self.view[L3 + first : L3 + last])
        self.protocol = protocol
        self.key = prefix[_UDP] + addresses + _KEY_EXCHANGE_PORTS
        return None

    def _read_ipv4_options(self) -> Reason | None:
        """The slower way for IPv4 headers with options, and for what is no IPv4 header."""
        if self.end < L3 + 20:
            return Reason.TRUNCATED
        buffer = self.buffer
        header_bytes = (buffer[L3] & 0xF) * 4
        length = int.from_bytes(buffer[L3 + 2 : L3 + 4])
        if buffer[L3] >> 4 != 4 or header_bytes < 20 or length < header_bytes:
            return Reason.MALFORMED
        if L3 + length > self.end:
            return Reason.TRUNCATED
        if int.from_bytes(buffer[L3 : L3 + header_bytes]) % 0xFFFF:
            return Reason.MALFORMED
        protocol = buffer[L3 + 9]
        self.family = 4
        self.ttl = buffer[L3 + 8]
        self.length = length
        self.l4 = L3 + header_bytes
        self.special = header_bytes > 20
        if int.from_bytes(buffer[L3 + 6 : L3 + 8]) & _FRAGMENT_BITS:
            return self._fragment(protocol)
        return self._read_transport(_PREFIX4[protocol], protocol, slice(L3 + 12, L3 + 20))

    def _read_ipv6(self) -> Reason | None:
        (_, payload, next_header, hop_limit, tail, tcp) = _IPV6.unpack_from(self.buffer, L2)
        if self.end < L3 + ipv6.HEADER_BYTES:
            return Reason.TRUNCATED
        if self.buffer[L3] >> 4 != 6:
            return Reason.MALFORMED
        self.length = length = ipv6.HEADER_BYTES + payload
        if L3 + length > self.end:
            return Reason.TRUNCATED
        self.family = 6
        self.ttl = hop_limit
        self.l4 = L3 + ipv6.HEADER_BYTES
        if next_header == Protocol.TCP and payload >= _TCP_MIN and tcp >= 0x5000:
            self.event = tcp & 0xFF
            self.protocol = Protocol.TCP
            self.key = _PREFIX6[Protocol.TCP] + tail
            return None
        found = ipv6.upper_layer(self.buffer, L3, L3 + length)
        if found is None:
            return Reason.MALFORMED
        protocol, self.l4 = found
        if protocol == ipv6.FRAGMENT:
            carried = self.buffer[self.l4] if self.l4 < L3 + length else 0
            return self._fragment(carried)
        return self._read_transport(_PREFIX6[protocol], protocol, slice(L3 + 8, L3 + 40))

    def _read_transport(self, prefix: bytes, protocol: int, addresses: slice) -> Reason | None:
        """Ports and flags at `l4`, wherever options or extension headers have put it."""
        room = L3 + self.length - self.l4
        if protocol == _TCP:
            if room < _TCP_MIN or self.buffer[self.l4 + 12] < 0x50:
                return Reason.MALFORMED
            self.event = self.buffer[self.l4 + 13]
        elif protocol == _UDP:
            if room < _UDP_MIN:
                return Reason.MALFORMED
        elif protocol == _SCTP:
            event = None
            if room >= _SCTP_MIN:
                event = sctp_states.event_of(self.buffer, self.l4, L3 + self.length)
            if event is None:
                return Reason.MALFORMED
            self.event = event
            if self.buffer[0] & vnet.NEEDS_CHECKSUM:
                self.special = True
        elif protocol in _SECURED:
            return Reason.MALFORMED if room < _SECURED_MIN else self._read_secured(protocol)
        elif protocol == (Protocol.ICMP if self.family == 4 else Protocol.ICMPV6):
            self.protocol = protocol
            self.key = b""
            return Reason.MALFORMED if room < _ICMP_MIN else None
        else:
            return None
        self.protocol = protocol
        self.key = prefix + bytes(self.view[addresses]) + bytes(self.view[self.l4 : self.l4 + 4])
        return None
