"""No frame, and no clock, makes a replay raise; what leaves has right checksums."""

import io

from hypothesis import given
from hypothesis import strategies as st

from lvsha import capture
from lvsha.capture import Captured, Interface, LinkType, PcapngWriter
from lvsha.config import parse_pair
from lvsha.rerun import Rerun
from tests import reader
from tests.packets import ACK, FIN, PSH, RST, SYN, icmp, tcp, udp

PAIR = """
[nodes.east]
interfaces = { outside = "eth0", inside = "eth1" }

[[services]]
name = "http"
address = "192.0.2.10"
port = 80
scheduler = "twos"
persistence = 7
servers = [{ address = "10.1.0.11", port = 8080 }, { address = "10.1.0.12" }]

[[services]]
name = "far"
address = "192.0.2.10"
port = 53
protocol = "udp"
method = "tun"
servers = [{ address = "203.0.113.9" }]
"""

CLIENTS = st.sampled_from(["198.51.100.7", "198.51.100.8"])
PORTS = st.integers(4000, 4003)
FLAGS = st.sampled_from([SYN, SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST])
PAYLOADS = st.sampled_from([b"", b"data", bytes(5000)])


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    client, port, payload = draw(CLIENTS), draw(PORTS), draw(PAYLOADS)
    match draw(st.integers(0, 4)):
        case 0:
            return tcp(client, port, "192.0.2.10", 80, draw(FLAGS), payload)
        case 1:
            server = draw(st.sampled_from(["10.1.0.11", "10.1.0.12"]))
            return tcp(server, draw(st.sampled_from([80, 8080])), client, port, draw(FLAGS))
        case 2:
            return udp(client, port, "192.0.2.10", 53, payload[:1400])
        case 3:
            quote = tcp("192.0.2.10", 80, client, port, ACK)
            return icmp(client, "192.0.2.10", 3, draw(st.integers(0, 5)), quote)
        case _:
            return draw(st.binary(max_size=80))


RAW = Interface("", LinkType.RAW)
TIMES = st.none() | st.integers(0, 2 * 10**12) | st.integers(-(2**90), 2**90)


@given(st.lists(st.tuples(packets(), TIMES), max_size=30))
def test_no_packet_and_no_time_makes_a_replay_raise(
    frames: list[tuple[bytes, int | None]],
) -> None:
    rerun = Rerun(parse_pair(PAIR, "x"), "east")
    clock = 0.0
    for packet, time in frames:
        decision, left = rerun.show(
            Captured(time, packet, len(packet), Interface("", LinkType.RAW))
        )
        assert decision.time >= clock
        clock = decision.time
        assert len(decision.out) == len(left)
        assert decision.json()
        for _, frame in left:
            assert reader.faults(frame[14:]) == []


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_no_garbage_makes_a_replay_of_a_file_raise(garbage: list[bytes]) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream, LinkType.ETHERNET)
    for number, data in enumerate(garbage):
        writer.write(number, bytes(12) + b"\x08\x00" + data)
        writer.write(number, bytes(12) + b"\x86\xdd" + data)
        writer.write(number, data)
    rerun = Rerun(parse_pair(PAIR, "x"), "east")
    stream.seek(0)
    for captured in capture.read(stream):
        rerun.show(captured)
