"""Speak VRRP for one virtual router: the shell around `Election`.

It waits for messages or for the election's deadline, whichever is first, hands them to the
core, and carries out what the core returns. It decides nothing.

Two orders matter:

* Messages that have arrived are read before the deadline is looked at, all that the socket
  holds. A program that was held up finds the master's advertisements there, maybe behind many
  of other virtual routers, and must not take over because it read them late.
* Advertisements leave at once. Whatever the kernel has to do (adding, removing, announcing
  and renewing addresses) goes through a bounded queue to a task of its own, in order, and
  so does a resignation, which must not leave before the addresses are gone.

Addresses are renewed here, in the loop that listens and advertises, and only right after
the core was asked. A loop that hangs renews nothing, and one that was frozen has given the
addresses up before it could renew them.

Queues: see `_Jobs` and `CHANGES_MAX`.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.failover.actions import (
    AcquireAddresses,
    Action,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
    TakeoverDue,
    TwoMasters,
)
from lvsha.failover.addresses import Addresses
from lvsha.failover.election import Election
from lvsha.failover.reception import (
    Difference,
    OtherRouter,
    ReceivedMessage,
    Reception,
    Refused,
)
from lvsha.failover.transport import BATCH_MAX, AdvertisementTransport
from lvsha.log import LimitedLog
from lvsha.model import IPv4_BYTES, VrrpState, format_address
from lvsha.wire import vrrp, vrrp_versions

# How often the addresses are renewed; their lifetime (addresses.LIFETIME) is several times
# as long.
REFRESH_INTERVAL: Final = 1.0
# How often who does not hold them gets ready to.
PREPARE_INTERVAL: Final = 10.0
# The longest that one operation on addresses may take before the next one is tried, and
# the longest that the end may be held up by all of them.
OPERATION_TIME_MAX: Final = 2.0
STOP_TIME_MAX: Final = 3.0
# Batches read before the deadline is looked at: more messages than wait in a socket
# (transport.RECEIVE_BUFFER_BYTES), and few enough that a flood holds nothing up for long.
BATCHES_MAX: Final = 8
# Unread state changes that are kept. With more, the oldest are forgotten: the reader needs
# the newest, and one that is so far behind can look at `status`.
CHANGES_MAX: Final = 64
JOBS_MAX: Final = 32
PSEUDO_HEADERS: Final[Mapping[str, bool | None]] = {
    "auto": None,
    "rfc9568": False,
    "keepalived": True,
}
"""The conventions of the IPv4 checksum by their names; see `Speaker`."""


@dataclass(frozen=True, slots=True)
class RouterStateChanged:
    """The state of a virtual router on this node is another."""

    router: str
    old: VrrpState
    new: VrrpState
    reason: str


@dataclass(frozen=True, slots=True)
class LastRefused:
    """The newest message for the virtual router that was refused."""

    cause: str
    source: bytes
    details: Mapping[str, object]
    heard_at: float


@dataclass(frozen=True, slots=True)
class _RefreshAddresses:
    """Renew the lifetime of the addresses, if that is not overdue by then."""

    asked_at: float


@dataclass(frozen=True, slots=True)
class _PrepareAddresses:
    """Get ready to acquire the addresses."""


_Job = (
    AcquireAddresses
    | ReleaseAddresses
    | AnnounceAddresses
    | Advertise
    | _RefreshAddresses
    | _PrepareAddresses
)


class _Jobs:
    """What the kernel has still to do, in order, at most `JOBS_MAX`.

    When it is full, the kernel is far behind. An acquisition or a release then makes
    everything before it pointless and replaces it; anything else is dropped.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._waiting: deque[_Job] = deque()
        self._arrived = trio.Event()
        self._closed = False

    def put(self, job: _Job) -> None:
        """Append a job."""
        if len(self._waiting) >= JOBS_MAX:
            if not isinstance(job, AcquireAddresses | ReleaseAddresses):
                self._counters.add("jobs_dropped")
                return
            self._counters.add("jobs_dropped", len(self._waiting))
            self._waiting.clear()
        self._waiting.append(job)
        self._arrived.set()

    def close(self) -> None:
        """No more will be put."""
        self._closed = True
        self._arrived.set()

    async def next(self) -> _Job | None:
        """The oldest job; None when closed and empty."""
        while not self._waiting:
            if self._closed:
                return None
            await self._arrived.wait()
            self._arrived = trio.Event()
        return self._waiting.popleft()


class Speaker:
    """One virtual router on the wire.

    Attributes:
        name: of the virtual router, for people.
        election: the core; only this object calls it.
        counters: messages refused, operations that failed.
    """

    def __init__(
        self,
        election: Election,
        transport: AdvertisementTransport,
        addresses: Addresses,
        changes: trio.MemorySendChannel[RouterStateChanged],
        *,
        name: str,
        virtual_addresses: Sequence[bytes],
        pseudo_header: bool | None,
        hop_limit_min: int = vrrp.HOP_LIMIT,
        speakers: Collection[bytes] = (),
        on_change: Callable[[RouterStateChanged], None] | None = None,
        on_due: Callable[[str], None] | None = None,
        on_rival: Callable[[str, str, int], None] | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        """Put the parts together; nothing is sent before `run`.

        Args:
            election: not yet started.
            transport: open, and closed by the caller after `run`.
            addresses: those of this virtual router.
            changes: where state changes are told. A slow reader holds nothing up.
            name: of the virtual router.
            virtual_addresses: as they are advertised. Those of another family than the
                transport's are left out, and link-local ones come first (RFC 9568,
                section 5.2.9).
            pseudo_header: whether the IPv4 checksum of version 3 includes it, as
                keepalived's does; None to do as the peer does that was heard last.
            hop_limit_min: what messages of unicast peers must have left at least.
            speakers: who alone is heard on the group; empty for everybody.
            on_change: called with each state change in the step that makes it, for what
                must follow at once; it neither waits nor calls this object.
            on_due: called with the name when the election wants a `consent`, which may be
                given at once.
            on_rival: called with the name when there is a second master, and its address and
                priority.
            log: for state changes and refused messages.
        """
        self.name = name
        self.election = election
        self.counters = Counters()
        self._transport = transport
        self._addresses = addresses
        self._pseudo_header = pseudo_header
        family = [one for one in virtual_addresses if len(one) == len(transport.source)]
        assert family
        self._virtual = tuple(sorted(family, key=_comes_later))
        self._reception = Reception(
            version=election.version,
            vrid=election.vrid,
            interval_cs=self._interval_cs,
            source=transport.source,
            destinations=transport.destinations,
            addresses=self._virtual,
            hop_limit_min=hop_limit_min,
            speakers=speakers,
        )
        self._last_refused: LastRefused | None = None
        self._log = (log or structlog.get_logger()).bind(router=name, vrid=election.vrid)
        self._limited = LimitedLog(self._log)
        self._jobs = _Jobs(self.counters)
        self._changes = changes
        self._on_change = on_change
        self._on_due = on_due
        self._on_rival = on_rival
        self._untold: deque[RouterStateChanged] = deque()
        self._something_untold = trio.Event()
        self._look_at = -math.inf
        self._held = False
        self._waiting: trio.CancelScope | None = None
        self._stopping = False
        self._running = False
        self._finished = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until `stop` or cancellation; either way resign, in bounded time."""
        assert not self._running
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_changes)
                await self._work_while_listening(task_status)
                nursery.cancel_scope.cancel()
        finally:
            self._tell_the_rest()
            self._finished.set()

    def permit_preemption(self, permitted: bool) -> None:
        """Say whether a master of lower priority may be displaced now."""
        self._perform(self.election.permit_preemption(permitted, trio.current_time()))

    def hand_over(self) -> None:
        """Let a backup that was chosen displace this node."""
        self._perform(self.election.hand_over(trio.current_time()))

    def take_over(self) -> None:
        """Take the addresses from a master that wants it."""
        self._perform(self.election.take_over(trio.current_time()))

    def step_aside(self) -> None:
        """Resign, and displace nobody afterwards."""
        self._perform(self.election.step_aside(trio.current_time()))

    def fault(self, reason: str) -> None:
        """Hold no addresses until `recover`."""
        self._perform(self.election.fault(reason, trio.current_time()))

    def recover(self) -> None:
        """The fault is over."""
        self._perform(self.election.recover(trio.current_time()))

    def change_priority(self, priority: int) -> None:
        """Take part with another priority from now on."""
        self._perform(self.election.change_priority(priority, trio.current_time()))

    def join(self, state: VrrpState) -> None:
        """Follow a virtual router that moves together with this one into or out of MASTER."""
        now, election = trio.current_time(), self.election
        master = state is VrrpState.MASTER
        self._perform(election.join_masters(now) if master else election.join_backups(now))

    def consent(self) -> None:
        """Become MASTER, if the master is still missed."""
        self._perform(self.election.consent(trio.current_time()))

    def give_way(self) -> None:
        """A better master is there, though its advertisements do not come."""
        self._perform(self.election.give_way(trio.current_time()))

    def refresh(self) -> bool:
        """Follow changes of the interface; see `AdvertisementTransport.refresh`."""
        transport, before = self._transport, self._transport.source
        replaced = transport.refresh()
        if transport.source != before:
            self._log.info("own_address_changed", address=format_address(transport.source))
        self.election.address = transport.source
        self._reception.follow(transport.source, transport.destinations)
        return replaced

    def announce(self) -> None:
        """Announce the addresses once more, as far as they are held."""
        self._jobs.put(AnnounceAddresses())

    async def stop(self) -> None:
        """Remove the addresses, resign, and return when `run` is at its end."""
        self._stopping = True
        self._wake()
        if self._running:
            await self._finished.wait()

    def status(self) -> dict[str, object]:
        """What an operator wants to know, as JSON-able values."""
        now = trio.current_time()
        election = self.election
        return {
            "router": self.name,
            "vrid": election.vrid,
            "version": election.version,
            "state": election.state.name,
            "since_seconds": None if election.since is None else now - election.since,
            "priority": election.priority,
            "interval_seconds": election.interval,
            "address": format_address(self._transport.source),
            "sends_to": [format_address(one) for one in self._transport.destinations],
            "virtual_addresses": [format_address(one) for one in self._virtual],
            "addresses_held": self._held,
            "preempt": election.preempt,
            "preempt_delay_seconds": election.preempt_delay,
            "startup_delay_seconds": election.startup_delay,
            "preemption_permitted": election.preemption_permitted,
            "stepped_aside": election.stepped_aside,
            "awaits_consent": election.awaits_consent,
            "fault": election.fault_reason,
            "peer": self._peer_status(now),
            "last_refused": self._last_refused_status(now),
            "transitions": election.transitions.snapshot(),
            "counters": self._counted(),
        }

    def _counted(self) -> dict[str, int]:
        parts = (self.election, self, self._transport, self._addresses)
        return {name: number for part in parts for name, number in part.counters.snapshot().items()}

    def _peer_status(self, now: float) -> dict[str, object] | None:
        peer = self.election.peer
        if peer is None:
            return None
        return {
            "address": format_address(peer.address),
            "priority": peer.priority,
            "interval_seconds": peer.interval_cs / 100,
            "checksum": self._convention(peer.pseudo_header),
            "heard_seconds_ago": now - peer.heard_at,
        }

    def _convention(self, pseudo_header: bool) -> str | None:
        """The name of a checksum's convention; None where there is but one."""
        if self.election.version != vrrp.VERSION or len(self._transport.source) != IPv4_BYTES:
            return None
        return "keepalived" if pseudo_header else "rfc9568"

    def _last_refused_status(self, now: float) -> dict[str, object] | None:
        last = self._last_refused
        if last is None:
            return None
        return {
            "cause": last.cause,
            "address": format_address(last.source),
            **last.details,
            "heard_seconds_ago": now - last.heard_at,
        }

    async def _work_while_listening(self, task_status: trio.TaskStatus[None]) -> None:
        """Listen; on the way out let the worker finish, shielded, in bounded time."""
        async with trio.open_nursery() as nursery:
            # The shield: a cancelled speaker has still to let go of the addresses.
            work = trio.CancelScope(shield=True)
            nursery.start_soon(self._work, work)
            try:
                self._perform(self.election.start(trio.current_time()))
                task_status.started()
                await self._listen()
            finally:
                self._perform(self.election.stop(trio.current_time()))
                self._jobs.close()
                work.deadline = trio.current_time() + STOP_TIME_MAX

    async def _listen(self) -> None:
        while not self._stopping:
            deadline = self.election.deadline
            self._waiting = trio.CancelScope(
                deadline=min(math.inf if deadline is None else deadline, self._look_at)
            )
            with self._waiting:
                await self._transport.wait_readable()
            self._waiting = None
            now = trio.current_time()
            self._hear_all(now)
            self._perform(self.election.expire(now))
            if now >= self._look_at:
                self._look_after_addresses(now)

    def _hear_all(self, now: float) -> None:
        """Read what has arrived; of a flood as much as a socket holds."""
        for _ in range(BATCHES_MAX):
            batch = self._transport.receive()
            for received in batch:
                self._hear(received, now)
            if len(batch) < BATCH_MAX:
                return

    def _look_after_addresses(self, now: float) -> None:
        if self.election.state is VrrpState.MASTER:
            self._look_at = now + REFRESH_INTERVAL
            self._jobs.put(_RefreshAddresses(now))
        else:
            self._look_at = now + PREPARE_INTERVAL
            self._jobs.put(_PrepareAddresses())

    def _wake(self) -> None:
        """Make the loop look at the deadline again."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _hear(self, received: ReceivedMessage, now: float) -> None:
        """Hand a message on, if it is worth it."""
        heard = self._reception.judge(received)
        if isinstance(heard, OtherRouter):
            self.counters.add("other_virtual_router")
            return
        if isinstance(heard, Refused):
            self._last_refused = LastRefused(
                heard.counter.removeprefix("refused_"), received.source, heard.details, now
            )
            self._report(heard, received, now)
            return
        self.counters.add("advertisements_received")
        for difference in heard.differences:
            self._report(difference, received, now)
        self._perform(self.election.receive(heard.advertisement, received.source, now))

    def _report(self, finding: Refused | Difference, received: ReceivedMessage, now: float) -> None:
        self.counters.add(finding.counter)
        self._limited.warning(
            finding.counter, now, source=format_address(received.source), **finding.details
        )

    def _perform(self, actions: Sequence[Action]) -> None:
        """Carry out actions in order; returns at once."""
        state_changes: list[RouterStateChanged] = []
        is_due = False
        for action in actions:
            match action:
                case Advertise(vrrp.PRIORITY_RESIGN):
                    # Behind the release, which is in the queue already.
                    self._jobs.put(action)
                case Advertise(priority):
                    self._advertise(priority)
                case AcquireAddresses() | ReleaseAddresses():
                    self._look_at = trio.current_time() + REFRESH_INTERVAL
                    self._jobs.put(action)
                case AnnounceAddresses():
                    self._jobs.put(action)
                case StateChanged(old, new, reason):
                    self._log.info("state_changed", old=old.name, new=new.name, reason=reason)
                    changed = RouterStateChanged(self.name, old, new, reason)
                    self._tell(changed)
                    state_changes.append(changed)
                case TakeoverDue():
                    is_due = True
                case TwoMasters(address, priority):
                    shown = format_address(address)
                    self._log.warning("two_masters", address=shown, priority=priority)
                    if self._on_rival is not None:
                        self._on_rival(self.name, shown, priority)
                case _:
                    assert_never(action)
        if actions:
            self._wake()
        if self._on_change is not None:
            for changed in state_changes:
                self._on_change(changed)
        if is_due and self._on_due is not None:
            self._on_due(self.name)

    @property
    def _interval_cs(self) -> int:
        longest = vrrp_versions.INTERVALS_CS_MAX[self.election.version]
        return max(1, min(round(self.election.interval * 100), longest))

    def _advertise(self, priority: int) -> None:
        election, transport = self.election, self._transport
        advertisement = vrrp.Advertisement(
            election.vrid, priority, self._interval_cs, self._virtual, election.version
        )
        for destination in transport.destinations:
            message = vrrp_versions.emit(
                advertisement,
                source=transport.source,
                destination=destination,
                pseudo_header=self._sends_pseudo_header,
            )
            transport.send(message, destination)
        self.counters.add("advertisements_sent")

    @property
    def _sends_pseudo_header(self) -> bool:
        if self._pseudo_header is not None:
            return self._pseudo_header
        peer = self.election.peer
        return peer is not None and peer.pseudo_header

    async def _work(self, scope: trio.CancelScope) -> None:
        """Do the jobs, one after the other, until there are no more."""
        with scope:
            while (job := await self._jobs.next()) is not None:
                with trio.move_on_after(OPERATION_TIME_MAX) as limit:
                    await self._do(job)
                if limit.cancelled_caught:
                    self.counters.add("operations_too_slow")
                    self._limited.warning(
                        "operation_too_slow", trio.current_time(), job=type(job).__name__
                    )

    async def _do(self, job: _Job) -> None:
        match job:
            case AcquireAddresses():
                self._held = await self._addresses.acquire()
            case ReleaseAddresses():
                self._held = False
                await self._addresses.release()
            case AnnounceAddresses():
                await self._addresses.announce()
            case Advertise(priority):
                self._advertise(priority)
            case _RefreshAddresses(asked_at):
                # Asked for before a freeze, it would bring back what the kernel has taken.
                if trio.current_time() >= asked_at + REFRESH_INTERVAL:
                    self.counters.add("refreshes_too_late")
                    return
                self._held = await self._addresses.refresh()
            case _PrepareAddresses():
                await self._addresses.prepare()
            case _:
                assert_never(job)

    def _tell(self, change: RouterStateChanged) -> None:
        if len(self._untold) >= CHANGES_MAX:
            self._untold.popleft()
            self.counters.add("state_changes_untold")
        self._untold.append(change)
        self._something_untold.set()

    async def _tell_changes(self) -> None:
        """Pass state changes on, as fast as they are read."""
        while True:
            await self._something_untold.wait()
            self._something_untold = trio.Event()
            while self._untold:
                change = self._untold.popleft()
                try:
                    await self._changes.send(change)
                except trio.Cancelled:
                    self._untold.appendleft(change)
                    raise
                except trio.BrokenResourceError:
                    # Nobody reads any more: the node is on its way out.
                    self.counters.add("state_changes_untold")

    def _tell_the_rest(self) -> None:
        """Leave what is still untold in the channel, as far as it has room."""
        while self._untold:
            try:
                self._changes.send_nowait(self._untold.popleft())
            except (trio.WouldBlock, trio.BrokenResourceError):
                self.counters.add("state_changes_untold", len(self._untold) + 1)
                self._untold.clear()


def _comes_later(address: bytes) -> bool:
    """Sorts link-local IPv6 addresses (fe80::/10) before others; leaves IPv4 as it is."""
    return len(address) == IPv4_BYTES or not (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
