"""Where daemons of the kernel's sync protocol meet the pair file and ipvsadm.

`make_daemons` makes those of a node; `SyncDaemons` is how ipvsadm's commands reach them.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from lvsha.config import Pair
from lvsha.datapath.director import Director
from lvsha.interfaces import mtu
from lvsha.ipvsadm.requests import StartDaemon, StopDaemon
from lvsha.ipvsadm.views import DaemonView
from lvsha.model import TEMPLATE_BIT
from lvsha.sync.ipvs.daemons import ConnectionTable, Daemons, OpenSocket, open_multicast
from lvsha.sync.ipvs.roster import GROUP, PORT, TTL, Daemon, Role, Roster, Terms


def make_daemons(
    pair: Pair,
    node: str,
    director: Director,
    table: ConnectionTable,
    open_socket: OpenSocket = open_multicast,
) -> Daemons:
    """The daemons of a node: those that its pair file asks for, else none until a command does.

    Args:
        pair: the pair file.
        node: which of its nodes this is.
        director: whose connections they speak of.
        table: where records go that a backup takes over.
        open_socket: opens sockets.
    """
    daemons = Daemons(
        Roster(mtu),
        table,
        lambda: director.settings,
        {number: len(machine.timeouts) for number, machine in director.registry.machines.items()},
        _marks(director),
        open_socket,
    )
    sync = pair.sync
    if sync is not None and sync.format == "ipvs" and pair.virtual_routers:
        terms = Terms(
            pair.nodes[node].interfaces[sync.interface],
            0,
            sync.maxlen,
            sync.group.packed,
            sync.port,
            sync.ttl,
        )
        sync_ids = [router.sync_id for router in pair.virtual_routers]
        daemons.configure(terms, sync_ids, sync.ports)
    return daemons


def _marks(director: Director) -> Callable[[bytes], int]:
    """Tells the firewall mark of a connection; the record of a template has it anyway."""

    def mark_of(key: bytes) -> int:
        marks = director.marks
        return marks.of(key) if marks.rules and key[0] < TEMPLATE_BIT else 0

    return mark_of


class Starter(Protocol):
    """What starts and stops daemons: `Daemons`, or a `Roster` where none really runs."""

    def start(self, role: Role, terms: Terms, /) -> object:
        """Start one; raises `AdministrationError`."""
        ...

    def stop(self, role: Role, /) -> object:
        """Stop one; raises `AdministrationError`."""
        ...

    def running(self) -> Sequence[Daemon]:
        """Those that run, the masters first."""
        ...


class SyncDaemons:
    """See `lvsha.ipvsadm.commands.Daemons`.

    While a master runs that was started here, the director tells of all its connections, as a
    kernel does.

    Args:
        starter: what starts and stops them.
        director: whose connections a master speaks of; None where none really speaks.
    """

    def __init__(self, starter: Starter, director: Director | None = None) -> None:
        self._starter = starter
        self._director = director

    def start(self, daemon: StartDaemon, /) -> None:
        """Start one, with the kernel's defaults for what is not given."""
        terms = Terms(
            daemon.interface,
            daemon.sync_id,
            daemon.length_max,
            daemon.group or GROUP,
            daemon.port or PORT,
            daemon.ttl or TTL,
        )
        self._starter.start(daemon.role, terms)
        self._tell_others(daemon.role, told=True)

    def stop(self, daemon: StopDaemon, /) -> None:
        """Stop one; as in the kernel its sync id does not matter."""
        self._starter.stop(daemon.role)
        self._tell_others(daemon.role, told=False)

    def _tell_others(self, role: Role, *, told: bool) -> None:
        if role is Role.MASTER and self._director is not None:
            self._director.tell_others(told=told)

    def running(self) -> Sequence[DaemonView]:
        """Those that run, the masters first."""
        return [_view(daemon) for daemon in self._starter.running()]


def _view(daemon: Daemon) -> DaemonView:
    terms = daemon.terms
    return DaemonView(
        daemon.role,
        terms.interface,
        terms.sync_id,
        daemon.length_max,
        terms.group,
        terms.port,
        terms.ttl,
    )
