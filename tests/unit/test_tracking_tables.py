"""What trackers find in the mirror of the network and in the services."""

import ipaddress

import pytest

from lvsha.datapath.network import AddressChange, LinkChange, Network, RouteChange
from lvsha.failover.tracking import Reading
from lvsha.model import parse_address
from lvsha.tracking.tables import read_interface, read_quorum, read_route
from tests.laboratory import Laboratory

OWN, VIRTUAL = parse_address("192.0.2.1"), parse_address("192.0.2.10")
GATEWAY = parse_address("192.0.2.254")
UP = Reading(up=True)


def network(*, up: bool = True) -> Network:
    made = Laboratory().director.network
    made.clear()
    made.apply(LinkChange(5, "eth0", bytes(6), 1500, up))
    return made


def route(prefix: str, *, via: bytes = GATEWAY, link: int = 5, **more: bool) -> RouteChange:
    parsed = ipaddress.ip_network(prefix)
    address, length = parsed.network_address.packed, parsed.prefixlen
    unreachable = more.get("unreachable", False)
    present = more.get("present", True)
    return RouteChange(address, length, link, via, b"", 0, present=present, unreachable=unreachable)


def looked_up(made: Network, *, via: bytes = b"", interface: str | None = None) -> bool:
    return read_route(made, bytes(4), 0, via=via, interface=interface, shown="0.0.0.0/0").up


def test_a_link_is_up_down_or_missing() -> None:
    assert read_interface(network(), "eth0") == UP
    assert read_interface(network(up=False), "eth0").detail == "interface eth0 is down"
    assert read_interface(network(), "eth1").detail == "interface eth1 is missing"


def test_an_address_of_its_own_may_be_asked_for() -> None:
    made = network()
    made.apply(AddressChange(5, VIRTUAL, present=True))
    without = read_interface(made, "eth0", (4,), {VIRTUAL})
    assert without == Reading(up=False, detail="interface eth0 has no IPv4 address")
    made.apply(AddressChange(5, OWN, present=True))
    assert read_interface(made, "eth0", (4,), {VIRTUAL}) == UP
    assert not read_interface(made, "eth0", (4, 6), {VIRTUAL}).up
    made.apply(AddressChange(5, OWN, present=False))
    assert not read_interface(made, "eth0", (4,), {VIRTUAL}).up


def test_a_route_is_there_until_it_goes_or_its_link_does() -> None:
    made = network()
    assert not looked_up(made)
    made.apply(route("0.0.0.0/0"))
    assert looked_up(made)
    made.apply(LinkChange(5, "eth0", bytes(6), 1500, up=False))
    assert not looked_up(made)
    made.apply(LinkChange(5, "eth0", bytes(6), 1500, up=True))
    assert looked_up(made)
    made.apply(route("0.0.0.0/0", present=False))
    assert read_route(made, bytes(4), 0, shown="0.0.0.0/0") == Reading(
        up=False, detail="no route to 0.0.0.0/0"
    )


def test_a_route_may_have_to_go_by_a_gateway_and_an_interface() -> None:
    made = network()
    made.apply(route("0.0.0.0/0"))
    assert looked_up(made, via=GATEWAY, interface="eth0")
    assert not looked_up(made, via=OWN)
    assert not looked_up(made, interface="eth1")


def test_a_longer_or_an_unreachable_route_does_not_count() -> None:
    made = network()
    made.apply(route("0.0.0.0/1"))
    made.apply(route("0.0.0.0/0", unreachable=True))
    assert not looked_up(made)


@pytest.mark.parametrize(
    ("weights", "servers", "share", "up"),
    [
        ((1, 1, 0), 2, None, True),
        ((1, 0, 0), 2, None, False),
        ((0, 0, 0), 1, None, False),
        ((), 1, None, False),
        ((), None, 0.5, False),
        ((1, 0), None, 0.5, True),
        ((1, 0, 0), None, 0.5, False),
        ((1, 1, 0), None, 0.5, True),
        ((0, 0), None, 0.01, False),
        ((1,) * 7 + (0,) * 3, None, 0.7, True),
        ((1,) * 6 + (0,) * 4, None, 0.7, False),
    ],
)
def test_a_quorum_is_a_number_or_a_share_of_servers_with_a_weight(
    weights: tuple[int, ...], servers: int | None, share: float | None, up: bool
) -> None:
    lab = Laboratory()
    service = lab.service()
    for last, weight in enumerate(weights, 11):
        lab.server(service, f"10.1.0.{last}", weight=weight)
    found = read_quorum([service], [service.name], servers=servers, share=share)
    assert found.up is up


def test_a_service_that_does_not_run_has_no_servers() -> None:
    found = read_quorum([], ["http"], servers=1, share=None)
    assert found == Reading(up=False, detail="service http has 0 of 0 servers, needs 1")
