import gc

import pytest

from lvsha.datapath.garbage import CONNECTIONS_MAX, INTERVAL, YOUNG, short_pauses


def test_no_full_collection_runs_by_itself_and_all_is_restored() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with short_pauses():
        young, *older = gc.get_threshold()
        assert young == YOUNG
        assert min(older) > 10**9
        assert gc.get_freeze_count() > frozen
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_it_is_restored_after_an_exception() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), short_pauses():
        raise KeyError
    assert gc.get_threshold() == before


def test_a_full_collection_comes_at_intervals_while_the_table_is_small() -> None:
    with short_pauses() as collector:
        assert collector.run(0, 100.0)
        assert not collector.run(0, 100.0 + INTERVAL - 1)
        assert collector.run(CONNECTIONS_MAX, 100.0 + INTERVAL)
        assert not collector.run(CONNECTIONS_MAX + 1, 100.0 + 2 * INTERVAL)
        assert not collector.run(0, 100.0 + 2 * INTERVAL + 1)


def test_a_cycle_that_died_is_freed_by_it() -> None:
    class Node:
        other: "Node"

    freed = []

    class Watched(Node):
        def __del__(self) -> None:
            freed.append(1)

    with short_pauses() as collector:
        one, two = Watched(), Watched()
        one.other, two.other = two, one
        del one, two
        collector.run(0, 100.0)
        assert freed == [1, 1]
