"""When the backups are told of a connection, and what waits to be told.

A `Teller` hears of everything that happens to a connection that is synced, and puts it on the
list of what is told next when the rule of its service says so (`TellRule`). It changes no
connection but for what it remembers of the telling: `report_at`, `told_state`, `sync_end`, and
the count of packets where the kernel's rule counts (a template's).

What always holds:

* Of each connection at most one change waits to be told, and it is the newest.
* A template, or an FTP control connection, is told before what belongs to it.
* Under every rule but the kernel's, a copy is not over before its original. It lives longer
  by `REFRESH_PART` of the time-out, and when that part is over the next packet of the client
  has it told again. Where only the server speaks it is told again when the wheel of the table
  finds it alive, which is once in its time-out; of time-outs below some ten seconds the full
  seconds of the wheel may be too coarse for that.
* While an address moves from node to node, a connection of it is told from its first packet
  on; but nothing that its rule excludes for good is ever told.

A packet costs one comparison, `now >= report_at`. That is 0 where each packet must be looked
at, and infinity where none needs to be.

Times are seconds on the caller's clock.
"""

from collections import deque
from collections.abc import Collection, Iterator
from typing import Final

from lvsha.datapath.connections import Connection, ConnectionTable
from lvsha.datapath.service_policy import TellRule, TellWhen
from lvsha.datapath.sync_rule import HZ, SyncFacts, needed, sync_settings, tick
from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionEnded, ConnectionFlag
from lvsha.settings import Settings
from lvsha.tally import UNTOLD, Tally

REFRESH_PART: Final = 0.25
"""After this part of its time-out a connection in use is told again; a copy lives longer by
the same part, so that it never ends before its original."""
DELAYED_MAX: Final = 1_000_000
"""Connections that wait until they have been established for long enough; a further one is
told at once, which costs bytes and loses nothing."""
DUE_BATCH: Final = 250
"""Of these so many are looked at in one call of `tell_due`; a millisecond of work."""

_AT_EACH_PACKET: Final = 0.0
_NEVER: Final = float("inf")
_NO_PERIOD: Final = 1 << 62
_TEMPLATE: Final = int(ConnectionFlag.TEMPLATE)
_SYNC: Final = int(ConnectionFlag.SYNC)
_ONE_PACKET: Final = int(ConnectionFlag.ONE_PACKET)
# The members of an Enum are attributes, and slower to look up than these.
_WHEN_ESTABLISHED: Final = TellWhen.ESTABLISHED
_WHEN_THRESHOLD: Final = TellWhen.THRESHOLD
_WHEN_PACKETS: Final = TellWhen.PACKETS
_WHEN_DELAY: Final = TellWhen.DELAY
_WHEN_TEMPLATES: Final = TellWhen.TEMPLATES
_WHEN_NEVER: Final = TellWhen.NEVER
_EXCLUDING: Final = frozenset({_WHEN_TEMPLATES, _WHEN_NEVER})


def copy_ends(told_at: float, timeout: float) -> float:
    """When a copy ends of which a peer has told at a time, if no packet of it comes here."""
    return told_at + timeout + timeout * REFRESH_PART


class Teller:
    """Decides what is told.

    Args:
        table: all connections.

    Attributes:
        untold: what `take_changes` would return, by the key of its record: the connection, or
            the tally from which it went; always the same object.
        in_transition: virtual addresses that have moved to or from this node a moment ago.
            Some have not heard of it yet, so each of their connections is told from its
            first packet on: its next one may go to the other node.
    """

    def __init__(self, table: ConnectionTable) -> None:
        self.untold: dict[bytes, Connection | Tally] = {}
        self.in_transition: set[bytes] = set()
        self._table = table
        self._delayed: dict[float, deque[tuple[float, bytes]]] = {}
        self._delayed_count = 0
        self.configure(Settings())

    def configure(self, settings: Settings) -> None:
        """Put settings into force."""
        self._settings = sync_settings(settings)
        self._threshold = self._settings.threshold
        # With so long a period the remainder is the count itself.
        self._period = self._settings.period or _NO_PERIOD
        self._refreshes = self._settings.refresh_period > 0

    # What happens to a connection that is synced

    def opened(self, connection: Connection, now: float) -> None:
        """It was opened here, or by what a peer has told."""
        rule = _rule_of(connection)
        when = rule.when
        if when is _WHEN_THRESHOLD:
            connection.report_at = _AT_EACH_PACKET
        elif connection.machine.established < 0 and not connection.flags & _SYNC:
            # A flow is established by its first datagram.
            if when is _WHEN_DELAY and not (self.in_transition and self._moves(connection)):
                self._delay(connection, rule.delay, now)
            elif when is not _WHEN_NEVER:
                connection.report_at = _AT_EACH_PACKET

    def copied(self, connection: Connection, now: float) -> None:
        """A peer has told of it; from the next packet on it is told from here."""
        when = _rule_of(connection).when
        if when is _WHEN_THRESHOLD:
            connection.report_at = _AT_EACH_PACKET
            connection.packets = self._threshold  # as the kernel counts on
        elif when not in _EXCLUDING or (when is _WHEN_TEMPLATES and connection.is_template):
            connection.report_at = now

    def entered(self, connection: Connection, now: float) -> None:
        """It has come into another state."""
        rule = connection.binding.server.service.policy.tell
        when = rule.when
        if self.in_transition and self._moves(connection) and when not in _EXCLUDING:
            self._tell_at_once(connection, now)
        elif when is _WHEN_THRESHOLD or not connection.machine.told[connection.state]:
            return
        elif when is _WHEN_ESTABLISHED or connection.told_state != UNTOLD:
            self._tell_again(connection, now)
        elif when is _WHEN_TEMPLATES:
            self._tell_parent(connection, now)
        elif not connection.is_established:
            connection.report_at = _NEVER  # it ends before it was worth telling
        elif when is _WHEN_DELAY:
            self._delay(connection, rule.delay, now)
        elif when is _WHEN_PACKETS:
            connection.report_at = _AT_EACH_PACKET

    def requested(self, connection: Connection, now: float) -> None:
        """A packet of its client has come, and it is not before `report_at`."""
        rule = connection.binding.server.service.policy.tell
        when = rule.when
        if when is _WHEN_THRESHOLD:
            if connection.parent is not None or self._may_be_needed(connection):
                self._offer(connection, connection.packets, now)
            if self.in_transition and self._moves(connection) and self._is_news(connection):
                self._tell_at_once(connection, now)
        elif when in _EXCLUDING:
            connection.report_at = _NEVER
            if when is _WHEN_TEMPLATES:
                self._tell_parent(connection, now)
        elif self._is_due(connection, rule):
            self._tell_again(connection, now)

    def lived_on(self, connection: Connection, now: float) -> None:
        """Its time-out is over and its end was moved: by packets, perhaps its server's alone.

        The end of a copy was moved from the beginning; if by nothing else, it is its source
        that tells of it.
        """
        if (
            now >= connection.report_at
            and connection.expires != copy_ends(connection.report_at, connection.timeout)
            and connection.told_state != UNTOLD
            and _rule_of(connection).when is not _WHEN_THRESHOLD
            and (connection.flags & _TEMPLATE or connection.machine.told[connection.state])
        ):
            self._tell_again(connection, now)

    def joined(self, template: Connection, connection: Connection, now: float) -> None:
        """Another connection belongs to a template, whose time begins anew."""
        when = _rule_of(template).when
        one_packet = bool(connection.flags & _ONE_PACKET)
        if when is _WHEN_THRESHOLD:
            if one_packet:  # never told itself, and its packet was counted for the template
                self._offer(template, template.packets, now)
        elif when is not _WHEN_NEVER and (one_packet or template.told_state != UNTOLD):
            self._tell_as_parent(template, now)

    def assured(self, template: Connection, now: float) -> None:
        """A connection of a template was answered for the first time."""
        when = _rule_of(template).when
        if when is _WHEN_THRESHOLD or when is _WHEN_NEVER:
            return
        # Under the others it is told not before one of its connections.
        at_once = when is _WHEN_ESTABLISHED or when is _WHEN_TEMPLATES
        if at_once or template.told_state != UNTOLD:
            self._tell_as_parent(template, now)

    def postponed(self, parent: Connection, now: float) -> None:
        """Its time was over, and it lives on because something belongs to it."""
        if _rule_of(parent).when is _WHEN_THRESHOLD:
            self._offer(parent, self._threshold, now)
        elif parent.told_state != UNTOLD:
            self._tell_again(parent, now)

    def spoke(self, connection: Connection, now: float) -> None:
        """What an FTP dialogue has brought about must be known, though no state has changed.

        The kernel's rule knows no such case.
        """
        when = _rule_of(connection).when
        if when is not _WHEN_THRESHOLD and when not in _EXCLUDING:
            self._tell_again(connection, now)

    def retract(self, connection: Connection) -> None:
        """Have backups forget a connection, if they know of it."""
        tally = connection.tally
        if tally is not None and connection.told_state != UNTOLD:
            self.retell(connection, UNTOLD)
            self.untold[connection.record_key] = tally

    def enrolled(self, connection: Connection) -> None:
        """It is synced from now on, or by another rule; its next packet will tell."""
        connection.report_at = _AT_EACH_PACKET

    def disown(self, connection: Connection) -> None:
        """Take it that nobody knows of a connection, and say so to nobody."""
        self.retell(connection, UNTOLD)
        self.untold.pop(connection.record_key, None)
        connection.report_at = _NEVER

    # Time

    def tell_due(self, now: float) -> bool:
        """Tell what has been established for long enough; returns whether more is waiting."""
        left = DUE_BATCH
        for delay, delayed in list(self._delayed.items()):
            while delayed and delayed[0][0] <= now:
                if not left:
                    return True
                left -= 1
                self._delayed_count -= 1
                due, key = delayed.popleft()
                connection = self._table.find(key)
                if connection is None or connection.report_at != due:
                    continue  # it has ended, was told before, or its time began anew
                if connection.is_established:
                    self._tell_again(connection, now)
            if not delayed:
                del self._delayed[delay]
        return False

    def tell_all(self, sync_ids: Collection[int]) -> Iterator[None]:
        """Tell what was not told yet of these sync ids, half-open connections too.

        A node that gives up its addresses calls this, so that its successor knows even
        connections in the middle of their handshake. It pauses after each slice of the
        table, so that the caller can carry the changes away and let frames pass.
        """
        for part in self._table.slices():
            for connection in part:
                tally = connection.tally
                if (
                    tally is not None
                    and tally.sync_id in sync_ids
                    and connection.told_state != connection.state
                    and _may_be_told(connection)
                ):
                    self._tell_parents_unheard_of(connection)
                    self.tell(connection)
            yield

    # What waits to be told

    def tell(self, connection: Connection) -> None:
        """Put a connection on the list of what backups are told next, if it is synced."""
        if connection.tally is not None:
            self.retell(connection, connection.state)
            plain = connection.dialogue is None  # spares a call
            self.untold[connection.key if plain else connection.record_key] = connection

    def retell(self, connection: Connection, state: int) -> None:
        """Note which state backups know of a connection from now on; `UNTOLD` for none."""
        tally, told = connection.tally, connection.told_state
        if tally is None or told == state:
            return
        binding = connection.binding
        server = binding.server
        tally.retell(connection.record_key, server.address, binding.port, told, state)
        if (told == UNTOLD or state == UNTOLD) and connection.is_established:
            change = 1 if state == UNTOLD else -1
            tally.exposed += change
            server.at_risk += change
        connection.told_state = state

    def take_changes(self) -> dict[int, list[ConnectionChange]]:
        """What has changed since the last call, by sync id: the newest word about each."""
        changes: dict[int, list[ConnectionChange]] = {}
        for key, change in self.untold.items():
            if isinstance(change, Connection):
                tally = change.tally
                assert tally is not None, "what ends is on the list no more"
                if change.told_state != change.state:  # it has changed since
                    self.retell(change, change.state)
                told: ConnectionChange = ConnectionChanged(change.record())
            else:
                tally, told = change, ConnectionEnded(key)
            changes.setdefault(tally.sync_id, []).append(told)
        self.untold.clear()
        return changes

    # Within

    def _moves(self, connection: Connection) -> bool:
        return connection.virtual[0] in self.in_transition

    def _is_news(self, connection: Connection) -> bool:
        return connection.told_state != connection.state

    def _is_due(self, connection: Connection, rule: TellRule) -> bool:
        """Whether a connection that is looked at is told, by any rule but the kernel's."""
        if self.in_transition and self._moves(connection):
            return True
        if not connection.machine.told[connection.state]:
            return False
        if rule.when is _WHEN_ESTABLISHED or connection.told_state != UNTOLD:
            return True
        if rule.when is _WHEN_PACKETS and connection.packets < rule.packets:
            return False
        return connection.is_established

    def _delay(self, connection: Connection, delay: float, now: float) -> None:
        """Have a connection told some time from now, if it lives and is established then."""
        if self._delayed_count >= DELAYED_MAX:
            self._tell_again(connection, now)
            return
        connection.report_at = due = now + delay
        self._delayed.setdefault(delay, deque()).append((due, connection.key))
        self._delayed_count += 1

    def _tell_at_once(self, connection: Connection, now: float) -> None:
        """Tell a connection whatever its rule says, and before it what it belongs to."""
        if _rule_of(connection).when is _WHEN_THRESHOLD:
            self._tell_parents_unheard_of(connection)
            self.tell(connection)
        else:
            self._tell_again(connection, now)

    def _tell_again(self, connection: Connection, now: float) -> None:
        """Tell a connection, before it what it belongs to, and again after a while."""
        parent = connection.parent
        if parent is not None:
            self._tell_as_parent(parent, now)
        connection.report_at = now + connection.timeout * REFRESH_PART
        self.tell(connection)

    def _tell_parent(self, connection: Connection, now: float) -> None:
        if connection.parent is not None:
            self._tell_as_parent(connection.parent, now)

    def _tell_as_parent(self, parent: Connection, now: float) -> None:
        """Tell what others belong to, if backups know it not or not well enough."""
        if parent.told_state != parent.state or now >= parent.report_at:
            self._tell_again(parent, now)

    def _tell_parents_unheard_of(self, connection: Connection) -> None:
        parent = connection.parent
        if parent is not None and parent.told_state == UNTOLD:
            self._tell_parents_unheard_of(parent)
            self.tell(parent)

    def _may_be_needed(self, connection: Connection) -> bool:
        """Whether the kernel's rule may say yes: what can be seen of it without much ado."""
        if connection.packets % self._period == self._threshold or self._refreshes:
            return True
        state, machine = connection.state, connection.machine
        # Beside the count, only a new closing state of a protocol that has such can matter.
        return state != connection.told_state and (
            machine.told[state] and 0 <= machine.established != state
        )

    def _offer(self, connection: Connection, packets: int, now: float) -> None:
        """Tell a connection and what it belongs to, each if the kernel's rule says so.

        Args:
            connection: which.
            packets: requests that were seen of it, or the threshold.
            now: the clock.
        """
        facts = SyncFacts(
            connection.key[1],
            connection.state,
            connection.told_state,
            int(connection.timeout * HZ),
            connection.sync_end,
            bool(connection.flags & _TEMPLATE),
            _is_in_persistence(connection),
            packets,
        )
        decision = needed(facts, self._settings, tick(now))
        parent = connection.parent
        if parent is not None:
            count = self._threshold
            if parent.flags & _TEMPLATE:
                parent.packets = count = parent.packets + 1
            self._offer(parent, count, now)
        connection.sync_end = decision.sync_end
        if decision.send:
            self.tell(connection)


def _rule_of(connection: Connection) -> TellRule:
    return connection.binding.server.service.policy.tell


def _may_be_told(connection: Connection) -> bool:
    """Whether the rule of its service leaves any chance to a connection or template."""
    when = _rule_of(connection).when
    return when is not _WHEN_NEVER if connection.is_template else when not in _EXCLUDING


def _is_in_persistence(connection: Connection) -> bool:
    parent = connection.parent
    while parent is not None:
        if parent.flags & _TEMPLATE:
            return True
        parent = parent.parent
    return False
