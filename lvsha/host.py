"""What a node needs of the machine it runs on, and the real thing.

`Host` is the seam between a node and the world: everything that opens a socket, changes an
address or loads a rule is made here. A node in a simulation gets a host of its own, on a
network that exists only in memory.
"""

import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Protocol

import structlog
import trio

from lvsha.config import Sync, VirtualRouter
from lvsha.config_life import MetricsTable, SavedStateTable
from lvsha.config_tracking import Tracker
from lvsha.control import ControlServer, Handler, lock_namespace
from lvsha.counters import Counters
from lvsha.datapath import interception
from lvsha.datapath.director import Director
from lvsha.datapath.forwarder import Forwarder
from lvsha.datapath.surprises import Surprises
from lvsha.events import EventServer, EventStream
from lvsha.failover.addresses import (
    Addresses,
    InterfaceAddress,
    NetlinkAddresses,
    remove_leftovers,
)
from lvsha.failover.rivals import PacketRivalListener, RivalListener
from lvsha.failover.routes import NetlinkRoutes, Route, Routes, Rule, remove_leftover_routes
from lvsha.failover.transport import (
    AdvertisementTransport,
    RawTransport,
    Speakers,
    own_address,
    split_speakers,
)
from lvsha.health.prober import NetworkProber, Prober
from lvsha.metrics_server import MetricsServer, Page
from lvsha.model import VirtualMac
from lvsha.programs import Outcome, Programs
from lvsha.service_manager import ServiceManager, Systemd
from lvsha.settings import Settings
from lvsha.state_file import StateFile, StateStore
from lvsha.sync.ipvs.daemons import Socket, open_multicast
from lvsha.sync.ipvs.roster import Daemon
from lvsha.sync.transport import MulticastTransport as SyncMulticastTransport
from lvsha.sync.transport import Transport as SyncTransport
from lvsha.tracking.outside import make_probe
from lvsha.tracking.probes import Probe

_EPOCH_BITS = 64

_log = structlog.get_logger()


class FrameForwarder(Protocol):
    """Carries frames to and from a director."""

    counters: Counters
    surprises: Surprises

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Forward until cancelled; "started" once frames can be handled."""
        ...

    async def beat(self) -> None:
        """Return when the loop that carries frames has had a turn."""
        ...

    async def network_changed(self) -> None:
        """Wait until something in the host's network changes."""
        ...

    def listen_to(self, mac: bytes | None, *, held: bool) -> None:
        """Take frames to a virtual MAC address while its addresses are held; None is none."""
        ...

    def services_changed(self) -> None:
        """Take note that services, servers, marks or settings of the director have changed."""
        ...


class Host(Protocol):
    """The machine, for one node. Methods raise `HostError` where it lacks something."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Be the only director here."""
        ...

    async def clean(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Take away what an earlier run has left, or this one leaves."""
        ...

    async def serve_control(
        self, commands: Mapping[str, Handler], *, task_status: trio.TaskStatus[None] = ...
    ) -> None:
        """Answer the control socket until cancelled."""
        ...

    def epoch(self) -> int:
        """A random number that no earlier run had."""
        ...

    def service_manager(self) -> ServiceManager:
        """Who has started the process."""
        ...

    def state_store(self, node: str, saved: SavedStateTable) -> StateStore | None:
        """Where connections are kept over a restart; None for nowhere."""
        ...

    def forwarder(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
        virtual_macs: Collection[VirtualMac],
    ) -> FrameForwarder:
        """What carries frames; see `Forwarder` for the arguments."""
        ...

    def sync_transport(self, interface: str, sync: Sync) -> AbstractContextManager[SyncTransport]:
        """What carries sync datagrams."""
        ...

    def open_sync_socket(self, daemon: Daemon, index: int, settings: Settings) -> Socket:
        """A socket of a daemon that speaks the kernel's sync protocol."""
        ...

    def advertisement_transport(
        self, interface: str, router: VirtualRouter, virtual: Collection[bytes]
    ) -> AbstractContextManager[AdvertisementTransport]:
        """What carries VRRP advertisements; ``virtual`` are addresses never to speak from."""
        ...

    def addresses(
        self,
        addresses: Sequence[InterfaceAddress],
        *,
        announce_repeat: int,
        announce_at_once: bool,
        mac: bytes | None,
    ) -> Addresses:
        """What holds the addresses of a virtual router, and announces each so often at once.

        Args:
            addresses: they.
            announce_repeat: how often each is announced in a go.
            announce_at_once: whether they are announced as soon as they are held, too.
            mac: their virtual MAC address; None for that of each interface.
        """
        ...

    def routes(self, routes: Sequence[Route], rules: Sequence[Rule]) -> Routes:
        """What adds and removes the routes and rules of a virtual router."""
        ...

    def probe(self, tracker: Tracker, interface: str | None, virtual: Collection[bytes]) -> Probe:
        """What looks at a tracker's gateway, program, file or processes."""
        ...

    async def check_user(self, user: str | None) -> None:
        """Make sure that programs can be run as a user; None is the director's own."""
        ...

    async def run_program(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run an operator's program to its end, in bounded time."""
        ...

    async def serve_events(
        self,
        events: EventStream,
        group: str | None,
        *,
        task_status: trio.TaskStatus[None] = ...,
    ) -> None:
        """Let local readers have events until cancelled."""
        ...

    async def serve_metrics(
        self, table: MetricsTable, page: Page, *, task_status: trio.TaskStatus[None] = ...
    ) -> None:
        """Let others read metrics until cancelled."""
        ...

    def prober(self) -> Prober:
        """What tries health checks."""
        ...

    def rival_listener(
        self, interface: str, addresses: Sequence[bytes]
    ) -> AbstractContextManager[RivalListener]:
        """What hears others who announce addresses of ours."""
        ...


class LinuxHost:
    """This machine."""

    def __init__(self) -> None:
        self._programs = Programs()

    def exclusive(self) -> AbstractContextManager[object]:
        """Take the lock of the network namespace."""
        return lock_namespace()

    async def clean(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Remove routes and policy rules first, then addresses, then interception rules.

        In this order a dead director's stack never sees a frame of a service, and does not
        answer ARP for an address that its peer holds now. Routes that the kernel does not
        let go of do not keep addresses here.
        """
        try:
            gone = await remove_leftover_routes()
            if gone:
                _log.info("leftover routes removed", count=gone)
        finally:
            removed = await remove_leftovers(addresses)
            if removed:
                _log.info("leftover addresses removed", count=removed)
        await interception.release()

    async def serve_control(
        self,
        commands: Mapping[str, Handler],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer on the Unix socket."""
        await ControlServer(commands).run(task_status=task_status)

    def epoch(self) -> int:
        """From the system's random source."""
        return secrets.randbits(_EPOCH_BITS)

    def service_manager(self) -> ServiceManager:
        """What the environment names."""
        return Systemd(os.environ)

    def state_store(self, node: str, saved: SavedStateTable) -> StateStore | None:
        """The file that is named, or one in the state directory of the unit."""
        if saved.file is not None:
            return StateFile(saved.file)
        # Of several directories, with colons between, the first.
        directory = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        return StateFile(Path(directory, f"connections-{node}")) if directory else None

    def forwarder(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
        virtual_macs: Collection[VirtualMac],
    ) -> FrameForwarder:
        """Packet sockets and netlink."""
        return Forwarder(director, interfaces, on_change, stale_after, virtual_macs)

    def sync_transport(self, interface: str, sync: Sync) -> AbstractContextManager[SyncTransport]:
        """A UDP multicast socket."""
        return closing(
            SyncMulticastTransport(interface, sync.group.packed, sync.port, ttl=sync.ttl)
        )

    def open_sync_socket(self, daemon: Daemon, index: int, settings: Settings) -> Socket:
        """A UDP multicast socket."""
        return open_multicast(daemon, index, settings)

    def advertisement_transport(
        self, interface: str, router: VirtualRouter, virtual: Collection[bytes]
    ) -> AbstractContextManager[AdvertisementTransport]:
        """A raw socket for protocol 112."""

        def find_speakers(present: bytes) -> Speakers:
            listed = [address.packed for address in router.peers or router.speakers]
            if not listed:
                return own_address(interface, router.family, virtual, present), ()
            own, others = split_speakers(interface, listed)
            return own, (others if router.peers else ())

        return RawTransport(interface, find_speakers, mac=router.mac)

    def addresses(
        self,
        addresses: Sequence[InterfaceAddress],
        *,
        announce_repeat: int,
        announce_at_once: bool,
        mac: bytes | None,
    ) -> Addresses:
        """Netlink."""
        return NetlinkAddresses(
            addresses,
            announce_repeat=announce_repeat,
            announce_at_once=announce_at_once,
            mac=mac,
        )

    def routes(self, routes: Sequence[Route], rules: Sequence[Rule]) -> Routes:
        """Netlink."""
        return NetlinkRoutes(routes, rules)

    def probe(self, tracker: Tracker, interface: str | None, virtual: Collection[bytes]) -> Probe:
        """Sockets, programs, files and processes."""
        return make_probe(tracker, interface, virtual, self.run_program)

    async def check_user(self, user: str | None) -> None:
        """By the user database and the capabilities of this process."""
        await self._programs.check_user(user)

    async def run_program(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run it in a session of its own."""
        return await self._programs.run(
            command, user=user, seconds_max=seconds_max, environment=environment
        )

    async def serve_events(
        self,
        events: EventStream,
        group: str | None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """On the Unix socket."""
        await EventServer(events, group).run(task_status=task_status)

    async def serve_metrics(
        self,
        table: MetricsTable,
        page: Page,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """By HTTP."""
        await MetricsServer(table.address, table.port, page).run(task_status=task_status)

    def prober(self) -> Prober:
        """Sockets and processes."""
        return NetworkProber()

    def rival_listener(
        self, interface: str, addresses: Sequence[bytes]
    ) -> AbstractContextManager[RivalListener]:
        """A packet socket with a filter."""
        return closing(PacketRivalListener(interface, addresses))
