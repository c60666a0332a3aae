"""Take addresses in two system calls, written down while there was time.

A takeover is an outage for as long as it lasts. To ask the kernel what an interface has, to
decide, and to encode the requests takes some milliseconds, several times as long beside a loop
that forwards and wants the interpreter too. All of that can be done before: a claim holds
the encoded requests and the frames that announce the addresses, and to make it is to send them.

A claim says what was true when it was written. If an interface is another by then, the kernel
refuses, and whoever made the claim has to take the longer way; the hardware address in the
frames is corrected by the next announcement.
"""

import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWADDR
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

# struct nlmsghdr and, in an answer, the error of struct nlmsgerr (include/uapi/linux/netlink.h).
_ANSWER: Final = struct.Struct("=IHHIIi")
_ANSWER_BYTES_MAX: Final = 4096


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
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface
    flags: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """A frame and the name of the interface by which it leaves."""

    interface: str
    frame: bytes


class Claim:
    """Requests for addresses, and what announces them."""

    def __init__(self, placed: Sequence[Placed], announcements: Sequence[Announcement]) -> None:
        """Write the requests down and open a way to the kernel.

        Args:
            placed: what to ask for.
            announcements: what tells the neighbours of them.

        Raises:
            OSError: no socket is to be had.
        """
        self._requests = [_request(one) for one in placed]
        self._announcements = announcements
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.setblocking(False)

    def make(self) -> bool:
        """Add the addresses; returns whether all are held. If not, some may be.

        All requests leave at once, and the kernel has answered each when that returns.
        """
        try:
            self._netlink.send(b"".join(self._requests))
            answers = [self._netlink.recv(_ANSWER_BYTES_MAX) for _ in self._requests]
        except OSError:
            return False
        return not any(_ANSWER.unpack_from(answer)[-1] for answer in answers)

    def announce(self, sender: socket.socket) -> bool:
        """Send what announces them; returns whether all of it could be sent.

        Args:
            sender: of `lvsha.failover.announcements.open_sender`.
        """
        try:
            for one in self._announcements:
                sender.sendto(one.frame, (one.interface, 0))
        except OSError:
            return False
        return bool(self._announcements)

    def close(self) -> None:
        """Give the socket back."""
        self._netlink.close()


def _request(placed: Placed) -> bytes:
    message = ifaddrmsg()
    message["header"]["type"] = RTM_NEWADDR
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    message["family"] = socket.AF_INET if placed.address.version == 4 else socket.AF_INET6
    message["prefixlen"] = placed.address.network.prefixlen
    message["index"] = placed.index
    text = str(placed.address.ip)
    lifetime = {"ifa_preferred": placed.lifetime, "ifa_valid": placed.lifetime}
    message["attrs"] = [
        ("IFA_LOCAL", text),
        ("IFA_ADDRESS", text),
        ("IFA_FLAGS", placed.flags),
        ("IFA_CACHEINFO", lifetime),
    ]
    message.encode()
    return bytes(message.data)
