"""The sync daemons as ipvsadm speaks of them: its words on one side, a roster on the other."""

from collections.abc import Sequence
from typing import Protocol

from lvsha.ipvsadm.requests import StartDaemon, StopDaemon
from lvsha.ipvsadm.views import DaemonView
from lvsha.sync.ipvs.roster import GROUP, PORT, TTL, Daemon, Role, Terms


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
    """See `lvsha.ipvsadm.commands.Daemons`."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

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

    def stop(self, daemon: StopDaemon, /) -> None:
        """Stop one; as in the kernel its sync id does not matter."""
        self._starter.stop(daemon.role)

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
