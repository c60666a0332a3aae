"""The Vagrant laboratory in network namespaces: same addresses, same scripts, same pair file.

The machines and addresses are read from the Vagrantfile, the networks are bridges, and the
"network" part of each provisioning script runs in its machine's namespace. Then the real
program runs in both directors and a client asks through the virtual address.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROVISION = ROOT / "vagrant" / "provision"
VIRTUAL = "192.0.2.10"
PORTS = (8001, 8002)
COMMAND_TIME_MAX = 30.0
PATIENCE = 10.0

ASK = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for _ in range(int(sys.argv[2])):
    print(opener.open(sys.argv[1], timeout=5).read().decode().strip())
"""


def missing() -> str | None:
    """Why this machine cannot run the laboratory; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "nft", "sysctl", "awk"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    return None


pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def machines() -> dict[str, dict[str, str]]:
    """The table of the Vagrantfile: addresses by machine and network."""
    text = (ROOT / "vagrant" / "Vagrantfile").read_text(encoding="utf-8")
    table = text[text.index("MACHINES = {") : text.index("}.freeze")]
    return {
        name: dict(re.findall(r'"(\w+)" => "([\d.]+)"', addresses))
        for name, addresses in re.findall(r'"([\w-]+)"\s+=> \{([^}]*)\}', table)
    }


class Laboratory:
    """The machines as namespaces; everything ends with the exit stack."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._prefix = f"lvp{os.getpid() % 100_000}-"
        self.machines = machines()
        self._namespace("wires")
        for wire in ("outside", "inside", "sync"):
            self.run("wires", "ip", "link", "add", wire, "type", "bridge", "mcast_snooping", "0")
            self.run("wires", "ip", "link", "set", wire, "up")
        for name, addresses in self.machines.items():
            self._namespace(name)
            self.run(name, "ip", "link", "set", "lo", "up")
            for number, (wire, address) in enumerate(addresses.items(), start=1):
                self._cable(name, wire, f"port{number}", address)

    def _namespace(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._prefix + name], check=True)
        self._stack.callback(
            subprocess.run, ["ip", "netns", "delete", self._prefix + name], check=True
        )

    def _cable(self, name: str, wire: str, port: str, address: str) -> None:
        near = f"{wire[0]}-{name}"
        far = ("peer", "name", port, "netns", self._prefix + name)
        self.run("wires", "ip", "link", "add", near, "type", "veth", *far)
        self.run("wires", "ip", "link", "set", near, "master", wire, "up")
        self.run(name, "ip", "link", "set", port, "up")
        self.run(name, "ip", "address", "add", f"{address}/24", "dev", port)

    def _inside(self, name: str, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self._prefix + name, *command]

    def _environment(self, name: str) -> Mapping[str, str]:
        return os.environ | {
            "LVSHA_REPOSITORY": str(ROOT),
            "LVSHA_PAIR": str(self.pair_file(name)),
            "LVSHA_RUNTIME_DIR": str(self._directory / f"run-{name}"),
            "PYTHONPATH": str(ROOT),
        }

    def pair_file(self, name: str) -> Path:
        """Where the provisioning of a director writes its pair file."""
        return self._directory / name / "pair.toml"

    def run(self, name: str, *command: str) -> str:
        """Run a command in a machine; what it printed."""
        done = subprocess.run(
            self._inside(name, command),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIME_MAX,
            env=self._environment(name),
        )
        assert done.returncode == 0, f"{name}: {' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, *command: str) -> "subprocess.Popen[bytes]":
        """Start a program in a machine that runs until the end, or until it is killed."""
        log = self._stack.enter_context((self._directory / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            self._inside(name, command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self._directory,
            env=self._environment(name),
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def provision(self, name: str) -> None:
        """What the Vagrantfile does with a machine, as far as a namespace can hold it."""
        addresses = self.machines[name].values()
        kind = name.partition("-")[0]
        self.run(name, str(PROVISION / "common.sh"), *addresses)
        self.run(name, str(PROVISION / f"{kind}.sh"), "network", *addresses)

    def state(self, name: str) -> str:
        """The VRRP state that a director reports; empty while it does not answer."""
        done = subprocess.run(
            self._inside(name, [sys.executable, "-m", "lvsha", "status", "--json"]),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIME_MAX,
            env=self._environment(name),
        )
        if done.returncode != 0:
            return ""
        return str(json.loads(done.stdout)["routers"]["web"]["state"])

    def ask(self, port: int, times: int) -> list[str]:
        """What the real servers answer to the client; each says its name."""
        url = f"http://{VIRTUAL}:{port}/"
        return self.run("client", sys.executable, "-c", ASK, url, str(times)).split()

    def log(self, name: str) -> str:
        """What a machine's programs wrote."""
        return (self._directory / f"{name}.log").read_text(encoding="utf-8")


def eventually(holds: Callable[[], bool], explain: Callable[[], str]) -> None:
    """Wait until something holds; other machines' time is not ours to turn."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


@pytest.fixture
def laboratory(tmp_path: Path) -> Iterator[Laboratory]:
    with ExitStack() as stack:
        yield Laboratory(stack, tmp_path)


def test_table_of_the_vagrantfile_is_read_whole() -> None:
    assert list(machines()) == [
        "client",
        "director-east",
        "director-west",
        "real-1",
        "real-2",
        "real-3",
    ]
    assert machines()["director-west"] == {
        "outside": "192.0.2.3",
        "inside": "10.1.0.3",
        "sync": "10.2.0.3",
    }


def test_real_server_holds_the_virtual_address_without_answering_for_it(
    laboratory: Laboratory,
) -> None:
    for _ in range(2):  # provisioning again changes nothing
        laboratory.provision("real-1")
    assert f"{VIRTUAL}/32" in laboratory.run("real-1", "ip", "-o", "address", "show", "dev", "lo")
    to_client = laboratory.run("real-1", "ip", "route", "get", "192.0.2.100")
    assert "via 10.1.0.254" in to_client
    from_virtual = laboratory.run("real-1", "ip", "route", "get", "192.0.2.100", "from", VIRTUAL)
    assert "via 10.1.0.100" in from_virtual
    rules = laboratory.run("real-1", "ip", "rule", "show")
    assert rules.count(f"from {VIRTUAL}") == 1
    # Somebody on the wire asks who has the virtual address.
    laboratory.run("client", "ip", "route", "add", f"{VIRTUAL}/32", "dev", "port2")
    asked = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('{}', 9))"
    laboratory.run("client", sys.executable, "-c", asked.format(VIRTUAL))
    neighbour = ("client", "ip", "neighbour", "show", VIRTUAL)
    eventually(lambda: "FAILED" in laboratory.run(*neighbour), lambda: laboratory.run(*neighbour))


def test_director_gets_the_settings_and_the_names_of_its_interfaces(
    laboratory: Laboratory,
) -> None:
    laboratory.provision("director-east")
    settings = laboratory.run(
        "director-east",
        "sysctl",
        "-n",
        "net.ipv4.conf.all.promote_secondaries",
        "net.ipv4.conf.all.arp_ignore",
        "net.ipv4.ip_forward",
    )
    assert settings.split() == ["1", "1", "0"]
    text = laboratory.pair_file("director-east").read_text(encoding="utf-8")
    assert 'outside = "port1", inside = "port2", sync = "port3"' in text
    assert '"eth' not in text


def test_both_methods_serve_and_the_other_director_takes_over(laboratory: Laboratory) -> None:
    reals = {"real-1", "real-2", "real-3"}
    for name in laboratory.machines:
        laboratory.provision(name)
    for name in sorted(reals):
        site = laboratory.pair_file(name).parent
        site.mkdir()
        (site / "index.html").write_text(name, encoding="utf-8")
        for port in PORTS:
            laboratory.start(
                name, sys.executable, "-m", "http.server", str(port), "--directory", str(site)
            )
    directors = {
        name: laboratory.start(
            name,
            *(sys.executable, "-m", "lvsha", "run", str(laboratory.pair_file(name))),
            *("--node", name),
        )
        for name in ("director-east", "director-west")
    }

    def becomes(name: str, state: str) -> None:
        eventually(lambda: laboratory.state(name) == state, lambda: laboratory.log(name))

    def listens(name: str, port: int) -> None:
        eventually(
            lambda: f":{port:04X} 00000000:0000 0A" in laboratory.run(name, "cat", "/proc/net/tcp"),
            lambda: laboratory.log(name),
        )

    for name in sorted(reals):
        for port in PORTS:
            listens(name, port)
    becomes("director-east", "MASTER")
    becomes("director-west", "BACKUP")
    for port in PORTS:
        assert set(laboratory.ask(port, 6)) == reals

    directors["director-east"].kill()
    becomes("director-west", "MASTER")
    for port in PORTS:
        assert set(laboratory.ask(port, 6)) == reals
