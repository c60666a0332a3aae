"""Draw what a director is made for: plans, services, servers, marks, settings, the network.

All runs share one small world of addresses and ports, so that things meet, and so that a
frame that was interesting in one run says something in the next. There are real servers that
cannot be resolved, that have no route, and that are this host itself.
"""

from ipaddress import ip_address
from random import Random

from lvsha.datapath.marks import MarkRule, whole
from lvsha.datapath.network import (
    AddressChange,
    LinkChange,
    NeighbourChange,
    NetworkChange,
    RouteChange,
)
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.service_policy import (
    ESTABLISHED,
    NEVER,
    ServicePolicy,
    TellRule,
    TellWhen,
    Unknown,
)
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.model import ForwardMethod, Protocol
from lvsha.settings import Settings
from tests.fuzz.steps import (
    BackUp,
    Command,
    Configure,
    DeleteServer,
    Hold,
    Learn,
    Plan,
    SetMarks,
    SetServer,
    SetService,
    Step,
    Tune,
    UnsetService,
)
from tests.laboratory import CLIENT, CLIENT_MAC, MACS, SERVER, server_mac


def _packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(ip_address(text).packed for text in texts)


CLIENTS = {
    4: _packed("198.51.100.71", "198.51.100.72", "203.0.113.9", "10.0.0.77", "198.51.101.5"),
    6: _packed("2001:db8:1::77", "2001:db8:1::78", "2001:db8:2::5", "fd00:c::77"),
}
VIPS = {
    4: _packed("192.0.2.21", "192.0.2.22"),
    6: _packed("2001:db8:ffff::21", "2001:db8:ffff::22"),
}
VIRTUAL = (*VIPS[4], *VIPS[6])
KNOWN = {
    4: _packed("10.1.0.11", "10.1.0.12", "10.1.0.13"),
    6: _packed("fd00:5::b", "fd00:5::c", "fd00:5::d"),
}
ODD = {
    # Nobody answers; no route; this host, by three names.
    4: _packed("10.1.0.200", "100.64.0.1", "10.1.0.1", "127.0.0.1", "192.0.2.22"),
    6: _packed("fd00:5::200", "2001:db8:dead::1", "fd00:5::1", "::1", "2001:db8:ffff::22"),
}
FOREIGN = {4: _packed("203.0.113.80"), 6: _packed("2001:db8:3::1")}
"""What a firewall mark may stand for although it is not this host's."""
UNREACHABLE = ((ip_address("100.64.0.0").packed, 10), (ip_address("2001:db8:dead::").packed, 48))
PORTS = (80, 21, 500, 5060, 0, 20, 2000)
CLIENT_PORTS = (40000, 40001, 500, 20, 1025, 5060)
MARKS = (1, 2, 7)
PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
GUE_PORT = 6080
TUNNELS = (
    Tunnel(),
    Tunnel(TunnelType.GUE, GUE_PORT),
    Tunnel(TunnelType.GUE, GUE_PORT, TunnelChecksum.CHECKSUM),
    Tunnel(TunnelType.GUE, GUE_PORT, TunnelChecksum.REMOTE),
    Tunnel(TunnelType.GRE),
    Tunnel(TunnelType.GRE, 0, TunnelChecksum.CHECKSUM),
)
FLAGS = ("flag-1", "flag-2", "flag-3")
SWITCHES = tuple(name for name, field in Settings.model_fields.items() if field.annotation is bool)
MODES = ("drop_entry", "drop_packet", "secure_tcp")
MTUS = (1500, 1500, 1500, 9000, 1280, 576, 68, 60)
TWINS = 0.2
"""The share of runs that have a twin; they take twice the time."""
METHODS = (
    ForwardMethod.NAT,
    ForwardMethod.NAT,
    ForwardMethod.DIRECT_ROUTE,
    ForwardMethod.TUNNEL,
    ForwardMethod.TUNNEL,
)


RULES = (
    ESTABLISHED,
    TellRule(TellWhen.THRESHOLD),
    TellRule(TellWhen.PACKETS, packets=3),
    TellRule(TellWhen.DELAY, delay=0.4),
    TellRule(TellWhen.TEMPLATES),
    NEVER,
)


def plan(dice: Random) -> Plan:
    """How a director is made."""
    return Plan(
        seed=dice.randrange(1 << 30),
        connections_max=dice.choice([1, 20, 200, 200, 200, 2000, 2000, 2000]),
        fragment_bytes=dice.choice([0, 2000, 20_000, 200_000, 200_000, 200_000]),
        answers_per_second=dice.choice([0.0, 1.0, 1e6, 1e6]),
        mtu=dice.choice(MTUS[:5]),
        reporting=dice.choice((None, *RULES)),
        unknown=dice.choice(list(Unknown)),
        twin=dice.random() < TWINS,
    )


class Landscape:
    """Draws the configuration and its changes; remembers what it has drawn.

    Attributes:
        identities: services that were added, whether they are still there or not.
        servers: likewise, with the service.
    """

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self.identities: list[ServiceIdentity] = []
        self.servers: list[tuple[ServiceIdentity, bytes, int]] = []

    def beginning(self) -> list[Step]:
        """The configuration that a run begins with."""
        dice = self._dice
        steps: list[Step] = [
            Learn(RouteChange(prefix, length, 0, b"", b"", 0, present=True, unreachable=True))
            for prefix, length in UNREACHABLE
        ]
        steps += [
            Learn(NeighbourChange(CLIENT, a, CLIENT_MAC)) for a in (CLIENTS[4][3], CLIENTS[6][3])
        ]
        for _ in range(dice.randint(6, 16)):
            steps += self._service_with_servers()
        # FTP by NAT and SIP have states that nothing else reaches.
        for family in (4, 6):
            steps += self._fixed(family, Protocol.TCP, 21, persistence=0)
            if dice.random() < 0.5:
                steps += self._fixed(family, Protocol.UDP, 5060, persistence=300, engine="sip")
        if dice.random() < 0.6:
            steps.append(self.marks())
        steps += [self.setting() for _ in range(dice.randrange(4))]
        return steps

    def change(self) -> Step:
        """One change of the configuration or of the network."""
        dice = self._dice
        drawn = dice.random()
        if drawn < 0.22:
            return self.setting()
        if drawn < 0.45:
            return Learn(self.network_change())
        if drawn < 0.68:
            return self._server_change()
        if drawn < 0.78:
            return self._service_change()
        if drawn < 0.82:
            return self.marks()
        if drawn < 0.9:
            address = dice.choice(VIRTUAL)
            return Hold(address, held=dice.random() < 0.7, in_transition=dice.random() < 0.3)
        if drawn < 0.93:
            return BackUp(tuple(a for a in VIRTUAL if dice.random() < 0.3))
        if drawn < 0.97:
            return self._tuning()
        return Command(
            dice.choice(
                ("zero", "clear network", "keep ways warm", "read snapshot", "tell all", "flush")
                if dice.random() < 0.3
                else ("zero", "keep ways warm", "read snapshot", "tell all")
            )
        )

    def setting(self) -> Configure:
        """A change of one setting."""
        dice = self._dice
        drawn = dice.random()
        if drawn < 0.5:
            return Configure({dice.choice(SWITCHES): int(dice.random() < 0.5)})
        if drawn < 0.75:
            return Configure({dice.choice(MODES): dice.randrange(4)})
        name, values = dice.choice(
            [
                ("conn_reuse_mode", (0, 1, 2, 3)),
                ("am_droprate", (0, 1, 2, 10)),
                ("amemthresh", (0, 1, 1024, 2**31 - 1)),
                ("lblc_expiration", (0, 1, 86400)),
                ("lblcr_expiration", (0, 1, 86400)),
                ("sync_threshold", ("3 50", "0 1", "1 2", "2 0")),
                ("sync_refresh_period", (0, 1, 60, 2**31 - 1)),
                ("sync_retries", (0, 1, 3)),
            ]
        )
        return Configure({name: dice.choice(values)})

    def _tuning(self) -> Tune:
        dice = self._dice
        name, values = dice.choice(
            [
                ("seed", (0, 1, 2**32 - 1)),
                ("memory", (0, 1, 512, 1024, 10**9)),
                ("clock", (0.0, -1e9, 1.7e9, 0.5)),
                ("tcp", (0, 1, 900, 2**31 - 1)),
                ("tcp_fin", (0, 1, 120)),
                ("udp", (0, 1, 300)),
            ]
        )
        # The names are those of `Tune`.
        match name:
            case "seed" | "memory" | "clock" | "tcp" | "tcp_fin" | "udp":
                return Tune(name, float(dice.choice(values)))
        raise AssertionError(name)

    def marks(self) -> SetMarks:
        """Rules for some addresses and ports."""
        dice = self._dice
        rules = []
        for _ in range(dice.randrange(4)):
            family = dice.choice((4, 6))
            anywhere = (bytes(4 if family == 4 else 16), 0)
            destination = anywhere if dice.random() < 0.3 else whole(dice.choice(VIPS[family]))
            port = dice.choice(PORTS)
            rules.append(
                MarkRule(
                    dice.choice(MARKS),
                    destination,
                    whole(dice.choice(CLIENTS[family])) if dice.random() < 0.3 else None,
                    dice.choice((0, 6, 17, 132)),
                    () if dice.random() < 0.5 else ((port, min(port + 10, 65535)),),
                )
            )
        return SetMarks(tuple(rules))

    # Services

    def _fixed(
        self, family: int, protocol: Protocol, port: int, *, persistence: int, engine: str = ""
    ) -> list[Step]:
        identity = ServiceIdentity(family, protocol, VIPS[family][0], port)
        options = ServiceOptions("rr", frozenset(), persistence, b"", False, engine)
        steps: list[Step] = [SetService("add", identity, options)]
        for address in KNOWN[family][:2]:
            steps.append(
                SetServer("add", identity, address, port, ServerOptions(ForwardMethod.NAT))
            )
            self.servers.append((identity, address, port))
        self.identities.append(identity)
        return steps

    def _identity(self) -> ServiceIdentity:
        dice = self._dice
        family = dice.choice((4, 6))
        if dice.random() < 0.2:
            return ServiceIdentity(family, Protocol.TCP, mark=dice.choice(MARKS))
        address, port = dice.choice(VIPS[family]), dice.choice(PORTS)
        return ServiceIdentity(family, dice.choice(PROTOCOLS), address, port)

    def _service_options(self, family: int) -> ServiceOptions:
        dice = self._dice
        netmask = b""
        if dice.random() < 0.3:
            size = 4 if family == 4 else 16
            ones = dice.choice((0, 8, 24, 64)) if family == 6 else dice.choice((0, 8, 24, 32))
            netmask = ((1 << ones) - 1 << size * 8 - ones).to_bytes(size)
        return ServiceOptions(
            dice.choice((*SCHEDULERS, "none")) if dice.random() < 0.97 else "unknown",
            frozenset(flag for flag in FLAGS if dice.random() < 0.3),
            dice.choice((0, 0, 1, 300)),
            netmask,
            dice.random() < 0.15,
            "sip" if dice.random() < 0.1 else "",
        )

    def _policy(self) -> ServicePolicy | None:
        """That of the director, or another."""
        dice = self._dice
        if dice.random() < 0.4:
            return None
        return ServicePolicy(dice.choice(RULES), dice.choice(list(Unknown)))

    def _service_with_servers(self) -> list[Step]:
        identity = self._identity()
        self.identities.append(identity)
        options = self._service_options(identity.family)
        steps: list[Step] = [SetService("add", identity, options, self._policy())]
        steps += [self._new_server(identity) for _ in range(self._dice.randrange(5))]
        return steps

    def _service_change(self) -> Step:
        dice = self._dice
        identity = dice.choice(self.identities) if dice.random() < 0.8 else self._identity()
        drawn = dice.random()
        if drawn < 0.25:
            return UnsetService("delete", identity)
        if drawn < 0.35:
            return UnsetService("zero", identity)
        self.identities.append(identity)
        options = self._service_options(identity.family)
        if drawn < 0.6:
            return SetService("add", identity, options, self._policy())
        return SetService("edit", identity, options)

    # Servers

    def _server_options(self, method: ForwardMethod | None = None) -> ServerOptions:
        dice = self._dice
        upper = dice.choice((0, 0, 0, 1, 4))
        return ServerOptions(
            method if method is not None else dice.choice(METHODS),
            dice.choice((1, 1, 1, 2, 3, 0, 100, 65535, 2**31 - 1)),
            upper,
            dice.choice((0, upper, upper // 2)) if dice.random() < 0.98 else upper + 1,
            dice.choice(TUNNELS),
        )

    def _new_server(self, identity: ServiceIdentity) -> SetServer:
        dice = self._dice
        options = self._server_options()
        family = identity.family
        if options.method is ForwardMethod.TUNNEL and dice.random() < 0.3:
            family = 10 - family
        address = dice.choice(KNOWN[family] if dice.random() < 0.8 else ODD[family])
        port = identity.port if dice.random() < 0.6 else dice.choice((80, 8080, 0, 65535))
        self.servers.append((identity, address, port))
        return SetServer("add", identity, address, port, options)

    def _server_change(self) -> Step:
        dice = self._dice
        drawn = dice.random()
        if drawn < 0.25 or not self.servers:
            return self._new_server(dice.choice(self.identities))
        identity, address, port = dice.choice(self.servers)
        if drawn < 0.5:
            return DeleteServer(identity, address, port)
        action = dice.choice(("add", "edit", "edit"))
        options = self._server_options()
        return SetServer("add" if action == "add" else "edit", identity, address, port, options)

    # The network

    def network_change(self) -> NetworkChange:
        """Something that netlink would tell; mostly soon made good again."""
        dice = self._dice
        drawn = dice.random()
        family = dice.choice((4, 6))
        if drawn < 0.55:
            return self._neighbour(family)
        if drawn < 0.75:
            side = dice.choice((CLIENT, SERVER))
            name = "client" if side == CLIENT else "server"
            up = dice.random() < 0.8
            mtu = dice.choice(MTUS)
            return LinkChange(side, name, MACS[side], mtu, up, gone=dice.random() < 0.05)
        if drawn < 0.9:
            present = dice.random() < 0.7
            prefix, length, side, gateway = dice.choice(
                (
                    (bytes(4 if family == 4 else 16), 0, CLIENT, _gateway(family)),
                    (_near(family), 16 if family == 4 else 64, SERVER, b""),
                    (dice.choice(CLIENTS[family]), 32 if family == 4 else 128, SERVER, b""),
                )
            )
            mtu = dice.choice((0, 0, 0, 576, 1280))
            return RouteChange(
                prefix, length, side, gateway, b"", dice.choice((0, 1)), present=present, mtu=mtu
            )
        address = dice.choice((*VIPS[family], *KNOWN[family], *ODD[family]))
        return AddressChange(dice.choice((CLIENT, SERVER)), address, dice.random() < 0.5)

    def _neighbour(self, family: int) -> NeighbourChange:
        dice = self._dice
        if dice.random() < 0.4:
            address, side, mac = _gateway(family), CLIENT, CLIENT_MAC
        else:
            address, side = dice.choice((*KNOWN[family], ODD[family][0])), SERVER
            mac = server_mac(address)
        drawn = dice.random()
        if drawn < 0.3:
            return NeighbourChange(side, address, b"", failed=dice.random() < 0.5)
        return NeighbourChange(side, address, mac, stale=drawn < 0.5)


def _gateway(family: int) -> bytes:
    return ip_address("10.0.0.254" if family == 4 else "fd00:c::fe").packed


def _near(family: int) -> bytes:
    return ip_address("10.1.0.0" if family == 4 else "fd00:5::").packed


def neighbours(*, known: bool) -> list[NeighbourChange]:
    """All next hops that ever answer, and whether they do."""
    here = [
        NeighbourChange(CLIENT, _gateway(family), CLIENT_MAC if known else b"") for family in (4, 6)
    ]
    return here + [
        NeighbourChange(SERVER, address, server_mac(address) if known else b"")
        for family in (4, 6)
        for address in KNOWN[family]
    ]
