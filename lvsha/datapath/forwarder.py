"""Carry frames between packet sockets and the director.

The shell of the datapath: a task that takes frames from the sockets of all interfaces, asks
the director and sends what it says; tasks that keep those sockets open, follow the
kernel's network, guard the interception rules, and end connections whose time is over. It
decides nothing itself.

What a frame changed is told before it is sent on, so a client never has an answer through
a connection that the backup was not told of.

A packet that the interception rules have taken from the host, and that the director accepts
as none of its own, is handed to the host again; so are the packets of real servers on this
host (`lvsha.datapath.host_link`). What comes back from there is the director's or nobody's.

Waiting is the expensive part: a turn of Trio's loop costs as much as five frames. Frames
come in bursts, so after each one the task waits for the next with a blocking poll of its
own, for `LINGER` at most, and gives other tasks their turn when nothing came or when
`TURN` is over. Their price is that they may run so much later.

One frame cannot take the node down. An exception while a frame is handled is contained to
that frame, kept, logged and counted; only when that happens `SURPRISES_MAX` times with no
turn in order between is something wrong with the process, and it gives up so that the peer
takes over.
"""

import errno
import math
import select
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import structlog
import trio

from lvsha.counters import Counters
from lvsha.datapath import rewrite
from lvsha.datapath.claims import filter_addresses
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.garbage import Collector, short_pauses
from lvsha.datapath.guard import Guard
from lvsha.datapath.host_link import HostLink
from lvsha.datapath.memory import available_pages
from lvsha.datapath.network import HOST, NetworkChange, Outgoing
from lvsha.datapath.pulse import Pulse
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import Reassembled
from lvsha.datapath.rules import HOST_INTERFACE
from lvsha.datapath.services import ToClient
from lvsha.datapath.surprises import FRAME_BYTES_MAX, Surprises
from lvsha.datapath.tap import Instruction, Tap, socket_filter
from lvsha.datapath.verdicts import ACCEPT, Accept, ErrorToClient, Verdict
from lvsha.datapath.watcher import Watcher
from lvsha.errors import HostError
from lvsha.log import LimitedLog
from lvsha.model import VirtualMac
from lvsha.settings import MODE_AUTOMATIC, MODE_AUTOMATIC_ON
from lvsha.wire import vnet

BATCH_FRAMES: Final = 64
"""Frames taken from one interface before the next one is looked at."""
LINGER: Final = 0.001
"""Seconds; the shortest time-out that epoll has."""
TURN: Final = 0.002
"""Seconds of frames without a pause after which other tasks have their turn."""
SURPRISES_MAX: Final = 100
CHORE_INTERVAL: Final = 0.1
WARM_INTERVAL: Final = 2.0
MEMORY_INTERVAL: Final = 1.0
"""As often as the director looks whether memory is short."""
TTL_MAX: Final = 255
REOPEN_INTERVAL: Final = 0.2
ANSWER_INTERVAL: Final = 0.002
"""As often as it is looked whether peers have answered, while frames wait for that."""
PULSES: Final = 4
"""How often in the time after which frames are stale it is noted that we run."""

LEFT: Final = Accept()
"""Like `ACCEPT`, of a frame that the host's own stack has seen as well."""

_log = structlog.get_logger()


class Forwarder:
    """Runs a director on the interfaces of this host.

    Args:
        director: with its services.
        interfaces: names of those where frames of services arrive.
        on_change: called, without waiting, when the director has changes to be told, or
            questions to be asked. Changes that it leaves with the director it takes later.
        stale_after: seconds of standstill after which frames that wait are forgotten: the
            process was stopped, and whoever sent them has repeated them to the peer.
        virtual_macs: at which this host may have virtual addresses.

    Attributes:
        counters: what it met that is no drop.
        surprises: frames whose handling raised an exception.
    """

    def __init__(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
        virtual_macs: Collection[VirtualMac] = (),
    ) -> None:
        self.counters = Counters()
        self.surprises = Surprises()
        self._director = director
        self._interfaces = tuple(dict.fromkeys(interfaces))
        self._on_change = on_change
        self._watcher = Watcher()
        self._host_link = HostLink()
        self._guard = Guard(
            director,
            self._interfaces,
            self._host_link,
            self.counters,
            self._set_filters,
            virtual_macs,
        )
        self._macs: set[bytes] = set()
        self._epoll = select.epoll()
        self._pulse = Pulse()
        self._frame = Frame()
        self._receivers: dict[int, Tap] = {}
        self._senders: dict[int, Tap] = {}
        self._sends: dict[int, Callable[[bytes | bytearray | memoryview], int]] = {}
        self._untold = director.registry.untold
        self._questions = director.questions
        self._asked = trio.Event()
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
        self._learn_clock()
        try:
            await self._mirror()
            await self._guard.open()
            self._pulse.open()
            self._epoll.register(self._pulse, select.EPOLLIN)
            with short_pauses() as collector:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow)
                    nursery.start_soon(self._resolve)
                    nursery.start_soon(self._await_answers)
                    nursery.start_soon(self._guard.run)
                    nursery.start_soon(self._housekeep, collector)
                    nursery.start_soon(self._stay_alive)
                    for interface in self._interfaces:
                        await nursery.start(self._keep_open, interface)
                    nursery.start_soon(self._carry)
                    task_status.started()
        finally:
            self._watcher.close()
            self._guard.close()
            self._epoll.close()
            self._pulse.close()
            self._host_link.close()
            for tap in (*self._receivers.values(), *self._senders.values()):
                tap.close()

    def services_changed(self) -> None:
        """Services, real servers, marks or settings are others now: take it over soon."""
        self._guard.change()

    def listen_to(self, mac: bytes | None, *, held: bool) -> None:
        """Take frames to a virtual MAC address while its addresses are held; None is none."""
        if mac is not None and held != (mac in self._macs):
            (self._macs.add if held else self._macs.discard)(mac)
            self._set_filters()

    async def settled(self) -> None:
        """Wait until all changes of services so far are in force on the host."""
        await self._guard.settled()

    async def beat(self) -> None:
        """Return when the loop that carries frames has had a turn."""
        await self._pulse.beat()

    async def network_changed(self) -> None:
        """Wait until links, addresses, routes or neighbours of the host change."""
        await self._changed.wait()

    # The host's network

    async def _mirror(self) -> None:
        self._director.network.clear()
        self._learn(await self._watcher.read_all())
        self._director.keep_ways_warm()

    def _learn(self, changes: Collection[NetworkChange]) -> None:
        for change in changes:
            self._send(self._director.learn(change))
        self._guard.note(changes)
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

    def _note_questions(self) -> None:
        """Have the peers asked about frames that wait for that."""
        if self._questions:
            self._on_change()
            self._asked.set()

    async def _await_answers(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            while self._director.asks:
                await trio.sleep(ANSWER_INTERVAL)
                self._send(self._director.release(trio.current_time()))
                if self._untold:
                    self._on_change()

    def _set_filters(self) -> None:
        """Let the sockets have what is claimed now; its rules are in force."""
        instructions = self._filter()
        for tap in self._receivers.values():
            try:
                tap.attach(instructions)
            except OSError as error:
                self.counters.add("filters_refused")
                self._log.warning("filter refused", trio.current_time(), error=str(error))
        if self._host_link.is_open and HOST not in self._sends:
            self._sends[HOST] = self._host_link.send
            self._epoll.register(self._host_link, select.EPOLLIN)

    def _filter(self) -> list[Instruction]:
        return socket_filter(filter_addresses(self._guard.claims), self._macs)

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
                await self._guard.apply()
                return self._open(interface)
            except HostError as error:
                self.counters.add("interfaces_not_opened")
                self._log.warning("interface not opened", trio.current_time(), error=str(error))

    async def _carry(self) -> None:
        """Take frames, turn by turn."""
        poll = self._epoll.poll
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            began_at = now = trio.current_time()
            self._note_alive(now)
            surprises = self._surprises
            taps = {tap.socket.fileno(): tap for tap in self._receivers.values()}
            host, pulse = self._host_link.fileno(), self._pulse.fileno()
            while now < began_at + TURN and (ready := poll(LINGER)):
                for number, _ in ready:
                    if number == host:
                        self._drain_host(now)
                    elif number == pulse:
                        self._pulse.answer()
                    elif self._guard.pending:
                        self._drain(taps[number], now, self._decide_with_care)
                    else:
                        self._drain(taps[number], now, self._director.decide)
                now = trio.current_time()
            if surprises == self._surprises:
                self._surprises = 0

    def _drain(self, tap: Tap, now: float, decide: Callable[[Frame, int, float], Verdict]) -> None:
        """Handle the frames that wait on an interface."""
        frame, view, sends = self._frame, self._frame.view, self._sends
        receive_into, untold = tap.receive_into, self._untold
        carry_out = self._director.carry_out
        waiting = 0  # changes that are known, and left to be told with others
        try:
            for _ in range(BATCH_FRAMES):
                received = receive_into(view)
                try:
                    verdict = decide(frame, received, now)
                    if verdict is ACCEPT:
                        outgoing = self._hand_back(frame)
                    else:
                        outgoing = carry_out(frame, verdict, now)
                except Exception as error:
                    # The peer would get this frame next, and must not die of it either.
                    if self._count_surprise(error, received, tap.interface) >= SURPRISES_MAX:
                        raise
                    continue
                if len(untold) != waiting:
                    self._on_change()
                    waiting = len(untold)
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
        self._note_questions()

    def _decide_with_care(self, frame: Frame, received: int, now: float) -> Verdict:
        """Decide about a frame while some services are not in force yet."""
        if frame.read(received) is None and self._guard.leaves(frame):
            return LEFT
        return self._director.decide(frame, received, now)

    def _hand_back(self, frame: Frame) -> Sequence[Outgoing]:
        """What the rules took from the host and the director does not want."""
        if frame.fragment or not self._guard.claims.takes(frame, self._director.network.is_local):
            return ()
        self.counters.add("handed_back")
        return ((HOST, frame.view[: frame.end]),)

    def _drain_host(self, now: float) -> None:
        """Handle what servers on this host reply."""
        frame = self._frame
        try:
            for _ in range(BATCH_FRAMES):
                received = self._host_link.receive_into(frame)
                try:
                    outgoing = self._process_reply(received, now)
                except Exception as error:
                    if self._count_surprise(error, received, HOST_INTERFACE) >= SURPRISES_MAX:
                        raise
                    continue
                if self._untold:
                    self._on_change()
                self._send(outgoing)
        except BlockingIOError:
            pass
        except OSError:
            self.counters.add("receive_errors")
        self._note_wanted()

    def _process_reply(self, received: int, now: float) -> Sequence[Outgoing]:
        """Ask the director about a packet that this host has sent.

        It leaves with the time to live that the host gave it: it has passed no router.
        """
        frame, director = self._frame, self._director
        verdict = director.decide(frame, received, now)
        if verdict is ACCEPT:
            # Its flow came through the director, whose connection has ended since.
            if not frame.fragment:
                self.counters.add("local_replies_unclaimed")
            return ()
        if isinstance(verdict, ToClient | ErrorToClient):
            if frame.ttl < TTL_MAX:
                rewrite.count_up(frame)
            self._let_be_cut(frame)
        return director.carry_out(frame, verdict, now)

    def _let_be_cut(self, frame: Frame) -> None:
        """A sender may cut what is too long for IPv6, a router must not (RFC 8200, 4.5).

        This host is both, and would have cut the packet if it had known its way.
        """
        if frame.family == 6 and frame.key and not frame.buffer[vnet.GSO_TYPE_AT]:
            hop = self._director.network.hop(frame.destination)
            if hop is not None and frame.length > hop.mtu:
                frame.special = True
                frame.arrived = Reassembled(b"", hop.mtu, dont_fragment=False, pieces=())

    def _count_surprise(self, error: Exception, received: int, interface: str) -> int:
        self._director.drops[Reason.SURPRISE] += 1
        self._surprises += 1
        view = self._frame.view[:received]
        if self.surprises.keep(error, view, interface, time.time()):
            _log.error(
                "a frame could not be handled",
                interface=interface,
                frame=bytes(view[:FRAME_BYTES_MAX]).hex(),
                exc_info=error,
            )
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

    def _learn_clock(self) -> None:
        self._director.learn_clock(time.time() - trio.current_time())

    def _learn_memory(self) -> None:
        """Tell the director how much memory is free, while it wants to know."""
        settings = self._director.settings
        modes = {settings.drop_entry, settings.drop_packet, settings.secure_tcp}
        if modes & {MODE_AUTOMATIC, MODE_AUTOMATIC_ON}:
            try:
                self._director.learn_memory(available_pages())
            except OSError:
                self.counters.add("memory_unknown")

    async def _housekeep(self, collector: Collector) -> None:
        warm_at = trio.current_time() + WARM_INTERVAL
        memory_at = -math.inf
        while True:
            await trio.sleep(CHORE_INTERVAL)
            more, now = True, trio.current_time()
            if now >= memory_at:
                self._learn_memory()
                memory_at = now + MEMORY_INTERVAL
            while more:
                more = self._director.housekeep(now)
                if self._untold:
                    self._on_change()
                await trio.lowlevel.checkpoint()
                now = trio.current_time()
            self._note_wanted()
            if now >= warm_at:
                self._director.add_chore(self._director.warm_ways())
                self._learn_clock()
                warm_at = now + WARM_INTERVAL
            for tap in self._receivers.values():
                self.counters.add("frames_lost_in_receive_queue", tap.lost())
            collector.run(len(self._director.registry.table), now)
