"""Notice when the machine itself stands still.

Client, servers and directors of a drill share the processors of one machine, which may be the
guest of a host that gives it none for a while. Such a gap in the answers is nobody's fault,
and should not be taken for one. This program has a thread on each processor, of the highest
priority that it may have, which does nothing but sleep. When one wakes much later than it
should, the machine stood still, or its kernel had no time for programs.

It runs until its standard input ends, and then writes what it noticed as JSON.

Times are seconds on the host's monotonic clock.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

INTERVAL: Final = 0.001
NOTICED: Final = 0.004
"""Shorter ones come and go on every machine."""
STANDSTILLS_MAX: Final = 5000
"""Of one processor; a machine that has more is of no use for a drill."""
_PRIORITY: Final = -20

Noticed = tuple[float, float, int]
"""From, until, and the number of the processor."""


def watch(
    ended: threading.Event,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[float, float]]:
    """When the processor of this thread stood still, from and until, before the end."""
    number = 0
    last = clock()
    while not ended.is_set() and number < STANDSTILLS_MAX:
        sleep(INTERVAL)
        now = clock()
        if now - last > INTERVAL + NOTICED:
            yield last + INTERVAL, now
            number += 1
        last = now


def _watch_one(processor: int, ended: threading.Event, noticed: list[Noticed]) -> None:
    os.sched_setaffinity(0, {processor})
    with suppress(PermissionError):  # who may not has other programs come first, too
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
    noticed += [(since, until, processor) for since, until in watch(ended)]


def main() -> None:
    """Watch all processors that this program may use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    result: Path = parser.parse_args().result
    ended = threading.Event()
    noticed: list[Noticed] = []
    threads = [
        threading.Thread(target=_watch_one, args=(processor, ended, noticed))
        for processor in sorted(os.sched_getaffinity(0))
    ]
    for thread in threads:
        thread.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    result.write_text(json.dumps(sorted(noticed)), encoding="utf-8")


if __name__ == "__main__":
    main()
