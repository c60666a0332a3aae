"""Stand-ins for the kernel's sync daemons: they start, stop and are listed, and do no more."""

import errno
from collections.abc import Sequence

from lvsha.errors import AdministrationError
from lvsha.ipvsadm.requests import Role, StartDaemon, StopDaemon
from lvsha.ipvsadm.views import DaemonView
from lvsha.model import parse_address

INTERFACES = frozenset({"vec0", "vec1", "vec2"})
_LENGTH_MAX = 1472
_GROUP = parse_address("224.0.0.81")
_PORT = 8848


class StandInDaemons:
    """Sync daemons by role, with the kernel's defaults."""

    def __init__(self) -> None:
        self._running: dict[Role, DaemonView] = {}

    def start(self, daemon: StartDaemon, /) -> None:
        """Start one."""
        if daemon.role in self._running:
            raise AdministrationError(errno.EEXIST, "runs already")
        if daemon.interface not in INTERFACES:
            raise AdministrationError(errno.ENODEV, "no such interface")
        self._running[daemon.role] = DaemonView(
            daemon.role,
            daemon.interface,
            daemon.sync_id,
            daemon.length_max or _LENGTH_MAX,
            daemon.group or _GROUP,
            daemon.port or _PORT,
            daemon.ttl or 1,
        )

    def stop(self, daemon: StopDaemon, /) -> None:
        """Stop one."""
        if self._running.pop(daemon.role, None) is None:
            raise AdministrationError(errno.ESRCH, "none runs")

    def running(self) -> Sequence[DaemonView]:
        """Those that run, the master first."""
        return [self._running[role] for role in Role if role in self._running]
