"""Write log lines about what strangers can cause, at a limited rate.

Any sender on the wire can produce as many bad packets as it likes; the log must not fill
for it. The first lines about an event in each interval are written and the rest counted;
the first line after the interval says how many were left out. Counters, not the log, are
the complete account.

Times are seconds on a monotonic clock and arguments, so that the limit itself is testable.
"""

from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

LINES_MAX: Final = 5
INTERVAL: Final = 60.0


@dataclass(slots=True)
class _Window:
    """The lines about one event since ``started``."""

    started: float
    written: int = 0
    suppressed: int = 0


class RateLimit:
    """At most so many lines in an interval for each event.

    Events are words of the program, never built from input, so that their table cannot
    grow.
    """

    def __init__(self, lines_max: int = LINES_MAX, interval: float = INTERVAL) -> None:
        self._lines_max = lines_max
        self._interval = interval
        self._windows: dict[str, _Window] = {}

    def admit(self, event: str, now: float) -> int | None:
        """Whether to write a line about ``event`` now.

        Returns:
            None to write nothing; else how many lines were left out since the last one.
        """
        window = self._windows.setdefault(event, _Window(now))
        left_out = 0
        if now >= window.started + self._interval:
            left_out = window.suppressed
            window.started, window.written, window.suppressed = now, 0, 0
        if window.written >= self._lines_max:
            window.suppressed += 1
            return None
        window.written += 1
        return left_out


class LimitedLog:
    """A logger whose warnings pass a `RateLimit`."""

    def __init__(self, log: FilteringBoundLogger, limit: RateLimit | None = None) -> None:
        self._log = log
        self._limit = limit or RateLimit()

    def warning(self, event: str, now: float, **fields: object) -> None:
        """Log ``event`` with its fields unless there were too many of late."""
        left_out = self._limit.admit(event, now)
        if left_out is None:
            return
        if left_out:
            fields["suppressed"] = left_out
        self._log.warning(event, **fields)
