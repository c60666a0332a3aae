"""What becomes of the IPv4 options (RFC 791, section 3.1) of a packet on its way.

Linux goes through them when a packet comes in, and a packet of IPVS that is sent on bears
the marks: the next slot of a record route is filled in, and that of a timestamp. Here the
same is done for packets that a director forwards; packets without options never come here.

What always holds: the header keeps its length, only the bytes of a slot, a pointer, the
overflow counter, the padding behind the end of the list and the header checksum change,
and the checksum is right afterwards. Other options are left alone, security labels (CIPSO)
among them, which a kernel with NetLabel refuses unless it was told of their domain.

Two kinds of packets are refused: one whose options contradict themselves, whose sender is to
be told the offending byte (parameter problem, RFC 792), and one that has a source route.
The kernel discards source routes silently unless ``accept_source_route`` is set on the
interface, which it is on no host by default, and RFC 7126, section 4.3 asks for it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lvsha.wire import ipv4
from lvsha.wire.checksum import checksum

DAY_MS: Final = 86_400_000

_END: Final = 0
_NO_OPERATION: Final = 1
_RECORD_ROUTE: Final = 7
_TIMESTAMP: Final = 68
_LOOSE_SOURCE_ROUTE: Final = 131
_STRICT_SOURCE_ROUTE: Final = 137
_ROUTER_ALERT: Final = 148

_STAMPS_ONLY: Final = 0
_STAMPS_WITH_ADDRESSES: Final = 1
_STAMPS_OF_GIVEN_ADDRESSES: Final = 3
_OVERFLOW_MAX: Final = 15

_write_four: Final = struct.Struct("!I").pack_into


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a packet must not be forwarded.

    Attributes:
        pointer: the offset in the header of the byte that is wrong, in bytes, to be told
            the sender; None for a source route, of which nobody is told.
    """

    pointer: int | None


SOURCE_ROUTED: Final = Refused(None)

_Wrong = int | None
"""The offset of a byte that is wrong; None if all is well."""


def forward(
    header: bytes | bytearray | memoryview,
    own: bytes,
    day_ms: int,
    *,
    stamped: bytes | None = None,
    is_local: Callable[[bytes], bool] | None = None,
) -> bytes | Refused:
    """The header of a packet that is forwarded, its options brought up to date.

    Args:
        header: the whole IPv4 header, options and all.
        own: the address to record: of a request the virtual address, which is its
            destination as it came in; of a reply its source after translation, which is
            the virtual address again.
        day_ms: milliseconds since midnight, universal time.
        stamped: the address that stands beside a timestamp where that is another one. The
            kernel writes it when a packet comes in, so for a reply it is the director's
            address towards the real server.
        is_local: whether an address is the director's, for timestamps of given addresses;
            by default only ``own`` is.
    """
    options = _Options(header, own, day_ms % DAY_MS, stamped or own, is_local or own.__eq__)
    wrong = options.walk()
    if wrong is not None:
        return Refused(wrong)
    return SOURCE_ROUTED if options.source_routed else options.finished()


class _Options:
    """One walk over the options of a header, on a copy of it."""

    __slots__ = (
        "_changed",
        "_day_ms",
        "_header",
        "_is_local",
        "_own",
        "_seen",
        "_stamped",
        "source_routed",
    )

    def __init__(
        self,
        header: bytes | bytearray | memoryview,
        own: bytes,
        day_ms: int,
        stamped: bytes,
        is_local: Callable[[bytes], bool],
    ) -> None:
        self._header = bytearray(header)
        self._own = own
        self._day_ms = day_ms
        self._stamped = stamped
        self._is_local = is_local
        self._changed = False
        self._seen: set[int] = set()
        self.source_routed = False

    def finished(self) -> bytes:
        """The header after the walk."""
        if self._changed:
            self._header[10:12] = bytes(2)
            self._header[10:12] = checksum(self._header).to_bytes(2)
        return bytes(self._header)

    def walk(self) -> _Wrong:
        """Go through all options, up to the first that is wrong."""
        header = self._header
        at, end = ipv4.HEADER_BYTES, len(header)
        while at < end:
            kind = header[at]
            if kind == _END:
                self._clear(at + 1)
                return None
            if kind == _NO_OPERATION:
                at += 1
                continue
            if at + 2 > end or not 2 <= header[at + 1] <= end - at:
                return at
            wrong = self._step(kind, at, header[at + 1])
            if wrong is not None:
                return wrong
            at += header[at + 1]
        return None

    def _clear(self, at: int) -> None:
        """Padding behind the end of the list is to be zero."""
        if any(self._header[at:]):
            self._header[at:] = bytes(len(self._header) - at)
            self._changed = True

    def _step(self, kind: int, at: int, length: int) -> _Wrong:
        if kind == _RECORD_ROUTE:
            return self._record_route(at, length)
        if kind == _TIMESTAMP:
            return self._timestamp(at, length)
        if kind in {_LOOSE_SOURCE_ROUTE, _STRICT_SOURCE_ROUTE}:
            return self._source_route(at, length)
        if kind == _ROUTER_ALERT and length < 4:
            return at + 1
        return None

    def _twice(self, kind: int) -> bool:
        """Whether there was an option of this kind before; RFC 791 allows one of each."""
        if kind in self._seen:
            return True
        self._seen.add(kind)
        return False

    def _source_route(self, at: int, length: int) -> _Wrong:
        """Both kinds count as one; a route that is used up counts, too."""
        if length < 3:
            return at + 1
        if self._header[at + 2] < 4:
            return at + 2
        if self._twice(_LOOSE_SOURCE_ROUTE):
            return at
        self.source_routed = True
        return None

    def _record_route(self, at: int, length: int) -> _Wrong:
        header = self._header
        if self._twice(_RECORD_ROUTE):
            return at
        if length < 3:
            return at + 1
        pointer = header[at + 2]
        if pointer < 4:
            return at + 2
        if pointer > length:
            return None
        if pointer + 3 > length:
            return at + 2
        # A pointer counts from 1, the type being the first byte of the option.
        slot = at + pointer - 1
        header[slot : slot + 4] = self._own
        header[at + 2] += 4
        self._changed = True
        return None

    def _timestamp(self, at: int, length: int) -> _Wrong:
        header = self._header
        if self._twice(_TIMESTAMP):
            return at
        if length < 4:
            return at + 1
        pointer, flags = header[at + 2], header[at + 3]
        if pointer < 5:
            return at + 2
        if pointer > length:
            return self._overflow(at + 3)
        if pointer + 3 > length:
            return at + 2
        slot = at + pointer - 1
        wanted = flags & 0xF
        if wanted == _STAMPS_ONLY:
            self._stamp(at, slot, 4)
        elif wanted in {_STAMPS_WITH_ADDRESSES, _STAMPS_OF_GIVEN_ADDRESSES}:
            if pointer + 7 > length:
                return at + 2
            if wanted == _STAMPS_WITH_ADDRESSES:
                header[slot : slot + 4] = self._stamped
            elif not self._is_local(bytes(header[slot : slot + 4])):
                return None
            self._stamp(at, slot + 4, 8)
        return None

    def _stamp(self, at: int, slot: int, slot_bytes: int) -> None:
        _write_four(self._header, slot, self._day_ms)
        self._header[at + 2] += slot_bytes
        self._changed = True

    def _overflow(self, at: int) -> _Wrong:
        """Count a hop that finds no slot; there is no count where the addresses are given."""
        flags = self._header[at]
        if flags & 0xF == _STAMPS_OF_GIVEN_ADDRESSES:
            return None
        if flags >> 4 == _OVERFLOW_MAX:
            return at
        self._header[at] = flags + 0x10
        self._changed = True
        return None
