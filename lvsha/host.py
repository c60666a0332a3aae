"""What a node needs of the machine it runs on, and the real thing.

`Host` is the seam between a node and the world: everything that opens a socket, changes an
address or loads a rule is made here. A node in a simulation gets a host of its own, on a
network that exists only in memory.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Protocol

import structlog
import trio

from lvsha.config import Sync, VirtualRouter
from lvsha.control import ControlServer, Handler, lock_namespace
from lvsha.counters import Counters
from lvsha.datapath import interception
from lvsha.datapath.director import Director
from lvsha.datapath.forwarder import Forwarder
from lvsha.datapath.surprises import Surprises
from lvsha.failover.addresses import (
    Addresses,
    InterfaceAddress,
    NetlinkAddresses,
    remove_leftovers,
)
from lvsha.failover.transport import AdvertisementTransport, MulticastTransport, own_address
from lvsha.health.prober import NetworkProber, Prober
from lvsha.settings import Settings
from lvsha.sync.ipvs.daemons import Socket, open_multicast
from lvsha.sync.ipvs.roster import Daemon
from lvsha.sync.transport import MulticastTransport as SyncMulticastTransport
from lvsha.sync.transport import Transport as SyncTransport

_EPOCH_BITS = 64

_log = structlog.get_logger()


class FrameForwarder(Protocol):
    """Carries frames to and from a director."""

    counters: Counters
    surprises: Surprises

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Forward until cancelled; "started" once frames can be handled."""
        ...

    async def network_changed(self) -> None:
        """Wait until something in the host's network changes."""
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

    def forwarder(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
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
        self, interface: str, router: VirtualRouter
    ) -> AbstractContextManager[AdvertisementTransport]:
        """What carries VRRP advertisements."""
        ...

    def addresses(self, addresses: Sequence[InterfaceAddress]) -> Addresses:
        """What holds the addresses of a virtual router."""
        ...

    def prober(self) -> Prober:
        """What tries health checks."""
        ...


class LinuxHost:
    """This machine."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Take the lock of the network namespace."""
        return lock_namespace()

    async def clean(self, addresses: Sequence[InterfaceAddress]) -> None:
        """Remove addresses first, then interception rules.

        In this order a dead director's stack never sees a frame of a service, and does not
        answer ARP for an address that its peer holds now.
        """
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

    def forwarder(
        self,
        director: Director,
        interfaces: Collection[str],
        on_change: Callable[[], None],
        stale_after: float,
    ) -> FrameForwarder:
        """Packet sockets and netlink."""
        return Forwarder(director, interfaces, on_change, stale_after)

    def sync_transport(self, interface: str, sync: Sync) -> AbstractContextManager[SyncTransport]:
        """A UDP multicast socket."""
        return closing(
            SyncMulticastTransport(interface, sync.group.packed, sync.port, ttl=sync.ttl)
        )

    def open_sync_socket(self, daemon: Daemon, index: int, settings: Settings) -> Socket:
        """A UDP multicast socket."""
        return open_multicast(daemon, index, settings)

    def advertisement_transport(
        self, interface: str, router: VirtualRouter
    ) -> AbstractContextManager[AdvertisementTransport]:
        """A raw socket for protocol 112."""
        virtual = [placed.address.ip.packed for placed in router.addresses]
        return MulticastTransport(interface, own_address(interface, router.family, virtual))

    def addresses(self, addresses: Sequence[InterfaceAddress]) -> Addresses:
        """Netlink."""
        return NetlinkAddresses(addresses)

    def prober(self) -> Prober:
        """Sockets and processes."""
        return NetworkProber()
