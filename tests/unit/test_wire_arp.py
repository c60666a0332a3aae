"""ARP, against bytes laid out by hand and by an independent writer."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from lvsha.errors import WireError
from lvsha.model import parse_address
from lvsha.wire import arp

MAC = bytes.fromhex("020000000001")
ADDRESS = parse_address("192.0.2.10")
macs = st.binary(min_size=6, max_size=6)
addresses = st.binary(min_size=4, max_size=4)


def test_gratuitous_request_agrees_with_scapy() -> None:
    theirs = ARP(
        op=1,
        hwsrc="02:00:00:00:00:01",
        psrc="192.0.2.10",
        hwdst="02:00:00:00:00:01",
        pdst="192.0.2.10",
    )
    assert arp.emit(arp.gratuitous(arp.REQUEST, MAC, ADDRESS)) == bytes(theirs)


def test_gratuitous_forms_are_told_from_questions() -> None:
    announced = arp.gratuitous(arp.REPLY, MAC, ADDRESS)
    assert announced.is_gratuitous
    assert not dataclasses.replace(announced, target_address=bytes(4)).is_gratuitous


@given(st.builds(arp.ArpPacket, st.integers(0, 65535), macs, addresses, macs, addresses))
def test_emit_and_parse_are_a_pair(packet: arp.ArpPacket) -> None:
    assert arp.parse(arp.emit(packet)) == packet
    assert arp.parse(arp.emit(packet) + b"\xa5" * 18) == packet


def test_every_shorter_packet_is_refused() -> None:
    packet = arp.emit(arp.gratuitous(arp.REQUEST, MAC, ADDRESS))
    for length in range(len(packet)):
        with pytest.raises(WireError):
            arp.parse(packet[:length])


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 5])
def test_other_hardware_and_protocols_are_refused(offset: int) -> None:
    packet = bytearray(arp.emit(arp.gratuitous(arp.REQUEST, MAC, ADDRESS)))
    packet[offset] ^= 0x10
    with pytest.raises(WireError):
        arp.parse(bytes(packet))


@given(st.binary(max_size=64))
def test_only_wire_errors_escape(packet: bytes) -> None:
    try:
        arp.parse(packet)
    except WireError:
        return
