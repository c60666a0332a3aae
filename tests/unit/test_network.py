from collections import Counter

import pytest

from lvsha.datapath import network
from lvsha.datapath.network import (
    AddressChange,
    LinkChange,
    NeighbourChange,
    Network,
    NetworkChange,
    NextHop,
    RouteChange,
    changes_first,
)
from lvsha.datapath.reasons import Reason
from lvsha.model import parse_address

MAC = {1: bytes.fromhex("020000000001"), 2: bytes.fromhex("020000000002")}
PEER = bytes.fromhex("0200000000aa")
FRAME = bytes(10) + bytes(12) + b"\x08\x00" + b"packet"


def a(text: str) -> bytes:
    return parse_address(text)


def link(index: int, *, mtu: int = 1500, up: bool = True, gone: bool = False) -> LinkChange:
    return LinkChange(index, f"eth{index}", MAC[index], mtu, up, gone)


def route(
    prefix: str, on: int, gateway: str = "", *, metric: int = 0, mtu: int = 0, present: bool = True,
    source: str = "", unreachable: bool = False,
) -> RouteChange:  # fmt: skip
    network_, _, length = prefix.partition("/")
    return RouteChange(
        a(network_), int(length), on, a(gateway) if gateway else b"", a(source) if source else b"",
        metric, present, mtu, unreachable,
    )  # fmt: skip


@pytest.fixture
def drops() -> Counter[Reason]:
    return Counter()


@pytest.fixture
def mirror(drops: Counter[Reason]) -> Network:
    made = Network(drops)
    for change in (
        link(1),
        link(2),
        AddressChange(1, a("10.0.0.1"), present=True),
        AddressChange(2, a("10.1.0.1"), present=True),
        AddressChange(2, a("fe80::2"), present=True),
        AddressChange(2, a("fd00::2"), present=True),
        route("10.0.0.0/24", 1),
        route("10.1.0.0/16", 2),
        route("0.0.0.0/0", 1, "10.0.0.254"),
        route("fd00::/64", 2),
    ):
        made.apply(change)
    return made


def hop(mirror: Network, address: str) -> NextHop:
    found = mirror.hop(a(address))
    assert found is not None
    return found


def test_the_longest_prefix_decides(mirror: Network) -> None:
    mirror.apply(route("10.1.2.0/24", 1, "10.0.0.9"))
    assert (hop(mirror, "10.1.1.1").link, hop(mirror, "10.1.1.1").address) == (2, a("10.1.1.1"))
    assert (hop(mirror, "10.1.2.1").link, hop(mirror, "10.1.2.1").address) == (1, a("10.0.0.9"))
    assert hop(mirror, "198.51.100.1").address == a("10.0.0.254")


def test_of_equal_prefixes_the_smallest_metric_on_a_link_that_is_up_decides(
    mirror: Network,
) -> None:
    mirror.apply(route("10.9.0.0/16", 2, "10.1.0.9", metric=50))
    mirror.apply(route("10.9.0.0/16", 1, "10.0.0.9", metric=10))
    assert hop(mirror, "10.9.0.1").link == 1
    mirror.apply(link(1, up=False))
    assert hop(mirror, "10.9.0.1").link == 2


def test_an_unreachable_route_and_an_own_address_have_no_next_hop(mirror: Network) -> None:
    mirror.apply(route("10.1.7.0/24", 0, unreachable=True))
    assert mirror.hop(a("10.1.7.1")) is None
    assert mirror.hop(a("10.1.0.1")) is None
    assert mirror.is_local(a("10.1.0.1"))
    assert mirror.hop(a("2001:db8::1")) is None


def test_the_smaller_of_link_and_route_mtu_counts(mirror: Network) -> None:
    mirror.apply(route("10.1.3.0/24", 2, mtu=1400))
    mirror.apply(route("10.1.4.0/24", 2, mtu=9000))
    assert [hop(mirror, f"10.1.{n}.1").mtu for n in (1, 3, 4)] == [1500, 1400, 1500]


def test_the_source_is_the_routes_or_a_global_address_of_the_link(mirror: Network) -> None:
    mirror.apply(route("10.1.5.0/24", 2, source="10.1.0.99"))
    assert hop(mirror, "10.1.1.1").source == a("10.1.0.1")
    assert hop(mirror, "10.1.5.1").source == a("10.1.0.99")
    assert hop(mirror, "fd00::9").source == a("fd00::2")


def test_destinations_behind_one_gateway_share_one_next_hop(mirror: Network) -> None:
    assert hop(mirror, "198.51.100.1") is hop(mirror, "203.0.113.1")


def test_a_change_of_routes_forgets_what_was_remembered(mirror: Network) -> None:
    before, generation = hop(mirror, "10.1.1.1"), mirror.generation
    mirror.apply(route("10.1.1.1/32", 1, "10.0.0.9"))
    assert mirror.generation != generation
    assert hop(mirror, "10.1.1.1") is not before
    mirror.apply(route("10.1.1.1/32", 1, "10.0.0.9", present=False))
    assert hop(mirror, "10.1.1.1") is before


def test_a_new_neighbour_does_not_forget_the_routes(mirror: Network) -> None:
    generation = mirror.generation
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    assert mirror.generation == generation
    assert hop(mirror, "10.1.1.1").header == PEER + MAC[2]


def test_an_unknown_neighbour_is_wanted_and_frames_wait_for_it(mirror: Network) -> None:
    way = hop(mirror, "10.1.1.1")
    assert mirror.hold(way, FRAME) is None
    assert (2, a("10.1.1.1")) in mirror.wanted
    ((out, data),) = mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    assert (out, bytes(data)) == (2, bytes(10) + PEER + MAC[2] + FRAME[22:])
    assert mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER)) == []


def test_no_more_than_the_limit_wait_for_one_neighbour(mirror: Network) -> None:
    way = hop(mirror, "10.1.1.1")
    reasons = [mirror.hold(way, FRAME) for _ in range(network.QUEUE_FRAMES_MAX + 1)]
    assert reasons == [None] * network.QUEUE_FRAMES_MAX + [Reason.NEIGHBOUR_QUEUE_FULL]


def test_a_neighbour_that_does_not_answer_costs_what_waits_and_what_comes(
    mirror: Network, drops: Counter[Reason]
) -> None:
    way = hop(mirror, "10.1.1.1")
    mirror.hold(way, FRAME)
    mirror.hold(way, FRAME)
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), b"", failed=True))
    assert drops == {Reason.NEIGHBOUR_FAILED: 2}
    mirror.wanted.clear()
    assert mirror.hold(way, FRAME) is Reason.NEIGHBOUR_FAILED
    assert mirror.wanted
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    assert way.header
    assert not way.failed


def test_a_neighbour_that_was_forgotten_is_asked_for_again(mirror: Network) -> None:
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    way = hop(mirror, "10.1.1.1")
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), b""))
    assert way.header == b""
    assert mirror.hold(way, FRAME) is None
    assert mirror.wanted


def test_a_stale_neighbour_is_confirmed_only_if_it_was_used(mirror: Network) -> None:
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    way = hop(mirror, "10.1.1.1")
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER, stale=True))
    assert not mirror.wanted
    way.used = True
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER, stale=True))
    assert mirror.wanted
    assert not way.used


def test_a_new_mac_or_mtu_of_a_link_is_used_at_once(mirror: Network) -> None:
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    hop(mirror, "10.1.1.1")
    other = bytes.fromhex("0200000000ff")
    mirror.apply(LinkChange(2, "eth2", other, 1400, up=True))
    assert (hop(mirror, "10.1.1.1").header, hop(mirror, "10.1.1.1").mtu) == (PEER + other, 1400)


def test_frames_that_wait_on_a_link_that_changes_are_counted(
    mirror: Network, drops: Counter[Reason]
) -> None:
    mirror.hold(hop(mirror, "10.1.1.1"), FRAME)
    mirror.apply(link(2, up=False))
    assert drops == {Reason.NEIGHBOUR_FAILED: 1}


def test_a_link_that_goes_takes_its_addresses_and_neighbours_along(mirror: Network) -> None:
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    mirror.apply(link(2, up=False, gone=True))
    assert not mirror.is_local(a("10.1.0.1"))
    assert mirror.is_local(a("10.0.0.1"))
    assert mirror.link_named("eth2") is None
    mirror.apply(link(2))
    assert hop(mirror, "10.1.1.1").header == b""


def test_an_address_on_two_links_stays_until_both_have_lost_it(mirror: Network) -> None:
    mirror.apply(AddressChange(1, a("10.1.0.1"), present=True))
    mirror.apply(AddressChange(2, a("10.1.0.1"), present=False))
    assert mirror.is_local(a("10.1.0.1"))
    mirror.apply(AddressChange(1, a("10.1.0.1"), present=False))
    assert not mirror.is_local(a("10.1.0.1"))


def test_a_change_that_takes_away_what_is_not_there_changes_nothing(mirror: Network) -> None:
    mirror.apply(AddressChange(1, a("10.5.5.5"), present=False))
    mirror.apply(route("10.5.0.0/16", 1, present=False))
    mirror.apply(NeighbourChange(9, a("10.5.5.5"), b"", failed=True))
    assert hop(mirror, "10.1.1.1").link == 2


def test_what_is_remembered_is_forgotten_at_its_limit(
    mirror: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "REMEMBERED_MAX", 10)
    for last in range(1, 100):
        hop(mirror, f"198.51.100.{last}")
        assert len(mirror._remembered) <= 10


def test_at_the_limit_unresolved_next_hops_go_first(
    mirror: Network, drops: Counter[Reason], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "HOPS_MAX", 4)
    mirror.apply(NeighbourChange(2, a("10.1.1.1"), PEER))
    resolved = hop(mirror, "10.1.1.1")
    for last in range(2, 5):
        mirror.hold(hop(mirror, f"10.1.1.{last}"), FRAME)
    hop(mirror, "10.1.1.5")
    assert drops == {Reason.NEIGHBOUR_FAILED: 3}
    assert hop(mirror, "10.1.1.1") is resolved
    # The one that was found last still hears of its neighbour.
    mirror.apply(NeighbourChange(2, a("10.1.1.5"), PEER))
    assert hop(mirror, "10.1.1.5").header


def test_reading_anew_forgets_everything_first(mirror: Network) -> None:
    mirror.clear()
    assert mirror.links == {}
    assert mirror.hop(a("10.1.1.1")) is None
    assert not mirror.is_local(a("10.0.0.1"))


def test_in_a_dump_links_come_first() -> None:
    changes: list[NetworkChange] = [
        route("10.0.0.0/24", 1),
        NeighbourChange(1, a("10.0.0.9"), PEER),
        link(1),
    ]
    assert isinstance(changes_first(changes)[0], LinkChange)


def test_all_destinations_behind_a_gateway_share_its_hop_until_something_changes(
    mirror: Network,
) -> None:
    before = hop(mirror, "198.51.100.1")
    assert hop(mirror, "198.51.100.2") is before
    mirror.apply(link(1, mtu=1400))
    assert hop(mirror, "198.51.100.3").mtu == 1400
    mirror.apply(AddressChange(1, a("198.51.100.4"), present=True))
    assert mirror.hop(a("198.51.100.4")) is None
