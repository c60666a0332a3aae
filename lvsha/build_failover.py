"""Make of a pair file what moves the addresses of one node.

The pair file speaks of roles of interfaces, which are others on each node; here they are placed.
"""

import math
from collections.abc import Callable, Mapping

import trio

from lvsha.config import Node, Pair, VirtualRouter
from lvsha.failover.addresses import Addresses, InterfaceAddress
from lvsha.failover.election import Election
from lvsha.failover.routes import Route, Rule
from lvsha.failover.series import Series
from lvsha.failover.speaker import PSEUDO_HEADERS, RouterStateChanged, Speaker
from lvsha.failover.transport import AdvertisementTransport
from lvsha.model import VirtualMac


def traffic_interfaces(pair: Pair, node: Node) -> list[str]:
    """All interfaces of a node, but for one that only sync uses."""
    used = {router.interface for router in pair.virtual_routers}
    used |= {role for router in pair.virtual_routers for role in router.roles}
    sync = pair.sync.interface if pair.sync is not None else None
    return [name for role, name in node.interfaces.items() if role != sync or role in used]


def virtual_macs(pair: Pair) -> list[VirtualMac]:
    """The virtual MAC addresses of a pair file, with what is behind each."""
    return [
        VirtualMac(router.mac, frozenset(one.address.ip.packed for one in router.addresses))
        for router in pair.virtual_routers
        if router.mac is not None
    ]


def build_speaker(
    router: VirtualRouter,
    priority: int,
    transport: AdvertisementTransport,
    addresses: Addresses,
    changes: trio.MemorySendChannel[RouterStateChanged],
    *,
    on_change: Callable[[RouterStateChanged], None],
    on_due: Callable[[str], None],
    on_rival: Callable[[str, str, int], None],
) -> Speaker:
    """What speaks for a virtual router, with this priority; for the rest see `Speaker`."""
    election = Election(
        vrid=router.vrid,
        priority=priority,
        interval=router.advert_interval,
        preempt=router.preempt,
        address=transport.source,
        version=router.version,
        preempt_delay=router.preempt_delay,
        startup_delay=router.startup_delay,
        series=Series(router.announce_again, router.announce_every or math.inf),
    )
    return Speaker(
        election,
        transport,
        addresses,
        changes,
        name=router.name,
        virtual_addresses=[
            placed.address.ip.packed
            for placed in router.addresses
            if placed.interface == router.interface
        ],
        pseudo_header=PSEUDO_HEADERS[router.checksum],
        hop_limit_min=router.hop_limit_min,
        speakers=[one.packed for one in router.speakers],
        on_change=on_change,
        on_due=on_due,
        on_rival=on_rival,
    )


def place_addresses(router: VirtualRouter, interfaces: Mapping[str, str]) -> list[InterfaceAddress]:
    """The addresses of a virtual router on a node, whose interfaces have these roles."""
    return [
        InterfaceAddress(interfaces[placed.interface], placed.address)
        for placed in router.addresses
    ]


def place_routes(router: VirtualRouter, interfaces: Mapping[str, str]) -> list[Route]:
    """The routes of a virtual router on a node, whose interfaces have these roles."""
    return [
        Route(
            prefix=route.to,
            gateway=route.via,
            interface=None if route.dev is None else interfaces[route.dev],
            table=route.table,
            metric=route.metric,
            source=route.src,
            onlink=route.onlink,
            type=route.type,
        )
        for route in router.routes
    ]


def place_rules(router: VirtualRouter, interfaces: Mapping[str, str]) -> list[Rule]:
    """The rules of a virtual router on a node, whose interfaces have these roles."""
    return [
        Rule(
            family=rule.family,
            table=rule.table,
            priority=rule.priority,
            source=rule.source,
            destination=rule.to,
            interface=None if rule.iif is None else interfaces[rule.iif],
            mark=rule.fwmark,
        )
        for rule in router.rules
    ]
