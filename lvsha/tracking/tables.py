"""What trackers find in the director's own tables: links, addresses, routes, real servers.

These are readings of what is known already: the mirror of the kernel's network, and the
services as they run. Nothing is asked of anybody.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from lvsha.datapath.network import Network
from lvsha.datapath.services import VirtualService
from lvsha.failover.tracking import Reading
from lvsha.model import IPv4_BYTES, IPv6_BYTES

_LENGTH_OF: Final = {4: IPv4_BYTES, 6: IPv6_BYTES}


def read_interface(
    network: Network, name: str, families: Sequence[int] = (), virtual: Collection[bytes] = ()
) -> Reading:
    """Whether a link is up, and has an address of its own of each family.

    Args:
        network: the mirror.
        name: of the interface.
        families: 4, 6, both, or none.
        virtual: addresses that come and go with virtual routers and are not its own.
    """
    link = network.link_named(name)
    if link is None or not link.up:
        return Reading(
            up=False, detail=f"interface {name} is {'down' if link is not None else 'missing'}"
        )
    own = [address for address in network.addresses(link.index) if address not in virtual]
    for family in families:
        if not any(len(address) == _LENGTH_OF[family] for address in own):
            return Reading(up=False, detail=f"interface {name} has no IPv{family} address")
    return Reading(up=True)


def read_route(
    network: Network,
    prefix: bytes,
    prefix_length: int,
    *,
    via: bytes = b"",
    interface: str | None = None,
    shown: str,
) -> Reading:
    """Whether there is a route for exactly this prefix, over a link that is up.

    Args:
        network: the mirror.
        prefix: the network address.
        prefix_length: of it.
        via: the gateway it must have; empty for any, or none.
        interface: the one it must lead to; None for any.
        shown: the route as people write it.
    """
    for route in network.routes(prefix, prefix_length):
        link = network.links.get(route.link)
        if (
            not route.unreachable
            and link is not None
            and link.up
            and via in {b"", route.gateway}
            and interface in {None, link.name}
        ):
            return Reading(up=True)
    return Reading(up=False, detail=f"no route to {shown}")


def read_quorum(
    services: Iterable[VirtualService],
    names: Sequence[str],
    *,
    servers: int | None,
    share: float | None,
) -> Reading:
    """Whether each named service has enough real servers with a weight above 0.

    Args:
        services: all that run.
        names: of those that are looked at; one that does not run has no servers.
        servers: how many it takes.
        share: or what share of all, above 0; it takes one at least.
    """
    found = {service.name: service for service in services if service.name in names}
    for name in names:
        service = found.get(name)
        total = 0 if service is None else len(service.servers)
        good = 0 if service is None else sum(server.weight > 0 for server in service.servers)
        # A share of 0.7 of 10 is 7, not the 8 that 0.7 * 10 = 7.000000000000001 would give.
        wanted = servers or max(1, math.ceil((share or 0) * total - 1e-9))
        if good < wanted:
            return Reading(
                up=False, detail=f"service {name} has {good} of {total} servers, needs {wanted}"
            )
    return Reading(up=True)
