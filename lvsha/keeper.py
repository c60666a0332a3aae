"""One service whose servers are checked: what its checks decide becomes weights of a director.

A `Keeper` gives weights through the same commands as ipvsadm does, and remembers what it gave.
A weight that is another one was set by the operator, and is from then on the server's own: what
it has while it is up. So the two never undo each other by turns.

When the service of the pair file becomes another while the node runs, a new keeper follows the
old one and goes on with what is known (`Keeper.follow`): a server that is not up takes no
connections before a check has passed, and one that is up is not taken out until one has failed.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import trio

from lvsha.build import server_options, service_identity
from lvsha.config import Server, Service
from lvsha.config_health import Checks, Health
from lvsha.datapath.director import Director
from lvsha.datapath.services import RealServer, ServerOptions
from lvsha.health.judge import Counts, Judge, Rules
from lvsha.health.opinions import Opinion
from lvsha.health.peer_opinions import Server as CheckedServer
from lvsha.health.service_health import SORRY, Action, Heritage, ServiceHealth
from lvsha.model import format_endpoint

Endpoint = tuple[bytes, int]
"""The address and port of a server, by which a service knows it."""


@dataclass(frozen=True, slots=True)
class _Former:
    """What a keeper knows of a server, for the one that follows it."""

    server: Server
    checks: Checks
    judge: Judge | None
    own_weight: int
    is_away: bool

    def weight_in(self, server: Server) -> int:
        """Its own weight by another file: as it was, if the file has not changed it."""
        unchanged = self.server.weight == server.weight and not self.is_away
        return self.own_weight if unchanged else server.weight


class Keeper:
    """One service whose servers are checked.

    Attributes:
        service: as the pair file has it.
        core: decides.
        checking: the scope of its probes.
    """

    def __init__(self, service: Service, director: Director) -> None:
        self.service = service
        self.core = ServiceHealth(
            _rules(service.health),
            [
                (
                    [Counts(each.rise, each.fall) for each in service.checks_of(server)],
                    server.weight,
                )
                for server in service.servers
            ],
            None if service.sorry_server is None else service.sorry_server.weight,
        )
        self.identity = service_identity(service)
        self._director = director
        self._servers: dict[int, Server] = dict(enumerate(service.servers))
        if service.sorry_server is not None:
            self._servers[SORRY] = service.sorry_server
        self.endpoints: dict[int, Endpoint] = {
            number: (server.address.packed, service.port_of(server))
            for number, server in self._servers.items()
        }
        self._numbers = {end: n for n, end in self.endpoints.items() if n != SORRY}
        self._given: dict[int, int | None] = {
            number: None if number == SORRY else server.weight
            for number, server in self._servers.items()
        }
        self._away: set[int] = set()
        self.checking = trio.CancelScope()

    def follow(
        self, before: "Keeper | None", in_use: Collection[Endpoint], now: float
    ) -> Collection[Action]:
        """Go on where the former keeper of the service has ended.

        Args:
            before: that one; None if nothing of the service was checked.
            in_use: the servers that the service had, checked or not.
            now: the time.
        """
        judges: dict[int, Judge] = {}
        others: dict[int, Judge] = {}
        used: set[int] = set()
        placed: dict[int, int | None] = {}
        for number, server in self._servers.items():
            listed, end = self._listed(number), self.endpoints[number]
            placed[number] = self._given[number] = None if listed is None else listed.weight
            if number == SORRY:
                continue
            former = None if before is None else before.known(end)
            if former is None:
                is_away = listed is None and end in in_use
                own_weight = server.weight if listed is None else listed.weight
                if listed is not None and end in in_use:
                    used.add(number)
            else:
                is_away = listed is None and former.is_away
                own_weight = former.weight_in(server)
                if former.judge is not None and former.checks == self._checks(number):
                    judges[number] = former.judge
                elif former.judge is not None:
                    others[number] = former.judge
                elif listed is not None:
                    used.add(number)
            if is_away and (former is None or former.server == server):
                self._away.add(number)
                own_weight = 0
            self.core.own_weights[number] = own_weight
        heritage = Heritage(judges, others, used, placed, None, None)
        if before is not None:
            core = before.core
            heritage = replace(heritage, quorum=core.quorum, regained_at=core.regained_at)
        return self.core.start(now, heritage)

    def give_back(self, service: Service) -> None:
        """Nothing of the service is checked from now on: give each server its own weight.

        Raises:
            AdministrationError: the operator has changed the service so that one does not fit.
        """
        services = self._director.services
        for server in service.servers:
            end = (server.address.packed, service.port_of(server))
            former = self.known(end)
            if former is None or (former.is_away and former.server == server):
                continue
            running = services.get(self.identity)
            listed = None if running is None else running.server(*end)
            weight = former.weight_in(server)
            if listed is None:
                options = replace(server_options(service, server), weight=weight)
                services.add_server(self.identity, *end, options)
            elif listed.weight != weight:
                services.edit_server(self.identity, *end, replace(listed.options, weight=weight))

    def known(self, end: Endpoint) -> "_Former | None":
        """What is known of the server with this address and port, if it is of the service."""
        number = self._numbers.get(end)
        if number is None:
            return None
        return _Former(
            self._servers[number],
            self._checks(number),
            self.core.judges[number],
            self.core.own_weights[number],
            number in self._away,
        )

    def _checks(self, number: int) -> Checks:
        return self.service.checks_of(self._servers[number])

    def _listed(self, number: int) -> RealServer | None:
        service = self._director.services.get(self.identity)
        return None if service is None else service.server(*self.endpoints[number])

    def place(self, number: int, weight: int | None) -> bool:
        """Give a server a weight, or remove it; whether the list of servers is another now."""
        if number in self._away:
            return False
        self._given[number] = weight
        listed, end = self._listed(number), self.endpoints[number]
        services = self._director.services
        if weight is None:
            if listed is not None:
                services.delete_server(self.identity, *end)
            return listed is not None
        if listed is not None:
            options = replace(listed.options, weight=weight)
            services.edit_server(self.identity, *end, options)
            return False
        services.add_server(self.identity, *end, self._options(number, weight))
        return True

    def _options(self, number: int, weight: int) -> ServerOptions:
        return replace(server_options(self.service, self._servers[number]), weight=weight)

    def look(self, now: float) -> Iterator[Action]:
        """Find out what the operator has changed, and decide anew."""
        for number in self._servers:
            listed, given = self._listed(number), self._given[number]
            weight = None if listed is None else listed.weight
            if weight == given:
                continue
            self._given[number] = weight
            if weight is None:
                self._away.add(number)
            else:
                self._away.discard(number)
            if number != SORRY:
                yield from self.core.set_own_weight(number, weight or 0, now)

    @property
    def may_be_away(self) -> frozenset[Endpoint]:
        """The servers that one node lists and another does not, by what they find."""
        removes = self.service.health.on_failure == "remove"
        return frozenset(
            end for number, end in self.endpoints.items() if removes or number == SORRY
        )

    # Observation

    def named(self, number: int) -> CheckedServer:
        """A server as the nodes name it to each other."""
        return (self.service.name, *self.endpoints[number])

    def opinions(self) -> Iterator[tuple[CheckedServer, Opinion]]:
        """What is thought of each server that is checked."""
        for number, judge in enumerate(self.core.judges):
            if judge is not None:
                yield self.named(number), judge.opinion

    def status(self) -> dict[str, object]:
        """Of the service, as JSON values."""
        core = self.core
        known = {True: "reached", False: "lost", None: "unknown"}
        return {
            "quorum": known[core.quorum],
            "quorum_weight": self.service.health.quorum,
            "weight_up": core.weight_up(),
            "sorry": core.sorry,
        }

    def servers(self, now: float) -> Iterator[tuple[int, str, dict[str, object]]]:
        """Number, address and health of each server that is checked, as JSON values."""
        for number, judge in enumerate(self.core.judges):
            if judge is not None:
                yield (
                    number,
                    format_endpoint(*self.endpoints[number]),
                    {
                        "opinion": judge.opinion.value,
                        "reason": judge.reason,
                        "since_seconds": now - judge.since,
                        "own_weight": judge.own_weight,
                        "away": number in self._away,
                    },
                )


def _rules(health: Health) -> Rules:
    return Rules(
        unchecked_up=health.unchecked == "up",
        remove=health.on_failure == "remove",
        drain=health.drain,
        slow_start=health.slow_start,
        quorum=health.quorum,
        hysteresis=health.hysteresis,
    )
