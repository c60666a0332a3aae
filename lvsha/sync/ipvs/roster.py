"""Which sync daemons run, by the kernel's rules for starting and stopping them.

A daemon is a master or a backup. Of those that commands start there is at most one of each
role, with settings of its own. Those that the pair file asks for are entered once, may be
several, and no command starts or stops any beside them.

`Roster` opens nothing; `lvsha.sync.ipvs.daemons` does what it has decided.

Lengths are bytes, addresses are in network order.
"""

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from lvsha.errors import AdministrationError
from lvsha.model import IPv4_BYTES

GROUP: Final = bytes((224, 0, 0, 81))
PORT: Final = 8848
TTL: Final = 1
PORTS_MAX: Final = 64
"""Sockets of a daemon; socket i has the base port plus i."""

_UDP_BYTES: Final = 8
_IP_BYTES: Final = {IPv4_BYTES: 20, 16: 40}
_LENGTH_MAX: Final = 65_535
_MTU: Final = 1500
"""What a master counts on, whatever its interface has."""
_BACKUP_LENGTH_MIN: Final = 1024


class Role(Enum):
    """What a sync daemon does."""

    MASTER = "master"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a daemon speaks or listens.

    Attributes:
        interface: its name.
        sync_id: 0 to 255.
        length_max: of a message; None and below empty where the kernel's default is meant.
        group: the multicast address, 4 or 16 bytes.
        port: the base port.
        ttl: of what is sent.
    """

    interface: str
    sync_id: int
    length_max: int | None = None
    group: bytes = GROUP
    port: int = PORT
    ttl: int = TTL


@dataclass(frozen=True, slots=True)
class Daemon:
    """One that runs; all terms are filled in."""

    role: Role
    terms: Terms

    @property
    def length_max(self) -> int:
        """The longest message, in bytes."""
        assert self.terms.length_max is not None
        return self.terms.length_max


class Roster:
    """The daemons of a director.

    Args:
        mtu_of: tells the MTU of an interface; None if there is no such interface.
    """

    def __init__(self, mtu_of: Callable[[str], int | None]) -> None:
        self._mtu_of = mtu_of
        self._commanded: dict[Role, Daemon] = {}
        self._configured: tuple[Daemon, ...] = ()

    def configure(self, roles: Iterable[tuple[Role, Terms]]) -> tuple[Daemon, ...]:
        """Enter the daemons that the pair file asks for; returns them.

        An interface that is not there yet has a usual MTU.
        """
        assert not self._commanded, "the pair file comes first"
        self._configured = tuple(
            Daemon(role, filled_in(role, terms, self._mtu_of(terms.interface) or _MTU))
            for role, terms in roles
        )
        return self._configured

    def start(self, role: Role, terms: Terms) -> Daemon:
        """Enter a daemon that a command asks for.

        Raises:
            AdministrationError: ENODEV, there is no such interface; EEXIST, one of this role
                runs; EINVAL, terms that no daemon can have; EOPNOTSUPP, the pair file says
                which daemons run.
        """
        self._refuse_if_configured()
        if not 0 <= terms.sync_id <= 255 or not _is_multicast(terms.group):
            raise AdministrationError(errno.EINVAL, "no such sync id or group")
        mtu = self._mtu_of(terms.interface)
        if mtu is None:
            raise AdministrationError(errno.ENODEV, "no such interface")
        if role in self._commanded:
            raise AdministrationError(errno.EEXIST, "one runs already")
        daemon = Daemon(role, filled_in(role, terms, mtu))
        self._commanded[role] = daemon
        return daemon

    def stop(self, role: Role) -> Daemon:
        """Take a daemon out.

        Raises:
            AdministrationError: ESRCH, none of this role runs; EOPNOTSUPP, the pair file says
                which daemons run.
        """
        self._refuse_if_configured()
        daemon = self._commanded.pop(role, None)
        if daemon is None:
            raise AdministrationError(errno.ESRCH, "none runs")
        return daemon

    def running(self) -> list[Daemon]:
        """Those that run, the masters first."""
        daemons = [*self._configured, *self._commanded.values()]
        return [daemon for role in Role for daemon in daemons if daemon.role is role]

    def _refuse_if_configured(self) -> None:
        if self._configured:
            raise AdministrationError(
                errno.EOPNOTSUPP, "Sync is configured in the pair file, not by commands"
            )


def filled_in(role: Role, terms: Terms, mtu: int) -> Terms:
    """Terms with the length that a daemon of this role works with, as in the kernel."""
    headers = _IP_BYTES[len(terms.group)] + _UDP_BYTES
    longest = _LENGTH_MAX - headers
    if terms.length_max:
        shortest = _BACKUP_LENGTH_MIN if role is Role.BACKUP else 1
        length = min(max(terms.length_max, shortest), longest)
    elif role is Role.BACKUP:
        length = min(max(mtu, _MTU), _LENGTH_MAX) - headers
    else:
        length = _MTU - headers
    return replace(terms, length_max=length)


def _is_multicast(group: bytes) -> bool:
    return group[:1] == b"\xff" if len(group) != IPv4_BYTES else group[0] >> 4 == 0xE
