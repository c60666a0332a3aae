"""The checksum of SCTP packets: CRC32c (RFC 9260, section 6.8 and appendix A).

It covers the whole packet from the common header on, with the checksum field as zero, and
no pseudo-header: a new address does not change it, a new port does. It has no cheap update.

The CRC is reflected, and SCTP sends it so that the bits stand on the wire in the order in
which the polynomial was divided. The number that a CRC32c function returns is therefore
stored with its least significant byte first, unlike every other field.
"""

from typing import Final

from crc32c import crc32c

CHECKSUM_AT: Final = 8
"""Offset of the field in the common header."""
_FIELD_END: Final = CHECKSUM_AT + 4
_ZERO: Final = bytes(4)

Buffer = bytes | bytearray | memoryview


def checksum(packet: Buffer) -> bytes:
    """The checksum field of an SCTP packet; what stands in the field does not matter.

    Args:
        packet: from the common header, all 12 bytes of it, to the end of the last chunk.
    """
    so_far = crc32c(_ZERO, crc32c(packet[:CHECKSUM_AT]))
    return crc32c(packet[_FIELD_END:], so_far).to_bytes(4, "little")
