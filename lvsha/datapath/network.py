"""What the director knows of the host's network: links, routes, neighbours, own addresses.

This is a mirror of the kernel's tables, fed with changes (`LinkChange` and the others) by
a shell that reads netlink, or from a configuration in a replay. The kernel stays the
authority: nothing here is ever written back. A look-up is a longest-prefix match over the
main table and is remembered by destination; any change of links or routes forgets what
was remembered, by a new `generation`.

Frames whose next hop has no link-layer address yet wait in a short queue of that hop, and
the hop is put on the list of those that the kernel is asked to resolve.

What it is not: policy routing (rules that choose other tables) and multipath weights are
not mirrored; of several next hops the first is used.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.datapath.reasons import Reason
from lvsha.model import IPv4_BYTES

QUEUE_FRAMES_MAX: Final = 64
"""Frames that wait for one next hop; the kernel's ``unres_qlen`` is of that order."""
WAITING_FRAMES_MAX: Final = 1024
"""Frames that wait for next hops altogether; of super-frames these are 64 MiB."""
REMEMBERED_MAX: Final = 65_536
"""Destinations whose way is remembered; when full, all are forgotten."""
HOPS_MAX: Final = 65_536
"""Next hops; when full, those without a link-layer address are forgotten."""


def is_loopback(address: bytes) -> bool:
    """Whether an address is one of 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or ::1."""
    if len(address) == IPv4_BYTES:
        return address[0] == 127
    return address == bytes(15) + b"\x01"


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link appeared, changed, or went away (``up`` False covers that)."""

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    gone: bool = False


@dataclass(frozen=True, slots=True)
class AddressChange:
    """The host got or lost an address."""

    link: int
    address: bytes
    present: bool


@dataclass(frozen=True, slots=True)
class RouteChange:
    """A route of the main table came or went.

    ``gateway`` is empty for what is on the link itself; ``source`` is the preferred source
    address, empty if the route names none.
    """

    prefix: bytes
    prefix_length: int
    link: int
    gateway: bytes
    source: bytes
    metric: int
    present: bool
    mtu: int = 0
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class NeighbourChange:
    """A neighbour's link-layer address is known (``mac``), or not (empty).

    ``failed``: the kernel tried and got no answer. ``stale``: known, but not confirmed of
    late.
    """

    link: int
    address: bytes
    mac: bytes
    failed: bool = False
    stale: bool = False


NetworkChange = LinkChange | AddressChange | RouteChange | NeighbourChange


@dataclass(slots=True)
class Link:
    """An interface of the host."""

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool


Outgoing = tuple[int, bytes | bytearray | memoryview]
"""A link's index and what to send on it: virtio header and Ethernet frame."""
HOST: Final = 0
"""In place of a link's index: the packet is for this host's own stack."""


class NextHop:
    """A neighbour on a link, as a place to send to.

    Attributes:
        header: destination and source MAC, the first 12 bytes of a frame; empty while the
            neighbour is not resolved.
        mtu: of the link, or of the route where that is smaller.
        source: the host's address towards it, for tunnels.
        used: whether a frame went there since the kernel last called it stale.
        waiting: frames that wait for its link-layer address.
    """

    __slots__ = ("address", "failed", "header", "link", "mtu", "source", "used", "waiting")

    def __init__(self, link: int, address: bytes, mtu: int, source: bytes) -> None:
        self.link = link
        self.address = address
        self.mtu = mtu
        self.source = source
        self.header = b""
        self.failed = False
        self.used = False
        self.waiting: list[bytes] = []


class Network:
    """The mirror.

    Args:
        drops: where frames are counted that waited in vain.

    Attributes:
        generation: changes whenever a remembered way may have become wrong.
        links: by index.
        wanted: next hops that the kernel should resolve; the shell empties it.
    """

    def __init__(self, drops: Counter[Reason]) -> None:
        self._drops = drops
        self.generation = 0
        self.links: dict[int, Link] = {}
        self.wanted: dict[tuple[int, bytes], None] = {}
        self._waiting = 0
        self._addresses: dict[bytes, set[int]] = {}
        self._routes: dict[int, dict[int, dict[bytes, list[RouteChange]]]] = {4: {}, 6: {}}
        self._neighbours: dict[tuple[int, bytes], NeighbourChange] = {}
        self._hops: dict[tuple[int, bytes, int, bytes], NextHop] = {}
        self._hops_of: dict[tuple[int, bytes], list[NextHop]] = {}
        self._remembered: dict[bytes, NextHop | None] = {}
        self._through: dict[int, NextHop] = {}

    def is_local(self, address: bytes) -> bool:
        """Whether an address is the host's own."""
        return address in self._addresses or is_loopback(address)

    def addresses(self, link: int) -> list[bytes]:
        """The host's addresses on a link."""
        return [address for address, links in self._addresses.items() if link in links]

    def link_named(self, name: str) -> Link | None:
        """The link with this name."""
        return next((link for link in self.links.values() if link.name == name), None)

    def routes(self, prefix: bytes, prefix_length: int) -> Sequence[RouteChange]:
        """The routes of the main table for exactly this prefix, the best first."""
        family = 4 if len(prefix) == IPv4_BYTES else 6
        return self._routes[family].get(prefix_length, {}).get(prefix, ())

    def apply(self, change: NetworkChange) -> list[Outgoing]:
        """Take over a change; returns frames that waited for it and may go now."""
        match change:
            case LinkChange():
                self._apply_link(change)
            case AddressChange():
                links = self._addresses.setdefault(change.address, set())
                (links.add if change.present else links.discard)(change.link)
                if not links:
                    del self._addresses[change.address]
                self._forget()
            case RouteChange():
                self._apply_route(change)
            case NeighbourChange():
                return self._apply_neighbour(change)
        return []

    def clear(self) -> None:
        """Forget the mirror, before it is read anew."""
        self.links.clear()
        self._addresses.clear()
        self._routes = {4: {}, 6: {}}
        self._neighbours.clear()
        self._forget()

    def hop(self, destination: bytes) -> NextHop | None:
        """The next hop on the way to an address; None without a route or for own addresses."""
        try:
            return self._remembered[destination]
        except KeyError:
            pass
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        hop = self._remembered[destination] = self._find(destination)
        return hop

    def default_gateways(self) -> Iterator[NextHop]:
        """The next hops of all default routes."""
        for table in self._routes.values():
            for route in [one for routes in table.get(0, {}).values() for one in routes]:
                hop = self._find_through(route, route.gateway) if route.gateway else None
                if hop is not None:
                    yield hop

    def want(self, hop: NextHop) -> None:
        """Ask for a next hop to be resolved or confirmed."""
        self.wanted[hop.link, hop.address] = None

    def hold(self, hop: NextHop, frame: bytes) -> Reason | None:
        """Let a frame wait until its next hop is resolved; returns why it cannot."""
        self.want(hop)
        if hop.failed:
            return Reason.NEIGHBOUR_FAILED
        if len(hop.waiting) >= QUEUE_FRAMES_MAX or self._waiting >= WAITING_FRAMES_MAX:
            return Reason.NEIGHBOUR_QUEUE_FULL
        hop.waiting.append(frame)
        self._waiting += 1
        return None

    def _find(self, destination: bytes) -> NextHop | None:
        route = self._route(destination)
        if route is None or route.unreachable or self.is_local(destination):
            return None
        if route.gateway:
            # All clients may be behind it, and more of them than can be remembered.
            hop = self._through.get(id(route))
            if hop is None and (hop := self._find_through(route, destination)) is not None:
                self._through[id(route)] = hop
            return hop
        return self._find_through(route, destination)

    def _find_through(self, route: RouteChange, destination: bytes) -> NextHop | None:
        link = self.links.get(route.link)
        if link is None:
            return None
        gateway = route.gateway or destination
        mtu = min(link.mtu, route.mtu) if route.mtu else link.mtu
        source = route.source or self._source(link.index, len(destination))
        identity = (link.index, gateway, mtu, source)
        hop = self._hops.get(identity)
        if hop is None:
            self._make_room()
            hop = self._hops[identity] = NextHop(link.index, gateway, mtu, source)
            self._hops_of.setdefault((link.index, gateway), []).append(hop)
            neighbour = self._neighbours.get((link.index, gateway))
            if neighbour is not None and neighbour.mac:
                hop.header = neighbour.mac + link.mac
            else:
                self.want(hop)
        return hop

    def _route(self, destination: bytes) -> RouteChange | None:
        """The longest prefix, and of equal ones the smallest metric, on a link that is up."""
        size = len(destination) * 8
        number = int.from_bytes(destination)
        table = self._routes[4 if len(destination) == IPv4_BYTES else 6]
        for length in table:  # the longest first
            prefix = (number >> size - length << size - length).to_bytes(len(destination))
            for route in table[length].get(prefix, ()):
                link = self.links.get(route.link)
                if route.unreachable or (link is not None and link.up):
                    return route
        return None

    def _source(self, link: int, size: int) -> bytes:
        own = (a for a in self.addresses(link) if len(a) == size and a[:2] != b"\xfe\x80")
        return next(own, b"") or next(
            (a for a in self._addresses if len(a) == size and a[0] != 127), bytes(size)
        )

    def _make_room(self) -> None:
        if len(self._hops) < HOPS_MAX:
            return
        for identity, hop in list(self._hops.items()):
            if not hop.header:
                self._give_up((hop,))
                del self._hops[identity]
        if len(self._hops) >= HOPS_MAX:
            self._hops.clear()
        self._hops_of.clear()
        for hop in self._hops.values():
            self._hops_of.setdefault((hop.link, hop.address), []).append(hop)
        self._forget()

    def _forget(self) -> None:
        self._remembered.clear()
        self._through.clear()
        self.generation += 1

    def _apply_link(self, change: LinkChange) -> None:
        if change.gone:
            self.links.pop(change.index, None)
            for links in self._addresses.values():
                links.discard(change.index)
            self._addresses = {a: links for a, links in self._addresses.items() if links}
            self._neighbours = {k: n for k, n in self._neighbours.items() if k[0] != change.index}
        else:
            self.links[change.index] = Link(
                change.index, change.name, change.mac, change.mtu, change.up
            )
        # The hop's header and MTU may be of the old link, so all hops are found anew.
        self._give_up(self._hops.values())
        self._hops.clear()
        self._hops_of.clear()
        self._forget()

    def _give_up(self, hops: Iterable[NextHop]) -> None:
        """Count the frames that wait for next hops which are forgotten."""
        for hop in hops:
            if hop.waiting:
                self._drops[Reason.NEIGHBOUR_FAILED] += len(hop.waiting)
                self._stop_waiting(hop)

    def _stop_waiting(self, hop: NextHop) -> None:
        self._waiting -= len(hop.waiting)
        hop.waiting.clear()

    def _apply_route(self, change: RouteChange) -> None:
        family = 4 if len(change.prefix) == IPv4_BYTES else 6
        table = self._routes[family]
        if change.prefix_length not in table:
            table[change.prefix_length] = {}
            table = self._routes[family] = dict(sorted(table.items(), reverse=True))
        routes = table[change.prefix_length].setdefault(change.prefix, [])
        routes[:] = [route for route in routes if not _same_route(route, change)]
        if change.present:
            routes.append(change)
            routes.sort(key=lambda route: route.metric)
        if not routes:
            del table[change.prefix_length][change.prefix]
            if not table[change.prefix_length]:
                del table[change.prefix_length]
        self._forget()

    def _apply_neighbour(self, change: NeighbourChange) -> list[Outgoing]:
        identity = (change.link, change.address)
        hops = self._hops_of.get(identity, [])
        if change.mac:
            self._neighbours[identity] = change
        else:
            self._neighbours.pop(identity, None)
        link = self.links.get(change.link)
        released: list[Outgoing] = []
        for hop in hops:
            hop.failed = change.failed
            hop.header = change.mac + link.mac if change.mac and link is not None else b""
            if hop.header:
                released += [(hop.link, _addressed(frame, hop)) for frame in hop.waiting]
                self._stop_waiting(hop)
            elif change.failed:
                self._give_up((hop,))
            if change.stale and hop.used:
                # Frames from a packet socket do not show the kernel that its neighbour is
                # in use, so it would never confirm the address again by itself.
                hop.used = False
                self.want(hop)
        return released


def _same_route(one: RouteChange, other: RouteChange) -> bool:
    """The kernel tells routes of a prefix apart by metric, link and gateway."""
    return (one.metric, one.link, one.gateway) == (other.metric, other.link, other.gateway)


def _addressed(frame: bytes, hop: NextHop) -> bytes:
    return frame[:10] + hop.header + frame[22:]


def changes_first(changes: Iterable[NetworkChange]) -> list[NetworkChange]:
    """Order a dump so that links come before what refers to them."""
    return sorted(changes, key=lambda change: not isinstance(change, LinkChange))
