"""Payloads, replaced: every packet is right, and replacing back gives the packet of before."""

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath import payload
from lvsha.datapath.flow import L3, Frame
from tests import packets
from tests.reader import dissect, faults

HERE, THERE = {4: "10.1.0.2", 6: "fd00::2"}, {4: "198.51.100.7", 6: "2001:db8::7"}
families = st.sampled_from([4, 6])
payloads = st.binary(max_size=300)
options = st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(8), b"\x01" * 40])


def load(packet: bytes, header: bytes = packets.NO_VNET) -> Frame:
    frame = Frame()
    frame.view[:] = b"\xa5" * len(frame.view)
    frame.load(packets.ethernet(packet), header)
    return frame


@given(
    families,
    payloads,
    st.integers(0, 300),
    st.integers(0, 300),
    payloads,
    options,
    st.integers(0, 10),
    st.integers(0, 20),
)
def test_a_replaced_payload_is_right_and_can_be_put_back(
    family: int,
    old: bytes,
    first: int,
    end: int,
    new: bytes,
    tcp_options: bytes,
    ip_words: int,
    padding: int,
) -> None:
    first, end = sorted((min(first, len(old)), min(end, len(old))))
    packet = packets.tcp(
        HERE[family],
        21,
        THERE[family],
        40000,
        packets.ACK,
        old,
        tcp_options=tcp_options,
        ip_options=b"\x01" * 4 * ip_words if family == 4 else b"",
    )
    frame = load(packet + b"\x5a" * padding)
    key = frame.key
    assert payload.replace(frame, first, end, new) == len(new) - (end - first)
    changed = frame.packet()
    assert faults(changed) == []
    assert bytes(dissect(changed).payload.payload) == old[:first] + new + old[end:]
    assert payload.verify(frame)
    assert (frame.end, frame.length) == (L3 + len(changed), len(changed))
    again = load(changed)
    assert (again.key, again.l4, again.length) == (key, frame.l4, frame.length)
    payload.replace(frame, first, first + len(new), old[first:end])
    assert frame.packet() == packet


@given(families, payloads, st.integers(0, 300), st.integers(0, 300), payloads)
def test_a_partial_checksum_stays_partial(
    family: int, old: bytes, first: int, end: int, new: bytes
) -> None:
    first, end = sorted((min(first, len(old)), min(end, len(old))))
    l4 = 20 if family == 4 else 40
    packet = packets.tcp(HERE[family], 21, THERE[family], 40000, packets.ACK, old)
    frame = load(
        packets.with_partial_checksum(packet, l4, packets.TCP),
        packets.vnet_header(partial=True, l4=14 + l4),
    )
    payload.replace(frame, first, end, new)
    changed = frame.packet()
    assert changed == packets.with_partial_checksum(changed, l4, packets.TCP)
    assert changed[l4 + 20 :] == old[:first] + new + old[end:]


@given(families, st.binary(min_size=1, max_size=300), st.integers(0, 299), st.integers(1, 255))
def test_a_byte_that_changes_on_the_way_is_found(
    family: int, data: bytes, at: int, flipped: int
) -> None:
    for packet in (
        packets.tcp(HERE[family], 21, THERE[family], 40000, packets.ACK, data),
        packets.udp(HERE[family], 5060, THERE[family], 5060, data),
    ):
        frame = load(packet)
        assert payload.verify(frame)
        assert faults(packet) == []
        frame.buffer[payload.start(frame) + at % len(data)] ^= flipped
        assert not payload.verify(frame)
