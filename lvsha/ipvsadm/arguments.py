"""What a command line of ipvsadm asks for.

`parse` turns words into one `Command`, checked by every rule that needs no director; the
words themselves are taken apart in `lvsha.ipvsadm.options`. What it refuses it refuses with
the text and exit status of the kernel's tool, in the order in which that tool finds
mistakes: values as they come, then stray words, then what may stand together.

Options mean the same in any order, but that ``-6`` belongs behind ``-f``, and the name of a
server's port behind its service.

What always holds: any words give a command or a `UsageError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.ipvsadm.names import Names
from lvsha.ipvsadm.options import (
    STATUS_UNUSABLE,
    TRY_HELP,
    Given,
    UsageError,
    check_legal,
    take_apart,
)
from lvsha.ipvsadm.requests import (
    DEFAULT_INTERFACE,
    AddServer,
    AddService,
    Command,
    DeleteServer,
    DeleteService,
    EditServer,
    EditService,
    Flush,
    Format,
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
from lvsha.ipvsadm.values import (
    INT_MAX,
    PREFIX_MAX,
    End,
    parse_end,
    parse_fwmark,
    parse_group,
    parse_netmask,
    parse_number,
    parse_scheduler_flags,
    parse_timeout,
)
from lvsha.model import ForwardMethod, Protocol
from lvsha.sync.ipvs.roster import Role

DEFAULT_SCHEDULER: Final = "wlc"
DEFAULT_PERSISTENCE: Final = 360
SYNC_ID_MAX: Final = 255
SYNC_LENGTH_MAX: Final = 65_507
PORT_MAX: Final = 65_535
TTL_MAX: Final = 255


def parse(words: Sequence[str], names: Names) -> Command:
    """Understand a command line, without the word ``ipvsadm``.

    Raises:
        UsageError: it breaks a rule.
    """
    if not words:
        return ListServices()
    parts = take_apart(words)
    if not parts.given or not parts.given[0].option.command:
        raise UsageError(TRY_HELP, STATUS_UNUSABLE)
    first = parts.given[0]
    match first.option.subject:
        case "help":
            return ShowHelp()
        case "version":
            return ShowVersion()
    role = _role(first)
    line = _Line()
    for given in parts.given[1:]:
        line.take(given, names)
    if parts.mistake is not None:
        raise parts.mistake
    command = first.option.subject
    timeouts: list[int] = []
    if command == "set":
        timeouts = _timeouts(parts.positional)
        del parts.positional[: len(timeouts)]
    if parts.positional:
        raise UsageError(f"unexpected argument {parts.positional[0]}")
    line.flags = parse_scheduler_flags(line.scheduler_flags, line.scheduler)
    check_legal(command, line.subjects)
    line.finish()
    return _command(command, line, role, timeouts)


_ILLEGAL_ROLE: Final = {
    "start-daemon": "illegal start-daemon parameter specified",
    "stop-daemon": "illegal start_daemon specified",
}


def _role(first: Given) -> Role:
    """The role of a daemon command; any for the others."""
    if not first.option.subject.endswith("-daemon"):
        return Role.MASTER
    if first.value not in {role.value for role in Role}:
        raise UsageError(_ILLEGAL_ROLE[first.option.subject])
    return Role(first.value)


def _timeouts(positional: Sequence[str]) -> list[int]:
    if len(positional) < len(("tcp", "tcpfin", "udp")):
        raise UsageError("--set option requires 3 timeout values")
    return [parse_timeout(word, smallest=0) for word in positional[:3]]


def _command(command: str, line: "_Line", role: Role, timeouts: Sequence[int]) -> Command:
    identity = line.identity
    match command:
        case "flush":
            return Flush()
        case "restore":
            return Restore()
        case "save":
            return Save("numeric" in line.subjects)
        case "list":
            return _list(line)
        case "zero":
            return Zero(identity)
        case "set":
            return SetTimeouts(*timeouts)
        case "start-daemon":
            return StartDaemon(
                role,
                line.interface or DEFAULT_INTERFACE,
                line.sync_id,
                line.numbers.get("sync-maxlen"),
                line.group,
                line.numbers.get("mcast-port"),
                line.numbers.get("mcast-ttl"),
            )
        case "stop-daemon":
            return StopDaemon(role, line.sync_id)
    assert identity is not None, "the others need a service"
    match command:
        case "delete-service":
            return DeleteService(identity)
        case "add-service":
            return AddService(identity, _service_options(line, identity))
        case "edit-service":
            return EditService(identity, _service_options(line, identity))
    assert line.server is not None, "what is left needs a server"
    address, port = line.server.address, line.server.port
    if command == "delete-server":
        return DeleteServer(identity, address, identity.port if port is None else port)
    options = _server_options(line, identity)
    forced = options.method is not ForwardMethod.NAT and not identity.mark
    if port is None or forced:
        port = identity.port
    if command == "add-server":
        return AddServer(identity, address, port, options)
    return EditServer(identity, address, port, options)


def _list(line: "_Line") -> Listing:
    subjects = line.subjects
    exclusive = [
        subject
        for subject in ("connection", "service-address", "timeout", "daemon")
        if subject in subjects
    ]
    if len(exclusive) > 1:
        raise UsageError(
            f"The option '{exclusive[1]}' conflicts with the '{exclusive[0]}' option "
            "in the 'list' command"
        )
    chosen = exclusive[0] if exclusive else ""
    if chosen in {"connection", "timeout", "daemon"}:
        unfit = {"stats", "rate", "thresholds"}
        if chosen != "connection":
            unfit.add("persistent-conn")
        if subjects & unfit:
            raise UsageError("options conflicts in the list command")
    numeric = "numeric" in subjects
    match chosen:
        case "connection":
            return ListConnections(numeric, "persistent-conn" in subjects)
        case "timeout":
            return ListTimeouts()
        case "daemon":
            return ListDaemons()
    shown = next((kind for kind in Format if kind.value in subjects), Format.CONNECTIONS)
    return ListServices(
        shown, line.identity, numeric, "exact" in subjects, "nosort" not in subjects
    )


def _service_options(line: "_Line", identity: ServiceIdentity) -> ServiceOptions:
    one_packet = "ops" in line.subjects
    if not identity.mark and not identity.port and not line.persistence:
        raise UsageError("Zero port specified for non-persistent service")
    if one_packet and not identity.mark and identity.protocol != Protocol.UDP:
        raise UsageError("One-Packet Scheduling is only for UDP virtual services")
    return ServiceOptions(
        scheduler=line.scheduler,
        flags=line.flags,
        persistence=line.persistence,
        netmask=line.netmask,
        one_packet=one_packet,
        engine=line.engine,
    )


def _server_options(line: "_Line", identity: ServiceIdentity) -> ServerOptions:
    assert line.server is not None, "check_legal asked for it"
    if line.server.family != identity.family and line.method is not ForwardMethod.TUNNEL:
        raise UsageError("Different address family is allowed only for tunneling servers")
    return ServerOptions(
        method=line.method,
        weight=line.numbers.get("weight", 1),
        upper=line.numbers.get("u-threshold", 0),
        lower=line.numbers.get("l-threshold", 0),
        tunnel=_tunnel(line),
    )


_CHECKSUMS: Final = {
    "tun-nocsum": TunnelChecksum.NONE,
    "tun-csum": TunnelChecksum.CHECKSUM,
    "tun-remcsum": TunnelChecksum.REMOTE,
}
_TUNNEL_ILLEGAL: Final = {
    TunnelType.IPIP: ("tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"),
    TunnelType.GUE: (),
    TunnelType.GRE: ("tun-port", "tun-remcsum"),
}


def _tunnel(line: "_Line") -> Tunnel:
    """The tunnel settings, by the rules of each type."""
    subjects = line.subjects
    if line.method is not ForwardMethod.TUNNEL:
        if subjects & {"tun-type", "tun-port", *_CHECKSUMS}:
            raise UsageError("Tunnel options conflict with forward method")
        return Tunnel()
    word = line.tunnel_type.name.lower()
    if line.tunnel_type is TunnelType.GUE and "tun-port" not in subjects:
        raise UsageError(f"You need to supply the 'tun-port' option for the '{word}' tunnel type")
    for subject in _TUNNEL_ILLEGAL[line.tunnel_type]:
        if subject in subjects:
            raise UsageError(f"Illegal '{subject}' option with the '{word}' tunnel type")
    given = [subject for subject in _CHECKSUMS if subject in subjects]
    if len(given) > 1:
        raise UsageError(
            f"The option '{given[1]}' conflicts with the '{given[0]}' option "
            f"in the '{word}' tunnel type"
        )
    checksum = _CHECKSUMS[given[0]] if given else TunnelChecksum.NONE
    return Tunnel(line.tunnel_type, line.numbers.get("tun-port", 0), checksum)


_TRANSPORTS: Final = {
    "tcp-service": Protocol.TCP,
    "udp-service": Protocol.UDP,
    "sctp-service": Protocol.SCTP,
}
_METHODS: Final = {
    "gatewaying": ForwardMethod.DIRECT_ROUTE,
    "ipip": ForwardMethod.TUNNEL,
    "masquerading": ForwardMethod.NAT,
}
_RANGES: Final = {
    "weight": ("weight", 0, INT_MAX),
    "u-threshold": ("u_threshold", 0, INT_MAX),
    "l-threshold": ("l_threshold", 0, INT_MAX),
    "syncid": ("syncid", 0, SYNC_ID_MAX),
    "sync-maxlen": ("sync-maxlen", 1, SYNC_LENGTH_MAX),
    "mcast-port": ("mcast-port", 1, PORT_MAX),
    "mcast-ttl": ("mcast-ttl", 1, TTL_MAX),
    "tun-port": ("tunnel port", 1, PORT_MAX),
}
"""Numbers by subject: how a message calls them, the smallest and the largest."""


@dataclass(slots=True)
class _Line:
    """The values of one command line, as its options are met.

    Attributes:
        subjects: of all options.
        numbers: those in `_RANGES`, by subject.
    """

    subjects: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    identity: ServiceIdentity | None = None
    scheduler: str = DEFAULT_SCHEDULER
    scheduler_flags: str = ""
    flags: frozenset[str] = frozenset()
    persistence: int = 0
    netmask: bytes = b""
    engine: str = ""
    server: End | None = None
    method: ForwardMethod = ForwardMethod.DIRECT_ROUTE
    tunnel_type: TunnelType = TunnelType.IPIP
    interface: str = ""
    group: bytes = b""
    _early_mask: str | None = None

    @property
    def sync_id(self) -> int:
        """The id of a sync daemon."""
        return self.numbers.get("syncid", 0)

    def take(self, given: Given, names: Names) -> None:
        """Take one option in.

        Raises:
            UsageError: it is a second command, given twice, or has an illegal value.
        """
        option, value = given.option, given.value
        if option.command:
            raise UsageError(f"invalid option `{given.word}'")
        if option.subject in self.subjects and not option.repeatable:
            raise UsageError(f"multiple '{option.subject}' options specified")
        self.subjects.add(option.subject)
        match option.subject:
            case "service-address":
                self.identity = _identity(option.long, value or "", names)
            case "ipv6":
                self._become_ipv6()
            case "real-server":
                self._take_server(value or "", names)
            case "persistent":
                self.persistence = (
                    DEFAULT_PERSISTENCE if value is None else parse_timeout(value, smallest=1)
                )
            case "forwarding-method":
                self.method = _METHODS[option.long]
            case subject if subject in _RANGES:
                called, smallest, largest = _RANGES[subject]
                number = parse_number(value or "", smallest, largest)
                if number is None:
                    raise UsageError(f"illegal {called} specified")
                self.numbers[subject] = number
            case _ if value is not None:
                self._take_text(option.subject, value)

    def _take_text(self, subject: str, value: str) -> None:
        match subject:
            case "scheduler":
                self.scheduler = value
            case "sched-flags":
                self.scheduler_flags = value
            case "netmask":
                self._take_netmask(value)
            case "pe":
                self.engine = value
            case "mcast-interface":
                self.interface = value
            case "mcast-group":
                self.group = parse_group(value)
            case "tun-type":
                if value not in {kind.name.lower() for kind in TunnelType}:
                    raise UsageError("illegal tunnel type specified")
                self.tunnel_type = TunnelType[value.upper()]

    def _become_ipv6(self) -> None:
        identity = self.identity
        if identity is None or not identity.mark:
            raise UsageError("-6 used before -f\n")
        self.identity = ServiceIdentity(6, identity.protocol, mark=identity.mark)

    def _take_server(self, value: str, names: Names) -> None:
        """Take a server; until the service is known its port counts as one of TCP."""
        protocol = Protocol.TCP if self.identity is None else self.identity.protocol
        self.server = parse_end(value, protocol, names)
        if self.server is None:
            raise UsageError("illegal real server address[:port] specified")

    def _take_netmask(self, value: str) -> None:
        """Take a mask; until the service is known it may be of either family."""
        if self.identity is None:
            self._early_mask = value
            value_family = 6 if parse_number(value, 1, PREFIX_MAX) is not None else 4
            parse_netmask(value, value_family)
        else:
            self.netmask = parse_netmask(value, self.identity.family)

    def finish(self) -> None:
        """Understand what could not be understood before the service was known.

        Raises:
            UsageError: a value is illegal.
        """
        if self._early_mask is not None and self.identity is not None:
            self.netmask = parse_netmask(self._early_mask, self.identity.family)


def _identity(long: str, value: str, names: Names) -> ServiceIdentity:
    if long == "fwmark-service":
        return ServiceIdentity(4, Protocol.TCP, mark=parse_fwmark(value))
    protocol = _TRANSPORTS[long]
    end = parse_end(value, protocol, names)
    if end is None:
        raise UsageError("illegal virtual server address[:port] specified")
    return ServiceIdentity(end.family, protocol, end.address, end.port or 0)
