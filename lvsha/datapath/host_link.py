"""Hand packets to this host's own stack, and take back what its servers reply.

A real server may be this host, and some of what the interception rules take is the host's
after all. Such packets are written into a TUN device, `HOST_INTERFACE`, out of which the
stack reads them like any others; its address is not asked for, because Linux accepts a
packet for any of its addresses on any interface.

What a NAT server on this host replies must come back, because it has to leave as the
virtual service's. No socket can be made to send it here, so the table ``inet`` of the
interception rules marks the replies of flows that came in through the device, and a routing
rule (`RULE_PRIORITY`, `ROUTING_TABLE`) sends what is marked back into it. A client that
talks to the same server without the director is never marked. When the device is gone, the
route behind it is a black hole: a director that died does not let its server answer with
an address that the client does not know.

The facts that shaped this:

* A reverse path filter would drop every packet here, for no client's route leads to the
  device. It is off on the device; where it is strict for all interfaces, the mark makes the
  routing rule apply to its look-up as well (``src_valid_mark``).
* The settings of the device are made by netlink, not in ``/proc/sys``, which a service
  manager may have made read-only.
* A TUN device carries no Ethernet header, while frames have one; in the virtio header the
  offsets differ by as much.

The device goes away with the process, rules and routes do not: `release` takes them away.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Final

import trio
from pyroute2 import IPRoute, NetlinkError

from lvsha.datapath.flow import ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, L3, Frame
from lvsha.datapath.rules import HOST_INTERFACE, HOST_MARK
from lvsha.errors import HostError
from lvsha.wire import vnet

DEVICE: Final = "/dev/net/tun"
MTU: Final = 65_521
"""The longest packet of a frame; nothing that was received is too long."""
ROUTING_TABLE: Final = 0x6C76_7368
RULE_PRIORITY: Final = 10
"""Before the rules that people write themselves, and after the kernel's own for ``local``."""

# linux/if_tun.h
_TUNSETIFF: Final = 0x4004_54CA
_TUNSETOFFLOAD: Final = 0x4004_54D0
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_OFFLOADS: Final = 0x01 | 0x02 | 0x04 | 0x08
"""Checksums, TCP over IPv4 and IPv6, and that with ECN: replies come as super-frames."""

# linux/rtnetlink.h, if_link.h, ip.h
_NEW_LINK: Final = 16
_REQUEST_ACK: Final = 0x01 | 0x04
_ERROR: Final = 2
_LINK_MTU: Final = 4
_LINK_SETTINGS: Final = 26
_INET_SETTINGS: Final = 1
_RP_FILTER: Final = 8
_SRC_VALID_MARK: Final = 24
_INET6_ADDRESS_MODE: Final = 8
_NO_ADDRESSES: Final = 1
_UP: Final = 1
_LINK_MESSAGE: Final = struct.Struct("=IHHIIBxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")

_ANSWER: Final = struct.Struct("=4xH10xi")
_ANSWER_BYTES: Final = 4096

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_LAST_METRIC: Final = 0xFFFF_FFFF
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV})
_ABSENT: Final = _NO_IPV6 | {errno.ENOENT, errno.ESRCH}

_OFFSET: Final = struct.Struct("=H")
_OFFSETS_AT: Final = (2, 6)
"""In the virtio header: the length of the headers, and the start of the checksum."""


class HostLink:
    """The device, while it is open."""

    def __init__(self) -> None:
        self._file = -1

    @property
    def is_open(self) -> bool:
        """Whether packets can be handed over."""
        return self._file >= 0

    def fileno(self) -> int:
        """To wait for."""
        return self._file

    async def open(self) -> None:
        """Make the device and the routes to it, unless it is open.

        Raises:
            HostError: the kernel refuses.
        """
        if self._file >= 0:
            return
        file = await trio.to_thread.run_sync(_make)
        self._file = file

    def close(self) -> None:
        """Let the device go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Hand over the packet in a frame with its virtio header.

        Raises:
            OSError: the kernel did not take it.
        """
        window = memoryview(data)
        header = _shifted(window[: vnet.LENGTH_BYTES], -ETHERNET_BYTES)
        return os.writev(self._file, (header, window[L3:]))

    def receive_into(self, frame: Frame) -> int:
        """Take a packet and lay it out as a frame; returns its size, virtio header included.

        Raises:
            BlockingIOError: none is waiting.
            OSError: the device does not work.
        """
        view = frame.view
        received = os.readv(self._file, (view[: vnet.LENGTH_BYTES], view[L3:]))
        view[: vnet.LENGTH_BYTES] = _shifted(view[: vnet.LENGTH_BYTES], ETHERNET_BYTES)
        ethertype = ETHERTYPE_IPV6 if frame.buffer[L3] >> 4 == 6 else ETHERTYPE_IPV4
        view[vnet.LENGTH_BYTES : L3] = bytes(ETHERNET_BYTES - 2) + ethertype.to_bytes(2)
        return received + ETHERNET_BYTES


def _shifted(header: memoryview, by: int) -> bytes:
    """A virtio header whose offsets count from another place."""
    moved = bytearray(header)
    if moved[0] & vnet.NEEDS_CHECKSUM or moved[vnet.GSO_TYPE_AT]:
        for at in _OFFSETS_AT:
            (offset,) = _OFFSET.unpack_from(moved, at)
            if offset:
                _OFFSET.pack_into(moved, at, max(offset + by, 0))
    return bytes(moved)


def _make() -> int:
    """Make the device, up and with routes to it; returns its file."""
    try:
        file = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{DEVICE} cannot be opened: {error.strerror}") from error
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", HOST_INTERFACE.encode(), flags))
        fcntl.ioctl(file, _TUNSETOFFLOAD, _OFFLOADS)
        index = socket.if_nametoindex(HOST_INTERFACE)
        _configure(index)
        _remove_routes()
        _add_routes(index)
    except (OSError, NetlinkError) as error:
        os.close(file)
        raise HostError(f"the interface {HOST_INTERFACE} cannot be made: {error}") from error
    except BaseException:
        os.close(file)
        raise
    return file


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _configure(index: int) -> None:
    """Set the device up.

    Raises:
        OSError: the kernel refuses.
    """
    settings = b"".join(
        _attribute(kind, struct.pack("=I", value))
        for kind, value in ((_RP_FILTER, 0), (_SRC_VALID_MARK, 1))
    )
    ipv4 = _attribute(socket.AF_INET, _attribute(_INET_SETTINGS, settings))
    ipv6 = _attribute(socket.AF_INET6, _attribute(_INET6_ADDRESS_MODE, bytes((_NO_ADDRESSES,))))
    mtu = _attribute(_LINK_MTU, struct.pack("=I", MTU))
    _set_link(index, mtu + _attribute(_LINK_SETTINGS, ipv4))
    with contextlib.suppress(OSError):  # a host without IPv6
        _set_link(index, _attribute(_LINK_SETTINGS, ipv6))
    _set_link(index, b"", up=True)


def _set_link(index: int, attributes: bytes, *, up: bool = False) -> None:
    flags = _UP if up else 0
    length = _LINK_MESSAGE.size + len(attributes)
    message = _LINK_MESSAGE.pack(length, _NEW_LINK, _REQUEST_ACK, 1, 0, 0, 0, index, flags, flags)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        netlink.send(message + attributes)
        kind, number = _ANSWER.unpack_from(netlink.recv(_ANSWER_BYTES))
    if kind == _ERROR and number:
        raise OSError(-number, os.strerror(-number))


def _routes(family: int, index: int | None) -> list[tuple[str, dict[str, int | str]]]:
    """What sends marked packets to the device, each with the method of `IPRoute` for it."""
    way: dict[str, int | str] = {"family": family, "table": ROUTING_TABLE, "dst": "default"}
    device: dict[str, int | str] = {} if index is None else {"oif": index}
    rule: dict[str, int | str] = {"family": family, "table": ROUTING_TABLE}
    return [
        ("route", {**way, **device, "priority": 1}),
        ("route", {**way, "type": "blackhole", "priority": _LAST_METRIC}),
        ("rule", {**rule, "priority": RULE_PRIORITY, "fwmark": HOST_MARK}),
    ]


def _add_routes(index: int) -> None:
    with IPRoute() as netlink:
        for family in _FAMILIES:
            for kind, words in _routes(family, index):
                try:
                    _change(netlink, kind, "add", words)
                except NetlinkError as error:
                    # A host without IPv6 has no such packets either.
                    if family == socket.AF_INET or error.code not in _NO_IPV6:
                        raise


def _remove_routes() -> None:
    with IPRoute() as netlink:
        for family in _FAMILIES:
            for kind, words in reversed(_routes(family, None)):
                try:
                    _change(netlink, kind, "del", words)
                except NetlinkError as error:
                    if error.code not in _ABSENT:
                        raise


def _change(netlink: IPRoute, kind: str, action: str, words: dict[str, int | str]) -> None:
    if kind == "rule":
        netlink.rule(action, **words)
    else:
        netlink.route(action, **words)


async def release() -> None:
    """Take away the routes that a run has left; it is no error if there are none.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        await trio.to_thread.run_sync(_remove_routes)
    except (OSError, NetlinkError) as error:
        raise HostError(f"the routes to {HOST_INTERFACE} cannot be removed: {error}") from error
