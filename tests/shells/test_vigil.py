"""The watch over the loop that forwards, under a virtual clock."""

import itertools
import time
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from lvsha.datapath.pulse import Pulse
from lvsha.vigil import Vigil

DOWN = 0.6
WATCHDOG = 2.0


class Manager:
    """A service manager that remembers what it was told, and when."""

    watchdog: float | None = WATCHDOG

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []

    def tell(self, **assignments: str) -> None:
        self.told.append((trio.current_time(), assignments))

    def signs(self) -> list[float]:
        return [at for at, told in self.told if "WATCHDOG" in told]


class Loop:
    """A loop that answers, or hangs."""

    def __init__(self) -> None:
        self.hangs = False

    async def beat(self) -> None:
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()


Scenario = Callable[[Vigil, Manager, Loop, list[str | None]], Awaitable[None]]


def play(scenario: Scenario, down: float = DOWN) -> None:
    async def run() -> None:
        manager, loop, faults = Manager(), Loop(), list[str | None]()
        vigil = Vigil(loop.beat, manager, down, lambda: faults.append(vigil.fault))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vigil.watch, lambda: "web MASTER")
            await scenario(vigil, manager, loop, faults)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_loop_that_goes_round_feeds_the_watchdog_in_time() -> None:
    async def scenario(
        vigil: Vigil, manager: Manager, loop: Loop, faults: list[str | None]
    ) -> None:
        await trio.sleep(60)
        signs = manager.signs()
        gaps = [later - earlier for earlier, later in itertools.pairwise(signs)]
        assert max(gaps) < WATCHDOG / 2
        assert len(signs) < 60 * 4 / WATCHDOG + 2
        assert faults == []
        assert [told["STATUS"] for _, told in manager.told if "STATUS" in told] == ["web MASTER"]

    play(scenario)


def test_rare_advertisements_do_not_starve_the_watchdog() -> None:
    async def scenario(
        vigil: Vigil, manager: Manager, loop: Loop, faults: list[str | None]
    ) -> None:
        await trio.sleep(60)
        assert max(b - a for a, b in itertools.pairwise(manager.signs())) < WATCHDOG / 2

    play(scenario, down=120.0)


def test_a_hung_loop_is_a_fault_and_starves_the_watchdog_until_it_answers() -> None:
    async def scenario(
        vigil: Vigil, manager: Manager, loop: Loop, faults: list[str | None]
    ) -> None:
        await trio.sleep(10.1)
        loop.hangs, hung_at = True, trio.current_time()
        await trio.sleep(3 * DOWN)
        assert faults == ["the loop that forwards does not answer"]
        await trio.sleep(10)
        assert manager.signs()[-1] <= hung_at
        loop.hangs = False
        await trio.sleep(2 * DOWN)
        assert faults[1:] == [None]
        assert manager.signs()[-1] > hung_at + 10

    play(scenario)


def test_one_question_without_an_answer_is_no_fault() -> None:
    async def scenario(
        vigil: Vigil, manager: Manager, loop: Loop, faults: list[str | None]
    ) -> None:
        await trio.sleep(1.0)
        loop.hangs = True
        # One question is asked in each half of the interval, and given up after as long.
        await trio.sleep(0.9 * DOWN)
        loop.hangs = False
        await trio.sleep(5)
        assert vigil.counters.snapshot() == {"beats_missed": 1}
        assert faults == []

    play(scenario)


def test_a_pause_of_all_tasks_is_counted_and_is_no_fault() -> None:
    async def run() -> None:
        pulse, manager, faults = Pulse(), Manager(), list[str | None]()
        pulse.open()
        vigil = Vigil(pulse.beat, manager, 0.1, lambda: faults.append(vigil.fault))

        async def go_round() -> None:
            while True:
                await trio.lowlevel.wait_readable(pulse.fileno())
                pulse.answer()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_round)
            nursery.start_soon(vigil.watch, lambda: "")
            await trio.sleep(0.1)
            time.sleep(0.4)  # noqa: ASYNC251 - the pause that the test is about
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        pulse.close()
        assert faults == []
        assert vigil.lateness_max > 0.2
        assert vigil.counters.snapshot()["pauses"] >= 1

    trio.run(run)


def test_a_loop_in_which_every_turn_is_long_is_no_fault() -> None:
    async def run() -> None:
        pulse, faults = Pulse(), list[str | None]()
        pulse.open()
        vigil = Vigil(pulse.beat, Manager(), 0.1, lambda: faults.append(vigil.fault))

        async def go_round() -> None:
            while True:
                await trio.lowlevel.wait_readable(pulse.fileno())
                await trio.lowlevel.checkpoint()
                pulse.answer()

        async def hold_up() -> None:
            while True:
                time.sleep(0.12)  # noqa: ASYNC251 - what the test is about
                await trio.lowlevel.checkpoint()

        with trio.move_on_after(2.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go_round)
                nursery.start_soon(hold_up)
                nursery.start_soon(vigil.watch, lambda: "")
        pulse.close()
        assert faults == []
        assert vigil.counters.snapshot()["pauses"] >= 1

    trio.run(run)


def test_several_ask_the_loop_together() -> None:
    async def run() -> None:
        pulse = Pulse()
        pulse.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pulse.beat)
            nursery.start_soon(pulse.beat)
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.wait_readable(pulse.fileno())
            pulse.answer()
        pulse.close()
        pulse.close()

    trio.run(run)


def test_ready_reload_and_stop_are_told() -> None:
    async def run() -> None:
        manager = Manager()
        vigil = Vigil(Loop().beat, manager, DOWN, lambda: None)
        vigil.ready()
        vigil.reloading()
        vigil.ready("as it was")
        vigil.stopping()
        told = [one for _, one in manager.told]
        assert told[0]["READY"] == "1"
        assert told[1]["RELOADING"] == "1"
        assert abs(int(told[1]["MONOTONIC_USEC"]) / 1e6 - time.monotonic()) < 60
        assert told[2] == {"READY": "1", "STATUS": "as it was"}
        assert told[3]["STOPPING"] == "1"

    trio.run(run)
