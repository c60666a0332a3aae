"""Read and check the pair file: one TOML text that describes both directors.

The file says once what the nodes share (virtual routers, services, sync, settings) and,
under ``[nodes.NAME]``, what differs (interfaces, priorities). The same file lies on both
nodes; each picks its own part by name. A mistake becomes a `ConfigError` that names the
file, every wrong key and what was expected there, in one message.

What always holds of a `Pair` that `parse_pair` returned: every interface role that is
used is defined on every node, every reference resolves, no two services or virtual
routers claim the same identity, and a real server is of its service's family unless it is
reached by a tunnel. What only the datapath can judge (that a scheduler exists) is not
checked here, but when a director is built from the file.

All times are seconds.
"""

import hashlib
import ipaddress
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from lvsha.config_failover import PlacedAddress, VirtualRouter, check_virtual_routers
from lvsha.config_fields import (
    AbsolutePath,
    InterfaceName,
    IpAddress,
    IpInterface,
    Name,
    Port,
    Priority,
    Table,
    refuse,
)
from lvsha.config_life import MetricsTable, SavedStateTable
from lvsha.config_replay import Replay, check_replay
from lvsha.config_second_path import SecondPathTable, check_second_path
from lvsha.config_services import Mark, Server, Service, check_checks, check_services
from lvsha.config_telling import Tell, TellOrWord
from lvsha.config_tracking import (
    Events,
    Group,
    Tracker,
    TrackingRouter,
    check_tracking,
)
from lvsha.errors import ConfigError
from lvsha.settings import Settings

__all__ = [
    "IpAddress",
    "IpInterface",
    "Limits",
    "Mark",
    "Node",
    "Pair",
    "PlacedAddress",
    "Replay",
    "Scheduling",
    "Server",
    "Service",
    "Sync",
    "Timeouts",
    "VirtualRouter",
    "load_pair",
    "parse_pair",
]

DIGEST_BYTES: Final = 16


PORT_MAX: Final = 65_535
_KEYS_OF_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "lvsha": ("heartbeat_interval", "datagram_max", "bytes_per_second", "key_file"),
    "ipvs": ("maxlen", "ports"),
}
"""Keys of `Sync` that mean nothing in another format."""


class Sync(Table):
    """How the nodes tell each other about connections.

    ``format = "ipvs"`` is the protocol of the kernel's sync daemons, for a pair of which one
    half is the kernel's; ``maxlen`` and ``ports`` are theirs.

    ``tell`` is for services without a rule of their own. ``"established"`` tells a
    connection as soon as it is established and again before the backup could forget it;
    ``"threshold"`` is the kernel's rule, with its settings of which two may stand here.
    No more than ``bytes_per_second`` leave, if that is not 0. With ``key_file`` every
    datagram is sealed.
    """

    format: Literal["lvsha", "ipvs"] = "lvsha"
    interface: Name = "sync"
    group: IpAddress = ipaddress.IPv4Address("224.0.0.81")
    port: Port = 8848
    ttl: Annotated[int, Field(ge=1, le=255)] = 1
    tell: TellOrWord = Tell(when="established")
    threshold: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    period: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    heartbeat_interval: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    datagram_max: Annotated[int, Field(ge=500, le=65_000)] = 1400
    bytes_per_second: Annotated[int, Field(ge=0, le=10**12)] = 0
    key_file: AbsolutePath | None = None
    maxlen: Annotated[int, Field(ge=1, le=65_507)] | None = None
    ports: Annotated[int, Field(ge=1, le=64)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            f'{key}: expected only with format = "{format_}"'
            for format_, keys in _KEYS_OF_FORMATS.items()
            for key in keys
            if format_ != self.format and key in self.model_fields_set
        ]
        if self.port + (self.ports or 1) - 1 > PORT_MAX:
            problems.append(f"ports: expected no port above {PORT_MAX}")
        if not self.group.is_multicast:
            problems.append("group: expected a multicast address, such as 224.0.0.81 or ff02::81")
        if self.period and self.threshold >= self.period:
            problems.append("threshold: expected a number below period")
        refuse(problems)
        return self


class Timeouts(Table):
    """Time-outs that ``ipvsadm --set`` changes, in seconds."""

    tcp: Annotated[int, Field(ge=1, le=31 * 86400)] = 900
    tcp_fin: Annotated[int, Field(ge=1, le=31 * 86400)] = 120
    udp: Annotated[int, Field(ge=1, le=31 * 86400)] = 300


class Limits(Table):
    """How much a director holds at most; see docs/operating.md for what happens then."""

    connections: Annotated[int, Field(ge=1, le=50_000_000)] = 2_000_000
    fragment_bytes: Annotated[int, Field(ge=131_072, le=1_073_741_824)] = 4_194_304
    probes: Annotated[int, Field(ge=1, le=10_000)] = 256


class Scheduling(Table):
    """What schedulers must agree on between the nodes.

    ``seed`` goes into the hash of mh and sh, so that strangers cannot choose their real
    server; 0 gives the kernel's hash.
    """

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


class Node(Table):
    """What is particular to one of the machines."""

    priority: Priority = 100
    priorities: dict[Name, Priority] = Field(default_factory=dict)
    interfaces: dict[Name, InterfaceName]
    realtime_priority: Annotated[int, Field(ge=0, le=99)] = 0
    lock_memory: bool = False

    def priority_of(self, router: str) -> int:
        """The VRRP priority of this node for a virtual router."""
        return self.priorities.get(router, self.priority)


class Pair(Table):
    """The whole pair file."""

    nodes: Annotated[dict[Name, Node], Field(min_length=1, max_length=16)]
    virtual_routers: tuple[VirtualRouter, ...] = ()
    groups: tuple[Group, ...] = ()
    trackers: tuple[Tracker, ...] = ()
    second_path: SecondPathTable | None = None
    events: Events = Events()
    services: Annotated[tuple[Service, ...], Field(max_length=10_000)] = ()
    marks: Annotated[tuple[Mark, ...], Field(max_length=10_000)] = ()
    sync: Sync | None = None
    timeouts: Timeouts = Timeouts()
    ipvs: Settings = Settings()
    scheduling: Scheduling = Scheduling()
    limits: Limits = Limits()
    saved_state: SavedStateTable = SavedStateTable()
    metrics: MetricsTable | None = None
    replay: Replay | None = None

    @property
    def settings(self) -> Settings:
        """The settings to start with.

        ``sync_threshold`` may stand in either table; `parse_pair` has seen to it that they
        do not contradict each other.
        """
        if self.sync is None or "sync_threshold" in self.ipvs.model_fields_set:
            return self.ipvs
        return self.ipvs.model_copy(
            update={"sync_threshold": (self.sync.threshold, self.sync.period)}
        )

    def digests(self) -> dict[str, bytes]:
        """A digest of every named piece, so that two nodes can name what differs.

        The keys read as an operator would say them: ``nodes.east``, ``services.web``.
        """
        # What a replay reads has no effect on a running director.
        content = self.model_dump(mode="json", exclude={"replay"})
        pieces: dict[str, object] = {}
        for section, value in content.items():
            if isinstance(value, dict) and section == "nodes":
                pieces.update((f"{section}.{name}", part) for name, part in value.items())
            elif isinstance(value, list) and section != "marks":
                pieces.update((f"{section}.{part['name']}", part) for part in value)
                # The order of services is without effect; that of their servers and of
                # marks is not.
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
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: cannot be read: expected UTF-8, not the byte {error.object[error.start]:#x} "
            f"at position {error.start}"
        ) from error
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
    problems = [f"{source}: {problem}" for problem in cross_check(pair)]
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
            message = _ADDRESSES[entry["type"].rpartition("_")[2]]
        given = entry["input"]
        shown = f" (given: {given!r})" if isinstance(given, str | int | float) else ""
        for line in message.splitlines():
            inner = _KEY_AND_PROBLEM.match(line) if entry["type"] == "value_error" else None
            if inner is None:
                yield f"{source}: {key}: {_expectation(entry['type'], line)}{shown}"
            else:
                yield f"{source}: {key}.{inner['key']}: {inner['problem']}"


_ADDRESSES: Final[Mapping[str, str]] = {
    "address": "an IP address",
    "interface": "an IP address with its prefix length",
    "network": "an IP prefix without host bits, such as 192.0.2.0/24",
}
_KEY_AND_PROBLEM: Final = re.compile(r"(?P<key>[a-z_]+): (?P<problem>(?:expected|missing).*)")
"""How a check of a whole table (`lvsha.config_fields.refuse`) names one of its keys."""


def _is_union_branch(part: int | str) -> bool:
    """Whether a part of a location is pydantic's name of an alternative, not a key."""
    return isinstance(part, str) and ("[" in part or part.lower() in _ALTERNATIVES)


_ALTERNATIVES: Final = frozenset(
    f"ipv{version}{kind}" for version in (4, 6) for kind in ("address", "interface", "network")
)


def _expectation(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "unknown key; expected one that docs/operating.md describes"
        case "missing":
            return "missing; expected a value"
        case _:
            return "expected " + message.removeprefix("Input should be ").removeprefix("expected ")


def cross_check(pair: Pair) -> Iterable[str]:
    """Mistakes that only show when several keys are looked at together."""
    for kind, names in (
        ("virtual_routers", [router.name for router in pair.virtual_routers]),
        ("services", [service.name for service in pair.services]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{kind}: expected different names, but {count} are called {name!r}"
    yield from _check_roles(pair)
    yield from check_virtual_routers(
        pair.virtual_routers,
        {
            router.name: [node.priority_of(router.name) for node in pair.nodes.values()]
            for router in pair.virtual_routers
        },
    )
    yield from check_services(pair.services, pair.marks)
    yield from check_tracking(
        pair.trackers,
        pair.groups,
        {
            router.name: TrackingRouter(
                router.track,
                router.preempt,
                tuple(node.priority_of(router.name) for node in pair.nodes.values()),
            )
            for router in pair.virtual_routers
        },
        [service.name for service in pair.services],
    )
    if pair.second_path is not None:
        heard = pair.sync is not None and pair.sync.format == "lvsha"
        yield from check_second_path(pair.second_path, pair.trackers, heard=heard)
    roles = {name: node.interfaces for name, node in pair.nodes.items()}
    for service in pair.services:
        yield from check_checks(service, roles)
    if pair.replay is not None:
        yield from check_replay(pair.replay)
    yield from _check_sync(pair)
    yield from _check_policies(pair)


def _check_roles(pair: Pair) -> Iterable[str]:
    used: dict[str, str] = {}
    for router in pair.virtual_routers:
        for role, key in router.roles.items():
            used.setdefault(role, f"virtual_routers.{router.name}{key}")
    if pair.sync is not None:
        used.setdefault(pair.sync.interface, "sync.interface")
    for tracker in pair.trackers:
        if tracker.interface is not None:
            used.setdefault(tracker.interface, f"trackers.{tracker.name}")
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


def _check_sync(pair: Pair) -> Iterable[str]:
    """The kernel's sync_threshold may be written in two places, but only once."""
    if pair.sync is None or "sync_threshold" not in pair.ipvs.model_fields_set:
        return
    for key, value in zip(("threshold", "period"), pair.ipvs.sync_threshold, strict=True):
        if key in pair.sync.model_fields_set and getattr(pair.sync, key) != value:
            yield f"sync.{key}: expected {value} or none, because of ipvs.sync_threshold"


def _check_policies(pair: Pair) -> Iterable[str]:
    """What of a service has no effect without sync, or with that of the kernel."""
    for service in pair.services:
        where = f"services.{service.name}"
        if service.tell is not None and pair.sync is None:
            yield f"{where}.tell: expected none, because there is no [sync]"
        if service.unknown == "ask" and (pair.sync is None or pair.sync.format != "lvsha"):
            yield (
                f'{where}.unknown: expected "kernel", "adopt" or "reset", because only in '
                "lvsha's own [sync] format is there somebody to ask"
            )
