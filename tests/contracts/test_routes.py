"""What routes and rules do in the kernel, in a network namespace of its own.

The checks run in a child process, because the threads of this process must stay where they
are.
"""

import ipaddress
import sys
from pathlib import Path

import pytest
import trio

from lvsha.errors import HostError
from lvsha.failover.routes import NetlinkRoutes, Route, Rule, remove_leftover_routes
from tests.contracts.child import in_namespace, ip

INTERFACE = "outside"
IPv4, IPv6 = ipaddress.IPv4Address, ipaddress.IPv6Address
GATEWAY, GATEWAY_6 = IPv4("192.0.2.254"), IPv6("2001:db8::fe")
ANYWHERE, ANYWHERE_6 = ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0")
BEHIND, BEHIND_6 = (ipaddress.ip_network(text) for text in ("10.9.0.0/16", "2001:db8:9::/48"))

ROUTES = [
    Route(ANYWHERE, GATEWAY),
    Route(ANYWHERE, GATEWAY, INTERFACE, metric=10),
    Route(BEHIND, interface=INTERFACE, table=1000, source=IPv4("192.0.2.1")),
    Route(ipaddress.ip_network("10.8.0.0/16"), IPv4("203.0.113.1"), INTERFACE, onlink=True),
    Route(ANYWHERE_6, IPv6("fe80::fe"), INTERFACE),
    Route(BEHIND_6, GATEWAY_6, table=1000, metric=7, source=IPv6("2001:db8::1")),
    Route(ipaddress.ip_network("10.6.0.0/16"), type="prohibit"),
    Route(ipaddress.ip_network("2001:db8:6::/48"), metric=9, type="blackhole"),
]
RULES = [
    Rule(4, 1000, 100, BEHIND, None, INTERFACE, (0x10, 0xFF)),
    Rule(4, 1000, 100, mark=(7, 0xFFFFFFFF)),
    Rule(6, 1000, 101, destination=BEHIND_6),
    Rule(6, 1000, 101, interface="not-yet"),
]
SHOWN = {
    "default via 192.0.2.254 dev outside",
    "default via 192.0.2.254 dev outside metric 10",
    "10.9.0.0/16 dev outside table 1000 scope link src 192.0.2.1",
    "10.8.0.0/16 via 203.0.113.1 dev outside onlink",
    "default via fe80::fe dev outside metric 1024 pref medium",
    "2001:db8:9::/48 via 2001:db8::fe dev outside table 1000 src 2001:db8::1 metric 7 pref medium",
    "prohibit 10.6.0.0/16",
    "blackhole 2001:db8:6::/48 dev lo metric 9 pref medium",
    "100: from 10.9.0.0/16 fwmark 0x10/0xff iif outside lookup 1000 proto 112",
    "100: from all fwmark 0x7 lookup 1000 proto 112",
    "101: from all to 2001:db8:9::/48 lookup 1000 proto 112",
    "101: from all iif not-yet [detached] lookup 1000 proto 112",
}


# What a child does in a namespace of its own.


def look() -> set[str]:
    """The routes and rules that carry the origin of lvsha."""
    routes = [ip(f"-{family} route show table all proto 112") for family in (4, 6)]
    rules = (ip("-4 rule") + ip("-6 rule")).splitlines()
    lines = "".join(routes).splitlines() + [line for line in rules if "proto 112" in line]
    return {" ".join(line.split()) for line in lines}


def make_interface() -> None:
    ip(f"link add {INTERFACE} type veth peer name other")
    ip(f"link set {INTERFACE} up")
    ip("link set other up")
    ip(f"address add 192.0.2.1/24 dev {INTERFACE}")
    ip(f"address add 2001:db8::1/64 dev {INTERFACE} nodad")


def assert_shown(expected: set[str]) -> None:
    shown = look()
    assert shown == expected, shown ^ expected


def errors(routes: NetlinkRoutes) -> list[object]:
    pieces = routes.status()["pieces"]
    assert isinstance(pieces, list)
    return [piece["error"] for piece in pieces if piece["error"]]


async def come_and_go() -> None:
    routes = NetlinkRoutes(ROUTES, RULES)
    assert await routes.remove(), "nothing to remove is fine"
    assert await routes.install(), routes.status()
    assert_shown(SHOWN)
    assert await routes.install(), "to add them again is fine"
    assert await routes.keep()
    assert_shown(SHOWN)
    assert routes.counters.snapshot() == {}
    assert await routes.remove()
    assert look() == set()
    assert await NetlinkRoutes([], []).install()


async def restored() -> None:
    routes = NetlinkRoutes(ROUTES, RULES)
    await routes.install()
    ip("route del default metric 10")
    ip("-6 rule del priority 101")
    assert look() != SHOWN
    assert await routes.keep()
    assert_shown(SHOWN)
    assert routes.counters.snapshot() == {"route_restored": 2}


async def changed_ones_are_put_right() -> None:
    routes = NetlinkRoutes(ROUTES, RULES)
    await routes.install()
    ip("route replace blackhole 10.6.0.0/16 proto 112")
    ip(f"route replace 10.9.0.0/16 via 192.0.2.9 dev {INTERFACE} table 1000 proto 112")
    assert await routes.keep()
    assert_shown(SHOWN)


async def foreign_ones_stay() -> None:
    """What does not carry the own number is neither replaced nor removed."""
    ip("route add default via 192.0.2.253")
    ip("-6 rule add to 2001:db8:9::/48 table 1000 priority 101")
    routes = NetlinkRoutes([ROUTES[0]], [RULES[2]])
    assert not await routes.install()
    assert errors(routes) == ["another with the same prefix, table and metric is there"]
    assert await remove_leftover_routes() == 1, "rules of two origins are two rules"
    assert not await routes.keep()
    assert await routes.remove()
    assert "default via 192.0.2.253" in ip("route")
    assert "101:" in ip("-6 rule")


async def one_refusal_does_not_end_the_others() -> None:
    nowhere = [
        Route(BEHIND, interface="nowhere"),
        Route(ipaddress.ip_network("10.7.0.0/16"), IPv4("203.0.113.9")),
    ]
    routes = NetlinkRoutes([*nowhere, *ROUTES], RULES)
    assert not await routes.install()
    assert_shown(SHOWN)
    assert errors(routes) == ["no such interface", "Network is unreachable"]
    assert not await routes.keep()
    assert routes.counters.snapshot() == {"route_not_installed": 4}
    assert await routes.remove()
    assert errors(routes) == []


async def what_was_refused_comes_later() -> None:
    routes = NetlinkRoutes([Route(BEHIND, IPv4("203.0.113.1"))], [])
    assert not await routes.install()
    ip(f"address add 203.0.113.2/24 dev {INTERFACE}")
    assert await routes.keep()
    assert look() == {"10.9.0.0/16 via 203.0.113.1 dev outside"}
    assert errors(routes) == []
    assert routes.counters["route_restored"] == 0, "it was never lost"


async def a_link_that_goes_and_comes() -> None:
    routes = NetlinkRoutes(ROUTES[:4], [])
    await routes.install()
    ip(f"link set {INTERFACE} down")
    assert not await routes.keep()
    ip(f"link set {INTERFACE} up")
    assert await routes.keep()
    assert len(look()) == 4


async def leftovers() -> None:
    """All go, whatever made them; and nothing else does."""
    before = ip("-4 route show table all") + ip("-6 route show table all") + ip("rule")
    await NetlinkRoutes(ROUTES, RULES).install()
    ip(f"route add 10.55.0.0/16 dev {INTERFACE} table 77 proto 112")
    ip(f"-6 route add 2001:db8:55::/48 dev {INTERFACE} proto 112 metric 3")
    ip("rule add from 10.55.0.0/16 table 77 protocol 112")
    assert await remove_leftover_routes() == len(ROUTES) + len(RULES) + 3
    assert await remove_leftover_routes() == 0
    assert ip("-4 route show table all") + ip("-6 route show table all") + ip("rule") == before


async def no_privilege() -> None:
    """Without CAP_NET_ADMIN: a sentence at the start, a count later on."""
    await NetlinkRoutes(ROUTES, RULES).install()
    setpriv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = await trio.run_process(
        [*setpriv, sys.executable, __file__, "unprivileged"], capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def unprivileged() -> None:
    routes = NetlinkRoutes(ROUTES, RULES)
    assert not await routes.remove()
    assert routes.counters["route_not_removed"] == len(ROUTES) + len(RULES)
    assert set(errors(routes)) == {"Operation not permitted"}
    with pytest.raises(HostError, match="CAP_NET_ADMIN"):
        await remove_leftover_routes()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def no_descriptors_leak() -> None:
    routes = NetlinkRoutes(ROUTES, RULES)
    await routes.install()
    before = open_descriptors()
    for _ in range(50):
        await routes.keep()
    assert open_descriptors() <= before


CHECKS = {
    check.__name__: check
    for check in (
        come_and_go,
        restored,
        changed_ones_are_put_right,
        foreign_ones_stay,
        one_refusal_does_not_end_the_others,
        what_was_refused_comes_later,
        a_link_that_goes_and_comes,
        leftovers,
        no_privilege,
        no_descriptors_leak,
    )
}


@pytest.mark.netns
@pytest.mark.parametrize("check", CHECKS)
def test_kernel(check: str) -> None:
    in_namespace(__file__, check)


if __name__ == "__main__":
    if sys.argv[1] == "unprivileged":
        trio.run(unprivileged)
    else:
        make_interface()
        trio.run(CHECKS[sys.argv[1]])
