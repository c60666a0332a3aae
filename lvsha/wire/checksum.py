"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

A one's-complement sum is a remainder modulo 65535, so the sum of a whole buffer is one
big-integer remainder, which Python computes in C. The two zeros of one's complement
are kept apart as RFC 1071 has them: the sum of data that is not all zero is never 0 but
0xFFFF.
"""

from typing import Final

MODULUS: Final = 0xFFFF

Buffer = bytes | bytearray | memoryview


def ones_complement_sum(data: Buffer, initial: int = 0) -> int:
    """The folded 16-bit one's-complement sum of big-endian words, not complemented.

    Args:
        data: any bytes; an odd one at the end is padded with a zero (RFC 1071).
        initial: a sum to go on from, such as that of a pseudo-header.
    """
    total = int.from_bytes(data) << (8 if len(data) & 1 else 0)
    total += initial
    return (total % MODULUS) or (MODULUS if total else 0)


def checksum(data: Buffer, initial: int = 0) -> int:
    """The checksum field for ``data``: its complemented sum."""
    return ~ones_complement_sum(data, initial) & 0xFFFF


def difference(old: Buffer, new: Buffer) -> int:
    """What replacing ``old`` by ``new`` adds to a one's-complement sum.

    Both must start at an even offset and have the same even length.
    """
    return (int.from_bytes(new) - int.from_bytes(old)) % MODULUS


def update(field: int, change: int) -> int:
    """Adjust a finished checksum field after a change (RFC 1624, equation 3)."""
    total = (~field & 0xFFFF) + change
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def update_partial(field: int, change: int) -> int:
    """Adjust a field that holds only the sum of the pseudo-header.

    A sender that leaves the checksum to the hardware stores the folded sum without the
    complement, so the change is added as it is.
    """
    total = field + change
    return (total & 0xFFFF) + (total >> 16)


def pseudo_header_sum(source: Buffer, destination: Buffer, protocol: int, length: int) -> int:
    """The sum of the pseudo-header of IPv4 (RFC 9293) or IPv6 (RFC 8200, section 8.1).

    Args:
        source: the source address in network order, 4 or 16 bytes.
        destination: the destination address likewise.
        protocol: the protocol or next-header number.
        length: of the upper-layer packet, in bytes.
    """
    return ones_complement_sum(
        bytes(source) + bytes(destination) + protocol.to_bytes(4) + length.to_bytes(4)
    )
