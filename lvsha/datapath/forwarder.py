"""Carry frames between packet sockets and the director.

The shell of the datapath: a task that takes frames from the sockets of all interfaces, asks
the director and sends what it says; tasks that keep those sockets open, follow the
kernel's network, guard the interception rules, and end connections whose time is over. It
decides nothing itself.

What a frame changed is told before it is sent on, so a client never has an answer through
a connection that the backup was not told of.

Waiting is the expensive part: a turn of Trio's loop costs as much as five frames. Frames
come in bursts, so after each one the task waits for the next with a blocking poll of its
own, for `LINGER` at most, and gives other tasks their turn when nothing came or when
`TURN` is over. Their price is that they may run so much later.

One frame cannot take the node down. An exception while a frame is handled is contained to
that frame, logged and counted; only when that happens `SURPRISES_MAX` times with no turn in
order between is something wrong with the process, and it gives up so that the peer takes
over.
"""

import errno
import math
import select
from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog
import trio

from lvsha.counters import Counters
from lvsha.datapath import interception
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.interception import Endpoint, RuleWatcher
from lvsha.datapath.network import NetworkChange, Outgoing
from lvsha.datapath.reasons import Reason
from lvsha.datapath.tap import Tap, socket_filter
from lvsha.datapath.watcher import Watcher
from lvsha.errors import HostError
from lvsha.log import LimitedLog
from lvsha.model import ForwardMethod, Protocol

BATCH_FRAMES: Final = 64
"""Frames taken from one interface before the next one is looked at."""
LINGER: Final = 0.001
"""Seconds; the shortest time-out that epoll has."""
TURN: Final = 0.002
"""Seconds of frames without a pause after which other tasks have their turn."""
SURPRISES_MAX: Final = 100
EXPIRY_INTERVAL: Final = 1.0
WARM_INTERVAL: Final = 10.0
REOPEN_INTERVAL: Final = 0.2
PULSES: Final = 4
"""How often in the time after which frames are stale it is noted that we run."""

_log = structlog.get_logger()


class Forwarder:
    """Runs a director on the interfaces of this host.

    Args:
        director: with its services.
        interfaces: names of those where frames of services arrive.
        on_change: called, without waiting, when the director has changes to be told.
        stale_after: seconds of standstill after which frames that wait are forgotten: the
            process was stopped, and whoever sent them has repeated them to the peer.
    """

    def __init__(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
    ) -> None:
        self.counters = Counters()
        self._director = director
        self._interfaces = tuple(dict.fromkeys(interfaces))
        self._on_change = on_change
        self._watcher = Watcher()
        self._rules = RuleWatcher()
        self._epoll = select.epoll()
        self._frame = Frame()
        self._receivers: dict[int, Tap] = {}
        self._senders: dict[int, Tap] = {}
        self._sends: dict[int, Callable[[bytes | bytearray | memoryview], int]] = {}
        self._untold = director.untold
        self._changed = trio.Event()
        self._wanted = trio.Event()
        self._log = LimitedLog(_log)
        self._surprises = 0
        self._stale_after = stale_after
        self._alive_at = math.inf

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Forward until cancelled; reports "started" once the first frames can be handled.

        Raises:
            HostError: something the host must have is missing.
        """
        await self._watcher.open()
        self._alive_at = trio.current_time()
        try:
            await self._mirror()
            await self._intercept()
            await self._rules.open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow)
                nursery.start_soon(self._resolve)
                nursery.start_soon(self._guard_rules)
                nursery.start_soon(self._housekeep)
                nursery.start_soon(self._stay_alive)
                for interface in self._interfaces:
                    await nursery.start(self._keep_open, interface)
                nursery.start_soon(self._carry)
                task_status.started()
        finally:
            self._watcher.close()
            self._rules.close()
            self._epoll.close()
            for tap in (*self._receivers.values(), *self._senders.values()):
                tap.close()

    async def network_changed(self) -> None:
        """Wait until links, addresses, routes or neighbours of the host change."""
        await self._changed.wait()

    # The host's network

    async def _mirror(self) -> None:
        self._director.network.clear()
        self._learn(await self._watcher.read_all())
        self._director.keep_ways_warm()

    def _learn(self, changes: Iterable[NetworkChange]) -> None:
        for change in changes:
            self._send(self._director.learn(change))
        self._changed.set()
        self._changed = trio.Event()
        self._note_wanted()

    async def _follow(self) -> None:
        while True:
            changes = await self._watcher.changes()
            if changes is None:
                await self._mirror()
            else:
                self._learn(changes)

    def _note_wanted(self) -> None:
        if self._director.network.wanted:
            self._wanted.set()

    async def _resolve(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            wanted = list(self._director.network.wanted)
            self._director.network.wanted.clear()
            await self._watcher.resolve(wanted)

    async def _intercept(self) -> None:
        present = [
            name for name in self._interfaces if self._director.network.link_named(name) is not None
        ]
        services = self._director.services.values()
        await interception.intercept(
            present,
            [Endpoint(Protocol(s.protocol), s.address, s.port) for s in services],
            [
                Endpoint(Protocol(service.protocol), server.address, server.port)
                for service in services
                for server in service.servers
                if server.method is ForwardMethod.NAT
            ],
        )

    async def _guard_rules(self) -> None:
        """Put the rules back when someone else has taken them away."""
        while True:
            await self._rules.removed()
            self._log.warning("interception rules were removed", trio.current_time())
            await self._restore_rules()

    async def _restore_rules(self) -> None:
        while True:
            try:
                await self._intercept()
            except HostError as error:
                self.counters.add("interception_not_restored")
                self._log.warning("rules not restored", trio.current_time(), error=str(error))
                await trio.sleep(REOPEN_INTERVAL)
            else:
                self.counters.add("interception_restored")
                return

    # Frames

    async def _keep_open(
        self, interface: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Have a socket on an interface, another one if it goes away and comes back.

        At the start a missing interface is an error; later it is waited for.
        """
        index, tap = self._open(interface)
        task_status.started()
        while True:
            self._receivers[index] = tap
            self._sends[index] = tap.send
            self._epoll.register(tap.socket, select.EPOLLIN)
            while self._is_on(interface, index):
                await self.network_changed()
            self._epoll.unregister(tap.socket)
            del self._receivers[index], self._sends[index]
            tap.close()
            index, tap = await self._open_again(interface)

    def _is_on(self, interface: str, index: int) -> bool:
        link = self._director.network.link_named(interface)
        return link is not None and link.index == index

    def _open(self, interface: str) -> tuple[int, Tap]:
        link = self._director.network.link_named(interface)
        if link is None:
            raise HostError(f"the interface {interface} does not exist on this machine")
        try:
            return link.index, Tap(interface, self._filter())
        except PermissionError as error:
            raise HostError(
                "the right to open packet sockets is missing; run as root, or with "
                "the capabilities CAP_NET_RAW and CAP_NET_ADMIN"
            ) from error
        except OSError as error:
            raise HostError(f"the interface {interface} cannot be opened: {error}") from error

    async def _open_again(self, interface: str) -> tuple[int, Tap]:
        while True:
            changed = self._changed
            with trio.move_on_after(REOPEN_INTERVAL):
                await changed.wait()
            try:
                # The rules of an interface go away with it, and come before its frames.
                await self._intercept()
                return self._open(interface)
            except HostError as error:
                self.counters.add("interfaces_not_opened")
                self._log.warning("interface not opened", trio.current_time(), error=str(error))

    def _filter(self) -> list[tuple[int, int, int, int]]:
        services = self._director.services.values()
        return socket_filter(
            {service.address for service in services},
            {
                server.address
                for service in services
                for server in service.servers
                if server.method is ForwardMethod.NAT
            },
        )

    async def _carry(self) -> None:
        """Take frames, turn by turn."""
        poll = self._epoll.poll
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            began_at = now = trio.current_time()
            self._note_alive(now)
            surprises = self._surprises
            taps = {tap.socket.fileno(): tap for tap in self._receivers.values()}
            while now < began_at + TURN and (ready := poll(LINGER)):
                for number, _ in ready:
                    self._drain(taps[number], now)
                now = trio.current_time()
            if surprises == self._surprises:
                self._surprises = 0

    def _drain(self, tap: Tap, now: float) -> None:
        """Handle the frames that wait on an interface."""
        frame, view, sends = self._frame, self._frame.view, self._sends
        receive_into, process, untold = tap.receive_into, self._director.process, self._untold
        try:
            for _ in range(BATCH_FRAMES):
                received = receive_into(view)
                try:
                    outgoing = process(frame, received, now)
                except Exception:
                    # The peer would get this frame next, and must not die of it either.
                    if self._count_surprise(frame, received) >= SURPRISES_MAX:
                        raise
                    continue
                if untold:
                    self._on_change()
                for link, data in outgoing:
                    try:
                        sends[link](data)
                    except (KeyError, OSError) as error:
                        self._send_otherwise(link, data, error)
        except BlockingIOError:
            pass
        except OSError:
            # ENETDOWN comes once when a link goes down; the socket goes on working if the
            # same link comes back.
            self.counters.add("receive_errors")
        self._note_wanted()

    def _count_surprise(self, frame: Frame, received: int) -> int:
        self._director.drops[Reason.SURPRISE] += 1
        self._surprises += 1
        _log.exception("a frame could not be handled", frame=bytes(frame.view[:received]).hex())
        return self._surprises

    def _send(self, outgoing: Iterable[Outgoing]) -> None:
        for link, data in outgoing:
            try:
                self._sends[link](data)
            except (KeyError, OSError) as error:
                self._send_otherwise(link, data, error)

    def _send_otherwise(
        self, link: int, data: bytes | bytearray | memoryview, error: KeyError | OSError
    ) -> None:
        """Send on a link that had no socket yet, or count why a frame was not sent."""
        drops = self._director.drops
        if isinstance(error, KeyError):
            if self._open_sender(link):
                self._send([(link, data)])
            else:
                drops[Reason.LINK_DOWN] += 1
        elif isinstance(error, BlockingIOError) or error.errno == errno.ENOBUFS:
            drops[Reason.SEND_QUEUE_FULL] += 1
        elif error.errno in {errno.ENETDOWN, errno.ENXIO, errno.ENODEV}:
            drops[Reason.LINK_DOWN] += 1
            sender = self._senders.pop(link, None)
            if sender is not None:
                del self._sends[link]
                sender.close()
        else:
            drops[Reason.SEND_REFUSED] += 1

    def _open_sender(self, index: int) -> bool:
        """Open a socket for a link on which nothing is received."""
        link = self._director.network.links.get(index)
        if link is None:
            return False
        try:
            sender = Tap(link.name)
        except OSError:
            self.counters.add("taps_refused")
            return False
        self._senders[index] = sender
        self._sends[index] = sender.send
        return True

    # Time

    async def _stay_alive(self) -> None:
        """Notice a standstill even if it is not a frame that ends it."""
        while True:
            await trio.sleep(self._stale_after / PULSES)
            self._note_alive(trio.current_time())

    def _note_alive(self, now: float) -> None:
        """Forget waiting frames if nothing ran for too long."""
        standstill = now - self._alive_at
        self._alive_at = now
        if standstill <= self._stale_after:
            return
        forgotten = sum(tap.forget_waiting() for tap in self._receivers.values())
        self._director.drops[Reason.STALE] += forgotten
        _log.warning("stood still", seconds=round(standstill, 3), frames_forgotten=forgotten)

    async def _housekeep(self) -> None:
        warm_at = trio.current_time() + WARM_INTERVAL
        while True:
            await trio.sleep(EXPIRY_INTERVAL)
            now = trio.current_time()
            while (deadline := self._director.deadline) is not None and deadline <= now:
                self._director.expire(now)
                if self._untold:
                    self._on_change()
                await trio.lowlevel.checkpoint()
            if now >= warm_at:
                self._director.keep_ways_warm()
                self._note_wanted()
                warm_at = now + WARM_INTERVAL
            for tap in self._receivers.values():
                self.counters.add("frames_lost_in_receive_queue", tap.lost())
