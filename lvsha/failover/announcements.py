"""Tell the neighbours of an interface that an address is now here.

For IPv4 that is gratuitous ARP, both as a request, as RFC 9568 has it, and as a reply,
because some switches and firewalls learn from one of them only. For IPv6 it is an
unsolicited neighbour advertisement to all nodes (RFC 4861, section 7.2.6). The hardware
address is the interface's own, or that of the virtual router, which then is the source of the
frame as well, so that switches learn where it is.

Sending never waits. An interface that is down or gone is an `OSError` for the caller.
"""

import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lvsha import interfaces
from lvsha.model import IPv4_BYTES, Protocol
from lvsha.wire import arp, ipv6, neighbour_discovery

BROADCAST: Final = b"\xff" * 6
# RFC 2464, section 7: 33-33 and the last four bytes of the group.
ALL_NODES_MAC: Final = b"\x33\x33" + neighbour_discovery.ALL_NODES[-4:]
_ETHERTYPE_IPv6: Final = 0x86DD
# linux/if_packet.h
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_DROP_MEMBERSHIP: Final = 2
_PACKET_MR_UNICAST: Final = 3


def open_sender() -> socket.socket:
    """What announcements leave by, on any interface.

    To close it takes some ten milliseconds, in which the kernel waits for all who may still
    look at it: so who announces in haste keeps it open.

    Raises:
        OSError: the privilege is missing.
    """
    # Protocol 0: this socket only sends and is never handed a frame.
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.setblocking(False)
    return sender


def admit(sender: socket.socket, index: int, mac: bytes, *, admitted: bool) -> None:
    """Let a network card take frames to another address than its own, or no longer.

    The kernel does it for as long as the socket lives: a director that dies is not heard.

    Args:
        sender: from `open_sender`.
        index: the number of the interface.
        mac: the address.
        admitted: whether to take them.

    Raises:
        OSError: the interface is gone.
    """
    # struct packet_mreq of linux/if_packet.h
    request = struct.pack("@iHH8s", index, _PACKET_MR_UNICAST, len(mac), mac)
    option = _PACKET_ADD_MEMBERSHIP if admitted else _PACKET_DROP_MEMBERSHIP
    sender.setsockopt(_SOL_PACKET, option, request)


def announce(
    interface: str, addresses: Iterable[bytes], sender: socket.socket, mac: bytes | None = None
) -> int:
    """Announce addresses on an interface.

    Args:
        interface: its name.
        addresses: of either family.
        sender: from `open_sender`.
        mac: where they are; None for the interface's own.

    Returns:
        How many frames were sent.

    Raises:
        OSError: the interface is down.
        HostError: the interface does not exist or is not Ethernet.
    """
    sent = [frame for address in addresses for frame in frames(interface, address, mac)]
    for frame in sent:
        sender.sendto(frame, (interface, 0))
    return len(sent)


def frames(interface: str, address: bytes, mac: bytes | None = None) -> list[bytes]:
    """The Ethernet frames that say ``address`` is at an interface of this host.

    Args:
        interface: its name.
        address: of either family.
        mac: as `announce` has it.

    Raises:
        HostError: the interface does not exist or is not Ethernet.
    """
    if mac is None:
        mac = interfaces.mac_address(interface)
    router = len(address) != IPv4_BYTES and is_router(interface)
    return announcement_frames(mac, address, router=router)


def announcement_frames(mac: bytes, address: bytes, *, router: bool) -> list[bytes]:
    """The Ethernet frames that say ``address`` is at ``mac``.

    Args:
        mac: of the interface, or of the virtual router.
        address: the virtual address, of either family.
        router: what an IPv6 neighbour is to believe of us. It must be what the kernel
            says in its own answers, or hosts would drop us from their default routers.
    """
    if len(address) == IPv4_BYTES:
        return [
            BROADCAST
            + mac
            + arp.ETHERTYPE.to_bytes(2)
            + arp.emit(arp.gratuitous(operation, mac, address))
            for operation in (arp.REQUEST, arp.REPLY)
        ]
    message = neighbour_discovery.emit(
        neighbour_discovery.NeighbourAdvertisement(address, mac, router=router),
        source=address,
        destination=neighbour_discovery.ALL_NODES,
    )
    header = ipv6.emit(
        ipv6.Ipv6Header(
            source=address,
            destination=neighbour_discovery.ALL_NODES,
            next_header=Protocol.ICMPV6,
            payload_length=len(message),
            hop_limit=neighbour_discovery.HOP_LIMIT,
        )
    )
    return [ALL_NODES_MAC + mac + _ETHERTYPE_IPv6.to_bytes(2) + header + message]


def is_router(interface: str) -> bool:
    """Whether the kernel forwards IPv6 that arrives on this interface."""
    try:
        setting = Path(f"/proc/sys/net/ipv6/conf/{interface}/forwarding").read_text("ascii")
    except OSError:
        # IPv6 is disabled on this machine, or the interface has just gone.
        return False
    return setting.strip() not in {"", "0"}
