"""Which real server gets a new connection: the schedulers of the kernel's IPVS.

A scheduler is made for one virtual service and shares its list of real servers, newest
first, as the kernel keeps it; ties go to the first in that order. It is told when the
list or a weight has changed, and is asked with the key of the new connection (layout:
`lvsha.model.connection_key`) and the time. Its options may change at any moment. To add
one, write a module with a class that has the face of `Scheduler`, and enter it in
`SCHEDULERS`.

A connection that finds no server is refused: `schedule` returns None. Chosen is only a
server that has a weight and is not overloaded, with one exception that is the kernel's:
lblc keeps to the server it remembers even when that is above its upper threshold.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.destination_hashing import DestinationHashing
from lvsha.datapath.schedulers.greatest_weight import WeightedFailover, WeightedOverflow
from lvsha.datapath.schedulers.least_connection import (
    LeastConnection,
    WeightedLeastConnection,
)
from lvsha.datapath.schedulers.locality import (
    LocalityBasedLeastConnection,
    ReplicatedLocalityBasedLeastConnection,
)
from lvsha.datapath.schedulers.maglev_hashing import MaglevHashing
from lvsha.datapath.schedulers.round_robin import RoundRobin
from lvsha.datapath.schedulers.shortest_delay import NeverQueue, ShortestExpectedDelay
from lvsha.datapath.schedulers.source_hashing import SourceHashing
from lvsha.datapath.schedulers.two_choices import TwoChoices
from lvsha.datapath.schedulers.weighted_round_robin import WeightedRoundRobin
from lvsha.datapath.services import RealServer, Scheduler

SchedulerFactory = Callable[[Sequence[RealServer], SchedulerOptions], Scheduler]

SCHEDULERS: Final[Mapping[str, SchedulerFactory]] = {
    "rr": RoundRobin,
    "wrr": WeightedRoundRobin,
    "lc": LeastConnection,
    "wlc": WeightedLeastConnection,
    "lblc": LocalityBasedLeastConnection,
    "lblcr": ReplicatedLocalityBasedLeastConnection,
    "dh": DestinationHashing,
    "sh": SourceHashing,
    "sed": ShortestExpectedDelay,
    "nq": NeverQueue,
    "fo": WeightedFailover,
    "ovf": WeightedOverflow,
    "mh": MaglevHashing,
    "twos": TwoChoices,
}
"""Schedulers by the names that ipvsadm uses."""
