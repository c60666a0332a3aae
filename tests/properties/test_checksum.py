"""The checksum's arithmetic against the plain loop of RFC 1071."""

from hypothesis import given
from hypothesis import strategies as st

from lvsha.wire.checksum import (
    checksum,
    difference,
    ones_complement_sum,
    pseudo_header_sum,
    update,
    update_partial,
)
from tests.packets import internet_checksum, pseudo_header

words = st.binary(min_size=2, max_size=64).filter(lambda data: len(data) % 2 == 0)


@given(st.binary(max_size=200))
def test_a_checksum_is_that_of_the_plain_loop(data: bytes) -> None:
    assert checksum(data) == internet_checksum(data)


@given(st.binary(max_size=100).filter(lambda data: len(data) % 2 == 0), st.binary(max_size=100))
def test_a_sum_may_be_made_in_parts(first: bytes, second: bytes) -> None:
    assert ones_complement_sum(second, ones_complement_sum(first)) == ones_complement_sum(
        first + second
    )


@given(st.data(), st.binary(min_size=8, max_size=80).filter(lambda data: len(data) % 2 == 0))
def test_an_update_equals_a_new_checksum(data: st.DataObject, before: bytes) -> None:
    at = 2 * data.draw(st.integers(0, len(before) // 2 - 2))
    new = data.draw(st.binary(min_size=4, max_size=4))
    after = before[:at] + new + before[at + 4 :]
    field = update(internet_checksum(before), difference(before[at : at + 4], new))
    # All ones and zero are the same number; a packet with both is right for any receiver.
    assert field % 0xFFFF == internet_checksum(after) % 0xFFFF
    assert field == internet_checksum(after) or not any(after) or not any(before)


@given(st.sampled_from([4, 16]), st.data(), st.sampled_from([6, 17]), st.integers(8, 60_000))
def test_a_partial_sum_follows_its_addresses(
    size: int, data: st.DataObject, protocol: int, length: int
) -> None:
    address = st.binary(min_size=size, max_size=size)
    source, old, new = data.draw(address), data.draw(address), data.draw(address)
    before = pseudo_header_sum(source, old, protocol, length)
    after = update_partial(before, difference(old, new))
    assert after == pseudo_header_sum(source, new, protocol, length)
    assert after == ~internet_checksum(pseudo_header(source, new, protocol, length)) & 0xFFFF
