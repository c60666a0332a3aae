"""Put lvsha's director where the recorded kernel director stood.

The recordings in ``kernel/`` were made of a Linux 6.1 IPVS with real packets; each scenario
has a configuration in ipvsadm's words and steps in order. This module builds the same
director in the same network and understands the commands. What it does not know raises
`UnsupportedError`, so that nothing is left out in silence. All time is the scenario's own.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, cast

from lvsha.datapath.connections import Connection
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ForwardMethod, Protocol, format_endpoint, parse_address
from tests.laboratory import Laboratory, Left

RECORDINGS = Path(__file__).parent / "kernel"

Endpoint = tuple[bytes, int]

_METHODS = {"-m": ForwardMethod.NAT, "-g": ForwardMethod.DIRECT_ROUTE, "-i": ForwardMethod.TUNNEL}
_PROTOCOLS = {"-t": Protocol.TCP, "-u": Protocol.UDP}


class RecordedPacket(TypedDict):
    """A packet that left the kernel's director."""

    side: str
    dmac: str
    pkt: str


class Counts(TypedDict):
    """What ``ipvsadm -Ln`` says of a server."""

    weight: int
    active: int
    inactive: int


Step = TypedDict(
    "Step",
    {
        "op": str,
        "side": str,
        "in": str,
        "out": list[RecordedPacket],
        "note": str,
        "s": float,
        "cmds": list[str],
        "lines": list[str],
        "ev": str,
        "conn": str,
        "state": str | None,
        "nominal_s": int,
        "forwarded": bool,
        "tcp": int,
        "tcpfin": int,
        "udp": int,
        "c": str,
        "v": str,
        "d": str | None,
        "dests": dict[str, Counts],
    },
    total=False,
)
"""One step; which keys it has depends on ``op``."""


class Scenario(TypedDict, total=False):
    """A recorded scenario."""

    name: str
    vips: list[str]
    sysctl: dict[str, int]
    config: list[str]
    steps: list[Step]


def scenarios(kind: str) -> list[Scenario]:
    """The recorded scenarios of a kind."""
    content = json.loads((RECORDINGS / f"{kind}.json").read_text(encoding="ascii"))
    return cast("list[Scenario]", content["scenarios"])


class UnsupportedError(Exception):
    """A command has a word that lvsha has no counterpart for."""


class KernelDirector(Laboratory):
    """A `Director` in the recorded laboratory."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(vips=scenario["vips"])
        self._services: dict[tuple[Protocol, str], VirtualService] = {}
        self._timeouts = {"tcp": 900, "tcpfin": 120, "udp": 300}
        for command in scenario["config"]:
            self.ipvsadm(command)

    def ipvsadm(self, command: str) -> None:
        """Carry out one ipvsadm command."""
        verb, *words = shlex.split(command)
        options = dict(_options(words))
        chosen = next((option for option in _PROTOCOLS if option in options), None)
        if chosen is None:
            raise UnsupportedError(command)
        protocol, endpoint = _PROTOCOLS[chosen], options.pop(chosen)
        if options.get("--tun-type") == "ipip":
            del options["--tun-type"]
        if verb == "-A":
            self._add_service(protocol, endpoint, options)
        elif verb in {"-a", "-e", "-d"}:
            self._change_server(verb, self._services[protocol, endpoint], options)
        else:
            raise UnsupportedError(command)
        if options:
            raise UnsupportedError(command)

    def _add_service(self, protocol: Protocol, endpoint: str, options: dict[str, str]) -> None:
        address, port = parse_endpoint(endpoint)
        flags = tuple(filter(None, options.pop("-b", "").split(",")))
        scheduler = options.pop("-s", "wlc")
        if scheduler not in SCHEDULERS:
            raise UnsupportedError(scheduler)
        self._services[protocol, endpoint] = self.director.add_service(
            f"{protocol.name} {endpoint}", protocol, address, port, scheduler, flags
        )

    def _change_server(self, verb: str, service: VirtualService, options: dict[str, str]) -> None:
        address, port = _server_endpoint(service, options.pop("-r"))
        weight = int(options.pop("-w", "1"))
        methods = [_METHODS[option] for option in _METHODS if options.pop(option, None) is not None]
        if verb == "-a":
            method = methods[0] if methods else ForwardMethod.DIRECT_ROUTE
            self.director.add_server(service, address, port, weight, method)
            return
        server = service.server(address, port)
        assert server is not None, "the recording edits and deletes only what is there"
        if verb == "-e":
            self.director.edit_server(server, weight)
        else:
            self.director.remove_server(server)

    def set_timeouts(self, step: Step) -> None:
        """As ``ipvsadm --set``: 0 leaves a value as it is."""
        for name, value in (("tcp", step["tcp"]), ("tcpfin", step["tcpfin"]), ("udp", step["udp"])):
            self._timeouts[name] = value or self._timeouts[name]
        self.director.set_timeouts(
            tcp=self._timeouts["tcp"], tcp_fin=self._timeouts["tcpfin"], udp=self._timeouts["udp"]
        )

    def connection(self, client: str, virtual: str | None = None) -> Connection | None:
        """The connection of a client, as one writes its endpoint."""
        for connection in self.director.table.inbound.values():
            if connection.client == parse_endpoint(client) and (
                virtual is None or connection.virtual == parse_endpoint(virtual)
            ):
                return connection
        return None

    def servers(self) -> dict[str, RealServer]:
        """All real servers by the text of their endpoint."""
        return {
            str(server): server
            for service in self.director.services.values()
            for server in service.servers
        }

    def counts(self) -> dict[str, Counts]:
        """What ``ipvsadm -Ln`` would say of the servers."""
        return {
            text: {"weight": server.weight, "active": server.active, "inactive": server.inactive}
            for text, server in self.servers().items()
        }

    def lines(self) -> list[str]:
        """The connections as ``ipvsadm -Lnc`` prints them, without the time left, sorted."""
        return sorted(map(connection_line, self.director.table.inbound.values()))


def without_time_left(lines: Sequence[str]) -> list[str]:
    """Lines of ``ipvsadm -Lnc`` as `KernelDirector.lines` gives them."""
    return sorted(" ".join(line.split()[:1] + line.split()[2:]) for line in lines)


def connection_line(connection: Connection) -> str:
    """One line of ``ipvsadm -Lnc`` without the time left."""
    server = connection.server
    return " ".join(
        (
            Protocol(connection.protocol).name,
            state_name(connection),
            format_endpoint(*connection.client),
            format_endpoint(*connection.virtual),
            format_endpoint(server.address, server.port),
        )
    )


def state_name(connection: Connection) -> str:
    """The state as ipvsadm prints it."""
    if connection.protocol == Protocol.TCP:
        return TcpState(connection.state).name
    return "UDP"


def parse_endpoint(text: str) -> Endpoint:
    """Address and port from ``192.0.2.1:80`` or ``[2001:db8::1]:80``."""
    address, _, port = text.rpartition(":")
    return parse_address(address.strip("[]")), int(port)


def _server_endpoint(service: VirtualService, text: str) -> Endpoint:
    if text.startswith("[") or text.count(":") == 1:
        return parse_endpoint(text)
    return parse_address(text), service.port


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    remaining = iter(words)
    for option in remaining:
        yield option, "" if option in _METHODS else next(remaining)


def recorded(packets: Sequence[RecordedPacket]) -> list[Left]:
    """What the recording says left."""
    return [Left(p["side"], p["dmac"], bytes.fromhex(p["pkt"])) for p in packets]


def comparable(packets: Sequence[Left]) -> list[Left]:
    """Packets without what varies from run to run; see the recordings' README.

    That is the identification of packets that a director makes itself (ICMP errors, outer
    tunnel headers with DF clear) with the header checksum, and the IPv6 flow label.
    """
    return [Left(left.side, left.dmac, _comparable(left.packet)) for left in packets]


def _comparable(packet: bytes) -> bytes:
    if packet[0] >> 4 == 6:
        return packet[:1] + bytes(3) + packet[4:] if packet[6] == Protocol.ICMPV6 else packet
    if packet[9] in {Protocol.ICMP, Protocol.IPIP, Protocol.IPV6}:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet
