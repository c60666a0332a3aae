"""Keep in force what the director claims: interception rules, socket filters, the host link.

The rules are loaded before the filters, and both in place of the old ones, so there is no
moment in which a packet of a service that was there before and is there afterwards is the
host's. A service that is new is `pending` until its rules are loaded; its packets are the
host's as before until then (`leaves`). So no packet is answered twice.

Changes that come one after the other are taken over together, `SETTLING` after the first.
Where someone else takes the rules away, they are put back.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import structlog
import trio

from lvsha.counters import Counters
from lvsha.datapath.claims import Claims, claims_of, has_local_server
from lvsha.datapath.director import Director
from lvsha.datapath.flow import Frame
from lvsha.datapath.host_link import HostLink
from lvsha.datapath.interception import RuleWatcher, intercept
from lvsha.datapath.network import AddressChange, NetworkChange
from lvsha.datapath.service_policy import Unknown
from lvsha.errors import HostError
from lvsha.log import LimitedLog
from lvsha.model import VirtualMac

SETTLING: Final = 0.02
RETRY_INTERVAL: Final = 0.2
REMOVED_INTERVAL: Final = 60.0
"""Between two looks whether connections of removed servers are left."""

_log = structlog.get_logger()


class Guard:
    """Puts claims into force.

    Args:
        director: whose claims they are.
        interfaces: names of those where frames of services arrive.
        link: opened as soon as packets may have to be handed to the host.
        counters: of the forwarder.
        in_force: called with claims once their rules are loaded, to set the socket filters.
        virtual_macs: at which this host may have virtual addresses.

    Attributes:
        claims: those in force.
    """

    def __init__(
        self,
        director: Director,
        interfaces: Sequence[str],
        link: HostLink,
        counters: Counters,
        in_force: Callable[[], None],
        virtual_macs: Collection[VirtualMac] = (),
    ) -> None:
        self.claims = Claims()
        self._director = director
        self._interfaces = interfaces
        self._link = link
        self._counters = counters
        self._in_force = in_force
        self._virtual_macs = virtual_macs
        self._present: dict[str, bytes] = {}
        self._rules = RuleWatcher()
        self._log = LimitedLog(_log)
        self._lock = trio.Lock()
        self._wanted = self._applied = 0
        self._changed = trio.Event()
        self._settled = trio.Event()

    # Changes

    @property
    def pending(self) -> bool:
        """Whether something has changed that is not in force yet."""
        return self._wanted != self._applied

    def change(self) -> None:
        """Services, marks or settings have changed: take it over soon."""
        self._wanted += 1
        self._changed.set()

    async def settled(self) -> None:
        """Wait until everything that has changed so far is in force."""
        wanted = self._wanted
        while self._applied < wanted:
            await self._settled.wait()

    def note(self, changes: Iterable[NetworkChange]) -> None:
        """Look whether a real server has come to this host or left it.

        With a virtual MAC address the rules depend on that of the interface, too.
        """
        addresses = self.claims.addresses
        moved = any(isinstance(c, AddressChange) and c.address in addresses for c in changes)
        if moved or (self._virtual_macs and self._links() != self._present):
            self.change()

    def leaves(self, frame: Frame) -> bool:
        """Whether a frame is the host's for now, because its service is not in force yet.

        Only to be asked while something is `pending`, of a frame that was read.
        """
        key, director = frame.key, self._director
        if not key or not frame.protocol:
            return False
        if director.services.find(key, director.marks.of(key)) is None:
            return False
        return not self.claims.takes(frame, director.network.is_local)

    # In force

    async def open(self) -> None:
        """Put the claims into force, and watch over them from now on.

        Raises:
            HostError: nft or the TUN device is missing, or the kernel refuses.
        """
        await self.apply()
        await self._rules.open()

    def close(self) -> None:
        """Watch no longer."""
        self._rules.close()

    async def apply(self) -> None:
        """Put into force what the director claims now.

        Raises:
            HostError: as `open`.
        """
        async with self._lock:
            wanted = self._wanted
            director = self._director
            claims = await self._claims()
            present = self._links()
            remember = max(director.timeouts) if self._link.is_open else None
            await intercept(present, claims, remember, self._virtual_macs)
            self.claims, self._present = claims, present
            self._in_force()
            self._applied = wanted
            self._settled.set()
            self._settled = trio.Event()

    def _links(self) -> dict[str, bytes]:
        """The interfaces that are there, with their MAC addresses."""
        links = ((name, self._director.network.link_named(name)) for name in self._interfaces)
        return {name: link.mac for name, link in links if link is not None}

    async def _claims(self) -> Claims:
        """What the director claims, and what that needs.

        Where packets cannot be handed back to the host, those of removed servers' connections
        are the host's.
        """
        claims = claims_of(self._director)
        if not self._hands_over(claims):
            return claims
        try:
            await self._link.open()
        except HostError:
            claims = claims_of(self._director, removed=False)
            if self._hands_over(claims):
                raise
        return claims

    def _hands_over(self, claims: Claims) -> bool:
        """Whether packets may have to be handed to the host."""
        director = self._director
        return (
            claims.too_wide
            or director.settings.backup_only
            or any(s.policy.unknown is Unknown.KERNEL for s in director.services)
            or has_local_server(claims, director.network.is_local)
        )

    async def run(self) -> None:
        """Follow changes and guard the rules until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._watch)

    async def _follow(self) -> None:
        while True:
            # Nobody tells when the last connection of a removed server has ended.
            again = REMOVED_INTERVAL if self.claims.removed else math.inf
            with trio.move_on_after(again):
                await self._changed.wait()
            await trio.sleep(SETTLING)
            self._changed = trio.Event()
            await self._insist("claims_not_in_force")

    async def _watch(self) -> None:
        """Put the rules back when someone else has taken them away."""
        while True:
            await self._rules.removed()
            self._log.warning("interception rules were removed", trio.current_time())
            await self._insist("interception_not_restored")
            self._counters.add("interception_restored")

    async def _insist(self, counter: str) -> None:
        """Apply until it succeeds."""
        while True:
            try:
                await self.apply()
            except HostError as error:
                self._counters.add(counter)
                self._log.warning("rules not loaded", trio.current_time(), error=str(error))
                await trio.sleep(RETRY_INTERVAL)
            else:
                return
