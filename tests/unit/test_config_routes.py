"""Routes and rules of virtual routers in a pair file: lines, tables, and what is wrong in them."""

import ipaddress
import re
from pathlib import Path

import pytest

from lvsha.build_failover import place_routes, place_rules
from lvsha.config import Pair, parse_pair
from lvsha.config_routes import RouteTable, RuleTable
from lvsha.errors import ConfigError

PAIR = """
[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["{address}"]
{more}

[nodes.east]
interfaces = {{ outside = "eth0", inside = "eth1" }}
"""
INTERFACES = {"outside": "eth0", "inside": "eth1"}
IPv4, IPv6 = "192.0.2.10/24", "2001:db8::10/64"


def read(more: str, address: str = IPv4) -> Pair:
    return parse_pair(PAIR.format(more=more, address=address), "pair.toml")


def route(line: str, address: str = IPv4) -> str:
    (router,) = read(f"routes = [{line}]", address).virtual_routers
    (placed,) = place_routes(router, INTERFACES)
    return str(placed)


def rule(line: str, address: str = IPv4) -> str:
    (router,) = read(f"rules = [{line}]", address).virtual_routers
    (placed,) = place_rules(router, INTERFACES)
    return str(placed)


@pytest.mark.parametrize(
    ("line", "placed"),
    [
        ('"default via 192.0.2.1"', "default via 192.0.2.1"),
        ('"to default via 192.0.2.1 dev outside"', "default via 192.0.2.1 dev eth0"),
        ('"default via 2001:db8::1"', "::/0 via 2001:db8::1"),
        ('"default dev inside src 192.0.2.10"', "default dev eth1 src 192.0.2.10"),
        ('"default dev inside"', "default dev eth1"),
        ('"default dev inside family 6"', "::/0 dev eth1"),
        ('{ to = "default", dev = "inside", family = 6 }', "::/0 dev eth1"),
        ('"198.51.100.7 dev inside metric 5"', "198.51.100.7/32 dev eth1 metric 5"),
        (
            '"10.0.0.0/8 via 192.0.2.1 dev outside table 100 metric 10 src 192.0.2.10 onlink"',
            "10.0.0.0/8 via 192.0.2.1 dev eth0 table 100 metric 10 src 192.0.2.10 onlink",
        ),
        (
            '{ to = "2001:db8:5::/48", via = "fe80::1", dev = "outside", table = "main" }',
            "2001:db8:5::/48 via fe80::1 dev eth0",
        ),
        ('"blackhole 10.0.0.0/8 metric 9"', "blackhole 10.0.0.0/8 metric 9"),
        ('{ to = "2001:db8::/32", type = "prohibit" }', "prohibit 2001:db8::/32"),
        ('"unreachable default table 7 family 6"', "unreachable ::/0 table 7"),
        ('"10.0.0.0/8 dev inside table default"', "10.0.0.0/8 dev eth1 table 253"),
    ],
)
def test_routes_are_read_in_both_forms(line: str, placed: str) -> None:
    assert route(line) == placed


@pytest.mark.parametrize(
    ("line", "placed"),
    [
        ('"from 10.1.0.0/16 table 100"', "from 10.1.0.0/16 table 100 priority 16384"),
        ('"from 10.1.0.0/16 lookup main pref 5"', "from 10.1.0.0/16 table 254 priority 5"),
        ('"from all table 9"', "from all table 9 priority 16384"),
        ('"from 0.0.0.0/0 table 9"', "from all table 9 priority 16384"),
        ('"to ::/0 table 9"', "from ::/0 table 9 priority 16384"),
        ('"iif inside table 9 family 6"', "from ::/0 iif eth1 table 9 priority 16384"),
        ('"fwmark 0x10/0xff table 9"', "from all fwmark 0x10/0xff table 9 priority 16384"),
        ('"fwmark 7 table 9"', "from all fwmark 0x7/0xffffffff table 9 priority 16384"),
        (
            '{ from = "2001:db8::/32", to = "2001:db8:5::1", iif = "outside", table = 9 }',
            "from 2001:db8::/32 to 2001:db8:5::1/128 iif eth0 table 9 priority 16384",
        ),
        ("{ from = '10.0.0.0/8', table = 9, priority = 1 }", "from 10.0.0.0/8 table 9 priority 1"),
    ],
)
def test_rules_are_read_in_both_forms(line: str, placed: str) -> None:
    assert rule(line) == placed


def test_what_does_not_tell_its_family_has_that_of_the_router() -> None:
    assert route('"default dev inside"', IPv6) == "::/0 dev eth1"
    assert route('"default via 192.0.2.1"', IPv6) == "default via 192.0.2.1"
    assert rule('"iif inside table 9"', IPv6) == "from ::/0 iif eth1 table 9 priority 16384"
    assert rule("{ fwmark = 7, table = 9, family = 4 }", IPv6).startswith("from all fwmark")
    table = f'{{ address = "{IPv6}", interface = "outside" }}'
    text = PAIR.format(more='routes = ["default dev inside"]', address="X").replace('"X"', table)
    (router,) = parse_pair(text, "pair.toml").virtual_routers
    assert router.routes[0].to == ipaddress.ip_network("::/0")


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ('routes = ["default"]', "routes[0].via", "a gateway, or dev"),
        ('routes = ["10.0.0.1/8 dev inside"]', "routes[0].to", "without host bits"),
        ('routes = ["via 192.0.2.1"]', "routes[0].to", "missing"),
        ('routes = ["10.0.0.0/8 via 2001:db8::1"]', "routes[0].via", "an IPv4 address"),
        (
            'routes = ["10.0.0.0/8 dev inside src 2001:db8::1"]',
            "routes[0].src",
            "an IPv4 address, as in 10.0.0.0/8",
        ),
        ('routes = ["10.0.0.0/8 via 224.0.0.1"]', "routes[0].via", "of one host"),
        ('routes = ["224.0.0.0/4 dev inside"]', "routes[0].to", "no multicast prefix"),
        ('routes = ["default via 192.0.2.1 onlink"]', "routes[0].dev", "because of onlink"),
        ('routes = ["default dev inside onlink"]', "routes[0].onlink", "only with via"),
        ('routes = ["default via fe80::1"]', "routes[0].dev", "via is link-local"),
        ('routes = ["10.0.0.0/8 dev inside family 6"]', "routes[0].family", "expected 4"),
        ('routes = ["default via 192.0.2.1 proto 5"]', "routes[0]", "not 'proto'"),
        (
            'routes = ["blackhole 10.0.0.0/8 dev inside"]',
            "routes[0].dev",
            "none, because of the type",
        ),
        ('routes = [{ to = "10.0.0.0/8", type = "local" }]', "routes[0].type", "blackhole"),
        ('routes = ["default via"]', "routes[0]", "a value behind via"),
        ('routes = ["default dev inside dev inside"]', "routes[0]", "dev only once"),
        (
            'routes = ["default dev inside table 0"]',
            "routes[0].table",
            "greater than or equal to 1",
        ),
        ('routes = ["default dev inside table x"]', "routes[0].table", "or main, default or local"),
        ('routes = ["default dev inside metric x"]', "routes[0].metric", "integer"),
        ('routes = [{ to = "default", dev = "inside", nexthop = 1 }]', "routes[0].nexthop", "unk"),
        ("routes = [7]", "routes[0]", "expected"),
        ('rules = ["from 10.0.0.0/8"]', "rules[0].table", "missing"),
        ('rules = ["table 9"]', "rules[0].iif", "at least one of from, to, iif and fwmark"),
        ('rules = ["from 10.0.0.0/8 to 2001:db8::/32 table 9"]', "rules[0].to", "an IPv4 prefix"),
        ('rules = ["from 10.0.0.0/8 table 9 pref 0"]', "rules[0].priority", "or equal to 1"),
        ('rules = ["from 10.0.0.0/8 table 9 pref 32766"]', "rules[0].priority", "to 32765"),
        ('rules = ["fwmark 0x100/0xff table 9"]', "rules[0].fwmark", "within its mask"),
        ('rules = ["fwmark 0/0 table 9"]', "rules[0].fwmark", "within its mask"),
        ('rules = ["fwmark 4294967296 table 9"]', "rules[0].fwmark", "a mark such as 7"),
        ('rules = ["oif inside table 9"]', "rules[0]", "not 'oif'"),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(more: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(more)
    lines = str(caught.value).splitlines()
    assert any(f"[0].{key}: " in line and words in line for line in lines), lines


def test_an_unknown_role_is_named_with_the_key_that_uses_it() -> None:
    with pytest.raises(ConfigError, match=r"nodes\.east\.interfaces: .*'dmz'.*web\.routes uses"):
        read('routes = ["default dev dmz"]')
    with pytest.raises(ConfigError, match=r"nodes\.east\.interfaces: .*'dmz'.*web\.rules uses"):
        read('rules = ["iif dmz table 9"]')


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ('routes = ["10.0.0.0/8 dev inside", "10.0.0.0/8 via 192.0.2.1"]', "routes"),
        ('routes = ["::/0 dev inside", "::/0 dev outside metric 1024"]', "routes"),
        ('rules = ["from all table 9", "from 0.0.0.0/0 table 9"]', "rules"),
    ],
)
def test_what_the_kernel_could_not_tell_apart_is_refused(more: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"web\.{kind}: expected no two of the same"):
        read(more)


def test_what_differs_in_table_metric_or_priority_is_accepted() -> None:
    (router,) = read(
        'routes = ["default dev inside", "default dev inside metric 5", '
        '"default dev inside table 5"]\n'
        'rules = ["from all table 9", "from all table 8", "from all table 9 pref 2"]'
    ).virtual_routers
    assert (len(router.routes), len(router.rules)) == (3, 3)


def test_the_example_of_the_documentation_is_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "vrrp.md").read_text(encoding="utf-8")
    (example,) = [
        block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "routes" in block
    ]
    nodes = "[nodes.east]\ninterfaces = { outside = 'eth0', inside = 'eth1' }\n"
    (router,) = parse_pair(example + nodes, "vrrp.md").virtual_routers
    assert [route.family for route in router.routes] == [4, 4, 6]
    assert [rule.family for rule in router.rules] == [4, 4]


def test_every_word_is_described() -> None:
    page = (Path(__file__).parents[2] / "docs" / "vrrp.md").read_text(encoding="utf-8")
    _, of_routes, of_rules = re.split(r"\| word of a r[a-z]+ \|", page)
    for model, rows in ((RouteTable, of_routes), (RuleTable, of_rules)):
        described = re.findall(r"^\| (`[^|]+) \|", rows, re.MULTILINE)
        words = {word for row in described for word in re.findall(r"`(\w+)`", row)}
        for name, field in model.model_fields.items():
            assert (field.alias or name) in words, name


def test_the_digests_of_two_nodes_differ_with_a_route() -> None:
    one, other = read('routes = ["default dev inside"]'), read('routes = ["default dev outside"]')
    assert one.digests()["virtual_routers.web"] != other.digests()["virtual_routers.web"]
