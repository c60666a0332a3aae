"""Take addresses in a few system calls, written down while there was time.

A takeover is an outage for as long as it lasts. To look at what an interface has, to decide, and
to encode the requests can be done before: a claim holds the encoded requests and the frames
that announce the addresses, and to make it is to send them.

A claim says what was true when it was written. If an interface is another by then, the kernel
refuses, and whoever made the claim has to take the longer way; the hardware address in the
frames is corrected by the next announcement.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from lvsha.failover.rtnetlink import AddressSocket, Placed, adding


@dataclass(frozen=True, slots=True)
class Announcement:
    """A frame and the name of the interface by which it leaves."""

    interface: str
    frame: bytes


class Claim:
    """Requests for addresses, and what announces them.

    Args:
        placed: what to ask for.
        announcements: what tells the neighbours of them.
    """

    def __init__(self, placed: Sequence[Placed], announcements: Sequence[Announcement]) -> None:
        self._requests = [adding(one) for one in placed]
        self._announcements = announcements

    def make(self, netlink: AddressSocket) -> bool:
        """Add the addresses; returns whether all are held. If not, some may be."""
        try:
            return not any(netlink.carry_out(self._requests))
        except OSError:
            return False

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
