"""Say the last words again, which a listener could miss without knowing.

A datagram that was lost shows by the number of the next one, and is asked for again. The
newest has no next one: until a heartbeat tells its number nobody misses it, and if its sender
dies before, what it told is lost with it. The few before it may have been asked for, but not
sent again yet. So while nothing waits to be told, the newest datagrams with changes leave
again as they were, each after each of `WAITS`: as many as are small together. Who has one
ignores it by its number. The datagrams of a director that is busy are large, and it always has
a next one, so it repeats little.

Times are seconds on a monotonic clock.
"""

from collections.abc import Sequence
from typing import Final

# With one in five lost, what is older than 5.3 ms is missed once in 600 times.
WAITS: Final = (0.0003, 0.001, 0.004, 0.016, 0.064)
# Two of a quiet director; a busy one repeats its newest at most.
TOGETHER_BYTES: Final = 192


class Tail:
    """The newest datagrams with changes.

    Args:
        waits: seconds before each repeat.

    Attributes:
        at: when one of them is to leave again; None if none is.
    """

    __slots__ = ("_bytes", "_newest", "_waits", "at")

    def __init__(self, waits: Sequence[float] = WAITS) -> None:
        self._waits = waits
        self.at: float | None = None
        # number -> (when it leaves again, how often it has, its bytes)
        self._newest: dict[int, tuple[float, int, int]] = {}
        self._bytes = 0

    def left(self, number: int, size: int, now: float) -> None:
        """A newer one has left, of so many bytes."""
        if not self._waits:
            return
        self._newest[number] = (now + self._waits[0], 0, size)
        self._bytes += size
        while self._bytes > TOGETHER_BYTES and len(self._newest) > 1:
            self._drop(next(iter(self._newest)))
        self._look()

    def forget(self) -> None:
        """Nothing is told any more."""
        self._newest.clear()
        self._bytes = 0
        self.at = None

    def due(self, now: float) -> list[int]:
        """The numbers of those that leave again now, oldest first."""
        if self.at is None or now < self.at:
            return []
        due = [number for number, (at, _, _) in self._newest.items() if at <= now]
        for number in due:
            _, repeats, size = self._newest[number]
            if repeats + 1 < len(self._waits):
                self._newest[number] = (now + self._waits[repeats + 1], repeats + 1, size)
            else:
                self._drop(number)
        self._look()
        return due

    def _drop(self, number: int) -> None:
        _, _, size = self._newest.pop(number)
        self._bytes -= size

    def _look(self) -> None:
        self.at = min((at for at, _, _ in self._newest.values()), default=None)
