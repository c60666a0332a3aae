from lvsha.counters import Counters


def test_events_are_counted_by_name_and_shown_in_order() -> None:
    counters = Counters()
    counters.add("b_refused")
    counters.add("a_lost", 3)
    counters.add("b_refused")
    assert counters.snapshot() == {"a_lost": 3, "b_refused": 2}
    assert list(counters.snapshot()) == ["a_lost", "b_refused"]


def test_asking_for_what_never_happened_leaves_no_trace() -> None:
    counters = Counters()
    assert counters["never"] == 0
    assert counters.snapshot() == {}


def test_a_snapshot_stays_as_it_was() -> None:
    counters = Counters()
    counters.add("one")
    before = counters.snapshot()
    counters.add("one")
    assert before == {"one": 1}
