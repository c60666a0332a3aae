"""For how long one call of a director keeps everything else waiting.

Each row is one thing that time or an event brings to a table that is full: the longest of
the calls that it is done in, how many there were, and what they took together. Nothing
else can run during such a call, so the longest is what a frame may have to wait for.

It has no opinion of what is too long; see `bench.scale`. Times are seconds, those that are
shown milliseconds of processor time.
"""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from bench.crowd import SYNC_ID, Crowd, Kind
from lvsha.connection_store import ConnectionStore
from lvsha.counters import Counters
from lvsha.datapath.flow import Frame
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.model import BUCKETS, Protocol
from lvsha.runs import Run
from lvsha.settings import MODE_ALWAYS, Settings
from lvsha.sync.actions import ProvideSnapshot
from lvsha.sync.messages import ALL_BUCKETS
from lvsha.sync.pace import Pace
from lvsha.sync.source import Source
from lvsha.tally import UNTOLD

BEGIN: Final = 1000.0
SPREAD: Final = 100.0
"""Seconds over which connections are opened, where they are not opened in one."""
LATER: Final = 10_000.0
"""When everything has expired."""
HOUSEKEEPING: Final = 0.1
"""The forwarder's interval between two turns of it."""
SERVERS: Final = 4

Row = dict[str, object]
T = TypeVar("T")


class Longest:
    """Times calls, and remembers the longest."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.calls = 0
        self.longest = self.total = 0.0

    def time(self, call: Callable[[], T]) -> T:
        """Call, and note how long it took."""
        begin_at = time.thread_time()
        answer = call()
        taken = time.thread_time() - begin_at
        self.calls += 1
        self.total += taken
        self.longest = max(self.longest, taken)
        return answer

    def row(self) -> Row:
        """The figures."""
        return {
            "what": self.what,
            "longest_ms": self.longest * 1e3,
            "calls": self.calls,
            "total_ms": self.total * 1e3,
        }


def measure_pauses(number: int, services: int) -> Iterator[Row]:
    """Rows for so many connections, and for so many services with `SERVERS` each."""
    yield from _while_connections_live(number)
    yield from _all_in_one_second(number)
    yield from _of_one_port(number)
    yield from _after_a_snapshot(number)
    yield from _without_their_server(number)
    yield from _of_services(services)


def _filled(crowd: Crowd, number: int, when: Callable[[int], float], how: str) -> Row:
    """Open connections; the longest call for one frame."""
    longest = Longest(f"one frame, while connections are opened{how}")
    process, untold = crowd.director.process, crowd.director.registry.untold

    def feed(frame: Frame, received: int, now: float) -> None:
        longest.time(partial(process, frame, received, now))
        untold.clear()  # the forwarder has it told after each frame

    crowd.fill(number, when, feed)
    return longest.row()


def _spread(number: int) -> Callable[[int], float]:
    return lambda each: BEGIN + SPREAD * each / number


def _housekept(crowd: Crowd, what: str, begin: float, end: float) -> Row:
    """Let the director do what comes up between two times."""
    longest, now = Longest(f"housekeeping: {what}"), begin
    while now < end:
        while longest.time(partial(crowd.director.housekeep, now)):
            crowd.director.registry.untold.clear()
        now += HOUSEKEEPING
    return longest.row()


def _stepped(what: str, parts: Iterator[object], after: Callable[[], object]) -> Row:
    """Take the parts of something, and do what comes after each."""
    longest = Longest(what)

    def step() -> bool:
        there_was_one = next(parts, _END) is not _END
        after()
        return there_was_one

    while longest.time(step):
        pass
    return longest.row()


_END: Final = object()


def _while_connections_live(number: int) -> Iterator[Row]:
    crowd = Crowd(Kind(), reporting=ESTABLISHED)
    director = crowd.director
    yield _filled(crowd, number, _spread(number), "")
    now = BEGIN + SPREAD
    yield _housekept(crowd, "connections in use", now, now + 5)
    yield _read_snapshot(crowd, now)
    director.registry.in_transition.update(crowd.virtual)
    for each in range(0, number, 2):
        crowd.director.process(crowd.frame, crowd.lay(crowd.request(each)), now)
        connection = director.registry.table.find(bytes(crowd.frame.key))
        assert connection is not None
        director.registry.teller.retell(connection, UNTOLD)
    director.registry.take_changes()
    telling = director.registry.tell_all({SYNC_ID})
    taking = director.registry.take_changes
    yield _stepped("telling half of them on leaving", telling, taking)
    director.configure(Settings(drop_entry=MODE_ALWAYS))
    yield _housekept(crowd, "drop_entry", now + 5, now + 15)
    director.configure(Settings())
    collection = Longest("Python's garbage collector, which is kept from this")
    collection.time(gc.collect)
    yield collection.row()
    yield _housekept(crowd, "all expire, spread", now + 800, now + 1100)
    assert len(director.registry.table) == 0, "everything has expired"


def _read_snapshot(crowd: Crowd, now: float) -> Row:
    """Read a snapshot as the sync does, tick by tick."""
    source = Source(
        tally=crowd.tally,
        node="east",
        epoch=1,
        datagram_max=1400,
        pace=Pace(),
        counters=Counters(),
    )
    source.lead(1)
    longest = Longest("a tick of a snapshot")
    replication = crowd.director.replication

    def looked_at(buckets: int) -> Iterator[Run | None]:
        wanted = [bucket for bucket in range(BUCKETS) if buckets >> bucket & 1]
        return replication.records(crowd.tally, wanted)

    moment = now
    actions = source.request(ALL_BUCKETS, 0, now)
    while source.is_snapshotting:
        wanted = [action.buckets for action in actions if isinstance(action, ProvideSnapshot)]
        if wanted:
            step = partial(source.snapshot, looked_at(*wanted), moment)
        else:
            assert source.deadline is not None
            moment = max(moment, source.deadline)
            step = partial(source.expire, moment)
        actions = longest.time(step)
    return longest.row()


def _all_in_one_second(number: int) -> Iterator[Row]:
    crowd = Crowd(Kind(protocol=Protocol.UDP))
    yield _filled(crowd, number, lambda _: BEGIN, " in one second")
    yield _housekept(crowd, "all expire in one second", LATER, LATER + 1)
    assert len(crowd.director.registry.table) == 0, "everything has expired"


def _of_one_port(number: int) -> Iterator[Row]:
    crowd = Crowd(Kind(protocol=Protocol.UDP, one_port=True))
    yield _filled(crowd, number, _spread(number), " from one port")
    crowd.director.configure(Settings(drop_entry=MODE_ALWAYS))
    now = BEGIN + SPREAD + 100
    yield _housekept(crowd, "drop_entry, all from one port", now, now + 10)


def _after_a_snapshot(number: int) -> Iterator[Row]:
    crowd, now = Crowd(Kind(protocol=Protocol.UDP)), BEGIN + SPREAD
    store = ConnectionStore(crowd.director, dict.fromkeys(crowd.virtual, SYNC_ID), lambda: now)
    crowd.fill(number, _spread(number))
    for what in ("a sweep that finds nothing", "a sweep that ends all"):
        store.begin(SYNC_ID, None)
        if what == "a sweep that finds nothing":
            for connection in crowd.director.registry.table.connections():
                connection.generation = crowd.director.registry.generation
        longest = Longest("the end of a snapshot")
        longest.time(lambda: store.end(SYNC_ID, None))
        yield longest.row()
        yield _housekept(crowd, what, now, now + 0.5)
    assert len(crowd.director.registry.table) == 0, "everything was swept"


def _without_their_server(number: int) -> Iterator[Row]:
    crowd = Crowd(Kind(protocol=Protocol.UDP), settings=Settings(expire_nodest_conn=True))
    crowd.fill(number, _spread(number))
    director, (identity,) = crowd.director, crowd.identities
    (server,) = next(iter(director.services)).servers
    removal = Longest("a server with all connections is removed")
    removal.time(lambda: director.services.delete_server(identity, server.address, server.port))
    yield removal.row()
    yield _housekept(crowd, "expire_nodest_conn", BEGIN + SPREAD, BEGIN + SPREAD + 2)
    assert len(director.registry.table) == 0, "all went with their server"


def _of_services(services: int) -> Iterator[Row]:
    crowd, now = Crowd(Kind(), services=services, servers=SERVERS), BEGIN
    director = crowd.director
    many = f"{services:,} services with {SERVERS} servers each"
    yield _housekept(crowd, f"estimates, {many}", now, now + 10)
    director.add_chore(director.warm_ways())
    yield _housekept(crowd, f"ways are kept warm, {many}", now + 10, now + 10.5)
    store = ConnectionStore(director, dict.fromkeys(crowd.virtual, SYNC_ID), lambda: now)
    count = Longest(f"connections are counted for the sync, {many}")
    count.time(lambda: store.tally(SYNC_ID).connections)
    yield count.row()
    director.services.flush()
    yield _housekept(crowd, f"the trash, {many}", now + 10.5, now + 400)
