"""The connection table: who talks to which real server, and until when.

One table is the authority. A connection stands in it under the key of its request
direction and, with NAT, under that of its replies, so that either direction is one
dictionary look-up. Of several whose replies look alike the newest stands there, as in the
kernel. Persistence templates stand in a dictionary of their own, under a key without the
client's port.

The dictionaries are cut into `SHARDS`. A dictionary that grows is copied at once, and copying
one of a million entries would stop everything for some thirty milliseconds. Which shard it is
follows from the client's port and one byte of its address, for many clients may use the same
port; two bytes are as much as the path of every packet can afford. Their sum is taken, since
who makes up clients often counts both up. With IPv6 that byte is one of the prefix, so that
clients of one network that all use one port stand in one shard.

Expiry never scans the table. Connections lie in a wheel of sets, one for each second in
which one is to be looked at. A packet only moves the connection's `expires` forward; when
its second comes the wheel finds that out and puts it into a later one. Only where a state
shortens the time-out is the connection moved at once. So a packet costs one assignment,
and a connection is touched about once for each time-out that passes. The sets are dictionaries
without values, which keep an order: in which connections end must not depend on where in
memory they lie. A second in which very many lie has more than one.

What always holds: a connection is in exactly one set of the wheel, and never in one later
than its `expires` rounded up to the next second.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Final

from lvsha.datapath.memories import FtpDialogue, TemplateIdentity, Unread, mark_of_template
from lvsha.datapath.services import Binding, RealServer
from lvsha.datapath.state_machines import StateMachine
from lvsha.model import (
    BUCKETS,
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    bucket_of,
)
from lvsha.runs import FEW, cut, filled
from lvsha.tally import UNTOLD, Tally

SHARDS: Final = BUCKETS
"""Sums of two bytes; the buckets that directors compare."""
SLICE: Final = 250
"""Connections that are looked at in one go; a millisecond of work."""
CROWD: Final = 32_768
"""So many lie in one set of the wheel; it has then last grown at 19,661, in two milliseconds."""
TEMPLATE_NONE: Final = 0
TEMPLATE_ASSURED: Final = 1
"""States of a template: whether one of its connections was ever established."""
_POISONED_PORT: Final = 65535
# Where bytes of the client stand in the key of a reply and of a request, by their length.
_REPLY_CLIENTS: Final = {
    14: [*zip(range(6, 10), range(2, 6), strict=True), (12, 10), (13, 11)],
    38: [*zip(range(18, 34), range(2, 18), strict=True), (36, 34), (37, 35)],
}

_INACTIVE: Final = int(ConnectionFlag.INACTIVE)
_TEMPLATE: Final = int(ConnectionFlag.TEMPLATE)
_NO_CLIENT_PORT: Final = int(ConnectionFlag.NO_CLIENT_PORT)
_NO_DETAILS: Final = ConnectionDetails()

# Cheaper than to call the classes.
_new_object: Final = object.__new__
_new_record: Final = tuple.__new__


class Connection:
    """One connection, or a persistence template; only the director changes it.

    Attributes:
        key: of the request direction; ``reply_key`` is empty where replies pass elsewhere. Of
            a template `lvsha.model.template_key`, without what an engine found.
        binding: the real server it is bound to, and how its packets get there.
        machine: the state machine of its protocol.
        state: number in the protocol's state table; of a template, whether it is assured.
        flags: `ConnectionFlag` bits.
        timeout: seconds that the state gives it after each packet.
        expires: when it ends, on the director's clock.
        second: the second of the wheel in which it lies; -1 outside the table.
        packets: requests seen, as the kernel's in_pkts counts them.
        report_at: from when on a request is looked at by the `Teller`.
        told_state: the state that backups were last told; `UNTOLD` if none was.
        sync_end: when it would have ended when it was last told by the kernel's rule, in that
            rule's ticks.
        tally: of its sync id, in which it counts; None if it counts in none.
        generation: of the snapshot that last confirmed it.
        parent: what it belongs to: the template of its client, or an FTP control connection;
            that does not end before it.
        children: how many belong to it.
        dialogue: what an FTP control connection or a template remembers, or what a later
            version has told; None for nearly all.
    """

    __slots__ = (
        "binding",
        "children",
        "dialogue",
        "expires",
        "flags",
        "generation",
        "key",
        "machine",
        "packets",
        "parent",
        "reply_key",
        "report_at",
        "second",
        "state",
        "sync_end",
        "tally",
        "timeout",
        "told_state",
    )

    def __init__(
        self, key: bytes, binding: Binding, machine: StateMachine, flags: int, timeout: float
    ) -> None:
        self.key = key
        self.reply_key = b""
        self.binding = binding
        self.machine = machine
        self.state = 0
        self.flags = flags
        self.timeout = timeout
        self.expires = 0.0
        self.second = -1
        self.packets = 0
        self.report_at = math.inf
        self.told_state = UNTOLD
        self.sync_end = 0
        self.tally: Tally | None = None
        self.generation = 0
        self.parent: Connection | None = None
        self.children = 0
        self.dialogue: FtpDialogue | TemplateIdentity | Unread | None = None

    @property
    def server(self) -> RealServer:
        """The real server it is bound to."""
        return self.binding.server

    @property
    def protocol(self) -> int:
        """The transport protocol number; 0 of a firewall mark's template."""
        return self.key[1]

    @property
    def client(self) -> tuple[bytes, int]:
        """Address and port of the client."""
        size = (len(self.key) - 6) // 2
        return self.key[2 : 2 + size], int.from_bytes(self.key[-4:-2])

    @property
    def virtual(self) -> tuple[bytes, int]:
        """Virtual address and port that the client talks to."""
        size = (len(self.key) - 6) // 2
        return self.key[2 + size : 2 + 2 * size], int.from_bytes(self.key[-2:])

    @property
    def active(self) -> bool:
        """Whether the real server counts it as active."""
        return not self.flags & _INACTIVE

    @property
    def is_template(self) -> bool:
        """Whether it is a persistence template."""
        return bool(self.flags & _TEMPLATE)

    @property
    def is_established(self) -> bool:
        """Whether its client would notice its loss: all of a protocol without such a state."""
        established = self.machine.established
        return (established < 0 or self.state == established) and not self.flags & _TEMPLATE

    @property
    def is_poisoned(self) -> bool:
        """Whether it is a template that is found no more."""
        identity = self.dialogue
        if not isinstance(identity, TemplateIdentity):
            return False
        return not identity.key.startswith(self.key)

    @property
    def record_key(self) -> bytes:
        """The key of its record; a template may stand under more than its own."""
        identity = self.dialogue
        return identity.key if isinstance(identity, TemplateIdentity) else self.key

    @property
    def is_plain(self) -> bool:
        """Whether its record has no details, and the own key."""
        if self.dialogue is not None or self.flags & _TEMPLATE:
            return False
        parent = self.parent
        return parent is None or (parent.dialogue is None and bool(parent.flags & _TEMPLATE))

    def record(self) -> ConnectionRecord:
        """The connection as a value for other directors."""
        binding = self.binding
        plain = self.is_plain
        return _new_record(
            ConnectionRecord,
            (
                self.key if plain else self.record_key,
                binding.server.address,
                binding.port,
                binding.method,
                self.state,
                self.flags,
                self.timeout,
                None if plain else self._details(),
            ),
        )

    def _details(self) -> ConnectionDetails | None:
        """What its record has beside the rest."""
        details = _NO_DETAILS if self.dialogue is None else self.dialogue.details()
        parent = self.parent
        if self.flags & _TEMPLATE:
            mark = mark_of_template(self.key)
            details = replace(details, mark=mark) if mark else details
        elif parent is not None and parent.second >= 0 and not parent.is_poisoned:
            is_found = isinstance(parent.dialogue, TemplateIdentity)
            if is_found or not parent.flags & _TEMPLATE:  # of others the own key tells
                details = replace(details, parent=parent.record_key)
        return None if details == _NO_DETAILS else details

    def alike(self, key: bytes, reply_key: bytes) -> "Connection":
        """Another one that differs in nothing but its client, and is in no table yet."""
        other = _new_object(Connection)
        other.key = key
        other.reply_key = reply_key
        other.binding = self.binding
        other.machine = self.machine
        other.state = self.state
        other.flags = self.flags
        other.timeout = self.timeout
        other.expires = self.expires
        other.second = self.second
        other.packets = self.packets
        other.report_at = self.report_at
        other.told_state = self.told_state
        other.sync_end = self.sync_end
        other.tally = self.tally
        other.generation = self.generation
        other.parent = None
        other.children = 0
        other.dialogue = None
        return other


def reply_key(key: bytes, server: bytes, server_port: int) -> bytes:
    """The key of what a NAT real server sends back, from that of the request."""
    size = (len(key) - 6) // 2
    return key[:2] + server + key[2 : 2 + size] + server_port.to_bytes(2) + key[-4:-2]


def _reply_keys(first: Connection, keys: Sequence[bytes]) -> Iterable[bytes]:
    """Those of connections that differ from one in nothing but their clients."""
    row = first.reply_key
    if not row:
        return repeat(b"")
    length, size = len(row), (len(row) - 6) // 2
    if len(keys) < FEW:
        head, middle = row[: 2 + size], row[2 + 2 * size : -2]
        return [head + key[2 : 2 + size] + middle + key[-4:-2] for key in keys]
    return cut(filled(row, b"".join(keys), length, _REPLY_CLIENTS[length]), length)


def _shard(key: bytes) -> int:
    """The shard of a request's key: by the client's port and, with IPv4, last address byte."""
    return key[-3] + key[5]


def _reply_shard(key: bytes) -> int:
    """The shard of a reply's key: by the client's port and last address byte."""
    return key[-1] + key[-5]


def _cut(connections: list[Connection]) -> Iterator[list[Connection]]:
    """Parts of at most `SLICE`."""
    for first in range(0, len(connections), SLICE):
        yield connections[first : first + SLICE]


def reversed_key(key: bytes) -> bytes:
    """The key of the other direction of the same two ends."""
    size = (len(key) - 6) // 2
    return key[:2] + key[2 + size : 2 + 2 * size] + key[2 : 2 + size] + key[-2:] + key[-4:-2]


class ConnectionTable:
    """All connections of a director.

    Args:
        limit: how many connections and templates it holds; `full` tells when that is
            reached, and the director then opens no new ones.

    Attributes:
        inbound, outbound: the shards; see `find` and `find_reply` for which one it is.
        unknown_ports: how many stand in it whose client's port is not known yet.
    """

    def __init__(self, limit: int) -> None:
        self.inbound: tuple[dict[bytes, Connection], ...] = tuple({} for _ in range(SHARDS))
        self.outbound: tuple[dict[bytes, Connection], ...] = tuple({} for _ in range(SHARDS))
        self.unknown_ports = 0
        self._templates: tuple[dict[bytes, Connection], ...] = tuple({} for _ in range(SHARDS))
        self._poisoned: dict[Connection, None] = {}
        self._hidden: dict[bytes, dict[Connection, None]] = {}
        self._count = 0
        self._limit = limit
        self._wheel: dict[int, dict[Connection, None]] = {}
        self._seconds: list[int] = []
        self._crowded: dict[int, list[dict[Connection, None]]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether no further connection may be added."""
        return self._count >= self._limit

    @property
    def room(self) -> int:
        """How many connections and templates may be added."""
        return self._limit - self._count

    def find(self, key: bytes) -> Connection | None:
        """The connection with this key of its request direction."""
        return self.inbound[_shard(key)].get(key)

    def find_reply(self, key: bytes) -> Connection | None:
        """The connection with this key of its reply direction."""
        return self.outbound[_reply_shard(key)].get(key)

    def template(self, key: bytes) -> Connection | None:
        """The template with this key; see `lvsha.model.template_key`."""
        return self._templates[bucket_of(key)].get(key)

    def connections(self) -> Iterator[Connection]:
        """All of them, templates too; the table must not change meanwhile."""
        for shard in self.inbound:
            yield from shard.values()
        for shard in self._templates:
            yield from shard.values()
        yield from self._poisoned

    def slices(self) -> Iterator[list[Connection]]:
        """All of them in lists of at most `SLICE`; the table may change between two.

        What was added meanwhile may be left out, and what has ended may come: it has
        `second` -1.
        """
        gathered: list[Connection] = []
        for shard in range(SHARDS):
            gathered += self.part(shard)
            if len(gathered) >= SLICE:
                yield from _cut(gathered)
                gathered = []
        yield from _cut(gathered)

    def sliced(self, shard: int) -> Iterator[list[Connection]]:
        """A `part` in lists of at most `SLICE`."""
        return _cut(self.part(shard))

    def part(self, shard: int) -> list[Connection]:
        """The connections and templates of one of the `SHARDS`; the poisoned are of the first."""
        poisoned = () if shard else self._poisoned
        return [*self.inbound[shard].values(), *self._templates[shard].values(), *poisoned]

    def add(self, connection: Connection) -> None:
        """Enter a connection; its `expires` must be set."""
        key = connection.key
        shard = self.inbound[_shard(key)]
        assert key not in shard, "a key is entered once"
        shard[key] = connection
        if connection.reply_key:
            self.enter_replies(connection)
        if connection.flags & _NO_CLIENT_PORT:
            self.unknown_ports += 1
        self._count += 1
        self._arm(connection)

    def add_alike(self, first: Connection, keys: Sequence[bytes]) -> list[bytes]:
        """Enter connections that differ from one in the table only in their client.

        Args:
            first: that one; its client's port is known.
            keys: of the others; there is room for all.

        Returns:
            Of these keys those that were not there before; each once.
        """
        alike, inbound, outbound = first.alike, self.inbound, self.outbound
        lying = self._lying(first.second, len(keys))
        entered = []
        for key, back in zip(keys, _reply_keys(first, keys), strict=False):
            shard = inbound[key[-3] + key[5]]
            if key in shard:
                continue
            shard[key] = connection = alike(key, back)
            lying[connection] = None
            entered.append(key)
            if (
                back
                and outbound[back[-1] + back[-5]].setdefault(back, connection) is not connection
            ):
                self.enter_replies(connection)
        self._count += len(entered)
        return entered

    def add_template(self, template: Connection) -> None:
        """Enter a template."""
        key = template.record_key
        shard = self._templates[bucket_of(key)]
        assert key not in shard, "a template is entered once"
        shard[key] = template
        self._count += 1
        self._arm(template)

    def poison(self, template: Connection) -> None:
        """Let a template be found no more; it ends when its time is over."""
        key = template.record_key
        del self._templates[bucket_of(key)][key]
        self._poisoned[template] = None
        if not isinstance(template.dialogue, TemplateIdentity):
            template.dialogue = TemplateIdentity(key, b"")
        port = _POISONED_PORT
        if template.key.endswith(port.to_bytes(2)):
            port -= 1  # the key must be another, whatever it was
        template.key = template.key[:-2] + port.to_bytes(2)

    def learn_client_port(self, connection: Connection, port: bytes) -> None:
        """Enter a connection under the port that its client turned out to use."""
        key, reply = connection.key, connection.reply_key
        del self.inbound[_shard(key)][key]
        if reply:
            self.leave_replies(connection)
        connection.key = key[:-4] + port + key[-2:]
        connection.flags &= ~_NO_CLIENT_PORT
        self.unknown_ports -= 1
        self.inbound[_shard(connection.key)][connection.key] = connection
        if reply:
            connection.reply_key = reply[:-2] + port
            self.enter_replies(connection)

    def remove(self, connection: Connection) -> None:
        """Take a connection or template out."""
        if connection.flags & _TEMPLATE:
            if connection in self._poisoned:
                del self._poisoned[connection]
            else:
                key = connection.record_key
                del self._templates[bucket_of(key)][key]
        else:
            key = connection.key
            del self.inbound[_shard(key)][key]
            if connection.reply_key:
                self.leave_replies(connection)
            if connection.flags & _NO_CLIENT_PORT:
                self.unknown_ports -= 1
        self._count -= 1
        self._disarm(connection)
        connection.second = -1

    def enter_replies(self, connection: Connection) -> None:
        """Let replies find a connection, and no older one that the same server answers.

        There are such where a client uses one port with several virtual ends.
        """
        reply = connection.reply_key
        shard = self.outbound[_reply_shard(reply)]
        older = shard.get(reply)
        if older is not None:
            self._hidden.setdefault(reply, {})[older] = None
        shard[reply] = connection

    def leave_replies(self, connection: Connection) -> None:
        """Let replies find it no more, but the newest that it has hidden."""
        reply = connection.reply_key
        shard = self.outbound[_reply_shard(reply)]
        hidden = self._hidden.get(reply)
        if hidden is None:
            del shard[reply]
            return
        if shard[reply] is connection:
            shard[reply], _ = hidden.popitem()
        else:
            del hidden[connection]
        if not hidden:
            del self._hidden[reply]

    def hasten(self, connection: Connection) -> None:
        """Look at a connection earlier, after its `expires` has moved back."""
        if connection.expires < connection.second - 1:
            self._disarm(connection)
            self._arm(connection)

    def postpone(self, connection: Connection, expires: float) -> None:
        """Let a connection that has ended live on for a while."""
        self._disarm(connection)
        connection.expires = expires
        self._arm(connection)

    def due(self, now: float, limit: int) -> Iterator[Connection]:
        """Those whose second has come.

        One that has ended by ``now`` is to be removed or postponed by the caller; one that
        lives on lies in a later second again.

        Args:
            now: the director's clock.
            limit: give no more than so many, to bound the time that it takes; the rest comes
                with the next call.
        """
        while self._seconds and self._seconds[0] <= now:
            second = self._seconds[0]
            lying = self._wheel[second]
            while lying:
                if limit <= 0:
                    return
                limit -= 1
                connection, _ = lying.popitem()
                if connection.expires <= now:
                    lying[connection] = None
                else:
                    self._arm(connection, now + connection.timeout)
                yield connection
                assert connection.second != second, "the caller removes or postpones it"
            crowded = self._crowded.get(second)
            if crowded:
                self._wheel[second] = crowded.pop()
                continue
            self._crowded.pop(second, None)
            heapq.heappop(self._seconds)
            del self._wheel[second]

    @property
    def deadline(self) -> float | None:
        """When `expired` next has something to look at; None for an empty table."""
        return float(self._seconds[0]) if self._seconds else None

    def _arm(self, connection: Connection, latest: float = math.inf) -> None:
        """Put a connection into the second in which it ends, or in which it may be ``latest``.

        A copy of another director's connection ends later than its own next packet would
        have it end, so it is looked at once before.
        """
        second = int(min(connection.expires, latest)) + 1
        self._lying(second, 1)[connection] = None
        connection.second = second

    def _lying(self, second: int, number: int) -> dict["Connection", None]:
        """The set of the wheel in which so many more may lie in a second."""
        lying = self._wheel.get(second)
        if lying is None:
            lying = self._wheel[second] = {}
            heapq.heappush(self._seconds, second)
        elif len(lying) + number > CROWD:
            self._crowded.setdefault(second, []).append(lying)
            lying = self._wheel[second] = {}
        return lying

    def _disarm(self, connection: Connection) -> None:
        """Take a connection out of the wheel."""
        second = connection.second
        lying = self._wheel[second]
        if connection in lying:
            del lying[connection]
            return
        for lying in self._crowded[second]:
            if connection in lying:
                del lying[connection]
                return
        raise AssertionError("a connection lies in its second")
