"""The limit on log lines that strangers cause."""

from lvsha.log import RateLimit


def test_lines_beyond_the_limit_are_counted_and_told_with_the_next_line() -> None:
    limit = RateLimit(lines_max=2, interval=60.0)
    assert [limit.admit("bad", float(now)) for now in range(5)] == [0, 0, None, None, None]
    assert limit.admit("bad", 59.9) is None
    assert limit.admit("bad", 60.0) == 4
    assert limit.admit("bad", 61.0) == 0
    assert limit.admit("bad", 62.0) is None


def test_events_do_not_silence_each_other() -> None:
    limit = RateLimit(lines_max=1, interval=60.0)
    assert limit.admit("bad", 0.0) == 0
    assert limit.admit("worse", 0.0) == 0
    assert limit.admit("bad", 0.0) is None
