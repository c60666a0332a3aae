from pathlib import Path

import pytest

from lvsha.config import Pair, load_pair, parse_pair
from lvsha.errors import ConfigError
from lvsha.model import ForwardMethod, Protocol, parse_address

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
        ("[sync]", "[sync]\nthreshold = 50", "sync.threshold", "a number below period"),
        ("[sync]", '[sync]\ngroup = "10.0.0.1"', "sync.group", "multicast"),
        ("[sync]", '[sync]\nkey_file = "sync.key"', "sync.key_file", "an absolute path"),
        ("[sync]", '[sync]\nkey_file = "/a\\u0000b"', "sync.key_file", "an absolute path"),
        ("[sync]", "[sync]\nkey_file = 1", "sync.key_file", "an absolute path"),
        ("[sync]", '[sync]\nformat = "conntrackd"', "sync.format", "'lvsha' or 'ipvs'"),
        ("[sync]", "[sync]\nmaxlen = 1400", "sync.maxlen", 'only with format = "ipvs"'),
        (
            "[sync]",
            '[sync]\nformat = "ipvs"\ndatagram_max = 1400',
            "sync.datagram_max",
            'only with format = "lvsha"',
        ),
        (
            "[sync]",
            '[sync]\nformat = "ipvs"\nport = 65535\nports = 2',
            "sync.ports",
            "no port above 65535",
        ),
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
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: No such file [a-z ]+$"):
        load_pair(tmp_path / "missing.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="cannot be read: expected UTF-8, not the byte 0xe9"):
        load_pair(latin)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
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
        ("[sync]", '[sync]\nkey_file = "/etc/lvsha/sync.key"', {"sync"}),
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


# Services


def with_service(keys: str) -> str:
    """The good file with another service, of these keys beside its name."""
    head, _, tail = GOOD.partition("[sync]")
    return f'{head}[[services]]\nname = "more"\n{keys}\n[sync]{tail}'


MARKS = """
[[marks]]
mark = 7
destinations = ["192.0.2.0/24", "2001:db8::/32"]
sources = "198.51.100.0/24"
protocol = "tcp"
ports = [80, "8000-8010"]
"""


def test_a_service_takes_everything_that_ipvsadm_can_say() -> None:
    pair = parse_pair(
        with_service("""
address = "192.0.2.1"
port = 0
protocol = "udp"
scheduler = "mh"
scheduler_flags = ["mh-port", "mh-fallback", "flag-3"]
persistence = 360
persistence_mask = "255.255.255.0"
engine = "sip"
one_packet = true
method = "tun"
tunnel = { type = "gre", checksum = "checksum" }
servers = [
  { address = "10.1.0.11", upper = 100, lower = 80, weight = 0 },
  { address = "fd00::12", tunnel = { type = "gue", port = 5555, checksum = "remote" } },
  { address = "10.1.0.13", method = "nat", port = 8080 },
]
"""),
        "x",
    )
    service = pair.services[1]
    assert (service.protocol_number, service.ip_version, service.default_port) == (17, 4, 0)
    assert service.netmask == b"\xff\xff\xff\0"
    assert [service.port_of(server) for server in service.servers] == [0, 0, 8080]
    tunnels = [service.tunnel_of(server) for server in service.servers]
    assert [(t.type, t.port, t.checksum) for t in tunnels[:2]] == [
        ("gre", None, "checksum"),
        ("gue", 5555, "remote"),
    ]


def test_a_mark_stands_for_an_address_and_all_ports() -> None:
    pair = parse_pair(
        with_service(
            'mark = 7\nservers = [{ address = "10.1.0.11" }, { address = "10.1.0.12", port = 9 }]'
        )
        + MARKS,
        "x",
    )
    service = pair.services[1]
    assert (service.mark, service.ip_version, service.protocol_number) == (7, 4, Protocol.TCP)
    assert [service.port_of(server) for server in service.servers] == [0, 9]


@pytest.mark.parametrize(
    ("mask", "family", "expected"),
    [
        ("24", 4, "255.255.255.0"),
        ('"255.0.255.0"', 4, "255.0.255.0"),
        ('"64"', 6, "ffff:ffff:ffff:ffff::"),
        ("128", 6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ],
)
def test_a_mask_is_dotted_or_a_prefix_length(mask: str, family: int, expected: str) -> None:
    text = with_service(f"mark = 7\nfamily = {family}\npersistence = 1\npersistence_mask = {mask}")
    marks = MARKS.replace('sources = "198.51.100.0/24"', "")
    assert parse_pair(text + marks, "x").services[1].netmask == parse_address(expected)


ADDRESSED = 'address = "192.0.2.9"\nport = 80\n'


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("port = 80", "services[1].address: missing"),
        ('address = "192.0.2.9"', "services[1].port: missing"),
        ('address = "192.0.2.9"\nport = 0', "services[1].port: expected 1 to 65535"),
        (ADDRESSED + "family = 6", "services[1].family: expected 4 or none"),
        (ADDRESSED + "mark = 7", "services[1].address: expected none, because the mark"),
        ("mark = 7\nprotocol = 'udp'", "services[1].protocol: expected none"),
        ("mark = 0", "services[1].mark: expected greater than or equal to 1"),
        ("mark = 4294967296", "services[1].mark: expected less than or equal to 4294967295"),
        ("mark = 8", "services.more.mark: expected a mark that [[marks]] gives"),
        ("mark = 7\nfamily = 6", "services.more.mark: expected a mark that [[marks]] gives"),
        (ADDRESSED + 'scheduler_flags = ["sh-port"]', "services[1].scheduler_flags: expected sh-"),
        (ADDRESSED + 'scheduler = "sh"\nscheduler_flags = ["mh-port"]', "only with the scheduler"),
        (ADDRESSED + 'scheduler_flags = ["flag-4"]', "services[1].scheduler_flags[0]: expected"),
        (ADDRESSED + "persistence = 2678401", "services[1].persistence: expected less than"),
        (ADDRESSED + "persistence_mask = 24", "services[1].persistence_mask: expected none"),
        (ADDRESSED + "persistence = 1\npersistence_mask = 33", "expected 1 to 32"),
        (ADDRESSED + "persistence = 1\npersistence_mask = 0", "persistence_mask: expected a mask"),
        (ADDRESSED + "persistence = 1\npersistence_mask = 'a.b'", "expected a mask such as"),
        (ADDRESSED + "one_packet = true", "services[1].one_packet: expected false"),
        (ADDRESSED + 'persistence = 1\nengine = "sip"', "services[1].engine: expected none"),
        (ADDRESSED + 'protocol = "udp"\nengine = "sip"', "because persistence is 0"),
        (ADDRESSED + 'protocol = "icmp"', "services[1].protocol: expected 'tcp', 'udp' or 'sctp'"),
        (ADDRESSED + 'tunnel = { type = "gre" }', "services.more.tunnel: expected none"),
        (ADDRESSED + 'tunnel = { type = "gue" }', "services[1].tunnel.port: missing"),
        (ADDRESSED + "tunnel = { port = 1 }", "services[1].tunnel.port: expected none"),
        (ADDRESSED + 'tunnel = { checksum = "checksum" }', "ipip has no checksum"),
        (ADDRESSED + 'tunnel = { type = "gre", checksum = "remote" }', 'only gue has "remote"'),
        ('address = "2001:db8::1"\nport = 80\npersistence = 1\npersistence_mask = "255.0.0.0"',
         "services[1].persistence_mask: expected 1 to 128"),
    ],
)  # fmt: skip
def test_a_service_that_ipvsadm_would_refuse_is_a_mistake(keys: str, line: str) -> None:
    lines = wrong(with_service(keys) + MARKS)
    assert any(line in each for each in lines), lines


@pytest.mark.parametrize(
    ("server", "line"),
    [
        ('address = "10.1.0.11", port = 0', "port: expected 1 to 65535, because the service has"),
        ('address = "10.1.0.11", upper = 1, lower = 2', "servers[0].lower: expected a number up"),
        ('address = "10.1.0.11", upper = 2147483648', "servers[0].upper: expected less than"),
        ('address = "224.0.0.1"', "servers[0].address: expected a unicast address"),
        ('address = "255.255.255.255"', "servers[0].address: expected a unicast address"),
        ('address = "fe80::1", method = "tun"', "servers[0].address: expected a unicast address"),
        ('address = "fd00::1"', "because only a tunnel leads to the other family"),
        ('address = "10.1.0.11", tunnel = {}', "tunnel: expected none, because the method is not"),
    ],
)
def test_a_server_that_ipvsadm_would_refuse_is_a_mistake(server: str, line: str) -> None:
    lines = wrong(with_service(f"{ADDRESSED}servers = [{{ {server} }}]"))
    assert any(line in each for each in lines), lines


def test_several_mistakes_of_one_table_are_told_together() -> None:
    lines = wrong(with_service("port = 0\none_packet = true"))
    assert [line.partition(":")[0] for line in lines] == [
        "services[1].address",
        "services[1].port",
        "services[1].one_packet",
    ]


def test_two_services_may_not_have_the_same_mark_but_one_of_each_family_may() -> None:
    service = '[[services]]\nname = "{}"\nmark = 7\nfamily = {}\n'
    text = GOOD + MARKS.replace('sources = "198.51.100.0/24"', "")
    both = text + service.format("a", 4) + service.format("b", 6)
    assert len(parse_pair(both, "x").services) == 3
    (line,) = wrong(both + service.format("c", 6))
    assert line == "services.c: expected a mark that 'b' does not use"


# Firewall marks


def test_a_table_of_marks_is_a_rule_for_each_pair_of_prefixes() -> None:
    text = GOOD + MARKS.replace('"198.51.100.0/24"', '["198.51.100.0/24", "10.0.0.0/8"]')
    (mark,) = parse_pair(text, "x").marks
    prefix = (parse_address("192.0.2.0"), 24)
    ports = ((80, 80), (8000, 8010))
    # What is for IPv4 sources only cannot fit an IPv6 packet.
    assert list(mark.rules()) == [
        (7, prefix, (parse_address("198.51.100.0"), 24), Protocol.TCP, ports),
        (7, prefix, (parse_address("10.0.0.0"), 8), Protocol.TCP, ports),
    ]


def test_marks_without_sources_or_protocol_fit_all() -> None:
    text = GOOD + '[[marks]]\nmark = 1\ndestinations = "192.0.2.1"\n'
    (mark,) = parse_pair(text, "x").marks
    assert list(mark.rules()) == [(1, (parse_address("192.0.2.1"), 32), None, 0, ())]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("mark = 7", "mark = 0", "marks[0].mark: expected greater"),
        ('"192.0.2.0/24"', '"192.0.2.1/24"', "marks[0].destinations[0]: expected an IP prefix"),
        ('["192.0.2.0/24", "2001:db8::/32"]', "[]", "marks[0].destinations: expected"),
        ('protocol = "tcp"', "", "marks[0].ports: expected none, because no protocol"),
        ("80,", "0,", "marks[0].ports[0]: expected a port from 1 to 65535"),
        ("80,", "true,", "marks[0].ports[0]: expected a port from 1 to 65535"),
        ('"8000-8010"', '"8010-8000"', "marks[0].ports[1]: expected a port from 1 to 65535"),
        ('"8000-8010"', '"http"', "marks[0].ports[1]: expected a port from 1 to 65535"),
        (', "2001:db8::/32"]\nsources = "198.51.100.0/24"', ']\nsources = "fd00::/8"',
         "marks[0].sources: expected prefixes of the destinations' family"),
    ],
)  # fmt: skip
def test_a_wrong_rule_for_marks_is_named(old: str, new: str, line: str) -> None:
    assert old in MARKS
    lines = wrong(GOOD + MARKS.replace(old, new))
    assert any(each.startswith(line) for each in lines), lines


def test_marks_come_to_a_bounded_number_of_rules() -> None:
    many = ", ".join(f'"10.{n // 256}.{n % 256}.0/24"' for n in range(101))
    text = f"[[marks]]\nmark = 1\ndestinations = [{many}]\nsources = [{many}]\n"
    (line,) = wrong(GOOD + text)
    assert line == (
        "marks: expected at most 10000 pairs of destination and source, but there are 10201"
    )


def test_the_order_of_marks_makes_a_difference() -> None:
    one = "[[marks]]\nmark = 1\ndestinations = '192.0.2.0/24'\n"
    other = "[[marks]]\nmark = 2\ndestinations = '192.0.2.0/25'\n"
    first, second = parse_pair(GOOD + one + other, "x"), parse_pair(GOOD + other + one, "x")
    assert digests_differ(first, second) == {"marks"}


# Settings


def test_settings_have_the_kernels_names_and_defaults() -> None:
    text = GOOD.replace("[sync]", '[ipvs]\nexpire_nodest_conn = 1\nsync_threshold = "5 60"')
    pair = parse_pair(text, "x")
    assert pair.settings.expire_nodest_conn
    assert pair.settings.sync_threshold == (5, 60)
    assert pair.settings.drop_entry == 0


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("drop_entri = 1", "ipvs.drop_entri: unknown key"),
        ("drop_entry = 4", "ipvs.drop_entry: expected less than or equal to 3"),
        ("sync_threshold = [50, 50]", "ipvs.sync_threshold: expected a threshold below"),
        ("sync_ports = 3", "ipvs.sync_ports: expected a power of 2"),
        ("sync_threshold = [4, 50]\n[sync]\nthreshold = 3\nperiod = 50",
         "sync.threshold: expected 4 or none, because of ipvs.sync_threshold"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(keys: str, line: str) -> None:
    (told,) = wrong(GOOD.replace("[sync]", "[ipvs]\n" + keys))
    assert told.startswith(line)


def test_the_threshold_may_stand_in_either_table() -> None:
    sync = "[sync]\nthreshold = 4\nperiod = 60\n"
    assert parse_pair(GOOD.replace("[sync]", sync), "x").settings.sync_threshold == (4, 60)
    ipvs = "[ipvs]\nsync_threshold = [4, 60]\n"
    assert parse_pair(GOOD.replace("[sync]", ipvs), "x").settings.sync_threshold == (4, 60)
    assert parse_pair(GOOD + ipvs, "x").settings.sync_threshold == (4, 60)
    assert parse_pair(GOOD.replace("[sync]", sync + ipvs), "x").settings.sync_threshold == (4, 60)


def test_the_nodes_can_name_a_setting_or_seed_that_differs() -> None:
    good = parse_pair(GOOD, "x")
    assert digests_differ(good, parse_pair(GOOD + "[ipvs]\ndrop_entry = 1", "x")) == {"ipvs"}
    assert digests_differ(good, parse_pair(GOOD + "[scheduling]\nseed = 1", "x")) == {"scheduling"}


# Replay

REPLAY = """
[[replay.interfaces]]
name = "eth0"
mac = "02-00-00-00-00-AA"
addresses = ["192.0.2.2/24"]
[[replay.interfaces]]
name = "eth1"
mtu = 9000
[[replay.routes]]
prefix = "0.0.0.0/0"
via = "192.0.2.254"
interface = "eth0"
[[replay.neighbours]]
address = "192.0.2.254"
mac = "02:00:00:00:00:fe"
interface = "eth0"
[[replay.neighbours]]
address = "10.1.0.11"
interface = "eth1"
"""


def test_a_replay_has_interfaces_routes_and_neighbours() -> None:
    replay = parse_pair(GOOD + REPLAY, "x").replay
    assert replay is not None
    assert [each.mac for each in replay.interfaces] == ["02:00:00:00:00:aa", None]
    assert [each.mac for each in replay.neighbours] == ["02:00:00:00:00:fe", None]
    assert [each.mtu for each in replay.interfaces] == [1500, 9000]


def test_what_a_replay_reads_is_nothing_that_nodes_must_agree_on() -> None:
    assert parse_pair(GOOD + REPLAY, "x").digests() == parse_pair(GOOD, "x").digests()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("02-00-00-00-00-AA", "02-00-00", "replay.interfaces[0].mac: expected a hardware address"),
        ('name = "eth1"', 'name = "eth0"', "replay.interfaces: expected different names"),
        ("mtu = 9000", 'mac = "02:00:00:00:00:aa"', "replay.interfaces: expected different macs"),
        ("mtu = 9000", "mtu = 67", "replay.interfaces[1].mtu: expected greater"),
        ('via = "192.0.2.254"\ninterface = "eth0"', 'interface = "eth7"',
         "replay.routes[0].interface: expected one of eth0, eth1, not 'eth7'"),
        ('"0.0.0.0/0"', '"::/0"', "replay.routes[0].via: expected an IPv6 address"),
        ('address = "10.1.0.11"\ninterface = "eth1"', 'address = "10.1.0.11"\ninterface = "x"',
         "replay.neighbours[1].interface: expected one of eth0, eth1, not 'x'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_replay_is_named(old: str, new: str, line: str) -> None:
    assert old in REPLAY
    lines = wrong(GOOD + REPLAY.replace(old, new))
    assert any(each.startswith(line) for each in lines), lines


# When backups are told, and what unknown packets get

WEB = 'address = "192.0.2.1"\nport = 81\n'
TELL = 'expected "established", "threshold", "templates", "never", { packets = N }'


@pytest.mark.parametrize(
    ("text", "when", "packets", "after_ms"),
    [
        ('"established"', "established", None, None),
        ('"threshold"', "threshold", None, None),
        ('"never"', "never", None, None),
        ("{ packets = 5 }", None, 5, None),
        ("{ after_ms = 500 }", None, None, 500),
    ],
)
def test_a_rule_for_telling_is_a_word_or_a_number(
    text: str, when: str | None, packets: int | None, after_ms: int | None
) -> None:
    whole = parse_pair(GOOD.replace("[sync]", f"[sync]\ntell = {text}"), "x")
    assert whole.sync is not None
    service = parse_pair(with_service(f"{WEB}tell = {text}"), "x").services[1]
    for tell in (whole.sync.tell, service.tell):
        assert tell is not None
        assert (tell.when, tell.packets, tell.after_ms) == (when, packets, after_ms)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('tell = "sometimes"', f"services[1].tell: {TELL}"),
        ("tell = 5", f"services[1].tell: {TELL}"),
        ("tell = [5]", f"services[1].tell: {TELL}"),
        ("tell = {}", "services[1].tell.packets: missing; expected a number"),
        (
            "tell = { packets = 5, after_ms = 5 }",
            "services[1].tell.after_ms: expected none, because of packets",
        ),
        ("tell = { packets = 0 }", "services[1].tell.packets: expected greater than or equal to 1"),
        ("tell = { after_ms = 60001 }", "services[1].tell.after_ms: expected less than"),
        ("tell = { seconds = 1 }", "services[1].tell.seconds: unknown key"),
        ('tell = "templates"', 'services[1].tell: expected another rule, such as "never"'),
        ('unknown = "guess"', "services[1].unknown: expected 'kernel', 'adopt', 'ask' or 'reset'"),
        (
            'protocol = "udp"\nunknown = "reset"',
            "services[1].unknown: expected none, because every datagram may open",
        ),
    ],
)
def test_a_mistake_in_them_is_named(keys: str, told: str) -> None:
    assert any(line.startswith(told) for line in wrong(with_service(WEB + keys)))


def test_templates_alone_may_be_told_of_a_persistent_service() -> None:
    service = parse_pair(with_service(f'{WEB}persistence = 60\ntell = "templates"'), "x").services[
        1
    ]
    assert service.tell is not None


def test_without_sync_nobody_can_be_told_or_asked() -> None:
    keys = WEB + 'tell = "never"\nunknown = "ask"'
    text, _, _ = with_service(keys).partition("[sync]")
    assert wrong(text) == [
        "services.more.tell: expected none, because there is no [sync]",
        (
            'services.more.unknown: expected "kernel", "adopt" or "reset", because only in '
            "lvsha's own [sync] format is there somebody to ask"
        ),
    ]
