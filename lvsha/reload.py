"""Find out what of a changed pair file a running director can take over.

Services, their servers and checks, firewall marks, timeouts, the ``[ipvs]`` settings and
priorities can change while connections pass. All else (interfaces, virtual routers, groups,
trackers, the sync) waits for a restart. What is followed in between is a pair file of its own,
and must be right by itself: a service that needs what waits is refused with all else, and
nothing changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lvsha.build import build_director
from lvsha.config import Node, Pair, cross_check
from lvsha.errors import ConfigError
from lvsha.wire.vrrp import PRIORITY_OWNER

AT_ONCE: Final = ("services", "marks", "timeouts", "ipvs")
"""The sections that are taken over as a whole."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload will do.

    Attributes:
        pair: what is followed afterwards.
        taken: the names of the pieces that are taken over.
        waiting: of those that a restart takes over.
        digests: of the pieces that are followed, by name.
        digest: of them together.
    """

    pair: Pair
    taken: tuple[str, ...]
    waiting: tuple[str, ...]
    digests: dict[str, bytes]
    digest: bytes


def plan(running: Pair, found: Pair) -> Plan:
    """Compare the file that is followed with the one that was found.

    Raises:
        ConfigError: what can be taken over does not go with what waits, or the director
            refuses it.
    """
    updates = {section: getattr(found, section) for section in AT_ONCE}
    routers = {router.name for router in running.virtual_routers}
    nodes = {
        name: _with_priorities(node, found.nodes.get(name, node), routers)
        for name, node in running.nodes.items()
    }
    followed = running.model_copy(update={**updates, "nodes": nodes})
    problems = [f"without a restart: {problem}" for problem in cross_check(followed)]
    if problems:
        raise ConfigError("\n".join(problems))
    build_director(followed)
    now, then, wanted = running.digests(), followed.digests(), found.digests()
    taken, waiting = _differing(now, then), _differing(then, wanted)
    return Plan(followed, taken, waiting, then, followed.digest())


def _with_priorities(running: Node, found: Node, routers: set[str]) -> Node:
    """A node with other priorities; to be the owner, or no more, takes a restart."""
    for router in routers:
        before, after = running.priority_of(router), found.priority_of(router)
        if before != after and PRIORITY_OWNER in {before, after}:
            return running
    known = {name: found.priorities[name] for name in found.priorities.keys() & routers}
    return running.model_copy(update={"priority": found.priority, "priorities": known})


def _differing(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> tuple[str, ...]:
    names = ours.keys() | theirs.keys()
    return tuple(sorted(name for name in names if ours.get(name) != theirs.get(name)))
