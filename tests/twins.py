"""Two laboratories of which one tells the other of its connections, without a network."""

from collections.abc import Callable

from lvsha.model import BUCKETS, ConnectionChange, ConnectionChanged
from lvsha.runs import Runs
from tests.laboratory import Laboratory


def carry(
    source: Laboratory,
    copy: Laboratory,
    arrives: Callable[[ConnectionChange], bool] | None = None,
) -> None:
    """Tell all that has changed since the last time, or what arrives of it."""
    for changes in source.director.registry.take_changes().values():
        for change in changes:
            if arrives is not None and not arrives(change):
                continue
            if isinstance(change, ConnectionChanged):
                copy.director.replication.apply([change.record], copy.now)
            else:
                copy.director.replication.forget([change.key])


def repair(source: Laboratory, copy: Laboratory) -> int:
    """Bring the buckets that differ to what they are at the source; returns how many did."""
    theirs, own = source.director.replication, copy.director.replication
    differing = [
        bucket for bucket in range(BUCKETS) if source.tally.sums[bucket] != copy.tally.sums[bucket]
    ]
    for bucket in differing:
        generation = own.begin()
        told = Runs(list(filter(None, theirs.records(source.tally, [bucket]))))
        own.apply(told, copy.now)
        for _ in own.sweep_bucket(copy.tally, bucket, generation):
            pass
    return len(differing)
