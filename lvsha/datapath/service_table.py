"""All virtual services of a director, and the commands that change them.

The commands are those of ipvsadm, with the kernel's rules and error numbers. What always
holds: a service, and a server of it, stands here once; every scheduler knows the present
list of its servers; a removed server waits in the trash, with its counts and as long as a
connection refers to it, and comes back when it is added again.

What the kernel has not: a server that retires is listed no more either, but its connections go
on. It leaves with the last of them.

A service is found as the kernel finds it: by firewall mark; else by protocol, address and
port; else, for what may be FTP data, the one of port 21; else the one of port 0.
"""

import errno
import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from lvsha.datapath.estimator import Rates
from lvsha.datapath.ftp import FTP_DATA_PORT, FTP_PORT
from lvsha.datapath.leaving import Leaving
from lvsha.datapath.memories import SIP
from lvsha.datapath.scheduler_options import Dice, SchedulerOptions
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.service_policy import ServicePolicy, TellRule
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    Statistics,
    VirtualService,
)
from lvsha.datapath.tunnels import TunnelType
from lvsha.errors import AdministrationError
from lvsha.model import ForwardMethod, IPv4_BYTES, Protocol, format_address, format_endpoint

NO_SCHEDULER: Final = "none"
ENGINES: Final = frozenset({"", SIP})
"""Persistence engines by name; empty for none."""

TRASH_INTERVAL: Final = 60.0
"""Seconds between two looks into the trash."""
TRASH_TIME: Final = 120.0
"""Seconds that a server lies in the trash after its last connection was seen gone."""

SWEEP_SLICE: Final = 1000
"""Servers in the trash that are looked at in one go."""

UNPRIVILEGED_PORT: Final = 1024
"""The first port that a passive FTP server may choose."""
_WEIGHT_MAX: Final = 2**31 - 1

_ServiceKey = tuple[int, int] | tuple[int, int, bytes, int]
_TrashKey = tuple[_ServiceKey, int, bytes, int]


class ServiceTable:
    """The services by identity.

    Args:
        dice: for schedulers that draw lots.
        policy: of services that are added without one.

    Attributes:
        rates: of everything together.
        leaving: the servers that have retired.
        policy: of services that are added without one.
        seed: of the hashing schedulers that are made from now on.
        removals: how often servers were removed; for who must look after their connections.
        additions: how often servers were added; for who has connections that wait for them.
    """

    def __init__(self, dice: Dice, policy: ServicePolicy | None = None) -> None:
        self.rates = Rates()
        self.leaving = Leaving()
        self.seed = 0
        self.removals = 0
        self.additions = 0
        self._dice = dice
        self.policy = policy or ServicePolicy()
        self._expirations = (86400.0, 86400.0)
        self._services: dict[_ServiceKey, VirtualService] = {}
        self._ports: Counter[int] = Counter()
        self._nat_ends: dict[bytes, list[RealServer]] = {}
        self._tunnel_ends: Counter[tuple[bytes, TunnelType, int]] = Counter()
        self._trash: dict[_TrashKey, tuple[RealServer, float | None]] = {}
        self._trash_at: float | None = None
        self._unheard: dict[VirtualService, None] | None = None
        self._retired = Statistics()
        self._zeroed = Statistics()
        self._sampled = Statistics()
        self._sampled_zeroed = Statistics()

    def __iter__(self) -> Iterator[VirtualService]:
        return iter(self._services.values())

    def __len__(self) -> int:
        return len(self._services)

    # Look-ups

    def get(self, identity: ServiceIdentity) -> VirtualService | None:
        """The service of exactly this identity."""
        return self._services.get(_key(identity))

    def find(self, key: bytes, mark: int) -> VirtualService | None:
        """The service that a packet is for.

        Args:
            key: of the packet (`lvsha.model.connection_key`).
            mark: its firewall mark; 0 for none.
        """
        services = self._services
        family, protocol = key[0], key[1]
        if mark:
            service = services.get((family, mark))
            if service is not None:
                return service
        size = (len(key) - 6) // 2
        address, port = key[2 + size : 2 + 2 * size], int.from_bytes(key[-2:])
        service = services.get((family, protocol, address, port))
        if service is not None:
            return service
        ports = self._ports
        if (
            protocol == Protocol.TCP
            and ports[FTP_PORT]
            and (port == FTP_DATA_PORT or port >= UNPRIVILEGED_PORT)
        ):
            service = services.get((family, protocol, address, FTP_PORT))
            if service is not None:
                return service
        return services.get((family, protocol, address, 0)) if ports[0] else None

    def serves(self, family: int) -> bool:
        """Whether there is any service of a family."""
        return any(service.identity.family == family for service in self)

    def nat_server(self, protocol: int, address: bytes, port: int) -> RealServer | None:
        """The listed NAT server that sends from this address and port, if there is one."""
        for end in (_nat_end(protocol, address, port), _nat_end(0, address, port)):
            for server in self._nat_ends.get(end, ()):
                if server.method is ForwardMethod.NAT:
                    return server
        return None

    def has_tunnel(self, address: bytes, kind: TunnelType, port: int) -> bool:
        """Whether a listed server of any service is reached by such a tunnel."""
        return self._tunnel_ends[address, kind, port] > 0

    # Services

    def tell_unasked(self, rule: TellRule) -> None:
        """Have the backups told by another rule of services for which nobody has asked for one."""
        if not self.policy.asked:
            self.policy = replace(self.policy, tell=rule)
        for service in self:
            if not service.policy.asked:
                service.policy = replace(service.policy, tell=rule)

    def add(
        self,
        identity: ServiceIdentity,
        options: ServiceOptions,
        name: str = "",
        policy: ServicePolicy | None = None,
    ) -> VirtualService:
        """Add a service.

        Raises:
            AdministrationError: EEXIST; ENOENT, scheduler or engine unknown; EINVAL.
        """
        _check_family(identity)
        key = _key(identity)
        if key in self._services:
            raise AdministrationError(errno.EEXIST, f"{describe(identity)}: is there already")
        _check_options(identity, options)
        policy = policy or self.policy
        service = VirtualService(name or describe(identity), identity, options, policy)
        service.whole = self._sampled
        self._schedule_by(service, options)
        self._services[key] = service
        if not identity.mark:
            self._ports[identity.port] += 1
        return service

    def edit(self, identity: ServiceIdentity, options: ServiceOptions) -> VirtualService:
        """Change a service; another scheduler starts from the beginning.

        Raises:
            AdministrationError: ESRCH, there is none; as `add`.
        """
        service = self._existing(identity)
        _check_options(identity, options)
        if options.scheduler != service.options.scheduler:
            self._schedule_by(service, options)
        service.scheduler_options.flags = options.flags
        service.options = options
        return service

    def delete(self, identity: ServiceIdentity) -> None:
        """Remove a service; its servers go into the trash.

        Raises:
            AdministrationError: ESRCH, there is none.
        """
        service = self._existing(identity)
        for server in list(service.servers):
            self._remove(server)
        for server in list(service.leaving):
            self._bury(server)
        self._forget(service)

    def retire(self, identity: ServiceIdentity) -> None:
        """Remove a service; its servers retire.

        Raises:
            AdministrationError: ESRCH, there is none.
        """
        service = self._existing(identity)
        for server in list(service.servers):
            self._retire(server)
        self._forget(service)

    def _forget(self, service: VirtualService) -> None:
        service.sampled()
        self._retired.add(service.all_counted())
        del self._services[_key(service.identity)]
        if not service.identity.mark:
            self._ports[service.identity.port] -= 1

    def flush(self) -> None:
        """Remove all services."""
        for service in list(self._services.values()):
            self.delete(service.identity)

    def zero(self, identity: ServiceIdentity | None = None) -> None:
        """Let counters and rates of a service and its servers, or of all, begin at zero.

        Raises:
            AdministrationError: ESRCH, there is no such service.
        """
        services = list(self) if identity is None else [self._existing(identity)]
        for service in services:
            service.sampled()
            service.zeroed = service.all_counted()
            service.rates.zero()
            for server in service.servers:
                server.zero()
        if identity is None:
            self._zeroed = self._all_counted()
            self._sampled_zeroed = self._sampled.since(Statistics())
            self.rates.zero()

    def _existing(self, identity: ServiceIdentity) -> VirtualService:
        service = self.get(identity)
        if service is None or (not identity.mark and service.protocol != identity.protocol):
            raise AdministrationError(errno.ESRCH, f"{describe(identity)}: no such service")
        return service

    def _schedule_by(self, service: VirtualService, options: ServiceOptions) -> None:
        """Make the service's scheduler anew; where that fails the old one stays.

        Raises:
            AdministrationError: ENOENT, it is unknown; EINVAL, it cannot take these servers.
        """
        if options.scheduler == NO_SCHEDULER:
            service.scheduler = None
            return
        lblc, lblcr = self._expirations
        told = SchedulerOptions(options.flags, self.seed, lblc, lblcr, self._dice)
        service.scheduler = SCHEDULERS[options.scheduler](service.servers, told)
        service.scheduler_options = told

    def set_scheduling(self, *, lblc_expiration: float, lblcr_expiration: float) -> None:
        """Tell all schedulers how long lblc and lblcr remember."""
        self._expirations = (lblc_expiration, lblcr_expiration)
        for service in self:
            service.scheduler_options.lblc_expiration = lblc_expiration
            service.scheduler_options.lblcr_expiration = lblcr_expiration

    # Servers

    def add_server(
        self, identity: ServiceIdentity, address: bytes, port: int, options: ServerOptions
    ) -> RealServer:
        """Add a real server at the head of a service's list.

        One from the trash comes back with its connections and counts.

        Raises:
            AdministrationError: ESRCH, no such service; EEXIST; ERANGE, weight or
                thresholds; EINVAL, tunnel or family.
        """
        service = self._existing(identity)
        _check_server(service, address, options)
        if service.server(address, port) is not None:
            raise AdministrationError(
                errno.EEXIST, f"{format_endpoint(address, port)}: is there already"
            )
        server = self._returning(service, address, port)
        if server is None:
            server = RealServer(service, address, port, options)
        else:
            server.change(options)
            server.last_weight = options.weight
            server.available = server.serving = True
        service.enlist(server)
        self._tell_scheduler(service)
        end = _nat_end(service.protocol, address, port)
        self._nat_ends.setdefault(end, []).append(server)
        self._count_tunnel(server, 1)
        self.additions += 1
        return server

    def edit_server(
        self, identity: ServiceIdentity, address: bytes, port: int, options: ServerOptions
    ) -> RealServer:
        """Change a real server in its place.

        Raises:
            AdministrationError: ESRCH, no such service; ENOENT, no such server; ERANGE,
                EINVAL as `add_server`.
        """
        service = self._existing(identity)
        _check_server(service, address, options)
        server = self._listed(service, address, port)
        self._count_tunnel(server, -1)
        server.change(options)
        self._count_tunnel(server, 1)
        self._tell_scheduler(service)
        return server

    def delete_server(self, identity: ServiceIdentity, address: bytes, port: int) -> None:
        """Remove a real server; packets of its connections are dropped from now on.

        Of one that was leaving that is the end, too.

        Raises:
            AdministrationError: ESRCH, no such service; ENOENT, no such server.
        """
        service = self._existing(identity)
        leaving = self.leaving.find([identity], address, port)
        if service.server(address, port) is None and leaving is not None:
            self._bury(leaving)
        else:
            self._remove(self._listed(service, address, port))

    def retire_server(self, identity: ServiceIdentity, address: bytes, port: int) -> None:
        """List a real server no more; its connections go on, and it leaves with the last.

        Raises:
            AdministrationError: ESRCH, no such service; ENOENT, no such server.
        """
        self._retire(self._listed(self._existing(identity), address, port))

    def _listed(self, service: VirtualService, address: bytes, port: int) -> RealServer:
        server = service.server(address, port)
        if server is None:
            raise AdministrationError(
                errno.ENOENT, f"{format_endpoint(address, port)}: no such server"
            )
        return server

    def _remove(self, server: RealServer) -> None:
        self._strike(server)
        self._discard(server)
        self.removals += 1
        self._tell_scheduler(server.service, server)

    def _retire(self, server: RealServer) -> None:
        if not server.active and not server.inactive:
            self._remove(server)
            return
        self._strike(server)
        self.leaving.add(server)
        self._tell_scheduler(server.service, server)

    def _strike(self, server: RealServer) -> None:
        """Take a server from its service's list."""
        service = server.service
        service.strike(server)
        server.available = False
        end = _nat_end(service.protocol, server.address, server.port)
        ends = self._nat_ends[end]
        ends.remove(server)
        if not ends:
            del self._nat_ends[end]

    def _discard(self, server: RealServer) -> None:
        """Put a server that is not listed any more into the trash."""
        service = server.service
        server.serving = False
        service.retired.add(server.statistics)
        self._count_tunnel(server, -1)
        self._trash[_trash_key(service, server.address, server.port)] = (server, None)

    def _bury(self, server: RealServer) -> None:
        """End the time of a server that was leaving."""
        self.leaving.remove(server)
        self._discard(server)
        self.removals += 1

    def bury_idle(self) -> list[RealServer]:
        """Remove those leaving servers that have no connection any more."""
        idle = self.leaving.idle()
        for server in idle:
            self._bury(server)
        return idle

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let each scheduler hear once of all servers that come or change; no packet must come.

        Some take long to begin with another list. That a server is gone they hear at once.
        """
        if self._unheard is not None:
            yield
            return
        self._unheard = {}
        try:
            yield
        finally:
            unheard, self._unheard = self._unheard, None
            for service in unheard:
                self._tell_scheduler(service)

    def _tell_scheduler(self, service: VirtualService, removed: RealServer | None = None) -> None:
        if self._unheard is not None and removed is None:
            self._unheard[service] = None
        elif service.scheduler is not None:
            service.scheduler.updated(removed)

    def _count_tunnel(self, server: RealServer, change: int) -> None:
        if server.method is not ForwardMethod.TUNNEL:
            return
        tunnel = server.tunnel
        end = (server.address, tunnel.type, tunnel.port if tunnel.type is TunnelType.GUE else 0)
        self._tunnel_ends[end] += change
        if not self._tunnel_ends[end]:
            del self._tunnel_ends[end]

    # The trash

    def left_with_connections(self) -> dict[VirtualService, list[RealServer]]:
        """The removed and the leaving servers that connections refer to, by service."""
        left = self.leaving.by_service()
        for server, _ in self._trash.values():
            if server.active or server.inactive:
                left.setdefault(server.service, []).append(server)
        return left

    def _returning(self, service: VirtualService, address: bytes, port: int) -> RealServer | None:
        """What has been at an address and port of this service, or of one like it, before."""
        server = self.leaving.find([service.identity], address, port)
        if server is None:
            return self._from_trash(service, address, port)
        self.leaving.remove(server)
        self._count_tunnel(server, -1)
        if server.service is not service:
            self._adopt(service, server)
        return server

    def _adopt(self, service: VirtualService, server: RealServer) -> None:
        """Let a server of a service that is gone be one of another, and count anew."""
        server.service = service
        server.statistics = Statistics()
        server.zeroed = Statistics()
        server.rates.zero(server.counted())

    def _from_trash(self, service: VirtualService, address: bytes, port: int) -> RealServer | None:
        found = self._trash.pop(_trash_key(service, address, port), None)
        if found is None:
            return None
        server = found[0]
        if server.service is service:
            # What it counted is listed with the server again.
            service.retired = service.retired.since(server.statistics)
            server.rates.zero(server.counted())
        else:
            self._adopt(service, server)
        return server

    def sweep(self, now: float) -> Iterator[None]:
        """Destroy what has lain in the trash long enough; call it now and then.

        Every minute a server without connections gets a mark, and with a mark that is two
        minutes old it is gone, as in the kernel. Pauses after `SWEEP_SLICE` servers.
        """
        if not self._trash:
            self._trash_at = None
            return
        if self._trash_at is None:
            self._trash_at = now + TRASH_INTERVAL
        if now < self._trash_at:
            return
        self._trash_at = now + TRASH_INTERVAL
        for number, key in enumerate(list(self._trash), 1):
            self._look_into_trash(key, now)
            if not number % SWEEP_SLICE:
                yield

    def _look_into_trash(self, key: _TrashKey, now: float) -> None:
        server, idle_since = self._trash.get(key, (None, None))
        if server is None or not server.idle:
            return  # it has come back meanwhile, or is in use
        if idle_since is None:
            self._trash[key] = (server, now)
        elif now >= idle_since + TRASH_TIME:
            del self._trash[key]

    # Counts

    def counted(self) -> Statistics:
        """What was counted in all since everything was zeroed."""
        return self._all_counted().since(self._zeroed)

    def sampled(self) -> Statistics:
        """As `counted`, with each service as it was when its own rates were last computed.

        Adding up tens of thousands of servers at once would take too long.
        """
        return self._sampled.since(self._sampled_zeroed)

    def _all_counted(self) -> Statistics:
        total = Statistics()
        total.add(self._retired)
        for service in self:
            total.add(service.all_counted())
        return total


def describe(identity: ServiceIdentity) -> str:
    """A service as one speaks of it: ``TCP 192.0.2.1:80``, ``FWM 5``."""
    if identity.mark:
        return f"FWM {identity.mark}" + (" IPv6" if identity.family == 6 else "")
    return f"{Protocol(identity.protocol).name} {format_endpoint(identity.address, identity.port)}"


def _key(identity: ServiceIdentity) -> _ServiceKey:
    if identity.mark:
        return identity.family, identity.mark
    return identity.family, identity.protocol, identity.address, identity.port


def _trash_key(service: VirtualService, address: bytes, port: int) -> _TrashKey:
    return _key(service.identity), service.identity.protocol, address, port


def _nat_end(protocol: int, address: bytes, port: int) -> bytes:
    return bytes((protocol,)) + address + port.to_bytes(2)


def _check_family(identity: ServiceIdentity) -> None:
    if identity.family not in {4, 6}:
        raise AdministrationError(errno.EAFNOSUPPORT, f"{identity.family}: no such family")


def _check_options(identity: ServiceIdentity, options: ServiceOptions) -> None:
    if options.scheduler != NO_SCHEDULER and options.scheduler not in SCHEDULERS:
        raise AdministrationError(errno.ENOENT, f"{options.scheduler}: no such scheduler")
    if options.engine not in ENGINES:
        raise AdministrationError(errno.ENOENT, f"{options.engine}: no such persistence engine")
    if options.netmask and len(options.netmask) != (4 if identity.family == 4 else 16):
        raise AdministrationError(errno.EINVAL, "the netmask is of another family")


def _check_server(service: VirtualService, address: bytes, options: ServerOptions) -> None:
    if not 0 <= options.weight <= _WEIGHT_MAX:
        raise AdministrationError(errno.ERANGE, f"{options.weight}: no weight")
    if options.lower > options.upper:
        raise AdministrationError(errno.ERANGE, "the lower threshold is above the upper one")
    problem = options.tunnel.problem()
    if problem is not None:
        raise AdministrationError(errno.EINVAL, problem)
    if not _is_unicast(address):
        raise AdministrationError(errno.EINVAL, f"{format_address(address)}: not unicast")
    family = 4 if len(address) == IPv4_BYTES else 6
    if family != service.identity.family and options.method is not ForwardMethod.TUNNEL:
        raise AdministrationError(
            errno.EINVAL, f"{format_address(address)}: only a tunnel goes to another family"
        )


def _is_unicast(address: bytes) -> bool:
    """Whether a real server may have this address."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_multicast or parsed.is_unspecified:
        return False
    return parsed.version == 4 or not parsed.is_link_local
