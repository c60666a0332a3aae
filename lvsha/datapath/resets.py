"""Refuse a packet that belongs to no connection, by its own protocol's means.

Its sender learns at once that the connection is gone, and connects again, instead of sending
into the void until he gives up. What is sent is in `lvsha.wire.resets`; who gets it, and how
often, is decided where the verdict is carried out.
"""

from typing import Final

from lvsha.datapath import payload
from lvsha.datapath.flow import L3, Frame
from lvsha.datapath.reasons import Reason
from lvsha.datapath.sctp_states import SctpEvent
from lvsha.datapath.tcp_states import RST
from lvsha.datapath.verdicts import RESET, Drop
from lvsha.model import Protocol
from lvsha.wire import ipv4, ipv6, resets

_TCP: Final = int(Protocol.TCP)
_SCTP: Final = int(Protocol.SCTP)
_NO_CONGESTION: Final = 0xFC
"""Of the type of service, what is no notice of congestion (RFC 3168)."""


def is_reset(frame: Frame) -> bool:
    """Whether a packet ends a connection, so that it must not be answered."""
    if frame.protocol == _TCP:
        return bool(frame.event & RST)
    return frame.protocol == _SCTP and frame.event == SctpEvent.ABORT


def refuse(frame: Frame) -> Drop:
    """The verdict on a packet whose sender may know that it belongs to no connection."""
    return Drop(Reason.NO_CONNECTION) if is_reset(frame) else Drop(Reason.RESET, RESET)


def answer(frame: Frame) -> bytes | None:
    """The IP packet that resets the connection of the packet in a frame.

    None where none must be sent: the packet is damaged, or a reset itself.
    """
    source, destination = frame.source, frame.destination
    segment = frame.view[frame.l4 : L3 + frame.length]
    found: bytes | None = None
    if frame.protocol == _TCP:
        found = resets.tcp(segment, source, destination)
    elif frame.protocol == _SCTP:
        found = resets.sctp(segment)
    if found is None or not payload.verify(frame):
        return None
    first = frame.buffer[L3 : L3 + 2]
    if frame.family == 4:
        header = ipv4.Ipv4Header(
            destination,
            source,
            frame.protocol,
            ipv4.HEADER_BYTES + len(found),
            tos=first[1] & _NO_CONGESTION,
            flags=ipv4.DONT_FRAGMENT,
        )
        return ipv4.emit(header) + found
    traffic_class = (int.from_bytes(first) >> 4) & _NO_CONGESTION
    header6 = ipv6.Ipv6Header(
        destination, source, frame.protocol, len(found), traffic_class=traffic_class
    )
    return ipv6.emit(header6) + found
