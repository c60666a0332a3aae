"""The part of a pair file that only a replay reads: the network around the director.

A running director learns its interfaces, routes and neighbours from the kernel. A replay
has no kernel to ask, so ``[replay]`` says what it would have learned.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lvsha.config_fields import (
    InterfaceName,
    IpAddress,
    IpInterface,
    IpNetwork,
    Mac,
    Table,
    refuse,
)


class ReplayInterface(Table):
    """An interface; without ``mac`` it gets a made-up one."""

    name: InterfaceName
    mac: Mac | None = None
    mtu: Annotated[int, Field(ge=68, le=65_536)] = 1500
    addresses: Annotated[tuple[IpInterface, ...], Field(max_length=1024)] = ()


class ReplayRoute(Table):
    """A route of the main table; without ``via``, what it leads to is on the link itself."""

    prefix: IpNetwork
    interface: InterfaceName
    via: IpAddress | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        # RFC 8950: an IPv4 route may lead over an IPv6 neighbour, but not the other way.
        if self.via is not None and self.via.version < self.prefix.version:
            yield f"via: expected an IPv6 address, not {self.via}"


class ReplayNeighbour(Table):
    """A neighbour's hardware address; without ``mac``, one that does not answer."""

    address: IpAddress
    interface: InterfaceName
    mac: Mac | None = None


class Replay(Table):
    """What a host would learn."""

    unknown_neighbours: Literal["made-up", "silent"] = "made-up"
    interfaces: Annotated[tuple[ReplayInterface, ...], Field(min_length=1, max_length=1024)]
    routes: Annotated[tuple[ReplayRoute, ...], Field(max_length=10_000)] = ()
    neighbours: Annotated[tuple[ReplayNeighbour, ...], Field(max_length=10_000)] = ()


def check_replay(replay: Replay) -> Iterable[str]:
    """Mistakes that only show when several tables are looked at together."""
    names = [interface.name for interface in replay.interfaces]
    for name, count in Counter(names).items():
        if count > 1:
            yield f"replay.interfaces: expected different names, but {count} are called {name!r}"
    macs = [interface.mac for interface in replay.interfaces if interface.mac is not None]
    for mac, count in Counter(macs).items():
        if count > 1:
            yield f"replay.interfaces: expected different macs, but {count} have {mac}"
    used = {
        "routes": [route.interface for route in replay.routes],
        "neighbours": [neighbour.interface for neighbour in replay.neighbours],
    }
    for key, interfaces in used.items():
        for number, interface in enumerate(interfaces):
            if interface not in names:
                yield (
                    f"replay.{key}[{number}].interface: expected one of "
                    f"{', '.join(dict.fromkeys(names))}, not {interface!r}"
                )
