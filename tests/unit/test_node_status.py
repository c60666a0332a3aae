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

[[services]]
name = "marked"
mark = 7

[[marks]]
mark = 7
destinations = "192.0.2.0/24"

[nodes.east]
interfaces = { outside = "eth0" }
"""


def test_a_firewall_mark_has_no_protocol_of_its_own() -> None:
    async def status() -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return Node(parse_pair(PAIR, "pair.toml"), "east", LinuxHost()).status()

    services = trio.run(status)["services"]
    assert isinstance(services, dict)
    assert (services["dns"]["protocol"], services["dns"]["address"]) == ("udp", "192.0.2.10:53")
    assert (services["marked"]["protocol"], services["marked"]["address"]) == (None, "FWM 7")
