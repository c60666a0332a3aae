"""What other directors say of connections, and what they ask of this one's.

Records of a peer enter the registry here; a snapshot is read, marked and swept. Nothing here
knows of datagrams; `lvsha.connection_store` carries values between this and the sync.

What a record does is what a message does at the kernel's backup (``ip_vs_proc_conn``), with
these additions, each of which keeps a connection that is lost there:

* A template whose server has changed replaces the older one.
* A connection belongs to the template, or to the FTP control connection, that it belongs to
  at its source, so that this does not end here while it lives there (`Families`).
* FTP data connections and templates are bound to their server (`Destinations`), and what is
  unbound is bound as soon as its server is added.

What always holds: a record is carried out or refused as a whole, and what is refused is
counted by its `Refusal`. A million records come within seconds when a node joins, nearly all
in runs that differ in nothing but the client; of such a run only the first is looked at.

Times are seconds on the caller's clock.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import Enum
from itertools import takewhile
from typing import Final

from lvsha.datapath.connections import Connection
from lvsha.datapath.destinations import Destinations
from lvsha.datapath.families import Families
from lvsha.datapath.ftp import FtpMode
from lvsha.datapath.memories import SIP, FtpDialogue, TemplateIdentity, Unread
from lvsha.datapath.registry import Registry
from lvsha.datapath.services import Binding, RealServer
from lvsha.datapath.stand_ins import StandIn, StandIns
from lvsha.datapath.template_keys import bare_template_key
from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    IPv4_BYTES,
    IPv6_BYTES,
    template_key,
    virtual_of,
)
from lvsha.runs import Run, runs_of
from lvsha.tally import NO_SYNC_ID, UNTOLD, Tally

RUN_MAX: Final = 1000
"""Connections that are entered in one go; two or three milliseconds."""
LOOK_MAX: Final = 2000
"""Connections that are looked at in one go, and those of one more bucket; two milliseconds."""
READ_MAX: Final = 64
"""Connections that are read in one go; some of them wait for a datagram's end."""
SWEEP_MAX: Final = 250
"""Connections that are ended in one go; a millisecond."""
TIMEOUT_MAX: Final = 2.0**32
"""More seconds have no room in the kernel's messages."""
TEMPLATE_TIMEOUT: Final = 180.0
"""Of a template that is told without one; the kernel's."""

_INACTIVE: Final = int(ConnectionFlag.INACTIVE)
_NO_CLIENT_PORT: Final = int(ConnectionFlag.NO_CLIENT_PORT)
_NO_OUTPUT: Final = int(ConnectionFlag.NO_OUTPUT)
_ONE_PACKET: Final = int(ConnectionFlag.ONE_PACKET)
_SYNC: Final = int(ConnectionFlag.SYNC)
_TEMPLATE: Final = int(ConnectionFlag.TEMPLATE)
_SEQUENCE: Final = int(ConnectionFlag.IN_SEQUENCE | ConnectionFlag.OUT_SEQUENCE)
_TAKEN_OVER: Final = 0x1F80
"""What a backup takes of a message's flags (IP_VS_CONN_F_BACKUP_MASK), but for the method,
which is no flag here."""
_SIZES: Final = {4: IPv4_BYTES, 6: IPv6_BYTES}
_MODES: Final = frozenset(mode.value for mode in FtpMode)
_PORTS: Final = 2**16
_NUMBERS: Final = 2**32


class Refusal(Enum):
    """Why a record is not carried out."""

    MALFORMED = "malformed"
    """A key, address, protocol, state, time-out or detail that cannot be."""
    FLAGS = "flags"
    """Of a single packet, which is no connection, or flags that contradict each other."""
    ENGINE = "engine"
    """A template of a persistence engine that is not known here."""
    LATE = "late"
    """The end of what was replaced since, or an older template, where this node opens."""
    TABLE_FULL = "table_full"
    """The connection table is at its limit."""
    STAND_INS_FULL = "stand_ins_full"
    """Too many real servers are not known here."""


class Replication:
    """A registry as other directors see it.

    Args:
        registry: the connections.
        destinations: the real servers.
        opens: whether this node opens connections for a virtual address.
    """

    def __init__(
        self, registry: Registry, destinations: Destinations, opens: Callable[[bytes], bool]
    ) -> None:
        self._registry = registry
        self._table = registry.table
        self._destinations = destinations
        self._opens = opens
        self._stand_ins = StandIns()
        self._families = Families(registry)

    # What others tell

    def apply(self, records: Sequence[ConnectionRecord], now: float) -> Counter[Refusal]:
        """Take over what another director told; returns how much of it is refused, and why.

        A record for a connection that has moved to another server replaces it. Only where
        this node opens connections itself, an inactive one does not: there it is the late
        end of one that was replaced (as in the kernel). A copy follows its source.
        """
        refused: Counter[Refusal] = Counter()
        for record, keys in runs_of(records):
            at = 0
            while at < len(keys):
                if record.key != keys[at]:
                    record = record._replace(key=keys[at])
                first = self._apply(record, now)
                at += 1
                if isinstance(first, Refusal):
                    refused[first] += 1
                    continue
                alike = self._alike(keys, at)
                at += len(alike)
                if alike and first is not None:
                    self._enter_alike(first, record, alike, now, refused)
                elif alike:
                    self._change_alike(record, alike, now, refused)
        return refused

    def _alike(self, keys: Sequence[bytes], start: int) -> Sequence[bytes]:
        """What of a run is handled together with the key before a place: what has its mark."""
        rest, destinations = keys[start : start + RUN_MAX], self._destinations
        if rest and destinations.has_marks:
            mark = destinations.mark_of(keys[start - 1])
            return list(takewhile(lambda key: destinations.mark_of(key) == mark, rest))
        return rest

    def _enter_alike(
        self,
        first: Connection,
        record: ConnectionRecord,
        keys: Sequence[bytes],
        now: float,
        refused: Counter[Refusal],
    ) -> None:
        """Enter a run of connections like the first; those that were there are changed."""
        new: set[bytes] = set()
        if len(keys) <= self._table.room:
            entered = self._registry.open_alike(first, keys)
            if len(entered) == len(keys):
                return
            new.update(entered)
        for key in keys:
            if key in new:
                new.discard(key)  # a second one is a change
                continue
            outcome = self._apply(record._replace(key=key), now)
            if isinstance(outcome, Refusal):
                refused[outcome] += 1

    def _change_alike(
        self,
        record: ConnectionRecord,
        keys: Sequence[bytes],
        now: float,
        refused: Counter[Refusal],
    ) -> None:
        """Change a run of connections as the first was; those that were not there are entered."""
        find, first = self._table.find, self._find(record.key)
        others = keys
        if first is not None and self._is_simple(first, record):
            binding, known, others = first.binding, [], []
            for key in keys:
                connection = find(key)
                if (
                    connection is None
                    or connection.binding is not binding
                    or connection.dialogue is not None
                    or connection.parent is not None
                ):
                    others.append(key)
                else:
                    known.append(connection)
            self._registry.change_alike(first, known, record.flags & _SEQUENCE, now)
        for at, key in enumerate(others, 1):
            outcome = self._apply(record._replace(key=key), now)
            if isinstance(outcome, Refusal):
                refused[outcome] += 1
            elif outcome is not None:
                self._enter_alike(outcome, record, others[at:], now, refused)
                return

    def _is_simple(self, connection: Connection, record: ConnectionRecord) -> bool:
        """Whether what was told of a connection changes nothing but what any connection has."""
        server = connection.server
        return (
            connection.dialogue is None
            and connection.parent is None
            and record.details is None
            and not connection.flags & _TEMPLATE
            and not isinstance(server, StandIn)
            and not server.service.options.persistence
        )

    def _apply(self, record: ConnectionRecord, now: float) -> Connection | Refusal | None:
        """Carry one record out.

        Returns:
            A new connection to which nothing belongs and that remembers nothing; why the
            record is refused; None for all else.
        """
        key, address, port, method, state, flags, timeout, details = record
        if key[0] >= TEMPLATE_BIT:
            return self._apply_template(record, now)
        registry = self._registry
        size = _SIZES.get(key[0], 0)
        machine = registry.machines.get(key[1]) if len(key) == 6 + 2 * size else None
        if machine is None or not 0 <= state < len(machine.timeouts) or not _is_sound(record, size):
            return Refusal.MALFORMED
        if flags & (_ONE_PACKET | _TEMPLATE):
            return Refusal.FLAGS
        timeout = timeout or machine.timeouts[state]
        connection = self._table.find(key)
        if connection is not None:
            binding = connection.binding
            if binding.server.address == address and binding.port == port:
                self._change(connection, record, timeout, now)
                return None
            if flags & _INACTIVE and self._opens_like(connection):
                return Refusal.LATE
            self._end(connection)
        if self._table.full:
            return Refusal.TABLE_FULL
        mark = self._destinations.mark_of(key)
        server = self._server(key, mark, address, port, method)
        if server is None:
            return Refusal.STAND_INS_FULL
        flags = flags & _TAKEN_OVER | _SYNC
        if any(key[-4:-2]):  # a client may well use port 0; the flag says that it is not known
            flags &= ~_NO_CLIENT_PORT
        if not isinstance(server, StandIn):
            flags = flags & ~_NO_OUTPUT | server.connection_flags & ~_INACTIVE
        connection = registry.open_copy(
            key,
            server.bind(*virtual_of(key), port),
            now,
            state=state,
            flags=flags,
            timeout=timeout,
            mark=mark,
        )
        self._take_details(connection, flags, details)
        self._join(connection, details)
        if isinstance(connection.dialogue, FtpDialogue):
            self._families.arrived(connection)
        is_plain = connection.dialogue is None and details is None
        if is_plain and not flags & _NO_CLIENT_PORT and not server.service.options.persistence:
            return connection
        return None

    def _apply_template(self, record: ConnectionRecord, now: float) -> Refusal | None:
        key, address, port, method, state, flags, timeout, details = record
        registry = self._registry
        size = _SIZES.get(key[0] & ~TEMPLATE_BIT, 0)
        length = 6 + 2 * size
        if (
            not size
            or len(key) < length
            or state not in {0, 1}
            or not _is_sound(record, size)
            or (key[1] and key[1] not in registry.machines)
        ):
            return Refusal.MALFORMED
        if flags & (_ONE_PACKET | _NO_CLIENT_PORT) or not flags & _TEMPLATE:
            return Refusal.FLAGS
        engine = "" if details is None else details.engine
        found = key[length:]
        if engine not in {"", SIP} or (found and not engine):
            return Refusal.ENGINE
        template = self._table.template(key)
        if template is not None and (
            template.server.address != address or template.binding.port != port
        ):
            if flags & _INACTIVE and self._opens_like(template):
                return Refusal.LATE
            registry.poison(template)
            registry.untold.pop(key, None)
            template = None
        timeout = timeout or TEMPLATE_TIMEOUT
        if template is not None:
            self._change(template, record, timeout, now)
            return None
        if self._table.full:
            return Refusal.TABLE_FULL
        named = key[:length]
        mark = self._destinations.mark_of(named)
        server = self._server(named, mark, address, port, method)
        if server is None:
            return Refusal.STAND_INS_FULL
        bare = bytes((key[0] & ~TEMPLATE_BIT,)) + key[1:length]
        binding = server.bind(*virtual_of(bare), port)
        flags = flags & _TAKEN_OVER | _SYNC
        if not isinstance(server, StandIn):
            flags &= ~_NO_OUTPUT
        template = registry.open_template(
            bare, found, binding, timeout, now, mark=mark, flags=flags
        )
        self._take_details(template, flags, details)
        self._go_on(template, state, timeout, now)
        self._families.arrived(template)
        return None

    def _change(
        self, connection: Connection, record: ConnectionRecord, timeout: float, now: float
    ) -> None:
        """Take over what is told of a connection or template that is there."""
        flags, own, details = record.flags, connection.flags, record.details
        is_template = own & _TEMPLATE
        if (flags ^ own) & _INACTIVE and not is_template:
            self._registry.count_as(connection, active=not flags & _INACTIVE)
            own = connection.flags
        connection.flags = own & ~_SEQUENCE | flags & _SEQUENCE
        if connection.dialogue is not None or details is not None:
            self._take_details(connection, flags, details)
        self._go_on(connection, record.state, timeout, now)
        server = connection.binding.server
        if isinstance(server, StandIn):
            self._bind(connection)
            server = connection.binding.server
        if not is_template and (details is not None or server.service.options.persistence):
            self._join(connection, details)

    def _go_on(self, connection: Connection, state: int, timeout: float, now: float) -> None:
        """Let a connection or template be as it was told, and live on."""
        registry = self._registry
        connection.timeout = timeout
        connection.generation = registry.generation
        registry.let_copy_live(connection, now)
        registry.become(connection, state, now)

    def _take_details(
        self, connection: Connection, flags: int, details: ConnectionDetails | None
    ) -> None:
        dialogue = connection.dialogue
        if isinstance(dialogue, FtpDialogue):
            dialogue.take_over(flags, details)
        others = () if details is None else details.others
        if isinstance(dialogue, FtpDialogue | TemplateIdentity):
            dialogue.others = others
        else:
            connection.dialogue = Unread(others) if others else None

    def _join(self, connection: Connection, details: ConnectionDetails | None) -> None:
        """Let a connection belong to what it belongs to at its source."""
        options, parent = connection.server.service.options, connection.parent
        if details is not None and details.parent:
            if parent is None or parent.record_key != details.parent:
                self._families.join(connection, details.parent)
        elif parent is None and options.persistence and not options.engine:
            bare = bare_template_key(connection.server.service, connection.key)
            self._families.join(connection, template_key(bare))

    def _opens_like(self, connection: Connection) -> bool:
        """Whether this node opens connections like this one, or with templates like it."""
        registry = self._registry
        virtual = connection.virtual[0]
        of_mark = connection.tally
        if of_mark is None or of_mark.sync_id == NO_SYNC_ID or virtual in registry.tallies:
            return self._opens(virtual)
        # By a mark, which has no address: where the addresses of its sync id are, it is.
        return any(self._opens(a) for a, tally in registry.tallies.items() if tally is of_mark)

    def forget(self, keys: Sequence[bytes]) -> None:
        """Remove connections and templates that their source has ended; tells nobody."""
        for key in keys:
            connection = self._find(key)
            if connection is not None:
                self._end(connection)

    def _find(self, key: bytes) -> Connection | None:
        if key[0] >= TEMPLATE_BIT:
            return self._table.template(key)
        return self._table.find(key)

    def _end(self, connection: Connection) -> None:
        key = connection.record_key
        self._registry.end(connection)
        self._registry.untold.pop(key, None)

    # Real servers

    @property
    def unbound(self) -> int:
        """How many connections and templates have no server of this director's."""
        return self._stand_ins.connections

    def bind_unbound(self) -> Iterator[None]:
        """Bind what has waited for its server, as a chore."""
        for part in self._table.slices():
            for connection in part:
                if connection.second >= 0 and isinstance(connection.server, StandIn):
                    self._bind(connection)
            yield

    def _server(
        self, key: bytes, mark: int, address: bytes, port: int, method: ForwardMethod
    ) -> RealServer | None:
        """The server that is meant, or what stands for it; None if too many do."""
        server = self._destinations.find(key, mark, address, port, method)
        return self._stand_ins.get(address, method) if server is None else server

    def _bind(self, connection: Connection) -> None:
        """Bind what is unbound, if its server is there by now."""
        if connection.is_poisoned:
            return
        key, binding = connection.key, connection.binding
        address, port, method = binding.server.address, binding.port, binding.method
        mark = self._destinations.mark_of(key)
        server = self._destinations.find(key, mark, address, port, method)
        if server is None:
            return
        self._registry.rebind(connection, server.bind(*connection.virtual, port))
        if not connection.flags & _TEMPLATE:
            self._join(connection, None)

    # What others ask

    def records(self, tally: Tally, buckets: Iterable[int]) -> Iterator[Run | None]:
        """What was told of some buckets, in runs of one real server and virtual end.

        Some buckets are looked at together, and None follows on what was told of these. Which
        connections those are is settled then, and each is as it is when its run is read; what
        has ended until then is left out.
        """
        looked_at = 0
        grouped: dict[object, list[Connection]] = {}
        for bucket in buckets:
            part = self._table.part(bucket)
            looked_at += len(part)
            for connection in part:
                if connection.tally is tally and connection.told_state >= 0:
                    binding = connection.binding
                    group: object = binding
                    if not binding.server.service.port:
                        # Of all ports, or of a mark: these may have one binding, and many ends.
                        group = (binding, connection.virtual)
                    grouped.setdefault(group, []).append(connection)
            if looked_at >= LOOK_MAX:
                yield from _read(grouped.values())
                yield None
                looked_at = 0
                grouped = {}
        yield from _read(grouped.values())
        yield None

    def lookup(self, keys: Sequence[bytes]) -> list[ConnectionRecord]:
        """Those of these that are here, as they are."""
        found = (self._find(key) for key in keys)
        return [connection.record() for connection in found if connection is not None]

    def begin(self) -> int:
        """A new generation: what is told, or opened here, from now on belongs to it."""
        self._registry.generation += 1
        return self._registry.generation

    def sweep(self, tally: Tally, generation: int) -> Iterator[int]:
        """Forget what is older than a generation, slice by slice; says how many of each."""
        for part in self._table.slices():
            swept = [c for c in part if c.tally is tally and c.generation < generation]
            for connection in swept:
                self._end(connection)
            yield len(swept)

    def sweep_bucket(self, tally: Tally, bucket: int, generation: int) -> Iterator[int]:
        """The same for one bucket, in parts of `SWEEP_MAX`."""
        part = self._table.part(bucket)
        swept = [c for c in part if c.tally is tally and c.generation < generation]
        for start in range(0, len(swept), SWEEP_MAX):
            # One may have ended, or been told of again, since the part before.
            still = [
                connection
                for connection in swept[start : start + SWEEP_MAX]
                if connection.tally is tally and connection.generation < generation
            ]
            for connection in still:
                self._end(connection)
            yield len(still)


def _is_sound(record: ConnectionRecord, size: int) -> bool:
    """Whether numbers and lengths of a record are possible.

    Args:
        record: which.
        size: of an address of its family, in bytes.
    """
    server = len(record.server)
    if server != size and not (record.method is ForwardMethod.TUNNEL and server in {4, 16}):
        return False
    if not 0 <= record.server_port < _PORTS or not 0 <= record.timeout <= TIMEOUT_MAX:
        return False
    details = record.details
    if details is None:
        return True
    shifts, dialogue = details.shifts, details.dialogue
    return (
        len(shifts) in {0, 6}
        and all(0 <= number < _NUMBERS for number in shifts)
        and len(dialogue) in {0, 1, 3}
        and all(mode in _MODES for mode in dialogue[::2])
        and all(0 <= sequence < _NUMBERS for sequence in dialogue[1:2])
    )


def _read(groups: Collection[list[Connection]]) -> Iterator[Run]:
    """Connections of one server and virtual end in runs, as they are when these are read."""
    for connections in groups:
        for start in range(0, len(connections), READ_MAX):
            yield from _read_now(connections[start : start + READ_MAX])


def _read_now(connections: Sequence[Connection]) -> list[Run]:
    """Connections of one virtual end as they are now; of their states those that were told."""
    runs: list[Run] = []
    binding: Binding | None = None
    state, flags, timeout = UNTOLD, 0, 0.0
    keys: list[bytes] = []
    for connection in connections:
        told = connection.told_state
        if told < 0:
            continue  # it has ended since, or stands under another key
        if (
            told == state
            and connection.flags == flags
            and connection.timeout == timeout
            and connection.binding is binding
            and connection.dialogue is None
            and (connection.parent is None or connection.is_plain)
        ):
            keys.append(connection.key)
            continue
        record = connection.record()
        keys = [record.key]
        runs.append(Run(record if record.state == told else record._replace(state=told), keys))
        state = told if connection.is_plain else UNTOLD
        flags, timeout, binding = connection.flags, connection.timeout, connection.binding
    return runs
