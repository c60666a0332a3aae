"""Three replicas with tables on a network, and what must hold of them whatever comes.

Two of them have one sync id and understand what their plan says; the third takes every id.
The network has no delay; what it loses, steps say.
"""

import json
from collections import deque
from collections.abc import Sequence
from typing import assert_never

from lvsha.errors import SealError, SyncError
from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionEnded
from lvsha.sync.actions import (
    Action,
    Apply,
    BeginSnapshot,
    Deny,
    EndSnapshot,
    Forget,
    LookUp,
    ProvideSnapshot,
    Refused,
    Send,
)
from lvsha.sync.catching_up import SNAPSHOTS_MAX
from lvsha.sync.configuration import PIECES_MAX
from lvsha.sync.datagrams import decode
from lvsha.sync.history import HISTORY_BYTES
from lvsha.sync.messages import ALL_BUCKETS, HEARD_MAX, Role
from lvsha.sync.pace import Pace
from lvsha.sync.peers import EPOCHS_REMEMBERED, PEERS_MAX, TERM_JUMP_MAX
from lvsha.sync.questions import OPEN_MAX
from lvsha.sync.replica import Replica
from lvsha.sync.seal import SESSIONS_MAX, Seal
from lvsha.sync.source import RESEND_MAX
from lvsha.sync.stream import MISSING_MAX, TOUCHED_MAX
from lvsha.tally import Tally
from tests.fuzz.checks import demand
from tests.fuzz.sync_mutations import Hints
from tests.fuzz.sync_steps import Call, Change, Hostile, Lose, Plan, Sleep, Step
from tests.replicas import SYNC_ID, Table, connection, template

NAMES = ("east", "west", "zero")
HEARTBEAT = 0.5
CLIENTS = 60
SENDS_MAX = 200
"""What one datagram, or one deadline, makes a node send at most: a tick's share, all sums,
an answer, and the questions that it has."""
QUIET = 62.0
"""Longer than a peer is remembered that is heard no more."""
RECORDED = 400

_TABLE_ACTIONS = (Apply, Forget, BeginSnapshot, EndSnapshot, Deny)


class Node:
    """A replica, its table and its seal."""

    def __init__(self, plan: Plan, place: int, epoch: int) -> None:
        self.name = NAMES[place]
        self.table = Table(sync_id=SYNC_ID)
        self.replica = Replica(
            tally=Tally(0) if place == 2 else self.table.tally,
            node=self.name,
            epoch=epoch,
            configuration_digest=bytes((place,)) * 16,
            digests={"sync": b"1", "services.web": bytes((place + 1,))},
            heartbeat_interval=HEARTBEAT,
            datagram_max=plan.datagram_max,
            pace=Pace(
                queue_max=plan.queue_max,
                bytes_per_second=plan.bytes_per_second,
                window=plan.window,
            ),
            proven=bool(plan.key),
            level=plan.levels[place],
        )
        self.seal = Seal([plan.key], epoch) if plan.key else None


class SyncWorld:
    """The nodes of one run.

    Attributes:
        recorded: what was sent lately, as it crossed the wire.
        refused: how often each kind of refusal was counted.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 1000.0
        self.recorded: deque[bytes] = deque(maxlen=RECORDED)
        self._sound: set[bytes] = set()
        self._under_way: deque[tuple[int, bytes]] = deque()
        self._to_lose = 0
        self._epochs = 0
        self.nodes: list[Node] = []
        for place in range(3):
            self.nodes.append(self._boot(place))
        for node in self.nodes:
            self._perform(node, node.replica.start(self.now))
        self._deliver()

    def _boot(self, place: int) -> Node:
        self._epochs += 1
        return Node(self.plan, place, 0x1000 * (place + 1) + self._epochs)

    def hints(self) -> Hints:
        """What makes a datagram plausible."""
        sources = [node.replica._source for node in self.nodes]
        return Hints(
            NAMES,
            tuple(node.replica.epoch for node in self.nodes),
            tuple(source.sequence for source in sources),
            tuple(source.term for source in sources),
        )

    # --- steps -------------------------------------------------------------------------

    def take(self, step: Step) -> None:
        """Let a step happen, and demand that all is well."""
        match step:
            case Hostile():
                self._suffer(self.nodes[step.node], step.data)
            case Change():
                self._change(self.nodes[step.node], step.changes)
            case Call():
                self._call(step)
            case Sleep():
                self._sleep(step.seconds)
            case Lose():
                self._to_lose += step.count
        self._deliver()
        for node in self.nodes:
            within_bounds(node)

    def finish(self) -> None:
        """The attack is over: what it has left behind must not last.

        On an open wire whoever sends false numbers in a node's name is believed, so that
        node starts again; so does who takes every id, which waits for a leader of any. The
        third must find its way, unless it has taken a term from somebody that is too far
        above those of a node that starts.
        """
        self._to_lose = 0
        self._sleep(QUIET)
        is_high = any(node.replica._source.term >= TERM_JUMP_MAX for node in self.nodes)
        for place in range(3):
            is_fooled = not self.plan.key and (is_high or NAMES[place] != "west")
            self._call(Call(place, "restart" if is_fooled else "follow"))
            self._deliver()
        self._sleep(5.0)
        self._call(Call(0, "lead"))
        self._deliver()
        self._change(self.nodes[0], ((1, 5), (7, 2), (CLIENTS, 3)))
        self._deliver()
        self._sleep(15.0)
        leader, *followers = self.nodes
        demand(leader.replica.role is Role.LEAD, "who was told to lead does not")
        is_plain = min(self.plan.levels) == 1
        for node in followers:
            demand(node.replica.complete, f"{node.name} does not become complete again")
            ours, theirs = node.table.content, leader.table.content
            if is_plain:
                ours = {key: record for key, record in ours.items() if not record.is_template}
                theirs = {key: record for key, record in theirs.items() if not record.is_template}
            demand(ours == theirs, f"{node.name} differs from {leader.name} in the end")

    def _change(self, node: Node, changes: Sequence[tuple[int, int]]) -> None:
        told: list[ConnectionChange] = []
        for client, state in changes:
            record = connection(client, state) if client % 5 else template(client, b"call")
            if state < 0:
                node.table.drop(record.key)
                told.append(ConnectionEnded(record.key))
            else:
                node.table.apply([record])
                told.append(ConnectionChanged(record))
        if node.replica.role is not Role.FOLLOW:
            self._perform(node, node.replica.tell(told, self.now))

    def _call(self, call: Call) -> None:
        node, now = self.nodes[call.node], self.now
        match call.name:
            case "lead":
                actions = node.replica.lead(now)
            case "follow":
                actions = node.replica.follow(now)
            case "resync":
                actions = node.replica.resync(now)
            case "ask":
                asked = [connection(client).key for client in range(CLIENTS, CLIENTS + 40)]
                actions = node.replica.ask(asked, now)
            case "configure":
                digest = bytes((int(now * 1000) % 3,)) * 16
                actions = node.replica.configure(digest, {"sync": digest[:1]}, now)
            case "restart":
                node = self.nodes[call.node] = self._boot(call.node)
                actions = node.replica.start(now)
            case _:
                assert_never(call.name)
        self._perform(node, actions)

    def _sleep(self, seconds: float) -> None:
        until = self.now + seconds
        again = 0
        while True:
            at, node = min(
                ((self._deadline(node), node) for node in self.nodes), key=lambda pair: pair[0]
            )
            if at > until:
                break
            again = again + 1 if at <= self.now else 0
            demand(again < 50, "a deadline that stays in the past")
            self.now = max(self.now, at)
            self._perform(node, node.replica.expire(self.now))
            self._deliver()
        self.now = until

    def _deadline(self, node: Node) -> float:
        deadline = node.replica.deadline
        demand(deadline is not None, "a node that runs has nothing to wait for")
        assert deadline is not None
        return deadline

    # --- the network -------------------------------------------------------------------

    def _opened(self, node: Node, data: bytes) -> bytes | None:
        """What a datagram is within its seal."""
        if node.seal is None:
            return data
        try:
            plain = node.seal.open(data)
        except SealError:
            return None
        finally:
            demand(node.seal.sessions <= SESSIONS_MAX, "too many sessions")
        demand(plain in self._sound, "a seal has opened what nobody sealed")
        return plain

    def _receive(self, node: Node, data: bytes) -> None:
        """A node's datagram comes to another one."""
        plain = self._opened(node, data)
        if plain is not None:
            self._perform(node, node.replica.receive(plain, self.now))

    def _suffer(self, node: Node, data: bytes) -> None:
        """A datagram comes that no node has sent: it is used or counted, never both."""
        plain = self._opened(node, data)
        if plain is None:
            return
        replica = node.replica
        before = replica.counters.snapshot()
        content, deadline = dict(node.table.content), replica.deadline
        actions = replica.receive(plain, self.now)
        grown = grown_counters(before, replica.counters.snapshot())
        demand(grown.get("datagrams_received") == 1, "a datagram that was not counted")
        try:
            decode(plain)
        except SyncError:
            demand(grown.get("refused_malformed") == 1, "nonsense that was not counted")
            demand([type(action) for action in actions] == [Refused], "nonsense that was used")
            demand(replica.deadline == deadline, "nonsense that changed something")
        else:
            demand("refused_malformed" not in grown, "a datagram that is sound is refused")
        if any(name.startswith("refused") for name in grown):
            used = [action for action in actions if isinstance(action, _TABLE_ACTIONS)]
            demand(not used, f"{used} of a datagram that was refused")
            demand(node.table.content == content, "a refused datagram changed the table")
        self._perform(node, actions)

    def _perform(self, node: Node, actions: Sequence[Action]) -> None:
        replica, table = node.replica, node.table
        demand(
            sum(isinstance(action, Send) for action in actions) <= SENDS_MAX + self._flushed(node),
            "one step sends too much",
        )
        for action in actions:
            match action:
                case Send():
                    self._send(node, action.datagram)
                case Apply():
                    table.apply(action.records)
                case Forget():
                    table.forget(action.keys)
                case BeginSnapshot():
                    demand(0 < action.buckets <= ALL_BUCKETS, "a snapshot of no buckets")
                    table.begin_all(action.buckets)
                case EndSnapshot():
                    table.end_all(action.buckets)
                case ProvideSnapshot():
                    demand(0 < action.buckets <= ALL_BUCKETS, "a snapshot of no buckets")
                    records = table.records_of(action.buckets)
                    self._perform(node, replica.snapshot(records, self.now))
                case LookUp():
                    known = table.lookup(action.keys)
                    answer = replica.answer(action.asker, action.keys, known, self.now)
                    self._perform(node, answer)
                case Deny():
                    table.deny(action.keys)
                    table.denied.clear()
                case _:
                    pass

    def _flushed(self, node: Node) -> int:
        """What the end of a drain may send at once: all that waits."""
        return self.plan.queue_max

    def _send(self, sender: Node, datagram: bytes) -> None:
        demand(len(datagram) <= self.plan.datagram_max, "a datagram that is too long")
        demand(decode(datagram).origin.node == sender.name, "a datagram in another's name")
        if sender.seal is not None:
            self._sound.add(datagram)
            datagram = sender.seal.seal(datagram)
        self.recorded.append(datagram)
        if self._to_lose:
            self._to_lose -= 1
            return
        for place, node in enumerate(self.nodes):
            if node is not sender:
                self._under_way.append((place, datagram))

    def _deliver(self) -> None:
        while self._under_way:
            place, datagram = self._under_way.popleft()
            self._receive(self.nodes[place], datagram)


def grown_counters(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """By how much counters have grown; none shrinks."""
    demand(all(after[name] >= count for name, count in before.items()), "a counter shrank")
    return {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}


def within_bounds(node: Node) -> None:
    """No table of a replica is above its limit."""
    replica = node.replica
    source = replica._source
    demand(source.queued <= replica._pace.queue_max, "too much waits to be told")
    demand(source.history._bytes <= HISTORY_BYTES, "too much history")
    demand(len(source._resend) <= RESEND_MAX, "too much waits to be sent again")
    demand(len(replica._questions._open) <= OPEN_MAX, "too many questions")
    demand(len(replica._others) <= 255, "too many sync ids")
    differences = replica._comparison._differences
    demand(len(differences) <= PEERS_MAX + 1, "too many configurations")
    for difference in differences.values():
        pieces = sum(map(len, difference.received.values()))
        demand(pieces <= PIECES_MAX, "too much of a configuration")
    for copy in (replica._home, *replica._others.values()):
        peers = list(copy.peers)
        demand(len(peers) <= PEERS_MAX, "too many peers")
        demand(len(copy.peers._strangers) <= HEARD_MAX, "too many strangers")
        demand(len(copy.catching_up._snapshots) <= SNAPSHOTS_MAX, "too many snapshots")
        demand(len(copy.overlap) <= replica._pace.queue_max, "too many of its own")
        for peer in peers:
            demand(len(peer.stream._missing) <= MISSING_MAX, "too much is missing")
            demand(len(peer.stream._touched) <= TOUCHED_MAX, "too much is remembered")
            demand(len(peer.retired) <= EPOCHS_REMEMBERED, "too many old epochs")


def everything(world: SyncWorld) -> None:
    """What costs more, for now and then."""
    for node in world.nodes:
        status = node.replica.status(world.now)
        demand(json.loads(json.dumps(status)) == status, "a status that is no JSON")
        copy = node.replica._home
        demand(copy.catching_up.wanted <= ALL_BUCKETS, "buckets that there are not")
