"""What a frame says, against a slow reader that takes nothing on trust."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.flow import Frame
from lvsha.datapath.sctp_states import SctpEvent
from lvsha.model import connection_key
from tests import packets

SCTP, ESP, AH = 132, 50, 51
TRANSPORTS = {packets.TCP: 20, packets.UDP: 8, SCTP: 16, ESP: 8, AH: 8}
FRAGMENT = b"a fragment"
"""In place of the key of what is only one."""
SCTP_EVENTS = {
    6: SctpEvent.ABORT,
    7: SctpEvent.SHUTDOWN,
    8: SctpEvent.SHUTDOWN_ACK,
    9: SctpEvent.ERROR,
    14: SctpEvent.SHUTDOWN_COMPLETE,
    1: SctpEvent.INIT,
    2: SctpEvent.INIT_ACK,
    10: SctpEvent.COOKIE_ECHO,
    11: SctpEvent.COOKIE_ACK,
}
"""All other chunks are data to a director."""
COOKIES = {SctpEvent.COOKIE_ECHO, SctpEvent.COOKIE_ACK}
C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8:f::1"
EXTENSION = bytes((packets.TCP, 0, 1, 4, 0, 0, 0, 0))


def _sctp(*chunks: bytes) -> bytes:
    return (6000).to_bytes(2) + (5000).to_bytes(2) + bytes(8) + b"".join(chunks)


VALID = (
    packets.ip(C4, V4, SCTP, _sctp(b"\x01\x00\x00\x04")),
    packets.ip(C6, V6, SCTP, _sctp(b"\x0a\x00\x00\x05x\x00\x00\x00", b"\x06\x00\x00\x04")),
    packets.ip(C4, V4, ESP, bytes(24)),
    packets.ip(C6, V6, AH, bytes(24)),
    packets.ip(C4, V4, ESP, bytes(24), fragment=0x2001),
    packets.ip(C6, V6, 44, bytes((ESP, 0, 0, 1, 0, 0, 0, 9)) + bytes(24)),
    packets.tcp(C4, 40000, V4, 80, packets.SYN, b"abc"),
    packets.tcp(C4, 40000, V4, 80, packets.ACK, ip_options=b"\x94\x04\x00\x00"),
    packets.udp(C4, 40000, V4, 53, b"question"),
    packets.icmp(C4, V4, 3, 4, packets.udp(V4, 53, C4, 40000)),
    packets.ip(C4, V4, 47, b"tunnel"),
    packets.ip(C4, V4, packets.UDP, bytes(24), fragment=0x2000),
    packets.tcp(C6, 40000, V6, 80, packets.FIN, b"abc"),
    packets.udp(C6, 40000, V6, 53, b"question"),
    packets.icmp(C6, V6, 2, 0, packets.udp(V6, 53, C6, 40000)),
    packets.ip(C6, V6, 60, EXTENSION + packets.tcp_segment(C6, 1, V6, 2)),
    packets.ip(C6, V6, 44, bytes((packets.TCP, 0, 0, 1, 0, 0, 0, 9)) + bytes(24)),
)


def naive(ethernet: bytes) -> tuple[int, bytes, int] | None:
    """Protocol, key and event of a frame that a director may go on with; else None."""
    ethertype, packet = int.from_bytes(ethernet[12:14]), ethernet[14:]
    if ethertype == 0x0800 and len(packet) >= 20 and packet[0] >> 4 == 4:
        header_bytes = (packet[0] & 15) * 4
        length = int.from_bytes(packet[2:4])
        if header_bytes < 20 or not header_bytes <= length <= len(packet):
            return None
        if packets.internet_checksum(packet[:header_bytes]) not in {0, 0xFFFF}:
            return None
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
        if int.from_bytes(packet[6:8]) & 0x3FFF:
            return fragment(protocol, source, destination)
        transport, icmp = packet[header_bytes:length], packets.ICMP
    elif ethertype == 0x86DD and len(packet) >= 40 and packet[0] >> 4 == 6:
        length = 40 + int.from_bytes(packet[4:6])
        if length > len(packet):
            return None
        source, destination = packet[8:24], packet[24:40]
        protocol, transport, icmp = packet[6], packet[40:length], packets.ICMPV6
        for _ in range(8):
            if protocol in {0, 43, 60}:
                if len(transport) < 8:
                    return None
                protocol, transport = transport[0], transport[(transport[1] + 1) * 8 :]
        if protocol in {0, 43, 60}:
            return None
        if protocol == 44:
            return fragment(transport[0] if transport else 0, source, destination)
    else:
        return None
    if protocol == icmp:
        return (protocol, b"", 0) if len(transport) >= 8 else None
    if protocol not in TRANSPORTS or len(transport) < TRANSPORTS[protocol]:
        return None
    if protocol == packets.TCP and transport[12] >> 4 < 5:
        return None
    if protocol in {ESP, AH}:
        return protocol, key_exchange(source, destination), 0
    ports = struct.unpack("!HH", transport[:4])
    key = connection_key(protocol, source, ports[0], destination, ports[1])
    return protocol, key, event(protocol, transport)


def event(protocol: int, transport: bytes) -> int:
    """What a packet means to the state machine of its protocol."""
    if protocol == packets.TCP:
        return transport[13]
    if protocol != SCTP:
        return 0
    found = SCTP_EVENTS.get(transport[12], SctpEvent.DATA)
    length = int.from_bytes(transport[14:16])
    following = 12 + (length + 3) // 4 * 4
    if found in COOKIES and length >= 4 and transport[following:][:1] == b"\x06":
        return SctpEvent.ABORT_AFTER_COOKIE if len(transport) >= following + 4 else found
    return found


def key_exchange(source: bytes, destination: bytes) -> bytes:
    return connection_key(packets.UDP, source, 500, destination, 500)


def fragment(protocol: int, source: bytes, destination: bytes) -> tuple[int, bytes, int] | None:
    """What is known of a fragment: those of AH and ESP need no more than addresses."""
    if protocol in {ESP, AH}:
        return protocol, key_exchange(source, destination), 0
    if protocol in {packets.TCP, packets.UDP, packets.ICMP, SCTP}:
        return protocol, FRAGMENT, 0
    return None


def read(frame: Frame, ethernet: bytes) -> tuple[int, bytes, int] | None:
    data = packets.NO_VNET + ethernet
    frame.view[: len(data)] = data
    reason = frame.read(len(data))
    if reason is not None or not frame.protocol:
        return None
    return frame.protocol, FRAGMENT if frame.fragment else frame.key, frame.event


@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255))))
def test_a_damaged_frame_is_read_as_the_slow_reader_reads_it(
    packet: bytes, damage: list[tuple[int, int]]
) -> None:
    ethernet = bytearray(packets.ethernet(packet))
    for at, value in damage:
        if at < len(ethernet):
            ethernet[at] = value
    if ethernet[12:14] == b"\x08\x00" and len(ethernet) >= 34:
        # Mend the header checksum, so that the damage is looked at and not just refused.
        header_bytes = max(20, (ethernet[14] & 15) * 4)
        ethernet[24:26] = bytes(2)
        fixed = packets.internet_checksum(bytes(ethernet[14 : 14 + header_bytes]))
        ethernet[24:26] = fixed.to_bytes(2)
    frame = Frame()
    frame.view[:] = b"\xa5" * len(frame.view)
    assert read(frame, bytes(ethernet)) == naive(bytes(ethernet))


@given(st.binary(max_size=200))
def test_random_bytes_are_read_as_the_slow_reader_reads_them(data: bytes) -> None:
    frame = Frame()
    for ethertype in (b"\x08\x00", b"\x86\xdd"):
        ethernet = data[:12] + ethertype + data[12:] if len(data) >= 12 else data
        assert read(frame, ethernet) == naive(ethernet)


@given(st.sampled_from(VALID), st.sampled_from(VALID))
def test_what_an_earlier_frame_left_behind_is_never_read(packet: bytes, earlier: bytes) -> None:
    ethernet = packets.ethernet(packet)
    frame = Frame()
    for end in range(len(ethernet) + 1):
        read(frame, packets.ethernet(earlier) + packets.ethernet(earlier))
        assert read(frame, ethernet[:end]) == naive(ethernet[:end]), end
