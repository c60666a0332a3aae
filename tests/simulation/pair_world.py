"""Machines in memory on which whole nodes run: the host, the wires, and what goes wrong.

A `World` has three segments (outside, inside, sync), the machines that are directors, and
the stations that clients and real servers stand behind. Each machine has a kernel of its
own, which keeps the virtual addresses with their lifetime whatever becomes of the process;
a `Life` is one process on it, a real `Node` on a `SimulatedHost`. Everything is drawn from
one generator, and everything that happens later stands in one heap of events.

What is modelled:

* a segment loses, doubles, delays and so reorders what it carries, and can be cut for one
  direction between any two that stand on it;
* neighbours ask for an address when whom they know has not answered for a while, and
  otherwise believe every announcement that reaches them;
* a process can be killed (it does nothing any more, not even a clean-up), its machine can
  lose power, and it can hang: while it hangs not one of its tasks takes a step, and when it
  goes on it finds everything that came meanwhile.

What is not: the clocks of the machines are one clock, processors cost no time, and netlink
takes some milliseconds but never fails.
"""

import heapq
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
import trio

from lvsha.config import Pair
from lvsha.counters import Counters
from lvsha.datapath.network import (
    AddressChange,
    LinkChange,
    NeighbourChange,
    NetworkChange,
    RouteChange,
)
from lvsha.failover.addresses import LIFETIME
from lvsha.model import VrrpState
from lvsha.node import Node
from lvsha.programs import Outcome
from lvsha.tracking.probes import Probe
from tests.packets import NO_VNET
from tests.probers import ScriptedProber
from tests.simulation.pair_host import SimulatedHost
from tests.simulation.tasks import Process, current_process

NEIGHBOUR_INTERVAL: Final = 1.0
GATEWAY = "gateway"


class BrokenPromiseError(AssertionError):
    """Something that must always hold does not."""


@dataclass(eq=False)
class Segment:
    """A switch: everything that stands on it, and how badly it carries.

    Attributes:
        loss, duplication: probabilities for each receiver of each frame.
        peer_loss: the loss between two directors.
        delay_max: seconds; each copy is delayed by its own draw.
        cuts: from whom to whom nothing passes.
    """

    name: str
    loss: float = 0.0
    peer_loss: float = 0.0
    duplication: float = 0.0
    delay_max: float = 0.001
    cuts: set[tuple[str, str]] = field(default_factory=set)

    def passes(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) not in self.cuts

    def joins(self, one: str, other: str) -> bool:
        return self.passes(one, other) and self.passes(other, one)


@dataclass(eq=False, slots=True)
class Coming:
    """Something that is to happen, unless ``still`` is taken from it."""

    happen: Callable[[], None]
    still: bool = True


class World:
    """Everything, and the one heap of what is still to happen."""

    def __init__(self, seed: int, pair: Pair) -> None:
        self.pair = pair
        self.dice = random.Random(seed)
        self.trace: list[str] = []
        self.counts = Counters()
        self.segments = {name: Segment(name) for name in ("outside", "inside", "sync")}
        self.machines = {
            name: Machine(self, name, number) for number, name in enumerate(pair.nodes, 1)
        }
        self.stations: dict[str, Station] = {}
        # What any director ever opened by itself: key and address of the real server.
        self.opened: set[tuple[bytes, bytes]] = set()
        self.nursery: trio.Nursery | None = None
        self._heap: list[tuple[float, int, Coming]] = []
        self._order = itertools.count()
        self._waiting = trio.CancelScope()

    def after(self, delay: float, happen: Callable[[], None]) -> "Coming":
        coming = Coming(happen)
        heapq.heappush(self._heap, (trio.current_time() + delay, next(self._order), coming))
        self._waiting.deadline = self._heap[0][0]
        return coming

    async def run(self) -> None:
        """Let things happen at their time, until cancelled."""
        while True:
            while self._heap and not self._heap[0][2].still:
                heapq.heappop(self._heap)
            deadline = self._heap[0][0] if self._heap else float("inf")
            with trio.CancelScope(deadline=deadline) as self._waiting:
                await trio.sleep_forever()
            while self._heap and self._heap[0][0] <= trio.current_time():
                coming = heapq.heappop(self._heap)[2]
                if coming.still:
                    coming.happen()

    def note(self, text: str) -> None:
        """Enter a line into the trace, by which two runs of a seed are compared."""
        self.trace.append(f"{trio.current_time():.6f} {text}")

    def log(
        self, _logger: object, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        """A processor that takes the nodes' log lines into the trace."""
        life = current_process()
        name = life.machine.name if isinstance(life, Life) else "-"
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key != "event")
        self.note(f"{name}: {event['event']} {fields}")
        raise structlog.DropEvent

    def carry(
        self, segment: Segment, sender: str, receiver: str, deliver: Callable[[], None]
    ) -> None:
        """Bring something from one end of a segment to another, as badly as it does."""
        if not segment.passes(sender, receiver):
            return
        peers = sender in self.machines and receiver in self.machines
        loss = segment.peer_loss if peers else segment.loss
        for _ in range(2 if self.dice.random() < segment.duplication else 1):
            if self.dice.random() < loss:
                continue
            self.after(self.dice.uniform(0.0, segment.delay_max), deliver)

    def holders(self, address: bytes) -> list["Machine"]:
        """The machines whose kernels hold an address."""
        return [machine for machine in self.machines.values() if address in machine.held]

    def masters(self, router: str) -> list["Machine"]:
        """The machines whose process is MASTER of a virtual router."""
        return [m for m in self.machines.values() if m.state_of(router) is VrrpState.MASTER]


@dataclass(eq=False)
class Wire:
    """An interface of a machine."""

    index: int
    name: str
    segment: Segment
    mac: bytes
    address: bytes
    up: bool = True

    def change(self) -> LinkChange:
        return LinkChange(self.index, self.name, self.mac, 1500, self.up)


async def _works(_command: tuple[str, ...]) -> Outcome:
    return Outcome(0)


NETWORKS: Final = {"outside": (192, 0, 2), "inside": (10, 1, 0), "sync": (10, 255, 0)}
GATEWAY_ADDRESS: Final = bytes((192, 0, 2, 254))


class Machine:
    """A computer with its kernel, and the process that runs on it, if one does.

    Attributes:
        held: virtual addresses and when their lifetime ends.
        routes: the routes and rules that came with them.
        powered: False answers nobody.
        probes: what looks at trackers, by their names.
        programs: the commands that were run, and when.
        run_program: what becomes of a command; it works at once.
        prober: finds what the real servers are like.
        disk: what a process has left in its state file.
    """

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.held: dict[bytes, float] = {}
        self.routes: set[str] = set()
        self.powered = True
        self.probes: dict[str, Probe] = {}
        self.programs: list[tuple[float, tuple[str, ...]]] = []
        self.run_program: Callable[[tuple[str, ...]], Awaitable[Outcome]] = _works
        self.disk: bytes | None = None
        self.life: Life | None = None
        self.prober = ScriptedProber()
        roles = world.pair.nodes[name].interfaces
        self.wires = {
            interface: Wire(
                index,
                interface,
                world.segments[role],
                bytes((2, 0xD1, number, 0, 0, index)),
                bytes((*NETWORKS[role], number)),
            )
            for index, (role, interface) in enumerate(roles.items(), 1)
        }

    def wire_on(self, segment: str) -> Wire:
        return next(wire for wire in self.wires.values() if wire.segment.name == segment)

    def state_of(self, router: str) -> VrrpState:
        """What the process is for a virtual router; INIT where there is none."""
        life = self.life
        if life is None or router not in life.node._speakers:
            return VrrpState.INIT
        return life.node._speakers[router].election.state

    # The process

    def start(self) -> None:
        assert self.life is None
        assert self.world.nursery is not None
        self.powered = True
        self.world.note(f"{self.name} starts")
        self.life = Life(self)
        self.world.nursery.start_soon(self.life.run)

    def end(self, *, power: bool = False) -> None:
        """Kill the process; with ``power`` the whole machine goes dark."""
        self.world.note(f"{self.name} loses power" if power else f"{self.name} is killed")
        if power:
            self.powered = False
            self.held.clear()
            self.routes.clear()
        if self.life is not None:
            self.life.end()

    # The kernel

    def network(self) -> list[NetworkChange]:
        """All that netlink would dump."""
        changes: list[NetworkChange] = [wire.change() for wire in self.wires.values()]
        for wire in self.wires.values():
            prefix = wire.address[:3] + b"\0"
            changes.append(AddressChange(wire.index, wire.address, present=True))
            changes.append(RouteChange(prefix, 24, wire.index, b"", wire.address, 0, present=True))
            changes += [
                NeighbourChange(wire.index, station.address, station.mac)
                for station in self.world.stations.values()
                if station.segment is wire.segment
            ]
        outside = self.wire_on("outside").index
        changes.append(RouteChange(bytes(4), 0, outside, GATEWAY_ADDRESS, b"", 0, present=True))
        changes += [AddressChange(self._index_of(held), held, present=True) for held in self.held]
        return changes

    def _index_of(self, address: bytes) -> int:
        return next(w.index for w in self.wires.values() if w.address[:3] == address[:3])

    def tell(self, *changes: NetworkChange) -> None:
        """What netlink tells the process."""
        if self.life is not None and self.life.host.frames is not None:
            self.life.host.frames.learn(changes)

    def plug(self, segment: str, *, up: bool) -> None:
        wire = self.wire_on(segment)
        if wire.up is not up:
            self.world.note(f"{self.name} {wire.name} is {'up' if up else 'down'}")
            wire.up = up
            self.tell(wire.change())

    def hold(self, address: bytes) -> bool:
        """Add an address or renew it; whether it was there."""
        present = address in self.held
        self.held[address] = trio.current_time() + LIFETIME
        self.world.after(LIFETIME, partial(self._let_expire, address))
        if not present:
            self.world.note(f"{self.name} holds {address.hex()}")
            self.tell(AddressChange(self._index_of(address), address, present=True))
        return present

    def _let_expire(self, address: bytes) -> None:
        if self.held.get(address, float("inf")) <= trio.current_time():
            self.world.note(f"{self.name} lets {address.hex()} expire")
            self.release(address)

    def release(self, address: bytes) -> bool:
        if self.held.pop(address, None) is None:
            return False
        self.tell(AddressChange(self._index_of(address), address, present=False))
        return True

    def answers(self, address: bytes, station: "Station") -> bool:
        """Whether the kernel would answer a question of this station for an address."""
        wire = self.wire_on(station.segment.name)
        return (
            self.powered
            and wire.up
            and address in self.held
            and station.segment.joins(self.name, station.name)
        )

    def announce(self, address: bytes) -> None:
        """A gratuitous ARP to all stations of the address's segment."""
        index = self._index_of(address)
        for wire in self.wires.values():
            if wire.index != index or not wire.up:
                continue
            for station in self.world.stations.values():
                if station.segment is wire.segment:
                    believe = partial(station.believe, address, wire.mac)
                    self.world.carry(wire.segment, self.name, station.name, believe)

    def transmit(self, index: int, frame: bytes) -> None:
        """A frame leaves by an interface; its virtio header is cut off."""
        for wire in self.wires.values():
            if wire.index == index and wire.up and self.powered:
                for station in self.world.stations.values():
                    if station.segment is wire.segment and station.mac == frame[10:16]:
                        receive = partial(station.receive, frame[24:])
                        self.world.carry(wire.segment, self.name, station.name, receive)

    def receive(self, wire: Wire, frame: bytes) -> None:
        if wire.up and self.powered and self.life is not None:
            frames = self.life.host.frames
            if frames is not None and wire.name in frames.interfaces:
                frames.deliver(frame)


class Station:
    """Who talks to the directors on a segment, with what it knows of its neighbours.

    Attributes:
        neighbours: the MAC of each virtual address, as far as it is known.
    """

    def __init__(self, world: World, name: str, segment: str, address: bytes, mac: bytes) -> None:
        self.world = world
        self.name = name
        self.segment = world.segments[segment]
        self.address = address
        self.mac = mac
        self.neighbours: dict[bytes, bytes] = {}
        self._silent: set[bytes] = set()
        world.stations[name] = self

    def receive(self, packet: bytes) -> None:
        raise NotImplementedError

    def believe(self, address: bytes, mac: bytes) -> None:
        """An announcement came."""
        self.neighbours[address] = mac

    def confirm(self) -> None:
        """Ask the known neighbours; one that is silent twice is not known any more."""
        silent = {
            address
            for address, mac in self.neighbours.items()
            if not self._machine(mac).answers(address, self)
        }
        for address in silent & self._silent:
            del self.neighbours[address]
        self._silent = silent
        self.world.after(NEIGHBOUR_INTERVAL * self.world.dice.uniform(0.8, 1.2), self.confirm)

    def send(self, address: bytes, packet: bytes) -> None:
        """Send a packet to, or by way of, a virtual address."""
        if address not in self.neighbours:
            answers = [m for m in self.world.machines.values() if m.answers(address, self)]
            if not answers:
                return
            chosen = self.world.dice.choice(answers)
            self.neighbours[address] = chosen.wire_on(self.segment.name).mac
        machine = self._machine(self.neighbours[address])
        wire = machine.wire_on(self.segment.name)
        frame = NO_VNET + wire.mac + self.mac + b"\x08\x00" + packet
        receive = partial(machine.receive, wire, frame)
        self.world.carry(self.segment, self.name, machine.name, receive)

    def _machine(self, mac: bytes) -> Machine:
        return next(
            machine
            for machine in self.world.machines.values()
            if machine.wire_on(self.segment.name).mac == mac
        )


class Life(Process):
    """One process: a node from its start to its end.

    Attributes:
        dead: it was killed; what it still does has no effect.
        ended: nothing of it is left.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.dead = False
        self.ended = trio.Event()
        self.stop = trio.Event()
        self.host = SimulatedHost(self)
        self.node = Node(machine.world.pair, machine.name, self.host)
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        self.adopt()
        with self._scope:
            await self.node.run(self.stop)
        self.ended.set()
        if self.machine.life is self:
            self.machine.life = None

    def end(self) -> None:
        self.dead = True
        self.machine.life = None
        self.wake()
        self._scope.cancel()

    def hang(self) -> None:
        self.machine.world.note(f"{self.machine.name} hangs")
        super().hang()

    def wake(self) -> None:
        if self.hangs:
            self.machine.world.note(f"{self.machine.name} goes on")
            super().wake()
