"""`lvsha observe` beside a real keepalived pair, with what a kernel's master daemon has said.

East and west are two machines on a bridge; whoever observes listens on the bridge itself.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
    pytest.mark.skipif(shutil.which("keepalived") is None, reason="needs keepalived"),
]

ROOT = Path(__file__).parents[2]
BRIDGE = f"lvo-bridge-{os.getpid()}"
EAST, WEST = f"lvo-east-{os.getpid()}", f"lvo-west-{os.getpid()}"
PRIORITIES = {EAST: 200, WEST: 100}

SPEAK = """
import time
from lvsha.model import parse_address
from lvsha.sync.transport import MulticastTransport
from tests.vectors.recordings import scenarios

transports = [
    MulticastTransport("eth0", parse_address(group), 8848, listens=False)
    for group in ("224.0.0.81", "ff02::81")
]
for scenario in scenarios("sync"):
    for step in scenario["steps"]:
        for datagram in step.get("datagrams", []):
            for transport in transports:
                assert transport.send(bytes.fromhex(datagram["payload"]))
"""


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, timeout=20)


def started(namespace: str, *command: str, **how: Any) -> subprocess.Popen[str]:
    words = ["ip", "netns", "exec", namespace, *command]
    return subprocess.Popen(words, text=True, start_new_session=True, cwd=ROOT, **how)


@contextmanager
def machines(folder: Path, version: int, interval: float) -> Iterator[dict[str, int]]:
    """The two machines and the bridge; gives the process of each keepalived."""
    with ExitStack() as stack:
        for name in (BRIDGE, EAST, WEST):
            ip(f"netns add {name}")
            stack.callback(ip, f"netns delete {name}")
            ip(f"-n {name} link set lo up")
        ip(f"-n {BRIDGE} link add br0 type bridge mcast_snooping 0")
        ip(f"-n {BRIDGE} link set br0 up")
        for number, name in enumerate((EAST, WEST), 1):
            port = f"port{number}"
            ip(f"-n {name} link add eth0 type veth peer {port} netns {BRIDGE}")
            ip(f"-n {BRIDGE} link set {port} master br0 up")
            ip(f"-n {name} address add 10.2.0.{number}/24 dev eth0")
            ip(f"-n {name} address add fe80::{number}/64 dev eth0 nodad")
            ip(f"-n {name} link set eth0 up")
        processes = {}
        for name, priority in PRIORITIES.items():
            path = folder / f"{name}.conf"
            path.write_text(
                f"global_defs {{\n vrrp_version {version}\n}}\n"
                f"vrrp_instance one {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n"
                f" priority {priority}\n advert_int {interval}\n"
                " virtual_ipaddress {\n  192.0.2.10/24\n }\n}\n"
            )
            pids = [f"--pid={path}.pid", f"--vrrp_pid={path}.vrrp.pid"]
            process = started(
                *(name, "keepalived", "--dont-fork", "--vrrp", "-f", str(path), *pids),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            processes[name] = process.pid
            stack.callback(end, process)
        yield processes


def end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.poll()
    process.wait(10)


def output_of(namespace: str, *command: str) -> str:
    words = ["ip", "netns", "exec", namespace, *command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout


def until(what: str, holds: Callable[[], bool]) -> None:
    end_of_patience = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end_of_patience, what
        time.sleep(0.05)


def holds_address(namespace: str) -> bool:
    return "192.0.2.10/24" in output_of(namespace, "ip", "address")


@contextmanager
def observing() -> Iterator[dict[str, Any]]:
    """What is found while the block runs is there when it has ended."""
    command = (sys.executable, "-m", "lvsha", "observe", "br0", "--json")
    found: dict[str, Any] = {}
    process = started(BRIDGE, *command, stdout=subprocess.PIPE)
    try:
        # Its packet socket stands behind the line of titles.
        packets = Path("/proc/net/packet")
        until("it listens", lambda: len(output_of(BRIDGE, "cat", str(packets)).splitlines()) > 1)
        yield found
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        found.update(json.loads(output))
    finally:
        end(process)


def test_a_change_of_master_and_the_sync_stream_are_seen(tmp_path: Path) -> None:
    with machines(tmp_path, 3, 0.1) as keepalived:
        until("east is the master", lambda: holds_address(EAST) and not holds_address(WEST))
        with observing() as answer:
            time.sleep(0.5)
            speaking = started(EAST, sys.executable, "-c", SPEAK)
            assert speaking.wait(20) == 0
            os.killpg(keepalived[EAST], signal.SIGKILL)
            until("west has taken over", lambda: holds_address(WEST))
            time.sleep(1.0)
    [router] = answer["vrrp"]["routers"]
    assert (router["vrid"], router["family"], router["changes"]) == (51, 4, 1)
    assert router["masters"] == ["10.2.0.2"]
    east, west = sorted(router["speakers"], key=lambda speaker: str(speaker["address"]))
    assert (east["priority"], west["priority"]) == (200, 100)
    assert (east["version"], east["interval_seconds"]) == (3, 0.1)
    assert not east["is_speaking"]
    assert west["is_speaking"]
    senders = {sender["address"]: sender for sender in answer["sync"]["senders"]}
    assert len(senders) == 2
    assert "10.2.0.1" in senders
    assert max(senders).startswith("fe80::")
    for sender in senders.values():
        assert sender["sync_id"] == 5
        assert sender["versions"] == [0, 1]
        assert sender["records"] == 304
    assert answer["sync"]["connections"] == 63
    assert not any("two masters" in finding for finding in answer["findings"])


def test_version_2_is_seen(tmp_path: Path) -> None:
    with machines(tmp_path, 2, 1.0):
        until("east is the master", lambda: holds_address(EAST) and not holds_address(WEST))
        with observing() as answer:
            time.sleep(2.5)
    [router] = answer["vrrp"]["routers"]
    [speaker] = router["speakers"]
    assert (router["vrid"], router["masters"]) == (51, ["10.2.0.1"])
    assert (speaker["version"], speaker["interval_seconds"]) == (2, 1.0)
    assert speaker["addresses"] == ["192.0.2.10"]
    assert answer["vrrp"]["refused"] == {}
