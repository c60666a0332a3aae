"""Trackers, groups and events of a pair file: what is read, and what is refused and how."""

import re

import pytest

from lvsha.config import Pair, parse_pair
from lvsha.errors import ConfigError

BASE = """
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24"]
track = ["uplink", { tracker = "gw", weight = -30 }]
notify = "/usr/local/bin/changed"

[[virtual_routers]]
name = "mail"
vrid = 52
interface = "outside"
addresses = ["192.0.2.20/24"]

[[services]]
name = "http"
address = "192.0.2.10"
port = 80

[nodes.east]
priority = 150
interfaces = { outside = "eth0" }

[nodes.west]
interfaces = { outside = "eth0" }
"""
TRACKERS = """
[[trackers]]
name = "uplink"
kind = "interface"
interface = "outside"

[[trackers]]
name = "gw"
kind = "gateway"
address = "192.0.2.254"
interface = "outside"
interval = 0.5
"""


def parse(*parts: str) -> Pair:
    return parse_pair("\n".join((BASE, TRACKERS, *parts)), "pair.toml")


def refused(*parts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*parts)
    return str(caught.value)


def tracker(**keys: object) -> str:
    """A tracker called t as TOML."""
    lines = [f"{key} = {_toml(value)}" for key, value in {"name": "t", **keys}.items()]
    return "\n".join(("[[trackers]]", *lines))


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_short_forms_stand_for_tables() -> None:
    router = parse().virtual_routers[0]
    assert [(one.tracker, one.weight) for one in router.track] == [("uplink", None), ("gw", -30)]
    assert router.notify is not None
    assert router.notify.command == ("/usr/local/bin/changed",)
    assert router.notify.states == ("MASTER", "BACKUP", "FAULT", "STOP")


def test_interval_and_timeout_have_defaults_by_kind() -> None:
    gw = parse().trackers[1]
    assert (gw.seconds_between, gw.seconds_at_most) == (0.5, 0.5)
    made = parse(tracker(kind="quorum", services=["http"], servers=1)).trackers[2]
    assert made.seconds_between == 0.2


def test_the_digest_names_trackers_and_groups() -> None:
    names = parse('[[groups]]\nname = "all"\nrouters = ["web", "mail"]').digests()
    assert {"trackers.gw", "groups.all", "events"} <= set(names)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "weather"}, r"trackers\[2\]\.kind: expected 'interface', 'route'"),
        ({"kind": "route"}, r"trackers\[2\]\.prefix: missing; expected a value, because"),
        (
            {"kind": "route", "prefix": "0.0.0.0/0", "via": "2001:db8::1"},
            r"via: expected an address of the prefix's family",
        ),
        (
            {"kind": "interface", "interface": "outside", "path": "/etc/x"},
            r'trackers\[2\]\.path: expected only with kind = "file"',
        ),
        (
            {"kind": "interface", "interface": "nowhere"},
            r"nodes\.east\.interfaces: expected a key 'nowhere', because trackers\.t uses",
        ),
        (
            {"kind": "gateway", "address": "192.0.2.1"},
            r"trackers\[2\]\.interface: missing; expected the role",
        ),
        (
            {"kind": "gateway", "address": "fe80::1", "method": "icmp"},
            r"trackers\[2\]\.interface: missing; expected the role",
        ),
        ({"kind": "script", "command": "bin/check"}, r"command: expected a program by its whole"),
        ({"kind": "script", "command": ["/x", 1]}, r"command: expected a program by its whole"),
        (
            {"kind": "script", "command": "/x", "interval": 1, "timeout": 2},
            r"trackers\[2\]\.timeout: expected at most the interval, 1 s",
        ),
        ({"kind": "script", "command": "/x", "user": "a b"}, r"trackers\[2\]\.user: expected"),
        ({"kind": "file", "path": "/x", "rise": 2}, r'rise: expected only with content = "exist'),
        ({"kind": "file", "path": "x"}, r"trackers\[2\]\.path: expected an absolute path"),
        (
            {"kind": "process", "process": "x", "quorum": 3, "quorum_max": 2},
            r"trackers\[2\]\.quorum_max: expected no less than quorum",
        ),
        (
            {"kind": "quorum", "services": ["http"]},
            r"trackers\[2\]\.servers: expected either this or share",
        ),
        (
            {"kind": "quorum", "services": ["ftp"], "servers": 1},
            r"trackers\.t\.services: expected names of services, not 'ftp'",
        ),
        ({"name": "gw", "kind": "file", "path": "/x"}, r"trackers: expected different names"),
        ({"kind": "file", "path": "/x", "interval": 0.01}, r"trackers\[2\]\.interval: expected"),
    ],
    ids=str,
)
def test_a_wrong_tracker_is_refused_by_its_key(keys: dict[str, object], said: str) -> None:
    assert re.search(said, refused(tracker(**keys)))


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ('routers = ["web"]', r"groups\[0\]\.routers: expected"),
        ('routers = ["web", "ftp"]', r"groups\.all\.routers: expected names of .* not 'ftp'"),
        ('routers = ["web", "web"]', r"groups\.all\.routers: expected each .* only once"),
        (
            'routers = ["web", "mail"]\ntrack = ["gw"]',
            r"groups\.all: expected 'gw' to mean the same to all its routers",
        ),
        ('routers = ["web", "mail"]\ntrack = ["x"]', r"groups\.all\.track: .* not 'x'"),
        ('routers = ["web", "mail"]\ntrack = ["gw", "gw"]', r"'gw' only once"),
    ],
    ids=str,
)
def test_a_wrong_group_is_refused_by_its_key(group: str, said: str) -> None:
    assert re.search(said, refused('[[groups]]\nname = "all"\n' + group))


def test_a_router_is_in_one_group() -> None:
    two = "".join(f'[[groups]]\nname = "{n}"\nrouters = ["web", "mail"]\n' for n in "ab")
    assert "groups.b.routers: expected a router that 'a' does not have" in refused(two)


def test_nodes_rank_the_routers_of_a_group_alike() -> None:
    text = (BASE + TRACKERS).replace("priority = 150", "priority = 150\npriorities = { mail = 5 }")
    with pytest.raises(ConfigError, match="nodes in the same order of priority for 'web' and 'm"):
        parse_pair(text + '[[groups]]\nname = "all"\nrouters = ["web", "mail"]', "pair.toml")


def test_routers_of_a_group_preempt_alike() -> None:
    text = (BASE + TRACKERS).replace("vrid = 52", "vrid = 52\npreempt = false")
    with pytest.raises(ConfigError, match=r"groups\.all\.routers: expected the same preempt"):
        parse_pair(text + '[[groups]]\nname = "all"\nrouters = ["web", "mail"]', "pair.toml")


@pytest.mark.parametrize("weight", [0, 254, -254])
def test_a_weight_is_within_keepaliveds_bounds_and_not_nothing(weight: int) -> None:
    text = BASE.replace("weight = -30", f"weight = {weight}") + TRACKERS
    with pytest.raises(ConfigError, match=r"virtual_routers\[0\]\.track\[1\]\.weight: expected"):
        parse_pair(text, "pair.toml")
