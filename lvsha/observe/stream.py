"""What can be learned from a stream of the kernel's sync messages by listening alone.

The protocol has no sequence numbers, so that a lost message leaves no gap to be seen. What
can be seen: who speaks, of what and how much; which connections a backup would know now; and
which end without ever having been told while they were open, because such a connection would
have been lost in a takeover. Their share, of those that were seen to end, is what `coverage`
is made of. In the first minutes it is too low: connections that were told before anyone
listened count as not told.

What always holds: memory is bounded by the limits below, whatever is received, and what is
beyond them is counted.

Times are seconds on the caller's clock.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from lvsha.counters import Counters
from lvsha.datapath.state_machines import StateMachine
from lvsha.datapath.tcp_states import TcpState
from lvsha.errors import SyncError
from lvsha.model import (
    ConnectionRecord,
    Protocol,
    format_address,
    format_endpoint,
    virtual_of,
)
from lvsha.sync.ipvs.actions import Apply
from lvsha.sync.ipvs.backup import SYNC_ID_ANY, Backup
from lvsha.sync.ipvs.messages import head

SENDERS_MAX: Final = 64
CONNECTIONS_MAX: Final = 200_000
"""Some 60 MB."""
SERVICES_SHOWN: Final = 20
SILENCE_MIN: Final = 5.0
SILENCE_INTERVALS: Final = 5
"""A sender is silent after so many of its usual intervals, and no sooner than the seconds."""
TEMPLATE_TIMEOUT: Final = 180.0
"""What the kernel gives a template that version 0 has told."""
SWEEP_INTERVAL: Final = 1.0

_CLOSING: Final = frozenset(
    {
        TcpState.FIN_WAIT,
        TcpState.TIME_WAIT,
        TcpState.CLOSE,
        TcpState.CLOSE_WAIT,
        TcpState.LAST_ACK,
    }
)
_TEMPLATE_STATES: Final = ("NONE", "ASSURED")


class _Known(NamedTuple):
    """A connection that a backup would know."""

    state: int
    server: bytes
    port: int
    ends_at: float


class _Sender:
    """One that speaks: an address and a sync id."""

    def __init__(self, states: Mapping[int, int], now: float) -> None:
        self.backup = Backup([SYNC_ID_ANY], states)
        self.versions: set[int] = set()
        self.ports: set[int] = set()
        self.first = self.heard = now
        self.longest_gap = 0.0
        self.datagrams = 0
        self.length_bytes = 0
        self.records = 0
        self._shown = (now, 0, 0)

    @property
    def silent_after(self) -> float:
        """Seconds after which it is unusual to hear nothing."""
        if self.datagrams < 2:
            return float("inf")
        usual = (self.heard - self.first) / (self.datagrams - 1)
        return max(SILENCE_MIN, SILENCE_INTERVALS * usual)

    def rates(self, now: float) -> tuple[float, float]:
        """Datagrams and records a second, since the last call."""
        then, datagrams, records = self._shown
        self._shown = (now, self.datagrams, self.records)
        seconds = max(now - then, 1e-3)
        return (self.datagrams - datagrams) / seconds, (self.records - records) / seconds


class SyncStream:
    """The stream on a link.

    Args:
        machines: the state machine of each protocol, for names and time-outs of states.

    Attributes:
        counters: what was seen of connections, and what is beyond the limits.
    """

    def __init__(self, machines: Mapping[int, StateMachine]) -> None:
        self._machines = machines
        self._states = {number: len(machine.timeouts) for number, machine in machines.items()}
        self._senders: dict[tuple[bytes, int], _Sender] = {}
        self._connections: dict[bytes, _Known] = {}
        self._swept_at = 0.0
        self.counters = Counters()

    def receive(self, datagram: bytes, source: bytes, port: int, now: float) -> None:
        """Take note of a datagram that was sent to the group.

        Args:
            datagram: its payload.
            source: the address of its sender.
            port: where it was sent to.
            now: the clock.
        """
        try:
            version, sync_id = head(datagram)
        except SyncError:
            self.counters.add("malformed_datagrams")
            return
        sender = self._senders.get((source, sync_id))
        if sender is None:
            if len(self._senders) >= SENDERS_MAX:
                self.counters.add("senders_not_followed")
                return
            sender = self._senders[source, sync_id] = _Sender(self._states, now)
        sender.longest_gap = max(sender.longest_gap, now - sender.heard)
        sender.heard = now
        sender.versions.add(version)
        if len(sender.ports) < SENDERS_MAX:
            sender.ports.add(port)
        sender.datagrams += 1
        sender.length_bytes += len(datagram)
        for action in sender.backup.receive(datagram, now):
            if isinstance(action, Apply):
                sender.records += len(action.records)
                for record in action.records:
                    self._note(sync_id, record, now)

    def _note(self, sync_id: int, record: ConnectionRecord, now: float) -> None:
        key = bytes((sync_id,)) + record.key
        known = self._connections.get(key)
        if known is not None and known.ends_at < now:
            known = None
        counters = self.counters
        closing = self._is_closing(record)
        if known is None:
            counters.add("connections_new")
            if closing:
                counters.add("ended_untold")
        elif (known.server, known.port) != (record.server, record.server_port):
            counters.add("connections_moved")
        elif known.state == record.state:
            counters.add("records_repeated")
        elif closing and known.state not in _CLOSING:
            counters.add("ended_told")
        if known is None and len(self._connections) >= CONNECTIONS_MAX and not self._sweep(now):
            counters.add("connections_not_followed")
            return
        timeout = record.timeout or self._timeout(record)
        self._connections[key] = _Known(
            record.state, record.server, record.server_port, now + timeout
        )

    def _is_closing(self, record: ConnectionRecord) -> bool:
        return record.key[1] == Protocol.TCP and not record.is_template and record.state in _CLOSING

    def _timeout(self, record: ConnectionRecord) -> float:
        if record.is_template:
            return TEMPLATE_TIMEOUT
        return self._machines[record.key[1]].timeouts[record.state]

    def _sweep(self, now: float) -> bool:
        """Forget connections whose time is over, at most once a second; whether there is room."""
        if now >= self._swept_at + SWEEP_INTERVAL:
            self._swept_at = now
            self._connections = {
                key: known for key, known in self._connections.items() if known.ends_at >= now
            }
        return len(self._connections) < CONNECTIONS_MAX

    # What is shown

    def coverage(self) -> float | None:
        """The share of TCP connections that were told before they ended; None before one did."""
        told, untold = self.counters["ended_told"], self.counters["ended_untold"]
        return told / (told + untold) if told + untold else None

    def findings(self, now: float) -> list[str]:
        """What an operator should look at, in words."""
        found = []
        speakers: dict[int, list[bytes]] = {}
        for (source, sync_id), sender in self._senders.items():
            silence = now - sender.heard
            if silence > sender.silent_after:
                found.append(
                    f"{format_address(source)}, sync id {sync_id}, has been silent for "
                    f"{silence:.0f} s"
                )
            else:
                speakers.setdefault(sync_id, []).append(source)
            refused = sender.backup.counters.snapshot()
            found += [
                f"{format_address(source)}, sync id {sync_id}: {count} times "
                f"{kind.removeprefix('refused_').replace('_', ' ')}"
                for kind, count in refused.items()
                if kind.startswith("refused_")
            ]
        found += [
            f"{len(sources)} masters speak for sync id {sync_id}: "
            f"{', '.join(map(format_address, sources))}"
            for sync_id, sources in speakers.items()
            if len(sources) > 1
        ]
        if self.counters["malformed_datagrams"]:
            found.append(f"{self.counters['malformed_datagrams']} datagrams were no messages")
        if self.counters["ended_untold"]:
            found.append(
                f"{self.counters['ended_untold']} connections ended that no backup was told of "
                "while they were open, as far as was heard"
            )
        return found

    def status(self, now: float) -> dict[str, object]:
        """All that is known, as JSON values; rates are since the last call."""
        self._sweep(now)
        states: Counter[str] = Counter()
        services: Counter[str] = Counter()
        for key, known in self._connections.items():
            states[self._state_name(key, known.state)] += 1
            services[_service(key)] += 1
        coverage = self.coverage()
        return {
            "senders": [
                self._sender_status(source, sync_id, sender, now)
                for (source, sync_id), sender in self._senders.items()
            ],
            "connections": len(self._connections),
            "states": dict(sorted(states.items())),
            "services": dict(services.most_common(SERVICES_SHOWN)),
            "coverage": coverage,
            "counters": self.counters.snapshot(),
        }

    def _sender_status(
        self, source: bytes, sync_id: int, sender: _Sender, now: float
    ) -> dict[str, object]:
        datagrams, records = sender.rates(now)
        return {
            "address": format_address(source),
            "sync_id": sync_id,
            "versions": sorted(sender.versions),
            "ports": sorted(sender.ports),
            "heard_seconds_ago": now - sender.heard,
            "longest_gap_seconds": sender.longest_gap,
            "is_silent": now - sender.heard > sender.silent_after,
            "datagrams": sender.datagrams,
            "records": sender.records,
            "length_bytes": sender.length_bytes,
            "datagrams_per_second": datagrams,
            "records_per_second": records,
            "counters": sender.backup.counters.snapshot(),
        }

    def _state_name(self, key: bytes, state: int) -> str:
        if _is_template(key):
            return f"template {_TEMPLATE_STATES[state]}"
        machine = self._machines[key[2]]
        return f"{Protocol(key[2]).name} {machine.name_of(state)}"


def _is_template(key: bytes) -> bool:
    return key[1] > 6


def _service(key: bytes) -> str:
    """The service that a connection or template belongs to, in words."""
    record_key = key[1:]
    if _is_template(key):
        # What an engine found stands behind the ports.
        record_key = bytes((record_key[0] & 0x7F,)) + record_key[1 : 14 if key[1] == 0x84 else 38]
        virtual, port = virtual_of(record_key)
        if not record_key[1]:
            return f"mark {int.from_bytes(virtual[:4])}"
    else:
        virtual, port = virtual_of(record_key)
    return f"{Protocol(record_key[1]).name} {format_endpoint(virtual, port)}"
