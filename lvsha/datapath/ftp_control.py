"""Follow FTP control connections through NAT (the kernel's FTP helper).

FTP names addresses and ports of its data connections in the text of its control
connection. When a client asks for an active transfer, the data connection that the server
will open is entered beforehand, so that it leaves as the virtual service's. When a server
says where it waits for a passive one, its address is replaced by the virtual one, and the
connection that the client will open is entered.

A replaced text may differ in length, so the sequence numbers of the control connection are
kept right from then on (`lvsha.datapath.sequence`). With direct routing and tunnels nothing
is done: there persistence keeps a client's connections together.
"""

from dataclasses import replace
from typing import Final

from lvsha.datapath import ftp, payload
from lvsha.datapath.connections import Connection
from lvsha.datapath.flow import L3, Frame
from lvsha.datapath.ftp import ActiveAsked, FtpMode, PassiveAsked
from lvsha.datapath.memories import FtpDialogue
from lvsha.datapath.reasons import Reason
from lvsha.datapath.registry import Registry
from lvsha.datapath.tcp_states import TcpState
from lvsha.errors import WireError
from lvsha.model import ConnectionFlag, connection_key
from lvsha.tally import UNTOLD

_NO_CLIENT_PORT: Final = int(ConnectionFlag.NO_CLIENT_PORT)
_OUT_SEQUENCE: Final = int(ConnectionFlag.OUT_SEQUENCE)
_ESTABLISHED: Final = int(TcpState.ESTABLISHED)
_SEQUENCE_AT: Final = 4


class FtpControl:
    """Reads and rewrites the segments of FTP control connections."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def request(
        self, connection: Connection, dialogue: FtpDialogue, frame: Frame, now: float
    ) -> Reason | None:
        """A segment from the client; returns why it must be dropped."""
        if not payload.verify(frame):
            return Reason.TRANSPORT_CHECKSUM
        dialogue.adjustment.fix_inbound(frame.buffer, frame.l4, L3 + frame.length)
        if connection.state != _ESTABLISHED:
            return None
        try:
            asked = ftp.from_client(payload.read(frame), frame.family)
        except WireError:
            return None  # there is no text, and what there is the server must judge
        match asked:
            case PassiveAsked(mode):
                self._turn(connection, dialogue, mode, now)
            case ActiveAsked(address, port):
                self._turn(connection, dialogue, FtpMode.ACTIVE, now)
                self._expect(connection, address, port, connection.virtual[1] - 1, now)
            case None:
                pass
        return None

    def reply(
        self, connection: Connection, dialogue: FtpDialogue, frame: Frame, now: float
    ) -> Reason | None:
        """A segment from the server; returns why it must be dropped."""
        if not payload.verify(frame):
            return Reason.TRANSPORT_CHECKSUM
        sequence_at = frame.l4 + _SEQUENCE_AT
        sequence = int.from_bytes(frame.view[sequence_at : sequence_at + 4])
        dialogue.adjustment.fix_outbound(frame.buffer, frame.l4, L3 + frame.length)
        # A reply that is sent again is rewritten again, but moves no further numbers.
        again = sequence == dialogue.answered[0]
        mode = dialogue.answered[1] if again else dialogue.mode
        if connection.state != _ESTABLISHED or mode is FtpMode.ACTIVE:
            return None
        try:
            text = payload.read(frame)
        except WireError:
            return None
        server = connection.server.address
        answered = ftp.from_server(text, mode, server)
        # Where a server sends its clients to another machine, that is not this director's.
        if answered is None or answered.address != server:
            return None
        if self._registry.table.full:
            return Reason.TABLE_FULL
        virtual, client = connection.virtual[0], connection.client[0]
        try:
            new = ftp.passive_text(mode, virtual, answered.port)
            grown = payload.replace(frame, answered.start, answered.end, new)
        except WireError:
            return Reason.PAYLOAD_TOO_LONG
        if grown and frame.arrived is not None:
            frame.arrived = replace(frame.arrived, pieces=())  # they no longer fit
        if grown and not again:
            dialogue.adjustment.note("out", sequence, grown)
            connection.flags |= _OUT_SEQUENCE
        self._expect(connection, client, 0, answered.port, now, real_port=answered.port)
        dialogue.answered = (sequence, mode)
        dialogue.mode = FtpMode.ACTIVE
        self._tell(connection, connection, now)
        return None

    def _expect(
        self,
        control: Connection,
        client: bytes,
        client_port: int,
        virtual_port: int,
        now: float,
        real_port: int | None = None,
    ) -> None:
        """Enter a data connection that one of the two is about to open."""
        registry = self._registry
        virtual, _ = control.virtual
        key = connection_key(control.protocol, client, client_port, virtual, virtual_port)
        data = registry.table.find(key)
        if data is not None and data.server is not control.server:
            registry.end(data)  # the port is another server's, and the newest word counts
            data = None
        if data is None:
            if registry.table.full:
                return
            port = control.binding.port - 1 & 0xFFFF if real_port is None else real_port
            binding = control.server.bind(virtual, virtual_port, port)
            flags = 0 if client_port else _NO_CLIENT_PORT
            data = registry.open(key, binding, now, parent=control, flags=flags)
        registry.listen(data, now)
        registry.table.hasten(data)
        self._tell(control, data, now)

    def _turn(self, control: Connection, dialogue: FtpDialogue, mode: FtpMode, now: float) -> None:
        """Take down what the client asks for."""
        if dialogue.mode is not mode:
            dialogue.mode = mode
            self._tell(control, control, now)

    def _tell(self, control: Connection, changed: Connection, now: float) -> None:
        """Have a backup go on in the middle of a dialogue, if it knows of that at all."""
        if control.told_state != UNTOLD:
            self._registry.teller.spoke(changed, now)
