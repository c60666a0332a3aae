"""Turn what trackers report into priorities and faults of virtual routers.

A tracker watches one thing (a link, a route, a gateway, a program) and reports readings. Here
they are counted (so many in a row before a tracker is up or down), and combined: a tracker that
a virtual router tracks either adds a weight to its priority, or means FAULT while it is down.
Nothing here looks at the world, reads a clock or waits.

What always holds:

* A priority is from 1 to 254, whatever the weights add up to. That of the owner of the
  addresses (255) is not changed by any, nor is it by keepalived's.
* The routers of one group have the same faults, and the same weights are added to their
  priorities, because they could not move together otherwise.
* `report` returns only what has changed; a reading that says what is known returns nothing.

The weights are keepalived's: a positive one is added while the tracker is up, a negative one
while it is down, and with ``reverse`` the other way round. A tracker that reports a number
instead (`TrackerRule.numeric`) has its number multiplied by the weight; a product of -254 or
less means FAULT.

A tracker of which nothing is known yet adds no weight, and is a fault to those for whom it
could be one. The first reading decides, unless the tracker is to begin as down.

Times are seconds on a monotonic clock.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lvsha.wire.vrrp import PRIORITY_OWNER

PRIORITY_MIN: Final = 1
PRIORITY_MAX: Final = PRIORITY_OWNER - 1
FAULT_BELOW: Final = -253
"""A product of number and weight below this is a fault (keepalived.conf(5), track_file)."""


@dataclass(frozen=True, slots=True)
class TrackerRule:
    """How the readings of a tracker are counted.

    Attributes:
        name: unique.
        rise: so many good readings in a row, and it is up.
        fall: so many bad readings in a row, and it is down.
        init_fail: it begins as down, not as unknown.
        numeric: it reports numbers; they count at once, and one other than 0 is down.
    """

    name: str
    rise: int = 1
    fall: int = 1
    init_fail: bool = False
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a tracker means to a virtual router; without a weight it means FAULT."""

    tracker: str
    weight: int | None = None
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class RouterRule:
    """A virtual router: its own priority, and what it tracks itself."""

    name: str
    priority: int
    tracked: tuple[Tracked, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tracker has found.

    Attributes:
        up: whether it is as it should be.
        detail: the reason, for people; it becomes the reason of a fault.
        number: of a numeric tracker.
    """

    up: bool
    detail: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class TrackerChanged:
    """A tracker is up, or down, or reports another number."""

    tracker: str
    up: bool
    detail: str
    number: int


@dataclass(frozen=True, slots=True)
class PriorityChanged:
    """The priority of a virtual router is another."""

    router: str
    priority: int


@dataclass(frozen=True, slots=True)
class FaultChanged:
    """What keeps a virtual router from its addresses is another; None for nothing."""

    router: str
    fault: str | None


Action = TrackerChanged | PriorityChanged | FaultChanged
Actions = tuple[Action, ...]


@dataclass(slots=True)
class _Tracker:
    """A tracker as it stands; ``up`` is None while nothing is known."""

    rule: TrackerRule
    up: bool | None
    since: float = 0.0
    detail: str = ""
    number: int = 0
    in_a_row: int = 0


@dataclass(slots=True)
class _Router:
    rule: RouterRule
    tracked: tuple[Tracked, ...]
    priority: int
    fault: str | None = None


class Tracking:
    """All trackers and virtual routers of one node.

    Args:
        trackers: of different names.
        routers: of different names; every tracker they name is among ``trackers``.
        groups: names of routers that move together; a router is in one group at most.
    """

    def __init__(
        self,
        trackers: Iterable[TrackerRule],
        routers: Sequence[RouterRule],
        groups: Iterable[Sequence[str]],
    ) -> None:
        self._trackers = {
            rule.name: _Tracker(rule, False if rule.init_fail else None) for rule in trackers
        }
        together = {name: tuple(group) for group in groups for name in group}
        own = {rule.name: rule.tracked for rule in routers}
        self._routers = {
            rule.name: _Router(
                rule,
                # What two of a group track alike counts once.
                tuple(
                    dict.fromkeys(
                        one for name in together.get(rule.name, (rule.name,)) for one in own[name]
                    )
                ),
                rule.priority,
            )
            for rule in routers
        }
        for router in self._routers.values():
            assert all(one.tracker in self._trackers for one in router.tracked)
            router.priority, router.fault = self._priority(router), self._fault(router)

    def start(self, now: float) -> None:
        """Begin; until now nothing was known."""
        for state in self._trackers.values():
            state.since = now

    def standing(self, router: str) -> Actions:
        """The priority of a virtual router and what keeps it from its addresses, as they are."""
        state = self._routers[router]
        return (PriorityChanged(router, state.priority), FaultChanged(router, state.fault))

    def configure(self, router: str, priority: int) -> Actions:
        """Give a virtual router another priority of its own."""
        state = self._routers[router]
        state.rule = replace(state.rule, priority=priority)
        before, state.priority = state.priority, self._priority(state)
        return () if before == state.priority else (PriorityChanged(router, state.priority),)

    def report(
        self, tracker: str, reading: Reading, now: float, *, in_turn: bool = True
    ) -> Actions:
        """Take a reading.

        Args:
            tracker: its name.
            reading: what it has found.
            now: the current time.
            in_turn: False for one that was made because something happened. It counts if one
                reading is enough; otherwise those at the interval are waited for.
        """
        state = self._trackers[tracker]
        if not self._count(state, reading, in_turn=in_turn):
            return ()
        changed = reading.up != state.up
        if changed:
            state.since = now
        if not changed and reading.number == state.number:
            state.detail = reading.detail
            return ()
        state.up, state.number, state.detail = reading.up, reading.number, reading.detail
        return (
            TrackerChanged(tracker, reading.up, reading.detail, reading.number),
            *self._consequences(tracker),
        )

    def is_up(self, tracker: str) -> bool | None:
        """Whether a tracker is up; None while nothing is known of it."""
        return self._trackers[tracker].up

    def fault_of(self, router: str) -> str | None:
        """What keeps a virtual router from its addresses now."""
        return self._routers[router].fault

    def status(self, now: float) -> dict[str, dict[str, object]]:
        """The trackers for an operator, as JSON-able values by name."""
        return {
            name: {
                "state": "unknown" if state.up is None else "up" if state.up else "down",
                "since_seconds": now - state.since,
                "detail": state.detail,
                "in_a_row": state.in_a_row,
                "rise": state.rule.rise,
                "fall": state.rule.fall,
                **({"number": state.number} if state.rule.numeric else {}),
            }
            for name, state in self._trackers.items()
        }

    def router_status(self) -> dict[str, dict[str, object]]:
        """Priorities and what they are made of, as JSON-able values by router."""
        return {
            name: {
                "configured_priority": router.rule.priority,
                "priority": router.priority,
                "fault": router.fault,
                "tracks": [_described(one) for one in router.tracked],
            }
            for name, router in self._routers.items()
        }

    @staticmethod
    def _count(state: _Tracker, reading: Reading, *, in_turn: bool) -> bool:
        """Whether a reading decides what the tracker is; counts it."""
        if state.rule.numeric or reading.up == state.up:
            state.in_a_row = 0
            return True
        needed = 1 if state.up is None else state.rule.rise if reading.up else state.rule.fall
        if not in_turn and needed > 1:
            return False
        state.in_a_row += 1
        if state.in_a_row < needed:
            return False
        state.in_a_row = 0
        return True

    def _consequences(self, tracker: str) -> Iterable[Action]:
        for name, router in self._routers.items():
            if not any(one.tracker == tracker for one in router.tracked):
                continue
            priority, fault = self._priority(router), self._fault(router)
            if priority != router.priority:
                router.priority = priority
                yield PriorityChanged(name, priority)
            if fault != router.fault:
                router.fault = fault
                yield FaultChanged(name, fault)

    def _priority(self, router: _Router) -> int:
        configured = router.rule.priority
        if configured == PRIORITY_OWNER:
            return configured
        added = sum(self._added(one) for one in router.tracked)
        return max(PRIORITY_MIN, min(PRIORITY_MAX, configured + added))

    def _added(self, one: Tracked) -> int:
        state = self._trackers[one.tracker]
        if one.weight is None or state.up is None:
            return 0
        if state.rule.numeric:
            return one.weight * state.number * (-1 if one.reverse else 1)
        counts = (state.up != one.reverse) == (one.weight > 0)
        return one.weight if counts else 0

    def _fault(self, router: _Router) -> str | None:
        faults = (self._fault_by(one) for one in router.tracked)
        return "; ".join(dict.fromkeys(fault for fault in faults if fault)) or None

    def _fault_by(self, one: Tracked) -> str | None:
        state = self._trackers[one.tracker]
        if one.weight is not None:
            if state.rule.numeric and self._added(one) < FAULT_BELOW:
                return f"{one.tracker} says {state.number}"
            return None
        if state.up is None:
            return f"{one.tracker} has not been looked at yet"
        if state.up != one.reverse:
            return None
        if state.up:
            return f"{one.tracker} is up"
        return state.detail or f"{one.tracker} is down"


def _described(one: Tracked) -> dict[str, object]:
    return {"tracker": one.tracker, "weight": one.weight, "reverse": one.reverse}


class Group:
    """Virtual routers that are MASTER together, or not at all.

    Args:
        name: of the group.
        routers: names of its routers.
    """

    def __init__(self, name: str, routers: Sequence[str]) -> None:
        self.name = name
        self.routers = tuple(routers)

    def followers(
        self, router: str, *, entered: bool, is_master: Callable[[str], bool]
    ) -> Sequence[str]:
        """Who must follow a router that has entered or left MASTER.

        Args:
            router: of this group.
            entered: whether it became MASTER.
            is_master: whether another one is MASTER now.
        """
        return [name for name in self.routers if name != router and is_master(name) is not entered]


def joint_state(states: Mapping[str, str]) -> str:
    """What a group is, by the states of its routers.

    FAULT if one is, MASTER if all are, INIT while none takes part, otherwise BACKUP.
    """
    found = set(states.values())
    if "FAULT" in found:
        return "FAULT"
    return found.pop() if len(found) == 1 else "BACKUP"
