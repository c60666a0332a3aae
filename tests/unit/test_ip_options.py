import pytest
from scapy.layers.inet import IPOption_RR

from lvsha.datapath.ip_options import SOURCE_ROUTED, Refused, forward
from tests import packets
from tests.reader import dissect, faults

CLIENT, VIP, OTHER = "198.51.100.71", "192.0.2.21", "10.0.0.99"
OWN = packets.address(VIP)
NOON_MS = 12 * 3_600_000
STAMP = NOON_MS.to_bytes(4)
BLANK = bytes(4)


def header(options: bytes) -> bytes:
    assert len(options) % 4 == 0
    return packets.ip(CLIENT, VIP, packets.UDP, b"", options=options)


def after(options: bytes, stamped: bytes | None = None) -> bytes | Refused:
    """The options after they were forwarded; the rest must be as it was, the sum right."""
    before = header(options)
    found = forward(before, OWN, NOON_MS, stamped=stamped)
    if isinstance(found, Refused):
        return found
    assert len(found) == len(before)
    assert faults(found) == []
    assert (found[:10], found[12:20]) == (before[:10], before[12:20])
    return found[20:]


def test_a_record_route_gets_the_own_address_and_its_pointer_moves_on() -> None:
    options = bytes((7, 11, 4)) + BLANK + BLANK + b"\0"
    once = after(options)
    assert once == bytes((7, 11, 8)) + OWN + BLANK + b"\0"
    assert after(once) == bytes((7, 11, 12)) + OWN + OWN + b"\0"


def test_the_independent_reader_finds_the_recorded_address() -> None:
    found = forward(header(bytes((7, 7, 4)) + BLANK + b"\0"), OWN, 0)
    assert isinstance(found, bytes)
    option = dissect(found).options[0]
    assert isinstance(option, IPOption_RR)
    assert (option.pointer, option.routers) == (8, [VIP])


def test_a_full_record_route_is_left_as_it_is() -> None:
    options = bytes((7, 7, 8)) + packets.address(OTHER) + b"\0"
    assert after(options) == options


@pytest.mark.parametrize("pointer", [5, 6, 7])
def test_a_slot_need_not_be_aligned_but_must_fit(pointer: int) -> None:
    options = bytes((7, 11, pointer)) + bytes(8) + b"\0"
    slot = pointer - 1
    expected = bytearray(options)
    expected[slot : slot + 4] = OWN
    expected[2] += 4
    assert after(options) == bytes(expected)
    assert after(bytes((7, 7, pointer)) + bytes(5)) == Refused(22)


def test_timestamps_alone_take_four_bytes() -> None:
    options = bytes((68, 12, 5, 0)) + BLANK + BLANK
    assert after(options) == bytes((68, 12, 9, 0)) + STAMP + BLANK


def test_timestamps_with_addresses_take_eight_bytes() -> None:
    options = bytes((68, 12, 5, 1)) + BLANK + BLANK
    assert after(options) == bytes((68, 12, 13, 1)) + OWN + STAMP
    other = packets.address(OTHER)
    assert after(options, stamped=other) == bytes((68, 12, 13, 1)) + other + STAMP


def test_only_a_given_address_that_is_local_is_stamped() -> None:
    ours = bytes((68, 12, 5, 3)) + OWN + BLANK
    assert after(ours) == bytes((68, 12, 13, 3)) + OWN + STAMP
    theirs = bytes((68, 12, 5, 3)) + packets.address(OTHER) + BLANK
    assert after(theirs) == theirs
    found = forward(header(theirs), OWN, NOON_MS, is_local=packets.address(OTHER).__eq__)
    assert isinstance(found, bytes)
    assert found[20:] == bytes((68, 12, 13, 3)) + packets.address(OTHER) + STAMP


def test_a_timestamp_without_a_slot_is_counted_up_to_fifteen() -> None:
    full = bytes((68, 8, 9, 0x00)) + BLANK
    assert after(full) == bytes((68, 8, 9, 0x10)) + BLANK
    assert after(bytes((68, 8, 9, 0xE1)) + BLANK) == bytes((68, 8, 9, 0xF1)) + BLANK
    assert after(bytes((68, 8, 9, 0xF0)) + BLANK) == Refused(23)
    given = bytes((68, 8, 9, 0xF3)) + BLANK
    assert after(given) == given


def test_a_timestamp_of_an_unknown_kind_is_left_alone() -> None:
    options = bytes((68, 12, 5, 2)) + bytes(8)
    assert after(options) == options


def test_a_time_beyond_midnight_begins_anew() -> None:
    found = forward(header(bytes((68, 8, 5, 0)) + BLANK), OWN, 86_400_000 + 7)
    assert isinstance(found, bytes)
    assert found[24:28] == (7).to_bytes(4)


def test_what_lies_behind_the_end_of_the_list_becomes_zero() -> None:
    assert after(b"\x01\x00\xaa\xbb") == b"\x01\x00\x00\x00"


@pytest.mark.parametrize(
    "options",
    [b"\x01\x01\x01\x01", b"\x94\x04\x00\x00", b"\x88\x04\x12\x34", b"\xc8\x04\x12\x34"],
    ids=["no operation", "router alert", "stream identifier", "unknown"],
)
def test_other_options_are_left_alone(options: bytes) -> None:
    assert after(options) == options


@pytest.mark.parametrize("kind", [131, 137])
@pytest.mark.parametrize("pointer", [4, 8])
def test_a_source_route_is_refused_and_nobody_is_told(kind: int, pointer: int) -> None:
    options = bytes((kind, 7, pointer)) + packets.address(OTHER) + b"\0"
    assert after(options) == SOURCE_ROUTED
    assert SOURCE_ROUTED.pointer is None


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        (bytes((1, 1, 1, 7)), 23),
        (bytes((7, 0, 4, 0)), 20),
        (bytes((7, 1, 4, 0)), 20),
        (bytes((200, 5, 0, 0)), 20),
        (bytes((7, 2, 1, 1)), 21),
        (bytes((7, 7, 3)) + BLANK + b"\0", 22),
        (bytes((7, 7, 5)) + BLANK + b"\0", 22),
        (bytes((7, 3, 4, 7, 3, 4, 0, 0)), 23),
        (bytes((68, 3, 5, 0)), 21),
        (bytes((68, 8, 4, 0)) + BLANK, 22),
        (bytes((68, 8, 7, 0)) + BLANK, 22),
        (bytes((68, 8, 5, 1)) + BLANK, 22),
        (bytes((68, 8, 5, 3)) + BLANK, 22),
        (bytes((68, 11, 5, 1)) + bytes(8), 22),
        (bytes((68, 4, 5, 0, 68, 4, 5, 0)), 24),
        (bytes((131, 2, 1, 1)), 21),
        (bytes((131, 3, 3, 1)), 22),
        (bytes((131, 3, 4, 137, 3, 4, 0, 0)), 23),
        (bytes((148, 3, 0, 0)), 21),
    ],
)
def test_options_that_contradict_themselves_are_refused_at_the_byte_that_is_wrong(
    options: bytes, pointer: int
) -> None:
    assert after(options) == Refused(pointer)


def test_options_behind_one_another_are_all_brought_up_to_date() -> None:
    options = bytes((7, 7, 4)) + BLANK + b"\x01" + bytes((68, 8, 5, 0)) + BLANK
    assert after(options) == (bytes((7, 7, 8)) + OWN + b"\x01" + bytes((68, 8, 9, 0)) + STAMP)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_given_is_not_changed(kind: type[bytes | bytearray]) -> None:
    original = header(bytes((7, 7, 4)) + BLANK + b"\0")
    given = kind(original)
    forward(given, OWN, 0)
    assert bytes(given) == original
