"""What a source has sent lately, so that it can send it again.

Each numbered datagram is kept as it left until there are more than ``bytes_max`` of them
together; the oldest goes first. So what a listener misses for a moment costs that datagram
once more, and what it misses for long costs a comparison of sums.

Times are seconds on a monotonic clock.
"""

from typing import Final, NamedTuple

# Some seconds of a busy director's changes, or two of a snapshot.
HISTORY_BYTES: Final = 4 * 1024 * 1024


class Sent(NamedTuple):
    """A datagram that left.

    Attributes:
        datagram: its bytes.
        changes: how many live changes it told; 0 of a snapshot.
        at: when it left.
    """

    datagram: bytes
    changes: int
    at: float


class History:
    """The newest numbered datagrams of a source."""

    def __init__(self, bytes_max: int = HISTORY_BYTES) -> None:
        self._bytes_max = bytes_max
        self._bytes = self._changes = 0
        self._sent: dict[int, Sent] = {}

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def oldest(self) -> int | None:
        """The oldest number that is here; None if none is."""
        return next(iter(self._sent), None)

    @property
    def mean_changes(self) -> float:
        """How many changes one of the datagrams has, on average."""
        return self._changes / len(self._sent) if self._sent else 0.0

    def add(self, number: int, datagram: bytes, changes: int, now: float) -> None:
        """Keep a datagram that leaves now."""
        self._sent[number] = Sent(datagram, changes, now)
        self._bytes += len(datagram)
        self._changes += changes
        while self._bytes > self._bytes_max:
            gone = self._sent.pop(next(iter(self._sent)))
            self._bytes -= len(gone.datagram)
            self._changes -= gone.changes

    def find(self, number: int) -> bytes | None:
        """The datagram with this number, if it is here still."""
        sent = self._sent.get(number)
        return None if sent is None else sent.datagram

    def clear(self) -> None:
        """Forget everything: a listener that misses any of it has to compare."""
        self._sent.clear()
        self._bytes = self._changes = 0

    def after(self, position: int) -> tuple[int, float | None]:
        """What left behind a number: how many changes, and when the first of them did."""
        changes, first = 0, None
        for number in reversed(self._sent):
            if number <= position:
                break
            sent = self._sent[number]
            if sent.changes:
                changes += sent.changes
                first = sent.at
        return changes, first
