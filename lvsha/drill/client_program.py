"""The drill's client as the rehearsal talks to it; see `lvsha.drill.client`."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Final

import trio

from lvsha.errors import HostError

ANSWER_BYTES_MAX: Final = 1 << 20
SILENCE_SHOWN: Final = 0.3


class ClientProgram:
    """The client program: words in, JSON out.

    Args:
        process: it, with its input and output.
        note: told what it holds, for a person, several times a second.
    """

    def __init__(self, process: trio.Process, note: Callable[[str], None]) -> None:
        self._process = process
        self._note = note
        self._replies_in, self._replies = trio.open_memory_channel[dict[str, object]](16)

    async def listen(self) -> None:
        """Pass ticks on for a person, and replies to who waits for them."""
        assert self._process.stdout is not None
        pending = b""
        async for received in self._process.stdout:
            *lines, pending = (pending + received).split(b"\n")
            assert len(pending) < ANSWER_BYTES_MAX
            for line in lines:
                message = json.loads(line)
                if "tick" in message:
                    self._note(describe_tick(message["tick"], time.monotonic()))
                else:
                    await self._replies_in.send(message)
        self._replies_in.close()

    async def tell(self, word: str, limit: float) -> dict[str, object]:
        """Say a word and wait for the reply.

        Raises:
            HostError: there was none in time, or the program is gone.
        """
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(word.encode() + b"\n")
            with trio.fail_after(limit):
                return await self._replies.receive()
        except trio.TooSlowError as error:
            raise HostError(f"the client did not answer {word!r} in {limit:.0f} s") from error
        except (trio.BrokenResourceError, trio.EndOfChannel) as error:
            raise HostError("the client program ended early; see client.log") from error


def describe_tick(tick: Mapping[str, object], now: float) -> str:
    """One line on what the client holds, for a person who waits."""
    last = tick["last_answer_at"]
    silent = now - last if isinstance(last, float) else 0.0
    words = [
        f"{tick['streams']} streams",
        f"{tick['idle']} idle",
        f"{tick['short']} short done",
        f"{tick['answers']} probe answers",
    ]
    lost = int(str(tick["broken"])) + int(str(tick["short_lost"]))
    if lost:
        words.append(f"{lost} lost")
    if silent > SILENCE_SHOWN:
        words.append(f"no answer for {silent:.1f} s")
    return ", ".join(words)
