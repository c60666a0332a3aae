"""Two real directors that back each other up, with a kernel client and kernel servers.

Connections run through both at once. When one director is killed the other must carry all of
them on to the same servers, and when it returns it takes back what is its own, again without
losing one.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.mutual_pair import DIRECTORS, OWN, World, speak, wait_for_states

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

CONNECTIONS = 10


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        made.build()
        yield made
    finally:
        made.end()


def test_each_director_carries_the_others_connections_when_it_dies(world: World) -> None:
    for name in DIRECTORS:
        world.start(name)
    for name in DIRECTORS:
        wait_for_states(world, name, OWN[name])
    connections = [world.connect(f"10.88.1.{ten}0") for ten in (1, 2) for _ in range(CONNECTIONS)]
    servers = [speak(connection) for connection in connections]
    assert set(servers) == {f"10.88.{net}.{last}" for net in (2, 3) for last in (11, 12)}

    for dying, staying in (("east", "west"), ("west", "east")):
        world.kill(dying)
        wait_for_states(world, staying, {"one": "MASTER", "two": "MASTER"})
        assert [speak(connection) for connection in connections] == servers
        world.start(dying)
        for name in DIRECTORS:
            wait_for_states(world, name, OWN[name])
        assert [speak(connection) for connection in connections] == servers
    for connection in connections:
        connection.close()
