"""Two real directors with real things to track: links, routes, gateways, programs, files.

East and west share the link outside and have a gateway of their own each behind the link
inside. What happens is read from the directors' event sockets, and the times between what
the test does and what they tell are held to bounds. Everything waits for an event.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.netns.test_failover_netns import ip, run, until

ROOT = Path(__file__).parents[2]
DIRECTORS = ("east", "west")
WAIT = 20.0
INTERVAL = 0.1
BUSY = 1.0
"""What a busy machine may add to a time."""

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]

PAIR = f"""
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["10.99.1.10/24"]
advert_interval = {INTERVAL}
track = [TRACK]
notify = {{ command = ["FOLDER/notify"], user = "nobody" }}

[[virtual_routers]]
name = "gateway"
vrid = 52
interface = "outside"
addresses = ["10.99.1.20/24"]
advert_interval = {INTERVAL}

[[groups]]
name = "all"
routers = ["web", "gateway"]

[[trackers]]
name = "uplink"
kind = "interface"
interface = "inside"
families = [4, 6]

[[trackers]]
name = "arp"
kind = "gateway"
address = "10.99.2.254"
interface = "inside"
interval = 0.1
fall = 2
rise = 2

[[trackers]]
name = "nd"
kind = "gateway"
address = "fd99::254"
interface = "inside"
interval = 0.1
fall = 2

[[trackers]]
name = "icmp4"
kind = "gateway"
method = "icmp"
address = "10.99.2.254"
interval = 0.1
fall = 2

[[trackers]]
name = "icmp6"
kind = "gateway"
method = "icmp"
address = "fd99::254"
interval = 0.1
fall = 2

[[trackers]]
name = "script"
kind = "script"
command = ["FOLDER/check"]
user = "nobody"
interval = 0.2
fall = 2

[[trackers]]
name = "way"
kind = "route"
prefix = "203.0.113.0/24"
via = "10.99.2.254"
interface = "inside"

[[trackers]]
name = "number"
kind = "file"
path = "FOLDER/number"
interval = 0.05

[[trackers]]
name = "process"
kind = "process"
process = "sleep 607.25"
full_command = true
interval = 0.1

[nodes.east]
priority = 200
interfaces = {{ outside = "out", inside = "in" }}

[nodes.west]
priority = 100
interfaces = {{ outside = "out", inside = "in" }}
"""
# Each node's program does what the file of its network namespace says.
CHECK = """#!/bin/sh
folder=$(dirname "$0")
mode=$(cat "$folder/mode-$(readlink /proc/self/ns/net)" 2> /dev/null)
echo "it is to $mode"
case "$mode" in
    hang) sh -c 'echo $$ >> '"$folder"'/pids; exec sleep 608' & wait ;;
    fork) setsid sh -c 'echo $$ >> '"$folder"'/pids; exec sleep 609' > /dev/null 2>&1 &
          until grep -q . "$folder/pids"; do sleep 0.01; done ;;
    fail) exit 4 ;;
esac
"""
NOTIFY = """#!/bin/sh
echo "$LVSHA_NODE $(id -un) $*" >> "$(dirname "$0")/told"
"""


class Events:
    """What a director tells, from its event socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WAIT)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")

    def wait(self, **wanted: object) -> float:
        """Skip events up to one with these fields; returns its time."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            event = json.loads(self._lines.readline())
            if wanted.items() <= event.items():
                return float(event["time"])
        raise AssertionError(f"no such event: {wanted}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class World:
    """The namespaces, and the directors in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = f"track{os.getpid()}"
        self._programs: list[subprocess.Popen[bytes]] = []
        self.events: dict[str, Events] = {}

    def space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def build(self) -> None:
        for name in (*DIRECTORS, *(f"gate-{one}" for one in DIRECTORS)):
            ip(f"netns add {self.space(name)}")
            run(["ip", "netns", "exec", self.space(name), "sysctl", "-qw",
                 "net.ipv6.conf.default.accept_dad=0"])  # fmt: skip
            ip(f"-n {self.space(name)} link set lo up")
        east, west = map(self.space, DIRECTORS)
        ip(f"-n {east} link add out type veth peer out netns {west}")
        for number, name in enumerate(DIRECTORS, 1):
            own, gate = self.space(name), self.space(f"gate-{name}")
            ip(f"-n {own} link add in type veth peer in netns {gate}")
            ip(f"-n {own} address add 10.99.1.{number}/24 dev out")
            for space, last in ((own, number), (gate, 254)):
                ip(f"-n {space} address add 10.99.2.{last}/24 dev in")
                ip(f"-n {space} address add fd99::{last}/64 dev in")
                ip(f"-n {space} link set in up")
            ip(f"-n {own} link set out up")
            ip(f"-n {own} route add 203.0.113.0/24 via 10.99.2.254")
        for name in DIRECTORS:
            until("a link-local address", self._has_link_local(name), 5)

    def _has_link_local(self, name: str) -> Callable[[], bool]:
        command = f"-n {self.space(name)} -6 address show dev in scope link"
        return lambda: "fe80::" in ip(command)

    def start(self, track: str) -> None:
        self.folder.chmod(0o777)
        for name, text in (("check", CHECK), ("notify", NOTIFY)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        for name in ("pids", "told"):
            (self.folder / name).touch()
            (self.folder / name).chmod(0o666)
        pair = self.folder / "pair.toml"
        pair.write_text(PAIR.replace("TRACK", track).replace("FOLDER", str(self.folder)))
        for name in ("east", "west"):
            with (self.folder / f"{name}.log").open("ab") as log:
                words = (sys.executable, "-m", "lvsha", "run", str(pair), "--node", name)
                self._programs.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", self.space(name), *words],
                        cwd=ROOT,
                        env={**os.environ, "LVSHA_RUNTIME_DIR": str(self._directory(name))},
                        stdout=log,
                        stderr=log,
                    )
                )
            until(f"{name} tells events", partial(self._tells, name), WAIT)
            self.events[name] = Events(self._sockets(name)[0])
        self.events["east"].wait(event="group", new="MASTER")
        self.events["west"].wait(event="group", new="BACKUP")

    def _directory(self, name: str) -> Path:
        return self.folder / f"run-{name}"

    def _sockets(self, name: str) -> list[Path]:
        return list(self._directory(name).glob("events-*.sock"))

    def _tells(self, name: str) -> bool:
        return bool(self._sockets(name))

    def mode(self, name: str, mode: str) -> None:
        inode = Path(f"/run/netns/{self.space(name)}").stat().st_ino
        (self.folder / f"mode-net:[{inode}]").write_text(mode)

    def status(self, name: str) -> dict[str, Any]:
        done = subprocess.run(
            ["ip", "netns", "exec", self.space(name), sys.executable, "-m", "lvsha", "status",
             "--json"],
            cwd=ROOT,
            env={**os.environ, "LVSHA_RUNTIME_DIR": str(self._directory(name))},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )  # fmt: skip
        return dict(json.loads(done.stdout))

    def end(self) -> None:
        for events in self.events.values():
            events.close()
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait(10)
        for name in (*DIRECTORS, *(f"gate-{one}" for one in DIRECTORS)):
            subprocess.run(
                ["ip", "netns", "delete", self.space(name)], capture_output=True, check=False
            )


@pytest.fixture
def world() -> Iterator[World]:
    # Not pytest's folder: programs of another user must get at their files.
    with tempfile.TemporaryDirectory(prefix="track") as folder:
        made = World(Path(folder))
        try:
            made.build()
            yield made
        finally:
            made.end()


def report(what: str, seconds: float, limit: float) -> None:
    """Print a time, for those who measure, and hold it to its limit."""
    print(f"{what}: {seconds * 1000:.0f} ms")
    assert 0 <= seconds < limit, what


def test_faults_of_one_node_move_its_group_and_their_ends_bring_it_back(world: World) -> None:
    world.start('"uplink", "arp", "nd", "icmp4", "icmp6", "script", "way"')
    east, west = world.events["east"], world.events["west"]
    gate, own = world.space("gate-east"), world.space("east")

    def moves(what: str, tracker: str, limit: float, break_it: Callable[[], object]) -> None:
        began = time.time()
        break_it()
        fault = east.wait(event="state", router="web", new="FAULT") - began
        report(f"{what}: east is FAULT", fault, limit + BUSY)
        taken = west.wait(event="group", group="all", new="MASTER") - began
        report(f"{what}: west has both", taken, limit + 2 * INTERVAL + BUSY)
        assert world.status("east")["tracking"]["trackers"][tracker]["state"] == "down"

    def returns(mend: Callable[[], object]) -> None:
        mend()
        east.wait(event="group", group="all", new="MASTER")
        west.wait(event="group", group="all", new="BACKUP")

    # Two bad readings at 0.1 s, the second of which takes its time-out.
    moves("gateway stops to answer ARP", "arp", 0.3,
          lambda: ip(f"-n {gate} address del 10.99.2.254/24 dev in"))  # fmt: skip
    returns(lambda: ip(f"-n {gate} address add 10.99.2.254/24 dev in"))
    moves("gateway stops to answer discovery", "nd", 0.3,
          lambda: ip(f"-n {gate} address del fd99::254/64 dev in"))  # fmt: skip
    returns(lambda: ip(f"-n {gate} address add fd99::254/64 dev in"))
    moves("route goes", "way", 0.0, lambda: ip(f"-n {own} route del 203.0.113.0/24"))
    returns(lambda: ip(f"-n {own} route add 203.0.113.0/24 via 10.99.2.254"))
    moves("script fails", "script", 0.6, lambda: world.mode("east", "fail"))
    returns(lambda: world.mode("east", "succeed"))
    moves("script hangs", "script", 0.8, lambda: world.mode("east", "hang"))
    assert "ended after 0.2 s" in str(world.status("east")["routers"]["web"]["fault"])
    returns(lambda: world.mode("east", "fork"))
    moves("cable is pulled", "uplink", 0.0, lambda: ip(f"-n {own} link set in down"))

    world.mode("east", "succeed")
    pids = set(map(int, (world.folder / "pids").read_text().split()))
    assert len(pids) > 2
    until("all that hung and forked are gone", lambda: not any(map(lives, pids)), 5)
    told = (world.folder / "told").read_text().splitlines()
    assert {"east nobody INSTANCE web FAULT 200", "west nobody INSTANCE web MASTER 100"} <= set(
        told
    )


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_weights_of_a_file_and_of_processes_let_the_better_node_lead(world: World) -> None:
    with subprocess.Popen(["sleep", "607.25"]) as sleeper:
        try:
            weights_decide(world, sleeper)
        finally:
            sleeper.kill()


def weights_decide(world: World, sleeper: subprocess.Popen[bytes]) -> None:
    # Both nodes see the same file and process, so only reverse tells them apart: the number
    # counts for both, and the difference is what clamping leaves.
    world.start('{ tracker = "number", weight = 1 }, { tracker = "process", weight = 50 }')
    east = world.events["east"]
    began = time.time()
    (world.folder / "number").write_text("-20\n")
    changed = east.wait(event="priority", router="web", priority=230)
    report("file is written: priority", changed - began, 0.05 + BUSY)
    assert east.wait(event="priority", router="gateway", priority=230) >= changed
    began = time.time()
    sleeper.kill()
    sleeper.wait()
    changed = east.wait(event="priority", router="web", priority=180)
    report("process ends: priority", changed - began, 0.1 + BUSY)
    began = time.time()
    (world.folder / "number").write_text("-254\n")
    fault = east.wait(event="state", router="web", new="FAULT")
    report("file says -254: east is FAULT", fault - began, 0.05 + BUSY)
    assert world.status("east")["routers"]["gateway"]["fault"] == "number says -254"


def test_a_lower_weight_makes_the_backup_preempt(world: World) -> None:
    world.start('{ tracker = "way", weight = -150 }')
    began = time.time()
    ip(f"-n {world.space('east')} route del 203.0.113.0/24")
    taken = world.events["west"].wait(event="group", group="all", new="MASTER") - began
    # West ignores the lower priority until its timer runs out: 3.6 intervals.
    report("route goes, weight -150: west has both", taken, 4 * INTERVAL + BUSY)
    world.events["east"].wait(event="group", group="all", new="BACKUP")
    assert world.status("east")["routers"]["web"]["priority"] == 50
