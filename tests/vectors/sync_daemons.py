"""The sync daemons of a recorded director: real cores on paper links.

They start, stop and are listed by the kernel's rules. What the master says is kept in
`said`; what the backup hears becomes records.
"""

from collections.abc import Callable, Mapping, Sequence

from lvsha.model import ConnectionChange, ConnectionRecord
from lvsha.settings import Settings
from lvsha.sync.ipvs.actions import Apply, Send
from lvsha.sync.ipvs.backup import Backup
from lvsha.sync.ipvs.master import Master
from lvsha.sync.ipvs.roster import Daemon, Role, Roster, Terms

MTUS = {"vec0": 1500, "vec1": 1500, "vec2": 1500}


class PaperDaemons:
    """See `lvsha.sync_daemons.Starter`.

    Args:
        settings: tells those in force.
        states: how many states each protocol has.
        engines: tells which persistence engines are known.
        mark_of: tells the firewall mark of a connection by its key.

    Attributes:
        said: the datagrams that the master has sent.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        states: Mapping[int, int],
        engines: Callable[[], Sequence[str]],
        mark_of: Callable[[bytes], int],
    ) -> None:
        self.said: list[bytes] = []
        self._roster = Roster(MTUS.get)
        self._settings = settings
        self._states = states
        self._engines = engines
        self._mark_of = mark_of
        self._master: Master | None = None
        self._backup: Backup | None = None

    def start(self, role: Role, terms: Terms, /) -> None:
        daemon = self._roster.start(role, terms)
        sync_id = daemon.terms.sync_id
        if role is Role.MASTER:
            self._master = Master(
                sync_id, ports=1, length_max=daemon.length_max, mark_of=self._mark_of
            )
        else:
            self._backup = Backup([sync_id], self._states, self._engines())

    def stop(self, role: Role, /) -> None:
        self._roster.stop(role)
        if role is Role.MASTER:
            self._master = None
        else:
            self._backup = None

    def running(self) -> Sequence[Daemon]:
        return self._roster.running()

    def tell(self, changes: Sequence[ConnectionChange], now: float) -> None:
        """The director's changes."""
        if self._master is not None:
            self._master.version = self._settings().sync_version
            self._send(self._master.tell(changes, now))

    def expire(self, now: float) -> None:
        """Time has passed."""
        if self._master is not None:
            self._send(self._master.expire(now))

    def receive(self, datagram: bytes, now: float) -> list[ConnectionRecord]:
        """What the backup makes of a datagram."""
        if self._backup is None:
            return []
        actions = self._backup.receive(datagram, now)
        return [
            record for action in actions if isinstance(action, Apply) for record in action.records
        ]

    def _send(self, sends: Sequence[Send]) -> None:
        self.said += [send.datagram for send in sends]
