"""The bare packet loop: receive a frame, write other MAC addresses, send it.

This is the least that any packet forwarder in Python does, and so what a director is
measured against. It uses the standard library only, and nothing of lvsha, so that a
mistake there cannot slow both down alike. It looks at no address, counts nothing and
answers nothing; neighbours never change for it.

Its sockets are those of a director: bound to all protocols, with virtio headers, large
buffers, without their own outgoing frames, and with a filter that lets TCP and UDP pass.
They are waited for with poll and drained in turns; for one direction alone that is as fast
as two blocking calls.

Run as ``python -m bench.yardstick WAY [WAY]``; a way is ``FROM:TO:HEADER`` with the names of
two interfaces and the 12 bytes, in hexadecimal, that go before the EtherType.
"""

import contextlib
import ctypes
import select
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_IGNORE_OUTGOING: Final = 23
SO_ATTACH_FILTER: Final = 26
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
ETH_P_ALL: Final = 0x0003

BUFFER_BYTES: Final = 16 * 1024 * 1024
FRAME_BYTES_MAX: Final = 10 + 14 + 65_536
BATCH_FRAMES: Final = 64
MACS: Final = slice(10, 22)
"""Behind the virtio header."""

FILTER: Final = (
    (0x20, 0, 0, 0xFFFF_F004),  # packet type
    (0x15, 0, 8, 0),  # for this host
    (0x28, 0, 0, 12),  # EtherType
    (0x15, 0, 2, 0x0800),
    (0x30, 0, 0, 23),  # the protocol of IPv4
    (0x05, 0, 0, 2),
    (0x15, 0, 3, 0x86DD),
    (0x30, 0, 0, 20),  # the next header of IPv6
    (0x15, 2, 0, socket.IPPROTO_TCP),
    (0x15, 1, 0, socket.IPPROTO_UDP),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFF_FFFF),
)
"""Classic BPF: code, jump if true, jump if false, operand."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where frames come from, where they go, and with which addresses."""

    receiver: socket.socket
    sender: socket.socket
    header: bytes


def open_socket(interface: str) -> socket.socket:
    """A packet socket on an interface; bound last, so that the filter holds."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    for forced, option in (
        (SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        with contextlib.suppress(PermissionError):  # beyond the system's limit by right only
            opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
    program = b"".join(struct.pack("=HBBI", *step) for step in FILTER)
    buffer = ctypes.create_string_buffer(program)
    opened.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_FILTER,
        struct.pack("@HP", len(FILTER), ctypes.addressof(buffer)),
    )
    opened.bind((interface, ETH_P_ALL))
    return opened


def carry(ways: list[Way]) -> None:
    """Carry frames for ever; what cannot be sent is lost, as on any wire."""
    view = memoryview(bytearray(FRAME_BYTES_MAX))
    poll = select.poll()
    by_number = {way.receiver.fileno(): way for way in ways}
    for way in ways:
        poll.register(way.receiver, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            way = by_number[number]
            receive_into, send, header = way.receiver.recv_into, way.sender.send, way.header
            with contextlib.suppress(OSError):  # the socket is empty, or the other one full
                for _ in range(BATCH_FRAMES):
                    received = receive_into(view)
                    view[MACS] = header
                    send(view[:received])


def main() -> None:
    """Open the sockets, say so, and carry."""
    sockets: dict[str, socket.socket] = {}
    ways = []
    for text in sys.argv[1:]:
        come, go, header = text.split(":")
        for interface in (come, go):
            if interface not in sockets:
                sockets[interface] = open_socket(interface)
        ways.append(Way(sockets[come], sockets[go], bytes.fromhex(header)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry(ways)


if __name__ == "__main__":
    main()
