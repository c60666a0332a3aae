"""Read and check the pair file: one TOML text that describes both directors.

The file says once what the nodes share (virtual routers, services, sync, time-outs)
and, under ``[nodes.NAME]``, what differs (interfaces, priorities). The same file lies
on both nodes; each picks its own part by name. A mistake becomes a `ConfigError` that
names the file, every wrong key and what was expected there, in one message.

What always holds of a `Pair` that `parse_pair` returned: every interface role that is
used is defined on every node, every reference resolves, no two services or virtual
routers claim the same identity, and addresses of one service are of one family unless
the method is a tunnel's.

All times are seconds.
"""

import hashlib
import ipaddress
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lvsha.errors import ConfigError
from lvsha.model import ForwardMethod, Protocol

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
InterfaceName = Annotated[str, Field(pattern=r"^[^\s/]{1,15}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
SyncId = Annotated[int, Field(ge=0, le=255)]
Priority = Annotated[int, Field(ge=1, le=254)]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

DIGEST_BYTES = 16


class _Table(BaseModel):
    """A TOML table: unknown keys are mistakes, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlacedAddress(_Table):
    """A virtual address and the role of the interface that carries it."""

    address: IpInterface
    interface: Name


def _placed(value: object) -> object:
    """Accept the short form ``"192.0.2.10/24@inside"`` beside the table form."""
    if not isinstance(value, str):
        return value
    address, _, interface = value.partition("@")
    if "/" not in address:
        raise ValueError(f"an address with its prefix length, such as {address}/24")
    return {"address": address, "interface": interface or "."}


class VirtualRouter(_Table):
    """A VRRP virtual router: addresses that move together (RFC 9568)."""

    name: Name
    vrid: Annotated[int, Field(ge=1, le=255)]
    interface: Name
    addresses: Annotated[
        tuple[Annotated[PlacedAddress, BeforeValidator(_placed)], ...],
        Field(min_length=1, max_length=64),
    ]
    advert_interval: Annotated[float, Field(ge=0.01, le=40.95)] = 1.0
    preempt: bool = True
    checksum: Literal["rfc9568", "keepalived"] = "rfc9568"
    sync_id: SyncId

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: object) -> object:
        """The sync id is the vrid, and addresses stand on the router's own interface."""
        if not isinstance(data, Mapping):
            return data
        vrid = data.get("vrid")
        # Without a vrid there is one mistake to tell, not two.
        filled = {"sync_id": vrid if isinstance(vrid, int) else 0, **data}
        if isinstance(data.get("addresses"), list):
            own = data.get("interface")
            filled["addresses"] = [
                f"{entry}@{own}" if isinstance(entry, str) and "@" not in entry else entry
                for entry in data["addresses"]
            ]
        return filled

    @property
    def family(self) -> int:
        """4 or 6: the family of the advertisements, which is that of the first address."""
        return self.addresses[0].address.version


class Server(_Table):
    """A real server of one service."""

    address: IpAddress
    port: Port | None = None
    weight: Annotated[int, Field(ge=0, le=65535)] = 1
    method: Literal["nat", "dr", "tun"] | None = None


class Service(_Table):
    """A virtual service: what clients connect to."""

    name: Name
    address: IpAddress
    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    scheduler: Name = "wlc"
    scheduler_flags: tuple[Literal["sh-port", "sh-fallback"], ...] = ()
    method: Literal["nat", "dr", "tun"] = "nat"
    servers: Annotated[tuple[Server, ...], Field(max_length=4096)] = ()

    @property
    def protocol_number(self) -> Protocol:
        """The IP protocol number."""
        return Protocol.TCP if self.protocol == "tcp" else Protocol.UDP

    def method_of(self, server: Server) -> ForwardMethod:
        """The forwarding method of a server: its own, or the service's."""
        return FORWARD_METHODS[server.method or self.method]


FORWARD_METHODS: Mapping[str, ForwardMethod] = {
    "nat": ForwardMethod.NAT,
    "dr": ForwardMethod.DIRECT_ROUTE,
    "tun": ForwardMethod.TUNNEL,
}


class Sync(_Table):
    """How the nodes tell each other about connections.

    ``tell = "established"`` reports a connection as soon as it is established and
    refreshes it before the backup could forget it; ``"threshold"`` is the kernel's
    sync_threshold and sync_period.
    """

    interface: Name = "sync"
    group: IpAddress = ipaddress.IPv4Address("224.0.0.81")
    port: Port = 8848
    ttl: Annotated[int, Field(ge=1, le=255)] = 1
    tell: Literal["established", "threshold"] = "established"
    threshold: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    period: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    heartbeat_interval: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    datagram_max: Annotated[int, Field(ge=500, le=65_000)] = 1400

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.group.is_multicast:
            raise ValueError("group: a multicast address, such as 224.0.0.81 or ff02::81")
        if self.period and self.threshold >= self.period:
            raise ValueError("threshold: a number below period")
        return self


class Timeouts(_Table):
    """Time-outs that ``ipvsadm --set`` changes, in seconds."""

    tcp: Annotated[int, Field(ge=1, le=31 * 86400)] = 900
    tcp_fin: Annotated[int, Field(ge=1, le=31 * 86400)] = 120
    udp: Annotated[int, Field(ge=1, le=31 * 86400)] = 300


class Limits(_Table):
    """How much a director holds at most; see docs/operating.md for what happens then."""

    connections: Annotated[int, Field(ge=1, le=50_000_000)] = 2_000_000


class Node(_Table):
    """What is particular to one of the machines."""

    priority: Priority = 100
    priorities: dict[Name, Priority] = {}
    interfaces: dict[Name, InterfaceName]

    def priority_of(self, router: str) -> int:
        """The VRRP priority of this node for a virtual router."""
        return self.priorities.get(router, self.priority)


class Pair(_Table):
    """The whole pair file."""

    nodes: Annotated[dict[Name, Node], Field(min_length=1, max_length=16)]
    virtual_routers: tuple[VirtualRouter, ...] = ()
    services: Annotated[tuple[Service, ...], Field(max_length=10_000)] = ()
    sync: Sync | None = None
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()

    def digests(self) -> dict[str, bytes]:
        """A digest of every named piece, so that two nodes can name what differs.

        The keys read as an operator would say them: ``nodes.east``, ``services.web``.
        """
        content = self.model_dump(mode="json")
        pieces: dict[str, object] = {}
        for section, value in content.items():
            if isinstance(value, dict) and section == "nodes":
                pieces.update((f"{section}.{name}", part) for name, part in value.items())
            elif isinstance(value, list):
                pieces.update((f"{section}.{part['name']}", part) for part in value)
                # The order of services is without effect; their servers' order is not.
            else:
                pieces[section] = value
        return {name: _digest(piece) for name, piece in pieces.items()}

    def digest(self) -> bytes:
        """One digest of the whole file, equal on two nodes that agree."""
        return _digest({name: value.hex() for name, value in self.digests().items()})


def _digest(value: object) -> bytes:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=DIGEST_BYTES).digest()


def load_pair(path: Path) -> Pair:
    """Read a pair file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says something wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_pair(text, str(path))


def parse_pair(text: str, source: str) -> Pair:
    """Turn the text of a pair file into a checked `Pair`.

    Args:
        text: the TOML.
        source: the name of the file, for messages.

    Raises:
        ConfigError: with a line for each wrong key.
    """
    try:
        pair = Pair.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, error))) from error
    problems = [f"{source}: {problem}" for problem in _cross_check(pair)]
    if problems:
        raise ConfigError("\n".join(problems))
    return pair


def _explain(source: str, error: ValidationError) -> Iterable[str]:
    """One line for each wrong key; alternatives of a union are folded into one."""
    seen: set[str] = set()
    for entry in error.errors(include_url=False):
        parts = [part for part in entry["loc"] if not _is_union_branch(part)]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
        key = key.lstrip(".") or "the file"
        if key in seen:
            continue
        seen.add(key)
        message = entry["msg"].removeprefix("Value error, ")
        if entry["type"].startswith(("ip_v4", "ip_v6")):
            with_prefix = "interface" in entry["type"]
            message = "an IP address" + (" with its prefix length" if with_prefix else "")
        given = entry["input"]
        shown = f" (given: {given!r})" if isinstance(given, str | int | float) else ""
        yield f"{source}: {key}: {_expectation(entry['type'], message)}{shown}"


def _is_union_branch(part: int | str) -> bool:
    """Whether a part of a location is pydantic's name of an alternative, not a key."""
    return isinstance(part, str) and ("[" in part or part.lower() in _ALTERNATIVES)


_ALTERNATIVES = frozenset({"ipv4address", "ipv6address", "ipv4interface", "ipv6interface"})


def _expectation(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "unknown key; expected one that docs/operating.md describes"
        case "missing":
            return "missing; expected a value"
        case _:
            return "expected " + message.removeprefix("Input should be ").removeprefix("expected ")


def _cross_check(pair: Pair) -> Iterable[str]:
    """Mistakes that only show when several keys are looked at together."""
    for kind, names in (
        ("virtual_routers", [router.name for router in pair.virtual_routers]),
        ("services", [service.name for service in pair.services]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{kind}: expected different names, but {count} are called {name!r}"
    yield from _check_roles(pair)
    yield from _check_virtual_routers(pair)
    yield from _check_services(pair)


def _check_roles(pair: Pair) -> Iterable[str]:
    used = {router.interface: f"virtual_routers.{router.name}" for router in pair.virtual_routers}
    for router in pair.virtual_routers:
        for placed in router.addresses:
            used.setdefault(placed.interface, f"virtual_routers.{router.name}.addresses")
    if pair.sync is not None:
        used.setdefault(pair.sync.interface, "sync.interface")
    for name, node in pair.nodes.items():
        for role, where in used.items():
            if role not in node.interfaces:
                yield (
                    f"nodes.{name}.interfaces: expected a key {role!r}, "
                    f"because {where} uses that interface"
                )
        for router_name in node.priorities:
            if router_name not in {router.name for router in pair.virtual_routers}:
                yield (
                    f"nodes.{name}.priorities.{router_name}: expected the name of a virtual router"
                )


def _check_virtual_routers(pair: Pair) -> Iterable[str]:
    identities: dict[tuple[str, int, int], str] = {}
    owners: dict[IpAddress, str] = {}
    sync_ids: dict[int, str] = {}
    for router in pair.virtual_routers:
        leader = sync_ids.setdefault(router.sync_id, router.name)
        if leader != router.name:
            # One node could be MASTER for one and another for the other, and an id has
            # one source.
            yield (
                f"virtual_routers.{router.name}.sync_id: expected a number that {leader!r} "
                f"does not use (default: the vrid)"
            )
        identity = (router.interface, router.family, router.vrid)
        other = identities.setdefault(identity, router.name)
        if other != router.name:
            yield (
                f"virtual_routers.{router.name}.vrid: expected a number that {other!r} "
                f"does not use on interface {router.interface!r}"
            )
        priorities = [node.priority_of(router.name) for node in pair.nodes.values()]
        if len(set(priorities)) < len(priorities):
            yield (
                f"virtual_routers.{router.name}: expected a different priority on each node "
                f"(nodes.NAME.priority or nodes.NAME.priorities.{router.name})"
            )
        for placed in router.addresses:
            holder = owners.setdefault(placed.address.ip, router.name)
            if holder != router.name:
                yield (
                    f"virtual_routers.{router.name}.addresses: expected an address that "
                    f"{holder!r} does not hold, not {placed.address.ip}"
                )


def _check_services(pair: Pair) -> Iterable[str]:
    identities: dict[tuple[str, IpAddress, int], str] = {}
    for service in pair.services:
        identity = (service.protocol, service.address, service.port)
        other = identities.setdefault(identity, service.name)
        if other != service.name:
            yield (
                f"services.{service.name}: expected a protocol, address and port that "
                f"{other!r} does not use"
            )
        endpoints = Counter(
            (server.address, server.port or service.port) for server in service.servers
        )
        for (address, port), count in endpoints.items():
            if count > 1:
                yield (
                    f"services.{service.name}.servers: expected each server once, but "
                    f"{address} port {port} stands there {count} times"
                )
        for server in service.servers:
            where = f"services.{service.name}.servers {server.address}"
            if server.address.version != service.address.version:
                yield f"{where}: expected an IPv{service.address.version} address"
            method = service.method_of(server)
            if method is not ForwardMethod.NAT and server.port not in {None, service.port}:
                yield (
                    f"{where}.port: expected {service.port} or none, "
                    "because only NAT can change the port"
                )
