"""Read and write captures: files of frames with their times, in the formats pcap and pcapng.

pcap is what ``tcpdump -w`` writes (the Internet draft opsawg-pcap), pcapng what Wireshark
writes (opsawg-pcapng). A reader takes frames from a stream one by one and a writer puts them
there, so memory does not grow with a file; nothing is ever looked up in the file's end.
Neither interprets a frame: what is inside is other modules' business.

What always holds: a reader returns frames or raises `WireError`, whatever the file holds.
Frames before the fault have been returned by then. Blocks of pcapng that carry no frame
(names, statistics, keys) are skipped.

Times are nanoseconds since 1970; lengths are bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import BinaryIO, Final

from lvsha.errors import WireError

FRAME_MAX: Final = 262_144
"""The longest frame that is believed: libpcap's largest snapshot length."""
BLOCK_MAX: Final = 16_777_216
"""The longest pcapng block that is believed."""
INTERFACES_MAX: Final = 4096
"""Interfaces of one pcapng section."""

_NANOSECONDS: Final = 1_000_000_000
_MICROSECOND: Final = 1000


class LinkType(IntEnum):
    """What a frame begins with; the numbers of libpcap's link-layer header types."""

    ETHERNET = 1
    RAW = 101
    RAW_IPV4 = 228
    RAW_IPV6 = 229


_LINK_TYPES: Final = {
    **{int(kind): kind for kind in LinkType},
    # DLT_RAW, as captures of Linux and of OpenBSD hold it that were not written by libpcap.
    12: LinkType.RAW,
    14: LinkType.RAW,
}


@dataclass(frozen=True, slots=True)
class Interface:
    """Where frames were captured.

    Attributes:
        name: as the capturing host called it; empty where the file does not say.
        link_type: what its frames begin with.
        units: of a timestamp in a second.
        offset: seconds to add to a timestamp.
        frame_max: frames are cut to this length; 0 for no limit.
        number: its place in the file, from 0.
    """

    name: str
    link_type: LinkType
    units: int = 1_000_000
    offset: int = 0
    frame_max: int = 0
    number: int = 0

    def time(self, ticks: int) -> int:
        """The time of a timestamp, in nanoseconds."""
        return ticks * _NANOSECONDS // self.units + self.offset * _NANOSECONDS


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame of a capture.

    Attributes:
        time: in nanoseconds; None where the file does not say.
        data: what was captured.
        length: of the frame on the wire, of which ``data`` may be only the beginning.
        interface: where.
    """

    time: int | None
    data: bytes
    length: int
    interface: Interface


# Reading


def read(stream: BinaryIO) -> Iterator[Captured]:
    """The frames of a capture in either format, in the order of the file.

    Raises:
        WireError: the file is not what it claims to be, or ends within a frame.
    """
    magic = stream.read(4)
    if magic == _SECTION:
        return _Sections(stream).frames()
    for order in ("<", ">"):
        for number, units in _PCAP_MAGICS.items():
            if magic == struct.pack(f"{order}I", number):
                return _pcap_frames(stream, order, units)
    raise WireError("neither a pcap nor a pcapng file")


_PCAP_MAGICS: Final = {0xA1B2_C3D4: 1_000_000, 0xA1B2_3C4D: _NANOSECONDS}
"""The first number of a pcap file and its units of time in a second."""
_LINK_TYPE_MASK: Final = 0xFFFF
"""The bits above tell of frame check sequences, which count as padding here."""


def _exactly(stream: BinaryIO, length: int, what: str) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise WireError(f"it ends within {what}")
    return data


def _link_type(number: int) -> LinkType:
    kind = _LINK_TYPES.get(number)
    if kind is None:
        raise WireError(
            f"link type {number}; only Ethernet (1) and raw IP (101, 228, 229) are known"
        )
    return kind


def _pcap_frames(stream: BinaryIO, order: str, units: int) -> Iterator[Captured]:
    major, _, _, _, _, link = struct.unpack(
        f"{order}HHiIII", _exactly(stream, 20, "the file header")
    )
    if major != 2:
        raise WireError(f"version {major} of pcap is not known")
    interface = Interface("", _link_type(link & _LINK_TYPE_MASK), units)
    layout = struct.Struct(f"{order}IIII")
    number = 0
    while header := stream.read(layout.size):
        number += 1
        if len(header) < layout.size:
            raise WireError(f"it ends within the header of frame {number}")
        seconds, fraction, captured, length = layout.unpack(header)
        if captured > FRAME_MAX:
            raise WireError(f"frame {number} claims a length of {captured} bytes")
        data = _exactly(stream, captured, f"frame {number}")
        time = interface.time(seconds * units + fraction)
        yield Captured(time, data, max(length, captured), interface)


_SECTION: Final = b"\x0a\x0d\x0d\x0a"
_SECTION_NUMBER: Final = 0x0A0D_0D0A
_BYTE_ORDER: Final = 0x1A2B_3C4D
_INTERFACE: Final = 1
_OLD_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6

_OPTION_NAME: Final = 2
_OPTION_RESOLUTION: Final = 9
_OPTION_OFFSET: Final = 14
_OF_TWO: Final = 0x80
"""The bit of a resolution that makes it a power of 2 and not of 10."""


class _Sections:
    """The sections of a pcapng file: blocks, and the interfaces that they refer to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._order = "<"
        self._interfaces: list[Interface] = []
        self._number = 0

    def frames(self) -> Iterator[Captured]:
        """All frames; the stream stands behind the type of the first block."""
        start = _SECTION
        while start:
            self._number += 1
            if len(start) < 4:
                raise WireError(f"it ends within block {self._number}")
            frame = self._block(start)
            if frame is not None:
                yield frame
            start = self._stream.read(4)

    def _block(self, start: bytes) -> Captured | None:
        what = f"block {self._number}"
        if start == _SECTION:
            kind, body = _SECTION_NUMBER, self._section(what)
        else:
            (kind,) = struct.unpack(f"{self._order}I", start)
            (length,) = struct.unpack(f"{self._order}I", _exactly(self._stream, 4, what))
            body = self._body(length, 8, what)
        try:
            if kind == _INTERFACE:
                self._describe(body)
            elif kind in {_OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET}:
                return self._frame(kind, body)
        except struct.error as error:
            raise WireError(f"{what} is too short for its kind") from error
        return None

    def _section(self, what: str) -> bytes:
        """Begin a section, which has a byte order and interfaces of its own."""
        head = _exactly(self._stream, 8, what)
        for order in ("<", ">"):
            length, magic = struct.unpack(f"{order}II", head)
            if magic == _BYTE_ORDER:
                self._order = order
                self._interfaces = []
                body = self._body(length, 12, what)
                if len(body) < 12 or struct.unpack_from(f"{order}H", body)[0] != 1:
                    raise WireError(f"{what} is of a version of pcapng that is not known")
                return b""
        raise WireError(f"{what} has no byte order")

    def _body(self, length: int, read: int, what: str) -> bytes:
        """The rest of a block of which so many bytes were read, without its length's copy."""
        if not read + 4 <= length <= BLOCK_MAX or length % 4:
            raise WireError(f"{what} claims a length of {length} bytes")
        body = _exactly(self._stream, length - read, what)
        if struct.unpack(f"{self._order}I", body[-4:]) != (length,):
            raise WireError(f"{what} ends with another length than it begins with")
        return body[:-4]

    def _describe(self, body: bytes) -> None:
        """Take note of an interface."""
        link, _, frame_max = struct.unpack_from(f"{self._order}HHI", body)
        if len(self._interfaces) >= INTERFACES_MAX:
            raise WireError(f"block {self._number}: more than {INTERFACES_MAX} interfaces")
        name, units, offset = "", 1_000_000, 0
        for option, value in self._options(body[8:]):
            if option == _OPTION_NAME:
                name = value.rstrip(b"\0").decode("utf-8", "replace")
            elif option == _OPTION_RESOLUTION and value:
                exponent = value[0] & ~_OF_TWO
                units = 2**exponent if value[0] & _OF_TWO else 10**exponent
            elif option == _OPTION_OFFSET:
                (offset,) = struct.unpack_from(f"{self._order}q", value)
        number = len(self._interfaces)
        self._interfaces.append(Interface(name, _link_type(link), units, offset, frame_max, number))

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at + 4 <= len(data):
            option, length = struct.unpack_from(f"{self._order}HH", data, at)
            at += 4
            if not option:
                return
            if at + length > len(data):
                raise WireError(f"block {self._number} has an option that is longer than itself")
            yield option, data[at : at + length]
            at += length + -length % 4

    def _frame(self, kind: int, body: bytes) -> Captured:
        order = self._order
        ticks: int | None = None
        if kind == _SIMPLE_PACKET:
            (length,) = struct.unpack_from(f"{order}I", body)
            index, at = 0, 4
            interface = self._interface(index)
            captured = min(length, interface.frame_max or length)
        else:
            layout = f"{order}IIIII" if kind == _ENHANCED_PACKET else f"{order}HxxIIII"
            index, high, low, captured, length = struct.unpack_from(layout, body)
            ticks, at = high << 32 | low, 20
            interface = self._interface(index)
        if captured > min(FRAME_MAX, len(body) - at):
            raise WireError(f"block {self._number} claims a frame of {captured} bytes")
        time = None if ticks is None else interface.time(ticks)
        return Captured(time, body[at : at + captured], max(length, captured), interface)

    def _interface(self, index: int) -> Interface:
        if index >= len(self._interfaces):
            raise WireError(f"block {self._number} names interface {index}, which is not described")
        return self._interfaces[index]


# Writing


class PcapWriter:
    """Writes frames of one link type as pcap, with times in nanoseconds or microseconds.

    Args:
        stream: where to; what is written of it is whole after every frame.
        link_type: what all frames begin with.
        exact: whether times keep their nanoseconds.
    """

    def __init__(self, stream: BinaryIO, link_type: LinkType, *, exact: bool) -> None:
        self.link_type = link_type
        self._stream = stream
        self._unit = 1 if exact else _MICROSECOND
        magic = 0xA1B2_3C4D if exact else 0xA1B2_C3D4
        stream.write(struct.pack("<IHHiIII", magic, 2, 4, 0, 0, FRAME_MAX, link_type))

    def write(self, time: int, data: bytes, _interface: str = "") -> None:
        """Append a frame; the format has no place for the interface's name."""
        seconds, fraction = divmod(time, _NANOSECONDS)
        header = struct.pack(
            "<IIII", seconds & 0xFFFF_FFFF, fraction // self._unit, len(data), len(data)
        )
        self._stream.write(header + data)


@dataclass(slots=True)
class PcapngWriter:
    """Writes frames of one link type as pcapng, with the names of their interfaces.

    Attributes:
        stream: where to.
        link_type: what all frames begin with.
    """

    stream: BinaryIO
    link_type: LinkType
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._block(_SECTION_NUMBER, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1))

    def write(self, time: int, data: bytes, interface: str = "") -> None:
        """Append a frame that left by an interface."""
        number = self._numbers.get(interface)
        if number is None:
            number = self._numbers[interface] = len(self._numbers)
            self._block(
                _INTERFACE,
                struct.pack("<HHI", self.link_type, 0, 0)
                + _option(_OPTION_NAME, interface.encode())
                + _option(_OPTION_RESOLUTION, b"\x09")
                + _option(0, b""),
            )
        time &= 2**64 - 1
        head = struct.pack("<IIIII", number, time >> 32, time & 0xFFFF_FFFF, len(data), len(data))
        self._block(_ENHANCED_PACKET, head + data)

    def _block(self, kind: int, body: bytes) -> None:
        body += bytes(-len(body) % 4)
        length = 12 + len(body)
        self.stream.write(struct.pack("<II", kind, length) + body + struct.pack("<I", length))


def _option(number: int, value: bytes) -> bytes:
    return struct.pack("<HH", number, len(value)) + value + bytes(-len(value) % 4)


CaptureWriter = PcapWriter | PcapngWriter
