"""The tables of a pair file that describe virtual routers.

Times are seconds.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lvsha.config_fields import IpAddress, IpInterface, Name, SyncId, Table, refuse
from lvsha.config_routes import ROUTES_MAX, RouteOrLine, RuleOrLine, fill_families
from lvsha.config_tracking import NotifyOrCommand, Tracks
from lvsha.wire.vrrp import HOP_LIMIT, virtual_mac
from lvsha.wire.vrrp_versions import INTERVALS_CS_MAX

PEERS_MAX: Final = 16
DELAY_MAX: Final = 3600
ANNOUNCEMENTS_MAX: Final = 16


class PlacedAddress(Table):
    """A virtual address and the role of the interface that carries it."""

    address: IpInterface
    interface: Name


def _placed(value: object) -> object:
    """Accept the short form ``"192.0.2.10/24@inside"`` beside the table form."""
    if not isinstance(value, str):
        return value
    address, _, interface = value.partition("@")
    if "/" not in address:
        raise ValueError(f"an address with its prefix length, such as {address}/24")
    return {"address": address, "interface": interface or "."}


class VirtualRouter(Table):
    """A VRRP virtual router: addresses that move together (RFC 9568, RFC 3768).

    ``peers`` are the addresses of all its speakers, so that one list serves every node: each
    finds its own in it, and sends to the others instead of to the group. ``speakers`` are the
    same where the group is used: others are not heard.
    """

    name: Name
    vrid: Annotated[int, Field(ge=1, le=255)]
    interface: Name
    addresses: Annotated[
        tuple[Annotated[PlacedAddress, BeforeValidator(_placed)], ...],
        Field(min_length=1, max_length=64),
    ]
    version: Literal[2, 3] = 3
    advert_interval: Annotated[float, Field(ge=0.01, le=255)] = 1.0
    preempt: bool = True
    preempt_delay: Annotated[float, Field(ge=0, le=DELAY_MAX)] = 0.0
    preempt_incomplete_after: Annotated[float, Field(ge=0)] = 300.0
    startup_delay: Annotated[float, Field(ge=0, le=DELAY_MAX)] = 0.0
    announce_again: Annotated[
        tuple[Annotated[float, Field(gt=0, le=DELAY_MAX)], ...], Field(max_length=ANNOUNCEMENTS_MAX)
    ] = (1.0, 5.0)
    announce_every: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    announce_repeat: Annotated[int, Field(ge=1, le=ANNOUNCEMENTS_MAX)] = 1
    checksum: Literal["auto", "rfc9568", "keepalived"] = "auto"
    peers: Annotated[tuple[IpAddress, ...], Field(max_length=PEERS_MAX)] = ()
    speakers: Annotated[tuple[IpAddress, ...], Field(max_length=PEERS_MAX)] = ()
    virtual_mac: bool = False
    hop_limit_min: Annotated[int, Field(ge=1, le=HOP_LIMIT)] = HOP_LIMIT
    sync_id: SyncId
    routes: Annotated[tuple[RouteOrLine, ...], Field(max_length=ROUTES_MAX)] = ()
    rules: Annotated[tuple[RuleOrLine, ...], Field(max_length=ROUTES_MAX)] = ()
    track: Tracks = ()
    notify: NotifyOrCommand | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: object) -> object:
        """The sync id is the vrid, and addresses stand on the router's own interface."""
        if not isinstance(data, Mapping):
            return data
        vrid = data.get("vrid")
        # Without a vrid there is one mistake to tell, not two.
        filled = {"sync_id": vrid if isinstance(vrid, int) else 0, **data}
        if isinstance(data.get("addresses"), list):
            own = data.get("interface")
            filled["addresses"] = [
                f"{entry}@{own}" if isinstance(entry, str) and "@" not in entry else entry
                for entry in data["addresses"]
            ]
            first = next(iter(data["addresses"]), "")
            text = first.get("address") if isinstance(first, Mapping) else first
            filled.update(fill_families(data, 6 if ":" in str(text).partition("@")[0] else 4))
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(
            [
                *self._problems_of_version(),
                *self._problems_of_peers(),
                *self._problems_of_announcements(),
            ]
        )
        return self

    def _problems_of_announcements(self) -> Iterable[str]:
        if 0 < self.announce_every < 1:
            yield "announce_every: expected 0 for never, or at least 1"

    def _problems_of_version(self) -> Iterable[str]:
        interval_cs = self.advert_interval * 100
        longest = INTERVALS_CS_MAX[self.version] / 100
        if self.advert_interval > longest:
            yield f"advert_interval: expected no more than {longest:g} with version {self.version}"
        elif self.version == 2 and self.advert_interval % 1:
            yield "advert_interval: expected whole seconds with version 2"
        elif abs(interval_cs - round(interval_cs)) > 1e-6:
            yield "advert_interval: expected a multiple of 0.01"
        if self.version == 2 and self.family != 4:
            yield "version: expected 3, because the first address is of IPv6"
        if self.version == 2 and self.checksum != "auto":
            yield 'checksum: expected none or "auto" with version 2, which has but one'

    def _problems_of_peers(self) -> Iterable[str]:
        if not self.peers and "hop_limit_min" in self.model_fields_set:
            yield "hop_limit_min: expected only with peers"
        if self.peers and self.speakers:
            yield "speakers: expected only without peers, who are the speakers"
        for key, listed in (("peers", self.peers), ("speakers", self.speakers)):
            yield from self._problems_of_speakers(key, listed)

    def _problems_of_speakers(self, key: str, listed: Sequence[IpAddress]) -> Iterable[str]:
        virtual = {placed.address.ip for placed in self.addresses}
        if listed and len(set(listed)) < max(2, len(listed)):
            yield f"{key}: expected at least two different addresses, one of them this node's"
        for one in listed:
            if one.version != self.family or one.is_multicast or one.is_unspecified:
                yield f"{key}: expected IPv{self.family} addresses of speakers, not {one}"
            elif one in virtual:
                yield f"{key}: expected no virtual address, not {one}"

    @property
    def roles(self) -> dict[str, str]:
        """The interfaces that are used, and the key that uses each."""
        used = {self.interface: ""}
        for placed in self.addresses:
            used.setdefault(placed.interface, ".addresses")
        for route in self.routes:
            if route.dev is not None:
                used.setdefault(route.dev, ".routes")
        for rule in self.rules:
            if rule.iif is not None:
                used.setdefault(rule.iif, ".rules")
        return used

    @property
    def mac(self) -> bytes | None:
        """The MAC address at which the addresses are; None for that of each interface."""
        return virtual_mac(self.vrid, self.family) if self.virtual_mac else None

    @property
    def family(self) -> int:
        """4 or 6: the family of the advertisements, which is that of the first address."""
        return self.addresses[0].address.version


def check_virtual_routers(
    routers: Iterable[VirtualRouter], priorities: Mapping[str, Collection[int]]
) -> Iterable[str]:
    """What virtual routers claim that others have.

    Args:
        routers: all of the file.
        priorities: of the nodes, by router.
    """
    identities: dict[tuple[str, int, int], str] = {}
    owners: dict[IpAddress, str] = {}
    sync_ids: dict[int, str] = {}
    taken: dict[tuple[object, ...], str] = {}
    macs: dict[bytes, str] = {}
    for router in routers:
        yield from _check_routes(router, taken)
        leader = sync_ids.setdefault(router.sync_id, router.name)
        if leader != router.name:
            # One node could be MASTER for one and another for the other, and an id has
            # one source.
            yield (
                f"virtual_routers.{router.name}.sync_id: expected a number that {leader!r} "
                f"does not use (default: the vrid)"
            )
        identity = (router.interface, router.family, router.vrid)
        other = identities.setdefault(identity, router.name)
        if other != router.name:
            yield (
                f"virtual_routers.{router.name}.vrid: expected a number that {other!r} "
                f"does not use on interface {router.interface!r}"
            )
        if router.mac is not None and macs.setdefault(router.mac, router.name) != router.name:
            yield (
                f"virtual_routers.{router.name}.virtual_mac: expected false, or another vrid; "
                f"{macs[router.mac]!r} has the same MAC address"
            )
        if len(set(priorities[router.name])) < len(priorities[router.name]):
            yield (
                f"virtual_routers.{router.name}: expected a different priority on each node "
                f"(nodes.NAME.priority or nodes.NAME.priorities.{router.name})"
            )
        for placed in router.addresses:
            holder = owners.setdefault(placed.address.ip, router.name)
            if holder != router.name:
                yield (
                    f"virtual_routers.{router.name}.addresses: expected an address that "
                    f"{holder!r} does not hold, not {placed.address.ip}"
                )


def _check_routes(router: VirtualRouter, taken: dict[tuple[object, ...], str]) -> Iterable[str]:
    """Routes and rules that the kernel could not tell apart."""
    keyed = [("routes", "prefix, table and metric", one.key) for one in router.routes]
    keyed += [("rules", "selectors, table and priority", one.key) for one in router.rules]
    for kind, what, key in keyed:
        identity = (kind, *key)
        if identity in taken:
            yield (
                f"virtual_routers.{router.name}.{kind}: expected no two of the same {what}; "
                f"{taken[identity]!r} has another"
            )
        taken[identity] = router.name
