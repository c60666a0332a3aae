"""Replicas of two and three nodes over a hostile network, from one seed.

Each seed draws its own numbers of nodes, rates of faults and limits. Nodes make and end
connections while they lead, tell, crash (all but one at once, too), restart with a new
epoch, stall, hand over and sometimes lead both at once. A machine may stand still, its clock
with it, and never learn of it. The network drops, doubles, delays, swaps and cuts one way;
on a sealed one somebody plays recordings, of processes that are gone as well, and changes
some bytes. A node with sync id 0 may listen. After every step the checkers look at what was
done. Then everything is healed, and within ``CONVERGENCE`` seconds all tables must be equal.

Run for longer with ``python tests/simulation/test_sync_simulation.py 5000``; the seed of a
failure is printed with its message.
"""

import heapq
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from lvsha.errors import SealError
from lvsha.model import (
    ConnectionChange,
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
)
from lvsha.sync.actions import (
    Action,
    Alarm,
    Apply,
    BeginSnapshot,
    ConfigurationAgrees,
    ConfigurationDiffers,
    Deny,
    EndSnapshot,
    Forget,
    LookUp,
    PeerChanged,
    ProvideSnapshot,
    Refused,
    Send,
)
from lvsha.sync.catching_up import SNAPSHOT_STALL, SNAPSHOTS_MAX
from lvsha.sync.copy import Copy
from lvsha.sync.datagrams import decode
from lvsha.sync.history import HISTORY_BYTES
from lvsha.sync.messages import LEVEL, LEVEL_PLAIN, PeerState, Role
from lvsha.sync.overlap import DRAIN
from lvsha.sync.pace import Pace
from lvsha.sync.peers import PEERS_MAX, silence_limit
from lvsha.sync.replica import Replica
from lvsha.sync.seal import Seal
from lvsha.sync.source import SNAPSHOT_PAUSE_MAX
from lvsha.sync.stream import MISSING_MAX, TOUCHED_MAX
from lvsha.tally import Tally
from tests.replicas import Table
from tests.simulation.sync_nodes import Node, Sender, connection, key_of

SYNC_ID = 7
DIGEST = bytes(16)
HEARTBEAT = 0.2
TROUBLE = 8.0
# A late datagram of a process that is no more can keep its successor unheard until it counts
# as silent; a peer is heard again within a heartbeat; an old leader has drained; a snapshot
# whose end was lost has stalled; then two snapshots and the pause between them.
CONVERGENCE = (
    silence_limit(HEARTBEAT) + HEARTBEAT + DRAIN + SNAPSHOT_STALL + SNAPSHOT_PAUSE_MAX + 1.0
)

KEY = bytes(range(32))
OBSERVER = "observer"
"""A node with sync id 0, which keeps a copy and never leads."""


def copy_of(node: Node) -> Copy:
    """What a node has of the id that the others lead."""
    replica = node.replica
    return replica._others.get(SYNC_ID, replica._home)


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
        self.hearers = [*self.names, *([OBSERVER] if draw.random() < 0.25 else [])]
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
            window=draw.choice((2, 32)),
            bytes_per_second=draw.choice((0, 0, 30_000)),
        )
        self.sealed = draw.choice((False, True))
        # Of the last node: an older one understands less.
        self.level = draw.choice((LEVEL, LEVEL, LEVEL_PLAIN))
        self.recorded: deque[bytes] = deque(maxlen=2000)
        self.refused: Counter[str] = Counter()
        self.nodes: dict[str, Node] = {}
        for name in self.hearers:
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
        table = Table(sync_id=SYNC_ID)
        is_observer = name == OBSERVER
        replica = Replica(
            tally=Tally(0) if is_observer else table.tally,
            node=name,
            epoch=epoch,
            configuration_digest=DIGEST,
            digests={},
            heartbeat_interval=HEARTBEAT,
            datagram_max=self.datagram_max,
            pace=self.pace,
            proven=self.sealed,
            level=self.level if name == self.names[-1] else LEVEL,
        )
        seal = Seal([KEY], self.random.getrandbits(64)) if self.sealed else None
        node = self.nodes[name] = Node(name, replica, epoch, table, seal)
        self.perform(node, replica.start(self.clock(node)), None)

    def clock(self, node: Node) -> float:
        """What the node takes the time to be."""
        return self.now - node.behind

    def perform(self, node: Node, actions: Sequence[Action], sender: Sender | None) -> None:
        for action in actions:
            match action:
                case Send():
                    assert len(action.datagram) <= self.datagram_max
                    self.send(node, action.datagram)
                case Apply():
                    for record in action.records:
                        self.check_apply(node, record, sender)
                        self.note_return(node, record)
                    node.table.apply(action.records)
                case Forget():
                    for key in action.keys:
                        self.forget(node, key, sender)
                case BeginSnapshot():
                    node.table.begin_all(action.buckets)
                case EndSnapshot():
                    node.table.end_all(action.buckets)
                case ProvideSnapshot():
                    records = node.table.records_of(action.buckets)
                    self.perform(node, node.replica.snapshot(records, self.clock(node)), sender)
                case LookUp():
                    known = node.table.lookup(action.keys)
                    now = self.clock(node)
                    answer = node.replica.answer(action.asker, action.keys, known, now)
                    self.perform(node, answer, sender)
                case Deny():
                    assert node.asked.issuperset(action.keys), "denied unasked"
                    node.asked.difference_update(action.keys)
                case Refused():
                    raise AssertionError(f"a sound datagram was refused: {action.reason}")
                case PeerChanged() | ConfigurationDiffers() | ConfigurationAgrees() | Alarm():
                    pass
        self.check_bounds(node)
        self.check_replicas()
        self.schedule(node)

    def forget(self, node: Node, key: bytes, sender: Sender | None) -> None:
        gone = node.table.drop(key)
        # A delete names a key; only of what its sender had is it the end.
        if gone is not None and sender is not None:
            leader, sequence = sender
            ended = self.ended.get((*leader[:2], key, gone.server))
            if ended is not None and ended < sequence:
                node.forgotten[key, gone.server] = leader

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
            self.perform(node, node.replica.expire(self.clock(node)), None)

        self.at(max(0.0, deadline - self.clock(node)), expire)

    def send(self, sender: Node, datagram: bytes) -> None:
        if sender.seal is not None:
            datagram = sender.seal.seal(datagram)
        self.recorded.append(datagram)
        for name in self.hearers:
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
        if node.seal is not None:
            try:
                datagram = node.seal.open(datagram)
            except SealError as error:
                self.refused[error.kind] += 1
                return
        origin = decode(datagram).origin
        sender = ((origin.node, origin.epoch, origin.term), origin.sequence)
        self.perform(node, node.replica.receive(datagram, self.clock(node)), sender)

    def play(self, name: str) -> None:
        """Somebody sends again what was said once; on an open wire, only lately."""
        if not self.sealed:
            # Without a key nothing tells a recording from the living.
            return
        heard = list(self.recorded)
        for datagram in self.random.sample(heard, min(20, len(heard))):
            if self.random.random() < 0.3:
                changed = bytearray(datagram)
                changed[self.random.randrange(4, len(changed))] ^= 1 << self.random.randrange(8)
                datagram = bytes(changed)
            self.deliver(name, datagram)

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
        now = self.clock(node)
        assert replica._source.queued <= self.pace.queue_max
        assert len(list(copy.peers)) <= PEERS_MAX
        assert len(copy.catching_up._snapshots) <= SNAPSHOTS_MAX
        assert replica._source.history._bytes <= HISTORY_BYTES
        assert len(copy.overlap) <= self.pace.queue_max
        assert len(replica._others) <= 1
        for peer in (p for each in (copy, *replica._others.values()) for p in each.peers):
            assert len(peer.stream._missing) <= MISSING_MAX
            assert len(peer.stream._touched) <= TOUCHED_MAX
            # A process that was replaced is not believed while its successor is heard.
            believed = node.believed.setdefault(peer.node, {})
            if (latest := next(reversed(believed), peer.epoch)) != peer.epoch:
                silent = now - believed[latest] >= silence_limit(HEARTBEAT)
                assert silent or peer.epoch not in believed, "an old epoch was believed"
                believed.pop(peer.epoch, None)
            believed[peer.epoch] = peer.heard

    def check_replicas(self) -> None:
        """A follower that has seen all and misses nothing has exactly what its leader has."""
        for node in self.nodes.values():
            leader = copy_of(node).leader
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
                self.check_equal(node, source, "a complete copy that differs")

    def check_equal(self, node: Node, source: Node, text: str) -> None:
        """Two tables are the same, but for templates where a node does not know them."""
        theirs = source.table.content
        leader = copy_of(node).leader
        spoken = LEVEL if leader is None else leader.speaks
        if min(source.replica._source.level, spoken) == LEVEL_PLAIN:
            # What a newer leader told of templates before, an older one does not take away.
            theirs = {k: v for k, v in theirs.items() if not v.is_template}
            ours = {k: v for k, v in node.table.content.items() if not v.is_template}
            assert ours == theirs, text
            return
        assert node.table.content == theirs, text

    # --- what nodes do -------------------------------------------------------------

    def leaders(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.up and n.replica.role is Role.LEAD]

    def work(self) -> None:
        """A node that leads or drains carries packets: some of its connections change."""
        for node in self.nodes.values():
            if not node.up or node.stalled_until > self.now or node.replica.role is Role.FOLLOW:
                continue
            changes = [self.change(node) for _ in range(self.random.choice((1, 1, 3, 40)))]
            self.perform(node, node.replica.tell(changes, self.clock(node)), None)

    def change(self, node: Node) -> ConnectionChange:
        client = self.random.randrange(self.clients)
        key = key_of(client)
        known = node.table.content.get(key)
        if known is not None and self.random.random() < 0.5:
            node.table.drop(key)
            ended = (node.name, node.epoch, key, known.server)
            self.ended[ended] = node.replica._source.sequence
            return ConnectionEnded(key)
        if known is None:
            self.incarnation += 1
            record = connection(client, self.incarnation)
        else:
            record = known._replace(state=self.random.randrange(1, 9))
        self.existed.add(record)
        node.table.apply([record])
        return ConnectionChanged(record)

    def ask(self, node: Node) -> None:
        """Packets have come of connections that a node does not know."""
        if not node.up or node.stalled_until > self.now:
            return
        keys = [key_of(self.random.randrange(self.clients)) for _ in range(5)]
        unknown = [key for key in dict.fromkeys(keys) if key not in node.table.content]
        node.asked.update(unknown)
        self.perform(node, node.replica.ask(unknown, self.clock(node)), None)

    def lead(self, name: str) -> None:
        node = self.nodes[name]
        if node.up and node.stalled_until <= self.now:
            self.perform(node, node.replica.lead(self.clock(node)), None)

    def follow(self, name: str) -> None:
        node = self.nodes[name]
        if node.up and node.stalled_until <= self.now:
            self.perform(node, node.replica.follow(self.clock(node)), None)

    def restart(self, name: str) -> None:
        if not self.nodes[name].up:
            self.boot(name)

    def crash(self, name: str) -> None:
        self.nodes[name].up = False
        self.meanwhile(self.random.uniform(0.01, 3), lambda: self.restart(name))
        successor = self.random.choice([n for n in self.names if n != name])
        self.meanwhile(self.random.uniform(0.02, 0.5), lambda: self.lead(successor))

    def stall(self, name: str, *, with_clock: bool) -> None:
        """A node stands still; with its clock, it does not notice."""
        node = self.nodes[name]
        if node.stalled_until > self.now:
            return
        length = self.random.uniform(0.1, 2)
        node.stalled_until = self.now + length
        node.notices = not with_clock
        if with_clock:
            node.behind += length
        self.meanwhile(length, lambda: self.resume(node))

    def resume(self, node: Node) -> None:
        if self.nodes[node.name] is not node or not node.up or node.stalled_until > self.now:
            return
        if node.notices:
            self.perform(node, node.replica.follow(self.clock(node)), None)
            self.perform(node, node.replica.resync(self.clock(node)), None)
        self.schedule(node)
        backlog, node.backlog = node.backlog, []
        for datagram in backlog:
            self.deliver(node.name, datagram)

    def trouble(self) -> None:
        """One thing goes wrong, or right."""
        name, other = self.random.sample(self.names, 2)
        match self.random.randrange(12):
            case 0:
                self.crash(name)
            case 1:
                self.stall(name, with_clock=False)
            case 2 | 3:
                for leader in self.leaders():
                    # Either may be first, as between two loops on two machines.
                    step_down = partial(self.follow, leader.name)
                    self.meanwhile(self.random.uniform(0, 0.02), step_down)
                self.meanwhile(self.random.uniform(0, 0.02), lambda: self.lead(other))
            case 4:
                link = (name, self.random.choice([n for n in self.hearers if n != name]))
                self.cuts.add(link)
                mend = partial(self.cuts.discard, link)
                self.meanwhile(self.random.uniform(0.1, 3), mend)
            case 5:
                self.lead(name)
            case 6 | 7:
                self.play(self.random.choice(self.hearers))
            case 8:
                for leader in self.leaders():
                    self.ask(leader)
            case 9:
                self.stall(self.random.choice(self.hearers), with_clock=True)
            case 10 if self.random.random() < 0.5:
                for each in self.names:
                    if each != name:
                        self.crash(each)
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
        self.recorded.clear()
        self.cuts.clear()
        for name in self.hearers:
            self.restart(name)
            node = self.nodes[name]
            if node.stalled_until > self.now:
                if not node.notices:
                    node.behind -= node.stalled_until - self.now
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
            self.check_equal(node, leader, f"{node.name} differs from {leader.name}")
            assert node.replica._source.queued == 0
            if node is leader:
                continue
            followed = copy_of(node).leader
            assert followed is not None
            assert followed.node == leader.name
            assert followed.state is PeerState.REPLICATE
            seen = leader.replica._home.peers.get(node.name)
            assert seen is not None
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


@pytest.mark.parametrize("block", range(5))
def test_copies_stay_sound_and_converge_whatever_the_network_does(block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):
        simulate(seed)


def test_the_simulation_exercises_what_it_claims_to() -> None:
    totals: dict[str, int] = {}
    refused: Counter[str] = Counter()
    for seed in (*range(1000, 1016), 1118, 1123, 1129):
        world = simulate(seed)
        refused += world.refused
        for node in world.nodes.values():
            for name, count in node.replica.counters.snapshot().items():
                totals[name] = totals.get(name, 0) + count
    for kind in ("replayed", "forged", "own"):
        assert refused[kind] > 0, kind
    for name in (
        "datagrams_lost",
        "datagrams_sent_again",
        "sums_differed",
        "buckets_wanted",
        "connections_found",
        "connections_denied",
        "refused_unproven",
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
