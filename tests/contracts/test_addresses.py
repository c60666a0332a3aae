"""What any `Addresses` must do: one suite, on the kernel and on the one in memory.

The kernel's part runs in a child process in a network namespace of its own, because the
threads of this process must stay where they are.
"""

import ipaddress
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from lvsha.errors import HostError
from lvsha.failover.addresses import (
    Addresses,
    InterfaceAddress,
    NetlinkAddresses,
    remove_leftovers,
)
from lvsha.failover.rtnetlink import AddressSocket
from tests.contracts.child import in_namespace, ip, run

ETHERTYPE_ARP = 0x0806
INTERFACE = "outside"
VIRTUAL = [
    InterfaceAddress(INTERFACE, ipaddress.ip_interface(text))
    for text in ("192.0.2.10/24", "198.51.100.10/24", "2001:db8::10/64", "fe80::10/64")
]
Look = Callable[[], set[str]]


class RememberedAddresses:
    """The kernel as a set."""

    def __init__(self, addresses: list[InterfaceAddress]) -> None:
        self.addresses = addresses
        self.held: set[str] = set()

    async def prepare(self) -> None:
        pass

    async def acquire(self) -> bool:
        self.held = {str(one.address) for one in self.addresses}
        return True

    async def release(self) -> bool:
        self.held = set()
        return True

    async def refresh(self) -> bool:
        return await self.acquire()

    async def announce(self) -> bool:
        return bool(self.held)


async def keep_the_contract(addresses: Addresses, look: Look) -> None:
    """Everything that a speaker relies on."""
    everything = {str(one.address) for one in VIRTUAL}
    assert await addresses.release(), "nothing to release is fine"
    assert not await addresses.announce(), "what is not held is not announced"
    assert await addresses.acquire()
    assert look() == everything
    assert await addresses.acquire(), "to acquire again is fine"
    assert await addresses.refresh()
    assert await addresses.announce()
    assert look() == everything
    assert await addresses.release()
    assert look() == set()
    assert await addresses.refresh(), "to refresh what was lost restores it"
    assert look() == everything
    assert await addresses.release()
    assert look() == set()


def test_addresses_in_memory_keep_the_contract() -> None:
    addresses = RememberedAddresses(VIRTUAL)
    trio.run(keep_the_contract, addresses, lambda: addresses.held)


# What a child does in a namespace of its own.


def look() -> set[str]:
    """The virtual addresses that the kernel has, with their prefix lengths."""
    words = ip(f"-o address show dev {INTERFACE}").split()
    return set(words) & {str(one.address) for one in VIRTUAL}


def make_interface() -> None:
    ip(f"link add {INTERFACE} type veth peer name other")
    ip(f"link set {INTERFACE} up")
    ip("link set other up")
    ip(f"address add 192.0.2.1/24 dev {INTERFACE}")
    # A network that a router advertised: its route has a lifetime already.
    ip(f"address add 2001:db8::1/64 dev {INTERFACE} valid_lft 3600 preferred_lft 3600")


async def contract() -> None:
    await keep_the_contract(NetlinkAddresses(VIRTUAL), look)


async def routes_stay() -> None:
    """Networks of the interface's own keep their routes, another network gets one."""

    def own_routes() -> list[str]:
        lines = (ip("-4 route") + ip("-6 route")).splitlines()
        # The seconds that are left of a route go down by themselves.
        plain = [line.replace("expires 3599sec", "expires 3600sec") for line in lines]
        return sorted(line for line in plain if not line.startswith("198.51.100.0/24"))

    before = own_routes()
    assert any("expires" in line for line in before), before
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.acquire()
    await addresses.refresh()
    assert own_routes() == before
    assert "198.51.100.0/24" in ip("-4 route")
    await addresses.release()
    assert own_routes() == before
    assert "198.51.100.0/24" not in ip("-4 route")


async def finite_lifetime() -> None:
    await NetlinkAddresses(VIRTUAL, lifetime=4).acquire()
    lines = ip(f"-o address show dev {INTERFACE}").splitlines()
    for one in VIRTUAL:
        (line,) = [line for line in lines if f" {one.address} " in line]
        assert "valid_lft 4sec preferred_lft 4sec" in line, line
        assert "tentative" not in line, line


async def restored() -> None:
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.acquire()
    ip(f"address del 192.0.2.10/24 dev {INTERFACE}")
    assert await addresses.refresh()
    assert str(VIRTUAL[0].address) in look()
    assert addresses.counters.snapshot() == {"address_restored": 1}


async def own_address_comes_later() -> None:
    """The route that a virtual address brought becomes the own one's, and stays."""

    def route_of_own_network() -> str:
        return ip("-6 route show 2001:db8::/64") + ip("-4 route show 192.0.2.0/24")

    ip(f"address del 192.0.2.1/24 dev {INTERFACE}")
    ip(f"address del 2001:db8::1/64 dev {INTERFACE}")
    addresses = NetlinkAddresses(VIRTUAL[::-1])
    await addresses.acquire()
    shown = route_of_own_network()
    assert "2001:db8::/64" in shown
    assert "192.0.2.0/24" in shown
    assert "expires" in shown, shown
    ip(f"address add 2001:db8::1/64 dev {INTERFACE} nodad")
    await addresses.refresh()
    assert "expires" not in route_of_own_network(), route_of_own_network()
    await addresses.release()
    shown = route_of_own_network()
    assert "2001:db8::/64" in shown
    assert "expires" not in shown, shown


async def own_address_goes() -> None:
    """A virtual address that came without a route brings it when it is alone."""
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.acquire()
    ip(f"address del 2001:db8::1/64 dev {INTERFACE}")
    await addresses.refresh()
    assert "2001:db8::/64" in ip("-6 route")


async def announced_as_often_as_asked() -> None:
    """Each time a request and a reply, as the other end of the wire sees it."""
    arp = 0x0806
    addresses = NetlinkAddresses(VIRTUAL[:2], announce_repeat=3)
    await addresses.acquire()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(arp)) as heard:
        heard.bind(("other", arp))
        assert await addresses.announce()
        heard.setblocking(False)
        frames = [heard.recv(64) for _ in range(12)]
        with pytest.raises(BlockingIOError):
            heard.recv(64)
    # The sender's address of the ARP packet.
    senders = [frame[28:32] for frame in frames]
    assert [senders.count(one.address.ip.packed) for one in VIRTUAL[:2]] == [6, 6]


async def leftovers() -> None:
    """What an earlier run left goes, permanent or not and with any prefix length."""
    ip(f"address add 192.0.2.10/32 dev {INTERFACE}")
    ip(f"address add 2001:db8::10/64 dev {INTERFACE} nodad")
    assert await remove_leftovers(VIRTUAL) == 2
    assert await remove_leftovers(VIRTUAL) == 0
    assert await remove_leftovers([]) == 0
    shown = ip(f"-o address show dev {INTERFACE}")
    assert "192.0.2.10" not in shown
    assert "192.0.2.1/24" in shown


async def announced_at_once() -> None:
    """Whoever waits for an address hears of it before all others are held as well."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as ear:
        ear.bind(("other", 0))
        ear.settimeout(5)
        addresses = NetlinkAddresses(VIRTUAL[:1])
        await addresses.acquire()
        frames = [ear.recv(100), ear.recv(100)]
        ear.settimeout(0.2)
        await addresses.acquire()
        with pytest.raises(TimeoutError):
            ear.recv(100)
        await addresses.release()
        await NetlinkAddresses(VIRTUAL[:1], announce_at_once=False).acquire()
        with pytest.raises(TimeoutError):
            ear.recv(100)
    assert all(bytes((192, 0, 2, 10)) in frame for frame in frames)


async def prepared() -> None:
    """What was prepared is held, announced, lives as long, and is used once."""
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.prepare()
    await addresses.prepare()
    assert look() == set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as ear:
        ear.bind(("other", 0))
        ear.settimeout(5)
        assert await addresses.acquire()
        frames = [ear.recv(100) for _ in range(4)]
        assert await addresses.announce(), "which has happened"
        ear.setblocking(False)
        with pytest.raises(BlockingIOError):
            ear.recv(100)
        assert await addresses.announce()
        assert len([ear.recv(100) for _ in range(4)]) == 4
    assert [frame[28:32] for frame in frames] == [bytes((192, 0, 2, 10))] * 2 + [
        bytes((198, 51, 100, 10))
    ] * 2
    for line in ip(f"-o address show dev {INTERFACE}").splitlines():
        if any(f" {one.address} " in line for one in VIRTUAL):
            assert "valid_lft 4sec preferred_lft 4sec" in line, line
            assert "tentative" not in line, line
    await routes_stay_with(addresses)
    await addresses.release()
    assert await addresses.acquire()
    assert look() == {str(one.address) for one in VIRTUAL}


async def routes_stay_with(addresses: Addresses) -> None:
    """Networks of the interface's own keep their routes, another network gets one."""
    shown = ip("-4 route").splitlines()
    assert [line for line in shown if line.startswith("192.0.2.0/24")] == [
        f"192.0.2.0/24 dev {INTERFACE} proto kernel scope link src 192.0.2.1 "
    ]
    assert any(line.startswith("198.51.100.0/24") for line in shown)
    assert "expires 4sec" not in ip("-6 route show 2001:db8::/64")
    assert await addresses.refresh()
    assert ip("-4 route").splitlines() == shown


async def prepared_in_vain() -> None:
    """Since it was prepared, the interface has become another."""
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.prepare()
    ip(f"link delete {INTERFACE}")
    make_interface()
    assert await addresses.acquire()
    assert look() == {str(one.address) for one in VIRTUAL}
    assert addresses.counters.snapshot() == {}


async def prepared_beside_an_own_address() -> None:
    """The own address has gone meanwhile, and its route with it."""
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.prepare()
    ip(f"address del 192.0.2.1/24 dev {INTERFACE}")
    ip(f"address del 2001:db8::1/64 dev {INTERFACE}")
    assert await addresses.acquire()
    assert "192.0.2.0/24" not in ip("-4 route")
    assert await addresses.refresh()
    assert "192.0.2.0/24" in ip("-4 route")
    assert "2001:db8::/64" in ip("-6 route")
    assert addresses.counters.snapshot() == {}


async def virtual_mac() -> None:
    """It is in the announcements, and the card takes its frames for as long as they are held."""
    mac = bytes.fromhex("00005e000133")
    addresses = NetlinkAddresses(VIRTUAL, mac=mac)

    def admitted() -> bool:
        return mac.hex(":") in run("bridge", "fdb", "show", "dev", INTERFACE)

    for prepared in (True, False):
        if prepared:
            await addresses.prepare()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as ear:
            ear.bind(("other", 0))
            ear.settimeout(5)
            assert await addresses.acquire()
            frames = [ear.recv(100) for _ in range(4)]
        assert {frame[6:12] for frame in frames} == {frame[22:28] for frame in frames} == {mac}
        assert admitted()
        assert await addresses.refresh()
        await addresses.release()
        assert not admitted()
    ip(f"link delete {INTERFACE}")
    make_interface()
    await addresses.acquire()
    assert admitted()
    ip(f"link delete {INTERFACE}")
    make_interface()
    await addresses.refresh()
    assert admitted()
    assert addresses.counters.snapshot() == {"address_restored": len(VIRTUAL)}


async def a_long_list() -> None:
    """More addresses than one answer of the kernel holds, read as iproute2 reads them."""
    many = [f"10.77.{third}.{last}/24" for third in range(4) for last in range(1, 255)]
    many += [f"2001:db8:77::{last:x}/64" for last in range(1, 300)]
    lines = "\n".join(f"address add {one} dev {INTERFACE}" for one in many)
    await trio.run_process(["ip", "-batch", "-"], stdin=lines.encode())
    with AddressSocket() as netlink:
        present = netlink.present()
    shown = json.loads(run("ip", "-json", "address", "show"))
    expected = {
        link["ifindex"]: {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"]}
        for link in shown
        if link["addr_info"]
    }
    assert {n: {str(one.address) for one in held} for n, held in present.items()} == expected
    addresses = NetlinkAddresses(VIRTUAL)
    assert await addresses.acquire()
    assert await addresses.refresh()
    assert addresses.counters.snapshot() == {}
    assert look() == {str(one.address) for one in VIRTUAL}


async def missing_interface() -> None:
    missing = [InterfaceAddress("nowhere", ipaddress.ip_interface("192.0.2.10/24"))]
    addresses = NetlinkAddresses([*missing, VIRTUAL[0]])
    assert not await addresses.acquire()
    assert look() == {"192.0.2.10/24"}, "one refusal does not end the others"
    assert not await addresses.announce()
    assert await addresses.release()
    assert await remove_leftovers(missing) == 0
    assert addresses.counters.snapshot() == {
        "address_not_acquired": 1,
        "address_not_announced": 1,
    }


async def down_interface() -> None:
    addresses = NetlinkAddresses(VIRTUAL[:1])
    await addresses.acquire()
    ip(f"link set {INTERFACE} down")
    assert not await addresses.announce()
    assert addresses.counters["address_not_announced"] == 1
    ip(f"link set {INTERFACE} up")
    assert await addresses.refresh()
    assert await addresses.announce()


async def no_privilege() -> None:
    """Without CAP_NET_ADMIN: a sentence at the start, a count later on."""
    ip(f"address add 192.0.2.10/24 dev {INTERFACE}")
    setpriv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = await trio.run_process(
        [*setpriv, sys.executable, __file__, "unprivileged"], capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def unprivileged() -> None:
    addresses = NetlinkAddresses(VIRTUAL)
    assert not await addresses.acquire()
    assert addresses.counters["address_not_acquired"] == len(VIRTUAL)
    with pytest.raises(HostError, match="CAP_NET_ADMIN"):
        await remove_leftovers(VIRTUAL)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def no_descriptors_leak() -> None:
    addresses = NetlinkAddresses(VIRTUAL)
    await addresses.acquire()
    before = open_descriptors()
    for _ in range(50):
        await addresses.prepare()
        await addresses.acquire()
        await addresses.refresh()
        await addresses.announce()
    assert open_descriptors() <= before


CHECKS = {
    check.__name__: check
    for check in (
        contract,
        routes_stay,
        finite_lifetime,
        restored,
        own_address_comes_later,
        own_address_goes,
        announced_as_often_as_asked,
        leftovers,
        announced_at_once,
        prepared,
        prepared_in_vain,
        prepared_beside_an_own_address,
        virtual_mac,
        a_long_list,
        missing_interface,
        down_interface,
        no_privilege,
        no_descriptors_leak,
    )
}


@pytest.mark.netns
@pytest.mark.parametrize("check", CHECKS)
def test_kernel(check: str) -> None:
    in_namespace(__file__, check)


if __name__ == "__main__":
    if sys.argv[1] == "unprivileged":
        trio.run(unprivileged)
    else:
        make_interface()
        trio.run(CHECKS[sys.argv[1]])
