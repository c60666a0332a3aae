"""Sync daemons that speak the kernel's protocol, on groups in memory."""

import errno
import io
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from rich.console import Console
from trio.testing import MockClock

from lvsha.errors import AdministrationError, HostError
from lvsha.model import ConnectionChanged, ConnectionRecord, ForwardMethod, connection_key
from lvsha.settings import Settings
from lvsha.sync.ipvs.daemons import (
    BATCH_DATAGRAMS,
    BATCH_RECORDS,
    DRAIN,
    REFRESH_INTERVAL,
    Daemons,
)
from lvsha.sync.ipvs.master import FLUSH_DELAY
from lvsha.sync.ipvs.messages import Message, emit, parse
from lvsha.sync.ipvs.roster import Daemon, Role, Roster, Terms
from lvsha.sync.loopback import LoopbackGroup, LoopbackTransport
from lvsha.tally import NO_SYNC_ID
from lvsha.view import show_status

TERMS = Terms("sync0", 5)


def record(number: int, state: int = 1) -> ConnectionRecord:
    key = connection_key(6, (0x0A000000 + number).to_bytes(4), 1024, bytes((192, 0, 2, 1)), 80)
    return ConnectionRecord(key, bytes((10, 1, 0, 1)), 80, ForwardMethod.NAT, state, 0x20, 900.0)


def changes(*numbers: int) -> list[ConnectionChanged]:
    return [ConnectionChanged(record(number)) for number in numbers]


class Table:
    def __init__(self) -> None:
        self.content: dict[bytes, ConnectionRecord] = {}

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        self.content.update((one.key, one) for one in records)


class Site:
    """A machine on groups in memory, one for each port."""

    def __init__(self, groups: dict[int, LoopbackGroup], **settings: int) -> None:
        self.groups = groups
        self.settings = Settings(**settings)  # type: ignore[arg-type]  # settings by name
        self.table = Table()
        self.sockets: dict[tuple[Role, int], LoopbackTransport] = {}
        self.refusal: OSError | None = None
        self.daemons = Daemons(
            Roster({"sync0": 1500}.get),
            self.table,
            lambda: self.settings,
            {6: 11, 17: 1},
            open_socket=self.open,
        )

    def open(self, daemon: Daemon, index: int, settings: Settings) -> LoopbackTransport:
        if self.refusal is not None:
            raise HostError("the machine refuses") from self.refusal
        port = daemon.terms.port + index
        self.sockets[daemon.role, port] = opened = self.groups[port].join()
        return opened

    def parts(self, kind: str) -> list[dict[str, object]]:
        return cast("list[dict[str, object]]", self.daemons.status()[kind])

    def counters(self) -> dict[str, int]:
        return self.daemons.counters.snapshot()


@pytest.fixture
def groups() -> dict[int, LoopbackGroup]:
    return defaultdict(LoopbackGroup)


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@asynccontextmanager
async def running(*sites: Site) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for site in sites:
            await nursery.start(site.daemons.run)
        yield
        nursery.cancel_scope.cancel()


def test_what_a_master_tells_reaches_a_backup(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east, west = Site(groups), Site(groups)
        for site in (east, west):
            site.daemons.configure(TERMS, [1, 2])
        async with running(east, west):
            east.daemons.lead(1)
            east.daemons.tell(1, changes(1, 2))
            east.daemons.tell(2, changes(3))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert west.table.content == {record(n).key: record(n) for n in (1, 2)}
            assert east.counters() == {"changes_not_led": 1}
            # What was told before leaves when the addresses go; strays do for a while.
            east.daemons.tell(1, changes(4))
            east.daemons.follow(1)
            await trio.sleep(0.1)
            assert record(4).key in west.table.content
            east.daemons.tell(1, changes(5))
            await trio.sleep(DRAIN + 0.1)
            assert record(5).key in west.table.content
            east.daemons.tell(1, changes(6))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert record(6).key not in west.table.content

    trio.run(main, clock=clock)


def test_what_has_no_sync_id_is_spoken_of_by_the_master_of_a_command_alone(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        configured, commanded, heard = Site(groups), Site(groups), Site(groups)
        configured.daemons.configure(TERMS, [5])
        async with running(configured, commanded, heard):
            heard.daemons.start(Role.BACKUP, TERMS)
            commanded.daemons.start(Role.MASTER, TERMS)
            configured.daemons.lead(5)
            configured.daemons.tell(NO_SYNC_ID, changes(1))
            commanded.daemons.tell(NO_SYNC_ID, changes(2))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert heard.table.content == {record(2).key: record(2)}
            assert commanded.counters() == configured.counters() == {}
            assert [part["speaks"] for part in commanded.parts("masters")] == [True]

    trio.run(main, clock=clock)


def test_the_status_has_all_that_is_shown_of_daemons(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east, west = Site(groups), Site(groups)
        async with running(east, west):
            assert shown_daemons(east) == []
            east.daemons.start(Role.MASTER, TERMS)
            west.daemons.start(Role.BACKUP, TERMS)
            assert "never" in shown_daemons(west)[0]
            east.daemons.tell(5, changes(1, 2, 3))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert shown_daemons(east)[0].split() == ["5", "master", "sync0", "3", "-", "-", "0"]
            assert shown_daemons(west)[0].split()[:5] == ["5", "backup", "sync0", "-", "3"]
            assert "s ago" in shown_daemons(west)[0]

    trio.run(main, clock=clock)


def shown_daemons(site: Site) -> list[str]:
    """The lines of ``lvsha status`` for the daemons of a site."""
    out = io.StringIO()
    show_status({"daemons": site.daemons.status()}, Console(file=out, width=200))
    return out.getvalue().splitlines()[2:]


def test_records_go_over_as_many_ports_as_the_setting_says(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east, west = Site(groups, sync_ports=4), Site(groups, sync_ports=4)
        for site in (east, west):
            site.daemons.configure(TERMS, [5])
        async with running(east, west):
            east.daemons.lead(5)
            east.daemons.tell(5, changes(*range(500)))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert len(west.table.content) == 500
            assert sorted(groups) == [8848, 8849, 8850, 8851]

    trio.run(main, clock=clock)


def test_daemons_start_and_stop_by_command(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east, west = Site(groups), Site(groups)
        async with running(east, west):
            east.daemons.start(Role.MASTER, TERMS)
            west.daemons.start(Role.BACKUP, Terms("sync0", 0))
            await trio.sleep(0.1)
            # The one master speaks of every sync id, and needs to lead nothing.
            east.daemons.tell(1, changes(1))
            east.daemons.tell(2, changes(2))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert len(west.table.content) == 2
            east.daemons.tell(1, changes(3))
            east.daemons.stop(Role.MASTER)
            await trio.sleep(0.1)
            assert len(west.table.content) == 3
            west.daemons.stop(Role.BACKUP)
            assert groups[8848].members == []
            assert east.daemons.running() == west.daemons.running() == []
            east.daemons.tell(1, changes(4))
            east.daemons.start(Role.MASTER, TERMS)
            west.daemons.start(Role.BACKUP, TERMS)
            east.daemons.tell(1, changes(5))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert record(5).key in west.table.content

    trio.run(main, clock=clock)


def test_a_backup_by_command_hears_its_own_sync_id_only(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east, west = Site(groups), Site(groups)
        async with running(east, west):
            east.daemons.start(Role.MASTER, TERMS)
            west.daemons.start(Role.BACKUP, Terms("sync0", 6))
            east.daemons.tell(1, changes(1))
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert west.table.content == {}
            assert west.parts("backups")[0]["counters"] == {"refused_sync_id": 1}

    trio.run(main, clock=clock)


def test_a_message_that_would_block_waits_and_goes_first(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east = Site(groups)
        east.daemons.configure(TERMS, [5])
        heard = groups[8848].join()
        async with running(east):
            east.daemons.lead(5)
            east.sockets[Role.MASTER, 8848].block()
            for number in range(1000):
                east.daemons.tell(5, changes(number))
                await trio.sleep(0.01)
            assert heard.receive() is None
            east.sockets[Role.MASTER, 8848].unblock()
            await trio.sleep(FLUSH_DELAY + 0.1)
            keys = []
            while (datagram := heard.receive()) is not None:
                keys += [one.key for one in parse(datagram).records]
            assert keys == [record(number).key for number in range(1000)]

    trio.run(main, clock=clock)


def test_the_limit_of_the_queue_is_a_setting(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east = Site(groups, sync_qlen_max=2)
        east.daemons.configure(TERMS, [5])
        async with running(east):
            east.daemons.lead(5)
            east.sockets[Role.MASTER, 8848].block()
            east.daemons.tell(5, changes(*range(41)))
            await trio.sleep(0.1)
            east.daemons.tell(5, changes(*range(1000)))
            await trio.sleep(0.1)
            [master] = east.parts("masters")
            assert master["waiting_messages"] == 2
            assert cast("dict[str, int]", master["counters"])["messages_dropped"] > 10

    trio.run(main, clock=clock)


def test_the_version_to_speak_is_a_setting(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east = Site(groups)
        east.daemons.start(Role.MASTER, TERMS)
        heard = groups[8848].join()
        async with running(east):
            east.daemons.tell(1, changes(1))
            east.settings = Settings(sync_version=0)
            east.daemons.tell(1, changes(2))
            await trio.sleep(FLUSH_DELAY + 0.1)
            versions = []
            while (datagram := heard.receive()) is not None:
                versions.append(parse(datagram).version)
            assert versions == [1, 0]

    trio.run(main, clock=clock)


def test_no_trouble_of_the_network_ends_a_daemon(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east, west = Site(groups), Site(groups)
        for site in (east, west):
            site.daemons.configure(TERMS, [5])
        async with running(east, west):
            east.daemons.lead(5)
            socket = east.sockets[Role.MASTER, 8848]
            socket.error = OSError(errno.ENETUNREACH, "no network")
            east.daemons.tell(5, changes(1))
            await trio.sleep(FLUSH_DELAY + 0.1)
            socket.error = None
            east.daemons.tell(5, changes(2))
            for datagram in (b"", b"nonsense", emit(Message(1, 9, (record(3),)))):
                west.sockets[Role.BACKUP, 8848].deliver(datagram)
            await trio.sleep(FLUSH_DELAY + 0.1)
            assert east.counters()["send_errors"] == 1
            assert list(west.table.content) == [record(2).key]
            await trio.sleep(REFRESH_INTERVAL)
            assert socket.refreshes

    trio.run(main, clock=clock)


def test_a_flood_lets_other_tasks_have_their_turn(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        west = Site(groups)
        west.daemons.configure(TERMS, [5])
        turns = 0
        async with running(west):
            for number in range(20 * BATCH_DATAGRAMS):
                west.sockets[Role.BACKUP, 8848].deliver(emit(Message(1, 5, (record(number),))))
            while len(west.table.content) < 20 * BATCH_DATAGRAMS:
                turns += 1
                await trio.lowlevel.checkpoint()
        assert turns >= 10

    trio.run(main, clock=clock)


def test_long_messages_let_other_tasks_have_their_turn_as_well(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        west = Site(groups)
        west.daemons.configure(TERMS, [5])
        most = 0
        async with running(west):
            for first in range(0, 20 * 255, 255):
                records = tuple(map(record, range(first, first + 255)))
                west.sockets[Role.BACKUP, 8848].deliver(emit(Message(1, 5, records)))
            while len(west.table.content) < 20 * 255:
                before = len(west.table.content)
                await trio.lowlevel.checkpoint()
                most = max(most, len(west.table.content) - before)
        # Of two turns of this task the order is open, so two of the other may lie between.
        assert most <= 2 * (BATCH_RECORDS + 255)

    trio.run(main, clock=clock)


def test_a_socket_that_cannot_be_opened_is_a_refusal(
    groups: dict[int, LoopbackGroup], clock: MockClock
) -> None:
    async def main() -> None:
        east = Site(groups)
        async with running(east):
            east.refusal = OSError(errno.EADDRNOTAVAIL, "no address")
            with pytest.raises(AdministrationError) as caught:
                east.daemons.start(Role.MASTER, TERMS)
            assert caught.value.code == errno.EADDRNOTAVAIL
            assert east.daemons.running() == []
            east.refusal = None
            east.daemons.start(Role.MASTER, TERMS)

    trio.run(main, clock=clock)
