"""Trackers, groups and events of whole nodes, on machines in memory and a virtual clock."""

import json

import pytest
import trio

from lvsha.config import Pair
from lvsha.datapath.network import AddressChange
from lvsha.errors import HostError
from lvsha.failover.speaker import Speaker
from lvsha.failover.tracking import Reading
from lvsha.model import VrrpState
from lvsha.node import READINESS_INTERVAL
from lvsha.node_tracking import FINISH_MAX, FIRST_READINGS_MAX, RETRY_INTERVAL
from tests.shells.test_node import (
    BOTH,
    DOWN,
    EAST,
    INTERVAL,
    SERVICE,
    SYNC,
    living,
    pair,
    play,
    start,
    state,
)
from tests.simulation.pair_host import SimulatedAdvertisementTransport
from tests.simulation.pair_world import Machine, World

MASTER, BACKUP, FAULT, INIT = VrrpState.MASTER, VrrpState.BACKUP, VrrpState.FAULT, VrrpState.INIT
ROUTERS = f"""
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24"]
advert_interval = {INTERVAL}
track = [TRACK]

[[virtual_routers]]
name = "gateway"
vrid = 52
interface = "inside"
addresses = ["10.1.0.254/24"]
advert_interval = {INTERVAL}
"""
GROUP = """
[[groups]]
name = "both"
routers = ["web", "gateway"]
notify = ["/bin/tell", "group"]

[events]
notify = { command = "/bin/log", states = ["MASTER", "FAULT", "STOP"] }
"""
SCRIPT = """
[[trackers]]
name = "check"
kind = "script"
command = "/bin/check"
interval = 0.1
rise = 2
fall = 3
"""
QUORUM = """
[[trackers]]
name = "servers"
kind = "quorum"
services = ["http"]
servers = 1
"""


class Dial:
    """A probe that says what it is set to."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.looks = 0

    async def look(self) -> Reading:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        return Reading(up=self.up, detail="" if self.up else "check: exit code 1")


class Stuck:
    """A probe that takes for ever."""

    async def look(self) -> Reading:
        await trio.sleep_forever()
        raise AssertionError


def of(track: str, *parts: str, nodes: str = BOTH) -> Pair:
    return pair(ROUTERS.replace("TRACK", track), SERVICE, SYNC, nodes, SCRIPT, *parts)


def states(machine: Machine) -> tuple[VrrpState, VrrpState]:
    return machine.state_of("web"), machine.state_of("gateway")


async def started(world: World) -> tuple[Machine, Machine, Dial]:
    """Both nodes, east being the master, with a dial for the tracker of east."""
    east, west = world.machines.values()
    dial = Dial()
    east.probes["check"], west.probes["check"] = dial, Dial()
    await start(east)
    await start(west)
    assert states(east) == (MASTER, MASTER)
    return east, west, dial


async def router(machine: Machine, name: str = "web") -> dict[str, object]:
    routers = (await living(machine).node.status())["routers"]
    assert isinstance(routers, dict)
    return dict(routers[name])


def test_a_tracker_that_fails_so_often_is_a_fault_and_its_end_a_recovery() -> None:
    async def scenario(world: World) -> None:
        east, west, dial = await started(world)
        dial.up = False
        await trio.sleep(0.25)
        assert state(east) is MASTER
        await trio.sleep(0.1)
        assert state(east) is FAULT
        assert (await router(east))["fault"] == "check: exit code 1"
        await trio.sleep(INTERVAL + 0.05)
        assert state(west) is MASTER
        # It is the fault of the one that tracks it alone.
        assert east.state_of("gateway") is MASTER
        dial.up = True
        await trio.sleep(0.25)
        assert state(east) is BACKUP
        await trio.sleep(DOWN + 2.0)
        assert state(east) is MASTER

    play(scenario, of('"check"'))


def test_a_weight_lets_the_backup_take_over_without_a_fault() -> None:
    async def scenario(world: World) -> None:
        east, west, dial = await started(world)
        dial.up = False
        await trio.sleep(0.35)
        assert (state(east), (await router(east))["priority"]) == (MASTER, 90)
        assert (await router(east))["configured_priority"] == 150
        await trio.sleep(DOWN)
        assert (state(east), state(west)) == (BACKUP, MASTER)
        dial.up = True
        await trio.sleep(DOWN + 3.0)
        assert (state(east), (await router(east))["priority"]) == (MASTER, 150)

    play(scenario, of('{ tracker = "check", weight = -60 }'))


def test_a_group_shares_a_fault_and_moves_at_once() -> None:
    async def scenario(world: World) -> None:
        east, west, dial = await started(world)
        dial.up = False
        await trio.sleep(0.35)
        assert states(east) == (FAULT, FAULT)
        assert (await router(east, "gateway"))["group"] == "both"
        await trio.sleep(INTERVAL + 0.05)
        assert states(west) == (MASTER, MASTER)
        groups = living(west).node.tracking.status()["groups"]
        assert groups == {"both": {"state": "MASTER", "routers": ["web", "gateway"]}}
        dial.up = True
        await trio.sleep(DOWN + 3.0)
        assert states(east) == (MASTER, MASTER)
        assert states(west) == (BACKUP, BACKUP)

    play(scenario, of('"check"', GROUP))


def test_a_pulled_cable_of_one_moves_the_whole_group() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        east.plug("inside", up=False)
        await trio.sleep(0.02)
        assert states(east) == (FAULT, FAULT)
        assert (await router(east))["fault"] == "interface eth1 is down"
        await trio.sleep(INTERVAL + 0.05)
        assert states(west) == (MASTER, MASTER)

    play(scenario, of('"check"', GROUP))


def test_a_master_that_dies_is_succeeded_in_the_whole_group_in_one_step() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        east.end()
        for _ in range(2000):
            await trio.sleep(0.001)
            if MASTER in states(west):
                break
        assert states(west) == (MASTER, MASTER)
        assert trio.current_time() < 8.0 + DOWN

    play(scenario, of('"check"', GROUP))


def test_a_group_does_not_flap_where_one_of_its_links_is_cut() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        both = {("east", "west"), ("west", "east")}
        world.segments["inside"].cuts |= both
        seen = set()
        for _ in range(100):
            await trio.sleep(0.1)
            seen.add((states(east), states(west)))
        assert seen == {((MASTER, MASTER), (BACKUP, BACKUP))}
        # Not even for a moment.
        assert (await router(west))["transitions"] == (await router(west, "gateway"))["transitions"]
        assert (await router(west))["transitions"] == {"started": 1}
        # Where nothing is heard any more the other takes over, all of it.
        world.segments["outside"].cuts |= both
        await trio.sleep(DOWN + 0.2)
        assert states(west) == (MASTER, MASTER)
        world.segments["inside"].cuts.clear()
        world.segments["outside"].cuts.clear()
        await trio.sleep(DOWN + 0.2)
        assert states(west) == (BACKUP, BACKUP)
        assert states(east) == (MASTER, MASTER)

    play(scenario, of('"check"', GROUP))


def test_elections_wait_for_the_first_reading_and_not_for_ever() -> None:
    async def late(world: World) -> None:
        east = world.machines["east"]
        east.probes["check"] = Stuck()
        east.start()
        await trio.sleep(FIRST_READINGS_MAX - 0.1)
        assert state(east) is INIT
        await trio.sleep(0.3)
        assert state(east) is FAULT
        assert (await router(east))["fault"] == "check has not been looked at yet"
        assert east.state_of("gateway") is BACKUP

    async def prompt(world: World) -> None:
        east = world.machines["east"]
        east.probes["check"] = Dial()
        east.start()
        await trio.sleep(INTERVAL + 0.05)
        assert state(east) is BACKUP

    play(late, of('"check"', nodes=EAST))
    play(prompt, of('"check"', nodes=EAST))


def test_a_quorum_of_servers_is_missed_within_its_interval() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        services = living(east).node.director.services
        (service,) = services
        for server in list(service.servers):
            services.delete_server(service.identity, server.address, server.port)
        await trio.sleep(0.25)
        assert state(east) is FAULT
        assert (await router(east))["fault"] == "service http has 0 of 0 servers, needs 1"
        await trio.sleep(INTERVAL + 0.05)
        assert state(west) is MASTER

    play(scenario, of('"servers"', QUORUM))


def test_programs_hear_of_routers_and_groups_in_keepaliveds_words() -> None:
    async def scenario(world: World) -> None:
        east, _, dial = await started(world)
        dial.up = False
        await trio.sleep(0.5)
        living(east).stop.set()
        await trio.sleep(1.0)
        told = [" ".join(command) for _, command in east.programs]
        assert [one for one in told if one.startswith("/bin/tell")] == [
            "/bin/tell group GROUP both BACKUP 150",
            "/bin/tell group GROUP both MASTER 150",
            "/bin/tell group GROUP both FAULT 150",
            "/bin/tell group GROUP both STOP 150",
        ]
        logged = [one for one in told if one.startswith("/bin/log INSTANCE web")]
        assert logged == [
            "/bin/log INSTANCE web MASTER 150",
            "/bin/log INSTANCE web FAULT 150",
            "/bin/log INSTANCE web STOP 150",
        ]
        assert "/bin/log GROUP both FAULT 150" in told

    play(scenario, of('"check"', GROUP))


def test_what_happens_after_the_stop_changes_nothing_any_more() -> None:
    async def scenario(world: World) -> None:
        east, west, dial = await started(world)
        life = living(east)
        life.stop.set()
        await trio.sleep(0.1)
        assert states(east) == (INIT, INIT)
        dial.up = False
        east.plug("inside", up=False)
        await trio.sleep(1.0)
        assert states(east) == (INIT, INIT)
        assert states(west) == (MASTER, MASTER)

    play(scenario, of('"check"', GROUP))


def test_a_fault_of_the_whole_node_is_one_of_every_router() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        tracking = living(east).node.tracking
        tracking.declare("the loop hangs")
        assert states(east) == (FAULT, FAULT)
        assert (await router(east))["fault"] == "the loop hangs"
        tracking.declare(None)
        assert states(east) == (BACKUP, BACKUP)
        await trio.sleep(DOWN)
        assert states(west) == (MASTER, MASTER)

    play(scenario, of('"check"'))


def renumber(machine: Machine, present: bool) -> None:
    """Give the interface to the outside another address, or take it away."""
    link = machine.wire_on("outside").change().index
    machine.tell(AddressChange(link, bytes((203, 0, 113, 9)), present=present))


def test_where_nobody_can_be_told_there_is_no_master_until_somebody_can() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        transport = living(east).host.messages[0]
        transport.trouble = "interface eth0 has no IPv4 address of its own"
        await trio.sleep(1.0)
        # Nothing has changed, so nobody has looked.
        assert state(east) is MASTER
        renumber(east, present=True)
        await trio.sleep(0.02)
        assert states(east) == (FAULT, MASTER)
        assert (await router(east))["fault"] == transport.trouble
        trackers = living(east).node.tracking.status()["trackers"]
        assert isinstance(trackers, dict)
        tracker = trackers["advertisements of web"]
        assert (tracker["kind"], tracker["state"]) == ("advertisements", "down")
        await trio.sleep(INTERVAL + 0.05)
        assert state(west) is MASTER
        transport.trouble = ""
        await trio.sleep(RETRY_INTERVAL)
        assert state(east) is BACKUP
        await trio.sleep(DOWN + 2.0)
        assert (state(east), state(west)) == (MASTER, BACKUP)

    play(scenario, of('"check"'))


def test_a_node_that_starts_where_nobody_can_be_told_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trouble = "address fe80::1 of interface eth0 is being checked for duplicates, or is one"

    def refuse(_: SimulatedAdvertisementTransport) -> bool:
        raise HostError(trouble)

    async def scenario(world: World) -> None:
        east = world.machines["east"]
        east.probes["check"] = Dial()
        with monkeypatch.context() as patched:
            patched.setattr(SimulatedAdvertisementTransport, "refresh", refuse)
            await start(east)
            assert states(east) == (FAULT, FAULT)
            assert (await router(east))["fault"] == trouble
        await trio.sleep(RETRY_INTERVAL + DOWN + 2.0)
        assert states(east) == (MASTER, MASTER)

    play(scenario, of('"check"'))


def test_whoever_holds_addresses_on_an_interface_that_was_replaced_begins_anew() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        before = transitions(east)
        living(east).host.messages[0].replaced = True
        renumber(east, present=True)
        await trio.sleep(0.02)
        # Nobody has heard it for a while, and nobody can say how long.
        assert states(east) == (BACKUP, MASTER)
        after = transitions(east)
        changed = {name: count for name, count in after.items() if count != before.get(name)}
        assert changed == {"web fault": 1, "web recovered": 1}
        await trio.sleep(INTERVAL)
        assert state(west) is MASTER
        # An address that comes or goes is no replacement.
        renumber(east, present=False)
        await trio.sleep(0.02)
        assert transitions(east) == after

    play(scenario, of('"check"'))


def test_a_link_that_is_down_is_all_that_is_wrong() -> None:
    async def scenario(world: World) -> None:
        east, _, _ = await started(world)
        transport = living(east).host.messages[0]
        east.plug("outside", up=False)
        await trio.sleep(0.02)
        transport.trouble = "interface eth0 has no IPv4 address of its own"
        renumber(east, present=True)
        await trio.sleep(0.02)
        assert (await router(east))["fault"] == "interface eth0 is down"
        east.plug("outside", up=True)
        await trio.sleep(0.02)
        assert (await router(east))["fault"] == transport.trouble

    play(scenario, of('"check"'))


def test_a_mirror_that_is_read_anew_says_nothing() -> None:
    uplink = '[[trackers]]\nname = "uplink"\nkind = "interface"\ninterface = "sync"\nrise = 3\n'

    async def scenario(world: World) -> None:
        east, _, _ = await started(world)
        network = living(east).node.director.network
        links = dict(network.links)
        network.links.clear()
        await trio.sleep(1.5)
        assert state(east) is MASTER
        network.links.update(links)
        east.plug("sync", up=False)
        await trio.sleep(0.02)
        assert (await router(east))["fault"] == "interface eth2 is down"
        east.plug("sync", up=True)
        await trio.sleep(2.0)
        assert state(east) is FAULT
        await trio.sleep(2.0)
        assert state(east) is not FAULT

    play(scenario, of('"uplink"', uplink))


def test_the_end_waits_for_programs_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        east.probes["check"] = Dial()
        life = await start(east)

        async def hang(*_words: object, **_options: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(life.node.tracking.notifications, "_run_program", hang)
        began = trio.current_time()
        life.stop.set()
        await life.ended.wait()
        assert FINISH_MAX - 0.1 < trio.current_time() - began < FINISH_MAX + 0.2

    play(scenario, of('"check"', GROUP, nodes=EAST))


def test_readers_hear_of_trackers_priorities_faults_and_states() -> None:
    async def scenario(world: World) -> None:
        east, _, dial = await started(world)
        reader = living(east).node.tracking.events.add()
        assert reader is not None
        present = await reader.next()
        assert b'"routers":{"web":{"state":"MASTER","priority":150,"fault":null}' in present
        dial.up = False
        await trio.sleep(0.35)
        said = [json.loads(await reader.next()) for _ in range(6)]
        assert [(one["event"], one.get("router")) for one in said] == [
            ("tracker", None),
            ("fault", "web"),
            ("state", "web"),
            ("group", None),
            ("fault", "gateway"),
            ("state", "gateway"),
        ]
        assert said[2]["reason"] == "fault: check: exit code 1"

    play(scenario, of('"check"', GROUP))


def test_a_handover_of_one_moves_its_group_and_brings_it_back() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        for giving, taking in ((east, west), (west, east)):
            before = [dict(transitions(one)) for one in (giving, taking)]
            (receipt,) = await handed_over(giving, "gateway")
            assert receipt["successor"] == taking.name
            assert receipt["routers"] == ("web", "gateway")
            await trio.sleep(0.05)
            assert states(taking) == (MASTER, MASTER)
            assert states(giving) == (BACKUP, BACKUP)
            await trio.sleep(DOWN + 2.0)
            assert states(taking) == (MASTER, MASTER)
            # One change of each router on each side, and no other.
            for one, counted in zip((giving, taking), before, strict=True):
                assert sum(transitions(one).values()) == sum(counted.values()) + 2

    play(scenario, of('"check"', GROUP))


def transitions(machine: Machine) -> dict[str, int]:
    """All changes of state of both routers, by router and reason."""
    return {
        f"{name} {reason}": count
        for name in ("web", "gateway")
        for reason, count in speaker(machine, name).election.transitions.snapshot().items()
    }


def speaker(machine: Machine, name: str) -> Speaker:
    return living(machine).node.tracking._speakers[name]


async def handed_over(machine: Machine, name: str) -> list[dict[str, object]]:
    receipts = await living(machine).node._handover.command({"router": name})
    assert isinstance(receipts, list)
    return receipts


def test_a_group_is_handed_over_at_the_stop_of_its_node() -> None:
    async def scenario(world: World) -> None:
        east, west, _ = await started(world)
        life = living(east)
        life.stop.set()
        await trio.sleep(0.2)
        assert states(west) == (MASTER, MASTER)
        await life.ended.wait()
        assert transitions(west)["web started"] == 1
        assert sum(transitions(west).values()) == 4

    play(scenario, of('"check"', GROUP))


@pytest.mark.parametrize(("missing", "permitted"), [(52, [True, False]), (51, [False, True])])
def test_a_router_without_a_group_may_preempt_when_its_own_copy_is_complete(
    monkeypatch: pytest.MonkeyPatch, missing: int, permitted: list[bool]
) -> None:
    async def scenario(world: World) -> None:
        _, west, _ = await started(world)
        sync = living(west).node.sync
        monkeypatch.setattr(sync, "complete", lambda sync_id: sync_id != missing)
        await trio.sleep(3 * READINESS_INTERVAL)
        said = [(await router(west, name))["preemption_permitted"] for name in ("web", "gateway")]
        assert said == permitted

    play(scenario, of('"check"'))


def test_preemption_of_a_group_waits_until_the_copies_of_all_its_routers_are_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    incomplete = {52}

    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        east.probes["check"], west.probes["check"] = Dial(), Dial()
        await start(west)
        life = await start(east, settle=0.0)
        sync, complete = life.node.sync, life.node.sync.complete
        monkeypatch.setattr(sync, "complete", lambda one: one not in incomplete and complete(one))
        await trio.sleep(6.0)
        assert states(east) == (BACKUP, BACKUP)
        incomplete.clear()
        await trio.sleep(DOWN + 0.5)
        assert states(east) == (MASTER, MASTER)

    play(scenario, of('"check"', GROUP))
