"""Put virtual addresses on interfaces, for as long as somebody says so.

This is the shell between the speaker and the kernel: it adds, renews, removes and
announces the addresses of one virtual router, on any number of interfaces and of both
families. It does not decide anything.

**Dead man's switch.** An address is added with a finite lifetime and must be renewed
every second. A director that is killed or hangs renews nothing, and the kernel takes the
address away by its own timer. So two owners cannot stay for longer than `LIFETIME` and
the second by which the kernel's timer may be late, whatever happens to the process.

**Routes stay as they are.** Where the interface already has an own address in the network
of the virtual one, the virtual address brings no route (``noprefixroute``). Otherwise the
kernel would tie the lifetime of the network's IPv6 route to that of the address and let
both expire. Where there is none, the address brings the route, as ``ip address add`` does.

IPv6 addresses skip duplicate address detection (``nodad``): the second that it takes would
be an outage, and the election has already decided whose the address is.

What always holds: no method raises for what the kernel refuses; it is counted and logged,
and False is returned. Operations on one object happen one after the other, an abandoned
one included. Lifetimes are whole seconds, because the kernel's are.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.announcements import admit, announce, frames, open_sender
from lvsha.failover.claim import Announcement, Claim
from lvsha.failover.rtnetlink import AddressSocket, Held, IpInterface, Placed, adding, deleting
from lvsha.log import LimitedLog

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Three renewals may be missed. It ends before the second repeated announcement of the node
# that took over (series.ANNOUNCE_AGAIN_AFTER), which so has the last word.
LIFETIME: Final = 4

# include/uapi/linux/if_addr.h
_IFA_F_NODAD: Final = 0x02
_IFA_F_NOPREFIXROUTE: Final = 0x200

# An address or an interface that is not there is removed as well as can be.
_ALREADY_GONE: Final = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """A virtual address with its prefix length, and the name of its interface."""

    interface: str
    address: IpInterface

    def __str__(self) -> str:
        return f"{self.address} on {self.interface}"


class Addresses(Protocol):
    """The addresses of one virtual router; each method says whether all went well.

    Attributes:
        counters: what was refused, and what had to be restored.
    """

    counters: Counters

    async def prepare(self) -> None:
        """Do beforehand what makes the next `acquire` shorter."""
        ...

    async def acquire(self) -> bool:
        """Hold them from now on."""
        ...

    async def release(self) -> bool:
        """Hold none of them; fine if none was held."""
        ...

    async def refresh(self) -> bool:
        """Go on holding them; one that was lost is added and announced again."""
        ...

    async def announce(self) -> bool:
        """Tell the neighbours where those that are held are."""
        ...


@dataclass(frozen=True, slots=True)
class _Refused:
    """What the kernel would not do."""

    what: str
    error: int
    text: str


_Outcome = tuple[Sequence[InterfaceAddress], Sequence[_Refused]]
_Operation = Callable[[AddressSocket], _Outcome]
_Present = Mapping[int, Sequence[Held]]
"""What interfaces have, by their numbers."""
_Announcing = Callable[[InterfaceAddress], None]


class NetlinkAddresses:
    """The real thing: rtnetlink, in a worker thread.

    Attributes:
        addresses: those of this virtual router.
        counters: what was refused, and what had to be restored.
    """

    def __init__(
        self,
        addresses: Sequence[InterfaceAddress],
        *,
        lifetime: int = LIFETIME,
        announce_repeat: int = 1,
        announce_at_once: bool = True,
        mac: bytes | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        """Describe the addresses; nothing happens yet.

        Args:
            addresses: at least one.
            lifetime: after the last renewal, in whole seconds.
            announce_repeat: how often `announce` sends each frame.
            announce_at_once: whether each is announced as soon as it is held; not where
                something must be there before its frames come.
            mac: the virtual MAC address at which they are; None for that of each interface.
            log: where refusals are told, at a limited rate.
        """
        assert addresses
        assert lifetime >= 1
        self.addresses = tuple(addresses)
        self.counters = Counters()
        self._lifetime = lifetime
        self._announce_repeat = announce_repeat
        self._announce_at_once = announce_at_once
        self._mac = mac
        # Read by the thread: an operation that was given up must not hold what shall be gone.
        self._wanted = False
        self._admitted: set[int] = set()
        self._sender: socket.socket | None = None
        self._netlink: AddressSocket | None = None
        self._claim: Claim | None = None
        self._announced = False  # with the claim, so that the next time is not needed
        self._log = LimitedLog(log or structlog.get_logger())
        # One thread at a time, in order. The shared pool of threads is not used up.
        self._limiter = trio.CapacityLimiter(1)

    async def prepare(self) -> None:
        """Write a claim; of what cannot be claimed now, `acquire` will tell."""
        await self._in_thread(self._prepare)

    async def acquire(self) -> bool:
        """Add the addresses with their lifetime."""
        self._wanted = True
        _, refused = await self._in_thread(lambda netlink: self._kept(netlink, self._acquire))
        return self._tell("address_not_acquired", refused)

    async def release(self) -> bool:
        """Remove the addresses."""
        self._wanted = False
        _, refused = await self._in_thread(self._release)
        return self._tell("address_not_released", refused)

    async def refresh(self) -> bool:
        """Renew the lifetime; add and announce what someone else removed."""
        self._wanted = True
        restored, refused = await self._in_thread(
            lambda netlink: self._kept(netlink, self._refresh)
        )
        if restored:
            self.counters.add("address_restored", len(restored))
            self._log.warning(
                "address_restored", trio.current_time(), addresses=list(map(str, restored))
            )
            self._announced = False
            await self.announce()
        return self._tell("address_not_refreshed", refused)

    async def announce(self) -> bool:
        """Send gratuitous ARP and unsolicited neighbour advertisements."""
        if self._announced:
            # Right after a takeover all that a thread does makes the first frames wait.
            self._announced = False
            return True
        _, refused = await self._in_thread(
            lambda netlink: _announce(
                netlink, self.addresses, lambda one: self._announcing(one, self._announce_repeat)
            )
        )
        return self._tell("address_not_announced", refused)

    def _prepare(self, netlink: AddressSocket) -> _Outcome:
        self._claim = None
        placed, refused = _place(netlink.present(), self.addresses, self._lifetime)
        if not refused:
            with suppress(HostError):
                self._claim = Claim([one for _, one in placed], self._announcements())
        # Nobody has asked for the addresses yet; whoever does hears of what is refused then.
        return (), ()

    def _announcements(self) -> list[Announcement]:
        if not self._announce_at_once:
            return []
        return [
            Announcement(one.interface, frame)
            for one in self.addresses
            for frame in self._announce_repeat
            * frames(one.interface, one.address.packed, self._mac)
        ]

    def _kept(self, netlink: AddressSocket, operation: _Operation) -> _Outcome:
        """Carry out in the thread; a release that gave up waiting for it is made good here."""
        outcome = operation(netlink)
        return outcome if self._wanted else self._release(netlink)

    def _acquire(self, netlink: AddressSocket) -> _Outcome:
        claim, self._claim, self._announced = self._claim, None, False
        held = claim is not None and claim.make(netlink)
        self._admit()
        if claim is not None and held:
            self._announced = claim.announce(self._open_sender())
            return self.addresses, ()
        announcing = self._announcing if self._announce_at_once else None
        return _hold(netlink, self.addresses, self._lifetime, announcing)

    def _refresh(self, netlink: AddressSocket) -> _Outcome:
        self._admit()
        return _hold(netlink, self.addresses, self._lifetime)

    def _release(self, netlink: AddressSocket) -> _Outcome:
        self._admit(none=True)
        return _remove(netlink, self.addresses)

    def _admit(self, *, none: bool = False) -> None:
        """Let the network cards take frames to the virtual MAC address; or no longer."""
        if self._mac is None:
            return
        wanted = set() if none else _indexes(one.interface for one in self.addresses)
        for index in self._admitted - wanted:
            # A card that has gone has forgotten it.
            with suppress(OSError):
                admit(self._open_sender(), index, self._mac, admitted=False)
        self._admitted &= wanted
        for index in wanted - self._admitted:
            # With every refresh it is tried again.
            with suppress(OSError):
                admit(self._open_sender(), index, self._mac, admitted=True)
                self._admitted.add(index)

    def _announcing(self, wanted: InterfaceAddress, repeat: int = 1) -> None:
        packed = [wanted.address.packed] * repeat
        announce(wanted.interface, packed, self._open_sender(), self._mac)

    def _open_sender(self) -> socket.socket:
        if self._sender is None:
            self._sender = open_sender()
        return self._sender

    async def _in_thread(self, operation: _Operation) -> _Outcome:
        # Whoever waits may give up waiting; the limiter still keeps the order.
        return await trio.to_thread.run_sync(
            self._carry_out, operation, abandon_on_cancel=True, limiter=self._limiter
        )

    def _carry_out(self, operation: _Operation) -> _Outcome:
        try:
            if self._netlink is None:
                self._netlink = AddressSocket()
            return operation(self._netlink)
        except OSError as error:
            # Whatever answers come late are not for the next one.
            if self._netlink is not None:
                self._netlink.close()
                self._netlink = None
            return (), [_Refused("any address", error.errno or 0, str(error))]

    def _tell(self, event: str, refused: Sequence[_Refused]) -> bool:
        for refusal in refused:
            self.counters.add(event)
            self._log.warning(event, trio.current_time(), address=refusal.what, error=refusal.text)
        return not refused


async def remove_leftovers(addresses: Iterable[InterfaceAddress]) -> int:
    """Remove addresses that an earlier run may have left, whatever their prefix length.

    Returns:
        How many there were.

    Raises:
        HostError: the kernel refuses, most likely for want of a privilege.
    """
    wanted = tuple(addresses)
    if not wanted:
        return 0

    def remove() -> _Outcome:
        with AddressSocket() as netlink:
            return _remove(netlink, wanted)

    try:
        removed, refused = await trio.to_thread.run_sync(remove)
    except OSError as error:
        raise HostError(f"addresses cannot be looked at: {error}") from error
    if refused:
        first = refused[0]
        hint = " (it needs CAP_NET_ADMIN)" if first.error == errno.EPERM else ""
        raise HostError(f"cannot remove {first.what}: {first.text}{hint}")
    return len(removed)


def _place(
    present: _Present, addresses: Sequence[InterfaceAddress], lifetime: int
) -> tuple[list[tuple[InterfaceAddress, Placed]], list[_Refused]]:
    """How each would be added now, and those that could not be."""
    virtual = [wanted.address.ip for wanted in addresses]
    placed: list[tuple[InterfaceAddress, Placed]] = []
    refused: list[_Refused] = []
    for wanted in addresses:
        index = _index(wanted.interface)
        if index is None:
            refused.append(_Refused(str(wanted), errno.ENODEV, "no such interface"))
            continue
        flags = _flags(wanted.address, present.get(index, ()), virtual)
        placed.append((wanted, Placed(index, wanted.address, flags, lifetime)))
    return placed, refused


def _flags(wanted: IpInterface, present: Sequence[Held], virtual: Collection[IpAddress]) -> int:
    """As what an address is added, after a look at what its interface has.

    It is asked for each time, because an own address may have come or gone since.
    """
    own = (held.address for held in present if held.address.ip not in virtual)
    flags = _IFA_F_NOPREFIXROUTE if any(_covers(held, wanted) for held in own) else 0
    return flags | (_IFA_F_NODAD if wanted.version == 6 else 0)


def _hold(
    netlink: AddressSocket,
    addresses: Sequence[InterfaceAddress],
    lifetime: int,
    announcing: _Announcing | None = None,
) -> _Outcome:
    """Add or renew; returns those that were added, and announces them if it can."""
    present = netlink.present()
    placed, refused = _place(present, addresses, lifetime)
    without_route = [
        deleting(one.index, held.address)
        for _, one in placed
        for held in present.get(one.index, ())
        if held.address == one.address and _lacks_its_route(held, one.flags)
    ]
    netlink.carry_out(without_route)
    errors = netlink.carry_out([adding(one) for _, one in placed])
    added: list[InterfaceAddress] = []
    for (wanted, one), error in zip(placed, errors, strict=True):
        if error:
            refused.append(_refusal(wanted, error))
        elif all(held.address != one.address for held in present.get(one.index, ())):
            added.append(wanted)
            if announcing is not None:
                # If it cannot be, the announcement that follows says so.
                with suppress(OSError, HostError):
                    announcing(wanted)
    return added, refused


def _lacks_its_route(held: Held, flags: int) -> bool:
    """Whether only another addition brings the route; of IPv6 the kernel adds it by itself."""
    return held.address.version == 4 and bool(held.flags & ~flags & _IFA_F_NOPREFIXROUTE)


def _remove(netlink: AddressSocket, addresses: Sequence[InterfaceAddress]) -> _Outcome:
    """Remove, the last one first; returns those that were there.

    Of several IPv4 addresses in a network the first is the primary, and the kernel takes
    the others away with it. In this order each one goes by its own request.
    """
    present = netlink.present()
    found = [
        (unwanted, deleting(index, held.address))
        for unwanted in reversed(addresses)
        if (index := _index(unwanted.interface)) is not None
        for held in present.get(index, ())
        if held.address.ip == unwanted.address.ip
    ]
    errors = netlink.carry_out([request for _, request in found])
    removed: list[InterfaceAddress] = []
    refused: list[_Refused] = []
    for (unwanted, _), error in zip(found, errors, strict=True):
        if not error:
            removed.append(unwanted)
        elif error not in _ALREADY_GONE:
            refused.append(_refusal(unwanted, error))
    return removed, refused


def _announce(
    netlink: AddressSocket, addresses: Sequence[InterfaceAddress], announcing: _Announcing
) -> _Outcome:
    """Announce what is held, and nothing that is not; returns what was announced.

    To announce an address that the kernel would not add, or that someone removed, would
    lead its traffic to a machine that refuses it.
    """
    present = netlink.present()
    announced: list[InterfaceAddress] = []
    refused: list[_Refused] = []
    for wanted in addresses:
        held = present.get(_index(wanted.interface) or 0, ())
        if all(one.address.ip != wanted.address.ip for one in held):
            refused.append(_Refused(str(wanted), errno.EADDRNOTAVAIL, "the address is not held"))
            continue
        try:
            announcing(wanted)
        except (OSError, HostError) as error:
            refused.append(_Refused(str(wanted), errno.ENETDOWN, str(error)))
        else:
            announced.append(wanted)
    return announced, refused


def _index(interface: str) -> int | None:
    """The number of an interface; None if it is not there."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


def _refusal(wanted: InterfaceAddress, error: int) -> _Refused:
    return _Refused(str(wanted), error, os.strerror(error))


def _indexes(interfaces: Iterable[str]) -> set[int]:
    """The numbers of those interfaces that are there."""
    return {index for name in set(interfaces) if (index := _index(name)) is not None}


def _covers(own: IpInterface, virtual: IpInterface) -> bool:
    """Whether the route of an own address leads to the network of a virtual one."""
    if isinstance(own, ipaddress.IPv4Interface) and isinstance(virtual, ipaddress.IPv4Interface):
        return virtual.network.subnet_of(own.network)
    if isinstance(own, ipaddress.IPv6Interface) and isinstance(virtual, ipaddress.IPv6Interface):
        return virtual.network.subnet_of(own.network)
    return False
