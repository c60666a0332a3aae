"""Clients and real servers of a simulated pair: TCP as far as a director can see it.

Clients stand behind the gateway of the outside segment and real servers on the inside
segment. Every segment says in its payload which connection it belongs to and which server
it is meant for, so a server knows at once when it gets what is not its own. What is not
answered is sent again, after longer and longer times.

A connection counts as established from the moment when a real server has heard its ACK:
the director has told of it before that. One that was not (a SYN, or an ACK that was lost
with its director) is young, and may have to be opened again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import trio

from lvsha.config import Service
from lvsha.model import connection_key
from tests.packets import ACK, FIN, PSH, RST, SYN, TCP, tcp
from tests.simulation.pair_world import (
    GATEWAY,
    GATEWAY_ADDRESS,
    BrokenPromiseError,
    Coming,
    Station,
    World,
)

INSIDE_GATEWAY: Final = bytes((10, 1, 0, 254))
RETRANSMISSION_FIRST: Final = 0.3
RETRANSMISSION_MAX: Final = 1.2
FOR_EVER: Final = 1_000_000
PATIENT_TIMEOUT: Final = 60
LATE_MAX: Final = 2.0
"""No copy of a packet stays in the network for longer; a port rests for this time."""

Phase = Literal["opening", "established", "closing", "closed", "given up"]


@dataclass(frozen=True, slots=True)
class Segment:
    """What a station reads of a TCP segment."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    flags: int
    words: list[str]


def read(packet: bytes) -> Segment | None:
    """Take an IPv4 packet with TCP and without options apart; None for an ICMP error."""
    if packet[9] != TCP:
        return None
    return Segment(
        packet[12:16],
        int.from_bytes(packet[20:22]),
        packet[16:20],
        int.from_bytes(packet[22:24]),
        packet[33],
        packet[40 : int.from_bytes(packet[2:4])].decode().split(),
    )


def text(address: bytes) -> str:
    return ".".join(map(str, address))


class RealServer(Station):
    """A real server; it knows which connections are its own."""

    def __init__(self, traffic: "Traffic", number: int) -> None:
        address = bytes((10, 1, 0, 10 + number))
        mac = bytes((2, 0x05, 0, 0, 0, number))
        super().__init__(traffic.world, f"server-{number}", "inside", address, mac)
        self._traffic = traffic
        self._known: dict[tuple[bytes, int, int], str] = {}

    def receive(self, packet: bytes) -> None:
        got = read(packet)
        if got is None:
            return
        key = (got.source, got.source_port, got.destination_port)
        number, name, request = got.words
        if got.flags & SYN:
            self._known[key] = number
            self._reply(got, SYN | ACK, f"{number} {self.name} {request}")
            return
        if self._known.get(key) != number or name != self.name:
            self._traffic.misdirected(int(number), self.name)
            return
        self._traffic.heard(int(number))
        if got.flags & RST:
            del self._known[key]
        else:
            flags = FIN | ACK if got.flags & FIN else PSH | ACK
            self._reply(got, flags, f"{number} {self.name} {request}")

    def _reply(self, got: Segment, flags: int, payload: str) -> None:
        packet = tcp(
            text(got.destination),
            got.destination_port,
            text(got.source),
            got.source_port,
            flags,
            payload.encode(),
        )
        if got.destination == self.address:
            self.send(INSIDE_GATEWAY, packet)
        else:
            # Direct routing: the way back does not lead through the director.
            receive = partial(self._traffic.gateway.receive, packet)
            self.world.carry(self.world.segments["outside"], self.name, GATEWAY, receive)


class Gateway(Station):
    """The router on the outside, behind which the clients are."""

    def __init__(self, traffic: "Traffic") -> None:
        mac = bytes((2, 0x0C, 0, 0, 0, 1))
        super().__init__(traffic.world, GATEWAY, "outside", GATEWAY_ADDRESS, mac)
        self._traffic = traffic

    def receive(self, packet: bytes) -> None:
        got = read(packet)
        if got is None:
            return
        if not got.words:
            self._traffic.refused(got)
            return
        client = self._traffic.clients.get(int(got.words[0]))
        if client is not None and got.destination == client.address:
            self.world.after(client.distance, partial(client.receive, got))


class Client:
    """One connection of one client, from its SYN to its end.

    Attributes:
        exempt: opened, or young, while something went wrong that may cost such a
            connection; an established one that is not exempt must live.
        heard_at: when a real server first heard its ACK.
        server: whom it believes to talk to.
        distance: seconds to it from the gateway. Far clients are young for long.
        waits_since: since when it has waited for an answer; None if it waits for none.
    """

    def __init__(self, traffic: "Traffic", number: int, service: Service, source: int) -> None:
        dice = traffic.world.dice
        assert service.address is not None, "no service of a simulated pair is of a mark"
        self.virtual = (service.address.packed, service.default_port)
        self.number = number
        self.service = service
        self.phase: Phase = "opening"
        self.exempt = False
        self.opened_at = trio.current_time()
        self.heard_at: float | None = None
        self.server = "-"
        self.waits_since: float | None = None
        self.source = source
        self.distance = dice.choice([0.0, 0.0, 0.05, 0.25])
        self._traffic = traffic
        self.address = bytes((198, 51, 100, 1 + source % 200))
        self._port = 1024 + source
        self._requests_left = dice.choice([1, 3, 10, FOR_EVER])
        self._pause = dice.choice([0.8, 2.0, 4.0, 6.0])
        self._ending = dice.choice(["fin", "fin", "reset", "stay"])
        if traffic.world.pair.timeouts.tcp < PATIENT_TIMEOUT and self._ending == "stay":
            # One that was silent for too long would rightly be forgotten.
            self._requests_left = FOR_EVER
        self._request = 0
        self._waiting: int | None = None
        self._timer: Coming | None = None

    @property
    def key(self) -> bytes:
        """The key of the connection in a director's table."""
        return connection_key(6, self.address, self._port, *self.virtual)

    @property
    def port(self) -> int:
        """Its port."""
        return self._port

    @property
    def established(self) -> bool:
        """Whether it must live, unless it is exempt."""
        return self.heard_at is not None and self.phase == "established"

    def open(self) -> None:
        self._ask(SYN)

    def poke(self) -> None:
        """Send something now, if it is established and silent."""
        if self.phase == "established" and self._waiting is None:
            self._ask(PSH | ACK)

    def receive(self, got: Segment) -> None:
        """A packet came from whom it believes to talk to."""
        if self.phase in {"closed", "given up"}:
            return
        _, server, request = got.words
        if (got.source, got.source_port) != self.virtual:
            raise BrokenPromiseError(f"client {self.number} is answered by a stranger: {got}")
        if self._waiting != int(request):
            return
        if self.phase == "opening" and got.flags & SYN:
            self.server = server
            self.phase = "established"
            self._ask(PSH | ACK)
        elif server == self.server and self.phase == "closing" and got.flags & FIN:
            self._send(ACK)
            self._become("closed")
        elif server == self.server and self.phase == "established" and not got.flags & SYN:
            self._stop_waiting()
            pause = self._traffic.world.dice.uniform(0.5, 1.5) * self._pause
            self._traffic.world.after(pause, partial(self._go_on, self._request))

    def give_up(self) -> None:
        self._become("given up")

    def _go_on(self, request: int) -> None:
        if request != self._request or self.phase != "established" or self._traffic.paused:
            return
        self._requests_left -= 1
        if self._requests_left > 0:
            self._ask(PSH | ACK)
        elif self._ending == "fin":
            self.phase = "closing"
            self._ask(FIN | ACK)
        elif self._ending == "reset":
            self._send(RST)
            self._become("closed")

    def _become(self, phase: Phase) -> None:
        self.phase = phase
        self._stop_waiting()
        self._traffic.ended(self)

    def _stop_waiting(self) -> None:
        self._waiting = self.waits_since = None
        if self._timer is not None:
            self._timer.still = False

    def _ask(self, flags: int) -> None:
        self._request += 1
        self._waiting = self._request
        self.waits_since = trio.current_time()
        self._repeat(flags, self._request, RETRANSMISSION_FIRST)

    def _repeat(self, flags: int, request: int, delay: float) -> None:
        """Send, and again, until it is answered."""
        if self._waiting != request:
            return
        if delay > RETRANSMISSION_FIRST and (self.heard_at is not None or flags & SYN):
            self._traffic.repeats += 1
        self._send(flags)
        again = partial(self._repeat, flags, request, min(2 * delay, RETRANSMISSION_MAX))
        if self._timer is not None:
            self._timer.still = False
        self._timer = self._traffic.world.after(delay, again)

    def _send(self, flags: int) -> None:
        virtual, port = self.virtual
        payload = f"{self.number} {self.server} {self._request}".encode()
        packet = tcp(text(self.address), self._port, text(virtual), port, flags, payload)
        self._traffic.gateway.send(virtual, packet)


class Traffic:
    """All clients and real servers.

    Attributes:
        clients: those whose connections are not at their end, by number.
        exempting: whether connections that are opened now are exempt.
        paused: whether clients are silent, unless they repeat.
        repeats: how often something was sent again, but for what young connections sent.
    """

    def __init__(self, world: World, servers: int, *, clients_max: int) -> None:
        self.world = world
        self.gateway = Gateway(self)
        self.servers = [RealServer(self, number) for number in range(1, servers + 1)]
        self.clients: dict[int, Client] = {}
        self.exempting = False
        self.paused = False
        self.repeats = 0
        self._clients_max = clients_max
        self._numbers = 0
        self._ports = 0
        self._free: list[int] = []
        for station in (self.gateway, *self.servers):
            station.confirm()

    def begin(self, rate: float) -> None:
        """Open connections from now on, so many a second."""

        def arrive() -> None:
            if not self.paused and len(self.clients) < self._clients_max:
                self.open(self.world.dice.choice(self.world.pair.services))
            self.world.after(self.world.dice.expovariate(rate), arrive)

        arrive()

    def open(self, service: Service) -> Client:
        """A client opens a connection, perhaps from a port that one had before."""
        self._numbers += 1
        if self._free and self.world.dice.random() < 0.7:
            source = self._free.pop(self.world.dice.randrange(len(self._free)))
        else:
            self._ports += 1
            source = self._ports
        client = Client(self, self._numbers, service, source)
        client.exempt = self.exempting
        self.clients[client.number] = client
        client.open()
        return client

    def ended(self, client: Client) -> None:
        self.world.note(f"client {client.number} {client.phase}")
        self.world.counts.add(f"clients {client.phase}")
        del self.clients[client.number]
        if client.phase == "closed":
            self.world.after(LATE_MAX, partial(self._free.append, client.source))

    def heard(self, number: int) -> None:
        """A real server has heard an established client."""
        client = self.clients.get(number)
        if client is not None and client.heard_at is None:
            client.heard_at = trio.current_time()
            self.world.note(f"client {number} established with {client.server}")

    def misdirected(self, number: int, server: str) -> None:
        """A real server got what is not its own."""
        client = self.clients.get(number)
        if client is None:
            # The last packets of an ended connection, behind which nobody is.
            self.world.counts.add("strays")
            return
        if client.exempt or client.heard_at is None:
            self.world.counts.add("exempt clients misdirected")
            client.give_up()
            return
        raise BrokenPromiseError(
            f"the established connection {number} of {client.server} came out at {server}"
        )

    def refused(self, got: Segment) -> None:
        """A director has answered a client with a reset, because nobody knows its connection."""
        if not got.flags & RST:
            raise BrokenPromiseError(f"a director made up {got}")
        for client in list(self.clients.values()):
            if (client.address, client.port) != (got.destination, got.destination_port):
                continue
            if client.established and not client.exempt:
                raise BrokenPromiseError(f"client {client.number} was reset by a director")
            self.world.counts.add("clients reset")
            client.give_up()

    def exempt(self, fits: Callable[[Client], bool]) -> None:
        for client in self.clients.values():
            if fits(client):
                client.exempt = True
