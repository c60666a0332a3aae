"""Break sync datagrams: their bytes, and what is in them.

Bytes that are changed anywhere are mostly no msgpack any more, so most mutations take the
body apart, change an element and put it together again. What would never be believed, such
as an epoch drawn at random, is made plausible by what is known of the nodes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgpack

HEAD_BYTES = 4
LENGTH_MAX = 65_600
NUMBERS = (0, 1, 2, 15, 16, 127, 128, 255, 256, 4095, 4096, 4097, 65_535, 65_536, 2**32 - 1)
WIDE = (*NUMBERS, 2**32, 2**63, 2**64 - 1)
VALUES: tuple[object, ...] = (None, True, False, -1, 0.5, float("nan"), "", "east", b"", [], {})
KINDS = (*range(1, 20), 0, 20, 255)


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of the nodes: their names, epochs and numbers."""

    names: tuple[str, ...]
    epochs: tuple[int, ...]
    sequences: tuple[int, ...]
    terms: tuple[int, ...]


def mutate(dice: Random, data: bytes, other: bytes, hints: Hints) -> bytes:
    """A datagram, broken once or a few times."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        if dice.random() < 0.3:
            data = dice.choice(_OF_BYTES)(dice, data, other)
        else:
            data = _of_body(dice, data, other, hints)
    return data[:LENGTH_MAX]


def noise(dice: Random) -> bytes:
    """Some bytes, perhaps behind a sound head."""
    data = dice.randbytes(dice.randrange(80))
    return (
        bytes((dice.choice((1, 1, 2, 3)), 1)) + b"\xff\xff" + data if dice.random() < 0.8 else data
    )


# --- bytes ------------------------------------------------------------------------------------


def _flip(dice: Random, data: bytes, _other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(dice: Random, data: bytes, _other: bytes) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _splice(dice: Random, data: bytes, other: bytes) -> bytes:
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def _head(dice: Random, data: bytes, _other: bytes) -> bytes:
    head = (dice.choice((1, 2, 3, 0)), dice.choice((0, 1, 2, 255)))
    return bytes(head) + dice.choice((b"\xff\xff", b"\0\x2c", data[2:4])) + data[HEAD_BYTES:]


def _stretch(dice: Random, data: bytes, _other: bytes) -> bytes:
    return data + dice.randbytes(1) * dice.choice((1, 100, 65_000))


_OF_BYTES: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _splice,
    _head,
    _stretch,
)


# --- bodies -----------------------------------------------------------------------------------


def _of_body(dice: Random, data: bytes, other: bytes, hints: Hints) -> bytes:
    body = _unpacked(data)
    if body is None:
        return _flip(dice, data, other)
    change = dice.randrange(6)
    if change == 0:
        body[0] = dice.choice(KINDS)
    elif change <= 2:
        _aim(dice, body, hints)
    elif change == 3:
        donor = _unpacked(other)
        if donor is not None:
            body[6:] = donor[6:]
    else:
        _change_within(dice, body)
    try:
        return data[:HEAD_BYTES] + bytes(msgpack.packb(body))
    except (ValueError, OverflowError, TypeError):
        return data


def _unpacked(data: bytes) -> list[Any] | None:
    try:
        body = msgpack.unpackb(data[HEAD_BYTES:], strict_map_key=False)
    except (ValueError, msgpack.UnpackException, TypeError):
        return None
    return body if isinstance(body, list) and len(body) >= 6 else None


def _aim(dice: Random, body: list[Any], hints: Hints) -> None:
    """Make the sender, or who is asked, somebody who may be believed."""
    near = dice.choice(hints.sequences) + dice.choice((0, 0, 1, 1, 2, -1, -3, 40, 4096, 5000))
    body[1] = dice.choice((*hints.names, "north", f"node-{dice.randrange(40)}"))
    body[2] = dice.choice((*hints.epochs, *hints.epochs, dice.randrange(2**64)))
    body[3] = dice.choice((1, 1, 2, 3))
    body[4] = max(0, dice.choice(hints.terms) + dice.choice((0, 0, 1, 2, -1, 10**6)))
    body[5] = max(0, dice.choice((near, near, near, 2**64 - 1, 0)))
    if len(body) > 7 and isinstance(body[6], str):
        body[6] = dice.choice(hints.names)
        body[7] = dice.choice(hints.epochs)


def _change_within(dice: Random, body: list[Any]) -> None:
    """Change something at any depth."""
    at: list[Any] = body
    while True:
        index = dice.randrange(len(at)) if at else 0
        inner = at[index] if at else None
        if isinstance(inner, list) and inner and dice.random() < 0.7:
            at = inner
            continue
        break
    match dice.randrange(5):
        case 0 if at:
            del at[index]
        case 1:
            at.insert(index, dice.choice((*VALUES, *WIDE)))
        case 2 if at:
            at.extend([at[index]] * dice.choice((1, 30, 400)))
        case _ if at:
            at[index] = _another(dice, inner)
        case _:
            at.append(dice.choice(VALUES))


def _another(dice: Random, value: object) -> object:
    """Something like a value, or something else."""
    if dice.random() < 0.2:
        return dice.choice((*VALUES, *WIDE))
    match value:
        case bool():
            return not value
        case int():
            return dice.choice((*WIDE, max(0, value + dice.choice((-1, 1)))))
        case bytes() if value:
            changed = bytearray(value)
            changed[dice.randrange(len(changed))] = dice.randrange(256)
            grown = bytes(changed) * dice.choice((2, 20))
            return dice.choice((bytes(changed), bytes(changed), value[:-1], grown))
        case str():
            return dice.choice((value + "x", value * 30, "\x1b[2J", "ö", ""))
        case _:
            return dice.choice(VALUES)
