"""The text of the rules; that the kernel takes it, and what it then does, is in tests/netns."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.claims import SECURED, Claims, MarkClaim
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.rules import ruleset
from lvsha.model import Protocol, VirtualMac, parse_address
from lvsha.wire.vrrp import virtual_mac

V4, V6, S4, S6 = map(parse_address, ("192.0.2.1", "2001:db8::1", "10.1.0.2", "fd00::2"))
MAC = bytes.fromhex("02a1b2c3d4e5")
LINKS = {"eth0": MAC}
TCP, UDP, ESP = bytes((Protocol.TCP,)), bytes((Protocol.UDP,)), bytes((Protocol.ESP,))


def port(number: int) -> bytes:
    return number.to_bytes(2)


SERVICES = frozenset({TCP + V4 + port(80), UDP + V4 + port(53), TCP + V6 + port(80)})


def sets(text: str) -> dict[str, str]:
    return {part.split(" {")[0]: part.split("\n  }")[0] for part in text.split("  set ")[1:]}


def chain(text: str, name: str) -> list[str]:
    body = text.split(f"  chain {name} {{\n")[1].split("  }\n")[0]
    return [line.strip() for line in body.splitlines()]


def test_the_table_is_replaced_in_one_step() -> None:
    lines = ruleset(LINKS, Claims(services=SERVICES)).splitlines()
    # Adding first makes the deletion succeed where there is no table yet.
    assert lines[:3] == [
        "add table netdev lvsha",
        "delete table netdev lvsha",
        "table netdev lvsha {",
    ]
    assert lines[-1] == "}"
    assert sum(line.count("{") - line.count("}") for line in lines) == 0


def test_claims_stand_in_the_set_of_their_family() -> None:
    text = ruleset(
        LINKS,
        Claims(
            services=SERVICES,
            whole_services=frozenset({ESP + V4, TCP + V6}),
            ftp=frozenset({V6}),
            servers=frozenset({TCP + S4 + port(8080)}),
            whole_servers=frozenset({UDP + S6}),
        ),
    )
    found = sets(text)
    assert "192.0.2.1 . tcp . 80, 192.0.2.1 . udp . 53" in found["services4"]
    assert "2001:db8::1 . tcp . 80" in found["services6"]
    assert "192.0.2.1 . esp" in found["whole_services4"]
    assert "2001:db8::1 . tcp" in found["whole_services6"]
    assert "2001:db8::1" in found["ftp6"]
    assert "10.1.0.2 . tcp . 8080" in found["servers4"]
    assert "fd00::2 . udp" in found["whole_servers6"]
    for empty in ("ftp4", "servers6", "whole_servers4"):
        assert "elements" not in found[empty]


def test_every_interface_has_its_chain() -> None:
    text = ruleset(dict.fromkeys(["eth1", "eth0.7"], MAC), Claims())
    assert text.count("type filter hook ingress device") == 2
    assert 'device "eth0.7" priority -500' in text
    assert 'device "eth1" priority -500' in text
    assert text.count("jump ingress") == 2


def test_whole_claims_take_all_fragments_and_others_learn_them_from_the_first() -> None:
    lines = chain(ruleset(LINKS, Claims()), "ingress")
    for line in lines:
        if "dport" in line or "sport" in line:
            assert line.endswith("goto taken")
        else:
            assert line.endswith("drop") or line == "jump marks"
    assert chain(ruleset({}, Claims()), "taken")[-1] == "drop"


def test_marks_keep_their_order_and_end_the_search_where_they_have_no_service() -> None:
    net = parse_address("192.0.2.0"), 24
    rule = MarkRule(1, net, (S4, 32), 0, ((80, 90), (85, 95), (96, 97), (200, 200)))
    claims = Claims(
        marks=(
            MarkClaim(MarkRule(1, (V6, 128)), SECURED, taken=True),
            MarkClaim(rule, (int(Protocol.TCP), int(Protocol.SCTP)), taken=False),
        )
    )
    server, protocols, ports = "10.1.0.2/32", "{ tcp, sctp }", "{ 80-97, 200 }"
    assert chain(ruleset(LINKS, claims), "marks") == [
        "ip6 daddr 2001:db8::1/128 meta l4proto { esp, ah } goto taken",
        f"ip daddr 192.0.2.0/24 ip saddr {server} meta l4proto {protocols} th dport {ports} return",
    ]


def test_the_second_table_is_changed_in_place() -> None:
    claims = Claims(local_servers=frozenset({TCP + S4 + port(80)}))
    assert "table inet" not in ruleset(LINKS, claims)
    lines = ruleset(LINKS, claims, 899.5).splitlines()
    own = [line for line in lines if " inet lvsha" in line]
    assert not [line for line in own if line.startswith("delete")]
    # What it remembers is never flushed; what is configured is.
    flushed = {line.split()[4] for line in own if line.startswith("flush set")}
    assert flushed == {"local4", "local6", "whole_local4", "whole_local6"}
    assert "add element inet lvsha local4 { 10.1.0.2 . tcp . 80 }" in own
    assert any("timeout 900s" in line for line in own)
    assert any("icmp type" in line and "@th,192,32 0xa010002" in line for line in own)


def sum_of(frame: bytes) -> int:
    """What octets add to the checksum of a packet (RFC 1071)."""
    return int(sum(struct.unpack(f"!{len(frame) // 2}H", frame)) % 0xFFFF)


def test_a_virtual_mac_is_taken_and_told() -> None:
    macs = [VirtualMac(virtual_mac(51, 4), frozenset({V4, V6}))]
    text = ruleset(LINKS, Claims(), None, macs)
    assert chain(text, "ingress")[:2] == [
        "ether daddr 00:00:5e:00:01:33 fib daddr type local meta pkttype set host",
        "ether daddr 00:00:5e:00:01:33 arp daddr ip 192.0.2.1 meta pkttype set host",
    ]
    arp, discovery = (part.split("  }\n}")[0] for part in text.split("  chain output {\n")[1:])
    assert "arp saddr ip 192.0.2.1 arp saddr ether set 00:00:5e:00:01:33" in arp
    told = [line for line in discovery.splitlines() if "icmpv6" in line]
    assert [line.split("icmpv6 type ")[1].split()[0] for line in told] == [
        "nd-neighbor-advert",
        "nd-neighbor-solicit",
    ]
    assert all(f"@th,208,48 {int.from_bytes(MAC):#x} @th,208,48 set 0x5e000133" in t for t in told)
    assert "arp" not in ruleset(LINKS, Claims()), "nobody asks for it"


@given(st.binary(min_size=6, max_size=6), st.integers(1, 255))
def test_the_checksum_of_what_neighbours_are_told_stays_right(own: bytes, vrid: int) -> None:
    mac = virtual_mac(vrid, 6)
    text = ruleset({"eth0": own}, Claims(), None, [VirtualMac(mac, frozenset({V6}))])
    change = text.split(f"@th,208,48 set {int.from_bytes(mac):#x} @th,48,16 set ")[1].split()[0]
    assert (sum_of(mac) + int(change, 16)) % 0xFFFF == sum_of(own)
