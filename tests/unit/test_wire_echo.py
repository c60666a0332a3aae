"""ICMP echo: what is emitted is parsed again, and only `WireError` escapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsha.errors import WireError
from lvsha.wire.checksum import ones_complement_sum
from lvsha.wire.echo import HEADER_BYTES, Echo, without_ip_header

ECHOES = st.builds(
    Echo, st.booleans(), st.integers(0, 65_535), st.integers(0, 65_535), st.binary(max_size=80)
)


@given(ECHOES, st.sampled_from([4, 6]))
def test_what_is_emitted_is_parsed_again(echo: Echo, family: int) -> None:
    assert Echo.parse(echo.emit(family), family) == echo


@given(ECHOES)
def test_the_checksum_of_ipv4_is_right(echo: Echo) -> None:
    assert ones_complement_sum(echo.emit(4)) == 0xFFFF


def test_a_request_is_known_by_its_bytes() -> None:
    """RFC 792: type 8, code 0, checksum, identifier, sequence number."""
    assert Echo(False, 0x1234, 1, b"ab").emit(4) == bytes.fromhex("0800 8468 1234 0001 6162")
    assert Echo(True, 0x1234, 1, b"ab").emit(6) == bytes.fromhex("8100 0000 1234 0001 6162")


@given(st.binary(max_size=100), st.sampled_from([4, 6]))
def test_whatever_comes_is_an_echo_or_none_or_refused(data: bytes, family: int) -> None:
    if len(data) < HEADER_BYTES:
        with pytest.raises(WireError):
            Echo.parse(data, family)
    else:
        assert Echo.parse(data, family) is None or data[1] == 0


@pytest.mark.parametrize("data", [b"", b"\x45" * 19, b"\x44" * 40, b"\x4f" * 59])
def test_an_ip_header_that_is_cut_short_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        without_ip_header(data)


def test_options_belong_to_the_ip_header() -> None:
    assert without_ip_header(b"\x46" + bytes(23) + b"rest") == b"rest"
