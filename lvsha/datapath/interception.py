"""Keep the host's own stack from answering what is the director's.

The virtual address is a real address of the host, so its stack would answer a client's SYN
with a reset. An nftables chain at the ``netdev`` ingress of each interface drops, for the
stack, what the director's packet sockets have already seen: packets to a virtual service,
and replies of NAT real servers that are on their way through (`lvsha.datapath.claims`).
Everything else passes: ssh, ping, routing, health checks, VRRP.

The rules must outlive the process. A director that dies and lets its stack answer would
reset every connection that its peer has just saved. So they are taken away only on
purpose: at a clean stop, by ``lvsha clean``, or when the next start replaces them. Where
someone else takes them away (``nft flush ruleset``), `RuleWatcher` notices.
"""

import errno
import socket
import struct
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Final

import trio

from lvsha.datapath import host_link
from lvsha.datapath.claims import Claims
from lvsha.datapath.rules import NEIGHBOUR_FAMILIES, TABLE, ruleset
from lvsha.errors import HostError
from lvsha.model import VirtualMac

# linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_GROUP_NFTABLES: Final = 7
_NEW_TABLE: Final = 10 << 8 | 0
_DELETE_TABLE: Final = 10 << 8 | 2
_FAMILY_NETDEV: Final = 5
_TABLE_NAME: Final = 1
_NETLINK_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE_HEADER: Final = struct.Struct("=HH")
_RECEIVE_BYTES: Final = 65_536
_SETTLING: Final = 0.02
"""Seconds in which the rest of a transaction's messages arrives."""


async def intercept(
    interfaces: Mapping[str, bytes],
    claims: Claims,
    remember: float | None = None,
    virtual_macs: Collection[VirtualMac] = (),
) -> None:
    """Load the rules (`lvsha.datapath.rules.ruleset`), in place of those that are there.

    Raises:
        HostError: nft is missing or refuses.
    """
    # The text of many services takes a while to write.
    await _nft(await trio.to_thread.run_sync(ruleset, interfaces, claims, remember, virtual_macs))


async def release() -> None:
    """Take rules and routes away; it is no error if there are none.

    Raises:
        HostError: nft is missing, or the kernel refuses.
    """
    await _nft(_deleted("netdev", "inet"))
    for family in NEIGHBOUR_FAMILIES:
        # A kernel without the family cannot have such a table.
        with suppress(HostError):
            await _nft(_deleted(family))
    await host_link.release()


def _deleted(*families: str) -> str:
    """The text that deletes tables, whether or not there are any."""
    return "".join(f"add table {one} {TABLE}\ndelete table {one} {TABLE}\n" for one in families)


class RuleWatcher:
    """Hears of changes of nftables tables, to notice that ours was taken away."""

    def __init__(self) -> None:
        self._socket: trio.socket.SocketType | None = None

    async def open(self) -> None:
        """Start listening.

        Raises:
            HostError: the kernel refuses.
        """
        try:
            self._socket = trio.socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER
            )
            await self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError as error:
            raise HostError(f"nftables cannot be watched: {error}") from error

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.close()

    async def removed(self) -> None:
        """Return when the table is gone, or when messages were lost and it may be."""
        present = True
        while present:
            present = await self._hear(present)
            if not present:
                # Replacing the table deletes and makes it in one transaction.
                with trio.move_on_after(_SETTLING):
                    while not present:
                        present = await self._hear(present)

    async def _hear(self, present: bool) -> bool:
        assert self._socket is not None, "open comes first"
        try:
            data = await self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return False
        for kind in table_changes(data):
            present = kind == _NEW_TABLE
        return present


def table_changes(data: bytes) -> Iterator[int]:
    """The kinds of the netlink messages in ``data`` that are about our table, in order."""
    position = 0
    while position + _NETLINK_HEADER.size <= len(data):
        length, kind, *_ = _NETLINK_HEADER.unpack_from(data, position)
        message = data[position + _NETLINK_HEADER.size : position + length]
        if kind in {_NEW_TABLE, _DELETE_TABLE} and _names_our_table(message):
            yield kind
        position += max(_NETLINK_HEADER.size, length + 3 & ~3)


def _names_our_table(message: bytes) -> bool:
    if not message or message[0] != _FAMILY_NETDEV:
        return False
    position = 4
    while position + _ATTRIBUTE_HEADER.size <= len(message):
        length, kind = _ATTRIBUTE_HEADER.unpack_from(message, position)
        if kind == _TABLE_NAME:
            value = message[position + _ATTRIBUTE_HEADER.size : position + length]
            return value.rstrip(b"\0") == TABLE.encode()
        position += max(_ATTRIBUTE_HEADER.size, length + 3 & ~3)
    return False


async def _nft(text: str) -> None:
    try:
        result = await trio.run_process(
            ["nft", "-f", "-"],
            stdin=text.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError("the program nft is missing; install the package nftables") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"nft cannot be run: {error}") from error
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines()
        if said and "Operation not permitted" in said[0]:
            raise HostError("the right to change nftables rules is missing (CAP_NET_ADMIN)")
        raise HostError(f"nft refuses the interception rules: {said[0] if said else 'no reason'}")
