import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE

from lvsha.datapath.tunnels import (
    IPIP,
    LOCAL_PORTS,
    PartialChecksum,
    Tunnel,
    TunnelChecksum,
    TunnelType,
    encapsulate,
    source_port,
)
from lvsha.errors import WireError
from tests import packets
from tests.reader import dissect, faults

C4, V4 = "198.51.100.71", "192.0.2.21"
C6, V6 = "2001:db8:1::77", "2001:db8:ffff::21"
HERE4, THERE4 = "10.1.0.1", "10.1.0.11"
HERE6, THERE6 = "fd00:5::1", "fd00:5::b"

NONE, CHECKSUM, REMOTE = TunnelChecksum.NONE, TunnelChecksum.CHECKSUM, TunnelChecksum.REMOTE
GUE = Tunnel(TunnelType.GUE, 6080)
GUE_CHECKSUM = Tunnel(TunnelType.GUE, 6080, CHECKSUM)
GUE_REMOTE = Tunnel(TunnelType.GUE, 6080, REMOTE)
GRE_PLAIN = Tunnel(TunnelType.GRE)
GRE_CHECKSUM = Tunnel(TunnelType.GRE, 0, CHECKSUM)
TUNNELS = [IPIP, GUE, GUE_CHECKSUM, GUE_REMOTE, GRE_PLAIN, GRE_CHECKSUM]

INNERS = pytest.mark.parametrize(
    "inner",
    [packets.udp(C4, 4000, V4, 80, b"odd"), packets.tcp(C6, 4000, V6, 80, payload=b"even")],
    ids=["inner-v4", "inner-v6"],
)
OUTERS = pytest.mark.parametrize(
    ("here", "there"), [(HERE4, THERE4), (HERE6, THERE6)], ids=["outer-v4", "outer-v6"]
)
EVERY_TUNNEL = pytest.mark.parametrize("tunnel", TUNNELS, ids=Tunnel.describe)


def wrap(
    inner: bytes,
    tunnel: Tunnel,
    here: str = HERE4,
    there: str = THERE4,
    *,
    partial: PartialChecksum | None = None,
    pmtu_disc: bool = True,
) -> bytes:
    return encapsulate(
        inner,
        tunnel,
        packets.address(here),
        packets.address(there),
        99,
        partial=partial,
        pmtu_disc=pmtu_disc,
    )


def carried(packet: bytes) -> bytes:
    """The inner packet, found with scapy alone."""
    payload = dissect(packet).payload
    if isinstance(payload, GRE):
        assert bytes(payload)[:2] in {b"\x00\x00", b"\x80\x00"}
        return bytes(payload.payload)
    if isinstance(payload, UDP) and payload.dport == 6080:
        gue = bytes(payload.payload)
        return gue[4 + (gue[0] & 0x1F) * 4 :]
    return bytes(payload)


@EVERY_TUNNEL
@INNERS
@OUTERS
def test_a_packet_of_either_family_fits_each_tunnel_of_either(
    inner: bytes, here: str, there: str, tunnel: Tunnel
) -> None:
    packet = wrap(inner, tunnel, here, there)
    read = dissect(packet)
    # RFC 6935 lets a tunnel over IPv6 do without a UDP checksum; the reader does not.
    without = [f for f in faults(packet) if f.startswith("UDP.chksum is 0x0,")]
    assert faults(packet) == (without if tunnel is GUE and ":" in here else [])
    assert (read.src, read.dst) == (here, there)
    assert carried(packet) == inner
    assert len(packet) == len(inner) + tunnel.overhead(":" in here)


@INNERS
@OUTERS
def test_ip_in_ip_names_the_inner_family(inner: bytes, here: str, there: str) -> None:
    read = dissect(wrap(inner, IPIP, here, there))
    assert (read.proto if read.version == 4 else read.nh) == (4 if inner[0] >> 4 == 4 else 41)
    assert bytes(read.payload) == inner


@INNERS
@OUTERS
@pytest.mark.parametrize("tunnel", [GRE_PLAIN, GRE_CHECKSUM], ids=Tunnel.describe)
def test_gre_names_the_inner_family_and_sums_header_and_payload(
    inner: bytes, here: str, there: str, tunnel: Tunnel
) -> None:
    read = dissect(wrap(inner, tunnel, here, there))
    header = read[GRE]
    assert header.proto == (0x0800 if inner[0] >> 4 == 4 else 0x86DD)
    assert bool(header.chksum_present) == (tunnel is GRE_CHECKSUM)
    assert type(header.payload) is (IP if inner[0] >> 4 == 4 else IPv6)
    if header.chksum_present:
        given, reserved = header.chksum, header.offset
        header.delfieldval("chksum")
        assert GRE(bytes(header)).chksum == given
        assert reserved == 0


@INNERS
@OUTERS
@pytest.mark.parametrize("tunnel", [GUE, GUE_CHECKSUM, GUE_REMOTE], ids=Tunnel.describe)
def test_gue_goes_to_its_port_and_sums_only_where_asked(
    inner: bytes, here: str, there: str, tunnel: Tunnel
) -> None:
    read = dissect(wrap(inner, tunnel, here, there))
    datagram = read[UDP]
    assert datagram.dport == 6080
    assert datagram.sport in LOCAL_PORTS
    assert bool(datagram.chksum) == (tunnel is not GUE)
    # A finished inner checksum is nothing that could be left to the other end.
    assert bytes(datagram.payload)[:4] == bytes((0, 4 if inner[0] >> 4 == 4 else 41, 0, 0))


@OUTERS
@pytest.mark.parametrize("protocol", [packets.TCP, packets.UDP])
def test_a_partial_checksum_is_left_to_the_other_end_of_a_remote_checksum_tunnel(
    here: str, there: str, protocol: int
) -> None:
    make = packets.tcp if protocol == packets.TCP else packets.udp
    inner = packets.with_partial_checksum(make(C4, 4000, V4, 80, payload=b"data"), 20, protocol)
    field = 36 if protocol == packets.TCP else 26
    packet = wrap(inner, GUE_REMOTE, here, there, partial=PartialChecksum(20, field))
    assert faults(packet) == []
    gue = bytes(dissect(packet)[UDP].payload)
    assert gue[:12] == bytes((2, 4)) + struct.pack("!HIHH", 0x0001, 0x8000_0000, 20, field)
    assert gue[12:] == inner
    assert len(packet) == len(inner) + GUE_REMOTE.overhead(":" in here, inner_partial=True)


@pytest.mark.parametrize(
    "tunnel", [IPIP, GUE, GUE_CHECKSUM, GRE_PLAIN, GRE_CHECKSUM], ids=Tunnel.describe
)
@pytest.mark.parametrize(
    ("whole", "l4", "field", "protocol"),
    [
        (packets.tcp(C4, 4000, V4, 80, payload=b"abc"), 20, 36, packets.TCP),
        (packets.udp(C6, 4000, V6, 80, payload=b"abc"), 40, 46, packets.UDP),
    ],
)
def test_a_partial_checksum_is_computed_for_every_other_tunnel(
    tunnel: Tunnel, whole: bytes, l4: int, field: int, protocol: int
) -> None:
    inner = packets.with_partial_checksum(whole, l4, protocol)
    assert inner != whole
    packet = wrap(inner, tunnel, partial=PartialChecksum(l4, field))
    assert carried(packet) == whole
    assert faults(packet) == []


def test_a_computed_checksum_of_zero_is_sent_as_all_ones() -> None:
    # Data that equals the checksum without it makes the sum all ones, the checksum zero.
    bare = packets.udp(C4, 1, V4, 2, bytes(2))
    whole = packets.udp(C4, 1, V4, 2, bare[26:28])
    inner = packets.with_partial_checksum(whole, 20, packets.UDP)
    packet = wrap(inner, IPIP, partial=PartialChecksum(20, 26))
    assert packet[20 + 26 : 20 + 28] == b"\xff\xff"


@OUTERS
def test_an_outer_checksum_of_zero_is_sent_as_all_ones(here: str, there: str) -> None:
    bare = wrap(packets.udp(C4, 1, V4, 2, bytes(2), checksum=False), GUE_CHECKSUM, here, there)
    data = dissect(bare)[UDP].chksum.to_bytes(2)
    packet = wrap(packets.udp(C4, 1, V4, 2, data, checksum=False), GUE_CHECKSUM, here, there)
    assert dissect(packet)[UDP].chksum == 0xFFFF


@pytest.mark.parametrize(
    "partial",
    [
        PartialChecksum(20, 28),  # SCTP's, which is no sum
        PartialChecksum(19, 25),
        PartialChecksum(22, 28),
        PartialChecksum(1000, 1016),
    ],
)
def test_a_partial_checksum_that_cannot_be_is_refused(partial: PartialChecksum) -> None:
    inner = packets.udp(C4, 1, V4, 2)
    for tunnel in TUNNELS:
        with pytest.raises(WireError):
            wrap(inner, tunnel, partial=partial)


@pytest.mark.parametrize("inner", [b"", b"\x45", b"\x50" + bytes(60), b"\x60" + bytes(38)])
def test_what_is_no_packet_is_refused(inner: bytes) -> None:
    for tunnel in TUNNELS:
        with pytest.raises(WireError):
            wrap(inner, tunnel)


@pytest.mark.parametrize(("here", "there", "own"), [(HERE4, THERE4, 20), (HERE6, THERE6, 0)])
@EVERY_TUNNEL
def test_a_tunnel_packet_is_as_long_as_its_length_field_can_say(
    here: str, there: str, own: int, tunnel: Tunnel
) -> None:
    grown = tunnel.overhead(":" in here) - (20 if ":" not in here else 40)
    longest = 65_535 - own - grown
    inner = bytearray(packets.udp(C4, 1, V4, 2)) + bytes(longest - 28)
    packet = wrap(bytes(inner), tunnel, here, there)
    assert len(packet) == longest + tunnel.overhead(":" in here)
    with pytest.raises(WireError):
        wrap(bytes(inner) + b"\0", tunnel, here, there)


@EVERY_TUNNEL
@pytest.mark.parametrize(
    ("inside", "outside"), [(0xB8, 0xB8), (0xB9, 0xB9), (0xBA, 0xBA), (0xBB, 0xBA)]
)
def test_congestion_experienced_is_not_repeated_outside(
    tunnel: Tunnel, inside: int, outside: int
) -> None:
    for inner in (packets.udp(C4, 1, V4, 2, tos=inside), packets.udp(C6, 1, V6, 2, tos=inside)):
        assert dissect(wrap(inner, tunnel)).tos == outside
        assert dissect(wrap(inner, tunnel, HERE6, THERE6)).tc == outside


@EVERY_TUNNEL
def test_the_outer_time_to_live_is_the_inner_one(tunnel: Tunnel) -> None:
    for inner in (packets.udp(C4, 1, V4, 2, ttl=7), packets.udp(C6, 1, V6, 2, ttl=7)):
        assert dissect(wrap(inner, tunnel)).ttl == 7
        assert dissect(wrap(inner, tunnel, HERE6, THERE6)).hlim == 7


@EVERY_TUNNEL
@pytest.mark.parametrize("dont_fragment", [True, False])
@pytest.mark.parametrize("pmtu_disc", [True, False])
def test_the_outer_header_says_dont_fragment_as_the_inner_does_and_pmtu_disc_allows(
    tunnel: Tunnel, dont_fragment: bool, pmtu_disc: bool
) -> None:
    inner = packets.udp(C4, 1, V4, 2, dont_fragment=dont_fragment)
    read = dissect(wrap(inner, tunnel, pmtu_disc=pmtu_disc))
    expected = dont_fragment and pmtu_disc
    assert bool(read.flags.DF) == expected
    assert read.id == (0 if expected else 99)
    inner_v6 = dissect(wrap(packets.udp(C6, 1, V6, 2), tunnel, pmtu_disc=pmtu_disc))
    assert (bool(inner_v6.flags.DF), inner_v6.id) == (False, 99)


def test_a_flow_keeps_its_source_port_and_flows_are_spread() -> None:
    ports = {source_port(packets.udp(C4, port, V4, 80)) for port in range(1000, 1256)}
    assert len(ports) > 200
    assert ports <= set(LOCAL_PORTS)
    assert source_port(packets.tcp(C4, 1, V4, 80)) == source_port(
        packets.tcp(C4, 1, V4, 80, payload=b"more", ttl=9, ip_options=b"\x01\x01\x01\x00")
    )
    assert source_port(packets.tcp(C4, 1, V4, 80)) != source_port(packets.udp(C4, 1, V4, 80))


def test_extension_headers_do_not_change_the_source_port() -> None:
    datagram = packets.udp_datagram(C6, 1, V6, 2)
    extended = packets.ip(C6, V6, 60, bytes((17, 0)) + bytes(6) + datagram)
    assert source_port(extended) == source_port(packets.ip(C6, V6, 17, datagram))


def test_all_fragments_of_a_datagram_have_one_source_port() -> None:
    first = packets.ip(C4, V4, 17, bytes(range(24)), fragment=0x2000, dont_fragment=False)
    second = packets.ip(C4, V4, 17, bytes(range(50, 74)), fragment=3, dont_fragment=False)
    assert source_port(first) == source_port(second)


def test_both_directors_come_to_the_same_source_port() -> None:
    # Numbers, so that a version with another hash does not go unnoticed.
    assert source_port(packets.udp(C4, 40000, V4, 80)) == 59628
    assert source_port(packets.tcp(C6, 40000, V6, 80)) == 48223


def test_source_ports_come_from_the_range_that_is_asked_for() -> None:
    for port in range(64):
        assert source_port(packets.udp(C4, port, V4, 80), range(40000, 40002)) in {40000, 40001}


def test_an_ipv6_packet_whose_headers_cannot_be_walked_has_a_source_port() -> None:
    packet = packets.ip(C6, V6, 60, bytes((17, 200)) + bytes(6))
    assert source_port(packet) in LOCAL_PORTS


@pytest.mark.parametrize(
    ("tunnel", "expected"),
    [
        (IPIP, "ipip"),
        (GUE, "gue:6080:-c"),
        (GUE_CHECKSUM, "gue:6080:+c"),
        (GUE_REMOTE, "gue:6080:r+c"),
        (GRE_PLAIN, "gre:-c"),
        (GRE_CHECKSUM, "gre:+c"),
    ],
)
def test_settings_are_described_as_ipvsadm_lists_them(tunnel: Tunnel, expected: str) -> None:
    assert tunnel.describe() == expected
    assert tunnel.problem() is None


@pytest.mark.parametrize(
    ("tunnel", "word"),
    [
        (Tunnel(TunnelType.GUE), "needs a port"),
        (Tunnel(TunnelType.GUE, 65_536), "at most 65535"),
        (Tunnel(TunnelType.GUE, -1), "at most 65535"),
        (Tunnel(TunnelType.IPIP, 0, CHECKSUM), "no checksum"),
        (Tunnel(TunnelType.IPIP, 0, REMOTE), "no checksum"),
        (Tunnel(TunnelType.GRE, 0, REMOTE), "no remote checksum"),
    ],
)
def test_settings_that_do_not_fit_together_have_a_problem(tunnel: Tunnel, word: str) -> None:
    assert word in (tunnel.problem() or "")


@pytest.mark.parametrize(
    ("tunnel", "partial", "expected"),
    [
        (IPIP, True, 0),
        (GUE, True, 12),
        (GUE_CHECKSUM, True, 12),
        (GUE_REMOTE, False, 12),
        (GUE_REMOTE, True, 20),
        (GRE_PLAIN, True, 4),
        (GRE_CHECKSUM, False, 8),
    ],
)
def test_the_overhead_is_what_stands_before_the_inner_packet(
    tunnel: Tunnel, partial: bool, expected: int
) -> None:
    assert tunnel.overhead(False, partial) == 20 + expected
    assert tunnel.overhead(True, partial) == 40 + expected
