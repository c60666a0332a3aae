"""Echo and neighbour solicitation: bytes as the RFCs have them, and refusals."""

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NS, IPv6

from lvsha.errors import WireError
from lvsha.model import parse_address
from lvsha.wire import probes

EAST4, WEST4 = parse_address("192.0.2.1"), parse_address("192.0.2.2")
EAST6, WEST6 = parse_address("fe80::1"), parse_address("2001:db8::2")
ECHO = probes.Echo(0x1234, 7, b"payload")


def reply4() -> bytes:
    return bytes(ICMP(type=0, id=0x1234, seq=7) / b"payload")


def reply6() -> bytes:
    packet = IPv6(src="2001:db8::2", dst="fe80::1")
    packet /= ICMPv6EchoReply(id=0x1234, seq=7, data=b"payload")
    return bytes(packet)[40:]


def test_requests_are_as_scapy_builds_them() -> None:
    assert probes.emit_request(ECHO, source=EAST4, destination=WEST4) == bytes(
        ICMP(type=8, id=0x1234, seq=7) / b"payload"
    )
    packet = IPv6(src="fe80::1", dst="2001:db8::2")
    packet /= ICMPv6EchoRequest(id=0x1234, seq=7, data=b"payload")
    assert probes.emit_request(ECHO, source=EAST6, destination=WEST6) == bytes(packet)[40:]


def test_replies_are_read() -> None:
    assert probes.parse_reply(reply4(), source=WEST4, destination=EAST4) == ECHO
    assert probes.parse_reply(reply6(), source=WEST6, destination=EAST6) == ECHO


@pytest.mark.parametrize(
    ("whole", "source", "own"), [(reply4(), WEST4, EAST4), (reply6(), WEST6, EAST6)]
)
def test_what_is_cut_short_or_changed_is_refused(whole: bytes, source: bytes, own: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(WireError):
            probes.parse_reply(whole[:length], source=source, destination=own)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x40
        with pytest.raises(WireError):
            probes.parse_reply(bytes(changed), source=source, destination=own)


def test_a_request_is_no_reply() -> None:
    request = probes.emit_request(ECHO, source=EAST4, destination=WEST4)
    with pytest.raises(WireError, match="not an echo reply"):
        probes.parse_reply(request, source=EAST4, destination=WEST4)


def test_a_solicitation_is_as_scapy_reads_it() -> None:
    mac = bytes.fromhex("020000000001")
    message = probes.emit_solicitation(WEST6, mac, source=EAST6)
    assert probes.solicited_node(WEST6) == parse_address("ff02::1:ff00:2")
    read = ICMPv6ND_NS(message)
    assert read.tgt == "2001:db8::2"
    assert read.payload.lladdr == "02:00:00:00:00:01"
    built = IPv6(src="fe80::1", dst="ff02::1:ff00:2") / ICMPv6ND_NS(message)
    del built[ICMPv6ND_NS].cksum
    assert bytes(built)[40:] == message
