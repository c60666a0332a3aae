"""What must hold of a director at any time, whatever came before.

These look into tables that are nobody else's business: they recount what is kept as a
number, and follow what is kept twice. They cost milliseconds, so they are for every so many
steps, except `sizes`.
"""

from collections import Counter
from itertools import chain

from lvsha.datapath.connections import Connection
from lvsha.datapath.director import Director
from lvsha.datapath.housekeeping import CHORES_MAX
from lvsha.datapath.network import (
    HOPS_MAX,
    QUEUE_FRAMES_MAX,
    REMEMBERED_MAX,
    WAITING_FRAMES_MAX,
)
from lvsha.datapath.questions import BYTES_MAX, FRAMES_MAX, KEYS_MAX
from lvsha.datapath.reassembly import LIMIT_DATAGRAMS
from lvsha.datapath.schedulers.destination_table import ENTRIES_MAX, DestinationTable
from lvsha.datapath.service_table import TRASH_INTERVAL, TRASH_TIME
from lvsha.datapath.services import Binding, RealServer
from lvsha.model import ConnectionFlag
from tests.laboratory import Laboratory

CHANGES_OF_A_FRAME = 8
"""A frame ends a connection and its parents, opens another one, and expects a third."""
CHORES_BESIDE = 2
"""What one second adds before it looks how many chores wait."""


class BrokenRuleError(AssertionError):
    """Something that must always hold does not."""


def demand(holds: bool, otherwise: str) -> None:
    """Insist on a rule."""
    if not holds:
        raise BrokenRuleError(otherwise)


def sizes(director: Director, connections_max: int, fragment_bytes: int) -> None:
    """No table is above its limit; a persistent connection comes with its template."""
    table = director.registry.table
    demand(len(table) <= connections_max, f"{len(table)} connections")
    reassembler = director._reassembler
    demand(reassembler.memory_bytes <= fragment_bytes, "too much memory for fragments")
    demand(len(reassembler) <= LIMIT_DATAGRAMS, "too many datagrams wait")
    questions = director._questions
    demand(len(questions) <= FRAMES_MAX, "too many packets wait for peers")
    demand(questions._bytes <= BYTES_MAX, "too much memory for packets that wait for peers")
    demand(len(questions._asked) <= KEYS_MAX, "too many questions remembered")
    network = director.network
    demand(network._waiting <= WAITING_FRAMES_MAX, "too many frames wait for neighbours")
    demand(len(network._hops) <= HOPS_MAX, "too many next hops")
    demand(len(network._remembered) <= REMEMBERED_MAX, "too many ways remembered")
    demand(len(director._housekeeping._chores) <= CHORES_MAX + CHORES_BESIDE, "too many chores")


def everything(laboratory: Laboratory, now: float) -> None:
    """All slow checks."""
    director = laboratory.director
    miscounted = laboratory.miscounted()
    demand(not miscounted, f"miscounted servers: {miscounted}")
    mistallied = laboratory.mistallied()
    demand(not mistallied, f"mistallied: {mistallied}")
    _table(director)
    _families(director)
    _network(director)
    _fragments(director)
    _questions(director)
    _bindings(director)
    _schedulers(director)
    _trash(director, now)


def _table(director: Director) -> None:
    """The count, the shards, the wheel and the replies agree."""
    table = director.registry.table
    connections = list(table.connections())
    demand(len(table) == len(connections), f"{len(table)} counted, {len(connections)} there")
    unknown = sum(bool(c.flags & ConnectionFlag.NO_CLIENT_PORT) for c in connections)
    demand(table.unknown_ports == unknown, "connections without the client's port miscounted")
    for shard in table.inbound:
        for key, connection in shard.items():
            demand(connection.key == key, "a connection under another key")
            demand(table.find(key) is connection, "a connection in another shard")
    standing = set(connections)
    for shard in table.outbound:
        for key, connection in shard.items():
            demand(connection in standing, "a reply of a connection that has ended")
            demand(connection.reply_key == key, "a reply under another key")
    wheel = [(second, c) for second, those in table._wheel.items() for c in those]
    for second, crowded in table._crowded.items():
        demand(second in table._wheel, "a crowd in a second that is none")
        wheel += [(second, c) for those in crowded for c in those]
    lying = Counter(connection for _, connection in wheel)
    demand(set(lying) == standing, "the wheel holds others than the table")
    demand(all(number == 1 for number in lying.values()), "a connection twice in the wheel")
    for second, connection in wheel:
        demand(connection.second == second, "a connection in another second")
        demand(second <= int(connection.expires) + 1, "a connection looked at too late")
    demand(sorted(table._seconds) == sorted(table._wheel), "the wheel's seconds do not agree")


def _families(director: Director) -> None:
    """A parent stands as long as its children, and knows how many they are."""
    standing = set(director.registry.table.connections())
    children: Counter[Connection] = Counter()
    for connection in standing:
        if connection.parent is not None:
            children[connection.parent] += 1
    for connection in standing:
        demand(
            connection.children == children[connection],
            f"{connection.children} children counted, there are {children[connection]}",
        )


def _network(director: Director) -> None:
    """The frames that wait are those that were counted."""
    network = director.network
    hops = list(network._hops.values())
    demand(network._waiting == sum(len(hop.waiting) for hop in hops), "waiting frames miscounted")
    demand(all(len(hop.waiting) <= QUEUE_FRAMES_MAX for hop in hops), "a queue is too long")
    known = set(chain.from_iterable(network._hops_of.values()))
    demand(known == set(hops), "next hops that no neighbour would be told to")


def _fragments(director: Director) -> None:
    """The memory of fragments is the sum of its parts."""
    reassembler = director._reassembler
    waiting = [d for family, _ in reassembler._families() for d in family.values()]
    demand(reassembler.memory_bytes == sum(d.memory for d in waiting), "fragments miscounted")
    for datagram in waiting:
        lengths = sum(map(len, datagram.payloads.values()))
        runs = zip(datagram.run_starts, datagram.run_ends, strict=True)
        demand(lengths == sum(end - start for start, end in runs), "runs that are not there")
        demand(not datagram.complete, "a datagram waits that is complete")


def _questions(director: Director) -> None:
    """Of each packet that waits it is known that peers were asked, and what it takes."""
    questions = director._questions
    held = questions._held
    demand(questions._bytes == sum(len(h.data) for h in held.values()), "bytes miscounted")
    demand(set(held) <= set(questions._asked), "a packet waits, and nobody was asked")
    demand(set(questions.unasked) <= set(held), "asked for what nobody waits for")


def _bindings(director: Director) -> None:
    """Only connections keep bindings alive: those that stand, and parents that were replaced."""
    used: Counter[RealServer] = Counter()
    seen: set[Binding] = set()
    for standing in director.registry.table.connections():
        connection: Connection | None = standing
        while connection is not None:
            if connection.binding not in seen:
                seen.add(connection.binding)
                used[connection.server] += 1
            connection = connection.parent
    for service in director.services:
        for server in service.servers:
            demand(len(server._bindings) <= used[server], f"{server}: bindings that nobody needs")


def _schedulers(director: Director) -> None:
    """Tables of destinations keep their limit."""
    for service in director.services:
        table = getattr(service.scheduler, "_table", None)
        if isinstance(table, DestinationTable):
            demand(len(table) <= ENTRIES_MAX, "too many destinations remembered")
            entries = sum(map(len, table._buckets))
            demand(len(table) == entries, f"{len(table)} destinations counted, {entries} there")


def _trash(director: Director, now: float) -> None:
    """Nothing listed lies in the trash, and what is idle there goes in time."""
    services = director.services
    listed = {server for service in services for server in service.servers}
    longest = TRASH_TIME + 2 * TRASH_INTERVAL
    for server, idle_since in services._trash.values():
        demand(server not in listed, f"{server} is listed and in the trash")
        demand(not server.available, f"{server} is available in the trash")
        if server.idle and idle_since is not None and director._housekeeping._chores_at is not None:
            # Seen from the last time that chores began.
            overdue = director._housekeeping._chores_at - idle_since > longest
            demand(not overdue, f"{server} has lain in the trash for {now - idle_since} s")
