"""What a source has sent lately."""

from lvsha.sync.history import History


def filled(bytes_max: int = 1000) -> History:
    history = History(bytes_max)
    for number in range(1, 6):
        history.add(number, bytes((number,)) * 100, number, 10.0 + number)
    return history


def test_what_was_sent_is_found_by_its_number() -> None:
    history = filled()
    assert (len(history), history.oldest) == (5, 1)
    assert history.find(3) == b"\x03" * 100
    assert history.find(6) is None


def test_the_oldest_goes_first() -> None:
    history = filled(350)
    assert (len(history), history.oldest) == (3, 3)
    assert history.find(2) is None


def test_a_datagram_longer_than_the_history_is_not_kept() -> None:
    history = filled(50)
    assert (len(history), history.oldest) == (0, None)


def test_the_bytes_that_are_kept_never_exceed_the_limit() -> None:
    history = History(1000)
    for number in range(1, 500):
        history.add(number, bytes(number % 97), 0, 0.0)
        kept = [history.find(n) for n in range(1, number + 1)]
        assert sum(len(datagram) for datagram in kept if datagram) <= 1000


def test_nothing_is_found_when_all_was_forgotten() -> None:
    history = filled()
    history.clear()
    assert (len(history), history.oldest, history.find(5)) == (0, None, None)
    history.add(9, bytes(900), 0, 0.0)
    assert history.oldest == 9


def test_the_mean_of_changes_is_that_of_what_is_here() -> None:
    assert History().mean_changes == 0
    assert filled().mean_changes == 3
    history = filled(350)
    assert history.mean_changes == 4
    history.clear()
    assert history.mean_changes == 0
    history.add(9, b"", 7, 0.0)
    assert history.mean_changes == 7


def test_what_left_behind_a_number_is_counted_with_the_time_of_its_first() -> None:
    history = filled()
    assert history.after(3) == (9, 14.0)
    assert history.after(5) == (0, None)
    assert history.after(0) == (15, 11.0)


def test_of_a_snapshot_nothing_counts_as_a_change() -> None:
    history = History()
    history.add(1, b"begin", 0, 1.0)
    history.add(2, b"change", 7, 2.0)
    history.add(3, b"chunk", 0, 3.0)
    assert history.after(0) == (7, 2.0)
    assert history.after(2) == (0, None)
