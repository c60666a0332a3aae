"""Draw the pair file of a simulated pair from a seed: two nodes, mutual backup, three nodes."""

import random
from typing import Final

from lvsha.config import Pair, parse_pair

SERVERS: Final = 3


def draw_pair(dice: random.Random) -> Pair:
    """A pair file with a NAT and a direct routing service."""
    kind = dice.choice(["two", "two", "mutual", "three"])
    interval = dice.choice([0.1, 0.1, 0.2, 0.5])
    preempt = "true" if dice.random() < 0.8 else "false"
    names = ["east", "west", "north"][: 3 if kind == "three" else 2]
    routers = [("web", 51, '"192.0.2.10/24", "10.1.0.254/24@inside"')]
    if kind == "mutual":
        routers.append(("mail", 52, '"192.0.2.20/24", "10.1.0.253/24@inside"'))
    lines = []
    for name, vrid, addresses in routers:
        lines.append(f"""
            [[virtual_routers]]
            name = "{name}"
            vrid = {vrid}
            interface = "outside"
            addresses = [{addresses}]
            routes = ["10.9.{vrid}.0/24 dev inside"]
            rules = ["from 10.9.{vrid}.0/24 table {vrid}"]
            advert_interval = {interval}
            preempt = {preempt}
            checksum = "{dice.choice(["rfc9568", "keepalived"])}"
        """)
    direct = "192.0.2.20" if kind == "mutual" else "192.0.2.10"
    for name, address, port, method, server_port in (
        ("http", "192.0.2.10", 80, "nat", 8080),
        ("https", direct, 443, "dr", 443),
    ):
        servers = ", ".join(
            f'{{ address = "10.1.0.{10 + number}", port = {server_port}, '
            f"weight = {dice.choice([1, 1, 2])} }}"
            for number in range(1, SERVERS + 1)
        )
        lines.append(f"""
            [[services]]
            name = "{name}"
            address = "{address}"
            port = {port}
            method = "{method}"
            scheduler = "{dice.choice(["rr", "wrr", "lc", "wlc", "sh"])}"
            servers = [{servers}]
        """)
    lines.append(f"""
        [sync]
        heartbeat_interval = {dice.choice([0.1, 0.2, 0.5])}
        datagram_max = {dice.choice([500, 1400])}
        [timeouts]
        tcp = {dice.choice([900, 900, 20])}
        tcp_fin = {dice.choice([120, 4])}
    """)
    priorities = sorted(dice.sample(range(1, 255), k=len(names)), reverse=True)
    for place, name in enumerate(names):
        lines.append(f"""
            [nodes.{name}]
            priorities = {{ {
            ", ".join(
                f"{router} = {priorities[place if router == 'web' else -1 - place]}"
                for router, _, _ in routers
            )
        } }}
            interfaces = {{ outside = "eth0", inside = "eth1", sync = "eth2" }}
        """)
    return parse_pair("\n".join(lines), "pair.toml")
