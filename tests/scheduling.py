"""One virtual service with a scheduler and nothing around it, for tests of schedulers.

Servers are added as a director adds them, at the head of the list; a removed server that is
added again is the same object with its old counts, as in the kernel.
"""

import random
from collections.abc import Collection, Sequence

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.model import Protocol, connection_key, parse_address

VIRTUAL, CLIENT = "192.0.2.21", "198.51.100.7"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def key_of(
    client: str = CLIENT,
    virtual: str = VIRTUAL,
    *,
    port: int = 40000,
    protocol: Protocol = Protocol.TCP,
) -> bytes:
    """The key of a new connection to port 80."""
    return connection_key(protocol, parse_address(client), port, parse_address(virtual), 80)


class Farm:
    """The servers A, B, C ... of one service, added in this order: the list is C, B, A."""

    def __init__(
        self,
        scheduler: str,
        weights: Sequence[int] = (),
        *,
        flags: Collection[str] = (),
        seed: int = 0,
        network: str = "10.1.0.0",
        port: int = 80,
    ) -> None:
        self._service = VirtualService("farm", ServiceIdentity(4, Protocol.TCP), ServiceOptions())
        self._first = int.from_bytes(parse_address(network))
        self._size = len(parse_address(network))
        self._port = port
        self._added: list[RealServer] = []
        self.servers: list[RealServer] = []
        self.options = SchedulerOptions(
            flags=frozenset(flags), seed=seed, dice=random.Random(scheduler)
        )
        self.scheduler = SCHEDULERS[scheduler](self.servers, self.options)
        for weight in weights:
            self.add(weight)

    def add(self, weight: int) -> RealServer:
        """Add a new server with the next letter."""
        address = (self._first + 2 + len(self._added)).to_bytes(self._size)
        server = RealServer(self._service, address, self._port, ServerOptions(weight=weight))
        self._added.append(server)
        self._list(server)
        return server

    def add_again(self, server: RealServer) -> None:
        """Add a server that was removed."""
        server.available = True
        self._list(server)

    def _list(self, server: RealServer) -> None:
        self.servers.insert(0, server)
        self.scheduler.updated()

    def edit(self, server: RealServer, weight: int) -> None:
        """Give a server another weight."""
        server.change(ServerOptions(weight=weight))
        self.scheduler.updated()

    def remove(self, server: RealServer) -> None:
        """Take a server off the list."""
        self.servers.remove(server)
        server.available = False
        self.scheduler.updated(server)

    def __getitem__(self, letter: str) -> RealServer:
        return self._added[LETTERS.index(letter)]

    def name(self, server: RealServer | None) -> str:
        """The letter of a server; a dash for none."""
        return "-" if server is None else LETTERS[self._added.index(server)]

    def choose(self, *keys: bytes, now: float = 0.0) -> str:
        """The letters of what the scheduler chooses for these keys."""
        return "".join(self.name(self.scheduler.schedule(key, now)) for key in keys)

    def draw(self, count: int, client: str = CLIENT) -> str:
        """The letters of what it chooses so many times for one client."""
        return self.choose(*[key_of(client)] * count)

    def open(self, count: int, key: bytes | None = None, now: float = 0.0) -> str:
        """The same, with connections that stay and are active."""
        chosen = ""
        for _ in range(count):
            server = self.scheduler.schedule(key_of() if key is None else key, now)
            if server is not None:
                server.active += 1
            chosen += self.name(server)
        return chosen
