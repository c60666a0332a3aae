"""Fragments, shuffled and doubled, become what was cut; scapy cuts and joins as a judge."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6

from lvsha.datapath import segmentation
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import Reassembled, Reassembler
from lvsha.wire import ipv4, ipv6
from tests import packets
from tests.reader import faults

C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8:f::1"
MORE = 0x2000
OTHER = 253
OPTIONS = (b"", b"\x94\x04\x00\x00", b"\x07\x07\x04\x00\x00\x00\x00\x00")

payloads = st.integers(9, 4000).map(lambda size: bytes(at * 7 & 0xFF for at in range(size)))


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """Lengths of pieces, two at least, all but the last multiples of 8."""
    places = st.integers(1, (length - 1) // 8).map(lambda place: place * 8)
    inner = sorted(draw(st.sets(places, min_size=1, max_size=12)))
    return [end - start for start, end in zip([0, *inner], [*inner, length], strict=True)]


def cut_anew(packet: bytes, lengths: list[int]) -> list[bytes]:
    """The fragments of a packet, made by hand."""
    at = 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4
    fragments = []
    start = 0
    for length in lengths:
        data = packet[at + start : at + start + length]
        more = at + start + length < len(packet)
        if at == 40:
            place = (start | more).to_bytes(2)
            header = bytes((packet[6], 0)) + place + bytes(4)
            fragments.append(packets.ip(C6, V6, 44, header + data))
        else:
            word = start // 8 | (MORE if more else 0)
            options = packet[20:at]
            fragments.append(
                packets.ip(C4, V4, OTHER, data, dont_fragment=False, fragment=word, options=options)
            )
        start += length
    return fragments


@given(payloads, st.booleans(), st.sampled_from(OPTIONS), st.data())
def test_any_cut_in_any_order_with_duplicates_becomes_the_packet(
    payload: bytes, six: bool, options: bytes, draw: st.DataObject
) -> None:
    packet = (
        packets.ip(C6, V6, OTHER, payload)
        if six
        else packets.ip(C4, V4, OTHER, payload, dont_fragment=False, options=options)
    )
    lengths = draw.draw(cuts(len(payload)))
    fragments = cut_anew(packet, lengths)
    order = draw.draw(st.permutations(range(len(fragments))))
    drops: Counter[Reason] = Counter()
    collector = Reassembler(drops)
    for at in order[:-1]:
        assert collector.add(fragments[at], 0.0) is None
        assert collector.add(fragments[at], 0.0) is Reason.FRAGMENT
    result = collector.add(fragments[order[-1]], 0.0)
    assert isinstance(result, Reassembled)
    assert result.packet == packet
    assert result.pieces == tuple(lengths)
    assert result.largest == max(map(len, fragments))
    assert (len(collector), collector.memory_bytes, drops) == (0, 0, {})
    # And what was put together is taken apart as it was.
    again = segmentation.refragment(packet, 65535, result, 0)
    if six and len(packet) <= result.largest:
        assert again == [packet]
    elif result.largest > 1280 if six else not options:
        assert again == fragments


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 24), st.integers(1, 6)), max_size=40),
)
def test_what_covers_what_is_judged_as_by_a_set_of_blocks(
    six: bool, ranges: list[tuple[int, int]]
) -> None:
    drops: Counter[Reason] = Counter()
    collector = Reassembler(drops)
    covered: set[int] = set()
    lost = held = 0
    for start, blocks in ranges:
        data = bytes(blocks * 8)
        if six:
            header = bytes((OTHER, 0)) + (start * 8 | 1).to_bytes(2) + bytes(4)
            packet = packets.ip(C6, V6, 44, header + data)
        else:
            packet = packets.ip(C4, V4, OTHER, data, fragment=MORE | start)
        claimed = set(range(start, start + blocks))
        if claimed <= covered:
            expected: Reason | None = Reason.FRAGMENT
        elif claimed & covered:
            expected = Reason.FRAGMENT_OVERLAP
            covered.clear()
            lost, held = lost + held, 0
        else:
            expected = None
            covered |= claimed
            held += 1
        assert collector.add(packet, 0.0) is expected
        assert drops.total() == drops[Reason.FRAGMENT_OVERLAP] == lost
        assert len(collector) == (1 if covered else 0)


@given(payloads, st.integers(68, 1500))
def test_what_scapy_cuts_is_put_together(payload: bytes, size: int) -> None:
    packet = packets.ip(C4, V4, OTHER, payload, dont_fragment=False)
    results = [
        Reassembler(Counter()).add(packet, 0.0),
        *_all_of([bytes(piece) for piece in fragment(IP(packet), size - 20)]),
    ]
    assert results[0] is Reason.FRAGMENT
    if len(results) > 2:
        result = results[-1]
        assert isinstance(result, Reassembled)
        assert result.packet == packet
    given6 = IPv6(packets.ip(C6, V6, OTHER, payload))
    marked = IPv6(src=C6, dst=V6) / IPv6ExtHdrFragment(nh=OTHER, id=5) / given6.payload
    result = _all_of([bytes(piece) for piece in fragment6(marked, 1280)])[-1]
    assert isinstance(result, Reassembled)
    assert result.packet == bytes(given6)


def _all_of(fragments: list[bytes]) -> list[Reassembled | Reason | None]:
    collector = Reassembler(Counter())
    return [collector.add(each, 0.0) for each in fragments]


@given(payloads, st.integers(68, 1500), st.integers(68, 1500))
def test_scapy_puts_together_what_is_cut_again(payload: bytes, largest: int, mtu: int) -> None:
    packet = packets.ip(C4, V4, OTHER, payload, dont_fragment=False)
    arrived = Reassembled(packet, largest, False, ())
    pieces = segmentation.refragment(packet, mtu, arrived, 0)
    assert all(len(piece) <= min(largest, mtu) for piece in pieces)
    assert all(faults(piece) == [] for piece in pieces)
    if len(pieces) > 1:
        (joined,) = defragment([IP(piece) for piece in pieces])
        assert bytes(joined.payload) == payload
    packet = packets.ip(C6, V6, OTHER, payload)
    arrived = Reassembled(packet, largest, False, ())
    pieces = segmentation.refragment(packet, 1280 + mtu, arrived, 5)
    assert all(len(piece) <= max(largest, 1280) for piece in pieces)
    if pieces != [packet]:
        joined = defragment6([IPv6(piece) for piece in pieces])
        assert bytes(joined.payload) == payload


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 0xFFFF),
            st.integers(0, 60),
            st.integers(0, 2),
            st.floats(0, 40),
        )
        | st.tuples(st.just(None), st.binary(max_size=90)),
        max_size=60,
    )
)
def test_hostile_fragments_never_raise_and_the_limits_hold(
    steps: list[tuple[bool, int, int, int, float] | tuple[None, bytes]],
) -> None:
    drops: Counter[Reason] = Counter()
    collector = Reassembler(drops, limit_bytes=6000, limit_datagrams=4)
    now = 0.0
    taken = refused = joined = 0
    for step in steps:
        if step[0] is None:
            packet = step[1]
        else:
            six, word, size, identification, later = step
            now += later
            if six:
                header = bytes((OTHER, 0)) + (word & 0xFFF9 & 0x1FF).to_bytes(2)
                packet = packets.ip(C6, V6, 44, header + identification.to_bytes(4) + bytes(size))
            else:
                packet = packets.ip(C4, V4, identification, bytes(size), fragment=word & 0x201F)
        result = collector.add(packet, now)
        taken += 1
        refused += isinstance(result, Reason)
        if isinstance(result, Reassembled):
            joined += len(result.pieces)
            (ipv6 if result.packet[0] >> 4 == 6 else ipv4).parse(result.packet)
        assert collector.memory_bytes <= 6000
        assert len(collector) <= 4
        assert (collector.deadline is None) == (len(collector) == 0)
    while collector.deadline is not None:
        collector.expire(collector.deadline)
    assert collector.memory_bytes == 0
    assert taken == refused + joined + drops.total()
