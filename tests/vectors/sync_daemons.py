"""The sync daemons of a recorded director, with the interfaces that it had."""

from lvsha.sync.ipvs.roster import Roster
from lvsha.sync_daemons import SyncDaemons

MTUS = {"vec0": 1500, "vec1": 1500, "vec2": 1500}


class RecordedDaemons(SyncDaemons):
    """Daemons that start, stop and are listed."""

    def __init__(self) -> None:
        super().__init__(Roster(MTUS.get))
