"""A client, a director and a real server in network namespaces, for tests with real stacks.

    client eth0 ---- eth0 director eth1 ---- eth0 server
    10.78.1.2        10.78.1.1    10.78.2.1  10.78.2.11
    fd78:1::2        fd78:1::1    fd78:2::1  fd78:2::11

The director's eth0 has the virtual addresses, and the server's default route leads through
the director, which is an ordinary router as well. A yard has a name of its own, with which
its namespaces begin, so that several can stand side by side.
"""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

ROOT = Path(__file__).parents[1]
CLIENT = {4: "10.78.1.2", 6: "fd78:1::2"}
OUTSIDE = {4: "10.78.1.1", 6: "fd78:1::1"}
INSIDE = {4: "10.78.2.1", 6: "fd78:2::1"}
SERVER = {4: "10.78.2.11", 6: "fd78:2::11"}
VIP = {4: "10.78.1.100", 6: "fd78:1::100"}
OTHER_VIP = {4: "10.78.1.101", 6: "fd78:1::101"}
WAIT = 10.0

NEEDS = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]

Result = TypeVar("Result")


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


class Server(Protocol):
    """Something that serves until it is closed."""

    def close(self) -> None: ...


class Yard:
    """The three namespaces and their links."""

    def __init__(self, name: str) -> None:
        self.client, self.director, self.server = (
            f"{name}-{role}" for role in ("client", "director", "server")
        )
        self.take_down()
        for namespace in self.namespaces:
            run("ip", "netns", "add", namespace)
            self.inside(namespace, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
            self.inside(namespace, "ip", "link", "set", "lo", "up")
        for namespace, interface in ((self.client, "eth0"), (self.server, "eth1")):
            run("ip", "link", "add", "eth0", "netns", namespace, "type", "veth",
                "peer", "name", interface, "netns", self.director)  # fmt: skip
            self.inside(namespace, "ip", "link", "set", "eth0", "up")
            self.inside(self.director, "ip", "link", "set", interface, "up")
        self.inside(self.director, "sysctl", "-qw", "net.ipv4.ip_forward=1",
                    "net.ipv6.conf.all.forwarding=1")  # fmt: skip
        for namespace, interface, addresses in (
            (self.client, "eth0", CLIENT), (self.director, "eth0", OUTSIDE),
            (self.director, "eth1", INSIDE), (self.server, "eth0", SERVER),
            (self.director, "eth0", VIP), (self.director, "eth0", OTHER_VIP),
        ):  # fmt: skip
            for family, length in ((4, 24), (6, 64)):
                place = ("ip", f"-{family}", "addr", "add", f"{addresses[family]}/{length}")
                extra = ("nodad",) if family == 6 else ()
                self.inside(namespace, *place, "dev", interface, *extra)
        for namespace, ways in ((self.client, OUTSIDE), (self.server, INSIDE)):
            for family, way in ways.items():
                self.inside(namespace, "ip", f"-{family}", "route", "add", "default", "via", way)

    @property
    def namespaces(self) -> tuple[str, str, str]:
        return self.client, self.director, self.server

    def take_down(self) -> None:
        for namespace in self.namespaces:
            run("ip", "netns", "del", namespace, check=False)

    @staticmethod
    def inside(namespace: str, *words: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", namespace, *words, check=check)

    def on_director(self, *words: str, check: bool = True) -> str:
        return self.inside(self.director, *words, check=check)


@contextmanager
def a_yard(name: str) -> Iterator[Yard]:
    yard = Yard(name)
    try:
        yield yard
    finally:
        yard.take_down()


class Inside(threading.Thread):
    """Work done in a namespace: in a thread of its own, so that nothing else moves."""

    def __init__(self, namespace: str, work: Callable[[], None]) -> None:
        super().__init__()
        self._namespace = namespace
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            _enter(self._namespace)
            self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised again by who waits
            self.error = error


def _enter(namespace: str) -> None:
    with Path(f"/run/netns/{namespace}").open(encoding="ascii") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0x4000_0000):
            raise OSError(ctypes.get_errno(), "setns")


def within(namespace: str, action: Callable[[], Result]) -> Result:
    """Do something in a namespace and wait for it."""
    results: list[Result] = []
    thread = Inside(namespace, lambda: results.append(action()))
    thread.join()
    if thread.error is not None:
        raise thread.error
    return results[0]


def a_socket(
    namespace: str, family: int, kind: int, address: tuple[str, int] | None = None
) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind)
        made.settimeout(WAIT)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address is not None:
            made.bind(address)
        return made

    return within(namespace, make)


class Echo:
    """TCP and UDP on one address and port; each answer begins with a name and a blank."""

    def __init__(self, namespace: str, family: int, address: str, port: int, name: str) -> None:
        self._name = name.encode() + b" "
        self._stop = threading.Event()
        end = (address, port)
        self._listener = a_socket(namespace, family, socket.SOCK_STREAM, end)
        self._listener.listen(16)
        self._datagrams = a_socket(namespace, family, socket.SOCK_DGRAM, end)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._listener, self._datagrams], [], [], 0.1)
            if self._datagrams in ready:
                data, client = self._datagrams.recvfrom(70_000)
                self._datagrams.sendto(self._name + data, client)
            if self._listener in ready:
                made, _ = self._listener.accept()
                made.settimeout(WAIT)
                with made, suppress(OSError):
                    made.sendall(self._name)
                    while data := made.recv(65_536):
                        made.sendall(data)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()
        self._datagrams.close()


def ask(namespace: str, family: int, address: str, port: int, data: bytes) -> bytes:
    """What a TCP server answers: its name, and the data again."""
    with a_socket(namespace, family, socket.SOCK_STREAM) as client:
        client.connect((address, port))
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        received = bytearray()
        while len(received.partition(b" ")[2]) < len(data):
            part = client.recv(1 << 20)
            assert part, "the connection ended early"
            received += part
        sender.join()
        return bytes(received)


def ask_datagram(namespace: str, family: int, address: str, port: int, data: bytes) -> bytes:
    """What a UDP server answers; it must answer from where it was asked."""
    with a_socket(namespace, family, socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.send(data)
        return client.recv(70_000)


class Running:
    """An ``lvsha run`` in the director's namespace, ready when this is made."""

    def __init__(self, yard: Yard, directory: Path, configuration: str) -> None:
        self.file = directory / "pair.toml"
        interfaces = '[nodes.only.interfaces]\noutside = "eth0"\ninside = "eth1"\n'
        self.file.write_text(interfaces + configuration, encoding="ascii")
        self._environment = {**os.environ, "LVSHA_RUNTIME_DIR": str(directory / "run")}
        self._words = ["ip", "netns", "exec", yard.director, sys.executable, "-m", "lvsha"]
        self.process = subprocess.Popen(
            [*self._words, "run", str(self.file), "--node", "only", "--log-format", "json"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self._environment,
        )
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if "director started" in line:
                break
        else:
            self.process.wait(30)
            self.process.stderr.close()
            raise AssertionError("".join(self.log))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def lvsha(self, *words: str) -> str:
        return subprocess.run(
            [*self._words, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self._environment,
            timeout=60,
            check=True,
        ).stdout

    def clean(self) -> None:
        self.lvsha("clean", str(self.file), "--node", "only")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def a_director(
    yard: Yard, directory: Path, configuration: str, servers: Sequence[Server] = ()
) -> Iterator[Running]:
    """A director that runs, and that nothing has surprised when it ends."""
    try:
        running = Running(yard, directory, configuration)
        try:
            yield running
            if running.process.poll() is None:
                assert '"surprise"' not in running.lvsha("status", "--json")
        finally:
            if running.process.poll() is None:
                running.end()
    finally:
        for server in servers:
            server.close()


def service(name: str, keys: str, *servers: str) -> str:
    """A table of a pair file; keys and servers as TOML, keys parted by ``;``."""
    lines = [f'\n[[services]]\nname = "{name}"\nscheduler = "rr"', *keys.split("; ")]
    listed = ", ".join(f"{{ {server} }}" for server in servers)
    return "\n".join([*lines, f"servers = [{listed}]"]) + "\n"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process is about to do."""
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)
