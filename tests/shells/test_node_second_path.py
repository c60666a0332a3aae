"""Whole nodes with a second path, a witness and fencing, on machines in memory."""

import json
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio

from lvsha.config import Pair
from lvsha.failover.black_box import Export
from lvsha.failover.timeline import describe, last_transition
from lvsha.fencing import FENCE_AGAIN
from lvsha.model import VrrpState
from lvsha.programs import Outcome
from tests.shells.test_node import (
    BOTH,
    DOWN,
    INTERVAL,
    ROUTER,
    SERVICE,
    SYNC,
    hand_over,
    living,
    pair,
    play,
    start,
    state,
)
from tests.shells.test_node_tracking import Dial, Stuck
from tests.simulation.pair_world import Machine, World

INIT, BACKUP, MASTER, FAULT = VrrpState
PLAIN = pair(ROUTER, SERVICE, SYNC, BOTH)
WITNESS = """
[[trackers]]
name = "gateway"
kind = "script"
command = "/bin/ask"
interval = 0.1
"""
SETTLE = 0.1 + 0.1 + 1.75 * INTERVAL
FENCING = '{ command = ["/bin/fence", "-f"], timeout = 5.0, on_failure = "FAIL" }'


def of(*keys: str, fencing: str = "", parts: tuple[str, ...] = ()) -> Pair:
    """A pair whose section has these keys."""
    lines = ["[second_path]", *keys]
    if fencing:
        lines.append("fencing = " + FENCING.replace("FAIL", fencing))
    tracked = [WITNESS] if 'witness = "gateway"' in keys else []
    return pair(ROUTER, SERVICE, SYNC, BOTH, *tracked, "\n".join(lines), *parts)


SECOND = of()
WITNESSED = of('witness = "gateway"')
FENCED = of(fencing="stay")


def cut(world: World, *segments: str) -> None:
    for name in segments:
        world.segments[name].cuts |= {("east", "west"), ("west", "east")}


def heal(world: World) -> None:
    for segment in world.segments.values():
        segment.cuts.clear()


async def started(world: World) -> tuple[Machine, Machine, Dial, Dial]:
    """Both nodes, east being the master, and what their witness says."""
    east, west = world.machines.values()
    dials = Dial(), Dial()
    east.probes["gateway"], west.probes["gateway"] = dials
    await start(east)
    await start(west)
    assert (state(east), state(west)) == (MASTER, BACKUP)
    return east, west, *dials


async def path(machine: Machine, router: str = "web") -> dict[str, object]:
    """What the status says of the second path of a router."""
    status = json.loads(json.dumps(await living(machine).node.status()))
    return cast("dict[str, object]", status["routers"][router]["second_path"])


def reasons(machine: Machine) -> list[str]:
    """All rulings that the black box has, in order."""
    export = Export.parse(living(machine).node._why(), machine.name)
    return [str(one.fields["reason"]) for one in export.events if one.kind == "second_path"]


async def until_master(machine: Machine, seconds_max: float = 20.0) -> float:
    """How long it takes until a machine is MASTER."""
    begin = trio.current_time()
    with trio.fail_after(seconds_max):
        while state(machine) is not MASTER:  # noqa: ASYNC110 - no task here knows when
            await trio.sleep(0.001)
    return trio.current_time() - begin


async def never_two_masters(world: World, seconds: float) -> None:
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        assert len(world.masters("web")) <= 1
        await trio.sleep(0.005)


# The network of the clients is cut, and the sync link is not


def test_a_master_that_is_heard_on_the_sync_link_is_not_taken_over() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        cut(world, "outside")
        await never_two_masters(world, 10.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        said = await path(west)
        assert (said["verdict"], said["alarm"]) == ("stay", True)
        assert said["reason"] == "the master lives, and no witness says who is cut off"
        heal(world)
        await trio.sleep(1.0)
        assert (await path(west))["verdict"] is None
        assert reasons(west)[-1] == "advertisements are heard again"
        # And when it really dies, it is taken over.
        east.end(power=True)
        await until_master(west, DOWN + 0.05)

    play(scenario, SECOND)


@pytest.mark.parametrize("chosen", [PLAIN, of('master_heard = "take_over"')])
def test_without_it_or_if_the_operator_wants_it_so_there_are_two_masters(chosen: Pair) -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        cut(world, "outside")
        await trio.sleep(DOWN + 0.1)
        assert (state(east), state(west)) == (MASTER, MASTER)

    play(scenario, chosen)


def test_if_both_reach_the_witness_the_master_stays_and_somebody_is_to_look() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        cut(world, "outside")
        await never_two_masters(world, 5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        assert (await path(west))["reason"] == "the master lives and both reach the witness"

    play(scenario, WITNESSED)


def test_the_addresses_go_to_who_reaches_the_witness_and_never_to_both() -> None:
    async def scenario(world: World) -> None:
        east, west, witness, _ = await started(world)
        cut(world, "outside")
        witness.up = False
        await never_two_masters(world, 0.1 + SETTLE - 0.05)
        assert state(east) is MASTER
        await never_two_masters(world, 0.05 + 2 * INTERVAL)
        assert (state(east), state(west)) == (FAULT, MASTER)
        assert not east.held
        assert "cut off" in str((await living(east).node.status())["routers"])
        # The witness alone is not the network.
        witness.up = True
        await never_two_masters(world, 3.0)
        assert (state(east), state(west)) == (BACKUP, MASTER)
        heal(world)
        await trio.sleep(DOWN + 1.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)

    play(scenario, WITNESSED)


def test_who_has_given_up_and_returned_can_give_up_again() -> None:
    async def scenario(world: World) -> None:
        east, west, witness, _ = await started(world)
        for _ in range(2):
            witness.up = False
            await trio.sleep(0.1 + SETTLE + 2 * INTERVAL)
            assert (state(east), state(west)) == (FAULT, MASTER)
            witness.up = True
            await trio.sleep(DOWN + 2.0)
            assert (state(east), state(west)) == (MASTER, BACKUP)

    play(scenario, WITNESSED)


def test_heartbeats_that_are_rare_come_as_often_as_the_second_path_needs() -> None:
    async def scenario(world: World) -> None:
        await started(world)
        cut(world, "outside")
        await never_two_masters(world, 10.0)

    rare = SYNC.replace("0.1", "5.0")
    play(scenario, pair(ROUTER, SERVICE, rare, BOTH, "[second_path]"))


def test_a_change_of_state_is_said_at_once() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        for phase in range(5):
            await trio.sleep(0.1 + phase / 50)
            east.plug("outside", up=False)
            await trio.sleep(0.015)
            (heard,) = cast("list[dict[str, object]]", (await path(west))["heard"])
            assert heard["state"] == "FAULT"
            east.plug("outside", up=True)
            await trio.sleep(0.2)

    play(scenario, SECOND)


def test_a_backup_that_alone_loses_the_witness_leaves_the_election() -> None:
    async def scenario(world: World) -> None:
        east, west, _, witness = await started(world)
        cut(world, "outside")
        witness.up = False
        await never_two_masters(world, DOWN + SETTLE + 0.5)
        assert (state(east), state(west)) == (MASTER, FAULT)
        # Even if the master dies then: nobody reaches this node.
        east.end(power=True)
        await trio.sleep(5.0)
        assert state(west) is FAULT
        witness.up = True
        await trio.sleep(DOWN + 0.5)
        assert state(west) is MASTER

    play(scenario, WITNESSED)


def test_a_master_gives_up_although_advertisements_pass_if_it_alone_loses_the_witness() -> None:
    async def scenario(world: World) -> None:
        east, west, witness, _ = await started(world)
        witness.up = False
        await never_two_masters(world, 0.1 + SETTLE + 2 * INTERVAL)
        assert (state(east), state(west)) == (FAULT, MASTER)

    play(scenario, WITNESSED)


def test_a_witness_that_dies_for_both_moves_nothing_and_holds_nobody_back_later() -> None:
    async def scenario(world: World) -> None:
        east, west, *witnesses = await started(world)
        witnesses[0].up = False
        await trio.sleep(SETTLE / 2)
        witnesses[1].up = False
        await never_two_masters(world, 5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        east.end(power=True)
        await until_master(west, DOWN + 0.05)
        assert reasons(west)[-1].endswith("the witness had failed both")

    play(scenario, WITNESSED)


def test_of_two_masters_that_hear_each_other_on_the_sync_link_the_worse_gives_way() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        cut(world, "outside", "sync")
        await trio.sleep(DOWN + 0.1)
        assert (state(east), state(west)) == (MASTER, MASTER)
        world.segments["sync"].cuts.clear()
        await trio.sleep(1.75 * INTERVAL + 0.25)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        await never_two_masters(world, 5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)

    play(scenario, SECOND)


def test_who_preempts_on_a_link_that_carries_one_way_is_alone_soon() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(west)
        # East hears west, and west does not hear east.
        world.segments["outside"].cuts.add(("east", "west"))
        await start(east)
        await until_master(east)
        await trio.sleep(1.75 * INTERVAL + 0.25)
        assert (state(east), state(west)) == (MASTER, BACKUP)

    play(scenario, SECOND)


# The sync link is cut


def test_without_the_sync_link_nothing_changes_while_advertisements_come() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        cut(world, "sync")
        await trio.sleep(5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        # The first is of the time when it was alone.
        assert (reasons(east), reasons(west)) == (["nothing is heard of the peer"], [])

    play(scenario, WITNESSED)


@pytest.mark.parametrize("chosen", [SECOND, WITNESSED])
def test_if_both_are_cut_a_backup_that_is_not_cut_off_takes_over_as_in_the_rfc(
    chosen: Pair,
) -> None:
    async def scenario(world: World) -> None:
        east, west, witness, _ = await started(world)
        witness.up = False
        cut(world, "outside", "sync")
        assert await until_master(west) < DOWN
        # Nobody who can be heard is better placed than the master.
        await trio.sleep(SETTLE + 5.0)
        assert state(east) is MASTER

    play(scenario, chosen)


def test_if_both_are_cut_a_backup_that_does_not_reach_the_witness_stays() -> None:
    async def scenario(world: World) -> None:
        east, west, _, witness = await started(world)
        witness.up = False
        cut(world, "outside", "sync")
        await never_two_masters(world, 10.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        assert reasons(west) == ["nothing is heard of the peer, nor of the witness"]
        heal(world)
        await never_two_masters(world, 5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)

    play(scenario, WITNESSED)


def test_a_witness_and_fencing_work_without_a_sync_link() -> None:
    async def scenario(world: World) -> None:
        east, west, _, witness = await started(world)
        witness.up = False
        cut(world, "outside")
        await never_two_masters(world, 5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        assert (await path(west))["heard"] == []
        witness.up = True
        await trio.sleep(1.0)
        assert [command[1:3] for _, command in west.programs] == [("east", "web")]
        assert state(west) is MASTER

    keys = '[second_path]\nwitness = "gateway"\nfencing = { command = "/bin/fence" }'
    play(scenario, pair(ROUTER, SERVICE, BOTH, WITNESS, keys))


def test_a_second_path_on_the_network_of_the_first_is_warned_of() -> None:
    async def scenario(world: World) -> None:
        await started(world)
        assert any("the second path is on the network of the first" in x for x in world.trace)

    play(scenario, pair(ROUTER, SERVICE, SYNC + 'interface = "outside"', BOTH, "[second_path]"))


# A crash


@pytest.mark.parametrize("phase", range(8))
@pytest.mark.parametrize("chosen", [SECOND, WITNESSED, FENCED], ids=["path", "witness", "fencing"])
def test_a_crash_is_noticed_as_soon_as_without_a_second_path(chosen: Pair, phase: int) -> None:
    took: list[float] = []

    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        # Between two advertisements, and anywhere between two heartbeats.
        await trio.sleep(phase * INTERVAL / 8)
        east.end(power=True)
        heard_at = living(west).node._speakers["web"].election.peer
        assert heard_at is not None
        await until_master(west)
        since = living(west).node._speakers["web"].election
        assert since.since is not None
        took.append(since.since - heard_at.heard_at)

    play(scenario, chosen)
    play(scenario, PLAIN)
    asked, plain = took
    assert asked == pytest.approx(plain, abs=0.0005)


def test_a_process_that_is_killed_and_comes_back_is_not_fenced() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        east.end()
        east.start()
        await until_master(west, DOWN + 0.05)
        assert west.programs == []
        assert reasons(west) == ["the peer lives and does not hold the addresses"]

    play(scenario, FENCED)


def test_who_is_back_says_so_although_it_takes_no_part_yet() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        east.end()
        # Elections wait for what is not known yet.
        east.probes["gateway"] = Stuck()
        east.start()
        await until_master(west, DOWN + 0.05)
        assert state(east) is INIT
        assert west.programs == []

    play(scenario, of('witness = "gateway"', fencing="stay"))


# Fencing


def program(
    outcome: Outcome, seconds: float = 0.5
) -> Callable[[tuple[str, ...]], Awaitable[Outcome]]:
    async def run(_command: tuple[str, ...]) -> Outcome:
        await trio.sleep(seconds)
        return outcome

    return run


def test_a_takeover_waits_until_the_peer_is_fenced() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(Outcome(0, output="off"))
        east.end(power=True)
        begin = trio.current_time()
        await until_master(west)
        ((at, command),) = west.programs
        assert command == ("/bin/fence", "-f", "east", "web", "nothing is heard of the peer")
        assert trio.current_time() - at == pytest.approx(0.5, abs=0.01)
        assert at - begin < DOWN
        status = (await living(west).node.status())["second_path"]
        assert isinstance(status, dict)
        east_ = status["fencing"]["peers"]["east"]
        assert (east_["state"], east_["outcome"]) == ("fenced", "exit code 0: off")
        timeline = last_transition([Export.parse(living(west).node._why(), "west")])
        assert timeline is not None
        assert "  west had east fenced: fenced, exit code 0: off" in describe(timeline, str)

    play(scenario, FENCED)


def test_a_node_that_starts_alone_cannot_know_and_has_the_other_fenced() -> None:
    async def scenario(world: World) -> None:
        east, _ = world.machines.values()
        await start(east)
        assert state(east) is MASTER
        assert [command[2] for _, command in east.programs] == ["west"]

    play(scenario, FENCED)


def test_after_a_failure_nobody_takes_over_until_fencing_works() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(Outcome(1))
        east.end(power=True)
        await trio.sleep(DOWN + FENCE_AGAIN)
        assert state(west) is BACKUP
        assert len(west.programs) == 1
        await trio.sleep(1.5)
        assert len(west.programs) == 2
        west.run_program = program(Outcome(0))
        await until_master(west, FENCE_AGAIN + 1.0)
        assert len(west.programs) == 3

    play(scenario, FENCED)


@pytest.mark.parametrize(("outcome", "seconds"), [(Outcome(1), 0.5), (Outcome(0), 60.0)])
def test_the_operator_may_want_a_takeover_although_fencing_failed(
    outcome: Outcome, seconds: float
) -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(outcome, seconds)
        east.end(power=True)
        took = await until_master(west)
        # The time limit is the program's.
        assert took == pytest.approx(DOWN + min(seconds, 5.0), abs=0.2)
        assert len(west.programs) == 1

    play(scenario, of(fencing="take_over"))


def test_a_program_that_takes_too_long_is_a_failure() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(Outcome(0), 60.0)
        east.end(power=True)
        await trio.sleep(DOWN + 8.0)
        assert state(west) is BACKUP
        status = (await living(west).node.status())["second_path"]
        assert isinstance(status, dict)
        assert status["fencing"]["peers"]["east"]["outcome"] == "ended after 5 s"

    play(scenario, FENCED)


def test_a_master_that_is_heard_again_is_not_taken_over_after_its_fencing() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(Outcome(0), 1.0)
        cut(world, "outside", "sync")
        await trio.sleep(DOWN)
        assert len(west.programs) == 1
        heal(world)
        await never_two_masters(world, 5.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)
        # What was found then does not hold for the next time.
        await trio.sleep(FENCE_AGAIN)
        cut(world, "outside", "sync")
        await trio.sleep(DOWN + 1.1)
        assert len(west.programs) == 2
        assert state(west) is MASTER

    play(scenario, FENCED)


def test_a_peer_is_fenced_by_one_program_at_a_time() -> None:
    async def scenario(world: World) -> None:
        _, west, *_ = await started(world)
        west.run_program = program(Outcome(0), 4.0)
        for _ in range(2):
            cut(world, "outside", "sync")
            await trio.sleep(DOWN)
            assert len(west.programs) == 1
            heal(world)
            await trio.sleep(0.5)
        cut(world, "outside", "sync")
        await until_master(west, 4.0)
        # What it found is true at its end.
        assert len(west.programs) == 1

    play(scenario, FENCED)


def test_nobody_is_fenced_in_a_handover_or_at_an_orderly_stop() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        east.programs.clear()
        await hand_over(east)
        assert state(west) is MASTER
        living(west).stop.set()
        await until_master(east, 1.0)
        assert east.programs == west.programs == []

    play(scenario, FENCED)


def test_nobody_is_fenced_who_says_that_it_has_no_addresses() -> None:
    async def scenario(world: World) -> None:
        _, west, witness, _ = await started(world)
        cut(world, "outside")
        witness.up = False
        await until_master(west)
        assert west.programs == []

    play(scenario, of('witness = "gateway"', fencing="stay"))


GROUP = f"""
[[virtual_routers]]
name = "inner"
vrid = 52
interface = "inside"
addresses = ["10.1.0.253/24"]
advert_interval = {INTERVAL}

[[groups]]
name = "both"
routers = ["web", "inner"]
"""


def test_the_routers_of_a_group_share_one_fencing_and_move_together() -> None:
    async def scenario(world: World) -> None:
        east, west, *_ = await started(world)
        west.run_program = program(Outcome(0))
        east.end(power=True)
        await until_master(west)
        assert west.state_of("inner") is MASTER
        assert len(west.programs) == 1

    play(scenario, of(fencing="stay", parts=(GROUP,)))


def test_the_routers_of_a_group_are_given_up_together() -> None:
    async def scenario(world: World) -> None:
        east, west, witness, _ = await started(world)
        cut(world, "outside", "inside")
        witness.up = False
        await trio.sleep(SETTLE + 1.0)
        for router in ("web", "inner"):
            assert (east.state_of(router), west.state_of(router)) == (FAULT, MASTER)
        witness.up = True
        heal(world)
        await trio.sleep(DOWN + 2.0)
        for router in ("web", "inner"):
            assert (east.state_of(router), west.state_of(router)) == (MASTER, BACKUP)

    play(scenario, of('witness = "gateway"', parts=(GROUP,)))


# What is told


def test_a_status_without_a_second_path_says_so() -> None:
    async def scenario(world: World) -> None:
        east, *_ = await started(world)
        status = await living(east).node.status()
        assert status["second_path"] is None
        assert "second_path" not in json.dumps(status["routers"])

    play(scenario, PLAIN)


def test_what_peers_say_is_in_the_status_and_rulings_are_events() -> None:
    async def scenario(world: World) -> None:
        _, west, *_ = await started(world)
        (heard,) = cast("list[dict[str, object]]", (await path(west))["heard"])
        assert (heard["node"], heard["state"]) == ("east", "MASTER")
        assert (heard["witness"], heard["fresh"]) == ("reachable", True)
        reader = living(west).node.tracking.events.add()
        assert reader is not None
        await reader.next()
        cut(world, "outside")
        await trio.sleep(DOWN + 0.1)
        event = json.loads(await reader.next())
        assert (event["event"], event["router"], event["verdict"]) == ("second_path", "web", "stay")
        assert event["alarm"] is True

    play(scenario, WITNESSED)
