"""Make a director from a pair file.

The pair file speaks of tables and names, the director of identities and options; here one
becomes the other. What the file could not be told alone, the director's own rules find now:
its refusal becomes a `ConfigError` that names the service.
"""

import random
from collections.abc import Iterator
from typing import Final

from lvsha.config import Pair, Server, Service
from lvsha.config_services import TunnelTable
from lvsha.config_telling import Tell
from lvsha.datapath.director import Director
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.scheduler_options import Dice
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.service_policy import NEVER, ServicePolicy, TellRule, TellWhen, Unknown
from lvsha.datapath.service_table import NO_SCHEDULER
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.errors import AdministrationError, ConfigError

_FLAGS: Final = {1: "fallback", 2: "port"}
"""What the flags by number mean to the schedulers sh and mh."""


def build_director(pair: Pair, dice: Dice | None = None) -> Director:
    """A director with the services of a pair file, holding no virtual router's address.

    Args:
        pair: the pair file.
        dice: where its random numbers come from; by default from the machine.

    Raises:
        ConfigError: a scheduler is unknown, or the director refuses something.
    """
    default = default_policy(pair)
    director = Director(
        connections_max=pair.limits.connections,
        fragment_bytes=pair.limits.fragment_bytes,
        dice=random.SystemRandom() if dice is None else dice,
        reporting=default.tell if default.asked else None,
        unknown=default.unknown,
        settings=pair.settings,
    )
    director.set_timeouts(
        tcp=pair.timeouts.tcp, tcp_fin=pair.timeouts.tcp_fin, udp=pair.timeouts.udp
    )
    director.services.seed = pair.scheduling.seed
    director.marks.set(list(mark_rules(pair)))
    for service in pair.services:
        _add(director, service, service_policy(service, default))
    for router in pair.virtual_routers:
        for placed in router.addresses:
            director.hold(placed.address.ip.packed, held=False)
    return director


def _add(director: Director, service: Service, policy: ServicePolicy) -> None:
    if service.scheduler not in SCHEDULERS and service.scheduler != NO_SCHEDULER:
        raise ConfigError(
            f"services.{service.name}.scheduler: expected one of {', '.join(SCHEDULERS)} or "
            f"{NO_SCHEDULER}, not {service.scheduler!r}"
        )
    identity = service_identity(service)
    try:
        director.services.add(identity, service_options(service), service.name, policy)
        for server in service.servers:
            director.services.add_server(
                identity,
                server.address.packed,
                service.port_of(server),
                server_options(service, server),
            )
    except AdministrationError as error:
        raise ConfigError(f"services.{service.name}: {error}") from error


def default_policy(pair: Pair) -> ServicePolicy:
    """The policy of services for which the file says nothing, and of those it does not have.

    Where nobody is told of connections, nobody could be asked about one either; in the
    kernel's protocol there are no questions.
    """
    if pair.sync is None or not pair.virtual_routers:
        return ServicePolicy(NEVER, Unknown.RESET, asked=False)
    unknown = Unknown.ASK if pair.sync.format == "lvsha" else Unknown.RESET
    return ServicePolicy(tell_rule(pair.sync.tell), unknown)


def service_policy(service: Service, default: ServicePolicy) -> ServicePolicy:
    """The policy of a service of the file."""
    return ServicePolicy(
        default.tell if service.tell is None else tell_rule(service.tell),
        default.unknown if service.unknown is None else Unknown(service.unknown),
        asked=default.asked or service.tell is not None,
    )


def tell_rule(tell: Tell) -> TellRule:
    """A rule of the file; what it gives in milliseconds becomes seconds."""
    if tell.packets is not None:
        return TellRule(TellWhen.PACKETS, packets=tell.packets)
    if tell.after_ms is not None:
        return TellRule(TellWhen.DELAY, delay=tell.after_ms / 1000)
    return TellRule(TellWhen(tell.when))


def service_identity(service: Service) -> ServiceIdentity:
    """What a service of the file is known by."""
    return ServiceIdentity(
        family=service.ip_version,
        protocol=service.protocol_number,
        address=b"" if service.address is None else service.address.packed,
        port=service.default_port,
        mark=service.mark or 0,
    )


def service_options(service: Service) -> ServiceOptions:
    """The options of a service of the file; flags by number become those by name."""
    named = {f"flag-{number}": f"{service.scheduler}-{name}" for number, name in _FLAGS.items()}
    flags: tuple[str, ...] = service.scheduler_flags
    if service.scheduler in {"sh", "mh"}:
        flags = tuple(named.get(flag, flag) for flag in flags)
    return ServiceOptions(
        scheduler=service.scheduler,
        flags=frozenset(flags),
        persistence=service.persistence,
        netmask=service.netmask,
        one_packet=service.one_packet,
        engine=service.engine or "",
    )


def server_options(service: Service, server: Server) -> ServerOptions:
    """The options of a server of the file."""
    return ServerOptions(
        method=service.method_of(server),
        weight=server.weight,
        upper=server.upper,
        lower=server.lower,
        tunnel=_tunnel(service.tunnel_of(server)),
    )


def _tunnel(table: TunnelTable) -> Tunnel:
    return Tunnel(
        TunnelType[table.type.upper()], table.port or 0, TunnelChecksum[table.checksum.upper()]
    )


def sync_ids(pair: Pair) -> dict[bytes, int]:
    """The sync id of each virtual address that a virtual router moves."""
    return {
        placed.address.ip.packed: router.sync_id
        for router in pair.virtual_routers
        for placed in router.addresses
    }


def mark_sync_ids(pair: Pair) -> dict[int, int]:
    """The sync id of each firewall mark whose templates are synced.

    It is that of the virtual router of which an address lies in the destinations of the
    mark's rules, by the first such rule; else that of the only router there is.
    """
    routers = pair.virtual_routers
    addresses = sync_ids(pair)
    found: dict[int, int] = {}
    for rule in mark_rules(pair):
        for address, sync_id in addresses.items():
            if rule.mark not in found and rule.covers(address):
                found[rule.mark] = sync_id
    if len(routers) == 1:
        for rule in mark_rules(pair):
            found.setdefault(rule.mark, routers[0].sync_id)
    return found


def mark_rules(pair: Pair) -> Iterator[MarkRule]:
    """The rules by which packets get firewall marks, in their order."""
    for mark in pair.marks:
        for number, destination, source, protocol, ports in mark.rules():
            yield MarkRule(number, destination, source, protocol, ports)
