"""What of a changed pair file is taken over at once, what waits, and what is refused."""

import pytest

from lvsha.config import Pair, parse_pair
from lvsha.errors import ConfigError
from lvsha.reload import plan

NODES = """
[nodes.east]
priority = 150
interfaces = { outside = "eth0", inside = "eth1" }

[nodes.west]
interfaces = { outside = "eth0", inside = "eth1" }
"""
ROUTER = """
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24"]
"""
HTTP = """
[[services]]
name = "http"
address = "192.0.2.10"
port = 80
servers = [{ address = "10.1.0.11" }]
"""
DNS = HTTP.replace("http", "dns").replace("80", "53")
QUORUM = """
[[trackers]]
name = "enough"
kind = "quorum"
services = ["http"]
servers = 1
"""
MARKED = """
[[marks]]
mark = 7
destinations = "192.0.2.99/32"

[[services]]
name = "marked"
mark = 7
"""


def pair(*parts: str) -> Pair:
    return parse_pair("\n".join(parts), "pair.toml")


RUNNING = pair(ROUTER, HTTP, NODES)


def test_the_same_file_is_nothing_to_do() -> None:
    planned = plan(RUNNING, pair(ROUTER, HTTP, NODES))
    assert (planned.taken, planned.waiting) == ((), ())
    assert planned.pair == RUNNING


def test_services_marks_timeouts_settings_and_priorities_are_taken_over() -> None:
    found = pair(
        ROUTER,
        HTTP.replace("}]", ', weight = 3 }]\nscheduler = "rr"'),
        MARKED,
        "[timeouts]\nudp = 10\n[ipvs]\nexpire_nodest_conn = true\n",
        NODES.replace("150", "120"),
    )
    planned = plan(RUNNING, found)
    taken = ("ipvs", "marks", "nodes.east", "services.http", "services.marked", "timeouts")
    assert planned.taken == taken
    assert planned.waiting == ()
    assert planned.pair.digest() == found.digest()


def test_what_waits_is_named_and_the_rest_is_followed() -> None:
    found = pair(
        ROUTER.replace('["192', '["192.0.2.11/24", "192'),
        DNS,
        "[limits]\nconnections = 5\n",
        NODES.replace("eth1", "eth2").replace("150", "120"),
    )
    planned = plan(RUNNING, found)
    assert planned.taken == ("nodes.east", "services.dns", "services.http")
    assert planned.waiting == ("limits", "nodes.east", "nodes.west", "virtual_routers.web")
    followed = planned.pair
    assert followed.virtual_routers == RUNNING.virtual_routers
    assert followed.limits == RUNNING.limits
    assert followed.services == found.services
    east = followed.nodes["east"]
    assert (east.priority, east.interfaces["inside"]) == (120, "eth1")


def test_what_does_not_go_with_what_waits_is_refused() -> None:
    running = pair(ROUTER, HTTP, QUORUM, NODES)
    with pytest.raises(ConfigError, match=r"without a restart: trackers\.enough.*http"):
        plan(running, pair(ROUTER, DNS, NODES))
    with pytest.raises(ConfigError, match="scheduler"):
        plan(RUNNING, pair(ROUTER, HTTP + 'scheduler = "luck"\n', NODES))


def test_priorities_of_new_routers_and_the_owners_wait() -> None:
    second = ROUTER.replace('"web"', '"mail"').replace("51", "52").replace(".10/", ".20/")
    per_router = NODES.replace("150", "120\npriorities = { mail = 90 }")
    planned = plan(RUNNING, pair(ROUTER, second, HTTP, per_router))
    assert planned.taken == ("nodes.east",)
    assert planned.waiting == ("nodes.east", "virtual_routers.mail")
    assert planned.pair.nodes["east"].priority == 120
    both = NODES.replace("150", "255\npriorities = { mail = 90 }")
    other = NODES.replace("150", "255\npriorities = { mail = 95 }")
    planned = plan(pair(ROUTER, second, HTTP, both), pair(ROUTER, second, HTTP, other))
    assert (planned.taken, planned.waiting) == (("nodes.east",), ())
    owner = pair(ROUTER, HTTP, NODES.replace("150", "255"))
    for running, found in ((RUNNING, owner), (owner, RUNNING)):
        planned = plan(running, found)
        assert (planned.taken, planned.waiting) == ((), ("nodes.east",))
