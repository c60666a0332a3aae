"""Responses of DNS (RFC 1035), read as far as a health check needs them and no further.

A server that is checked may send what it likes, and whoever reads it is the loop that
forwards. A general parser makes an object of every record: names that point at a long one
cost it seconds for one message. So bytes are compared first, and what does not answer the
question is given up at its header. Of what does, only records of the wanted type are read.

What always holds: reading costs no more than some `STEPS_MAX` steps, one for each label and
each pointer, whatever the message says of itself.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lvsha.errors import WireError

ANSWERS_MAX: Final = 256
"""Records of an answer that are looked at."""
STEPS_MAX: Final = 4_096
"""Labels and pointers of a message that are followed; those of a long honest one come to half."""
NAME_BYTES_MAX: Final = 255
CLASS_IN: Final = 1

_HEADER: Final = struct.Struct("!HHHHHH")
_TYPE_AND_CLASS: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")
_LABEL_BYTES_MAX: Final = 63
_POINTER: Final = 0xC0
_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_TRUNCATED: Final = 0x0200
_RCODE: Final = 0x000F

# RFC 1035, section 4.1.1: FORMERR, SERVFAIL, NOTIMP and REFUSED. Who could not read the
# question may leave it out.
_MAY_LACK_THE_QUESTION: Final = frozenset({1, 2, 4, 5})

_NAMES: Final[Mapping[int, tuple[int, int]]] = {
    **dict.fromkeys((2, 3, 4, 5, 7, 8, 9, 12, 30, 39), (0, 1)),  # NS, CNAME, PTR, DNAME, ...
    **dict.fromkeys((6, 14, 17), (0, 2)),  # SOA, MINFO, RP
    **dict.fromkeys((15, 18, 21, 36), (2, 1)),  # MX, AFSDB, RT, KX
    24: (18, 1),  # SIG
    26: (2, 2),  # PX
    33: (6, 1),  # SRV
}
"""Of types whose data may hold compressed names (RFC 3597, section 4): octets before, names."""


@dataclass(frozen=True, slots=True)
class Response:
    """A message that answers a question.

    Attributes:
        rcode: of the header; there is no extended one, because the question has no EDNS.
        is_truncated: there is more, by TCP.
        answers: how many records the message claims.
    """

    rcode: int
    is_truncated: bool
    answers: int
    _data: bytes
    _at: int

    @classmethod
    def parse(cls, data: bytes, query: bytes) -> "Response | None":
        """What answers a query; None for anything else.

        Names are compared without regard to case: some servers write them as they know them.

        Args:
            data: the message.
            query: that was sent; a header and one question.
        """
        if len(data) < _HEADER.size:
            return None
        identifier, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
        asked, asked_flags, *_ = _HEADER.unpack_from(query)
        opcode = (flags ^ asked_flags) & _OPCODE
        if identifier != asked or opcode or not flags & _RESPONSE:
            return None
        rcode, at = flags & _RCODE, _HEADER.size
        if questions or rcode not in _MAY_LACK_THE_QUESTION:
            at = len(query)
            if questions != 1 or _question(data[:at]) != _question(query):
                return None
        return cls(rcode, bool(flags & _TRUNCATED), answers, data, at)

    def records(self, kind: int) -> list[bytes]:
        """The data of the records of a type in the answer, as `canonical` has them.

        Raises:
            WireError: the message is malformed, or holds more than is looked at.
        """
        if self.answers > ANSWERS_MAX:
            raise WireError(f"more than {ANSWERS_MAX} records")
        reader, at, found = _Reader(self._data), self._at, []
        for _ in range(self.answers):
            at = reader.skip_name(at)
            if at + _RECORD.size > len(self._data):
                raise WireError("a record is cut short")
            its_kind, its_class, _, length = _RECORD.unpack_from(self._data, at)
            start, at = at + _RECORD.size, at + _RECORD.size + length
            if at > len(self._data):
                raise WireError("a record is cut short")
            if (its_kind, its_class) == (kind, CLASS_IN):
                found.append(reader.canonical(kind, start, at))
        return found


def canonical(kind: int, data: bytes) -> bytes:
    """The data of a record in the form in which two that mean the same are equal.

    Names that other names may be part of are written out, in lower case.

    Raises:
        WireError: they are not what a record of this type holds.
    """
    return _Reader(data).canonical(kind, 0, len(data))


def _question(message: bytes) -> tuple[bytes, bytes]:
    """Name, in lower case, and type with class; lengths of labels are below any letter."""
    end = len(message) - _TYPE_AND_CLASS.size
    return message[_HEADER.size : end].lower(), message[end:]


class _Reader:
    """Follows the names of one message, and counts its steps."""

    __slots__ = ("_data", "_steps_left")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps_left = STEPS_MAX

    def skip_name(self, at: int) -> int:
        """Where a name ends that begins here.

        Raises:
            WireError: it is none.
        """
        while (length := self._step(at)) < _POINTER:
            at += 1 + length
            if not length:
                return at
        return at + 2

    def canonical(self, kind: int, at: int, end: int) -> bytes:
        """The data of a record between two places, as the function of this name has it.

        Raises:
            WireError: they are not what a record of this type holds.
        """
        before, names = _NAMES.get(kind, (0, 0))
        parts = [self._data[at : at + before]]
        at += before
        for _ in range(names):
            name, at = self._name(at)
            parts.append(name)
        if at > end:
            raise WireError("a record is shorter than what it holds")
        parts.append(self._data[at:end])
        return b"".join(parts)

    def _name(self, at: int) -> tuple[bytes, int]:
        """A name written out, in lower case, and where it ends."""
        name, start, end = bytearray(), at, 0
        while True:
            length = self._step(at)
            if length >= _POINTER:
                if at + 2 > len(self._data):
                    raise WireError("a name is cut short")
                end = end or at + 2
                at = (length & ~_POINTER) << 8 | self._data[at + 1]
                # One that points forward, or at itself, could go on for ever.
                if at >= start:
                    raise WireError("a name points forward")
                start = at
                continue
            name += self._data[at : at + 1 + length]
            at += 1 + length
            if len(name) > NAME_BYTES_MAX:
                raise WireError("a name is too long")
            if not length:
                return bytes(name.lower()), end or at

    def _step(self, at: int) -> int:
        """The octet that begins a label or a pointer."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise WireError(f"more than {STEPS_MAX} labels")
        if at >= len(self._data):
            raise WireError("a name is cut short")
        length = self._data[at]
        if _LABEL_BYTES_MAX < length < _POINTER:
            raise WireError("a label of a type that is not in use")
        return length
