"""The laboratory of the drill: its networks carry full-size TCP and UDP both ways.

Each test builds one laboratory in a private world and puts a stand-in of a dozen lines
where the director will be, so that a fault shown here is the laboratory's own. The
part inside the private world is this same file, run as a program.
"""

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvsha.drill import laboratory
from lvsha.drill.directors import program_environment
from lvsha.drill.laboratory import DIRECTORS, REAL_SERVERS, TCP_PORT, TUNNEL_MSS, UDP_PORT, Plan
from lvsha.drill.options import FAMILIES, METHODS, Family, Method
from lvsha.drill.seclusion import extend_search_path, run_secluded, seclusion
from lvsha.errors import HostError

PAYLOAD_BYTES = 50_000
ROUNDS = 5
LOSS_FRAMES = 400
WAIT = 10.0
IPV6_HEADER_BYTES = 40


def private_world() -> list[str]:
    try:
        return seclusion()
    except HostError as error:
        pytest.skip(str(error))


@pytest.mark.netns
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_laboratory_carries_full_size_packets(method: Method, family: Family) -> None:
    done = subprocess.run(
        [*private_world(), "--", sys.executable, __file__, method, str(family)],
        capture_output=True,
        text=True,
        timeout=60,
        env=program_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["tcp"] == ["real-2"] * ROUNDS
    assert seen["udp"] == ["real-2"] * ROUNDS
    # One more header must fit on the wire: only behind tunnels are segments smaller.
    assert (seen["mss"] <= TUNNEL_MSS[family]) == (method == "tun")
    assert seen["cable"] == ["up", "down", "up"]


@pytest.mark.netns
@pytest.mark.parametrize("family", FAMILIES)
def test_sync_network_drops_its_share_both_ways(family: Family) -> None:
    done = subprocess.run(
        [*private_world(), "--", sys.executable, __file__, "loss", str(family)],
        capture_output=True,
        text=True,
        timeout=60,
        env=program_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    # Four standard deviations (10 each) on either side; half of them are dropped.
    for director in DIRECTORS:
        assert 0.4 * LOSS_FRAMES < seen["received"][director] < 0.6 * LOSS_FRAMES
    got = sum(seen["received"].values())
    # The kernels themselves say something now and then, in IPv6.
    assert seen["frames"] - seen["dropped"] >= got
    assert seen["dropped"] >= 2 * LOSS_FRAMES - got


@pytest.mark.netns
def test_private_world_ends_with_the_process_that_made_it() -> None:
    prefix = private_world()
    waiting = "import os, sys; os.read(int(sys.argv[-1]), 1)"
    starter = f"""
import os, sys
from lvsha.drill.seclusion import run_secluded
run_secluded({prefix!r}, [sys.executable, "-c", {waiting!r}], dict(os.environ))
"""
    read_end, write_end = os.pipe()
    started = subprocess.Popen(
        [sys.executable, "-c", starter], stdout=write_end, env=program_environment()
    )
    os.close(write_end)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(1)
    started.kill()
    started.wait()
    # Whoever is left of the private world holds the pipe open.
    with os.fdopen(read_end, "rb") as rest:
        assert rest.read() == b""


@pytest.mark.netns
def test_private_world_ends_with_the_program_that_made_its_namespaces() -> None:
    sleeper = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
    with subprocess.Popen([*private_world(), "--", *sleeper], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"up\n"
        started.kill()
        # Whoever is left of the private world holds the pipe open.
        assert select.select([started.stdout], [], [], WAIT)[0]
        assert started.stdout.read() == b""


@pytest.mark.netns
def test_exit_code_comes_out_of_the_private_world() -> None:
    command = [sys.executable, "-c", "raise SystemExit(5)"]
    assert run_secluded(private_world(), command, program_environment()) == 5


# What runs inside the private world


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread's new sockets belong to a namespace."""
    with (
        Path("/proc/thread-self/ns/net").open("rb") as home,
        Path("/run/netns", namespace).open("rb") as there,
    ):
        set_namespace(there.fileno())
        try:
            yield
        finally:
            set_namespace(home.fileno())


def set_namespace(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def mac_address(namespace: str, interface: str) -> bytes:
    shown = subprocess.run(
        ["ip", "-n", namespace, "-j", "link", "show", interface],
        capture_output=True,
        check=True,
    )
    return bytes.fromhex(json.loads(shown.stdout)[0]["address"].replace(":", ""))


def forward(plan: Plan, captured: socket.socket, onward: socket.socket) -> None:
    """Carry what is for the virtual address to real-2; ends when the world ends."""
    virtual = socket.inet_pton(onward_family(plan), plan.virtual)
    ethertype = 0x0800 if plan.family == 4 else 0x86DD
    target = plan.address("inside", "real-2")
    hardware = mac_address("real-2", "inside")
    while True:
        packet, sender = captured.recvfrom(65_535)
        place = slice(16, 20) if plan.family == 4 else slice(24, 40)
        if sender[2] != socket.PACKET_HOST or packet[place] != virtual:
            continue
        if plan.method == "dr":
            onward.sendto(packet, ("inside", ethertype, 0, 0, hardware))
        else:
            onward.sendto(packet, (target, 0))


def onward_family(plan: Plan) -> socket.AddressFamily:
    return socket.AF_INET if plan.family == 4 else socket.AF_INET6


def start_stand_in(plan: Plan) -> None:
    ethertype = 0x0800 if plan.family == 4 else 0x86DD
    with inside("east"):
        captured = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype))
        captured.bind(("outside", ethertype))
        if plan.method == "dr":
            onward = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        else:
            protocol = socket.IPPROTO_IPIP if plan.family == 4 else socket.IPPROTO_IPV6
            onward = socket.socket(onward_family(plan), socket.SOCK_RAW, protocol)
    threading.Thread(target=forward, args=(plan, captured, onward), daemon=True).start()
    hardware = mac_address("east", "outside").hex(":")
    for command in (
        # The stand-in knows nothing of super-frames and unfinished checksums.
        ["ethtool", "-K", "outside", "tx", "off", "tso", "off", "gso", "off"],
        ["ip", "neigh", "replace", plan.virtual, "lladdr", hardware, "dev", "outside"],
    ):
        subprocess.run(laboratory.enter("client", command), check=True, stdout=subprocess.DEVNULL)


def start_servers(plan: Plan) -> None:
    for name in REAL_SERVERS:
        ports = ["--tcp-port", str(TCP_PORT), "--udp-port", str(UDP_PORT)]
        addresses = plan.server_addresses(name)
        programs = [["realserver", "--name", name, "--address", *addresses, *ports]]
        if plan.method == "tun":
            programs.append(["tunnelend", "--virtual", *plan.virtuals])
        for program, *arguments in programs:
            command = [sys.executable, "-m", f"lvsha.drill.{program}", *arguments]
            started = subprocess.Popen(laboratory.enter(name, command), stdout=subprocess.PIPE)
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"


def talk(plan: Plan) -> dict[str, object]:
    """Use both services ROUNDS times; who answered, and the size of TCP's segments."""
    nat = plan.method == "nat"
    address = plan.address("inside", "real-2") if nat else plan.virtual
    with inside("east" if nat else "client"):
        stream = socket.socket(onward_family(plan), socket.SOCK_STREAM)
        probe = socket.socket(onward_family(plan), socket.SOCK_DGRAM)
    stream.settimeout(WAIT)
    probe.settimeout(WAIT)
    stream.connect((address, TCP_PORT))
    probe.connect((address, UDP_PORT))
    names: dict[str, list[str]] = {"tcp": [], "udp": []}
    mss = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    with stream, probe, stream.makefile("rb") as answers:
        for _ in range(ROUNDS):
            stream.sendall(b"x" * PAYLOAD_BYTES + b"\n")
            name, _, echoed = answers.readline().partition(b" ")
            assert len(echoed) == PAYLOAD_BYTES + 1
            names["tcp"].append(name.decode())
            probe.send(b"y" * 1000)
            name, _, echoed = probe.recv(2000).partition(b" ")
            assert len(echoed) == 1000
            names["udp"].append(name.decode())
    return {**names, "mss": mss}


def lose_frames(plan: Plan) -> dict[str, object]:
    """Send on the sync network from each director to the other, while half of it is dropped."""
    laboratory.lose_sync_frames(50)
    received = {}
    for receiver, sender in (DIRECTORS, DIRECTORS[::-1]):
        with inside(receiver):
            sink = socket.socket(onward_family(plan), socket.SOCK_DGRAM)
            sink.bind((plan.address("sync", receiver), 8848))
        with inside(sender):
            source = socket.socket(onward_family(plan), socket.SOCK_DGRAM)
        resolve(plan, sender, receiver)
        with sink, source:
            for _ in range(LOSS_FRAMES):
                source.sendto(b"x", (plan.address("sync", receiver), 8848))
            sink.settimeout(0.2)
            got = 0
            with contextlib.suppress(TimeoutError):
                while sink.recv(16):
                    got += 1
            received[receiver] = got
    frames = laboratory.count_sync_frames()
    return {"received": received, "frames": frames.seen, "dropped": frames.dropped}


def resolve(plan: Plan, sender: str, receiver: str) -> None:
    """Tell one director where the other is, as questions about that may be dropped."""
    hardware = mac_address(receiver, "sync").hex(":")
    address = plan.address("sync", receiver)
    command = ["ip", "-n", sender, "neigh", "replace", address, "lladdr", hardware, "dev", "sync"]
    subprocess.run(command, check=True)


def carrier() -> str:
    command = ["ip", "-n", "east", "-j", "link", "show", "outside"]
    shown = subprocess.run(command, capture_output=True, check=True)
    return "up" if "LOWER_UP" in json.loads(shown.stdout)[0]["flags"] else "down"


def main() -> None:
    method, family = sys.argv[1], int(sys.argv[2])
    assert family in FAMILIES
    extend_search_path()
    laboratory.prepare_private_world()
    if method == "loss":
        plan = Plan("nat", family)
        laboratory.build(plan)
        print(json.dumps(lose_frames(plan)), flush=True)
        return
    assert method in METHODS
    plan = Plan(method, family)
    laboratory.build(plan)
    start_servers(plan)
    if plan.method != "nat":
        start_stand_in(plan)
    seen = talk(plan)
    cable = [carrier()]
    laboratory.pull_cable("outside", "east")
    cable.append(carrier())
    laboratory.plug_cable("outside", "east")
    cable.append(carrier())
    print(json.dumps({**seen, "cable": cable}), flush=True)


if __name__ == "__main__":
    main()
