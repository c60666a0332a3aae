import pytest
from scapy.layers.inet6 import IPv6, defragment6

from lvsha.datapath.network import AddressChange, LinkChange, NeighbourChange, RouteChange
from lvsha.datapath.reasons import Reason
from lvsha.datapath.transmit import ANSWERS_BURST
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.model import ForwardMethod, Protocol, parse_address
from lvsha.wire import vnet
from tests import packets
from tests.laboratory import C4, C6, DR, MACS, NAT, S4, S6, SERVER, TUN, V4, V6, Laboratory, Left
from tests.packets import ACK, SYN
from tests.reader import dissect, faults, reassemble

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])
METHODS = pytest.mark.parametrize("method", [NAT, DR, TUN], ids=["nat", "dr", "tun"])


def build(
    method: ForwardMethod,
    vip: str = V4,
    server: str = S4,
    *,
    protocol: Protocol = Protocol.UDP,
    port: int = 80,
    mtu: int = 1500,
    answers_per_second: float = 1e6,
) -> Laboratory:
    laboratory = Laboratory(mtu=mtu, answers_per_second=answers_per_second)
    service = laboratory.service(vip, protocol=protocol)
    laboratory.server(service, server, port, method=method)
    return laboratory


def ttl(packet: bytes) -> int:
    return packet[7] if packet[0] >> 4 == 6 else packet[8]


@FAMILIES
def test_direct_routing_changes_nothing_but_the_time_to_live(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(DR, vip, server)
    (left,) = laboratory.send("client", packets.udp(client, 1, vip, 80, b"x", ttl=9))
    assert left.packet == packets.udp(client, 1, vip, 80, b"x", ttl=8)[: len(left.packet)]
    assert left.dmac.startswith("02:05:")


@FAMILIES
def test_a_tunnel_packet_goes_from_the_director_to_the_server(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(TUN, vip, server)
    (left,) = laboratory.send("client", packets.udp(client, 1, vip, 80, b"x", ttl=9))
    read = dissect(left.packet)
    assert faults(left.packet) == []
    assert (read.src, read.dst) == ("fd00:5::1" if ":" in vip else "10.1.0.1", server)
    assert bytes(read.payload) == packets.udp(client, 1, vip, 80, b"x", ttl=8)


@METHODS
@FAMILIES
def test_a_time_to_live_that_ends_here_is_told_to_the_sender(
    method: ForwardMethod, client: str, vip: str, server: str
) -> None:
    laboratory = build(method, vip, server)
    for value in (1, 0):
        (left,) = laboratory.send("client", packets.udp(client, 1, vip, 80, ttl=value))
        read = dissect(left.packet)
        assert (left.side, read.src, read.dst) == ("client", vip, client)
        assert (read.payload.type, read.payload.code) == ((3, 0) if ":" in vip else (11, 0))
        assert faults(left.packet) == []
    assert laboratory.drops() == {Reason.TTL_EXCEEDED: 2}


@FAMILIES
def test_a_reply_whose_time_to_live_ends_here_is_told_to_the_server(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(NAT, vip, server)
    laboratory.send("client", packets.udp(client, 1, vip, 80))
    (left,) = laboratory.send("server", packets.udp(server, 80, client, 1, ttl=1))
    read = dissect(left.packet)
    assert (left.side, read.dst) == ("server", server)
    assert read.src == ("fd00:5::1" if ":" in vip else "10.1.0.1")


@METHODS
@FAMILIES
def test_a_packet_above_the_mtu_is_told_to_the_sender_and_one_at_it_passes(
    method: ForwardMethod, client: str, vip: str, server: str
) -> None:
    laboratory = build(method, vip, server)
    overhead = 0 if method is not TUN else (40 if ":" in vip else 20)
    headers = 48 if ":" in vip else 28
    room = 1500 - overhead
    (left,) = laboratory.send("client", packets.udp(client, 1, vip, 80, bytes(room - headers)))
    assert len(left.packet) == 1500
    (left,) = laboratory.send("client", packets.udp(client, 1, vip, 80, bytes(room - headers + 1)))
    assert left.side == "client"
    assert faults(left.packet) == []
    at = 40 if ":" in vip else 20
    assert int.from_bytes(left.packet[at + 4 : at + 8]) == room
    assert laboratory.drops() == {Reason.TOO_BIG: 1}


@METHODS
def test_an_ipv4_packet_that_may_be_fragmented_is(method: ForwardMethod) -> None:
    laboratory = build(method, port=80 if method is not NAT else 8080)
    whole = packets.udp(C4, 1, V4, 80, bytes(range(256)) * 14, dont_fragment=False)
    left = laboratory.send("client", whole)
    assert [piece.side for piece in left] == ["server"] * 3
    assert all(len(piece.packet) <= 1500 for piece in left)
    payload = reassemble([piece.packet for piece in left])
    inner = payload if method is TUN else left[0].packet[:20] + payload
    assert inner[-3584:] == bytes(range(256)) * 14
    if method is TUN:
        assert faults(inner) == []


@pytest.mark.parametrize(
    ("vip", "server", "client"), [(V4, S6, C4), (V6, S4, C6)], ids=["4 in 6", "6 in 4"]
)
def test_a_tunnel_may_join_the_families(vip: str, server: str, client: str) -> None:
    laboratory = build(TUN, vip, server)
    (left,) = laboratory.send("client", packets.udp(client, 1, vip, 80, b"x"))
    assert faults(left.packet) == []
    assert dissect(left.packet).dst == server


def joined(pieces: list[Left]) -> bytes:
    """What the fragments of an IPv6 packet carry together."""
    assert len(pieces) > 1
    assert all(len(piece.packet) <= 1500 and faults(piece.packet) == [] for piece in pieces)
    return bytes(defragment6([IPv6(piece.packet) for piece in pieces]).payload)


def test_a_large_ipv4_packet_in_an_ipv6_tunnel_is_cut_outside() -> None:
    laboratory = build(TUN, V4, S6)
    payload = bytes(range(250)) * 12
    whole = packets.udp(C4, 1, V4, 80, payload, dont_fragment=False, ttl=10)
    left = laboratory.send("client", whole)
    once_less = packets.udp(C4, 1, V4, 80, payload, dont_fragment=False, ttl=9)
    assert joined(left) == once_less
    assert {(piece.side, dissect(piece.packet).dst) for piece in left} == {("server", S6)}


def test_the_longest_packet_of_all_still_fits_a_tunnel_in_pieces() -> None:
    laboratory = build(TUN)
    whole = packets.udp(C4, 1, V4, 80, bytes(65_535 - 28), dont_fragment=False)
    left = laboratory.send("client", whole)
    assert left
    assert all(len(piece.packet) <= 1500 and faults(piece.packet) == [] for piece in left)


def test_a_link_too_small_for_a_tunnel_carries_none() -> None:
    laboratory = build(TUN, mtu=80)
    assert laboratory.send("client", packets.udp(C4, 1, V4, 80)) == []
    assert laboratory.drops() == {Reason.TOO_BIG: 1}


def super_frame(vip: str, client: str, size: int, *, flags: int = ACK) -> tuple[bytes, bytes]:
    ipv6 = ":" in vip
    l4 = 40 if ipv6 else 20
    whole = packets.tcp(client, 40000, vip, 80, flags, bytes(range(250)) * 40)
    kind = vnet.GSO_TCPV6 if ipv6 else vnet.GSO_TCPV4
    header = packets.vnet_header(partial=True, gso_type=kind, gso_size=size, l4=14 + l4)
    return packets.with_partial_checksum(whole, l4, packets.TCP), header


@FAMILIES
@pytest.mark.parametrize("method", [NAT, DR], ids=["nat", "dr"])
def test_a_super_frame_passes_whole_with_its_virtio_header(
    method: ForwardMethod, client: str, vip: str, server: str
) -> None:
    laboratory = build(method, vip, server, protocol=Protocol.TCP)
    laboratory.send("client", packets.tcp(client, 40000, vip, 80, SYN))
    packet, header = super_frame(vip, client, 1400)
    (left,) = laboratory.send("client", packet, header)
    l4 = 40 if ":" in vip else 20
    assert left.vnet == header
    assert len(left.packet) == len(packet)
    assert left.packet == packets.with_partial_checksum(left.packet, l4, packets.TCP)


@FAMILIES
def test_a_super_frame_is_cut_for_a_tunnel(client: str, vip: str, server: str) -> None:
    laboratory = build(TUN, vip, server, protocol=Protocol.TCP)
    laboratory.send("client", packets.tcp(client, 40000, vip, 80, SYN))
    left = laboratory.send("client", *super_frame(vip, client, 1400))
    assert len(left) == 8
    assert all(faults(piece.packet) == [] and piece.vnet == bytes(10) for piece in left)
    l4 = 40 if ":" in vip else 20
    assert b"".join(p.packet[2 * l4 + 20 :] for p in left) == bytes(range(250)) * 40


@METHODS
def test_a_super_frame_is_judged_by_its_segments(method: ForwardMethod) -> None:
    laboratory = build(method, protocol=Protocol.TCP)
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN))
    (left,) = laboratory.send("client", *super_frame(V4, C4, 1461))
    assert (left.side, left.packet[20:22]) == ("client", b"\x03\x04")
    assert laboratory.drops() == {Reason.TOO_BIG: 1}


@pytest.mark.parametrize("method", [NAT, DR, TUN], ids=["nat", "dr", "tun"])
def test_the_headers_of_a_segment_count_with_their_options(method: ForwardMethod) -> None:
    room = 1480 if method is TUN else 1500
    laboratory = build(method, protocol=Protocol.TCP)
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN))
    whole = packets.tcp(C4, 40000, V4, 80, ACK, bytes(9000), tcp_options=b"\x01" * 12)
    partial = packets.with_partial_checksum(whole, 20, packets.TCP)
    for size, side in ((room - 52, "server"), (room - 51, "client")):
        header = packets.vnet_header(partial=True, gso_type=vnet.GSO_TCPV4, gso_size=size)
        assert {left.side for left in laboratory.send("client", partial, header)} == {side}
    laboratory = build(method)
    whole = packets.udp(C4, 40000, V4, 80, bytes(9000))
    partial = packets.with_partial_checksum(whole, 20, packets.UDP)
    for size, side in ((room - 28, "server"), (room - 27, "client")):
        header = packets.vnet_header(
            partial=True, gso_type=vnet.GSO_UDP_L4, gso_size=size, protocol=packets.UDP
        )
        assert {left.side for left in laboratory.send("client", partial, header)} == {side}


TUNNELS = {
    "ipip": (Tunnel(), 20),
    "gre": (Tunnel(TunnelType.GRE), 24),
    "gue": (Tunnel(TunnelType.GUE, 5555), 32),
}


@FAMILIES
@pytest.mark.parametrize("kind", TUNNELS)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_partial_checksum_is_completed_for_a_tunnel(
    protocol: Protocol, kind: str, client: str, vip: str, server: str
) -> None:
    laboratory = Laboratory()
    tunnel, outer = TUNNELS[kind]
    service = laboratory.service(vip, protocol=protocol)
    laboratory.server(service, server, method=TUN, tunnel=tunnel)
    make = packets.tcp if protocol is Protocol.TCP else packets.udp
    l4 = 40 if ":" in vip else 20
    whole = make(client, 40000, vip, 80, payload=b"odd", ttl=64)
    header = packets.vnet_header(partial=True, l4=14 + l4, protocol=protocol)
    partial = packets.with_partial_checksum(whole, l4, protocol)
    (left,) = laboratory.send("client", partial, header)
    assert left.vnet == bytes(10)
    inner = left.packet[outer + (20 if ":" in vip else 0) :]
    assert inner == make(client, 40000, vip, 80, payload=b"odd", ttl=63)


def test_a_partial_checksum_stays_partial_for_a_tunnel_whose_other_end_completes_it() -> None:
    laboratory = Laboratory()
    tunnel = Tunnel(TunnelType.GUE, 5555, TunnelChecksum.REMOTE)
    laboratory.server(laboratory.service(protocol=Protocol.UDP), method=TUN, tunnel=tunnel)
    partial = packets.with_partial_checksum(packets.udp(C4, 1, V4, 80, b"odd"), 20, packets.UDP)
    header = packets.vnet_header(partial=True, l4=34, protocol=packets.UDP)
    (left,) = laboratory.send("client", partial, header)
    # Where it begins and where its field is, from the inner packet on.
    assert left.packet[36:40] == (20).to_bytes(2) + (26).to_bytes(2)
    assert left.packet[40 + 20 :] == partial[20:]


def test_an_icmp_error_with_a_partial_checksum_is_dropped_and_counted() -> None:
    for client, vip, server in ((C4, V4, S4), (C6, V6, S6)):
        laboratory = build(TUN, vip, server)
        laboratory.send("client", packets.udp(client, 1, vip, 80))
        error = packets.icmp(
            client, vip, 1 if ":" in vip else 3, 3, packets.udp(vip, 80, client, 1)
        )
        assert laboratory.send("client", error, packets.vnet_header(partial=True)) == []
        assert laboratory.drops() == {Reason.BAD_SEGMENTATION: 1}


def test_a_super_frame_that_contradicts_itself_is_dropped_and_counted() -> None:
    laboratory = build(TUN, protocol=Protocol.TCP)
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, SYN))
    packet, _ = super_frame(V4, C4, 1400)
    header = packets.vnet_header(partial=True, gso_type=vnet.GSO_UDP_L4, gso_size=1400)
    assert laboratory.send("client", packet, header) == []
    assert laboratory.drops() == {Reason.BAD_SEGMENTATION: 1}


def test_frames_wait_for_a_server_that_is_not_resolved_yet() -> None:
    laboratory = build(DR, server="10.1.9.9")
    assert laboratory.send("client", packets.udp(C4, 1, V4, 80, b"first")) == []
    address = parse_address("10.1.9.9")
    assert (SERVER, address) in laboratory.director.network.wanted
    peer = bytes.fromhex("020000000099")
    (left,) = Laboratory.left(laboratory.director.learn(NeighbourChange(SERVER, address, peer)))
    assert left.dmac == peer.hex(":")
    assert left.packet.endswith(b"first")
    assert faults(left.packet) == []


def test_a_frame_leaves_with_the_macs_of_its_way() -> None:
    laboratory = build(DR)
    size = laboratory.put("client", packets.udp(C4, 1, V4, 80))
    ((link, data),) = laboratory.director.process(laboratory.frame, size, laboratory.now)
    assert link == SERVER
    assert bytes(data[10:24]) == bytes.fromhex("02050400000b") + MACS[SERVER] + b"\x08\x00"


def test_a_server_that_moves_to_another_link_is_found_there() -> None:
    laboratory = build(DR)
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    via = parse_address("10.0.0.254")
    laboratory.director.learn(RouteChange(parse_address(S4), 32, 1, via, b"", 0, present=True))
    (left,) = laboratory.send("client", packets.udp(C4, 1, V4, 80))
    assert left.side == "client"


@pytest.mark.parametrize("method", [DR, TUN], ids=["dr", "tun"])
@pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, "10.1.0.1"), (C6, V6, "fd00:5::1")])
def test_a_server_at_this_host_gets_the_packet_as_it_is(
    method: ForwardMethod, client: str, vip: str, server: str
) -> None:
    laboratory = build(method, vip, server)
    for value in (64, 1):
        packet = packets.udp(client, 1, vip, 80, b"x", ttl=value)
        (left,) = laboratory.send("client", packet)
        assert (left.side, left.packet) == ("host", packet)
    assert laboratory.drops() == {}


@pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, "10.1.0.1"), (C6, V6, "fd00:5::1")])
def test_a_nat_server_at_this_host_gets_the_packet_translated(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(NAT, vip, server, port=8080)
    for value in (64, 1):
        packet = packets.udp(client, 1, vip, 80, b"x", ttl=value)
        (left,) = laboratory.send("client", packet)
        assert left.side == "host"
        assert left.packet == packets.udp(client, 1, server, 8080, b"x", ttl=value)
    assert laboratory.drops() == {}


@pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, "127.0.0.1"), (C6, V6, "::1")])
def test_a_nat_server_at_the_loopback_address_gets_nothing_from_outside(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(NAT, vip, server)
    laboratory.director.learn(AddressChange(3, parse_address(server), present=True))
    assert laboratory.send("client", packets.udp(client, 1, vip, 80)) == []
    assert laboratory.drops() == {Reason.SERVER_IS_LOCAL: 1}


def test_a_server_without_route_is_told_to_the_client() -> None:
    laboratory = build(DR)
    laboratory.director.learn(
        RouteChange(parse_address(S4), 32, 0, b"", b"", 0, present=True, unreachable=True)
    )
    (left,) = laboratory.send("client", packets.udp(C4, 1, V4, 80))
    assert left.packet[20:22] == b"\x03\x01"
    assert laboratory.drops() == {Reason.NO_ROUTE: 1}


def test_a_link_that_is_down_is_no_way() -> None:
    laboratory = build(DR)
    laboratory.director.learn(LinkChange(SERVER, "server", MACS[SERVER], 1500, up=False))
    (left,) = laboratory.send("client", packets.udp(C4, 1, V4, 80))
    # The default route still leads to the client's side.
    assert left.side == "client"


# ICMP


def related(
    laboratory: Laboratory, side: str, client: str, vip: str, server: str, ttl: int = 64
) -> list[Left]:
    ipv6 = ":" in vip
    if side == "client":
        quote, ends = packets.udp(vip, 80, client, 1), (client, vip)
    else:
        quote, ends = packets.udp(client, 1, server, 80), (server, client)
    packet = packets.icmp(*ends, 1 if ipv6 else 3, 4 if ipv6 else 3, quote, ttl=ttl)
    return laboratory.send(side, packet)


@FAMILIES
def test_an_icmp_error_is_carried_on_with_one_hop_less(client: str, vip: str, server: str) -> None:
    laboratory = build(NAT, vip, server)
    laboratory.send("client", packets.udp(client, 1, vip, 80))
    for side, other, ends in (
        ("client", "server", (client, server)),
        ("server", "client", (vip, client)),
    ):
        (left,) = related(laboratory, side, client, vip, server)
        read = dissect(left.packet)
        assert (left.side, (read.src, read.dst), ttl(left.packet)) == (other, ends, 63)
        assert faults(left.packet) == []
        assert related(laboratory, side, client, vip, server, ttl=1) == []
    assert laboratory.drops() == {Reason.TTL_EXCEEDED: 2}


@FAMILIES
@pytest.mark.parametrize("method", [DR, TUN], ids=["dr", "tun"])
def test_an_icmp_error_goes_the_way_of_its_connection(
    method: ForwardMethod, client: str, vip: str, server: str
) -> None:
    laboratory = build(method, vip, server)
    laboratory.send("client", packets.udp(client, 1, vip, 80))
    (left,) = related(laboratory, "client", client, vip, server)
    assert left.side == "server"
    inner = left.packet[(40 if ":" in vip else 20) * (method is TUN) :]
    read = dissect(inner)
    assert faults(inner) == []
    assert (read.src, read.dst, ttl(inner)) == (client, vip, 63)


def test_an_icmpv6_error_too_large_for_a_tunnel_leaves_in_fragments() -> None:
    laboratory = build(TUN, V6, S6)
    laboratory.send("client", packets.udp(C6, 1, V6, 80))
    quote = packets.udp(V6, 80, C6, 1, bytes(1500 - 48 - 48))
    left = laboratory.send("client", packets.icmp(C6, V6, 1, 4, quote))
    assert joined(left) == packets.icmp(C6, V6, 1, 4, quote, ttl=63)
    assert laboratory.drops() == {}


def test_an_icmp_error_causes_no_icmp_error() -> None:
    laboratory = build(NAT)
    laboratory.send("client", packets.udp(C4, 1, V4, 80))
    laboratory.director.learn(
        RouteChange(parse_address(S4), 32, 0, b"", b"", 0, present=True, unreachable=True)
    )
    assert related(laboratory, "client", C4, V4, S4) == []
    assert laboratory.drops() == {Reason.NO_ROUTE: 1}


@pytest.mark.parametrize("sender", ["224.0.0.9", "127.0.0.1", "255.255.255.255"])
def test_what_is_no_single_host_is_told_nothing(sender: str) -> None:
    laboratory = build(NAT)
    assert laboratory.send("client", packets.udp(sender, 1, V4, 80, ttl=1)) == []
    assert laboratory.drops() == {Reason.TTL_EXCEEDED: 1}


def test_answers_are_limited_to_a_burst_and_a_rate() -> None:
    laboratory = build(NAT, answers_per_second=10)

    def answers(count: int) -> int:
        packet = packets.udp(C4, 1, V4, 80, ttl=1)
        return sum(len(laboratory.send("client", packet)) for _ in range(count))

    assert answers(ANSWERS_BURST + 20) == ANSWERS_BURST
    laboratory.sleep(1)
    assert answers(30) == 10
    laboratory.sleep(1000)
    assert answers(ANSWERS_BURST + 20) == ANSWERS_BURST
