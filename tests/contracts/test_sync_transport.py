"""What every transport of the sync promises, on the group in memory and on real sockets.

The real sockets join the group on the loopback interface with looping on, so that two of
them on one machine hear each other; no root is needed.
"""

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from lvsha.errors import HostError
from lvsha.model import parse_address
from lvsha.sync.loopback import LoopbackGroup
from lvsha.sync.transport import MulticastTransport, Transport

Join = Callable[[], Transport]


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["memory", "IPv4", "IPv6"])
def join(request: pytest.FixtureRequest) -> Iterator[Join]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield LoopbackGroup().join
            return
        group = parse_address("224.0.0.81" if request.param == "IPv4" else "ff02::81")
        skip_without_multicast(group)
        port = free_port()

        def open_real() -> Transport:
            transport = MulticastTransport("lo", group, port, loop=True)
            stack.callback(transport.close)
            return transport

        yield open_real


def skip_without_multicast(group: bytes) -> None:
    transport = MulticastTransport("lo", group, free_port(), loop=True)
    try:
        transport.send(b"is there a way?")
    except OSError as error:
        if error.errno not in {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}:
            raise
        pytest.skip(f"the loopback interface sends no multicast here: {error}")
    finally:
        transport.close()


async def receive(transport: Transport, count: int) -> list[bytes]:
    received: list[bytes] = []
    with trio.fail_after(5):
        while len(received) < count:
            await transport.wait_readable()
            while (datagram := transport.receive()) is not None:
                received.append(datagram)
    return received


def test_datagrams_arrive_whole_and_in_order(join: Join) -> None:
    async def main() -> None:
        assert all(east.send(datagram) for datagram in datagrams)
        assert await receive(west, len(datagrams)) == datagrams

    # The longest is fragmented by a real network, and put together again.
    datagrams = [b"a", b"\xa5" * 1400, bytes(range(256)) * 200, b"z"]
    west, east = join(), join()
    trio.run(main)


def test_receiving_never_blocks(join: Join) -> None:
    assert join().receive() is None


def test_waiting_for_something_to_read_lasts_until_there_is(join: Join) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            east.send(b"now")

    async def expect() -> None:
        got.extend(await receive(west, 1))

    got: list[bytes] = []
    west, east = join(), join()
    trio.run(main)
    assert got == [b"now"]


def test_an_idle_transport_is_writable(join: Join) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            await transport.wait_writable()

    transport = join()
    trio.run(main)


def test_refreshing_disturbs_nothing(join: Join) -> None:
    async def main() -> None:
        east.send(b"before")
        west.refresh()
        east.refresh()
        east.send(b"after")
        assert await receive(west, 2) == [b"before", b"after"]

    west, east = join(), join()
    trio.run(main)


def test_an_interface_that_does_not_exist_is_one_clear_sentence() -> None:
    with pytest.raises(HostError, match=r"on interface absent0: "):
        MulticastTransport("absent0", parse_address("224.0.0.81"), 8848)


def test_a_socket_may_keep_the_buffers_that_the_system_gives() -> None:
    group = parse_address("224.0.0.81")

    def length_of(opened: socket.socket | None) -> int:
        assert opened is not None
        return opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as usual:
        usual_length = length_of(usual)
    plain = MulticastTransport("lo", group, free_port(), receive_buffer_bytes=0)
    large = MulticastTransport("lo", group, free_port())
    assert length_of(plain._socket) == usual_length
    assert length_of(large._socket) >= usual_length
    plain.close()
    large.close()
