"""For how long a run of the fencing program holds, alone and between whole nodes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from lvsha.config import Pair
from lvsha.config_second_path import FencingTable
from lvsha.fencing import FENCE_AGAIN, Fencing, LastHeard, Standing
from lvsha.model import VrrpState
from lvsha.programs import Outcome
from tests.shells.test_node import DOWN, INTERVAL, living, play, state
from tests.shells.test_node_second_path import FENCED as FENCES
from tests.shells.test_node_second_path import (
    cut,
    heal,
    never_two_masters,
    of,
    program,
    started,
    until_master,
)
from tests.simulation.pair_world import Machine, World

BACKUP, MASTER = VrrpState.BACKUP, VrrpState.MASTER
RUNNING, FENCED, FAILED, WAITING = Standing
TOOK = 2.0
ON_THE_WAY = 0.2


# One at a time


@dataclass
class Switch:
    """Counts the runs of the program, each of which takes `TOOK`."""

    code: int = 0
    runs: list[float] = field(default_factory=list)

    async def __call__(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        self.runs.append(trio.current_time())
        await trio.sleep(TOOK)
        return Outcome(self.code)


def ask(fencing: Fencing, heard: LastHeard) -> Standing:
    return fencing.fence("east", "web", "nothing is heard of the peer", heard)


def with_fencing(switch: Switch, work: Callable[[Fencing], Awaitable[None]]) -> None:
    table = FencingTable(command=("/bin/fence",))

    async def main() -> None:
        fencing = Fencing(table, "west", switch, lambda _: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fencing.run)
            await work(fencing)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def after(end: float, what: str) -> LastHeard:
    """What is heard when a run has ended."""
    match what:
        case "nothing":
            return LastHeard(end - 5, end - 5, end - 50, end - 60, ON_THE_WAY)
        case "an advertisement just before":
            return LastHeard(end, end - 5, end - 50, end - 60, ON_THE_WAY)
        case "heartbeats that go on":
            return LastHeard(end - 5, end + 500, end - 50, end - 60, ON_THE_WAY)
        case "other words on their way":
            return LastHeard(end - 5, end + 0.1, end + 0.1, end - 60, ON_THE_WAY)
        case "words on their way, and a backup anew":
            return LastHeard(end - 5, end + 0.1, end - 50, end + 40, ON_THE_WAY)
        case "an advertisement":
            return LastHeard(end + 0.001, end - 5, end - 50, end - 60, ON_THE_WAY)
        case "other words":
            return LastHeard(end - 5, end + 500, end + 5, end - 60, ON_THE_WAY)
        case "heartbeats that go on, and a backup anew":
            return LastHeard(end - 5, end + 500, end - 50, end + 40, ON_THE_WAY)
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "holds"),
    [
        ("nothing", True),
        ("an advertisement just before", True),
        ("heartbeats that go on", True),
        ("other words on their way", True),
        ("words on their way, and a backup anew", True),
        ("an advertisement", False),
        ("other words", False),
        ("heartbeats that go on, and a backup anew", False),
    ],
)
def test_a_run_holds_until_the_peer_is_heard_in_another_episode(what: str, holds: bool) -> None:
    switch = Switch()

    async def work(fencing: Fencing) -> None:
        assert ask(fencing, LastHeard()) is RUNNING
        await trio.sleep(TOOK + 0.1)
        end = switch.runs[0] + TOOK
        await trio.sleep(1000)
        assert ask(fencing, after(end, what)) is (FENCED if holds else RUNNING)
        await trio.sleep(TOOK + 0.1)
        assert len(switch.runs) == (1 if holds else 2)

    with_fencing(switch, work)


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("what", ["nothing", "an advertisement"])
def test_no_run_follows_another_sooner_than_it_may(code: int, what: str) -> None:
    switch = Switch(code)

    async def work(fencing: Fencing) -> None:
        ask(fencing, LastHeard())
        await trio.sleep(TOOK + 0.1)
        end = switch.runs[0] + TOOK
        found = WAITING if what == "an advertisement" else (FAILED if code else FENCED)
        for _ in range(100):
            assert ask(fencing, after(end, what)) is found
            assert fencing.status()["peers"]["east"]["state"] == found.value  # type: ignore[index]
            await trio.sleep(FENCE_AGAIN / 110)
        assert len(switch.runs) == 1
        await trio.sleep(FENCE_AGAIN / 10)
        assert ask(fencing, after(end, what)) is (FENCED if found is FENCED else RUNNING)

    with_fencing(switch, work)


def test_routers_that_heard_differently_judge_one_run_each_by_itself() -> None:
    switch = Switch()

    async def work(fencing: Fencing) -> None:
        ask(fencing, LastHeard())
        await trio.sleep(TOOK + 0.1)
        end = switch.runs[0] + TOOK
        assert ask(fencing, after(end, "an advertisement")) is WAITING
        assert ask(fencing, after(end, "heartbeats that go on")) is FENCED

    with_fencing(switch, work)


# Whole nodes

STAY = of('master_heard = "take_over"', fencing="stay")
GO_ON = of('master_heard = "take_over"', fencing="take_over")


def begins(machine: Machine) -> list[float]:
    return [at for at, _ in machine.programs]


@pytest.mark.parametrize("chosen", [STAY, GO_ON], ids=["stay", "take over"])
def test_a_peer_whose_port_is_closed_is_fenced_once_though_its_heartbeats_go_on(
    chosen: Pair,
) -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(Outcome(0), TOOK)
        cut(world, "outside")
        assert await until_master(west) == pytest.approx(DOWN + TOOK, abs=0.2)
        await trio.sleep(60.0)
        assert (state(east), state(west)) == (MASTER, MASTER)
        assert len(west.programs) == 1

    play(scenario, chosen)


def test_a_failure_is_waited_out_though_heartbeats_go_on() -> None:
    async def scenario(world: World) -> None:
        _, west, *_ = await started(world)
        west.run_program = program(Outcome(1), TOOK)
        cut(world, "outside")
        await trio.sleep(DOWN + 3 * (TOOK + FENCE_AGAIN) - 1.0)
        assert state(west) is BACKUP
        first, *later = begins(west)
        round_ = TOOK + FENCE_AGAIN
        assert later == pytest.approx([first + round_, first + 2 * round_], abs=INTERVAL)

    play(scenario, STAY)


def test_a_failure_that_the_operator_bears_is_one_takeover_though_heartbeats_go_on() -> None:
    async def scenario(world: World) -> None:
        _, west, *_ = await started(world)
        west.run_program = program(Outcome(1), TOOK)
        cut(world, "outside")
        assert await until_master(west) == pytest.approx(DOWN + TOOK, abs=0.2)
        assert len(west.programs) == 1

    play(scenario, GO_ON)


@pytest.mark.parametrize("seconds_left", [0.0, 1.0])
def test_a_peer_that_is_switched_off_while_it_is_heard_is_switched_off_once(
    seconds_left: float,
) -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)

        async def switch_off(_command: tuple[str, ...]) -> Outcome:
            await trio.sleep(TOOK - seconds_left)
            east.end(power=True)
            await trio.sleep(seconds_left)
            return Outcome(0)

        west.run_program = switch_off
        cut(world, "outside")
        assert await until_master(west) == pytest.approx(DOWN + TOOK, abs=0.2)
        await trio.sleep(20.0)
        assert (state(west), len(west.programs)) == (MASTER, 1)

    play(scenario, STAY)


@pytest.mark.parametrize("rest", [3.0, FENCE_AGAIN + 3.0])
def test_a_peer_that_is_back_and_fails_again_is_fenced_again(rest: float) -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)

        async def reboot(_command: tuple[str, ...]) -> Outcome:
            if east.life is not None:
                east.end(power=True)
            world.after(1.0, east.start)
            return Outcome(0)

        west.run_program = reboot
        cut(world, "outside")
        await until_master(west)
        heal(world)
        await until_master(east)
        await trio.sleep(rest)
        assert state(west) is BACKUP
        east.end(power=True)
        await until_master(west)
        assert len(west.programs) == 2
        assert begins(west)[1] - begins(west)[0] >= FENCE_AGAIN

    play(scenario, STAY)


def test_a_peer_that_is_back_on_the_sync_link_alone_is_fenced_again() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        cut(world, "outside", "sync")
        await until_master(west)
        assert len(west.programs) == 1
        east.end(power=True)
        await trio.sleep(FENCE_AGAIN)
        # East comes back alone, and is MASTER before anything is heard of it.
        east.start()
        await until_master(east)
        world.segments["sync"].cuts.clear()
        # With "take_over" a master stays, whoever else says that it is one.
        await trio.sleep(2.0)
        assert (state(east), state(west)) == (MASTER, MASTER)
        west.plug("outside", up=False)
        await trio.sleep(0.5)
        west.plug("outside", up=True)
        await trio.sleep(DOWN + 0.5)
        assert len(west.programs) == 2

    play(scenario, STAY)


def test_a_node_that_had_a_fault_since_cannot_know_what_its_peer_did_meanwhile() -> None:
    async def scenario(world: World) -> None:
        _, west, *_ = await started(world)
        cut(world, "outside")
        await until_master(west)
        await trio.sleep(FENCE_AGAIN)
        west.plug("outside", up=False)
        await trio.sleep(0.5)
        assert state(west) is VrrpState.FAULT
        west.plug("outside", up=True)
        await until_master(west)
        assert len(west.programs) == 2

    play(scenario, STAY)


def test_a_fault_of_a_lone_node_does_not_have_the_dead_fenced_again() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        east.end(power=True)
        await until_master(west)
        await trio.sleep(60.0)
        west.plug("outside", up=False)
        await trio.sleep(0.5)
        west.plug("outside", up=True)
        await until_master(west)
        assert len(west.programs) == 1

    play(scenario, FENCES)


def test_a_master_that_was_heard_after_its_fencing_waits_for_the_next() -> None:
    async def scenario(world: World) -> None:
        _, west, *_ = await started(world)
        west.run_program = program(Outcome(0), TOOK)
        cut(world, "outside", "sync")
        await trio.sleep(DOWN)
        heal(world)
        await never_two_masters(world, TOOK + 1.0)
        cut(world, "outside", "sync")
        await trio.sleep(DOWN + 0.1)
        status = (await living(west).node.status())["second_path"]
        assert status["fencing"]["peers"]["east"]["state"] == "waiting"  # type: ignore[index]
        assert len(west.programs) == 1
        await until_master(west, FENCE_AGAIN + TOOK)
        assert len(west.programs) == 2

    play(scenario, STAY)
