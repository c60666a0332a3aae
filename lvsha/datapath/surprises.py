"""Frames whose handling raised an exception, kept for a report.

Such a frame is a bug of lvsha, and the same frame would show it again, so the newest few are
kept with what is needed to repeat it. What is kept is the buffer as it was found afterwards:
a frame that was rewritten before the exception came is kept rewritten.

The log gets one line for each kind, which is where in the code the exception was raised;
strangers send the frames, and must not fill the log.
"""

import traceback
from collections import deque
from dataclasses import dataclass
from typing import Final

KEPT_MAX: Final = 16
"""The newest are kept."""
FRAME_BYTES_MAX: Final = 2048
"""An ordinary frame with all its headers; of a longer one its beginning."""
TRACEBACK_MAX: Final = 4096
"""Characters; of a longer one its end, where the exception was raised."""
KINDS_MAX: Final = 64
"""Kinds that are told apart; what comes after so many is no news."""


@dataclass(frozen=True, slots=True)
class Surprise:
    """One of them.

    Attributes:
        at: seconds of universal time.
        interface: where the frame came in.
        frame: virtio header and frame, cut to `FRAME_BYTES_MAX`.
        length: of both before that, in bytes.
        traceback: as Python writes it.
    """

    at: float
    interface: str
    frame: bytes
    length: int
    traceback: str


class Surprises:
    """The newest of them, and the kinds there were.

    Attributes:
        kept: oldest first.
    """

    def __init__(self) -> None:
        self.kept: deque[Surprise] = deque(maxlen=KEPT_MAX)
        self._kinds: set[str] = set()

    def keep(self, error: Exception, frame: bytes | memoryview, interface: str, at: float) -> bool:
        """Keep a frame; returns whether its kind is new."""
        text = "".join(traceback.format_exception(error))
        self.kept.append(
            Surprise(
                at, interface, bytes(frame[:FRAME_BYTES_MAX]), len(frame), text[-TRACEBACK_MAX:]
            )
        )
        kind = _kind(error)
        if kind in self._kinds or len(self._kinds) >= KINDS_MAX:
            return False
        self._kinds.add(kind)
        return True

    def status(self) -> list[dict[str, object]]:
        """What ``lvsha status --json`` shows."""
        return [
            {
                "at": surprise.at,
                "interface": surprise.interface,
                "frame": surprise.frame.hex(),
                "length": surprise.length,
                "traceback": surprise.traceback,
            }
            for surprise in self.kept
        ]


def _kind(error: Exception) -> str:
    steps = traceback.extract_tb(error.__traceback__)
    where = f"{steps[-1].filename}:{steps[-1].lineno}" if steps else ""
    return f"{type(error).__name__} {where}"
