"""The SCTP state machine of a director, as the kernel's IPVS has it.

As with TCP (`lvsha.datapath.tcp_states`) the director watches from the middle, and has
one table for each direction and one for connections of which it sees only the client's
half. The tables are the kernel's (Linux ``ip_vs_proto_sctp.c``): a row for each event, a
column for each state, the cell is the next state. The states are those of the real
server; they are finer than RFC 9260's while an association is set up, so that an INIT
that nobody answers ends early.

An event is the type of a packet's first chunk. One exception: a chunk that carries or
confirms the cookie may be followed by an ABORT (RFC 9260, section 3.3.7), which then
decides. That is an event of its own, because what may open a connection goes by the first
chunk alone.

Nothing here verifies: not the checksum, not the verification tag, and no length but what
is needed to stay inside the packet. Time-outs are seconds and restart with every packet.
"""

from enum import IntEnum
from typing import Final

COMMON_HEADER_BYTES: Final = 12
"""Ports, verification tag and checksum (RFC 9260, section 3.1)."""
_CHUNK_HEADER_BYTES: Final = 4


class SctpState(IntEnum):
    """The kernel's numbers; they cross the wire in sync records."""

    NONE = 0
    INIT1 = 1
    INIT = 2
    COOKIE_SENT = 3
    COOKIE_REPLIED = 4
    COOKIE_WAIT = 5
    COOKIE = 6
    COOKIE_ECHOED = 7
    ESTABLISHED = 8
    SHUTDOWN_SENT = 9
    SHUTDOWN_RECEIVED = 10
    SHUTDOWN_ACK_SENT = 11
    REJECTED = 12
    CLOSED = 13


class SctpEvent(IntEnum):
    """What a packet says; the rows of the tables."""

    DATA = 0
    INIT = 1
    INIT_ACK = 2
    COOKIE_ECHO = 3
    COOKIE_ACK = 4
    SHUTDOWN = 5
    SHUTDOWN_ACK = 6
    SHUTDOWN_COMPLETE = 7
    ERROR = 8
    ABORT = 9
    ABORT_AFTER_COOKIE = 10


_COLUMNS: Final = "NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL"
_CODES: Final = {code: SctpState(number) for number, code in enumerate(_COLUMNS.split())}

_INPUT: Final = """
    data               ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    init               I1 IN IN CS CR CW CO CE ES SS SR SA IN IN
    init_ack           CW CW CW CS CR CO CO CE ES SS SR SA RJ CL
    cookie_echo        CR IN IN CR CR CW CO CE ES SS SR SA RJ CL
    cookie_ack         ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL
    shutdown           SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL
    shutdown_ack       CL IN IN CS CR CW CO CE ES CL SR CL RJ CL
    shutdown_complete  CL CL CL CS CR CW CO CE ES SS SR CL RJ CL
    error              CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL
    abort              CL CL CL CL CL RJ CL CL CL CL CL CL CL CL
"""
_OUTPUT: Final = """
    data               ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    init               CW CW CW CW CW CW CW CW ES CW CW CW CW CW
    init_ack           CS CS CS CS CR CW CO CE ES SS SR SA RJ CL
    cookie_echo        CE CE CE CE CE CE CE CE ES SS SR SA RJ CL
    cookie_ack         ES ES ES ES ES ES ES ES ES SS SR SA RJ CL
    shutdown           SS SS SS SS SS SS SS SS SS SS SR SA RJ CL
    shutdown_ack       SA SA SA SA SA CW CO CE ES SA SA SA RJ CL
    shutdown_complete  CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    error              CL CL CL CL CL CW CO CE ES SS SR SA RJ CL
    abort              CL RJ CL CL CL CL CL CL CL CL CL CL CL CL
"""
_INPUT_ONLY: Final = """
    data               ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL
    init               I1 IN IN IN IN IN CO CE ES SS SR SA IN IN
    init_ack           CE CE CE CE CE CE CO CE ES SS SR SA RJ CL
    cookie_echo        ES ES ES ES ES ES CO CE ES SS SR SA RJ CL
    cookie_ack         ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL
    shutdown           SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL
    shutdown_ack       CL IN IN CS CR CW CO CE CL CL SR CL RJ CL
    shutdown_complete  CL CL CL CL CL CW CO CE ES SS CL CL RJ CL
    error              CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    abort              CL CL CL CL CL RJ CL CL CL CL CL CL CL CL
"""

Transitions = tuple[bytes, ...]
"""Indexed by the event, then by the state."""


def _expand(table: str) -> Transitions:
    rows = {
        words[0]: bytes(_CODES[code] for code in words[1:])
        for words in (line.split() for line in table.strip().splitlines())
    }
    rows["abort_after_cookie"] = rows["abort"]
    return tuple(rows[event.name.lower()] for event in SctpEvent)


INPUT: Final = _expand(_INPUT)
OUTPUT: Final = _expand(_OUTPUT)
INPUT_ONLY: Final = _expand(_INPUT_ONLY)

_EVENT_OF_CHUNK: Final = (
    SctpEvent.DATA,
    SctpEvent.INIT,
    SctpEvent.INIT_ACK,
    SctpEvent.DATA,  # SACK
    SctpEvent.DATA,  # HEARTBEAT
    SctpEvent.DATA,  # HEARTBEAT ACK
    SctpEvent.ABORT,
    SctpEvent.SHUTDOWN,
    SctpEvent.SHUTDOWN_ACK,
    SctpEvent.ERROR,
    SctpEvent.COOKIE_ECHO,
    SctpEvent.COOKIE_ACK,
    SctpEvent.DATA,  # ECNE
    SctpEvent.DATA,  # CWR
    SctpEvent.SHUTDOWN_COMPLETE,
)
_EVENTS: Final = bytes(_EVENT_OF_CHUNK) + bytes([SctpEvent.DATA] * (256 - len(_EVENT_OF_CHUNK)))
"""The event of each chunk type; those that the kernel does not know count as data."""
_ABORT_CHUNK: Final = 6
_COOKIE_CHUNKS: Final = frozenset({10, 11})
_ABORT_AFTER_COOKIE: Final = int(SctpEvent.ABORT_AFTER_COOKIE)

OPENS: Final = tuple(event is SctpEvent.INIT for event in SctpEvent)
"""Whether a packet looks like the start of a connection."""

MAY_OPEN: Final = OPENS
"""Whether it may open one."""

MAY_OPEN_SLOPPY: Final = tuple(event is not SctpEvent.ABORT for event in SctpEvent)
"""The same under ``sloppy_sctp``, which takes over associations in the middle."""

ACTIVE: Final = tuple(state is SctpState.ESTABLISHED for state in SctpState)
"""Whether a state counts among a real server's active connections."""

REUSABLE: Final = tuple(state is SctpState.CLOSED for state in SctpState)
"""States in which an INIT opens a new connection (``conn_reuse_mode`` 1, the default)."""

_TOLD_STATES: Final = frozenset(
    {
        SctpState.ESTABLISHED,
        SctpState.SHUTDOWN_SENT,
        SctpState.SHUTDOWN_RECEIVED,
        SctpState.SHUTDOWN_ACK_SENT,
        SctpState.CLOSED,
    }
)
TOLD: Final = tuple(state in _TOLD_STATES for state in SctpState)
"""States that a backup is told of (the kernel's ``ip_vs_sync_conn_needed``)."""

TIMEOUTS: Final = (2.0, 4.0, *[61.0] * 6, 900.0, *[61.0] * 3, 4.0, 61.0)
"""4 s is the first retransmission time-out and a second more, 61 s the longest one and a
second more (RFC 9260, section 16)."""

NAMES: Final = (
    "NONE",
    "INIT1",
    "INIT",
    "C-SENT",
    "C-REPLIED",
    "C-WAIT",
    "COOKIE",
    "C-ECHOED",
    "ESTABLISHED",
    "S-SENT",
    "S-RECEIVED",
    "S-ACK-SENT",
    "REJECTED",
    "CLOSED",
)
"""As the listings print them."""


def event_of(buffer: bytes | bytearray | memoryview, at: int, end: int) -> int | None:
    """The event of a packet; None where not even the header of its first chunk is there.

    Args:
        buffer: what the packet lies in.
        at: offset of the common header.
        end: where the packet ends; bytes from there on belong to something else.
    """
    at += COMMON_HEADER_BYTES
    if at + _CHUNK_HEADER_BYTES > end:
        return None
    kind = buffer[at]
    if kind in _COOKIE_CHUNKS:
        length = buffer[at + 2] << 8 | buffer[at + 3]
        following = at + (length + 3 & ~3)
        if (
            length >= _CHUNK_HEADER_BYTES
            and following + _CHUNK_HEADER_BYTES <= end
            and buffer[following] == _ABORT_CHUNK
        ):
            return _ABORT_AFTER_COOKIE
    return _EVENTS[kind]
