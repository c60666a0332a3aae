"""Remember what happened to a node, so that a transition can be explained afterwards.

A ring of events: state changes and their reasons, advertisements that came late, pauses of the
loop, addresses that came and went, announcements, the first frame after a takeover, connections
told and carried. The last `EVENTS_MAX` are kept; a storm of one kind pushes older ones out, and
how many went is known.

An event has the monotonic time, by which events of one node are in order, and the time of day,
by which those of two nodes are put together: their clocks are the operator's to keep. Nothing
here reads a clock. What another node has exported is untrusted: `Export.parse` checks it all.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lvsha.errors import ConfigError

EVENTS_MAX: Final = 1024
"""Of a takeover there are about twenty; a day of flapping every minute does not fit, its end
does."""
VERSION: Final = 1
FIELDS_MAX: Final = 16
TEXT_CHARACTERS_MAX: Final = 200

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        at: seconds on the node's monotonic clock.
        time_of_day: seconds since 1970, by the node's clock.
        kind: a word of the program.
        router: the virtual router that it is about; empty for the whole node.
        fields: what there is to say of it.
    """

    at: float
    time_of_day: float
    kind: str
    router: str = ""
    fields: Mapping[str, Value] = field(default_factory=dict)

    def exported(self) -> dict[str, object]:
        """The event as JSON values."""
        return {
            "at": self.at,
            "time_of_day": self.time_of_day,
            "kind": self.kind,
            "router": self.router,
            "fields": dict(self.fields),
        }


class BlackBox:
    """The ring of one node.

    Attributes:
        forgotten: how many events were pushed out.
    """

    def __init__(self, node: str, events_max: int = EVENTS_MAX) -> None:
        self.forgotten = 0
        self._node = node
        self._events: deque[Event] = deque(maxlen=events_max)

    def note(
        self, kind: str, at: float, time_of_day: float, router: str = "", **fields: Value
    ) -> None:
        """Remember an event."""
        if len(self._events) == self._events.maxlen:
            self.forgotten += 1
        self._events.append(Event(at, time_of_day, kind, router, fields))

    def export(self, others: Iterable[Event] = ()) -> dict[str, object]:
        """All events in order, as JSON values.

        Args:
            others: of this node, that are remembered elsewhere.
        """
        events = sorted([*self._events, *others], key=lambda event: event.at)
        return {
            "version": VERSION,
            "node": self._node,
            "forgotten": self.forgotten,
            "events": [event.exported() for event in events],
        }


@dataclass(frozen=True, slots=True)
class Export:
    """What the ring of a node had when it was asked."""

    node: str
    events: tuple[Event, ...]

    @classmethod
    def parse(cls, value: object, source: str) -> "Export":
        """Check what a node has exported.

        Args:
            value: as it came out of JSON.
            source: where it came from, for people.

        Raises:
            ConfigError: it is no export.
        """
        if not isinstance(value, Mapping) or value.get("version") != VERSION:
            raise ConfigError(f"{source}: expected what lvsha why --json prints")
        node, events = value.get("node"), value.get("events")
        if not isinstance(node, str) or not isinstance(events, list):
            raise ConfigError(f"{source}: expected a node and its events")
        if len(events) > 2 * EVENTS_MAX:
            raise ConfigError(f"{source}: expected at most {2 * EVENTS_MAX} events")
        return cls(_text(node), tuple(_event(event, source) for event in events))


def _event(value: object, source: str) -> Event:
    if isinstance(value, Mapping):
        at, time_of_day, kind, router, fields = (
            value.get(name) for name in ("at", "time_of_day", "kind", "router", "fields")
        )
        if (
            _is_time(at)
            and _is_time(time_of_day)
            and isinstance(kind, str)
            and isinstance(router, str)
            and isinstance(fields, Mapping)
            and len(fields) <= FIELDS_MAX
            and all(isinstance(one, str | int | float | None) for one in fields.values())
        ):
            said = {_text(str(name)): _value(one) for name, one in fields.items()}
            return Event(_time(at), _time(time_of_day), _text(kind), _text(router), said)
    raise ConfigError(f"{source}: expected events with their times, kind, router and fields")


def _is_time(value: object) -> bool:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    # Written so that a NaN fails it; far enough for any clock, and it can be shown.
    return 0 <= number < 1e11


def _time(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _value(value: object) -> Value:
    assert isinstance(value, str | int | float | None)
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    """A text that can be shown: what a terminal would obey is left out."""
    return "".join(c for c in value[:TEXT_CHARACTERS_MAX] if c.isprintable())
