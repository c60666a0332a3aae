"""The VRRP advertisement, against bytes laid out by hand and by an independent writer."""

import struct

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.vrrp import VRRPv3

from lvsha.errors import WireError
from lvsha.model import parse_address
from lvsha.wire import checksum, vrrp

SOURCE = parse_address("10.0.0.1")
GROUP = vrrp.GROUP_IPv4
SOURCE6 = parse_address("fe80::1")
GROUP6 = vrrp.GROUP_IPv6

ADVERTISEMENT = vrrp.Advertisement(
    7, 150, 100, (parse_address("192.0.2.10"), parse_address("192.0.2.11"))
)
# Version 3, type 1; vrid 7; priority 150; two addresses; 100 centiseconds.
BODY = bytes.fromhex("31079602 0064") + b"\0\0" + bytes.fromhex("c000020a c000020b")


def with_checksum(message: bytes, initial: int = 0) -> bytes:
    """Fill in the checksum, whatever else the message says."""
    blank = message[:6] + b"\0\0" + message[8:]
    return blank[:6] + checksum.checksum(blank, initial).to_bytes(2) + blank[8:]


def parse(message: bytes) -> vrrp.Advertisement:
    return vrrp.parse(message, source=SOURCE, destination=GROUP)


def test_emits_the_layout_of_the_rfc() -> None:
    message = vrrp.emit(ADVERTISEMENT, source=SOURCE, destination=GROUP, pseudo_header=False)
    assert message == with_checksum(BODY)


def test_checksum_without_pseudo_header_is_that_of_a_hand_made_sum() -> None:
    message = vrrp.emit(ADVERTISEMENT, source=SOURCE, destination=GROUP, pseudo_header=False)
    total = sum(struct.unpack("!8H", message))
    assert total % 0xFFFF == 0
    assert total > 0


def test_ipv4_checksum_with_pseudo_header_agrees_with_scapy() -> None:
    packet = IP(src="10.0.0.1", dst="224.0.0.18", ttl=255, proto=112) / VRRPv3(
        vrid=7, priority=150, adv=100, addrlist=["192.0.2.10", "192.0.2.11"]
    )
    message = vrrp.emit(ADVERTISEMENT, source=SOURCE, destination=GROUP, pseudo_header=True)
    assert bytes(packet)[20:] == message


def test_ipv6_checksum_agrees_with_scapy() -> None:
    ours = vrrp.Advertisement(9, 1, 4095, (parse_address("fe80::10"), parse_address("2001:db8::1")))
    packet = IPv6(src="fe80::1", dst="ff02::12", hlim=255, nh=112) / VRRPv3(
        vrid=9, priority=1, adv=4095, addrlist=["fe80::10", "2001:db8::1"]
    )
    message = vrrp.emit(ours, source=SOURCE6, destination=GROUP6, pseudo_header=False)
    assert bytes(packet)[40:] == message


@pytest.mark.parametrize("pseudo_header", [False, True])
def test_parse_says_which_checksum_it_was(pseudo_header: bool) -> None:
    message = vrrp.emit(
        ADVERTISEMENT, source=SOURCE, destination=GROUP, pseudo_header=pseudo_header
    )
    assert parse(message).pseudo_header is pseudo_header


def test_padding_behind_the_last_address_is_ignored() -> None:
    message = with_checksum(BODY)
    assert parse(message + b"\xa5" * 30) == parse(message)


def test_every_shorter_message_is_refused() -> None:
    message = with_checksum(BODY)
    for length in range(len(message)):
        with pytest.raises(WireError):
            parse(message[:length])


def test_every_changed_bit_is_refused() -> None:
    message = with_checksum(BODY)
    for bit in range(len(message) * 8):
        changed = bytearray(message)
        changed[bit // 8] ^= 0x80 >> bit % 8
        with pytest.raises(WireError):
            parse(bytes(changed))


@pytest.mark.parametrize(
    ("offset", "value", "sentence"),
    [
        (0, 0x21, "version"),
        (0, 0x32, "no advertisement"),
        (1, 0, "router id 0"),
        (3, 0, "without an address"),
        (3, 3, "cut short"),
    ],
)
def test_fields_that_must_be_refused_although_the_checksum_is_right(
    offset: int, value: int, sentence: str
) -> None:
    changed = bytearray(BODY)
    changed[offset] = value
    with pytest.raises(WireError, match=sentence):
        parse(with_checksum(bytes(changed)))


def test_a_zero_checksum_field_is_a_checksum_like_another() -> None:
    # An address chosen so that the sum of everything else is 0xFFFF.
    head = bytes.fromhex("31079601 0064 0000")
    rest = checksum.checksum(head)
    message = head + struct.pack("!HH", rest, 0)
    assert parse(message).addresses == (struct.pack("!HH", rest, 0),)
