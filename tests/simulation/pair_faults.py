"""What goes wrong in a simulated pair: each fault from its beginning to its repair."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import trio

from lvsha.control import Lasting
from lvsha.errors import HandoverError
from tests.simulation.pair_world import GATEWAY, Life, Machine, World

if TYPE_CHECKING:
    from tests.simulation.test_pair_simulation import Simulation

Fault = Callable[["Simulation"], Awaitable[None]]


async def crash(simulation: "Simulation") -> None:
    """A process is killed or its machine loses power; later it starts again."""
    found = simulation.running()
    if found is not None:
        machine, _ = found
        machine.end(power=simulation.dice.random() < 0.5)
        await simulation.must_serve()
        await trio.sleep(simulation.dice.uniform(0.0, 6.0))
        if machine.life is None:
            machine.start()


async def stop(simulation: "Simulation") -> None:
    """A process is told to stop, hands over, and is started again."""
    found = simulation.running()
    if found is not None:
        machine, life = found
        simulation.world.note(f"{machine.name} is told to stop")
        life.stop.set()
        await simulation.must_serve()
        await life.ended.wait()
        await trio.sleep(simulation.dice.choice([0.0, 0.5, 4.0]))
        if machine.life is None:
            machine.start()


async def hand_over(simulation: "Simulation") -> None:
    """A node hands over what it is MASTER of; `hand_back` repairs that."""
    found = simulation.running()
    if found is None:
        return
    machine, life = found
    simulation.world.note(f"{machine.name} is told to hand over")
    await _tell_to_hand_over(life, {})
    await simulation.must_serve()
    await trio.sleep(simulation.dice.choice([0.0, 0.5, 4.0]))


async def hand_back(world: World) -> None:
    """An operator has everything handed to who would have it, had nobody stepped aside."""
    for router in world.pair.virtual_routers:
        priorities = {
            name: node.priority_of(router.name) for name, node in world.pair.nodes.items()
        }
        best = world.machines[max(priorities, key=priorities.__getitem__)]
        speaker = None if best.life is None else best.life.node._speakers.get(router.name)
        if speaker is None or not speaker.election.stepped_aside:
            continue
        for master in world.masters(router.name):
            if master.life is not None:
                await _tell_to_hand_over(master.life, {"router": router.name})


def _best(world: World, router: str) -> Machine:
    """The machine of the highest priority."""
    nodes = world.pair.nodes
    return world.machines[max(nodes, key=lambda name: nodes[name].priority_of(router))]


async def _tell_to_hand_over(life: Life, arguments: Mapping[str, object]) -> None:
    """What ``lvsha handover`` asks for; nothing happens where no backup is ready."""
    command = life.host.commands.get("handover")
    if isinstance(command, Lasting):
        with contextlib.suppress(HandoverError):
            await command.handle(arguments)


async def hang(simulation: "Simulation") -> None:
    """A process does not run for a while."""
    found = simulation.running()
    if found is not None:
        _, life = found
        interval = simulation.interval
        life.hang()
        await trio.sleep(simulation.dice.choice([1, 3.3, 3.8, 4.3, 5, 20]) * interval)
        life.wake()


async def unplug(simulation: "Simulation") -> None:
    """A cable is pulled, and put back."""
    machine = simulation.some_machine(running=False)
    if machine is not None:
        segment = simulation.dice.choice(["outside", "inside", "sync"])
        machine.plug(segment, up=False)
        await simulation.must_serve()
        await trio.sleep(simulation.dice.choice([0.1, 1.0, 6.0]))
        machine.plug(segment, up=True)


async def cut_sync(simulation: "Simulation") -> None:
    """Two nodes do not hear each other's sync, or one does not hear the other."""
    with cut_between_two(simulation, "sync"):
        await trio.sleep(simulation.dice.choice([0.1, 1.0, 6.0]))


async def cut_outside(simulation: "Simulation") -> None:
    """Two nodes do not hear each other's advertisements; both reach the clients."""
    with cut_between_two(simulation, "outside"):
        await trio.sleep(simulation.dice.choice([0.1, 1.0, 6.0]) * 2 * simulation.interval)


async def isolate(simulation: "Simulation") -> None:
    """A node is behind a switch that carries nothing, though its link is up."""
    machine = simulation.some_machine(running=False)
    if machine is not None:
        cuts = simulation.world.segments["outside"].cuts
        others = {*simulation.world.machines, GATEWAY} - {machine.name}
        mine = {(machine.name, other) for other in others}
        mine |= {(other, machine.name) for other in others}
        simulation.world.note(f"{machine.name} is isolated")
        cuts |= mine
        await trio.sleep(simulation.dice.choice([0.1, 1.0, 5.0]))
        cuts -= mine


@contextlib.contextmanager
def cut_between_two(simulation: "Simulation", segment: str) -> Iterator[None]:
    one, other = simulation.dice.sample(sorted(simulation.world.machines), 2)
    mine = {(one, other)}
    if simulation.dice.random() < 0.6:
        mine.add((other, one))
    simulation.world.note(f"{segment} is cut: {sorted(mine)}")
    simulation.world.segments[segment].cuts |= mine
    yield
    simulation.world.segments[segment].cuts -= mine


FAULTS: Final[tuple[Fault, ...]] = (
    crash,
    stop,
    hand_over,
    hang,
    unplug,
    cut_sync,
    cut_outside,
    isolate,
)
