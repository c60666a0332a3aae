"""Addresses, and the routes and rules that move with them: in which order, and for how long."""

import ipaddress
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from lvsha.counters import Counters
from lvsha.failover import addresses, routes
from lvsha.failover.addresses import InterfaceAddress, NetlinkAddresses
from lvsha.failover.routes import TIME_MAX, MovingAddresses, NetlinkRoutes, Route


@dataclass(eq=False)
class Diary:
    """A kernel in memory: what it was told, when it was done, and what it refuses or holds up."""

    done: list[tuple[float, str]] = field(default_factory=list)
    delays: dict[str, float] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    async def do(self, what: str) -> bool:
        await trio.sleep(self.delays.get(what, 0.0))
        self.done.append((trio.current_time(), what))
        return what not in self.refused


@dataclass
class Addresses:
    diary: Diary
    counters: Counters = field(default_factory=Counters)

    async def prepare(self) -> None:
        pass

    async def acquire(self) -> bool:
        return await self.diary.do("acquire")

    async def release(self) -> bool:
        return await self.diary.do("release")

    async def refresh(self) -> bool:
        return await self.diary.do("refresh")

    async def announce(self) -> bool:
        return await self.diary.do("announce")


@dataclass
class Routes:
    diary: Diary

    async def install(self) -> bool:
        return await self.diary.do("install")

    async def keep(self) -> bool:
        return await self.diary.do("keep")

    async def remove(self) -> bool:
        return await self.diary.do("remove")

    def status(self) -> dict[str, object]:
        return {}


def play(diary: Diary, step: Callable[[MovingAddresses], Awaitable[bool]]) -> bool:
    async def run() -> bool:
        return await step(MovingAddresses(Addresses(diary), Routes(diary)))

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("step", "order"),
    [
        (MovingAddresses.acquire, ["acquire", "install"]),
        (MovingAddresses.release, ["remove", "release"]),
        (MovingAddresses.refresh, ["refresh", "keep"]),
        (MovingAddresses.announce, ["announce"]),
    ],
)
def test_routes_come_after_the_addresses_and_go_before_them(
    step: Callable[[MovingAddresses], Awaitable[bool]], order: list[str]
) -> None:
    diary = Diary()
    assert play(diary, step)
    assert [what for _, what in diary.done] == order


def test_a_refused_route_does_not_unhold_the_addresses() -> None:
    diary = Diary(refused={"install", "keep", "remove"})
    assert play(diary, MovingAddresses.acquire)
    assert play(diary, MovingAddresses.refresh)
    assert play(diary, MovingAddresses.release)


def test_refused_addresses_are_told_and_routes_are_tried_all_the_same() -> None:
    diary = Diary(refused={"acquire", "refresh", "release"})
    assert not play(diary, MovingAddresses.acquire)
    assert not play(diary, MovingAddresses.refresh)
    assert not play(diary, MovingAddresses.release)
    assert [what for _, what in diary.done][:2] == ["acquire", "install"]


def test_slow_routes_hold_up_neither_the_announcement_nor_the_addresses() -> None:
    async def acquire_and_announce(addresses: MovingAddresses) -> bool:
        await addresses.acquire()
        return await addresses.announce()

    slow = dict.fromkeys(("install", "keep", "remove"), 3600.0)
    for step, last in (
        (acquire_and_announce, "announce"),
        (MovingAddresses.release, "release"),
        (MovingAddresses.refresh, "refresh"),
    ):
        diary = Diary(delays=slow)
        assert play(diary, step)
        at, what = diary.done[-1]
        assert what == last
        assert at <= TIME_MAX


def test_what_a_slow_kernel_renews_after_its_release_was_given_up_goes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, released = threading.Event(), threading.Event()
    nothing: tuple[tuple[()], tuple[()]] = ((), ())

    def hold(*_arguments: object) -> object:
        kernel.wait(10)
        return nothing

    def remove(*_arguments: object) -> object:
        released.set()
        return nothing

    async def run() -> None:
        made = NetlinkAddresses([InterfaceAddress("lo", ipaddress.ip_interface("10.9.0.1/32"))])
        for operation in (made.refresh, made.release):
            with trio.move_on_after(0.05) as limit:
                await operation()
            assert limit.cancelled_caught
        assert not released.is_set()
        kernel.set()
        assert await trio.to_thread.run_sync(released.wait, 10)

    monkeypatch.setattr(addresses, "AddressSocket", object)
    monkeypatch.setattr(addresses, "_hold", hold)
    monkeypatch.setattr(addresses, "_remove", remove)
    trio.run(run)


def test_what_a_slow_kernel_adds_after_its_removal_was_given_up_goes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operation that nobody waits for any more goes on in its thread."""
    kernel, removed = threading.Event(), threading.Event()

    def add(_pieces: object) -> routes._Done:
        kernel.wait(10)
        return routes._Done()

    def remove(_pieces: object) -> routes._Done:
        removed.set()
        return routes._Done()

    async def run() -> None:
        made = NetlinkRoutes([Route(ipaddress.IPv4Network("10.9.0.0/16"), interface="lo")], [])
        for operation in (made.install, made.remove):
            with trio.move_on_after(0.05) as limit:
                await operation()
            assert limit.cancelled_caught
        assert made.counters.snapshot() == {"routes_too_slow": 2}
        assert not removed.is_set()
        kernel.set()
        assert await trio.to_thread.run_sync(removed.wait, 10)

    monkeypatch.setattr(routes, "_add_missing", add)
    monkeypatch.setattr(routes, "_remove", remove)
    trio.run(run)
