"""The parts of a pair file that say what is balanced: services, servers, firewall marks.

The rules are those of ipvsadm, which is stricter than the kernel: what it would refuse is a
mistake here too, and so is a key that would have no effect.

All times are seconds.
"""

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lvsha.config_fields import (
    FirewallMark,
    IpAddress,
    IpNetwork,
    Mask,
    Name,
    Port,
    PortOrAll,
    PortRange,
    Table,
    Threshold,
    Weight,
    refuse,
)
from lvsha.config_health import Check, Checks, Health, check_reach
from lvsha.config_telling import TellOrWord
from lvsha.model import ForwardMethod, IPv4_BYTES, Protocol

MARK_RULES_MAX: Final = 10_000
"""Rules that all ``[[marks]]`` together may come to; each is looked at in turn."""

Method = Literal["nat", "dr", "tun"]
Unknown = Literal["kernel", "adopt", "ask", "reset"]
FORWARD_METHODS: Final[Mapping[str, ForwardMethod]] = {
    "nat": ForwardMethod.NAT,
    "dr": ForwardMethod.DIRECT_ROUTE,
    "tun": ForwardMethod.TUNNEL,
}
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "tcp": Protocol.TCP,
    "udp": Protocol.UDP,
    "sctp": Protocol.SCTP,
}

SchedulerFlag = Literal[
    "sh-port", "sh-fallback", "mh-port", "mh-fallback", "flag-1", "flag-2", "flag-3"
]


class TunnelTable(Table):
    """How packets are wrapped on their way to a real server."""

    type: Literal["ipip", "gue", "gre"] = "ipip"
    port: Port | None = None
    checksum: Literal["none", "checksum", "remote"] = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.type == "gue" and self.port is None:
            yield "port: missing; expected the UDP port that the server takes GUE on"
        if self.type != "gue" and self.port is not None:
            yield f"port: expected none, because only gue has a port, not {self.type}"
        if self.type == "ipip" and self.checksum != "none":
            yield 'checksum: expected "none", because ipip has no checksum'
        if self.type == "gre" and self.checksum == "remote":
            yield 'checksum: expected "none" or "checksum", because only gue has "remote"'


class Server(Table):
    """A real server of one service."""

    address: IpAddress
    port: PortOrAll | None = None
    weight: Weight = 1
    upper: Threshold = 0
    lower: Threshold = 0
    method: Method | None = None
    tunnel: TunnelTable | None = None
    checks: Checks | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.lower > self.upper:
            yield f"lower: expected a number up to that of upper ({self.upper})"
        if not _is_unicast(self.address):
            yield f"address: expected a unicast address, not {self.address}"


class Service(Table):
    """A virtual service: what clients connect to."""

    name: Name
    address: IpAddress | None = None
    port: PortOrAll | None = None
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    mark: FirewallMark | None = None
    family: Literal[4, 6] | None = None
    scheduler: Name = "wlc"
    scheduler_flags: tuple[SchedulerFlag, ...] = ()
    persistence: Annotated[int, Field(ge=0, le=31 * 86400)] = 0
    persistence_mask: Mask | None = None
    engine: Literal["sip"] | None = None
    one_packet: bool = False
    method: Method = "nat"
    tunnel: TunnelTable | None = None
    tell: TellOrWord | None = None
    unknown: Unknown | None = None
    checks: Checks = ()
    health: Health = Health()
    sorry_server: Server | None = None
    servers: Annotated[tuple[Server, ...], Field(max_length=4096)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse([*self._identity_problems(), *self._option_problems(), *self._health_problems()])
        return self

    def _identity_problems(self) -> Iterator[str]:
        if self.mark is not None:
            for key in ("address", "port", "protocol"):
                if key in self.model_fields_set:
                    yield f"{key}: expected none, because the mark says what the service is for"
            return
        if self.address is None:
            yield "address: missing; expected an IP address, or a mark instead"
        elif self.family not in {None, self.address.version}:
            yield f"family: expected {self.address.version} or none, because of the address"
        if self.port is None:
            yield "port: missing; expected 1 to 65535, or 0 for all ports"
        elif self.port == 0 and not self.persistence:
            yield "port: expected 1 to 65535, because 0 (all ports) needs persistence"

    def _option_problems(self) -> Iterator[str]:
        for flag in self.scheduler_flags:
            owner, _, _ = flag.partition("-")
            if owner != "flag" and owner != self.scheduler:
                yield f"scheduler_flags: expected {flag} only with the scheduler {owner}"
        for key in ("persistence_mask", "engine"):
            if getattr(self, key) is not None and not self.persistence:
                yield f"{key}: expected none, because persistence is 0"
        if self.persistence_mask is not None:
            yield from self._mask_problems()
        if self.protocol != "udp" and self.mark is None:
            if self.one_packet:
                yield "one_packet: expected false, because the service is not UDP"
            if self.engine is not None:
                yield f"engine: expected none, because {self.engine} is for UDP"
        if self.protocol == "udp" and self.unknown is not None:
            yield "unknown: expected none, because every datagram may open a connection"
        if self.tell is not None and self.tell.when == "templates" and not self.persistence:
            yield 'tell: expected another rule, such as "never", because persistence is 0'

    def _mask_problems(self) -> Iterator[str]:
        if isinstance(self.persistence_mask, int):
            if self.ip_version == 4 and self.persistence_mask > 32:
                yield "persistence_mask: expected 1 to 32, because the service is of IPv4"
        elif self.ip_version == 6:
            yield "persistence_mask: expected 1 to 128, because the service is of IPv6"

    def _health_problems(self) -> Iterator[str]:
        if not self.is_checked:
            for key in ("health", "sorry_server"):
                if key in self.model_fields_set:
                    yield f"{key}: expected none, because no server has checks"
            return
        if self.health.slow_start and all(server.weight < 2 for server in self.servers):
            yield "health: expected no slow_start, because no server has a weight that could grow"
        waits = self.health.on_failure == "remove" or self.sorry_server is not None
        if self.health.drain and not waits:
            yield 'health: expected no drain, which is for on_failure = "remove" and sorry_server'
        if self.sorry_server is not None and (
            self.sorry_server.checks is not None or not self.sorry_server.weight
        ):
            yield "sorry_server: expected no checks, and a weight of 1 or more"

    def checks_of(self, server: Server) -> Checks:
        """What is tried on a server: its own checks, or the service's."""
        return self.checks if server.checks is None else server.checks

    @property
    def is_checked(self) -> bool:
        """Whether any server is."""
        return any(self.checks_of(server) for server in self.servers)

    def all_checks(self) -> Iterator[tuple[int, int, Server, Check]]:
        """Each check with the numbers of its server and of itself."""
        for place, server in enumerate(self.servers):
            for number, check in enumerate(self.checks_of(server)):
                yield place, number, server, check

    @property
    def ip_version(self) -> int:
        """4 or 6: the family of its clients."""
        return self.address.version if self.address is not None else self.family or 4

    @property
    def protocol_number(self) -> Protocol:
        """The IP protocol number; TCP for a mark, as the kernel says."""
        return PROTOCOLS[self.protocol]

    @property
    def default_port(self) -> int:
        """The port of a server that names none; 0 for the port of the packet."""
        return self.port or 0

    @property
    def netmask(self) -> bytes:
        """What of a client's address persistence looks at; empty for all of it."""
        mask = self.persistence_mask
        if mask is None:
            return b""
        if not isinstance(mask, int):
            return mask.packed
        bits = 32 if self.ip_version == 4 else 128
        return ((1 << bits) - (1 << bits - mask)).to_bytes(bits // 8)

    def method_of(self, server: Server) -> ForwardMethod:
        """The forwarding method of a server: its own, or the service's."""
        return FORWARD_METHODS[server.method or self.method]

    def port_of(self, server: Server) -> int:
        """The port of a server: its own, or the service's."""
        return self.default_port if server.port is None else server.port

    def tunnel_of(self, server: Server) -> TunnelTable:
        """The tunnel to a server: its own, or the service's."""
        return server.tunnel or self.tunnel or TunnelTable()


def _one_or_more(value: object) -> object:
    """Accept one value where a list of them may stand."""
    return value if isinstance(value, list) else [value]


Prefixes = Annotated[tuple[IpNetwork, ...], BeforeValidator(_one_or_more), Field(max_length=1024)]

PlainMarkRule = tuple[int, tuple[bytes, int], tuple[bytes, int] | None, int, tuple[PortRange, ...]]
"""Mark, destination prefix, source prefix, protocol number (0: any), port ranges."""


class Mark(Table):
    """Which packets get a firewall mark."""

    mark: FirewallMark
    destinations: Annotated[Prefixes, Field(min_length=1)]
    sources: Prefixes = ()
    protocol: Literal["tcp", "udp", "sctp"] | None = None
    ports: Annotated[
        tuple[PortRange, ...], BeforeValidator(_one_or_more), Field(max_length=1024)
    ] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.ports and self.protocol is None:
            yield "ports: expected none, because no protocol is named that has ports"
        families = {prefix.version for prefix in self.destinations}
        for prefix in self.sources:
            if prefix.version not in families:
                yield f"sources: expected prefixes of the destinations' family, not {prefix}"

    def rules(self) -> Iterator[PlainMarkRule]:
        """The rules that this table stands for, one for each pair of prefixes."""
        protocol = 0 if self.protocol is None else int(PROTOCOLS[self.protocol])
        for destination in self.destinations:
            sources: list[IpNetwork | None] = [None]
            if self.sources:
                sources = [each for each in self.sources if each.version == destination.version]
            for source in sources:
                yield (
                    self.mark,
                    _plain(destination),
                    None if source is None else _plain(source),
                    protocol,
                    self.ports,
                )


def _plain(prefix: IpNetwork) -> tuple[bytes, int]:
    return prefix.network_address.packed, prefix.prefixlen


def _is_unicast(address: IpAddress) -> bool:
    """Whether a packet can be sent to one host at this address, from whichever link."""
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
        return False
    if address == _BROADCAST:
        return False
    return not (address.is_multicast or address.is_unspecified)


def check_services(services: Sequence[Service], marks: Sequence[Mark]) -> Iterable[str]:
    """Mistakes that only show when several tables are looked at together."""
    identities: dict[object, str] = {}
    rules = [rule for mark in marks for rule in mark.rules()]
    given = {(4 if len(rule[1][0]) == IPv4_BYTES else 6, rule[0]) for rule in rules}
    for service in services:
        where = f"services.{service.name}"
        identity: object = (service.protocol, service.address, service.port)
        if service.mark is not None:
            identity = (service.ip_version, service.mark)
            if identity not in given:
                yield (
                    f"{where}.mark: expected a mark that [[marks]] gives to packets of "
                    f"IPv{service.ip_version}, not {service.mark}"
                )
        other = identities.setdefault(identity, service.name)
        if other != service.name:
            what = "protocol, address and port" if service.mark is None else "mark"
            yield f"{where}: expected a {what} that {other!r} does not use"
        yield from _check_servers(service, where)
    if len(rules) > MARK_RULES_MAX:
        yield (
            f"marks: expected at most {MARK_RULES_MAX} pairs of destination and source, "
            f"but there are {len(rules)}"
        )


def _check_servers(service: Service, where: str) -> Iterable[str]:
    sorry = () if service.sorry_server is None else (service.sorry_server,)
    servers = (*service.servers, *sorry)
    endpoints = Counter((server.address, service.port_of(server)) for server in servers)
    for (address, port), count in endpoints.items():
        if count > 1:
            yield (
                f"{where}.servers: expected each server once, but "
                f"{address} port {port} stands there {count} times"
            )
    methods = {service.method_of(server) for server in servers}
    if service.tunnel is not None and ForwardMethod.TUNNEL not in methods:
        yield f'{where}.tunnel: expected none, because no server has the method "tun"'
    for server in servers:
        yield from _check_server(service, server, f"{where}.servers {server.address}")


def _check_server(service: Service, server: Server, where: str) -> Iterable[str]:
    method = service.method_of(server)
    if server.address.version != service.ip_version and method is not ForwardMethod.TUNNEL:
        yield (
            f"{where}: expected an IPv{service.ip_version} address, "
            "because only a tunnel leads to the other family"
        )
    if server.tunnel is not None and method is not ForwardMethod.TUNNEL:
        yield f'{where}.tunnel: expected none, because the method is not "tun"'
    if server.port is None or server.port == service.port or service.mark is not None:
        return
    if method is not ForwardMethod.NAT:
        yield (
            f"{where}.port: expected {service.port} or none, because only NAT can change the port"
        )
    elif server.port == 0:
        yield f"{where}.port: expected 1 to 65535, because the service has one port"


def check_checks(service: Service, roles: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Mistakes of a service's checks that only show when other tables are looked at.

    Args:
        service: which.
        roles: the roles of the interfaces of each node.
    """
    for _, number, server, check in service.all_checks():
        place = f"services.{service.name}.servers {server.address}.checks[{number}]"
        for problem in check_reach(check, server.address, service.port_of(server), roles):
            yield f"{place}.{problem}"
