"""Captures through the real director: what leaves, and what is said about each frame."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner, Result

from lvsha import capture, cli, replay
from lvsha.capture import Captured, Interface, LinkType, PcapngWriter, PcapWriter
from lvsha.config import Pair, Replay, parse_pair
from lvsha.config_replay import ReplayInterface, ReplayNeighbour, ReplayRoute
from lvsha.datapath.reasons import Reason
from lvsha.datapath.verdicts import Verdict
from lvsha.errors import ConfigError
from lvsha.rerun import FRAGMENT_KEPT, NOT_FOR_A_DIRECTOR, OWN_FRAME, Decision, Rerun, finish
from lvsha.surroundings import MADE_UP_MAX
from tests import reader
from tests.packets import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    ethernet,
    icmp,
    ip,
    tcp,
    udp,
    udp_datagram,
    vnet_header,
    with_partial_checksum,
)

ROOT = Path(__file__).resolve().parents[2]
CLIENT, VIRTUAL, SERVER = "198.51.100.7", "192.0.2.10", "10.1.0.11"

PAIR = """
[nodes.east]
priority = 2
interfaces = { outside = "eth0", inside = "eth1" }
[nodes.west]
interfaces = { outside = "ens1", inside = "ens2" }

[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24", "10.1.0.254/24@inside"]

[[services]]
name = "http"
address = "192.0.2.10"
port = 80
servers = [{ address = "10.1.0.11", port = 8080 }]

[[services]]
name = "dns"
address = "192.0.2.10"
port = 53
protocol = "udp"
method = "dr"
servers = [{ address = "10.1.0.11" }]

[[services]]
name = "far"
address = "192.0.2.10"
port = 443
method = "tun"
servers = [{ address = "203.0.113.9" }]
"""

NETWORK = """
[[replay.interfaces]]
name = "eth0"
mac = "02:aa:00:00:00:01"
addresses = ["192.0.2.2/24"]
[[replay.interfaces]]
name = "eth1"
mac = "02:aa:00:00:00:02"
addresses = ["10.1.0.2/24"]
[[replay.routes]]
prefix = "0.0.0.0/0"
via = "192.0.2.254"
interface = "eth0"
[[replay.neighbours]]
address = "192.0.2.254"
mac = "02:bb:00:00:00:fe"
interface = "eth0"
[[replay.neighbours]]
address = "10.1.0.11"
mac = "02:bb:00:00:00:11"
interface = "eth1"
"""

VERDICTS = get_args(Verdict)
RAW = Interface("", LinkType.RAW)
WIRE = Interface("", LinkType.ETHERNET)

Left = list[tuple[str, bytes]]


def pair(text: str = PAIR) -> Pair:
    return parse_pair(text, "pair.toml")


def rerun(text: str = PAIR, node: str = "east") -> Rerun:
    return Rerun(pair(text), node)


def show(
    director: Rerun, packet: bytes, time: float | None = 0.0, interface: Interface = RAW
) -> tuple[Decision, Left]:
    """Show a packet, or a frame, that was captured whole."""
    nanoseconds = None if time is None else 10**18 + round(time * 10**9)
    return director.show(Captured(nanoseconds, packet, len(packet), interface))


def syn(port: int = 4000) -> bytes:
    return tcp(CLIENT, port, VIRTUAL, 80, SYN)


# What is said about a frame


def test_a_handshake_is_told_with_its_states_and_timeouts() -> None:
    director = rerun()
    decision, ((interface, frame),) = show(director, syn())
    assert (decision.number, decision.time, decision.verdict) == (1, 0.0, "to server")
    assert (decision.service, decision.server) == ("http", "10.1.0.11:8080")
    assert decision.before is None
    assert decision.after is not None
    assert (decision.after.state, decision.after.timeout) == ("SYN_RECV", 60)
    assert decision.captured == "1000000000.000000000"
    assert decision.out == ({"interface": "eth1", "length": 54},)
    assert interface == "eth1"
    assert reader.dissect(frame[14:]).dst == SERVER
    assert reader.faults(frame[14:]) == []

    decision, ((interface, frame),) = show(
        director, tcp(SERVER, 8080, CLIENT, 4000, SYN | ACK), 0.25
    )
    assert (decision.verdict, decision.service, decision.number) == ("to client", "http", 2)
    assert interface == "eth0"
    assert reader.dissect(frame[14:]).src == VIRTUAL

    decision, _ = show(director, tcp(CLIENT, 4000, VIRTUAL, 80, ACK), 1.0)
    assert decision.before is not None
    assert (decision.before.state, decision.before.expires_in) == ("SYN_RECV", 59.25)
    assert decision.after is not None
    assert (decision.after.state, decision.after.timeout) == ("ESTABLISHED", 900)


def test_a_dropped_frame_has_a_reason_with_name_and_number() -> None:
    decision, left = show(rerun(), tcp(CLIENT, 4000, VIRTUAL, 80, RST))
    assert (decision.verdict, left) == ("drop", [])
    assert (decision.service, decision.server) == ("http", None)
    assert decision.reason == {"number": 4, "name": "no_connection"}
    decision, [(_, frame)] = show(rerun(), tcp(CLIENT, 4000, VIRTUAL, 80, ACK))
    assert decision.reason == {"number": 34, "name": "reset"}
    assert reader.dissect(frame[14:]).payload.flags == "R"


def test_a_frame_that_is_dropped_on_its_way_out_has_a_reason_too() -> None:
    director = rerun(PAIR + NETWORK.replace('mac = "02:bb:00:00:00:11"', ""))
    decision, left = show(director, syn())
    assert (decision.verdict, left) == ("to server", [])
    assert decision.reason == {"number": 14, "name": "neighbour_failed"}


@pytest.mark.parametrize("packet", [b"", bytes(13)])
def test_a_frame_without_a_whole_ethernet_header_is_dropped(packet: bytes) -> None:
    decision, left = show(rerun(), packet, interface=WIRE)
    assert (decision.verdict, left) == ("drop", [])
    assert decision.reason == {"number": 2, "name": "truncated"}


@pytest.mark.parametrize(
    ("packet", "interface", "verdict"),
    [
        (bytes.fromhex("ffffffffffff0200000000010806") + bytes(28), WIRE, NOT_FOR_A_DIRECTOR),
        (b"", RAW, NOT_FOR_A_DIRECTOR),
        (b"\x00garbage", RAW, NOT_FOR_A_DIRECTOR),
        (ip(CLIENT, VIRTUAL, 112, bytes(20)), RAW, NOT_FOR_A_DIRECTOR),
        (tcp(CLIENT, 1, "192.0.2.77", 80), RAW, "accept"),
        (bytes(300_000), WIRE, NOT_FOR_A_DIRECTOR),
    ],
)
def test_what_is_not_for_a_director_is_told_as_that(
    packet: bytes, interface: Interface, verdict: str
) -> None:
    decision, left = show(rerun(), packet, interface=interface)
    assert (decision.verdict, decision.reason, left) == (verdict, None, [])
    assert (decision.service, decision.before, decision.after) == (None, None, None)


def test_a_frame_that_the_capture_has_cut_is_dropped_as_truncated() -> None:
    whole = tcp(CLIENT, 4000, VIRTUAL, 80, SYN, b"data")
    decision, left = rerun().show(Captured(0, whole[:40], len(whole), RAW))
    assert decision.cut
    assert decision.reason == {"number": 2, "name": "truncated"}
    assert left == []


def test_an_icmp_error_is_told_with_the_connection_that_it_is_about() -> None:
    director = rerun()
    show(director, syn())
    quote = tcp(VIRTUAL, 80, CLIENT, 4000, SYN | ACK)
    decision, ((interface, frame),) = show(director, icmp(CLIENT, VIRTUAL, 3, 4, quote), 1.0)
    assert (decision.verdict, decision.service, interface) == ("error to server", "http", "eth1")
    assert decision.before is not None
    assert (decision.before.state, decision.before.expires_in) == ("SYN_RECV", 59.0)
    assert reader.faults(frame[14:]) == []


def test_fragments_are_kept_until_the_last_and_leave_together() -> None:
    director = rerun()
    datagram = udp_datagram(CLIENT, 4000, VIRTUAL, 53, bytes(64))
    first = ip(CLIENT, VIRTUAL, UDP, datagram[:32], dont_fragment=False, fragment=0x2000)
    second = ip(CLIENT, VIRTUAL, UDP, datagram[32:], dont_fragment=False, fragment=4)
    decision, left = show(director, first)
    assert (decision.verdict, left) == (FRAGMENT_KEPT, [])
    decision, left = show(director, second)
    assert (decision.verdict, decision.service, len(left)) == ("to server", "dns", 2)
    assert reader.reassemble([frame[14:] for _, frame in left]) == datagram


# The clock


def test_a_connection_ends_in_a_silence_of_the_capture() -> None:
    director = rerun()
    show(director, udp(CLIENT, 4000, VIRTUAL, 53))
    decision, _ = show(director, udp(CLIENT, 4000, VIRTUAL, 53), 299.0)
    assert decision.before is not None
    assert decision.before.expires_in == 1.0
    decision, _ = show(director, udp(CLIENT, 4000, VIRTUAL, 53), 601.0)
    assert decision.before is None


def test_the_clock_never_goes_back() -> None:
    director = rerun()
    show(director, syn(), 0.0)
    show(director, syn(), 50.0)
    decision, _ = show(director, syn(), 40.0)
    assert decision.time == 50.0
    assert decision.captured == "1000000040.000000000"
    assert decision.before is not None
    assert decision.before.expires_in == 60.0
    assert director.wall_time == 10**18 + 50 * 10**9


def test_a_frame_without_a_time_is_of_the_same_moment() -> None:
    director = rerun()
    decision, _ = show(director, syn(), None)
    assert (decision.time, decision.captured) == (0.0, None)
    show(director, syn(), 0.0)
    show(director, syn(), 7.0)
    decision, _ = show(director, syn(), None)
    assert decision.time == 7.0


def test_a_silence_of_centuries_takes_no_time() -> None:
    director = rerun()
    show(director, syn())
    decision, _ = show(director, tcp(CLIENT, 4000, VIRTUAL, 80, ACK), 1e10)
    assert decision.time == 1e10
    assert decision.reason == {"number": 34, "name": "reset"}
    assert len(director.director.registry.table) == 0


# The network


def test_in_a_made_up_network_everybody_answers() -> None:
    director = rerun()
    _, ((interface, frame),) = show(director, syn())
    assert (interface, frame[:6].hex(":")) == ("eth1", "02:00:0a:01:00:0b")
    _, ((interface, frame),) = show(director, tcp(CLIENT, 4001, VIRTUAL, 443, SYN))
    assert interface == "eth0"
    outer = reader.dissect(frame[14:])
    assert (outer.dst, frame[:6].hex(":")) == ("203.0.113.9", "02:00:cb:00:71:09")
    # Clients are behind one gateway.
    _, ((_, frame),) = show(director, tcp(SERVER, 8080, CLIENT, 4000, SYN | ACK))
    assert frame[:6].hex(":") == "02:00:c0:00:00:08"


def test_the_other_node_has_interfaces_of_its_own() -> None:
    _, ((interface, _),) = show(rerun(node="west"), syn())
    assert interface == "ens2"


def test_the_replay_table_says_where_frames_go() -> None:
    director = rerun(PAIR + NETWORK)
    _, ((interface, frame),) = show(director, syn())
    assert (interface, frame[:12].hex()) == ("eth1", "02bb0000001102aa00000002")
    _, ((interface, frame),) = show(director, tcp(SERVER, 8080, CLIENT, 4000, SYN | ACK))
    assert (interface, frame[:12].hex()) == ("eth0", "02bb000000fe02aa00000001")
    # An ICMP error comes from the virtual address, which this node holds.
    decision, left = show(director, tcp(CLIENT, 9, VIRTUAL, 80, SYN, ttl=1))
    assert decision.reason == {"number": 10, "name": "ttl_exceeded"}
    assert [reader.dissect(frame[14:]).src for _, frame in left] == [VIRTUAL]


def test_without_a_route_there_is_none() -> None:
    network = NETWORK.replace('prefix = "0.0.0.0/0"', 'prefix = "198.51.100.0/24"')
    decision, left = show(rerun(PAIR + network), tcp(CLIENT, 4001, VIRTUAL, 443, SYN))
    assert decision.reason == {"number": 12, "name": "no_route"}
    assert [reader.dissect(frame[14:]).dst for _, frame in left] == [CLIENT]


def test_neighbours_that_the_table_does_not_name_are_made_up_or_silent() -> None:
    network = NETWORK.replace("10.1.0.11", "10.1.0.12")
    _, ((_, frame),) = show(rerun(PAIR + network), syn())
    assert frame[:6].hex(":") == "02:00:0a:01:00:0b"
    silent = PAIR + '[replay]\nunknown_neighbours = "silent"\n' + network
    decision, left = show(rerun(silent), syn())
    assert left == []
    assert decision.reason == {"number": 14, "name": "neighbour_failed"}


def test_only_so_many_made_up_neighbours_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MADE_UP_MAX > 1000
    monkeypatch.setattr("lvsha.surroundings.MADE_UP_MAX", 10)
    director = rerun(PAIR + NETWORK.replace('via = "192.0.2.254"', ""))
    for number in range(1, 50):
        client = f"198.51.100.{number}"
        show(director, tcp(client, 4000, VIRTUAL, 80, SYN))
        _, left = show(director, tcp(SERVER, 8080, client, 4000, SYN | ACK))
        assert [frame[:6] for _, frame in left] == [bytes((2, 0, 198, 51, 100, number))]
    assert len(director.director.network._neighbours) <= 13


# Where a frame came in


def test_a_frame_came_in_where_its_destination_is() -> None:
    director = rerun(PAIR + NETWORK)
    inside = bytes.fromhex("02aa00000002020000000009")
    decision, _ = show(director, inside + b"\x08\x00" + syn(), interface=WIRE)
    assert decision.interface == "eth1"


def test_else_where_the_capture_says_by_name_or_by_number() -> None:
    director = rerun(PAIR + NETWORK)
    for interface, expected in (
        (Interface("eth1", LinkType.ETHERNET), "eth1"),
        (Interface("lan9", LinkType.ETHERNET, number=1), "eth1"),
        (Interface("lan9", LinkType.ETHERNET, number=7), "eth0"),
        (WIRE, "eth0"),
    ):
        decision, _ = show(director, ethernet(syn()), interface=interface)
        assert decision.interface == expected


def test_what_the_director_itself_has_sent_is_not_received() -> None:
    own = bytes.fromhex("02bb0000001102aa00000002") + b"\x08\x00" + syn()
    decision, left = show(rerun(PAIR + NETWORK), own, interface=WIRE)
    assert (decision.verdict, decision.after, left) == (OWN_FRAME, None, [])


# Super-frames


def test_merged_segments_leave_as_segments_again() -> None:
    director = rerun()
    show(director, syn())
    show(director, tcp(SERVER, 8080, CLIENT, 4000, SYN | ACK))
    payload = bytes(range(256)) * 16
    merged = tcp(CLIENT, 4000, VIRTUAL, 80, ACK | PSH | FIN, payload)
    decision, left = show(director, merged)
    assert decision.reason is None
    packets = [frame[14:] for _, frame in left]
    assert [len(packet) for packet in packets] == [1500, 1500, 1216]
    assert [reader.faults(packet) for packet in packets] == [[], [], []]
    assert b"".join(packet[40:] for packet in packets) == payload


def test_merged_segments_of_ipv6_leave_as_segments_again() -> None:
    text = PAIR.replace("192.0.2.10", "2001:db8::10").replace("/24", "/64", 1)
    text = text.replace(SERVER, "fd00::11")
    director = rerun(text.replace('"203.0.113.9"', '"fd00::9"'))
    show(director, tcp("2001:db8:7::7", 4000, "2001:db8::10", 80, SYN))
    _, left = show(director, tcp("2001:db8:7::7", 4000, "2001:db8::10", 80, ACK, bytes(2000)))
    assert [len(frame) for _, frame in left] == [1514, 14 + 60 + 560]
    assert [reader.faults(frame[14:]) for _, frame in left] == [[], []]


def test_a_partial_checksum_is_finished_and_a_contradiction_is_not_sent() -> None:
    packet = tcp(CLIENT, 4000, VIRTUAL, 80, ACK, b"data")
    partial = ethernet(with_partial_checksum(packet, 20, TCP))
    assert reader.faults(partial[14:]) != []
    (frame,) = finish(vnet_header(partial=True) + partial)
    assert frame == ethernet(packet)
    assert list(finish(vnet_header() + partial)) == [partial]
    assert list(finish(vnet_header(partial=True, gso_type=3, gso_size=1000) + partial)) == []
    assert list(finish(vnet_header(gso_type=1, gso_size=1000) + partial)) == []


# Files


def pcap(packets: Iterable[tuple[float, bytes]], link_type: LinkType = LinkType.RAW) -> bytes:
    stream = io.BytesIO()
    writer = PcapWriter(stream, link_type, exact=False)
    for time, packet in packets:
        writer.write(10**18 + round(time * 10**9), packet)
    return stream.getvalue()


HANDSHAKE = [
    (0.0, syn()),
    (0.1, tcp(SERVER, 8080, CLIENT, 4000, SYN | ACK)),
    (0.2, tcp(CLIENT, 4000, VIRTUAL, 80, ACK)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pair.toml").write_text(PAIR)
    (tmp_path / "in.pcap").write_bytes(pcap(HANDSHAKE))
    return tmp_path


def run(folder: Path, *options: str | Path, target: str = "out.pcap") -> Result:
    arguments = [
        "replay", "--config", folder / "pair.toml", folder / "in.pcap", folder / target, *options,
    ]  # fmt: skip
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def left_in(file: Path) -> Sequence[Captured]:
    with file.open("rb") as stream:
        return list(capture.read(stream))


def test_a_capture_becomes_a_capture_and_a_line_for_each_frame(folder: Path) -> None:
    result = run(folder, "--json", folder / "decisions")
    assert result.exit_code == 0
    assert result.stdout == (
        f"{folder / 'in.pcap'}: 3 frames in 0.200 s, 3 sent; to client 1, to server 2\n"
    )
    lines = [json.loads(line) for line in (folder / "decisions").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["to server", "to client", "to server"]
    assert lines[2]["after"] == {"state": "ESTABLISHED", "timeout": 900, "expires_in": 900.0}
    left = left_in(folder / "out.pcap")
    assert [frame.time for frame in left] == [10**18, 10**18 + 10**8, 10**18 + 2 * 10**8]
    assert {frame.interface.link_type for frame in left} == {LinkType.RAW}
    assert [reader.faults(frame.data) for frame in left] == [[], [], []]


def test_a_capture_of_ethernet_becomes_one_of_ethernet(folder: Path) -> None:
    frames = [(time, ethernet(packet)) for time, packet in HANDSHAKE]
    (folder / "in.pcap").write_bytes(pcap(frames, LinkType.ETHERNET))
    assert run(folder).exit_code == 0
    left = left_in(folder / "out.pcap")
    assert {frame.interface.link_type for frame in left} == {LinkType.ETHERNET}
    assert [frame.data[12:14] for frame in left] == [b"\x08\x00"] * 3


def test_pcapng_is_read_and_written_with_the_names_of_interfaces(folder: Path) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream, LinkType.RAW)
    for time, packet in HANDSHAKE:
        writer.write(round(time * 10**9) + 1, packet, "eth0")
    (folder / "in.pcap").write_bytes(stream.getvalue())
    assert run(folder, target="out.pcapng").exit_code == 0
    left = left_in(folder / "out.pcapng")
    assert [(frame.time, frame.interface.name) for frame in left] == [
        (1, "eth1"),
        (100_000_001, "eth0"),
        (200_000_001, "eth1"),
    ]
    assert run(folder).exit_code == 0
    assert [frame.time for frame in left_in(folder / "out.pcap")] == [frame.time for frame in left]


def test_the_same_capture_gives_the_same_output(folder: Path) -> None:
    text = PAIR.replace("port = 80\n", 'port = 80\nscheduler = "twos"\n')
    servers = ", ".join(f'{{ address = "10.1.0.{n}" }}' for n in range(20, 40))
    text = text.replace('{ address = "10.1.0.11", port = 8080 }', servers)
    (folder / "pair.toml").write_text(text)
    (folder / "in.pcap").write_bytes(pcap((0.0, syn(port)) for port in range(1, 200)))
    for target in ("one", "two"):
        assert run(folder, target=target).exit_code == 0
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


def test_a_capture_that_ends_too_early_is_replayed_up_to_there(folder: Path) -> None:
    (folder / "in.pcap").write_bytes(pcap(HANDSHAKE)[:-3])
    result = run(folder, "--json", folder / "decisions")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert result.stderr == f"lvsha: {folder / 'in.pcap'}: it ends within frame 3\n"
    assert result.stdout.startswith(f"{folder / 'in.pcap'}: 2 frames in 0.100 s, 2 sent")
    assert len(left_in(folder / "out.pcap")) == 2
    assert len((folder / "decisions").read_text().splitlines()) == 2


def test_what_is_no_capture_is_one_sentence_and_leaves_nothing(folder: Path) -> None:
    (folder / "in.pcap").write_text("not a capture")
    result = run(folder, "--json", folder / "decisions")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert result.stderr == f"lvsha: {folder / 'in.pcap'}: neither a pcap nor a pcapng file\n"
    assert not (folder / "out.pcap").exists()


def test_an_empty_capture_gives_an_empty_capture(folder: Path) -> None:
    (folder / "in.pcap").write_bytes(pcap([]))
    result = run(folder, "--json", folder / "decisions")
    assert (result.exit_code, left_in(folder / "out.pcap")) == (0, [])
    assert (folder / "decisions").read_bytes() == b""


def test_drops_and_cut_frames_are_summed_up(folder: Path) -> None:
    summary = replay.Summary(frames=2, cut=1)
    summary.drops[Reason.TRUNCATED] = 1
    assert str(summary) == (
        "2 frames in 0.000 s, 0 sent; dropped: truncated 1; 1 were captured in part"
    )


def test_files_that_cannot_be_used_are_named(folder: Path) -> None:
    result = run(folder, target="no/such/folder")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert result.stderr.startswith(f"lvsha: {folder / 'no/such/folder'}: cannot be used: ")
    (folder / "in.pcap").unlink()
    result = run(folder)
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert result.stderr.startswith(f"lvsha: {folder / 'in.pcap'}: cannot be used: ")


def test_a_capture_is_not_written_over_itself(folder: Path) -> None:
    result = run(folder, target="in.pcap")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert "expected another file than the capture" in result.stderr
    assert (folder / "in.pcap").read_bytes() == pcap(HANDSHAKE)
    with pytest.raises(ConfigError, match="expected another file"):
        replay.replay(pair(), "east", folder / "in.pcap", folder / "out", folder / "in.pcap")


def test_an_unknown_node_is_refused(folder: Path) -> None:
    result = run(folder, "--node", "south")
    assert result.exit_code == cli.EXIT_CONFIGURATION
    assert "expected a node called 'south'; the file has east, west" in result.stderr


def test_no_privilege_is_needed(folder: Path) -> None:
    arguments = ["replay", "--config", "pair.toml", "in.pcap", "out.pcap", "--json", "decisions"]
    command = [sys.executable, "-B", "-m", "lvsha", *arguments]
    if os.geteuid() == 0:
        # In a user namespace without a mapping root is nobody, and has no capability.
        alone = ["unshare", "--user", "--"]
        if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no user namespaces here")
        command = [*alone, *command]
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(left_in(folder / "out.pcap")) == 3


# The page


PAGE = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")


def test_the_example_on_the_page_is_in_order() -> None:
    text = PAGE.partition("```toml\n")[2].partition("```")[0]
    director = rerun(text, "director-east")
    # The newest server is the first to be used, and the page says that it is silent.
    decision, left = show(director, syn(4000))
    assert (decision.server, left) == ("10.1.0.12:8080", [])
    assert decision.reason == {"number": 14, "name": "neighbour_failed"}
    _, ((interface, frame),) = show(director, syn(4001))
    assert (interface, frame[6:12].hex(":")) == ("eth1", "52:54:00:00:02:01")


def test_every_key_and_verdict_is_on_the_page() -> None:
    for table in (Replay, ReplayInterface, ReplayRoute, ReplayNeighbour):
        for name in table.model_fields:
            assert f"| `{name}` |" in PAGE, name
    decision, _ = show(rerun(), syn())
    for name in json.loads(decision.json()):
        assert f"`{name}`" in PAGE.partition("## Lines of DECISIONS")[2], name
    verdicts = {re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower() for kind in VERDICTS}
    for verdict in verdicts | {NOT_FOR_A_DIRECTOR, OWN_FRAME, FRAGMENT_KEPT}:
        assert f"`{verdict}`" in PAGE, verdict
