"""Routes and rules that move with virtual addresses: rtnetlink, in a worker thread.

They are added when a virtual router becomes MASTER and go before its addresses do. While it
is MASTER they are looked for every second (with the renewal of the addresses): one that
could not be added is tried again, and one that someone removed comes back. So a route whose
gateway becomes reachable a moment later stands within a second, and whoever fights for a
route is answered once in a second and no more.

All of them carry `PROTOCOL`. By that number the clean-up finds what a killed process left,
even if the pair file has changed since; and nothing without it is ever replaced or removed.
A foreign route of the same prefix, table and metric stays, and the own one is refused.

What always holds: nothing raises for what the kernel refuses, but for the clean-up; one
refusal does not end the others; operations on one object happen one after the other, an
abandoned one included.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.addresses import Addresses
from lvsha.log import LimitedLog

PROTOCOL: Final = 112
"""The origin that is written into each route and rule: the IP protocol number of VRRP, which
no routing program uses as its origin (rtnetlink.h; keepalived's is 18)."""
TIME_MAX: Final = 0.5
"""Seconds that addresses and announcements wait for all routes; the rest goes on by itself."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAIN: Final = 254
_ANYWHERE: Final = {
    int(socket.AF_INET): ipaddress.IPv4Address(0),
    int(socket.AF_INET6): ipaddress.IPv6Address(0),
}
_ONLINK: Final = 0x04
_UNICAST: Final = 1
_UNREACHABLE: Final = {"blackhole": 6, "unreachable": 7, "prohibit": 8}
"""Types of routes that lead nowhere (rtnetlink.h)."""
# The kernel's metric of an IPv6 route that names none (IP6_RT_PRIO_USER).
_METRIC_IPv6: Final = 1024
# What is not there, or whose interface or table is not, is removed as well as can be.
_ALREADY_GONE: Final = frozenset({errno.ESRCH, errno.ENOENT, errno.ENODEV})

Request = dict[str, int | str]
"""What the kernel is asked: the arguments of a netlink message."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route on this machine; without an interface the kernel finds it by the gateway."""

    prefix: IpNetwork
    gateway: IpAddress | None = None
    interface: str | None = None
    table: int = _MAIN
    metric: int = 0
    source: IpAddress | None = None
    onlink: bool = False
    type: str = "unicast"

    def __str__(self) -> str:
        default = self.prefix.prefixlen == 0
        words = ["::/0" if self.prefix.version == 6 else "default"] if default else []
        words = words or [str(self.prefix)]
        words = [self.type, *words] if self.type in _UNREACHABLE else words
        words += [f"via {self.gateway}"] if self.gateway is not None else []
        words += [f"dev {self.interface}"] if self.interface is not None else []
        words += [f"table {self.table}"] if self.table != _MAIN else []
        words += [f"metric {self.metric}"] if self.metric else []
        words += [f"src {self.source}"] if self.source is not None else []
        return " ".join([*words, *(["onlink"] if self.onlink else [])])


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that chooses a table by where a packet comes from, goes to, or what mark it has."""

    family: int
    table: int
    priority: int
    source: IpNetwork | None = None
    destination: IpNetwork | None = None
    interface: str | None = None
    mark: tuple[int, int] | None = None

    def __str__(self) -> str:
        words = ["from", str(self.source or ("::/0" if self.family == 6 else "all"))]
        words += [f"to {self.destination}"] if self.destination is not None else []
        words += [f"iif {self.interface}"] if self.interface is not None else []
        words += ["fwmark {:#x}/{:#x}".format(*self.mark)] if self.mark is not None else []
        return " ".join([*words, f"table {self.table} priority {self.priority}"])


Piece = Route | Rule


class Routes(Protocol):
    """The routes and rules of one virtual router; each method says whether all went well."""

    async def install(self) -> bool:
        """Add them."""
        ...

    async def keep(self) -> bool:
        """Add those that are missing."""
        ...

    async def remove(self) -> bool:
        """Take all of them away; fine if there is none."""
        ...

    def status(self) -> dict[str, object]:
        """What is wanted and what stands, as JSON-able values."""
        ...


class NetlinkRoutes:
    """The real thing.

    Attributes:
        counters: what was refused, and what had to be restored.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        rules: Sequence[Rule],
        *,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        """Describe them; nothing happens yet.

        Args:
            routes: in the order in which they are added.
            rules: added behind the routes.
            log: where refusals are told, at a limited rate.
        """
        self.counters = Counters()
        self._pieces: tuple[Piece, ...] = (*routes, *rules)
        self._log = LimitedLog(log or structlog.get_logger())
        self._limiter = trio.CapacityLimiter(1)
        # Those that stand as far as is known, and why others do not.
        self._standing: frozenset[Piece] = frozenset()
        # Read by the thread: an operation that was given up must not add what shall be gone.
        self._wanted = False
        self._refused: dict[Piece, str] = {}

    async def install(self) -> bool:
        """Add the routes, then the rules."""
        self._wanted = True
        done = await self._in_thread(self._add)
        return self._note(done, "route_not_installed")

    async def keep(self) -> bool:
        """Add what is missing and say what was lost."""
        self._wanted, stood = True, self._standing
        done = await self._in_thread(self._add)
        restored = [piece for piece in done.added if piece in stood]
        if restored:
            self.counters.add("route_restored", len(restored))
            self._log.warning(
                "route_restored", trio.current_time(), routes=list(map(str, restored))
            )
        return self._note(done, "route_not_installed")

    async def remove(self) -> bool:
        """Take the rules away, then the routes."""
        self._wanted, self._standing = False, frozenset()
        done = await self._in_thread(lambda: _remove(self._pieces))
        return self._note(done, "route_not_removed")

    def status(self) -> dict[str, object]:
        """Each piece, whether it stands, and what was refused last."""
        return {
            "pieces": [
                {
                    "kind": "route" if isinstance(piece, Route) else "rule",
                    "what": str(piece),
                    "installed": piece in self._standing,
                    "error": self._refused.get(piece),
                }
                for piece in self._pieces
            ],
            "counters": self.counters.snapshot(),
        }

    async def _in_thread(self, operation: Callable[[], "_Done"]) -> "_Done":
        if not self._pieces:
            return _Done()
        try:
            return await trio.to_thread.run_sync(
                operation, abandon_on_cancel=True, limiter=self._limiter
            )
        except trio.Cancelled:
            self.counters.add("routes_too_slow")
            raise

    def _add(self) -> "_Done":
        """In the thread; a removal that gave up waiting for it is made good here."""
        done = _add_missing(self._pieces)
        return done if self._wanted else _remove(self._pieces)

    def _note(self, done: "_Done", event: str) -> bool:
        before, self._refused = self._refused, dict(done.refused)
        self._standing = frozenset(done.standing)
        if done.refused:
            self.counters.add(event, len(done.refused))
        for piece, error in done.refused:
            # It is tried every second: told once, and again when it is for another reason.
            if before.get(piece) != error:
                self._log.warning(event, trio.current_time(), route=str(piece), error=error)
        return not done.refused


class MovingAddresses:
    """Addresses with the routes and rules that move with them; see `Addresses`.

    Each method says what became of the addresses: a route that is refused does not keep a
    takeover from being announced, and slow ones hold neither addresses nor announcements up
    for more than `TIME_MAX`.
    """

    def __init__(self, addresses: Addresses, routes: Routes) -> None:
        """Put them together.

        Args:
            addresses: of a virtual router.
            routes: of the same.
        """
        self.counters = addresses.counters
        self._addresses = addresses
        self._routes = routes

    async def prepare(self) -> None:
        """Get ready to hold the addresses; routes and rules come after them anyway."""
        await self._addresses.prepare()

    async def acquire(self) -> bool:
        """Hold the addresses, then add routes and rules."""
        held = await self._addresses.acquire()
        with trio.move_on_after(TIME_MAX):
            await self._routes.install()
        return held

    async def release(self) -> bool:
        """Take rules and routes away, then the addresses."""
        with trio.move_on_after(TIME_MAX):
            await self._routes.remove()
        return await self._addresses.release()

    async def refresh(self) -> bool:
        """Go on holding all of them."""
        held = await self._addresses.refresh()
        with trio.move_on_after(TIME_MAX):
            await self._routes.keep()
        return held

    async def announce(self) -> bool:
        """Tell the neighbours where the addresses are."""
        return await self._addresses.announce()


async def remove_leftover_routes() -> int:
    """Remove every route and rule that carries `PROTOCOL`, whoever configured it.

    Returns:
        How many there were.

    Raises:
        HostError: the kernel refuses, most likely for want of a privilege.
    """
    try:
        return await trio.to_thread.run_sync(_remove_all)
    except NetlinkError as error:
        hint = " (it needs CAP_NET_ADMIN)" if error.code == errno.EPERM else ""
        raise HostError(f"cannot remove routes and rules: {error}{hint}") from error
    except OSError as error:
        raise HostError(f"cannot remove routes and rules: {error}") from error


@dataclass(slots=True)
class _Done:
    """What an operation has found or made of pieces."""

    standing: Sequence[Piece] = ()
    added: Sequence[Piece] = ()
    refused: Sequence[tuple[Piece, str]] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A route or rule of ours that the kernel has.

    Attributes:
        key: by what the kernel tells it from others.
        rest: what else a route says; another one with the same key takes its place.
        request: what removes it.
    """

    key: tuple[object, ...]
    rest: tuple[object, ...]
    request: Request

    @property
    def is_route(self) -> bool:
        return "proto" in self.request

    def remove(self, netlink: IPRoute) -> None:
        """Take it away.

        Raises:
            NetlinkError: the kernel refuses.
        """
        try:
            (netlink.route if self.is_route else netlink.rule)("delete", **self.request)
        except NetlinkError as error:
            if error.code not in _ALREADY_GONE:
                raise


def _add_missing(pieces: Sequence[Piece]) -> _Done:
    standing: list[Piece] = []
    added: list[Piece] = []
    refused: list[tuple[Piece, str]] = []
    try:
        with IPRoute(strict_check=True) as netlink:
            found = {one.key: one for one in _ours(netlink)}
            for piece in pieces:
                try:
                    if _add(netlink, piece, found.get(_key(piece))):
                        added.append(piece)
                    standing.append(piece)
                except (NetlinkError, OSError) as error:
                    refused.append((piece, _explain(error)))
    except (NetlinkError, OSError) as error:
        refused = [(piece, _explain(error)) for piece in pieces]
    return _Done(standing, added, refused)


def _add(netlink: IPRoute, piece: Piece, found: _Found | None) -> bool:
    """Add a piece unless it is there; whether it was added.

    Raises:
        NetlinkError: the kernel refuses.
        OSError: there is no such interface.
    """
    if isinstance(piece, Rule):
        if found is None:
            netlink.rule("add", **_rule_request(piece))
        return found is None
    index = 0 if piece.interface is None else socket.if_nametoindex(piece.interface)
    if found is not None:
        if found.rest == _rest(piece, index or found.rest[0]):
            return False
        found.remove(netlink)
    netlink.route("add", **_route_request(piece, index))
    return True


def _remove(pieces: Sequence[Piece]) -> _Done:
    """Remove, the last one first."""
    left: list[tuple[Piece, str]] = []
    try:
        with IPRoute(strict_check=True) as netlink:
            found = {one.key: one for one in _ours(netlink)}
            for piece in reversed(pieces):
                try:
                    if (one := found.get(_key(piece))) is not None:
                        one.remove(netlink)
                except NetlinkError as error:
                    left.append((piece, _explain(error)))
    except (NetlinkError, OSError) as error:
        left = [(piece, _explain(error)) for piece in pieces]
    return _Done(standing=[piece for piece, _ in left], refused=left)


def _remove_all() -> int:
    with IPRoute(strict_check=True) as netlink:
        found = sorted(_ours(netlink), key=lambda one: one.is_route)
        for one in found:
            one.remove(netlink)
    return len(found)


def _ours(netlink: IPRoute) -> Iterator[_Found]:
    """The routes and rules of the kernel that carry `PROTOCOL`, of all tables."""
    for family in _ANYWHERE:
        anywhere = str(_ANYWHERE[family])
        # The kernel picks them out, so that a large table costs little here.
        for route in netlink.get_routes(family=family, proto=PROTOCOL):
            if route["proto"] != PROTOCOL:
                continue
            length = int(route["dst_len"])
            prefix = f"{route.get_attr('RTA_DST') or anywhere}/{length}"
            table = int(route.get_attr("RTA_TABLE") or route["table"])
            metric = int(route.get_attr("RTA_PRIORITY") or 0)
            kind = int(route["type"])
            index = int(route.get_attr("RTA_OIF") or 0)
            gateway = route.get_attr("RTA_GATEWAY")
            request: Request = {
                "family": family,
                "dst": prefix,
                "table": table,
                "proto": PROTOCOL,
                **({"priority": metric} if metric else {}),
                **({"oif": index} if index else {}),
                **({"gateway": str(gateway)} if gateway else {}),
                "scope": int(route["scope"]),
                "type": kind,
            }
            source = route.get_attr("RTA_PREFSRC")
            rest = (index, gateway, source, bool(int(route["flags"]) & _ONLINK), kind)
            yield _Found((table, ipaddress.ip_network(prefix), metric), rest, request)
        for rule in netlink.get_rules(family=family):
            if rule.get_attr("FRA_PROTOCOL") != PROTOCOL:
                continue
            made = _rule_of(rule, family)
            yield _Found((made,), (), _rule_request(made))


class _Message(Protocol):
    """What is used of a pyroute2 message."""

    def __getitem__(self, field: str, /) -> object: ...

    def get_attr(self, name: str, /) -> object: ...


def _rule_of(message: _Message, family: int) -> Rule:
    def prefix(attribute: str, length: str) -> IpNetwork | None:
        text = message.get_attr(attribute)
        return None if text is None else ipaddress.ip_network(f"{text}/{message[length]}")

    def number(attribute: str, otherwise: int) -> int:
        value = message.get_attr(attribute)
        return value if isinstance(value, int) else otherwise

    mark = (number("FRA_FWMARK", 0), number("FRA_FWMASK", 0))
    interface = message.get_attr("FRA_IIFNAME")
    return Rule(
        family=4 if family == socket.AF_INET else 6,
        table=number("FRA_TABLE", 0),
        priority=number("FRA_PRIORITY", 0),
        source=prefix("FRA_SRC", "src_len"),
        destination=prefix("FRA_DST", "dst_len"),
        interface=None if interface is None else str(interface),
        mark=None if mark == (0, 0) else mark,
    )


def _key(piece: Piece) -> tuple[object, ...]:
    if isinstance(piece, Rule):
        return (piece,)
    metric = piece.metric or (_METRIC_IPv6 if piece.prefix.version == 6 else 0)
    return (piece.table, piece.prefix, metric)


def _rest(route: Route, index: object) -> tuple[object, ...]:
    gateway = None if route.gateway is None else str(route.gateway)
    source = None if route.source is None else str(route.source)
    return (index, gateway, source, route.onlink, _UNREACHABLE.get(route.type, _UNICAST))


def _route_request(route: Route, index: int) -> Request:
    family = socket.AF_INET if route.prefix.version == 4 else socket.AF_INET6
    kind = _UNREACHABLE.get(route.type, _UNICAST)
    on_link = family == socket.AF_INET and route.gateway is None and kind == _UNICAST
    return {
        "family": int(family),
        "dst": str(route.prefix),
        "table": route.table,
        "proto": PROTOCOL,
        "scope": 253 if on_link else 0,
        "type": kind,
        **({"gateway": str(route.gateway)} if route.gateway is not None else {}),
        **({"oif": index} if index else {}),
        **({"priority": route.metric} if route.metric else {}),
        **({"prefsrc": str(route.source)} if route.source is not None else {}),
        **({"flags": _ONLINK} if route.onlink else {}),
    }


def _rule_request(rule: Rule) -> Request:
    family = socket.AF_INET if rule.family == 4 else socket.AF_INET6
    request: Request = {
        "family": int(family),
        "table": rule.table,
        "priority": rule.priority,
        "protocol": PROTOCOL,
    }
    for name, prefix in (("src", rule.source), ("dst", rule.destination)):
        if prefix is not None:
            request[name] = str(prefix.network_address)
            request[f"{name}_len"] = prefix.prefixlen
    if rule.interface is not None:
        request["iifname"] = rule.interface
    if rule.mark is not None:
        request["fwmark"], request["fwmask"] = rule.mark
    return request


def _explain(error: NetlinkError | OSError) -> str:
    if isinstance(error, NetlinkError):
        if error.code == errno.EEXIST:
            return "another with the same prefix, table and metric is there"
        return os.strerror(error.code)
    # Of an interface that is not there it comes without a number.
    return str(error) if error.errno else "no such interface"
