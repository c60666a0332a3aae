"""Hostile responses of DNS: only `WireError` escapes, and dnspython reads the same."""

import dns.exception
import dns.message
import dns.rdata
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from lvsha.errors import WireError
from lvsha.wire.dns_response import Response, canonical

LABELS = st.lists(st.sampled_from(["a", "b", "www", "x" * 63]), min_size=0, max_size=3)
NAMES = LABELS.map(lambda labels: "".join(f"{label}." for label in labels) or ".")
MX = 15
QUERY = dns.message.make_query("www.a", "MX", id=7).to_wire()


def response(exchanges: list[str]) -> bytes:
    made = dns.message.make_response(dns.message.from_wire(QUERY))
    texts = [f"{number} {name}" for number, name in enumerate(exchanges)]
    if texts:
        made.answer.append(dns.rrset.from_text("www.a.", 60, "IN", "MX", *texts))
    return made.to_wire()


@given(st.lists(NAMES, max_size=8))
def test_records_are_what_dnspython_wrote(exchanges: list[str]) -> None:
    found = Response.parse(response(exchanges), QUERY)
    assert found is not None
    expected = []
    for number, name in enumerate(exchanges):
        data = dns.rdata.from_text("IN", "MX", f"{number} {name}").to_wire()
        assert data is not None
        expected.append(canonical(MX, data))
    assert sorted(found.records(MX)) == sorted(expected)


@given(
    st.lists(NAMES, max_size=4),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.binary(max_size=40),
    st.sampled_from((1, 2, 6, 15, 24, 26, 33)),
)
def test_only_wire_errors_escape(
    exchanges: list[str],
    answers: int,
    changes: list[tuple[int, int]],
    tail: bytes,
    kind: int,
) -> None:
    data = bytearray(response(exchanges) + tail)
    # The question stays, so that what follows is read.
    data[6:8] = answers.to_bytes(2)
    for place, octet in changes:
        if len(QUERY) + place < len(data):
            data[len(QUERY) + place] = octet
    found = Response.parse(bytes(data), QUERY)
    if found is None:
        return
    try:
        records = found.records(kind)
    except WireError:
        return
    assert all(isinstance(each, bytes) for each in records)


@given(st.binary(max_size=80), st.sampled_from((2, 6, 15, 24, 26, 33)))
def test_only_wire_errors_escape_from_data_alone(data: bytes, kind: int) -> None:
    try:
        once = canonical(kind, data)
    except WireError:
        return
    assert canonical(kind, once) == once
