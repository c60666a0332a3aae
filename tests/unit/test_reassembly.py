from collections import Counter
from typing import Protocol

import pytest

from lvsha.datapath import reassembly
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import Reassembled, Reassembler
from tests import packets
from tests.reader import dissect, faults

C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8:f::1"
DATA = bytes(at * 7 & 0xFF for at in range(200))
MORE = 0x2000
OTHER = 253
"""A protocol for experiments (RFC 3692): no reader looks inside."""


def piece4(
    start: int,
    end: int,
    *,
    total: int = 120,
    tos: int = 0,
    dont_fragment: bool = False,
    protocol: int = OTHER,
    options: bytes = b"",
    source: str = C4,
) -> bytes:
    """A fragment with the bytes from start to end of a payload of ``total`` bytes."""
    return packets.ip(
        source,
        V4,
        protocol,
        DATA[start:end],
        tos=tos,
        dont_fragment=dont_fragment,
        fragment=start // 8 | (MORE if end < total else 0),
        options=options,
    )


def piece6(
    start: int,
    end: int,
    *,
    total: int = 120,
    tos: int = 0,
    identification: int = 7,
    next_header: int = OTHER,
    before: bytes = b"",
) -> bytes:
    """Likewise; ``before`` is an extension header, hop-by-hop options, less its first byte."""
    place = (start | (end < total)).to_bytes(2)
    header = bytes((next_header, 0)) + place + identification.to_bytes(4)
    first = 44
    if before:
        first, header = 0, b"\x2c" + before + header
    return packets.ip(C6, V6, first, header + DATA[start:end], tos=tos)


class Cut(Protocol):
    def __call__(self, start: int, end: int, *, total: int = 120, tos: int = 0) -> bytes: ...


both_families = pytest.mark.parametrize("cut", [piece4, piece6], ids=["IPv4", "IPv6"])


class Collector(Reassembler):
    """A reassembler that starts empty and shows what it counts."""

    def __init__(self, **limits: int) -> None:
        self.drops: Counter[Reason] = Counter()
        super().__init__(self.drops, **limits)


def whole(result: Reassembled | Reason | None) -> Reassembled:
    assert isinstance(result, Reassembled)
    return result


@both_families
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_the_last_missing_piece_completes_the_datagram(cut: Cut, order: tuple[int, ...]) -> None:
    fragments = [cut(0, 48), cut(48, 96), cut(96, 120)]
    collector = Collector()
    *waiting, last = [collector.add(fragments[at], 0.0) for at in order]
    assert waiting == [None, None]
    assert whole(last).packet[-120:] == DATA[:120]
    assert whole(last).pieces == (48, 48, 24)
    assert whole(last).largest == len(fragments[0])
    assert faults(whole(last).packet) == []
    assert (len(collector), collector.memory_bytes) == (0, 0)
    assert not collector.drops


def test_an_ipv4_datagram_has_the_header_and_the_options_of_its_first_fragment() -> None:
    options = b"\x94\x04\x00\x00"
    collector = Collector()
    collector.add(piece4(48, 120), 0.0)
    result = whole(collector.add(piece4(0, 48, options=options) + b"padding", 0.0))
    assert result.packet == packets.ip(
        C4, V4, OTHER, DATA[:120], dont_fragment=False, options=options
    )
    assert result.largest == 20 + 72


def test_an_ipv6_datagram_loses_the_fragment_header_and_keeps_those_before_it() -> None:
    options = bytes((0, 1, 4, 0, 0, 0, 0))
    collector = Collector()
    collector.add(piece6(48, 120), 0.0)
    result = whole(collector.add(piece6(0, 48, before=options), 0.0))
    assert result.packet == packets.ip(C6, V6, 0, bytes((OTHER,)) + options + DATA[:120])
    assert result.largest == 40 + 8 + 72


def test_the_next_header_of_an_ipv6_datagram_is_that_of_its_first_fragment() -> None:
    collector = Collector()
    collector.add(piece6(48, 120, next_header=59), 0.0)
    assert dissect(whole(collector.add(piece6(0, 48), 0.0)).packet).nh == OTHER


@pytest.mark.parametrize(
    ("first", "second", "forbidden"),
    [(True, True, True), (True, False, True), (False, True, False), (False, False, False)],
)
def test_ipv4_forbids_fragmentation_if_the_largest_fragment_did(
    first: bool, second: bool, forbidden: bool
) -> None:
    collector = Collector()
    collector.add(piece4(0, 80, dont_fragment=first), 0.0)
    result = whole(collector.add(piece4(80, 120, dont_fragment=second), 0.0))
    assert result.dont_fragment is forbidden
    assert str(dissect(result.packet).flags) == ("DF" if forbidden else "")


@both_families
@pytest.mark.parametrize("again", [(48, 96), (0, 48), (56, 64), (8, 96)])
def test_bytes_that_are_there_already_are_a_duplicate(cut: Cut, again: tuple[int, int]) -> None:
    collector = Collector()
    assert collector.add(cut(0, 48), 0.0) is None
    assert collector.add(cut(48, 96), 0.0) is None
    before = collector.memory_bytes
    assert collector.add(cut(*again), 0.0) is Reason.FRAGMENT
    assert collector.memory_bytes == before
    assert whole(collector.add(cut(96, 120), 0.0)).packet[-120:] == DATA[:120]


@both_families
@pytest.mark.parametrize("overlap", [(40, 56), (0, 56), (40, 96), (56, 80), (0, 112), (72, 120)])
def test_a_partial_overlap_costs_the_whole_datagram(cut: Cut, overlap: tuple[int, int]) -> None:
    collector = Collector()
    collector.add(cut(0, 48), 0.0)
    collector.add(cut(64, 80), 0.0)
    assert collector.add(cut(*overlap), 0.0) is Reason.FRAGMENT_OVERLAP
    assert collector.drops == {Reason.FRAGMENT_OVERLAP: 2}
    assert (len(collector), collector.memory_bytes) == (0, 0)


@both_families
@pytest.mark.parametrize(
    ("start", "end", "total"),
    [(48, 96, 96), (120, 128, 200), (120, 128, 128)],
    ids=["before the end", "more after the end", "another end"],
)
def test_a_fragment_that_names_another_end_is_refused(
    cut: Cut, start: int, end: int, total: int
) -> None:
    collector = Collector()
    collector.add(cut(0, 48), 0.0)
    collector.add(cut(96, 120), 0.0)
    assert collector.add(cut(start, end, total=total), 0.0) is Reason.FRAGMENT_MALFORMED
    result = collector.add(cut(48, 96), 0.0)
    if cut is piece4:  # the kernel gives up an IPv4 datagram, but not an IPv6 one
        assert result is None
        assert collector.drops == {Reason.FRAGMENT_MALFORMED: 2}
    else:
        assert whole(result).packet[-120:] == DATA[:120]
        assert not collector.drops


def test_protocols_and_identifications_are_kept_apart() -> None:
    collector = Collector()
    for fragment in (
        piece4(0, 48),
        piece4(48, 120, protocol=packets.TCP),
        piece4(48, 120, source=V4),
        piece6(0, 48),
        piece6(48, 120, identification=8),
    ):
        assert collector.add(fragment, 0.0) is None
    assert len(collector) == 5


def test_congestion_of_one_fragment_is_congestion_of_the_datagram() -> None:
    for cut in (piece4, piece6):
        for tos, later in ((0x2A, 3), (0x29, 3), (0x2A, 0x29), (0x2B, 3)):
            collector = Collector()
            collector.add(cut(0, 48, tos=tos), 0.0)
            packet = whole(collector.add(cut(48, 120, tos=later), 0.0)).packet
            read = dissect(packet)
            expected = tos | 3 if later == 3 else tos
            assert (read.tc if read.version == 6 else read.tos) == expected


@both_families
def test_fragments_with_and_without_ecn_are_not_mixed(cut: Cut) -> None:
    collector = Collector()
    collector.add(cut(0, 48, tos=0), 0.0)
    assert collector.add(cut(48, 120, tos=2), 0.0) is Reason.FRAGMENT_MALFORMED
    assert collector.drops == {Reason.FRAGMENT_MALFORMED: 1}
    assert (len(collector), collector.memory_bytes) == (0, 0)


def test_an_ipv6_packet_that_is_its_only_fragment_waits_for_none() -> None:
    collector = Collector()
    collector.add(piece6(0, 48), 0.0)
    result = whole(collector.add(piece6(0, 120), 0.0))
    assert result.packet == packets.ip(C6, V6, OTHER, DATA[:120])
    assert (result.largest, result.pieces) == (40 + 8 + 120, (120,))
    assert len(collector) == 1


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", Reason.TRUNCATED),
        (piece4(0, 48)[:-1], Reason.TRUNCATED),
        (piece6(0, 48)[:-1], Reason.TRUNCATED),
        (piece4(0, 48)[:19], Reason.MALFORMED),
        (piece6(0, 48)[:39], Reason.MALFORMED),
        (piece4(0, 48)[:10] + b"\0\0" + piece4(0, 48)[12:], Reason.MALFORMED),
        (packets.udp(C4, 1, V4, 2), Reason.FRAGMENT),
        (packets.udp(C6, 1, V6, 2), Reason.FRAGMENT),
        (packets.ip(C6, V6, 44, bytes(7)), Reason.MALFORMED),
        (piece4(0, 7), Reason.FRAGMENT_MALFORMED),
        (piece4(48, 48), Reason.FRAGMENT_MALFORMED),
        (piece6(48, 48), Reason.FRAGMENT_MALFORMED),
        (piece6(48, 49), Reason.FRAGMENT_MALFORMED),
        (packets.ip(C4, V4, 17, bytes(8), fragment=0x1FFF), Reason.FRAGMENT_MALFORMED),
        (packets.ip(C6, V6, 44, b"\x11\0\xff\xf8" + bytes(12)), Reason.FRAGMENT_MALFORMED),
        (piece6(0, 8, next_header=packets.TCP), Reason.FRAGMENT_MALFORMED),
        (piece6(0, 16, next_header=44), Reason.FRAGMENT_MALFORMED),
        (piece6(0, 8, next_header=60), Reason.FRAGMENT_MALFORMED),
    ],
)
def test_what_cannot_be_a_fragment_is_refused_and_changes_nothing(
    packet: bytes, reason: Reason
) -> None:
    collector = Collector()
    assert collector.add(packet, 0.0) is reason
    assert (len(collector), collector.memory_bytes) == (0, 0)


def test_a_middle_ipv4_fragment_ends_at_a_multiple_of_eight() -> None:
    collector = Collector()
    collector.add(piece4(0, 53), 0.0)
    result = whole(collector.add(piece4(48, 120), 0.0))
    assert result.packet[-120:] == DATA[:120]
    assert result.pieces == (48, 72)


def test_a_datagram_longer_than_a_packet_is_refused() -> None:
    """Each fragment is within bounds, but the first has the longer header."""
    collector = Collector()
    chunk = 65512
    last = packets.ip(C4, V4, 17, bytes(3), dont_fragment=False, fragment=chunk // 8)
    first = packets.ip(
        C4, V4, 17, bytes(8), dont_fragment=False, fragment=MORE, options=b"\x01" * 4
    )
    middle = packets.ip(C4, V4, 17, bytes(chunk - 8), dont_fragment=False, fragment=MORE | 1)
    assert collector.add(middle, 0.0) is None
    assert collector.add(last, 0.0) is None
    assert collector.add(first, 0.0) is Reason.FRAGMENT_MALFORMED
    assert collector.drops == {Reason.FRAGMENT_MALFORMED: 2}
    assert collector.memory_bytes == 0


def test_time_runs_from_the_first_fragment_to_arrive() -> None:
    collector = Collector()
    first = piece4(0, 48)
    collector.add(first + b"padding", 100.0)
    collector.add(piece6(48, 96), 101.0)
    collector.add(piece4(48, 96), 129.0)
    assert collector.deadline == 130.0
    assert collector.expire(129.9) == []
    assert collector.expire(130.0) == [first]
    assert collector.drops == {Reason.FRAGMENT_TIMEOUT: 2}
    assert collector.deadline == 161.0
    # Nobody is told of a datagram whose ports are not known.
    assert collector.expire(161.0) == []
    assert collector.memory_bytes == 0
    assert collector.drops == {Reason.FRAGMENT_TIMEOUT: 3}


def test_there_is_no_deadline_while_nothing_waits() -> None:
    collector = Collector()
    assert collector.deadline is None
    collector.add(piece4(0, 48), 0.0)
    assert collector.deadline == 30.0


def test_a_fragment_that_comes_too_late_begins_a_new_datagram() -> None:
    collector = Collector()
    collector.add(piece4(0, 48), 0.0)
    assert collector.add(piece4(48, 120), 30.0) is None
    assert collector.drops == {Reason.FRAGMENT_TIMEOUT: 1}
    assert collector.deadline == 60.0


def test_expiry_does_a_bounded_amount_at_once() -> None:
    collector = Collector()
    for identification in range(reassembly.EXPIRED_MAX + 1):
        collector.add(piece6(0, 48, identification=identification), 0.0)
    assert len(collector.expire(60.0)) == reassembly.EXPIRED_MAX
    assert collector.deadline == 60.0
    assert len(collector.expire(60.0)) == 1


def test_past_the_limit_of_datagrams_the_oldest_is_forgotten() -> None:
    collector = Collector(limit_datagrams=2)
    collector.add(piece6(0, 48), 0.0)
    collector.add(piece4(0, 48), 1.0)
    collector.add(piece6(0, 48, identification=8), 2.0)
    assert collector.drops == {Reason.FRAGMENTS_FULL: 1}
    assert isinstance(collector.add(piece4(48, 120), 3.0), Reassembled)
    assert collector.add(piece6(48, 120), 3.0) is None


def test_past_the_limit_of_memory_the_oldest_is_forgotten() -> None:
    collector = Collector(limit_bytes=10_000)
    for identification in range(100):
        collector.add(piece6(0, 48, identification=identification), float(identification))
        assert collector.memory_bytes <= 10_000
    kept = len(collector)
    assert 1 < kept < 10
    assert collector.drops == {Reason.FRAGMENTS_FULL: 100 - kept}
    last = piece6(48, 120, identification=99)
    assert isinstance(collector.add(last, 100.0), Reassembled)


def test_a_datagram_that_is_itself_too_much_is_forgotten() -> None:
    collector = Collector(limit_bytes=2000)
    assert collector.add(piece4(48, 72), 0.0) is None
    assert collector.add(piece4(72, 96), 0.0) is None
    assert collector.add(piece4(0, 48, options=b"\x01" * 40), 0.0) is None
    assert collector.add(piece4(96, 104), 0.0) is Reason.FRAGMENTS_FULL
    assert collector.drops == {Reason.FRAGMENTS_FULL: 3}
    assert Collector(limit_bytes=100).add(piece4(0, 48), 0.0) is Reason.FRAGMENTS_FULL


def test_a_datagram_of_too_many_fragments_is_forgotten() -> None:
    collector = Collector()
    for number in range(reassembly.FRAGMENTS_MAX):
        fragment = packets.ip(C4, V4, 17, bytes(8), fragment=MORE | number * 2)
        assert collector.add(fragment, 0.0) is None
    last = packets.ip(C4, V4, 17, bytes(8), fragment=MORE | reassembly.FRAGMENTS_MAX * 2)
    assert collector.add(last, 0.0) is Reason.FRAGMENTS_FULL
    assert collector.drops == {Reason.FRAGMENTS_FULL: reassembly.FRAGMENTS_MAX}
    assert (len(collector), collector.memory_bytes) == (0, 0)
