"""What the hashing schedulers share: addresses of a key as numbers, their hash, the flags.

Keys are those of `lvsha.model.connection_key`. An IPv6 address counts as the exclusive or of
its four words, so it is 32 bits as an IPv4 address is.
"""

from typing import Final

from lvsha.model import Protocol

WORD: Final = 0xFFFF_FFFF
_GOLDEN_RATIO_32: Final = 0x61C8_8647
_KEY_BYTES_IPV4: Final = 14
_WITH_PORTS: Final = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})

_FALLBACK: Final = frozenset({"sh-fallback", "mh-fallback", "flag-1"})
_PORT: Final = frozenset({"sh-port", "mh-port", "flag-2"})


def falls_back(flags: frozenset[str]) -> bool:
    """Whether to look on where the server of a slot is not usable.

    The kernel has one bit for sh and mh; ``flag-1`` is its number.
    """
    return not _FALLBACK.isdisjoint(flags)


def port_of(key: bytes, flags: frozenset[str]) -> int:
    """The client's port where the flags say that it counts, else 0.

    It counts only with protocols that have ports. The kernel has one bit for sh and mh;
    ``flag-2`` is its number.
    """
    if _PORT.isdisjoint(flags) or key[1] not in _WITH_PORTS:
        return 0
    return int.from_bytes(key[-4:-2])


def source_of(key: bytes) -> int:
    """The client's address, folded to 32 bits."""
    return fold(key[2:6] if len(key) == _KEY_BYTES_IPV4 else key[2:18])


def destination_of(key: bytes) -> bytes:
    """The address that the client connects to."""
    return key[6:10] if len(key) == _KEY_BYTES_IPV4 else key[18:34]


def fold(address: bytes) -> int:
    """An address as 32 bits: an IPv6 address by the exclusive or of its words."""
    value = int.from_bytes(address)
    value ^= value >> 64
    return (value ^ value >> 32) & WORD


def hash_32(value: int, bits: int) -> int:
    """The kernel's multiplicative hash: the upper bits of a product."""
    return (value * _GOLDEN_RATIO_32 & WORD) >> 32 - bits
