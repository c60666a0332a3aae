"""SipHash-1-3 of 32-bit words, cut to 32 bits: the kernel's ``hsiphash_1u32``.

SipHash is by Aumasson and Bernstein ("SipHash: a fast short-input PRF", 2012), here with one
round for the message and three at the end. A word is hashed as its four little-endian bytes,
under a key whose two 64-bit halves are the same number, as Maglev hashing uses it.

Many words are hashed at once in one long integer. Each has a lane of 128 bits, of which it
uses the lower half: what a sum or a shift carries out of a lane's lower half stays in the
upper half, of this lane or of the one below, until the mask takes it away. A thousand words
cost about as much as a hundred one by one.
"""

import struct
from collections.abc import Sequence
from typing import Final

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_LENGTH: Final = 4 << 56
"""The last block carries the length of the message, 4 bytes, in its top byte."""
_LANE_BYTES: Final = 16
_WORD: Final = struct.Struct("<I12x")

_State = tuple[int, int, int, int]


def hsiphash(word: int, key: int) -> int:
    """Hash a word of 32 bits; of the key, 64 bits count."""
    return _hash(word | _LENGTH, key, 1) & 0xFFFF_FFFF


def hsiphash_each(words: Sequence[int], key: int) -> list[int]:
    """Hash many words under the same key."""
    size = len(words) * _LANE_BYTES
    ones = int.from_bytes((1).to_bytes(_LANE_BYTES, "little") * len(words), "little")
    lanes = int.from_bytes(b"".join(map(_WORD.pack, words)), "little")
    hashed = _hash(lanes | _LENGTH * ones, key, ones).to_bytes(size, "little")
    return [word for (word,) in _WORD.iter_unpack(hashed)]


def _hash(block: int, key: int, ones: int) -> int:
    """The hash of the block in every lane, uncut; ``ones`` has a 1 in each lane."""
    key &= _MASK
    mask = _MASK * ones
    state = (
        (key ^ 0x736F_6D65_7073_6575) * ones,
        (key ^ 0x646F_7261_6E64_6F6D) * ones,
        (key ^ 0x6C79_6765_6E65_7261) * ones,
        (key ^ 0x7465_6462_7974_6573) * ones ^ block,
    )
    v0, v1, v2, v3 = _round(state, mask)
    state = (v0 ^ block, v1, v2 ^ 0xFF * ones, v3)
    v0, v1, v2, v3 = _round(_round(_round(state, mask), mask), mask)
    return v0 ^ v1 ^ v2 ^ v3


def _round(state: _State, mask: int) -> _State:
    v0, v1, v2, v3 = state
    v0 = v0 + v1 & mask
    v1 = (v1 << 13 | v1 >> 51) & mask ^ v0
    v0 = (v0 << 32 | v0 >> 32) & mask
    v2 = v2 + v3 & mask
    v3 = (v3 << 16 | v3 >> 48) & mask ^ v2
    v0 = v0 + v3 & mask
    v3 = (v3 << 21 | v3 >> 43) & mask ^ v0
    v2 = v2 + v1 & mask
    v1 = (v1 << 17 | v1 >> 47) & mask ^ v2
    v2 = (v2 << 32 | v2 >> 32) & mask
    return v0, v1, v2, v3
