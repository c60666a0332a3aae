"""Long work on the loop, in turns with all else that runs there.

Frames are forwarded by the same loop that answers an operator. Whatever takes longer than
a frame may wait is done in pieces; `Turns` says between which of them the others come in.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

TURN: Final = 0.001
"""Seconds of work in one go; a frame waits for so long, and for one piece more, at most."""


class Turns:
    """One piece of long work.

    Args:
        clock: seconds, of any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()

    async def pass_on(self) -> None:
        """Let the others have their turn, if this work has had its own."""
        if self._clock() - self._began >= TURN:
            await trio.lowlevel.checkpoint()
            self._began = self._clock()
