"""List, add and delete addresses by rtnetlink, in as few steps as there can be.

A master looks at its addresses every second, in a thread beside the loop that forwards, and
both want the interpreter: what the thread does, frames wait for. A list by a handle of pyroute2
took 1.3 ms of that, and 5 to 10 ms until it was done beside a busy loop; here it takes 0.03 ms.
Requests are still encoded by pyroute2. All of them leave with one system call.

Every answer is waited for, `ANSWER_SECONDS_MAX` at most.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

ANSWER_SECONDS_MAX: Final = 2
REQUESTS_MAX: Final = 1024
"""Encoded requests that are kept."""
_RECEIVE_BYTES: Final = 65_536
_DUMPS_MAX: Final = 3
"""A list that changes while it is read is read again, so often."""

# include/uapi/linux/netlink.h and if_addr.h
_HEADER: Final = struct.Struct("=IHHII")
_SEQUENCE: Final = struct.Struct("=I")
_SEQUENCE_AT: Final = 8
_ERROR: Final = struct.Struct("=i")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_FLAGS: Final = struct.Struct("=I")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8


@dataclass(frozen=True, slots=True)
class Held:
    """An address that an interface has, and the kernel's IFA_F_* of it."""

    address: IpInterface
    flags: int


@dataclass(frozen=True, slots=True)
class Placed:
    """An address as it is to be added.

    Attributes:
        index: of its interface.
        address: with its prefix length.
        flags: IFA_F_* of the kernel.
        lifetime: seconds.
    """

    index: int
    address: IpInterface
    flags: int
    lifetime: int


class AddressSocket:
    """A way to the kernel's addresses; one operation at a time."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            OSError: no socket is to be had.
        """
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        limit = struct.pack("@ll", ANSWER_SECONDS_MAX, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def present(self) -> dict[int, list[Held]]:
        """The addresses of all interfaces, by their numbers.

        Raises:
            OSError: the kernel does not answer.
        """
        found, undisturbed = self._dump()
        for _ in range(_DUMPS_MAX - 1):
            if undisturbed:
                break
            found, undisturbed = self._dump()
        return found

    def _dump(self) -> tuple[dict[int, list[Held]], bool]:
        """Read the list; and whether nothing has changed meanwhile."""
        found: dict[int, list[Held]] = {}
        self._sequence += 1
        body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        flags = NLM_F_REQUEST | NLM_F_DUMP
        header = _HEADER.pack(_HEADER.size + len(body), RTM_GETADDR, flags, self._sequence, 0)
        self._socket.send(header + body)
        undisturbed = True
        while True:
            for kind, flags, sequence, message in self._receive():
                if sequence != self._sequence:
                    continue
                undisturbed = undisturbed and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return found, undisturbed
                if kind == NLMSG_ERROR:
                    raise _refusal(-_ERROR.unpack_from(message)[0])
                if kind == RTM_NEWADDR and (held := _held(message)) is not None:
                    found.setdefault(held[0], []).append(held[1])

    def carry_out(self, requests: Sequence[bytes]) -> list[int]:
        """Send requests of `adding` and `deleting`; returns an errno for each, 0 if it was done.

        Raises:
            OSError: the kernel does not answer.
        """
        if not requests:
            return []
        first = self._sequence + 1
        data = bytearray()
        for request in requests:
            self._sequence += 1
            at = len(data) + _SEQUENCE_AT
            data += request
            _SEQUENCE.pack_into(data, at, self._sequence)
        self._socket.send(data)
        errors: dict[int, int] = {}
        while len(errors) < len(requests):
            for kind, _, sequence, message in self._receive():
                if kind == NLMSG_ERROR and sequence >= first:
                    errors[sequence] = -_ERROR.unpack_from(message)[0]
        return [errors[first + number] for number in range(len(requests))]

    def _receive(self) -> Iterator[tuple[int, int, int, memoryview]]:
        """Type, flags, sequence number and content of the messages that come next."""
        data = memoryview(self._socket.recv(_RECEIVE_BYTES))
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            yield kind, flags, sequence, data[at + _HEADER.size : at + length]
            at += max(_HEADER.size, length + 3 & ~3)


@lru_cache(REQUESTS_MAX)
def adding(placed: Placed) -> bytes:
    """The request to add an address, or to renew it; the same ones every second."""
    message = _message(RTM_NEWADDR, placed.index, placed.address)
    message["header"]["flags"] |= NLM_F_CREATE | NLM_F_REPLACE
    lifetime = {"ifa_preferred": placed.lifetime, "ifa_valid": placed.lifetime}
    message["attrs"] += [("IFA_FLAGS", placed.flags), ("IFA_CACHEINFO", lifetime)]
    message.encode()
    return bytes(message.data)


def deleting(index: int, address: IpInterface) -> bytes:
    """The request to delete an address."""
    message = _message(RTM_DELADDR, index, address)
    message.encode()
    return bytes(message.data)


def _message(kind: int, index: int, address: IpInterface) -> ifaddrmsg:
    message = ifaddrmsg()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
    message["prefixlen"] = address.network.prefixlen
    message["index"] = index
    text = str(address.ip)
    message["attrs"] = [("IFA_LOCAL", text), ("IFA_ADDRESS", text)]
    return message


def _held(message: memoryview) -> tuple[int, Held] | None:
    """The number of an interface, and its address."""
    _, length, flags, _, index = _ADDRESS.unpack_from(message)
    values: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        values[kind] = bytes(message[at + _ATTRIBUTE.size : at + size])
        at += max(_ATTRIBUTE.size, size + 3 & ~3)
    # IFA_LOCAL is the address itself where IFA_ADDRESS is the other end of a link.
    packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if packed is None:
        return None
    if _IFA_FLAGS in values:
        (flags,) = _FLAGS.unpack(values[_IFA_FLAGS])
    return index, Held(ipaddress.ip_interface((packed, length)), flags)


def _refusal(error: int) -> OSError:
    return OSError(error, os.strerror(error))
