"""Captures there and back, judged by scapy's reader and writer; and garbage."""

import io
from decimal import Decimal
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, RawPcapNgReader, RawPcapReader
from scapy.utils import PcapWriter as ScapyWriter

from lvsha import capture
from lvsha.capture import CaptureWriter, LinkType, PcapngWriter, PcapWriter
from lvsha.errors import WireError
from tests.unit.test_capture import block, interface, option, packet, pcap_header, record, section

# Seconds of pcap are 32 bits.
TIMES = st.integers(0, 2**32 * 10**9 - 1)
FRAMES = st.lists(st.tuples(TIMES, st.binary(max_size=200), st.sampled_from(["", "eth0", "é"])))
LINK_TYPES = st.sampled_from([LinkType.ETHERNET, LinkType.RAW])


def read(data: bytes) -> list[tuple[int | None, bytes]]:
    return [(frame.time, frame.data) for frame in capture.read(io.BytesIO(data))]


def read_until_fault(data: bytes) -> tuple[list[tuple[int | None, bytes]], str]:
    """The frames before the fault, and the sentence about it; any other error escapes."""
    frames: list[tuple[int | None, bytes]] = []
    try:
        frames.extend((frame.time, frame.data) for frame in capture.read(io.BytesIO(data)))
    except WireError as error:
        return frames, str(error) or "an error without a sentence"
    return frames, ""


def written(writer: CaptureWriter, frames: list[tuple[int, bytes, str]]) -> None:
    for time, data, name in frames:
        writer.write(time, data, name)


@given(FRAMES, LINK_TYPES, st.booleans())
def test_scapy_reads_what_is_written_as_pcap(
    frames: list[tuple[int, bytes, str]], link_type: LinkType, exact: bool
) -> None:
    stream = io.BytesIO()
    written(PcapWriter(stream, link_type, exact=exact), frames)
    unit = 1 if exact else 1000
    expected = [(time // unit, data) for time, data, _ in frames]
    reader = RawPcapReader(io.BytesIO(stream.getvalue()))
    assert reader.linktype == link_type
    assert reader.nano == exact
    told = [(meta.sec * 10**9 // unit + meta.usec, data) for data, meta in reader]
    assert told == expected
    assert read(stream.getvalue()) == [(time * unit, data) for time, data in expected]


@given(FRAMES.filter(bool), LINK_TYPES)
def test_scapy_reads_what_is_written_as_pcapng(
    frames: list[tuple[int, bytes, str]], link_type: LinkType
) -> None:
    stream = io.BytesIO()
    written(PcapngWriter(stream, link_type), frames)
    told = []
    for data, meta in RawPcapNgReader(io.BytesIO(stream.getvalue())):
        assert (meta.linktype, meta.tsresol) == (link_type, 10**9)
        # scapy tells the name as bytes, and nothing for an empty one.
        name = meta.ifname.decode() if isinstance(meta.ifname, bytes) else meta.ifname or ""
        told.append(((meta.tshigh << 32) + meta.tslow, data, name))
    assert told == frames
    assert read(stream.getvalue()) == [(time, data) for time, data, _ in frames]


def test_what_scapy_writes_is_read(tmp_path: Path) -> None:
    frames = []
    for number in range(5):
        frame = Ether() / bytes(number * 7)
        frame.time = Decimal(f"1700000000.00000{number}")
        frames.append(frame)
    expected = [(1_700_000_000_000_000_000 + n * 1000, bytes(f)) for n, f in enumerate(frames)]
    for writer in (ScapyWriter, PcapNgWriter):
        file = tmp_path / writer.__name__
        with writer(str(file)) as stream:
            stream.write(frames)
        assert read(file.read_bytes()) == expected


GOOD = [
    pcap_header() + record(b"some bytes") + record(b"more", order="<"),
    pcap_header(">", 0xA1B23C4D) + record(b"other", order=">"),
    section() + interface(options=option(2, b"eth0") + option(9, b"\x09")) + packet(b"abc"),
    section(">") + interface(order=">") + block(5, bytes(12), ">") + packet(b"abc", order=">"),
    section() + interface(frame_max=3) + block(3, b"\3\0\0\0abc"),
]


@given(st.sampled_from(GOOD), st.data())
def test_a_damaged_capture_raises_nothing_but_the_documented_error(
    good: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for whole in (bytes(damaged), bytes(damaged[:cut]), bytes(damaged) + b"\0tail"):
        frames, fault = read_until_fault(whole)
        assert fault != "an error without a sentence"
        assert sum(len(frame) for _, frame in frames) <= len(whole)


@given(st.sampled_from([b"", b"\x0a\x0d\x0d\x0a", *(good[:24] for good in GOOD)]), st.binary())
def test_garbage_raises_nothing_but_the_documented_error(start: bytes, garbage: bytes) -> None:
    frames, _ = read_until_fault(start + garbage)
    assert sum(len(frame) for _, frame in frames) <= len(garbage)


def test_a_capture_cut_short_at_every_byte_gives_its_first_frames() -> None:
    for good in GOOD:
        whole = read(good)
        boundaries = 0
        for cut in range(len(good)):
            frames, fault = read_until_fault(good[:cut])
            assert frames == whole[: len(frames)]
            boundaries += not fault
        # Only between two records or blocks is a shorter file one without a fault.
        assert boundaries <= 4
