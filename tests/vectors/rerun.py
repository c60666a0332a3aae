"""Repeat a recorded scenario step by step, and say in words where lvsha does otherwise.

`rerun` gives one `Outcome` for each step that shows something. A step that only changes the
director or lets time pass shows nothing. After a disagreement the scenario goes on, so that
everything behind it is still compared.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lvsha.model import ForwardMethod, Protocol, format_address, parse_address
from lvsha.sync.ipvs.messages import parse
from lvsha.wire import ipv4, ipv6
from tests import packets
from tests.laboratory import Left
from tests.vectors.kernel_director import KernelDirector, state_name
from tests.vectors.recordings import (
    RecordedPacket,
    Scenario,
    Step,
    parse_endpoint,
    printed,
    without_time_left,
)

TIME_LEFT_TOLERANCE = 2
"""Seconds: a line was read a moment after what made it, and is cut to whole seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        number: of the step in its scenario.
        step: the step.
        words: what is different; empty where the two agree.
        left: the packets that left lvsha's director.
        accepted: the director left the packet to its host.
    """

    number: int
    step: Step
    words: str
    left: tuple[Left, ...] = ()
    accepted: bool = False


def rerun(scenario: Scenario) -> Iterator[Outcome]:
    """Repeat a scenario."""
    run = _Run(scenario)
    for number, step in enumerate(scenario["steps"]):
        run.kernel.at(step.get("t", 0.0))
        words = run.step(step)
        miscounted = run.kernel.miscounted()
        if miscounted:
            words = f"lvsha has miscounted: {miscounted}"
        if words is not None:
            yield Outcome(number, step, words, tuple(run.left), run.kernel.accepted)


class _Run:
    def __init__(self, scenario: Scenario) -> None:
        self.kernel = KernelDirector(scenario)
        self.left: list[Left] = []
        self._udp = any(" -u " in command for command in scenario["config"])
        self._virtual: dict[str, str] = {}
        self._steps: dict[str, Callable[[Step], str | None]] = {
            "pkt": self._packet,
            "ev": self._event,
            "open": self._open,
            "est": self._converse,
            "rst": self._converse,
            "fin": self._converse,
            "counts": self._counts,
            "conns": self._connections,
            "text": self._text,
            "ipvsadm": self._ipvsadm,
            "proc": self._proc,
            "ipvs": self._commands,
            "sysctl": self._settings,
            "timeouts": self._timeouts,
            "sleep": self._sleep,
            "sync_out": self._said,
            "sync_in": self._heard,
        }

    def step(self, step: Step) -> str | None:
        """What is different after a step; None where it shows nothing."""
        self.left = []
        carry_out = self._steps.get(step["op"])
        return f"unknown kind of step: {step['op']}" if carry_out is None else carry_out(step)

    # What shows something

    def _packet(self, step: Step) -> str:
        self.left = self.kernel.send(step["side"], bytes.fromhex(step["in"]))
        expected = recorded(step["out"])
        if comparable(self.left) == comparable(expected):
            return ""
        return f"from the kernel left {in_words(expected)}; from lvsha {in_words(self.left)}"

    def _event(self, step: Step) -> str:
        side, other = ("client", "server") if step["ev"][0] == "c" else ("server", "client")
        self.left = self.kernel.send(side, bytes.fromhex(step["in"]))
        forwarded = any(left.side == other for left in self.left)
        connection = self.kernel.connection(step["conn"])
        found: tuple[str | None, float | None, bool] = (None, None, forwarded)
        if connection is not None:
            found = (state_name(connection), connection.timeout, forwarded)
        # Without a connection it is the kernel's host that forwards.
        expected_forwarded = step["forwarded"] and step["state"] is not None
        expected = (step["state"], step.get("nominal_s"), expected_forwarded)
        if found == expected:
            return ""
        return (
            f"{step['ev']} on {step['conn']}: state, time-out, forwarded are {expected} in the "
            f"kernel, {found} in lvsha"
        )

    def _open(self, step: Step) -> str:
        client, virtual = step["c"], step["v"]
        self._virtual[client] = virtual
        self.left = self.kernel.send("client", _request(client, virtual, packets.SYN, self._udp))
        connection = self.kernel.connection(client, virtual)
        chosen = None if connection is None else str(connection.server)
        if chosen == step["d"] or _same_server(chosen, step["d"]):
            return ""
        return f"{client} to {virtual} went to {step['d']} in the kernel, to {chosen} in lvsha"

    def _counts(self, step: Step) -> str:
        counts = self.kernel.counts()
        if counts == step["dests"]:
            return ""
        return f"counts are {step['dests']} in the kernel, {counts} in lvsha"

    def _connections(self, step: Step) -> str:
        return _compare_connections(step["lines"], self.kernel.lines())

    def _text(self, step: Step) -> str:
        return self._compare_text(step["cmd"], printed(step), self.kernel.ipvsadm(step["cmd"]).out)

    def _ipvsadm(self, step: Step) -> str:
        result = self.kernel.ipvsadm(step["cmd"], step.get("stdin", ""))
        if (result.status, result.err) != (step["rc"], step["err"]):
            return (
                f"{step['cmd']}: status and error are {step['rc']}, {step['err']!r} in the "
                f"kernel, {result.status}, {result.err!r} in lvsha"
            )
        return self._compare_text(step["cmd"], printed(step), result.out)

    def _compare_text(self, command: str, expected: str, found: str) -> str:
        if re.search(r"-L\w*c|--connection", command):
            return _compare_connections(expected.splitlines(), found.splitlines())
        if "--rate" in command:
            expected, found = _without_rates(expected), _without_rates(found)
        if "--nosort" in command:
            expected, found = _as_set(expected), _as_set(found)
        if expected == found:
            return ""
        return f"{command} prints otherwise:\n{_difference(expected, found)}"

    def _proc(self, step: Step) -> str:
        found = self.kernel.proc(step["path"])
        expected = printed(step)
        if step["path"].endswith("ip_vs"):
            expected, found = _as_set(expected), _as_set(found)
        elif step["path"].endswith(("stats", "stats_percpu")):
            expected, found = (text.rsplit("\n", 2)[0] for text in (expected, found))  # rates
        elif "conn" in step["path"]:
            return _compare_proc_connections(expected, found)
        if expected == found:
            return ""
        return f"{step['path']} reads otherwise:\n{_difference(expected, found)}"

    def _said(self, step: Step) -> str:
        self.kernel.at(step["t"] + step["waited"])
        said, self.kernel.paper.said = self.kernel.paper.said, []
        recorded_datagrams = [bytes.fromhex(d["payload"]) for d in step["datagrams"]]
        if in_words_of_records(said) == in_words_of_records(recorded_datagrams):
            return ""
        return "the master daemon says otherwise:\n" + _difference(
            "\n".join(in_words_of_records(recorded_datagrams)),
            "\n".join(in_words_of_records(said)),
        )

    def _heard(self, step: Step) -> str:
        self.kernel.hear(bytes.fromhex(step["payload"]))
        words = _compare_connections(step["lines"], self.kernel.lines())
        # The times left were compared just now.
        expected, found = (
            "\n".join(sorted(" ".join(line.split()[:-1]) for line in lines))
            for lines in (step["proc"], self.kernel.proc("ip_vs_conn_sync").splitlines()[1:])
        )
        if words or expected == found:
            return words
        return f"ip_vs_conn_sync reads otherwise:\n{_difference(expected, found)}"

    # What only changes something

    def _converse(self, step: Step) -> str | None:
        client = step["c"]
        virtual = self._virtual[client]
        connection = self.kernel.connection(client, virtual)
        if connection is None:
            return f"{client}: no connection"
        server, method = connection.server, connection.binding.method
        for who, flags in _exchange(step["op"]):
            if who == "client":
                self.kernel.send("client", _request(client, virtual, flags))
            elif method is ForwardMethod.NAT:
                here = f"{_bracketed(server.address)}:{connection.binding.port}"
                self.kernel.send("server", _request(here, client, flags))
        return None

    def _commands(self, step: Step) -> str | None:
        for command in step["cmds"]:
            result = self.kernel.ipvsadm(command)
            if result.status:
                return f"{command}: {result.err}"
        return None

    def _settings(self, step: Step) -> None:
        self.kernel.set(**step["set"])

    def _timeouts(self, step: Step) -> None:
        self.kernel.director.set_timeouts(tcp=step["tcp"], tcp_fin=step["tcpfin"], udp=step["udp"])

    def _sleep(self, step: Step) -> None:
        self.kernel.sleep(0.0)  # the next step's time says when it is over


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


def _request(client: str, virtual: str, flags: int, udp: bool = False) -> bytes:
    (here, port), (there, virtual_port) = parse_endpoint(client), parse_endpoint(virtual)
    ends = (format_address(here), port, format_address(there), virtual_port)
    return packets.udp(*ends) if udp else packets.tcp(*ends, flags)


def _bracketed(address: bytes) -> str:
    text = format_address(address)
    return text if len(address) == 4 else f"[{text}]"


def _same_server(chosen: str | None, recorded_server: str | None) -> bool:
    """A server of port 0 stands for all ports: its address decides."""
    if chosen is None or recorded_server is None:
        return False
    (address, port), (other, other_port) = parse_endpoint(chosen), parse_endpoint(recorded_server)
    return address == other and 0 in {port, other_port}


def in_words_of_records(datagrams: Sequence[bytes]) -> list[str]:
    """The records of sync messages in their order, whichever message they are in.

    Flags above bit 15 are a sender's own affair: every receiver ignores them.
    """
    words = []
    for datagram in datagrams:
        message = parse(datagram)
        assert not message.faults
        words += [
            f"version {message.version}, sync id {message.sync_id}: {record.key.hex()} to "
            f"{record.server.hex()}:{record.server_port} {record.method.name}, state "
            f"{record.state}, flags {record.flags & 0xFFFF:#x}, {record.timeout:g} s, "
            f"{record.details}"
            for record in message.records
        ]
    return words


def recorded(outgoing: Sequence[RecordedPacket]) -> list[Left]:
    """What the recording says left."""
    return [Left(p["side"], p["dmac"], bytes.fromhex(p["pkt"])) for p in outgoing]


def in_words(left: Sequence[Left]) -> str:
    """Packets for a sentence."""
    if not left:
        return "nothing"
    return "; ".join(f"{p.packet.hex()} to {p.dmac} on the {p.side} side" for p in left)


def comparable(left: Sequence[Left]) -> list[Left]:
    """Packets without what varies from run to run; see the recordings' README.

    That is the identification of what a director makes itself (ICMP errors, outer tunnel
    headers) with the header checksum, the IPv6 flow label, that of resets too, the
    identification of IPv6 fragments, and the source port of GUE with the UDP checksum.
    """
    return [Left(p.side, p.dmac, _comparable(p.packet)) for p in left]


def _comparable(packet: bytes) -> bytes:
    varied = bytearray(packet)
    if packet[0] >> 4 == 6:
        protocol, at, later = packet[6], 40, False
        made_by_director = packet[8:24] in _DIRECTOR or protocol == Protocol.ICMPV6
        if packets.is_bare_reset(packet):
            varied[1:4] = bytes((packet[1] & 0xF0, 0, 0))
        if protocol == ipv6.FRAGMENT:
            later = int.from_bytes(packet[42:44]) >= 8
            varied[44:48] = bytes(4)
            protocol, at = packet[40], 48
        if made_by_director:
            varied[1:4] = bytes(3)
    else:
        protocol, at = packet[9], (packet[0] & 0xF) * 4
        later = bool(int.from_bytes(packet[6:8]) & ipv4.OFFSET_MASK)
        made_by_director = packet[12:16] in _DIRECTOR or protocol == Protocol.ICMP
        if made_by_director:
            varied[4:6] = varied[10:12] = bytes(2)
    if made_by_director and protocol == Protocol.UDP and not later:
        varied[at : at + 2] = bytes(2)
        if any(packet[at + 6 : at + 8]):
            varied[at + 6 : at + 8] = b"\xff\xff"
    return bytes(varied)


_DIRECTOR = frozenset(
    parse_address(text) for text in ("10.0.0.1", "10.1.0.1", "fd00:c::1", "fd00:5::1")
)


def _compare_connections(expected: Sequence[str], found: Sequence[str]) -> str:
    if without_time_left(expected) != without_time_left(found):
        return "the connections are others:\n" + _difference(
            "\n".join(without_time_left(expected)), "\n".join(without_time_left(found))
        )
    theirs, ours = _times_left(expected), _times_left(found)
    # What is over ends here with the next full second.
    wrong = [
        f"{line}: {theirs[line]} s left in the kernel, {ours[line]} s in lvsha"
        for line in theirs
        if ours[line] and abs(theirs[line] - ours[line]) > TIME_LEFT_TOLERANCE
    ]
    return "; ".join(wrong)


def _times_left(lines: Sequence[str]) -> dict[str, int]:
    times = {}
    for line in lines:
        words = line.split()
        found = re.fullmatch(r"(\d+):(\d\d)", words[1]) if len(words) > 1 else None
        if found is not None:
            seconds = int(found[1]) * 60 + int(found[2])
            times[" ".join(words[:1] + words[2:])] = seconds
    return times


def _compare_proc_connections(expected: str, found: str) -> str:
    def rows(text: str) -> list[list[str]]:
        # The last number is the time left; what a persistence engine found may follow it.
        return sorted(
            re.split(r"\s+\d+(?=\s*$|\s+\w+\s)", line, maxsplit=1) for line in lines(text)
        )

    def lines(text: str) -> list[str]:
        return text.splitlines()

    if rows(expected) == rows(found):
        return ""
    return f"the connections are others:\n{_difference(expected, found)}"


def _without_rates(text: str) -> str:
    """A listing without its rates, which depend on when the kernel looked."""
    return "\n".join(re.sub(r"( +\d+){5}$", " rates", line) for line in text.splitlines())


def _as_set(text: str) -> str:
    """Services in any order, each with its servers in theirs."""
    blocks: list[str] = []
    for line in text.splitlines():
        if line.startswith("  ->") and blocks:
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    return "\n".join(sorted(blocks))


def _difference(expected: str, found: str) -> str:
    lines = difflib.unified_diff(
        expected.splitlines(), found.splitlines(), "kernel", "lvsha", lineterm="", n=0
    )
    return "\n".join(lines)
