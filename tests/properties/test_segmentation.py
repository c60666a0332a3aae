"""Super-frames, cut: every segment is right, and together they are what came in."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath import segmentation
from lvsha.datapath.reassembly import Reassembled
from lvsha.errors import WireError
from lvsha.wire import vnet
from tests import packets
from tests.reader import dissect, faults

C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8:f::1"
TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes(8)
FIN_PSH_CWR = 0x01 | 0x08 | 0x80


@given(
    st.booleans(),
    st.integers(1, 9000),
    st.integers(100, 1448),
    st.sampled_from([packets.ACK, packets.ACK | FIN_PSH_CWR, packets.ACK | packets.PSH]),
    st.sampled_from([b"", TIMESTAMPS]),
)
def test_tcp_segments_carry_the_stream(
    ipv6: bool, length: int, size: int, flags: int, options: bytes
) -> None:
    payload = bytes(at * 7 & 0xFF for at in range(length))
    here, there = (C6, V6) if ipv6 else (C4, V4)
    whole = packets.tcp(here, 40000, there, 80, flags, payload, tcp_options=options)
    l4 = 40 if ipv6 else 20
    kind = vnet.GSO_TCPV6 if ipv6 else vnet.GSO_TCPV4
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM, kind, gso_size=size)
    segments = segmentation.split(
        packets.with_partial_checksum(whole, l4, packets.TCP), header, l4, packets.TCP
    )
    carried = b""
    for number, segment in enumerate(segments):
        assert faults(segment) == []
        read = dissect(segment)
        tcp = read.payload
        assert tcp.seq == 1000 + len(carried)
        expected = flags
        if number < len(segments) - 1:
            expected &= ~0x09
        if number > 0:
            expected &= ~0x80
        assert int(tcp.flags) == expected
        if not ipv6:
            assert read.id == 0x1234 + number
        carried += bytes(tcp.payload)
        longest = segmentation.segment_length(
            len(whole), header.gso_type, header.gso_size, l4 + 20 + len(options)
        )
        assert len(segment) <= longest
    assert carried == payload
    assert len(segments) == -(-length // size)


@given(st.booleans(), st.integers(1, 9000), st.integers(50, 1400))
def test_udp_datagrams_carry_what_the_super_frame_did(ipv6: bool, length: int, size: int) -> None:
    payload = bytes(at * 5 & 0xFF for at in range(length))
    here, there = (C6, V6) if ipv6 else (C4, V4)
    whole = packets.udp(here, 4000, there, 53, payload)
    l4 = 40 if ipv6 else 20
    header = vnet.VnetHeader(vnet.NEEDS_CHECKSUM, vnet.GSO_UDP_L4, gso_size=size)
    datagrams = segmentation.split(whole, header, l4, packets.UDP)
    assert all(faults(datagram) == [] for datagram in datagrams)
    assert b"".join(datagram[l4 + 8 :] for datagram in datagrams) == payload
    assert {len(datagram) - l4 - 8 for datagram in datagrams[:-1]} <= {size}


@given(
    st.booleans(),
    st.sampled_from([packets.TCP, packets.UDP]),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 3000),
    st.binary(max_size=40),
)
def test_hostile_segmentation_fields_end_in_wire_error_or_packets(
    ipv6: bool, protocol: int, flags: int, kind: int, size: int, payload: bytes
) -> None:
    here, there = (C6, V6) if ipv6 else (C4, V4)
    make = packets.tcp if protocol == packets.TCP else packets.udp
    whole = make(here, 1, there, 2, payload=payload)
    header = vnet.VnetHeader(flags, kind, gso_size=size)
    with contextlib.suppress(WireError):
        for packet in segmentation.split(whole, header, 40 if ipv6 else 20, protocol):
            assert faults(packet) == []


@given(
    st.binary(max_size=120) | st.binary(max_size=80).map(lambda tail: b"\x60" + tail),
    st.integers(0, 200),
    st.integers(0, 200),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_cutting_garbage_again_ends_in_wire_error_or_packets(
    packet: bytes, mtu: int, largest: int, pieces: list[int]
) -> None:
    arrived = Reassembled(b"", largest, False, tuple(pieces))
    with contextlib.suppress(WireError):
        assert segmentation.refragment(packet, mtu, arrived, 1)
