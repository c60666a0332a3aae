"""What a node says of its services."""

from typing import Any, cast

import pytest
import trio

from lvsha.config import parse_pair
from lvsha.datapath.services import RealServer, ServerOptions, Statistics
from lvsha.host import LinuxHost
from lvsha.model import parse_address
from lvsha.node import Node
from lvsha.turns import Turns

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
        return await Node(parse_pair(PAIR, "pair.toml"), "east", LinuxHost()).status()

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


async def a_node_with_a_server() -> tuple[Node, RealServer]:
    node = Node(parse_pair(PAIR, "pair.toml"), "east", LinuxHost())
    dns, _ = node.director.services
    await trio.lowlevel.checkpoint()
    address = parse_address("10.1.0.11")
    return node, node.director.services.add_server(dns.identity, address, 53, ServerOptions())


def test_what_a_server_carries_is_told_under_its_name() -> None:
    async def status() -> tuple[dict[str, Any], int]:
        node, server = await a_node_with_a_server()
        server.active, server.inactive, server.persistent = 1, 2, 3
        server.statistics.add(Statistics(400, 500, 600, 7000, 8000))
        server.rates.tick(server.statistics)
        assert 0 < server.rates.connections < server.rates.in_packets
        services = cast("dict[str, dict[str, list[Any]]]", (await node.status())["services"])
        (told,) = services["dns"]["servers"]
        return told, server.rates.connections

    told, rate = trio.run(status)
    assert told == {
        "address": "10.1.0.11:53",
        "method": "direct_route",
        "weight": 1,
        "active": 1,
        "inactive": 2,
        "persistent": 3,
        "connections": 400,
        "in_packets": 500,
        "out_packets": 600,
        "in_bytes": 7000,
        "out_bytes": 8000,
        "connections_per_second": rate,
        "leaving": False,
    }


def test_services_may_go_while_the_status_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def status() -> object:
        node, _ = await a_node_with_a_server()

        class Meddling(Turns):
            async def pass_on(self) -> None:
                node.director.services.flush()
                await trio.lowlevel.checkpoint()

        monkeypatch.setattr("lvsha.node.Turns", Meddling)
        return (await node.status())["services"]

    told = trio.run(status)
    assert isinstance(told, dict)
    assert list(told) == ["dns", "marked"]
