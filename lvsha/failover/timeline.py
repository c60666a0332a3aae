"""Explain the last transition of a virtual router from what one node, or both, remember.

Events of all nodes are put in order by their time of day. A transition is a group of changes
into or out of MASTER, each within `QUIET` of the one before; what led to it and what followed
is shown with it. Zero is when the last of its masters became that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.failover.black_box import Event, Export, Value

QUIET: Final = 10.0
"""Seconds without another change of master that end a transition."""
BEFORE: Final = 5.0
"""Seconds before the first change that are shown."""
AFTER: Final = 60.0
"""Seconds after the last change that are shown: what is verified and repeated comes then."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An event of a node."""

    node: str
    event: Event


@dataclass(frozen=True, slots=True)
class Timeline:
    """A transition of one virtual router.

    Attributes:
        router: which one.
        zero: the time of day when the last of its masters became that; of its first change
            if none did.
        moments: all that belongs to it, in order.
    """

    router: str
    zero: float
    moments: tuple[Moment, ...]


def last_transition(exports: Sequence[Export], router: str | None = None) -> Timeline | None:
    """Find the last transition.

    Args:
        exports: of one node or several.
        router: of which virtual router; None for the one that changed last.

    Returns:
        None if nobody remembers any.
    """
    moments = sorted(
        (Moment(export.node, event) for export in exports for event in export.events),
        key=lambda moment: moment.event.time_of_day,
    )
    changes = [m for m in moments if _is_change(m.event) and router in {None, m.event.router}]
    if not changes:
        return None
    router = changes[-1].event.router
    own = [m.event for m in changes if m.event.router == router]
    first = last = own[-1].time_of_day
    for event in reversed(own):
        if first - event.time_of_day > QUIET:
            break
        first = event.time_of_day
    masters = [e.time_of_day for e in own if e.fields.get("new") == "MASTER"]
    zero = next((at for at in reversed(masters) if at >= first), first)
    return Timeline(
        router,
        zero,
        tuple(
            moment
            for moment in moments
            if first - BEFORE <= moment.event.time_of_day <= last + AFTER
            and moment.event.router in {"", router}
        ),
    )


def describe(timeline: Timeline, time_of_day: Callable[[float], str]) -> list[str]:
    """The lines of a transition, for people.

    Args:
        timeline: which one.
        time_of_day: writes seconds since 1970.
    """
    day = time_of_day(timeline.zero)
    lines = [f"virtual router {timeline.router}, last transition at {day}"]
    lines += [f"  {line}" for line in _summary(timeline)]
    width = max(len(moment.node) for moment in timeline.moments)
    for moment in timeline.moments:
        event = moment.event
        relative = (event.time_of_day - timeline.zero) * 1000
        said = ", ".join(f"{name} {_shown(value)}" for name, value in event.fields.items())
        words = event.kind.replace("_", " ")
        lines.append(
            f"{time_of_day(event.time_of_day)} {relative:+10.1f} ms  {moment.node:{width}}  "
            f"{words}{': ' if said else ''}{said}"
        )
    return lines


def _summary(timeline: Timeline) -> list[str]:
    """What most who ask want to know."""
    lines: list[str] = []
    for moment in timeline.moments:
        event, node = moment.event, moment.node
        after = (event.time_of_day - timeline.zero) * 1000
        match event.kind:
            case "state_changed" if _is_change(event):
                was, new = event.fields.get("old"), event.fields.get("new")
                lines.append(f"{node} went from {was} to {new}: {event.fields.get('reason')}")
            case "first_frame" if after >= 0:
                lines.append(f"{node} had the first frame {after:.1f} ms after it became MASTER")
            case "no_frame":
                lines.append(f"{node} has had no frame for the addresses")
            case "connections_carried":
                lines.append(f"{node} carried on {_carried(event)}")
            case "connections_told":
                told, untold = event.fields.get("established"), event.fields.get("untold")
                lines.append(f"{node} had {told} established connections, {untold} told to nobody")
            case "two_masters":
                said = event.fields
                rival = f"{said.get('address')} with priority {said.get('priority')}"
                lines.append(f"{node} was MASTER and heard another: {rival}")
            case "second_path":
                said = event.fields
                lines.append(f"{node} was to {said.get('verdict')}: {said.get('reason')}")
            case "fencing_ended":
                peer, state = event.fields.get("peer"), event.fields.get("state")
                lines.append(f"{node} had {peer} fenced: {state}, {event.fields.get('said')}")
            case _:
                pass
    return lines


def _carried(event: Event) -> str:
    said = event.fields
    shown = f"{said.get('established')} established connections"
    if "master_established" not in said:
        return shown
    had, untold = said["master_established"], said.get("master_untold")
    return f"{shown}; the master had last said {had}, {untold} of them told to nobody"


def _is_change(event: Event) -> bool:
    """Whether it is a change into or out of MASTER."""
    return event.kind == "state_changed" and "MASTER" in {
        event.fields.get("old"),
        event.fields.get("new"),
    }


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
