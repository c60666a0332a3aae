import pytest

from lvsha.datapath.surprises import (
    FRAME_BYTES_MAX,
    KEPT_MAX,
    KINDS_MAX,
    TRACEBACK_MAX,
    Surprises,
)


def fail(kind: type[Exception], text: str) -> None:
    raise kind(text)


def raised(kind: type[Exception], text: str = "no") -> Exception:
    with pytest.raises(kind) as caught:
        fail(kind, text)
    return caught.value


def test_a_frame_is_kept_with_what_repeats_it() -> None:
    surprises = Surprises()
    surprises.keep(raised(ValueError), b"\x01\x02", "eth0", 12.5)
    (status,) = surprises.status()
    assert status["frame"] == "0102"
    assert status["at"] == 12.5
    assert status["interface"] == "eth0"
    assert "ValueError: no" in str(status["traceback"])


def test_only_the_first_of_a_kind_is_news() -> None:
    surprises = Surprises()
    kinds = [ValueError, KeyError, ValueError]
    assert [surprises.keep(raised(k), b"", "eth0", 0.0) for k in kinds] == [True, True, False]
    assert len(surprises.kept) == 3


def test_what_is_kept_is_bounded() -> None:
    surprises = Surprises()
    frame = memoryview(bytes(65_000))
    for number in range(KEPT_MAX + 5):
        surprises.keep(raised(ValueError, "x" * 10_000), frame, "eth0", float(number))
    assert [s.at for s in surprises.kept] == [float(n) for n in range(5, KEPT_MAX + 5)]
    for surprise in surprises.kept:
        assert len(surprise.frame) == FRAME_BYTES_MAX
        assert surprise.length == 65_000
        assert len(surprise.traceback) == TRACEBACK_MAX


def test_kinds_beyond_the_limit_are_no_news() -> None:
    surprises = Surprises()
    kinds = [type(f"Kind{number}", (Exception,), {}) for number in range(KINDS_MAX + 3)]
    news = [surprises.keep(raised(kind), b"", "eth0", 0.0) for kind in kinds]
    assert news == [True] * KINDS_MAX + [False] * 3


def test_an_exception_that_was_never_raised_is_kept_too() -> None:
    assert Surprises().keep(ValueError("made"), b"", "eth0", 0.0)
    with pytest.raises(ValueError, match="made"):
        raise ValueError("made")
