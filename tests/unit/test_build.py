"""From the tables of a pair file to the identities and options of a director."""

import pytest

from lvsha.build import build_director, mark_sync_ids, sync_ids
from lvsha.config import Pair, parse_pair
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.service_policy import NEVER, ServicePolicy, TellRule, TellWhen, Unknown
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.errors import ConfigError
from lvsha.model import ForwardMethod, Protocol, parse_address

PAIR = """
[nodes.east]
interfaces = { outside = "eth0" }

[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["192.0.2.1/24"]

[[services]]
name = "http"
address = "192.0.2.1"
port = 80
scheduler = "sh"
scheduler_flags = ["flag-1", "sh-port"]
persistence = 300
persistence_mask = 24
servers = [
  { address = "10.1.0.11", port = 8080, weight = 3, upper = 10, lower = 5 },
  { address = "10.1.0.12" },
]

[[services]]
name = "marked"
mark = 7
family = 6
scheduler = "none"
method = "tun"
tunnel = { type = "gue", port = 5555, checksum = "remote" }
servers = [{ address = "10.1.0.13" }]

[[marks]]
mark = 7
destinations = "2001:db8::/32"
protocol = "sctp"
ports = "1-9"

[timeouts]
tcp = 901
tcp_fin = 121
udp = 301

[ipvs]
expire_nodest_conn = true
lblc_expiration = 5
"""


def pair(text: str = PAIR) -> Pair:
    return parse_pair(text, "pair.toml")


def test_services_have_the_identity_and_options_that_the_file_says() -> None:
    http, marked = build_director(pair()).services
    assert http.name == "http"
    assert http.identity == ServiceIdentity(4, Protocol.TCP, parse_address("192.0.2.1"), 80)
    assert http.options == ServiceOptions(
        "sh", frozenset({"sh-fallback", "sh-port"}), 300, b"\xff\xff\xff\0"
    )
    assert marked.identity == ServiceIdentity(6, Protocol.TCP, mark=7)
    assert marked.scheduler is None


def test_servers_have_the_options_that_the_file_says_newest_first() -> None:
    http, marked = build_director(pair()).services
    assert [str(server) for server in http.servers] == ["10.1.0.12:80", "10.1.0.11:8080"]
    assert http.servers[1].options == ServerOptions(ForwardMethod.NAT, 3, 10, 5)
    (server,) = marked.servers
    assert server.port == 0
    assert server.options == ServerOptions(
        ForwardMethod.TUNNEL, tunnel=Tunnel(TunnelType.GUE, 5555, TunnelChecksum.REMOTE)
    )


def test_flags_by_number_stay_numbers_where_they_have_no_name() -> None:
    text = PAIR.replace('scheduler = "sh"', 'scheduler = "rr"').replace(', "sh-port"', "")
    http, _ = build_director(pair(text)).services
    assert http.options.flags == {"flag-1"}


def test_marks_settings_and_timeouts_are_in_force() -> None:
    director = build_director(pair())
    assert director.marks.rules == (
        MarkRule(7, (parse_address("2001:db8::"), 32), None, Protocol.SCTP, ((1, 9),)),
    )
    assert director.settings.expire_nodest_conn
    assert director.timeouts == (901, 121, 301)


def test_a_virtual_routers_address_is_not_held_before_it_is_master() -> None:
    director = build_director(pair())
    assert not director.holds(parse_address("192.0.2.1"))
    assert director.holds(parse_address("192.0.2.2"))


def test_the_seed_is_known_to_the_schedulers() -> None:
    http, _ = build_director(pair(PAIR + "\n[scheduling]\nseed = 5\n")).services
    assert http.scheduler_options.seed == 5


def test_an_unknown_scheduler_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        build_director(pair(PAIR.replace('"sh"', '"best"').replace('"flag-1", "sh-port"', "")))
    assert str(caught.value).startswith("services.http.scheduler: expected one of rr, ")
    assert str(caught.value).endswith(" or none, not 'best'")


def test_what_the_director_refuses_names_the_service() -> None:
    http, marked = pair().services
    # The reader of the file would have found this.
    twice = pair().model_copy(update={"services": (http, marked, http)})
    with pytest.raises(ConfigError, match=r"^services\.http: .*there already"):
        build_director(twice)


# When backups are told, and what unknown packets get

SYNC = '[sync]\ninterface = "outside"\n'


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ('"established"', TellRule()),
        ('"threshold"', TellRule(TellWhen.THRESHOLD)),
        ('"never"', TellRule(TellWhen.NEVER)),
        ("{ packets = 7 }", TellRule(TellWhen.PACKETS, packets=7)),
        ("{ after_ms = 250 }", TellRule(TellWhen.DELAY, delay=0.25)),
    ],
)
def test_services_are_told_as_they_say_or_as_the_sync_says(written: str, rule: TellRule) -> None:
    own = PAIR.replace('name = "http"', f'name = "http"\ntell = {written}\nunknown = "adopt"')
    http, marked = build_director(pair(own + SYNC)).services
    assert (http.policy, marked.policy) == (ServicePolicy(rule, Unknown.ADOPT), DEFAULT)
    director = build_director(pair(PAIR + f"{SYNC}tell = {written}\n"))
    added = director.services.add(ServiceIdentity(4, 6, bytes(4), 9), ServiceOptions("rr"))
    assert [s.policy for s in director.services] == [ServicePolicy(rule, Unknown.ASK)] * 3
    assert added.policy.tell == rule


DEFAULT = ServicePolicy(TellRule(), Unknown.ASK)


def test_where_nobody_is_told_unknown_packets_are_reset() -> None:
    for service in build_director(pair()).services:
        assert service.policy == ServicePolicy(NEVER, Unknown.RESET, asked=False)


ROUTERS = """
[nodes.east]
interfaces = { outside = "eth0" }

[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["192.0.2.1/24", "192.0.2.2/24"]

[[virtual_routers]]
name = "mail"
vrid = 8
sync_id = 80
interface = "outside"
addresses = ["198.51.100.1/24"]
"""


def mark(number: int, *destinations: str) -> str:
    """The table of a mark."""
    return f"\n[[marks]]\nmark = {number}\ndestinations = {list(destinations)}\n"


def test_each_virtual_address_has_the_sync_id_of_its_router() -> None:
    assert sync_ids(pair(ROUTERS)) == {
        parse_address("192.0.2.1"): 7,
        parse_address("192.0.2.2"): 7,
        parse_address("198.51.100.1"): 80,
    }


def test_a_mark_has_the_sync_id_of_the_first_router_that_its_rules_name() -> None:
    text = ROUTERS + mark(1, "192.0.2.2") + mark(2, "203.0.113.0/24", "198.51.100.0/24")
    text += mark(3, "198.51.100.1", "192.0.2.1") + mark(4, "0.0.0.0/0") + mark(5, "203.0.113.7")
    assert mark_sync_ids(pair(text)) == {1: 7, 2: 80, 3: 80, 4: 7}


def test_where_there_is_one_router_all_marks_have_its_sync_id() -> None:
    assert mark_sync_ids(pair()) == {7: 7}
    one = ROUTERS[: ROUTERS.rindex("[[virtual_routers]]")]
    assert mark_sync_ids(pair(one + mark(1, "192.0.2.1") + mark(2, "203.0.113.7"))) == {1: 7, 2: 7}
