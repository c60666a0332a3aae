"""A node's part in the health checks: what is checked, and what becomes of the findings.

Here the pair file, the director and the health checks meet. Each service with checks has a
`Keeper`, which carries out what its `ServiceHealth` decides: it gives weights through the
same commands as ipvsadm does, and remembers what it gave. A weight that is another one was
set by the operator, and is from then on the server's own: what it has while it is up. So the
two never undo each other by turns.

Both nodes check, whoever is master, and tell each other what they find, so that people see
where they disagree; each goes by what it finds itself.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Final, assert_never

import structlog
import trio

from lvsha.build import server_options, service_identity
from lvsha.config import Node, Pair, Server, Service
from lvsha.config_health import Check, Health
from lvsha.counters import Counters
from lvsha.datapath.director import Director
from lvsha.datapath.services import RealServer, ServerOptions, VirtualService
from lvsha.errors import AdministrationError
from lvsha.health.judge import Counts, Rules
from lvsha.health.opinions import Finding, Opinion
from lvsha.health.peer_opinions import PeerOpinions
from lvsha.health.peer_opinions import Server as CheckedServer
from lvsha.health.prober import Prober
from lvsha.health.runner import Assignment, Runner
from lvsha.health.service_health import (
    SORRY,
    Action,
    CheckFinding,
    OpinionChanged,
    Place,
    QuorumLost,
    QuorumReached,
    ServiceHealth,
)
from lvsha.health.target import Target
from lvsha.model import format_endpoint
from lvsha.sync.messages import Opinions
from lvsha.sync.opinions import OPINIONS_MAX, NotUp

EXCHANGE_INTERVAL: Final = 1.0
"""Seconds between two lists of what is found, which the nodes tell each other."""

_log = structlog.get_logger("health")

Endpoint = tuple[bytes, int]
"""The address and port of a server, by which a service knows it."""


class Keeper:
    """One service whose servers are checked.

    Attributes:
        service: as the pair file has it.
        core: decides.
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
        self._given: dict[int, int | None] = {
            number: None if number == SORRY else server.weight
            for number, server in self._servers.items()
        }
        self._away: set[int] = set()

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


_Place = tuple[Keeper, int, int]
"""A service, and the numbers of a server and of a check."""


class NodeHealth:
    """The health checks of one node.

    Args:
        pair: the pair file.
        name: which of its nodes this is.
        director: whose servers are checked.
        prober: what tries the checks.
        on_change: called after servers were added or removed.

    Attributes:
        share: tells the peers the number of a list, of how many servers it is, and which of
            them are not up.
        peers: what they have told.
    """

    def __init__(
        self,
        pair: Pair,
        name: str,
        director: Director,
        prober: Prober,
        on_change: Callable[[], None],
    ) -> None:
        self.share: Callable[[int, int, Sequence[NotUp]], None] = (
            lambda _number, _checked, _not_up: None
        )
        self.peers = PeerOpinions()
        self.counters = Counters()
        self._keepers = [Keeper(each, director) for each in pair.services if each.is_checked]
        self._by_name = {keeper.service.name: keeper for keeper in self._keepers}
        self._assignments = list(self._assign(pair.nodes[name], name))
        self._prober = prober
        self._on_change = on_change
        self._runner = Runner(prober, self._report, pair.limits.probes, random.SystemRandom())
        self._checked: dict[CheckedServer, int] = {}
        self._not_up: dict[CheckedServer, Opinion] = {}
        self._timed: set[Keeper] = set()
        self._moved = trio.Event()
        self._started = False
        self._commands: dict[Keeper, bool] = {}
        self._told: dict[Keeper, bool] = {}
        self._commanding: set[Keeper] = set()
        self._nursery: trio.Nursery | None = None

    def _assign(self, node: Node, name: str) -> Iterator[Assignment[_Place]]:
        for keeper in self._keepers:
            service = keeper.service
            for number, place, server, check in service.all_checks():
                target = _target(service, server, check, node, name)
                yield Assignment((keeper, number, place), check, target)

    # Life

    async def start(self, nursery: trio.Nursery) -> None:
        """Give all servers the weights they have before their first check, and begin.

        Raises:
            ConfigError: a certificate file or a user is not there.
        """
        if not self._keepers:
            return
        healths = [keeper.service.health for keeper in self._keepers]
        users = {health.command_user for health in healths if _has_commands(health)}
        await self._prober.prepare([each.check for each in self._assignments], users)
        self._nursery = nursery
        self._started = True
        now = trio.current_time()
        for keeper in self._keepers:
            self._carry_out(keeper, keeper.core.start(now))
            for server, opinion in keeper.opinions():
                self._checked[server] = len(self._checked)
                self._keep(server, opinion)
        nursery.start_soon(self._runner.run, self._assignments)
        nursery.start_soon(self._keep_time)
        nursery.start_soon(self._exchange)

    def _report(self, assignment: Assignment[_Place], finding: Finding) -> bool:
        """Take a finding from the runner."""
        keeper, server, check = assignment.key
        found = CheckFinding(server, check, finding)
        self._carry_out(keeper, keeper.core.receive(found, trio.current_time()))
        return keeper.core.settled

    def services_changed(self) -> None:
        """Take note that the operator may have changed services."""
        if not self._started:
            return
        for keeper in self._keepers:
            self._carry_out(keeper, list(keeper.look(trio.current_time())))

    async def _keep_time(self) -> None:
        while True:
            deadlines = [k.core.deadline for k in self._timed if k.core.deadline is not None]
            with trio.move_on_at(min(deadlines, default=float("inf"))):
                await self._moved.wait()
            self._moved = trio.Event()
            now = trio.current_time()
            for keeper in list(self._timed):
                if keeper.core.deadline is not None and keeper.core.deadline <= now:
                    self._carry_out(keeper, keeper.core.expire(now))

    def _carry_out(self, keeper: Keeper, actions: Collection[Action]) -> None:
        listed_changed = False
        for action in actions:
            match action:
                case Place(server, weight):
                    listed_changed |= self._place(keeper, server, weight)
                case OpinionChanged():
                    self._keep(keeper.named(action.server), action.new)
                    self._tell(keeper, action)
                case QuorumReached(weight):
                    _log.info("quorum reached", service=keeper.service.name, weight=weight)
                    self._command(keeper, reached=True)
                case QuorumLost(weight):
                    _log.error("quorum lost", service=keeper.service.name, weight=weight)
                    self._command(keeper, reached=False)
                case _:
                    assert_never(action)
        if listed_changed:
            self._on_change()
        if keeper.core.deadline is not None:
            self._timed.add(keeper)
            self._moved.set()
        else:
            self._timed.discard(keeper)

    def _place(self, keeper: Keeper, server: int, weight: int | None) -> bool:
        try:
            return keeper.place(server, weight)
        except AdministrationError as error:
            # The operator has removed the service, or has changed it so that the server does
            # not fit any more.
            self.counters.add("weights_refused")
            _log.warning("weight refused", service=keeper.service.name, reason=str(error))
            return False

    def _keep(self, server: CheckedServer, opinion: Opinion) -> None:
        if opinion is Opinion.UP:
            self._not_up.pop(server, None)
        else:
            self._not_up[server] = opinion

    def _tell(self, keeper: Keeper, change: OpinionChanged) -> None:
        end = keeper.endpoints[change.server]
        log = _log.warning if change.new is Opinion.DOWN else _log.info
        log(
            f"server {change.new.value}",
            service=keeper.service.name,
            server=format_endpoint(*end),
            reason=change.reason,
        )

    # What other nodes find

    def hear(self, told: Opinions) -> None:
        """Take a part of what another node finds."""
        opinions = [
            ((service, address, port), Opinion.DOWN if is_down else Opinion.UNKNOWN)
            for service, address, port, is_down in told.opinions
        ]
        self.peers.hear(
            told.origin.node,
            told.number,
            told.part,
            told.parts,
            told.checked,
            opinions,
            trio.current_time(),
        )

    async def _exchange(self) -> None:
        """Tell the peers what is found here, and people where that is not what a peer finds."""
        for number in count(1):
            await trio.sleep(EXCHANGE_INTERVAL)
            # In the order of the pair file: of a list that is too long the end is not told.
            not_up = [
                (*server, int(self._not_up[server] is Opinion.DOWN))
                for server in sorted(self._not_up, key=self._checked.__getitem__)[:OPINIONS_MAX]
            ]
            self.share(number, len(self._checked), not_up)
            for one in self.peers.compare(self._not_up, self._checked, trio.current_time()):
                service, address, port = one.server
                end = format_endpoint(address, port)
                said = {"service": service, "server": end, "peer": one.node}
                if one.theirs is None:
                    _log.info("the nodes agree about a server again", **said)
                else:
                    self.counters.add("disagreements")
                    both = {"here": one.ours.value, "there": one.theirs.value}
                    _log.warning("the nodes disagree about a server", **said, **both)

    # Commands

    def _command(self, keeper: Keeper, *, reached: bool) -> None:
        """Have a command run; of those that wait for the one before, only the newest stays.

        If that says what was said last, none is run.
        """
        if not _has_commands(keeper.service.health):
            return
        self._commands[keeper] = reached
        if keeper not in self._commanding:
            assert self._nursery is not None, "decisions come after the start"
            self._commanding.add(keeper)
            self._nursery.start_soon(self._run_commands, keeper)

    async def _run_commands(self, keeper: Keeper) -> None:
        health, name = keeper.service.health, keeper.service.name
        while keeper in self._commands:
            reached = self._commands.pop(keeper)
            command = health.quorum_up if reached else health.quorum_down
            if self._told.get(keeper) is reached or command is None:
                continue
            self._told[keeper] = reached
            told = {"LVSHA_SERVICE": name, "LVSHA_QUORUM": "up" if reached else "down"}
            trouble: str | None = f"not done within {health.command_timeout:g} s"
            with trio.move_on_after(health.command_timeout):
                trouble = await self._prober.run(health.command_user, command, told)
            if trouble is not None:
                self.counters.add("commands_failed")
                _log.error("command failed", service=name, command=command[0], reason=trouble)
        self._commanding.discard(keeper)

    # Observation

    def counted(self) -> dict[str, int]:
        """What was counted of probes and commands."""
        return {**self.counters.snapshot(), **self._runner.counters.snapshot()}

    def may_be_away(self, service: VirtualService) -> Collection[Endpoint]:
        """The servers of a service that one node may list and another not, by their checks."""
        keeper = self._by_name.get(service.name)
        return keeper.may_be_away if keeper is not None else ()

    def status(self, service: VirtualService) -> dict[str, object] | None:
        """The health of a service, as JSON values; None if nothing is checked."""
        keeper = self._by_name.get(service.name)
        return None if keeper is None or not self._started else keeper.status()

    def of_servers(self, service: VirtualService) -> Iterator[tuple[str, dict[str, object]]]:
        """Address and health of each server of a service that is checked, as JSON values."""
        keeper = self._by_name.get(service.name)
        if keeper is None or not self._started:
            return
        now = trio.current_time()
        for number, address, health in keeper.servers(now):
            yield address, {**health, "peers": self._elsewhere(keeper, number, now)}

    def _elsewhere(self, keeper: Keeper, number: int, now: float) -> dict[str, str]:
        opinions = self.peers.of(keeper.named(number), now)
        return {node: opinion.value for node, opinion in opinions.items()}


def _rules(health: Health) -> Rules:
    return Rules(
        unchecked_up=health.unchecked == "up",
        remove=health.on_failure == "remove",
        drain=health.drain,
        slow_start=health.slow_start,
        quorum=health.quorum,
        hysteresis=health.hysteresis,
    )


def _has_commands(health: Health) -> bool:
    return health.quorum_up is not None or health.quorum_down is not None


def _target(service: Service, server: Server, check: Check, node: Node, name: str) -> Target:
    source = check.sources.get(name)
    return Target(
        str(check.address or server.address),
        0 if check.type == "ping" else check.port or service.port_of(server),
        "" if source is None else str(source),
        "" if check.interface is None else node.interfaces[check.interface],
        check.mark or 0,
    )
