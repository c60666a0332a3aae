"""Tunnel packets and what is made of them again, judged by scapy."""

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.l2 import GRE

from lvsha.datapath import icmp_errors
from lvsha.datapath.flow import Frame
from lvsha.datapath.tunnels import (
    PartialChecksum,
    Tunnel,
    TunnelChecksum,
    TunnelType,
    encapsulate,
)
from lvsha.errors import WireError
from tests import packets
from tests.reader import dissect, faults

CLIENTS = {4: ("198.51.100.7", "192.0.2.1"), 6: ("2001:db8::7", "2001:db8:f::1")}
ENDS = {4: ("10.1.0.1", "10.1.0.2"), 6: ("fd00::1", "fd00::2")}

FAMILY = st.sampled_from([4, 6])
PORT = st.integers(1, 65_535)
TUNNEL = st.builds(
    Tunnel, st.sampled_from(TunnelType), st.sampled_from([0, 6080]), st.sampled_from(TunnelChecksum)
).filter(lambda tunnel: tunnel.problem() is None)


@st.composite
def inner_packets(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """A packet with right checksums, where its transport is, and its protocol."""
    family = draw(FAMILY)
    client, vip = CLIENTS[family]
    payload = draw(st.binary(max_size=64))
    ports = draw(PORT), draw(PORT)
    tos, ttl = draw(st.integers(0, 255)), draw(st.integers(1, 255))
    options = b"\x01" * (4 * draw(st.integers(0, 3))) if family == 4 else b""
    protocol = draw(st.sampled_from([packets.TCP, packets.UDP]))
    make = packets.tcp_segment if protocol == packets.TCP else packets.udp_datagram
    segment = make(client, ports[0], vip, ports[1], payload=payload)
    packet = packets.ip(
        client,
        vip,
        protocol,
        segment,
        ttl=ttl,
        tos=tos,
        dont_fragment=draw(st.booleans()),
        options=options,
    )
    return packet, len(packet) - len(segment), protocol


def unwrapped(packet: bytes, tunnel: Tunnel) -> bytes:
    """The inner packet, as scapy finds it."""
    payload = dissect(packet).payload
    match tunnel.type:
        case TunnelType.IPIP:
            return bytes(payload)
        case TunnelType.GRE:
            assert isinstance(payload, GRE)
            if payload.chksum_present:
                given = payload.chksum
                payload.delfieldval("chksum")
                assert GRE(bytes(payload)).chksum == given
            return bytes(payload.payload)
        case TunnelType.GUE:
            assert isinstance(payload, UDP)
            assert payload.dport == tunnel.port
            gue = bytes(payload)[8:]
            return gue[4 + gue[0] * 4 :]


@given(inner_packets(), FAMILY, TUNNEL, st.booleans(), st.booleans(), st.integers(0, 65_535))
def test_a_tunnel_packet_is_right_and_carries_the_packet(
    made: tuple[bytes, int, int],
    outer: int,
    tunnel: Tunnel,
    partial: bool,
    pmtu_disc: bool,
    identification: int,
) -> None:
    whole, l4, protocol = made
    inner, place = whole, None
    if partial:
        inner = packets.with_partial_checksum(whole, l4, protocol)
        place = PartialChecksum(l4, l4 + (16 if protocol == packets.TCP else 6))
    here, there = (packets.address(end) for end in ENDS[outer])
    packet = encapsulate(
        inner, tunnel, here, there, identification, partial=place, pmtu_disc=pmtu_disc
    )
    remote = partial and tunnel.checksum is TunnelChecksum.REMOTE
    assert unwrapped(packet, tunnel) == (inner if remote else whole)
    assert len(packet) == len(inner) + tunnel.overhead(outer == 6, partial)
    found = faults(packet)
    if tunnel.type is TunnelType.GUE and tunnel.checksum is TunnelChecksum.NONE and outer == 6:
        # RFC 6935 lets a tunnel over IPv6 do without a UDP checksum; the reader does not.
        assert [fault.split(",")[0] for fault in found] == ["UDP.chksum is 0x0"]
    else:
        assert found == []


@given(inner_packets(), FAMILY, TUNNEL, st.integers(0, 200))
def test_an_error_about_a_tunnel_packet_leads_back_to_the_request(
    made: tuple[bytes, int, int], outer: int, tunnel: Tunnel, length: int
) -> None:
    inner, l4, _ = made
    here, there = ENDS[outer]
    packet = encapsulate(inner, tunnel, packets.address(here), packets.address(there), 1)
    before = len(packet) - len(inner)
    kind = 1 if outer == 6 else 3
    error = Frame()
    error.load(packets.ethernet(packets.icmp(there, here, kind, 1, packet[:length])))
    quoted = icmp_errors.tunnelled(error)
    fixed = 20 if inner[0] >> 4 == 4 else 40
    assert (quoted is not None) == (length >= before + fixed)
    if quoted is None:
        return
    request = Frame()
    request.load(packets.ethernet(inner))
    expected = request.key if length >= before + l4 + 4 else None
    assert icmp_errors.original_key(error, quoted) == expected


@given(st.binary(max_size=80), TUNNEL, FAMILY, st.integers(0, 90), st.integers(0, 90))
def test_only_a_wire_error_comes_of_hostile_packets(
    inner: bytes, tunnel: Tunnel, outer: int, start: int, field: int
) -> None:
    here, there = (packets.address(end) for end in ENDS[outer])
    for partial in (None, PartialChecksum(start, field)):
        try:
            packet = encapsulate(inner, tunnel, here, there, 1, partial=partial)
        except WireError:
            continue
        assert len(packet) >= len(inner)


@given(FAMILY, st.binary(max_size=120), st.integers(0, 12), st.integers(0, 5))
def test_no_quote_makes_the_reader_of_errors_raise(
    family: int, quote: bytes, kind: int, code: int
) -> None:
    here, there = ENDS[family]
    error = Frame()
    error.load(packets.ethernet(packets.icmp(there, here, kind, code, quote)))
    icmp_errors.quoted_key(error)
    quoted = icmp_errors.tunnelled(error)
    if quoted is not None:
        icmp_errors.original_key(error, quoted)
        icmp_errors.relayed(error, quoted)
    if icmp_errors.related_key(error) is not None:
        server = packets.address(there)
        packet = icmp_errors.translate(error, server, 80, to_server=True)
        assert len(packet) == error.length


@given(FAMILY, FAMILY, st.sampled_from([4, 17, 41, 44, 47, 50, 51, 60]), st.binary(max_size=90))
def test_no_quoted_tunnel_packet_makes_the_reader_of_errors_raise(
    family: int, inner_family: int, protocol: int, payload: bytes
) -> None:
    here, there = ENDS[family]
    client, vip = CLIENTS[inner_family]
    for behind in (payload, packets.udp(client, 1, vip, 2), payload[:12] + payload):
        quote = packets.ip(here, there, protocol, behind)
        error = Frame()
        error.load(packets.ethernet(packets.icmp(there, here, 3, 1, quote)))
        icmp_errors.related_key(error)
        quoted = icmp_errors.tunnelled(error)
        if quoted is not None:
            assert quoted.inner < error.end
            icmp_errors.original_key(error, quoted)
