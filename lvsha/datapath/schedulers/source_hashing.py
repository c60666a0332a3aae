"""Source hashing: the client's address decides, so a client keeps its real server.

A table of 256 slots is dealt out in list order, to each server as many slots in a row as
its weight; the slot is a multiplicative hash of the address (the kernel's ``hash_32``). The
table depends on nothing but the configuration, so both directors choose alike.
"""

from collections.abc import Collection, Sequence
from typing import Final

from lvsha.datapath.services import RealServer

SLOTS: Final = 256
_BITS: Final = 8
_GOLDEN_RATIO_32: Final = 0x61C8_8647
_WORD: Final = 0xFFFF_FFFF


class SourceHashing:
    """The server of the client's slot.

    Flags: ``sh-port`` hashes the client's port too; ``sh-fallback`` looks on in further
    slots where the server of the slot is not usable.
    """

    def __init__(self, servers: Sequence[RealServer], flags: Collection[str]) -> None:
        self._servers = servers
        self._with_port = "sh-port" in flags
        self._fallback = "sh-fallback" in flags
        self._slots: list[RealServer] = []
        self.updated()

    def updated(self, _removed: RealServer | None = None) -> None:
        """Deal out the slots again; a server of weight 0 still takes one."""
        dealt: list[RealServer] = []
        while self._servers and len(dealt) < SLOTS:
            for server in self._servers:
                dealt += [server] * max(1, min(server.weight, SLOTS))
        self._slots = dealt[:SLOTS]

    def schedule(self, key: bytes) -> RealServer | None:
        """The server of the client's slot, if it is usable."""
        if not self._slots:
            return None
        size = (len(key) - 6) // 2
        address = _fold(key[2 : 2 + size])
        port = int.from_bytes(key[-4:-2]) if self._with_port else 0
        first = _slot(address, port, 0)
        server = self._slots[first]
        if server.usable or not self._fallback:
            return server if server.usable else None
        for step in range(SLOTS):
            server = self._slots[_slot(address, port, (step + first) % SLOTS)]
            if server.usable:
                return server
        return None


def _fold(address: bytes) -> int:
    """An address as 32 bits: an IPv6 address by the exclusive or of its words."""
    folded = 0
    for at in range(0, len(address), 4):
        folded ^= int.from_bytes(address[at : at + 4])
    return folded


def _slot(address: int, port: int, offset: int) -> int:
    value = (port + address) * _GOLDEN_RATIO_32 & _WORD
    return (offset + (value >> 32 - _BITS)) % SLOTS
