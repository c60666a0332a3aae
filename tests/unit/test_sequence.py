import pytest

from lvsha.datapath.flow import L3
from lvsha.datapath.sequence import Adjustment, SequenceDelta, after
from tests import packets
from tests.reader import dissect, faults

CLIENT, VIP = "198.51.100.7", "192.0.2.1"
L4 = L3 + 20
HALF = 1 << 31
TOP = 1 << 32


def segment(
    *,
    sequence: int = 0,
    acknowledgement: int = 0,
    flags: int = packets.ACK,
    options: bytes = b"",
    payload: bytes = b"x",
    partial: bool = False,
) -> bytearray:
    """The buffer of a frame with a segment."""
    made = bytearray(
        packets.tcp_segment(
            CLIENT, 4000, VIP, 21, flags, payload, sequence=sequence, options=options
        )
    )
    made[8:12] = acknowledgement.to_bytes(4)
    made[16:18] = bytes(2)
    pseudo = packets.pseudo_header(
        packets.address(CLIENT), packets.address(VIP), packets.TCP, len(made)
    )
    made[16:18] = packets.internet_checksum(pseudo + made).to_bytes(2)
    packet = packets.ip(CLIENT, VIP, packets.TCP, bytes(made))
    if partial:
        packet = packets.with_partial_checksum(packet, 20, packets.TCP)
    return bytearray(packets.vnet_header(partial=partial) + packets.ethernet(packet))


def is_right(buffer: bytearray) -> bool:
    """Whether the checksum is, by the plain loop; scapy tidies up odd options when it judges."""
    data = bytes(buffer[L4:])
    pseudo = packets.pseudo_header(
        packets.address(CLIENT), packets.address(VIP), packets.TCP, len(data)
    )
    return packets.internet_checksum(pseudo + data) == 0


def numbers(buffer: bytearray) -> tuple[int, int]:
    return int.from_bytes(buffer[L4 + 4 : L4 + 8]), int.from_bytes(buffer[L4 + 8 : L4 + 12])


def sack(*edges: int) -> bytes:
    return bytes((5, 2 + 4 * len(edges))) + b"".join(edge.to_bytes(4) for edge in edges)


def shifted_both_ways() -> Adjustment:
    """The server's data grew by 5 at 1000, the client's shrank by 3 at 7000."""
    adjustment = Adjustment()
    adjustment.note("out", 1000, 5)
    adjustment.note("in", 7000, -3)
    return adjustment


@pytest.mark.parametrize(
    ("number", "other", "expected"),
    [
        (1, 0, True),
        (0, 0, False),
        (0, 1, False),
        (5, TOP - 5, True),
        (TOP - 5, 5, False),
        (HALF - 1, 0, True),
        (HALF, 0, False),
    ],
)
def test_after_is_a_comparison_on_a_circle(number: int, other: int, expected: bool) -> None:
    assert after(number, other) is expected


def test_nothing_is_shifted_at_first() -> None:
    adjustment = Adjustment()
    assert not adjustment.in_.shifts
    for fix in (adjustment.fix_inbound, adjustment.fix_outbound):
        buffer = segment(sequence=123, acknowledgement=456, options=sack(1, 2) + b"\x01\x01")
        before = bytes(buffer)
        fix(buffer, L4, len(buffer))
        assert buffer == before


def test_a_change_of_no_length_is_not_taken_down() -> None:
    adjustment = Adjustment()
    adjustment.note("in", 1000, 0)
    adjustment.note("out", 1000, 0)
    assert adjustment == Adjustment()


def test_what_lies_behind_a_change_moves_and_the_change_itself_does_not() -> None:
    delta = SequenceDelta()
    delta.note(1000, 5)
    assert delta == SequenceDelta(init_seq=1000, delta=5, previous_delta=0)
    assert [delta.forward(number) for number in (999, 1000, 1001, 1020)] == [999, 1000, 1006, 1025]
    assert [delta.back(number) for number in (999, 1000, 1025)] == [999, 1000, 1020]


def test_a_second_change_keeps_the_shift_up_to_it_for_what_is_sent_again() -> None:
    delta = SequenceDelta()
    delta.note(1000, 5)
    delta.note(1100, -12)
    assert delta == SequenceDelta(init_seq=1100, delta=TOP - 7, previous_delta=5)
    assert [delta.forward(number) for number in (1050, 1100, 1101, 1130)] == [
        1055,
        1105,
        1094,
        1123,
    ]


def test_a_shift_that_comes_back_to_nothing_still_moves_what_lies_before() -> None:
    delta = SequenceDelta()
    delta.note(1000, 5)
    delta.note(1100, -5)
    assert delta.shifts
    assert delta.forward(1100) == 1105
    assert delta.forward(1101) == 1101


@pytest.mark.parametrize("grown", [-19, -1, 1, 300])
def test_confirming_all_before_a_change_does_not_confirm_any_of_it(grown: int) -> None:
    delta = SequenceDelta()
    delta.note(1000, 7)
    delta.note(2000, grown)  # a segment of 20 bytes
    assert delta.back(2007) == 2000
    assert delta.back(2007 + 20 + grown) == 2020


def test_numbers_go_round() -> None:
    delta = SequenceDelta()
    delta.note(TOP - 10, 20)
    assert delta.forward(TOP - 10) == TOP - 10
    assert delta.forward(TOP - 1) == 19
    assert delta.forward(3) == 23
    assert delta.back(19) == TOP - 1
    assert delta.back(23) == 3


def test_a_retransmission_of_a_changed_segment_is_not_another_change() -> None:
    adjustment = Adjustment()
    for _ in range(3):
        adjustment.note("out", 1000, 5)
        adjustment.note("in", 1000, -5)
    adjustment.note("out", 900, 8)
    assert adjustment.out == SequenceDelta(1000, 5, 0)
    assert adjustment.in_ == SequenceDelta(1000, TOP - 5, 0)
    adjustment.note("out", 1001, 8)
    assert adjustment.out == SequenceDelta(1001, 13, 5)


@pytest.mark.parametrize("first", [0, HALF + 1, TOP - 1])
def test_the_first_change_may_be_anywhere(first: int) -> None:
    adjustment = Adjustment()
    adjustment.note("in", first, 4)
    assert adjustment.in_set
    assert not adjustment.out_set
    assert adjustment.in_ == SequenceDelta(first, 4, 0)


def test_each_direction_has_its_own_shift_for_data_and_the_others_for_what_it_confirms() -> None:
    adjustment = shifted_both_ways()
    inbound = segment(sequence=7100, acknowledgement=1105)
    adjustment.fix_inbound(inbound, L4, len(inbound))
    assert numbers(inbound) == (7097, 1100)
    outbound = segment(sequence=1100, acknowledgement=7097)
    adjustment.fix_outbound(outbound, L4, len(outbound))
    assert numbers(outbound) == (1105, 7100)
    for buffer in (inbound, outbound):
        assert faults(bytes(buffer[L3:])) == []


def test_without_the_ack_flag_the_acknowledgement_means_nothing_and_stays() -> None:
    buffer = segment(sequence=7100, acknowledgement=1105, flags=packets.RST)
    shifted_both_ways().fix_inbound(buffer, L4, len(buffer))
    assert numbers(buffer) == (7097, 1105)
    assert faults(bytes(buffer[L3:])) == []


@pytest.mark.parametrize(
    ("before", "behind"), [(b"", b"\x01\x01"), (b"\x01", b"\x00"), (b"\x01\x01", b"")]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sack_edges_move_wherever_they_lie(before: bytes, behind: bytes, count: int) -> None:
    edges = (1000, 1025, 1105, 1205, 1305, 1405)[: 2 * count]
    buffer = segment(acknowledgement=995, options=before + sack(*edges) + behind)
    shifted_both_ways().fix_inbound(buffer, L4, len(buffer))
    read = dissect(bytes(buffer[L3:]))
    assert (
        dict(option for option in read.payload.options if len(option) == 2)["SAck"]
        == (
            1000,
            1020,
            1100,
            1200,
            1300,
            1400,
        )[: 2 * count]
    )
    assert faults(bytes(buffer[L3:])) == []


def test_other_options_stay_as_they_are() -> None:
    timestamps = bytes((8, 10)) + bytes(range(8))
    # Behind the end of the options lies what would be one of two bytes, and blocks.
    beyond = b"\x00\x02" + sack(1105, 1205)
    options = timestamps + sack(1105, 1205) + beyond
    buffer = segment(acknowledgement=1105, options=options)
    shifted_both_ways().fix_inbound(buffer, L4, len(buffer))
    assert buffer[L4 + 20 : L4 + 52] == timestamps + sack(1100, 1200) + beyond
    assert is_right(buffer)


@pytest.mark.parametrize(
    "options",
    [
        b"\x05\x00\x00\x00" + bytes(4),
        b"\x05\x01\x00\x00" + bytes(4),
        b"\x05\x0a\x00\x00" + b"\x01" * 4,  # two bytes longer than the header
        b"\x01\x01\x01\x05",
        b"\x05\x05\x01\x01\x01\x01\x01\x01",  # no whole edge
        b"\x05\x02\x01\x01",
    ],
)
def test_malformed_options_are_left_alone(options: bytes) -> None:
    buffer = segment(acknowledgement=1105, options=options)
    shifted_both_ways().fix_inbound(buffer, L4, len(buffer))
    assert buffer[L4 + 20 : L4 + 20 + len(options)] == options
    assert numbers(buffer)[1] == 1100
    assert is_right(buffer)


def test_a_header_that_reaches_past_the_segment_has_no_options() -> None:
    buffer = segment(acknowledgement=1105, options=b"\x01\x01" + sack(1105, 1205), payload=b"")
    before = bytes(buffer)
    shifted_both_ways().fix_inbound(buffer, L4, len(buffer) - 1)
    assert buffer[L4 + 20 :] == before[L4 + 20 :]
    assert numbers(buffer)[1] == 1100


def test_a_partial_checksum_does_not_cover_the_numbers() -> None:
    buffer = segment(
        sequence=7100, acknowledgement=1105, options=b"\x01\x01" + sack(1105, 1205), partial=True
    )
    before = bytes(buffer)
    shifted_both_ways().fix_inbound(buffer, L4, len(buffer))
    assert numbers(buffer) == (7097, 1100)
    assert buffer[L4 + 16 : L4 + 18] == before[L4 + 16 : L4 + 18]
