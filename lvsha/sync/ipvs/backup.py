"""Understand what a master daemon of the kernel's says of its connections.

`Backup` turns datagrams into records that a connection table can take over. It checks what a
message can be checked for without a table: the sync id, the flags, and that there is such a
protocol, state and persistence engine. What a record means for a connection that exists
is the table's affair.

What always holds: any bytes give actions. Nothing of a refused datagram or record is kept
but a count by kind, and the kinds are those that stand here and in `messages.FAULTS`.
"""

from collections.abc import Collection, Mapping
from typing import Final

from lvsha.counters import Counters
from lvsha.errors import SyncError
from lvsha.model import ConnectionDetails, ConnectionFlag, ConnectionRecord
from lvsha.sync.ipvs.actions import Apply, Refused
from lvsha.sync.ipvs.messages import ByteOrder, Message, parse

SYNC_ID_ANY: Final = 0
"""A backup with this sync id takes over what every master says."""
TIMEOUT_MAX: Final = 366 * 86_400.0
"""A year and a day; the longest time-out that ipvsadm takes is 31 days."""
TEMPLATE_STATES: Final = 2

_NO_CLIENT_PORT: Final = int(ConnectionFlag.NO_CLIENT_PORT)
_TEMPLATE: Final = int(ConnectionFlag.TEMPLATE)
_ONE_PACKET: Final = int(ConnectionFlag.ONE_PACKET)
_SYNC: Final = int(ConnectionFlag.SYNC)
_KEPT: Final = 0x1F80
"""What a receiver takes of a record's flags, beside the method: the kernel's BACKUP_MASK."""
_MALFORMED: Final = "malformed"
_OTHER_ID: Final = "sync_id"


class Backup:
    """The backup of one sync id, or of several.

    Args:
        sync_ids: whose messages are accepted; all, if `SYNC_ID_ANY` is among them.
        states: how many states each known protocol has.
        engines: the persistence engines that are known.
        byte_order: that of masters that speak version 0.

    Attributes:
        counters: datagrams, records, and what was refused, by kind.
        heard_at: when the last accepted message came; None before the first.
    """

    def __init__(
        self,
        sync_ids: Collection[int],
        states: Mapping[int, int],
        engines: Collection[str] = ("sip",),
        byte_order: ByteOrder = "little",
    ) -> None:
        self.sync_ids = frozenset(sync_ids)
        self.counters = Counters()
        self.heard_at: float | None = None
        self._states = dict(states)
        self._engines = frozenset(engines)
        self._byte_order = byte_order

    def receive(self, datagram: bytes, now: float) -> list[Apply | Refused]:
        """What to do because of a datagram."""
        try:
            message = parse(datagram, self._byte_order)
        except SyncError:
            return [self._refuse(_MALFORMED)]
        if message.sync_id not in self.sync_ids and SYNC_ID_ANY not in self.sync_ids:
            return [self._refuse(_OTHER_ID)]
        self.heard_at = now
        self.counters.add("datagrams")
        records, faults = self._accepted(message)
        self.counters.add("records", len(records))
        actions: list[Apply | Refused] = [Apply(tuple(records))] if records else []
        return actions + [self._refuse(fault) for fault in faults]

    def _accepted(self, message: Message) -> tuple[list[ConnectionRecord], list[str]]:
        records: list[ConnectionRecord] = []
        faults = list(message.faults)
        for record in message.records:
            fault = self._fault(record)
            if fault:
                faults.append(fault)
                continue
            details = record.details
            if details is not None and details.engine and not record.is_template:
                details = ConnectionDetails(mark=details.mark, shifts=details.shifts)
            records.append(
                ConnectionRecord(
                    record.key,
                    record.server,
                    record.server_port,
                    record.method,
                    record.state,
                    record.flags & _KEPT | _SYNC,
                    min(record.timeout, TIMEOUT_MAX),
                    details,
                )
            )
        return records, faults

    def _fault(self, record: ConnectionRecord) -> str | None:
        flags = record.flags
        if flags & _ONE_PACKET or (flags & _TEMPLATE and flags & _NO_CLIENT_PORT):
            return "flags_impossible"
        if flags & _TEMPLATE:
            states: int | None = TEMPLATE_STATES
        else:
            states = self._states.get(record.key[1])
        if states is None:
            return "protocol_unknown"
        if record.state >= states:
            return "state_unknown"
        details = record.details
        if details is not None and details.engine and details.engine not in self._engines:
            return "engine_unknown"
        return None

    def _refuse(self, kind: str) -> Refused:
        self.counters.add(f"refused_{kind}")
        return Refused(kind)
