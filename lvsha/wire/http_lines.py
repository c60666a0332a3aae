"""What a reader of HTTP may be given of lines before it has made something of them.

h11 looks at lines with regular expressions, on the loop that forwards. Blanks that stand
before something that is no value take it a time that grows with the square of their number:
16,384 of them a second. Thousands of headers, and lines as long as the whole head, take it
some milliseconds. None of that is seen in honest messages, so none is handed on.

What h11 has made nothing of is lines. Of what it has not seen yet nobody knows: it may be part
of a body, where everything is allowed. So that is given in pieces of `PIECE_BYTES`, unless it
could do no harm if it were lines.
"""

from typing import Final

from lvsha.errors import WireError

PIECE_BYTES: Final = 256
LINES_MAX: Final = 128
"""Of one head; servers refuse requests with more than some hundred."""
LINE_BYTES_MAX: Final = 8_192
"""As most servers have it for requests."""
BLANKS_MAX: Final = 64
"""In a row; a folded value may be indented (RFC 9112, section 5.2)."""

_TOO_MANY_BLANKS: Final = b" " * (BLANKS_MAX + 1)


def first_piece(data: bytes) -> int:
    """How many of these bytes a reader may be given at once."""
    is_harmless = data.count(b"\n") <= LINES_MAX and not _has_many_blanks(data)
    return len(data) if is_harmless else PIECE_BYTES


def _has_many_blanks(data: bytes) -> bool:
    return _TOO_MANY_BLANKS in data.replace(b"\t", b" ")


class HeldLines:
    """Counts what a reader of HTTP holds."""

    __slots__ = ("_end", "_line", "_lines")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """The reader has made something of what it held."""
        self._end = b""
        self._line = self._lines = 0

    def add(self, piece: bytes) -> None:
        """The reader holds these bytes as well.

        Raises:
            WireError: that is too much for it.
        """
        self._lines += piece.count(b"\n")
        if self._lines > LINES_MAX:
            raise WireError(f"more than {LINES_MAX} lines")
        begins = piece.rfind(b"\n") + 1
        self._line = len(piece) - begins if begins else self._line + len(piece)
        if self._line > LINE_BYTES_MAX:
            raise WireError(f"a line of more than {LINE_BYTES_MAX} bytes")
        seen = self._end + piece
        if _has_many_blanks(seen):
            raise WireError(f"more than {BLANKS_MAX} blanks in a row")
        self._end = seen[-BLANKS_MAX:]
