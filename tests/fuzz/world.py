"""One director between two made-up links, to which steps happen; see `tests.fuzz.steps`.

After each frame it is asked where the frame went. These rules hold, and `Account` checks
them; "counted" is what a step added to `Director.drops`:

* A frame that is none of the director's business counts nothing, and nothing leaves.
* A fragment is conserved: those that waited before and this one are those that wait after,
  those that went into the datagram which it completes, and those that were counted. A
  datagram that is complete is one packet from then on.
* A packet that is refused is counted once, under one reason. An answer to its sender is a
  packet of its own, which leaves, waits for its neighbour, or is counted as one of those that
  `ANSWER_LOST` names.
* A packet that is forwarded becomes one or more packets, because it is cut for a smaller
  link or as a super-frame for a tunnel; each of them leaves, waits for its neighbour, or is
  counted. Where it becomes none because its size or its age forbids that, it is refused.
* A packet waits for what the peers say of its connection, or goes on when they have; how many
  wait is always known.
* Only what an ICMP error says of a tunnel may end here: the director itself has learned from
  it.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import assert_never

from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.network import AddressChange, NetworkChange, Outgoing
from lvsha.datapath.reasons import Reason
from lvsha.datapath.verdicts import Accept, Drop, TunnelError, Verdict, Wait
from lvsha.errors import AdministrationError, ConfigError
from lvsha.model import BUCKETS, ConnectionChange, ConnectionRecord, bucket_of
from lvsha.tally import Tally
from tests.fuzz.checks import CHANGES_OF_A_FRAME, BrokenRuleError, demand
from tests.fuzz.landscape import MARKS, VIRTUAL
from tests.fuzz.steps import (
    Answer,
    Apply,
    BackUp,
    Command,
    Configure,
    DeleteServer,
    Forget,
    Hold,
    Learn,
    Plan,
    Receive,
    SetMarks,
    SetServer,
    SetService,
    Sleep,
    Snapshot,
    Step,
    Tune,
    UnsetService,
)
from tests.laboratory import CLIENT, Laboratory

ANSWER_LOST = frozenset({Reason.NO_ROUTE, Reason.NEIGHBOUR_FAILED, Reason.NEIGHBOUR_QUEUE_FULL})
"""Why an answer of the director's own may not leave."""
OPTIONS = (Reason.IP_OPTIONS, Reason.SOURCE_ROUTED)
"""What is wrong with IPv4 options is found before an answer is written, and counts instead."""
HOUSEKEEPING_TURNS = 5000
"""Calls of `housekeep` after one sleep: more would mean that it never comes to an end."""
GARBAGE = 0xA5

SLICES_AT_ONCE = 9
WALKS_MAX = 4

Sent = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one frame.

    Attributes:
        forgotten: what was counted before the verdict: fragments, by the reassembler.
        counted: what was counted in carrying the verdict out.
        completed: fragments in the datagram that the frame completed; 0 where it did not.
    """

    verdict: Verdict
    sent: int
    held: int
    forgotten: Counter[Reason]
    counted: Counter[Reason]
    is_fragment: bool
    waited_before: int
    wait_after: int
    completed: int

    def check(self) -> None:
        """Demand that the frame is accounted for."""
        if self.is_fragment:
            refused = 1 if isinstance(self.verdict, Drop) and not self.completed else 0
            known = self.wait_after + self.completed + sum(self.forgotten.values()) + refused
            demand(self.waited_before + 1 == known, f"fragments are lost, or too many: {self}")
        else:
            demand(not self.forgotten, f"counted before it was judged: {self}")
        counted = Counter(self.counted)
        match self.verdict:
            case Accept() | Wait():
                quiet = not counted and not self.sent and not self.held
                demand(quiet, f"not the director's business now, and yet: {self}")
            case Drop(reason=reason, answer=answer):
                refusal = next((other for other in OPTIONS if counted[other]), reason)
                demand(counted[refusal] >= 1, f"not counted under its reason: {self}")
                counted[refusal] -= 1
                self._check_answer(+counted, allowed=answer is not None)
            case TunnelError():
                self._check_answer(counted, allowed=True)
            case _:
                left = self.sent + self.held + sum(counted.values())
                demand(left > 0, f"a frame has vanished: {self}")
                refusals = [reason for reason in counted if reason not in ANSWER_LOST]
                demand(len(refusals) <= 1, f"counted under more than one reason: {self}")

    def _check_answer(self, counted: Counter[Reason], *, allowed: bool) -> None:
        lost = sum(counted.values())
        demand(set(counted) <= ANSWER_LOST, f"counted under another reason, too: {self}")
        demand(self.sent + self.held + lost <= (1 if allowed else 0), f"too many answers: {self}")


class World(Laboratory):
    """A director, its links and its clock, made after a plan.

    Args:
        plan: how it is made.
        fresh: a twin: takes each frame in a buffer of its own, full of garbage behind the
            frame, and in one go. What it does must be the same.

    Attributes:
        sent: what left at the last step, as it left.
        changes: what the last step told the backups.
        refusals: commands that were refused, by error number.
    """

    def __init__(self, plan: Plan, *, fresh: bool = False) -> None:
        self.director = Director(
            connections_max=plan.connections_max,
            dice=random.Random(plan.seed),
            reporting=plan.reporting,
            unknown=plan.unknown,
            answers_per_second=plan.answers_per_second,
            fragment_bytes=plan.fragment_bytes,
        )
        self.plan = plan
        self.frame = Frame()
        self.now = 1000.0
        self.sent: list[Sent] = []
        self.changes: list[ConnectionChange] = []
        self.refusals: Counter[int] = Counter()
        self._fresh = fresh
        # The oldest are left where they are, as when their peer goes away.
        self._walks: deque[Iterator[object]] = deque(maxlen=WALKS_MAX)
        self._attach(plan.mtu)
        for address in VIRTUAL:
            self.director.learn(AddressChange(CLIENT, address, present=True))
        # Each family is one sync id; of the marks some belong to one, and one to none.
        registry = self.director.registry
        tallies = {size: Tally(size) for size in {len(address) for address in VIRTUAL}}
        registry.tallies.update((address, tallies[len(address)]) for address in VIRTUAL)
        registry.mark_tallies.update(zip(MARKS, tallies.values(), strict=False))

    def take(self, step: Step) -> None:
        """Let a step happen.

        Raises:
            BrokenRuleError: something that must hold does not.
        """
        self.sent = []
        # As many as there are connections, and those that this step has ended.
        limit = 2 * self.plan.connections_max + CHANGES_OF_A_FRAME
        if isinstance(step, Receive):
            limit = CHANGES_OF_A_FRAME
            self._receive(step.data)
        else:
            try:
                self._happen(step)
            except AdministrationError as error:
                self.refusals[error.code] += 1
            except ConfigError:
                self.refusals[0] += 1
        self.changes = self._told()
        demand(len(self.changes) <= limit, f"{len(self.changes)} changes told")
        self._go_on()

    def _told(self) -> list[ConnectionChange]:
        """What the backups are told, of all sync ids."""
        return [*chain.from_iterable(self.director.registry.take_changes().values())]

    def _begin(self, walk: Iterator[object]) -> None:
        """Walk over the table from now on, while other things happen."""
        self._walks.append(walk)

    def _go_on(self) -> None:
        """Go on with the walks over the table, as far as a courier would between two frames."""
        if not self._walks:
            return
        for walk in tuple(self._walks):
            try:
                for _ in range(SLICES_AT_ONCE):
                    next(walk)
            except StopIteration:
                self._walks.remove(walk)
        self.changes += self._told()

    # Frames

    def _receive(self, data: bytes) -> None:
        if self._fresh:
            frame = Frame()
            frame.view[:] = bytes((GARBAGE,)) * len(frame.view)
            frame.view[: len(data)] = data
            self._keep(self.director.process(frame, len(data), self.now))
            return
        frame, director = self.frame, self.director
        frame.view[: len(data)] = data
        before, held = Counter(director.drops), self._held()
        waited, asked = self._waiting_fragments(), len(director._questions)
        verdict = director.decide(frame, len(data), self.now)
        asked += isinstance(verdict, Wait)
        demand(len(director._questions) == asked, f"{asked} packets should wait for peers")
        arrived, waiting = frame.arrived, self._waiting_fragments()
        forgotten = director.drops - before
        completed = len(arrived.pieces) if arrived is not None else 0
        if arrived is not None and not arrived.pieces:
            # A rewritten payload no longer has the pieces in which it came.
            completed = waited + 1 - waiting - sum(forgotten.values())
        before = Counter(director.drops)
        self._keep(director.carry_out(frame, verdict, self.now))
        Account(
            verdict,
            len(self.sent),
            self._held() - held,
            forgotten,
            director.drops - before,
            frame.fragment or arrived is not None,
            waited,
            waiting,
            completed,
        ).check()

    def _keep(self, outgoing: Sequence[Outgoing]) -> None:
        self.sent = [(link, bytes(data)) for link, data in outgoing]

    def _held(self) -> int:
        return self.director.network._waiting

    def _waiting_fragments(self) -> int:
        waiting = self.director._reassembler._families()
        return sum(len(d.payloads) for family, _ in waiting for d in family.values())

    # Everything else

    def _happen(self, step: Step) -> None:
        director, services = self.director, self.director.services
        match step:
            case Sleep(seconds):
                self._sleep(seconds)
            case Learn(change):
                self._learn(change)
            case SetService("add", identity, service, policy):
                services.add(identity, service, policy=policy)
            case SetService(_, identity, service):
                services.edit(identity, service)
            case UnsetService(action, identity):
                (services.delete if action == "delete" else services.zero)(identity)
            case SetServer(action, identity, address, port, server):
                put = services.add_server if action == "add" else services.edit_server
                put(identity, address, port, server)
            case DeleteServer(identity, address, port):
                services.delete_server(identity, address, port)
            case Command():
                self._command(step)
            case Configure(changes):
                director.configure(director.settings.changed(changes))
            case SetMarks(rules):
                director.marks.set(rules)
            case Tune():
                self._tune(step)
            case Hold(address, held, in_transition):
                director.hold(address, held=held, in_transition=in_transition)
            case BackUp(addresses):
                director.back_up(frozenset(addresses))
            case Apply(record):
                director.replication.apply([record], self.now)
            case Forget(key):
                director.replication.forget([key])
            case Snapshot(records, addresses):
                tally = director.registry.tallies[next(iter(addresses), VIRTUAL[0])]
                self._snapshot(records, tally)
            case Answer(known, denied):
                self._answer(known, denied)
            case Receive():
                raise AssertionError("frames are received")
            case _:
                assert_never(step)

    def _snapshot(self, records: Sequence[ConnectionRecord], tally: Tally) -> None:
        """A snapshot of all, or of each bucket that it names, comes."""
        replication = self.director.replication
        generation = replication.begin()
        replication.apply(records, self.now)
        if len(records) % 2:
            self._begin(replication.sweep(tally, generation))
            return
        for bucket in {bucket_of(record.key) for record in records}:
            self._begin(replication.sweep_bucket(tally, bucket, generation))

    def _answer(self, known: Sequence[ConnectionRecord], denied: Sequence[bytes]) -> None:
        """Let the peers answer, and what waited for that go on."""
        director = self.director
        asked = {key for keys in director.take_questions().values() for key in keys}
        demand(asked <= set(director._questions._held), "asked for what nobody waits for")
        director.replication.apply(known, self.now)
        director.deny(denied)
        waited, held, before = len(director._questions), self._held(), Counter(director.drops)
        self._keep(director.release(self.now))
        gone = waited - len(director._questions)
        counted = sum((director.drops - before).values())
        known_of = len(self.sent) + self._held() - held + counted
        demand(known_of >= gone, f"{gone} packets wait no longer, {known_of} are known of")

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        director = self.director
        known = len(director._questions) + director.drops[Reason.UNANSWERED]
        for _ in range(HOUSEKEEPING_TURNS):
            if not director.housekeep(self.now):
                now_known = len(director._questions) + director.drops[Reason.UNANSWERED]
                demand(now_known == known, f"of {known} packets {now_known} waited in vain")
                return
        raise BrokenRuleError("housekeeping has no end")

    def _learn(self, change: NetworkChange) -> None:
        held, before = self._held(), Counter(self.director.drops)
        self._keep(self.director.learn(change))
        lost = sum((self.director.drops - before).values())
        demand(
            self._held() + len(self.sent) + lost == held,
            f"of {held} waiting frames {len(self.sent)} left, {lost} were counted, "
            f"and {self._held()} wait",
        )

    def _command(self, step: Command) -> None:
        director = self.director
        match step.name:
            case "flush":
                director.services.flush()
            case "zero":
                director.services.zero()
            case "clear network":
                director.network.clear()
                self._attach(self.plan.mtu)
                for address in VIRTUAL:
                    director.learn(AddressChange(CLIENT, address, present=True))
            case "keep ways warm":
                director.keep_ways_warm()
                director.network.wanted.clear()
            case "read snapshot":
                tallies = {*director.registry.tallies.values()}
                for tally, bucket in product(tallies, range(BUCKETS)):
                    runs = filter(None, director.replication.records(tally, [bucket]))
                    for key in chain.from_iterable(run.keys for run in runs):
                        demand(bucket_of(key) == bucket, "a record in another bucket")
            case "tell all":
                self._begin(director.registry.tell_all({4, 16}))
            case _:
                assert_never(step.name)

    def _tune(self, step: Tune) -> None:
        director = self.director
        match step.name:
            case "seed":
                director.services.seed = int(step.value)
            case "memory":
                director.learn_memory(int(step.value))
            case "clock":
                director.learn_clock(step.value)
            case "tcp":
                director.set_timeouts(tcp=step.value)
            case "tcp_fin":
                director.set_timeouts(tcp_fin=step.value)
            case "udp":
                director.set_timeouts(udp=step.value)
            case _:
                assert_never(step.name)
