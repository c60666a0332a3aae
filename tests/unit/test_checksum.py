import pytest

from lvsha.wire.checksum import (
    checksum,
    difference,
    ones_complement_sum,
    pseudo_header_sum,
    update,
    update_partial,
)


def test_the_example_of_rfc_1071_sums_to_ddf2() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert ones_complement_sum(data) == 0xDDF2
    assert checksum(data) == 0x220D


def test_the_checksum_of_a_real_header_is_the_one_it_carries() -> None:
    header = bytes.fromhex("4500003044224000800600008c7c19acae241e2b")
    assert checksum(header) == 0x442E


def test_an_odd_byte_counts_as_the_high_half_of_a_word() -> None:
    assert ones_complement_sum(b"\x12") == 0x1200
    assert ones_complement_sum(b"\x00\x01\x02") == 0x0201


def test_the_two_zeros_are_told_apart() -> None:
    assert ones_complement_sum(b"") == 0
    assert ones_complement_sum(bytes(4)) == 0
    assert ones_complement_sum(b"\xff\xff") == 0xFFFF
    assert ones_complement_sum(b"\xff\xfe\x00\x01") == 0xFFFF


def test_the_example_of_rfc_1624_gives_zero_and_not_all_ones() -> None:
    # Section 4: a word 0x5555 becomes 0x3285 under the checksum 0xDD2F.
    assert update(0xDD2F, difference(b"\x55\x55", b"\x32\x85")) == 0x0000


@pytest.mark.parametrize("change", [0, 1, 0xFFFE])
def test_a_partial_sum_takes_a_change_as_it_is(change: int) -> None:
    assert update_partial(0x1234, change) % 0xFFFF == (0x1234 + change) % 0xFFFF


def test_a_change_and_its_reverse_cancel() -> None:
    there, back = (
        difference(b"\x01\x02\x03\x04", b"\xf1\x02\x00\x04"),
        difference(b"\xf1\x02\x00\x04", b"\x01\x02\x03\x04"),
    )
    assert update(update(0xBEEF, there), back) == 0xBEEF


def test_the_pseudo_header_has_protocol_and_length() -> None:
    assert pseudo_header_sum(b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02", 6, 20) == 0x1400 + 3 + 26
    assert pseudo_header_sum(bytes(15) + b"\x01", bytes(15) + b"\x02", 17, 8) == 3 + 25
