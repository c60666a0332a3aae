"""The interception rules as text for nft.

What they do is in `lvsha.datapath.interception`, which loads them. The tables are all called
`TABLE`:

* ``netdev``: each frame at the ingress of an interface is dropped for the host's stack if it
  is claimed. Only the first fragment of a datagram has ports; when it is taken, the
  identification of its datagram is remembered for `FRAGMENT_SECONDS`, and the others are
  taken by that. One that overtakes the first reaches the host, where it never becomes whole
  and is never answered.
* ``inet``, while packets are handed to the host (`lvsha.datapath.host_link`): it remembers
  which flows came in that way to a NAT server on this host, and routes the server's replies
  back, because they must leave as the service's. It is changed in place: what it remembers
  outlives a change of services.
* ``arp`` and ``ip6``, where virtual addresses are at a virtual MAC address: they put that into
  what the kernel tells neighbours of such an address.
"""

import math
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from lvsha.datapath.claims import FTP_DATA_PORTS, Claims, MarkClaim
from lvsha.datapath.marks import Prefix
from lvsha.model import IPv4_BYTES, Protocol, VirtualMac, format_address, format_mac

TABLE: Final = "lvsha"
HOST_INTERFACE: Final = "lvsha0"
"""Through which packets are handed to the host, and replies come back."""
HOST_MARK: Final = 0x6C76_7368
"""The firewall mark by which replies are routed to it."""
FRAGMENT_SECONDS: Final = 5
"""Fragments of a datagram follow each other within milliseconds."""
FRAGMENTS_MAX: Final = 65_536
"""Datagrams whose identification is remembered, of each family; when full, later fragments
of further ones reach the host and are forgotten there."""
FLOWS_MAX: Final = 1_048_576
"""Flows to NAT servers on this host, of each family; replies of further ones leave with the
server's own address, and their clients cannot connect."""
NEIGHBOUR_FAMILIES: Final = ("arp", "ip6")
_PRIORITY: Final = -500
"""Before the chains that people write themselves, which stand at 0 or above."""

_DATAGRAM4: Final = "ip saddr . ip daddr . ip protocol . ip id"
_DATAGRAM6: Final = "ip6 saddr . ip6 daddr . frag id"
_KINDS: Final = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))


def ruleset(
    interfaces: Mapping[str, bytes],
    claims: Claims,
    remember: float | None = None,
    virtual_macs: Collection[VirtualMac] = (),
) -> str:
    """All rules as text for ``nft -f``; loading it replaces the others in one step.

    Args:
        interfaces: where clients' and real servers' frames arrive, with their MAC addresses.
        claims: what is taken there.
        remember: seconds for which a flow to a NAT server on this host is remembered after
            its last packet; None while no packets are handed to the host.
        virtual_macs: at which this host may have virtual addresses.
    """
    lines = [
        f"add table netdev {TABLE}",
        f"delete table netdev {TABLE}",
        f"table netdev {TABLE} {{",
        *_sets("services", "inet_proto . inet_service", map(_end_text, claims.services)),
        *_sets("whole_services", "inet_proto", map(_whole_text, claims.whole_services)),
        *_sets("ftp", "", ((len(a), format_address(a)) for a in claims.ftp)),
        *_sets("servers", "inet_proto . inet_service", map(_end_text, claims.servers)),
        *_sets("whole_servers", "inet_proto", map(_whole_text, claims.whole_servers)),
        *_FRAGMENT_SETS,
        "  chain taken {",
        f"    ip frag-off & 0x3fff == 0x2000 update @fragments4 {{ {_DATAGRAM4} }}",
        f"    exthdr frag exists frag frag-off == 0 update @fragments6 {{ {_DATAGRAM6} }}",
        "    drop",
        "  }",
        "  chain marks {",
        *map(_mark_rule, claims.marks),
        "  }",
        "  chain ingress {",
        *_frames_to(virtual_macs),
        *_requests(claims),
        "    jump marks",
        *_replies(claims),
        f"    ip frag-off & 0x1fff != 0 {_DATAGRAM4} @fragments4 drop",
        f"    frag frag-off != 0 {_DATAGRAM6} @fragments6 drop",
        "  }",
    ]
    for number, interface in enumerate(sorted(interfaces)):
        lines += [
            f"  chain ingress{number} {{",
            f"    type filter hook ingress device {_quoted(interface)} priority {_PRIORITY};",
            "    policy accept;",
            "    jump ingress",
            "  }",
        ]
    lines.append("}")
    lines += _host_table(claims, math.ceil(remember)) if remember is not None else []
    lines += _neighbour_tables(interfaces, virtual_macs) if virtual_macs else []
    return "\n".join(lines) + "\n"


_FRAGMENT_SETS: Final = tuple(
    line
    for name, kind in (
        ("fragments4", _DATAGRAM4),
        ("fragments6", _DATAGRAM6),
    )
    for line in (
        f"  set {name} {{",
        f"    typeof {kind}",
        f"    size {FRAGMENTS_MAX}",
        "    flags dynamic,timeout",
        f"    timeout {FRAGMENT_SECONDS}s",
        "  }",
    )
)


def _frames_to(virtual_macs: Collection[VirtualMac]) -> Iterator[str]:
    """Frames to a virtual MAC address are the host's while it has the virtual address."""
    for virtual in virtual_macs:
        to = f"ether daddr {format_mac(virtual.mac)}"
        yield f"    {to} fib daddr type local meta pkttype set host"
        for address in _of_ipv4(virtual):
            yield f"    {to} arp daddr ip {address} meta pkttype set host"


def _neighbour_tables(
    links: Mapping[str, bytes], virtual_macs: Collection[VirtualMac]
) -> Iterator[str]:
    """What the kernel tells neighbours of a virtual address names its virtual MAC address.

    That are ARP packets, and of neighbour discovery the advertisements and the solicitations
    that leave from the address (RFC 4861, sections 4.3 and 4.4). nft does not mend the
    checksum of these, so what the other MAC address adds to it is taken away in the reserved
    bytes before the target, at which no receiver may look.
    """
    for family in NEIGHBOUR_FAMILIES:
        yield f"add table {family} {TABLE}"
        yield f"delete table {family} {TABLE}"
    yield f"table arp {TABLE} {{"
    yield "  chain output {"
    yield "    type filter hook output priority 0; policy accept;"
    for virtual in virtual_macs:
        for text in _of_ipv4(virtual):
            said = f"arp saddr ip {text}"
            yield f"    {said} arp saddr ether set {format_mac(virtual.mac)}"
    yield "  }"
    yield "}"
    yield f"table ip6 {TABLE} {{"
    yield "  chain output {"
    yield "    type filter hook output priority 0; policy accept;"
    for virtual in virtual_macs:
        for address in sorted(a for a in virtual.addresses if len(a) != IPv4_BYTES):
            yield from _discovery_rules(address, virtual.mac, links)
    yield "  }"
    yield "}"


def _discovery_rules(address: bytes, mac: bytes, links: Mapping[str, bytes]) -> Iterator[str]:
    for name, own in sorted(links.items()):
        makes_up = (_sum(own) - _sum(mac)) % 0xFFFF
        change = f"@th,208,48 set {_number(mac)} @th,48,16 set {makes_up:#x}"
        out = f"oifname {_quoted(name)}"
        was = f"@th,208,48 {_number(own)}"
        target = f"@th,64,128 {_number(address)}"
        source = f"ip6 saddr {format_address(address)}"
        yield f"    {out} icmpv6 type nd-neighbor-advert {target} @th,192,16 0x201 {was} {change}"
        yield f"    {out} icmpv6 type nd-neighbor-solicit {source} @th,192,16 0x101 {was} {change}"


def _of_ipv4(virtual: VirtualMac) -> list[str]:
    return [format_address(a) for a in sorted(virtual.addresses) if len(a) == IPv4_BYTES]


def _sum(mac: bytes) -> int:
    """What a MAC address adds to a checksum."""
    return sum(struct.unpack("!3H", mac))


def _number(octets: bytes) -> str:
    return f"{int.from_bytes(octets):#x}"


def _quoted(interface: str) -> str:
    return f'"{interface.replace(chr(34), "")}"'


def _requests(claims: Claims) -> Iterator[str]:
    ports = _ports(FTP_DATA_PORTS)
    for family, ip, _ in _KINDS:
        yield f"    {ip} daddr . meta l4proto @whole_services{family} drop"
        yield f"    {ip} daddr . meta l4proto . th dport @services{family} goto taken"
        if any((len(address) == IPv4_BYTES) == (family == 4) for address in claims.ftp):
            yield f"    {ip} daddr @ftp{family} tcp dport {ports} goto taken"


def _replies(claims: Claims) -> Iterator[str]:
    through = "fib daddr type != local"
    for family, ip, _ in _KINDS:
        if claims.whole_servers:
            yield f"    {ip} saddr . meta l4proto @whole_servers{family} {through} drop"
        yield f"    {ip} saddr . meta l4proto . th sport @servers{family} {through} goto taken"


def _mark_rule(claim: MarkClaim) -> str:
    rule = claim.rule
    ip = "ip" if len(rule.destination[0]) == IPv4_BYTES else "ip6"
    words = [f"{ip} daddr {_prefix(rule.destination)}"]
    if rule.source is not None:
        words.append(f"{ip} saddr {_prefix(rule.source)}")
    protocols = ", ".join(Protocol(number).name.lower() for number in claim.protocols)
    words.append(f"meta l4proto {{ {protocols} }}")
    if rule.ports:
        words.append(f"th dport {_ports(rule.ports)}")
    return f"    {' '.join(words)} {'goto taken' if claim.taken else 'return'}"


def _prefix(prefix: Prefix) -> str:
    return f"{format_address(prefix[0])}/{prefix[1]}"


def _ports(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of ports, joined where they overlap, which nft does not do by itself."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    words = (str(first) if first == last else f"{first}-{last}" for first, last in joined)
    return f"{{ {', '.join(words)} }}"


def _host_table(claims: Claims, seconds: int) -> Iterator[str]:
    """Replies of servers on this host; see `lvsha.datapath.host_link`.

    The mark makes a strict reverse path filter see that the interface is the right one. It
    is taken off again before a socket can inherit it.
    """
    yield f"add table inet {TABLE}"
    for family, _, kind in _KINDS:
        for name, members in ((f"clients{family}", kind), (f"flows{family}", _flow_type(kind))):
            yield (
                f"add set inet {TABLE} {name} {{ type {members}; size {FLOWS_MAX};"
                " flags dynamic,timeout; }"
            )
        for name, members, elements in (
            (
                f"local{family}",
                f"{kind} . inet_proto . inet_service",
                _of_family(map(_end_text, claims.local_servers), family),
            ),
            (
                f"whole_local{family}",
                f"{kind} . inet_proto",
                _of_family(map(_whole_text, claims.local_whole_servers), family),
            ),
        ):
            yield f"add set inet {TABLE} {name} {{ type {members}; }}"
            yield f"flush set inet {TABLE} {name}"
            if elements:
                yield f"add element inet {TABLE} {name} {{ {', '.join(elements)} }}"
    for chain, hook in _CHAINS:
        yield f"add chain inet {TABLE} {chain} {hook}".rstrip()
        yield f"flush chain inet {TABLE} {chain}"
    for chain, rule in _host_rules(claims, seconds):
        yield f"add rule inet {TABLE} {chain} {rule}"


_CHAINS: Final = (
    ("remember", ""),
    ("entered", ""),
    ("prerouting", "{ type filter hook prerouting priority -150; }"),
    ("input", "{ type filter hook input priority -150; }"),
    ("output", "{ type route hook output priority -150; }"),
)


def _flow_type(kind: str) -> str:
    return f"{kind} . {kind} . inet_proto . inet_service . inet_service"


def _host_rules(claims: Claims, seconds: int) -> Iterator[tuple[str, str]]:
    yield "prerouting", f'iifname "{HOST_INTERFACE}" goto entered'
    yield "entered", "fib daddr type != local return"
    yield "entered", f"meta mark set {HOST_MARK:#x}"
    yield "input", f'iifname "{HOST_INTERFACE}" meta mark set 0'
    for family, ip, _ in _KINDS:
        flow = f"{ip} saddr . {ip} daddr . meta l4proto . th sport . th dport"
        reply = f"{ip} daddr . {ip} saddr . meta l4proto . th dport . th sport"
        yield "entered", f"{ip} daddr . meta l4proto . th dport @local{family} goto remember"
        yield "entered", f"{ip} daddr . meta l4proto @whole_local{family} goto remember"
        yield "remember", f"update @clients{family} {{ {ip} saddr timeout {seconds}s }}"
        yield "remember", f"update @flows{family} {{ {flow} timeout {seconds}s }}"
        # The same ports again, but past the director: from now on the host answers itself.
        yield "prerouting", f"delete @flows{family} {{ {flow} }}"
        yield "output", f"{reply} @flows{family} meta mark set {HOST_MARK:#x}"
    addresses = {end[1:-2] for end in claims.local_servers}
    addresses |= {whole[1:] for whole in claims.local_whole_servers}
    for address in sorted(addresses):
        yield "output", _error_rule(address)


def _error_rule(address: bytes) -> str:
    """An ICMP error of this host that quotes a packet to one of its servers."""
    number = int.from_bytes(address)
    if len(address) == IPv4_BYTES:
        words = "ip daddr @clients4 icmp type { destination-unreachable, time-exceeded }"
        quoted = f"@th,192,32 {number:#x}"
    else:
        words = (
            "ip6 daddr @clients6 icmpv6 type { destination-unreachable, packet-too-big,"
            " time-exceeded, parameter-problem }"
        )
        quoted = f"@th,256,128 {number:#x}"
    return f"{words} {quoted} meta mark set {HOST_MARK:#x}"


_Element = tuple[int, str]
"""The length of an address in bytes, and how an element of a set is written."""


def _end_text(end: bytes) -> _Element:
    protocol = Protocol(end[0]).name.lower()
    address = end[1:-2]
    return len(address), f"{format_address(address)} . {protocol} . {int.from_bytes(end[-2:])}"


def _whole_text(whole: bytes) -> _Element:
    address = whole[1:]
    return len(address), f"{format_address(address)} . {Protocol(whole[0]).name.lower()}"


def _of_family(elements: Iterable[_Element], family: int) -> list[str]:
    return sorted(text for size, text in elements if (size == IPv4_BYTES) == (family == 4))


def _sets(name: str, rest: str, elements: Iterable[_Element]) -> Iterator[str]:
    """A set of each family, with the elements that belong into it."""
    elements = list(elements)
    for family, _, kind in _KINDS:
        yield f"  set {name}{family} {{"
        yield f"    type {kind}{' . ' if rest else ''}{rest}"
        own = _of_family(elements, family)
        if own:
            yield f"    elements = {{ {', '.join(own)} }}"
        yield "  }"
