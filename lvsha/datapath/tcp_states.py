"""The TCP state machine of a director, as the kernel's IPVS has it.

The director watches a connection from the middle. With NAT it sees both directions; with
direct routing and tunnels only the client's half, for which there is a table of its own
("input only"). The tables below are the kernel's (Linux ``ip_vs_proto_tcp.c``): a row for
each event, a column for each state, the cell is the next state. They are expanded once
into one row for each of the 256 values of the flag byte, so that a step is two look-ups.

There are two sets of tables. The secure ones serve while ``secure_tcp`` is in force: with
NAT a connection is established only by a packet of the real server, not by the client's
word alone, and a SYN seen from one side only waits in SYNACK. Time-outs are the same.

The first of RST, SYN, FIN, ACK that a segment has is its event; a segment with none of
them closes the connection. A SYN+ACK counts as SYN.

Time-outs are seconds and restart with every packet.
"""

from enum import IntEnum
from typing import Final


class TcpState(IntEnum):
    """The kernel's numbers; they cross the wire in sync records."""

    NONE = 0
    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT = 4
    TIME_WAIT = 5
    CLOSE = 6
    CLOSE_WAIT = 7
    LAST_ACK = 8
    LISTEN = 9
    SYNACK = 10


FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10

_COLUMNS: Final = "NO ES SS SR FW TW CL CW LA LI SA"
_CODES: Final = {code: TcpState(number) for number, code in enumerate(_COLUMNS.split())}

_INPUT: Final = """
    syn  SR ES ES SR SR SR SR SR SR SR SR
    fin  CL CW SS TW TW TW CL CW LA LI TW
    ack  ES ES SS ES FW TW CL CW CL LI ES
    rst  CL CL CL SR CL CL CL CL LA LI SR
"""
_OUTPUT: Final = """
    syn  SS ES SS SR SS SS SS SS SS LI SR
    fin  TW FW SS TW FW TW CL TW LA LI TW
    ack  ES ES SS ES FW TW CL CW LA ES ES
    rst  CL CL SS CL CL TW CL CL CL CL CL
"""
_INPUT_ONLY: Final = """
    syn  SR ES ES SR SR SR SR SR SR SR SR
    fin  CL FW SS TW FW TW CL CW LA LI TW
    ack  ES ES SS ES FW TW CL CW CL LI ES
    rst  CL CL CL SR CL CL CL CL LA LI CL
"""

_SECURE_INPUT: Final = """
    syn  SR ES ES SR SR SR SR SR SR SR SA
    fin  CL CW SS TW TW TW CL CW LA LI SA
    ack  ES ES SS SR FW TW CL CW CL LI SA
    rst  CL CL CL SR CL CL CL CL LA LI CL
"""
_SECURE_OUTPUT: Final = """
    syn  SS ES SS SA SS SS SS SS SS LI SA
    fin  TW FW SS TW FW TW CL TW LA LI TW
    ack  ES ES SS ES FW TW CL CW LA ES ES
    rst  CL CL SS CL CL TW CL CL CL CL CL
"""
_SECURE_INPUT_ONLY: Final = """
    syn  SA ES ES SR SA SA SA SA SA SA SA
    fin  CL FW SS TW FW TW CL CW LA LI TW
    ack  ES ES SS ES FW TW CL CW CL LI ES
    rst  CL CL CL SR CL CL CL CL LA LI CL
"""

Transitions = tuple[bytes, ...]
"""Indexed by the flag byte, then by the state."""


def _expand(table: str) -> Transitions:
    rows = {
        words[0]: bytes(_CODES[code] for code in words[1:])
        for words in (line.split() for line in table.strip().splitlines())
    }
    nothing = bytes([TcpState.CLOSE] * len(TcpState))

    def row(flags: int) -> bytes:
        for flag, event in ((RST, "rst"), (SYN, "syn"), (FIN, "fin"), (ACK, "ack")):
            if flags & flag:
                return rows[event]
        return nothing

    return tuple(row(flags) for flags in range(256))


INPUT: Final = _expand(_INPUT)
OUTPUT: Final = _expand(_OUTPUT)
INPUT_ONLY: Final = _expand(_INPUT_ONLY)
SECURE_INPUT: Final = _expand(_SECURE_INPUT)
SECURE_OUTPUT: Final = _expand(_SECURE_OUTPUT)
SECURE_INPUT_ONLY: Final = _expand(_SECURE_INPUT_ONLY)

OPENS: Final = tuple(bool(flags & SYN) for flags in range(256))
"""Whether a segment with these flags looks like the start of a connection."""

MAY_OPEN: Final = tuple(bool(flags & SYN) and not flags & RST for flags in range(256))
"""Whether it may open one. A SYN+ACK may: behind direct routing and tunnels it can be the
first that a director sees of a connection that a server opens, as of FTP's data."""

MAY_OPEN_SLOPPY: Final = tuple(not flags & RST for flags in range(256))
"""The same under ``sloppy_tcp``, which takes over connections in the middle."""

_ACTIVE_STATES: Final = frozenset(
    {TcpState.ESTABLISHED, TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.SYNACK}
)
ACTIVE: Final = tuple(state in _ACTIVE_STATES for state in TcpState)
"""Whether a state counts among a real server's active connections."""

NAMES: Final = tuple(state.name for state in TcpState)
"""As the listings print them."""

REUSABLE: Final = tuple(state in {TcpState.TIME_WAIT, TcpState.CLOSE} for state in TcpState)
"""States in which a SYN opens a new connection (``conn_reuse_mode`` 1, the default)."""

_TOLD_STATES: Final = frozenset(
    {
        TcpState.ESTABLISHED,
        TcpState.FIN_WAIT,
        TcpState.CLOSE,
        TcpState.CLOSE_WAIT,
        TcpState.TIME_WAIT,
    }
)
TOLD: Final = tuple(state in _TOLD_STATES for state in TcpState)
"""States that a backup is told of (the kernel's ``ip_vs_sync_conn_needed``)."""


def timeouts(established: float = 900, fin_wait: float = 120) -> tuple[float, ...]:
    """The time-out of each state; ``ipvsadm --set`` changes the two that are arguments."""
    return (2, established, 120, 60, fin_wait, 120, 10, 60, 30, 120, 120)
