"""What ipvsadm can be asked to do: one value for each of its commands.

These are requests, checked as far as words can be checked. Whether a director grants one is
for `lvsha.ipvsadm.commands`.

Times are seconds, lengths are bytes, addresses are bytes in network order.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.sync.ipvs.roster import Role

DEFAULT_INTERFACE: Final = "eth0"


class Format(Enum):
    """What a listing shows of services and servers; the first that is given is taken."""

    STATISTICS = "stats"
    RATES = "rate"
    THRESHOLDS = "thresholds"
    PERSISTENT = "persistent-conn"
    TUNNELS = "tun-info"
    CONNECTIONS = ""


@dataclass(frozen=True, slots=True)
class AddService:
    """``-A``."""

    identity: ServiceIdentity
    options: ServiceOptions


@dataclass(frozen=True, slots=True)
class EditService:
    """``-E``: what is not given becomes the default again."""

    identity: ServiceIdentity
    options: ServiceOptions


@dataclass(frozen=True, slots=True)
class DeleteService:
    """``-D``."""

    identity: ServiceIdentity


@dataclass(frozen=True, slots=True)
class Flush:
    """``-C``."""


@dataclass(frozen=True, slots=True)
class Restore:
    """``-R``: read commands from standard input."""


@dataclass(frozen=True, slots=True)
class Save:
    """``-S``: print the commands that make the table what it is."""

    numeric: bool


@dataclass(frozen=True, slots=True)
class AddServer:
    """``-a``."""

    identity: ServiceIdentity
    address: bytes
    port: int
    options: ServerOptions


@dataclass(frozen=True, slots=True)
class EditServer:
    """``-e``: what is not given becomes the default again."""

    identity: ServiceIdentity
    address: bytes
    port: int
    options: ServerOptions


@dataclass(frozen=True, slots=True)
class DeleteServer:
    """``-d``."""

    identity: ServiceIdentity
    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class ListServices:
    """``-L``: all services, or one."""

    format: Format = Format.CONNECTIONS
    identity: ServiceIdentity | None = None
    numeric: bool = False
    exact: bool = False
    sorted: bool = True


@dataclass(frozen=True, slots=True)
class ListConnections:
    """``-L -c``; ``engine_data`` shows what persistence engines found."""

    numeric: bool = False
    engine_data: bool = False


@dataclass(frozen=True, slots=True)
class ListTimeouts:
    """``-L --timeout``."""


@dataclass(frozen=True, slots=True)
class ListDaemons:
    """``-L --daemon``."""


@dataclass(frozen=True, slots=True)
class Zero:
    """``-Z``: one service, or everything."""

    identity: ServiceIdentity | None


@dataclass(frozen=True, slots=True)
class SetTimeouts:
    """``--set``; seconds, and 0 leaves one as it is."""

    tcp: int
    tcp_fin: int
    udp: int


@dataclass(frozen=True, slots=True)
class StartDaemon:
    """``--start-daemon``; None and empty where the daemon has a default."""

    role: Role
    interface: str = DEFAULT_INTERFACE
    sync_id: int = 0
    length_max: int | None = None
    group: bytes = b""
    port: int | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class StopDaemon:
    """``--stop-daemon``."""

    role: Role
    sync_id: int = 0


@dataclass(frozen=True, slots=True)
class ShowHelp:
    """``-h``."""


@dataclass(frozen=True, slots=True)
class ShowVersion:
    """``-v``."""


Listing = ListServices | ListConnections | ListTimeouts | ListDaemons | Save
Command = (
    AddService
    | EditService
    | DeleteService
    | Flush
    | Restore
    | AddServer
    | EditServer
    | DeleteServer
    | Listing
    | Zero
    | SetTimeouts
    | StartDaemon
    | StopDaemon
    | ShowHelp
    | ShowVersion
)
