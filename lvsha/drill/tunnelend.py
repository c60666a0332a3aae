"""The far end of a tunnel: takes packets out of IP in IP and gives them to the kernel.

A real server behind a tunnel needs an ``ipip`` or ``ip6tnl`` device, and not every
kernel has them; this small program does their work in user space, so that a tunnel
drill runs anywhere. It is part of the laboratory, not of the director.

A raw socket delivers what IP carries as protocol 4 (RFC 2003) or 41 (RFC 2473), after
the kernel put fragments together. The inner packet goes in again by a packet socket on
``lo``, where the kernel takes it like any packet that arrives: it checks the inner
checksums in software, so a director that sends wrong ones is found out. Nothing is
repaired here, and a packet that is not for a virtual address is not let in.
"""

import argparse
import errno
import ipaddress
import socket
from collections.abc import Collection
from typing import Final

import trio

from lvsha.model import IPv4_BYTES

DATAGRAM_MAX: Final = 65_535
BATCH: Final = 64
RECEIVE_BUFFER: Final = 4 << 20

ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD
IPV4_HEADER_MIN: Final = 20
IPV6_HEADER: Final = 40


def inner_packet(datagram: bytes, virtuals: Collection[bytes]) -> bytes | None:
    """The packet inside what a raw socket delivered, or None if it is not for us.

    The virtual addresses are of one family. An IPv4 raw socket delivers with the outer
    header, an IPv6 one without.
    """
    if is_ipv4(virtuals):
        if len(datagram) < IPV4_HEADER_MIN:
            return None
        inner = datagram[(datagram[0] & 0x0F) * 4 :]
        fits = len(inner) >= IPV4_HEADER_MIN and inner[0] >> 4 == 4 and inner[16:20] in virtuals
    else:
        inner = datagram
        fits = len(inner) >= IPV6_HEADER and inner[0] >> 4 == 6 and inner[24:40] in virtuals
    return inner if fits else None


def is_ipv4(addresses: Collection[bytes]) -> bool:
    """Whether they are of that family."""
    return any(len(address) == IPv4_BYTES for address in addresses)


async def decapsulate(virtuals: Collection[bytes]) -> None:
    """Carry packets until killed."""
    if is_ipv4(virtuals):
        family, protocol, ethertype = socket.AF_INET, socket.IPPROTO_IPIP, ETH_P_IP
    else:
        family, protocol, ethertype = socket.AF_INET6, socket.IPPROTO_IPV6, ETH_P_IPV6
    refused = 0
    with (
        socket.socket(family, socket.SOCK_RAW, protocol) as tunnel,
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as inward,
    ):
        tunnel.setblocking(False)
        # A burst after a takeover is long; the kernel cuts this to what it allows.
        tunnel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        destination = ("lo", ethertype, 0, 0, bytes(6))
        print("ready", flush=True)
        while True:
            await trio.lowlevel.wait_readable(tunnel)
            for _ in range(BATCH):
                try:
                    datagram = tunnel.recv(DATAGRAM_MAX)
                except BlockingIOError:
                    break
                packet = inner_packet(datagram, virtuals)
                if packet is None:
                    refused += 1
                    print(f"refused {refused}", flush=True)
                    continue
                try:
                    inward.sendto(packet, destination)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise


def main() -> None:
    """Read the arguments and carry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--virtual", required=True, nargs="+")
    virtuals = [ipaddress.ip_address(text).packed for text in parser.parse_args().virtual]
    trio.run(decapsulate, virtuals)


if __name__ == "__main__":
    main()
