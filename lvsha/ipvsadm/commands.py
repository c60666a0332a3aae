"""Carry out the commands of ipvsadm on a director.

`run` takes the words of one command line and gives what the tool would print and its exit
status. It waits for nothing and asks no name server; see `lvsha.ipvsadm.names`.

A long listing comes in pages, so that a director goes on forwarding between two: a result
that says ``following`` is continued by the same command with that number. A service or
connection that comes or goes meanwhile may be missing or stand there twice, as in the
kernel's listings.

What always holds: any words give a `Result`. A command that the director refuses changes
nothing.
"""

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, assert_never

from lvsha.datapath.connections import SHARDS
from lvsha.datapath.director import Director
from lvsha.datapath.services import ServiceIdentity, VirtualService
from lvsha.errors import AdministrationError
from lvsha.ipvsadm import listing
from lvsha.ipvsadm.arguments import parse
from lvsha.ipvsadm.manual import HELP, VERSION
from lvsha.ipvsadm.names import Names, NoNames
from lvsha.ipvsadm.options import STATUS_UNUSABLE, TRY_HELP, UsageError
from lvsha.ipvsadm.requests import (
    AddServer,
    AddService,
    Command,
    DeleteServer,
    DeleteService,
    EditServer,
    EditService,
    Flush,
    ListConnections,
    ListDaemons,
    Listing,
    ListServices,
    ListTimeouts,
    Restore,
    Save,
    SetTimeouts,
    ShowHelp,
    ShowVersion,
    StartDaemon,
    StopDaemon,
    Zero,
)
from lvsha.ipvsadm.saving import save_lines
from lvsha.ipvsadm.views import DaemonView, view_connection, view_service
from lvsha.model import IPv4_BYTES

STATUS_REFUSED: Final = 255
STATUS_NOT_LISTED: Final = 1

PAGE_LINES: Final = 300
"""A page has no more lines than this and those of one service; some milliseconds of work."""
_STRIDE: Final = 1 << 32
"""What ``following`` of connections counts a shard of the table as."""

_INVALID: Final = "Invalid operation.  Possibly wrong module version, address not unicast, ..."
_NO_SERVICE: Final = "No such service"
_NOT_DEFINED: Final = "Service not defined"
_NO_SERVER: Final = "No such destination"
_NO_SCHEDULER: Final = "Scheduler or persistence engine not found"

_REFUSALS: Final[Mapping[type[Command], Mapping[int, str]]] = {
    AddService: {errno.EEXIST: "Service already exists", errno.ENOENT: _NO_SCHEDULER},
    EditService: {errno.ESRCH: _NO_SERVICE, errno.ENOENT: _NO_SCHEDULER},
    DeleteService: {errno.ESRCH: _NO_SERVICE},
    Zero: {errno.ESRCH: _NO_SERVICE},
    ListServices: {errno.ESRCH: _NO_SERVICE},
    AddServer: {errno.ESRCH: _NOT_DEFINED, errno.EEXIST: "Destination already exists"},
    EditServer: {errno.ESRCH: _NOT_DEFINED, errno.ENOENT: _NO_SERVER},
    DeleteServer: {errno.ESRCH: _NOT_DEFINED, errno.ENOENT: _NO_SERVER},
    StartDaemon: {errno.EEXIST: "Daemon has already run"},
    StopDaemon: {errno.ESRCH: "No daemon is running"},
}
_ANY_REFUSAL: Final = {
    errno.EINVAL: _INVALID,
    errno.ERANGE: "Numerical result out of range",
    errno.ENODEV: "No such device",
}
"""Others are told in the director's own words."""


class Daemons(Protocol):
    """The sync daemons."""

    def start(self, daemon: StartDaemon, /) -> None:
        """Start one.

        Raises:
            AdministrationError: EEXIST, one of this role runs; ENODEV, no such interface.
        """

    def stop(self, daemon: StopDaemon, /) -> None:
        """Stop one.

        Raises:
            AdministrationError: ESRCH, none of this role runs.
        """

    def running(self) -> Sequence[DaemonView]:
        """Those that run, the master first."""


class NoDaemons:
    """There are none: the sync is what the pair file says."""

    def start(self, _daemon: StartDaemon, /) -> None:
        """Refuse.

        Raises:
            AdministrationError: always.
        """
        raise AdministrationError(
            errno.EOPNOTSUPP, "Sync is configured in the pair file, not by commands"
        )

    def stop(self, _daemon: StopDaemon, /) -> None:
        """Refuse.

        Raises:
            AdministrationError: always.
        """
        raise AdministrationError(errno.ESRCH, "none runs")

    def running(self) -> Sequence[DaemonView]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Result:
    """What a command comes to.

    Attributes:
        status: the exit status.
        out, err: the text for standard output and standard error.
        following: where to go on; None at the end.
        ends_restore: a restore goes no further.
    """

    status: int = 0
    out: str = ""
    err: str = ""
    following: int | None = None
    ends_restore: bool = False


def run(
    words: Sequence[str],
    stdin: str,
    director: Director,
    names: Names,
    now: float,
    daemons: Daemons | None = None,
    *,
    following: int = 0,
) -> Result:
    """Carry out one command line, or a page of it.

    Args:
        words: without the word ``ipvsadm``.
        stdin: what a restore reads.
        director: on what.
        names: of hosts and ports.
        now: the director's clock.
        daemons: the sync daemons; by default there are none.
        following: where to go on with a listing.
    """
    execution = _Execution(director, daemons or NoDaemons(), names, now)
    try:
        command = parse(words, names)
    except UsageError as error:
        return _misused(error)
    if isinstance(command, Restore):
        return execution.restore(stdin)
    return execution.carry_out(command, max(following, 0))


def restore_words(line: str) -> list[str]:
    """The words of a line that a restore reads; none if there is nothing in it."""
    if line.lstrip().startswith("#"):
        return []
    return [word for word in line.split() if word != "ipvsadm"]


def _misused(error: UsageError) -> Result:
    return Result(error.status, err=f"{error}\n", ends_restore=error.ends_restore)


class _Execution:
    """Carries out commands at one moment."""

    def __init__(self, director: Director, daemons: Daemons, names: Names, now: float) -> None:
        self._director = director
        self._services = director.services
        self._daemons = daemons
        self._names = names
        self._now = now

    def restore(self, stdin: str) -> Result:
        """Carry out each line; the status is that of the last one."""
        status, out, err = 0, "", ""
        for line in stdin.split("\n"):
            words = restore_words(line)
            if not words:
                continue
            result = self._restore_line(words)
            status, out, err = result.status, out + result.out, err + result.err
            if result.ends_restore:
                return Result(status, out, err, ends_restore=True)
        return Result(status, out, err)

    def _restore_line(self, words: Sequence[str]) -> Result:
        try:
            command = parse(words, self._names)
        except UsageError as error:
            return _misused(error)
        if isinstance(command, Restore):
            return _misused(UsageError(TRY_HELP, STATUS_UNUSABLE))
        result = self.carry_out(command, 0)
        out = result.out
        while result.following is not None:
            result = self.carry_out(command, result.following)
            out += result.out
        ends = isinstance(command, ShowHelp | ShowVersion)
        return Result(result.status, out, result.err, ends_restore=ends)

    def carry_out(self, command: Command, following: int) -> Result:
        """Carry out a command, and say why where the director refuses."""
        try:
            return self._carry_out(command, following)
        except AdministrationError as error:
            text = _REFUSALS.get(type(command), {}).get(error.code)
            text = text or _ANY_REFUSAL.get(error.code) or str(error)
            listed = isinstance(command, Listing)
            return Result(STATUS_NOT_LISTED if listed else STATUS_REFUSED, err=f"{text}\n")

    def _carry_out(self, command: Command, following: int) -> Result:
        match command:
            case ListServices() | ListConnections() | ListTimeouts() | ListDaemons() | Save():
                return self._list(command, following)
            case AddService(identity, options):
                self._services.add(identity, options)
            case EditService(identity, options):
                self._services.edit(identity, options)
            case DeleteService(identity):
                self._services.delete(identity)
            case Flush():
                self._services.flush()
            case Zero(one):
                self._services.zero(one)
            case AddServer() | EditServer():
                self._set_server(command)
            case DeleteServer(identity, address, port):
                self._services.delete_server(identity, address, port)
            case SetTimeouts(tcp, tcp_fin, udp):
                self._director.set_timeouts(tcp=tcp, tcp_fin=tcp_fin, udp=udp)
            case StartDaemon():
                self._start(command)
            case StopDaemon():
                self._daemons.stop(command)
            case ShowHelp():
                return Result(out=HELP)
            case ShowVersion():
                return Result(out=VERSION)
            case Restore():
                raise AssertionError("a restore is carried out line by line")
            case _:
                assert_never(command)
        return Result()

    def _set_server(self, command: AddServer | EditServer) -> None:
        """Add or edit a server; where sync daemons run, not one of another family.

        Their messages have no place for a second family.
        """
        family = 4 if len(command.address) == IPv4_BYTES else 6
        if family != command.identity.family and self._daemons.running():
            raise AdministrationError(errno.EINVAL, "a sync daemon runs")
        table, options = self._services, command.options
        if isinstance(command, AddServer):
            table.add_server(command.identity, command.address, command.port, options)
        else:
            table.edit_server(command.identity, command.address, command.port, options)

    def _start(self, command: StartDaemon) -> None:
        for service in self._services:
            size = IPv4_BYTES if service.identity.family == 4 else 16
            if any(len(server.address) != size for server in service.servers):
                raise AdministrationError(errno.EINVAL, "a server is of another family")
        self._daemons.start(command)

    # Listings

    def _list(self, command: Listing, following: int) -> Result:
        names = self._names
        match command:
            case ListTimeouts():
                return _text([listing.timeouts_line(*self._director.timeouts)])
            case ListDaemons():
                return _text([listing.daemon_line(one) for one in self._daemons.running()])
            case ListConnections(numeric, engine_data):
                return self._connections(
                    NoNames() if numeric else names, following, engine_data=engine_data
                )
            case Save(numeric):
                names = NoNames() if numeric else names
                services = self._sorted()
            case ListServices():
                names = NoNames() if command.numeric else names
                if command.identity is not None:
                    services = [self._existing(command.identity)]
                else:
                    services = self._sorted() if command.sorted else list(self._services)
            case _:
                assert_never(command)
        lines: list[str] = []
        if isinstance(command, ListServices) and not following:
            if command.identity is None:
                lines.append(listing.version_line())
            lines += listing.titles(command.format)
        for index, service in enumerate(islice(services, following, None), start=following):
            if len(lines) >= PAGE_LINES:
                return _text(lines, index)
            lines += self._service_lines(command, service, names)
        return _text(lines)

    def _service_lines(
        self, command: Save | ListServices, service: VirtualService, names: Names
    ) -> Iterator[str]:
        if isinstance(command, ListServices) and not command.sorted:
            return listing.service_lines(
                view_service(service, service.servers), command.format, names, exact=command.exact
            )
        view = view_service(service, listing.in_order(service.servers, listing.server_words))
        if isinstance(command, Save):
            return save_lines(view, names)
        return listing.service_lines(view, command.format, names, exact=command.exact)

    def _existing(self, identity: ServiceIdentity) -> VirtualService:
        service = self._services.get(identity)
        if service is None:
            raise AdministrationError(errno.ESRCH, "no such service")
        return service

    def _sorted(self) -> list[VirtualService]:
        return listing.in_order(
            self._services, lambda service: listing.service_words(service.identity)
        )

    def _connections(self, names: Names, following: int, *, engine_data: bool) -> Result:
        lines: list[str] = []
        if not following:
            lines += listing.connection_titles(engine_data=engine_data)
        shard, passed = divmod(following, _STRIDE)
        table = self._director.registry.table
        while shard < SHARDS:
            part = table.part(shard)[passed : passed + PAGE_LINES]
            for connection in part:
                view = view_connection(connection, self._now)
                lines.append(listing.connection_line(view, names, engine_data=engine_data))
            passed += len(part)
            if len(part) < PAGE_LINES:
                shard, passed = shard + 1, 0
            if len(lines) >= PAGE_LINES and shard < SHARDS:
                return _text(lines, shard * _STRIDE + passed)
        return _text(lines)


def _text(lines: Sequence[str], following: int | None = None) -> Result:
    return Result(out="".join(f"{line}\n" for line in lines), following=following)
