"""Two couriers in two network namespaces, joined by a veth pair, with real datagrams."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from lvsha.model import (
    ConnectionChanged,
    ConnectionEnded,
    ConnectionRecord,
    ForwardMethod,
    parse_address,
)
from lvsha.sync.courier import Courier
from lvsha.sync.replica import Replica
from lvsha.sync.transport import MulticastTransport
from tests.replicas import Table, peers

pytestmark = pytest.mark.netns

EAST, WEST = f"lvs-east-{os.getpid()}", f"lvs-west-{os.getpid()}"
DEVICE = "sync0"
CONNECTIONS = 20_000
PATIENCE = 30.0


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def wire() -> None:
    """Lay the cable between the two namespaces."""
    run("ip", "-n", EAST, "link", "add", DEVICE, "type", "veth", "peer", DEVICE, "netns", WEST)
    for name, address in ((EAST, 1), (WEST, 2)):
        run("ip", "-n", name, "address", "add", f"192.168.81.{address}/30", "dev", DEVICE)
        # Without this a link-local address may not be used for two seconds.
        run("ip", "-n", name, "address", "add", f"fe80::{address}/64", "dev", DEVICE, "nodad")
        run("ip", "-n", name, "link", "set", DEVICE, "up")


@pytest.fixture
def namespaces() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    if shutil.which("ip") is None:
        pytest.skip("making network namespaces needs the ip command (iproute2)")
    created = []
    try:
        for name in (EAST, WEST):
            try:
                run("ip", "netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
            created.append(name)
        wire()
        yield
    finally:
        for name in created:
            run("ip", "netns", "delete", name)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread is in the namespace; sockets that it opens stay there."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with (
        Path("/proc/thread-self/ns/net").open("rb") as home,
        Path(f"/run/netns/{name}").open("rb") as away,
    ):
        assert setns(away.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert setns(home.fileno(), 0) == 0, os.strerror(ctypes.get_errno())


def connection(number: int) -> ConnectionRecord:
    return ConnectionRecord.between(
        protocol=6,
        client=(0x0A000000 + number).to_bytes(4),
        client_port=1024 + number % 60_000,
        virtual=bytes((192, 0, 2, 1)),
        virtual_port=80,
        server=bytes((10, 1, 0, number % 250)),
        server_port=8080,
        method=ForwardMethod.NAT,
        state=1,
        flags=0x20,
        timeout=900.0,
    )


class Refreshing(MulticastTransport):
    """A transport that finds its interface in its own namespace when it looks again.

    Both couriers run in one thread, which is in neither namespace.
    """

    def __init__(self, namespace: str, group: bytes) -> None:
        self._namespace = namespace
        with inside(namespace):
            super().__init__(DEVICE, group, 8848)

    def refresh(self) -> None:
        with inside(self._namespace):
            super().refresh()


@dataclass
class Site:
    table: Table
    transport: Refreshing
    replica: Replica
    courier: Courier


def make_site(name: str, group: str, connections: int) -> Site:
    table = Table(map(connection, range(connections)))
    transport = Refreshing(name, parse_address(group))
    replica = Replica(
        tally=table.tally,
        node=name,
        epoch=int.from_bytes(name.encode()[-8:]),
        configuration_digest=bytes(16),
        digests={},
        heartbeat_interval=0.2,
        datagram_max=1400,
    )
    return Site(table, transport, replica, Courier([replica], transport, table))


@asynccontextmanager
async def pair(group: str) -> AsyncIterator[tuple[Site, Site]]:
    """East leads with many connections; west has joined just now."""
    east, west = make_site(EAST, group, CONNECTIONS), make_site(WEST, group, 0)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(east.courier.run)
            east.courier.lead(1)
            await nursery.start(west.courier.run)
            yield east, west
            nursery.cancel_scope.cancel()
    finally:
        east.transport.close()
        west.transport.close()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - no task here knows when it comes true
            await trio.sleep(0.01)


def churn(east: Site, first: int, count: int) -> None:
    """New connections, and the end of some old ones."""
    for number in range(first, first + count):
        record, gone = connection(CONNECTIONS + number), connection(number)
        east.table.apply([record])
        east.table.drop(gone.key)
        east.courier.tell(1, [ConnectionChanged(record), ConnectionEnded(gone.key)])


@pytest.mark.parametrize("group", ["224.0.0.81", "ff02::81"])
@pytest.mark.usefixtures("namespaces")
def test_a_joining_peer_gets_all_connections_while_others_come_and_go(group: str) -> None:
    async def main() -> None:
        async with pair(group) as (east, west):
            for step in range(20):
                churn(east, 10 * step, 10)
                await trio.sleep(0.005)
            await until(lambda: west.courier.complete(1))
            # In parts, each of which came once.
            received = west.replica.counters["snapshots_received"]
            assert received == east.replica.counters["snapshots_sent"]
            assert west.replica.counters["datagrams_lost"] == 0
            churn(east, 1000, 100)
            await until(lambda: west.table.content == east.table.content)
            assert len(west.table.content) == CONNECTIONS

    trio.run(main)


def lose() -> None:
    """Lose some of what is sent to west, for as long as the namespaces last."""
    netem = ("tc", "-n", EAST, "qdisc", "add", "dev", DEVICE, "root", "netem", "loss", "20%")
    try:
        run(*netem)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        missing = getattr(error, "stderr", str(error))
    else:
        return
    in_west = ("ip", "netns", "exec", WEST, "nft")
    try:
        run(*in_west, "add table ip loss")
        run(*in_west, "add chain ip loss input { type filter hook input priority 0; }")
        run(*in_west, "add rule ip loss input udp dport 8848 numgen random mod 5 0 drop")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"neither netem ({missing}) nor nft ({error}) can lose packets here")


@pytest.mark.usefixtures("namespaces")
def test_what_is_lost_is_repaired_while_the_loss_goes_on() -> None:
    lose()

    async def main() -> None:
        async with pair("224.0.0.81") as (east, west):
            await until(lambda: west.courier.complete(1))
            for step in range(50):
                churn(east, 10 * step, 10)
                await trio.sleep(0.005)
            await until(lambda: west.table.content == east.table.content)
            (peer,) = peers(west.replica, EAST, trio.current_time())
            assert isinstance(repaired := peer["datagrams_repaired"], int)
            assert repaired > 0

    trio.run(main)


@pytest.mark.usefixtures("namespaces")
def test_a_link_that_goes_and_comes_back_works_again() -> None:
    async def main() -> None:
        async with pair("224.0.0.81") as (east, west):
            await until(lambda: west.courier.complete(1))
            run("ip", "-n", EAST, "link", "set", DEVICE, "down")
            churn(east, 0, 100)
            await until(lambda: not west.courier.complete(1))
            run("ip", "-n", EAST, "link", "set", DEVICE, "up")
            await until(lambda: west.courier.complete(1))
            assert west.table.content == east.table.content
            # And the interface itself: both ends vanish and others take their names.
            run("ip", "-n", EAST, "link", "delete", DEVICE)
            churn(east, 100, 100)
            await until(lambda: not west.courier.complete(1))
            wire()
            await until(lambda: west.courier.complete(1))
            assert west.table.content == east.table.content

    trio.run(main)
