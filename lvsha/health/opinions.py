"""What health checks are about: what one probe found, and what a node thinks of a server."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

REASON_CHARACTERS_MAX: Final = 160


class Opinion(Enum):
    """What a node thinks of a real server, or of one of its checks."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found.

    Attributes:
        passed: whether the server did what was expected.
        reason: for a person, in one line.
        weight: that the server shall have instead of its own, from a dynamic script.
    """

    passed: bool
    reason: str
    weight: int | None = None


def quoted(text: bytes | str) -> str:
    """What a stranger sent, in a form that fits a reason: short, and nothing but print."""
    # Four bytes are one character at most; of a long text no more is looked at than is shown.
    text = text[: 4 * REASON_CHARACTERS_MAX]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = "".join(letter if letter.isprintable() else "." for letter in text.strip())
    return text if len(text) <= REASON_CHARACTERS_MAX else text[: REASON_CHARACTERS_MAX - 3] + "..."
