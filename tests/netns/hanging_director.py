"""The ``lvsha`` command, whose loop that forwards can be made to hang.

SIGUSR1: the task that carries frames waits for ever, all others go on. SIGUSR2: a frame takes
for ever, and everything stops with it. What hangs is the real loop of the real program; only
how it comes to hang is made up.
"""

import signal
import time
from types import FrameType
from unittest.mock import patch

import trio

from lvsha.cli import main
from lvsha.datapath.forwarder import Forwarder
from lvsha.datapath.pulse import Pulse

hanging: set[int] = set()
_carry = Forwarder._carry
_answer = Pulse.answer


class _HungError(Exception):
    """The loop comes by here no more."""


def note(number: int, _frame: FrameType | None) -> None:
    hanging.add(number)


def answer(pulse: Pulse) -> None:
    if signal.SIGUSR2 in hanging:
        while True:
            time.sleep(1)
    if signal.SIGUSR1 in hanging:
        raise _HungError
    _answer(pulse)


async def carry(forwarder: Forwarder) -> None:
    try:
        await _carry(forwarder)
    except _HungError:
        await trio.sleep_forever()


if __name__ == "__main__":
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, note)
    with patch.object(Pulse, "answer", answer), patch.object(Forwarder, "_carry", carry):
        main()
