import pytest

from lvsha.errors import WireError
from lvsha.wire.vrrp2 import Advertisement, emit, parse

# Version 2, vrid 51, priority 100, 1 s, 192.0.2.10, without a password or a checksum.
SAMPLE = bytes.fromhex("2133640100010000c000020a0000000000000000")


def damaged(**changes: int) -> bytes:
    """The sample with other bytes at some places and a right checksum."""
    data = bytearray(SAMPLE)
    for place, value in changes.items():
        data[int(place[1:])] = value
    data[6:8] = bytes(2)
    total = sum(data[0::2]) * 256 + sum(data[1::2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    data[6:8] = (~total & 0xFFFF).to_bytes(2)
    return bytes(data)


def test_an_advertisement_is_read() -> None:
    assert parse(damaged()) == Advertisement(51, 100, 1, (bytes((192, 0, 2, 10)),), 0)


def test_a_password_is_named_by_its_kind_and_not_kept() -> None:
    assert parse(damaged(_4=1, _12=ord("s"))).authentication == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (damaged(_0=0x31), "no VRRP advertisement"),
        (damaged(_0=0x22), "no VRRP advertisement"),
        (damaged(_1=0), "router id 0"),
        (damaged(_5=0), "interval 0"),
        (damaged(_3=2), "cut short"),
        (damaged()[:-1] + b"\x01", "checksum"),
    ],
)
def test_a_wrong_advertisement_is_refused(message: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        parse(message)


def test_a_cut_advertisement_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(WireError):
            parse(damaged()[:length])


def test_what_is_emitted_is_read_again() -> None:
    sent = Advertisement(51, 100, 255, (bytes((192, 0, 2, 10)), bytes((192, 0, 2, 11))))
    message = emit(sent)
    assert parse(message) == sent
    assert parse(message + b"padding") == sent
    assert emit(Advertisement(51, 100, 1, (bytes((192, 0, 2, 10)),))) == damaged()


def test_an_advertisement_without_an_address_is_refused() -> None:
    with pytest.raises(WireError, match="without an address"):
        parse(damaged(_3=0))
