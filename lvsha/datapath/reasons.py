"""Why a frame was dropped: one number for each reason.

The numbers are stable: they appear in the JSON and are shared with programs in other
languages, so a reason is never renumbered and never reused.
"""

from enum import IntEnum, unique


@unique
class Reason(IntEnum):
    """The reasons; the docstring beside each is what ``lvsha status`` explains."""

    MALFORMED = 1
    """A header that contradicts itself, or an IPv4 header checksum that is wrong."""
    TRUNCATED = 2
    """The frame ends before its headers do."""
    FRAGMENT = 3
    """A fragment that cannot be used: too short, or of a protocol that has no connections."""
    NO_CONNECTION = 4
    """A packet for a service that belongs to no connection and may not open one."""
    NO_SERVER = 5
    """The scheduler found no usable real server."""
    SERVER_GONE = 6
    """The connection's real server was removed, or is in no service; then a tunnel is meant."""
    NOT_MASTER = 7
    """A new connection for an address that this node does not hold."""
    TABLE_FULL = 8
    """The connection table is at its limit."""
    UNKNOWN_REPLY = 9
    """A real server's packet that belongs to no connection."""
    TTL_EXCEEDED = 10
    """The time to live ran out here."""
    TOO_BIG = 11
    """Larger than the path allows, and not to be fragmented."""
    NO_ROUTE = 12
    """No route to the real server or client."""
    SERVER_IS_LOCAL = 13
    """The real server's address is this machine's own."""
    NEIGHBOUR_FAILED = 14
    """The next hop's link-layer address could not be resolved."""
    NEIGHBOUR_QUEUE_FULL = 15
    """Too many frames wait for the next hop's link-layer address."""
    ICMP_CHECKSUM = 16
    """An ICMP error whose checksum is wrong."""
    LINK_DOWN = 17
    """The outgoing interface is down or gone."""
    SEND_QUEUE_FULL = 18
    """The kernel did not take the frame because its queue is full."""
    SEND_REFUSED = 19
    """The kernel refused the frame."""
    SURPRISE = 20
    """Handling the frame raised an exception, which was logged."""
    BAD_SEGMENTATION = 21
    """A super-frame whose segmentation fields do not fit its headers."""
    STALE = 22
    """A frame that waited while this process was stopped; its sender has long gone on."""
    FRAGMENT_OVERLAP = 23
    """A datagram of which two fragments claim the same bytes."""
    FRAGMENT_TIMEOUT = 24
    """A datagram of which fragments were missing for too long."""
    FRAGMENTS_FULL = 25
    """Fragments forgotten because too many wait for the rest of their datagram."""
    FRAGMENT_MALFORMED = 26
    """A fragment whose place or length cannot be."""
    DEFENCE = 27
    """A packet that would open a connection, dropped at random (``drop_packet``)."""
    NO_CALL_ID = 28
    """A SIP packet without the Call-ID by which its service keeps a dialogue together."""
    FTP_DATA = 29
    """A new connection from port 20, from which only an FTP server opens one, to a client."""
    TRANSPORT_CHECKSUM = 30
    """A segment of an FTP control connection whose checksum is wrong."""
    PAYLOAD_TOO_LONG = 31
    """An FTP answer that no longer fits into its packet when it is rewritten."""
    IP_OPTIONS = 32
    """IPv4 options that contradict themselves."""
    SOURCE_ROUTED = 33
    """A packet whose sender says by which routers it is to go."""
    RESET = 34
    """A packet of no connection whose sender is told so, by a reset."""
    UNANSWERED = 35
    """A packet of no connection about which the peers were asked and did not answer in time."""
    QUESTIONS_FULL = 36
    """A packet of no connection that cannot wait for the peers' answer: another of the same
    connection does, or too many do."""
