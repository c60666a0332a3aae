"""Routes and rules that move with the addresses of real directors."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.mutual_pair import PAIR, WAIT, wait_for_states
from tests.netns.test_life_netns import Managed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

ALONE = {"one": "MASTER", "two": "MASTER"}
MOVING = """
addresses = ["10.88.1.10/24", "10.88.2.1/24@inside", "fd00:88::10/64"]
routes = [
    "default via 10.88.1.2 dev outside src 10.88.1.10",
    "10.99.0.0/16 via 10.88.2.11 table 100",
    "10.98.0.0/16 via 10.77.0.1 metric 5",
    "default via fd00:88::2 dev outside family 6",
]
rules = ["from 10.88.2.0/24 table 100", "from fd00:88::/64 iif inside table 100 priority 7"]
"""
ROUTES = {
    "default via 10.88.1.2 dev out src 10.88.1.10",
    "10.99.0.0/16 via 10.88.2.11 dev in table 100",
    "default via fd00:88::2 dev out metric 1024 pref medium",
}
RULES = {
    "16384: from 10.88.2.0/24 lookup 100 proto 112",
    "7: from fd00:88::/64 iif in lookup 100 proto 112",
}
LATE = "10.98.0.0/16 via 10.77.0.1 dev in metric 5"
"""Its gateway's network comes later."""


class Routed(Managed):
    """Directors of which virtual router "one" has routes and rules."""

    def __init__(self, directory: Path) -> None:
        addresses = '\naddresses = ["10.88.1.10/24", "10.88.2.1/24@inside"]\n'
        assert addresses in PAIR
        super().__init__(directory, PAIR.replace(addresses, MOVING))
        self._prefix = f"routes{os.getpid()}"

    def moving(self, name: str) -> set[str]:
        """What carries the origin of lvsha."""
        routes = [
            self.look(name, "ip", f"-{family}", "route", "show", "table", "all", "proto", "112")
            for family in (4, 6)
        ]
        rules = self.look(name, "ip", "-4", "rule") + self.look(name, "ip", "-6", "rule")
        lines = "".join(routes).splitlines()
        lines += [line for line in rules.splitlines() if "proto 112" in line]
        return {" ".join(line.split()) for line in lines}

    def wait_for_moving(self, name: str, expected: set[str], limit: float = WAIT) -> None:
        until(lambda: self.moving(name) == expected, limit, lambda: self.moving(name) ^ expected)


def until(condition: Callable[[], bool], limit: float, shown: Callable[[], object]) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, shown()
        time.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Routed]:
    made = Routed(tmp_path)
    try:
        made.build()
        yield made
    finally:
        made.end()


FAR_CLIENT = """
import socket
with socket.create_connection(("10.88.1.10", 80), 10, ("10.200.0.1", 0)) as connection:
    connection.sendall(b"who?")
    print(connection.recv(64).decode())
"""
"""From a network to which only the moving default route leads."""


def test_they_move_with_the_addresses(world: Routed) -> None:
    world.look("client", "ip", "address", "add", "10.200.0.1/32", "dev", "lo")
    for server in ("real1", "real2"):
        back = ("10.200.0.0/16", "via", "10.88.2.1", "table", "102")
        world.look(server, "ip", "route", "add", *back)
    for name in ("east", "west"):
        world.start(name)
    wait_for_states(world, "east", {"one": "MASTER", "two": "BACKUP"})
    world.wait_for_moving("east", ROUTES | RULES)
    assert world.moving("west") == set()
    assert world.look("client", sys.executable, "-c", FAR_CLIENT).startswith("10.88.2.")
    world.directors["east"].send_signal(signal.SIGTERM)
    world.wait_for_moving("west", ROUTES | RULES)
    world.wait_for_moving("east", set())
    assert world.look("client", sys.executable, "-c", FAR_CLIENT).startswith("10.88.2.")
    assert world.directors["east"].wait(WAIT) == 0
    story = world.lvsha("west", "why", "one")
    assert "routes installed: done False" in story


def test_what_is_removed_or_was_refused_comes_within_a_moment(world: Routed) -> None:
    world.start("east")
    wait_for_states(world, "east", ALONE)
    world.wait_for_moving("east", ROUTES | RULES)
    assert "10.98.0.0/16 via 10.77.0.1 metric 5 was refused" in world.lvsha("east", "status")
    # Not even the one that was refused has kept the addresses from being announced.
    assert world.holds("east")

    world.look("east", "ip", "route", "del", "default")
    world.look("east", "ip", "rule", "del", "priority", "16384")
    world.look("east", "ip", "address", "add", "10.77.0.2/24", "dev", "in")
    world.wait_for_moving("east", ROUTES | RULES | {LATE}, 3.0)
    routes = json.loads(world.lvsha("east", "status", "--json"))["routers"]["one"]["routes"]
    assert routes["counters"]["route_restored"] == 2
    assert all(piece["installed"] for piece in routes["pieces"])
    assert "was refused" not in world.lvsha("east", "status")


def test_the_clean_up_takes_away_what_a_killed_director_left(world: Routed) -> None:
    world.start("east")
    wait_for_states(world, "east", ALONE)
    world.wait_for_moving("east", ROUTES | RULES)
    world.kill("east")
    foreign = ("ip", "route", "add", "10.97.0.0/16", "via", "10.88.2.12")
    world.look("east", *foreign)
    assert world.moving("east") >= RULES
    # The file has changed since: the origin alone tells what is ours.
    world.pair.write_text(PAIR)
    world.clean("east")
    assert world.moving("east") == set()
    assert "10.97.0.0/16" in world.look("east", "ip", "route")
    world.clean("east")


def test_a_new_run_begins_without_those_of_the_last(world: Routed) -> None:
    world.start("east")
    wait_for_states(world, "east", ALONE)
    world.wait_for_moving("east", ROUTES | RULES)
    world.kill("east")
    world.look("east", "ip", "route", "add", "10.55.0.0/16", "dev", "in", "proto", "112")
    world.start("east")
    wait_for_states(world, "east", ALONE)
    world.wait_for_moving("east", ROUTES | RULES)


def test_a_master_that_was_frozen_lets_go_of_them_when_it_goes_on(world: Routed) -> None:
    for name in ("east", "west"):
        world.start(name)
    wait_for_states(world, "east", {"one": "MASTER", "two": "BACKUP"})
    world.wait_for_moving("east", ROUTES | RULES)
    world.directors["east"].send_signal(signal.SIGSTOP)
    world.wait_for_moving("west", ROUTES | RULES)
    assert world.moving("east") >= RULES, "they have no lifetime"
    world.directors["east"].send_signal(signal.SIGCONT)
    world.wait_for_moving("east", set(), 5.0)
