"""A pair of real directors takes a changed pair file over while connections pass."""

import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.mutual_pair import OWN, PAIR, ROOT, WAIT, World, speak, wait_for_states

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

FIRST, SECOND = "10.88.2.11", "10.88.2.12"
BOTH = f'[{{ address = "{FIRST}", port = 8080 }}, {{ address = "{SECOND}", port = 8080 }}]'
ONLY = f'[{{ address = "{FIRST}", port = 8080, weight = 3 }}]'
LEAVING_MAX = 20.0
"""Seconds: a connection that was reset is remembered for 10, and servers are looked at each 1."""


class Reloading(World):
    """Directors that are told to reload."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._prefix = f"lvr{os.getpid()}"
        self._connections: list[socket.socket] = []

    def connect_many(self, number: int) -> list[socket.socket]:
        """Connections to the first address; they end with the world."""
        made = [self.connect("10.88.1.10") for _ in range(number)]
        self._connections += made
        return made

    def end(self) -> None:
        for connection in self._connections:
            connection.close()
        super().end()

    def reload(self, name: str, text: str) -> subprocess.CompletedProcess[str]:
        """Write the file that both have, and have one of them take it over."""
        self.pair.write_text(text)
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace(name), sys.executable, "-m", "lvsha", "reload"],
            cwd=ROOT,
            env={**os.environ, **self._environment(name)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    def servers(self, name: str) -> dict[str, dict[str, Any]]:
        servers = self.status(name)["services"]["one"]["servers"]
        return {one["address"].partition(":")[0]: one for one in servers}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Reloading]:
    made = Reloading(tmp_path)
    try:
        made.build()
        for name in ("east", "west"):
            made.start(name)
        for name in ("east", "west"):
            wait_for_states(made, name, OWN[name])
        yield made
    finally:
        made.end()


def within(what: str, condition: Callable[[], bool], limit: float) -> None:
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.1)


def reset(connection: socket.socket) -> None:
    """End a connection at once, for both sides and whoever watches."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_server_leaves_with_its_last_connection_also_after_a_takeover(world: Reloading) -> None:
    connections = world.connect_many(8)
    talks = [speak(connection) for connection in connections]
    assert {FIRST, SECOND} == set(talks)
    for name in ("east", "west"):
        done = world.reload(name, PAIR.replace(BOTH, ONLY))
        assert (done.returncode, done.stdout) == (0, "taken over: services.one\n"), done
        servers = world.servers(name)
        assert {end: (one["weight"], one["leaving"]) for end, one in servers.items()} == {
            FIRST: (3, False),
            SECOND: (1, True),
        }
    fresh = world.connect_many(4)
    assert {speak(connection) for connection in fresh} == {FIRST}
    assert [speak(connection) for connection in connections] == talks
    # What is leaving is no difference between the nodes.
    within(
        "the nodes agree",
        lambda: all(
            not replica["configuration_differs"]
            for name in ("east", "west")
            for replica in world.status(name)["sync"].values()
        ),
        WAIT,
    )
    world.kill("east")
    wait_for_states(world, "west", {"one": "MASTER", "two": "MASTER"})
    assert [speak(connection) for connection in connections] == talks
    for connection in connections:
        reset(connection)
    within("the server goes", lambda: set(world.servers("west")) == {FIRST}, LEAVING_MAX)
    assert {speak(connection) for connection in fresh} == {FIRST}


def test_addresses_follow_other_priorities_and_a_wrong_file_changes_nothing(
    world: Reloading,
) -> None:
    connections = world.connect_many(8)
    talks = [speak(connection) for connection in connections]
    wrong = world.reload("east", PAIR.replace("vrid = 51", "vrid = 510"))
    assert wrong.returncode == 2
    assert "nothing has changed" in wrong.stderr
    assert "virtual_routers[0].vrid" in wrong.stderr
    done = world.reload(
        "east",
        PAIR.replace("one = 200, two = 100", "one = 90, two = 100").replace("0.1", "0.2", 1),
    )
    assert done.returncode == 0, done
    assert done.stdout == ("taken over: nodes.east; a restart would change virtual_routers.one\n")
    wait_for_states(world, "east", {"one": "BACKUP", "two": "BACKUP"})
    wait_for_states(world, "west", {"one": "MASTER", "two": "MASTER"})
    assert [speak(connection) for connection in connections] == talks
    assert world.reload("east", PAIR).stdout == "taken over: nodes.east\n"
    for name in ("east", "west"):
        wait_for_states(world, name, OWN[name])
    assert [speak(connection) for connection in connections] == talks
