"""Build the networks of a drill: namespaces, wires, addresses, the pair file.

This lays cables; it sends no traffic and starts no director. It runs inside a
private network and mount namespace, so nothing of it can reach the host and all of
it vanishes with the last process in there.

    outside   client, east, west          the clients' side
    inside    east, west, real-1..real-3  (and a leg of the client, unless NAT)
    sync      east, west

Each network is a bridge in the private root namespace, each cable a veth pair whose
far end has the network's name in its namespace and whose near end stands in the
bridge. With NAT the real servers' gateway is a virtual address on the inside. With
direct routing and tunnels they hold the virtual address on ``lo`` without answering
for it, and reach the client by its leg on the inside, past the directors.

Where the directors back each other up there are two virtual routers, each with a home of
its own. The real servers then have two addresses with NAT, and answer from each by the
gateway of its virtual router.
"""

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lvsha.drill.options import Family, Method
from lvsha.drill.recording import ROUTER, SyncFrames
from lvsha.errors import HostError

DIRECTORS: Final = ("east", "west")
REAL_SERVERS: Final = ("real-1", "real-2", "real-3")
HOME_PRIORITY: Final = 150
OTHER_PRIORITY: Final = 100
TCP_PORT: Final = 8000
UDP_PORT: Final = 8001
MORE_PORT: Final = 8002
"""Of a service that a changed pair file has."""

LOSS_TABLE: Final = "drill"
PARTITION_TABLE: Final = "drill_partition"
PARTITION_RULES: Final = f"""\
table netdev {PARTITION_TABLE} {{
    chain outside {{
        type filter hook ingress device "outside" priority 0; policy accept;
        meta protocol ip ip protocol vrrp drop
        meta protocol ip6 ip6 nexthdr vrrp drop
    }}
}}
"""
"""For nft: what a switch that filters the group of VRRP does."""
"""Of nftables; the directors' own has another name."""

COMMAND_TIME_MAX: Final = 20.0
"""No ip or nsenter command of the set-up takes longer on a machine that works."""

TUNNEL_MSS: Final[Mapping[Family, int]] = {4: 1440, 6: 1400}
"""What a 1,500-byte wire leaves to TCP beneath one more IP header (RFC 2003, RFC 2473)."""

_NUMBERS: Final[Mapping[str, str]] = {
    "east": "2",
    "west": "3",
    "real-1": "11",
    "real-2": "12",
    "real-3": "13",
    "client": "100",
}
"""The last part of every host's address, as it is read in either family."""


@dataclass(frozen=True, slots=True)
class Router:
    """A virtual router of the drill.

    Attributes:
        name, vrid: as in the pair file.
        home: the director with the higher priority.
        virtual, gateway: the last part of its addresses outside and inside.
        servers: of the real servers' addresses that its services forward to with NAT.
    """

    name: str
    vrid: int
    home: str
    virtual: str
    gateway: str
    servers: Mapping[str, str]

    def priority(self, director: str) -> int:
        """What a director has for it."""
        return HOME_PRIORITY if director == self.home else OTHER_PRIORITY


ROUTERS: Final = (
    Router(ROUTER, 51, "east", "10", "1", {name: _NUMBERS[name] for name in REAL_SERVERS}),
    Router("mail", 52, "west", "20", "4", {"real-1": "21", "real-2": "22", "real-3": "23"}),
)
_SECOND_TABLE: Final = 100
"""The routing table of what a real server answers from its second address."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every address of one drill, a function of the family and the method alone.

    ``mutual``: whether the directors back each other up.
    """

    method: Method
    family: Family
    mutual: bool = False

    @property
    def routers(self) -> Sequence[Router]:
        """The virtual routers."""
        return ROUTERS if self.mutual else ROUTERS[:1]

    @property
    def networks(self) -> Mapping[str, ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The network of each wire; documentation and private ranges only."""
        if self.family == 4:
            return {
                "outside": ipaddress.ip_network("192.0.2.0/24"),
                "inside": ipaddress.ip_network("10.1.0.0/24"),
                "sync": ipaddress.ip_network("10.2.0.0/24"),
            }
        return {
            "outside": ipaddress.ip_network("2001:db8:0:1::/64"),
            "inside": ipaddress.ip_network("fd00:10:1::/64"),
            "sync": ipaddress.ip_network("fd00:10:2::/64"),
        }

    @property
    def attachments(self) -> Mapping[str, Sequence[str]]:
        """Which namespaces hang on which wire."""
        leg = () if self.method == "nat" else ("client",)
        return {
            "outside": ("client", *DIRECTORS),
            "inside": (*DIRECTORS, *REAL_SERVERS, *leg),
            "sync": DIRECTORS,
        }

    def address(self, wire: str, host: str) -> str:
        """The address of a host on a wire, without prefix length."""
        return self._address(wire, _NUMBERS[host])

    def _address(self, wire: str, number: str) -> str:
        return str(self.networks[wire][int(number, 10 if self.family == 4 else 16)])

    def with_prefix(self, wire: str, address: str) -> str:
        """The address with the prefix length of its wire."""
        return f"{address}/{self.networks[wire].prefixlen}"

    def virtual_of(self, router: Router) -> str:
        """The virtual address of a router that clients connect to."""
        return self._address("outside", router.virtual)

    def gateway_of(self, router: Router) -> str:
        """Its virtual address that is the real servers' gateway with NAT."""
        return self._address("inside", router.gateway)

    @property
    def virtuals(self) -> Sequence[str]:
        """All that clients connect to."""
        return [self.virtual_of(router) for router in self.routers]

    @property
    def virtual(self) -> str:
        """The first of them."""
        return self.virtual_of(self.routers[0])

    @property
    def gateway(self) -> str:
        """The first router's gateway."""
        return self.gateway_of(self.routers[0])

    def real_address(self, router: Router, name: str) -> str:
        """Where a router's services forward to at a real server."""
        number = router.servers[name] if self.method == "nat" else _NUMBERS[name]
        return self._address("inside", number)

    def server_addresses(self, name: str) -> Sequence[str]:
        """The addresses that a real server's program is bound to.

        With direct routing and tunnels those are the virtual ones: a UDP server that
        is bound to nothing in particular would answer from the wrong one.
        """
        if self.method == "nat":
            return [self.real_address(router, name) for router in self.routers]
        return self.virtuals

    def draining(self) -> Iterable[Sequence[str]]:
        """What ipvsadm is told so that the first real server gets no new connections."""
        method = {"nat": "-m", "dr": "-g", "tun": "-i"}[self.method]
        for router in self.routers:
            virtual, server = self.virtual_of(router), self.real_address(router, REAL_SERVERS[0])
            for protocol, port in (("-t", TCP_PORT), ("-u", UDP_PORT)):
                ends = [_end(virtual, port), "-r", _end(server, port)]
                yield ["-e", protocol, *ends, method, "-w", "0"]

    def pair_file(
        self, advert_interval: float, *, virtual_mac: bool = False, changed: bool = False
    ) -> str:
        """The text of the pair file that both directors run from.

        Args:
            advert_interval: of VRRP, in seconds.
            virtual_mac: whether the virtual router has a MAC address of its own.
            changed: as an operator changes it while they run: another scheduler, a real
                server less, and a service more.
        """
        lines = ["# The pair of this drill: both directors were started from this file.", ""]
        for router in self.routers:
            lines += self._router_lines(router, advert_interval, virtual_mac=virtual_mac)
        for router in self.routers:
            lines += self._service_lines(router, changed=changed)
        group = "224.0.0.81" if self.family == 4 else "ff02::81"
        lines += ["[sync]", 'interface = "sync"', f'group = "{group}"', ""]
        for name in DIRECTORS:
            lines += [
                f"[nodes.{name}]",
                self._priority_line(name),
                'interfaces = { outside = "outside", inside = "inside", sync = "sync" }',
                "",
            ]
        return "\n".join(lines)

    def _router_lines(
        self, router: Router, advert_interval: float, *, virtual_mac: bool
    ) -> Iterable[str]:
        addresses = [self.with_prefix("outside", self.virtual_of(router))]
        if self.method == "nat":
            addresses.append(f"{self.with_prefix('inside', self.gateway_of(router))}@inside")
        written = ", ".join(f'"{address}"' for address in addresses)
        yield "[[virtual_routers]]"
        yield f'name = "{router.name}"'
        yield f"vrid = {router.vrid}"
        yield 'interface = "outside"'
        yield f"addresses = [{written}]"
        yield f"advert_interval = {advert_interval}"
        if virtual_mac:
            yield "virtual_mac = true"
        if self.mutual:
            # Each goes home when it is handed over.
            yield "preempt = false"
        yield ""

    def _service_lines(self, router: Router, *, changed: bool) -> Iterable[str]:
        of_router = "" if router is ROUTERS[0] else f"-{router.name}"
        services = [("echo", "tcp", TCP_PORT), ("probe", "udp", UDP_PORT)]
        if changed:
            services.append(("more", "tcp", MORE_PORT))
        for name, protocol, port in services:
            yield "[[services]]"
            yield f'name = "{name}{of_router}"'
            yield f'address = "{self.virtual_of(router)}"'
            yield f"port = {port}"
            yield f'protocol = "{protocol}"'
            yield f'scheduler = "{"wlc" if changed else "rr"}"'
            yield f'method = "{self.method}"'
            yield "servers = ["
            for server in REAL_SERVERS[1:] if changed else REAL_SERVERS:
                yield f'    {{ address = "{self.real_address(router, server)}" }},'
            yield "]"
            yield ""

    def _priority_line(self, node: str) -> str:
        priorities = {router.name: router.priority(node) for router in self.routers}
        if len(priorities) == 1:
            return f"priority = {priorities[ROUTER]}"
        written = ", ".join(f"{name} = {priority}" for name, priority in priorities.items())
        return f"priorities = {{ {written} }}"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def cable(wire: str, host: str) -> str:
    """The name of a cable's near end, in the private root namespace."""
    return f"{wire[:3]}-{host}"


def enter(namespace: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command inside a namespace of the drill."""
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *command]


def prepare_private_world() -> None:
    """Give `ip netns` an empty /run of its own; called once, before `build`."""
    _run(["mount", "-t", "tmpfs", "lvsha-drill", "/run"])
    Path("/run/netns").mkdir()
    Path("/run/lock").mkdir()


def build(plan: Plan) -> None:
    """Lay out everything that `plan` describes.

    Raises:
        HostError: the machine refused a step; names it.
    """
    hosts = ("client", *DIRECTORS, *REAL_SERVERS)
    for host in hosts:
        _run(["ip", "netns", "add", host])
    _write_settings(None, {"ipv6/conf/default/disable_ipv6": "1"})
    for host in hosts:
        _write_settings(host, _settings(plan, host))
    _batch(None, _wiring(plan))
    for host in hosts:
        _batch(host, _addressing(plan, host), plan.family)


def pull_cable(wire: str, host: str) -> None:
    """Take the carrier away from a host's interface on a wire."""
    _batch(None, [f"link set {cable(wire, host)} down"])


def plug_cable(wire: str, host: str) -> None:
    """Give the carrier back."""
    _batch(None, [f"link set {cable(wire, host)} up"])


def pull_all_cables(plan: Plan, host: str) -> None:
    """Take the carrier away from all of a host's interfaces at once."""
    _batch(None, [f"link set {cable(wire, host)} down" for wire in _wires_of(plan, host)])


def plug_all_cables(plan: Plan, host: str) -> None:
    """Give it back."""
    _batch(None, [f"link set {cable(wire, host)} up" for wire in _wires_of(plan, host)])


def forget_addresses(plan: Plan, host: str) -> None:
    """Take away the virtual addresses of a host whose kernel has been started anew."""
    for router in plan.routers:
        held = (("outside", plan.virtual_of(router)), ("inside", plan.gateway_of(router)))
        for wire, address in held:
            where = enter(host, ["ip", "-o", "address", "show", "dev", wire, "to", address])
            if _run(where).strip():
                _batch(host, [f"address del {plan.with_prefix(wire, address)} dev {wire}"])


def _wires_of(plan: Plan, host: str) -> list[str]:
    return [wire for wire, hosts in plan.attachments.items() if host in hosts]


def sync_loss_rules(percent: int) -> str:
    """The text for nft that has a director not get so many of 100 frames from the others."""
    return "\n".join(
        (
            f"table netdev {LOSS_TABLE} {{",
            "counter dropped { }",
            "counter passed { }",
            "chain sync {",
            'type filter hook ingress device "sync" priority 0; policy accept;',
            f"numgen random mod 100 < {percent} counter name dropped drop",
            "counter name passed",
            "}",
            "}",
            "",
        )
    )


def lose_sync_frames(percent: int) -> None:
    """Drop so many of 100 frames on the sync network, each way, at random.

    Many kernels have no netem device; rules at the ingress of the directors do the same.
    """
    for name in DIRECTORS:
        _run(enter(name, ["nft", "-f", "-"]), sync_loss_rules(percent))


def stop_advertisements() -> None:
    """Let no director hear the other's VRRP messages; all else passes, either way."""
    for name in DIRECTORS:
        _run(enter(name, ["nft", "-f", "-"]), PARTITION_RULES)


def pass_advertisements() -> None:
    """Undo `stop_advertisements`."""
    for name in DIRECTORS:
        _run(enter(name, ["nft", "delete", "table", "netdev", PARTITION_TABLE]))


def count_sync_frames() -> SyncFrames:
    """How many frames came on the sync network since `lose_sync_frames`, and were dropped."""
    passed = dropped = 0
    for name in DIRECTORS:
        counters = parse_counters(_run(enter(name, ["nft", "-j", "list", "counters"])))
        passed += counters.get("passed", 0)
        dropped += counters.get("dropped", 0)
    return SyncFrames(passed + dropped, dropped)


def parse_counters(text: str) -> dict[str, int]:
    """What ``nft -j list counters`` shows of the drill's own table: packets by name."""
    listed = [entry["counter"] for entry in json.loads(text)["nftables"] if "counter" in entry]
    return {str(c["name"]): int(c["packets"]) for c in listed if c["table"] == LOSS_TABLE}


def tentative_addresses(host: str) -> bool:
    """Whether duplicate address detection still runs in a namespace (RFC 4862, 5.4)."""
    return bool(_run(["ip", "-n", host, "-6", "-o", "address", "show", "tentative"]).strip())


def _settings(plan: Plan, host: str) -> dict[str, str]:
    settings = {
        "ipv6/conf/all/accept_ra": "0",
        "ipv6/conf/default/accept_ra": "0",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
    }
    if host not in DIRECTORS:
        # The directors keep the default: they must cope with detection as it is.
        settings["ipv6/conf/default/accept_dad"] = "0"
        settings["ipv6/conf/default/dad_transmits"] = "0"
    if host in REAL_SERVERS and plan.method != "nat":
        # The usual settings of a real server that holds the virtual address.
        settings["ipv4/conf/all/arp_ignore"] = "1"
        settings["ipv4/conf/all/arp_announce"] = "2"
    if host == "client":
        # Thousands of short connections from one address to one port.
        settings["ipv4/ip_local_port_range"] = "10000 65000"
    return settings


def _wiring(plan: Plan) -> Iterable[str]:
    for wire, hosts in plan.attachments.items():
        # Snooping without a querier would forget the groups of VRRP and of the sync.
        yield f"link add {wire} type bridge stp_state 0 mcast_snooping 0"
        yield f"link set {wire} up"
        for host in hosts:
            near = cable(wire, host)
            yield f"link add {near} type veth peer name {wire} netns {host}"
            yield f"link set {near} master {wire}"
            yield f"link set {near} up"


def _addressing(plan: Plan, host: str) -> Iterable[str]:
    nodad = " nodad" if plan.family == 6 else ""
    yield "link set lo up"
    for wire, hosts in plan.attachments.items():
        if host in hosts:
            address = plan.with_prefix(wire, plan.address(wire, host))
            yield f"link set {wire} up"
            yield f"address add {address} dev {wire}{nodad}"
    if host not in REAL_SERVERS:
        return
    if plan.method == "nat":
        yield f"route add default via {plan.gateway} dev inside"
        for router in plan.routers[1:]:
            address = plan.real_address(router, host)
            yield f"address add {plan.with_prefix('inside', address)} dev inside{nodad}"
            yield f"rule add from {address} lookup {_SECOND_TABLE}"
            way = f"via {plan.gateway_of(router)} dev inside table {_SECOND_TABLE}"
            yield f"route add default {way}"
        return
    full = 32 if plan.family == 4 else 128
    for virtual in plan.virtuals:
        yield f"address add {virtual}/{full} dev lo{nodad}"
    mss = f" advmss {TUNNEL_MSS[plan.family]}" if plan.method == "tun" else ""
    client = plan.address("outside", "client")
    yield f"route add {client}/{full} via {plan.address('inside', 'client')} dev inside{mss}"


def _write_settings(namespace: str | None, settings: Mapping[str, str]) -> None:
    """Write kernel settings; one shell for all, as each namespace is entered once."""
    script = "".join(f"echo '{value}' > /proc/sys/net/{name}\n" for name, value in settings.items())
    command = ["sh", "-e", "-c", script]
    _run(command if namespace is None else enter(namespace, command))


def _batch(namespace: str | None, lines: Iterable[str], family: Family = 4) -> None:
    where = [] if namespace is None else ["-n", namespace]
    _run(["ip", f"-{family}", *where, "-batch", "-"], "\n".join(lines) + "\n")


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIME_MAX,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError(f"the program {command[0]!r} is needed and was not found") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{' '.join(command)!r} did not end in {COMMAND_TIME_MAX:.0f} s") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise HostError(f"{' '.join(command)!r} failed: {said}")
    return done.stdout
