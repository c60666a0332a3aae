"""Count events by name.

A `Counters` is what a part shows of its inner life: every refused packet, every
failed system call and every limit that was hit ends here, so that nothing is
lost without a trace. Names are lower-case words joined by underscores and are
part of the public JSON; they are never built from input, so that a hostile
sender cannot make the table grow.
"""

from collections import Counter


class Counters:
    """Monotonic event counts of one part."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count ``amount`` more events called ``name``."""
        self._counts[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        """All counts so far, in alphabetical order."""
        return dict(sorted(self._counts.items()))
