"""Couriers on a sealed wire, and on one that others may write to."""

import trio

from lvsha.sync.loopback import LoopbackGroup
from lvsha.sync.seal import Seal
from tests.couriers import KEY, OTHER_KEY, Site, running, virtually, waiting
from tests.replicas import connection

# --- the sealed wire --------------------------------------------------------------------------


def test_two_nodes_with_one_key_work_as_without() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east = Site(group, "east", connections=500, keys=(KEY,))
        west = Site(group, "west", keys=(KEY, OTHER_KEY))
        listener = group.join()
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(2)
            assert west.courier.complete(1)
            assert west.table.content == east.table.content
            east.change(connection(900))
            assert west.table.content != east.table.content
            await trio.sleep(0.01)
            assert west.table.content == east.table.content
        assert {datagram[0] for datagram in waiting(listener)} == {2}

    virtually(main)


def test_what_is_not_sealed_with_the_key_is_counted_by_kind_and_not_used() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", keys=(KEY,)), Site(group, "west", keys=(KEY,))
        listener = group.join()
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(2)
            waiting(listener)
            east.change(connection(1))
            (sealed,) = waiting(listener)
            before = dict(west.table.content)
            await trio.sleep(0.01)
            flipped = bytearray(sealed)
            flipped[-1] ^= 1
            for datagram in (
                sealed,
                bytes(flipped),
                Seal((OTHER_KEY,), 9).seal(b"\x01\x01\xff\xff\x90"),
                b"\x01\x01\xff\xff\x90",
                sealed[:20],
                b"\x00" * 44,
            ):
                west.transport.deliver(datagram)
            await trio.sleep(0.01)
            assert before == {}
            assert list(west.table.content) == [connection(1).key]
            for kind, count in {
                "replayed": 2,
                "unknown_key": 1,
                "unsealed": 1,
                "malformed": 1,
            }.items():
                assert west.counter(f"refused_{kind}") == count, kind
            assert west.counter("refused_sync_id") == 1

    virtually(main)


def test_a_recording_of_yesterday_is_not_believed() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", connections=50, keys=(KEY,)), Site(group, "w", keys=(KEY,))
        tape = group.join()
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(3)
            assert west.courier.complete(1)
        recording = waiting(tape)
        assert len(recording) > 10
        today = LoopbackGroup()
        alone = Site(today, "north", keys=(KEY,))
        async with running(alone):
            for datagram in recording:
                alone.transport.deliver(datagram)
            await trio.sleep(5)
            assert alone.table.content == {}
            assert alone.replicas[0].counters["refused_unproven"] == len(recording)
            assert alone.courier.complete(1)
            assert alone.replicas[0].status(trio.current_time())["peers"] == []

    virtually(main)


def test_a_change_of_keys_step_by_step_loses_nothing() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, west = Site(group, "east", keys=(KEY,)), Site(group, "west", keys=(KEY,))
        async with running(east, west):
            east.courier.lead(1)
            await trio.sleep(2)
            number = 0
            for keys in ((KEY, OTHER_KEY), (OTHER_KEY, KEY), (OTHER_KEY,)):
                for site in (west, east):
                    assert site.seal is not None
                    site.seal.change_keys(keys)
                    number += 1
                    east.change(connection(number))
                    await trio.sleep(0.3)
            assert west.table.content == east.table.content
            assert len(west.table.content) == number
            assert west.replicas[0].counters["datagrams_lost"] == 0

    virtually(main)


# --- floods -----------------------------------------------------------------------------------


def test_a_flood_leaves_other_tasks_their_turn_and_is_counted() -> None:
    async def main() -> None:
        group = LoopbackGroup()
        east, listener = Site(group, "east"), group.join()
        turns = 0

        async def breathe() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with running(east) as nursery:
            await trio.sleep(0.1)
            for _ in range(2000):
                east.transport.deliver(b"\x01\x01\xff\xff\xc1")
            nursery.start_soon(breathe)
            while east.replicas[0].counters["refused_malformed"] < 2000:
                await trio.lowlevel.checkpoint()
            assert turns > 100
            waiting(listener)

    trio.run(main)
