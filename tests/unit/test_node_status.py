"""What a node says of its services."""

import trio

from lvsha.config import parse_pair
from lvsha.host import LinuxHost
from lvsha.node import Node

PAIR = """
[[services]]
name = "dns"
address = "192.0.2.10"
port = 53
protocol = "udp"
tell = { after_ms = 1500 }

[[services]]
name = "marked"
mark = 7
unknown = "adopt"

[[marks]]
mark = 7
destinations = "192.0.2.0/24"

[nodes.east]
interfaces = { outside = "eth0", sync = "eth1" }

[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["192.0.2.10/24"]

[sync]
tell = { packets = 5 }
"""


def part(name: str) -> dict[str, dict[str, object]]:
    """One part of the status of a node that has not begun to run."""

    async def status() -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return Node(parse_pair(PAIR, "pair.toml"), "east", LinuxHost()).status()

    told = trio.run(status)[name]
    assert isinstance(told, dict)
    return told


def services() -> dict[str, dict[str, object]]:
    return part("services")


def test_a_virtual_router_that_takes_no_part_yet_is_listed() -> None:
    router = part("routers")["web"]
    assert (router["state"], router["vrid"], router["priority"]) == ("INIT", 7, 100)
    assert (router["fault"], router["peer"], router["configured_priority"]) == (None, None, 100)


def test_a_firewall_mark_has_no_protocol_of_its_own() -> None:
    dns, marked = services().values()
    assert (dns["protocol"], dns["address"]) == ("udp", "192.0.2.10:53")
    assert (marked["protocol"], marked["address"]) == (None, "FWM 7")


def test_a_service_says_when_it_is_told_what_is_at_risk_and_what_unknown_packets_get() -> None:
    said = [(each["tell"], each["unknown"], each["at_risk"]) for each in services().values()]
    assert said == [("after 1500 ms", "ask", 0), ("after 5 packets", "adopt", 0)]
