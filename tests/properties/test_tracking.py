"""Whatever is reported, priorities stay in their bounds and groups stay together."""

from hypothesis import given
from hypothesis import strategies as st

from lvsha.failover.tracking import (
    FaultChanged,
    PriorityChanged,
    Reading,
    RouterRule,
    Tracked,
    TrackerRule,
    Tracking,
)

NAMES = ("a", "b", "c")
trackers = st.builds(
    TrackerRule,
    name=st.none(),
    rise=st.integers(1, 3),
    fall=st.integers(1, 3),
    init_fail=st.booleans(),
    numeric=st.booleans(),
)
tracked = st.builds(
    Tracked,
    tracker=st.sampled_from(NAMES),
    weight=st.none() | st.integers(-253, 253).filter(bool),
    reverse=st.booleans(),
)
readings = st.lists(
    st.tuples(st.sampled_from(NAMES), st.booleans(), st.integers(-300, 300), st.booleans()),
    max_size=30,
)


@given(
    rules=st.tuples(trackers, trackers, trackers),
    tracks=st.tuples(*[st.lists(tracked, max_size=4).map(tuple)] * 3),
    reported=readings,
)
def test_changes_add_up_to_what_stands_and_groups_stay_together(
    rules: tuple[TrackerRule, ...],
    tracks: tuple[tuple[Tracked, ...], ...],
    reported: list[tuple[str, bool, int, bool]],
) -> None:
    named = [
        TrackerRule(name, rule.rise, rule.fall, rule.init_fail, rule.numeric)
        for name, rule in zip(NAMES, rules, strict=True)
    ]
    routers = [RouterRule(f"r{n}", 100 + n, track) for n, track in enumerate(tracks)]
    made = Tracking(named, routers, [("r0", "r1")])
    known: dict[tuple[type, str], object] = {}
    actions = [action for rule in routers for action in made.standing(rule.name)]
    for now, (name, up, number, in_turn) in enumerate(reported):
        reading = Reading(up=up, detail="broken", number=number)
        actions += made.report(name, reading, float(now), in_turn=in_turn)
        for action in actions:
            match action:
                case PriorityChanged(router, priority):
                    assert known.get((PriorityChanged, router)) != priority
                    assert 1 <= priority <= 254
                    known[PriorityChanged, router] = priority
                case FaultChanged(router, fault):
                    assert (FaultChanged, router) not in known or known[
                        FaultChanged, router
                    ] != fault
                    known[FaultChanged, router] = fault
                case _:
                    pass
        actions = []
        for router, status in made.router_status().items():
            assert known[PriorityChanged, router] == status["priority"]
            assert known[FaultChanged, router] == status["fault"] == made.fault_of(router)
        assert made.fault_of("r0") == made.fault_of("r1")
