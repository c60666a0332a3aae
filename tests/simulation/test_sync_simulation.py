"""Replicas of two and three nodes over a hostile network, from one seed.

Each seed draws its own numbers of nodes, rates of faults and limits. Nodes make and end
connections while they lead, tell, crash, restart with a new epoch, stall, hand over and
sometimes lead both at once; the network drops, doubles, delays, swaps and cuts one way.
After every step the checkers look at what was done. Then everything is healed, and within
``CONVERGENCE`` seconds all tables must be equal.

Run for longer with ``python tests/simulation/test_sync_simulation.py 5000``; the seed of a
failure is printed with its message.
"""

import heapq
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from lvsha.model import (
    ConnectionChange,
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
)
from lvsha.sync.copy import DRAIN, PEERS_MAX, SNAPSHOT_STALL, silence_limit
from lvsha.sync.messages import PeerState, Role, decode
from lvsha.sync.replica import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    ConfigurationAgrees,
    ConfigurationDiffers,
    EndSnapshot,
    Forget,
    Pace,
    PeerChanged,
    ProvideSnapshot,
    Refused,
    Replica,
    Send,
)
from lvsha.sync.stream import MISSING_MAX, TOUCHED_MAX

SYNC_ID = 7
DIGEST = bytes(16)
HEARTBEAT = 0.2
TROUBLE = 8.0
# A late datagram of a process that is no more can keep its successor unheard until it counts
# as silent; a peer is heard again within a heartbeat; an old leader has drained; a snapshot
# whose end was lost has stalled; then two snapshots and the pause between them.
CONVERGENCE = silence_limit(HEARTBEAT) + HEARTBEAT + DRAIN + SNAPSHOT_STALL + 1.0

VIRTUAL = bytes((192, 0, 2, 1))
# A sender: name, epoch and term; and with the sequence number of its datagram.
Leader = tuple[str, int, int]
Sender = tuple[Leader, int]


def connection(client: int, incarnation: int, state: int = 1) -> ConnectionRecord:
    """A connection whose server's address says which of all with its key it is."""
    return ConnectionRecord.between(
        protocol=6,
        client=(0x0A000000 + client).to_bytes(4),
        client_port=1024,
        virtual=VIRTUAL,
        virtual_port=80,
        server=incarnation.to_bytes(4),
        server_port=8080,
        method=ForwardMethod.NAT,
        state=state,
        flags=0,
        timeout=900.0,
    )


@dataclass
class Node:
    """One machine: its replica and a naive table."""

    name: str
    replica: Replica
    epoch: int
    up: bool = True
    stalled_until: float = 0.0
    backlog: list[bytes] = field(default_factory=list)
    table: dict[bytes, ConnectionRecord] = field(default_factory=dict)
    marks: dict[bytes, int] = field(default_factory=dict)
    generation: int = 0
    # (key, incarnation) -> whose delete took it away
    forgotten: dict[tuple[bytes, bytes], Leader] = field(default_factory=dict)
    # peer -> epoch -> when it was last heard; the last one is what is believed now
    believed: dict[str, dict[int, float]] = field(default_factory=dict)
    wake: int = 0

    def records(self) -> Iterator[ConnectionRecord]:
        for key in list(self.table):
            if (record := self.table.get(key)) is not None:
                yield record


class World:
    """The heap of events, the network, and what must always hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random
        self.now = 1000.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.incarnation = 0
        self.healed = False
        self.existed: set[ConnectionRecord] = set()
        # What a node ended itself, and the number of the last datagram before that.
        self.ended: dict[tuple[str, int, bytes, bytes], int] = {}
        self.names = [f"node-{number}" for number in range(draw.choice((2, 2, 3)))]
        self.clients = draw.choice((5, 60, 300))
        self.loss = draw.choice((0.0, 0.01, 0.1, 0.5)) * draw.random()
        self.duplication = draw.choice((0.0, 0.2))
        self.jitter = draw.choice((0.0, 0.002, 0.03, 0.2))
        self.cuts: set[tuple[str, str]] = set()
        self.datagram_max = draw.choice((500, 1400))
        self.pace = Pace(
            queue_max=draw.choice((8, 1000)),
            tick=0.005,
            live_datagrams_per_tick=draw.choice((1, 64)),
            snapshot_datagrams_per_tick=draw.choice((1, 8)),
        )
        self.nodes: dict[str, Node] = {}
        for name in self.names:
            self.boot(name)

    # --- the machinery -------------------------------------------------------------

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + delay, self.order, event))

    def meanwhile(self, delay: float, event: Callable[[], None]) -> None:
        """Do this later, unless everything has been healed by then."""
        self.at(delay, lambda: None if self.healed else event())

    def run(self, until: float) -> None:
        while self.heap and self.heap[0][0] <= until:
            self.now, _, event = heapq.heappop(self.heap)
            event()
        self.now = until

    def boot(self, name: str) -> None:
        epoch = self.random.getrandbits(64)
        replica = Replica(
            sync_id=SYNC_ID,
            node=name,
            epoch=epoch,
            configuration_digest=DIGEST,
            digests={},
            heartbeat_interval=HEARTBEAT,
            datagram_max=self.datagram_max,
            pace=self.pace,
        )
        node = self.nodes[name] = Node(name, replica, epoch)
        self.perform(node, replica.start(self.now), None)

    def perform(self, node: Node, actions: Sequence[Action], sender: Sender | None) -> None:
        for action in actions:
            match action:
                case Send():
                    assert len(action.datagram) <= self.datagram_max
                    self.send(node, action.datagram)
                case Apply():
                    self.check_apply(node, action.record, sender)
                    node.table[action.record.key] = action.record
                    node.marks[action.record.key] = node.generation
                    self.note_return(node, action.record)
                case Forget():
                    gone = node.table.pop(action.key, None)
                    node.marks.pop(action.key, None)
                    # A delete names a key; only of what its sender had is it the end.
                    if gone is not None and sender is not None:
                        leader, sequence = sender
                        ended = self.ended.get((*leader[:2], action.key, gone.server))
                        if ended is not None and ended < sequence:
                            node.forgotten[action.key, gone.server] = leader
                case BeginSnapshot():
                    node.generation += 1
                case EndSnapshot():
                    for key in [k for k, mark in node.marks.items() if mark < node.generation]:
                        del node.table[key], node.marks[key]
                case ProvideSnapshot():
                    self.perform(node, node.replica.snapshot(node.records(), self.now), sender)
                case Refused():
                    raise AssertionError(f"a sound datagram was refused: {action.reason}")
                case PeerChanged() | ConfigurationDiffers() | ConfigurationAgrees() | Alarm():
                    pass
        self.check_bounds(node)
        self.check_replicas()
        self.schedule(node)

    def schedule(self, node: Node) -> None:
        deadline = node.replica.deadline
        assert deadline is not None
        node.wake += 1
        wake = node.wake

        def expire() -> None:
            if self.nodes[node.name] is not node or node.wake != wake or not node.up:
                return
            if node.stalled_until > self.now:
                return
            self.perform(node, node.replica.expire(self.now), None)

        self.at(max(0.0, deadline - self.now), expire)

    def send(self, sender: Node, datagram: bytes) -> None:
        for name in self.names:
            if name == sender.name or (sender.name, name) in self.cuts:
                continue
            copies = 1 + (self.random.random() < self.duplication)
            for _ in range(copies):
                if self.random.random() < self.loss:
                    continue
                delay = 0.0002 + self.random.random() * self.jitter
                self.at(delay, partial(self.deliver, name, datagram))

    def deliver(self, name: str, datagram: bytes) -> None:
        node = self.nodes[name]
        if not node.up:
            return
        if node.stalled_until > self.now:
            if len(node.backlog) < 50:
                node.backlog.append(datagram)
            return
        origin = decode(datagram).origin
        sender = ((origin.node, origin.epoch, origin.term), origin.sequence)
        self.perform(node, node.replica.receive(datagram, self.now), sender)

    # --- the checkers --------------------------------------------------------------

    def check_apply(self, node: Node, record: ConnectionRecord, sender: Sender | None) -> None:
        assert record in self.existed, "a connection that no source ever had"
        taken_by = node.forgotten.get((record.key, record.server))
        assert taken_by is None or sender is None or taken_by != sender[0], (
            "a connection was revived"
        )

    def note_return(self, owner: Node, record: ConnectionRecord) -> None:
        """What a node ended and then got back from another leader, it may tell again."""
        self.ended.pop((owner.name, owner.epoch, record.key, record.server), None)
        for node in self.nodes.values():
            taken_by = node.forgotten.get((record.key, record.server))
            if taken_by is not None and taken_by[:2] == (owner.name, owner.epoch):
                del node.forgotten[record.key, record.server]

    def check_bounds(self, node: Node) -> None:
        replica = node.replica
        copy = replica._home
        assert replica._source.queued <= self.pace.queue_max
        assert len(copy.peers) <= PEERS_MAX
        assert len(copy._own) <= self.pace.queue_max
        for peer in copy.peers.values():
            assert len(peer.stream._missing) <= MISSING_MAX
            assert len(peer.stream._touched) <= TOUCHED_MAX
            # A process that was replaced is not believed while its successor is heard.
            believed = node.believed.setdefault(peer.node, {})
            if (latest := next(reversed(believed), peer.epoch)) != peer.epoch:
                silent = self.now - believed[latest] >= silence_limit(HEARTBEAT)
                assert silent or peer.epoch not in believed, "an old epoch was believed"
                believed.pop(peer.epoch, None)
            believed[peer.epoch] = peer.heard

    def check_replicas(self) -> None:
        """A follower that has seen all and misses nothing has exactly what its leader has."""
        for node in self.nodes.values():
            leader = node.replica._home.leader
            if leader is None or not node.up or not node.replica.complete:
                continue
            source = self.nodes[leader.node]
            sender = source.replica._source
            if (
                source.epoch == leader.epoch
                and sender.role is Role.LEAD
                and sender.term == leader.term
                and sender.queued == 0
                and sender.sequence == leader.stream.position
            ):
                assert node.table == source.table, "a complete copy that differs"

    # --- what nodes do -------------------------------------------------------------

    def leaders(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.up and n.replica.role is Role.LEAD]

    def work(self) -> None:
        """A node that leads or drains carries packets: some of its connections change."""
        for node in self.nodes.values():
            if not node.up or node.stalled_until > self.now or node.replica.role is Role.FOLLOW:
                continue
            changes = [self.change(node) for _ in range(self.random.choice((1, 1, 3, 40)))]
            self.perform(node, node.replica.tell(changes, self.now), None)

    def change(self, node: Node) -> ConnectionChange:
        client = self.random.randrange(self.clients)
        key = connection_key(6, (0x0A000000 + client).to_bytes(4), 1024, VIRTUAL, 80)
        known = node.table.get(key)
        if known is not None and self.random.random() < 0.5:
            del node.table[key]
            node.marks.pop(key, None)
            ended = (node.name, node.epoch, key, known.server)
            self.ended[ended] = node.replica._source.sequence
            return ConnectionEnded(key)
        if known is None:
            self.incarnation += 1
            record = connection(client, self.incarnation)
        else:
            record = known._replace(state=self.random.randrange(1, 9))
        self.existed.add(record)
        node.table[key] = record
        node.marks[key] = node.generation
        return ConnectionChanged(record)

    def lead(self, name: str) -> None:
        node = self.nodes[name]
        if node.up and node.stalled_until <= self.now:
            self.perform(node, node.replica.lead(self.now), None)

    def follow(self, name: str) -> None:
        node = self.nodes[name]
        if node.up and node.stalled_until <= self.now:
            self.perform(node, node.replica.follow(self.now), None)

    def restart(self, name: str) -> None:
        if not self.nodes[name].up:
            self.boot(name)

    def crash(self, name: str) -> None:
        self.nodes[name].up = False
        self.meanwhile(self.random.uniform(0.01, 3), lambda: self.restart(name))
        successor = self.random.choice([n for n in self.names if n != name])
        self.meanwhile(self.random.uniform(0.02, 0.5), lambda: self.lead(successor))

    def stall(self, name: str) -> None:
        node = self.nodes[name]
        node.stalled_until = self.now + self.random.uniform(0.1, 2)
        self.meanwhile(node.stalled_until - self.now, lambda: self.resume(node))

    def resume(self, node: Node) -> None:
        if self.nodes[node.name] is not node or not node.up or node.stalled_until > self.now:
            return
        self.perform(node, node.replica.follow(self.now), None)
        self.perform(node, node.replica.resync(self.now), None)
        backlog, node.backlog = node.backlog, []
        for datagram in backlog:
            self.deliver(node.name, datagram)

    def trouble(self) -> None:
        """One thing goes wrong, or right."""
        name, other = self.random.sample(self.names, 2)
        match self.random.randrange(8):
            case 0:
                self.crash(name)
            case 1:
                self.stall(name)
            case 2 | 3:
                for leader in self.leaders():
                    # Either may be first, as between two loops on two machines.
                    step_down = partial(self.follow, leader.name)
                    self.meanwhile(self.random.uniform(0, 0.02), step_down)
                self.meanwhile(self.random.uniform(0, 0.02), lambda: self.lead(other))
            case 4:
                self.cuts.add((name, other))
                mend = partial(self.cuts.discard, (name, other))
                self.meanwhile(self.random.uniform(0.1, 3), mend)
            case 5:
                self.lead(name)
            case _:
                self.loss = self.random.choice((0.0, 0.05, 0.5)) * self.random.random()

    def scenario(self) -> None:
        start = self.now
        self.at(self.random.random(), lambda: self.lead(self.names[0]))
        at = 0.0
        while (at := at + self.random.expovariate(25)) < TROUBLE:
            self.at(at, self.work)
        at = 0.5
        while (at := at + self.random.expovariate(1.5)) < TROUBLE:
            self.at(at, self.trouble)
        self.run(start + TROUBLE)
        self.heal()
        self.run(self.now + CONVERGENCE)
        self.check_converged()

    def heal(self) -> None:
        self.healed = True
        self.loss = self.duplication = self.jitter = 0.0
        self.cuts.clear()
        for name in self.names:
            self.restart(name)
            node = self.nodes[name]
            if node.stalled_until > self.now:
                node.stalled_until = self.now
                self.resume(node)
        chosen = self.random.choice([n.name for n in self.leaders()] or self.names)
        for name in self.names:
            if name == chosen:
                self.lead(name)
            else:
                self.follow(name)

    def check_converged(self) -> None:
        (leader,) = self.leaders()
        for node in self.nodes.values():
            assert node.replica.complete, f"{node.name} is not complete"
            assert node.table == leader.table, f"{node.name} differs from {leader.name}"
            assert node.replica._source.queued == 0
            if node is leader:
                continue
            followed = node.replica._home.leader
            assert followed is not None
            assert followed.node == leader.name
            assert followed.state is PeerState.REPLICATE
            seen = leader.replica._home.peers[node.name]
            assert seen.state is PeerState.REPLICATE, "the leader does not know it"


def simulate(seed: int) -> World:
    world = World(seed)
    try:
        world.scenario()
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed} at {world.now - 1000:.4f} s: {error}; replay: python {__file__} 1 {seed}"
        ) from error
    return world


@pytest.mark.parametrize("block", range(10))
def test_copies_stay_sound_and_converge_whatever_the_network_does(block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):
        simulate(seed)


def test_the_simulation_exercises_what_it_claims_to() -> None:
    totals: dict[str, int] = {}
    for seed in range(1000, 1012):
        for node in simulate(seed).nodes.values():
            for name, count in node.replica.counters.snapshot().items():
                totals[name] = totals.get(name, 0) + count
    for name in (
        "datagrams_lost",
        "refused_late_or_repeated",
        "snapshots_received",
        "second_leader_datagrams",
        "records_taken_over",
        "peer_restarts",
        "queue_overflow",
    ):
        assert totals.get(name, 0) > 0, name


def main() -> None:
    """Run ``argv[1]`` seeds, from ``argv[2]`` on."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for seed in range(first, first + count):
        simulate(seed)
    sys.stdout.write(f"{count} seeds passed\n")


if __name__ == "__main__":
    main()
