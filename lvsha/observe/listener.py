"""Listen on a link for what an `Observation` wants, and send nothing.

One packet socket takes VRRP and datagrams to the sync groups, also what this machine itself
sends; it is not in promiscuous mode. Sockets that are never read join the groups, so that the
link's switches deliver them here. That announces a membership, and is all that is sent.
"""

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

import trio

from lvsha.datapath.tap import Instruction, attach_filter
from lvsha.errors import HostError
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.observe.observation import Observation
from lvsha.wire.vrrp import GROUP_IPv4, GROUP_IPv6

BATCH_PACKETS: Final = 64
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
REPORT_INTERVAL: Final = 1.0
_PACKET_BYTES_MAX: Final = 65_535
_ETH_P_ALL: Final = 0x0003
_SO_RCVBUFFORCE: Final = 33

# Classic BPF (linux/bpf_common.h); for a cooked packet socket offsets count from the IP header.
_LOAD_WORD: Final = 0x20
_LOAD_BYTE: Final = 0x30
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_PROTOCOL: Final = 0xFFFF_F000  # SKF_AD_OFF + SKF_AD_PROTOCOL
_ALL_BYTES: Final = 0xFFFF_FFFF


def packet_filter(groups: Collection[bytes]) -> list[Instruction]:
    """A filter that passes VRRP, and UDP to groups; of IPv6 ones only the last word counts."""
    part4 = _part(9, 16, [group for group in groups if len(group) == IPv4_BYTES])
    part6 = _part(6, 36, [group for group in groups if len(group) != IPv4_BYTES])
    return [
        (_LOAD_WORD, 0, 0, _PROTOCOL),
        (_JUMP_EQUAL, 2, 0, 0x0800),
        (_JUMP_EQUAL, 1 + len(part4), 0, 0x86DD),
        (_RETURN, 0, 0, 0),
        *part4,
        *part6,
    ]


def _part(protocol_at: int, destination_at: int, groups: Collection[bytes]) -> list[Instruction]:
    words = [int.from_bytes(group[-4:]) for group in groups]
    # The last two steps are: reject, accept.
    return [
        (_LOAD_BYTE, 0, 0, protocol_at),
        (_JUMP_EQUAL, len(words) + 3, 0, Protocol.VRRP),
        (_JUMP_EQUAL, 0, len(words) + 1, Protocol.UDP),
        (_LOAD_WORD, 0, 0, destination_at),
        *((_JUMP_EQUAL, len(words) - number, 0, word) for number, word in enumerate(words)),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, _ALL_BYTES),
    ]


async def listen(
    interface: str,
    groups: Collection[bytes],
    observation: Observation,
    report: Callable[[float], None],
    seconds: float | None = None,
) -> None:
    """Listen until cancelled, or for so many seconds.

    Args:
        interface: its name.
        groups: the sync groups.
        observation: what takes note of the packets.
        report: called each second with the clock.
        seconds: None for ever.

    Raises:
        HostError: the interface cannot be listened on.
    """
    deadline = float("inf") if seconds is None else trio.current_time() + seconds
    with _opened(interface, groups) as packets, trio.move_on_at(deadline):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report, report)
            while True:
                await trio.lowlevel.wait_readable(packets)
                _read(packets, observation)


async def _report(report: Callable[[float], None]) -> None:
    while True:
        await trio.sleep(REPORT_INTERVAL)
        report(trio.current_time())


def _read(packets: socket.socket, observation: Observation) -> None:
    now = trio.current_time()
    for _ in range(BATCH_PACKETS):
        try:
            packet = packets.recv(_PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise
            observation.counters.add("interface_down")
            return
        observation.receive(packet, now)


@contextmanager
def _opened(interface: str, groups: Collection[bytes]) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        try:
            index = socket.if_nametoindex(interface)
            for group in {*groups, GROUP_IPv4, GROUP_IPv6}:
                # A machine without IPv6 has no group to join.
                with suppress(OSError):
                    _join(stack, group, index)
            packets = stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
            )
            attach_filter(packets, packet_filter(groups))
            packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
            packets.bind((interface, _ETH_P_ALL))
        except PermissionError as error:
            raise HostError(
                "to observe needs packet sockets (CAP_NET_RAW, CAP_NET_ADMIN)"
            ) from error
        except OSError as error:
            raise HostError(f"interface {interface} cannot be observed: {error}") from error
        yield packets


def _join(stack: ExitStack, group: bytes, index: int) -> None:
    wide = len(group) != IPv4_BYTES
    family = socket.AF_INET6 if wide else socket.AF_INET
    member = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    if wide:
        request = struct.pack("=16si", group, index)
        member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    else:
        request = struct.pack("=4s4si", group, bytes(4), index)
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
