"""Which packets are the director's, and so must not reach the host's own stack.

`Claims` are what the services, marks and real servers of a director ask for, as plain sets:
the socket filter and the interception rules are made from them, and `takes` says of a
packet what those rules did with it.

Some claims are wider than they need to be, because no rule can know what only a connection
knows: which ports an FTP server's data connections have, or which of a real server's own
connections do not belong to a service that stands for all ports. What such a claim takes
and the director does not want is handed back to the host. So the rule that always holds is:
a packet is dealt with by the director or by the host, never by both and never by neither.

The layout of an end is protocol, address, port in network order; that of a whole, protocol
and address.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.ftp import FTP_DATA_PORT, FTP_PORT
from lvsha.datapath.marks import MarkRule, whole
from lvsha.datapath.network import is_loopback
from lvsha.datapath.service_table import UNPRIVILEGED_PORT
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import ForwardMethod, IPv4_BYTES, Protocol, connection_key

PORT_MAX: Final = 65_535
FTP_DATA_PORTS: Final = ((FTP_DATA_PORT, FTP_DATA_PORT), (UNPRIVILEGED_PORT, PORT_MAX))
"""Where the data connections of an FTP service may go to; the kernel looks there too."""
KEY_EXCHANGE_PORT: Final = 500
"""Of ISAKMP (RFC 2408), whose connection AH and ESP follow."""
WITH_PORTS: Final = (int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP))
SECURED: Final = (int(Protocol.ESP), int(Protocol.AH))

_TCP: Final = int(Protocol.TCP)
_UDP: Final = int(Protocol.UDP)
_TCP_BYTE: Final = bytes((_TCP,))
_FTP_PORT_BYTES: Final = FTP_DATA_PORT.to_bytes(2)
_UNPRIVILEGED_BYTES: Final = UNPRIVILEGED_PORT.to_bytes(2)


@dataclass(frozen=True, slots=True)
class MarkClaim:
    """What a rule for firewall marks means for its packets; the first that fits decides.

    Attributes:
        rule: of which destination, source and ports count.
        protocols: IP protocol numbers that it is about.
        taken: whether a service has this mark; otherwise the search ends here.
    """

    rule: MarkRule
    protocols: tuple[int, ...]
    taken: bool

    def fits(self, protocol: int, key: bytes) -> bool:
        """Whether it decides about a packet of this protocol and key."""
        return protocol in self.protocols and self.rule.fits(key)


@dataclass(frozen=True, slots=True)
class Claims:
    """What is taken from the host.

    Attributes:
        services: ends of virtual services.
        whole_services: wholes of services for all ports; and, of AH and ESP, of those whose
            key exchange is a service's.
        ftp: virtual addresses with an FTP service, of which all ports of FTP are taken.
        marks: rules for firewall marks.
        servers: ends of NAT servers, whose packets to others than this host are taken.
        whole_servers: wholes of NAT servers whose ports are not known beforehand.
        local_servers, local_whole_servers: those of them that are on this host.
        passing: virtual addresses whose replies pass elsewhere, but perhaps here.
        addresses: of all real servers.
        removed: servers are among them that are listed no more and still have connections.
    """

    services: frozenset[bytes] = frozenset()
    whole_services: frozenset[bytes] = frozenset()
    ftp: frozenset[bytes] = frozenset()
    marks: tuple[MarkClaim, ...] = ()
    servers: frozenset[bytes] = frozenset()
    whole_servers: frozenset[bytes] = frozenset()
    local_servers: frozenset[bytes] = frozenset()
    local_whole_servers: frozenset[bytes] = frozenset()
    passing: frozenset[bytes] = frozenset()
    addresses: frozenset[bytes] = frozenset()
    removed: bool = False

    @property
    def too_wide(self) -> bool:
        """Whether what is taken may have to be handed back."""
        return bool(
            self.removed
            or self.ftp
            or self.whole_servers
            or any(whole[0] in SECURED for whole in self.whole_services)
            or any(claim.taken and claim.protocols == SECURED for claim in self.marks)
        )

    def takes(self, frame: Frame, is_local: Callable[[bytes], bool]) -> bool:
        """Whether the rules take this packet, which has been read and is whole."""
        key = frame.key
        if not key or not frame.protocol:
            return False
        size = (len(key) - 6) // 2
        number = frame.protocol
        protocol = bytes((number,))
        source, destination = key[2 : 2 + size], key[2 + size : 2 + 2 * size]
        aim = protocol + destination
        if aim in self.whole_services or aim + key[-2:] in self.services:
            return True
        if destination in self.ftp and protocol == _TCP_BYTE and _may_be_data(key[-2:]):
            return True
        for claim in self.marks:
            if claim.fits(number, key):
                if claim.taken:
                    return True
                break
        origin = protocol + source
        return (origin in self.whole_servers or origin + key[-4:-2] in self.servers) and (
            not is_local(destination)
        )


def _may_be_data(port: bytes) -> bool:
    return port >= _UNPRIVILEGED_BYTES or port == _FTP_PORT_BYTES


def claims_of(director: Director, *, removed: bool = True) -> Claims:
    """What the services, marks and servers of a director ask for now.

    Args:
        director: whose.
        removed: whether servers that are listed no more and still have connections count.
    """
    found = _Collection(director)
    # Connections that outlive their server are not the host's to answer.
    left = director.services.left_with_connections() if removed else {}
    for service, servers in (*left.items(), *((s, s.servers) for s in director.services)):
        if service.identity.mark:
            found.add_marked(service, servers)
        else:
            found.add(service, servers)
    found.add_marks()
    return replace(found.claims(), removed=bool(left))


def has_local_server(claims: Claims, is_local: Callable[[bytes], bool]) -> bool:
    """Whether a real server, whatever its method, is on this host."""
    return any(map(is_local, claims.addresses))


def filter_addresses(claims: Claims) -> tuple[set[bytes], set[bytes]] | None:
    """The addresses that a socket filter must pass as destination, and as source.

    None where there are marks for more than single addresses: everything may be wanted.
    """
    taken = [claim.rule.destination for claim in claims.marks if claim.taken]
    if any(prefix != whole(prefix[0]) for prefix in taken):
        return None
    destinations = {end[1:-2] for end in claims.services}
    destinations |= {whole[1:] for whole in claims.whole_services}
    destinations |= claims.ftp | {address for address, _ in taken}
    sources = {end[1:-2] for end in claims.servers}
    sources |= {whole[1:] for whole in claims.whole_servers} | claims.passing
    return destinations, sources


def _end(protocol: int, address: bytes, port: int) -> bytes:
    return bytes((protocol,)) + address + port.to_bytes(2)


def _whole(protocol: int, address: bytes) -> bytes:
    return bytes((protocol,)) + address


def _protocols(rule: MarkRule) -> tuple[int, ...]:
    """The protocols with ports that a rule is about."""
    if not rule.protocol:
        return WITH_PORTS
    return (rule.protocol,) if rule.protocol in WITH_PORTS else ()


def _covers(rule: MarkRule, protocol: int, port: int) -> bool:
    """Whether a rule gives its mark to some packets of a protocol and port."""
    somebody = (rule.source or (bytes(len(rule.destination[0])), 0))[0]
    return rule.fits(connection_key(protocol, somebody, port, rule.destination[0], port))


class _Collection:
    """Claims in the making."""

    def __init__(self, director: Director) -> None:
        self._network = director.network
        self._rules = director.marks.rules
        self._marked: dict[tuple[int, int], VirtualService] = {}
        self._mark_servers: dict[VirtualService, list[RealServer]] = {}
        self._services: set[bytes] = set()
        self._whole_services: set[bytes] = set()
        self._ftp: set[bytes] = set()
        self._marks: list[MarkClaim] = []
        self._servers: set[bytes] = set()
        self._whole_servers: set[bytes] = set()
        self._passing: set[bytes] = set()
        self._addresses: set[bytes] = set()

    def add(self, service: VirtualService, servers: Collection[RealServer]) -> None:
        """A service by address and port."""
        protocol, address, port = service.protocol, service.address, service.port
        if port:
            self._services.add(_end(protocol, address, port))
        else:
            self._whole_services.add(_whole(protocol, address))
        is_ftp = protocol == _TCP and port == FTP_PORT
        # Without persistence or NAT nothing connects a data connection with its control.
        if is_ftp and (service.options.persistence or any(_nat_servers(servers))):
            self._ftp.add(address)
        if protocol == _UDP and port in {0, KEY_EXCHANGE_PORT}:
            self._whole_services.update(_whole(secured, address) for secured in SECURED)
        if any(server.method is not ForwardMethod.NAT for server in servers):
            self._passing.add(address)
        self._add_servers(servers, (protocol,), all_ports=not port, ftp=is_ftp)

    def add_marked(self, service: VirtualService, servers: Collection[RealServer]) -> None:
        """A service by firewall mark."""
        identity = service.identity
        self._marked[identity.family, identity.mark] = service
        self._mark_servers.setdefault(service, []).extend(servers)
        rules = [
            rule
            for rule in self._rules
            if rule.mark == identity.mark and _family(rule) == identity.family
        ]
        self._add_servers(
            servers,
            tuple(dict.fromkeys(number for rule in rules for number in _protocols(rule))),
            all_ports=bool(service.options.persistence),
            ftp=any(_covers(rule, _TCP, FTP_PORT) for rule in rules),
        )
        if any(server.method is not ForwardMethod.NAT for server in servers):
            self._passing.update(
                rule.destination[0]
                for rule in rules
                if rule.destination == whole(rule.destination[0])
            )

    def add_marks(self) -> None:
        """The rules, once all services are known."""
        extra: list[MarkClaim] = []
        for rule in self._rules:
            service = self._marked.get((_family(rule), rule.mark))
            protocols = _protocols(rule)
            if protocols:
                taken = service is not None
                self._marks.append(MarkClaim(rule, protocols, taken))
            if service is None:
                continue
            if _covers(rule, _UDP, KEY_EXCHANGE_PORT):
                extra.append(MarkClaim(replace(rule, protocol=0, ports=()), SECURED, taken=True))
            if _covers(rule, _TCP, FTP_PORT) and any(_nat_servers(self._mark_servers[service])):
                extra.append(MarkClaim(replace(rule, ports=FTP_DATA_PORTS), (_TCP,), taken=True))
        self._marks = extra + self._marks

    def _add_servers(
        self,
        servers: Collection[RealServer],
        protocols: tuple[int, ...],
        *,
        all_ports: bool,
        ftp: bool,
    ) -> None:
        self._addresses.update(server.address for server in servers)
        for server in _nat_servers(servers):
            for protocol in protocols:
                if all_ports or not server.port:
                    self._whole_servers.add(_whole(protocol, server.address))
                else:
                    self._servers.add(_end(protocol, server.address, server.port))
            if ftp:
                self._whole_servers.add(_whole(_TCP, server.address))
            if _UDP in protocols and (all_ports or server.port in {0, KEY_EXCHANGE_PORT}):
                self._whole_servers.update(_whole(secured, server.address) for secured in SECURED)

    def claims(self) -> Claims:
        """What was collected."""
        return Claims(
            services=frozenset(self._services),
            whole_services=frozenset(self._whole_services),
            ftp=frozenset(self._ftp),
            marks=tuple(self._marks),
            servers=frozenset(self._servers),
            whole_servers=frozenset(self._whole_servers),
            local_servers=frozenset(e for e in self._servers if self._is_here(e[1:-2])),
            local_whole_servers=frozenset(w for w in self._whole_servers if self._is_here(w[1:])),
            passing=frozenset(self._passing),
            addresses=frozenset(self._addresses),
        )

    def _is_here(self, address: bytes) -> bool:
        return self._network.is_local(address) and not is_loopback(address)


def _nat_servers(servers: Collection[RealServer]) -> Iterator[RealServer]:
    return (server for server in servers if server.method is ForwardMethod.NAT)


def _family(rule: MarkRule) -> int:
    return 4 if len(rule.destination[0]) == IPv4_BYTES else 6
