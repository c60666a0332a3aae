import pytest

from lvsha.datapath.flow import L3, Frame
from lvsha.datapath.reasons import Reason
from lvsha.datapath.sctp_states import SctpEvent
from lvsha.model import connection_key
from lvsha.wire import vnet
from tests import packets

C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8:f::1"


def read(packet: bytes, *, cut: int = 0) -> tuple[Frame, Reason | None]:
    frame = Frame()
    frame.view[:] = b"\xa5" * len(frame.view)
    data = vnet.NOTHING + packets.ethernet(packet)
    frame.view[: len(data)] = data
    return frame, frame.read(len(data) - cut)


def key(protocol: int, source: str, source_port: int, there: str, port: int) -> bytes:
    return connection_key(
        protocol, packets.address(source), source_port, packets.address(there), port
    )


@pytest.mark.parametrize(("here", "there"), [(C4, V4), (C6, V6)])
def test_a_segment_gives_its_key_event_and_lengths(here: str, there: str) -> None:
    packet = packets.tcp(here, 40000, there, 80, packets.SYN | packets.ACK, b"abc", ttl=7)
    frame, reason = read(packet)
    assert reason is None
    assert frame.key == key(6, here, 40000, there, 80)
    assert (frame.protocol, frame.event, frame.ttl) == (6, 0x12, 7)
    assert frame.length == len(packet)
    assert frame.packet() == packet
    assert (frame.source, frame.destination) == (packets.address(here), packets.address(there))
    assert frame.l4 == L3 + len(packet) - 23


@pytest.mark.parametrize(("here", "there"), [(C4, V4), (C6, V6)])
def test_a_datagram_gives_its_key_and_no_event(here: str, there: str) -> None:
    frame, reason = read(packets.udp(here, 4000, there, 53))
    assert reason is None
    assert (frame.key, frame.event) == (key(17, here, 4000, there, 53), 0)


def test_ipv4_options_and_ipv6_extension_headers_move_the_transport() -> None:
    frame, reason = read(packets.tcp(C4, 1, V4, 2, ip_options=b"\x01\x01\x01\x00"))
    assert (reason, frame.l4, frame.key) == (None, L3 + 24, key(6, C4, 1, V4, 2))
    inner = bytes((17, 0)) + bytes(6) + packets.udp_datagram(C6, 1, V6, 2)
    frame, reason = read(packets.ip(C6, V6, 60, inner))
    assert (reason, frame.l4, frame.key) == (None, L3 + 48, key(17, C6, 1, V6, 2))


@pytest.mark.parametrize(("here", "there"), [(C4, V4), (C6, V6)])
def test_icmp_has_no_key(here: str, there: str) -> None:
    frame, reason = read(packets.icmp(here, there, 3, 3, bytes(40)))
    assert (reason, frame.key) == (None, b"")
    assert frame.protocol == (58 if ":" in here else 1)


@pytest.mark.parametrize(
    "packet",
    [packets.ip(C4, V4, 47, bytes(20)), packets.ip(C6, V6, 33, bytes(20))],
    ids=["GRE", "DCCP"],
)
def test_another_protocol_is_none_of_a_directors_business(packet: bytes) -> None:
    frame, reason = read(packet)
    assert (reason, frame.protocol) == (None, 0)


def test_another_ethertype_is_none_of_a_directors_business() -> None:
    frame = Frame()
    frame.load(bytes(12) + b"\x08\x06" + bytes(28))
    assert frame.protocol == 0


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(C4, 1, V4, 2, packets.SYN, b"abc"),
        packets.tcp(C4, 1, V4, 2, ip_options=b"\x01\x01\x01\x00"),
        packets.udp(C6, 1, V6, 2, b"abc"),
    ],
    ids=["IPv4", "options", "IPv6"],
)
def test_a_frame_cut_short_is_truncated_at_every_byte(packet: bytes) -> None:
    for cut in range(1, len(packet) + 1):
        assert read(packet, cut=cut)[1] is Reason.TRUNCATED


def test_padding_behind_the_packet_belongs_to_the_frame_and_not_to_the_packet() -> None:
    packet = packets.udp(C4, 1, V4, 2)
    frame, reason = read(packet + bytes(18))
    assert (reason, frame.length, frame.end) == (None, 28, L3 + 46)


@pytest.mark.parametrize("protocol", [50, 51], ids=["ESP", "AH"])
@pytest.mark.parametrize(("here", "there"), [(C4, V4), (C6, V6)])
def test_secured_packets_have_the_key_of_their_key_exchange(
    here: str, there: str, protocol: int
) -> None:
    frame, reason = read(packets.ip(here, there, protocol, bytes(8)))
    assert (reason, frame.protocol) == (None, protocol)
    assert (frame.key, frame.event) == (key(17, here, 500, there, 500), 0)
    assert read(packets.ip(here, there, protocol, bytes(7)))[1] is Reason.MALFORMED


@pytest.mark.parametrize(("here", "there"), [(C4, V4), (C6, V6)])
def test_an_sctp_packet_gives_its_key_and_the_event_of_its_first_chunk(
    here: str, there: str
) -> None:
    common = (6000).to_bytes(2) + (5000).to_bytes(2) + bytes(8)
    for chunk, event in (
        (bytes((1, 0, 0, 4)), SctpEvent.INIT),
        (bytes((6, 0, 0, 4)), SctpEvent.ABORT),
        (bytes((10, 0, 0, 4)) + bytes((6, 0, 0, 4)), SctpEvent.ABORT_AFTER_COOKIE),
    ):
        frame, reason = read(packets.ip(here, there, 132, common + chunk))
        assert (reason, frame.protocol, frame.event) == (None, 132, event)
        assert frame.key == key(132, here, 6000, there, 5000)
    assert read(packets.ip(here, there, 132, common[:11]))[1] is Reason.MALFORMED


@pytest.mark.parametrize("fragment", [0x2000, 0x0001, 0x2001], ids=["first", "last", "in between"])
@pytest.mark.parametrize("protocol", [1, 6, 17, 132])
def test_a_fragment_is_known_as_one_and_nothing_more_is_read(protocol: int, fragment: int) -> None:
    packet = packets.ip(C4, V4, protocol, bytes(32), fragment=fragment, dont_fragment=False)
    frame, reason = read(packet)
    assert (reason, frame.fragment, frame.protocol) == (None, True, protocol)
    assert (frame.event, frame.packet()) == (0, packet)


def test_fragments_of_what_has_no_connections_are_none_of_a_directors_business() -> None:
    frame, reason = read(packets.ip(C4, V4, 47, bytes(32), fragment=0x2000))
    assert (reason, frame.protocol, frame.fragment) == (None, 0, False)


def test_fragments_of_secured_packets_are_not_put_together() -> None:
    for here, there in ((C4, V4), (C6, V6)):
        packet = packets.ip(here, there, 50, bytes(32), fragment=0x2001, dont_fragment=False)
        if ":" in here:
            header = bytes((50, 0, 0, 9)) + bytes(4)
            packet = packets.ip(here, there, 44, header + bytes(16))
        frame, reason = read(packet)
        assert (reason, frame.fragment, frame.protocol) == (None, False, 50)
        assert frame.key == key(17, here, 500, there, 500)


def test_an_ipv6_fragment_is_known_as_one() -> None:
    header = bytes((17, 0, 0, 1)) + bytes(4)
    frame, reason = read(packets.ip(C6, V6, 44, header + bytes(16)))
    assert (reason, frame.fragment, frame.protocol) == (None, True, 17)


def test_a_fragment_header_beyond_the_packet_is_not_looked_for_in_older_bytes() -> None:
    packet = packets.ip(C6, V6, 60, bytes((44, 1)) + bytes(6))
    frame = Frame()
    frame.view[:] = b"\x06" * len(frame.view)
    data = vnet.NOTHING + packets.ethernet(packet)
    frame.view[: len(data)] = data
    assert frame.read(len(data)) is None
    assert frame.protocol == 0


def _damaged(packet: bytes, at: int, value: bytes) -> bytes:
    changed = bytearray(packet)
    changed[at : at + len(value)] = value
    if at < 20:
        changed[10:12] = bytes(2)
        changed[10:12] = packets.internet_checksum(bytes(changed[:20])).to_bytes(2)
    return bytes(changed)


@pytest.mark.parametrize(
    "packet",
    [
        _damaged(packets.tcp(C4, 1, V4, 2), 32, b"\x40"),
        _damaged(packets.tcp(C6, 1, V6, 2), 52, b"\x40"),
        _damaged(packets.tcp(C4, 1, V4, 2), 2, (39).to_bytes(2)),
        _damaged(packets.udp(C4, 1, V4, 2), 2, (27).to_bytes(2)),
        _damaged(packets.udp(C4, 1, V4, 2), 2, (19).to_bytes(2)),
        _damaged(packets.icmp(C4, V4, 3, 3, b""), 2, (27).to_bytes(2)),
        packets.tcp(C4, 1, V4, 2)[:10] + b"\x00\x00" + packets.tcp(C4, 1, V4, 2)[12:],
        packets.ip(C6, V6, 6, b"\x60" * 19),
        packets.ip(C6, V6, 17, bytes(7)),
        packets.ip(C6, V6, 58, bytes(7)),
        packets.ip(C6, V6, 60, bytes((6, 200)) + bytes(6)),
        b"\x65" + packets.tcp(C4, 1, V4, 2)[1:],
        b"\x44" + packets.tcp(C4, 1, V4, 2)[1:],
    ],
)
def test_a_header_that_contradicts_itself_is_malformed(packet: bytes) -> None:
    frame = Frame()
    frame.view[:] = b"\xa5" * len(frame.view)
    ipv6 = packet[0] >> 4 == 6 and packet[0] != 0x65
    ethertype = b"\x86\xdd" if ipv6 else b"\x08\x00"
    data = vnet.NOTHING + bytes(12) + ethertype + packet
    frame.view[: len(data)] = data
    assert frame.read(len(data)) is Reason.MALFORMED
