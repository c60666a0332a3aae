"""The routes and rules of a virtual router, as they stand in a pair file.

Each is a table, or a line in the words of ``ip route`` and ``ip rule``. Interfaces are roles.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lvsha.config_fields import IpAddress, IpNetwork, Name, Table, refuse

ROUTES_MAX: Final = 256
"""In one virtual router, and so many rules: what a takeover adds in a tenth of a second."""
_NUMBER_MAX: Final = 2**32 - 1
_TABLES: Final = {"main": 254, "default": 253, "local": 255}
_RULE_PRIORITY: Final = 16_384
"""keepalived's, for a rule that names none: before the main table (32766)."""
_NETWORKS: Final = (ipaddress.IPv4Network, ipaddress.IPv6Network)
_MARK: Final = re.compile(r"(0x[0-9a-fA-F]{1,8}|\d{1,10})(?:/(0x[0-9a-fA-F]{1,8}|\d{1,10}))?")


def _table_number(value: object) -> object:
    if isinstance(value, str):
        number = _TABLES.get(value, value)
        if isinstance(number, int) or number.isdecimal():
            return int(number)
        raise ValueError("a number from 1 to 4294967295, or main, default or local")
    return value


def _number(value: object) -> object:
    # In a line every value is text.
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _prefix(value: object) -> object:
    """Tell what may stand here; pydantic's own message is of one address family."""
    try:
        return ipaddress.ip_network(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("a prefix without host bits, such as 192.0.2.0/24") from None


def _selection(value: object) -> object:
    """A prefix; all addresses are, as for ``ip rule``, a selector that is not there."""
    prefix = None if value == "all" else _prefix(value)
    everything = isinstance(prefix, _NETWORKS) and prefix.prefixlen == 0
    return None if everything else prefix


def _mark(value: object) -> object:
    """A mark, or mark and mask with a slash between, as two numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = _MARK.fullmatch(value) if isinstance(value, str) else None
    numbers = [int(text, 0) for text in match.groups(str(_NUMBER_MAX))] if match else []
    if not numbers or max(numbers) > _NUMBER_MAX or numbers[0] & ~numbers[1] or not numbers[1]:
        raise ValueError('a mark such as 7, or a mark within its mask such as "0x10/0xff"')
    return tuple(numbers)


Family = Annotated[Literal[4, 6], BeforeValidator(_number)]
Destination = Annotated[IpNetwork, BeforeValidator(_prefix)]
Selection = Annotated[IpNetwork | None, BeforeValidator(_selection)]
TableNumber = Annotated[int, BeforeValidator(_table_number), Field(ge=1, le=_NUMBER_MAX)]
Number = Annotated[int, BeforeValidator(_number), Field(ge=0, le=_NUMBER_MAX)]
MarkAndMask = Annotated[tuple[int, int], BeforeValidator(_mark)]


class RouteTable(Table):
    """A route that stands while its virtual router is MASTER here.

    ``to`` of "default" is that of the family of ``via`` or ``src``, or of the router.
    """

    to: Destination
    via: IpAddress | None = None
    dev: Name | None = None
    table: TableNumber = _TABLES["main"]
    metric: Number = 0
    src: IpAddress | None = None
    onlink: bool = False
    type: Literal["unicast", "blackhole", "unreachable", "prohibit"] = "unicast"
    family: Family

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        to = data.get("to")
        told = _told_family(data, "via", "src") if to == "default" else _told_family(data, "to")
        family = data.get("family", told or 4)
        default = "::/0" if (told or family) in {6, "6"} else "0.0.0.0/0"
        return {**data, "family": family, **({"to": default} if to == "default" else {})}

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterable[str]:
        if self.family != self.to.version:
            yield f"family: expected {self.to.version}, because of {self.to}"
        for key, address in (("via", self.via), ("src", self.src)):
            if address is None:
                continue
            if address.version != self.to.version:
                yield f"{key}: expected an IPv{self.to.version} address, as in {self.to}"
            elif address.is_multicast or address.is_unspecified:
                yield f"{key}: expected the address of one host, not {address}"
        if self.to.is_multicast:
            yield f"to: expected no multicast prefix, not {self.to}"
        if self.type != "unicast":
            for key in sorted(self.model_fields_set & {"via", "dev", "src", "onlink"}):
                yield f"{key}: expected none, because of the type {self.type}"
        elif self.via is None and self.dev is None:
            yield "via: expected a gateway, or dev, the role of an interface"
        elif self.dev is None and self.onlink:
            yield "dev: expected the role of an interface, because of onlink"
        elif self.dev is None and self.via is not None and self.via.is_link_local:
            yield "dev: expected the role of an interface, because via is link-local"
        if self.onlink and self.via is None:
            yield "onlink: expected only with via"

    @property
    def key(self) -> tuple[object, ...]:
        """By what the kernel tells routes apart."""
        # The kernel's own metric of an IPv6 route that names none (IP6_RT_PRIO_USER).
        return self.table, self.to, self.metric or (1024 if self.family == 6 else 0)


class RuleTable(Table):
    """A rule that stands while its virtual router is MASTER here."""

    source: Selection = Field(default=None, alias="from")
    to: Selection = None
    iif: Name | None = None
    fwmark: MarkAndMask | None = None
    table: TableNumber
    priority: Annotated[Number, Field(ge=1, le=32_765)] = _RULE_PRIORITY
    family: Family

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        return {"family": _told_family(data, "from", "to") or 4, **data}

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterable[str]:
        if not self.model_fields_set & {"source", "to", "iif", "fwmark"}:
            yield 'iif: expected at least one of from, to, iif and fwmark, or from = "all"'
        for key, prefix in (("from", self.source), ("to", self.to)):
            if prefix is not None and prefix.version != self.family:
                yield f"{key}: expected an IPv{self.family} prefix as elsewhere, not {prefix}"

    @property
    def key(self) -> tuple[object, ...]:
        """By what the kernel tells rules apart."""
        return (
            *(self.family, self.source, self.to, self.iif, self.fwmark),
            *(self.table, self.priority),
        )


_TYPES: Final = frozenset({"unicast", "blackhole", "unreachable", "prohibit"})
_ROUTE_WORDS: Final = {
    word: word for word in ("to", "via", "dev", "table", "metric", "src", "family")
}
_RULE_WORDS: Final = {
    **{word: word for word in ("from", "to", "iif", "fwmark", "table", "priority", "family")},
    "lookup": "table",
    "pref": "priority",
    "preference": "priority",
}


def _told_family(data: Mapping[object, object], *keys: str) -> int | None:
    """The family of the first of some keys that holds an address or a prefix."""
    for key in keys:
        value = data.get(key)
        if isinstance(value, str) and value not in {"all", "default"}:
            return 6 if ":" in value else 4
    return None


def _read(words: list[str], keys: Mapping[str, str], flags: Iterable[str]) -> dict[object, object]:
    """A line of words and their values as a table."""
    read: dict[object, object] = {}
    rest = iter(words)
    for word in rest:
        if word in flags:
            read[word] = True
        elif word not in keys:
            known = ", ".join([*keys, *flags])
            raise ValueError(f"one of the words {known}, not {word!r}")
        elif keys[word] in read:
            raise ValueError(f"{word} only once")
        else:
            value = next(rest, None)
            if value is None:
                raise ValueError(f"a value behind {word}")
            read[keys[word]] = value
    return read


def _route(value: object) -> object:
    """Accept a line such as ``default via 192.0.2.1 dev outside`` beside the table form."""
    if not isinstance(value, str):
        return value
    words = value.split()
    kind: dict[object, object] = {}
    if words and words[0] in _TYPES:
        kind["type"] = words.pop(0)
    if words and words[0] not in _ROUTE_WORDS:
        words.insert(0, "to")
    return {**kind, **_read(words, _ROUTE_WORDS, ["onlink"])}


def _rule(value: object) -> object:
    """Accept a line such as ``from 192.0.2.0/24 table 100`` beside the table form."""
    return _read(value.split(), _RULE_WORDS, ()) if isinstance(value, str) else value


def fill_families(data: Mapping[object, object], family: int) -> dict[object, object]:
    """Give routes and rules that do not tell their family that of their virtual router.

    Args:
        data: the table of a virtual router, not checked yet.
        family: of the router.
    """
    filled: dict[object, object] = {}
    for key, read, telling in (
        ("routes", _route, ("to", "via", "src")),
        ("rules", _rule, ("from", "to")),
    ):
        entries = data.get(key)
        if isinstance(entries, list):
            filled[key] = [_with_family(entry, read, telling, family) for entry in entries]
    return filled


def _with_family(
    entry: object, read: Callable[[object], object], telling: Iterable[str], family: int
) -> object:
    try:
        table = read(entry)
    except ValueError:
        # It is read once more, where its mistake has a place.
        return entry
    if not isinstance(table, Mapping) or _told_family(table, *telling) is not None:
        return entry
    return {"family": family, **table}


RouteOrLine = Annotated[RouteTable, BeforeValidator(_route)]
RuleOrLine = Annotated[RuleTable, BeforeValidator(_rule)]
