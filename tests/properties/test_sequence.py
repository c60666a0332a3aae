"""A TCP stream through a director that changes the lengths of segments, against a list.

The naive twin remembers of every segment where it begins at either end. The stream loses
segments, sends them again, delivers them out of order and confirms them with SACK; a
segment is changed only when the one changed before is confirmed, as with commands and
answers.
"""

from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.flow import L3
from lvsha.datapath.sequence import Adjustment
from tests import packets
from tests.reader import dissect

SENDER, RECEIVER = "192.0.2.1", "198.51.100.7"
L4 = L3 + 20
STEPS = 60
WINDOW = 6


@dataclass
class Piece:
    """A segment's data, as sent and as received, and where they begin at either end."""

    sent_at: int
    sent: bytes
    received_at: int
    received: bytes


def modulo(number: int) -> int:
    return number % (1 << 32)


def frame(
    source: str,
    destination: str,
    sequence: int,
    acknowledgement: int,
    payload: bytes,
    options: bytes = b"",
) -> bytearray:
    """A frame's buffer; the checksum is made by hand."""
    options = b"\x01" * (-len(options) % 4) + options
    made = bytearray(
        packets.tcp_segment(
            source, 21, destination, 21, packets.ACK, payload, sequence=sequence, options=options
        )
    )
    made[8:12] = acknowledgement.to_bytes(4)
    made[16:18] = bytes(2)
    pseudo = packets.pseudo_header(
        packets.address(source), packets.address(destination), packets.TCP, len(made)
    )
    made[16:18] = packets.internet_checksum(pseudo + made).to_bytes(2)
    packet = packets.ip(source, destination, packets.TCP, bytes(made))
    return bytearray(packets.NO_VNET + packets.ethernet(packet))


def is_right(buffer: bytearray) -> bool:
    """Whether a segment's checksum is, by the plain loop."""
    data = bytes(buffer[L4:])
    ends = packets.address(SENDER), packets.address(RECEIVER)
    return (
        packets.internet_checksum(packets.pseudo_header(*ends, packets.TCP, len(data)) + data) == 0
    )


class Stream:
    """Data of one direction; the other end's answers carry no data.

    Args:
        dice: decides what happens.
        first: the sender's first sequence number.
        inbound: whether the sender is the client.
    """

    def __init__(self, dice: Random, first: int, *, inbound: bool) -> None:
        self.dice = dice
        self.adjustment = Adjustment()
        self.inbound = inbound
        self.pieces: list[Piece] = []
        self.first = first
        self.confirmed = 0  # pieces confirmed without a gap
        self.arrived: set[int] = set()
        self.stream: dict[int, bytes] = {}
        self.changed = -1  # the last piece that was changed

    def step(self) -> None:
        choice = self.dice.random()
        if choice < 0.4 and len(self.pieces) - self.confirmed < WINDOW:
            self._new_piece()
            self._send(len(self.pieces) - 1)
        elif choice < 0.7 and self.confirmed < len(self.pieces):
            self._send(self.dice.randrange(self.confirmed, len(self.pieces)))
        else:
            self._confirm()

    def finish(self) -> None:
        """All that is missing is sent again until nothing is."""
        for number in range(self.confirmed, len(self.pieces)):
            if number not in self.arrived:
                self._send(number, lost=False)
        self._confirm(lost=False)
        assert self.confirmed == len(self.pieces)
        at, read = self.first, b""
        for piece in self.pieces:
            read += self.stream[modulo(at)]
            at += len(piece.received)
        assert read == b"".join(piece.received for piece in self.pieces)

    def _new_piece(self) -> None:
        last = self.pieces[-1] if self.pieces else Piece(self.first, b"", self.first, b"")
        sent = self.dice.randbytes(self.dice.randint(1, 40))
        received = sent
        if self.changed < self.confirmed and self.dice.random() < 0.5:
            received = self.dice.randbytes(self.dice.randint(1, 60))
            self.changed = len(self.pieces)
        self.pieces.append(
            Piece(
                modulo(last.sent_at + len(last.sent)),
                sent,
                modulo(last.received_at + len(last.received)),
                received,
            )
        )

    def _send(self, number: int, *, lost: bool | None = None) -> None:
        """The sender's segment passes the director and, perhaps, arrives."""
        piece = self.pieces[number]
        buffer = frame(SENDER, RECEIVER, piece.sent_at, 77, piece.sent)
        fix = self.adjustment.fix_inbound if self.inbound else self.adjustment.fix_outbound
        fix(buffer, L4, len(buffer))
        grown = len(piece.received) - len(piece.sent)
        self.adjustment.note("in" if self.inbound else "out", piece.sent_at, grown)
        read = dissect(bytes(buffer[L3:]))
        assert is_right(buffer)
        assert (read.payload.seq, read.payload.ack) == (piece.received_at, 77)
        if lost is None:
            lost = self.dice.random() < 0.3
        if not lost:
            self.arrived.add(number)
            self.stream[read.payload.seq] = piece.received

    def _confirm(self, *, lost: bool | None = None) -> None:
        """The receiver tells what it has; the director translates; the sender takes it down."""
        whole = 0
        while whole in self.arrived:
            whole += 1
        behind = sorted(number for number in self.arrived if number > whole)
        blocks = self.dice.sample(behind, min(3, len(behind)))
        edges = [edge for number in blocks for edge in self._edges(number, received=True)]
        expected = [edge for number in blocks for edge in self._edges(number, received=False)]
        options = b"".join(edge.to_bytes(4) for edge in edges)
        if options:
            options = b"\x01" * self.dice.randrange(3) + bytes((5, 2 + len(options))) + options
        buffer = frame(RECEIVER, SENDER, 77, self._begin(whole, received=True), b"", options)
        fix = self.adjustment.fix_outbound if self.inbound else self.adjustment.fix_inbound
        fix(buffer, L4, len(buffer))
        assert is_right(buffer)
        read = dissect(bytes(buffer[L3:])).payload
        assert (read.seq, read.ack) == (77, self._begin(whole, received=False))
        found = [value for name, value in read.options if name == "SAck"]
        assert found == ([tuple(expected)] if expected else [])
        if lost is None:
            lost = self.dice.random() < 0.3
        if not lost:
            self.confirmed = whole

    def _begin(self, number: int, *, received: bool) -> int:
        """Where a piece begins at one end; also that of the piece that is not there yet."""
        if number < len(self.pieces):
            piece = self.pieces[number]
            return piece.received_at if received else piece.sent_at
        return self._edges(number - 1, received=received)[1] if number else self.first

    def _edges(self, number: int, *, received: bool) -> tuple[int, int]:
        piece = self.pieces[number]
        begin, data = (
            (piece.received_at, piece.received) if received else (piece.sent_at, piece.sent)
        )
        return begin, modulo(begin + len(data))


@given(
    st.integers(0, 1 << 64),
    st.one_of(st.integers(0, (1 << 32) - 1), st.integers((1 << 32) - 300, (1 << 32) - 1)),
    st.booleans(),
)
def test_both_ends_agree_on_every_byte(seed: int, first: int, inbound: bool) -> None:
    stream = Stream(Random(seed), first, inbound=inbound)
    for _ in range(STEPS):
        stream.step()
    stream.finish()


@given(
    st.binary(min_size=20, max_size=80),
    st.integers(20, 90),
    st.integers(0, (1 << 32) - 1),
    st.integers(-1000, 1000),
)
def test_any_header_is_survived_and_nothing_behind_the_segment_is_touched(
    header: bytes, end: int, at: int, grown: int
) -> None:
    adjustment = Adjustment()
    adjustment.note("in", at, grown)
    adjustment.note("out", modulo(at + 5), -grown)
    for fix in (adjustment.fix_inbound, adjustment.fix_outbound):
        buffer = bytearray(bytes(L4) + header + b"\xa5" * 90)
        end_at = L4 + min(end, len(header))
        before = bytes(buffer)
        fix(buffer, L4, end_at)
        assert buffer[:L4] == before[:L4]
        assert buffer[end_at:] == before[end_at:]
        assert len(buffer) == len(before)
