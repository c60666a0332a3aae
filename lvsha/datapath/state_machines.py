"""What a director must know of a transport protocol, in one shape for all of them.

A `StateMachine` answers by look-ups, never by code of its own: which state follows, how
long a connection lives in it, whether it counts as active, whether a packet may open a
connection. The tables themselves are in `lvsha.datapath.tcp_states` and
`lvsha.datapath.sctp_states`; UDP has but one state. AH and ESP have no machine: they follow
the connection of their key exchange, which is UDP, and use its machine.

A machine belongs to one director and is changed in place when a setting changes, so that
a connection takes the new tables and time-outs over with its next packet. A step is::

    transitions = machine.input_only if connection.flags & NO_OUTPUT else machine.input
    state = transitions[event][state]

Events are small numbers: TCP's is the flag byte, SCTP's a `SctpEvent`, UDP's always 0.

What always holds: every row of transitions has a cell for each state, and every cell is a
state that has a time-out. Times are seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lvsha.datapath import sctp_states, tcp_states
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.tcp_states import TcpState, Transitions
from lvsha.model import Protocol

UNKNOWN_STATE: Final = "ERR!"
"""What the kernel prints for a state that its table does not have."""


class Directions(NamedTuple):
    """Transitions by where a packet was seen."""

    input: Transitions
    output: Transitions
    input_only: Transitions


@dataclass(slots=True, eq=False)
class StateMachine:
    """The rules of one protocol, under the settings of this moment.

    Attributes:
        protocol: its number.
        names: of the states, as listings print them; `name_of` knows the others, too.
        timeouts: by state.
        active: whether a state counts among a real server's active connections, by state.
        told: whether a backup is told of connections in a state, by state.
        reusable: states in which a packet that `opens` replaces the connection
            (``conn_reuse_mode`` 1), by state.
        established: the state's number; -1 where there is no such state.
        opens: whether a packet looks like the start of a connection, by event; a datagram
            never does, because nothing tells the first from the next.
        plain: the transitions while `use` has not said secure.
        secure: the transitions when it has; the same where the protocol has no others.
        strict: what `may_open` is while `use` has not said sloppy.
        sloppy: what it is when `use` has.
        input: transitions at a packet from the client, by event, then by state.
        output: those at a packet from the real server.
        input_only: those at a packet from the client where no other is ever seen.
        may_open: whether a packet may open a connection now, by event.
    """

    protocol: int
    names: tuple[str, ...]
    timeouts: tuple[float, ...]
    active: tuple[bool, ...]
    told: tuple[bool, ...]
    reusable: tuple[bool, ...]
    established: int
    opens: tuple[bool, ...]
    plain: Directions
    secure: Directions
    strict: tuple[bool, ...]
    sloppy: tuple[bool, ...]
    input: Transitions = field(init=False)
    output: Transitions = field(init=False)
    input_only: Transitions = field(init=False)
    may_open: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.use(secure=False, sloppy=False)

    def use(self, *, secure: bool | None = None, sloppy: bool | None = None) -> None:
        """Change settings; None leaves one as it is.

        Args:
            secure: take the tables of ``secure_tcp``.
            sloppy: let connections begin in the middle (``sloppy_tcp``, ``sloppy_sctp``).
        """
        if secure is not None:
            self.input, self.output, self.input_only = self.secure if secure else self.plain
        if sloppy is not None:
            self.may_open = self.sloppy if sloppy else self.strict

    def set_timeouts(self, changes: Mapping[int, float]) -> None:
        """Change time-outs by state; 0 leaves one as it is, as ``ipvsadm --set`` has it."""
        self.timeouts = tuple(
            changes.get(state) or timeout for state, timeout in enumerate(self.timeouts)
        )

    def name_of(self, state: int) -> str:
        """A state as listings print it, also one that a peer has made up."""
        return self.names[state] if 0 <= state < len(self.names) else UNKNOWN_STATE


def tcp(
    *, secure: bool = False, sloppy: bool = False, established: float = 900, fin_wait: float = 120
) -> StateMachine:
    """The machine of TCP.

    Args:
        secure: whether ``secure_tcp`` is in force.
        sloppy: whether ``sloppy_tcp`` is.
        established: time-out of ESTABLISHED.
        fin_wait: time-out of FIN_WAIT.
    """
    machine = StateMachine(
        protocol=int(Protocol.TCP),
        names=tcp_states.NAMES,
        timeouts=tcp_states.timeouts(established, fin_wait),
        active=tcp_states.ACTIVE,
        told=tcp_states.TOLD,
        reusable=tcp_states.REUSABLE,
        established=int(TcpState.ESTABLISHED),
        opens=tcp_states.OPENS,
        plain=Directions(tcp_states.INPUT, tcp_states.OUTPUT, tcp_states.INPUT_ONLY),
        secure=Directions(
            tcp_states.SECURE_INPUT, tcp_states.SECURE_OUTPUT, tcp_states.SECURE_INPUT_ONLY
        ),
        strict=tcp_states.MAY_OPEN,
        sloppy=tcp_states.MAY_OPEN_SLOPPY,
    )
    machine.use(secure=secure, sloppy=sloppy)
    return machine


def udp(timeout: float = 300) -> StateMachine:
    """The machine of UDP: one state, which every datagram enters and which is never active.

    Args:
        timeout: of that state.
    """
    stay = (bytes(1),)
    return StateMachine(
        protocol=int(Protocol.UDP),
        names=("UDP",),
        timeouts=(timeout,),
        active=(False,),
        told=(True,),
        reusable=(False,),
        established=-1,
        opens=(False,),
        plain=Directions(stay, stay, stay),
        secure=Directions(stay, stay, stay),
        strict=(True,),
        sloppy=(True,),
    )


def sctp(*, sloppy: bool = False) -> StateMachine:
    """The machine of SCTP.

    Args:
        sloppy: whether ``sloppy_sctp`` is in force.
    """
    directions = Directions(sctp_states.INPUT, sctp_states.OUTPUT, sctp_states.INPUT_ONLY)
    machine = StateMachine(
        protocol=int(Protocol.SCTP),
        names=sctp_states.NAMES,
        timeouts=sctp_states.TIMEOUTS,
        active=sctp_states.ACTIVE,
        told=sctp_states.TOLD,
        reusable=sctp_states.REUSABLE,
        established=int(SctpState.ESTABLISHED),
        opens=sctp_states.OPENS,
        plain=directions,
        secure=directions,
        strict=sctp_states.MAY_OPEN,
        sloppy=sctp_states.MAY_OPEN_SLOPPY,
    )
    machine.use(sloppy=sloppy)
    return machine
