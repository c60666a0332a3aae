"""Readings become priorities and faults."""

import pytest

from lvsha.failover.tracking import (
    Action,
    FaultChanged,
    Group,
    PriorityChanged,
    Reading,
    RouterRule,
    Tracked,
    TrackerChanged,
    TrackerRule,
    Tracking,
    joint_state,
)

UP, DOWN = Reading(up=True), Reading(up=False, detail="no answer")


def tracking(*tracked: Tracked, rule: TrackerRule | None = None, priority: int = 100) -> Tracking:
    rules = [rule or TrackerRule("gw")]
    return Tracking(rules, [RouterRule("web", priority, tracked)], [])


def consequences(actions: tuple[Action, ...]) -> list[Action]:
    return [action for action in actions if not isinstance(action, TrackerChanged)]


def test_what_nobody_has_looked_at_is_a_fault_until_it_is_up() -> None:
    made = tracking(Tracked("gw"))
    assert made.standing("web") == (
        PriorityChanged("web", 100),
        FaultChanged("web", "gw has not been looked at yet"),
    )
    assert made.report("gw", UP, 1.0) == (
        TrackerChanged("gw", True, "", 0),
        FaultChanged("web", None),
    )
    assert made.report("gw", UP, 2.0) == ()


def test_the_first_reading_decides_whatever_rise_and_fall_say() -> None:
    for reading in (UP, DOWN):
        made = tracking(Tracked("gw"), rule=TrackerRule("gw", rise=3, fall=3))
        made.report("gw", reading, 1.0)
        assert made.is_up("gw") is not None
        assert made.fault_of("web") == (None if reading.up else "no answer")


def test_a_tracker_that_begins_as_down_needs_its_rise() -> None:
    made = tracking(Tracked("gw"), rule=TrackerRule("gw", rise=3, init_fail=True))
    assert made.fault_of("web") == "gw is down"
    assert [made.report("gw", UP, now) for now in (1.0, 2.0)] == [(), ()]
    assert made.report("gw", UP, 3.0)[1:] == (FaultChanged("web", None),)


def test_readings_of_the_other_kind_must_come_in_a_row() -> None:
    made = tracking(Tracked("gw"), rule=TrackerRule("gw", rise=2, fall=3))
    made.report("gw", UP, 0.0)
    for reading in (DOWN, DOWN, UP, DOWN, DOWN):
        assert made.report("gw", reading, 1.0) == ()
    assert made.report("gw", DOWN, 2.0)[1:] == (FaultChanged("web", "no answer"),)
    assert made.report("gw", UP, 3.0) == ()
    assert made.report("gw", DOWN, 3.1) == ()
    assert made.report("gw", UP, 3.2) == ()
    assert made.report("gw", UP, 3.3)[1:] == (FaultChanged("web", None),)


def test_a_reading_out_of_turn_counts_where_one_is_enough() -> None:
    made = tracking(Tracked("gw"), rule=TrackerRule("gw", rise=2))
    made.report("gw", UP, 0.0)
    assert made.report("gw", DOWN, 1.0, in_turn=False)
    for now in range(2, 12):
        assert made.report("gw", UP, float(now), in_turn=False) == ()
    assert made.report("gw", UP, 12.0) == ()
    assert made.report("gw", UP, 13.0)


@pytest.mark.parametrize(
    ("weight", "reverse", "unknown", "up", "down"),
    [
        (20, False, 100, 120, 100),
        (-20, False, 100, 100, 80),
        (20, True, 100, 100, 120),
        (-20, True, 100, 80, 100),
        (200, False, 100, 254, 100),
        (-200, False, 100, 100, 1),
    ],
)
def test_a_weight_is_added_while_its_state_lasts(
    weight: int, reverse: bool, unknown: int, up: int, down: int
) -> None:
    made = tracking(Tracked("gw", weight, reverse))
    seen = []
    for reading in (None, UP, DOWN, UP):
        if reading is not None:
            made.report("gw", reading, 1.0)
        seen.append(made.router_status()["web"]["priority"])
    assert seen == [unknown, up, down, up]
    assert made.fault_of("web") is None


def test_a_fault_may_be_meant_the_other_way_round() -> None:
    made = tracking(Tracked("gw", reverse=True))
    made.report("gw", UP, 1.0)
    assert made.fault_of("web") == "gw is up"
    made.report("gw", DOWN, 2.0)
    assert made.fault_of("web") is None


def test_weights_add_up_before_they_are_clamped() -> None:
    rules = [TrackerRule(name) for name in "abc"]
    tracked = (Tracked("a", 200), Tracked("b", 100), Tracked("c", -200))
    made = Tracking(rules, [RouterRule("web", 100, tracked)], [])
    assert consequences(made.report("a", UP, 1.0)) == [PriorityChanged("web", 254)]
    assert consequences(made.report("b", UP, 1.0)) == []
    assert consequences(made.report("c", DOWN, 1.0)) == [PriorityChanged("web", 200)]


def test_no_weight_changes_the_owners_priority() -> None:
    made = Tracking([TrackerRule("gw")], [RouterRule("web", 255, (Tracked("gw", -20),))], [])
    assert made.standing("web") == (PriorityChanged("web", 255), FaultChanged("web", None))
    assert consequences(made.report("gw", DOWN, 1.0)) == []


def test_faults_are_all_named_and_end_with_the_last() -> None:
    rules = [TrackerRule("a"), TrackerRule("b")]
    made = Tracking(rules, [RouterRule("web", 100, (Tracked("a"), Tracked("b")))], [])
    made.report("a", Reading(up=False, detail="cable"), 1.0)
    made.report("b", DOWN, 1.0)
    assert made.fault_of("web") == "cable; no answer"
    assert consequences(made.report("a", UP, 2.0)) == [FaultChanged("web", "no answer")]
    assert consequences(made.report("b", UP, 2.0)) == [FaultChanged("web", None)]


NUMERIC = TrackerRule("gw", numeric=True)


def number(value: int) -> Reading:
    return Reading(up=value == 0, detail=f"it says {value}", number=value)


@pytest.mark.parametrize(
    ("value", "weight", "priority", "fault"),
    [
        (0, None, 100, None),
        (1, None, 100, "it says 1"),
        (-1, None, 100, "it says -1"),
        (0, 2, 100, None),
        (10, 2, 120, None),
        (-10, 2, 80, None),
        (10, -2, 80, None),
        (-253, 1, 1, None),
        (-254, 1, 1, "gw says -254"),
        (127, -2, 1, "gw says 127"),
        (10**9, 1, 254, None),
    ],
)
def test_a_number_is_multiplied_by_its_weight(
    value: int, weight: int | None, priority: int, fault: str | None
) -> None:
    made = tracking(Tracked("gw", weight), rule=NUMERIC)
    made.report("gw", number(value), 1.0)
    assert made.router_status()["web"]["priority"] == priority
    assert made.fault_of("web") == fault


def test_another_number_is_a_change_although_it_is_still_down() -> None:
    made = tracking(Tracked("gw", 1), rule=NUMERIC)
    made.report("gw", number(5), 1.0)
    assert consequences(made.report("gw", number(6), 2.0)) == [PriorityChanged("web", 106)]
    assert made.report("gw", number(6), 3.0) == ()


def test_a_group_shares_faults_and_weights_and_counts_them_once() -> None:
    rules = [TrackerRule("a"), TrackerRule("b")]
    routers = [
        RouterRule("web", 100, (Tracked("a"), Tracked("b", -30))),
        RouterRule("inside", 90, (Tracked("b", -30),)),
        RouterRule("alone", 80, ()),
    ]
    made = Tracking(rules, routers, [("web", "inside")])
    made.report("a", UP, 0.0)
    assert consequences(made.report("b", DOWN, 1.0)) == [
        PriorityChanged("web", 70),
        PriorityChanged("inside", 60),
    ]
    assert consequences(made.report("a", DOWN, 2.0)) == [
        FaultChanged("web", "no answer"),
        FaultChanged("inside", "no answer"),
    ]
    assert made.fault_of("alone") is None


def test_status_names_states_and_what_is_tracked() -> None:
    made = tracking(Tracked("gw", -5), rule=TrackerRule("gw", fall=2))
    assert made.status(3.0)["gw"]["state"] == "unknown"
    made.report("gw", UP, 4.0)
    made.report("gw", DOWN, 5.0)
    assert made.status(6.0)["gw"] == {
        "state": "up",
        "since_seconds": 2.0,
        "detail": "",
        "in_a_row": 1,
        "rise": 1,
        "fall": 2,
    }
    assert made.router_status()["web"]["tracks"] == [
        {"tracker": "gw", "weight": -5, "reverse": False}
    ]


def test_who_follows_are_those_who_are_not_there_yet() -> None:
    group = Group("all", ("a", "b", "c"))
    masters = {"a", "c"}
    assert group.followers("a", entered=True, is_master=masters.__contains__) == ["b"]
    assert group.followers("b", entered=False, is_master=masters.__contains__) == ["a", "c"]


@pytest.mark.parametrize(
    ("states", "joint"),
    [
        ("MASTER MASTER", "MASTER"),
        ("MASTER BACKUP", "BACKUP"),
        ("BACKUP BACKUP", "BACKUP"),
        ("MASTER FAULT", "FAULT"),
        ("INIT INIT", "INIT"),
        ("INIT BACKUP", "BACKUP"),
    ],
)
def test_a_group_is_what_all_its_routers_are(states: str, joint: str) -> None:
    assert joint_state(dict(enumerate_names(states))) == joint


def enumerate_names(states: str) -> list[tuple[str, str]]:
    return [(f"router {number}", state) for number, state in enumerate(states.split())]
