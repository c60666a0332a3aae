"""A node's part in the health checks: what is checked, and what becomes of the findings.

Here the pair file, the director and the health checks meet. Each service with checks has a
`Keeper`, which gives its servers the weights that its checks decide.

Both nodes check, whoever is master, and tell each other what they find, so that people see
where they disagree; each goes by what it finds itself.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from typing import Final, assert_never

import structlog
import trio

from lvsha.build import service_identity
from lvsha.config import Node, Pair, Server, Service
from lvsha.config_health import Check, Health
from lvsha.counters import Counters
from lvsha.datapath.director import Director
from lvsha.datapath.services import ServiceIdentity, VirtualService
from lvsha.errors import AdministrationError
from lvsha.health.opinions import Finding, Opinion
from lvsha.health.peer_opinions import PeerOpinions
from lvsha.health.peer_opinions import Server as CheckedServer
from lvsha.health.prober import Prober
from lvsha.health.runner import Assignment, Runner
from lvsha.health.service_health import (
    Action,
    CheckFinding,
    OpinionChanged,
    Place,
    QuorumLost,
    QuorumReached,
)
from lvsha.health.target import Target
from lvsha.keeper import Endpoint, Keeper
from lvsha.model import format_endpoint
from lvsha.sync.messages import Opinions
from lvsha.sync.opinions import OPINIONS_MAX, NotUp

EXCHANGE_INTERVAL: Final = 1.0
"""Seconds between two lists of what is found, which the nodes tell each other."""

_log = structlog.get_logger("health")

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
        self._keepers = {
            service_identity(each): Keeper(each, director)
            for each in pair.services
            if each.is_checked
        }
        self._node = pair.nodes[name]
        self._name = name
        self._director = director
        self._prober = prober
        self._on_change = on_change
        self._runner = Runner(prober, self._report, pair.limits.probes, random.SystemRandom())
        # In the order of the pair file, and what has come later after it.
        self._checked: dict[CheckedServer, int] = {}
        self._numbers = count()
        self._not_up: dict[CheckedServer, Opinion] = {}
        self._timed: set[Keeper] = set()
        self._moved = trio.Event()
        self._started = False
        # What is to be said of a quorum, what was said last, and of which it is being said.
        self._commands: dict[ServiceIdentity, bool] = {}
        self._told: dict[ServiceIdentity, bool] = {}
        self._commanding: set[ServiceIdentity] = set()
        self._nursery: trio.Nursery | None = None

    # Life

    async def prepare(self, services: Collection[Service]) -> None:
        """Look up what the checks and commands of some services need on this machine.

        Raises:
            ConfigError: a certificate file or a user is not there.
        """
        checked = [service for service in services if service.is_checked]
        checks = [check for service in checked for _, _, _, check in service.all_checks()]
        users = {one.health.command_user for one in checked if _has_commands(one.health)}
        if checks:
            await self._prober.prepare(checks, users)

    async def start(self, nursery: trio.Nursery) -> None:
        """Give all servers the weights they have before their first check, and begin.

        Raises:
            ConfigError: a certificate file or a user is not there.
        """
        await self.prepare([keeper.service for keeper in self._keepers.values()])
        self._nursery = nursery
        self._started = True
        now = trio.current_time()
        checks = sum(map(_number_of_checks, self._keepers.values()))
        for keeper in self._keepers.values():
            self._begin(keeper, keeper.core.start(now), checks)
        nursery.start_soon(self._keep_time)
        nursery.start_soon(self._exchange)

    def release(self, service: Service) -> None:
        """Check a service no more; `follow` tells how it goes on.

        Of all that change at once each is released before one is followed: they may have
        changed their names.
        """
        keeper = self._keepers.get(service_identity(service))
        if keeper is not None:
            keeper.checking.cancel()
            self._timed.discard(keeper)
            for server, _ in keeper.opinions():
                self._not_up.pop(server, None)
                self._checked.pop(server, None)

    def follow(self, old: Service | None, new: Service | None) -> None:
        """Check a service as it is from now on; the director has it so already.

        Args:
            old: as it was, with the same identity; None if there was none. It was released.
            new: as it is; None if there is none any more. If there is, `prepare` was told.

        Raises:
            AdministrationError: see `Keeper.give_back`.
        """
        before = None if old is None else self._keepers.pop(service_identity(old), None)
        if new is None or not new.is_checked:
            if before is not None:
                self._told.pop(before.identity, None)
                if new is not None:
                    before.give_back(new)
            return
        keeper = Keeper(new, self._director)
        self._keepers[keeper.identity] = keeper
        in_use = frozenset() if old is None else frozenset(_endpoints(old))
        actions = keeper.follow(before, in_use, trio.current_time())
        self._begin(keeper, actions, _number_of_checks(keeper))

    def _begin(self, keeper: Keeper, actions: Collection[Action], beginning: int) -> None:
        """Carry out what is decided at first, and check; so many checks begin together."""
        self._carry_out(keeper, actions)
        for server, opinion in keeper.opinions():
            self._checked[server] = next(self._numbers)
            self._keep(server, opinion)
        assert self._nursery is not None, "only what runs is checked"
        self._nursery.start_soon(self._check, keeper, beginning)

    async def _check(self, keeper: Keeper, beginning: int) -> None:
        with keeper.checking:
            await self._runner.run(list(self._assign(keeper)), beginning)

    def _assign(self, keeper: Keeper) -> Iterator[Assignment[_Place]]:
        service = keeper.service
        for number, place, server, check in service.all_checks():
            target = _target(service, server, check, self._node, self._name)
            yield Assignment((keeper, number, place), check, target)

    def _report(self, assignment: Assignment[_Place], finding: Finding) -> bool:
        """Take a finding from the runner."""
        keeper, server, check = assignment.key
        if keeper.checking.cancel_called:
            return True
        found = CheckFinding(server, check, finding)
        self._carry_out(keeper, keeper.core.receive(found, trio.current_time()))
        return keeper.core.settled

    def services_changed(self) -> None:
        """Take note that the operator may have changed services."""
        if not self._started:
            return
        for keeper in self._keepers.values():
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
        with self._director.services.at_once():
            listed_changed = [self._perform(keeper, action) for action in actions]
        if any(listed_changed):
            self._on_change()
        if keeper.core.deadline is not None:
            self._timed.add(keeper)
            self._moved.set()
        else:
            self._timed.discard(keeper)

    def _perform(self, keeper: Keeper, action: Action) -> bool:
        """Carry out one action; whether the list of servers is another now."""
        match action:
            case Place(server, weight):
                return self._place(keeper, server, weight)
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
        return False

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
            # In this order: of a list that is too long the end is not told.
            not_up = [
                (*server, int(self._not_up[server] is Opinion.DOWN))
                for server in sorted(self._not_up, key=self._checked.__getitem__)[:OPINIONS_MAX]
            ]
            if self._checked:
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
        identity = keeper.identity
        if not _has_commands(keeper.service.health):
            return
        self._commands[identity] = reached
        if identity not in self._commanding:
            assert self._nursery is not None, "decisions come after the start"
            self._commanding.add(identity)
            self._nursery.start_soon(self._run_commands, identity)

    async def _run_commands(self, identity: ServiceIdentity) -> None:
        while identity in self._commands:
            reached, keeper = self._commands.pop(identity), self._keepers.get(identity)
            if keeper is None:
                break
            health, name = keeper.service.health, keeper.service.name
            command = health.quorum_up if reached else health.quorum_down
            if self._told.get(identity) is reached or command is None:
                continue
            self._told[identity] = reached
            told = {"LVSHA_SERVICE": name, "LVSHA_QUORUM": "up" if reached else "down"}
            trouble: str | None = f"not done within {health.command_timeout:g} s"
            with trio.move_on_after(health.command_timeout):
                trouble = await self._prober.run(health.command_user, command, told)
            if trouble is not None:
                self.counters.add("commands_failed")
                _log.error("command failed", service=name, command=command[0], reason=trouble)
        self._commanding.discard(identity)

    # Observation

    def counted(self) -> dict[str, int]:
        """What was counted of probes and commands."""
        return {**self.counters.snapshot(), **self._runner.counters.snapshot()}

    def may_be_away(self, service: VirtualService) -> Collection[Endpoint]:
        """The servers of a service that one node may list and another not, by their checks."""
        keeper = self._keepers.get(service.identity)
        return keeper.may_be_away if keeper is not None else ()

    def status(self, service: VirtualService) -> dict[str, object] | None:
        """The health of a service, as JSON values; None if nothing is checked."""
        keeper = self._keepers.get(service.identity)
        return None if keeper is None or not self._started else keeper.status()

    def of_servers(self, service: VirtualService) -> Iterator[tuple[str, dict[str, object]]]:
        """Address and health of each server of a service that is checked, as JSON values."""
        keeper = self._keepers.get(service.identity)
        if keeper is None or not self._started:
            return
        now = trio.current_time()
        for number, address, health in keeper.servers(now):
            yield address, {**health, "peers": self._elsewhere(keeper, number, now)}

    def _elsewhere(self, keeper: Keeper, number: int, now: float) -> dict[str, str]:
        opinions = self.peers.of(keeper.named(number), now)
        return {node: opinion.value for node, opinion in opinions.items()}


def _number_of_checks(keeper: Keeper) -> int:
    return sum(1 for _ in keeper.service.all_checks())


def _endpoints(service: Service) -> Iterator[Endpoint]:
    return ((server.address.packed, service.port_of(server)) for server in service.servers)


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
