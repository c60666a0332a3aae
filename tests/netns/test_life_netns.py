"""The life of real directors: ready, hung, killed and cleaned up after.

A pair whose service manager is this test. What hangs is the loop of the real program
(`tests.netns.hanging_director`).
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.mutual_pair import OWN, PAIR, ROOT, WAIT, World, speak, wait_for_states

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

WATCHDOG = 2.0
VIRTUAL = ("10.88.1.10/", "10.88.1.20/", "10.88.2.1/", "10.88.3.1/")
LAPSE_MAX = 6.0
"""Seconds: the lifetime of addresses, and by how much the kernel's timer may be late."""


class Managed(World):
    """Directors that can be made to hang, and what each tells its service manager."""

    def __init__(self, directory: Path, pair: str = PAIR) -> None:
        super().__init__(directory, pair)
        self._prefix = f"life{os.getpid()}"
        self.managers: dict[str, socket.socket] = {}
        for name in ("east", "west"):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.bind(str(directory / f"notify-{name}"))
            self.managers[name] = listener

    def _environment(self, name: str) -> dict[str, str]:
        manager = {
            "NOTIFY_SOCKET": str(self._directory / f"notify-{name}"),
            "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
            "STATE_DIRECTORY": str(self._directory),
        }
        return super()._environment(name) | (manager if name in self.managers else {})

    def start(self, name: str) -> None:
        words = (sys.executable, "-m", "tests.netns.hanging_director", "run", str(self.pair))
        self.directors[name] = self.run_in(name, *words, "--node", name)

    def hears(self, name: str, word: str, limit: float = WAIT) -> bool:
        """Whether a director tells something within a time; what came before is passed over."""
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            self.managers[name].settimeout(left)
            try:
                lines = self.managers[name].recv(65_536).decode().splitlines()
            except TimeoutError:
                return False
            if any(line.startswith(word) for line in lines):
                return True
        return False

    def hear_all(self, name: str) -> None:
        """Pass over what a director has told so far."""
        while self.hears(name, "", 0.001):
            pass

    def look(self, name: str, *words: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace(name), *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout

    def holds(self, name: str) -> bool:
        return any(address in self.look(name, "ip", "-4", "address") for address in VIRTUAL)

    def rules(self, name: str) -> str:
        return self.look(name, "nft", "list", "ruleset")

    def control(self, name: str) -> str:
        (path,) = (self._directory / f"run-{name}").glob("control-*.sock")
        return str(path)

    def lvsha(self, name: str, *words: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace(name), sys.executable, "-m", "lvsha", *words],
            cwd=ROOT,
            env={**os.environ, **self._environment(name)},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout

    def clean(self, name: str) -> None:
        self.lvsha(name, "clean", str(self.pair), "--node", name)

    def end(self) -> None:
        super().end()
        for listener in self.managers.values():
            listener.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Managed]:
    made = Managed(tmp_path)
    try:
        made.build()
        yield made
    finally:
        made.end()


def within(what: str, condition: Callable[[], bool], limit: float) -> float:
    """Wait for something; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit, what
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["task", "process"])
def test_a_loop_that_hangs_loses_addresses_and_watchdog(
    world: Managed, number: signal.Signals
) -> None:
    for name in ("east", "west"):
        world.start(name)
        assert world.hears(name, "READY=1")
    for name in ("east", "west"):
        wait_for_states(world, name, OWN[name])
    assert world.hears("east", "STATUS=one MASTER")
    assert world.hears("east", "WATCHDOG=1", WATCHDOG)

    world.directors["east"].send_signal(number)
    taken = within("the peer takes over", lambda: "10.88.1.10/" in world.look(
        "west", "ip", "-4", "address"), 3.0)  # fmt: skip
    # 0.36 s of silence; the rest is what it takes to look.
    assert taken < 2.0
    within("the addresses go", lambda: not world.holds("east"), LAPSE_MAX)
    world.hear_all("east")
    assert not world.hears("east", "WATCHDOG=1", 1.5 * WATCHDOG)
    assert world.hears("west", "WATCHDOG=1", WATCHDOG)

    peers = ["--peer", world.control("east")] if number is signal.SIGUSR1 else []
    story = world.lvsha("west", "why", "one", *peers)
    assert "west went from BACKUP to MASTER: master_" in story
    assert ("east went from MASTER to FAULT: fault: the loop" in story) == bool(peers)
    assert "addresses acquired: done True" in story

    # What the service manager does then, with what the unit runs after it.
    world.directors["east"].send_signal(signal.SIGABRT)
    assert world.directors["east"].wait(WAIT) == -signal.SIGABRT
    world.clean("east")
    assert not world.holds("east")
    assert world.rules("east") == ""
    log = (world.pair.parent / "east.log").read_text()
    assert "hanging_director.py" in log
    assert ("the loop that forwards hangs" in log) == (number is signal.SIGUSR1)


def test_a_killed_director_and_the_clean_up_leave_nothing(world: Managed) -> None:
    world.start("east")
    within("east is the master", lambda: world.holds("east"), WAIT)
    assert world.rules("east") != ""
    world.kill("east")
    # The rules stay, so that the dead director's stack does not reset what its peer has saved.
    assert world.holds("east")
    assert world.rules("east") != ""
    world.clean("east")
    assert not world.holds("east")
    assert world.rules("east") == ""
    assert "lvsha" not in world.look("east", "ip", "rule")
    assert "lvsha0" not in world.look("east", "ip", "link")
    world.clean("east")


def test_a_stop_and_a_reload_are_told(world: Managed) -> None:
    world.start("east")
    assert world.hears("east", "READY=1")
    world.directors["east"].send_signal(signal.SIGHUP)
    assert world.hears("east", "RELOADING=1")
    assert world.hears("east", "STATUS=running; the pair file has not changed")
    world.directors["east"].send_signal(signal.SIGTERM)
    assert world.hears("east", "STOPPING=1")
    assert world.directors["east"].wait(WAIT) == 0
    assert not world.holds("east")
    assert world.rules("east") == ""


def test_connections_live_on_when_a_master_without_a_peer_is_restarted(world: Managed) -> None:
    alone = {"one": "MASTER", "two": "MASTER"}
    world.start("east")
    wait_for_states(world, "east", alone)
    connections = [world.connect(f"10.88.1.{ten}0") for ten in (1, 2) for _ in range(5)]
    servers = [speak(connection) for connection in connections]
    for _ in range(2):
        world.directors["east"].send_signal(signal.SIGTERM)
        assert world.directors["east"].wait(WAIT) == 0
        world.start("east")
        wait_for_states(world, "east", alone)
        assert [speak(connection) for connection in connections] == servers
    assert world.status("east")["counters"]["state"] == {"connections_restored": len(connections)}
    for connection in connections:
        connection.close()


RIVAL = """
import socket, sys, time
from lvsha import interfaces
from lvsha.failover.announcements import announce, open_sender
from lvsha.wire import arp
address = socket.inet_aton(sys.argv[1])
own = interfaces.mac_address("out")
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(arp.ETHERTYPE)) as listener:
    listener.bind(("out", arp.ETHERTYPE))
    listener.settimeout(5)
    sender = open_sender()
    for _ in range(20):
        announce("out", [address], sender)
        time.sleep(0.005)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        try:
            heard = arp.parse(listener.recv(2048)[14:])
        except TimeoutError:
            break
        if heard.sender_address == address and heard.is_gratuitous and heard.sender_mac != own:
            print(heard.sender_mac.hex(":"), flush=True)
"""


def test_a_takeover_is_seen_through_and_a_rival_is_answered(world: Managed) -> None:
    world.start("east")
    wait_for_states(world, "east", {"one": "MASTER", "two": "MASTER"})
    takeovers = world.status("east")["takeovers"]
    assert takeovers["one"]["frames"] == "awaited"
    connection = world.connect("10.88.1.10")
    speak(connection)
    connection.close()
    within("a frame is seen", lambda: world.status("east")["takeovers"]["one"]["frames"] == "seen",
           WAIT)  # fmt: skip
    assert world.status("east")["takeovers"]["two"]["frames"] in {"awaited", "silent"}
    story = world.lvsha("east", "why", "one")
    assert "east had the first frame" in story

    # The series of announcements after the takeover is over but for rare ones.
    own = world.look("east", "cat", "/sys/class/net/out/address").strip()
    done = world.look("client", sys.executable, "-c", RIVAL, "10.88.1.10")
    assert set(done.split()) == {own}
    # One answer in a second, of a request and a reply; the refresh of the series may come in.
    assert 2 <= len(done.split()) <= 6
    counters = world.status("east")["takeovers"]["one"]["counters"]
    # Each of the 20 is a request and a reply.
    assert counters["rival_announcements"] == 40
    assert counters["answers_held_back"] >= 38
    assert "rival announced: address 10.88.1.10" in world.lvsha("east", "why", "one")
    assert "another has announced an address" in (world.pair.parent / "east.log").read_text()
