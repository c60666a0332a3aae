"""The end of a sync that joins, and then has all that the other one has.

It waits for a line: ``join NUMBER`` has it join a leader that has so many connections; it
says when it did, and what it took, once its copy is complete and was tried: some hundred
connections looked up, a frame of one forwarded. ``settle SEQUENCE`` has it wait until it has
all up to that number of the leader, and say what it has then. ``end`` ends it.

Run as ``python -m bench.sync_follower``.
"""

import random
import time
from typing import Final

import trio

from bench.crowd import SEED, SERVICE_PORT, SYNC_ID
from bench.sync_node import LIVE, POLL, READY, Steps, SyncNode, say, words
from bench.sync_words import Joined, Settled, encode
from lvsha.datapath.garbage import short_pauses
from lvsha.datapath.tcp_states import TcpState
from lvsha.errors import HostError
from lvsha.model import connection_key

SAMPLE: Final = 500
JOIN_TIME_MAX: Final = 120.0
SETTLE_TIME_MAX: Final = 5.0


async def _join(node: SyncNode, number: int, joined_at: float) -> Joined:
    """Wait until the copy is complete, and try it."""
    own_at = time.process_time()
    followed_at = 0.0
    with trio.fail_after(JOIN_TIME_MAX):
        while not (followed_at and node.courier.complete(SYNC_ID)):
            if not followed_at and node.leader:
                followed_at = time.monotonic()
            await trio.sleep(POLL)
    complete_at, own = time.monotonic(), time.process_time() - own_at
    _try(node, number)
    return Joined(joined_at, followed_at, complete_at, time.monotonic(), own)


def _try(node: SyncNode, number: int) -> None:
    """Look connections up at random, and forward a frame of one."""
    crowd, table = node.crowd, node.director.registry.table
    numbers = random.Random(SEED).sample(range(number), min(SAMPLE, number))
    for each in numbers:
        client, port = crowd.client(each)
        virtual = crowd.virtual[each % len(crowd.virtual)]
        key = connection_key(crowd.kind.protocol, client, port, virtual, SERVICE_PORT)
        connection = table.find(key)
        if connection is None or connection.state != TcpState.ESTABLISHED:
            raise HostError(f"connection {each} is not there, or not as it was")
    for address in crowd.virtual:
        node.director.hold(address, held=True)
    received = crowd.lay(crowd.request(numbers[0]))
    if not node.director.process(crowd.frame, received, trio.current_time()):
        raise HostError("a frame of a copied connection was not forwarded")


async def _settle(node: SyncNode, sequence: int) -> None:
    """Wait until all up to a number is there."""

    def is_there() -> bool:
        return node.of_peer("sequence") >= sequence and node.courier.complete(SYNC_ID)

    with trio.fail_after(SETTLE_TIME_MAX):
        while not is_there():  # noqa: ASYNC110  # the replica says nothing when it is
            await trio.sleep(POLL)


async def follow(steps: Steps) -> None:
    """Do what is told."""
    node = SyncNode("follower")
    for address in node.crowd.virtual:
        node.director.hold(address, held=False)
    lines = words()
    say(READY)
    word, number = await anext(lines)
    assert word == "join", "a follower joins before all else"
    steps.clear()
    joined_at = time.monotonic()
    async with node.running():
        say(encode(await _join(node, int(number), joined_at)))
        async for word, *arguments in lines:
            if word == "end":
                return
            assert word == "settle", "there is no other word"
            await _settle(node, int(arguments[0]))
            say(encode(_settled(node, steps)))


def _settled(node: SyncNode, steps: Steps) -> Settled:
    times, node.store.times = node.store.times, {}
    base = int.from_bytes(node.store.first_live) - LIVE
    return Settled(
        node.standing(steps),
        [(int.from_bytes(client) - base, at) for client, at in times.items()],
        node.of_peer("datagrams_lost"),
        node.of_peer("datagrams_repaired"),
    )


def main() -> None:
    """Follow in this process."""
    steps = Steps()
    with short_pauses():
        trio.run(follow, steps, instruments=[steps])


if __name__ == "__main__":
    main()
