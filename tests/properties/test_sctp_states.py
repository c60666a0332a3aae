"""The event of an SCTP packet: any bytes are read safely, and right packets rightly."""

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.sctp_states import SctpEvent, event_of

headers = st.binary(min_size=12, max_size=12)
COOKIES = (10, 11)
ABORT = 6
DATA_LIKE = frozenset(range(256)) - {1, 2, 6, 7, 8, 9, 10, 11, 14}


@st.composite
def chunks(draw: st.DrawFn) -> tuple[int, bytes]:
    """A chunk's type and its bytes, padded as RFC 9260, section 3.2, has it."""
    kind = draw(st.one_of(st.sampled_from([*COOKIES, ABORT]), st.integers(0, 255)))
    value = draw(st.binary(max_size=40))
    data = bytes((kind, draw(st.integers(0, 255)))) + (4 + len(value)).to_bytes(2) + value
    return kind, data + bytes(-len(data) % 4)


@given(st.binary(max_size=60), st.integers(0, 10), st.integers(0, 60), st.binary(max_size=20))
def test_an_event_depends_only_on_the_bytes_of_the_packet(
    data: bytes, at: int, size: int, tail: bytes
) -> None:
    end = min(at + size, len(data))
    found = event_of(data, at, end)
    assert (found is None) == (end - at < 16)
    assert found is None or SctpEvent(found).value == found
    assert event_of(bytes(at) + data[at:end] + tail, at, max(at, end)) == found


@given(headers, st.lists(chunks(), min_size=1, max_size=4))
def test_the_first_chunk_and_an_abort_behind_a_cookie_decide(
    header: bytes, content: list[tuple[int, bytes]]
) -> None:
    packet = header + b"".join(data for _, data in content)
    found = event_of(packet, 0, len(packet))
    kinds = [kind for kind, _ in content]
    if kinds[0] in COOKIES and kinds[1:2] == [ABORT]:
        assert found == SctpEvent.ABORT_AFTER_COOKIE
    else:
        alone = header + content[0][1]
        assert found == event_of(alone, 0, len(alone)) != SctpEvent.ABORT_AFTER_COOKIE
        assert (found == SctpEvent.DATA) == (kinds[0] in DATA_LIKE)
