"""Some real replicas with naive tables, for tests of what they do together.

The network has no delay, and nothing is lost but what a test says; all that was said is
kept.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, Unpack

from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionRecord
from lvsha.sync.actions import (
    Action,
    Alarm,
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
from lvsha.sync.datagrams import decode
from lvsha.sync.messages import Message
from lvsha.sync.replica import Replica
from tests.replicas import START, SYNC_ID, Options, Table, make_replica

_Kind = TypeVar("_Kind", bound=Message)


@dataclass
class Member:
    """A node of a group: its replica, its table, and what was reported of it."""

    replica: Replica
    table: Table
    happened: list[tuple[float, Action]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.replica.node

    def alarms(self) -> list[Alarm]:
        return [action for _, action in self.happened if isinstance(action, Alarm)]


Lost = Callable[[Message, Member], bool]
"""Whether a message does not reach a member."""


def nothing(message: Message, to: Member) -> bool:
    """A network that loses nothing."""
    return False


class Group:
    """Some replicas on a network without delay. Nothing is lost but what `lost` says.

    Attributes:
        now: the clock of all.
        said: when, and what; of all members.
        sizes: when, who, and how many bytes, of each datagram.
    """

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.now = START
        self.lost: Lost = nothing
        self.said: list[tuple[float, Message]] = []
        self.sizes: list[tuple[float, str, int]] = []
        self._under_way: deque[tuple[Member, bytes]] = deque()

    def join(
        self, name: str, records: Iterable[ConnectionRecord] = (), **options: Unpack[Options]
    ) -> Member:
        """A new member, which starts; an older one of its name is gone."""
        options.setdefault("epoch", len(self.said) + 1000 * (len(self.members) + 1))
        table = Table(records, options.get("sync_id", SYNC_ID))
        options["tally"] = table.tally
        replica = make_replica(name, **options)
        member = self.members[name] = Member(replica, table)
        self._perform(member, replica.start(self.now))
        self._deliver()
        return member

    def lead(self, member: Member) -> None:
        self._perform(member, member.replica.lead(self.now))
        self._deliver()

    def follow(self, member: Member) -> None:
        self._perform(member, member.replica.follow(self.now))
        self._deliver()

    def change(self, member: Member, *changes: ConnectionChange) -> None:
        """Connections change at a member, which tells of it."""
        for change in changes:
            if isinstance(change, ConnectionChanged):
                member.table.apply([change.record])
            else:
                member.table.drop(change.key)
        self._perform(member, member.replica.tell(changes, self.now))
        self._deliver()

    def ask(self, member: Member, *keys: bytes) -> None:
        self._perform(member, member.replica.ask(keys, self.now))
        self._deliver()

    def run(self, seconds: float) -> None:
        """Let time pass, and everybody do what is due."""
        until = self.now + seconds
        while True:
            deadlines = [(m.replica.deadline, m) for m in self.members.values()]
            due = [(at, m) for at, m in deadlines if at is not None and at <= until]
            if not due:
                break
            at, member = min(due, key=lambda pair: pair[0])
            self.now = max(self.now, at)
            self._perform(member, member.replica.expire(self.now))
            self._deliver()
        self.now = until

    def messages(self, kind: type[_Kind], node: str | None = None) -> list[_Kind]:
        """What was said of a kind, by a node or by anybody."""
        return [
            message
            for _, message in self.said
            if isinstance(message, kind) and (node is None or message.origin.node == node)
        ]

    def quiet(self) -> None:
        """Forget what was said so far."""
        self.said.clear()
        self.sizes.clear()

    def _perform(self, member: Member, actions: Sequence[Action]) -> None:
        replica, table = member.replica, member.table
        for action in actions:
            match action:
                case Send():
                    self._send(member, action.datagram)
                case Apply():
                    table.apply(action.records)
                case Forget():
                    table.forget(action.keys)
                case BeginSnapshot():
                    table.begin_all(action.buckets)
                case EndSnapshot():
                    table.end_all(action.buckets)
                case ProvideSnapshot():
                    records = table.records_of(action.buckets)
                    self._perform(member, replica.snapshot(records, self.now))
                case LookUp():
                    known = table.lookup(action.keys)
                    answer = replica.answer(action.asker, action.keys, known, self.now)
                    self._perform(member, answer)
                case Deny():
                    table.deny(action.keys)
                case Refused():
                    raise AssertionError(f"a sound datagram was refused: {action.reason}")
                case _:
                    pass
            if not isinstance(action, Send | Apply | Forget):
                member.happened.append((self.now, action))

    def _send(self, sender: Member, datagram: bytes) -> None:
        message = decode(datagram)
        self.said.append((self.now, message))
        self.sizes.append((self.now, sender.name, len(datagram)))
        for member in self.members.values():
            if member is not sender and not self.lost(message, member):
                self._under_way.append((member, datagram))

    def _deliver(self) -> None:
        while self._under_way:
            member, datagram = self._under_way.popleft()
            self._perform(member, member.replica.receive(datagram, self.now))
