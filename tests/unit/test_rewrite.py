import pytest
from scapy.layers.sctp import SCTP, SCTPChunkData

from lvsha.datapath.flow import L3, Frame
from lvsha.datapath.rewrite import Translation, complete_sctp, count_down, count_up
from lvsha.model import Protocol
from tests import packets
from tests.reader import dissect, faults

C4, V4, S4 = "198.51.100.7", "192.0.2.1", "10.1.0.2"
C6, V6, S6 = "2001:db8::7", "2001:db8:f::1", "fd00::2"
FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])


def frame(packet: bytes, vnet: bytes = packets.NO_VNET) -> Frame:
    made = Frame()
    made.load(packets.ethernet(packet), vnet)
    return made


@FAMILIES
def test_a_request_goes_to_the_server_and_its_reply_comes_from_the_service(
    client: str, vip: str, server: str
) -> None:
    virtual, own = (packets.address(vip), 80), (packets.address(server), 8080)
    request = frame(packets.tcp(client, 40000, vip, 80, payload=b"GET", ttl=64))
    Translation(virtual, own, source=False).apply(request)
    read = dissect(request.packet())
    assert faults(request.packet()) == []
    assert (read.src, read.dst, read.payload.dport) == (client, server, 8080)
    reply = frame(packets.tcp(server, 8080, client, 40000, payload=b"200 OK"))
    Translation(own, virtual, source=True).apply(reply)
    read = dissect(reply.packet())
    assert faults(reply.packet()) == []
    assert (read.src, read.payload.sport, read.dst) == (vip, 80, client)
    assert (read.ttl if ":" not in vip else read.hlim) == 63


@FAMILIES
def test_a_wrong_checksum_stays_as_wrong_as_it_was(client: str, vip: str, server: str) -> None:
    packet = bytearray(packets.udp(client, 1, vip, 53, b"data"))
    packet[-1] ^= 0xFF
    made = frame(bytes(packet))
    Translation((packets.address(vip), 53), (packets.address(server), 53), source=False).apply(made)
    found = faults(made.packet())
    assert [fault.split()[0] for fault in found] == ["UDP.chksum"]


def test_a_datagram_without_checksum_gets_one() -> None:
    made = frame(packets.udp(C4, 1, V4, 53, b"odd", checksum=False) + bytes(15))
    Translation((packets.address(V4), 53), (packets.address(S4), 5353), source=False).apply(made)
    assert dissect(made.packet()).payload.chksum != 0
    assert faults(made.packet()) == []


def test_a_datagram_whose_checksum_comes_out_as_zero_says_all_ones() -> None:
    # Data that equals the checksum without it makes the sum all ones, the checksum zero.
    data = packets.udp(C4, 1, S4, 53, bytes(2))[26:28]
    made = frame(packets.udp(C4, 1, V4, 53, data))
    Translation((packets.address(V4), 53), (packets.address(S4), 53), source=False).apply(made)
    assert made.packet()[26:28] == b"\xff\xff"
    assert faults(made.packet()) == []


@FAMILIES
@pytest.mark.parametrize("protocol", [packets.TCP, packets.UDP])
def test_a_partial_checksum_stays_partial_and_right(
    client: str, vip: str, server: str, protocol: int
) -> None:
    make = packets.tcp if protocol == packets.TCP else packets.udp
    l4 = 40 if ":" in vip else 20
    packet = packets.with_partial_checksum(
        make(client, 40000, vip, 80, payload=b"x" * 5000), l4, protocol
    )
    made = frame(packet, packets.vnet_header(partial=True, protocol=protocol, l4=14 + l4))
    Translation((packets.address(vip), 80), (packets.address(server), 8080), source=False).apply(
        made
    )
    changed = made.packet()
    assert changed == packets.with_partial_checksum(changed, l4, protocol)
    assert dissect(changed).dst == server


def sctp(client: str, vip: str, data: bytes = b"data") -> bytes:
    """A packet with one chunk, its checksum made by scapy."""
    segment = bytes(SCTP(sport=6000, dport=5000, tag=7) / SCTPChunkData(data=data))
    return packets.ip(client, vip, Protocol.SCTP, segment)


def read_as(packet: bytes, protocol: int, vnet: bytes = packets.NO_VNET) -> Frame:
    """A frame as the reader has it that finds this protocol."""
    made = frame(packet, vnet)
    made.protocol = protocol
    made.l4 = L3 + (40 if packet[0] >> 4 == 6 else 20)
    return made


def right_crc(packet: bytes) -> bytes:
    """The checksum that scapy writes into an SCTP packet."""
    segment = dissect(packet)[SCTP]
    segment.delfieldval("chksum")
    return bytes(segment)[8:12]


def crc(packet: bytes) -> bytes:
    l4 = 40 if packet[0] >> 4 == 6 else 20
    return packet[l4 + 8 : l4 + 12]


@FAMILIES
def test_an_sctp_packet_with_another_port_gets_another_checksum(
    client: str, vip: str, server: str
) -> None:
    virtual, own = (packets.address(vip), 5000), (packets.address(server), 5001)
    made = read_as(sctp(client, vip), Protocol.SCTP)
    Translation(virtual, own, source=False).apply(made)
    changed = made.packet()
    assert (dissect(changed).dst, dissect(changed)[SCTP].dport) == (server, 5001)
    assert crc(changed) == right_crc(changed) != crc(sctp(client, vip))
    assert faults(changed) == []


@FAMILIES
def test_an_sctp_packet_with_the_same_port_keeps_its_checksum_even_a_wrong_one(
    client: str, vip: str, server: str
) -> None:
    same_port = Translation(
        (packets.address(vip), 5000), (packets.address(server), 5000), source=False
    )
    packet = bytearray(sctp(client, vip))
    packet[-1] ^= 0xFF
    made = read_as(bytes(packet), Protocol.SCTP)
    same_port.apply(made)
    assert crc(made.packet()) == crc(bytes(packet)) != right_crc(made.packet())


@FAMILIES
@pytest.mark.parametrize("port", [5000, 5001])
def test_a_partial_sctp_checksum_is_completed_before_the_kernel_can_spoil_it(
    client: str, vip: str, server: str, port: int
) -> None:
    packet = bytearray(sctp(client, vip))
    l4 = 40 if ":" in vip else 20
    packet[l4 + 8 : l4 + 12] = bytes(4)
    header = packets.vnet_header(partial=True, l4=14 + l4)
    made = read_as(bytes(packet) + bytes(6), Protocol.SCTP, header)
    Translation((packets.address(vip), 5000), (packets.address(server), port), source=False).apply(
        made
    )
    changed = made.packet()
    assert crc(changed) == right_crc(changed)
    assert dissect(changed)[SCTP].dport == port
    assert made.buffer[0] == 0


def test_a_partial_sctp_checksum_can_be_completed_without_translation() -> None:
    packet = sctp(C4, V4)
    made = read_as(
        packet[:28] + bytes(4) + packet[32:], Protocol.SCTP, packets.vnet_header(partial=True)
    )
    complete_sctp(made)
    assert made.packet() == packet
    assert made.buffer[0] == 0


@FAMILIES
@pytest.mark.parametrize("protocol", [Protocol.AH, Protocol.ESP])
@pytest.mark.parametrize("source", [True, False])
def test_of_ah_and_esp_only_the_address_changes(
    client: str, vip: str, server: str, protocol: int, source: bool
) -> None:
    body = bytes(range(40))
    packet = packets.ip(client, vip, protocol, body)
    made = read_as(packet, protocol)
    old = packets.address(client if source else vip)
    # The ports are those of the key exchange that the packet follows.
    Translation((old, 500), (packets.address(server), 4500), source=source).apply(made)
    changed = made.packet()
    assert changed.endswith(body)
    read = dissect(changed)
    assert (read.src, read.dst) == ((server, vip) if source else (client, server))
    assert (read.ttl if ":" not in vip else read.hlim) == 63
    assert ":" in vip or packets.internet_checksum(changed[:20]) == 0


@pytest.mark.parametrize(
    "packet", [packets.udp(C4, 1, V4, 2, ttl=2), packets.udp(C6, 1, V6, 2, ttl=2)]
)
def test_counting_down_keeps_the_header_right(packet: bytes) -> None:
    made = frame(packet)
    count_down(made)
    assert faults(made.packet()) == []
    read = dissect(made.packet())
    assert (read.ttl if read.version == 4 else read.hlim) == 1


@pytest.mark.parametrize(("client", "vip"), [(C4, V4), (C6, V6)])
@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("port", range(0, 60_000, 7_000))
def test_counting_up_gives_back_what_counting_down_took(
    client: str, vip: str, ttl: int, port: int
) -> None:
    made = frame(packets.udp(client, port, vip, 2, bytes(port % 1000), ttl=ttl))
    before = made.packet()
    count_down(made)
    count_up(made)
    assert made.packet() == before
