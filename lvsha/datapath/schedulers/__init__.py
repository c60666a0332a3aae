"""Which real server gets a new connection: one small module for each scheduler.

A scheduler is made for one virtual service and shares its list of real servers, newest
first, as the kernel keeps it; ties go to the first in that order. It is told when the
list or a weight has changed, and is asked with the key of the new connection (layout:
`lvsha.model.connection_key`). To add one, write a module with a class that has the face of
`Scheduler`, and enter it in `SCHEDULERS`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from lvsha.datapath.schedulers.least_connection import (
    LeastConnection,
    WeightedLeastConnection,
)
from lvsha.datapath.schedulers.round_robin import RoundRobin, WeightedRoundRobin
from lvsha.datapath.schedulers.source_hashing import SourceHashing
from lvsha.datapath.services import RealServer, Scheduler

SchedulerFactory = Callable[[Sequence[RealServer], Collection[str]], Scheduler]

SCHEDULERS: Final[Mapping[str, SchedulerFactory]] = {
    "rr": RoundRobin,
    "wrr": WeightedRoundRobin,
    "lc": LeastConnection,
    "wlc": WeightedLeastConnection,
    "sh": SourceHashing,
}
"""Schedulers by the names that ipvsadm uses."""
