"""What answers a segment or an SCTP packet of no connection, by the rules of the RFCs."""

import struct

import pytest

from lvsha.wire import resets
from tests import packets
from tests.packets import ACK, FIN, PSH, RST, SYN

CLIENT, VIRTUAL = "198.51.100.71", "192.0.2.21"
ENDS = packets.address(CLIENT), packets.address(VIRTUAL)
NUMBER, CONFIRMED = 1000, 0x0A0B0C0D


def segment(flags: int, payload: bytes = b"", options: bytes = b"", number: int = NUMBER) -> bytes:
    made = packets.tcp_segment(
        CLIENT, 40000, VIRTUAL, 80, flags, payload, sequence=number, options=options
    )
    return made[:8] + CONFIRMED.to_bytes(4) + made[12:]


def answered(segment: bytes) -> tuple[int, ...]:
    """Ports, number, acknowledgement, offset, flags and window of the answer."""
    answer = resets.tcp(segment, *ENDS)
    assert answer is not None
    assert len(answer) == 20
    pseudo = packets.pseudo_header(ENDS[1], ENDS[0], packets.TCP, 20)
    assert packets.internet_checksum(pseudo + answer) == 0
    return struct.unpack("!HHIIBBH", answer[:16])


# RFC 9293, section 3.10.7.1


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, FIN | ACK, SYN | ACK])
def test_a_reset_to_what_acknowledges_takes_its_number_from_there(flags: int) -> None:
    assert answered(segment(flags, b"data")) == (80, 40000, CONFIRMED, 0, 0x50, RST, 0)


@pytest.mark.parametrize(
    ("flags", "payload", "taken"),
    [(0, b"", 0), (PSH, b"data", 4), (FIN, b"", 1), (SYN, b"", 1), (SYN | FIN, b"four", 6)],
)
def test_a_reset_to_what_does_not_acknowledges_all_of_it(
    flags: int, payload: bytes, taken: int
) -> None:
    expected = (80, 40000, 0, NUMBER + taken, 0x50, RST | ACK, 0)
    assert answered(segment(flags, payload)) == expected
    assert answered(segment(flags, payload, options=b"\x01" * 8)) == expected


def test_the_number_of_a_reset_wraps() -> None:
    assert answered(segment(FIN, b"data", number=2**32 - 2))[3] == 3


@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN, RST | FIN])
def test_a_reset_is_never_answered(flags: int) -> None:
    assert resets.tcp(segment(flags), *ENDS) is None


def test_a_segment_that_is_cut_short_or_contradicts_itself_is_not_answered() -> None:
    whole = segment(ACK)
    for length in range(len(whole)):
        assert resets.tcp(whole[:length], *ENDS) is None
    for offset in (0x00, 0x40, 0x60, 0xF0):
        assert resets.tcp(whole[:12] + bytes((offset,)) + whole[13:], *ENDS) is None


# RFC 9260, section 8.4

DATA, INIT, INIT_ACK, SACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR = 0, 1, 2, 3, 6, 7, 8, 9
COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = 10, 11, 14


def sctp(*chunks: int) -> bytes:
    return packets.sctp(CLIENT, 40000, VIRTUAL, 80, *chunks)[20:]


def read(answer: bytes | None) -> tuple[int, ...] | None:
    """Ports, tag, and type, flags and length of the one chunk."""
    if answer is None:
        return None
    assert len(answer) == 16
    right = packets.crc32c(answer[:8] + bytes(4) + answer[12:])
    assert answer[8:12] == right.to_bytes(4, "little")
    return (*struct.unpack("!HHI", answer[:8]), *struct.unpack("!BBH", answer[12:]))


@pytest.mark.parametrize("chunks", [(DATA,), (SACK, DATA), (SHUTDOWN,), (INIT_ACK,), (ERROR,)])
def test_a_packet_of_no_association_is_answered_with_an_abort_that_reflects_its_tag(
    chunks: tuple[int, ...],
) -> None:
    assert read(resets.sctp(sctp(*chunks))) == (80, 40000, 7, ABORT, 1, 4)


def test_the_end_of_an_association_is_confirmed_if_the_first_chunk_says_so() -> None:
    expected = (80, 40000, 7, SHUTDOWN_COMPLETE, 1, 4)
    assert read(resets.sctp(sctp(SHUTDOWN_ACK))) == expected
    assert read(resets.sctp(sctp(SHUTDOWN_ACK, SACK))) == expected
    assert read(resets.sctp(sctp(SACK, SHUTDOWN_ACK))) == (80, 40000, 7, ABORT, 1, 4)


def test_chunks_are_padded_to_four_bytes() -> None:
    odd = struct.pack("!BBH", DATA, 0, 5) + b"x" + bytes(3)
    assert resets.sctp(sctp()[:12] + odd + struct.pack("!BBH", ABORT, 0, 4)) is None


@pytest.mark.parametrize(
    "chunks",
    [(ABORT,), (SACK, ABORT), (SHUTDOWN_COMPLETE,), (COOKIE_ACK,), (COOKIE_ECHO, DATA)],
)
def test_what_must_be_discarded_is_not_answered(chunks: tuple[int, ...]) -> None:
    assert resets.sctp(sctp(*chunks)) is None


def test_an_error_that_says_the_cookie_was_stale_is_not_answered() -> None:
    whole = sctp(ERROR)
    assert resets.sctp(whole[:16] + b"\x00\x03\x00\x08" + whole[20:]) is None


def test_a_packet_that_is_cut_short_or_contradicts_itself_is_not_answered() -> None:
    whole = sctp(SACK, DATA)
    for length in range(len(whole)):
        answer = resets.sctp(whole[:length])
        assert (answer is not None) is (length in range(24, 28))  # a whole chunk, and no other
    for length in (0, 3, 255):
        assert resets.sctp(whole[:14] + length.to_bytes(2) + whole[16:]) is None
