"""See to it that the neighbours on the ways of packets are known before a packet needs them.

A frame whose next hop has no link-layer address waits for an answer, and after a takeover all
of them do at once. So the kernel is asked beforehand, on a backup too, for the default gateways,
the real servers, and the ways to clients of the connections that are known.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from lvsha.datapath.connections import SLICE, ConnectionTable
from lvsha.datapath.network import Network, NextHop
from lvsha.datapath.services import VirtualService
from lvsha.model import TEMPLATE_BIT


def warm(
    network: Network, services: Iterable[VirtualService], table: ConnectionTable
) -> Iterator[None]:
    """Ask for every next hop that has no link-layer address; a chore in slices.

    Args:
        network: the mirror.
        services: all of them.
        table: the connections. The clients of one slice are looked at: most are behind a few
            gateways.
    """
    addresses = chain(_servers(services), _clients(table))
    ways = chain(network.default_gateways(), map(network.hop, addresses))
    for number, hop in enumerate(ways, 1):
        if hop is not None:
            _warm(network, hop)
        if not number % SLICE:
            yield


def _warm(network: Network, hop: NextHop) -> None:
    hop.used = True
    if not hop.header:
        network.want(hop)


def _servers(services: Iterable[VirtualService]) -> Iterator[bytes]:
    for service in list(services):
        for server in list(service.servers):
            if server.available:
                yield server.address


def _clients(table: ConnectionTable) -> set[bytes]:
    some = next(table.slices(), [])
    return {one.client[0] for one in some if one.key[0] < TEMPLATE_BIT}
