"""Hear who else announces an address: a real socket filter on a real interface."""

import os
from collections.abc import Iterator

import pytest
import trio

from lvsha import interfaces
from lvsha.failover.announcements import announce, open_sender
from lvsha.failover.rivals import PacketRivalListener, Rival
from lvsha.model import parse_address
from tests.yard import NEEDS, run, within

pytestmark = NEEDS

OURS, OTHERS = f"life{os.getpid()}-ours", f"life{os.getpid()}-others"
V4, V6 = parse_address("192.0.2.10"), parse_address("2001:db8::10")
FOREIGN = [parse_address("192.0.2.11"), parse_address("2001:db8::11")]
LIMIT = 10.0


def make_link() -> None:
    run("ip", "link", "add", "wire", "netns", OURS, "type", "veth",
        "peer", "name", "wire", "netns", OTHERS)  # fmt: skip
    for namespace in (OURS, OTHERS):
        run("ip", "-n", namespace, "link", "set", "wire", "up")


@pytest.fixture(autouse=True)
def _wire() -> Iterator[None]:
    try:
        for namespace in (OURS, OTHERS):
            run("ip", "netns", "add", namespace)
        make_link()
        yield
    finally:
        for namespace in (OURS, OTHERS):
            run("ip", "netns", "del", namespace, check=False)


def others_say(*addresses: bytes) -> bytes:
    """Another machine announces addresses; returns its hardware address."""

    def say() -> bytes:
        with open_sender() as sender:
            announce("wire", addresses, sender)
        return interfaces.mac_address("wire")

    return within(OTHERS, say)


async def hear(listener: PacketRivalListener, number: int) -> list[Rival]:
    """So many announcements; a limit of time ends the test."""
    heard: list[Rival] = []
    with trio.fail_after(LIMIT):
        while len(heard) < number:
            rival = await listener.rival()
            if rival is not None:
                heard.append(rival)
    return heard


async def opened(listener: PacketRivalListener) -> None:
    """Let a listener open its socket."""
    with trio.move_on_after(0.1):
        await listener.rival()
        raise AssertionError("there is nothing to hear yet")


def test_others_are_heard_and_nobody_else() -> None:
    async def scenario() -> None:
        listener = PacketRivalListener("wire", [V4, V6])
        await opened(listener)
        with open_sender() as sender:
            announce("wire", [V4, V6], sender)
        mac = others_say(*FOREIGN, V4, V6)
        # A request and a reply of ARP, and an advertisement.
        assert await hear(listener, 3) == [Rival(V4, mac), Rival(V4, mac), Rival(V6, mac)]
        with trio.move_on_after(0.2):
            raise AssertionError(await listener.rival())
        assert listener.counters.snapshot() == {}
        listener.close()

    within(OURS, lambda: trio.run(scenario))


def test_an_interface_that_goes_away_and_comes_back_is_heard_again() -> None:
    async def scenario() -> None:
        listener = PacketRivalListener("wire", [V4])
        await opened(listener)
        run("ip", "-n", OURS, "link", "del", "wire")
        with trio.fail_after(LIMIT):
            assert await listener.rival() is None
            assert await listener.rival() is None
        assert listener.counters.snapshot()["interface_troubles"] >= 2
        make_link()
        await opened(listener)
        mac = others_say(V4)
        assert await hear(listener, 1) == [Rival(V4, mac)]
        listener.close()

    within(OURS, lambda: trio.run(scenario))
