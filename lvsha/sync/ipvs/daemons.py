"""Run sync daemons that speak the kernel's protocol, beside a kernel or in its place.

A thin shell around `Master`, `Backup` and `Roster`. `Daemons` has the face of a `Courier` for
a node whose pair file says ``format = "ipvs"``: the backup always listens, and of the sync
ids that this node leads the masters speak. Where the pair file asks for none, daemons may be
started and stopped while the node runs, as ``ipvsadm --start-daemon`` does it: at most one of
each role, and the master speaks of all changes there are.

What always holds:

* `Daemons.tell` sends in the same turn of the loop what is due. A message that the socket
  does not take waits, before those behind it, until it does; one that cannot be sent is lost
  and counted.
* No error of the network ends a daemon.
* The sockets of a daemon are as many as ``sync_ports`` said when the first of those that run
  was started; the other settings are read anew each time.

Times are Trio's clock.
"""

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, Protocol, assert_never

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.errors import AdministrationError, HostError
from lvsha.log import LimitedLog
from lvsha.model import ConnectionChange, ConnectionRecord
from lvsha.settings import Settings
from lvsha.sync.ipvs.actions import Apply, Refused, Send
from lvsha.sync.ipvs.backup import Backup
from lvsha.sync.ipvs.master import QUEUE_MAX, Master
from lvsha.sync.ipvs.messages import DATAGRAM_BYTES_MAX
from lvsha.sync.ipvs.roster import PORTS_MAX, Daemon, Role, Roster, Terms
from lvsha.sync.transport import (
    RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
    MulticastTransport,
    Transport,
)

BATCH_DATAGRAMS: Final = 8
BATCH_RECORDS: Final = 320
"""As many as so many datagrams usually hold; then other tasks have their turn, so that a
stranger's flood takes no more of each turn than some milliseconds."""
REFRESH_INTERVAL: Final = 1.0
DRAIN: Final = 2.0
"""Seconds in which who leads no more still tells of what comes to it by mistake."""
_ANY: Final = None
"""In place of a sync id: all of them, and what has none."""
_NEVER: Final = float("-inf")


class ConnectionTable(Protocol):
    """What a backup asks of the node's connections."""

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        """Enter these connections, or bring them to these states; returns at once."""
        ...


class Socket(Transport, Protocol):
    """A transport that can be closed."""

    def close(self) -> None:
        """Leave the group."""
        ...


OpenSocket = Callable[[Daemon, int, Settings], Socket]
"""Opens the socket of a daemon with this number; raises `HostError` or OSError."""


def open_multicast(daemon: Daemon, index: int, settings: Settings) -> MulticastTransport:
    """A UDP socket for a daemon, as the kernel opens it.

    Raises:
        HostError: the interface cannot be used.
    """
    terms = daemon.terms
    size = settings.sync_sock_size
    return MulticastTransport(
        terms.interface,
        terms.group,
        terms.port + index,
        ttl=terms.ttl,
        listens=daemon.role is Role.BACKUP,
        send_buffer_bytes=size or SEND_BUFFER_BYTES,
        receive_buffer_bytes=size or RECEIVE_BUFFER_BYTES,
    )


class Daemons:
    """The sync daemons of a node.

    Args:
        roster: which run.
        table: where records go that a backup takes over.
        settings: tells the settings that are in force.
        states: how many states each protocol has that the table knows.
        mark_of: tells the firewall mark of a connection by its key, 0 for none.
        open_socket: opens sockets.
        log: where to write.

    Attributes:
        counters: what the network refused.
    """

    def __init__(
        self,
        roster: Roster,
        table: ConnectionTable,
        settings: Callable[[], Settings],
        states: Mapping[int, int],
        mark_of: Callable[[bytes], int] = lambda _: 0,
        open_socket: OpenSocket = open_multicast,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._roster = roster
        self._table = table
        self._settings = settings
        self._states = states
        self._mark_of = mark_of
        self._open_socket = open_socket
        self._log = LimitedLog(structlog.get_logger("sync") if log is None else log)
        self.counters = Counters()
        self._masters: list[_MasterDaemon] = []
        self._backups: list[_BackupDaemon] = []
        self._ports = 1
        self._quiet_at: dict[int, float] = {}
        self._nursery: trio.Nursery | None = None

    # --- for the node --------------------------------------------------------------

    def configure(self, terms: Terms, sync_ids: Collection[int], ports: int | None = None) -> None:
        """Have `run` start what the pair file asks for: a master for each sync id, and a backup.

        Args:
            terms: of all of them, but for the sync id.
            sync_ids: of the virtual routers.
            ports: sockets of each; by default as many as ``sync_ports`` says.
        """
        self._ports = self._ports_now() if ports is None else ports
        self._roster.configure(
            (role, replace(terms, sync_id=sync_id)) for role in Role for sync_id in sorted(sync_ids)
        )

    def start(self, role: Role, terms: Terms) -> None:
        """Start a daemon that a command asks for.

        Raises:
            AdministrationError: as `Roster.start`, or with the number of what the network
                refuses.
        """
        if not self._roster.running():
            self._ports = self._ports_now()
        daemon = self._roster.start(role, terms)
        try:
            transports = self._open_all(daemon)
        except (HostError, OSError) as error:
            self._roster.stop(role)
            cause = error.__cause__ if isinstance(error, HostError) else error
            code = cause.errno if isinstance(cause, OSError) else None
            raise AdministrationError(code or errno.EINVAL, str(error)) from error
        started: _MasterDaemon | _BackupDaemon
        if role is Role.MASTER:
            started = _MasterDaemon([daemon], {_ANY: self._core(daemon)}, transports, self._trouble)
            self._masters.append(started)
        else:
            core = Backup([daemon.terms.sync_id], self._states)
            started = _BackupDaemon([daemon], core, transports, self._receive)
            self._backups.append(started)
        if self._nursery is not None:
            self._nursery.start_soon(started.run)

    def stop(self, role: Role) -> None:
        """Stop a daemon that a command has started.

        Raises:
            AdministrationError: as `Roster.stop`.
        """
        daemon = self._roster.stop(role)
        for started in self._daemons():
            if daemon in started.daemons:
                started.close()
        self._masters = [one for one in self._masters if daemon not in one.daemons]
        self._backups = [one for one in self._backups if daemon not in one.daemons]

    def running(self) -> list[Daemon]:
        """The daemons that run, the masters first."""
        return self._roster.running()

    @property
    def are_told(self) -> bool:
        """Whether a master runs, to whose clock it matters when something changed."""
        return bool(self._masters)

    def tell(self, sync_id: int, changes: Sequence[ConnectionChange]) -> None:
        """Speak of changes, if there is a master for this sync id and this node leads it."""
        now = trio.current_time()
        for daemon in self._masters:
            core = daemon.cores.get(sync_id)
            if core is not None and now >= self._quiet_at.get(sync_id, _NEVER):
                self.counters.add("changes_not_led", len(changes))
                continue
            core = core or daemon.cores.get(_ANY)
            if core is not None:
                self._set_up(core)
                daemon.send(core, core.tell(changes, now))

    def lead(self, sync_id: int) -> None:
        """This node holds the addresses of this sync id now."""
        self._quiet_at[sync_id] = float("inf")

    def follow(self, sync_id: int) -> None:
        """This node does not hold them any more; what it has told leaves at once."""
        self._quiet_at[sync_id] = trio.current_time() + DRAIN
        for daemon in self._masters:
            core = daemon.cores.get(sync_id)
            if core is not None:
                daemon.send(core, core.stop())

    def resync(self, _sync_id: int) -> None:
        """This node was stalled; the protocol has no way to ask for anything."""

    def complete(self, _sync_id: int) -> bool:
        """Whether this node has all that the leader has: nobody can know, so it is assumed."""
        return True

    def status(self) -> dict[str, object]:
        """All that an operator may want to see, as JSON values."""
        now = trio.current_time()
        return {
            "masters": [
                {
                    "sync_id": core.sync_id,
                    "interface": daemon.daemons[0].terms.interface,
                    "speaks": number is _ANY or now < self._quiet_at.get(number, _NEVER),
                    "waiting_messages": core.waiting,
                    "counters": core.counters.snapshot(),
                }
                for daemon in self._masters
                for number, core in daemon.cores.items()
            ],
            "backups": [
                {
                    "interface": daemon.daemons[0].terms.interface,
                    "sync_ids": sorted(daemon.core.sync_ids),
                    "heard_seconds_ago": (
                        None if daemon.core.heard_at is None else now - daemon.core.heard_at
                    ),
                    "counters": daemon.core.counters.snapshot(),
                }
                for daemon in self._backups
            ],
            "ports": self._ports,
            "counters": self.counters.snapshot(),
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the daemons until cancelled.

        Raises:
            HostError: an interface that the pair file names cannot be used.
        """
        try:
            self._open_configured()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for daemon in self._daemons():
                    nursery.start_soon(daemon.run)
                task_status.started()
                while True:
                    await trio.sleep(REFRESH_INTERVAL)
                    self._refresh()
        finally:
            self._nursery = None
            for daemon in self._daemons():
                daemon.close()

    # --- parts ---------------------------------------------------------------------

    def _daemons(self) -> list["_MasterDaemon | _BackupDaemon"]:
        return [*self._masters, *self._backups]

    def _open_configured(self) -> None:
        """Those that the pair file asks for share their sockets, one for each role and port."""
        daemons = {role: [d for d in self.running() if d.role is role] for role in Role}
        masters, backups = daemons[Role.MASTER], daemons[Role.BACKUP]
        if masters and not self._masters:
            cores: dict[int | None, Master] = {
                daemon.terms.sync_id: self._core(daemon) for daemon in masters
            }
            sockets = self._open_all(masters[0])
            self._masters.append(_MasterDaemon(masters, cores, sockets, self._trouble))
        if backups and not self._backups:
            core = Backup([daemon.terms.sync_id for daemon in backups], self._states)
            sockets = self._open_all(backups[0])
            self._backups.append(_BackupDaemon(backups, core, sockets, self._receive))

    def _ports_now(self) -> int:
        return min(self._settings().sync_ports, PORTS_MAX)

    def _core(self, daemon: Daemon) -> Master:
        return Master(
            daemon.terms.sync_id,
            ports=self._ports,
            length_max=daemon.length_max,
            mark_of=self._mark_of,
        )

    def _set_up(self, core: Master) -> None:
        settings = self._settings()
        core.version = settings.sync_version
        core.queue_max = settings.sync_qlen_max or QUEUE_MAX

    def _open_all(self, daemon: Daemon) -> list[Socket]:
        settings = self._settings()
        sockets: list[Socket] = []
        with ExitStack() as opened:
            for index in range(self._ports):
                one = self._open_socket(daemon, index, settings)
                opened.callback(one.close)
                sockets.append(one)
            opened.pop_all()
        return sockets

    def _refresh(self) -> None:
        for daemon in self._daemons():
            for transport in daemon.transports:
                try:
                    transport.refresh()
                except OSError as error:
                    self._trouble("refresh_errors", error)

    def _receive(self, core: Backup, transport: Transport) -> None:
        """Take over what has come, but not more than a batch."""
        taken = 0
        for _ in range(BATCH_DATAGRAMS):
            if taken >= BATCH_RECORDS:
                return
            try:
                datagram = transport.receive()
            except OSError as error:
                self._trouble("receive_errors", error)
                return
            if datagram is None:
                return
            for action in core.receive(datagram[:DATAGRAM_BYTES_MAX], trio.current_time()):
                match action:
                    case Apply(records):
                        taken += len(records)
                        self._table.apply(records)
                    case Refused(kind):
                        self._log.warning("sync datagram refused", trio.current_time(), reason=kind)
                    case _:
                        assert_never(action)

    def _trouble(self, counter: str, error: OSError) -> None:
        self.counters.add(counter)
        self._log.warning("sync network error", trio.current_time(), error=str(error))


class _MasterDaemon:
    """Masters that speak through the same sockets.

    Attributes:
        daemons: their entries in the roster.
        cores: by the sync id whose changes they tell, or `_ANY`.
        transports: a socket for each port.
    """

    def __init__(
        self,
        daemons: Sequence[Daemon],
        cores: Mapping[int | None, Master],
        transports: Sequence[Socket],
        trouble: Callable[[str, OSError], None],
    ) -> None:
        self.daemons = daemons
        self.cores = cores
        self.transports = transports
        self._trouble = trouble
        self._blocked = [trio.Event() for _ in transports]
        self._waiting = trio.CancelScope()
        self._life = trio.CancelScope()

    def send(self, core: Master, sends: Sequence[Send]) -> None:
        """Send what a core says; what the socket does not take goes back to it."""
        for send in sends:
            index = send.port_index
            if self._blocked[index].is_set() or not self._try(send):
                self._blocked[index].set()
                core.refuse(send)
        self._waiting.deadline = self._deadline()

    async def run(self) -> None:
        """Speak until closed."""
        with self._life:
            async with trio.open_nursery() as nursery:
                for index in range(len(self.transports)):
                    nursery.start_soon(self._unblock, index)
                while True:
                    with trio.CancelScope(deadline=self._deadline()) as self._waiting:
                        await trio.sleep_forever()
                    now = trio.current_time()
                    for core in self.cores.values():
                        self.send(core, core.expire(now))

    def close(self) -> None:
        """Send what waits, if the sockets take it, and end."""
        self._life.cancel()
        for core in self.cores.values():
            for send in core.stop():
                self._try(send)
        for transport in self.transports:
            transport.close()

    async def _unblock(self, index: int) -> None:
        while True:
            await self._blocked[index].wait()
            await self.transports[index].wait_writable()
            self._blocked[index] = trio.Event()
            for core in self.cores.values():
                self.send(core, core.resume(index))

    def _deadline(self) -> float:
        deadlines = (core.deadline for core in self.cores.values())
        return min((d for d in deadlines if d is not None), default=float("inf"))

    def _try(self, send: Send) -> bool:
        """Send unless that would block; what cannot be sent is lost."""
        try:
            return self.transports[send.port_index].send(send.datagram)
        except OSError as error:
            self._trouble("send_errors", error)
            return True


class _BackupDaemon:
    """A backup and its sockets.

    Attributes:
        daemons: its entries in the roster.
        core: what understands the datagrams.
        transports: a socket for each port.
    """

    def __init__(
        self,
        daemons: Sequence[Daemon],
        core: Backup,
        transports: Sequence[Socket],
        receive: Callable[[Backup, Transport], None],
    ) -> None:
        self.daemons = daemons
        self.core = core
        self.transports = transports
        self._receive = receive
        self._life = trio.CancelScope()

    async def run(self) -> None:
        """Listen until closed."""
        with self._life:
            async with trio.open_nursery() as nursery:
                for transport in self.transports:
                    nursery.start_soon(self._listen, transport)

    def close(self) -> None:
        """Leave the group."""
        self._life.cancel()
        for transport in self.transports:
            transport.close()

    async def _listen(self, transport: Transport) -> None:
        while True:
            await transport.wait_readable()
            self._receive(self.core, transport)
