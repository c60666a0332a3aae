"""Keep the sequence numbers of a TCP connection right when its payload changes in length.

A director that rewrites an address in a payload may make it longer or shorter. From then
on the two ends count differently: what one calls byte 1000 is byte 1004 for the other. So
every later segment needs another sequence number, and every segment that comes back
another acknowledgement number, SACK edges included (RFC 2018).

The bookkeeping is that of the kernel's IPVS, and its three numbers for each direction
cross the wire in sync records: where the last change happened, and the shift behind it and
up to it. Retransmissions need the shift up to it.

The trap is the acknowledgement of exactly the byte at which a changed segment begins: it
says that the segment has *not* arrived. The kernel's IPVS compares it with the place
behind the shift, which reads it as more than was received if the segment has become shorter.
Here it is compared as the kernel's connection tracking does it: with the shift up to the change
taken off first. An acknowledgement from the middle of a changed segment counts from the
segment's end, so that what is sent again is what is missing.

The price of three numbers: of two changed segments, the first must be acknowledged before
the second is sent. That holds for protocols of commands and answers, the only ones whose
payload a director changes. And numbers compare as RFC 9293, section 3.4, has it, so a
change is remembered rightly for 2 GiB of the stream.

All numbers are unsigned and of 32 bits; shifts too, where a shorter payload is a number
just below 2**32.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from lvsha.wire import vnet
from lvsha.wire.checksum import MODULUS, difference, update

_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000

_SEQUENCE_AT: Final = 4
_ACKNOWLEDGEMENT_AT: Final = 8
_DATA_OFFSET_AT: Final = 12
_FLAGS_AT: Final = 13
_CHECKSUM_AT: Final = 16
_OPTIONS_AT: Final = 20
_ACK: Final = 0x10

_END_OF_OPTIONS: Final = 0
_NO_OPERATION: Final = 1
_SACK: Final = 5
_EDGE_BYTES: Final = 4

_ONE: Final = struct.Struct("!H")
_FOUR: Final = struct.Struct("!I")
_read_one: Final = _ONE.unpack_from
_write_one: Final = _ONE.pack_into
_read_four: Final = _FOUR.unpack_from
_write_four: Final = _FOUR.pack_into


def after(number: int, other: int) -> bool:
    """Whether a sequence number lies behind another one."""
    return 0 < (number - other & _MASK) < _HALF


@dataclass(slots=True)
class SequenceDelta:
    """What has happened to the data of one direction.

    Attributes:
        init_seq: sequence number, as its sender counts, of the last segment that was changed.
        delta: the shift behind that segment.
        previous_delta: the shift up to it.
    """

    init_seq: int = 0
    delta: int = 0
    previous_delta: int = 0

    @property
    def shifts(self) -> bool:
        """Whether any number needs to be changed."""
        return bool(self.delta or self.previous_delta)

    def forward(self, sequence: int) -> int:
        """A sequence number of the sender, as the receiver has to see it."""
        behind = after(sequence, self.init_seq)
        return sequence + (self.delta if behind else self.previous_delta) & _MASK

    def back(self, acknowledgement: int) -> int:
        """An acknowledgement or SACK edge of the receiver, as the sender has to see it."""
        before = acknowledgement - self.previous_delta & _MASK
        return acknowledgement - self.delta & _MASK if after(before, self.init_seq) else before

    def note(self, sequence: int, grown: int) -> None:
        """Take down that a segment was changed.

        Args:
            sequence: the segment's number, as its sender counts.
            grown: by how many bytes; negative if it has become shorter.
        """
        self.init_seq = sequence
        self.previous_delta = self.delta
        self.delta = self.delta + grown & _MASK


@dataclass(slots=True)
class Adjustment:
    """The shifts of one connection.

    Attributes:
        in_: of data from the client to the real server.
        out: of data from the real server to the client.
        in_set: whether data from the client was ever changed in length.
        out_set: whether data from the real server was.
    """

    in_: SequenceDelta = field(default_factory=SequenceDelta)
    out: SequenceDelta = field(default_factory=SequenceDelta)
    in_set: bool = False
    out_set: bool = False

    def note(self, direction: Literal["in", "out"], sequence: int, grown: int) -> None:
        """Take down that a segment has changed in length.

        A retransmission of a segment that was changed already, and what lies before it,
        changes nothing: it gets the same shift as the first time.

        Args:
            direction: which way the segment goes; ``in`` is to the real server.
            sequence: the segment's number as it came, before a ``fix``.
            grown: by how many bytes the payload grew; 0 is no change.
        """
        if not grown:
            return
        if direction == "in":
            if not self.in_set or after(sequence, self.in_.init_seq):
                self.in_.note(sequence, grown)
                self.in_set = True
        elif not self.out_set or after(sequence, self.out.init_seq):
            self.out.note(sequence, grown)
            self.out_set = True

    def fix_inbound(self, buffer: bytearray, l4: int, end: int) -> None:
        """Correct the numbers of a segment from the client.

        Call this before the payload is changed: the checksum is adjusted to what changes
        here and to nothing else.

        Args:
            buffer: of a frame, beginning with its virtio header.
            l4: offset of the TCP header, of which at least 20 bytes are there.
            end: where the segment ends.
        """
        _fix(
            buffer,
            l4,
            end,
            self.in_ if self.in_set else None,
            self.out if self.out_set else None,
        )

    def fix_outbound(self, buffer: bytearray, l4: int, end: int) -> None:
        """Correct the numbers of a segment from the real server; as `fix_inbound`."""
        _fix(
            buffer,
            l4,
            end,
            self.out if self.out_set else None,
            self.in_ if self.in_set else None,
        )


def _fix(
    buffer: bytearray,
    l4: int,
    end: int,
    sent: SequenceDelta | None,
    received: SequenceDelta | None,
) -> None:
    """Correct a segment of a sender whose data are shifted, and those that it confirms."""
    change = 0
    if sent is not None and sent.shifts:
        change += _replace(buffer, l4 + _SEQUENCE_AT, sent.forward)
    if received is not None and received.shifts and buffer[l4 + _FLAGS_AT] & _ACK:
        change += _replace(buffer, l4 + _ACKNOWLEDGEMENT_AT, received.back)
        change += _fix_sack(buffer, l4, end, received)
    change %= MODULUS
    # A partial checksum covers only the pseudo-header, which has no sequence numbers.
    if change and not buffer[0] & vnet.NEEDS_CHECKSUM:
        field_at = l4 + _CHECKSUM_AT
        _write_one(buffer, field_at, update(_read_one(buffer, field_at)[0], change))


def _replace(buffer: bytearray, at: int, convert: Callable[[int], int]) -> int:
    """Convert the number at an offset; returns what that adds to a sum of words.

    A 32-bit number is worth as much as its two words together, because 2**16 is 1 in
    arithmetic modulo 65535; that holds where it begins at an even offset of the segment.
    """
    old: int = _read_four(buffer, at)[0]
    new = convert(old)
    _write_four(buffer, at, new)
    return new - old


def _fix_sack(buffer: bytearray, l4: int, end: int, received: SequenceDelta) -> int:
    """Convert the edges of SACK blocks; returns what that adds to the checksum's sum.

    Options that are cut short or have an impossible length end the search: their reader
    will not understand what follows either.
    """
    options_at = l4 + _OPTIONS_AT
    options_end = l4 + (buffer[l4 + _DATA_OFFSET_AT] >> 4) * 4
    if not options_at < options_end <= end:
        return 0
    old = bytes(buffer[options_at:options_end])
    at = options_at
    while at < options_end and buffer[at] != _END_OF_OPTIONS:
        if buffer[at] == _NO_OPERATION:
            at += 1
            continue
        if at + 2 > options_end or buffer[at + 1] < 2 or at + buffer[at + 1] > options_end:
            break
        following = at + buffer[at + 1]
        if buffer[at] == _SACK:
            for edge_at in range(at + 2, following - _EDGE_BYTES + 1, _EDGE_BYTES):
                _replace(buffer, edge_at, received.back)
        at = following
    # The edges may begin at odd offsets, so the sum is that of the options as a whole.
    return difference(old, buffer[options_at:options_end])
