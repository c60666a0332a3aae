"""Ask the peers about packets in mid-stream, and let the packets wait for the answer.

A director that has just taken over, or that has lost its table, may get a packet of a
connection that only a peer knows. The packet waits, the peers are asked for its key, and it
goes on when the record has come. Where all who were heard deny the connection its sender is
told; where nobody says anything the packet is forgotten.

Of a connection one packet waits, the first; its sender repeats the others anyway. A key is
asked for at most once in `PATIENCE`, whatever comes meanwhile.

What always holds: no more packets wait than the limits say, and none longer than `PATIENCE`,
as far as `expire` is called. Times are seconds on the caller's clock.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from lvsha.datapath import resets
from lvsha.datapath.flow import Frame
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import Reassembled
from lvsha.datapath.verdicts import WAIT, Drop, Wait

FRAMES_MAX: Final = 512
"""Packets that wait. A peer answers within milliseconds, so these are some ten thousand
connections in a second."""
BYTES_MAX: Final = 1_048_576
"""What they take: 16 super-frames, or so many packets of the usual size and more."""
KEYS_MAX: Final = 4096
"""Connections that were asked for within `PATIENCE`, those with an answer among them."""
PATIENCE: Final = 0.25
"""How long a packet waits. Its sender repeats it after a second (RFC 6298), or a little
earlier than this where the network is quick (Linux: 0.2 s)."""


@dataclass(frozen=True, slots=True)
class Held:
    """A packet that waits.

    Attributes:
        data: its frame, virtio header included.
        arrived: as in `Frame`.
    """

    data: bytes
    arrived: Reassembled | None

    def lay(self, frame: Frame) -> int:
        """Put the frame into a buffer again; returns its size."""
        size = len(self.data)
        frame.view[:size] = self.data
        return size


@dataclass(slots=True)
class _Question:
    """A key that was asked for."""

    since: float
    denied: bool = False


class Questions:
    """What the peers are asked.

    Args:
        drops: where packets are counted that waited in vain.

    Attributes:
        unasked: the sync id of each key for which they have not been asked yet; always the
            same object.
    """

    def __init__(self, drops: Counter[Reason]) -> None:
        self._drops = drops
        self.unasked: dict[bytes, int] = {}
        self._asked: dict[bytes, _Question] = {}
        self._held: dict[bytes, Held] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """How many packets wait."""
        return len(self._held)

    def ask(self, frame: Frame, sync_id: int, now: float) -> Wait | Drop:
        """Let a packet wait, or say why it cannot."""
        key = frame.key
        question = self._asked.get(key)
        if question is not None:
            return resets.refuse(frame) if question.denied else Drop(Reason.QUESTIONS_FULL)
        if (
            len(self._asked) >= KEYS_MAX
            or len(self._held) >= FRAMES_MAX
            or self._bytes + frame.end > BYTES_MAX
        ):
            return Drop(Reason.QUESTIONS_FULL)
        self._asked[key] = _Question(now)
        self._held[key] = Held(bytes(frame.view[: frame.end]), frame.arrived)
        self._bytes += frame.end
        self.unasked[key] = sync_id
        return WAIT

    def take(self) -> dict[int, list[bytes]]:
        """The keys that the peers are to be asked for, by sync id; each is given once."""
        taken: dict[int, list[bytes]] = {}
        for key, sync_id in self.unasked.items():
            taken.setdefault(sync_id, []).append(key)
        self.unasked.clear()
        return taken

    def deny(self, keys: Iterable[bytes]) -> None:
        """Nobody who was heard knows the connections of these keys."""
        for key in keys:
            question = self._asked.get(key)
            if question is not None:
                question.denied = True

    def answered(self, is_known: Callable[[bytes], object]) -> list[Held]:
        """The packets that wait no longer, and are to be decided about again.

        Of one whose connection was denied `ask` then says so.

        Args:
            is_known: whether the connection of a key is in the table now.
        """
        answered: list[Held] = []
        for key in list(self._held):
            if is_known(key):
                answered.append(self._release(key))
                del self._asked[key]  # should it end, a peer may know of another
            elif self._asked[key].denied:
                answered.append(self._release(key))
        return answered

    def expire(self, now: float) -> None:
        """Forget those that have waited for too long."""
        while self._asked:
            key, question = next(iter(self._asked.items()))
            if now < question.since + PATIENCE:
                break
            del self._asked[key]
            if key in self._held:
                self._release(key)
                self._drops[Reason.UNANSWERED] += 1

    def _release(self, key: bytes) -> Held:
        held = self._held.pop(key)
        self._bytes -= len(held.data)
        self.unasked.pop(key, None)
        return held
