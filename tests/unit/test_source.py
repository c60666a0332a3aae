"""How a snapshot is read: so much in a tick, whatever the table is made of."""

from collections.abc import Iterator

from lvsha.counters import Counters
from lvsha.model import ConnectionRecord
from lvsha.sync.source import SLICE_READS, SNAPSHOT_READS_PER_TICK, Pace, Source


def test_a_tick_passes_no_more_than_its_share_of_what_is_not_to_be_sent() -> None:
    source = Source(
        sync_id=1, node="east", epoch=1, datagram_max=1400, pace=Pace(), counters=Counters()
    )
    source.lead(1)
    passed = 0

    def slices() -> Iterator[ConnectionRecord | None]:
        nonlocal passed
        for _ in range(1000):
            passed += 1
            yield None

    source.snapshot(slices(), 0.0)
    assert SNAPSHOT_READS_PER_TICK // SLICE_READS <= passed <= 50
    ticks = 1
    while source.is_snapshotting:
        assert source.deadline is not None
        before = passed
        source.expire(source.deadline)
        assert passed - before <= 50
        ticks += 1
    assert passed == 1000
    assert ticks >= 20
