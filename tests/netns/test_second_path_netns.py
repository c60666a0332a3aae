"""Two real directors on a switch with a gateway, and a sync link of their own beside it.

A cut takes a node's port out of the switch, so that its link stays up. What happens is read
from the directors' event sockets; all of them are on one clock.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.netns.test_failover_netns import ip, until
from tests.netns.test_tracking_netns import BUSY, WAIT, Events, report

ROOT = Path(__file__).parents[2]
DIRECTORS = ("east", "west")
SPACES = (*DIRECTORS, "switch", "gateway")
INTERVAL = 0.1
# Three intervals and the longest skew.
DOWN = 4 * INTERVAL

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

[sync]

[nodes.east]
priority = 200
interfaces = {{ outside = "out", sync = "sync" }}

[nodes.west]
priority = 100
interfaces = {{ outside = "out", sync = "sync" }}
"""
SECOND_PATH = """
[[trackers]]
name = "gateway"
kind = "gateway"
address = "10.99.1.254"
interface = "outside"
interval = 0.1
fall = 2

[second_path]
witness = "gateway"
fencing = { command = ["FOLDER/fence"], user = "nobody", timeout = 5 }
"""
FENCE = """#!/bin/sh
echo "$LVSHA_NODE $(id -un) $*" >> "$(dirname "$0")/fenced"
echo "power is off"
"""


class Lab:
    """The namespaces, and the directors in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        self.events: dict[str, Events] = {}

    def space(self, name: str) -> str:
        return f"path{os.getpid()}-{name}"

    def build(self) -> None:
        for name in SPACES:
            ip(f"netns add {self.space(name)}")
            ip(f"-n {self.space(name)} link set lo up")
        switch = self.space("switch")
        ip(f"-n {switch} link add switch type bridge mcast_snooping 0")
        ip(f"-n {switch} link set switch up")
        for name, last in (("east", 1), ("west", 2), ("gateway", 254)):
            own = self.space(name)
            ip(f"-n {own} link add out type veth peer {name} netns {switch}")
            ip(f"-n {switch} link set {name} master switch up")
            ip(f"-n {own} address add 10.99.1.{last}/24 dev out")
            ip(f"-n {own} link set out up")
        east, west = map(self.space, DIRECTORS)
        ip(f"-n {east} link add sync type veth peer sync netns {west}")
        for number, own in enumerate((east, west), 1):
            ip(f"-n {own} address add 10.99.2.{number}/24 dev sync")
            ip(f"-n {own} link set sync up")

    def start(self, *sections: str) -> None:
        self.folder.chmod(0o777)
        (self.folder / "fence").write_text(FENCE)
        (self.folder / "fence").chmod(0o755)
        (self.folder / "fenced").touch()
        (self.folder / "fenced").chmod(0o666)
        pair = "\n".join((PAIR, *sections)).replace("FOLDER", str(self.folder))
        (self.folder / "pair.toml").write_text(pair)
        for name in DIRECTORS:
            self.launch(name)
        self.events["east"].wait(event="state", new="MASTER")
        # Until then west's copy may not be complete, and east has fenced whom it did not hear.
        time.sleep(1.0)
        (self.folder / "fenced").write_text("")

    def launch(self, name: str) -> None:
        directory = self.folder / f"run-{name}"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), sys.executable, "-m", "lvsha", "run",
                 str(self.folder / "pair.toml"), "--node", name],
                cwd=ROOT,
                env={**os.environ, "LVSHA_RUNTIME_DIR": str(directory)},
                stdout=log,
                stderr=log,
            )  # fmt: skip
        until(f"{name} tells events", partial(self._tells, directory), WAIT)
        self.events[name] = Events(next(directory.glob("events-*.sock")))

    @staticmethod
    def _tells(directory: Path) -> bool:
        return any(directory.glob("events-*.sock"))

    def cut_off(self, name: str) -> None:
        ip(f"-n {self.space('switch')} link set {name} nomaster")

    def join(self, name: str) -> None:
        ip(f"-n {self.space('switch')} link set {name} master switch")

    def kill(self, name: str) -> None:
        self.programs[name].kill()
        self.programs[name].wait()

    def end(self) -> None:
        for events in self.events.values():
            events.close()
        for program in self.programs.values():
            program.terminate()
        for program in self.programs.values():
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait(10)
        for name in SPACES:
            subprocess.run(
                ["ip", "netns", "delete", self.space(name)], capture_output=True, check=False
            )


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="path") as folder:
        made = Lab(Path(folder))
        try:
            made.build()
            yield made
        finally:
            made.end()


def test_who_is_cut_off_gives_up_before_the_other_takes_over(lab: Lab) -> None:
    lab.start(SECOND_PATH)
    east, west = lab.events["east"], lab.events["west"]
    began = time.time()
    lab.cut_off("east")
    given_up = east.wait(event="state", new="FAULT")
    taken = west.wait(event="state", new="MASTER")
    # Two bad readings and the time-out of the second, twice, and what is fresh.
    report("east is cut off: east is FAULT", given_up - began, 0.3 + 0.3 + 0.175 + BUSY)
    report("from then on until west is MASTER", taken - given_up, INTERVAL + BUSY)
    assert (lab.folder / "fenced").read_text() == ""
    lab.join("east")
    east.wait(event="state", new="BACKUP")
    east.wait(event="state", new="MASTER")
    west.wait(event="state", new="BACKUP")


def test_a_backup_that_is_cut_off_makes_no_second_master(lab: Lab) -> None:
    lab.start(SECOND_PATH)
    west = lab.events["west"]
    lab.cut_off("west")
    west.wait(event="second_path", verdict="stay", alarm=True)
    west.wait(event="state", new="FAULT")
    lab.join("west")
    west.wait(event="state", new="BACKUP")


def test_a_master_that_dies_is_fenced_before_it_is_taken_over(lab: Lab) -> None:
    lab.start(SECOND_PATH)
    west = lab.events["west"]
    began = time.time()
    lab.kill("east")
    west.wait(event="fencing", peer="east", state="running")
    fenced = west.wait(event="fencing", peer="east", state="fenced")
    taken = west.wait(event="state", new="MASTER")
    report("east is killed: it is fenced", fenced - began, DOWN + BUSY)
    report("from then on until west is MASTER", taken - fenced, BUSY)
    words = "west nobody east web nothing is heard of the peer\n"
    assert (lab.folder / "fenced").read_text() == words


@pytest.mark.parametrize("section", ["", "[second_path]\n"], ids=["plain", "second path"])
def test_a_crash_takes_as_long_with_a_second_path_as_without(lab: Lab, section: str) -> None:
    lab.start(section)
    for _ in range(3):
        began = time.time()
        lab.kill("east")
        taken = lab.events["west"].wait(event="state", new="MASTER")
        report(f"east is killed ({section.strip() or 'plain'})", taken - began, DOWN + BUSY)
        lab.events["east"].close()
        shutil.rmtree(lab.folder / "run-east")
        lab.launch("east")
        lab.events["east"].wait(event="state", new="MASTER")
        lab.events["west"].wait(event="state", new="BACKUP")
