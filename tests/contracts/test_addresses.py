"""What any `Addresses` must do: one suite, on the kernel and on the one in memory.

The kernel's part runs in a child process in a network namespace of its own, because the
threads of this process must stay where they are.
"""

import errno
import ipaddress
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from pyroute2.netlink import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl import RTM_NEWADDR

from lvsha.counters import Counters
from lvsha.errors import HostError
from lvsha.failover.addresses import (
    Addresses,
    InterfaceAddress,
    NetlinkAddresses,
    remove_leftovers,
)
from lvsha.failover.claim import Claim
from lvsha.failover.rtnetlink import ANSWER_SECONDS_MAX, AddressSocket, Held, Placed
from tests.contracts.child import in_namespace, ip, run

ETHERTYPE_ARP = 0x0806
INTERFACE = "outside"
VIRTUAL = [
    InterfaceAddress(INTERFACE, ipaddress.ip_interface(text))
    for text in ("192.0.2.10/24", "198.51.100.10/24", "2001:db8::10/64", "fe80::10/64")
]
Look = Callable[[], set[str]]
Hearing = Callable[..., tuple[AddressSocket, "SaidSocket"]]


class RememberedAddresses:
    """The kernel as a set."""

    def __init__(self, addresses: list[InterfaceAddress]) -> None:
        self.addresses = addresses
        self.counters = Counters()
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


# What a kernel says that cannot be made to say it.


class SaidSocket:
    """A netlink socket in whose place a test says what comes next."""

    def __init__(self, *datagrams: bytes) -> None:
        self._datagrams = list(datagrams)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(bytes(data))

    def recv(self, _size: int) -> bytes:
        return self._datagrams.pop(0)

    def close(self) -> None:
        pass


def said(kind: int, sequence: int, content: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(content), kind, flags, sequence, 0) + content


def an_address(sequence: int, last: int, flags: int = 0) -> bytes:
    """The message that interface 7 has 192.0.2.``last``/24."""
    local = struct.pack("=HH4s", 8, 2, bytes((192, 0, 2, last)))
    content = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 7) + local
    return said(RTM_NEWADDR, sequence, content, flags)


def done(sequence: int) -> bytes:
    return said(NLMSG_DONE, sequence, bytes(4))


def refused(sequence: int, error: int) -> bytes:
    return said(NLMSG_ERROR, sequence, struct.pack("=i", -error) + bytes(16))


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> Hearing:
    """Makes a socket that hears what it is told."""

    def hear(*datagrams: bytes) -> tuple[AddressSocket, SaidSocket]:
        netlink, heard = AddressSocket(), SaidSocket(*datagrams)
        netlink.close()
        monkeypatch.setattr(netlink, "_socket", heard)
        return netlink, heard

    return hear


def held(netlink: AddressSocket) -> list[str]:
    return [str(one.address) for one in netlink.present()[7]]


def test_a_list_that_changed_while_it_was_read_is_read_again(hearing: Hearing) -> None:
    netlink, heard = hearing(
        an_address(1, 1, NLM_F_DUMP_INTR) + an_address(1, 2),
        done(1),
        an_address(2, 3) + an_address(2, 4),
        done(2),
    )
    assert held(netlink) == ["192.0.2.3/24", "192.0.2.4/24"]
    assert len(heard.sent) == 2


def test_a_list_that_changes_all_the_time_is_read_three_times(hearing: Hearing) -> None:
    netlink, heard = hearing(*(an_address(n, n, NLM_F_DUMP_INTR) + done(n) for n in range(1, 10)))
    assert held(netlink) == ["192.0.2.3/24"]
    assert len(heard.sent) == 3


def test_answers_to_what_was_asked_before_are_let_pass(hearing: Hearing) -> None:
    late = an_address(0, 9) + refused(0, errno.EPERM) + done(0)
    netlink, _ = hearing(late + an_address(1, 1), late + done(1), late, refused(2, errno.EEXIST))
    assert held(netlink) == ["192.0.2.1/24"]
    assert netlink.carry_out([bytes(16)]) == [errno.EEXIST]


def test_a_list_that_the_kernel_refuses_is_an_error_and_not_empty(hearing: Hearing) -> None:
    netlink, _ = hearing(an_address(1, 1) + refused(1, errno.ENOBUFS))
    with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)) as caught:
        netlink.present()
    assert caught.value.errno == errno.ENOBUFS


def test_answers_belong_to_requests_by_their_numbers(hearing: Hearing) -> None:
    netlink, heard = hearing(refused(2, errno.EEXIST), refused(3, 0) + refused(1, errno.EPERM))
    assert netlink.carry_out([bytes(16)] * 3) == [errno.EPERM, errno.EEXIST, 0]
    assert len(heard.sent) == 1


def test_what_has_an_odd_length_is_followed_by_what_begins_at_a_multiple_of_four(
    hearing: Hearing,
) -> None:
    label = struct.pack("=HH5s", 9, 3, b"eth0")
    flags = struct.pack("=HHI", 8, 8, 0x280)
    first = an_address(1, 1)[16:] + label + bytes(3) + flags
    second = an_address(1, 2)[16:] + label
    odd = said(RTM_NEWADDR, 1, first) + said(RTM_NEWADDR, 1, second) + bytes(3)
    netlink, _ = hearing(odd + an_address(1, 3), done(1))
    seen = [(one.address.ip.packed[3], one.flags) for one in netlink.present()[7]]
    assert seen == [(1, 0x280), (2, 0), (3, 0)]


class SilentSocket(AddressSocket):
    """One that gets no answer."""

    made: ClassVar[list["SilentSocket"]] = []

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)

    def present(self) -> dict[int, list[Held]]:
        raise BlockingIOError(errno.EAGAIN, "silent")

    def carry_out(self, requests: Sequence[bytes]) -> list[int]:
        raise BlockingIOError(errno.EAGAIN, "silent")


def test_a_claim_that_gets_no_answer_is_not_believed() -> None:
    with SilentSocket() as netlink:
        assert not Claim([Placed(7, VIRTUAL[0].address, 0, 4)], ()).make(netlink)


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SilentSocket, "made", [])
    monkeypatch.setattr("lvsha.failover.addresses.AddressSocket", SilentSocket)
    addresses = NetlinkAddresses(VIRTUAL)
    for number in (1, 2):
        assert not trio.run(addresses.acquire)
        assert len(SilentSocket.made) == number
        assert SilentSocket.made[-1]._socket.fileno() == -1


def test_an_interface_without_an_ethernet_address_is_no_obstacle_to_being_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(interface: str, address: bytes, mac: bytes | None) -> list[bytes]:
        raise HostError(f"interface {interface} is not Ethernet")

    monkeypatch.setattr("lvsha.failover.addresses.frames", refuse)
    addresses = NetlinkAddresses([InterfaceAddress("lo", VIRTUAL[0].address)])
    with AddressSocket() as netlink:
        monkeypatch.setattr("lvsha.failover.addresses.AddressSocket", lambda: netlink)
        trio.run(addresses.prepare)
    assert addresses.counters.snapshot() == {}


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


async def prepared_in_vain_for_one_of_two() -> None:
    """Only one of the interfaces has become another."""
    second = "second"
    ip(f"link add {second} type veth")
    there = InterfaceAddress(second, ipaddress.ip_interface("203.0.113.10/24"))
    addresses = NetlinkAddresses([VIRTUAL[0], there])
    await addresses.prepare()
    ip(f"link delete {second}")
    ip(f"link add {second} type veth")
    assert await addresses.acquire()
    assert look() == {str(VIRTUAL[0].address)}
    assert "203.0.113.10/24" in ip(f"address show dev {second}")


async def prepared_with_an_interface_missing() -> None:
    """What cannot be prepared is refused all the same, and what was prepared before is not used."""
    missing = InterfaceAddress("nowhere", VIRTUAL[1].address)
    addresses = NetlinkAddresses([VIRTUAL[0], missing], announce_at_once=False)
    await addresses.prepare()
    assert addresses.counters.snapshot() == {}
    assert not await addresses.acquire()
    assert look() == {str(VIRTUAL[0].address)}
    addresses = NetlinkAddresses(VIRTUAL[:1])
    await addresses.prepare()
    ip(f"address del 192.0.2.1/24 dev {INTERFACE}")
    rename(INTERFACE, "elsewhere")
    await addresses.prepare()
    rename("elsewhere", INTERFACE)
    assert await addresses.acquire()
    assert "192.0.2.0/24" in ip("-4 route")


def rename(interface: str, name: str) -> None:
    ip(f"link set {interface} down")
    ip(f"link set {interface} name {name}")
    ip(f"link set {name} up")


async def prepared_is_used_once() -> None:
    """The next time what the interface has by then decides, and what is held is announced."""
    addresses = NetlinkAddresses(VIRTUAL[:1], announce_repeat=2)
    await addresses.prepare()
    with listening() as ear:
        assert await addresses.acquire()
        assert len([ear.recv(100) for _ in range(4)]) == 4
    await addresses.release()
    ip(f"address del 192.0.2.1/24 dev {INTERFACE}")
    assert await addresses.acquire()
    assert "192.0.2.0/24" in ip("-4 route")
    with listening() as ear:
        assert await addresses.announce()
        assert bytes((192, 0, 2, 10)) in ear.recv(100)


async def prepared_and_lost() -> None:
    """What someone removes before it was announced again is announced when it is restored."""
    addresses = NetlinkAddresses(VIRTUAL[:1])
    await addresses.prepare()
    assert await addresses.acquire()
    ip(f"address del 192.0.2.10/24 dev {INTERFACE}")
    with listening() as ear:
        assert await addresses.refresh()
        assert bytes((192, 0, 2, 10)) in ear.recv(100)


async def prepared_and_not_announced() -> None:
    """What could not be sent with the claim, or must not be, is sent when it is asked for."""
    addresses = NetlinkAddresses(VIRTUAL[:1])
    await addresses.prepare()
    ip(f"link set {INTERFACE} down")
    assert await addresses.acquire()
    assert not await addresses.announce()
    assert addresses.counters["address_not_announced"] == 1
    ip(f"link set {INTERFACE} up")
    await addresses.release()
    later = NetlinkAddresses(VIRTUAL[:1], announce_at_once=False, announce_repeat=2)
    await later.prepare()
    with listening() as ear:
        assert await later.acquire()
        ear.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ear.recv(100)
        assert await later.announce()
        assert len([ear.recv(100) for _ in range(4)]) == 4


@contextmanager
def listening() -> Iterator[socket.socket]:
    """The other end of the wire, where ARP is heard from now on."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as ear:
        ear.bind(("other", 0))
        ear.settimeout(5)
        yield ear


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
    many += ["10.78.0.1 peer 10.78.0.2/32", "2001:db8:78::1 peer 2001:db8:78::2/128"]
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


async def a_silent_kernel() -> None:
    """What gets no answer is not waited for for ever."""
    began = time.monotonic()
    no_request = bytes(16)
    with AddressSocket() as netlink, pytest.raises(BlockingIOError):
        netlink.carry_out([no_request])
    assert ANSWER_SECONDS_MAX - 0.1 <= time.monotonic() - began < ANSWER_SECONDS_MAX + 5


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
        prepared_in_vain_for_one_of_two,
        prepared_with_an_interface_missing,
        prepared_is_used_once,
        prepared_and_lost,
        prepared_and_not_announced,
        prepared_beside_an_own_address,
        virtual_mac,
        a_long_list,
        a_silent_kernel,
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
