"""What the cores of the kernel's sync protocol ask of their caller, as values."""

from dataclasses import dataclass

from lvsha.model import ConnectionRecord


@dataclass(frozen=True, slots=True)
class Send:
    """Send this datagram to the group; the port is the base port and this number."""

    port_index: int
    datagram: bytes


@dataclass(frozen=True, slots=True)
class Apply:
    """Enter these connections, or bring them to these states."""

    records: tuple[ConnectionRecord, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A datagram, or something in it, was dropped; ``kind`` holds nothing that came from it."""

    kind: str
