"""A real server of the drill: answers every message with its own name before it.

TCP: each line that arrives is sent back as ``NAME line``. UDP: each datagram likewise.
Run as a program inside a real server's namespace; it runs until it is killed.
Connections and line lengths are limited, so a stray client cannot exhaust it.
"""

import argparse
import errno
import socket
from collections.abc import Sequence
from typing import Final

import trio

LINE_MAX: Final = 64 * 1024
BACKLOG: Final = 1024
READ_MAX: Final = 64 * 1024


async def serve(name: str, addresses: Sequence[str], tcp_port: int, udp_port: int) -> None:
    """Serve both protocols at each address."""
    prefix = name.encode() + b" "
    async with trio.open_nursery() as nursery:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = trio.socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listener.bind((address, tcp_port))
            listener.listen(BACKLOG)
            probe = trio.socket.socket(family, socket.SOCK_DGRAM)
            await probe.bind((address, udp_port))
            nursery.start_soon(_accept, nursery, listener, prefix)
            nursery.start_soon(_answer_datagrams, probe, prefix)
        print("ready", flush=True)


async def _accept(nursery: trio.Nursery, listener: trio.socket.SocketType, prefix: bytes) -> None:
    while True:
        connection, _ = await listener.accept()
        nursery.start_soon(_answer_lines, connection, prefix)


async def _answer_lines(connection: trio.socket.SocketType, prefix: bytes) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pending = b""
    with connection:
        stream = trio.SocketStream(connection)
        try:
            while received := await connection.recv(READ_MAX):
                *lines, pending = (pending + received).split(b"\n")
                if len(pending) > LINE_MAX:
                    return
                if lines:
                    await stream.send_all(b"".join(prefix + line + b"\n" for line in lines))
        except (OSError, trio.BrokenResourceError):
            return  # the client's end of the drill tells why


async def _answer_datagrams(probe: trio.socket.SocketType, prefix: bytes) -> None:
    while True:
        datagram, sender = await probe.recvfrom(READ_MAX)
        try:
            await probe.sendto(prefix + datagram, sender)
        except OSError as error:
            # While the gateway moves there may be no way back; the client counts the loss.
            if error.errno not in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOBUFS}:
                raise


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--address", required=True, nargs="+")
    parser.add_argument("--tcp-port", type=int, required=True)
    parser.add_argument("--udp-port", type=int, required=True)
    arguments = parser.parse_args()
    trio.run(serve, arguments.name, arguments.address, arguments.tcp_port, arguments.udp_port)


if __name__ == "__main__":
    main()
