"""What goes wrong in a simulated pair: each fault from its beginning to its repair."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

import trio

from tests.simulation.pair_world import GATEWAY

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
    hang,
    unplug,
    cut_sync,
    cut_outside,
    isolate,
)
