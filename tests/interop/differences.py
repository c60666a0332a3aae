"""Where lvsha is meant to differ from the kernel, and what must hold then.

A director in the kernel is part of a host: a packet that the director leaves alone is
answered or forwarded by that host, and both leave by the same links. lvsha hands such a
packet to its host too, or keeps it from it; neither leaves by its links here.

Each difference is a rule on one packet and on what left of it on both sides. It holds only
when lvsha does exactly what the rule says; all else is a finding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.model import format_address
from lvsha.wire import ipv4, ipv6
from tests import packets
from tests.interop.steps import CLIENT, SERVER
from tests.laboratory import Left
from tests.reader import faults

HOST_ANSWERS: Final = "host answers"
_RST_BIT = packets.RST
_TOO_BIG = {4: (3, 4), 6: (2, 0)}
_UNREACHABLE = {4: {(3, 2), (3, 3)}, 6: {(1, 4), (4, 1)}}
"""Port unreachable, and what a host without SCTP answers."""
_ECHO_REPLY = {4: 0, 6: 129}
_V4_ERRORS: Final = frozenset({3, 4, 11, 12})


@dataclass(frozen=True, slots=True)
class Incoming:
    """A packet that came in, and what left because of it."""

    side: str
    packet: bytes
    kernel: Sequence[Left]
    lvsha: Sequence[Left]
    tunnels: Callable[[], Sequence[tuple[str, str]]] = tuple


@dataclass(frozen=True, slots=True)
class Difference:
    """A rule with its name and reason."""

    name: str
    reason: str
    holds: Callable[[Incoming], bool]


def named(incoming: Incoming) -> Difference | None:
    """The stated difference that explains what left; None if none does."""
    return next((each for each in DIFFERENCES if each.holds(incoming)), None)


def _version(packet: bytes) -> int:
    return packet[0] >> 4


def _header_bytes(packet: bytes) -> int:
    return 40 if _version(packet) == 6 else (packet[0] & 0xF) * 4


def _protocol(packet: bytes) -> int:
    return packet[6] if _version(packet) == 6 else packet[9]


def _ends(packet: bytes) -> tuple[bytes, bytes]:
    if _version(packet) == 6:
        return packet[8:24], packet[24:40]
    return packet[12:16], packet[16:20]


def _is_icmp(packet: bytes) -> bool:
    return _protocol(packet) in {packets.ICMP, packets.ICMPV6}


def _host_answers(incoming: Incoming) -> bool:
    """A client's packet that the kernel's host answers itself."""
    if incoming.side != CLIENT or incoming.lvsha or len(incoming.kernel) != 1:
        return False
    [answer] = incoming.kernel
    source, destination = _ends(incoming.packet)
    if answer.side != CLIENT or _ends(answer.packet) != (destination, source):
        return False
    at = _header_bytes(answer.packet)
    version = _version(answer.packet)
    if _protocol(answer.packet) == packets.TCP:
        return bool(answer.packet[at + 13] & _RST_BIT)
    if _is_icmp(answer.packet):
        kind, code = answer.packet[at : at + 2]
        return kind == _ECHO_REPLY[version] or (kind, code) in _UNREACHABLE[version]
    return False


def _association_refused(incoming: Incoming) -> bool:
    """An SCTP packet of no association, which lvsha refuses by SCTP's means."""
    if incoming.side != CLIENT or len(incoming.lvsha) != 1 or len(incoming.kernel) != 1:
        return False
    [refusal], [error] = incoming.lvsha, incoming.kernel
    source, destination = _ends(incoming.packet)
    if _protocol(refusal.packet) != packets.SCTP or not _is_icmp(error.packet):
        return False
    at = _header_bytes(error.packet)
    chunk = refusal.packet[_header_bytes(refusal.packet) + 12 :]
    return (
        refusal.side == error.side == CLIENT
        and _ends(refusal.packet) == _ends(error.packet) == (destination, source)
        and (*error.packet[at : at + 2],) in _UNREACHABLE[_version(error.packet)]
        and chunk in {b"\x06\x01\x00\x04", b"\x0e\x01\x00\x04"}
        and not faults(refusal.packet)
    )


def _is_fragment(packet: bytes) -> bool:
    if _version(packet) == 6:
        return packet[6] == ipv6.FRAGMENT
    return bool(int.from_bytes(packet[6:8]) & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK))


def _has_options(packet: bytes) -> bool:
    return _version(packet) == 4 and _header_bytes(packet) > 20


def _host_forwards(incoming: Incoming) -> bool:
    """A packet between a server and a client that the kernel's host sends on as any router."""
    if incoming.lvsha or not incoming.kernel:
        return False
    source, destination = _ends(incoming.packet)
    towards = CLIENT if incoming.side == SERVER else SERVER
    if any(p.side != towards or _ends(p.packet) != (source, destination) for p in incoming.kernel):
        return False
    if _is_fragment(incoming.packet):
        return True
    if len(incoming.kernel) != 1:
        return False
    [forwarded] = incoming.kernel
    if _has_options(incoming.packet):
        at = _header_bytes(incoming.packet)
        return forwarded.packet[at:] == incoming.packet[at:]
    return one_hop_further(incoming.packet) == forwarded.packet


def one_hop_further(packet: bytes) -> bytes:
    """A packet as a router sends it on."""
    changed = bytearray(packet)
    if _version(packet) == 6:
        changed[7] -= 1
        return bytes(changed)
    changed[8] -= 1
    changed[10:12] = bytes(2)
    header = bytes(changed[: _header_bytes(packet)])
    changed[10:12] = packets.internet_checksum(header).to_bytes(2)
    return bytes(changed)


def _told_too_much(incoming: Incoming) -> bool:
    """A packet for a tunnel, for which the kernel tells a client too large an MTU."""
    if len(incoming.kernel) != 1 or len(incoming.lvsha) != 1:
        return False
    theirs, ours = incoming.kernel[0], incoming.lvsha[0]
    if (theirs.side, theirs.dmac) != (ours.side, ours.dmac):
        return False
    at, too_big = _header_bytes(theirs.packet), _TOO_BIG[_version(theirs.packet)]
    if not tuple(theirs.packet[at : at + 2]) == tuple(ours.packet[at : at + 2]) == too_big:
        return False
    told = [int.from_bytes(p.packet[at + 6 : at + 8]) for p in (theirs, ours)]
    return told[0] > told[1] and theirs.packet[at + 8 :] == ours.packet[at + 8 :]


def _learned_for_all(incoming: Incoming) -> bool:
    """A packet that fits the link, but not what an error about a tunnel has told of the way."""
    if incoming.side != CLIENT or len(incoming.kernel) != 1 or not incoming.lvsha:
        return False
    [theirs] = incoming.kernel
    if theirs.side != CLIENT or not _is_icmp(theirs.packet):
        return False
    at = _header_bytes(theirs.packet)
    version = _version(theirs.packet)
    told = int.from_bytes(theirs.packet[at + 6 : at + 8])
    return (
        version == 4
        and tuple(theirs.packet[at : at + 2]) == _TOO_BIG[version]
        and told < len(incoming.packet)
        and all(ours.side == SERVER and not faults(ours.packet) for ours in incoming.lvsha)
    )


def _two_tunnels_to_one_address(incoming: Incoming) -> bool:
    """An error about a tunnel packet, to an address that there are two kinds of tunnel to."""
    if incoming.side != SERVER or incoming.kernel or len(incoming.lvsha) != 1:
        return False
    if _version(incoming.packet) != 4 or not _is_icmp(incoming.packet):
        return False
    quote = _header_bytes(incoming.packet) + 8
    address = format_address(incoming.packet[quote + 16 : quote + 20])
    kinds = {kind.partition(":")[0] for end, kind in incoming.tunnels() if end == address}
    return {"ipip", "gre"} <= kinds and incoming.lvsha[0].side == CLIENT


def _options_echoed(incoming: Incoming) -> bool:
    """An ICMP error or a reset for a packet with options, which the kernel's repeats."""
    if len(incoming.kernel) != 1 or len(incoming.lvsha) != 1 or not _has_options(incoming.packet):
        return False
    theirs, ours = incoming.kernel[0], incoming.lvsha[0]
    if (theirs.side, theirs.dmac) != (ours.side, ours.dmac):
        return False
    echoed, at = _header_bytes(theirs.packet), _header_bytes(ours.packet)
    if _protocol(theirs.packet) == _protocol(ours.packet) == packets.TCP:
        return echoed > at == 20 and theirs.packet[echoed:] == ours.packet[at:]
    if not _is_icmp(theirs.packet) or not _is_icmp(ours.packet):
        return False
    # With a longer header the kernel's error has room for less of the packet.
    (kind, rest), (own_kind, own_rest) = (
        (p[begin : begin + 2], p[begin + 4 :])
        for p, begin in ((theirs.packet, echoed), (ours.packet, at))
    )
    # It does not bring the quoted header's checksum up to date, in which an option changed.
    quoted_checksum = slice(4 + 10, 4 + 12)
    quote, own_quote = bytearray(rest), bytearray(own_rest)
    quote[quoted_checksum] = own_quote[quoted_checksum] = bytes(2)
    return echoed > at == 20 and kind == own_kind and own_quote.startswith(quote)


def _pseudo_header_forgotten(incoming: Incoming) -> bool:
    """A server's ICMPv6 error that lvsha translates and the kernel drops."""
    if incoming.side != SERVER or incoming.kernel or len(incoming.lvsha) != 1:
        return False
    if _version(incoming.packet) != 6 or not _is_icmp(incoming.packet):
        return False
    [translated] = incoming.lvsha
    return translated.side == CLIENT and not faults(translated.packet)


DIFFERENCES: Final = (
    Difference(
        HOST_ANSWERS,
        "the host's own stack answers a client's packet that is no service's, or that its protocol "
        "lets nobody answer: a reset, an echo reply, an unreachable port; lvsha leaves the packet "
        "to its host, or drops it",
        _host_answers,
    ),
    Difference(
        "association refused",
        "the kernel's host here has no SCTP and says so of a packet of no association; lvsha "
        "refuses the association",
        _association_refused,
    ),
    Difference(
        "host forwards",
        "the host forwards what is between a server and a client and of no connection; lvsha "
        "leaves it to its host, or keeps it back where the client would have an answer from a "
        "real server's address",
        _host_forwards,
    ),
    Difference(
        "pseudo-header forgotten",
        "the kernel verifies the checksum of a server's ICMPv6 error without its "
        "pseudo-header, and so drops every right one; lvsha translates it",
        _pseudo_header_forgotten,
    ),
    Difference(
        "options echoed",
        "the kernel repeats a packet's IPv4 options in its own ICMP error or reset for it, and "
        "quotes it with the checksum from before they were filled in",
        _options_echoed,
    ),
    Difference(
        "learned for all",
        "what an error about a tunnel packet tells of the way to a server, the kernel keeps for "
        "all that goes to that address; lvsha for what goes through that server's tunnel",
        _learned_for_all,
    ),
    Difference(
        "two tunnels to one address",
        "an error about an IP-in-IP or GRE packet, to an address to which there are tunnels of "
        "both kinds: the kernel looks at one of them only; lvsha at both",
        _two_tunnels_to_one_address,
    ),
    Difference(
        "told too much",
        "when a router on the way of a tunnel tells a smaller MTU, Linux 6.1 tells an IPv4 client "
        "the link's MTU less 20 bytes, whatever the tunnel adds, and of IPv6 it learns nothing; "
        "lvsha tells what fits",
        _told_too_much,
    ),
)
