"""What stands in the tables of a pair file: names, numbers, addresses, and their checks.

`Table` is the base of every table. A rule that looks at several keys of one table raises
what `refuse` raises: one line for each wrong key, which begins with the key, so that
`lvsha.config` can name it with its place in the file.
"""

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
InterfaceName = Annotated[str, Field(pattern=r"^[^\s/]{1,15}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrAll = Annotated[int, Field(ge=0, le=65535)]
SyncId = Annotated[int, Field(ge=0, le=255)]
Priority = Annotated[int, Field(ge=1, le=255)]
Weight = Annotated[int, Field(ge=0, le=65535)]
Threshold = Annotated[int, Field(ge=0, le=2**31 - 1)]
FirewallMark = Annotated[int, Field(ge=1, le=2**32 - 1)]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORT_MAX: Final = 65535
_PREFIX_MAX: Final = 128


class Table(BaseModel):
    """A TOML table: unknown keys are mistakes, values never change after reading."""

    # What checks a table is made with what checks the whole, once.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def refuse(problems: Iterable[str]) -> None:
    """Refuse a table if there are problems, each written as ``key: what was expected``.

    Raises:
        ValueError: with a line for each problem.
    """
    text = "\n".join(problems)
    if text:
        raise ValueError(text)


def _absolute_path(value: object) -> object:
    # A director and its operator stand in different directories.
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise ValueError('an absolute path such as "/etc/lvsha/sync.key"')
    return Path(value)


AbsolutePath = Annotated[Path, BeforeValidator(_absolute_path)]
"""The path of a file, from the root."""


def _mac(value: object) -> object:
    text = value.replace("-", ":").lower() if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text):
        raise ValueError("a hardware address such as 02:00:00:00:00:01")
    return text


Mac = Annotated[str, BeforeValidator(_mac)]
"""A hardware address in the form ``02:00:00:00:00:01``."""


def _mask(value: object) -> object:
    """A dotted mask, or a prefix length, also as text."""
    try:
        if isinstance(value, str) and "." in value:
            return ipaddress.IPv4Address(value)
        length = int(value) if isinstance(value, int | str) and value is not True else 0
    except ValueError:
        length = 0
    if not 1 <= length <= _PREFIX_MAX:
        raise ValueError('a mask such as "255.255.255.0", or a prefix length from 1 to 128')
    return length


Mask = Annotated[
    int | ipaddress.IPv4Address,
    PlainValidator(_mask),
    PlainSerializer(lambda mask: mask if isinstance(mask, int) else str(mask)),
]
"""Which bits of an address count: a dotted mask or a prefix length."""


def _ports(value: object) -> object:
    """One port, or a range such as ``8000-8010``."""
    ends: list[int] = []
    if isinstance(value, int) and not isinstance(value, bool):
        ends = [value, value]
    elif isinstance(value, str) and re.fullmatch(r"\d{1,5}(-\d{1,5})?", value, re.ASCII):
        first, _, last = value.partition("-")
        ends = [int(first), int(last or first)]
    if not ends or not 1 <= ends[0] <= ends[1] <= _PORT_MAX:
        raise ValueError('a port from 1 to 65535, or a range such as "8000-8010"')
    return tuple(ends)


PortRange = Annotated[tuple[int, int], BeforeValidator(_ports)]
"""The first and the last port of a range."""
