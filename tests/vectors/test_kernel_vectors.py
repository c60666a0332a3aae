"""The recorded decisions of a Linux 6.1 kernel director, repeated by lvsha's.

Each recorded scenario is one test. It runs step by step until lvsha does something else than
the kernel did, and then says in words what and where. Where lvsha is meant to differ, the
step stands in `DIFFERENCES`, with the reason and with what lvsha does instead.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lvsha.model import ForwardMethod, Protocol, format_address
from tests import packets
from tests.laboratory import Left
from tests.reader import faults
from tests.vectors.kernel_director import (
    KernelDirector,
    RecordedPacket,
    Scenario,
    Step,
    comparable,
    parse_endpoint,
    recorded,
    scenarios,
    state_name,
    without_time_left,
)

HOST = "the host's own stack sends this, not the director"
FORWARDED_BY_HOST = (
    "the host's own forwarding sends this on; lvsha keeps from its host what real servers send "
    "from a service's port, so that no answer leaves with a real server's address"
)
NO_REASSEMBLY = "lvsha does not reassemble fragments; it drops and counts them"
PSEUDO_HEADER_FORGOTTEN = (
    "the kernel verifies the checksum of an ICMPv6 error for NAT without its pseudo-header, and "
    "so drops every right one; lvsha translates it"
)
OPTION_NOT_FILLED = "lvsha passes IP options on as they are and does not enter itself in a route"


@dataclass(frozen=True, slots=True)
class Difference:
    """Steps at which lvsha is meant to differ: ``note`` is a pattern for the step's note.

    ``instead`` says what lvsha does: nothing leaves; the same leaves but for IP options; one
    packet without fault goes to the client, or to the server.
    """

    scenario: str
    note: str
    reason: str
    instead: str = "nothing"


DIFFERENCES = (
    Difference(r".*", r"to a port of no service", HOST),
    Difference(r".*", r"ACK of no connection", HOST),
    Difference(r"no-destination.*", r"ACK", HOST),
    Difference(r".*", r"echo request to the VIP", HOST),
    Difference(
        r"nat-.*|removed-.*", r"server packet (of no connection|from another).*", FORWARDED_BY_HOST
    ),
    Difference(r"removed-.*", r"answer of server .*", FORWARDED_BY_HOST),
    Difference(r"nat-(tcp|udp)", r"server-side ICMP error: param", HOST),
    Difference(
        r"nat-.*-v6",
        r"server-side ICMP error(: \w+| with the whole packet in it)",
        PSEUDO_HEADER_FORGOTTEN,
        "to client",
    ),
    Difference(r".*", r"with IP options \(record route\)", OPTION_NOT_FILLED, "options"),
    Difference(r".*", r".*fragments?\b.*", NO_REASSEMBLY),
)


def _ids(scenario: Scenario) -> str:
    return scenario["name"]


def _difference(name: str, note: str) -> Difference | None:
    return next(
        (
            difference
            for difference in DIFFERENCES
            if re.fullmatch(difference.scenario, name) and re.fullmatch(difference.note, note)
        ),
        None,
    )


def _words(left: list[Left]) -> str:
    if not left:
        return "nothing"
    return "; ".join(f"{p.packet.hex()} to {p.dmac} on the {p.side} side" for p in left)


def _without_options(packet: bytes) -> bytes:
    header_bytes = (packet[0] & 0xF) * 4
    inner = packet[header_bytes:]
    if packet[9] == Protocol.IPIP:
        return packet[12:20] + _without_options(inner)
    return packet[:10] + packet[12:20] + inner


def _as_meant(difference: Difference, left: list[Left], expected: list[RecordedPacket]) -> bool:
    match difference.instead:
        case "nothing":
            return not left
        case "options":
            kernel = recorded(expected)
            return [(p.side, p.dmac, _without_options(p.packet)) for p in left] == [
                (p.side, p.dmac, _without_options(p.packet)) for p in kernel
            ]
        case towards:
            return [f"to {p.side}" for p in left] == [towards] and not faults(left[0].packet)


@pytest.mark.parametrize("scenario", scenarios("forward"), ids=_ids)
def test_packets_leave_as_they_left_the_kernel(scenario: Scenario) -> None:
    kernel = KernelDirector(scenario)
    for number, step in enumerate(scenario["steps"]):
        where = f"{scenario['name']} step {number} ({step.get('note', step['op'])})"
        match step["op"]:
            case "pkt":
                left = kernel.send(step["side"], bytes.fromhex(step["in"]))
                difference = _difference(scenario["name"], step.get("note", ""))
                same = comparable(left) == comparable(recorded(step["out"]))
                if difference is not None and not same:
                    assert _as_meant(difference, left, step["out"]), f"{where}: {_words(left)}"
                else:
                    assert same, (
                        f"{where}: from the kernel left {_words(recorded(step['out']))}; "
                        f"from lvsha {_words(left)}"
                    )
            case "conns":
                assert kernel.lines() == without_time_left(step["lines"]), where
            case _:
                _pass_time(kernel, step)


def _pass_time(kernel: KernelDirector, step: Step) -> None:
    """Steps that change the director or its clock and show nothing themselves."""
    match step["op"]:
        case "sleep":
            kernel.sleep(step["s"])
        case "ipvs":
            for command in step["cmds"]:
                kernel.ipvsadm(command)
        case "timeouts":
            kernel.set_timeouts(step)
        case operation:
            raise AssertionError(f"a step of an unknown kind: {operation}")


@pytest.mark.parametrize("scenario", scenarios("tcp_states"), ids=_ids)
def test_states_and_timeouts_follow_the_kernel(scenario: Scenario) -> None:
    kernel = KernelDirector(scenario)
    for number, step in enumerate(scenario["steps"]):
        if step["op"] != "ev":
            _pass_time(kernel, step)
            continue
        side, other = ("client", "server") if step["ev"][0] == "c" else ("server", "client")
        left = kernel.send(side, bytes.fromhex(step["in"]))
        connection = kernel.connection(step["conn"])
        found = (
            (None, None, any(p.side == other for p in left))
            if connection is None
            else (
                state_name(connection),
                connection.timeout,
                any(p.side == other for p in left),
            )
        )
        # Without a connection the host forwards in the kernel's case: `FORWARDED_BY_HOST`.
        forwarded = step["forwarded"] and step["state"] is not None
        expected = (step["state"], step.get("nominal_s"), forwarded)
        assert found == expected, (
            f"{scenario['name']} step {number}, {step['ev']} on {step['conn']}: the kernel has "
            f"state, time-out, forwarded = {expected}, lvsha {found}"
        )
        if connection is not None:
            assert connection.expires == kernel.now + connection.timeout


@pytest.mark.parametrize("scenario", scenarios("sched"), ids=_ids)
def test_schedulers_choose_as_the_kernel_does(scenario: Scenario) -> None:
    kernel = KernelDirector(scenario)
    udp = any(" -u " in command for command in scenario["config"])
    virtual: dict[str, str] = {}
    for number, step in enumerate(scenario["steps"]):
        where = f"{scenario['name']} step {number}"
        match step["op"]:
            case "open":
                virtual[step["c"]] = step["v"]
                kernel.send("client", _request(step["c"], step["v"], packets.SYN, udp=udp))
                connection = kernel.connection(step["c"], step["v"])
                chosen = None if connection is None else str(connection.server)
                assert chosen == step["d"], (
                    f"{where}: {step['c']} went to {step['d']} in the kernel, to {chosen} in lvsha"
                )
            case "est" | "rst" | "fin":
                _converse(kernel, step["op"], step["c"], virtual[step["c"]])
            case "counts":
                assert kernel.counts() == step["dests"], where
            case _:
                _pass_time(kernel, step)
        assert kernel.miscounted() == [], where


def _request(client: str, virtual: str, flags: int, *, udp: bool = False) -> bytes:
    (here, port), (there, virtual_port) = parse_endpoint(client), parse_endpoint(virtual)
    ends = (format_address(here), port, format_address(there), virtual_port)
    return packets.udp(*ends) if udp else packets.tcp(*ends, flags)


def _exchange(kind: str) -> Iterator[tuple[str, int]]:
    """Who says what, as the recordings' README describes the steps."""
    fin, syn, rst, ack = packets.FIN, packets.SYN, packets.RST, packets.ACK
    match kind:
        case "est":
            yield from (("server", syn | ack), ("client", ack))
        case "rst":
            yield ("client", rst)
        case _:
            yield from (("client", fin | ack), ("server", fin | ack), ("client", ack))


def _converse(kernel: KernelDirector, kind: str, client: str, virtual: str) -> None:
    connection = kernel.connection(client, virtual)
    assert connection is not None
    server = connection.server
    for who, flags in _exchange(kind):
        if who == "client":
            kernel.send("client", _request(client, virtual, flags))
        elif server.method is ForwardMethod.NAT:
            kernel.send("server", _request(str(server), client, flags))


def test_every_stated_difference_is_still_one() -> None:
    notes = [
        (scenario["name"], step.get("note", ""))
        for scenario in scenarios("forward")
        for step in scenario["steps"]
    ]
    for difference in DIFFERENCES:
        assert any(_difference(name, note) is difference for name, note in notes), difference
