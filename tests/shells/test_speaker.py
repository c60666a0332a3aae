"""The VRRP shell on a virtual clock, over networks and kernels that live in memory."""

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.actions import AcquireAddresses, Advertise, AnnounceAddresses, ReleaseAddresses
from lvsha.failover.election import Election
from lvsha.failover.reception import ReceivedMessage
from lvsha.failover.speaker import (
    BATCHES_MAX,
    CHANGES_MAX,
    JOBS_MAX,
    RouterStateChanged,
    Speaker,
    _Jobs,
)
from lvsha.failover.transport import BATCH_MAX
from lvsha.model import VrrpState
from lvsha.wire import vrrp

EAST = bytes((10, 0, 0, 1))
WEST = bytes((10, 0, 0, 2))
NORTH = bytes((10, 0, 0, 3))
STRANGER = bytes((10, 0, 0, 66))
VIRTUAL = bytes((192, 0, 2, 10))
INTERVAL = 0.1
# Priority 100 at 0.1 s.
DOWN = 0.3 + 156 * INTERVAL / 256
SKEW = 156 * INTERVAL / 256


@dataclass(eq=False)
class MemoryTransport:
    """One end of a network in memory, and a record of what was sent on it."""

    source: bytes
    neighbours: list["MemoryTransport"]
    connected: bool = True
    sent: list[tuple[float, int]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    inbox: list[ReceivedMessage] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)
    diary: list[str] = field(default_factory=list)
    destinations: tuple[bytes, ...] = (vrrp.GROUP_IPv4,)
    counters: Counters = field(default_factory=Counters)
    renumbered: bytes = b""
    trouble: str = ""

    async def wait_readable(self) -> None:
        await self.arrived.wait()

    def receive(self) -> Sequence[ReceivedMessage]:
        batch, self.inbox = self.inbox[:BATCH_MAX], self.inbox[BATCH_MAX:]
        if not self.inbox:
            self.arrived = trio.Event()
        return batch

    def refresh(self) -> bool:
        if self.trouble:
            raise HostError(self.trouble)
        self.source = self.renumbered or self.source
        return False

    def deliver(self, received: ReceivedMessage) -> None:
        self.inbox.append(received)
        self.arrived.set()

    def send(self, message: bytes, destination: bytes) -> None:
        self.sent.append((trio.current_time(), message[2]))
        self.messages.append(message)
        self.diary.append(f"send {message[2]}")
        for neighbour in self.neighbours:
            if neighbour is self or not (neighbour.connected and self.connected):
                continue
            if destination in {vrrp.GROUP_IPv4, neighbour.source}:
                neighbour.deliver(ReceivedMessage(message, self.source, destination, 255))


@dataclass(eq=False)
class MemoryAddresses:
    """A kernel in memory that does what it is told, or takes its time."""

    diary: list[str]
    held: bool = False
    done: list[tuple[float, str]] = field(default_factory=list)
    delays: dict[str, float] = field(default_factory=dict)
    fails: bool = False
    counters: Counters = field(default_factory=Counters)

    async def _do(self, what: str) -> bool:
        await trio.sleep(self.delays.get(what, 0.0))
        self.done.append((trio.current_time(), what))
        self.diary.append(what)
        if what != "announce":
            self.held = what != "release" and not self.fails
        return not self.fails

    async def prepare(self) -> None:
        pass

    async def acquire(self) -> bool:
        return await self._do("acquire")

    async def release(self) -> bool:
        return await self._do("release")

    async def refresh(self) -> bool:
        return await self._do("refresh")

    async def announce(self) -> bool:
        return await self._do("announce")

    def times(self, what: str) -> list[float]:
        return [time for time, done in self.done if done == what]


class Node:
    """A speaker with the world around it."""

    def __init__(
        self,
        network: list[MemoryTransport],
        address: bytes,
        priority: int = 100,
        *,
        changes_max: float = math.inf,
        permitted: bool = True,
        version: int = 3,
        vrid: int = 7,
        speakers: tuple[bytes, ...] = (),
        pseudo_header: bool | None = False,
        interval: float = INTERVAL,
    ) -> None:
        self.transport = MemoryTransport(address, network)
        if speakers:
            self.transport.destinations = tuple(one for one in speakers if one != address)
        network.append(self.transport)
        self.addresses = MemoryAddresses(self.transport.diary)
        election = Election(
            vrid=vrid,
            priority=priority,
            interval=interval if version == 3 else 1.0,
            preempt=True,
            address=address,
            version=version,
        )
        send, self.changes = trio.open_memory_channel[RouterStateChanged](changes_max)
        self.speaker = Speaker(
            election,
            self.transport,
            self.addresses,
            send,
            name="web",
            virtual_addresses=[VIRTUAL],
            pseudo_header=pseudo_header,
        )
        election.permit_preemption(permitted, 0.0)

    @property
    def diary(self) -> list[str]:
        return self.transport.diary

    @property
    def state(self) -> VrrpState:
        return self.speaker.election.state

    def read_changes(self) -> Iterator[RouterStateChanged]:
        while True:
            try:
                yield self.changes.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return

    def hear(self, priority: int = 200, *, hop_limit: int = 255, vrid: int = 7) -> None:
        """A message from nobody in particular."""
        message = vrrp.emit(
            vrrp.Advertisement(vrid, priority, 10, (VIRTUAL,)),
            source=WEST,
            destination=vrrp.GROUP_IPv4,
            pseudo_header=True,
        )
        self.transport.deliver(ReceivedMessage(message, WEST, vrrp.GROUP_IPv4, hop_limit))


Scenario = Callable[[trio.testing.MockClock], Awaitable[None]]


def play(scenario: Scenario) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(scenario, clock, clock=clock)


async def start(nursery: trio.Nursery, node: Node) -> None:
    await nursery.start(lambda task_status: node.speaker.run(task_status=task_status))


def test_a_lone_speaker_advertises_then_acquires_then_announces() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(DOWN + 0.01)
            assert node.diary == ["send 100", "acquire", "announce"]
            assert node.transport.sent == [(DOWN, 100)]
            await node.speaker.stop()
        assert [change.reason for change in node.read_changes()] == [
            "started",
            "master_silent",
            "stopped",
        ]

    play(scenario)


def test_a_master_renews_every_second_and_announces_again() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(DOWN + 6.05)
            assert node.addresses.times("refresh") == pytest.approx(
                [DOWN + second for second in range(1, 7)]
            )
            assert node.addresses.times("announce") == pytest.approx([DOWN, DOWN + 1, DOWN + 5])
            assert len(node.transport.sent) == 61
            await node.speaker.stop()
            count = len(node.diary)
            await trio.sleep(10)
            assert len(node.diary) == count

    play(scenario)


def test_of_two_speakers_the_higher_priority_holds_the_addresses() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        east, west = Node(network, EAST, 200), Node(network, WEST, 100)
        async with trio.open_nursery() as nursery:
            await start(nursery, west)
            await trio.sleep(5)
            await start(nursery, east)
            await trio.sleep(5)
            assert (east.state, west.state) == (VrrpState.MASTER, VrrpState.BACKUP)
            assert (east.addresses.held, west.addresses.held) == (True, False)
            assert west.speaker.status()["peer"] == {
                "address": "10.0.0.1",
                "priority": 200,
                "interval_seconds": INTERVAL,
                "checksum": "rfc9568",
                "heard_seconds_ago": pytest.approx(0.0, abs=INTERVAL),
            }
            nursery.cancel_scope.cancel()

    play(scenario)


def test_stop_removes_the_addresses_before_it_resigns_and_the_backup_follows() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        east, west = Node(network, EAST, 200), Node(network, WEST, 100)
        async with trio.open_nursery() as nursery:
            await start(nursery, east)
            await start(nursery, west)
            await trio.sleep(5)
            east.addresses.delays["release"] = 0.05
            stopped_at = trio.current_time()
            await east.speaker.stop()
            assert trio.current_time() == pytest.approx(stopped_at + 0.05)
            assert east.diary[-2:] == ["release", "send 0"]
            await trio.sleep(1)
            assert west.addresses.times("acquire") == pytest.approx([stopped_at + 0.05 + SKEW])
            await west.speaker.stop()

    play(scenario)


def test_a_cancelled_speaker_lets_go_all_the_same() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        node.addresses.delays["release"] = 0.5
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert node.diary[-2:] == ["release", "send 0"]
        assert [change.reason for change in node.read_changes()][-1] == "stopped"

    play(scenario)


def test_a_kernel_that_hangs_does_not_hold_up_the_end() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(5)
            node.addresses.delays["release"] = math.inf
            stopped_at = trio.current_time()
            await node.speaker.stop()
            assert trio.current_time() - stopped_at <= 3.0
            # The kernel takes the addresses by itself when nothing renews them.
            assert node.diary[-1] == "send 0"
            assert node.speaker.counters["operations_too_slow"] == 1

    play(scenario)


def test_many_operations_that_hang_do_not_hold_up_the_end_either() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(4)
            node.addresses.delays.update(
                dict.fromkeys(("refresh", "announce", "release"), math.inf)
            )
            # One has just begun to hang, and the release will hang as well.
            await trio.sleep(4.5)
            stopped_at = trio.current_time()
            await node.speaker.stop()
            assert trio.current_time() - stopped_at <= 3.0

    play(scenario)


def test_full_jobs_drop_what_can_be_spared_and_never_the_newest_decision() -> None:
    counters = Counters()
    jobs = _Jobs(counters)
    jobs.put(ReleaseAddresses())
    for _ in range(JOBS_MAX - 1):
        jobs.put(AnnounceAddresses())
    jobs.put(Advertise(0))
    jobs.put(AnnounceAddresses())
    assert counters["jobs_dropped"] == 2
    jobs.put(AcquireAddresses())
    assert counters["jobs_dropped"] == 2 + JOBS_MAX
    jobs.put(AnnounceAddresses())
    jobs.close()

    async def everything() -> list[object]:
        found: list[object] = []
        while (job := await jobs.next()) is not None:
            found.append(job)
        return found

    assert trio.run(everything) == [AcquireAddresses(), AnnounceAddresses()]


def test_a_slow_kernel_does_not_delay_advertisements() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        node.addresses.delays["acquire"] = 1.47
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(DOWN + 1.45)
            assert node.diary == ["send 100"] * 15
            await trio.sleep(0.1)
            assert node.diary[15:] == ["acquire", "announce", "announce", "refresh", "send 100"]
            await node.speaker.stop()

    play(scenario)


def test_a_renewal_that_is_overdue_is_not_made() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(DOWN + 0.5)
            node.addresses.delays["announce"] = 1.9
            await trio.sleep(2.45)
            # That of the first second came 1.9 s late, that of the next one in time.
            assert node.addresses.times("refresh") == pytest.approx([DOWN + 2.9])
            assert node.speaker.counters["refreshes_too_late"] == 1
            nursery.cancel_scope.cancel()

    play(scenario)


def test_wrong_messages_are_counted_and_change_nothing() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            node.hear(hop_limit=254)
            node.hear(vrid=8)
            node.transport.deliver(ReceivedMessage(b"\x31\x07", WEST, vrrp.GROUP_IPv4, 255))
            node.transport.deliver(ReceivedMessage(b"", WEST, vrrp.GROUP_IPv4, 255))
            await trio.sleep(DOWN + 0.01)
            assert node.state is VrrpState.MASTER
            assert node.speaker.election.peer is None
            node.transport.counters.add("header_malformed")
            node.addresses.counters.add("address_restored")
            shown = node.speaker.status()["counters"]
            assert isinstance(shown, dict)
            assert shown["header_malformed"] == shown["address_restored"] == 1
            assert shown["refused_length"] == 2
            assert node.speaker.counters.snapshot() == {
                "refused_length": 2,
                "advertisements_sent": 1,
                "refused_hop_limit": 1,
                "other_virtual_router": 1,
            }
            await node.speaker.stop()

    play(scenario)


def test_a_flood_does_not_keep_the_deadline_from_being_met() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(DOWN - 0.001)
            for _ in range(10 * BATCH_MAX):
                node.hear(vrid=8)
            await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked()
            assert node.state is VrrpState.MASTER
            assert node.speaker.counters["other_virtual_router"] == 10 * BATCH_MAX
            await node.speaker.stop()

    play(scenario)


def test_a_master_that_is_heard_behind_many_others_is_not_succeeded() -> None:
    async def scenario(clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            node.hear()
            await trio.sleep(0.01)
            # A freeze of some seconds, with a chatty virtual router on the link.
            for _ in range(5 * BATCH_MAX):
                node.hear(vrid=8)
            node.hear()
            clock.jump(5.0)
            await trio.testing.wait_all_tasks_blocked()
            assert node.state is VrrpState.BACKUP
            assert node.speaker.counters["advertisements_received"] == 2
            # It has fallen silent now.
            await trio.sleep(DOWN + INTERVAL)
            assert node.speaker.election.transitions["master_silent"] == 1
            await node.speaker.stop()

    play(scenario)


def test_a_flood_without_end_does_not_keep_the_deadline_from_being_met() -> None:
    async def scenario(clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        others = ReceivedMessage(b"\x31\x08", WEST, vrrp.GROUP_IPv4, 255)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            node.transport.inbox = Endless([others] * BATCH_MAX)
            node.transport.arrived.set()
            clock.jump(DOWN + 0.001)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            assert node.state is VrrpState.MASTER
            assert node.speaker.counters["other_virtual_router"] % (BATCHES_MAX * BATCH_MAX) == 0
            nursery.cancel_scope.cancel()

    play(scenario)


class Endless(list[ReceivedMessage]):
    """An inbox that is never empty."""

    def __getitem__(self, part: object) -> "Endless":  # type: ignore[override]
        return self


@pytest.mark.parametrize(("priority", "state"), [(200, VrrpState.MASTER), (50, VrrpState.BACKUP)])
def test_a_speaker_follows_its_own_address(priority: int, state: VrrpState) -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        node, other = Node(network, EAST, priority), Node(network, WEST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await start(nursery, other)
            await trio.sleep(5)
            assert node.state is state
            assert node.speaker.refresh() is False
            node.transport.renumbered = STRANGER
            assert node.speaker.refresh() is False
            assert node.speaker.status()["address"] == "10.0.0.66"
            await trio.sleep(5)
            assert node.state is state
            if state is VrrpState.MASTER:
                assert other.speaker.election.peer is not None
                assert other.speaker.election.peer.address == STRANGER
            node.transport.deliver(own_words(node, STRANGER))
            # Of two masters with the same priority the one with the greater address stays.
            node.transport.deliver(own_words(node, NORTH))
            await trio.sleep(0.01)
            assert node.speaker.counters["refused_own"] == 1
            assert node.state is state
            nursery.cancel_scope.cancel()

    play(scenario)


def own_words(node: Node, source: bytes) -> ReceivedMessage:
    """What a node would say, from an address."""
    said = vrrp.Advertisement(7, node.speaker.election.priority, 10, (VIRTUAL,))
    message = vrrp.emit(said, source=source, destination=vrrp.GROUP_IPv4, pseudo_header=False)
    return ReceivedMessage(message, source, vrrp.GROUP_IPv4, 255)


def test_a_speaker_without_an_address_says_so_and_stays_what_it_is() -> None:
    node = Node([], EAST)
    node.transport.trouble = "interface eth0 is missing"
    with pytest.raises(HostError, match="eth0 is missing"):
        node.speaker.refresh()
    assert node.speaker.election.address == EAST


def test_fault_and_recovery_wake_the_loop() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(1)
            node.speaker.fault("eth0 is down")
            await trio.testing.wait_all_tasks_blocked()
            assert node.diary[-2:] == ["release", "send 0"]
            assert node.speaker.status()["fault"] == "eth0 is down"
            await trio.sleep(100)
            assert node.diary[-1] == "send 0"
            node.speaker.recover()
            recovered_at = trio.current_time()
            await trio.sleep(1)
            assert node.addresses.times("acquire")[-1] == pytest.approx(recovered_at + DOWN)
            await node.speaker.stop()

    play(scenario)


def test_preemption_waits_for_permission() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        west = Node(network, WEST, 100)
        east = Node(network, EAST, 200, permitted=False)
        async with trio.open_nursery() as nursery:
            await start(nursery, west)
            await trio.sleep(1)
            await start(nursery, east)
            await trio.sleep(10)
            assert east.state is VrrpState.BACKUP
            east.speaker.permit_preemption(True)
            await trio.sleep(0.5)
            assert (east.state, west.state) == (VrrpState.MASTER, VrrpState.BACKUP)
            nursery.cancel_scope.cancel()

    play(scenario)


def test_a_frozen_master_gives_up_and_renews_nothing() -> None:
    async def scenario(clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(2.05)
            count = len(node.diary)
            clock.jump(10)
            await trio.testing.wait_all_tasks_blocked()
            assert node.diary[count:] == ["release"]
            assert node.state is VrrpState.BACKUP
            assert not node.speaker.election.preemption_permitted
            nursery.cancel_scope.cancel()

    play(scenario)


def test_a_backup_that_was_held_up_reads_before_it_takes_over() -> None:
    async def scenario(clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            for _ in range(30):
                node.hear()
            clock.jump(10)
            await trio.testing.wait_all_tasks_blocked()
            assert node.state is VrrpState.BACKUP
            assert node.diary == []
            nursery.cancel_scope.cancel()

    play(scenario)


def test_a_reader_that_sleeps_holds_nothing_up_and_gets_the_newest() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST, changes_max=0)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            for _ in range(CHANGES_MAX):
                node.speaker.fault("eth0 is down")
                node.speaker.recover()
            await trio.sleep(DOWN + 0.01)
            assert node.addresses.held
            told: list[RouterStateChanged] = []
            with trio.move_on_after(1):
                async for change in node.changes:
                    told.append(change)  # noqa: PERF401  # it ends by a time-out
            assert told[-1] == RouterStateChanged(
                "web", VrrpState.BACKUP, VrrpState.MASTER, "master_silent"
            )
            untold = node.speaker.counters["state_changes_untold"]
            assert len(told) + untold == 2 * CHANGES_MAX + 2
            assert len(told) in {CHANGES_MAX, CHANGES_MAX + 1}
            nursery.cancel_scope.cancel()

    play(scenario)


def test_a_reader_that_has_gone_is_no_trouble() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        await node.changes.aclose()
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(1)
            assert node.addresses.held
            await node.speaker.stop()

    play(scenario)


def test_a_kernel_far_behind_does_the_newest_thing_in_the_end() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            node.addresses.delays.update(acquire=1.9, release=1.9)
            for _ in range(2 * JOBS_MAX):
                await trio.sleep(DOWN + 0.001)
                node.speaker.fault("eth0 is down")
                node.speaker.recover()
            assert node.speaker.counters["jobs_dropped"] > 0
            await trio.sleep(DOWN + 0.001)
            assert node.state is VrrpState.MASTER
            node.addresses.delays.clear()
            await trio.sleep(3)
            assert node.addresses.held
            await node.speaker.stop()
            assert not node.addresses.held

    play(scenario)


def test_addresses_that_cannot_be_had_show_in_the_status() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        node.addresses.fails = True
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(1)
            assert node.speaker.status()["addresses_held"] is False
            node.addresses.fails = False
            await trio.sleep(1)
            assert node.speaker.status()["addresses_held"] is True
            await node.speaker.stop()

    play(scenario)


def test_status_is_json() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        before = json.loads(json.dumps(node.speaker.status()))
        assert before["state"] == "INIT"
        assert before["since_seconds"] is None
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            node.hear()
            await trio.sleep(1)
            status = json.loads(json.dumps(node.speaker.status()))
            assert status["state"] == "MASTER"
            assert status["peer"]["checksum"] == "keepalived"
            assert status["transitions"] == {"master_silent": 1, "started": 1}
            await node.speaker.stop()

    play(scenario)


def test_stop_before_the_start_ends_at_once() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST)
        await node.speaker.stop()
        await node.speaker.run()
        assert node.diary == []

    play(scenario)


def test_peers_are_sent_to_one_by_one_and_settle() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        addresses = (EAST, WEST, NORTH)
        nodes = [Node(network, one, 100 + one[3], speakers=addresses) for one in addresses]
        stranger = Node(network, STRANGER, 250, speakers=(*addresses, STRANGER))
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await start(nursery, node)
            await trio.sleep(5)
            assert [node.addresses.held for node in nodes] == [False, False, True]
            await start(nursery, stranger)
            await trio.sleep(5)
            # It hears them, has the higher priority and talks; they do not listen to it.
            assert [node.addresses.held for node in nodes] == [False, False, True]
            refused = nodes[2].speaker.counters["refused_stranger"]
            assert refused == stranger.speaker.counters["advertisements_sent"] > 0
            last = nodes[2].speaker.status()["last_refused"]
            assert last == {
                "cause": "stranger",
                "address": "10.0.0.66",
                "heard_seconds_ago": pytest.approx(0.0, abs=INTERVAL),
            }
            nursery.cancel_scope.cancel()

    play(scenario)


def test_version_2_settles_and_tells_of_a_peer_with_version_3() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        east = Node(network, EAST, 200, version=2)
        west = Node(network, WEST, 100, version=2)
        modern = Node(network, NORTH, 50)
        async with trio.open_nursery() as nursery:
            await start(nursery, east)
            await start(nursery, west)
            await trio.sleep(10)
            assert (east.addresses.held, west.addresses.held) == (True, False)
            assert west.speaker.status()["peer"] == {
                "address": "10.0.0.1",
                "priority": 200,
                "interval_seconds": 1.0,
                "checksum": None,
                "heard_seconds_ago": pytest.approx(0.0, abs=1.0),
            }
            await start(nursery, modern)
            await trio.sleep(10)
            assert modern.addresses.held
            assert (east.addresses.held, west.addresses.held) == (True, False)
            assert east.speaker.counters["refused_version"] > 0
            assert modern.speaker.counters["refused_version"] > 0
            last = json.loads(json.dumps(modern.speaker.status()))["last_refused"]
            assert (last["cause"], last["theirs"], last["ours"]) == ("version", 2, 3)
            nursery.cancel_scope.cancel()

    play(scenario)


@pytest.mark.parametrize(
    ("pseudo_header", "conventions"),
    [(None, [False, True]), (True, [True, True]), (False, [False, False])],
)
def test_the_checksum_follows_the_peer_unless_it_is_given(
    pseudo_header: bool | None, conventions: list[bool]
) -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        node = Node([], EAST, pseudo_header=pseudo_header)
        async with trio.open_nursery() as nursery:
            await start(nursery, node)
            await trio.sleep(DOWN + 0.01)
            node.hear(50)
            await trio.sleep(0.01)
            sent = [
                vrrp.parse(message, source=EAST, destination=vrrp.GROUP_IPv4).pseudo_header
                for message in node.transport.messages
            ]
            assert sent == conventions
            nursery.cancel_scope.cancel()

    play(scenario)


def test_ten_milliseconds_are_enough_for_an_interval() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        east = Node(network, EAST, 200, interval=0.01)
        west = Node(network, WEST, 100, interval=0.01)
        async with trio.open_nursery() as nursery:
            await start(nursery, east)
            await start(nursery, west)
            await trio.sleep(1)
            assert (east.addresses.held, west.addresses.held) == (True, False)
            peer = west.speaker.election.peer
            assert peer is not None
            assert peer.interval_cs == 1
            assert len(east.transport.sent) == pytest.approx(97, abs=2)
            last, _ = east.transport.sent[-1]
            east.transport.connected = False
            await trio.sleep(1)
            assert west.addresses.times("acquire") == pytest.approx(
                [last + 0.03 + 0.0061], abs=1e-3
            )
            nursery.cancel_scope.cancel()

    play(scenario)


def test_two_routers_on_one_interface_do_not_disturb_each_other() -> None:
    async def scenario(_clock: trio.testing.MockClock) -> None:
        network: list[MemoryTransport] = []
        one = Node(network, EAST, 100)
        other = Node(network, WEST, 200, vrid=8)
        async with trio.open_nursery() as nursery:
            await start(nursery, one)
            await start(nursery, other)
            await trio.sleep(5)
            assert one.addresses.held
            assert other.addresses.held
            for node in (one, other):
                assert node.speaker.counters["other_virtual_router"] > 0
                assert node.speaker.election.peer is None
                assert node.speaker.status()["last_refused"] is None
            nursery.cancel_scope.cancel()

    play(scenario)
