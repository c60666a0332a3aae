"""A virtual router with a MAC address of its own, seen by a client's kernel.

The client hears no announcement, and the switch floods every frame to all: whatever neighbours
know of the addresses must hold after a takeover, and only the master may take the frames.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.mutual_pair import PAIR, WAIT, World, speak, wait_for_states
from tests.yard import within

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

V4, V6 = "10.88.1.10", "2001:db8:88::10"
MAC = "00:00:5e:00:01:33"
"""Of the number 51; RFC 9568, section 7.3."""
OPEN, CLOSED = 80, 9
EAST = {"one": "MASTER", "two": "BACKUP"}
WEST = {"one": "MASTER", "two": "MASTER"}
DEAF = """
table netdev deaf {
  chain ingress {
    type filter hook ingress device "out" priority 0;
    ether daddr ff:ff:ff:ff:ff:ff arp saddr ip 10.88.1.10 drop
    ether daddr 33:33:00:00:00:01 icmpv6 type nd-neighbor-advert drop
  }
}
"""


def pair() -> str:
    """The file of the mutual pair, with another address of each family for the first router."""
    first, second = PAIR.split('name = "two"', 1)
    first = first.replace('"10.88.1.10/24",', f'"10.88.1.10/24", "{V6}/64",')
    first = first.replace("vrid = 51", "vrid = 51\nvirtual_mac = true")
    return f'{first}name = "two"{second}'


class Switched(World):
    """A world with a switch that learns nothing, and a client that hears no announcement."""

    def build(self) -> None:
        super().build()
        self.look("client", "nft", DEAF)
        self.look("client", "ip", "address", "add", "2001:db8:88::2/64", "dev", "out", "nodad")
        for name, last in (("east", 3), ("west", 4)):
            place = ("address", "add", f"2001:db8:88::{last}/64", "dev", "out", "nodad")
            self.look(name, "ip", *place)
        for port in ("client", "east", "west"):
            flooding = ("learning", "off", "flood", "on")
            self.look("wire", "bridge", "link", "set", "dev", f"{port}out", *flooding)

    def look(self, name: str, program: str, *words: str) -> str:
        """What a program prints in a namespace; of nft the only word is its input."""
        text = words[0] if program == "nft" else None
        arguments = ("-f", "-") if program == "nft" else words
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace(name), program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert not done.returncode, f"{program} {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def neighbour(self, address: str) -> str:
        """At which MAC address the client's kernel believes an address to be."""
        words = self.look("client", "ip", "neighbour", "show", address).split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""

    def refused(self, address: str) -> bool:
        """Whether the host that has an address answers a datagram to a closed port."""

        def knock() -> bool:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.settimeout(1.0)
                asking.connect((address, CLOSED))
                asking.send(b"anybody?")
                try:
                    asking.recv(64)
                except ConnectionRefusedError:
                    return True
                except TimeoutError:
                    return False
            raise AssertionError("the port is not closed")

        return within(self.namespace("client"), knock)

    def counted(self, name: str) -> int:
        """Packets of the first service that a director has forwarded."""
        (servers,) = [
            service["servers"]
            for key, service in self.status(name)["services"].items()
            if key == "one"
        ]
        return sum(server["in_packets"] for server in servers)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Switched]:
    made = Switched(tmp_path, pair())
    try:
        made.build()
        yield made
    finally:
        made.end()


def test_neighbours_need_not_learn_anything_when_it_moves(world: Switched) -> None:
    for name in ("east", "west"):
        world.start(name)
    wait_for_states(world, "east", EAST)
    wait_for_states(world, "west", {"one": "BACKUP", "two": "MASTER"})
    connection = world.connect(V4)
    served_by = speak(connection)
    assert [world.refused(address) for address in (V4, V6)] == [True, True]
    assert [world.neighbour(address) for address in (V4, V6)] == [MAC, MAC]
    for _ in range(20):
        # By then west knows the connection.
        assert speak(connection) == served_by
        time.sleep(0.02)
    assert world.counted("west") == 0, "a backup lets frames alone that are flooded to it"

    world.kill("east")
    wait_for_states(world, "west", WEST)
    assert speak(connection) == served_by
    assert [world.refused(address) for address in (V4, V6)] == [True, True]
    assert [world.neighbour(address) for address in (V4, V6)] == [MAC, MAC]
    assert world.counted("west") > 0
    connection.close()


def test_what_the_kernel_says_of_the_address_names_the_virtual_mac(world: Switched) -> None:
    """A host that sends from the virtual address asks by ARP, and the asked one learns."""
    world.start("east")
    wait_for_states(world, "east", {"one": "MASTER", "two": "MASTER"})

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind((V4, 0))
            sending.sendto(b"hello", ("10.88.1.2", CLOSED))

    world.look("client", "nft", "delete table netdev deaf")
    world.look("east", "ip", "neighbour", "flush", "all")
    world.look("client", "ip", "neighbour", "flush", "all")
    within(world.namespace("east"), send)
    until = time.monotonic() + WAIT
    while world.neighbour(V4) != MAC:
        assert time.monotonic() < until, world.neighbour(V4)
        time.sleep(0.05)
    # The answer came to the virtual MAC address, and the kernel has taken it.
    words = world.look("east", "ip", "neighbour", "show", "10.88.1.2").split()
    assert "lladdr" in words


def test_advertisements_leave_from_the_virtual_mac(world: Switched) -> None:
    """So that switches learn where it is (RFC 9568, section 7.2); of others they do not."""
    world.start("east")
    wait_for_states(world, "east", {"one": "MASTER", "two": "MASTER"})

    def listen() -> dict[int, str]:
        heard: dict[int, str] = {}
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as ear:
            ear.bind(("out", 0x0800))
            ear.settimeout(WAIT)
            while len(heard) < 2:
                frame = ear.recv(256)
                if frame[23] == 112:
                    heard[frame[35]] = frame[6:12].hex(":")
        return heard

    heard = within(world.namespace("client"), listen)
    assert heard[51] == MAC
    assert heard[52] != MAC


def test_nothing_is_left_after_a_clean_stop(world: Switched) -> None:
    world.start("east")
    wait_for_states(world, "east", {"one": "MASTER", "two": "MASTER"})
    assert MAC in world.look("east", "nft", "list ruleset")
    world.directors["east"].terminate()
    world.directors["east"].wait(WAIT)
    assert world.look("east", "nft", "list ruleset") == ""
