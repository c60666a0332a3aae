from pathlib import Path

import pytest

from lvsha.config import Pair, load_pair, parse_pair
from lvsha.errors import ConfigError
from lvsha.model import ForwardMethod, Protocol

GOOD = """
[nodes.east]
priority = 150
interfaces = { outside = "eth0", inside = "eth1", sync = "eth2" }
[nodes.west]
interfaces = { outside = "eth0", inside = "eth1", sync = "eth2" }

[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["192.0.2.1/24", "10.1.0.1/16@inside"]

[[services]]
name = "http"
address = "192.0.2.1"
port = 80
servers = [
  { address = "10.1.0.11", port = 8080, weight = 3 },
  { address = "10.1.0.12", method = "dr" },
]

[sync]
"""


def wrong(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_pair(text, "pair.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("pair.toml: ") for line in lines)
    return [line.removeprefix("pair.toml: ") for line in lines]


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_pair_file_is_read_with_its_defaults() -> None:
    pair = parse_pair(GOOD, "pair.toml")
    (router,), (service,) = pair.virtual_routers, pair.services
    assert [(str(p.address), p.interface) for p in router.addresses] == [
        ("192.0.2.1/24", "outside"),
        ("10.1.0.1/16", "inside"),
    ]
    assert pair.nodes["east"].priority_of("web") == 150
    assert (service.protocol_number, service.scheduler) == (Protocol.TCP, "wlc")
    assert [service.method_of(s) for s in service.servers] == [
        ForwardMethod.NAT,
        ForwardMethod.DIRECT_ROUTE,
    ]
    assert (pair.timeouts.tcp, pair.timeouts.tcp_fin, pair.timeouts.udp) == (900, 120, 300)
    assert pair.sync is not None


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("vrid = 7", "vrid = 0", "virtual_routers[0].vrid", "greater than or equal to 1"),
        ("vrid = 7", "vrid = 7\nvrdi = 8", "virtual_routers[0].vrdi", "unknown key"),
        ("port = 80\n", "", "services[0].port", "missing"),
        ("port = 80\n", 'port = "http"\n', "services[0].port", "valid integer"),
        ('address = "192.0.2.1"', 'address = "vip"', "services[0].address", "an IP address"),
        ('"192.0.2.1/24"', '"192.0.2.1"', "virtual_routers[0].addresses[0]", "prefix length"),
        ('"192.0.2.1/24"', '"x/24"', "virtual_routers[0].addresses[0]", "with its prefix length"),
        ("weight = 3", "weight = -1", "services[0].servers[0].weight", "greater than or equal"),
        ("[sync]", "[sync]\nthreshold = 50", "sync", "threshold: a number below period"),
        ("[sync]", '[sync]\ngroup = "10.0.0.1"', "sync", "multicast"),
        ("[sync]", "[timeouts]\ntcp = 0", "timeouts.tcp", "greater than or equal to 1"),
        ('"eth0", inside', '"a name too long", inside', "nodes.east.interfaces.outside", "match"),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(
    old: str, new: str, key: str, words: str
) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    line = next(line for line in wrong(text) if line.startswith(key))
    assert "expected" in line
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace('inside = "eth1", ', "", 1),
         "nodes.east.interfaces: expected a key 'inside'"),
        (GOOD.replace(', sync = "eth2"', ""), "expected a key 'sync', because sync.interface"),
        (replaced("priority = 150", "priority = 100"), "a different priority on each node"),
        (replaced("priority = 150", "priority = 150\npriorities = { db = 3 }"),
         "priorities.db: expected the name of a virtual router"),
        (replaced('"10.1.0.11", port', '"fd00::1", port'), "expected an IPv4 address"),
        (replaced('"10.1.0.12", method', '"10.1.0.12", port = 81, method'),
         "only NAT can change the port"),
        (replaced('"10.1.0.12", method', '"10.1.0.11", port = 8080, method'), "each server once"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_named(text: str, words: str) -> None:
    assert any(words in line for line in wrong(text))


def test_a_server_with_and_without_the_services_port_is_the_same_server() -> None:
    text = replaced(
        '{ address = "10.1.0.12", method = "dr" }',
        '{ address = "10.1.0.12" }, { address = "10.1.0.12", port = 80 }',
    )
    (line,) = wrong(text)
    assert "services.http.servers: expected each server once" in line
    assert "10.1.0.12 port 80 stands there 2 times" in line


def test_two_services_or_routers_may_not_claim_the_same() -> None:
    service = '\n[[services]]\nname = "{}"\naddress = "192.0.2.1"\nport = 80\n'
    assert any("'http' does not use" in line for line in wrong(GOOD + service.format("again")))
    assert any("2 are called 'http'" in line for line in wrong(GOOD + service.format("http")))
    router = (
        '\n[[virtual_routers]]\nname = "second"\nvrid = 7\ninterface = "outside"\nsync_id = 9\n'
        'addresses = ["192.0.2.1/24"]\n'
    )
    lines = wrong(GOOD + router)
    assert any("second.vrid: expected a number that 'web' does not use" in line for line in lines)
    assert any("that 'web' does not hold" in line for line in lines)


def test_all_mistakes_are_told_at_once() -> None:
    text = GOOD.replace("vrid = 7", "vrid = 0").replace("port = 80\n", "port = 0\n")
    assert len(wrong(text)) == 2


def test_what_is_no_toml_is_told_with_its_place() -> None:
    (line,) = wrong("[nodes\n")
    assert "not valid TOML" in line
    assert "line 1" in line


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        load_pair(tmp_path / "missing.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pair(latin)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pair(tmp_path)


def test_a_file_is_read_from_its_path(tmp_path: Path) -> None:
    file = tmp_path / "pair.toml"
    file.write_text(GOOD, encoding="utf-8")
    assert load_pair(file) == parse_pair(GOOD, "elsewhere")


def digests_differ(one: Pair, other: Pair) -> set[str]:
    first, second = one.digests(), other.digests()
    return {name for name in first | second if first.get(name) != second.get(name)}


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("weight = 3", "weight = 4", {"services.http"}),
        ("priority = 150", "priority = 151", {"nodes.east"}),
        ("vrid = 7", "vrid = 7\npreempt = false", {"virtual_routers.web"}),
        ("[sync]", "[sync]\nttl = 2", {"sync"}),
        ("# nothing", "# nothing", set()),
    ],
)
def test_digests_name_the_piece_that_differs(old: str, new: str, names: set[str]) -> None:
    one = parse_pair(GOOD, "one")
    other = parse_pair(GOOD.replace(old, new), "other")
    assert digests_differ(one, other) == names
    assert (one.digest() == other.digest()) == (not names)


def test_the_order_of_services_makes_no_difference_but_that_of_servers_does() -> None:
    second = '\n[[services]]\nname = "a"\naddress = "192.0.2.1"\nport = 81\n'
    head, _, tail = GOOD.partition("[[services]]")
    one = parse_pair(GOOD + second, "one")
    other = parse_pair(head + second + "\n[[services]]" + tail, "other")
    assert one.digest() == other.digest()
    lines = GOOD.splitlines()
    at = next(n for n, line in enumerate(lines) if "10.1.0.11" in line)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    assert parse_pair("\n".join(lines), "x").digest() != parse_pair(GOOD, "y").digest()
