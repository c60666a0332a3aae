"""What a node in a simulated pair gets for its machine: `lvsha.host.Host` in memory.

A `SimulatedHost` belongs to one process (`Life`) on one `Machine` of ``pair_world``, and
does to that machine's kernel and wires what the real host does by netlink and sockets.
What a dead process still does has no effect.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from lvsha.config import Sync, VirtualRouter
from lvsha.config_life import MetricsTable, SavedStateTable
from lvsha.config_tracking import Tracker
from lvsha.control import Handler
from lvsha.counters import Counters
from lvsha.datapath.connections import Connection
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.forwarder import ANSWER_INTERVAL
from lvsha.datapath.network import NetworkChange
from lvsha.datapath.surprises import Surprises
from lvsha.errors import HostError
from lvsha.events import EventStream
from lvsha.failover.addresses import InterfaceAddress
from lvsha.failover.reception import ReceivedMessage
from lvsha.failover.rivals import Rival
from lvsha.failover.routes import Route, Rule
from lvsha.failover.transport import BATCH_MAX
from lvsha.metrics_server import Page
from lvsha.model import ConnectionFlag, VirtualMac
from lvsha.programs import Outcome
from lvsha.service_manager import Nobody
from lvsha.settings import Settings
from lvsha.sync.ipvs.daemons import Socket
from lvsha.sync.ipvs.roster import Daemon
from lvsha.sync.loopback import LoopbackGroup, LoopbackTransport
from lvsha.tracking.probes import Probe
from lvsha.wire import vrrp
from tests.probers import ScriptedProber

if TYPE_CHECKING:
    from tests.simulation.pair_world import Life, Machine, Wire

EXPIRY_INTERVAL: Final = 1.0
FRAMES_WAITING_MAX: Final = 512
"""As many small frames as wait in a packet socket of the usual size."""
MESSAGES_WAITING_MAX: Final = 128
NETLINK_SECONDS_MAX: Final = 0.005


class SimulatedHost:
    """See `lvsha.host.Host`: the machine as one process has it."""

    def __init__(self, life: "Life") -> None:
        self.life = life
        self.machine = life.machine
        self.frames: SimulatedForwarder | None = None
        self.datagrams: SimulatedSyncTransport | None = None
        self.messages: list[SimulatedAdvertisementTransport] = []
        self.rivals: SimulatedRivalListener | None = None
        self.cleaned = 0
        self.alone = False
        self.metrics: Page | None = None
        self.commands: Mapping[str, Handler] = {}

    def exclusive(self) -> contextlib.AbstractContextManager[object]:
        assert self.machine.life is None or self.machine.life is self.life
        return self._alone()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.alone = True
        yield
        self.alone = False

    async def clean(self, addresses: Sequence[InterfaceAddress]) -> None:
        assert self.alone, "another director may run already"
        await trio.lowlevel.checkpoint()
        self.cleaned += 1
        if not self.life.dead:
            self.machine.routes.clear()
            for placed in addresses:
                self.machine.release(placed.address.ip.packed)

    async def serve_control(
        self,
        commands: Mapping[str, Handler],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.commands = commands
        task_status.started()
        await trio.sleep_forever()

    def epoch(self) -> int:
        return self.machine.world.dice.getrandbits(64)

    def service_manager(self) -> Nobody:
        return Nobody()

    def state_store(self, node: str, saved: SavedStateTable) -> "SimulatedDisk":
        return SimulatedDisk(self.life)

    def forwarder(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
        virtual_macs: Collection[VirtualMac],
    ) -> "SimulatedForwarder":
        self.frames = SimulatedForwarder(self.life, director, interfaces, on_change, stale_after)
        return self.frames

    def sync_transport(
        self, interface: str, sync: Sync
    ) -> contextlib.AbstractContextManager["SimulatedSyncTransport"]:
        self.datagrams = SimulatedSyncTransport(self.life, self.machine.wires[interface])
        return contextlib.nullcontext(self.datagrams)

    def open_sync_socket(self, daemon: Daemon, index: int, settings: Settings) -> Socket:
        raise AssertionError("simulated pairs speak lvsha's own format")

    def advertisement_transport(
        self, interface: str, router: VirtualRouter, virtual: Collection[bytes]
    ) -> contextlib.AbstractContextManager["SimulatedAdvertisementTransport"]:
        transport = SimulatedAdvertisementTransport(self.life, self.machine.wires[interface])
        self.messages.append(transport)
        return contextlib.nullcontext(transport)

    def rival_listener(
        self, interface: str, addresses: Sequence[bytes]
    ) -> contextlib.AbstractContextManager["SimulatedRivalListener"]:
        self.rivals = SimulatedRivalListener()
        return contextlib.nullcontext(self.rivals)

    def addresses(
        self,
        addresses: Sequence[InterfaceAddress],
        *,
        announce_repeat: int,
        announce_at_once: bool,
        mac: bytes | None,
    ) -> "SimulatedAddresses":
        return SimulatedAddresses(self.life, [placed.address.ip.packed for placed in addresses])

    def routes(self, routes: Sequence[Route], rules: Sequence[Rule]) -> "SimulatedRoutes":
        return SimulatedRoutes(self.life, [*map(str, routes), *map(str, rules)])

    def probe(self, tracker: Tracker, interface: str | None, virtual: Collection[bytes]) -> Probe:
        return self.machine.probes[tracker.name]

    async def check_user(self, user: str | None) -> None:
        """Everybody is known here."""

    async def run_program(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.machine.programs.append((trio.current_time(), tuple(command)))
        with trio.move_on_after(seconds_max):
            return await self.machine.run_program(tuple(command))
        return Outcome(None, f"ended after {seconds_max:g} s")

    async def serve_events(
        self,
        events: EventStream,
        group: str | None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def serve_metrics(
        self,
        table: MetricsTable,
        page: Page,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.metrics = page
        task_status.started()
        await trio.sleep_forever()

    def prober(self) -> ScriptedProber:
        return self.machine.prober


class SimulatedDisk:
    """See `lvsha.state_file.StateStore`: what the machine keeps over a process's end."""

    def __init__(self, life: "Life") -> None:
        self._life = life
        self._draft = b""

    def time_of_day(self) -> float:
        return trio.current_time()

    async def read(self, size_max: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._life.machine.disk

    async def set_aside(self) -> str:
        await trio.lowlevel.checkpoint()
        self._life.machine.disk = None
        return "aside"

    def draft(self) -> "SimulatedDisk":
        return SimulatedDisk(self._life)

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._draft += data

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._life.dead:
            self._life.machine.disk = self._draft

    def close(self) -> None:
        self._draft = b""


class SimulatedRivalListener:
    """See `lvsha.failover.rivals.RivalListener`: what a test lets be heard."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.hear, self._heard = trio.open_memory_channel[Rival](16)

    async def rival(self) -> Rival | None:
        return await self._heard.receive()


class SimulatedForwarder:
    """Brings frames to a director as `lvsha.datapath.forwarder.Forwarder` does."""

    def __init__(
        self,
        life: "Life",
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
    ) -> None:
        self.counters = Counters()
        self.surprises = Surprises()
        self.interfaces = tuple(interfaces)
        self.stale_after = stale_after
        self.director = director
        self._life = life
        self._on_change = on_change
        self._frame = Frame()
        self._waiting: deque[bytes] = deque(maxlen=FRAMES_WAITING_MAX)
        self._news: list[NetworkChange] = []
        self._arrived = trio.Event()
        self._changed = trio.Event()
        self._asked = trio.Event()
        self._alive_at = float("inf")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._alive_at = trio.current_time()
        self._news = self._life.machine.network()
        self._take_news()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._housekeep)
            nursery.start_soon(self._stay_alive)
            nursery.start_soon(self._await_answers)
            task_status.started()
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                self._note_alive()
                self._take_news()
                self._take_frames()

    async def beat(self) -> None:
        await trio.lowlevel.checkpoint()

    async def network_changed(self) -> None:
        await self._changed.wait()

    def listen_to(self, mac: bytes | None, *, held: bool) -> None:
        assert mac is None

    def services_changed(self) -> None:
        """There are no rules to load here."""

    def deliver(self, frame: bytes) -> None:
        self._waiting.append(frame)
        self._arrived.set()

    def learn(self, changes: Sequence[NetworkChange]) -> None:
        self._news += changes
        self._arrived.set()

    def _take_news(self) -> None:
        if not self._news:
            return
        for change in self._news:
            for index, data in self.director.learn(change):
                self._send(index, bytes(data))
        self._news = []
        self._changed.set()
        self._changed = trio.Event()

    def _take_frames(self) -> None:
        world, outgoing = self._life.machine.world, []
        while self._waiting:
            data = self._waiting.popleft()
            self._frame.view[: len(data)] = data
            for index, left in self.director.process(self._frame, len(data), trio.current_time()):
                outgoing.append((index, bytes(left)))
            key = self._frame.key
            connection = self.director.registry.table.find(key) if key else None
            if connection is not None and not connection.flags & ConnectionFlag.SYNC:
                world.opened.add(identity(connection))
        self._tell_changes()
        for index, data in outgoing:
            self._send(index, data)

    def _send(self, index: int, data: bytes) -> None:
        if not self._life.dead:
            self._life.machine.transmit(index, data)

    def _tell_changes(self) -> None:
        if self.director.questions:
            self._asked.set()
        if self.director.registry.untold or self.director.questions:
            self._on_change()

    async def _await_answers(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            while self.director.asks:
                await trio.sleep(ANSWER_INTERVAL)
                for index, data in self.director.release(trio.current_time()):
                    self._send(index, bytes(data))
                self._tell_changes()

    async def _stay_alive(self) -> None:
        while True:
            await trio.sleep(self.stale_after / 4)
            self._note_alive()

    def _note_alive(self) -> None:
        now = trio.current_time()
        if now - self._alive_at > self.stale_after:
            self._waiting.clear()
        self._alive_at = now

    async def _housekeep(self) -> None:
        while True:
            await trio.sleep(EXPIRY_INTERVAL)
            more = True
            while more:
                more = self.director.housekeep(trio.current_time())
                self._tell_changes()


def identity(connection: Connection) -> tuple[bytes, bytes]:
    """What must not change while a connection lives: its key and its real server."""
    return connection.key, connection.server.address


class SimulatedSyncTransport(LoopbackTransport):
    """A member of the sync group that may miss what is sent."""

    def __init__(self, life: "Life", wire: "Wire") -> None:
        super().__init__(LoopbackGroup())
        self._life = life
        self._wire = wire

    def send(self, datagram: bytes) -> bool:
        machine = self._life.machine
        if self._life.dead or not self._wire.up:
            return True
        world = machine.world
        for other in world.machines.values():
            if other is not machine:
                arrive = partial(self._arrive, other, datagram)
                world.carry(self._wire.segment, machine.name, other.name, arrive)
        return True

    def _arrive(self, machine: "Machine", datagram: bytes) -> None:
        if machine.life is not None and machine.wire_on(self._wire.segment.name).up:
            transport = machine.life.host.datagrams
            if transport is not None:
                transport.deliver(datagram)


class SimulatedAdvertisementTransport:
    """See `lvsha.failover.transport.AdvertisementTransport`.

    Attributes:
        trouble: why nobody can be heard or told; empty for nothing.
        replaced: whether the interface was, since `refresh`.
    """

    def __init__(self, life: "Life", wire: "Wire") -> None:
        self.source = wire.address
        self.trouble = ""
        self.replaced = False
        self.destinations = (vrrp.GROUP_IPv4,)
        self.counters = Counters()
        self._life = life
        self._wire = wire
        self._waiting: deque[ReceivedMessage] = deque(maxlen=MESSAGES_WAITING_MAX)
        self._arrived = trio.Event()

    async def wait_readable(self) -> None:
        await self._arrived.wait()

    def receive(self) -> Sequence[ReceivedMessage]:
        batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
        if not self._waiting:
            self._arrived = trio.Event()
        return batch

    def deliver(self, received: ReceivedMessage) -> None:
        self._waiting.append(received)
        self._arrived.set()

    def refresh(self) -> bool:
        if self.trouble:
            raise HostError(self.trouble)
        replaced, self.replaced = self.replaced, False
        return replaced

    def send(self, message: bytes, destination: bytes) -> None:
        machine, segment = self._life.machine, self._wire.segment
        if self._life.dead or not self._wire.up:
            return
        received = ReceivedMessage(message, self.source, destination, vrrp.HOP_LIMIT)
        for other in machine.world.machines.values():
            if other is not machine:
                arrive = partial(self._arrive, other, received)
                machine.world.carry(segment, machine.name, other.name, arrive)

    def _arrive(self, machine: "Machine", received: ReceivedMessage) -> None:
        if machine.life is not None and machine.wire_on(self._wire.segment.name).up:
            for transport in machine.life.host.messages:
                if transport._wire.segment is self._wire.segment:
                    transport.deliver(received)


class SimulatedAddresses:
    """See `lvsha.failover.addresses.Addresses`."""

    def __init__(self, life: "Life", addresses: Sequence[bytes]) -> None:
        self.addresses = tuple(addresses)
        self.counters = Counters()
        self._life = life

    async def _netlink(self) -> bool:
        """Take a moment; whether the process still lives."""
        await trio.sleep(self._life.machine.world.dice.uniform(0.0, NETLINK_SECONDS_MAX))
        return not self._life.dead

    async def prepare(self) -> None:
        pass

    async def acquire(self) -> bool:
        if await self._netlink():
            for address in self.addresses:
                self._life.machine.hold(address)
        return True

    async def release(self) -> bool:
        if await self._netlink():
            for address in self.addresses:
                self._life.machine.release(address)
        return True

    async def refresh(self) -> bool:
        if await self._netlink():
            restored = [one for one in self.addresses if not self._life.machine.hold(one)]
            if restored:
                await self.announce()
        return True

    async def announce(self) -> bool:
        if await self._netlink():
            for address in self.addresses:
                if address in self._life.machine.held:
                    self._life.machine.announce(address)
        return True


class SimulatedRoutes:
    """See `lvsha.failover.routes.Routes`: a kernel that refuses nothing."""

    def __init__(self, life: "Life", pieces: Sequence[str]) -> None:
        self._life = life
        self._pieces = tuple(pieces)

    async def install(self) -> bool:
        return await self._do(self._life.machine.routes.update)

    async def keep(self) -> bool:
        return await self._do(self._life.machine.routes.update)

    async def remove(self) -> bool:
        return await self._do(self._life.machine.routes.difference_update)

    def status(self) -> dict[str, object]:
        return {"pieces": list(self._pieces)}

    async def _do(self, change: Callable[[Sequence[str]], None]) -> bool:
        if self._pieces and not self._life.dead:
            await trio.lowlevel.checkpoint()
            change(self._pieces)
        return True
