import pytest

from lvsha.datapath import payload
from lvsha.datapath.flow import FRAME_MAX, L3, Frame
from lvsha.datapath.ftp import FtpMode, from_server, passive_text
from lvsha.errors import WireError
from lvsha.wire import vnet
from tests import packets
from tests.reader import dissect, faults

C4, V4, S4 = "198.51.100.7", "192.0.2.1", "10.1.0.2"
C6, V6, S6 = "2001:db8::7", "2001:db8:f::1", "fd00::2"
FAMILIES = pytest.mark.parametrize(("server", "client"), [(S4, C4), (S6, C6)])
OPTIONS = b"\x01\x01\x08\x0a" + bytes(8)
SCTP = 132

# What a Linux 6.1 kernel director made of an answer to PASV, the virtual service being
# 192.0.2.61 and the real server 10.1.0.31.
KERNEL_IN = bytes.fromhex(
    "45000057000100004006462e0a01001fc633641f00159c40000013a2000003ff5018ffff85280000"
    "32323720456e746572696e672050617373697665204d6f6465202831302c312c302c33312c3230302c3130292e0d0a"
)
KERNEL_OUT = bytes.fromhex(
    "45000058000100003f068f0fc000023dc633641f00159c40000013a2000003ff5018ffffc9cd0000"
    "32323720456e746572696e672050617373697665204d6f646520283139322c302c322c36312c3230302c3130292e0d0a"
)


def frame(packet: bytes, header: bytes = packets.NO_VNET) -> Frame:
    made = Frame()
    made.view[:] = b"\xa5" * len(made.view)
    made.load(packets.ethernet(packet), header)
    return made


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A, bit by bit."""
    remainder = 0xFFFF_FFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F6_3B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFF_FFFF


def sctp(here: str, there: str, chunks: bytes) -> bytes:
    header = bytes((0, 21, 0, 22)) + bytes(4)
    field = crc32c(header + bytes(4) + chunks).to_bytes(4, "little")
    return packets.ip(here, there, SCTP, header + field + chunks)


def test_the_answer_to_pasv_says_what_the_kernel_says() -> None:
    made = frame(KERNEL_IN)
    answered = from_server(payload.read(made), FtpMode.PASV, packets.address("10.1.0.31"))
    assert answered is not None
    text = passive_text(FtpMode.PASV, packets.address("192.0.2.61"), answered.port)
    assert payload.replace(made, answered.start, answered.end, text) == 1
    assert faults(made.packet()) == []
    assert made.packet()[20:36] == KERNEL_OUT[20:36]
    assert made.packet()[38:] == KERNEL_OUT[38:]
    assert made.packet()[:8] == KERNEL_OUT[:8]


@FAMILIES
def test_the_payload_begins_behind_the_header_and_its_options(server: str, client: str) -> None:
    made = frame(packets.tcp(server, 21, client, 40000, payload=b"abc", tcp_options=OPTIONS))
    assert payload.read(made) == b"abc"
    assert payload.start(made) == L3 + made.length - 3
    assert payload.read(frame(packets.tcp(server, 21, client, 40000))) == b""
    assert payload.read(frame(packets.udp(server, 5060, client, 5060, b"abc"))) == b"abc"


def test_padding_behind_the_packet_is_no_payload() -> None:
    assert payload.read(frame(packets.tcp(S4, 21, C4, 40000, payload=b"a") + bytes(5))) == b"a"
    assert payload.read(frame(packets.udp(S4, 21, C4, 40000, b"a") + bytes(17))) == b"a"


@FAMILIES
def test_a_tcp_header_longer_than_its_packet_is_a_wire_error(server: str, client: str) -> None:
    made = frame(packets.tcp(server, 21, client, 40000, payload=b"abc"))
    made.buffer[made.l4 + 12] = 0xF0
    before = bytes(made.buffer)
    with pytest.raises(WireError):
        payload.read(made)
    with pytest.raises(WireError):
        payload.replace(made, 0, 0, b"x")
    assert bytes(made.buffer) == before


@FAMILIES
@pytest.mark.parametrize(
    ("first", "end", "new", "result"),
    [
        (0, 3, b"one", b"one two three"),
        (4, 7, b"2", b"zwo 2 three"),
        (4, 7, b"second", b"zwo second three"),
        (8, 13, b"last", b"zwo two last"),
        (13, 13, b" four", b"zwo two three four"),
        (0, 0, b">", b">zwo two three"),
        (0, 13, b"", b""),
    ],
)
@pytest.mark.parametrize("padding", [0, 9])
def test_a_part_is_replaced_wherever_it_stands(
    server: str, client: str, first: int, end: int, new: bytes, result: bytes, padding: int
) -> None:
    packet = packets.tcp(server, 21, client, 40000, packets.ACK, b"zwo two three")
    made = frame(packet + bytes(padding))
    change = payload.replace(made, first, end, new)
    changed = made.packet()
    assert change == len(result) - 13 == len(changed) - len(packet)
    assert faults(changed) == []
    assert bytes(dissect(changed).payload.payload) == result == payload.read(made)
    assert made.end == L3 + made.length
    again = Frame()
    again.load(bytes(made.view[vnet.LENGTH_BYTES : made.end]))
    assert (again.length, again.key, again.l4) == (made.length, made.key, made.l4)


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(S4, 21, C4, 9, payload=b"abc", ip_options=b"\x01" * 8),
        packets.tcp(S4, 21, C4, 9, payload=b"abc", tcp_options=OPTIONS),
        packets.ip(
            S6, C6, 60, b"\x06" + bytes(7) + packets.tcp_segment(S6, 21, C6, 9, payload=b"abc")
        ),
    ],
    ids=["IPv4 options", "TCP options", "IPv6 extension header"],
)
def test_what_lies_between_the_headers_stays(packet: bytes) -> None:
    made = frame(packet)
    assert payload.replace(made, 0, 3, b"longer than before") == 15
    assert faults(made.packet()) == []
    payload.replace(made, 0, 18, b"abc")
    assert made.packet() == packet


@FAMILIES
def test_a_partial_checksum_stays_partial_and_right(server: str, client: str) -> None:
    l4 = 40 if ":" in server else 20
    packet = packets.with_partial_checksum(
        packets.tcp(server, 21, client, 9, payload=b"x" * 5000), l4, packets.TCP
    )
    kind = vnet.GSO_TCPV6 if ":" in server else vnet.GSO_TCPV4
    header = packets.vnet_header(partial=True, gso_type=kind, gso_size=1400, l4=14 + l4)
    made = frame(packet, header)
    assert payload.replace(made, 100, 200, b"y" * 321) == 221
    changed = made.packet()
    assert changed == packets.with_partial_checksum(changed, l4, packets.TCP)
    assert payload.read(made) == b"x" * 100 + b"y" * 321 + b"x" * 4800
    assert bytes(made.view[: vnet.LENGTH_BYTES]) == header


def test_an_ipv4_packet_grows_up_to_what_its_length_can_say() -> None:
    made = frame(packets.tcp(S4, 21, C4, 9, payload=b"x" * 65_000))
    payload.replace(made, 10, 10, b"y" * 495)
    assert (made.length, faults(made.packet())) == (65_535, [])
    with pytest.raises(WireError):
        payload.replace(made, 10, 10, b"y")
    assert payload.replace(made, 10, 11, b"z") == 0


def test_an_ipv6_packet_grows_up_to_what_the_buffer_can_hold() -> None:
    made = frame(packets.tcp(S6, 21, C6, 9, payload=b"x" * 65_000))
    room = FRAME_MAX - 14 - made.length
    payload.replace(made, 65_000, 65_000, b"y" * room)
    assert made.end == len(made.buffer)
    assert faults(made.packet()) == []
    with pytest.raises(WireError):
        payload.replace(made, 0, 0, b"y")


@FAMILIES
def test_a_packet_that_would_be_too_long_is_not_changed(server: str, client: str) -> None:
    made = frame(packets.tcp(server, 21, client, 9, payload=b"abc") + bytes(4))
    before = (bytes(made.buffer), made.length, made.end)
    with pytest.raises(WireError):
        payload.replace(made, 1, 2, bytes(FRAME_MAX))
    assert (bytes(made.buffer), made.length, made.end) == before


@FAMILIES
def test_a_checksum_is_right_or_wrong(server: str, client: str) -> None:
    for packet in (
        packets.tcp(server, 21, client, 9, packets.ACK, b"odd"),
        packets.tcp(server, 21, client, 9),
        packets.udp(server, 5060, client, 9, b"odd"),
        packets.udp(server, 5060, client, 9),
    ):
        made = frame(packet + b"padding")
        assert payload.verify(made)
        made.buffer[L3 + made.length - 1] ^= 0x01
        assert not payload.verify(made)


@FAMILIES
def test_an_address_that_is_not_the_senders_makes_a_checksum_wrong(
    server: str, client: str
) -> None:
    made = frame(packets.tcp(server, 21, client, 9))
    made.buffer[L3 + 15] ^= 0x01
    assert not payload.verify(made)


@FAMILIES
def test_a_datagram_without_checksum_counts_as_right(server: str, client: str) -> None:
    assert payload.verify(frame(packets.udp(server, 5060, client, 9, b"odd", checksum=False)))


@FAMILIES
def test_the_checksum_of_sctp_covers_the_packet_and_not_its_addresses(
    server: str, client: str
) -> None:
    assert crc32c(b"123456789") == 0xE306_9283
    made = frame(sctp(server, client, b"\x0e\x00\x00\x04"))
    assert payload.verify(made)
    made.buffer[L3 + 15] ^= 0x01
    assert payload.verify(made)
    made.buffer[made.l4 + 1] ^= 0x01
    assert not payload.verify(made)


@FAMILIES
@pytest.mark.parametrize(
    "header",
    [packets.vnet_header(partial=True), bytes((vnet.CHECKSUM_VALID,)) + bytes(9)],
    ids=["partial", "found right"],
)
def test_what_the_kernel_answers_for_counts_as_right(
    server: str, client: str, header: bytes
) -> None:
    for packet in (
        packets.tcp(server, 21, client, 9, payload=b"abc"),
        packets.udp(server, 21, client, 9, b"abc"),
        sctp(server, client, b"\x0e\x00\x00\x04abcd"),
    ):
        damaged = packet[:-1] + b"x"
        assert not payload.verify(frame(damaged))
        assert payload.verify(frame(damaged, header))
