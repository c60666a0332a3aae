"""Runs of records are the records that they were made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsha.model import ConnectionRecord, ForwardMethod
from lvsha.runs import Run, Runs, cut, filled, runs_of

KEYS = st.sampled_from(
    [
        bytes.fromhex(key)
        for key in (
            "0406 0a000001 c6336401 0400 0050",
            "0406 0a000002 c6336401 0401 0050",
            "0406 0a000001 c6336402 0400 0050",
            "0406 0a000001 c6336401 0400 0051",
            "0411 0a000001 c6336401 0400 0050",
            "8406 0a000001 c6336401 0000 0050",
            "8406 0a000001 c6336401 0000 0050 61",
            "0606" + 16 * "01" + 16 * "02" + "0400 0050",
        )
    ]
)
RECORDS = st.builds(
    ConnectionRecord,
    KEYS,
    st.sampled_from([b"\x0a\0\0\x01", b"\x0a\0\0\x02"]),
    st.just(80),
    st.just(ForwardMethod.NAT),
    st.sampled_from([1, 2]),
    st.just(0),
    st.just(900.0),
)


def run(*ports: int) -> Run:
    keys = [bytes.fromhex("0406 0a000001 c6336401") + port.to_bytes(2) + b"\0P" for port in ports]
    return Run(ConnectionRecord(keys[0], b"\x0a\0\0\x01", 80, ForwardMethod.NAT, 1, 0, 9.0), keys)


@given(st.lists(RECORDS, max_size=12))
def test_runs_hold_the_records_that_they_were_made_of(records: list[ConnectionRecord]) -> None:
    runs = runs_of(records)
    whole = Runs(runs)
    assert whole == records
    assert records == whole
    assert len(whole) == len(records)
    assert all(keys[0] == record.key for record, keys in runs)
    assert all(one.record[1:] == record[1:] for one in runs for record in one.records())


@given(st.lists(RECORDS, max_size=12))
def test_of_a_run_all_keys_differ_in_the_client_at_most(records: list[ConnectionRecord]) -> None:
    for _, keys in runs_of(records):
        size = (len(keys[0]) - 6) // 2
        assert len({(len(k), k[:2], k[2 + size : 2 + 2 * size], k[-2:]) for k in keys}) == 1


def test_records_alike_make_one_run_and_runs_stay_as_they_are() -> None:
    runs = Runs([run(1, 2), run(3)])
    assert [len(keys) for _, keys in runs_of(list(runs))] == [3]
    assert runs_of(runs) is runs.runs


def test_runs_are_a_sequence() -> None:
    runs = Runs([run(1, 2), run(3)])
    ports = [int.from_bytes(record.key[10:12]) for record in runs]
    assert ports == [1, 2, 3]
    assert [runs[at].key for at in (0, 1, 2, -1)] == [list(runs)[at].key for at in (0, 1, 2, -1)]
    assert runs[1:] == list(runs)[1:]
    assert hash(runs) == hash(Runs(runs_of(list(runs))))
    assert repr(runs) == repr(list(runs))
    assert runs != [1, 2, 3]
    assert runs != 3
    assert not Runs()
    with pytest.raises(IndexError):
        Runs()[0]


def test_rows_are_filled_with_the_bytes_of_others() -> None:
    assert filled(b"a-b-", b"12345678", 4, [(1, 0), (3, 3)]) == b"a1b4a5b8"
    assert filled(b"a-", b"", 4, [(1, 0)]) == b""
    assert cut(bytes(28), 14) == [bytes(14), bytes(14)]
