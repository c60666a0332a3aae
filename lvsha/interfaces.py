"""Ask the machine for the addresses of an interface by its name.

A thin, typed cover over the ``netifaces`` module, a system call and a file. Nothing is cached: an
answer is what was true when it was asked for. What is missing becomes a `HostError` that
names the interface.
"""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

import netifaces

from lvsha.errors import HostError
from lvsha.model import parse_address

_SIOCGIFMTU: Final = 0x8921  # linux/sockios.h
_NAME_BYTES: Final = 16
_IPv6_ADDRESSES: Final = Path("/proc/net/if_inet6")
# linux/if_addr.h
_IFA_F_OPTIMISTIC: Final = 0x04
_IFA_F_TENTATIVE: Final = 0x40


def primary_ipv4(interface: str, excluding: Collection[bytes] = ()) -> bytes:
    """The first IPv4 address of an interface, the one VRRP speaks from.

    Args:
        interface: its name.
        excluding: virtual addresses, which are never a machine's own even while it
            holds them.

    Raises:
        HostError: no such interface, or it has no other address.
    """
    for address in _addresses(interface, netifaces.AF_INET):
        if address not in excluding:
            return address
    raise HostError(
        f"interface {interface} has no IPv4 address of its own; VRRP needs one to speak from"
    )


def link_local_ipv6(interface: str, excluding: Collection[bytes] = ()) -> bytes:
    """The link-local IPv6 address of an interface, the one VRRP speaks from.

    Args:
        interface: its name.
        excluding: virtual addresses, which may be link-local as well.

    Raises:
        HostError: no such interface, or it has no such address.
    """
    for address in _addresses(interface, netifaces.AF_INET6):
        if address not in excluding and ipaddress.IPv6Address(address).is_link_local:
            return address
    raise HostError(
        f"interface {interface} has no link-local IPv6 address of its own; VRRP needs one to "
        "speak from (is the interface up, and IPv6 not disabled?)"
    )


def addresses(interface: str, family: int) -> list[bytes]:
    """All addresses of an interface in a family, 4 or 6.

    Raises:
        HostError: no such interface.
    """
    return _addresses(interface, netifaces.AF_INET if family == 4 else netifaces.AF_INET6)


def is_tentative(interface: str, address: bytes) -> bool:
    """Whether an IPv6 address may be a duplicate, so that nothing can be sent from it.

    RFC 4862, section 5.4; it stays so if it is one.
    """
    try:
        lines = _IPv6_ADDRESSES.read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    for line in lines:
        # Address, number of the interface, prefix length, scope, flags, name.
        words = line.split()
        if words[0] == address.hex() and words[-1] == interface:
            return int(words[4], 16) & (_IFA_F_TENTATIVE | _IFA_F_OPTIMISTIC) == _IFA_F_TENTATIVE
    return False


def mac_address(interface: str) -> bytes:
    """The six bytes of the Ethernet address of an interface.

    Raises:
        HostError: no such interface, or it is not Ethernet.
    """
    for entry in _entries(interface, netifaces.AF_PACKET):
        mac = bytes.fromhex(entry.replace(":", ""))
        if len(mac) == 6:
            return mac
    raise HostError(f"interface {interface} has no Ethernet address")


def mtu(interface: str) -> int | None:
    """The MTU of an interface, in bytes; None if there is no such interface."""
    # struct ifreq: a name, then a union whose first number is the answer.
    request = struct.pack(f"={_NAME_BYTES}si20x", interface.encode()[: _NAME_BYTES - 1], 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFMTU, request)
        except OSError:
            return None
    return int(struct.unpack_from("=i", answer, _NAME_BYTES)[0])


def _addresses(interface: str, family: int) -> list[bytes]:
    # netifaces appends the zone to a link-local address: fe80::1%eth0.
    return [parse_address(entry.partition("%")[0]) for entry in _entries(interface, family)]


def _entries(interface: str, family: int) -> list[str]:
    try:
        found = netifaces.ifaddresses(interface)
    except ValueError as error:
        raise HostError(f"interface {interface} does not exist") from error
    return [str(entry["addr"]) for entry in found.get(family, []) if "addr" in entry]
