"""Two or three elections in one small world, with everything going wrong that can.

One event heap, one seed. The seed draws the version, multicast or unicast, the number of
routers, their priorities and intervals, the delays of start and preemption, and the rates of
loss, duplication, delay, partition, stall, crash, fault and noise. Messages travel as bytes and
are judged as the speaker does it. The checkers run after every step: never two holders that
hear each other, never none where a backup could be one. Then the world heals, and exactly one
master must be found within a bound. It must stay that while nothing happens, and while
the loops of all routers are loaded.

A longer run: ``python -m tests.simulation.test_election_simulation 5000``; one seed again:
``python -m tests.simulation.test_election_simulation 1 SEED``.
"""

import heapq
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from lvsha.failover.actions import (
    AcquireAddresses,
    Actions,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
)
from lvsha.failover.election import Election
from lvsha.failover.reception import Heard, ReceivedMessage, Reception
from lvsha.model import VrrpState
from lvsha.wire import vrrp, vrrp_versions
from lvsha.wire.vrrp import Advertisement

SEEDS = 200
# In advertisement intervals: how long the world misbehaves, and how long it may take to
# settle, beside the delays. A node that starts last waits for a down interval (less than 4),
# learns that it may preempt, and waits for another one.
TROUBLE_INTERVALS = 60
SETTLE_INTERVALS = 10
DOWN_INTERVALS_MAX = 4
CALM_INTERVALS = 15
VRID = 1
VIRTUAL = bytes((192, 0, 2, 10))
STRANGER = bytes((10, 0, 0, 66))


@dataclass(eq=False)
class Router:
    """One node: its election, and what the world does to it."""

    number: int
    priority: int
    address: bytes
    interval: float
    reception: Reception
    destinations: tuple[bytes, ...]
    pseudo_header: bool
    election: Election | None = None
    quiet_until: float = 0.0
    life: int = 0
    frozen_until: float = 0.0
    inbox: list[tuple[Advertisement, bytes]] = field(default_factory=list)
    holds_since: float | None = None
    permitted: bool = False

    def is_awake(self, now: float) -> bool:
        return self.election is not None and now >= self.frozen_until


class World:
    """The heap, the wire and the checkers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.version = self.dice.choice([2, 3, 3, 3])
        self.preempt = self.dice.random() < 0.7
        # Without sync preemption is permitted from the start on.
        self.synced = self.dice.random() < 0.7
        self.loss = self.dice.choice([0.0, 0.05, 0.3])
        self.duplication = self.dice.choice([0.0, 0.1])
        count = self.dice.choice([2, 2, 3])
        intervals = self._draw_intervals(count)
        self.interval = max(intervals)
        self.delay_max = min(intervals) * self.dice.choice([0.01, 0.2])
        self.preempt_delay = self.interval * self.dice.choice([0, 0, 0, 2.5, 20])
        self.startup_delay = self.interval * self.dice.choice([0, 0, 0, 2.5, 12])
        self.cut: set[frozenset[int]] = set()
        # The last time that any message was lost, or any router was not listening; and the
        # last time that one came or went.
        self.dirty_at = 0.0
        self.upset_at = 0.0
        priorities = self.dice.sample(range(1, 256), k=count)
        if self.dice.random() < 0.1:
            priorities[0] = vrrp.PRIORITY_OWNER
        if self.dice.random() < 0.2:
            priorities = [priorities[0]] * count
        unicast = self.dice.random() < 0.4
        addresses = [bytes((10, 0, 0, number + 1)) for number in range(count)]
        self.routers = [
            self._router(number, priorities[number], intervals[number], addresses, unicast)
            for number in range(count)
        ]

    def _draw_intervals(self, count: int) -> list[float]:
        """In version 3 they may differ, because a backup learns that of the master."""
        if self.version == 2:
            return [self.dice.choice([1.0, 2.0])] * count
        interval = self.dice.choice([0.01, 0.05, 0.1, 1.0])
        if self.dice.random() < 0.7:
            return [interval] * count
        return [interval * self.dice.choice([1, 2, 5]) for _ in range(count)]

    def _router(
        self, number: int, priority: int, interval: float, addresses: list[bytes], unicast: bool
    ) -> Router:
        own = addresses[number]
        others = tuple(address for address in addresses if address != own)
        destinations = others if unicast else (vrrp.GROUP_IPv4,)
        reception = Reception(
            version=self.version,
            vrid=VRID,
            interval_cs=round(interval * 100),
            source=own,
            destinations=destinations,
            addresses=(VIRTUAL,),
        )
        pseudo_header = self.dice.random() < 0.5
        return Router(number, priority, own, interval, reception, destinations, pseudo_header)

    def fail(self, sentence: str) -> None:
        raise AssertionError(
            f"seed {self.seed} at {self.now:.4f} s: {sentence}; replay with: "
            f"python -m tests.simulation.test_election_simulation 1 {self.seed}"
        )

    def after(self, delay: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now + delay, next(self.order), happen))

    def run_until(self, end: float) -> None:
        while self.heap and self.heap[0][0] <= end:
            self.now, _, happen = heapq.heappop(self.heap)
            happen()
            self.steps += 1
            self.check()
        self.now = end

    # The routers.

    def start(self, router: Router) -> None:
        """Boot, with preemption permitted when the table is complete some time later."""
        router.life += 1
        router.inbox.clear()
        router.holds_since = None
        router.permitted = not self.synced
        router.quiet_until = self.now + self.startup_delay
        router.election = Election(
            vrid=VRID,
            priority=router.priority,
            interval=router.interval,
            preempt=self.preempt,
            address=router.address,
            version=self.version,
            preempt_delay=self.preempt_delay,
            startup_delay=self.startup_delay,
        )
        router.election.permit_preemption(router.permitted, self.now)
        self.act(router, router.election.start(self.now))
        if self.synced:
            self.permit_later(router)

    def permit_later(self, router: Router) -> None:
        life = router.life

        def permit() -> None:
            if router.election is None or router.life != life:
                return
            if not router.is_awake(self.now):
                self.permit_later(router)
                return
            router.permitted = True
            self.act(router, router.election.permit_preemption(True, self.now))

        self.after(self.dice.uniform(0, 5 * self.interval), permit)

    def crash(self, router: Router) -> None:
        router.life += 1
        router.election = None
        router.holds_since = None
        self.upset_at = self.now

    def act(self, router: Router, actions: Actions) -> None:
        """Carry out actions and see that they keep the promises of the election."""
        for action in actions:
            match action:
                case Advertise(priority):
                    # A new master advertises before it acquires, one that resigns after
                    # it released.
                    resigned = router.holds_since is None
                    master = running(router).state is VrrpState.MASTER
                    if not (resigned if priority == 0 else master):
                        self.fail(f"router {router.number} advertises {priority} wrongly")
                    self.send(router, priority)
                case AcquireAddresses():
                    if router.holds_since is not None:
                        self.fail(f"router {router.number} acquires twice")
                    if self.now < router.quiet_until:
                        self.fail(f"router {router.number} acquires as it starts")
                    router.holds_since = self.now
                case ReleaseAddresses():
                    if router.holds_since is None:
                        self.fail(f"router {router.number} releases what it does not hold")
                    router.holds_since = None
                case AnnounceAddresses():
                    if router.holds_since is None:
                        self.fail(f"router {router.number} announces what it does not hold")
                case StateChanged(_, new, reason):
                    self.note(router, new, reason)
        self.wait(router)

    def note(self, router: Router, new: VrrpState, reason: str) -> None:
        if new is not VrrpState.MASTER:
            self.upset_at = self.now
        if reason == "stalled":
            router.permitted = False
            self.permit_later(router)
        preempts = self.preempt or router.priority == vrrp.PRIORITY_OWNER
        if reason == "preempted_lower_priority" and not (router.permitted and preempts):
            self.fail(f"router {router.number} preempts without permission")
        if reason == "owner_started" and not router.permitted:
            self.fail(f"router {router.number} starts as master without permission")

    def wait(self, router: Router) -> None:
        """Call `expire` at the deadline, or when the router can run again."""
        election, life = router.election, router.life
        if election is None or election.deadline is None:
            return
        deadline = election.deadline

        def expire() -> None:
            if router.life != life or election.deadline != deadline:
                return
            if router.is_awake(self.now):
                self.act(router, election.expire(self.now))

        self.after(max(0.0, deadline - self.now), expire)

    # The wire.

    def send(self, router: Router, priority: int) -> None:
        advertisement = Advertisement(
            VRID, priority, round(router.interval * 100), (VIRTUAL,), self.version
        )
        for other in self.routers:
            if other is router:
                continue
            unicast = other.address in router.destinations
            destination = other.address if unicast else router.destinations[0]
            message = vrrp_versions.emit(
                advertisement,
                source=router.address,
                destination=destination,
                pseudo_header=router.pseudo_header,
            )
            received = ReceivedMessage(message, router.address, destination, vrrp.HOP_LIMIT)
            if frozenset({router.number, other.number}) in self.cut:
                self.dirty_at = self.now
                continue
            copies = 2 if self.dice.random() < self.duplication else 1
            for _ in range(copies):
                if self.dice.random() < self.loss:
                    self.dirty_at = self.now
                    continue
                self.deliver_later(other, received)

    def deliver_later(self, router: Router, received: ReceivedMessage) -> None:
        heard = router.reception.judge(received)
        if not isinstance(heard, Heard):
            self.fail(f"router {router.number} refuses what another says: {heard}")
            return
        advertisement, source = heard.advertisement, received.source

        def deliver() -> None:
            if router.election is None:
                return
            if not router.is_awake(self.now):
                router.inbox.append((advertisement, source))
                return
            self.act(router, router.election.receive(advertisement, source, self.now))

        self.after(self.dice.uniform(0, self.delay_max), deliver)

    # What goes wrong.

    def trouble(self) -> None:
        router = self.dice.choice(self.routers)
        other = self.dice.choice(self.routers)
        match self.dice.choice(["crash", "stall", "cut", "fault", "stop", "forbid", "noise"]):
            case "noise":
                self.make_noise(router)
            case "crash" if router.election is not None:
                self.crash(router)
                self.after(self.dice.uniform(0, 10 * self.interval), lambda: self.revive(router))
            case "stall" if router.is_awake(self.now):
                self.freeze(router, self.dice.uniform(0, 12 * self.interval))
            case "cut" if router is not other:
                pair = frozenset({router.number, other.number})
                self.cut.add(pair)
                self.after(self.dice.uniform(0, 12 * self.interval), lambda: self.cut.discard(pair))
            case "fault" if router.is_awake(self.now):
                self.act(router, running(router).fault("a reason", self.now))
                self.after(self.dice.uniform(0, 5 * self.interval), lambda: self.repair(router))
            case "stop" if router.is_awake(self.now):
                self.act(router, running(router).stop(self.now))
                self.crash(router)
                self.after(self.dice.uniform(0, 5 * self.interval), lambda: self.revive(router))
            case "forbid" if router.is_awake(self.now) and self.synced:
                router.permitted = False
                self.act(router, running(router).permit_preemption(False, self.now))
                self.permit_later(router)
            case _:
                pass

    def make_noise(self, router: Router) -> None:
        """What must not even reach the election."""
        destination = router.destinations[0]
        expected = router.address if len(destination) == 4 and destination[0] == 10 else destination
        unicast = expected == router.address
        good = self.words(200, VRID, self.version, expected)
        source = next(one.address for one in self.routers if one is not router)
        noises = [
            ReceivedMessage(good, source, expected, self.dice.randrange(vrrp.HOP_LIMIT)),
            ReceivedMessage(good, router.address, expected, vrrp.HOP_LIMIT),
            ReceivedMessage(good[: self.dice.randrange(len(good))], source, expected, 255),
            ReceivedMessage(
                self.words(200, VRID, 5 - self.version, expected), source, expected, 255
            ),
            ReceivedMessage(
                self.words(200, VRID + 1, self.version, expected), source, expected, 255
            ),
            ReceivedMessage(good[:2] + b"\x01" + good[3:], source, expected, 255),
            ReceivedMessage(
                good, source, vrrp.GROUP_IPv4 if unicast else router.address, vrrp.HOP_LIMIT
            ),
        ]
        if unicast:
            noises.append(ReceivedMessage(good, STRANGER, expected, vrrp.HOP_LIMIT))
        for received in noises:
            if isinstance(router.reception.judge(received), Heard):
                self.fail(f"router {router.number} hears noise: {received}")

    def words(self, priority: int, vrid: int, version: int, destination: bytes) -> bytes:
        return vrrp_versions.emit(
            Advertisement(vrid, priority, 100, (VIRTUAL,), version),
            source=STRANGER,
            destination=destination,
            pseudo_header=False,
        )

    def revive(self, router: Router) -> None:
        if router.election is None:
            self.start(router)

    def repair(self, router: Router) -> None:
        if router.is_awake(self.now):
            self.act(router, running(router).recover(self.now))
        elif router.election is not None:
            self.after(self.interval, lambda: self.repair(router))

    def freeze(self, router: Router, duration: float) -> None:
        router.frozen_until = self.now + duration
        self.upset_at = self.now
        life = router.life
        # Its advertisement was due within one interval, and less than four later its peers
        # must have taken over.
        overslept = router.holds_since is not None and duration > 5 * self.interval

        def wake() -> None:
            # As the speaker does: first what has arrived, then the deadline.
            self.dirty_at = self.upset_at = self.now
            if router.life != life:
                return
            for advertisement, source in router.inbox:
                self.act(router, running(router).receive(advertisement, source, self.now))
            router.inbox.clear()
            self.act(router, running(router).expire(self.now))
            if overslept and router.holds_since is not None:
                self.fail(f"router {router.number} goes on as master after a stall")

        self.after(duration, wake)

    def keep_busy(self, router: Router, until: float) -> None:
        """Let its loop be loaded: whatever it does comes late, by less than an interval."""
        late = self.dice.uniform(0, router.interval)
        if self.now + late < until:
            self.freeze(router, late)
            rest = self.dice.uniform(0, 0.2 * router.interval)
            self.after(late + rest, partial(self.keep_busy, router, until))

    # What must hold.

    def check(self) -> None:
        holders = []
        for router in self.routers:
            if router.election is None:
                continue
            idle = router.election.state in {VrrpState.INIT, VrrpState.FAULT}
            if (router.election.deadline is None) is not idle:
                self.fail(f"router {router.number} sleeps for ever")
            if (router.holds_since is not None) is not (router.election.state is VrrpState.MASTER):
                self.fail(f"router {router.number} holds what its state does not tell")
            if router.holds_since is not None and router.is_awake(self.now):
                holders.append(router.holds_since)
        if not holders:
            self.check_successor()
        if len(holders) < 2:
            return
        # Two that hear each other: the next advertisement of one of them ends it.
        together_since = max(*sorted(holders)[:2], self.dirty_at)
        if self.now - together_since > self.interval + 2 * self.delay_max + 1e-9:
            self.fail("two routers hold the addresses and hear each other")

    def check_successor(self) -> None:
        """Nobody holds the addresses: whoever can must do so within its down interval."""
        for router in self.routers:
            election = router.election
            if election is None or election.state is not VrrpState.BACKUP:
                continue
            since = max(self.upset_at, router.quiet_until) + 2 * self.delay_max
            waited = self.now - since > DOWN_INTERVALS_MAX * self.interval + 1e-9
            if waited and router.is_awake(self.now):
                self.fail(f"nobody holds the addresses, but router {router.number} could")

    def heal(self) -> None:
        self.loss = 0.0
        self.cut.clear()
        self.dirty_at = self.upset_at = self.now
        for router in self.routers:
            self.revive(router)
            router.frozen_until = min(router.frozen_until, self.now)
            self.act(router, running(router).recover(self.now))
            for advertisement, source in router.inbox:
                self.act(router, running(router).receive(advertisement, source, self.now))
            router.inbox.clear()
            router.permitted = True
            self.act(router, running(router).permit_preemption(True, self.now))
            self.act(router, running(router).expire(self.now))

    def check_settled(self) -> Router:
        masters = [router for router in self.routers if router.holds_since is not None]
        if len(masters) != 1:
            self.fail(f"{len(masters)} masters after the network healed")
        best = max(self.routers, key=lambda router: router.priority)
        preempts = self.preempt or best.priority == vrrp.PRIORITY_OWNER
        if preempts and masters[0].priority != best.priority:
            self.fail("the master is not the one with the highest priority")
        return masters[0]


def running(router: Router) -> Election:
    assert router.election is not None
    return router.election


def run(seed: int) -> int:
    """One world from its start to its settled end; returns the number of steps."""
    world = World(seed)
    for router in world.routers:
        world.after(world.dice.uniform(0, 5 * world.interval), partial(world.revive, router))
    trouble_until = TROUBLE_INTERVALS * world.interval
    for _ in range(world.dice.randrange(12)):
        world.after(world.dice.uniform(0, trouble_until), world.trouble)
    world.run_until(trouble_until)
    # What is still to happen must not hurt any more: freezes and cuts have ended by now.
    world.run_until(trouble_until + 13 * world.interval)
    world.heal()
    delays = world.startup_delay + world.preempt_delay
    world.run_until(world.now + SETTLE_INTERVALS * world.interval + delays)
    master = world.check_settled()
    since = master.holds_since
    for is_loaded in (False, True):
        until = world.now + CALM_INTERVALS * world.interval
        for router in world.routers if is_loaded else ():
            world.keep_busy(router, until)
        world.run_until(until)
        if world.check_settled() is not master or master.holds_since != since:
            world.fail("the addresses moved although nothing happened, or because of load")
    return world.steps


@pytest.mark.parametrize("seed", range(SEEDS))
def test_one_master_is_found_after_any_trouble(seed: int) -> None:
    assert run(seed) > 0


def main(arguments: list[str]) -> None:
    """Run ``COUNT`` seeds, from ``FIRST`` on."""
    count = int(arguments[0]) if arguments else 1000
    first = int(arguments[1]) if len(arguments) > 1 else 0
    steps = sum(run(seed) for seed in range(first, first + count))
    print(f"{count} seeds from {first}, {steps} steps: no promise broken")


if __name__ == "__main__":
    main(sys.argv[1:])
