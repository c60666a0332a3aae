"""Which copies belong to which: connections to their client's template, FTP data to control.

At the source a parent does not end before its children; so that this holds here, a connection
is linked to its parent when both have come. What comes before its parent waits for it.

What always holds: there are no circles, because only a template, or the control connection of
another connection, becomes a parent; both have the same server. At most `WAITING_MAX`
connections wait; beyond that those are given up that wait for the parent that was first waited
for. They are linked when their source tells of them again.
"""

from typing import Final

from lvsha.datapath.connections import Connection
from lvsha.datapath.memories import FtpDialogue
from lvsha.datapath.registry import Registry
from lvsha.model import TEMPLATE_BIT

WAITING_MAX: Final = 20_000
"""What a snapshot in any order has before its parents; some MiB."""


class Families:
    """Links copies to their parents.

    Args:
        registry: the connections.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: dict[bytes, list[bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many connections wait."""
        return self._count

    def join(self, connection: Connection, key: bytes) -> None:
        """Let a connection belong to a parent, now or when that comes.

        Args:
            connection: which.
            key: of the parent's record.
        """
        table = self._registry.table
        parent = table.template(key) if key[0] >= TEMPLATE_BIT else table.find(key)
        if parent is not None:
            self._link(connection, parent)
            return
        self._registry.unlink(connection)
        if self._count >= WAITING_MAX:
            self._count -= len(self._waiting.pop(next(iter(self._waiting))))
        self._waiting.setdefault(key, []).append(connection.key)
        self._count += 1

    def arrived(self, parent: Connection) -> None:
        """Link what has waited for a connection or template that is new."""
        if not self._waiting:
            return
        waiting = self._waiting.pop(parent.record_key, [])
        self._count -= len(waiting)
        for key in waiting:
            connection = self._registry.table.find(key)
            if connection is not None and connection.parent is None:
                self._link(connection, parent)

    def _link(self, connection: Connection, parent: Connection) -> None:
        is_control = isinstance(parent.dialogue, FtpDialogue)
        if is_control and isinstance(connection.dialogue, FtpDialogue):
            return
        if parent.server is connection.server and (is_control or parent.is_template):
            self._registry.link(connection, parent)
