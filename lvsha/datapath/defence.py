"""The director's defence when memory is short or the operator says so.

Three modes, as in the kernel, each 0 (off), 1 (automatic), 2 (automatic, and memory is low
now) or 3 (always): ``drop_packet`` refuses some of the packets that would open a connection,
``drop_entry`` ends half-open and long idle connections at random, ``secure_tcp`` takes a
stricter table of TCP states. How much memory is free is told from outside.
"""

from collections.abc import Iterator
from typing import Final

from lvsha.datapath.connections import SHARDS, TEMPLATE_ASSURED, Connection
from lvsha.datapath.registry import Registry
from lvsha.datapath.scheduler_options import Dice
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import Protocol
from lvsha.settings import MODE_ALWAYS, MODE_AUTOMATIC, MODE_AUTOMATIC_ON, Settings

SHARE: Final = 32
"""Of so many parts of the table one is looked at in a second."""
IDLE: Final = 60.0
"""Seconds without a packet after which a connection may be dropped."""
_PACKETS_MAX: Final = 8

_HALF_OPEN_TCP: Final = frozenset({int(TcpState.SYN_RECV), int(TcpState.SYNACK)})
_HALF_OPEN_SCTP: Final = frozenset({int(SctpState.INIT1), int(SctpState.INIT)})


class Defence:
    """Decides who must go.

    Args:
        registry: the connections.
        dice: which parts of the table are looked at.

    Attributes:
        settings: those in force; the automatic modes go between 1 and 2 with the memory.
        available_pages: pages of free memory, as it was last told.
    """

    def __init__(self, registry: Registry, dice: Dice, settings: Settings) -> None:
        self.settings = settings
        self.available_pages: int | None = None
        self._registry = registry
        self._dice = dice
        self._rate = self._counter = 0
        self._drop_entry = False
        self._left: list[int] = [0] * (_PACKETS_MAX + 1)

    def update(self, settings: Settings) -> None:
        """Put settings into force, as every second and with every change."""
        low = self.available_pages is not None and self.available_pages < settings.amemthresh
        modes = {
            name: _flipped(getattr(settings, name), low=low)
            for name in ("drop_entry", "drop_packet", "secure_tcp")
        }
        self.settings = settings.changed(modes) if _differ(settings, modes) else settings
        self._drop_entry = self.settings.drop_entry >= MODE_AUTOMATIC_ON
        mode = self.settings.drop_packet
        if mode == MODE_ALWAYS:
            self._rate = settings.am_droprate
        elif mode == MODE_AUTOMATIC_ON and self.available_pages is not None:
            threshold = settings.amemthresh
            self._rate = self._counter = threshold // (threshold - self.available_pages)
        else:
            self._rate = 0
        self._registry.machines[Protocol.TCP].use(
            secure=self.secure_tcp, sloppy=self.settings.sloppy_tcp
        )

    @property
    def secure_tcp(self) -> bool:
        """Whether the stricter table of TCP states is in force."""
        return self.settings.secure_tcp >= MODE_AUTOMATIC_ON

    def drops_packet(self) -> bool:
        """Whether the packet that would open a connection now is refused."""
        if not self._rate:
            return False
        self._counter -= 1
        if self._counter > 0:
            return False
        self._counter = self._rate
        return True

    def drop_entries(self, now: float) -> Iterator[None]:
        """Look at a share of the table and end who must go; pauses again and again."""
        if not self._drop_entry:
            return
        for _ in range(SHARDS // SHARE):
            for part in self._registry.table.sliced(self._dice.randint(0, SHARDS - 1)):
                for connection in part:
                    if connection.second >= 0 and self._must_go(connection, now):
                        self._registry.delete(connection)
                yield

    def _must_go(self, connection: Connection, now: float) -> bool:
        if connection.children:
            return False
        if connection.is_template:
            if connection.server.service.options.one_packet:
                return self._draws(connection, now)
            return connection.state != TEMPLATE_ASSURED
        state = connection.state
        match connection.protocol:
            case Protocol.TCP:
                if state in _HALF_OPEN_TCP:
                    return True
                return state == TcpState.ESTABLISHED and self._draws(connection, now)
            case Protocol.SCTP:
                if state in _HALF_OPEN_SCTP:
                    return True
                return state == SctpState.ESTABLISHED and self._draws(connection, now)
            case _:
                return self._draws(connection, now)

    def _draws(self, connection: Connection, now: float) -> bool:
        """Whether the lot falls on an idle connection: the rarer, the more it was used."""
        if now + connection.timeout < connection.expires + IDLE:
            return False
        packets = connection.packets
        if not 0 < packets <= _PACKETS_MAX:
            return False
        self._left[packets] -= 1
        if self._left[packets] > 0:
            return False
        self._left[packets] = packets
        return True


def _flipped(mode: int, *, low: bool) -> int:
    if mode in {MODE_AUTOMATIC, MODE_AUTOMATIC_ON}:
        return MODE_AUTOMATIC_ON if low else MODE_AUTOMATIC
    return mode


def _differ(settings: Settings, modes: dict[str, int]) -> bool:
    return any(getattr(settings, name) != mode for name, mode in modes.items())
