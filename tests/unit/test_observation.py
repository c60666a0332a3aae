import random
from typing import cast

from rich.console import Console

from lvsha.datapath import state_machines
from lvsha.model import parse_address
from lvsha.observe.display import render
from lvsha.observe.listener import packet_filter
from lvsha.observe.observation import Observation
from lvsha.wire.vrrp import Advertisement, GROUP_IPv4, emit
from tests import packets
from tests.vectors.recordings import scenarios

GROUPS = frozenset({parse_address("224.0.0.81"), parse_address("ff02::81")})


def observation() -> Observation:
    machines = {6: state_machines.tcp(), 17: state_machines.udp(), 132: state_machines.sctp()}
    return Observation(GROUPS, range(8848, 8850), machines, 100.0)


def recorded() -> list[bytes]:
    """All that the kernel's master said in the recordings."""
    return [
        bytes.fromhex(datagram["payload"])
        for scenario in scenarios("sync")
        for step in scenario["steps"]
        for datagram in step.get("datagrams", [])
    ]


def advertisement() -> bytes:
    source = bytes((10, 2, 0, 1))
    message = emit(
        Advertisement(51, 100, 100, (bytes((192, 0, 2, 1)),)),
        source=source,
        destination=GROUP_IPv4,
        pseudo_header=False,
    )
    return packets.ip("10.2.0.1", "224.0.0.18", 112, message, ttl=255)


def test_what_a_kernel_pair_says_is_understood() -> None:
    seen = observation()
    for number, payload in enumerate(recorded()):
        port = 8848 + number % 2
        seen.receive(packets.udp("10.2.0.1", 40_000, "224.0.0.81", port, payload), 100.0)
        seen.receive(packets.udp("fd00:2::1", 40_000, "ff02::81", port, payload), 100.0)
    seen.receive(advertisement(), 100.0)
    status = seen.status(101.0)
    assert status["counters"] == {"advertisements": 1, "sync_datagrams": 2 * len(recorded())}
    sync = cast("dict[str, object]", status["sync"])
    senders = cast("list[dict[str, object]]", sync["senders"])
    assert [sender["address"] for sender in senders] == ["10.2.0.1", "fd00:2::1"]
    assert all(sender["ports"] == [8848, 8849] for sender in senders)
    assert cast("int", sync["connections"]) > 50
    console = Console(width=200, record=True, file=None, quiet=True)
    console.print(render(status, "eth0"))


def test_a_status_is_shown_as_text() -> None:
    seen = observation()
    console = Console(width=300)
    with console.capture() as capture:
        console.print(render(seen.status(101.0), "eth0"))
    assert "nothing heard so far" in capture.get()
    for payload in recorded():
        seen.receive(packets.udp("10.2.0.1", 40_000, "224.0.0.81", 8848, payload), 100.0)
    seen.receive(advertisement(), 100.0)
    with console.capture() as capture:
        console.print(render(seen.status(101.0), "eth0"))
    text = capture.get()
    for words in ("MASTER", "51 (IPv4)", "10.2.0.1", "0, 1", "TCP [2001:db8:ffff::61]:80"):
        assert words in text


def test_other_packets_are_left_alone() -> None:
    seen = observation()
    for packet in (
        packets.udp("10.2.0.1", 1, "224.0.0.81", 9000, b"x"),
        packets.udp("10.2.0.1", 1, "224.0.0.82", 8848, b"x"),
        packets.tcp("10.2.0.1", 1, "10.2.0.2", 8848),
    ):
        seen.receive(packet, 100.0)
    assert seen.counters.snapshot() == {}


def test_any_bytes_are_survived() -> None:
    dice = random.Random(1)
    seen = observation()
    good = [
        packets.udp("10.2.0.1", 1, "224.0.0.81", 8848, payload) for payload in recorded()[:20]
    ] + [advertisement()]
    for _ in range(3000):
        packet = bytearray(dice.choice(good))
        for _ in range(dice.randint(0, 5)):
            packet[dice.randrange(len(packet))] = dice.randrange(256)
        seen.receive(bytes(packet[: dice.randint(0, len(packet))]), 100.0)
    seen.status(101.0)
    assert seen.counters["unreadable"] > 100


def test_jumps_of_the_filter_stay_within_it() -> None:
    for groups in (GROUPS, frozenset[bytes]()):
        steps = packet_filter(groups)
        for at, (code, true, false, _) in enumerate(steps):
            if code == 0x15:
                assert at + 1 + max(true, false) < len(steps)
