"""The life of connections: opened, counted, stepped, ended, and reported to backups.

The registry is the one place that changes a connection. It keeps the counts of the real
servers and of the sync ids true, ends what is over, and says everything that happens to a
connection to its `Teller`, which decides what the backups are told.

What always holds:

* The time of a parent (the template of a client, an FTP control connection) is not over
  before that of its children. Only what replaces it, or the peer that it was copied from,
  ends it sooner; its children then live on by themselves.
* The tally of a sync id has exactly the connections and templates in the table that belong
  to it, but for templates that are found no more. That of all else has them when `align` has
  ended.

Times are seconds on the caller's clock.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from lvsha.datapath import state_machines
from lvsha.datapath.connections import (
    TEMPLATE_ASSURED,
    Connection,
    ConnectionTable,
    reply_key,
)
from lvsha.datapath.ftp import FTP_PORT
from lvsha.datapath.memories import FtpDialogue, TemplateIdentity
from lvsha.datapath.services import Binding
from lvsha.datapath.state_machines import StateMachine
from lvsha.datapath.tcp_states import TcpState
from lvsha.datapath.telling import Teller, copy_ends
from lvsha.model import ConnectionFlag, ForwardMethod, Protocol, template_key
from lvsha.tally import NO_SYNC_ID, UNTOLD, Tally

EXPIRE_BATCH: Final = 250
"""Connections looked at in one call of `expire`; a millisecond of work."""
PARENT_TIMEOUT: Final = 60.0
"""How much longer what has children lives, each time that its own time is over."""

_INACTIVE: Final = int(ConnectionFlag.INACTIVE)
_NO_OUTPUT: Final = int(ConnectionFlag.NO_OUTPUT)
_SEQUENCE: Final = int(ConnectionFlag.IN_SEQUENCE | ConnectionFlag.OUT_SEQUENCE)
_TEMPLATE: Final = int(ConnectionFlag.TEMPLATE)
_ONE_PACKET: Final = int(ConnectionFlag.ONE_PACKET)
_INITIAL_TIMEOUT: Final = 3.0
"""The kernel gives a connection 3 s until its first state."""
_TCP: Final = int(Protocol.TCP)
_UDP: Final = int(Protocol.UDP)
_SCTP: Final = int(Protocol.SCTP)
_FTP_PORT_BYTES: Final = FTP_PORT.to_bytes(2)


class Registry:
    """Every connection of a director.

    Args:
        limit: of the connection table.

    Attributes:
        table: the connections.
        machines: the state machine of each protocol.
        tallies: of each virtual address that is synced, the tally of its sync id.
        mark_tallies: of each firewall mark whose templates are synced, the same; of its
            connections those to no such address count there, too.
        other_tally: where all else counts while that is told, too; None while it is not.
        teller: decides what the backups are told.
        untold, in_transition: see `Teller`.
        take_changes, tell_all: see `Teller`.
        generation: of the newest snapshot that has begun to arrive; what is opened from then
            on belongs to it.
    """

    def __init__(self, limit: int) -> None:
        self.table = ConnectionTable(limit)
        self.machines: dict[int, StateMachine] = {
            _TCP: state_machines.tcp(),
            _UDP: state_machines.udp(),
            _SCTP: state_machines.sctp(),
        }
        self.tallies: dict[bytes, Tally] = {}
        self.mark_tallies: dict[int, Tally] = {}
        self.other_tally: Tally | None = None
        self._others = Tally(NO_SYNC_ID)
        self.teller = teller = Teller(self.table)
        self.untold, self.in_transition = teller.untold, teller.in_transition
        self.take_changes, self.tell_all = teller.take_changes, teller.tell_all
        self.generation = 0

    # Opening

    def open(
        self,
        key: bytes,
        binding: Binding,
        now: float,
        *,
        parent: Connection | None = None,
        flags: int = 0,
    ) -> Connection:
        """A new connection in the table.

        Args:
            key: of its request direction.
            binding: its real server.
            now: the clock.
            parent: what it belongs to.
            flags: beside those that the server gives it.
        """
        connection = self.make(key, binding, flags)
        connection.expires = now + _INITIAL_TIMEOUT
        self._fit(connection)
        if parent is not None:
            connection.parent = parent
            parent.children += 1
            parent.generation = self.generation  # no snapshot can name it with this child
        self.table.add(connection)
        mark = binding.server.service.identity.mark if self.mark_tallies else 0
        tally = self._tally_of(key, mark)
        if tally is not None:
            self._enrol(connection, tally)
            self.teller.opened(connection, now)
        return connection

    def open_copy(
        self,
        key: bytes,
        binding: Binding,
        now: float,
        *,
        state: int,
        flags: int,
        timeout: float,
        mark: int,
    ) -> Connection:
        """A connection of which another director has told, in the table.

        Args:
            key: of its request direction.
            binding: its real server.
            now: the clock.
            state: that was told.
            flags: all of them; they say whether it is active, too.
            timeout: that was told; it lives a while longer here.
            mark: the firewall mark of its first packet.
        """
        connection = Connection(key, binding, self.machines[key[1]], flags, timeout)
        connection.state = state
        connection.expires = now + timeout
        connection.generation = self.generation
        self._fit(connection)
        self._bind(connection)
        self.table.add(connection)
        self.let_copy_live(connection, now)
        tally = self._tally_of(key, mark)
        if tally is not None:
            self._enrol(connection, tally)
            self.copied(connection, now)
        return connection

    def let_copy_live(self, connection: Connection, now: float) -> None:
        """Let a copy live a while longer than its original.

        It is looked at when its time-out is over all the same, since its own next packet may
        have it end then.
        """
        timeout = connection.timeout
        connection.expires = expires = now + timeout
        if expires < connection.second - 1:  # spares a call
            self.table.hasten(connection)
        connection.expires = copy_ends(now, timeout)

    def open_alike(self, first: Connection, keys: Sequence[bytes]) -> list[bytes]:
        """Connections of which another director has told just as of one that is in the table.

        They differ from it only in their client, and nothing belongs to them or they to
        anything. What stands in the table already is left as it is.

        Args:
            first: that one.
            keys: of the others; there is room for all.

        Returns:
            Of these keys those that are new, each once.
        """
        entered = self.table.add_alike(first, keys)
        number, server, tally = len(entered), first.server, first.tally
        if first.active:
            server.active += number
        else:
            server.inactive += number
        if number:
            server.note_bound()
        if tally is not None:
            tally.connections += number
            if first.is_established:
                tally.established += number
            tally.tell(entered, server.address, first.binding.port, first.told_state)
        return entered

    def change_alike(
        self, first: Connection, connections: Sequence[Connection], sequence: int, now: float
    ) -> None:
        """Another director has told just the same of connections as of one that is changed.

        They have its binding, and nothing belongs to them or they to anything.

        Args:
            first: that one.
            connections: the others.
            sequence: the flags that were told of sequence numbers.
            now: the clock.
        """
        state, timeout, generation = first.state, first.timeout, self.generation
        active, at_once = first.active, now + timeout
        for connection in connections:
            if connection.active != active:
                self.count_as(connection, active=active)
            connection.flags = connection.flags & ~_SEQUENCE | sequence
            connection.timeout = timeout
            connection.generation = generation
            if at_once < connection.second - 1:
                self.let_copy_live(connection, now)
            connection.expires = first.expires
            if connection.state != state:
                self._change_state(connection, state)
            self.copied(connection, now)

    def _fit(self, connection: Connection) -> None:
        """Make ready what depends on the method: replies, and what FTP needs."""
        key, binding = connection.key, connection.binding
        if binding.method is not ForwardMethod.NAT:
            connection.reply_key = b""
            if isinstance(connection.dialogue, FtpDialogue):
                connection.dialogue = None
            return
        connection.reply_key = reply_key(key, binding.server.address, binding.port)
        is_dialogue = key[1] == _TCP and key[-2:] == _FTP_PORT_BYTES
        if is_dialogue and not isinstance(connection.dialogue, FtpDialogue):
            connection.dialogue = FtpDialogue()

    def _bind(self, connection: Connection) -> None:
        """Count a connection or template at its server."""
        server = connection.server
        if connection.flags & _TEMPLATE:
            server.persistent += 1
        elif connection.flags & _INACTIVE:
            server.inactive += 1
        else:
            server.active += 1
        server.note_bound()

    def link(self, connection: Connection, parent: Connection) -> None:
        """Let a connection belong to another one, or to a template, and to nothing else."""
        self.unlink(connection)
        connection.parent = parent
        parent.children += 1

    def unlink(self, connection: Connection) -> None:
        """Let a connection live by itself."""
        if connection.parent is not None:
            connection.parent.children -= 1
            connection.parent = None

    def rebind(self, connection: Connection, binding: Binding) -> None:
        """Bind a connection or template to its own server instead of to what stood for it.

        The address and port are the same. What else depends on the server is that server's,
        as in the kernel, but whether the connection is active.
        """
        is_at_risk = connection.tally is not None and connection.told_state == UNTOLD
        is_at_risk = is_at_risk and connection.is_established
        connection.server.at_risk -= is_at_risk
        binding.server.at_risk += is_at_risk
        self.unbind(connection)
        is_template = bool(connection.flags & _TEMPLATE)
        given = binding.server.connection_flags
        if not is_template:
            given &= ~_INACTIVE
        connection.flags = connection.flags & ~_NO_OUTPUT | given
        connection.binding = binding
        self._bind(connection)
        if not is_template:
            if connection.reply_key:
                self.table.leave_replies(connection)
            self._fit(connection)
            if connection.reply_key:
                self.table.enter_replies(connection)

    def make(self, key: bytes, binding: Binding, flags: int = 0) -> Connection:
        """A connection that is bound to its server, but in no table."""
        server = binding.server
        connection = Connection(
            key,
            binding,
            self.machines[key[1]],
            server.connection_flags | flags,
            _INITIAL_TIMEOUT,
        )
        connection.generation = self.generation
        server.inactive += 1
        server.note_bound()
        return connection

    def open_template(
        self,
        key: bytes,
        found: bytes,
        binding: Binding,
        timeout: float,
        now: float,
        *,
        mark: int = 0,
        flags: int = 0,
    ) -> Connection:
        """A new persistence template.

        Args:
            key: as a connection's, with client port 0.
            found: what a persistence engine found beside; else empty.
            mark: the firewall mark of its service.
            binding: the server that the client keeps.
            timeout: of the service's persistence.
            now: the clock.
            flags: beside those that the server gives it.
        """
        machine = self.machines.get(key[1], self.machines[_UDP])
        flags |= binding.server.connection_flags | _TEMPLATE
        template = Connection(template_key(key), binding, machine, flags, timeout)
        if found:
            template.dialogue = TemplateIdentity(template_key(key, found), found)
        template.expires = now + timeout
        template.generation = self.generation
        self._bind(template)
        self.table.add_template(template)
        tally = self.mark_tallies.get(mark) if mark else self.tallies.get(template.virtual[0])
        if tally is None:
            tally = self.other_tally
        if tally is not None:
            self._enrol(template, tally)
        return template

    def join(self, template: Connection, connection: Connection, now: float) -> None:
        """Let the time of a template begin anew, because another connection belongs to it."""
        template.expires = now + template.timeout
        if connection.flags & _ONE_PACKET:
            template.packets += 1
        if template.tally is not None:
            self.teller.joined(template, connection, now)

    def learn_client_port(self, connection: Connection, port: bytes) -> None:
        """Enter a connection under the port that its client turned out to use."""
        self.teller.retract(connection)
        self.table.learn_client_port(connection, port)

    def poison(self, template: Connection) -> None:
        """Let a template be found no more; it ends when its time is over.

        Backups forget it now, for its key may soon be another's; so it counts no more.
        """
        self._withdraw(template)
        self.table.poison(template)

    # States

    def enter(self, connection: Connection, state: int, now: float) -> None:
        """Change a state, with the time-out and counts that go with it."""
        machine = connection.machine
        if connection.tally is not None:
            if state == machine.established:
                self._count_established(connection, 1)
            elif connection.state == machine.established:
                self._count_established(connection, -1)
        connection.state = state
        connection.timeout = timeout = machine.timeouts[state]
        connection.expires = now + timeout
        self.table.hasten(connection)
        if machine.active[state] != connection.active:
            self.count_as(connection, active=machine.active[state])
        if state == machine.established and connection.parent is not None:
            self.assure(connection.parent, now)
        if connection.tally is not None:
            self.teller.entered(connection, now)

    def assure(self, parent: Connection, now: float) -> None:
        """Note on a client's template that a connection of it was answered."""
        if parent.flags & _TEMPLATE and parent.state != TEMPLATE_ASSURED:
            parent.state = TEMPLATE_ASSURED
            if parent.tally is not None:
                self.teller.assured(parent, now)

    def listen(self, connection: Connection, now: float) -> None:
        """Let an FTP data connection wait for its first packet."""
        self._change_state(connection, int(TcpState.LISTEN))
        connection.timeout = connection.machine.timeouts[connection.state]
        connection.expires = now + connection.timeout

    def change_timeout(self, connection: Connection, timeout: float) -> None:
        """Take over a time-out that was set since; a shorter one moves the end nearer."""
        connection.timeout = timeout
        self.table.hasten(connection)

    def count_as(self, connection: Connection, *, active: bool) -> None:
        """Count a connection as active, or as inactive."""
        server = connection.server
        if active:
            connection.flags &= ~_INACTIVE
            server.active += 1
            server.inactive -= 1
        else:
            connection.flags |= _INACTIVE
            server.active -= 1
            server.inactive += 1

    # Ends

    def end(self, connection: Connection) -> None:
        """Remove a connection or template from the table and from its server's counts."""
        self.take_out(connection)
        self.let_go(connection)

    def take_out(self, connection: Connection) -> None:
        """The first half of an end: it is found no more; its server counts it still."""
        self._withdraw(connection)
        self.table.remove(connection)

    def let_go(self, connection: Connection) -> None:
        """The second half: its server and its parent count it no more."""
        self.unbind(connection)
        parent = connection.parent
        if parent is None:
            return
        parent.children -= 1
        # The end was forced: what only stood for this connection goes with it.
        forced = connection.timeout == 0 and not parent.children and parent.second >= 0
        if forced and not (parent.flags & _TEMPLATE and parent.state == TEMPLATE_ASSURED):
            self.delete(parent)

    def unbind(self, connection: Connection) -> None:
        """Take a connection out of its server's counts."""
        server = connection.server
        if connection.flags & _TEMPLATE:
            server.persistent -= 1
        elif connection.flags & _INACTIVE:
            server.inactive -= 1
        else:
            server.active -= 1
        server.note_unbound()

    def delete(self, connection: Connection) -> None:
        """End a connection before its time, and what only stood for it."""
        if connection.parent is not None:
            connection.timeout = 0
        self.end(connection)

    def expire(self, now: float) -> None:
        """End connections whose time is over; at most `EXPIRE_BATCH` are looked at in one call."""
        for connection in self.table.due(now, EXPIRE_BATCH):
            if connection.expires > now:
                if connection.tally is not None:
                    self.teller.lived_on(connection, now)
            elif connection.children:
                connection.timeout = PARENT_TIMEOUT
                self.table.postpone(connection, now + PARENT_TIMEOUT)
                if connection.tally is not None:
                    self.teller.postponed(connection, now)
            else:
                self.end(connection)

    # What is told beside that of the virtual routers

    def tell_others(self, *, told: bool) -> None:
        """Have what is opened from now on told even if it has no sync id, or no longer.

        What is in the table follows when the caller has gone through `align`.
        """
        self.other_tally = self._others if told else None

    def align(self) -> Iterator[None]:
        """Let all connections follow `tell_others`, and the rules of `tell_unasked`.

        It pauses after each slice of the table.
        """
        for part in self.table.slices():
            for connection in part:
                if connection.second >= 0:
                    self._align(connection)
            yield

    def _align(self, connection: Connection) -> None:
        tally, others = connection.tally, self.other_tally
        if tally is None:
            if others is not None and not connection.is_poisoned:
                self._enrol(connection, others)
                self.teller.enrolled(connection)
        elif tally is self._others:
            if others is None:
                self.teller.disown(connection)
                self._uncount(connection, tally)
        elif not connection.server.service.policy.asked:
            if others is None:
                self.teller.disown(connection)
            else:
                self.teller.enrolled(connection)

    # What is counted of a sync id

    def _enrol(self, connection: Connection, tally: Tally) -> None:
        """Count a connection in the tally of its sync id."""
        connection.tally = tally
        tally.connections += 1
        if connection.is_established:
            self._count_established(connection, 1)

    def _tally_of(self, key: bytes, mark: int) -> Tally | None:
        """Where a connection counts: by its virtual address, else by its mark, else with others."""
        size = (len(key) - 6) // 2
        tally = self.tallies.get(key[2 + size : 2 + 2 * size])
        if tally is None and mark:
            tally = self.mark_tallies.get(mark)
        return self.other_tally if tally is None else tally

    def _withdraw(self, connection: Connection) -> None:
        """Count a connection no more, and have backups forget it."""
        tally = connection.tally
        if tally is None:
            return
        self.teller.retract(connection)
        self._uncount(connection, tally)

    def _uncount(self, connection: Connection, tally: Tally) -> None:
        tally.connections -= 1
        if connection.is_established:
            self._count_established(connection, -1)
        connection.tally = None

    def _count_established(self, connection: Connection, change: int) -> None:
        tally = connection.tally
        assert tally is not None, "only what is synced is counted"
        tally.established += change
        if connection.told_state == UNTOLD:
            tally.exposed += change
            connection.server.at_risk += change

    def copied(self, connection: Connection, now: float) -> None:
        """A peer has told of a connection as it is now; from here on it is told from here."""
        if connection.tally is not None:
            if connection.told_state != connection.state:
                self.teller.retell(connection, connection.state)
            self.teller.copied(connection, now)

    def become(self, connection: Connection, state: int, now: float) -> None:
        """Take over the state that another director tells of a connection."""
        if connection.state != state:
            self._change_state(connection, state)
        self.copied(connection, now)

    def _change_state(self, connection: Connection, state: int) -> None:
        """Change a state and nothing else but whether the connection counts as established."""
        established = connection.machine.established
        was = connection.state == established
        connection.state = state
        if (
            was != (state == established)
            and connection.tally is not None
            and not connection.flags & _TEMPLATE
        ):
            self._count_established(connection, -1 if was else 1)
