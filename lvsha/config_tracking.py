"""The part of a pair file that says what virtual routers depend on, and who hears of changes.

``[[trackers]]`` says what is watched, ``track`` of a virtual router or a group what that means
to it, ``[[groups]]`` which virtual routers move together, ``notify`` and ``[events]`` who is
told. Interfaces are roles, as everywhere in the file. All times are seconds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lvsha.config_fields import AbsolutePath, IpAddress, IpNetwork, Name, Table, refuse

TRACKERS_MAX: Final = 256

Kind = Literal["interface", "route", "gateway", "script", "file", "process", "quorum"]

_KEYS_OF_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "interface": ("interface", "families"),
    "route": ("prefix", "via", "interface"),
    "gateway": ("address", "interface", "method", "timeout"),
    "script": ("command", "user", "timeout"),
    "file": ("path", "content"),
    "process": ("process", "full_command", "quorum", "quorum_max"),
    "quorum": ("services", "servers", "share"),
}
"""Keys of `Tracker` that mean something for a kind only."""
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "interface": ("interface",),
    "route": ("prefix",),
    "gateway": ("address",),
    "script": ("command",),
    "file": ("path",),
    "process": ("process",),
    "quorum": ("services",),
}
_INTERVALS: Final = {"quorum": 0.2}
_INTERVAL: Final = 1.0

User = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$")]
Weight = Annotated[int, Field(ge=-253, le=253)]


def _command(value: object) -> object:
    """A program by its whole path, and its arguments; a shell is never asked."""
    given = [value] if isinstance(value, str) else value
    listed = given if isinstance(given, list | tuple) else ()
    words = tuple(word for word in listed if isinstance(word, str) and "\0" not in word)
    if not words or len(words) < len(listed) or not words[0].startswith("/"):
        raise ValueError('a program by its whole path and its arguments, as in ["/bin/true", "x"]')
    return words


Command = Annotated[tuple[str, ...], BeforeValidator(_command), Field(min_length=1, max_length=64)]
Seconds = Annotated[float, Field(ge=0.05, le=3600)]


class Tracker(Table):
    """One thing that is watched; see docs/tracking.md for the keys of each kind."""

    name: Name
    kind: Kind
    interval: Seconds | None = None
    rise: Annotated[int, Field(ge=1, le=1000)] = 1
    fall: Annotated[int, Field(ge=1, le=1000)] = 1
    init_fail: bool = False
    interface: Name | None = None
    families: Annotated[tuple[Literal[4, 6], ...], Field(max_length=2)] = ()
    prefix: IpNetwork | None = None
    via: IpAddress | None = None
    address: IpAddress | None = None
    method: Literal["neighbour", "icmp"] = "neighbour"
    timeout: Seconds | None = None
    command: Command | None = None
    user: User | None = None
    path: AbsolutePath | None = None
    content: Literal["number", "existence"] = "number"
    process: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    full_command: bool = False
    quorum: Annotated[int, Field(ge=0, le=65_535)] = 1
    quorum_max: Annotated[int, Field(ge=0, le=65_535)] | None = None
    services: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    servers: Annotated[int, Field(ge=1, le=65_535)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def seconds_between(self) -> float:
        """The interval, by default that of the kind."""
        return _INTERVALS.get(self.kind, _INTERVAL) if self.interval is None else self.interval

    @property
    def seconds_at_most(self) -> float:
        """The time-out, by default the interval."""
        return self.seconds_between if self.timeout is None else self.timeout

    @property
    def numeric(self) -> bool:
        """Whether it reports numbers."""
        return self.kind == "file" and self.content == "number"

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        allowed = _KEYS_OF_KINDS[self.kind]
        for key in sorted({key for keys in _KEYS_OF_KINDS.values() for key in keys}):
            if key in self.model_fields_set and key not in allowed:
                kinds = [f'"{kind}"' for kind, keys in _KEYS_OF_KINDS.items() if key in keys]
                yield f"{key}: expected only with kind = {' or '.join(kinds)}"
        for key in _REQUIRED[self.kind]:
            if not getattr(self, key):
                yield f'{key}: missing; expected a value, because of kind = "{self.kind}"'
        if self.numeric:
            for key in {"rise", "fall", "init_fail"} & self.model_fields_set:
                yield f'{key}: expected only with content = "existence"; a number counts at once'
        if self.timeout is not None and self.timeout > self.seconds_between:
            yield f"timeout: expected at most the interval, {self.seconds_between:g} s"
        match self.kind:
            case "route" if self.prefix is not None and self.via is not None:
                if self.prefix.version != self.via.version:
                    yield "via: expected an address of the prefix's family"
            case "gateway" if self.address is not None:
                local = self.address.is_link_local and self.address.version == 6
                if self.interface is None and (self.method == "neighbour" or local):
                    yield "interface: missing; expected the role of the one it is asked on"
            case "process" if self.quorum_max is not None and self.quorum_max < self.quorum:
                yield "quorum_max: expected no less than quorum"
            case "quorum" if (self.servers is None) == (self.share is None):
                yield "servers: expected either this or share"
            case _:
                pass


class Track(Table):
    """What a tracker means to a virtual router: FAULT, or a weight."""

    tracker: Name
    weight: Weight | None = None
    reverse: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight == 0:
            refuse(["weight: expected none for FAULT, or a number other than 0"])
        return self


def _track(value: object) -> object:
    """Accept the name of a tracker beside the table form."""
    return {"tracker": value} if isinstance(value, str) else value


TrackOrName = Annotated[Track, BeforeValidator(_track)]
Tracks = Annotated[tuple[TrackOrName, ...], Field(max_length=64)]

StateWord = Literal["MASTER", "BACKUP", "FAULT", "STOP"]


class Notify(Table):
    """A program that is told of changes of state.

    It gets keepalived's four words behind its own arguments: ``INSTANCE`` or ``GROUP``, the
    name, the state, the priority.
    """

    command: Command
    user: User | None = None
    timeout: Annotated[float, Field(ge=0.1, le=300)] = 10.0
    states: Annotated[tuple[StateWord, ...], Field(min_length=1)] = (
        "MASTER",
        "BACKUP",
        "FAULT",
        "STOP",
    )


def _notify(value: object) -> object:
    """Accept a command alone beside the table form."""
    return {"command": value} if isinstance(value, str | list) else value


NotifyOrCommand = Annotated[Notify, BeforeValidator(_notify)]


class Group(Table):
    """Virtual routers that are MASTER together, or not at all."""

    name: Name
    routers: Annotated[tuple[Name, ...], Field(min_length=2, max_length=255)]
    track: Tracks = ()
    notify: NotifyOrCommand | None = None


class Events(Table):
    """Who hears of all changes: a program, and readers of a local socket."""

    socket: bool = True
    socket_group: User | None = None
    notify: NotifyOrCommand | None = None


@dataclass(frozen=True, slots=True)
class TrackingRouter:
    """What is looked at of a virtual router here: its tracks, and its priority on each node."""

    track: tuple[Track, ...]
    preempt: bool
    priorities: tuple[int, ...]


def check_tracking(
    trackers: Sequence[Tracker],
    groups: Sequence[Group],
    routers: Mapping[str, TrackingRouter],
    services: Iterable[str],
) -> Iterator[str]:
    """Mistakes that only show when trackers, groups, routers and services are seen together."""
    if len(trackers) > TRACKERS_MAX:
        yield f"trackers: expected at most {TRACKERS_MAX}"
    for kind, names in (
        ("trackers", [tracker.name for tracker in trackers]),
        ("groups", [group.name for group in groups]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{kind}: expected different names, but {count} are called {name!r}"
    known_services = set(services)
    for tracker in trackers:
        for name in tracker.services:
            if name not in known_services:
                yield f"trackers.{tracker.name}.services: expected names of services, not {name!r}"
    yield from _check_tracks(trackers, groups, routers)
    yield from _check_groups(groups, routers)


def _check_tracks(
    trackers: Sequence[Tracker], groups: Sequence[Group], routers: Mapping[str, TrackingRouter]
) -> Iterator[str]:
    known = {tracker.name for tracker in trackers}
    tracks = {f"virtual_routers.{name}": router.track for name, router in routers.items()}
    tracks |= {f"groups.{group.name}": group.track for group in groups}
    for where, tracked in tracks.items():
        for name, count in Counter(one.tracker for one in tracked).items():
            if name not in known:
                yield f"{where}.track: expected the name of a tracker, not {name!r}"
            if count > 1:
                yield f"{where}.track: expected {name!r} only once"


def _check_groups(groups: Sequence[Group], routers: Mapping[str, TrackingRouter]) -> Iterator[str]:
    owners: dict[str, str] = {}
    for group in groups:
        where = f"groups.{group.name}"
        if len(set(group.routers)) < len(group.routers):
            yield f"{where}.routers: expected each virtual router only once"
        unknown = [name for name in group.routers if name not in routers]
        for name in unknown:
            yield f"{where}.routers: expected names of virtual routers, not {name!r}"
        for name in dict.fromkeys(group.routers):
            if owners.setdefault(name, group.name) != group.name:
                yield f"{where}.routers: expected a router that {owners[name]!r} does not have"
        if not unknown:
            yield from _check_members(group, {name: routers[name] for name in group.routers})


def _check_members(group: Group, members: Mapping[str, TrackingRouter]) -> Iterator[str]:
    """Routers that want different nodes could never be MASTER together."""
    where = f"groups.{group.name}"
    first, *others = members.items()
    for name, router in others:
        if _ranks(router.priorities) != _ranks(first[1].priorities):
            yield (
                f"{where}.routers: expected the nodes in the same order of priority for "
                f"{first[0]!r} and {name!r}"
            )
        if router.preempt != first[1].preempt:
            yield f"{where}.routers: expected the same preempt for {first[0]!r} and {name!r}"
    meanings: dict[str, Track] = {}
    for one in (*group.track, *(one for router in members.values() for one in router.track)):
        if meanings.setdefault(one.tracker, one) != one:
            yield (
                f"{where}: expected {one.tracker!r} to mean the same to all its routers, "
                "because they share their faults and weights"
            )


def _ranks(priorities: Sequence[int]) -> list[int]:
    """The places of nodes, the highest priority first."""
    return sorted(range(len(priorities)), key=lambda place: -priorities[place])
