"""A stranger on the sync link sends as much as it can: forwarding and elections go on.

It sends what is random, what is cut or bent from real datagrams that it has heard, and
heartbeats of nodes that do not exist. It is bounded in time; nothing here is about how fast
anything is.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.mutual_pair import DIRECTORS, OWN, PAIR, World, speak, wait_for_states

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

SECONDS = 4.0
KEY = "lvsha-key-1 current " + "A" * 43 + "=\n"

STRANGER = """
import os, random, socket, sys, time
# What it takes of a processor is not to be what disturbs the directors.
os.nice(19)
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import Heartbeat, Origin, PeerState, Role
dice = random.Random(1)
group = ("224.0.0.81", 8848)
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
ear.bind(group)
member = socket.inet_aton(group[0]) + socket.inet_aton("10.88.4.99")
ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
ear.settimeout(1.0)
heard = [ear.recv(65536) for _ in range(5)]
ear.setblocking(False)
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.88.4.99"))
sent = 0
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    kind = sent % 4
    if kind == 0:
        datagram = dice.randbytes(dice.randrange(1, 1400))
    elif kind == 1:
        datagram = bytearray(dice.choice(heard))
        datagram[dice.randrange(len(datagram))] ^= 1 << dice.randrange(8)
    elif kind == 2:
        whole = dice.choice(heard)
        datagram = whole[: dice.randrange(len(whole))]
    else:
        origin = Origin(
            51, f"node-{sent}", dice.getrandbits(64), Role.FOLLOW, 0, dice.randrange(2**32)
        )
        datagram = encode(
            Heartbeat(origin, 5, bytes(16), "", PeerState.PROBE, 0, False, 2, 2)
        )
    try:
        mouth.sendto(datagram, group)
    except OSError:
        pass
    sent += 1
print(sent)
"""


@pytest.fixture(params=["open", "sealed"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    # Long enough that a busy machine alone does not make a backup take over.
    pair = PAIR.replace("advert_interval = 0.1", "advert_interval = 0.5")
    if request.param == "sealed":
        key = tmp_path / "sync.key"
        key.write_text(KEY)
        key.chmod(0o600)
        pair = pair.replace("[sync]", f'[sync]\nkey_file = "{key}"')
    made = World(tmp_path, pair)
    try:
        made.build()
        yield made
    finally:
        made.end()


def test_a_flood_on_the_sync_link_moves_nothing_and_stops_nothing(world: World) -> None:
    for name in DIRECTORS:
        world.start(name)
    for name in DIRECTORS:
        wait_for_states(world, name, OWN[name])
    connections = [world.connect(f"10.88.1.{ten}0") for ten in (1, 2) for _ in range(3)]
    servers = [speak(connection) for connection in connections]
    changes = [world.status(name)["routers"]["one"]["since_seconds"] for name in DIRECTORS]
    began = time.monotonic()
    stranger = world.run_in("stranger", sys.executable, "-c", STRANGER, str(SECONDS))
    answers = 0
    while stranger.poll() is None:
        assert [speak(connection) for connection in connections] == servers
        answers += 1
    assert stranger.returncode == 0
    assert answers > 1, "connections are carried during the flood"
    new = world.connect("10.88.1.10")
    assert speak(new) in servers
    for name, before in zip(DIRECTORS, changes, strict=True):
        wait_for_states(world, name, OWN[name])
        status = world.status(name)
        # Nobody became anything else meanwhile.
        assert status["routers"]["one"]["since_seconds"] >= before + time.monotonic() - began - 2
        refused = {
            kind: count
            for counters in (
                status["counters"]["sync"],
                *(replica["counters"] for replica in status["sync"].values()),
            )
            for kind, count in counters.items()
            if kind.startswith("refused_")
        }
        assert sum(refused.values()) > 100, refused
        assert all(len(replica["peers"]) <= 16 for replica in status["sync"].values())
    for connection in (*connections, new):
        connection.close()
