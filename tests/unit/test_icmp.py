import pytest

from lvsha.wire import icmp
from tests import packets
from tests.reader import dissect, faults

HERE4, THERE4, HERE6, THERE6 = "192.0.2.1", "198.51.100.7", "2001:db8::1", "2001:db8:1::7"


@pytest.mark.parametrize(
    ("error", "v4", "v6"),
    [
        (icmp.PORT_UNREACHABLE, (3, 3), (1, 4)),
        (icmp.HOST_UNREACHABLE, (3, 1), (1, 3)),
        (icmp.TIME_EXCEEDED, (11, 0), (3, 0)),
        (icmp.too_big(1400), (3, 4), (2, 0)),
    ],
    ids=lambda value: value.name if isinstance(value, icmp.IcmpError) else "",
)
def test_an_error_is_right_for_scapy_in_both_families(
    error: icmp.IcmpError, v4: tuple[int, int], v6: tuple[int, int]
) -> None:
    for here, there, kind in ((HERE4, THERE4, v4), (HERE6, THERE6, v6)):
        quoted = packets.udp(there, 4000, here, 53, b"question")
        packet = icmp.emit(error, quoted, packets.address(here), packets.address(there))
        read = dissect(packet)
        assert faults(packet) == []
        assert (read.src, read.dst) == (here, there)
        assert (read.payload.type, read.payload.code) == kind
        assert packet.endswith(quoted)


def test_the_mtu_is_told_where_each_family_looks_for_it() -> None:
    packet = icmp.emit(icmp.too_big(1400), bytes(28), bytes(4), bytes(4))
    assert packet[24:28] == b"\x00\x00" + (1400).to_bytes(2)
    packet = icmp.emit(icmp.too_big(1400), bytes(48), bytes(16), bytes(16))
    assert packet[44:48] == (1400).to_bytes(4)


def test_a_wrong_option_is_pointed_at() -> None:
    quoted = packets.ip(THERE4, HERE4, 17, bytes(8), options=b"\x07\x03\x03\x00")
    error = icmp.wrong_option(22)
    packet = icmp.emit(error, quoted, packets.address(HERE4), packets.address(THERE4))
    read = dissect(packet)
    assert faults(packet) == []
    assert (read.payload.type, read.payload.code, read.payload.ptr) == (12, 0, 22)


@pytest.mark.parametrize(("here", "there", "most"), [(HERE4, THERE4, 576), (HERE6, THERE6, 1280)])
def test_an_error_quotes_no_more_than_its_family_allows(here: str, there: str, most: int) -> None:
    quoted = packets.udp(there, 4000, here, 53, bytes(2000))
    packet = icmp.emit(icmp.PORT_UNREACHABLE, quoted, packets.address(here), packets.address(there))
    assert len(packet) == most
    assert dissect(packet).payload.type in {3, 1}


@pytest.mark.parametrize(
    "sender", ["0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255", "::", "::1", "ff02::1"]
)
def test_nothing_is_told_to_what_is_no_single_host(sender: str) -> None:
    assert not icmp.may_be_told(packets.address(sender))


@pytest.mark.parametrize("sender", [THERE4, "10.0.0.1", "223.255.255.254", THERE6, "fe80::1"])
def test_a_single_host_may_be_told(sender: str) -> None:
    assert icmp.may_be_told(packets.address(sender))
