"""Two real directors whose interfaces are removed and made anew under the same names.

So do ifreload, netplan, and a bond or a VLAN that is set up again. A socket that stays with the
interface that is gone hears nothing, and its node takes a master that lives for dead.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lvsha.control import ask
from lvsha.errors import HostError
from tests.netns.mutual_pair import DIRECTORS, WAIT, World, run

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

INTERVAL = 0.1
SETTLED = 10 * INTERVAL
"""More than two down intervals, in which a deaf backup would take over."""
OWN = {"east": ("10.87.1.3", "fd87::3"), "west": ("10.87.1.4", "fd87::4")}
VIRTUAL = {4: "10.87.1.10/24", 6: "fe80::10/64"}
PEERS = {number: [addresses[number // 6] for addresses in OWN.values()] for number in (4, 6)}
MASTERS = {"east": "MASTER", "west": "BACKUP"}


def pair(family: int, more: str = "") -> str:
    return f"""
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["{VIRTUAL[family]}"]
advert_interval = {INTERVAL}
{more}

[nodes.east]
priority = 200
interfaces = {{ outside = "out" }}

[nodes.west]
priority = 100
interfaces = {{ outside = "out" }}
"""


WAYS = {
    "multicast over IPv4": pair(4),
    "multicast over IPv6": pair(6),
    "unicast over IPv4": pair(4, f"peers = {PEERS[4]}"),
    "unicast over IPv6": pair(6, f"peers = {PEERS[6]}"),
    "virtual MAC over IPv4": pair(4, "virtual_mac = true"),
    "virtual MAC over IPv6": pair(6, "virtual_mac = true"),
}


class Link(World):
    """Two directors on a switch, whose ends can be made anew."""

    def __init__(self, directory: Path, text: str) -> None:
        super().__init__(directory, text)
        self._prefix = f"lvt{os.getpid()}"

    def build(self) -> None:
        for name in ("wire", *DIRECTORS):
            run("ip", "netns", "add", self.namespace(name))
            self.ip(name, "link set lo up")
        self.ip("wire", "link add bout type bridge mcast_snooping 0")
        self.ip("wire", "link set bout up")
        for name in DIRECTORS:
            self.make_interface(name)

    def make_interface(self, name: str) -> None:
        self._leg(name, "out", f"{OWN[name][0]}/24", f"{OWN[name][1]}/64")

    def ip(self, name: str, words: str) -> str:
        command = ["ip", "-n", self.namespace(name), *words.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def set(self, name: str, setting: str) -> None:
        run("ip", "netns", "exec", self.namespace(name), "sysctl", "-qw", setting)

    def link_local(self, name: str) -> str:
        words = self.ip(name, "-6 -o address show dev out scope link").split()
        own = (word for word in words if word.startswith("fe80::") and word != VIRTUAL[6])
        return next(own).partition("/")[0]

    def status(self, name: str) -> dict[str, Any]:
        """As the world has it, without the time that it takes to start a program."""
        for path in self._directory.glob(f"run-{name}/control-*.sock"):
            with suppress(HostError):
                answer = ask("status", path=path)
                assert isinstance(answer, dict)
                return answer
        return {}

    def router(self, name: str) -> dict[str, Any]:
        return dict(self.status(name).get("routers", {}).get("web", {}))

    def wait(self, name: str, **wanted: object) -> dict[str, Any]:
        """Wait until the virtual router is so at a director."""
        until = time.monotonic() + WAIT
        while not wanted.items() <= (seen := self.router(name)).items():
            shown = {key: seen.get(key) for key in wanted}
            assert time.monotonic() < until, f"{name}: {shown} instead of {wanted}"
            time.sleep(0.02)
        return seen

    def settle(self) -> None:
        """Wait until both have taken note; then exactly one may be MASTER for a while."""
        for name, state in MASTERS.items():
            self.wait(name, state=state, fault=None)
        before = {name: self.router(name)["transitions"] for name in DIRECTORS}
        time.sleep(SETTLED)
        after = {name: self.router(name) for name in DIRECTORS}
        assert {name: router["state"] for name, router in after.items()} == MASTERS
        assert {name: router["transitions"] for name, router in after.items()} == before
        assert after["west"]["peer"]["heard_seconds_ago"] < 4 * INTERVAL


@pytest.fixture
def link(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Link]:
    made = Link(tmp_path, getattr(request, "param", pair(4)))
    try:
        made.build()
        yield made
    finally:
        made.end()


def start(link: Link) -> None:
    for name in DIRECTORS:
        link.start(name)
    link.settle()


@pytest.mark.parametrize("link", WAYS.values(), ids=WAYS, indirect=True)
def test_there_is_one_master_after_an_interface_was_made_anew(link: Link) -> None:
    start(link)
    transitions = link.router("west")["transitions"]

    link.ip("west", "link del out")
    link.wait("west", state="FAULT")
    assert link.router("east")["state"] == "MASTER"
    link.make_interface("west")
    link.settle()
    # It has never thought the master dead.
    assert link.router("west")["transitions"].get("master_silent") == transitions.get(
        "master_silent"
    )

    link.ip("east", "link del out")
    link.wait("east", state="FAULT")
    link.wait("west", state="MASTER")
    link.make_interface("east")
    link.settle()

    link.kill("east")
    link.wait("west", state="MASTER", fault=None)


def test_a_replacement_that_nobody_was_there_to_see_is_noticed(link: Link) -> None:
    start(link)
    for name in reversed(DIRECTORS):
        link.directors[name].send_signal(signal.SIGSTOP)
        link.ip(name, "link del out")
        link.make_interface(name)
        link.directors[name].send_signal(signal.SIGCONT)
        time.sleep(SETTLED)
        link.settle()
    link.kill("east")
    link.wait("west", state="MASTER", fault=None)


def test_a_master_speaks_from_the_new_address_after_its_own_has_changed(link: Link) -> None:
    start(link)
    # As systemd has it; otherwise all others of a network go with its first address.
    link.set("east", "net.ipv4.conf.out.promote_secondaries=1")
    link.ip("east", "address add 10.87.1.33/24 dev out")
    link.ip("east", "address del 10.87.1.3/24 dev out")
    link.wait("east", state="MASTER", address="10.87.1.33")
    link.settle()
    assert link.router("west")["peer"]["address"] == "10.87.1.33"

    # Without one it can tell nobody that it is the master.
    link.ip("east", "address flush dev out")
    seen = link.wait("east", state="FAULT")
    assert "interface out has no IPv4 address of its own" in str(seen["fault"])
    link.wait("west", state="MASTER")
    link.ip("east", "address add 10.87.1.3/24 dev out")
    link.settle()
    assert link.router("west")["peer"]["address"] == "10.87.1.3"


def test_a_socket_that_cannot_be_had_is_a_fault_until_it_can(link: Link) -> None:
    start(link)
    link.set("east", "net.ipv4.igmp_max_memberships=0")
    link.ip("east", "link del out")
    link.make_interface("east")
    link.wait("west", state="MASTER")
    time.sleep(SETTLED)
    fault = str(link.wait("east", state="FAULT")["fault"])
    assert fault == "VRRP cannot use interface out: No buffer space available"
    assert link.router("west")["state"] == "MASTER"
    link.set("east", "net.ipv4.igmp_max_memberships=20")
    link.settle()


@pytest.mark.parametrize("link", [pair(6)], indirect=True)
def test_an_address_that_is_still_being_checked_is_no_address_to_speak_from(link: Link) -> None:
    start(link)
    link.set("east", "net.ipv6.conf.default.dad_transmits=5")
    link.ip("east", "link del out")
    link.make_interface("east")
    link.wait("west", state="MASTER")
    states = []
    while "tentative" in link.ip("east", "-6 address show dev out scope link"):
        states.append(link.router("east")["state"])
    # With the greater priority it would take the addresses, and nobody would hear it.
    assert set(states[:-1]) == {"FAULT"}
    link.settle()
    assert link.router("east")["address"] == link.link_local("east")
