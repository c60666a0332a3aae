"""The socket filter, run by a small interpreter of classic BPF."""

import pytest

from lvsha.datapath.tap import FILTER_ADDRESSES_MAX, Instruction, socket_filter
from lvsha.model import parse_address
from lvsha.wire.vrrp import virtual_mac
from tests import packets

C4, V4, S4 = "198.51.100.7", "192.0.2.1", "10.1.0.2"
C6, V6, S6 = "2001:db8::7", "2001:db8:f::1", "fd00::2"
PACKET_TYPE, VLAN_TAG_PRESENT = 0xFFFF_F004, 0xFFFF_F030
OTHER_HOST = 3  # linux/if_packet.h
STEPS_MAX = 4096  # BPF_MAXINSNS


def passes(
    program: list[Instruction], frame: bytes, *, kind: int = 0, tagged: bool = False
) -> bool:
    """Run a program over a frame as the kernel would; reading past the end refuses."""
    accumulator = index = at = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20 | 0x28 | 0x30 | 0x50:
                if operand >= 0xFFFF_F000:
                    accumulator = {PACKET_TYPE: kind, VLAN_TAG_PRESENT: int(tagged)}[operand]
                    continue
                size = {0x20: 4, 0x28: 2, 0x30: 1, 0x50: 1}[code]
                start = operand + (index if code == 0x50 else 0)
                if start + size > len(frame):
                    return False
                accumulator = int.from_bytes(frame[start : start + size])
            case 0xB1:
                if operand >= len(frame):
                    return False
                index = (frame[operand] & 15) * 4
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x06:
                return operand != 0
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def addresses(*texts: str) -> set[bytes]:
    return set(map(parse_address, texts))


PROGRAM = socket_filter((addresses(V4, V6), addresses(S4, S6)))

FOR_THE_DIRECTOR = {
    "TCP to the virtual address": packets.tcp(C4, 1, V4, 80),
    "UDP to the virtual address": packets.udp(C4, 1, V4, 80),
    "SCTP to the virtual address": packets.ip(C4, V4, 132, bytes(12)),
    "AH to the virtual address": packets.ip(C4, V4, 51, bytes(24)),
    "ESP to the virtual address": packets.ip(C4, V4, 50, bytes(24)),
    "a first fragment": packets.ip(C4, V4, 17, bytes(24), dont_fragment=False, fragment=0x2000),
    "a later fragment": packets.ip(C4, V4, 17, bytes(24), dont_fragment=False, fragment=3),
    "a later fragment of ICMP": packets.ip(C4, V4, 1, bytes(24), dont_fragment=False, fragment=3),
    "SCTP from a NAT server": packets.ip(S4, C4, 132, bytes(12)),
    "a fragment from a NAT server": packets.ip(
        S4, C4, 17, bytes(24), dont_fragment=False, fragment=3
    ),
    "TCP with IP options": packets.tcp(C4, 1, V4, 80, ip_options=b"\x01\x01\x01\x00"),
    "TCP from a NAT server": packets.tcp(S4, 80, C4, 1),
    "UDP from a NAT server": packets.udp(S4, 80, C4, 1),
    "unreachable from anywhere to anyone": packets.icmp("203.0.113.9", C4, 3, 4, bytes(28)),
    "quench": packets.icmp("203.0.113.9", C4, 4, 0, bytes(28)),
    "time exceeded": packets.icmp("203.0.113.9", C4, 11, 0, bytes(28)),
    "the last of the ICMPv6 errors": packets.icmp("2001:db8:9::9", C6, 127, 0, bytes(48)),
    "TCP to the virtual IPv6 address": packets.tcp(C6, 1, V6, 80),
    "UDP from a NAT server over IPv6": packets.udp(S6, 80, C6, 1),
    "IPv6 fragment": packets.ip(C6, V6, 44, bytes((17, 0, 0, 9, 0, 0, 0, 1)) + bytes(8)),
    "ESP over IPv6": packets.ip(C6, V6, 50, bytes(24)),
    "IPv6 extension header": packets.ip(C6, V6, 60, bytes((6, 0)) + bytes(26)),
    "packet too big from anywhere": packets.icmp("2001:db8:9::9", C6, 2, 0, bytes(48)),
}
NOT_FOR_IT = {
    "TCP to another address": packets.tcp(C4, 1, "192.0.2.2", 80),
    "TCP from the virtual address": packets.tcp(V4, 80, C4, 1),
    "another protocol": packets.ip(C4, V4, 112, bytes(20)),
    "TCP to another IPv6 address": packets.tcp(C6, 1, "2001:db8:f::2", 80),
    "echo request to another address": packets.icmp(C4, "192.0.2.2", 8, 0, b""),
    "echo request over IPv6": packets.icmp(C6, V6, 128, 0, b""),
    "neighbour solicitation": packets.icmp(C6, V6, 135, 0, bytes(16)),
}


@pytest.mark.parametrize("packet", FOR_THE_DIRECTOR.values(), ids=FOR_THE_DIRECTOR.keys())
def test_what_may_concern_a_director_passes(packet: bytes) -> None:
    assert passes(PROGRAM, packets.ethernet(packet))


@pytest.mark.parametrize("packet", NOT_FOR_IT.values(), ids=NOT_FOR_IT.keys())
def test_what_cannot_concern_it_is_kept_out(packet: bytes) -> None:
    assert not passes(PROGRAM, packets.ethernet(packet))


NEVER = {"another protocol", "echo request over IPv6", "neighbour solicitation"}


@pytest.mark.parametrize("name", [*FOR_THE_DIRECTOR, *NOT_FOR_IT])
def test_a_filter_for_everybody_looks_at_the_protocol_only(name: str) -> None:
    packet = {**FOR_THE_DIRECTOR, **NOT_FOR_IT}[name]
    assert passes(socket_filter(None), packets.ethernet(packet)) is (name not in NEVER)


def test_arp_and_other_ethertypes_are_kept_out() -> None:
    assert not passes(PROGRAM, bytes(12) + b"\x08\x06" + bytes(28))


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_frames_that_are_not_for_this_host_are_kept_out(kind: int) -> None:
    frame = packets.ethernet(packets.tcp(C4, 1, V4, 80))
    assert not passes(PROGRAM, frame, kind=kind)


def test_a_tagged_frame_belongs_to_its_vlan_interface() -> None:
    assert not passes(PROGRAM, packets.ethernet(packets.tcp(C4, 1, V4, 80)), tagged=True)


def test_a_frame_cut_anywhere_is_passed_or_kept_out_but_never_runs_astray() -> None:
    for packet in (*FOR_THE_DIRECTOR.values(), *NOT_FOR_IT.values()):
        frame = packets.ethernet(packet)
        for end in range(len(frame)):
            passes(PROGRAM, frame[:end])


@pytest.mark.parametrize("count", [0, 1, FILTER_ADDRESSES_MAX // 2, FILTER_ADDRESSES_MAX, 10_000])
def test_a_filter_never_grows_beyond_what_the_kernel_takes(count: int) -> None:
    virtual = {(0x0A00_0000 + n).to_bytes(4) for n in range(count)}
    virtual |= {bytes(12) + (n + 1).to_bytes(4) for n in range(count)}
    program = socket_filter((virtual, set()))
    assert len(program) <= STEPS_MAX
    for address in sorted(virtual)[:: max(1, count // 50)]:
        text = ".".join(map(str, address)) if len(address) == 4 else f"::{address[12:].hex(':', 2)}"
        here = C4 if len(address) == 4 else C6
        assert passes(program, packets.ethernet(packets.udp(here, 1, text, 2)))
    assert all(max(step[1], step[2]) < 256 for step in program)


def test_every_jump_stays_inside_the_program() -> None:
    for program in (PROGRAM, socket_filter((set(), set())), socket_filter(None)):
        for at, (code, if_true, if_false, operand) in enumerate(program):
            reach = operand if code == 0x05 else max(if_true, if_false)
            assert at + 1 + reach < len(program) or code == 0x06
        assert program[-1][0] == 0x06


def test_frames_to_some_other_addresses_are_taken_as_well() -> None:
    macs = [virtual_mac(vrid, family) for family in (4, 6) for vrid in range(1, 256)]
    program = socket_filter((addresses(V4, V6), addresses(S4, S6)), macs)
    packet = packets.tcp(C4, 1, V4, 80)
    for mac in macs:
        frame = mac + packets.ethernet(packet)[6:]
        assert passes(program, frame, kind=OTHER_HOST)
        assert not passes(PROGRAM, frame, kind=OTHER_HOST)
        assert not passes(program, frame, kind=OTHER_HOST, tagged=True)
        assert not passes(program, mac + packets.ethernet(packets.tcp(C4, 1, C4, 80))[6:], kind=3)
    for other in (b"\x02" + macs[0][1:], macs[0][:5] + b"\0", b"\xff" * 6):
        assert not passes(program, other + packets.ethernet(packet)[6:], kind=OTHER_HOST)
    assert passes(program, packets.ethernet(packet))
    assert len(program) < STEPS_MAX
