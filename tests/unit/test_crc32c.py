import pytest
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit

from lvsha.wire.crc32c import checksum


def bitwise(data: bytes) -> int:
    """Appendix A of RFC 9260, bit by bit: reflected, the polynomial 0x1EDC6F41."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def test_the_loop_that_judges_gives_the_known_check_value() -> None:
    assert bitwise(b"123456789") == 0xE3069283


@pytest.mark.parametrize(
    "segment",
    [
        SCTP(sport=6000, dport=5000, tag=7) / SCTPChunkInit(),
        SCTP(sport=1, dport=65535, tag=0xFFFFFFFF) / SCTPChunkData(data=b"odd"),
        SCTP() / SCTPChunkData(data=bytes(1400)),
        SCTP(),
    ],
)
def test_the_field_is_the_one_that_scapy_writes(segment: SCTP) -> None:
    data = bytes(segment)
    assert checksum(data) == data[8:12]


def test_the_least_significant_byte_comes_first() -> None:
    data = bytes(range(12)) + b"\x0e\x00\x00\x04"
    expected = bitwise(data[:8] + bytes(4) + data[12:])
    assert checksum(data) == expected.to_bytes(4, "little") != expected.to_bytes(4)


def test_what_stands_in_the_field_does_not_matter() -> None:
    data = bytes(SCTP() / SCTPChunkData(data=b"x"))
    for field in (bytes(4), b"\xa5" * 4, b"\xff" * 4):
        assert checksum(data[:8] + field + data[12:]) == data[8:12]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_and_left_as_it_is(kind: type[bytes]) -> None:
    data = bytes(SCTP() / SCTPChunkData(data=b"x"))
    buffer = kind(data)
    assert checksum(buffer) == data[8:12]
    assert bytes(buffer) == data


def test_a_packet_that_a_kernel_has_taken_is_right() -> None:
    packet = bytes.fromhex("177013880000000734016ff90003001400000000000000000000000064617461")
    assert checksum(packet) == packet[8:12]
