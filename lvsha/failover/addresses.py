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
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from structlog.typing import FilteringBoundLogger

from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.announcements import admit, announce, frames, open_sender
from lvsha.failover.claim import Announcement, Claim, Placed
from lvsha.log import LimitedLog

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

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
    """The addresses of one virtual router; each method says whether all went well."""

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


@dataclass(frozen=True, slots=True)
class _Held:
    """An address that an interface has, and the kernel's IFA_F_* of it."""

    address: IpInterface
    flags: int


_Outcome = tuple[Sequence[InterfaceAddress], Sequence[_Refused]]
_Present = Sequence[_Held]
"""What an interface has."""
_Step = Callable[[IPRoute, int, _Present, InterfaceAddress], None]
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
        self._admitted: set[int] = set()
        self._sender: socket.socket | None = None
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
        _, refused = await self._in_thread(self._acquire)
        return self._tell("address_not_acquired", refused)

    async def release(self) -> bool:
        """Remove the addresses."""
        _, refused = await self._in_thread(self._release)
        return self._tell("address_not_released", refused)

    async def refresh(self) -> bool:
        """Renew the lifetime; add and announce what someone else removed."""
        restored, refused = await self._in_thread(self._refresh)
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
            lambda: _announce(
                self.addresses, lambda one: self._announcing(one, self._announce_repeat)
            )
        )
        return self._tell("address_not_announced", refused)

    def _prepare(self) -> _Outcome:
        self._drop_claim()
        placed, refused = _place(self.addresses, self._lifetime)
        if not refused:
            with suppress(OSError, HostError):
                self._claim = Claim(placed, self._announcements())
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

    def _acquire(self) -> _Outcome:
        self._announced = False
        if self._claim is not None:
            held = self._claim.make()
            self._admit()
            self._announced = held and self._claim.announce(self._open_sender())
            self._drop_claim()
            if held:
                return self.addresses, ()
        self._admit()
        announcing = self._announcing if self._announce_at_once else None
        return _hold(self.addresses, self._lifetime, announcing)

    def _refresh(self) -> _Outcome:
        self._admit()
        return _hold(self.addresses, self._lifetime)

    def _release(self) -> _Outcome:
        self._admit(none=True)
        return _remove(self.addresses)

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

    def _drop_claim(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _announcing(self, wanted: InterfaceAddress, repeat: int = 1) -> None:
        packed = [wanted.address.packed] * repeat
        announce(wanted.interface, packed, self._open_sender(), self._mac)

    def _open_sender(self) -> socket.socket:
        if self._sender is None:
            self._sender = open_sender()
        return self._sender

    async def _in_thread(self, operation: Callable[[], _Outcome]) -> _Outcome:
        # Whoever waits may give up waiting; the limiter still keeps the order.
        return await trio.to_thread.run_sync(
            operation, abandon_on_cancel=True, limiter=self._limiter
        )

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
    removed, refused = await trio.to_thread.run_sync(_remove, wanted)
    if refused:
        first = refused[0]
        hint = " (it needs CAP_NET_ADMIN)" if first.error == errno.EPERM else ""
        raise HostError(f"cannot remove {first.what}: {first.text}{hint}")
    return len(removed)


def _place(
    addresses: Sequence[InterfaceAddress], lifetime: int
) -> tuple[Sequence[Placed], Sequence[_Refused]]:
    """How each would be added now, and those that could not be."""
    virtual = [wanted.address.ip for wanted in addresses]
    placed: list[Placed] = []

    def place(_: IPRoute, index: int, present: _Present, wanted: InterfaceAddress) -> None:
        flags = _flags(wanted.address, present, virtual)
        placed.append(Placed(index, wanted.address, flags, lifetime))

    refused = _for_each(addresses, place)
    return placed, refused


def _flags(wanted: IpInterface, present: _Present, virtual: Collection[IpAddress]) -> int:
    """As what an address is added, after a look at what its interface has.

    It is asked for each time, because an own address may have come or gone since.
    """
    own = (held.address for held in present if held.address.ip not in virtual)
    flags = _IFA_F_NOPREFIXROUTE if any(_covers(held, wanted) for held in own) else 0
    return flags | (_IFA_F_NODAD if wanted.version == 6 else 0)


def _hold(
    addresses: Sequence[InterfaceAddress], lifetime: int, announcing: _Announcing | None = None
) -> _Outcome:
    """Add or renew; returns those that were added, and announces them if it can."""
    virtual = [wanted.address.ip for wanted in addresses]
    added: list[InterfaceAddress] = []

    def hold(netlink: IPRoute, index: int, present: _Present, wanted: InterfaceAddress) -> None:
        flags = _flags(wanted.address, present, virtual)
        for held in present:
            if held.address == wanted.address and _lacks_its_route(held, flags):
                _delete(netlink, index, held)
        netlink.addr(
            "replace",
            index=index,
            family=_family(wanted.address),
            address=str(wanted.address.ip),
            prefixlen=wanted.address.network.prefixlen,
            flags=flags,
            preferred_lft=lifetime,
            valid_lft=lifetime,
        )
        if all(held.address != wanted.address for held in present):
            added.append(wanted)
            if announcing is not None:
                # If it cannot be, the announcement that follows says so.
                with suppress(OSError, HostError):
                    announcing(wanted)

    refused = _for_each(addresses, hold)
    return added, refused


def _lacks_its_route(held: _Held, flags: int) -> bool:
    """Whether only another addition brings the route; of IPv6 the kernel adds it by itself."""
    return held.address.version == 4 and bool(held.flags & ~flags & _IFA_F_NOPREFIXROUTE)


def _delete(netlink: IPRoute, index: int, held: _Held) -> None:
    netlink.addr(
        "delete",
        index=index,
        family=_family(held.address),
        address=str(held.address.ip),
        prefixlen=held.address.network.prefixlen,
    )


def _remove(addresses: Sequence[InterfaceAddress]) -> _Outcome:
    """Remove, the last one first; returns those that were there.

    Of several IPv4 addresses in a network the first is the primary, and the kernel takes
    the others away with it. In this order each one goes by its own request.
    """
    removed: list[InterfaceAddress] = []

    def remove(netlink: IPRoute, index: int, present: _Present, unwanted: InterfaceAddress) -> None:
        for held in present:
            if held.address.ip == unwanted.address.ip:
                _delete(netlink, index, held)
                removed.append(unwanted)

    refused = _for_each(tuple(reversed(addresses)), remove)
    return removed, [refusal for refusal in refused if refusal.error not in _ALREADY_GONE]


def _announce(addresses: Sequence[InterfaceAddress], announcing: _Announcing) -> _Outcome:
    """Announce what is held, and nothing that is not; returns what was announced.

    To announce an address that the kernel would not add, or that someone removed, would
    lead its traffic to a machine that refuses it.
    """
    announced: list[InterfaceAddress] = []

    def announce_held(_: IPRoute, _index: int, present: _Present, wanted: InterfaceAddress) -> None:
        if all(held.address.ip != wanted.address.ip for held in present):
            raise OSError(errno.EADDRNOTAVAIL, "the address is not held")
        announcing(wanted)
        announced.append(wanted)

    refused = _for_each(addresses, announce_held)
    return announced, refused


def _for_each(addresses: Sequence[InterfaceAddress], step: _Step) -> Sequence[_Refused]:
    """Do something for each address with one handle; a refusal does not end the others.

    A step is told what its interface has. That is asked for once, because the kernel lists the
    addresses of all interfaces anyway, and a takeover waits for it.
    """
    refused: list[_Refused] = []
    try:
        with IPRoute() as netlink:
            present = _present(netlink)
            for address in addresses:
                refused += _try(netlink, present, address, step)
    except OSError as error:
        refused.append(_Refused("any address", error.errno or 0, str(error)))
    return refused


def _try(
    netlink: IPRoute, present: Mapping[int, _Present], address: InterfaceAddress, step: _Step
) -> Sequence[_Refused]:
    try:
        index = socket.if_nametoindex(address.interface)
    except OSError:
        # It comes without a number.
        return (_Refused(str(address), errno.ENODEV, "no such interface"),)
    try:
        step(netlink, index, present.get(index, ()), address)
    except NetlinkError as error:
        return (_Refused(str(address), int(error.code), str(error)),)
    except OSError as error:
        return (_Refused(str(address), error.errno or 0, str(error)),)
    except HostError as error:
        return (_Refused(str(address), errno.ENODEV, str(error)),)
    return ()


def _present(netlink: IPRoute) -> Mapping[int, _Present]:
    """The addresses of all interfaces, by their numbers."""
    found: dict[int, list[_Held]] = {}
    for message in netlink.get_addr():
        # IFA_LOCAL is the address itself where IFA_ADDRESS is the other end of a link.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if text is not None:
            address = ipaddress.ip_interface(f"{text}/{int(message['prefixlen'])}")
            held = _Held(address, int(message.get_attr("IFA_FLAGS") or message["flags"]))
            found.setdefault(int(message["index"]), []).append(held)
    return found


def _covers(own: IpInterface, virtual: IpInterface) -> bool:
    """Whether the route of an own address leads to the network of a virtual one."""
    if isinstance(own, ipaddress.IPv4Interface) and isinstance(virtual, ipaddress.IPv4Interface):
        return virtual.network.subnet_of(own.network)
    if isinstance(own, ipaddress.IPv6Interface) and isinstance(virtual, ipaddress.IPv6Interface):
        return virtual.network.subnet_of(own.network)
    return False


def _indexes(interfaces: Iterable[str]) -> set[int]:
    """The numbers of those interfaces that are there."""
    wanted = set(interfaces)
    return {index for index, name in socket.if_nameindex() if name in wanted}


def _family(address: IpInterface) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)
