"""IPv4 options on their way: whatever they say, little changes and nothing raises."""

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.ip_options import SOURCE_ROUTED, Refused, forward
from tests import packets

OWN = packets.address("192.0.2.1")
DAY_MS = 86_400_000


@st.composite
def options(draw: st.DrawFn) -> bytes:
    """A list of options, mostly of the known kinds, its lengths mostly right."""
    made = b""
    while len(made) < 40 and draw(st.booleans()):
        kind = draw(st.sampled_from([0, 1, 7, 68, 131, 137, 148, 200]))
        if kind in {0, 1}:
            made += bytes((kind,))
            continue
        body = draw(st.binary(max_size=12))
        length = 2 + len(body) + draw(st.sampled_from([0, 0, 0, 1, -1]))
        made += bytes((kind, max(length, 0))) + body
    made = made[:40]
    return made + bytes(-len(made) % 4)


def header_with(listed: bytes) -> bytes:
    return packets.ip("198.51.100.7", "192.0.2.1", 17, b"", options=listed)


@given(st.one_of(options(), st.binary(max_size=10).map(lambda part: part * 4)), st.integers(0))
def test_a_header_keeps_its_length_and_gets_a_right_checksum(listed: bytes, now: int) -> None:
    before = header_with(listed)
    found = forward(before, OWN, now % (10 * DAY_MS))
    if isinstance(found, Refused):
        if found != SOURCE_ROUTED:
            assert found.pointer is not None
            assert 20 <= found.pointer < len(before)
        return
    assert len(found) == len(before)
    assert packets.internet_checksum(found) == 0
    assert (found[:10], found[12:20]) == (before[:10], before[12:20])


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_record_route_holds_the_hops_in_order(slots: int, hops: int) -> None:
    listed = bytes((7, 3 + 4 * slots, 4)) + bytes(4 * slots) + b"\0"
    header = header_with(listed)
    for hop in range(hops):
        found = forward(header, bytes((10, 0, 0, hop)), 0)
        assert isinstance(found, bytes)
        header = found
    recorded = header[23 : 23 + 4 * slots]
    expected = b"".join(bytes((10, 0, 0, hop)) for hop in range(min(slots, hops)))
    assert recorded == expected.ljust(4 * slots, b"\0")
    assert header[22] == 4 + 4 * min(slots, hops)
