"""Keep Python's garbage collector from stopping the traffic.

The facts. Nearly everything is freed at once, when its last reference goes; the collector is
only for cycles. It looks at young objects often and at all objects now and then, and a look
at all takes as long as there are many: 0.2 ms for 1,000 connections, 4.5 ms for 20,000,
70 ms for 200,000, half a second for a million (measured; `docs/performance.md` has the
machine). A look at young ones takes up to 3 ms whatever the table holds; done as often as
Python does it, and twice for what lives on, it took a tenth of the time of entering a peer's
connections.

The trap. Python begins a look at all by itself, once a quarter of what it knows is new: so
exactly when many connections come.

The choice. While frames are carried Python looks at objects once, when there are `YOUNG` new
ones, and never by itself at all of them. What there is at the start is frozen: it stays for
good and need not be looked at. Every `INTERVAL` all the others are looked at here, but only
while the table is small.

The price. A cycle that survives its youth and dies while the table is large stays until the
table is small again. Connections are in no cycles, so that is what commands and tasks leave
behind: little, and never because of a frame.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

INTERVAL: Final = 60.0
"""Seconds between two looks at all objects."""
CONNECTIONS_MAX: Final = 20_000
"""With more there is no such look, for it would take more than some 5 ms."""
YOUNG: Final = 10_000
"""Objects; a look at so many takes less than a millisecond."""
_NEVER: Final = 2**31 - 1


class Collector:
    """Looks at all objects when that is cheap."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def run(self, connections: int, now: float) -> bool:
        """Look at all objects if it is time and the table is small; returns whether it did."""
        if now < self._next_at:
            return False
        self._next_at = now + INTERVAL
        if connections > CONNECTIONS_MAX:
            return False
        gc.collect()
        return True


@contextmanager
def short_pauses() -> Iterator[Collector]:
    """Let no full collection run by itself; before and after it is as Python has it."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, _NEVER, _NEVER)
    try:
        yield Collector()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
