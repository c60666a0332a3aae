"""What the director decides about a frame.

A verdict is a value; `lvsha.datapath.transmit` carries it out. Those that belong to a real
server (`ToServer`, `ToClient`) are built with it and handed out for every packet.
"""

from dataclasses import dataclass

from lvsha.datapath.connections import Connection
from lvsha.datapath.icmp_errors import QuotedTunnel
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import ToClient, ToServer
from lvsha.wire.icmp import IcmpError


@dataclass(frozen=True, slots=True, eq=False)
class Accept:
    """Not a director's business: the host's own stack has seen the frame as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """Keep the frame until the peers have said whether they know its connection.

    It has been put by already; see `lvsha.datapath.questions`.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Reset:
    """The answer by which a packet's own protocol says that there is no connection."""


@dataclass(frozen=True, slots=True, eq=False)
class Drop:
    """Forget the frame, for a counted reason; tell its sender if there is an answer.

    ``passing``: it was on its way through this host, so the answer quotes it with its time
    to live counted down.
    """

    reason: Reason
    answer: IcmpError | Reset | None = None
    passing: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ErrorToServer:
    """Forward an ICMP error about a reply to the real server that sent the reply."""

    connection: Connection


@dataclass(frozen=True, slots=True, eq=False)
class ErrorToClient:
    """Forward an ICMP error about a request to the client that sent the request (NAT)."""

    connection: Connection


@dataclass(frozen=True, slots=True, eq=False)
class TunnelError:
    """Tell a client of an ICMP error about the tunnel packet that carried its request."""

    connection: Connection
    quoted: QuotedTunnel


Verdict = Accept | Wait | Drop | ToServer | ToClient | ErrorToServer | ErrorToClient | TunnelError

ACCEPT = Accept()
WAIT = Wait()
"""The verdicts without content."""
RESET = Reset()
