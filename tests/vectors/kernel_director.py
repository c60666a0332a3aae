"""Put lvsha's director where a recorded kernel director stood.

The same links, addresses and neighbours, the same commands in ipvsadm's words, the same
settings and firewall marks; all time is the scenario's own.
"""

import ipaddress
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lvsha.datapath.connections import Connection
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.network import AddressChange
from lvsha.datapath.telling import REFRESH_PART
from lvsha.datapath.verdicts import ACCEPT
from lvsha.ipvsadm import procfiles
from lvsha.ipvsadm.commands import Result, run
from lvsha.ipvsadm.names import KnownNames
from lvsha.ipvsadm.views import amounts, view_connection, view_service
from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionFlag,
    ConnectionRecord,
    Protocol,
    parse_address,
)
from lvsha.sync_daemons import SyncDaemons
from tests.laboratory import CLIENT, Laboratory, Left
from tests.vectors.recordings import Counts, Scenario, parse_endpoint
from tests.vectors.sync_daemons import PaperDaemons

START = 1000.0
"""What the laboratory's clock shows when a scenario begins."""
TICK = 1.0
"""Seconds between two looks at what time has brought."""


class KernelDirector(Laboratory):
    """A `Director` in the recorded laboratory.

    Attributes:
        accepted: whether the last packet was left to the host.
        paper: the sync daemons, which `daemons` is to ipvsadm.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(vips=scenario.get("vips", []))
        self.director.registry.tallies.clear()
        self._own = [ipaddress.ip_network(prefix) for prefix in scenario.get("local", [])]
        self.names = known_names(scenario.get("hosts", ""), scenario.get("services_file", []))
        self.paper = PaperDaemons(
            lambda: self.director.settings,
            self.states(),
            self._engines,
            self._mark_of,
        )
        self.daemons = SyncDaemons(self.paper, self.director)
        self.accepted = False
        self.director.marks.set(
            [mark_rule(mark["dst"], mark["mark"]) for mark in scenario.get("marks", [])]
        )
        for name, value in scenario.get("sysctl", {}).items():
            self.set(**{name: value})
        for command in scenario["config"]:
            result = self.ipvsadm(command)
            assert not result.status, f"{command}: {result.err}"

    def at(self, seconds: float) -> None:
        """Let the clock show so many seconds since the scenario's beginning."""
        while self.now + TICK < START + seconds:
            self.sleep(TICK)
        self.sleep(max(0.0, START + seconds - self.now))

    def sleep(self, seconds: float) -> None:
        """Let time pass, for the sync daemons too."""
        super().sleep(seconds)
        self.tell_daemons()
        self.paper.expire(self.now)

    def hear(self, datagram: bytes) -> None:
        """A datagram has come to the sync group."""
        self.apply(self.paper.receive(datagram, self.now))

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        """Take over what another director has told."""
        self.director.replication.apply(records, self.now)

    def tell_daemons(self) -> None:
        """Tell the master daemon of changes.

        The kernel tells first of a connection, then of what it belongs to.
        """
        for changes in self.director.registry.take_changes().values():
            self.paper.tell(changes[::-1], self.now)

    def states(self) -> dict[int, int]:
        """How many states each protocol has."""
        machines = self.director.registry.machines
        return {number: len(machine.timeouts) for number, machine in machines.items()}

    def _mark_of(self, key: bytes) -> int:
        marks = self.director.marks
        return marks.of(key) if marks.rules and key[0] < TEMPLATE_BIT else 0

    def _engines(self) -> list[str]:
        """The kernel has loaded the engines that its services use."""
        return sorted({s.options.engine for s in self.director.services if s.options.engine})

    def ipvsadm(self, command: str, stdin: str = "") -> Result:
        """Carry out one ipvsadm command; the word ``ipvsadm`` may stand before it."""
        words = shlex.split(command)
        if words[:1] == ["ipvsadm"]:
            del words[0]
        return run(words, stdin, self.director, self.names, self.now, daemons=self.daemons)

    def send(self, side: str, packet: bytes, vnet: bytes = bytes(10)) -> list[Left]:
        """Let a packet come in; what the director takes as its own counts as its address."""
        size, first = (4, 16) if packet[:1] and packet[0] >> 4 == 4 else (16, 24)
        there = packet[first : first + size]
        if any(len(there) == n.max_prefixlen // 8 and _ip(there) in n for n in self._own):
            self.director.learn(AddressChange(CLIENT, there, present=True))
        verdict = self.director.decide(self.frame, self.put(side, packet, vnet), self.now)
        self.accepted = verdict is ACCEPT
        left = self.left(self.director.carry_out(self.frame, verdict, self.now))
        self.tell_daemons()
        return left

    def connection(self, client: str, virtual: str | None = None) -> Connection | None:
        """The connection of a client, as one writes its endpoint."""
        for connection in self.director.registry.table.connections():
            if connection.client == parse_endpoint(client) and (
                virtual is None or connection.virtual == parse_endpoint(virtual)
            ):
                return connection
        return None

    def counts(self) -> dict[str, Counts]:
        """What ``ipvsadm -Ln`` would say of the servers."""
        return {
            str(server): {
                "weight": server.weight,
                "active": server.active,
                "inactive": server.inactive,
            }
            for service in self.director.services
            for server in service.servers
        }

    def lines(self) -> list[str]:
        """The connections as ``ipvsadm -Lnc`` prints them, copies without their reprieve."""
        with self._without_reprieve():
            result = self.ipvsadm("-Lnc")
        assert not result.status, result.err
        return result.out.splitlines()[2:]

    @contextmanager
    def _without_reprieve(self) -> Iterator[None]:
        """Copies end when the kernel's would; lvsha's live on for a part of the time-out."""
        copies = [
            connection
            for connection in self.director.registry.table.connections()
            if connection.flags & ConnectionFlag.SYNC
            and connection.expires - self.now > connection.timeout
        ]
        for connection in copies:
            connection.expires -= connection.timeout * REFRESH_PART
        yield
        for connection in copies:
            connection.expires += connection.timeout * REFRESH_PART

    def proc(self, path: str) -> str:
        """What a file of the kernel's would read like."""
        director = self.director
        connections = [
            view_connection(connection, self.now)
            for connection in director.registry.table.connections()
        ]
        counted, rates = amounts(director.services.counted()), amounts(director.services.rates)
        match path.rpartition("/")[2]:
            case "ip_vs":
                services = (view_service(service, service.servers) for service in director.services)
                lines = procfiles.services_file(services)
            case "ip_vs_conn":
                lines = procfiles.connections_file(connections)
            case "ip_vs_conn_sync":
                lines = procfiles.origins_file(connections)
            case "ip_vs_stats":
                lines = procfiles.statistics_file(counted, rates)
            case "ip_vs_stats_percpu":
                lines = procfiles.processors_file(counted, rates)
            case "ip_vs_app":
                lines = procfiles.applications_file([])
            case other:
                raise AssertionError(f"no such file: {other}")
        return "".join(f"{line}\n" for line in lines)


def known_names(hosts: str, services: Sequence[str]) -> KnownNames:
    """The names of /etc/hosts and of lines of /etc/services."""
    names = KnownNames()
    for line in hosts.splitlines():
        text, *called = line.split()
        address = parse_address(text)
        names.hosts[address] = called[0]
        for name in called:
            names.addresses[name, 4 if len(address) == 4 else 6] = address
    for line in services:
        name, there, *aliases = line.split()
        port, _, protocol = there.partition("/")
        number = Protocol[protocol.upper()]
        names.services[int(port), number] = name
        for called_so in (name, *aliases):
            names.ports[called_so, number] = int(port)
    return names


def state_name(connection: Connection) -> str:
    """The state as ipvsadm prints it."""
    return connection.machine.name_of(connection.state)


def mark_rule(prefix: str, mark: int) -> MarkRule:
    """The rule that gives packets to a prefix a mark."""
    network = ipaddress.ip_network(prefix)
    return MarkRule(mark, (network.network_address.packed, network.prefixlen))


def _ip(address: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address)
