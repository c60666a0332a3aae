"""Neighbour advertisements, against an independent writer and by the rules of RFC 4861."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6

from lvsha.errors import WireError
from lvsha.model import Protocol, parse_address
from lvsha.wire import checksum
from lvsha.wire import neighbour_discovery as nd

MAC = bytes.fromhex("020000000001")
TARGET = parse_address("2001:db8::10")
SOURCE = TARGET
ADVERTISEMENT = nd.NeighbourAdvertisement(TARGET, MAC, router=True)
UNICAST = parse_address("2001:db8::99")


def emit(advertisement: nd.NeighbourAdvertisement, destination: bytes = nd.ALL_NODES) -> bytes:
    return nd.emit(advertisement, source=SOURCE, destination=destination)


def parse(message: bytes, destination: bytes = nd.ALL_NODES) -> nd.NeighbourAdvertisement:
    return nd.parse(message, source=SOURCE, destination=destination)


def with_checksum(message: bytes) -> bytes:
    blank = message[:2] + b"\0\0" + message[4:]
    pseudo = checksum.pseudo_header_sum(SOURCE, nd.ALL_NODES, Protocol.ICMPV6, len(blank))
    return blank[:2] + checksum.checksum(blank, pseudo).to_bytes(2) + blank[4:]


def test_unsolicited_advertisement_agrees_with_scapy() -> None:
    theirs = (
        IPv6(src="2001:db8::10", dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(R=1, S=0, O=1, tgt="2001:db8::10")
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:01")
    )
    assert emit(ADVERTISEMENT) == bytes(theirs)[40:]


@given(
    st.builds(
        nd.NeighbourAdvertisement,
        st.binary(min_size=16, max_size=16).filter(lambda target: target[0] != 0xFF),
        st.none() | st.binary(min_size=6, max_size=6),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )
)
def test_emit_and_parse_are_a_pair(advertisement: nd.NeighbourAdvertisement) -> None:
    assert parse(emit(advertisement, UNICAST), UNICAST) == advertisement


def test_every_shorter_message_is_refused() -> None:
    message = emit(ADVERTISEMENT)
    for length in range(len(message)):
        with pytest.raises(WireError):
            parse(message[:length])


def test_every_changed_bit_is_refused() -> None:
    message = emit(ADVERTISEMENT)
    for bit in range(len(message) * 8):
        changed = bytearray(message)
        changed[bit // 8] ^= 0x80 >> bit % 8
        with pytest.raises(WireError):
            parse(bytes(changed))


def test_unknown_options_are_skipped() -> None:
    plain = emit(nd.NeighbourAdvertisement(TARGET, None))
    unknown = b"\xfd\x02" + bytes(14)
    option = bytes((nd.OPTION_TARGET_LINK_LAYER, 1)) + MAC
    assert parse(with_checksum(plain + unknown + option)).mac == MAC


@pytest.mark.parametrize("option", [b"\x02\x00" + bytes(6), b"\x02\x02" + bytes(6), b"\x02"])
def test_options_that_lie_about_their_length_are_refused(option: bytes) -> None:
    plain = emit(nd.NeighbourAdvertisement(TARGET, None))
    with pytest.raises(WireError, match="option"):
        parse(with_checksum(plain + option))


def test_solicited_answers_to_a_group_are_refused() -> None:
    with pytest.raises(WireError, match="solicited"):
        parse(emit(nd.NeighbourAdvertisement(TARGET, MAC, solicited=True)))


def test_multicast_targets_are_refused() -> None:
    with pytest.raises(WireError, match="multicast"):
        parse(emit(nd.NeighbourAdvertisement(nd.ALL_NODES, MAC)))


@given(st.binary(max_size=80))
def test_only_wire_errors_escape(message: bytes) -> None:
    try:
        parse(with_checksum(message) if len(message) >= 4 else message)
    except WireError:
        return
