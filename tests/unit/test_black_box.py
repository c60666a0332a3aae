"""The ring of events, what it exports, and the timeline of a transition."""

import json
import random
from collections.abc import Mapping, Sequence

import pytest

from lvsha.errors import ConfigError
from lvsha.failover.black_box import EVENTS_MAX, BlackBox, Export, Value
from lvsha.failover.timeline import Timeline, describe, last_transition

DAY = 1_700_000_000.0


def export(node: str, *events: tuple[float, str, str, Mapping[str, Value]]) -> Export:
    """What a node has exported, by way of JSON; its monotonic clock is its own."""
    box = BlackBox(node)
    for seconds, kind, router, fields in events:
        box.note(kind, seconds + len(node), DAY + seconds, router, **fields)
    return Export.parse(json.loads(json.dumps(box.export())), node)


def change(old: str, new: str, reason: str) -> Mapping[str, Value]:
    return {"old": old, "new": new, "reason": reason}


EAST = export(
    "east",
    (0.0, "state_changed", "web", change("BACKUP", "MASTER", "master_silent")),
    (50.0, "state_changed", "mail", change("INIT", "BACKUP", "started")),
    (99.0, "loop_late", "", {"late_ms": 900.0}),
    (100.0, "state_changed", "web", change("MASTER", "BACKUP", "stalled")),
    (100.1, "addresses_released", "web", {"done": True, "took_ms": 1.25}),
    (100.2, "addresses_announced", "mail", {"done": True}),
)
WEST = export(
    "west",
    (99.4, "state_changed", "web", change("BACKUP", "MASTER", "master_silent")),
    (99.41, "connections_carried", "web", {"connections": 9, "established": 7}),
    (99.45, "first_frame", "web", {}),
    (180.0, "addresses_announced", "web", {"done": True}),
)


def kinds(timeline: Timeline) -> list[tuple[str, str]]:
    return [(moment.node, moment.event.kind) for moment in timeline.moments]


def test_the_ring_keeps_the_newest_and_knows_how_many_went() -> None:
    box = BlackBox("east", events_max=3)
    for number in range(5):
        box.note("event", float(number), DAY, number=number)
    exported = box.export()
    assert exported["forgotten"] == 2
    events = Export.parse(exported, "east").events
    assert [event.fields["number"] for event in events] == [2, 3, 4]


def test_events_that_are_remembered_elsewhere_stand_in_their_place() -> None:
    box = BlackBox("east")
    box.note("first", 1.0, DAY)
    box.note("third", 3.0, DAY)
    other = BlackBox("east")
    other.note("second", 2.0, DAY)
    others = Export.parse(other.export(), "east").events
    events = Export.parse(box.export(others), "east").events
    assert [event.kind for event in events] == ["first", "second", "third"]


def test_both_nodes_make_one_timeline_around_the_last_change() -> None:
    timeline = last_transition([EAST, WEST])
    assert timeline is not None
    assert (timeline.router, timeline.zero) == ("web", DAY + 99.4)
    assert kinds(timeline) == [
        ("east", "loop_late"),
        ("west", "state_changed"),
        ("west", "connections_carried"),
        ("west", "first_frame"),
        ("east", "state_changed"),
        ("east", "addresses_released"),
    ]


def test_one_node_alone_tells_its_half() -> None:
    timeline = last_transition([EAST])
    assert timeline is not None
    assert timeline.zero == DAY + 100.0
    assert kinds(timeline)[0] == ("east", "loop_late")


def test_a_virtual_router_can_be_chosen_and_may_have_none() -> None:
    mail = export("east", (1.0, "state_changed", "mail", change("INIT", "MASTER", "x")))
    both = [mail, WEST]
    chosen = last_transition(both, "mail")
    assert chosen is not None
    assert chosen.router == "mail"
    assert last_transition(both, "other") is None
    assert last_transition([]) is None


def test_the_lines_say_who_when_and_what() -> None:
    timeline = last_transition([EAST, WEST])
    assert timeline is not None
    lines = describe(timeline, lambda seconds: f"{seconds - DAY:.2f}")
    assert lines == [
        "virtual router web, last transition at 99.40",
        "  west went from BACKUP to MASTER: master_silent",
        "  west carried on 7 established connections",
        "  west had the first frame 50.0 ms after it became MASTER",
        "  east went from MASTER to BACKUP: stalled",
        "99.00     -400.0 ms  east  loop late: late_ms 900",
        "99.40       +0.0 ms  west  state changed: old BACKUP, new MASTER, reason master_silent",
        "99.41      +10.0 ms  west  connections carried: connections 9, established 7",
        "99.45      +50.0 ms  west  first frame",
        "100.00     +600.0 ms  east  state changed: old MASTER, new BACKUP, reason stalled",
        "100.10     +700.0 ms  east  addresses released: done True, took_ms 1.25",
    ]


def test_the_lines_say_what_was_carried_and_what_was_lost() -> None:
    carried: dict[str, Value] = {"established": 7, "master_established": 8, "master_untold": 1}
    told: dict[str, Value] = {"established": 8, "untold": 1}
    rival: dict[str, Value] = {"address": "192.0.2.3", "priority": 90}
    timeline = last_transition(
        [
            export(
                "west",
                (99.0, "connections_told", "web", told),
                (99.4, "state_changed", "web", change("BACKUP", "MASTER", "master_silent")),
                (99.41, "connections_carried", "web", carried),
                (99.5, "two_masters", "web", rival),
            )
        ]
    )
    assert timeline is not None
    assert describe(timeline, str)[1:5] == [
        "  west had 8 established connections, 1 told to nobody",
        "  west went from BACKUP to MASTER: master_silent",
        (
            "  west carried on 7 established connections; the master had last said 8, "
            "1 of them told to nobody"
        ),
        "  west was MASTER and heard another: 192.0.2.3 with priority 90",
    ]


GOOD = {"at": 1.0, "time_of_day": DAY, "kind": "event", "router": "", "fields": {"a": 1}}


WRONG: Sequence[Mapping[str, object]] = (
    {"at": "now"},
    {"at": True},
    {"time_of_day": float("nan")},
    {"time_of_day": float("inf")},
    {"time_of_day": -1},
    {"kind": 7},
    {"router": None},
    {"fields": []},
    {"fields": {"a": []}},
    {"fields": {str(number): 0 for number in range(100)}},
)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"version": 2, "node": "east", "events": []},
        {"version": 1, "node": 5, "events": []},
        {"version": 1, "node": "east", "events": {}},
        {"version": 1, "node": "east", "events": [None]},
        {"version": 1, "node": "east", "events": [{}]},
        {"version": 1, "node": "east", "events": [GOOD] * (2 * EVENTS_MAX + 1)},
        *({"version": 1, "node": "east", "events": [{**GOOD, **wrong}]} for wrong in WRONG),
    ],
)
def test_what_is_no_export_is_refused_with_its_source(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^west\.json: expected"):
        Export.parse(value, "west.json")


def test_an_export_cannot_command_a_terminal() -> None:
    value = {"version": 1, "node": "a\x1b[2J", "events": [{**GOOD, "fields": {"b\n": "\x07c"}}]}
    parsed = Export.parse(value, "west.json")
    assert parsed.node == "a[2J"
    assert parsed.events[0].fields == {"b": "c"}


@pytest.mark.parametrize("seed", range(50))
def test_any_events_make_a_timeline_in_order(seed: int) -> None:
    dice = random.Random(seed)
    states = ["INIT", "BACKUP", "MASTER", "FAULT"]
    exports = [
        export(
            node,
            *(
                (
                    dice.uniform(0, 100),
                    dice.choice(["state_changed", "first_frame", "no_frame"]),
                    dice.choice(["", "web", "mail"]),
                    change(dice.choice(states), dice.choice(states), "x"),
                )
                for _ in range(dice.randrange(30))
            ),
        )
        for node in ("east", "west")
    ]
    timeline = last_transition(exports)
    if timeline is not None:
        times = [moment.event.time_of_day for moment in timeline.moments]
        assert times == sorted(times)
        assert timeline.zero in times
        assert len(describe(timeline, str)) > len(times)
