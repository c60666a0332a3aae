"""The networks of a bench: a client, a director, its peer and a real server on five wires.

    outside   client 100, director 2, virtual address 10
    inside    director 1, server 11
    direct    client 100, server 11
    sync      director 2, peer 3; IPv4 in either family
    vrrp      director 2, peer 3; the same

``direct`` passes no director. Over it the server's replies go with direct routing, and by
it the two ends reach each other for comparison. The server holds the virtual address on
``lo``, so that frames arrive there whether or not somebody translates their addresses.
MAC addresses are given, because the yardstick writes what it is told.

It runs inside a private world (`lvsha.drill.seclusion`); nothing of it can reach the host.
"""

import ipaddress
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lvsha.drill.laboratory import COMMAND_TIME_MAX, enter, prepare_private_world
from lvsha.errors import HostError

Family = Literal[4, 6]
Method = Literal["dr", "nat"]

HOSTS: Final = ("client", "director", "server", "peer")
WIRES: Final = {
    "outside": ("client", "director"),
    "inside": ("director", "server"),
    "direct": ("client", "server"),
    "sync": ("director", "peer"),
    "vrrp": ("director", "peer"),
}
_NETWORKS: Final = {
    4: {
        "outside": "192.0.2.0/24",
        "inside": "10.1.0.0/24",
        "direct": "10.3.0.0/24",
        "sync": "10.2.0.0/24",
        "vrrp": "10.4.0.0/24",
    },
    6: {
        "outside": "2001:db8:0:1::/64",
        "inside": "fd00:10:1::/64",
        "direct": "fd00:10:3::/64",
        "sync": "10.2.0.0/24",
        "vrrp": "10.4.0.0/24",
    },
}
_NUMBERS: Final = {
    ("outside", "client"): 100,
    ("outside", "director"): 2,
    ("outside", "virtual"): 10,
    ("inside", "director"): 1,
    ("inside", "server"): 11,
    ("direct", "client"): 100,
    ("direct", "server"): 11,
    ("sync", "director"): 2,
    ("sync", "peer"): 3,
    ("vrrp", "director"): 2,
    ("vrrp", "peer"): 3,
}
_VIRTUAL_ON: Final = {"director": "outside", "server": "lo"}
"""The interface that holds the virtual address, by host."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every address of a bench; a function of the family alone."""

    family: Family

    def address(self, wire: str, host: str) -> str:
        """The address of a host on a wire."""
        return str(ipaddress.ip_network(_NETWORKS[self.family][wire])[_NUMBERS[wire, host]])

    def with_prefix(self, wire: str, host: str) -> str:
        """The address with the prefix length of its wire."""
        length = ipaddress.ip_network(_NETWORKS[self.family][wire]).prefixlen
        return f"{self.address(wire, host)}/{length}"

    @property
    def virtual(self) -> str:
        """What clients connect to."""
        return self.address("outside", "virtual")

    @property
    def host_length(self) -> int:
        """The prefix length of a single address."""
        return 32 if self.family == 4 else 128


def mac(wire: str, host: str) -> bytes:
    """The MAC address of a host on a wire; locally administered (IEEE 802, section 8.2)."""
    return bytes((2, 0, 0, 0, list(WIRES).index(wire), HOSTS.index(host)))


def build(plan: Plan) -> None:
    """Lay out the networks in this private world.

    Raises:
        HostError: the machine refused a step; names it.
    """
    prepare_private_world()
    for host in HOSTS:
        run(["ip", "netns", "add", host])
        settings = {
            "ipv4/conf/all/rp_filter": "0",
            "ipv4/conf/default/rp_filter": "0",
            "ipv6/conf/all/accept_ra": "0",
            "ipv6/conf/default/accept_dad": "0",
            "ipv6/conf/default/dad_transmits": "0",
        }
        if host == "server":
            settings |= {"ipv4/conf/all/arp_ignore": "1", "ipv4/conf/all/arp_announce": "2"}
        if host == "client":
            # Tens of thousands of short connections to one address and port.
            settings |= {"ipv4/ip_local_port_range": "1024 65535", "ipv4/tcp_tw_reuse": "1"}
        script = "".join(f"echo '{v}' > /proc/sys/net/{name}\n" for name, v in settings.items())
        run(enter(host, ["sh", "-e", "-c", script]))
    for wire, (first, second) in WIRES.items():
        run(
            f"ip link add {wire} netns {first} address {_colons(mac(wire, first))} type veth "
            f"peer name {wire} netns {second} address {_colons(mac(wire, second))}".split()
        )
    for host in HOSTS:
        lines = ["link set lo up"]
        for wire, hosts in WIRES.items():
            if host in hosts:
                lines += [
                    f"link set {wire} up",
                    f"address add {plan.with_prefix(wire, host)} dev {wire}",
                ]
        if host in _VIRTUAL_ON:
            device = _VIRTUAL_ON[host]
            lines.append(f"address add {plan.virtual}/{plan.host_length} dev {device}")
        run(["ip", "-n", host, "-batch", "-"], "\n".join(lines) + "\n")


def give_peer_its_places() -> None:
    """Give the peer the interfaces that a director has; what it sends there nobody gets."""
    run(
        [
            "ip",
            "link",
            "add",
            "outside",
            "netns",
            "peer",
            "type",
            "veth",
            "peer",
            "name",
            "inside",
            "netns",
            "peer",
        ]
    )
    run(["ip", "-n", "peer", "-batch", "-"], "link set outside up\nlink set inside up\n")


def restore_virtual(plan: Plan) -> None:
    """Give the director the virtual address that a virtual router has taken away."""
    address = f"{plan.virtual}/{plan.host_length}"
    run(["ip", "-n", "director", "address", "replace", address, "dev", "outside"])


def send_replies(plan: Plan, method: Method) -> None:
    """Let the server's replies go past the director, or through it."""
    client = f"{plan.address('outside', 'client')}/{plan.host_length}"
    wire, gateway = ("direct", "client") if method == "dr" else ("inside", "director")
    run(
        f"ip -n server -{plan.family} route replace {client} "
        f"via {plan.address(wire, gateway)} dev {wire}".split()
    )


def load_rules(text: str) -> None:
    """Load nftables rules in the director's namespace."""
    run(enter("director", ["nft", "-f", "-"]), text)


def read_text(path: Path) -> str:
    """A file's text for a message; says if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)


def run(command: Sequence[str], text: str = "") -> str:
    """Run a command of the set-up; what it wrote.

    Raises:
        HostError: it is missing, failed, or took too long.
    """
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
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise HostError(f"{' '.join(command)!r} failed: {said}")
    return done.stdout


def _colons(address: bytes) -> str:
    return address.hex(":")
