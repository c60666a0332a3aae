"""Two real directors that back each other up, in namespaces, with kernel servers and a client.

East is normally the master of one pair of addresses, west of the other; NAT, so that each
virtual router also moves a gateway. Outside, inside and sync are a bridge each.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lvsha.control import ask
from lvsha.errors import HostError

ROOT = Path(__file__).parents[2]
DIRECTORS = ("east", "west")
OWN = {"east": {"one": "MASTER", "two": "BACKUP"}, "west": {"one": "BACKUP", "two": "MASTER"}}
"""The state of each virtual router while both directors live."""
WAIT = 15.0

PAIR = """
[[virtual_routers]]
name = "one"
vrid = 51
interface = "outside"
addresses = ["10.88.1.10/24", "10.88.2.1/24@inside"]
advert_interval = 0.1

[[virtual_routers]]
name = "two"
vrid = 52
interface = "outside"
addresses = ["10.88.1.20/24", "10.88.3.1/24@inside"]
advert_interval = 0.1

[[services]]
name = "one"
address = "10.88.1.10"
port = 80
scheduler = "rr"
servers = [{ address = "10.88.2.11", port = 8080 }, { address = "10.88.2.12", port = 8080 }]

[[services]]
name = "two"
address = "10.88.1.20"
port = 80
scheduler = "rr"
servers = [{ address = "10.88.3.11", port = 8080 }, { address = "10.88.3.12", port = 8080 }]

[sync]
interface = "sync"
heartbeat_interval = 0.2

[nodes.east]
priorities = { one = 200, two = 100 }
interfaces = { outside = "out", inside = "in", sync = "syn" }

[nodes.west]
priorities = { one = 100, two = 200 }
interfaces = { outside = "out", inside = "in", sync = "syn" }
"""

SERVER = """
import socket, sys, threading
def serve(connection):
    while connection.recv(64):
        connection.sendall(sys.argv[1].encode())
listener = socket.create_server((sys.argv[1], 8080), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


ENDS = ("client", *DIRECTORS, "real1", "real2", "stranger")


class World:
    """The namespaces, and the programs in them."""

    def __init__(self, directory: Path, pair: str = PAIR) -> None:
        self._directory = directory
        self._prefix = f"lvm{os.getpid()}"
        self._programs: list[subprocess.Popen[bytes]] = []
        self.directors: dict[str, subprocess.Popen[bytes]] = {}
        self.pair = directory / "pair.toml"
        self.pair.write_text(pair)

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def build(self) -> None:
        for name in ("wire", *ENDS):
            run("ip", "netns", "add", self.namespace(name))
            run("ip", "-n", self.namespace(name), "link", "set", "lo", "up")
        wire = self.namespace("wire")
        for bridge in ("bout", "bin", "bsyn"):
            run("ip", "-n", wire, "link", "add", bridge, "type", "bridge")
            run("ip", "-n", wire, "link", "set", bridge, "up")
        self._leg("client", "out", "10.88.1.2/24")
        self._leg("stranger", "syn", "10.88.4.99/24")
        for number, name in enumerate(DIRECTORS, 3):
            self._leg(name, "out", f"10.88.1.{number}/24")
            self._leg(name, "in", f"10.88.2.{number}/24", f"10.88.3.{number}/24")
            self._leg(name, "syn", f"10.88.4.{number}/24")
        for name, last in (("real1", 11), ("real2", 12)):
            self._leg(name, "in", f"10.88.2.{last}/24", f"10.88.3.{last}/24")
            space = self.namespace(name)
            # The gateway depends on the address that the service is at.
            for table, net in ((2, "10.88.2"), (3, "10.88.3")):
                run(
                    "ip",
                    "-n",
                    space,
                    "rule",
                    "add",
                    "from",
                    f"{net}.{last}",
                    "lookup",
                    f"10{table}",
                )
                run(
                    "ip",
                    "-n",
                    space,
                    "route",
                    "add",
                    "10.88.1.0/24",
                    "via",
                    f"{net}.1",
                    "table",
                    f"10{table}",
                )
                self.run_in(name, sys.executable, "-c", SERVER, f"{net}.{last}")

    def _leg(self, name: str, wire: str, *addresses: str) -> None:
        near, far = self.namespace(name), self.namespace("wire")
        end = f"{name[:6]}{wire}"
        run("ip", "-n", far, "link", "add", end, "type", "veth", "peer", wire, "netns", near)
        run("ip", "-n", far, "link", "set", end, "master", f"b{wire}", "up")
        for address in addresses:
            run("ip", "-n", near, "address", "add", address, "dev", wire)
        run("ip", "-n", near, "link", "set", wire, "up")

    def run_in(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program in a namespace; it ends with the world."""
        with (self._directory / f"{name}.log").open("ab") as log:
            program = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace(name), *words],
                cwd=ROOT,
                env={**os.environ, **self._environment(name)},
                stdout=log,
                stderr=log,
            )
        self._programs.append(program)
        return program

    def _environment(self, name: str) -> dict[str, str]:
        return {"LVSHA_RUNTIME_DIR": str(self._directory / f"run-{name}")}

    def start(self, name: str) -> None:
        words = (sys.executable, "-m", "lvsha", "run", str(self.pair), "--node", name)
        self.directors[name] = self.run_in(name, *words)

    def kill(self, name: str) -> None:
        self.directors[name].send_signal(signal.SIGKILL)
        self.directors[name].wait(WAIT)

    def status(self, name: str) -> dict[str, Any]:
        """What a director says of itself; nothing while it does not run."""
        # A socket in the file system is reached from any network namespace.
        for path in (self._directory / f"run-{name}").glob("control-*.sock"):
            with suppress(HostError):
                answer = ask("status", path=path)
                assert isinstance(answer, dict)
                return answer
        return {}

    def states(self, name: str) -> dict[str, str]:
        """The state of each virtual router at a director, ``!`` added while copies lack."""
        status = self.status(name)
        if not status:
            return {}
        complete = all(replica["complete"] for replica in status["sync"].values())
        return {
            router: of["state"] + ("" if complete else "!")
            for router, of in status["routers"].items()
        }

    def connect(self, address: str) -> socket.socket:
        """A connection from the client's namespace."""
        made: list[socket.socket] = []

        def enter() -> None:
            with Path(f"/run/netns/{self.namespace('client')}").open("rb") as handle:
                _setns(handle.fileno())
            made.append(socket.create_connection((address, 80), timeout=WAIT))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert made, f"no connection to {address}"
        return made[0]

    def end(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait(WAIT)
        for name in (*ENDS, "wire"):
            subprocess.run(
                ["ip", "netns", "delete", self.namespace(name)], capture_output=True, check=False
            )


def _setns(descriptor: int) -> None:
    assert ctypes.CDLL(None).setns(descriptor, 0x4000_0000) == 0


def wait_for_states(world: World, name: str, expected: dict[str, str]) -> None:
    until = time.monotonic() + WAIT
    while (seen := world.states(name)) != expected:
        assert time.monotonic() < until, f"{name}: {seen} instead of {expected}"
        time.sleep(0.1)


def speak(connection: socket.socket) -> str:
    """Ask a server who it is."""
    connection.sendall(b"who?")
    return connection.recv(64).decode()
