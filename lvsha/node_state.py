"""A node's connections from one run to the next.

At an orderly stop, and from time to time if the pair file says so, the connection table is
written to a file; at a start it is read, before anything is forwarded or told. It is what
this node knew, not what is true now: connections come in as copies do, counted as told, so
that the first comparison with a peer that leads finds what differs and takes the peer's
word for it, in every bucket that differs. The seconds that a connection had left count
where no peer was heard: one that was may have had packets of it since.

Nothing here ends a director. What cannot be read is kept aside, what cannot be written is
logged, and the node goes on without.
"""

import structlog
import trio

from lvsha.config_life import SavedStateTable
from lvsha.connection_store import ConnectionStore
from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.saved_state import FILE_BYTES_MAX, StateError, Writing, read
from lvsha.state_file import StateStore

_log = structlog.get_logger("state")


class NodeState:
    """Saves and restores the connections of one node.

    Args:
        name: of the node.
        table: of the pair file.
        store: the connections.
        kept: where they are kept; None for nowhere.

    Attributes:
        counters: how often what happened.
    """

    def __init__(
        self, name: str, table: SavedStateTable, store: ConnectionStore, kept: StateStore | None
    ) -> None:
        self.counters = Counters()
        self._name = name
        self._table = table
        self._store = store
        self._kept = kept

    async def restore(self) -> int:
        """Take over what an earlier run has left; returns how many connections."""
        if self._kept is None:
            return 0
        restored = 0
        try:
            data = await self._kept.read(FILE_BYTES_MAX)
            if data is None:
                return 0
            now = self._kept.time_of_day()
            state = read(data, node=self._name, time_of_day=now, age_max=self._table.age_max)
            for entries in state.entries():
                restored += self._store.restore(entries)
                await trio.lowlevel.checkpoint()
        except StateError as error:
            self.counters.add("states_refused")
            await self._set_aside(self._kept, str(error))
            return 0
        except HostError as error:
            self.counters.add("states_refused")
            _log.warning("the saved connections cannot be used", reason=str(error))
            return 0
        self.counters.add("connections_restored", restored)
        _log.info(
            "connections restored",
            restored=restored,
            over=state.connections - restored,
            age=round(state.age, 3),
        )
        return restored

    async def save(self) -> None:
        """Write down what there is."""
        if self._kept is None:
            return
        writing = Writing(self._name, self._kept.time_of_day())
        draft = self._kept.draft()
        try:
            await draft.write(writing.begin())
            for entries in self._store.remaining():
                await draft.write(writing.part(entries))
            await draft.write(writing.end())
            await draft.finish()
        except (StateError, HostError) as error:
            self.counters.add("states_not_saved")
            _log.warning("the connections cannot be saved", reason=str(error))
            return
        finally:
            draft.close()
        self.counters.add("states_saved")
        _log.info("connections saved", connections=writing.connections)

    async def save_often(self) -> None:
        """Write down what there is from time to time, until cancelled."""
        interval = self._table.interval
        while interval:
            await trio.sleep(interval)
            await self.save()

    async def _set_aside(self, kept: StateStore, reason: str) -> None:
        try:
            where = await kept.set_aside()
        except HostError as error:
            where = str(error)
        _log.warning("the saved connections are refused", reason=reason, kept=where)
