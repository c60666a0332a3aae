"""What counts as a claim to an address, and the filter that lets it through."""

import socket
from collections.abc import Sequence

import pytest

from lvsha.errors import WireError
from lvsha.failover.announcements import announcement_frames
from lvsha.failover.rivals import Rival, filter_of, rival_of
from lvsha.model import parse_address
from lvsha.wire import arp

MAC = bytes.fromhex("020000000009")
V4, V6 = parse_address("192.0.2.10"), parse_address("2001:db8::10")
OTHER4, OTHER6 = parse_address("192.0.2.11"), parse_address("2001:db8::11")


def frames(address: bytes) -> Sequence[bytes]:
    return announcement_frames(MAC, address, router=False)


def request(sender: bytes) -> bytes:
    """An ordinary question for another address, as any host sends it."""
    packet = arp.emit(arp.ArpPacket(arp.REQUEST, MAC, sender, bytes(6), OTHER4))
    return b"\xff" * 6 + MAC + b"\x08\x06" + packet


@pytest.mark.parametrize("address", [V4, V6])
def test_announcements_are_claims(address: bytes) -> None:
    for frame in frames(address):
        assert rival_of(frame) == Rival(address, MAC)


def test_whoever_asks_with_an_address_claims_it() -> None:
    assert rival_of(request(V4)) == Rival(V4, MAC)


def test_a_probe_claims_nobody_s_address() -> None:
    # RFC 5227, section 2.1.1: the sender's address is zero.
    assert rival_of(request(bytes(4))) == Rival(bytes(4), MAC)


def test_what_cannot_be_is_an_error_and_what_is_no_claim_is_nothing() -> None:
    whole = [*frames(V4), *frames(V6)]
    for frame in whole:
        for length in range(15, len(frame)):
            with pytest.raises(WireError):
                rival_of(frame[:length])
    assert rival_of(b"") is None
    assert rival_of(whole[0][:12] + b"\x08\x00" + whole[0][14:]) is None
    (advertisement,) = frames(V6)
    far = bytearray(advertisement)
    far[14 + 7] = 64
    with pytest.raises(WireError, match="beyond the link"):
        rival_of(bytes(far))
    tcp = bytearray(advertisement)
    tcp[14 + 6] = 6
    assert rival_of(bytes(tcp)) is None


def passes(frame: bytes, addresses: Sequence[bytes]) -> bool:
    """What a kernel would do with the filter; frames of a VLAN apart."""
    program, at, accumulator = filter_of(frozenset(addresses)), 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20 if operand > 0xFFFF_0000:
                accumulator = 0
            case 0x20 | 0x28 | 0x30:
                size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
                if operand + size > len(frame):
                    return False
                accumulator = int.from_bytes(frame[operand : operand + size])
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x06:
                return bool(operand)
            case _:
                raise AssertionError(code)


@pytest.mark.parametrize(
    "addresses", [[V4], [V6], [V4, V6], [V4, *(bytes((10, 0, 0, n)) for n in range(63))]]
)
def test_the_filter_passes_claims_to_our_addresses_and_no_others(addresses: list[bytes]) -> None:
    for address in (V4, V6):
        for frame in frames(address):
            assert passes(frame, addresses) == (address in addresses)
    for address in (OTHER4, OTHER6):
        for frame in frames(address):
            assert not passes(frame, addresses)
    assert not passes(frames(V4)[0][:20], addresses)
    udp = bytearray(frames(V6)[0])
    udp[20] = socket.IPPROTO_UDP
    assert not passes(bytes(udp), addresses)
    solicitation = bytearray(frames(V6)[0])
    solicitation[54] = 135
    assert not passes(bytes(solicitation), addresses)
