"""Ask the other nodes about connections that this one does not know.

A question is open until a peer knows the connection, until all that are heard have denied
it, until something newer is heard of the connection, or for `PATIENCE`. Answers to what was
not asked are ignored, so that nobody can bring in a connection by answering. At most
`OPEN_MAX` questions are open; what does not fit is not asked.

Times are seconds on a monotonic clock.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from lvsha.model import ConnectionRecord
from lvsha.sync.messages import KEYS_MAX, Answer, Origin, Question

PATIENCE: Final = 0.5
OPEN_MAX: Final = 1024
_KEY_OVERHEAD_BYTES: Final = 3


@dataclass(slots=True)
class _Open:
    """A question that waits for answers."""

    until: float
    denied_by: set[str] = field(default_factory=set)


class Questions:
    """Those of one node."""

    def __init__(self) -> None:
        self._open: dict[bytes, _Open] = {}

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        oldest = next(iter(self._open.values()), None)
        return None if oldest is None else oldest.until

    def ask(
        self,
        keys: Sequence[bytes],
        listeners: Collection[str],
        origin: Origin,
        room: int,
        now: float,
    ) -> Iterator[Question]:
        """Open questions about connections; what is to be sent for them.

        Args:
            keys: of the connections.
            listeners: the peers that are heard.
            origin: of this node.
            room: for keys in a datagram, in bytes.
            now: the clock.
        """
        fresh = [key for key in keys if key not in self._open]
        if not listeners:
            return
        fresh = fresh[: OPEN_MAX - len(self._open)]
        for key in fresh:
            self._open[key] = _Open(now + PATIENCE)
        asked: list[bytes] = []
        left = room
        for key in fresh:
            left -= len(key) + _KEY_OVERHEAD_BYTES
            if asked and (left < 0 or len(asked) == KEYS_MAX):
                yield Question(origin, tuple(asked))
                asked, left = [], room - len(key) - _KEY_OVERHEAD_BYTES
            asked.append(key)
        if asked:
            yield Question(origin, tuple(asked))

    def answered(
        self, answer: Answer, listeners: Collection[str]
    ) -> tuple[list[ConnectionRecord], tuple[bytes, ...]]:
        """What an answer has brought: connections, and the keys that nobody knows."""
        records = [record for record in answer.records if self._open.pop(record.key, None)]
        denied: list[bytes] = []
        for key in answer.unknown:
            question = self._open.get(key)
            if question is None:
                continue
            question.denied_by.add(answer.origin.node)
            if question.denied_by.issuperset(listeners):
                del self._open[key]
                denied.append(key)
        return records, tuple(denied)

    def close(self, keys: Iterable[bytes]) -> None:
        """Something newer than any answer is known of these connections."""
        for key in keys:
            self._open.pop(key, None)

    def __bool__(self) -> bool:
        return bool(self._open)

    def expire(self, now: float) -> None:
        """Close what nobody has answered."""
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if oldest.until > now:
                return
            del self._open[key]
