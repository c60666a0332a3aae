"""Break frames: what hostile hardware, stacks and people could put on a wire.

A mutation takes a frame (virtio header and Ethernet frame) and another one, and gives a
frame that fits the buffer into which frames are received. Most of the time the IPv4 header
checksum is made right again afterwards, since nothing would get behind it otherwise.
"""

import struct
from collections.abc import Callable
from random import Random

from lvsha.datapath.flow import FRAME_MAX
from tests.fuzz import craft
from tests.fuzz.craft import L3, VNET_BYTES

LENGTH_MAX = VNET_BYTES + FRAME_MAX
_PACKET_MAX = 65_535
EXTREMES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
WORDS = (0, 1, 7, 8, 19, 20, 39, 40, 0x7FFF, 0x8000, 0xFFF8, 0xFFFF)
_FLAGS = (0, 1, 2, 3, 4, 0xFF)
_GSO_TYPES = (0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0xFF)
_ETHERTYPES = (
    b"\x81\x00",
    b"\x88\xa8",
    b"\x08\x06",
    b"\x86\xdd",
    b"\x08\x00",
    b"\0\0",
    b"\x88\x47",
)
_EXTENSIONS = (0, 43, 44, 60, 51, 50, 59, 135)


def mutate(dice: Random, data: bytes, other: bytes) -> bytes:
    """A frame, broken once or a few times."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        data = dice.choice(_MUTATIONS)(dice, data, other)
    data = data[:LENGTH_MAX]
    if len(data) >= L3 + 20 and data[L3] >> 4 == 4 and dice.random() < 0.8:
        data = data[:L3] + craft.with_header_checksum(data[L3:])
    return data


def noise(dice: Random) -> bytes:
    """A frame of 0 to 80 bytes of anything, its type perhaps that of IP."""
    data = dice.randbytes(dice.randrange(81))
    if dice.random() < 0.7:
        data = data[:12] + dice.choice(_ETHERTYPES) + data[14:]
    return craft.NO_VNET + data


def _flip(dice: Random, data: bytes, _other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        if changed:
            # Headers are worth more than payload.
            at = dice.randrange(min(len(changed), dice.choice((L3 + 80, len(changed)))))
            changed[at] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _extreme(dice: Random, data: bytes, _other: bytes) -> bytes:
    if len(data) <= L3:
        return data
    at = dice.randrange(L3, min(len(data), L3 + 100))
    return data[:at] + bytes((dice.choice(EXTREMES),)) + data[at + 1 :]


def _cut(dice: Random, data: bytes, _other: bytes) -> bytes:
    return data[: dice.randrange(max(VNET_BYTES, 1), max(len(data), VNET_BYTES + 1) + 1)]


def _cut_packet(dice: Random, data: bytes, _other: bytes) -> bytes:
    """Cut off, with a length that says so: the headers inside are what is short."""
    packet = data[L3:]
    if len(packet) < 21:
        return data
    return data[:L3] + _with_length(packet[: dice.randrange(20, len(packet))])


def _with_length(packet: bytes) -> bytes:
    packet = packet[:_PACKET_MAX]
    if len(packet) < 6:
        return packet
    if packet[0] >> 4 == 6:
        return packet[:4] + max(len(packet) - 40, 0).to_bytes(2) + packet[6:]
    return packet[:2] + len(packet).to_bytes(2) + packet[4:]


def _grow(dice: Random, data: bytes, _other: bytes) -> bytes:
    tail = dice.randbytes(dice.choice((1, 6, 60, 1000)))
    return data + tail


def _length(dice: Random, data: bytes, _other: bytes) -> bytes:
    """One of the length fields says something else: by one, by eight, or an extreme."""
    seen = craft.read(data[L3:])
    if seen is None:
        return data
    ip_length = 2 if data[L3] >> 4 == 4 else 4
    transport = {craft.UDP: 4, craft.TCP: 12, craft.SCTP: 14}.get(seen.protocol, 2)
    at = L3 + dice.choice((ip_length, seen.l4 + transport, seen.l4 + 1, seen.l4 + 12))
    if at + 2 > len(data):
        return data
    old = int.from_bytes(data[at : at + 2])
    new = dice.choice((old + 1, old - 1, old + 8, old - 8, dice.choice(WORDS))) & 0xFFFF
    return data[:at] + new.to_bytes(2) + data[at + 2 :]


def _first_byte(dice: Random, data: bytes, _other: bytes) -> bytes:
    """Another version or header length."""
    if len(data) <= L3:
        return data
    return (
        data[:L3]
        + bytes((dice.choice((0x40, 0x44, 0x46, 0x4F, 0x60, 0x45, 0x00)),))
        + data[L3 + 1 :]
    )


def _duplicate(dice: Random, data: bytes, _other: bytes) -> bytes:
    first = dice.randrange(len(data) + 1)
    last = dice.randrange(first, min(len(data), first + 64) + 1)
    return data[:last] + data[first:last] + data[last:]


def _splice(dice: Random, data: bytes, other: bytes) -> bytes:
    """The head of one frame and the tail of another."""
    seen, also = craft.read(data[L3:]), craft.read(other[L3:])
    if seen is None or also is None or dice.random() < 0.3:
        return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]
    return data[:L3] + _with_length(data[L3 : L3 + seen.l4] + other[L3 + also.l4 :])


def _extensions(dice: Random, data: bytes, _other: bytes) -> bytes:
    """A chain of extension headers with lengths of its own."""
    packet = data[L3:]
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return data
    kinds = dice.choices(_EXTENSIONS, k=dice.choice((1, 2, 7, 8, 9, 20)))
    chain = b""
    following = packet[6]
    for kind in reversed(kinds):
        units = dice.choice((0, 0, 0, 1, 255))
        body = struct.pack("!BB", following, units) + dice.randbytes(6)
        chain = body + chain
        following = kind
    return data[:L3] + _with_length(
        packet[:6] + bytes((following,)) + packet[7:40] + chain + packet[40:]
    )


def _options(dice: Random, data: bytes, _other: bytes) -> bytes:
    """IPv4 options of random bytes that look like some."""
    packet = data[L3:]
    if len(packet) < 20 or packet[0] != 0x45:
        return data
    words = dice.randint(1, 10)
    kinds = (0, 1, 7, 68, 131, 137, 148, 255)
    options = bytes(
        dice.choice(kinds) if dice.random() < 0.4 else dice.randrange(12) for _ in range(words * 4)
    )
    return data[:L3] + _with_length(bytes((0x45 + words,)) + packet[1:20] + options + packet[20:])


def _fragment(dice: Random, data: bytes, _other: bytes) -> bytes:
    """Another place for a fragment, or a fragment of what was none."""
    if len(data) < L3 + 20 or data[L3] >> 4 != 4:
        return data
    place = dice.choice((0, 1, 2, 3, 100, 0x1FFF, 0x1FFE)) | dice.choice(
        (0, 0x2000, 0x4000, 0x8000)
    )
    return data[: L3 + 6] + place.to_bytes(2) + data[L3 + 8 :]


def _fragment_header(dice: Random, data: bytes, _other: bytes) -> bytes:
    """An IPv6 fragment header, often of a fragment that is the whole (RFC 6946)."""
    packet = data[L3:]
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return data
    carried = packet[6] if dice.random() < 0.5 else dice.choice((1, 6, 17, 58, 132, *_EXTENSIONS))
    place = 0 if dice.random() < 0.6 else dice.choice(WORDS)
    extension = struct.pack("!BxHI", carried, place, dice.randrange(4))
    return data[:L3] + _with_length(packet[:6] + b"\x2c" + packet[7:40] + extension + packet[40:])


def _vnet(dice: Random, data: bytes, _other: bytes) -> bytes:
    """A virtio header full of nonsense."""
    words = (*WORDS, 34, 54, 1400)
    header = struct.pack(
        "=BBHHHH",
        dice.choice(_FLAGS),
        dice.choice(_GSO_TYPES),
        dice.choice(words),
        dice.choice(words),
        dice.choice(words),
        dice.choice(words),
    )
    return header + data[VNET_BYTES:]


def _ethertype(dice: Random, data: bytes, _other: bytes) -> bytes:
    at = VNET_BYTES + 12
    tag = dice.choice(_ETHERTYPES)
    if dice.random() < 0.5:
        return data[:at] + tag + data[at + 2 :]
    return data[:at] + tag + dice.randbytes(2) + data[at:]


def _port(dice: Random, data: bytes, other: bytes) -> bytes:
    """Ports of another conversation, with a wrong checksum."""
    seen, also = craft.read(data[L3:]), craft.read(other[L3:])
    if seen is None or also is None:
        return data
    at = L3 + seen.l4
    return data[:at] + other[L3 + also.l4 : L3 + also.l4 + 4] + data[at + 4 :]


_MUTATIONS: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flip,
    _flip,
    _extreme,
    _extreme,
    _cut,
    _cut_packet,
    _grow,
    _length,
    _length,
    _first_byte,
    _duplicate,
    _splice,
    _extensions,
    _options,
    _fragment,
    _fragment_header,
    _vnet,
    _ethertype,
    _port,
)
