"""Virtual routers in a pair file: versions, peers, delays, and what contradicts itself."""

import pytest

from lvsha.config import Pair, parse_pair
from lvsha.config_failover import VirtualRouter
from lvsha.errors import ConfigError

PAIR = """
[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["{address}"]
{more}

[nodes.east]
priority = {priority}
interfaces = {{ outside = "eth0" }}

[nodes.west]
priority = 100
interfaces = {{ outside = "eth0" }}
"""


def read(more: str = "", address: str = "192.0.2.1/24", priority: int = 200) -> Pair:
    text = PAIR.format(more=more, address=address, priority=priority)
    return parse_pair(text, "pair.toml")


def router(more: str = "", address: str = "192.0.2.1/24") -> VirtualRouter:
    return read(more, address).virtual_routers[0]


def test_defaults() -> None:
    made = router()
    assert (made.version, made.preempt_delay, made.startup_delay) == (3, 0.0, 0.0)
    assert (made.peers, made.hop_limit_min, made.checksum) == ((), 255, "auto")


@pytest.mark.parametrize(
    "more",
    [
        "version = 2\nadvert_interval = 255",
        "advert_interval = 0.01",
        "advert_interval = 0.29",
        "advert_interval = 40.95",
        'peers = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]\nhop_limit_min = 250',
        "preempt_delay = 300\nstartup_delay = 2.5",
        "announce_again = []\nannounce_every = 0\nannounce_repeat = 16",
    ],
)
def test_what_is_right_is_accepted(more: str) -> None:
    assert router(more).name == "web"


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ("version = 4", "version", "2 or 3"),
        ("version = 2\nadvert_interval = 0.1", "advert_interval", "whole seconds with version 2"),
        ("version = 2\nadvert_interval = 1.5", "advert_interval", "whole seconds with version 2"),
        ("advert_interval = 41", "advert_interval", "no more than 40.95 with version 3"),
        ("advert_interval = 256", "advert_interval", "less than or equal to 255"),
        ("advert_interval = 0.015", "advert_interval", "a multiple of 0.01"),
        ('version = 2\nchecksum = "keepalived"', "checksum", 'none or "auto" with version 2'),
        ('peers = ["10.0.0.1"]', "peers", "at least two different addresses"),
        ('peers = ["10.0.0.1", "10.0.0.1"]', "peers", "at least two different addresses"),
        ('peers = ["10.0.0.1", "fe80::1"]', "peers", "IPv4 addresses of speakers, not fe80::1"),
        ('peers = ["10.0.0.1", "224.0.0.18"]', "peers", "not 224.0.0.18"),
        ('peers = ["10.0.0.1", "192.0.2.1"]', "peers", "no virtual address, not 192.0.2.1"),
        ('speakers = ["10.0.0.1"]', "speakers", "at least two different addresses"),
        ('speakers = ["10.0.0.1", "fe80::1"]', "speakers", "IPv4 addresses of speakers"),
        (
            'peers = ["10.0.0.1", "10.0.0.2"]\nspeakers = ["10.0.0.1", "10.0.0.2"]',
            "speakers",
            "only without peers",
        ),
        ('peers = ["10.0.0.1", "east"]', "peers[1]", "an IP address"),
        ("hop_limit_min = 254", "hop_limit_min", "only with peers"),
        ("preempt_delay = -1", "preempt_delay", "greater than or equal to 0"),
        ("announce_again = [0]", "announce_again[0]", "greater than 0"),
        ("announce_again = 5", "announce_again", "tuple"),
        ("announce_every = 0.5", "announce_every", "0 for never, or at least 1"),
        ("announce_repeat = 0", "announce_repeat", "greater than or equal to 1"),
        ("startup_delay = 3601", "startup_delay", "less than or equal to 3600"),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(more: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(more)
    line = next(line for line in str(caught.value).splitlines() if f"[0].{key}:" in line)
    assert "expected" in line
    assert words in line


def test_version_2_has_no_ipv6() -> None:
    with pytest.raises(ConfigError, match=r"version: expected 3, because .* IPv6"):
        read("version = 2", "2001:db8::1/64")


def test_a_node_may_own_the_addresses_and_no_more_than_one() -> None:
    assert read(priority=255).nodes["east"].priority_of("web") == 255
    with pytest.raises(ConfigError, match="less than or equal to 255"):
        read(priority=256)


def test_a_virtual_mac_is_asked_for_and_is_that_of_the_family() -> None:
    assert router().mac is None
    assert router("virtual_mac = true").mac == bytes.fromhex("00005e000107")
    assert router("virtual_mac = true", "2001:db8::1/64").mac == bytes.fromhex("00005e000207")


def test_two_virtual_routers_cannot_have_the_same_mac() -> None:
    with pytest.raises(ConfigError, match=r"other.virtual_mac: expected false, or another vrid"):
        read(
            "virtual_mac = true\n[[virtual_routers]]\nname = 'other'\nvrid = 7\n"
            "interface = 'inside'\naddresses = ['10.0.0.9/24']\nvirtual_mac = true\nsync_id = 9"
        )
