"""Draw a scenario from a seed: services and servers, settings, traffic and commands.

The same seed and the same capabilities give the same scenario; `Capabilities` says what may
be drawn. Addresses are those of
`tests.laboratory`; nothing that is drawn runs out in the few seconds of a run.
"""

import random
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tests import packets
from tests.interop.steps import (
    CLIENT,
    SERVER,
    Command,
    Complain,
    Flow,
    Say,
    Scenario,
    Setting,
    Step,
    Stray,
)
from tests.interop.traffic import SCTP

VIPS: Final = {
    4: ("192.0.2.10", "192.0.2.11", "192.0.2.12", "192.0.2.13"),
    6: ("2001:db8:ffff::10", "2001:db8:ffff::11", "2001:db8:ffff::12", "2001:db8:ffff::13"),
}
MARKED: Final = {4: ("192.0.2.13", 7), 6: ("2001:db8:ffff::13", 7)}
"""What clients send to these addresses has a firewall mark, if marks are drawn at all."""
PORTS: Final = (80, 443, 5060, 8080)
STEPS = (60, 150)
CLIENTS = 40
FLOWS_MAX = 25
SERVERS_PER_SERVICE = (1, 5)
LARGE_PAYLOAD_BYTES: Final = {4: (1300, 1420, 1440, 1448), 6: (1300, 1400, 1420, 1440)}
"""By IP version. The largest fill the MTU of 1500, IPv4's together with its options."""
FLAGS: Final = {"sh": ("sh-port", "sh-fallback"), "mh": ("mh-port", "mh-fallback")}
SETTINGS: Final = {
    "sloppy_tcp": ("0", "1"),
    "sloppy_sctp": ("0", "1"),
    "secure_tcp": ("0", "3"),
    "expire_nodest_conn": ("0", "1"),
    "conn_reuse_mode": ("0", "1"),
    "expire_quiescent_template": ("0", "1"),
    "nat_icmp_send": ("0", "1"),
    "schedule_icmp": ("0", "1"),
    "pmtu_disc": ("0", "1"),
    "cache_bypass": ("0", "1"),
}
TUNNELS: Final = (
    "--tun-type ipip",
    "--tun-type gue --tun-port 6080 --tun-nocsum",
    "--tun-type gue --tun-port 6080 --tun-csum",
    "--tun-type gue --tun-port 6080 --tun-remcsum",
    "--tun-type gre --tun-nocsum",
    "--tun-type gre --tun-csum",
)
SERVICE_OPTIONS: Final = {packets.TCP: "-t", packets.UDP: "-u", SCTP: "--sctp-service"}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What may be drawn."""

    schedulers: tuple[str, ...]
    protocols: tuple[int, ...]
    methods: tuple[str, ...]
    settings: tuple[str, ...] = ()
    marks: bool = False
    persistence: bool = False
    one_packet: bool = False
    thresholds: bool = False
    timeouts: bool = False
    service_changes: bool = False
    refused_commands: bool = False
    fragments: bool = False
    record_route: bool = False
    large_packets: bool = False


EVERYTHING: Final = Capabilities(
    schedulers=(
        *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh"),
        *("sh", "sed", "nq", "fo", "ovf", "mh"),
    ),
    protocols=(packets.TCP, packets.TCP, packets.UDP, SCTP),
    methods=("-m", "-m", "-m", "-g", *(f"-i {tunnel}" for tunnel in TUNNELS)),
    settings=tuple(SETTINGS),
    marks=True,
    persistence=True,
    one_packet=True,
    thresholds=True,
    timeouts=True,
    service_changes=True,
    refused_commands=True,
    fragments=True,
    record_route=True,
    large_packets=True,
)
"""All that the kernel of the guest can do, and that is the same in every run."""


@dataclass(slots=True)
class _Service:
    """A service as the commands so far have made it."""

    name: str
    """As ipvsadm is told: ``-t 192.0.2.10:80``."""
    version: int
    protocol: int
    address: str
    port: int
    marked: bool
    options: str
    servers: dict[str, str] = field(default_factory=dict)
    """The forwarding method of each, by the text of its endpoint."""


_Said = TypeVar("_Said", int, tuple[int, ...])

_TCP_COURSE: Final = (
    (CLIENT, packets.SYN),
    (SERVER, packets.SYN | packets.ACK),
    (CLIENT, packets.ACK),
    (CLIENT, packets.PSH | packets.ACK),
    (SERVER, packets.PSH | packets.ACK),
    (CLIENT, packets.FIN | packets.ACK),
    (SERVER, packets.FIN | packets.ACK),
    (CLIENT, packets.ACK),
)
_SCTP_COURSE: Final = (
    (CLIENT, (1,)),
    (SERVER, (2,)),
    (CLIENT, (10,)),
    (SERVER, (11,)),
    (CLIENT, (0,)),
    (SERVER, (3,)),
    (CLIENT, (7,)),
    (SERVER, (8,)),
    (CLIENT, (14,)),
)
_TCP_FLAGS: Final = (
    packets.SYN,
    packets.SYN | packets.ACK,
    packets.ACK,
    packets.FIN | packets.ACK,
    packets.RST,
    packets.RST | packets.ACK,
    packets.FIN,
    0,
)
_SCTP_CHUNKS: Final = (
    *((kind,) for kind in range(15)),
    *((10, 0), (10, 6), (11, 6), (10, 11), (0, 3)),
)
_ERRORS: Final = {
    4: ((3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 13, 0), (11, 0, 0), (4, 0, 0)),
    6: ((1, 0, 0), (1, 3, 0), (1, 4, 0), (3, 0, 0)),
}
_TOO_BIG: Final = {4: (3, 4, 1400), 6: (2, 0, 1400)}
_REPORTERS: Final = {
    CLIENT: {4: "198.51.100.250", 6: "2001:db8:1::fa"},
    SERVER: {4: "10.1.0.60", 6: "fd00:5::3c"},
}


def draw_scenario(seed: int, capabilities: Capabilities) -> Scenario:
    """The scenario of a seed."""
    return _Drawing(seed, capabilities).scenario()


class _Drawing:
    """One drawing: dice, and what was drawn so far."""

    def __init__(self, seed: int, capabilities: Capabilities) -> None:
        self._seed = seed
        self._dice = random.Random(seed)
        self._can = capabilities
        self._services: list[_Service] = []
        self._schedulers: set[str] = set()
        self._flows: list[Flow] = []
        self._stage: dict[Flow, int] = {}

    def scenario(self) -> Scenario:
        """Draw all."""
        configuration: list[Setting | Command] = [
            Setting(name, self._dice.choice(SETTINGS[name]))
            for name in self._can.settings
            if self._dice.random() < 0.3
        ]
        for _ in range(self._dice.randint(1, 4)):
            configuration += self._draw_service()
        steps: list[Step] = []
        while len(steps) < self._steps_wanted:
            steps += self._draw_steps()
        return Scenario(
            self._seed,
            tuple(sorted(self._schedulers)),
            tuple((address, mark) for address, mark in MARKED.values() if self._can.marks),
            tuple(configuration),
            tuple(steps),
        )

    @property
    def _steps_wanted(self) -> int:
        low, high = STEPS
        return low + self._seed * 37 % (high - low)

    def _draw_service(self) -> list[Setting | Command]:
        dice = self._dice
        version = dice.choice((4, 4, 6))
        protocol = dice.choice(self._can.protocols)
        marked = self._can.marks and dice.random() < 0.25
        persistent = self._can.persistence and dice.random() < 0.35
        address, port = dice.choice(VIPS[version][:3]), dice.choice(PORTS)
        if persistent and not marked and dice.random() < 0.3:
            port = 0
        if marked:
            address, mark = MARKED[version]
            name = f"-f {mark}" + (" -6" if version == 6 else "")
        else:
            shown = f"[{address}]" if version == 6 else address
            name = f"{SERVICE_OPTIONS[protocol]} {shown}:{port}"
        if any(service.name == name for service in self._services):
            return []
        service = _Service(name, version, protocol, address, port, marked, "")
        service.options = self._draw_service_options(service, persistent=persistent)
        self._services.append(service)
        commands: list[Setting | Command] = [Command(f"-A {name} {service.options}")]
        for _ in range(dice.randint(*SERVERS_PER_SERVICE)):
            commands += self._add_server(service)
        return commands

    def _draw_service_options(self, service: _Service, *, persistent: bool) -> str:
        dice = self._dice
        scheduler = dice.choice(self._can.schedulers)
        self._schedulers.add(scheduler)
        words = [f"-s {scheduler}"]
        flags = [flag for flag in FLAGS.get(scheduler, ()) if dice.random() < 0.5]
        if flags:
            words.append(f"-b {','.join(flags)}")
        if persistent:
            words.append(f"-p {dice.choice((60, 300, 1000))}")
            if dice.random() < 0.5:
                words.append(
                    f"-M {dice.choice(('255.255.255.0', '255.255.255.252', '0.0.0.0'))}"  # noqa: S104
                    if service.version == 4
                    else f"-M {dice.choice((64, 120, 126))}"
                )
        elif self._may_be_one_packet(service) and dice.random() < 0.3:
            words.append("-o")
        return " ".join(words)

    def _may_be_one_packet(self, service: _Service) -> bool:
        return self._can.one_packet and service.protocol == packets.UDP and not service.marked

    def _add_server(self, service: _Service) -> list[Command]:
        dice = self._dice
        last = dice.randint(2, 12)
        address = f"10.1.0.{last}" if service.version == 4 else f"fd00:5::{last:x}"
        method = dice.choice(self._can.methods)
        port = service.port
        if method == "-m" and port and not service.marked:
            port = dice.choice((port, 8080, 8000 + dice.randint(0, 3)))
        if service.marked:
            port = 0
        server = f"[{address}]:{port}" if service.version == 6 else f"{address}:{port}"
        if server in service.servers:
            return []
        service.servers[server] = method
        return [Command(f"-a {service.name} -r {server} {method} {self._draw_weight()}")]

    def _draw_weight(self) -> str:
        dice = self._dice
        words = f"-w {dice.choice((0, 1, 1, 1, 2, 3, 5, 10, 100))}"
        if self._can.thresholds and dice.random() < 0.2:
            upper = dice.randint(1, 8)
            words += f" -x {upper}"
            if dice.random() < 0.5:
                words += f" -y {dice.randint(1, upper)}"
        return words

    def _draw_steps(self) -> list[Step]:
        """One thing that happens, and what belongs to it."""
        chance = self._dice.random()
        if not self._flows or chance < 0.25:
            return self._open()
        if chance < 0.80:
            return [self._continue(self._dice.choice(self._flows))]
        if chance < 0.86:
            return [self._complain(self._dice.choice(self._flows))]
        if chance < 0.89:
            return [self._stray()]
        if chance < 0.92 and self._can.settings:
            name = self._dice.choice(self._can.settings)
            return [Setting(name, self._dice.choice(SETTINGS[name]))]
        return list(self._change())

    def _open(self) -> list[Step]:
        dice = self._dice
        service = dice.choice(self._services)
        protocol = dice.choice(self._can.protocols) if service.marked else service.protocol
        number = dice.randint(1, CLIENTS)
        flow = Flow(
            protocol,
            f"198.51.100.{number}" if service.version == 4 else f"2001:db8:1::{number:x}",
            dice.choice((40000, 40001, 5060, 1024)),
            service.address,
            service.port or dice.choice(PORTS),
        )
        if flow not in self._flows:
            self._flows.append(flow)
            del self._flows[:-FLOWS_MAX]
        # An old flow that opens anew is a client that uses its port again.
        self._stage[flow] = 0
        return [self._continue(flow, odd=dice.random() < 0.1)]

    def _continue(self, flow: Flow, *, odd: bool | None = None) -> Say:
        dice = self._dice
        if odd is None:
            odd = dice.random() < 0.25
        side = dice.choice((CLIENT, CLIENT, SERVER))
        flags = 0
        chunks: tuple[int, ...] = ()
        if flow.protocol == packets.TCP:
            side, flags = self._next(flow, _TCP_COURSE)
            if odd:
                side, flags = dice.choice((CLIENT, SERVER)), dice.choice(_TCP_FLAGS)
        elif flow.protocol == SCTP:
            side, chunks = self._next(flow, _SCTP_COURSE)
            if odd:
                side, chunks = dice.choice((CLIENT, SERVER)), dice.choice(_SCTP_CHUNKS)
        payload_bytes = 0
        if flow.protocol == packets.UDP or flags & packets.PSH:
            payload_bytes = dice.choice((0, 1, 7, 64, 500))
            if self._can.large_packets and dice.random() < 0.1:
                payload_bytes = dice.choice(LARGE_PAYLOAD_BYTES[6 if ":" in flow.client else 4])
        pieces = 1
        if self._can.fragments and flow.protocol == packets.UDP and dice.random() < 0.1:
            pieces, payload_bytes = dice.choice((2, 3)), dice.choice((100, 900, 1400, 2500))
        return Say(
            flow,
            side,
            flags=flags,
            chunks=chunks,
            payload_bytes=payload_bytes,
            ttl=dice.choice((64, 64, 64, 128, 2)),
            tos=dice.choice((0, 0, 0, 0x10, 0xB8)),
            dont_fragment=dice.random() < 0.7,
            checksum=dice.random() < 0.85,
            record_route=self._can.record_route and dice.random() < 0.02,
            fragments=pieces,
        )

    def _next(self, flow: Flow, course: tuple[tuple[str, _Said], ...]) -> tuple[str, _Said]:
        stage = self._stage[flow]
        self._stage[flow] = min(stage + 1, len(course) - 1)
        return course[stage]

    def _complain(self, flow: Flow) -> Complain:
        dice = self._dice
        version = 6 if ":" in flow.client else 4
        side = dice.choice((CLIENT, SERVER))
        errors = _ERRORS[version]
        if self._can.large_packets:
            errors = (*errors, _TOO_BIG[version])
        kind, code, rest = dice.choice(errors)
        quote_bytes_max = dice.choice((28, 56, 500)) if version == 4 else dice.choice((48, 500))
        reporter = _REPORTERS[side][version]
        return Complain(flow, side, kind, code, reporter, rest, quote_bytes_max)

    def _stray(self) -> Stray:
        dice = self._dice
        version = dice.choice((4, 6))
        client = "198.51.100.200" if version == 4 else "2001:db8:1::c8"
        server = "10.1.0.20" if version == 4 else "fd00:5::14"
        vip = VIPS[version][0]
        match dice.choice(("echo", "tcp", "udp", "unknown server")):
            case "echo":
                kind = 8 if version == 4 else 128
                packet = packets.icmp(client, vip, kind, 0, bytes(8), rest=0x10001)
                return Stray(CLIENT, packet, "an echo request to a virtual address")
            case "tcp":
                packet = packets.tcp(client, 40000, vip, 9)
                return Stray(CLIENT, packet, "a SYN to a port of no service")
            case "udp":
                packet = packets.udp(client, 40000, vip, 9, bytes(8))
                return Stray(CLIENT, packet, "a datagram to a port of no service")
            case _:
                packet = packets.tcp(server, 9, client, 40000, packets.ACK)
                return Stray(SERVER, packet, "a segment of no connection from the servers' side")

    def _change(self) -> list[Command]:
        """One change of the configuration."""
        dice = self._dice
        service = dice.choice(self._services)
        choices = ["weight", "weight", "add", "remove"]
        choices += ["timeouts"] * self._can.timeouts
        choices += ["edit service", "replace service", "zero"] * self._can.service_changes
        choices += ["refused"] * self._can.refused_commands
        match dice.choice(choices):
            case "add":
                return self._add_server(service)
            case "weight" if service.servers:
                server = dice.choice(list(service.servers))
                method = service.servers[server]
                return [Command(f"-e {service.name} -r {server} {method} {self._draw_weight()}")]
            case "remove" if service.servers:
                server = dice.choice(list(service.servers))
                del service.servers[server]
                return [Command(f"-d {service.name} -r {server}")]
            case "timeouts":
                values = (dice.choice((0, 100, 900)), dice.choice((0, 60)), dice.choice((0, 200)))
                return [Command(f"--set {' '.join(map(str, values))}")]
            case "edit service":
                persistent = "-p" in service.options.split()
                service.options = self._draw_service_options(service, persistent=persistent)
                return [Command(f"-E {service.name} {service.options}")]
            case "replace service" if len(self._services) > 1:
                self._services.remove(service)
                commands = [Command(f"-D {service.name}")]
                return commands + [c for c in self._draw_service() if isinstance(c, Command)]
            case "zero":
                return [Command(dice.choice(("-Z", f"-Z {service.name}")))]
            case "refused":
                return [self._refused(service)]
            case _:
                return self._add_server(service)

    def _refused(self, service: _Service) -> Command:
        """A command that means what is there already, or what is not there."""
        absent = "-t 203.0.113.1:1"
        unknown = "10.1.0.50:1" if service.version == 4 else "[fd00:5::32]:1"
        choices = [
            f"-A {service.name} -s {self._can.schedulers[0]}"
            + (" -p 60" if " -p " in f" {service.options} " else ""),
            f"-D {absent}",
            f"-E {absent} -s {self._can.schedulers[0]}",
            f"-d {absent} -r 10.1.0.2",
            f"-d {service.name} -r {unknown}",
            f"-e {service.name} -r {unknown} -m -w 1",
        ]
        for server, method in list(service.servers.items())[:1]:
            choices.append(f"-a {service.name} -r {server} {method} -w 1")
        self._schedulers.add(self._can.schedulers[0])
        return Command(self._dice.choice(choices), accepted=False)
