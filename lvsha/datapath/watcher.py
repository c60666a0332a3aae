"""Follow the host's network by netlink, and ask it to resolve neighbours.

The kernel's tables are read once and then followed by its notifications, which are
translated into the changes of `lvsha.datapath.network`. If the kernel had to drop
notifications because we were slow (ENOBUFS), everything is read anew, so the mirror cannot
stay wrong. This is the only place of the datapath that speaks netlink.
"""

import errno
import socket
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import trio
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from lvsha.counters import Counters
from lvsha.datapath.network import (
    AddressChange,
    LinkChange,
    NeighbourChange,
    NetworkChange,
    RouteChange,
    changes_first,
)
from lvsha.errors import HostError
from lvsha.model import format_address, parse_address

_GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
"""Links, neighbours, IPv4 addresses and routes, IPv6 addresses and routes (rtnetlink.h)."""
_RECEIVE_BYTES: Final = 65_536
_RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
_SO_RCVBUFFORCE: Final = 33

_MAIN_TABLE: Final = 254
_ROUTE_CLONED: Final = 0x200
_ROUTE_UNICAST: Final = 1
_ROUTES_UNREACHABLE: Final = frozenset({6, 7, 8})
"""blackhole, unreachable, prohibit"""

_LINK_RUNNING: Final = 0x1 | 0x40
"""Administratively up and with a carrier (IFF_UP, IFF_RUNNING)."""
_NEIGHBOUR_KNOWN: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
_NEIGHBOUR_STALE: Final = 0x04
_NEIGHBOUR_FAILED: Final = 0x20
_NEIGHBOUR_USE: Final = 0x01
"""NTF_USE: as if the host itself had a packet for the neighbour."""

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class Message(Protocol):
    """What is used of a pyroute2 message."""

    def __getitem__(self, field: str, /) -> object:
        """A field of the fixed header."""

    def get_attr(self, name: str, /) -> object:
        """An attribute; None if it is absent."""


def translate(message: Message) -> NetworkChange | None:
    """Turn a netlink message into a change; None if it does not concern a director."""
    match message["event"]:
        case "RTM_NEWLINK" | "RTM_DELLINK" as event:
            return _link(message, gone=event == "RTM_DELLINK")
        case "RTM_NEWADDR" | "RTM_DELADDR" as event:
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            address = _address(text)
            return AddressChange(_number(message["index"]), address, present=event == "RTM_NEWADDR")
        case "RTM_NEWROUTE" | "RTM_DELROUTE" as event:
            return _route(message, present=event == "RTM_NEWROUTE")
        case "RTM_NEWNEIGH" | "RTM_DELNEIGH" as event:
            return _neighbour(message, present=event == "RTM_NEWNEIGH")
        case _:
            return None


def _link(message: Message, *, gone: bool) -> LinkChange | None:
    # The bridge module reports its ports as links too, in messages of another family.
    if _number(message["family"]) != socket.AF_UNSPEC:
        return None
    mac = str(message.get_attr("IFLA_ADDRESS") or "").replace(":", "")
    running = _number(message["flags"]) & _LINK_RUNNING == _LINK_RUNNING
    return LinkChange(
        index=_number(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME") or ""),
        mac=bytes.fromhex(mac) if len(mac) == 12 else bytes(6),
        mtu=_number(message.get_attr("IFLA_MTU")),
        up=running and not gone,
        gone=gone,
    )


def _route(message: Message, *, present: bool) -> RouteChange | None:
    kind = _number(message["type"])
    table = _number(message.get_attr("RTA_TABLE")) or _number(message["table"])
    unreachable = kind in _ROUTES_UNREACHABLE
    if table != _MAIN_TABLE or _number(message["flags"]) & _ROUTE_CLONED:
        return None
    if kind != _ROUTE_UNICAST and not unreachable:
        return None
    family = _number(message["family"])
    if family not in _FAMILIES:
        return None
    link = _number(message.get_attr("RTA_OIF"))
    gateway = _address(message.get_attr("RTA_GATEWAY"))
    several = message.get_attr("RTA_MULTIPATH")
    if isinstance(several, list) and several:
        link = _number(several[0]["oif"])
        gateway = _address(several[0].get_attr("RTA_GATEWAY"))
    metrics = message.get_attr("RTA_METRICS")
    mtu = _number(metrics.get_attr("RTAX_MTU")) if hasattr(metrics, "get_attr") else 0
    prefix = _address(message.get_attr("RTA_DST"))
    return RouteChange(
        prefix=prefix or bytes(4 if family == socket.AF_INET else 16),
        prefix_length=_number(message["dst_len"]),
        link=link,
        gateway=gateway,
        source=_address(message.get_attr("RTA_PREFSRC")),
        metric=_number(message.get_attr("RTA_PRIORITY")),
        present=present,
        mtu=mtu,
        unreachable=unreachable,
    )


def _neighbour(message: Message, *, present: bool) -> NeighbourChange | None:
    address = _address(message.get_attr("NDA_DST"))
    if _number(message["family"]) not in _FAMILIES or not address:
        return None
    state = _number(message["state"])
    mac = str(message.get_attr("NDA_LLADDR") or "").replace(":", "")
    known = present and state & _NEIGHBOUR_KNOWN and len(mac) == 12
    return NeighbourChange(
        link=_number(message["ifindex"]),
        address=address,
        mac=bytes.fromhex(mac) if known else b"",
        failed=bool(present and state & _NEIGHBOUR_FAILED),
        stale=bool(known and state & _NEIGHBOUR_STALE),
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _address(value: object) -> bytes:
    return parse_address(value) if isinstance(value, str) else b""


class Watcher:
    """A netlink socket that hears of every change.

    Use: `open`, then `read_all` for the state so far, then iterate `changes`. Changes that
    happen while the state is read are heard afterwards, so nothing is missed.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        self._socket: trio.socket.SocketType | None = None

    async def open(self) -> None:
        """Start listening.

        Raises:
            HostError: the kernel refuses.
        """
        try:
            listener = trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            try:
                listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            except PermissionError:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            await listener.bind((0, _GROUPS))
        except OSError as error:
            raise HostError(f"the kernel's network cannot be watched: {error}") from error
        self._socket = listener

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.close()

    async def read_all(self) -> list[NetworkChange]:
        """The whole present state, links first."""
        return await trio.to_thread.run_sync(_dump)

    async def changes(self) -> list[NetworkChange] | None:
        """Wait for the next changes; None if some were lost and all must be read anew."""
        assert self._socket is not None, "open comes first"
        try:
            data = await self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.counters.add("notifications_lost")
            return None
        return [change for change in map(translate, MarshalRtnl().parse(data)) if change]

    async def resolve(self, wanted: Iterable[tuple[int, bytes]]) -> None:
        """Ask the kernel to resolve or confirm neighbours; the answer comes as a change."""
        await trio.to_thread.run_sync(self._resolve, list(wanted))

    def _resolve(self, wanted: list[tuple[int, bytes]]) -> None:
        with IPRoute() as route:
            for link, address in wanted:
                try:
                    route.neigh(
                        "replace",
                        dst=format_address(address),
                        ifindex=link,
                        flags=_NEIGHBOUR_USE,
                        state=0,
                    )
                except (NetlinkError, OSError):
                    self.counters.add("resolutions_refused")


def _dump() -> list[NetworkChange]:
    with IPRoute() as route:
        return changes_first(
            change for change in map(translate, _messages(route)) if change is not None
        )


def _messages(route: IPRoute) -> Iterator[Message]:
    yield from route.get_links()
    yield from route.get_addr()
    for family in _FAMILIES:
        yield from route.get_routes(family=family, table=_MAIN_TABLE)
        yield from route.get_neighbours(family=family)
