"""The node: what it carries between its parts, on machines in memory and a virtual clock."""

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing

from lvsha.build import build_director
from lvsha.config import Pair, parse_pair
from lvsha.control import Lasting
from lvsha.datapath.connections import Connection
from lvsha.datapath.network import LinkChange, NetworkChange, Outgoing
from lvsha.datapath.service_policy import TellWhen, Unknown
from lvsha.errors import ConfigError, HandoverError, HostError, WireError
from lvsha.failover.addresses import LIFETIME
from lvsha.failover.black_box import Event, Export
from lvsha.failover.election import DOWN_ADVERTISEMENTS
from lvsha.failover.rivals import Rival
from lvsha.health.opinions import Finding
from lvsha.model import (
    ConnectionRecord,
    ForwardMethod,
    VrrpState,
    connection_key,
    parse_address,
)
from lvsha.node import READINESS_INTERVAL, TRANSITION, Node
from lvsha.saved_state import Writing
from lvsha.sync.messages import Role
from lvsha.sync.overlap import OVERLAP
from lvsha.wire.vrrp import PRIORITY_OWNER
from tests.simulation.pair_host import EXPIRY_INTERVAL, NETLINK_SECONDS_MAX, SimulatedRivalListener
from tests.simulation.pair_traffic import Client, Traffic
from tests.simulation.pair_world import GATEWAY_ADDRESS, Life, Machine, World
from tests.simulation.tasks import one_order_of_tasks

INTERVAL = 0.2
DOWN = (DOWN_ADVERTISEMENTS + 1) * INTERVAL
# Nothing here depends on the order of tasks; any number will do.
ORDER = 1
VIRTUAL, INSIDE = parse_address("192.0.2.10"), parse_address("10.1.0.254")

ROUTER = f"""
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24", "10.1.0.254/24@inside"]
advert_interval = {INTERVAL}
"""
SERVICE = """
[[services]]
name = "http"
address = "192.0.2.10"
port = 80
scheduler = "rr"
servers = [{ address = "10.1.0.11", port = 8080 }, { address = "10.1.0.12", port = 8080 }]
"""
SYNC = """
[sync]
heartbeat_interval = 0.1
"""
EAST = """
[nodes.east]
priority = 150
interfaces = { outside = "eth0", inside = "eth1", sync = "eth2" }
"""
WEST = """
[nodes.west]
priority = 100
interfaces = { outside = "eth0", inside = "eth1", sync = "eth2" }
"""
BOTH = EAST + WEST


def pair(*parts: str) -> Pair:
    return parse_pair("\n".join(parts), "pair.toml")


TWO = pair(ROUTER, SERVICE, SYNC, BOTH)
LONE = pair(ROUTER, SERVICE, SYNC, EAST)

Scenario = Callable[[World], Awaitable[None]]


def play(scenario: Scenario, of: Pair = TWO) -> World:
    """Run a scenario in a world whose wires are good; its machines are not started."""
    world = World(1, of)
    structlog.configure(processors=[world.log], cache_logger_on_first_use=False)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            world.nursery = nursery
            nursery.start_soon(world.run)
            try:
                await scenario(world)
            finally:
                for machine in world.machines.values():
                    if machine.life is not None:
                        machine.life.wake()
            nursery.cancel_scope.cancel()

    with one_order_of_tasks(ORDER):
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


async def start(machine: Machine, *, settle: float = 4.0) -> Life:
    """Start a node, and wait until it has become what it will be."""
    machine.start()
    await trio.sleep(settle)
    return living(machine)


def living(machine: Machine) -> Life:
    assert machine.life is not None
    return machine.life


def holds(life: Life) -> tuple[bool, bool]:
    """Whether new connections are opened, and whether it is in transition."""
    director = life.node.director
    return director.holds(VIRTUAL), VIRTUAL in director.registry.in_transition


async def asked(life: Life) -> dict[str, Any]:
    """What the node answers to ``status``, through JSON."""
    command = life.host.commands["status"]
    assert isinstance(command, Lasting)
    return cast("dict[str, Any]", json.loads(json.dumps(await command.handle({}))))


def state(machine: Machine) -> VrrpState:
    return machine.state_of("web")


# What is refused


def test_a_name_that_the_file_does_not_have_is_refused() -> None:
    async def scenario(world: World) -> None:
        host = Life(world.machines["east"]).host
        with pytest.raises(ConfigError, match=r"nodes: expected .*'south'.*east, west"):
            Node(TWO, "south", host)

    play(scenario)


def test_an_unknown_scheduler_is_refused_by_its_key() -> None:
    strange = pair(ROUTER, SERVICE.replace('"rr"', '"best"'), SYNC, BOTH)
    with pytest.raises(ConfigError, match=r"services\.http\.scheduler: expected one of rr, .*best"):
        build_director(strange)


# The director of a pair file


def test_a_director_holds_no_address_that_a_virtual_router_moves() -> None:
    elsewhere = SERVICE.replace('"http"', '"local"').replace("2.10", "2.30")
    director = build_director(pair(ROUTER, SERVICE, elsewhere, SYNC, BOTH))
    held = {service.name: director.holds(service.address) for service in director.services}
    assert held == {"http": False, "local": True}


def test_a_director_has_the_servers_ports_methods_and_weights_of_the_file() -> None:
    service = """
        [[services]]
        name = "https"
        address = "192.0.2.10"
        port = 443
        method = "dr"
        servers = [
            { address = "10.1.0.11", weight = 7 },
            { address = "10.1.0.12", port = 8443, method = "nat" },
        ]
    """
    (made,) = build_director(pair(ROUTER, service, SYNC, BOTH)).services
    assert {(str(server), server.method.name, server.weight) for server in made.servers} == {
        ("10.1.0.11:443", "DIRECT_ROUTE", 7),
        ("10.1.0.12:8443", "NAT", 1),
    }


def test_nothing_is_reported_where_nobody_is_told() -> None:
    for made, told, asked in (
        (TWO, TellWhen.ESTABLISHED, Unknown.ASK),
        (pair(ROUTER, SERVICE, BOTH), TellWhen.NEVER, Unknown.RESET),
        (pair(SERVICE, SYNC, BOTH), TellWhen.NEVER, Unknown.RESET),
    ):
        (service,) = build_director(made).services
        assert (service.policy.tell.when, service.policy.unknown) == (told, asked)


# From start to end


def test_a_lone_node_becomes_master_and_opens_connections() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        life = await start(east, settle=INTERVAL + DOWN + TRANSITION + 0.1)
        assert state(east) is VrrpState.MASTER
        assert set(east.held) == {VIRTUAL, INSIDE}
        assert holds(life) == (True, False)
        assert life.node.sync.replicas[0].role is Role.LEAD

    play(scenario, LONE)


def test_an_owner_does_not_wait_for_the_silence_of_a_master() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        life = await start(east, settle=INTERVAL + 0.05)
        assert state(east) is VrrpState.MASTER
        assert (await asked(life))["routers"]["web"]["priority"] == PRIORITY_OWNER

    play(scenario, pair(ROUTER, SERVICE, EAST.replace("150", "255")))


def test_what_an_earlier_run_has_left_is_taken_away_first() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        east.hold(VIRTUAL)
        life = await start(east, settle=0.01)
        assert not east.held
        assert life.host.cleaned == 1

    play(scenario)


def test_a_node_listens_for_an_interval_before_it_takes_part() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        await start(east, settle=INTERVAL - 0.01)
        assert state(east) is VrrpState.INIT
        await trio.sleep(0.02)
        assert state(east) is VrrpState.BACKUP

    play(scenario)


def test_a_stop_while_it_listens_ends_it_at_once() -> None:
    async def scenario(world: World) -> None:
        life = await start(world.machines["east"], settle=0.01)
        life.stop.set()
        await life.ended.wait()
        assert trio.current_time() < 0.05
        assert life.host.cleaned == 2

    play(scenario)


def test_a_backup_takes_over_from_a_master_that_is_back_before_it_was_missed() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        await start(west)
        assert state(east) is VrrpState.MASTER
        east.end()
        east.start()
        await trio.sleep(DOWN)
        assert state(west) is VrrpState.MASTER
        await trio.sleep(TRANSITION + 3.0)
        assert state(east) is VrrpState.MASTER

    # The greatest difference of skew times: the master would be the first by far.
    far = BOTH.replace("150", "254").replace("priority = 100", "priority = 1")
    play(scenario, pair(ROUTER, SERVICE, SYNC, far))


def test_two_masters_that_do_not_hear_each_other_know_each_others_connections() -> None:
    async def scenario(world: World) -> None:
        traffic = Traffic(world, 2, clients_max=10)
        traffic.paused = True
        east, west = await start(world.machines["east"]), await start(world.machines["west"])
        apart = {("east", "west"), ("west", "east")}
        for name in ("outside", "inside"):
            world.segments[name].cuts |= apart
        await trio.sleep(DOWN + OVERLAP + TRANSITION + 1.0)
        assert [state(each) for each in world.machines.values()] == [VrrpState.MASTER] * 2
        assert holds(east) == holds(west) == (True, True)
        client = traffic.open(world.pair.services[0])
        await trio.sleep(1.0)
        assert found(world.machines["east"], client) is not None
        assert found(world.machines["west"], client) is not None
        for name in ("outside", "inside"):
            world.segments[name].cuts -= apart
        await trio.sleep(OVERLAP + TRANSITION + 1.0)
        assert state(world.machines["west"]) is VrrpState.BACKUP
        assert holds(east) == (True, False)
        assert holds(west) == (False, False)
        client.poke()
        await trio.sleep(0.5)
        assert client.waits_since is None

    play(scenario)


def test_without_sync_preemption_needs_no_copy() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(west)
        assert state(west) is VrrpState.MASTER
        life = await start(east, settle=DOWN + 0.1)
        assert state(east) is VrrpState.MASTER
        assert life.node.sync.replicas == []
        assert state(west) is VrrpState.BACKUP

    play(scenario, pair(ROUTER, SERVICE, BOTH))


def test_with_sync_preemption_waits_for_a_complete_copy() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(west)
        world.segments["sync"].cuts.add(("east", "west"))
        await start(east, settle=5.0)
        # It hears that west leads, and cannot ask for what it misses.
        assert state(east) is VrrpState.BACKUP
        world.segments["sync"].cuts.clear()
        await trio.sleep(DOWN + 1.0)
        assert state(east) is VrrpState.MASTER

    play(scenario)


def test_a_returning_node_asks_for_the_ways_to_clients_a_look_before_it_may_preempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(west)
        life = await start(east, settle=0.01)
        director, asked = life.node.director, trio.Event()
        warm_ways, times = director.warm_ways, list[float]()

        def ask() -> Iterator[None]:
            asked.set()
            times.append(trio.current_time())
            return warm_ways()

        monkeypatch.setattr(director, "warm_ways", ask)
        may = []
        with trio.fail_after(5):
            await asked.wait()
        for _ in range(4):
            may.append((await router_status(life))["preemption_permitted"])
            await trio.sleep(0.6 * READINESS_INTERVAL)
        assert may == [False, False, True, True]
        await trio.sleep(EXPIRY_INTERVAL)
        assert (east.wire_on("outside").index, GATEWAY_ADDRESS) in director.network.wanted
        assert len(times) == 1

    play(scenario)


def test_preemption_does_not_wait_for_a_complete_copy_for_ever() -> None:
    bound = 20.0

    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(west)
        world.segments["sync"].cuts.add(("east", "west"))
        life = await start(east, settle=bound)
        assert state(east) is VrrpState.BACKUP
        await trio.sleep(DOWN + 1.0)
        assert state(east) is VrrpState.MASTER
        (noted,) = [one for one in remembered(life) if one.kind == "preempts_incomplete"]
        assert noted.router == "web"
        assert noted.fields["seconds"] == pytest.approx(bound, abs=0.2)

    play(scenario, pair(ROUTER, f"preempt_incomplete_after = {bound}", SERVICE, SYNC, BOTH))


def test_a_stopped_master_hands_over_and_serves_for_a_while_longer() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        life = await start(east)
        await start(west)
        begin = trio.current_time()
        life.stop.set()
        await trio.sleep(INTERVAL + 0.02)
        assert state(east) is VrrpState.INIT
        assert state(west) is VrrpState.MASTER
        assert not east.held
        assert set(west.held) == {VIRTUAL, INSIDE}
        assert holds(life) == (True, True)
        await life.ended.wait()
        assert trio.current_time() - begin == pytest.approx(INTERVAL + TRANSITION, abs=0.02)
        assert life.host.cleaned == 2

    play(scenario)


def test_with_version_2_a_stop_does_not_take_as_long_as_an_interval() -> None:
    slow = ROUTER.replace(f"= {INTERVAL}", "= 20\nversion = 2")

    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        life = await start(east, settle=70.0)
        await start(west, settle=30.0)
        begin = trio.current_time()
        life.stop.set()
        await life.ended.wait()
        assert state(west) is VrrpState.MASTER
        assert trio.current_time() - begin == pytest.approx(1.0 + TRANSITION, abs=0.5)

    play(scenario, pair(slow, SERVICE, SYNC, BOTH))


def test_a_stopped_backup_and_a_node_without_a_peer_end_at_once() -> None:
    async def backup(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        life = await start(west)
        await ends_at_once(life)

    async def lone(world: World) -> None:
        await ends_at_once(await start(world.machines["east"]))

    async def ends_at_once(life: Life) -> None:
        begin = trio.current_time()
        life.stop.set()
        await life.ended.wait()
        assert trio.current_time() - begin < 0.05

    play(backup)
    play(lone, LONE)


def test_a_part_that_fails_takes_the_node_and_its_addresses_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives: list[Life] = []

    async def scenario(world: World) -> None:
        east = world.machines["east"]
        lives.append(await start(east))
        assert east.held
        frames = lives[0].host.frames
        assert frames is not None
        monkeypatch.setattr(frames.director, "learn", broken)
        east.plug("sync", up=False)
        await trio.sleep(1.0)

    def broken(_change: NetworkChange) -> list[Outgoing]:
        raise HostError("broken")

    with pytest.raises(ExceptionGroup) as caught:
        play(scenario, LONE)
    assert caught.group_contains(HostError, match="broken")
    assert not lives[0].machine.held
    # The rules that keep frames from the host's own stack stay: it would reset connections.
    assert lives[0].host.cleaned == 1


# Interfaces


def test_a_pulled_cable_is_a_fault_until_it_is_back() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        life = await start(east)
        await start(west)
        east.plug("inside", up=False)
        await trio.sleep(INTERVAL)
        assert state(east) is VrrpState.FAULT
        assert (await router_status(life))["fault"] == "interface eth1 is down"
        assert state(west) is VrrpState.MASTER
        east.plug("inside", up=True)
        await trio.sleep(0.01)
        assert state(east) is VrrpState.BACKUP
        await trio.sleep(TRANSITION + DOWN + 1.0)
        assert state(east) is VrrpState.MASTER

    play(scenario)


def test_an_interface_that_no_virtual_router_needs_may_be_down() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        await start(east)
        east.plug("sync", up=False)
        await trio.sleep(1.0)
        assert state(east) is VrrpState.MASTER

    play(scenario)


def test_an_interface_that_is_not_there_is_a_fault_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        whole = east.network()
        without = [c for c in whole if not (isinstance(c, LinkChange) and c.name == "eth1")]
        monkeypatch.setattr(east, "network", lambda: without)
        life = await start(east)
        assert state(east) is VrrpState.FAULT
        assert (await router_status(life))["fault"] == "interface eth1 is missing"
        assert not east.held
        east.tell(*whole)
        await trio.sleep(DOWN + 0.1)
        assert state(east) is VrrpState.MASTER

    play(scenario)


def test_frames_are_taken_from_all_interfaces_but_one_that_only_sync_uses() -> None:
    def interfaces(of: Pair) -> tuple[str, ...]:
        taken: list[tuple[str, ...]] = []

        async def scenario(world: World) -> None:
            frames = Life(world.machines["east"]).host.frames
            assert frames is not None
            taken.append(frames.interfaces)

        play(scenario, of)
        return taken[0]

    assert interfaces(TWO) == ("eth0", "eth1")
    shared = SYNC + 'interface = "inside"\n'
    assert interfaces(pair(ROUTER, SERVICE, shared, BOTH)) == ("eth0", "eth1", "eth2")


def test_frames_are_taken_from_an_interface_that_a_route_leads_to() -> None:
    taken: list[tuple[str, ...]] = []

    async def scenario(world: World) -> None:
        frames = Life(world.machines["east"]).host.frames
        assert frames is not None
        taken.append(frames.interfaces)

    routed = ROUTER + 'routes = ["10.9.0.0/16 dev sync"]\n'
    play(scenario, pair(routed, SERVICE, SYNC, BOTH))
    assert taken == [("eth0", "eth1", "eth2")]


# Routes and rules


def test_routes_and_rules_are_where_the_addresses_are() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        east.routes.add("left by an earlier run")
        life = await start(east, settle=0.01)
        assert east.routes == set(), "the clean-up comes first"
        await trio.sleep(4.0)
        await start(west)
        assert (east.routes, west.routes) == (moving, set())
        pieces = cast("dict[str, list[str]]", (await router_status(life))["routes"])["pieces"]
        assert set(pieces) == moving
        life.stop.set()
        await trio.sleep(INTERVAL)
        assert (east.routes, west.routes) == (set(), moving)
        west.end()
        await trio.sleep(LIFETIME + 1.0)
        assert not west.held
        assert west.routes == moving, "they have no lifetime"

    moving = {
        "default via 192.0.2.254 dev eth0",
        "from 10.1.0.0/24 iif eth1 table 100 priority 16384",
    }
    routed = """
routes = ["default via 192.0.2.254 dev outside"]
rules = ["from 10.1.0.0/24 iif inside table 100"]
"""
    play(scenario, pair(ROUTER + routed, SERVICE, SYNC, BOTH))


def test_what_becomes_of_routes_is_remembered() -> None:
    kinds: list[str] = []

    async def scenario(world: World) -> None:
        life = await start(world.machines["east"])
        life.stop.set()
        await trio.sleep(1.0)
        kinds.extend(event.kind for event in remembered(life))

    play(scenario, pair(ROUTER, SERVICE, SYNC, EAST))
    assert not any("routes" in kind for kind in kinds)
    kinds.clear()
    play(scenario, pair(ROUTER + 'routes = ["10.9.0.0/16 dev inside"]', SERVICE, SYNC, EAST))
    assert kinds.index("addresses_acquired") < kinds.index("routes_installed")
    assert kinds.index("routes_removed") < kinds.index("addresses_released")


def test_frames_are_stale_after_the_quickest_routers_silence() -> None:
    slow = """
        [[virtual_routers]]
        name = "mail"
        vrid = 52
        interface = "outside"
        addresses = ["192.0.2.20/24"]
        advert_interval = 1.0
        [nodes.east]
        priorities = { mail = 10 }
        interfaces = { outside = "eth0", inside = "eth1", sync = "eth2" }
    """

    async def scenario(world: World) -> None:
        frames = Life(world.machines["east"]).host.frames
        assert frames is not None
        assert frames.stale_after == pytest.approx(DOWN_ADVERTISEMENTS * INTERVAL)

    play(scenario, pair(ROUTER, slow, SERVICE, SYNC))


# Changes of master


def test_both_open_connections_for_the_time_of_the_transition() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        new_master = await start(east, settle=INTERVAL + DOWN + 0.1)
        assert holds(new_master) == (True, True)
        old_master = new_master
        new_master = await start(west)
        assert holds(old_master) == (True, False)
        assert holds(new_master) == (False, False)
        east.plug("outside", up=False)
        await trio.sleep(DOWN + 0.05)
        assert holds(old_master) == (True, True)
        assert holds(new_master) == (True, True)
        await trio.sleep(TRANSITION)
        assert holds(old_master) == (False, False)
        assert holds(new_master) == (True, False)

    play(scenario)


def test_the_end_of_a_transition_does_not_touch_a_later_one() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        life = await start(east)
        east.plug("outside", up=False)
        await trio.sleep(0.1)
        east.plug("outside", up=True)
        await trio.sleep(DOWN + 0.05)
        assert state(east) is VrrpState.MASTER
        await trio.sleep(TRANSITION - DOWN)
        assert holds(life) == (True, True)
        await trio.sleep(TRANSITION)
        assert holds(life) == (True, False)

    play(scenario, LONE)


def test_a_master_that_stood_still_opens_nothing_and_asks_for_a_new_copy() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        life = await start(east)
        await start(west)
        life.hang()
        await trio.sleep(LIFETIME + 1.0)
        assert state(west) is VrrpState.MASTER
        assert not east.held
        life.wake()
        await trio.sleep(0.001)
        assert state(east) is VrrpState.BACKUP
        assert holds(life) == (False, False)
        assert not life.node.sync.replicas[0].complete
        await trio.sleep(TRANSITION + DOWN + 1.0)
        assert state(east) is VrrpState.MASTER

    play(scenario)


# Handover


async def hand_over(machine: Machine, **arguments: object) -> list[dict[str, object]]:
    """What ``lvsha handover`` is answered."""
    command = living(machine).host.commands["handover"]
    assert isinstance(command, Lasting)
    answer = json.loads(json.dumps(await command.handle(arguments)))
    return cast("list[dict[str, object]]", answer)


def test_a_handover_moves_the_addresses_and_they_stay_there() -> None:
    async def scenario(world: World) -> None:
        client = await connected(world)
        east, west = world.machines.values()
        (receipt,) = await hand_over(east)
        assert (state(east), state(west)) == (VrrpState.BACKUP, VrrpState.MASTER)
        # It serves them already, before the kernel has them.
        await trio.sleep(NETLINK_SECONDS_MAX)
        assert set(west.held) == {VIRTUAL, INSIDE}
        assert receipt["routers"] == ["web"]
        assert (receipt["successor"], receipt["connections"], receipt["lost"]) == ("west", 1, 0)
        assert cast("float", receipt["taken_over_ms"]) < 50
        assert cast("float", receipt["gap_ms"]) < 50
        client.poke()
        await trio.sleep(10.0)
        assert client.waits_since is None
        assert (state(east), state(west)) == (VrrpState.BACKUP, VrrpState.MASTER)
        (receipt,) = await hand_over(west, router="web")
        assert receipt["successor"] == "east"
        await trio.sleep(5.0)
        assert (state(east), state(west)) == (VrrpState.MASTER, VrrpState.BACKUP)

    play(scenario)


def test_at_no_time_of_a_handover_nobody_serves_the_addresses() -> None:
    async def scenario(world: World) -> None:
        await connected(world)
        east, west = world.machines.values()
        gaps = 0
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gaps
                while True:
                    gaps += not any(holds(living(machine))[0] for machine in (east, west))
                    await trio.sleep(0.0005)

            nursery.start_soon(watch)
            await hand_over(east)
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        assert gaps == 0

    play(scenario)


def test_while_a_successor_is_called_each_connection_is_told_from_its_first_packet_on() -> None:
    """Their replies may come to the successor before this node has heard it."""

    async def scenario(world: World) -> None:
        await connected(world)
        east, west = world.machines.values()
        # A call that nobody hears.
        world.segments["sync"].cuts |= {("east", "west"), ("west", "east")}
        async with trio.open_nursery() as nursery:

            async def call_in_vain() -> None:
                with pytest.raises(HandoverError, match="west was called and did not take over"):
                    await hand_over(east)

            nursery.start_soon(call_in_vain)
            await trio.sleep(0.5)
            assert holds(living(east)) == (True, True)
        assert holds(living(east)) == (True, False)
        assert (state(east), state(west)) == (VrrpState.MASTER, VrrpState.BACKUP)

    play(scenario)


def test_a_handover_that_is_given_up_calls_nobody_any_more() -> None:
    async def scenario(world: World) -> None:
        await connected(world)
        east, west = world.machines.values()
        cuts = world.segments["sync"].cuts
        cuts |= {("east", "west"), ("west", "east")}
        with trio.move_on_after(0.5) as given_up:
            await hand_over(east)
        assert given_up.cancelled_caught
        cuts.clear()
        await trio.sleep(5.0)
        assert (state(east), state(west)) == (VrrpState.MASTER, VrrpState.BACKUP)
        assert holds(living(east)) == (True, False)

    play(scenario)


def test_a_handover_to_who_is_not_ready_is_refused_with_the_reason() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        with pytest.raises(HandoverError, match="web: no other node is heard"):
            await hand_over(east)
        with pytest.raises(ConfigError, match="no virtual router 'mail'; the pair file has web"):
            await hand_over(east, router="mail")
        with pytest.raises(WireError, match="expected a string 'router'"):
            await hand_over(east, router=7)
        await start(west)
        with pytest.raises(HandoverError, match="web: this node is not MASTER"):
            await hand_over(west, router="web")
        with pytest.raises(HandoverError, match="MASTER of nothing"):
            await hand_over(west)
        west.end(power=True)
        await trio.sleep(3.0)
        with pytest.raises(HandoverError, match="web: west is not heard"):
            await hand_over(east)
        assert state(east) is VrrpState.MASTER

    play(scenario)


def test_a_successor_that_is_configured_otherwise_is_not_ready() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        world.pair = pair(ROUTER, SERVICE.replace("8080", "8081"), SYNC, BOTH)
        await start(west)
        with pytest.raises(HandoverError, match=r"configured otherwise \(.*services\.http"):
            await hand_over(east)

    play(scenario)


def test_a_forced_handover_resigns_whoever_is_ready() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        await start(west)
        (receipt,) = await hand_over(east, force=True)
        assert receipt["successor"] is None
        await trio.sleep(5.0)
        assert (state(east), state(west)) == (VrrpState.BACKUP, VrrpState.MASTER)

    play(scenario)


@pytest.mark.parametrize(("peer_lives", "expected"), [(True, (1, 0)), (False, (0, 1))])
def test_the_receipt_of_a_forced_handover_has_what_a_peer_has(
    peer_lives: bool, expected: tuple[int, int]
) -> None:
    async def scenario(world: World) -> None:
        await connected(world)
        east, west = world.machines.values()
        if not peer_lives:
            west.end(power=True)
            await trio.sleep(2.0)
        (receipt,) = await hand_over(east, force=True)
        assert (receipt["connections"], receipt["lost"]) == expected

    play(scenario)


def test_without_sync_nobody_knows_what_a_forced_handover_carries() -> None:
    async def scenario(world: World) -> None:
        east, _ = world.machines.values()
        await start(east)
        (receipt,) = await hand_over(east, force=True)
        assert (receipt["connections"], receipt["lost"]) == (None, None)

    play(scenario, pair(ROUTER, SERVICE, BOTH))


def test_two_masters_are_told_to_whoever_asks() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        cuts = world.segments["outside"].cuts
        await start(east)
        cuts.add(("east", "west"))
        cuts.add(("west", "east"))
        await start(west)
        assert (state(east), state(west)) == (VrrpState.MASTER, VrrpState.MASTER)
        # East is not heard yet, and so must hear west.
        cuts.discard(("west", "east"))
        await trio.sleep(2.0)
        export = Export.parse(living(east).node._why(), "east")
        (said,) = [one.fields for one in export.events if one.kind == "two_masters"]
        assert said["priority"] == 100
        assert any(one.kind == "alarm" for one in export.events)
        cuts.clear()
        await trio.sleep(2.0)
        assert (state(east), state(west)) == (VrrpState.MASTER, VrrpState.BACKUP)
        assert (await asked(living(east)))["routers"]["web"]["counters"]["two_masters_seen"] >= 1

    play(scenario)


def test_an_ordinary_preemption_is_no_alarm() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(west)
        await start(east)
        assert (state(east), state(west)) == (VrrpState.MASTER, VrrpState.BACKUP)
        for machine in (east, west):
            status = await asked(living(machine))
            assert "two_masters_seen" not in status["routers"]["web"]["counters"]

    play(scenario)


# Connections


async def connected(world: World) -> Client:
    """Two nodes, and a client that is silent after its first request."""
    east, west = world.machines.values()
    traffic = Traffic(world, 2, clients_max=10)
    traffic.paused = True
    await start(east)
    await start(west)
    client = traffic.open(world.pair.services[0])
    await trio.sleep(1.0)
    assert client.established
    assert client.waits_since is None
    return client


def found(machine: Machine, client: Client) -> Connection | None:
    """A client's connection at a node."""
    return living(machine).node.director.registry.table.find(client.key)


def servers(world: World, client: Client) -> list[str]:
    """The real server of a connection at each node."""
    return [
        str(connection.server) if (connection := found(machine, client)) else "none"
        for machine in world.machines.values()
    ]


def test_a_connection_is_told_to_the_peer_and_outlives_its_director() -> None:
    async def scenario(world: World) -> None:
        client = await connected(world)
        here, there = servers(world, client)
        assert here == there
        assert here.startswith("10.1.0.1")
        world.machines["east"].end(power=True)
        await trio.sleep(DOWN + 0.1)
        client.poke()
        await trio.sleep(0.1)
        assert client.waits_since is None

    play(scenario)


def test_what_belongs_to_no_virtual_router_is_told_to_no_peer_of_a_virtual_router() -> None:
    async def scenario(world: World) -> None:
        east = await start(world.machines["east"])
        director, sync = east.node.director, east.node.sync
        director.tell_others(told=True)
        elsewhere = parse_address("203.0.113.9")
        key = connection_key(6, parse_address("198.51.100.1"), 1024, elsewhere, 80)
        server = parse_address("10.1.0.11")
        record = ConnectionRecord(key, server, 80, ForwardMethod.NAT, 1, 0, 900.0)
        assert not director.replication.apply([record], trio.current_time())
        connection = director.registry.table.find(key)
        assert connection is not None
        director.registry.teller.tell(connection)
        assert key in director.registry.untold
        sync.tell()
        assert director.registry.untold == {}
        await trio.sleep(1.0)

    play(scenario, LONE)


def test_connections_of_a_node_without_sync_are_told_to_nobody_and_do_not_pile_up() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        traffic = Traffic(world, 2, clients_max=10)
        traffic.paused = True
        life = await start(east)
        client = traffic.open(world.pair.services[0])
        await trio.sleep(1.0)
        assert client.established
        assert not life.node.director.registry.untold

    play(scenario, pair(ROUTER, SERVICE, EAST))


def test_a_half_open_connection_is_told_when_its_director_hands_over() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        client = await connected(world)
        traffic = client._traffic
        young = traffic.open(world.pair.services[0])
        young.distance = 1.0
        await trio.sleep(0.1)
        assert found(east, young) is not None
        assert found(west, young) is None
        living(east).stop.set()
        await trio.sleep(0.1)
        assert found(west, young) is not None
        assert len(set(servers(world, young))) == 1

    play(scenario)


# What people are told


async def router_status(life: Life) -> dict[str, object]:
    status = cast("dict[str, dict[str, dict[str, object]]]", await life.node.status())
    return status["routers"]["web"]


def test_the_status_says_all_and_is_json() -> None:
    async def scenario(world: World) -> None:
        client = await connected(world)
        said = await asked(living(world.machines["east"]))
        assert said["node"] == "east"
        assert said["configuration"] == TWO.digest().hex()
        assert said["routers"]["web"]["state"] == "MASTER"
        assert said["sync"]["51"]["role"] == "LEAD"
        assert said["connections"] == 1
        service = said["services"]["http"]
        assert service["address"] == "192.0.2.10:80"
        assert service["held"] is True
        assert sum(server["active"] for server in service["servers"]) == 1
        # Its SYN, and its first request, which is the ACK as well.
        assert sum(server["in_packets"] for server in service["servers"]) == 2
        assert said["drops"] == {}
        assert set(said["counters"]) == {
            *("forwarder", "records", "state", "sync", "health", "reload")
        }
        assert client.server.startswith("server-")

    play(scenario)


def test_pair_files_that_differ_are_named_in_the_log() -> None:
    other = pair(ROUTER, SERVICE.replace('"rr"', '"wrr"'), SYNC, BOTH)

    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        world.pair = other
        await start(west)

    trace = play(scenario).trace
    assert any("east: the nodes differ" in line and "services.http" in line for line in trace)


def test_two_leaders_are_an_alarm_in_the_log() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        await start(west)
        world.segments["outside"].cuts |= {("east", "west"), ("west", "east")}
        await trio.sleep(2.0)

    assert any("alarm" in line and "second_leader" in line for line in play(scenario).trace)


CHECKED = """
checks = [{ type = "tcp", interval = 0.5, rise = 1, fall = 1 }]
health = { on_failure = "remove" }
sorry_server = { address = "10.1.0.99", port = 8080 }
"""


def test_nodes_whose_checks_find_different_things_do_not_differ_and_both_say_what() -> None:
    bad = Finding(passed=False, reason="bad")

    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        west.prober.findings.update({"10.1.0.11": bad, "10.1.0.12": bad})
        await start(east)
        await start(west)
        for machine, quorum, weights in (
            (east, "reached", [1, 1]),
            (west, "lost", [1, None, None]),
        ):
            told = json.loads(json.dumps(await living(machine).node.status()))
            service = told["services"]["http"]
            assert service["health"]["quorum"] == quorum
            assert [server.get("weight") for server in service["servers"]] == weights
            assert told["counters"]["health"][
                "probes_" + ("failed" if quorum == "lost" else "passed")
            ]

    trace = play(scenario, pair(ROUTER, SERVICE + CHECKED, SYNC, BOTH)).trace
    assert any("west: quorum lost" in line for line in trace)
    assert not any("the nodes differ" in line for line in trace)


# From one run to the next


def saved(machine: Machine) -> bytes:
    """What a machine has in its state file."""
    return machine.disk or b""


def test_a_lone_master_keeps_its_connections_over_a_restart() -> None:
    async def scenario(world: World) -> None:
        (east,) = world.machines.values()
        traffic = Traffic(world, 2, clients_max=10)
        traffic.paused = True
        life = await start(east)
        client = traffic.open(world.pair.services[0])
        await trio.sleep(1.0)
        before = found(east, client)
        assert client.established
        assert before is not None
        life.stop.set()
        await life.ended.wait()
        saved_at = trio.current_time()
        await trio.sleep(10.0)
        await start(east)
        after = found(east, client)
        assert after is not None
        assert after is not before
        assert after.server.address == before.server.address
        # What was left of its time runs on while nobody runs.
        assert after.expires == pytest.approx(before.expires, abs=0.02)
        assert after.expires < saved_at + after.timeout
        client.poke()
        await trio.sleep(1.0)
        assert client.established
        assert client.waits_since is None

    play(scenario, LONE)


def test_a_saved_state_of_another_node_is_kept_aside() -> None:
    async def scenario(world: World) -> None:
        (east,) = world.machines.values()
        east.disk = Writing("south", 0.0).begin() + Writing("south", 0.0).end()
        life = await start(east)
        assert not saved(east)
        assert len(life.node.director.registry.table) == 0
        counters = cast("dict[str, object]", (await life.node.status())["counters"])
        assert counters["state"] == {"states_refused": 1}

    play(scenario, LONE)


def test_the_word_of_a_peer_with_a_whole_table_wins_over_what_was_saved() -> None:
    async def scenario(world: World) -> None:
        client = await connected(world)
        east, west = world.machines.values()
        at_west = found(west, client)
        assert at_west is not None
        life = living(east)
        life.stop.set()
        await life.ended.wait()
        assert saved(east)
        # Meanwhile the connection ends, and its client has another server.
        assert state(west) is VrrpState.MASTER
        living(west).node.director.registry.end(at_west)
        living(west).node.sync.tell()
        await trio.sleep(0.5)
        await start(east, settle=0.001)
        assert found(east, client) is not None
        await trio.sleep(8.0)
        assert state(east) is VrrpState.MASTER
        assert found(east, client) is None

    play(scenario)


def test_what_a_leader_has_as_well_lives_as_long_as_a_copy_does() -> None:
    async def scenario(world: World) -> None:
        client = await connected(world)
        east, west = world.machines.values()
        life = living(east)
        life.stop.set()
        await life.ended.wait()
        # Its sums stay the same while its client goes on talking.
        await trio.sleep(100.0)
        client.poke()
        await trio.sleep(1.0)
        await start(east, settle=0.001)
        restored, at_west = found(east, client), found(west, client)
        assert restored is not None
        assert at_west is not None
        assert restored.expires > at_west.expires
        await trio.sleep(8.0)
        assert state(east) is VrrpState.MASTER
        again = found(east, client)
        assert again is not None
        assert again.expires > at_west.expires

    play(scenario)


def test_connections_are_saved_from_time_to_time_if_that_is_wanted() -> None:
    async def scenario(world: World) -> None:
        (east,) = world.machines.values()
        await start(east, settle=4.0)
        assert not saved(east)
        await trio.sleep(2.0)
        first = saved(east)
        assert first
        await trio.sleep(5.0)
        assert saved(east) != first

    play(scenario, pair(ROUTER, SERVICE, SYNC, EAST, "[saved_state]\ninterval = 5"))


# What is remembered


def remembered(life: Life) -> list[Event]:
    handler = life.host.commands["why"]
    assert not isinstance(handler, Lasting)
    return list(Export.parse(handler(), "why").events)


def test_a_takeover_is_remembered_by_both_nodes() -> None:
    async def scenario(world: World) -> None:
        await connected(world)
        east, west = world.machines.values()
        old, new = living(east), living(west)
        old.hang()
        await trio.sleep(DOWN + 0.1)
        took_over = {event.kind: event.fields for event in remembered(new)}
        old.wake()
        await trio.sleep(1.0)
        lost = [event for event in remembered(old) if event.fields.get("reason") == "stalled"]
        assert took_over["state_changed"]["reason"] == "master_silent"
        assert took_over["state_changed"]["advertisements_missed"] == DOWN_ADVERTISEMENTS
        assert took_over["connections_carried"]["established"] == 1
        assert took_over["connections_carried"]["copy_complete"] is True
        assert took_over["connections_carried"]["master_established"] == 1
        assert took_over["addresses_acquired"]["done"] is True
        assert "addresses_announced" in took_over
        assert len(lost) == 1
        assert [e.fields["untold"] for e in remembered(old) if e.kind == "connections_told"] == [0]

    play(scenario)


def test_an_advertisement_that_was_lost_is_remembered() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        await start(east)
        life = await start(west)
        assert not [event for event in remembered(life) if event.kind == "advertisement_late"]
        west.plug("outside", up=False)
        await trio.sleep(1.5 * INTERVAL)
        west.plug("outside", up=True)
        await trio.sleep(2 * INTERVAL)
        (late,) = [event for event in remembered(life) if event.kind == "advertisement_late"]
        assert late.router == "web"
        assert late.fields["interval_ms"] == INTERVAL * 1000
        after_ms = cast("float", late.fields["after_ms"])
        assert round(after_ms / (INTERVAL * 1000)) in {2, 3}

    play(scenario)


# A takeover is seen through


async def takeover(machine: Machine) -> dict[str, object]:
    takeovers = cast(
        "dict[str, dict[str, object]]", (await living(machine).node.status())["takeovers"]
    )
    return takeovers["web"]


def announcements(life: Life) -> int:
    return sum(event.kind == "addresses_announced" for event in remembered(life))


def test_a_takeover_in_silence_is_announced_again_and_the_first_frame_ends_that() -> None:
    async def scenario(world: World) -> None:
        client = await connected(world)
        east, west = world.machines.values()
        assert (await takeover(east))["frames"] == "seen"
        assert (await takeover(west))["frames"] == "not held"
        east.end()
        await trio.sleep(DOWN + 0.02)
        new = living(west)
        assert (await takeover(west))["frames"] == "awaited"
        before = announcements(new)
        await trio.sleep(0.8)
        # Two of its own series, which had none at that time.
        assert announcements(new) >= before + 2
        client.poke()
        await trio.sleep(0.4)
        assert (await takeover(west))["frames"] == "seen"
        (first,) = [event for event in remembered(new) if event.kind == "first_frame"]
        assert 800 < cast("float", first.fields["after_ms"]) < 1500
        seen = announcements(new)
        await trio.sleep(0.5)
        assert announcements(new) <= seen + 1

    play(scenario)


def test_a_network_in_which_nobody_asks_is_called_silent() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        life = await start(east)
        await trio.sleep(70)
        assert (await takeover(east))["frames"] == "silent"
        assert sum(event.kind == "no_frame" for event in remembered(life)) == 1

    play(scenario, LONE)


def test_another_that_announces_a_held_address_is_answered() -> None:
    async def scenario(world: World) -> None:
        east = world.machines["east"]
        life = await start(east, settle=100)
        assert life.host.rivals is not None
        before = announcements(life)
        for _ in range(10):
            await life.host.rivals.hear.send(Rival(VIRTUAL, bytes(6)))
        await trio.sleep(0.1)
        assert announcements(life) == before + 1
        (rival,) = [event for event in remembered(life) if event.kind == "rival_announced"]
        assert rival.fields == {"address": "192.0.2.10", "mac": "00:00:00:00:00:00"}
        counters = cast("dict[str, int]", (await takeover(east))["counters"])
        assert counters["rival_announcements"] == 10

    only_outside = ROUTER.replace(', "10.1.0.254/24@inside"', "")
    play(scenario, pair(only_outside, SERVICE, SYNC, EAST))


def test_what_was_given_up_is_not_defended_any_more() -> None:
    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        life = await start(east)
        await start(west)
        east.plug("outside", up=False)
        await trio.sleep(1.0)
        assert state(east) is VrrpState.FAULT
        assert (await takeover(east))["frames"] == "not held"
        before = announcements(life)
        assert life.host.rivals is not None
        await life.host.rivals.hear.send(Rival(INSIDE, bytes(6)))
        await trio.sleep(2.0)
        assert announcements(life) == before
        assert "rival_announcements" not in cast(
            "dict[str, int]", (await takeover(east))["counters"]
        )

    play(scenario)


def test_rivals_are_heard_on_every_interface_of_the_addresses() -> None:
    async def scenario(world: World) -> None:
        life = await start(world.machines["east"], settle=100)
        listeners = life.node._takeovers["web"]._listeners
        assert len(listeners) == 2
        before = announcements(life)
        for listener, address in zip(listeners, (VIRTUAL, INSIDE), strict=True):
            assert isinstance(listener, SimulatedRivalListener)
            listener.counters.add("frames_malformed", 2)
            await listener.hear.send(Rival(address, bytes(6)))
            await trio.sleep(2.0)
        assert announcements(life) == before + 2
        counters = cast("dict[str, int]", (await takeover(world.machines["east"]))["counters"])
        assert counters["rival_announcements"] == 2
        assert counters["frames_malformed"] == 4

    play(scenario, LONE)


# Metrics

PROBED = SERVICE.replace("8080 }", '8080, checks = [{ type = "tcp" }] }')
MARKED = """
[[marks]]
mark = 7
destinations = ["192.0.2.10/32"]

[[services]]
name = "marked"
mark = 7
scheduler = "rr"
servers = [{ address = "10.1.0.11" }]
"""


@pytest.mark.parametrize(
    "of",
    [
        pair(ROUTER, PROBED, SYNC, BOTH, "[metrics]", "[second_path]"),
        pair(ROUTER, MARKED, BOTH, "[metrics]"),
        pair(SERVICE, BOTH, "[metrics]"),
    ],
    ids=["everything", "a mark, and no sync", "no virtual router"],
)
def test_metrics_can_be_read_at_any_time(of: Pair) -> None:
    """An exception while they are written would end the node."""

    async def scenario(world: World) -> None:
        east, west = world.machines.values()
        east.start()
        west.start()
        sizes: set[int] = set()
        for _ in range(40):
            await trio.sleep(0.1)
            for machine in (east, west):
                page = living(machine).host.metrics
                if page is not None:
                    sizes.add(len(await page()))
        assert min(sizes) > 1000

    play(scenario, of)
