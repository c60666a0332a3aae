"""The values that options of ipvsadm have: numbers, ends, masks, groups, scheduler flags.

What always holds: any text gives a value, None or a `UsageError`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lvsha.ipvsadm.names import Names
from lvsha.ipvsadm.options import UsageError
from lvsha.model import IPv4_BYTES

INT_MAX: Final = 2**31 - 1
MARK_MAX: Final = 2**32 - 1
TIMEOUT_MAX: Final = 2_678_400
"""Seconds; 31 days."""
_PORT_MAX: Final = 65_535
PREFIX_MAX: Final = 128
_DIGITS_MAX: Final = 20
"""What has more is larger than any number that is legal, leading zeros aside."""

_NUMBER: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)", re.ASCII)

_FLAG_NAMES: Final[tuple[Mapping[str, str], ...]] = (
    {"sh": "sh-fallback", "mh": "mh-fallback"},
    {"sh": "sh-port", "mh": "mh-port"},
    {},
)
"""What a scheduler calls the flags 1 to 3; those without a name are ``flag-N``."""
FLAG_NUMBERS: Final = {
    "flag-1": 1,
    "flag-2": 2,
    "flag-3": 3,
    "sh-fallback": 1,
    "mh-fallback": 1,
    "sh-port": 2,
    "mh-port": 2,
}


@dataclass(frozen=True, slots=True)
class End:
    """An address and a port; None where no port was given."""

    address: bytes
    port: int | None

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.address) == IPv4_BYTES else 6


def parse_number(text: str, smallest: int, largest: int) -> int | None:
    """A decimal number in a range; None if it is none, or outside.

    Blanks and a sign may precede it, as C's ``strtol`` has it.
    """
    found = _NUMBER.fullmatch(text)
    if found is None or not text[-1:].isdigit() or len(found[2]) > _DIGITS_MAX:
        return None
    number = int(found[2] or "0") * (-1 if found[1] == "-" else 1)
    return number if smallest <= number <= largest else None


def parse_timeout(text: str, smallest: int) -> int:
    """Seconds.

    Raises:
        UsageError: not a number of a legal size.
    """
    number = parse_number(text, smallest, TIMEOUT_MAX)
    if number is None:
        raise UsageError(f"invalid timeout value `{text}' specified")
    return number


def parse_fwmark(text: str) -> int:
    """A firewall mark.

    Raises:
        UsageError: it is none, or 0.
    """
    number = parse_number(text, 1, MARK_MAX)
    if number is None:
        raise UsageError(f"invalid fwmark value `{text}' specified")
    return number


def parse_end(text: str, protocol: int, names: Names) -> End | None:
    """An end as one writes it: ``192.0.2.1:80``, ``[2001:db8::1]:http``, ``host``; or None.

    A bare number is none, an IPv6 address without brackets has no port, and one in brackets
    must have one.
    """
    if text.startswith("["):
        host, bracket, port = text[1:].rpartition("]:")
        address = _address(host, 6, names) if bracket else None
        return _end(address, port, protocol, names)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return _end(_address(host, 4, names), port, protocol, names)
    if parse_number(text, -MARK_MAX, MARK_MAX) is not None:
        return None
    address = _address(text, 6 if ":" in text else 4, names)
    return End(address, None) if address is not None else None


def _end(address: bytes | None, port: str, protocol: int, names: Names) -> End | None:
    number = parse_number(port, 0, _PORT_MAX)
    if number is None and address is not None and port and not port.isdigit():
        number = names.port(port, protocol)
    return End(address, number) if address is not None and number is not None else None


def _address(host: str, family: int, names: Names) -> bytes | None:
    """A host's address in one family; an IPv6 one has no zone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return names.address(host, family) if host and "%" not in host else None
    if address.version != family or "%" in host:
        return None
    return address.packed


def parse_netmask(text: str, family: int) -> bytes:
    """A mask: of IPv4 in dots, of IPv6 the length of a prefix; empty if it masks nothing.

    Raises:
        UsageError: it is neither.
    """
    if family == 4:
        try:
            mask = ipaddress.IPv4Address(text).packed
        except ValueError:
            raise UsageError("illegal virtual server persistent mask specified") from None
        return b"" if mask == b"\xff" * len(mask) else mask
    length = parse_number(text, 1, PREFIX_MAX)
    if length is None:
        raise UsageError("illegal ipv6 netmask specified")
    if length == PREFIX_MAX:
        return b""
    bits = (1 << PREFIX_MAX) - (1 << (PREFIX_MAX - length))
    return bits.to_bytes(PREFIX_MAX // 8)


def parse_group(text: str) -> bytes:
    """A multicast group.

    Raises:
        UsageError: it is none.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or not address.is_multicast or "%" in text:
        version = 6 if ":" in text else 4
        raise UsageError(f"invalid IPv{version} mcast-group `{text}'")
    return address.packed


def parse_scheduler_flags(text: str, scheduler: str) -> frozenset[str]:
    """Flags of a scheduler, under the names that it gives them.

    Raises:
        UsageError: there is no such flag, or this scheduler has none of that name.
    """
    flags = set()
    for word in filter(None, text.split(",")):
        number = FLAG_NUMBERS.get(word)
        if number is None:
            raise UsageError(f"invalid scheduler flag `{word}'")
        named = flag_name(number, scheduler)
        if not word.startswith("flag-") and word != named:
            raise UsageError(f"incompatible scheduler flag `{word}'")
        flags.add(named)
    return frozenset(flags)


def flag_name(number: int, scheduler: str) -> str:
    """What a scheduler calls one of the flags 1 to 3."""
    return _FLAG_NAMES[number - 1].get(scheduler, f"flag-{number}")
