"""What a reader of HTTP may hold of lines."""

import pytest

from lvsha.errors import WireError
from lvsha.wire.http_lines import (
    BLANKS_MAX,
    LINE_BYTES_MAX,
    LINES_MAX,
    PIECE_BYTES,
    HeldLines,
    first_piece,
)


def hold(data: bytes, size: int) -> None:
    held = HeldLines()
    for start in range(0, len(data), size):
        held.add(data[start : start + size])


SIZES = pytest.mark.parametrize("size", [1, 7, PIECE_BYTES, 100_000])


@SIZES
@pytest.mark.parametrize(
    ("most", "more", "problem"),
    [
        (b"\n" * LINES_MAX, b"\n", "lines"),
        (b"a\n" + b"x" * LINE_BYTES_MAX, b"x", "a line of"),
        (b"a:" + b" \t" * (BLANKS_MAX // 2), b"\t", "blanks"),
    ],
)
def test_no_more_than_the_limit_is_held(most: bytes, more: bytes, problem: str, size: int) -> None:
    hold(most, size)
    with pytest.raises(WireError, match=problem):
        hold(most + more, size)


@SIZES
def test_lines_and_blanks_that_are_interrupted_are_within_the_limit(size: int) -> None:
    hold((b" " * BLANKS_MAX + b"x") * 50, size)
    hold((b"x" * (LINE_BYTES_MAX - 1) + b"\n") * 3, size)


def test_what_was_made_something_of_counts_no_more() -> None:
    held = HeldLines()
    for _ in range(3):
        held.add(b"\n" * LINES_MAX + b" " * BLANKS_MAX)
        held.clear()


def test_only_what_could_do_harm_is_given_in_pieces() -> None:
    harmless = (b" " * BLANKS_MAX + b"x") * 40 + b"\n" * LINES_MAX
    assert first_piece(harmless) == len(harmless)
    assert first_piece(b"") == 0
    assert first_piece(b"\n" * (LINES_MAX + 1)) == PIECE_BYTES
    assert first_piece(b"\t" * (BLANKS_MAX + 1)) == PIECE_BYTES
