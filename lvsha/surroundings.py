"""The network around a director in a replay: what its host would have learned.

The ``[replay]`` table of the pair file says it. Without one it is made up so that every
packet finds a way: the node's interfaces with an MTU of 1500, the virtual routers' and
services' addresses as the host's own, every real server on a link, and behind a gateway
everybody else. Made-up hardware addresses begin with ``02``, which no maker has.

A replay's director is the master of every virtual router.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

from lvsha.config import IpInterface, Pair, Replay
from lvsha.config_replay import ReplayInterface
from lvsha.datapath.director import Director
from lvsha.datapath.network import (
    AddressChange,
    LinkChange,
    NeighbourChange,
    NetworkChange,
    Outgoing,
    RouteChange,
)
from lvsha.model import IPv4_BYTES

MADE_UP_MAX: Final = 65_536
"""Neighbours with made-up addresses that are remembered; the oldest are forgotten."""

_GATEWAYS: Final = {"0.0.0.0/0": "192.0.0.8", "::/0": "fe80::1"}
"""Who stands for everybody else: the dummy address of RFC 7600, and a link-local one."""


def made_up_mac(address: bytes) -> bytes:
    """A hardware address for a neighbour, the same every time."""
    if len(address) == IPv4_BYTES:
        return b"\x02\x00" + address
    return b"\x02" + hashlib.blake2b(address, digest_size=5).digest()


class Surroundings:
    """The network that a director is put into.

    Args:
        director: told everything that its host would learn.
        pair: the pair file.
        node: which of its nodes this is.

    Attributes:
        links: indices of interfaces by name, in the order of the file; `names` the other way.
        macs: interfaces by hardware address; only those that the file gives one.
    """

    def __init__(self, director: Director, pair: Pair, node: str) -> None:
        self._director = director
        self._roles: Mapping[str, str] = pair.nodes[node].interfaces
        replay = pair.replay if pair.replay is not None else self._made_up(pair)
        self._answers = replay.unknown_neighbours == "made-up"
        self._silent = {
            neighbour.address.packed for neighbour in replay.neighbours if neighbour.mac is None
        }
        self._learned: OrderedDict[tuple[int, bytes], None] = OrderedDict()
        self.names = {number: each.name for number, each in enumerate(replay.interfaces, 1)}
        self.links = {name: index for index, name in self.names.items()}
        self.macs = {
            parse_mac(each.mac): each.name for each in replay.interfaces if each.mac is not None
        }
        for change in self._changes(pair, replay):
            director.learn(change)
        for router in pair.virtual_routers:
            for placed in router.addresses:
                director.hold(placed.address.ip.packed, held=True)
        director.keep_ways_warm()
        self.answer()

    def _made_up(self, pair: Pair) -> Replay:
        """A ``[replay]`` table for a file that has none."""
        names = list(dict.fromkeys(self._roles.values())) or ["eth0"]
        placed = [each.address for router in pair.virtual_routers for each in router.addresses]
        services = {each.address for each in pair.services} - {each.ip for each in placed}
        servers = dict.fromkeys(server.address for each in pair.services for server in each.servers)
        routes = [{"prefix": prefix, "via": via} for prefix, via in _GATEWAYS.items()]
        routes += [
            {"prefix": str(address)}
            for address in servers
            if not any(address in each.network for each in placed)
        ]
        interfaces = [{"name": name, "addresses": ()} for name in names]
        interfaces[0]["addresses"] = tuple(sorted(str(each) for each in services if each))
        return Replay.model_validate(
            {
                "interfaces": interfaces,
                "routes": [{"interface": names[0], **route} for route in routes],
            }
        )

    def _changes(self, pair: Pair, replay: Replay) -> Iterator[NetworkChange]:
        for interface in replay.interfaces:
            yield LinkChange(
                self.links[interface.name],
                interface.name,
                self._mac_of(interface),
                interface.mtu,
                up=True,
            )
        for name, address in self._own_addresses(pair, replay):
            yield from self._connected(self.links[name], address)
        for route in replay.routes:
            via = b"" if route.via is None else route.via.packed
            yield _route(
                route.prefix.network_address.packed,
                route.prefix.prefixlen,
                self.links[route.interface],
                gateway=via,
            )
        for neighbour in replay.neighbours:
            mac = b"" if neighbour.mac is None else parse_mac(neighbour.mac)
            link = self.links[neighbour.interface]
            yield NeighbourChange(link, neighbour.address.packed, mac, failed=not mac)

    def _mac_of(self, interface: ReplayInterface) -> bytes:
        if interface.mac is not None:
            return parse_mac(interface.mac)
        return made_up_mac(self.links[interface.name].to_bytes(4))

    def _own_addresses(self, pair: Pair, replay: Replay) -> Iterator[tuple[str, IpInterface]]:
        """The host's addresses, each with the name of its interface."""
        first = replay.interfaces[0].name
        for interface in replay.interfaces:
            for address in interface.addresses:
                yield interface.name, address
        placed = [each for router in pair.virtual_routers for each in router.addresses]
        for virtual in placed:
            name = self._roles[virtual.interface]
            yield name if name in self.links else first, virtual.address

    def _connected(self, link: int, address: IpInterface) -> Iterator[NetworkChange]:
        yield AddressChange(link, address.ip.packed, present=True)
        network = address.network
        yield _route(network.network_address.packed, network.prefixlen, link)

    def mac(self, name: str) -> bytes:
        """The hardware address of an interface."""
        return self._director.network.links[self.links[name]].mac

    def mtu(self, name: str) -> int:
        """The MTU of an interface, in bytes."""
        return self._director.network.links[self.links[name]].mtu

    def answer(self) -> list[Outgoing]:
        """Be the neighbours that the director asks for; returns frames that waited for them."""
        released: list[Outgoing] = []
        wanted = self._director.network.wanted
        while wanted:
            (link, address), _ = wanted.popitem()
            silent = not self._answers or address in self._silent
            mac = b"" if silent else made_up_mac(address)
            released += self._director.learn(NeighbourChange(link, address, mac, failed=silent))
            if not silent:
                self._remember(link, address)
        return released

    def _remember(self, link: int, address: bytes) -> None:
        self._learned[link, address] = None
        if len(self._learned) > MADE_UP_MAX:
            (link, oldest), _ = self._learned.popitem(last=False)
            self._director.learn(NeighbourChange(link, oldest, b""))


def _route(prefix: bytes, length: int, link: int, gateway: bytes = b"") -> RouteChange:
    return RouteChange(prefix, length, link, gateway=gateway, source=b"", metric=0, present=True)


def parse_mac(text: str) -> bytes:
    """The bytes of a hardware address that the pair file's reader has let pass."""
    return bytes.fromhex(text.replace(":", ""))
