"""How frames become packets for the device and back; the device itself is in tests/netns."""

import os

import pytest

from lvsha.datapath.flow import Frame
from lvsha.datapath.host_link import HostLink
from lvsha.wire import vnet
from lvsha.wire.vnet import VnetHeader
from tests import packets

C4, V4, C6, V6 = "198.51.100.7", "192.0.2.1", "2001:db8::7", "2001:db8::1"
PARTIAL = VnetHeader(flags=vnet.NEEDS_CHECKSUM, checksum_start=34, checksum_offset=16)
SUPER = VnetHeader(vnet.NEEDS_CHECKSUM, vnet.GSO_TCPV4, 54, 1448, 34, 16)
HEADERS = {
    "plain": (VnetHeader(), VnetHeader()),
    "valid": (VnetHeader(flags=2), VnetHeader(flags=2)),
    "partial": (PARTIAL, VnetHeader(1, 0, 0, 0, 20, 16)),
    "super-frame": (SUPER, VnetHeader(1, vnet.GSO_TCPV4, 40, 1448, 20, 16)),
}


@pytest.fixture
def link() -> tuple[HostLink, int]:
    """A link whose device is a pipe back to itself."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    made = HostLink()
    made._file = write
    return made, read


@pytest.mark.parametrize(("framed", "bare"), HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize(("here", "there"), [(C4, V4), (C6, V6)], ids=["ipv4", "ipv6"])
def test_a_frame_is_written_without_its_ethernet_header_and_read_with_one(
    link: tuple[HostLink, int], framed: VnetHeader, bare: VnetHeader, here: str, there: str
) -> None:
    made, read = link
    packet = packets.tcp(here, 5000, there, 80)
    data = vnet.emit(framed) + packets.ethernet(packet)
    made.send(memoryview(data))
    written = os.read(read, 70_000)
    assert written == vnet.emit(bare) + packet
    made.send(data)
    os.close(made.fileno())
    made._file = read
    frame = Frame()
    frame.buffer[:] = b"\xa5" * len(frame.buffer)
    received = made.receive_into(frame)
    assert received == len(data)
    assert frame.read(received) is None
    assert frame.vnet_header == framed
    assert frame.packet() == packet
    assert frame.buffer[10:22] == bytes(12)
    made.close()
    assert not made.is_open
    made.close()
