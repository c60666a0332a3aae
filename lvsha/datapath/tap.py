"""A packet socket on one interface, as the director needs it.

Facts (``packet(7)``, Linux ``af_packet.c``) and what follows from them:

* A socket for all protocols sees a frame before the nftables ingress hook; one for a single
  protocol sees it after, that is, not at all once `lvsha.datapath.interception` drops it for
  the host's stack. So it is bound to all protocols and a socket filter keeps out what
  cannot concern a director; the kernel then does not even wake the process for it.
* Without PACKET_VNET_HDR the kernel would cut super-frames and finish checksums before the
  socket sees them, or refuse what is too long on the way out.
* A VLAN tag stands in auxiliary data, not in the frame. Tagged frames belong to the VLAN
  interface, on which they arrive without tag; the filter refuses them here.
* A socket that is bound before its filter is attached would receive frames in between, so
  it is bound last.
"""

import contextlib
import ctypes
import socket
import struct
from collections.abc import Collection, Sequence
from typing import Final

from lvsha.model import Protocol

_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_PACKET_STATISTICS: Final = 6
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32
_ETH_P_ALL: Final = 0x0003

RECEIVE_BUFFER_BYTES: Final = 16 * 1024 * 1024
"""Some hundred super-frames or ten thousand small ones: a few ms of a busy link."""

FORGET_MAX: Final = 100_000
"""More small frames than the buffer holds, so that throwing away ends on a busy link."""

FILTER_ADDRESSES_MAX: Final = 800
"""Above this the filter passes all addresses. The kernel of Debian 12 allows a filter
20,480 bytes (``net.core.optmem_max``), of which a comparison takes up to 16 once the kernel
has translated it: 1,000 fit, 1,200 do not."""
_CHUNK: Final = 200
"""Comparisons that share one way out; a conditional jump reaches 255 steps."""

# Classic BPF, linux/bpf_common.h.
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_LOAD_BYTE_INDEXED: Final = 0x50
_LOAD_X_HEADER_LENGTH: Final = 0xB1
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_EQUAL: Final = 0x35
_RETURN: Final = 0x06
_ANCILLARY: Final = 0xFFFF_F000
_PACKET_TYPE: Final = _ANCILLARY + 4
_VLAN_TAG_PRESENT: Final = _ANCILLARY + 48
_PACKET_HOST: Final = 0
_ALL_BYTES: Final = 0xFFFF_FFFF

Instruction = tuple[int, int, int, int]
"""Code, steps to jump if true, steps to jump if false, operand."""


def socket_filter(
    addresses: tuple[Collection[bytes], Collection[bytes]] | None,
    macs: Collection[bytes] = (),
) -> list[Instruction]:
    """A filter that passes what may concern a director.

    That is TCP, UDP, SCTP, AH and ESP, whole or in fragments, to some addresses or from
    some, and ICMP errors. Of IPv6 addresses only the last word is compared; the director
    looks closer.

    Args:
        addresses: those of virtual services, to which packets go; and those of real servers,
            and of services whose replies pass elsewhere, from which they come. None for all.
        macs: addresses whose frames are taken beside those to the interface's own.
    """
    if addresses is None or sum(map(len, addresses)) > FILTER_ADDRESSES_MAX:
        parts6 = parts4 = [_accept()]
    else:
        parts6, parts4 = _addresses_part(16, 22, *addresses), _addresses_part(4, 26, *addresses)
    ipv6, ipv4 = _ipv6_part(parts6), _ipv4_part(parts4)
    start: list[Instruction] = [
        *_for_us(macs),
        (_LOAD_WORD, 0, 0, _VLAN_TAG_PRESENT),
        (_JUMP_EQUAL, 1, 0, 0),
        _reject(),
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 3, 0, 0x0800),
        (_JUMP_EQUAL, 1, 0, 0x86DD),
        _reject(),
        (_JUMP, 0, 0, len(ipv4)),
    ]
    return start + ipv4 + ipv6


def _for_us(macs: Collection[bytes]) -> list[Instruction]:
    """Go on behind it if the frame was sent to the interface or to one of some addresses."""
    others = [
        step
        for position, mac in enumerate(sorted(macs, reverse=True))
        for step in (
            (_LOAD_WORD, 0, 0, 2),
            (_JUMP_EQUAL, 0, 3, int.from_bytes(mac[2:])),
            (_LOAD_HALF, 0, 0, 0),
            (_JUMP_EQUAL, 0, 1, int.from_bytes(mac[:2])),
            (_JUMP, 0, 0, 5 * (len(macs) - 1 - position) + 1),
        )
    ]
    return [
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_JUMP_EQUAL, 0, 1, _PACKET_HOST),
        (_JUMP, 0, 0, len(others) + 1),
        *others,
        _reject(),
    ]


def _accept() -> Instruction:
    return (_RETURN, 0, 0, _ALL_BYTES)


def _reject() -> Instruction:
    return (_RETURN, 0, 0, 0)


def _one_of(offset: int, words: Sequence[int]) -> list[Instruction]:
    steps: list[Instruction] = [(_LOAD_WORD, 0, 0, offset)]
    for first in range(0, len(words), _CHUNK):
        chunk = words[first : first + _CHUNK]
        steps += [
            (_JUMP_EQUAL, len(chunk) - position, 0, word) for position, word in enumerate(chunk)
        ]
        steps += [(_JUMP, 0, 0, 1), _accept()]
    return steps


def _last_words(addresses: Collection[bytes], size: int) -> list[int]:
    return sorted({int.from_bytes(a[-4:]) for a in addresses if len(a) == size})


def _addresses_part(
    size: int, source_at: int, virtual: Collection[bytes], servers: Collection[bytes]
) -> list[Instruction]:
    """Accept by the last word of destination or source; then reject."""
    last_of_source = source_at + size - 4
    return [
        *_one_of(last_of_source + size, _last_words(virtual, size)),
        *_one_of(last_of_source, _last_words(servers, size)),
        _reject(),
    ]


def _ipv4_part(addresses: Sequence[Instruction]) -> list[Instruction]:
    protocols = (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ESP, Protocol.AH)
    icmp = [
        (_LOAD_X_HEADER_LENGTH, 0, 0, 14),
        (_LOAD_BYTE_INDEXED, 0, 0, 14),
        (_JUMP_EQUAL, 2, 0, 3),
        (_JUMP_EQUAL, 1, 0, 4),
        (_JUMP_EQUAL, 0, 1, 11),
        _accept(),
    ]
    return [
        (_LOAD_BYTE, 0, 0, 23),
        *(
            (_JUMP_EQUAL, len(protocols) - position + 1 + len(icmp), 0, protocol)
            for position, protocol in enumerate(protocols)
        ),
        (_JUMP_EQUAL, 1, 0, Protocol.ICMP),
        _reject(),
        *icmp,
        # An ICMP message of another type falls through, and so does a later fragment of one;
        # their addresses decide nothing wrong, because the director looks at them again.
        *addresses,
    ]


def _ipv6_part(addresses: Sequence[Instruction]) -> list[Instruction]:
    return [
        (_LOAD_BYTE, 0, 0, 20),
        (_JUMP_EQUAL, 0, 4, Protocol.ICMPV6),
        (_LOAD_BYTE, 0, 0, 54),
        (_JUMP_GREATER_EQUAL, 1, 0, 128),
        _accept(),
        _reject(),
        # Whatever the next header is, an extension too: the addresses decide.
        *addresses,
    ]


class Tap:
    """A non-blocking packet socket.

    Args:
        interface: its name.
        instructions: the filter; None makes a socket that only sends.

    Attributes:
        socket: to wait for.
        receive_into, send: its methods of these names; a frame costs less without a look-up.

    Raises:
        OSError: the interface is gone, or the right to open packet sockets is missing.
    """

    def __init__(self, interface: str, instructions: Sequence[Instruction] | None = None) -> None:
        self.interface = interface
        self.socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        try:
            self.socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            _enlarge(self.socket)
            if instructions is None:
                self.socket.bind((interface, 0))
            else:
                self.socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
                attach_filter(self.socket, instructions)
                self.socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self.socket.close()
            raise
        self.receive_into = self.socket.recv_into
        self.send = self.socket.send

    def attach(self, instructions: Sequence[Instruction]) -> None:
        """Put another filter in the place of this one.

        Raises:
            OSError: the kernel refuses.
        """
        attach_filter(self.socket, instructions)

    def lost(self) -> int:
        """Frames that the kernel could not queue since the last call."""
        data = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        lost: int = struct.unpack("=II", data)[1]
        return lost

    def forget_waiting(self) -> int:
        """Throw away the frames that wait now; returns how many."""
        forgotten = 0
        scrap = bytearray(64)  # the kernel insists on room for the virtio header
        with contextlib.suppress(BlockingIOError):
            while forgotten < FORGET_MAX:
                self.socket.recv_into(scrap)
                forgotten += 1
        return forgotten

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def _enlarge(packet_socket: socket.socket) -> None:
    """Larger buffers; beyond the system's limit where we have the right to."""
    for force, option in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        with contextlib.suppress(PermissionError):
            packet_socket.setsockopt(socket.SOL_SOCKET, force, RECEIVE_BUFFER_BYTES)
            continue
        packet_socket.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)


def attach_filter(packet_socket: socket.socket, instructions: Sequence[Instruction]) -> None:
    """Let a packet socket receive only what a classic BPF program accepts."""
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    # The kernel copies the program during the call, so the buffer need not outlive it.
    buffer = ctypes.create_string_buffer(program)
    descriptor = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    packet_socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
