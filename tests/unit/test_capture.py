"""Captures in both formats, byte for byte, and what is wrong with them in words."""

import io
import struct

import pytest

from lvsha import capture
from lvsha.capture import Captured, Interface, LinkType, PcapngWriter, PcapWriter
from lvsha.errors import WireError


def read(data: bytes) -> list[Captured]:
    return list(capture.read(io.BytesIO(data)))


def fault(data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        read(data)
    return str(caught.value)


def pcap_header(order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1, major: int = 2) -> bytes:
    return struct.pack(f"{order}IHHiIII", magic, major, 4, 0, 0, 65535, link)


def record(
    data: bytes, seconds: int = 1, fraction: int = 2, order: str = "<", length: int | None = None
) -> bytes:
    wire = len(data) if length is None else length
    return struct.pack(f"{order}IIII", seconds, fraction, len(data), wire) + data


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str = "<", major: int = 1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, major, 0, -1), order)


def option(number: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HH", number, len(value)) + value + bytes(-len(value) % 4)


def interface(link: int = 1, frame_max: int = 0, options: bytes = b"", order: str = "<") -> bytes:
    return block(1, struct.pack(f"{order}HHI", link, 0, frame_max) + options, order)


def packet(
    data: bytes,
    ticks: int = 1_000_002,
    number: int = 0,
    order: str = "<",
    length: int | None = None,
) -> bytes:
    wire = len(data) if length is None else length
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 2**32 - 1, len(data), wire)
    return block(6, head + data, order)


# pcap


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "time"), [(0xA1B2C3D4, 1_000_002_000), (0xA1B23C4D, 10**9 + 2)])
def test_pcap_is_read_in_both_byte_orders_and_units(order: str, magic: int, time: int) -> None:
    (frame,) = read(pcap_header(order, magic) + record(b"abc", order=order, length=9))
    assert (frame.time, frame.data, frame.length) == (time, b"abc", 9)
    assert frame.interface.link_type is LinkType.ETHERNET


@pytest.mark.parametrize(
    ("number", "link_type"),
    [
        (101, LinkType.RAW),
        (12, LinkType.RAW),
        (228, LinkType.RAW_IPV4),
        (229, LinkType.RAW_IPV6),
        (0x2400_0001, LinkType.ETHERNET),
    ],
)
def test_link_types_are_known_by_all_their_numbers(number: int, link_type: LinkType) -> None:
    (frame,) = read(pcap_header(link=number) + record(b""))
    assert frame.interface.link_type is link_type


def test_a_capture_without_frames_is_empty() -> None:
    assert read(pcap_header()) == []
    assert read(section()) == []


def test_what_was_read_before_a_fault_is_kept() -> None:
    frames = capture.read(io.BytesIO(pcap_header() + record(b"one") + record(b"two")[:-1]))
    assert next(frames).data == b"one"
    with pytest.raises(WireError, match="it ends within frame 2"):
        next(frames)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither a pcap nor a pcapng file"),
        (b"PK\3\4 something", "neither a pcap nor a pcapng file"),
        (struct.pack("<I", 0xA1B2CD34) + bytes(40), "neither a pcap nor a pcapng file"),
        (pcap_header()[:-1], "it ends within the file header"),
        (pcap_header(major=3), "version 3 of pcap is not known"),
        (pcap_header(link=113), "link type 113; only Ethernet (1) and raw IP"),
        (pcap_header() + bytes(15), "it ends within the header of frame 1"),
        (pcap_header() + struct.pack("<IIII", 0, 0, 262_145, 0), "claims a length of 262145"),
    ],
)
def test_what_is_wrong_with_a_pcap_file_is_one_sentence(data: bytes, words: str) -> None:
    assert words in fault(data)


# pcapng


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_is_read_in_both_byte_orders(order: str) -> None:
    named = option(2, b"eth0", order) + option(0, b"", order)
    data = section(order) + interface(order=order, options=named)
    (frame,) = read(data + packet(b"abcde", order=order, length=9))
    assert (frame.time, frame.data, frame.length) == (1_000_002_000, b"abcde", 9)
    assert frame.interface == Interface("eth0", LinkType.ETHERNET)


@pytest.mark.parametrize(
    ("options", "ticks", "time"),
    [
        (b"", 1, 1000),
        (option(9, b"\x09"), 1, 1),
        (option(9, b"\x00"), 5, 5 * 10**9),
        (option(9, b"\x81"), 3, 1_500_000_000),
        (option(9, b"\x7f"), 2**64 - 1, 0),
        (option(14, struct.pack("<q", -7)) + option(9, b"\x03"), 8001, 1_001_000_000),
    ],
)
def test_a_timestamp_has_the_resolution_of_its_interface(
    options: bytes, ticks: int, time: int
) -> None:
    (frame,) = read(section() + interface(options=options) + packet(b"", ticks))
    assert frame.time == time


def test_frames_of_several_interfaces_and_sections_are_told_apart() -> None:
    data = section() + interface(options=option(2, b"a")) + interface(101, options=option(2, b"b"))
    data += packet(b"1", number=1) + packet(b"2") + section(">") + interface(order=">")
    data += packet(b"3", order=">")
    frames = read(data)
    assert [(frame.interface.name, frame.interface.number) for frame in frames] == [
        ("b", 1),
        ("a", 0),
        ("", 0),
    ]
    assert frames[0].interface.link_type is LinkType.RAW


def test_a_simple_packet_has_no_time_and_is_cut_where_its_interface_cuts() -> None:
    data = section() + interface(frame_max=4) + block(3, struct.pack("<I", 6) + b"abcd")
    (frame,) = read(data)
    assert (frame.time, frame.data, frame.length) == (None, b"abcd", 6)


def test_the_obsolete_packet_block_is_read() -> None:
    head = struct.pack("<HHIIII", 0, 99, 0, 7, 3, 3)
    (frame,) = read(section() + interface() + block(2, head + b"abc"))
    assert (frame.time, frame.data) == (7000, b"abc")


def test_blocks_that_carry_no_frame_are_skipped() -> None:
    data = section() + interface() + block(5, bytes(20)) + block(0x0BAD, bytes(8)) + packet(b"x")
    assert [frame.data for frame in read(data)] == [b"x"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (section()[:-1], "it ends within block 1"),
        (section() + b"\1\0", "it ends within block 2"),
        (section(major=2), "block 1 is of a version of pcapng that is not known"),
        (section()[:8] + bytes(20), "block 1 has no byte order"),
        (section() + packet(b"x"), "block 2 names interface 0, which is not described"),
        (section() + interface(105), "link type 105"),
        (section() + struct.pack("<II", 1, 10), "block 2 claims a length of 10 bytes"),
        (section() + struct.pack("<II", 1, 0) + bytes(8), "block 2 claims a length of 0 bytes"),
        (section() + struct.pack("<II", 1, 8) + bytes(8), "block 2 claims a length of 8 bytes"),
        (struct.pack("<III", 0x0A0D0D0A, 12, 0x1A2B3C4D), "block 1 claims a length of 12 bytes"),
        (section() + struct.pack("<II", 1, 14), "block 2 claims a length of 14 bytes"),
        (section() + struct.pack("<II", 1, 2**24 + 4), "block 2 claims a length of 16777220"),
        (section() + block(1, b""), "block 2 is too short for its kind"),
        (section() + interface() + block(6, bytes(8)), "block 3 is too short for its kind"),
        (section() + interface(options=option(14, b"abc")), "block 2 is too short for its kind"),
        (section() + interface(options=b"\2\0\xff\0"), "an option that is longer than itself"),
        (section() + interface()[:-1] + b"\1", "block 2 ends with another length"),
        (section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 9, 9) + b"abcd"),
         "block 3 claims a frame of 9 bytes"),
        (section() + interface() * 4097, "more than 4096 interfaces"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_pcapng_file_is_one_sentence(data: bytes, words: str) -> None:
    assert words in fault(data)


# Writing


def test_pcap_is_written_with_microseconds_or_nanoseconds() -> None:
    for exact, magic, fraction in ((True, 0xA1B23C4D, 3004), (False, 0xA1B2C3D4, 3)):
        stream = io.BytesIO()
        PcapWriter(stream, LinkType.RAW, exact=exact).write(2_000_003_004, b"abc")
        expected = pcap_header(magic=magic, link=101)[:16] + struct.pack("<II", 262_144, 101)
        assert stream.getvalue() == expected + record(b"abc", 2, fraction)


def test_pcapng_is_written_with_an_interface_for_each_name() -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream, LinkType.ETHERNET)
    for name in ("eth1", "eth0", "eth1"):
        writer.write(10**18 + 1, name.encode(), name)
    frames = read(stream.getvalue())
    assert [(frame.time, frame.data, frame.interface.name) for frame in frames] == [
        (10**18 + 1, b"eth1", "eth1"),
        (10**18 + 1, b"eth0", "eth0"),
        (10**18 + 1, b"eth1", "eth1"),
    ]
