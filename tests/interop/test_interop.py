"""The live comparison: what it draws and how it judges; ``make interop`` runs it."""

from collections import Counter
from pathlib import Path

import pytest

from tests import packets
from tests.interop.compare import comparable
from tests.interop.differences import Incoming, named, one_hop_further
from tests.interop.draw import EVERYTHING, SETTINGS, Capabilities, draw_scenario
from tests.interop.steps import CLIENT, SERVER, Command, Complain, Flow, Say, Setting, Stray
from tests.interop.traffic import SCTP, Traffic, crc32c, fragments
from tests.laboratory import Left
from tests.reader import dissect, faults, reassemble

ROOT = Path(__file__).parents[2]
FLOW = Flow(packets.TCP, "198.51.100.1", 40000, "192.0.2.10", 80)
FLOW6 = Flow(packets.UDP, "2001:db8:1::1", 40000, "2001:db8:ffff::10", 53)
ASSOCIATION = Flow(SCTP, "198.51.100.1", 40000, "192.0.2.10", 80)
SEEDS = range(100)


def test_a_seed_gives_the_same_scenario_again() -> None:
    assert draw_scenario(3, EVERYTHING) == draw_scenario(3, EVERYTHING)
    assert draw_scenario(3, EVERYTHING) != draw_scenario(4, EVERYTHING)


def test_everything_is_drawn_at_some_time() -> None:
    texts: list[str] = []
    drawn: Counter[str] = Counter()
    for seed in SEEDS:
        scenario = draw_scenario(seed, EVERYTHING)
        for step in (*scenario.configuration, *scenario.steps):
            drawn[type(step).__name__] += 1
            match step:
                case Command(text=text):
                    texts.append(f"{text} ")
                    drawn["refused"] += not step.accepted
                case Setting(name=name):
                    drawn[name] += 1
                case Say():
                    drawn["fragments"] += step.fragments > 1
                    drawn["record route"] += step.record_route
                    drawn[f"protocol {step.flow.protocol}"] += 1
                case _:
                    pass
    for word in (
        *(f"-s {scheduler} " for scheduler in EVERYTHING.schedulers),
        *(f" {method} " for method in EVERYTHING.methods),
        *("-A ", "-E ", "-D ", "-a ", "-e ", "-d ", "-Z ", "--set ", " -p ", " -M ", " -o "),
        *(" -f ", " -x ", " -y ", "sh-port", "mh-port", " -w 0 ", "--sctp-service "),
    ):
        assert any(word in text for text in texts), word
    for name in (
        *("Say", "Complain", "Stray", "refused", "fragments", "record route", *SETTINGS),
        *(f"protocol {protocol}" for protocol in EVERYTHING.protocols),
    ):
        assert drawn[name] > 0, name


def test_what_is_not_asked_for_is_not_drawn() -> None:
    few = Capabilities(schedulers=("rr",), methods=("-m",), protocols=(17,))
    for seed in SEEDS:
        scenario = draw_scenario(seed, few)
        assert scenario.schedulers in {("rr",), ()}
        for step in (*scenario.configuration, *scenario.steps):
            assert not isinstance(step, Setting)
            if isinstance(step, Say):
                assert step.flow.protocol == packets.UDP
                assert step.fragments == 1
            if isinstance(step, Command):
                assert not {"-p", "-x", "-o", "-f", "-g", "-i", "-Z"} & set(step.text.split())


@pytest.mark.parametrize("flow", [FLOW, FLOW6, ASSOCIATION], ids=str)
def test_packets_are_right_by_an_independent_reader(flow: Flow) -> None:
    traffic = Traffic()
    say = Say(flow, CLIENT, flags=packets.SYN, chunks=(10, 0), payload_bytes=7)
    [packet] = traffic.packets(say)
    assert faults(packet) == []
    assert dissect(packet).dst == flow.virtual


def test_the_checksum_of_sctp_is_that_of_its_standard() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_no_packet_is_larger_than_the_link() -> None:
    largest = 0
    for seed in SEEDS:
        traffic = Traffic()
        for step in draw_scenario(seed, EVERYTHING).steps:
            if isinstance(step, Say):
                largest = max(largest, 0, *map(len, traffic.packets(step)))
    assert 1490 <= largest <= 1500


def test_fragments_carry_what_was_cut() -> None:
    packet = packets.udp(
        "198.51.100.1", 40000, "192.0.2.10", 53, bytes(range(250)) * 4, dont_fragment=False
    )
    pieces = fragments(packet, 3)
    assert len(pieces) == 3
    assert reassemble(pieces) == packet[20:]


def test_a_servers_reply_comes_from_the_server_that_was_chosen() -> None:
    traffic = Traffic()
    request = Say(FLOW, CLIENT, flags=packets.SYN)
    reply = Say(FLOW, SERVER, flags=packets.SYN | packets.ACK)
    assert traffic.packets(reply) == []
    translated = packets.tcp("198.51.100.1", 40000, "10.1.0.7", 8080)
    traffic.observe(request, [Left(SERVER, "02:05:04:00:00:07", translated)])
    [packet] = traffic.packets(reply)
    read = dissect(packet)
    assert (read.src, read.sport, read.dst, read.dport) == ("10.1.0.7", 8080, FLOW.client, 40000)
    error = Complain(FLOW, SERVER, 3, 1, "10.1.0.60")
    [packet] = traffic.packets(error)
    assert faults(packet) == []
    assert packet.endswith(translated)
    assert dissect(packet).dst == FLOW.client


def test_without_nat_no_reply_passes_the_director() -> None:
    traffic = Traffic()
    request = Say(FLOW, CLIENT, flags=packets.SYN)
    [packet] = traffic.packets(request)
    traffic.observe(request, [Left(SERVER, "02:05:04:00:00:07", packet)])
    assert traffic.packets(Say(FLOW, SERVER, flags=packets.ACK)) == []


def test_only_what_a_kernel_does_by_chance_is_left_out() -> None:
    inner = packets.tcp("198.51.100.1", 40000, "192.0.2.10", 80)
    tunnel = packets.ip("10.1.0.1", "10.1.0.7", 4, inner)
    other = bytearray(tunnel)
    other[4:6], other[10:12] = b"ab", b"cd"
    assert comparable(Left(SERVER, "", tunnel)) == comparable(Left(SERVER, "", bytes(other)))
    for at in (0, 8, 9, 12, 16, 24, 40, len(tunnel) - 1):
        changed = bytearray(tunnel)
        changed[at] ^= 1
        assert comparable(Left(SERVER, "", tunnel)) != comparable(Left(SERVER, "", bytes(changed)))
    changed = bytearray(inner)
    changed[5] ^= 1
    assert comparable(Left(SERVER, "", inner)) != comparable(Left(SERVER, "", bytes(changed)))
    piece, other_piece = (
        packets.ip("fd00:5::1", "fd00:5::7", 44, b"\x06\0\0\x01" + number + bytes(8))
        for number in (b"abcd", b"efgh")
    )
    assert comparable(Left(SERVER, "", piece)) == comparable(Left(SERVER, "", other_piece))
    gue = packets.udp("10.1.0.1", 40410, "10.1.0.7", 6080, inner)
    again = packets.udp("10.1.0.1", 50000, "10.1.0.7", 6080, inner)
    assert comparable(Left(SERVER, "", gue)) == comparable(Left(SERVER, "", again))


def _reset() -> tuple[bytes, bytes]:
    packet = packets.tcp("198.51.100.1", 40000, "192.0.2.10", 80, packets.ACK)
    return packet, packets.tcp("192.0.2.10", 80, "198.51.100.1", 40000, packets.RST)


def test_a_stated_difference_is_no_more_than_what_it_says() -> None:
    packet, answer = _reset()
    left = [Left(CLIENT, "02:00:0c:00:00:fe", answer)]
    found = named(Incoming(CLIENT, packet, left, []))
    assert found is not None
    assert found.name == "host answers"
    assert named(Incoming(CLIENT, packet, left, left)) is None
    assert named(Incoming(CLIENT, packet, [], left)) is None
    assert named(Incoming(CLIENT, packet, [Left(SERVER, "", answer)], [])) is None
    established = packets.tcp("192.0.2.10", 80, "198.51.100.1", 40000, packets.ACK)
    assert named(Incoming(CLIENT, packet, [Left(CLIENT, "", established)], [])) is None


def test_the_host_forwards_only_what_it_leaves_as_it_is() -> None:
    packet = packets.tcp("10.1.0.7", 8080, "198.51.100.1", 40000, packets.ACK)
    forwarded = one_hop_further(packet)
    assert faults(forwarded) == []
    found = named(Incoming(SERVER, packet, [Left(CLIENT, "", forwarded)], []))
    assert found is not None
    assert found.name == "host forwards"
    translated = packets.tcp("192.0.2.10", 80, "198.51.100.1", 40000, packets.ACK, ttl=63)
    assert named(Incoming(SERVER, packet, [Left(CLIENT, "", translated)], [])) is None


def test_a_stray_packet_is_sent_as_it_was_drawn() -> None:
    assert Traffic().packets(Stray(CLIENT, b"any", "of no flow")) == [b"any"]
