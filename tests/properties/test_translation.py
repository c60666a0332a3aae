"""Network address translation: there and back is the identity, and receivers are content."""

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.sctp import SCTP, SCTPChunkData

from lvsha.datapath.flow import L3, Frame
from lvsha.datapath.rewrite import Translation, count_down
from lvsha.model import Protocol, format_address
from tests import packets
from tests.reader import dissect, faults

ports = st.integers(0, 65535)
families = st.sampled_from([4, 16])
payloads = st.one_of(
    st.binary(max_size=50), st.sampled_from([b"", b"\x00", b"\xff" * 99, bytes(1400)])
)


def _addresses(draw: st.DataObject, size: int) -> str:
    return format_address(draw.draw(st.binary(min_size=size, max_size=size)))


def _packet(draw: st.DataObject, size: int, *, tcp: bool) -> bytes:
    ends = (_addresses(draw, size), draw.draw(ports), _addresses(draw, size), draw.draw(ports))
    payload, ttl = draw.draw(payloads), draw.draw(st.integers(3, 255))
    if tcp:
        return packets.tcp(*ends, draw.draw(st.integers(0, 255)), payload, ttl=ttl)
    return packets.udp(*ends, payload, ttl=ttl, checksum=draw.draw(st.booleans()))


def _load(packet: bytes, vnet: bytes = packets.NO_VNET) -> Frame:
    frame = Frame()
    frame.load(packets.ethernet(packet), vnet)
    assert frame.protocol in {packets.TCP, packets.UDP}
    return frame


def _ends(frame: Frame, packet: bytes) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
    l4 = frame.l4 - L3
    return (
        (frame.source, int.from_bytes(packet[l4 : l4 + 2])),
        (frame.destination, int.from_bytes(packet[l4 + 2 : l4 + 4])),
    )


def _plus_ttl(packet: bytes, steps: int) -> bytes:
    """A packet whose time to live was counted down, with that undone."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] + steps,)) + packet[8:]
    header = bytearray(packet[:20])
    header[8] += steps
    header[10:12] = bytes(2)
    header[10:12] = packets.internet_checksum(bytes(header)).to_bytes(2)
    return bytes(header) + packet[20:]


@given(families, st.booleans(), st.booleans(), st.data())
def test_translation_makes_right_packets_and_is_undone_by_its_inverse(
    size: int, tcp: bool, source: bool, draw: st.DataObject
) -> None:
    packet = _packet(draw, size, tcp=tcp)
    frame = _load(packet)
    old = _ends(frame, packet)[0 if source else 1]
    new = (draw.draw(st.binary(min_size=size, max_size=size)), draw.draw(ports))
    Translation(old, new, source=source).apply(frame)
    changed = frame.packet()
    assert faults(changed) == []
    read = dissect(changed)
    assert read.payload.chksum != 0 or tcp
    assert (read.src if source else read.dst) == format_address(new[0])
    assert (read.payload.sport if source else read.payload.dport) == new[1]
    Translation(new, old, source=source).apply(frame)
    restored = _plus_ttl(frame.packet(), 2)
    l4 = 20 if size == 4 else 40
    if not tcp and packet[l4 + 6 : l4 + 8] == bytes(2):
        # A datagram without checksum got one, as in the kernel.
        assert faults(frame.packet()) == []
        restored = restored[: l4 + 6] + bytes(2) + restored[l4 + 8 :]
    assert restored == packet


@given(families, st.booleans(), st.booleans(), st.data())
def test_translation_of_sctp_makes_right_packets_and_is_undone_by_its_inverse(
    size: int, source: bool, partial: bool, draw: st.DataObject
) -> None:
    chunk = SCTPChunkData(data=draw.draw(payloads))
    segment = bytes(SCTP(sport=draw.draw(ports), dport=draw.draw(ports), tag=7) / chunk)
    whole = packets.ip(
        _addresses(draw, size), _addresses(draw, size), Protocol.SCTP, segment, ttl=9
    )
    l4 = 20 if size == 4 else 40
    frame = Frame()
    begun = whole[: l4 + 8] + bytes(4) + whole[l4 + 12 :] if partial else whole
    frame.load(packets.ethernet(begun), packets.vnet_header(partial=partial))
    frame.protocol, frame.l4 = int(Protocol.SCTP), L3 + l4
    old = _ends(frame, whole)[0 if source else 1]
    new = (draw.draw(st.binary(min_size=size, max_size=size)), draw.draw(ports))
    Translation(old, new, source=source).apply(frame)
    changed = frame.packet()
    assert faults(changed) == []
    read = dissect(changed)
    assert (read.src if source else read.dst) == format_address(new[0])
    assert (read[SCTP].sport if source else read[SCTP].dport) == new[1]
    read[SCTP].delfieldval("chksum")
    assert bytes(read[SCTP]) == changed[l4:]
    assert frame.buffer[0] == 0
    Translation(new, old, source=source).apply(frame)
    assert _plus_ttl(frame.packet(), 2) == whole


@given(
    families, st.booleans(), st.sampled_from([Protocol.AH, Protocol.ESP]), st.binary(), st.data()
)
def test_translation_without_ports_touches_nothing_behind_the_header(
    size: int, source: bool, protocol: Protocol, body: bytes, draw: st.DataObject
) -> None:
    packet = packets.ip(_addresses(draw, size), _addresses(draw, size), protocol, body, ttl=9)
    frame = Frame()
    frame.load(packets.ethernet(packet))
    frame.protocol, frame.l4 = int(protocol), L3 + (20 if size == 4 else 40)
    old = (frame.source if source else frame.destination, draw.draw(ports))
    new = (draw.draw(st.binary(min_size=size, max_size=size)), draw.draw(ports))
    Translation(old, new, source=source).apply(frame)
    assert (frame.source if source else frame.destination) == new[0]
    assert frame.packet().endswith(body)
    assert size == 16 or packets.internet_checksum(frame.packet()[:20]) == 0
    Translation(new, old, source=source).apply(frame)
    assert _plus_ttl(frame.packet(), 2) == packet


@given(families, st.booleans(), st.data())
def test_a_partial_checksum_becomes_that_of_the_new_address(
    size: int, tcp: bool, draw: st.DataObject
) -> None:
    packet = _packet(draw, size, tcp=tcp)
    l4, protocol = (20 if size == 4 else 40), packets.TCP if tcp else packets.UDP
    partial = packets.with_partial_checksum(packet, l4, protocol)
    frame = _load(partial, packets.vnet_header(partial=True, l4=14 + l4, protocol=protocol))
    old = _ends(frame, partial)[1]
    new = (draw.draw(st.binary(min_size=size, max_size=size)), draw.draw(ports))
    Translation(old, new, source=False).apply(frame)
    changed = frame.packet()
    assert changed == packets.with_partial_checksum(changed, l4, protocol)


@given(families, st.booleans(), st.data())
def test_counting_down_changes_only_the_time_to_live(
    size: int, tcp: bool, draw: st.DataObject
) -> None:
    packet = _packet(draw, size, tcp=tcp)
    frame = _load(packet)
    count_down(frame)
    assert _plus_ttl(frame.packet(), 1) == packet
    assert frame.family == 6 or faults(frame.packet()[:20] + packet[20:]) == faults(packet)
