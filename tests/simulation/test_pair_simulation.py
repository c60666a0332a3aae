"""Whole nodes in one small world, with everything going wrong that can.

Two or three real `Node` objects run under one virtual clock on simulated machines (see
``pair_world``), real-looking TCP runs through them (``pair_traffic``), and a seed draws the
pair file, the quality of the wires and a series of faults. After each fault everything is
repaired and must settle within a bound. Checkers look at everything at short intervals.

Faults come one at a time: then no established connection may be lost or come out at
another real server, whatever the fault, and a stop costs not even a packet. Some seeds
begin with a time in which faults come all at once; a connection of that time may be lost,
and everything else must hold.

Two kinds of connections are exempt from the promise, because nothing can be promised:

* those that are young when a director dies or hangs: see ``pair_traffic``;
* those that are opened while two nodes that are both in order believe to be alone
  (the segment between them is cut). Each then leads, and the loser gives its own up.

With a lossy sync segment a connection counts only once all copies have it, which a settled
pair must reach.

A longer run: ``python -m tests.simulation.test_pair_simulation 1000``; one seed again, with
its trace: ``python -m tests.simulation.test_pair_simulation 1 SEED``.
"""

import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest
import structlog
import trio
import trio.testing

from lvsha.config import VirtualRouter
from lvsha.datapath.connections import Connection
from lvsha.datapath.director import Director
from lvsha.datapath.services import RealServer
from lvsha.datapath.tcp_states import TOLD, TcpState
from lvsha.failover.addresses import LIFETIME
from lvsha.failover.election import DOWN_ADVERTISEMENTS
from lvsha.model import VrrpState
from lvsha.node import TRANSITION
from lvsha.sync.catching_up import SNAPSHOT_STALL
from lvsha.sync.messages import Role
from lvsha.sync.overlap import DRAIN
from lvsha.sync.peers import silence_limit
from lvsha.tally import UNTOLD
from tests.simulation.pair_draw import SERVERS, draw_pair
from tests.simulation.pair_faults import FAULTS, cut_outside, hand_back, hand_over, isolate, stop
from tests.simulation.pair_host import identity
from tests.simulation.pair_traffic import RETRANSMISSION_MAX, Client, Traffic
from tests.simulation.pair_world import (
    NEIGHBOUR_INTERVAL,
    BrokenPromiseError,
    Life,
    Machine,
    World,
)
from tests.simulation.tasks import one_order_of_tasks

SEEDS: Final = 20
"""In the suite; `make sim` runs more, in CI too."""
CHECK_INTERVAL: Final = 0.1
SETTLED_INTERVAL: Final = 0.1
CHAOS: Final = 6.0
CLIENTS_MAX: Final = 20
TABLE_MAX: Final = 1000
TOLD_WITHIN: Final = 0.1
"""From a connection's ACK at a real server until every copy has it, on a sound segment."""
CONVERGED_WITHIN: Final = 2.0
"""Until copies are equal when nothing happens any more: a heartbeat, a snapshot."""
ANSWERED_WITHIN: Final = 10.0
"""An established connection of a settled pair; the segment may still lose packets."""


class Simulation:
    """One seed: the world, the traffic, the faults and the checkers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = dice = random.Random(seed)
        self.pair = draw_pair(dice)
        self.world = World(dice.getrandbits(32), self.pair)
        segments = self.world.segments
        for segment in segments.values():
            segment.duplication = dice.choice([0.0, 0.0, 0.05])
            segment.delay_max = dice.choice([0.0005, 0.002, 0.01])
        segments["outside"].loss = segments["inside"].loss = dice.choice([0.0, 0.0, 0.03])
        segments["sync"].peer_loss = dice.choice([0.0, 0.0, 0.0, 0.005, 0.02])
        self.sync_is_lossy = segments["sync"].peer_loss > 0
        self.interval = max(router.advert_interval for router in self.pair.virtual_routers)
        assert self.pair.sync is not None
        heartbeat = self.pair.sync.heartbeat_interval
        self.down = (DOWN_ADVERTISEMENTS + 1) * self.interval
        # A peer counts as silent and is heard again, an old leader has drained, a snapshot
        # whose end was lost has stalled, then two snapshots and their pause; two elections;
        # the transition; the addresses of a dead process; what the stations believe.
        self.settling_max = (
            silence_limit(heartbeat) + heartbeat + DRAIN + SNAPSHOT_STALL + 1.0
        ) + (2 * self.down + TRANSITION + LIFETIME + 2 * NEIGHBOUR_INTERVAL)
        self.steps = 0
        self.settled_after = 0.0
        self.outage = 0.0
        self._together: dict[tuple[bytes, str, str], float] = {}
        self._without_right: dict[tuple[str, str], float] = {}
        self._both_lead: dict[tuple[str, str, str], float] = {}

    # The course of events

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self.world.nursery = nursery
            self.traffic = Traffic(self.world, SERVERS, clients_max=CLIENTS_MAX)
            nursery.start_soon(self.world.run)
            nursery.start_soon(self._check_always)
            try:
                await self._scenario()
            finally:
                for machine in self.world.machines.values():
                    if machine.life is not None:
                        machine.life.wake()
            nursery.cancel_scope.cancel()

    async def _scenario(self) -> None:
        for machine in self.world.machines.values():
            self.world.after(self.dice.uniform(0.0, 2.0), machine.start)
        await trio.sleep(2.0)
        self.traffic.begin(rate=self.dice.choice([2.0, 5.0]))
        if self.dice.random() < 0.4:
            await self._chaos()
        await self._settle()
        await self._calm()
        for _ in range(self.dice.choice([1, 1, 2, 3])):
            await self._one_fault()
            await self._calm()
        self.traffic.paused = True
        self.world.segments["sync"].peer_loss = 0.0
        end = trio.current_time() + CONVERGED_WITHIN
        while (difference := self._difference()) is not None:
            if trio.current_time() > end:
                raise BrokenPromiseError(difference)
            await trio.sleep(CHECK_INTERVAL)

    async def _chaos(self) -> None:
        """Many faults at once; only what must hold in any case is checked."""
        self.world.note("chaos")
        outside, sync = self.world.segments["outside"], self.world.segments["sync"]
        before = outside.peer_loss, sync.peer_loss
        outside.peer_loss = self.dice.choice([0.0, 0.1, 0.3])
        sync.peer_loss = self.dice.choice([0.0, 0.1, 0.3])
        self.traffic.exempting = True
        self.traffic.exempt(lambda _: True)
        async with trio.open_nursery() as nursery:
            end = trio.current_time() + CHAOS
            while (delay := self.dice.expovariate(1.0)) + trio.current_time() < end:
                await trio.sleep(delay)
                nursery.start_soon(self.dice.choice(FAULTS), self)
        outside.peer_loss, sync.peer_loss = before

    async def _one_fault(self) -> None:
        fault = self.dice.choice(FAULTS)
        self.world.counts.add(fault.__name__)
        if self.sync_is_lossy or fault in {cut_outside, isolate}:
            self.traffic.exempting = True
        if fault not in {stop, hand_over}:
            # Of a handover even young connections survive.
            self.traffic.exempt(lambda client: client.heard_at is None)
        if self.sync_is_lossy:
            self.traffic.exempt(lambda client: not self._is_everywhere(client))
        repeats = self.traffic.repeats
        await fault(self)
        await self._settle()
        if fault in {stop, hand_over} and self._is_lossless() and self.traffic.repeats > repeats:
            raise BrokenPromiseError("a handover or the return from it has lost a packet")

    def _is_lossless(self) -> bool:
        """Whether only a fault can make a client repeat something."""
        return not any(
            segment.loss or segment.peer_loss for segment in self.world.segments.values()
        )

    async def _settle(self) -> None:
        """Wait until all is in order again; that must not take too long."""
        begin = trio.current_time()
        while (reason := self._unsettled()) is not None:
            if trio.current_time() > begin + self.settling_max:
                raise BrokenPromiseError(f"not settled after {self.settling_max:.1f} s: {reason}")
            await hand_back(self.world)
            await trio.sleep(SETTLED_INTERVAL)
        self.settled_after = max(self.settled_after, trio.current_time() - begin)
        self.world.note("settled")

    async def _calm(self) -> None:
        """Nothing happens: all that is established works, and all that is opened succeeds."""
        self.traffic.exempting = False
        clients = list(self.traffic.clients.values())
        for client in clients:
            client.poke()
        clients += [self.traffic.open(service) for service in self.pair.services]
        end = trio.current_time() + ANSWERED_WITHIN
        begin = trio.current_time()
        while unanswered := [
            client
            for client in clients
            if client.waits_since is not None and client.waits_since <= begin
        ]:
            if trio.current_time() > end:
                self._abandon(unanswered)
                break
            await trio.sleep(0.05)
        for client in clients:
            if client.exempt and client.established and not self._is_everywhere(client):
                # It goes on with what another connection of its port has left behind.
                self._abandon([client])
            client.exempt = False
        if self.dice.random() < 0.05:
            # Long enough for a copy to end that is not told of again.
            await trio.sleep(28.0)
        await trio.sleep(self.dice.uniform(0.0, 2.0))
        if not self.sync_is_lossy and (reason := self._not_copied()) is not None:
            raise BrokenPromiseError(f"in a settled pair {reason}")

    def _abandon(self, clients: list[Client]) -> None:
        for client in clients:
            if not client.exempt:
                raise BrokenPromiseError(
                    f"connection {client.number} of {client.service.name} with {client.server}, "
                    f"{client.phase}, gets no answer in a settled pair"
                )
            self.world.counts.add("exempt clients abandoned")
            client.give_up()

    # What must be reached

    def _unsettled(self) -> str | None:
        """Why all is not in order yet."""
        for machine in self.world.machines.values():
            if machine.life is None or machine.life.stop.is_set():
                return f"{machine.name} does not run"
        for router in self.pair.virtual_routers:
            if (reason := self._unsettled_router(router)) is not None:
                return f"{router.name}: {reason}"
        return self._not_copied()

    def _unsettled_router(self, router: VirtualRouter) -> str | None:
        masters = self.world.masters(router.name)
        if len(masters) != 1:
            return f"{len(masters)} masters"
        master = masters[0]
        best = max(self.pair.nodes, key=lambda name: self.pair.nodes[name].priority_of(router.name))
        if router.preempt and master.name != best:
            return f"{master.name} is master instead of {best}"
        for placed in router.addresses:
            address = placed.address.ip.packed
            if self.world.holders(address) != [master]:
                return f"{placed.address} is held by {self.world.holders(address)}"
            mac = master.wire_on(placed.interface).mac
            for station in self.world.stations.values():
                known = station.neighbours.get(address, mac)
                if station.segment.name == placed.interface and known != mac:
                    return f"{station.name} does not know where {placed.address} is"
        for machine in self.world.machines.values():
            if (reason := self._unsettled_part(machine, master, router)) is not None:
                return f"{machine.name} {reason}"
        return None

    def _unsettled_part(
        self, machine: Machine, master: Machine, router: VirtualRouter
    ) -> str | None:
        assert machine.life is not None
        node = machine.life.node
        for placed in router.addresses:
            address = placed.address.ip.packed
            in_transition = address in node.director.registry.in_transition
            if in_transition or node.director.holds(address) is not (machine is master):
                return "has not ended its transition"
        moving = {f"10.9.{router.vrid}.0/24", f"from 10.9.{router.vrid}.0/24"}
        standing = {one.partition(" dev ")[0].partition(" table ")[0] for one in machine.routes}
        if moving & standing != (moving if machine is master else set()):
            return f"has the routes {machine.routes}"
        replica = next((r for r in node.sync.replicas if r.sync_id == router.sync_id), None)
        if replica is None or not replica.complete:
            return "has no complete copy"
        if replica.role is not (Role.LEAD if machine is master else Role.FOLLOW):
            return f"is {replica.role.name} of the sync id"
        if machine is not master:
            leader = replica._home.leader
            if leader is None or leader.node != master.name:
                return f"follows {leader.node if leader is not None else 'nobody'}"
        return None

    def _directors(self) -> Iterator[tuple[Machine, Director]]:
        for machine in self.world.machines.values():
            if machine.life is not None:
                yield machine, machine.life.node.director

    def _is_everywhere(self, client: Client) -> bool:
        """Whether all directors have a connection as established with its server."""
        server = next((s for s in self.traffic.servers if s.name == client.server), None)
        found = [director.registry.table.find(client.key) for _, director in self._directors()]
        return all(
            server is not None
            and connection is not None
            and connection.state == TcpState.ESTABLISHED
            and connection.server.address == server.address
            for connection in found
        )

    def _not_copied(self) -> str | None:
        now = trio.current_time()
        within = TOLD_WITHIN + self.world.segments["sync"].delay_max
        for client in self.traffic.clients.values():
            if client.established and not client.exempt:
                assert client.heard_at is not None
                if client.heard_at + within < now and not self._is_everywhere(client):
                    found = ", ".join(
                        f"{machine.name} has {_show(director.registry.table.find(client.key))}"
                        for machine, director in self._directors()
                    )
                    return (
                        f"connection {client.number} ({client.key.hex()}) with {client.server} "
                        f"is not in all copies: {found}"
                    )
        return None

    def _difference(self) -> str | None:
        """Where a copy is not as its source; a state that is not told may be an older one."""
        directors = dict(self._directors())
        for router in self.pair.virtual_routers:
            virtual = {placed.address.ip.packed for placed in router.addresses}
            (master,) = self.world.masters(router.name)
            source = {
                connection.key: connection
                for connection in directors[master].registry.table.connections()
                if connection.virtual[0] in virtual
            }
            for machine, director in directors.items():
                copy = {
                    connection.key: connection
                    for connection in director.registry.table.connections()
                    if connection.virtual[0] in virtual
                }
                for key in source.keys() | copy.keys():
                    if not _agree(source.get(key), copy.get(key)):
                        return (
                            f"of {key.hex()} {machine.name} has {_show(copy.get(key))} "
                            f"and {master.name} has {_show(source.get(key))}"
                        )
        return None

    # What must always hold

    async def _check_always(self) -> None:
        while True:
            await trio.sleep(CHECK_INTERVAL)
            self.steps += 1
            for machine, director in self._directors():
                self._check_director(machine.name, director)
            self._check_holders()

    def _check_director(self, name: str, director: Director) -> None:
        active: Counter[RealServer] = Counter()
        inactive: Counter[RealServer] = Counter()
        table = director.registry.table
        for connection in table.connections():
            (active if connection.active else inactive)[connection.server] += 1
            if identity(connection) not in self.world.opened:
                raise BrokenPromiseError(f"{name} has a connection that no director opened")
        for service in director.services:
            for server in service.servers:
                counted = server.active, server.inactive
                if counted != (active[server], inactive[server]):
                    raise BrokenPromiseError(f"{name} counts {counted} at {server}")
        replies = sum(map(len, table.outbound))
        if len(table) > TABLE_MAX or replies > len(table):
            raise BrokenPromiseError(f"{name} has {len(table)} connections")

    def _check_holders(self) -> None:
        """Two that hear each other must not both own an address, nor lead, for long."""
        outside = self.world.segments["outside"]
        now = trio.current_time()
        for one, other in itertools.combinations(self.world.machines.values(), 2):
            joined = (
                outside.joins(one.name, other.name)
                and one.wire_on("outside").up
                and other.wire_on("outside").up
            )
            for address in {*one.held, *other.held}:
                both = joined and address in one.held and address in other.held
                pair = (address, one.name, other.name)
                since = self._together.setdefault(pair, now) if both else now
                if not both:
                    self._together.pop(pair, None)
                # The last renewal of one that has died or hangs, or a contest of two.
                if now - since > LIFETIME + self._contest_max():
                    raise BrokenPromiseError(f"{one.name} and {other.name} hold {address.hex()}")
            for router in self.pair.virtual_routers:
                self._check_masters(router.name, one, other, joined=joined)
        for machine in self.world.machines.values():
            for router in self.pair.virtual_routers:
                self._check_right(router, machine)

    def _check_right(self, router: VirtualRouter, machine: Machine) -> None:
        """A process that runs lets go of what it has no right to, at once."""
        now = trio.current_time()
        life = machine.life
        wrong = (
            life is not None
            and not life.hangs
            and machine.state_of(router.name) is not VrrpState.MASTER
            and any(placed.address.ip.packed in machine.held for placed in router.addresses)
        )
        pair = (router.name, machine.name)
        if not wrong:
            self._without_right.pop(pair, None)
        elif now - self._without_right.setdefault(pair, now) > CHECK_INTERVAL + 0.05:
            raise BrokenPromiseError(f"{machine.name} holds what is not its own")

    def _check_masters(self, router: str, one: Machine, other: Machine, *, joined: bool) -> None:
        now = trio.current_time()
        both = joined and all(
            machine.state_of(router) is VrrpState.MASTER
            and machine.life is not None
            and not machine.life.hangs
            for machine in (one, other)
        )
        pair = (router, one.name, other.name)
        if not both:
            self._both_lead.pop(pair, None)
            return
        if now - self._both_lead.setdefault(pair, now) > self._contest_max():
            raise BrokenPromiseError(f"{one.name} and {other.name} are both master of {router}")

    def _contest_max(self) -> float:
        """How long two masters that hear each other may take to settle who it is."""
        lost = 20 if self.world.segments["outside"].peer_loss else 1
        return lost * self.interval + CHECK_INTERVAL + 0.05

    # The faults

    def some_machine(self, *, running: bool = True) -> Machine | None:
        """One of the machines, more often one that is a master."""
        machines = [
            machine
            for machine in self.world.machines.values()
            if not running or (machine.life is not None and not machine.life.stop.is_set())
        ]
        masters = [
            machine
            for router in self.pair.virtual_routers
            for machine in self.world.masters(router.name)
            if machine in machines
        ]
        return self.dice.choice(machines + 2 * masters) if machines else None

    def running(self) -> tuple[Machine, Life] | None:
        machine = self.some_machine()
        if machine is None or machine.life is None:
            return None
        return machine, machine.life

    async def must_serve(self) -> None:
        """New connections must succeed soon after a fault of one machine."""
        if self.traffic.exempting:
            return
        # By now nothing is on its way to the faulty machine that it could still accept.
        await trio.sleep(0.05)
        begin = trio.current_time()
        clients = [self.traffic.open(service) for service in self.pair.services]
        bound = self.down + RETRANSMISSION_MAX
        if self.world.segments["outside"].loss:
            # An announcement may be lost, and the next one comes a second later.
            bound += 3 * RETRANSMISSION_MAX + NEIGHBOUR_INTERVAL
        while any(client.heard_at is None for client in clients):
            if trio.current_time() > begin + bound:
                raise BrokenPromiseError(f"no new connection for {bound:.2f} s after a fault")
            await trio.sleep(0.05)
        self.outage = max(self.outage, trio.current_time() - begin)


def _agree(source: Connection | None, copy: Connection | None) -> bool:
    if source is None:
        return copy is None
    if copy is None:
        return source.told_state == UNTOLD
    return source.server.address == copy.server.address and (
        copy.state in {source.state, source.told_state} or not TOLD[source.state]
    )


def _show(connection: Connection | None) -> str:
    if connection is None:
        return "nothing"
    return f"{TcpState(connection.state).name} at {connection.server}"


def simulate(seed: int) -> Simulation:
    """Run a seed to its end; a broken promise names it."""
    simulation = Simulation(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    before = structlog.get_config()
    structlog.configure(processors=[simulation.world.log], cache_logger_on_first_use=False)
    try:
        with one_order_of_tasks(seed):
            trio.run(simulation.run, clock=clock)
    except BaseExceptionGroup as group:
        broken = group
        first: BaseException = broken
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        trace = "\n".join(simulation.world.trace[-160:])
        raise AssertionError(
            f"seed {seed} at {clock.current_time():.4f} s: {first!r}; replay with: "
            f"python -m tests.simulation.test_pair_simulation 1 {seed}\n{trace}"
        ) from group
    finally:
        structlog.configure(**before)
    return simulation


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_established_connection_is_lost(seed: int) -> None:
    assert simulate(seed).steps > 0


def test_a_seed_gives_the_same_trace_again() -> None:
    first, second = simulate(7).world, simulate(7).world
    assert len(first.trace) > 100
    assert first.trace == second.trace
    assert first.trace != simulate(4).world.trace


def test_the_simulation_exercises_what_it_claims_to() -> None:
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for seed in range(1000, 1012):
        world = simulate(seed).world
        totals.update(world.counts.snapshot())
        reasons.update(
            reason
            for line in world.trace
            for reason in (
                "stalled",
                "master_silent",
                "master_resigned",
                "preempted_lower_priority",
                "handed_over",
            )
            if f"reason={reason}" in line
        )
        reasons.update("fault" for line in world.trace if "new=FAULT" in line)
        reasons.update("alarm" for line in world.trace if "alarm" in line)
    for name in (*(fault.__name__ for fault in FAULTS), "clients closed", "clients given up"):
        assert totals[name] > 0, name
    for reason in ("stalled", "master_silent", "master_resigned", "handed_over", "fault", "alarm"):
        assert reasons[reason] > 0, reason


def main(arguments: list[str]) -> None:
    """Run ``COUNT`` seeds, from ``FIRST`` on; a single one with its trace."""
    count = int(arguments[0]) if arguments else 100
    first = int(arguments[1]) if len(arguments) > 1 else 0
    totals: Counter[str] = Counter()
    settled = outage = 0.0
    for seed in range(first, first + count):
        simulation = simulate(seed)
        totals.update(simulation.world.counts.snapshot())
        settled = max(settled, simulation.settled_after)
        outage = max(outage, simulation.outage)
        if count == 1:
            print("\n".join(simulation.world.trace))
    print(f"{count} seeds from {first}: no promise broken; settled within {settled:.1f} s, new")
    print(f"connections within {outage:.2f} s; {dict(sorted(totals.items()))}")


if __name__ == "__main__":
    main(sys.argv[1:])
