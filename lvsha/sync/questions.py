"""Ask the other nodes about connections that this one does not know.

A question is open until a peer knows the connection, until all that are heard have denied
it, until something newer is heard of the connection, or for `PATIENCE`. It is asked again
after each of `WAITS`, for a question may be lost, and so may its answer. Answers to what was
not asked are ignored, so that nobody can bring in a connection by answering. At most
`OPEN_MAX` questions are open; what does not fit is not asked.

Times are seconds on a monotonic clock.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from lvsha.model import ConnectionRecord
from lvsha.sync.datagrams import entries_room
from lvsha.sync.messages import KEYS_MAX, Answer, Origin, Question

PATIENCE: Final = 0.5
# With one in five lost each way, all of these and the first fail once in 130 times; a client
# that repeats its packet starts anew.
WAITS: Final = (0.01, 0.03, 0.09)
OPEN_MAX: Final = 1024
_KEY_OVERHEAD_BYTES: Final = 3


@dataclass(slots=True)
class _Open:
    """A question that waits for answers."""

    until: float
    again_at: float
    repeats: int = 0
    denied_by: set[str] = field(default_factory=set)


class Questions:
    """Those of one node.

    Args:
        datagram_max: bytes.
    """

    def __init__(self, datagram_max: int) -> None:
        self._datagram_max = datagram_max
        self._open: dict[bytes, _Open] = {}
        # The earliest of all that are open, or earlier.
        self._again_at = float("inf")

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        oldest = next(iter(self._open.values()), None)
        return None if oldest is None else min(oldest.until, self._again_at)

    def ask(
        self,
        keys: Sequence[bytes],
        listeners: Collection[str],
        origin: Origin,
        now: float,
    ) -> Iterator[Question]:
        """Open questions about connections; what is to be sent for them.

        Args:
            keys: of the connections.
            listeners: the peers that are heard.
            origin: of this node.
            now: the clock.
        """
        fresh = [key for key in keys if key not in self._open]
        if not listeners:
            return
        fresh = fresh[: OPEN_MAX - len(self._open)]
        again_at = now + WAITS[0]
        for key in fresh:
            self._open[key] = _Open(now + PATIENCE, again_at)
        self._again_at = min(self._again_at, again_at)
        yield from self._messages(fresh, origin)

    def _messages(self, keys: Sequence[bytes], origin: Origin) -> Iterator[Question]:
        room = entries_room(origin, self._datagram_max)
        asked: list[bytes] = []
        left = room
        for key in keys:
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

    def expire(self, origin: Origin, now: float) -> Iterator[Question]:
        """Close what nobody has answered; what is to be sent to ask for the rest again."""
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if oldest.until > now:
                break
            del self._open[key]
        if now < self._again_at:
            return
        again: list[bytes] = []
        for key, question in self._open.items():
            if question.again_at <= now:
                again.append(key)
                question.repeats += 1
                last = question.repeats == len(WAITS)
                question.again_at = float("inf") if last else now + WAITS[question.repeats]
        self._again_at = min((each.again_at for each in self._open.values()), default=float("inf"))
        yield from self._messages(again, origin)

    def forget(self) -> None:
        """This node asks no more."""
        self._open.clear()
        self._again_at = float("inf")
