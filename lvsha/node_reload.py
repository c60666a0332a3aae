"""Take over a changed pair file while the node runs.

Asked for by ``lvsha reload``, or by SIGHUP. The file is read, checked and compared in another
process (`lvsha.reload_planner`); a wrong one changes nothing. What is taken over is taken over
service by service, in turns with the forwarding, and no connection ends by it.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from lvsha.build import mark_rules
from lvsha.config import Pair
from lvsha.counters import Counters
from lvsha.datapath.director import Director
from lvsha.datapath.services import VirtualService
from lvsha.errors import AdministrationError, ConfigError, HostError
from lvsha.keeper import Endpoint
from lvsha.node_health import NodeHealth
from lvsha.reload import Plan
from lvsha.reload_planner import Proposal, pack, propose
from lvsha.retirement import Retirement
from lvsha.service_changes import ServiceChange, ServiceChanges
from lvsha.settings import NAMES, Settings
from lvsha.turns import Turns
from lvsha.vigil import Vigil

NAMES_SHOWN: Final = 20

Propose = Callable[[bytes, Path], Awaitable[Proposal]]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload has done.

    Attributes:
        taken: the names of the pieces that were taken over.
        waiting: of those that a restart takes over.
        troubles: what of a piece was not possible, beside what the operator has done.
    """

    taken: tuple[str, ...]
    waiting: tuple[str, ...]
    troubles: tuple[str, ...]

    def __str__(self) -> str:
        said = [
            f"{what} {_some(names)}"
            for what, names in (
                ("taken over:", self.taken),
                ("a restart would change", self.waiting),
                ("not possible:", self.troubles),
            )
            if names
        ]
        return "; ".join(said) or "the pair file has not changed"


class NodeReload:
    """The reloads of one node.

    Args:
        pair: what is followed.
        file: where it was read from.
        director: whose services are changed.
        health: checks them.
        vigil: tells the service manager.
        on_taken: called with what is followed from now on, and with the plan that led to it.
        on_gone: called when servers or services have gone with their last connection.
        propose: plans, and keeps nobody from running meanwhile.

    Attributes:
        retirement: of what the file does not have any more.
        counters: how often it was reloaded, was wrong, and could not be looked at.
    """

    def __init__(
        self,
        pair: Pair,
        file: Path,
        director: Director,
        health: NodeHealth,
        vigil: Vigil,
        on_taken: Callable[[Pair, Plan], None],
        on_gone: Callable[[], None],
        propose: Propose = propose,
    ) -> None:
        self._pair = pair
        self._packed = pack(pair)
        self._file = file
        self._propose = propose
        self._director = director
        self._health = health
        self.retirement = Retirement(director, on_gone)
        self._services = ServiceChanges(director, self.retirement)
        self._vigil = vigil
        self._on_taken = on_taken
        self._turn = trio.Lock()
        self.counters = Counters()

    def may_be_away(self, service: VirtualService) -> Collection[Endpoint]:
        """The servers of a service that one node lists and another may not."""
        return {*self._health.may_be_away(service), *self.retirement.leaving(service)}

    async def command(self, _arguments: Mapping[str, object]) -> object:
        """Reload; what was done, or why nothing, as JSON values.

        Raises:
            HostError: the node is starting.
        """
        if not self._vigil.takes_part.is_set():
            raise HostError("this node does not take part yet; try again in a moment")
        try:
            outcome = await self.reload()
        except ConfigError as error:
            return {"refused": str(error)}
        return {
            "taken": list(outcome.taken),
            "waiting": list(outcome.waiting),
            "troubles": list(outcome.troubles),
        }

    async def at_signal(self) -> None:
        """Reload; the log tells how that went."""
        with suppress(ConfigError, HostError):
            await self.reload()

    async def reload(self) -> Outcome:
        """Follow the file as it is now, when the node takes part.

        Raises:
            ConfigError: it is wrong, and nothing has changed.
            HostError: it could not be looked at.
        """
        async with self._turn:
            await self._vigil.takes_part.wait()
            self._vigil.reloading()
            said = "not reloaded"
            try:
                outcome = await self._follow()
                said = str(outcome)
            except ConfigError as error:
                self.counters.add("refused")
                said = "the pair file is wrong: see the log"
                _log.error("the pair file is wrong; nothing has changed", error=str(error))
                raise
            except HostError as error:
                self.counters.add("failed")
                _log.error("not reloaded", error=str(error))
                raise
            finally:
                self._vigil.ready(f"running; {said}")
        self.counters.add("reloaded")
        log = _log.warning if outcome.waiting or outcome.troubles else _log.info
        log(
            "reloaded",
            taken=_some(outcome.taken),
            waiting=_some(outcome.waiting),
            troubles=_some(outcome.troubles),
        )
        return outcome

    async def _follow(self) -> Outcome:
        running, turns = self._pair, Turns()
        proposal = await self._propose(self._packed, self._file)
        planned = proposal.plan
        settings = _settings(running, planned.pair, self._director.settings)
        services = {service.name: service for service in running.services}
        changes: list[ServiceChange] = []
        for packed in proposal.changes:
            old = None if packed.before is None else services[packed.before]
            new = packed.unpack()
            await self._health.prepare(() if new is None else (new,))
            changes.append(ServiceChange(old, new))
            await turns.pass_on()
        # Who has asked may be gone; what was begun is done.
        with trio.CancelScope(shield=True):
            self._take_over(running, planned, settings)
            troubles = await self._change(changes, planned.pair)
            for change in changes:
                if change.new is not None:
                    services[change.new.name] = change.new
            self._pair = planned.pair.model_copy(
                update={
                    "services": tuple(services[name] for name in proposal.order),
                    "marks": planned.pair.marks if "marks" in planned.taken else running.marks,
                }
            )
            self._packed = proposal.followed
            self._on_taken(self._pair, planned)
        return Outcome(planned.taken, planned.waiting, troubles)

    async def _change(self, changes: Sequence[ServiceChange], pair: Pair) -> tuple[str, ...]:
        """Carry changes of services out; what was not possible."""
        troubles: list[str] = []
        turns = Turns()
        for change in changes:
            # In one turn: what is there and what is checked must go together.
            with self._director.services.at_once():
                try:
                    self._services.carry_out(change, pair)
                except AdministrationError as error:
                    troubles.append(f"services.{change.name}: {error}")
                self._health.follow(change.old, change.new)
            await turns.pass_on()
        return tuple(troubles)

    def _take_over(self, running: Pair, planned: Plan, settings: Settings) -> None:
        director, pair = self._director, planned.pair
        if settings != director.settings:
            director.configure(settings)
        if pair.timeouts != running.timeouts:
            timeouts = pair.timeouts
            director.set_timeouts(tcp=timeouts.tcp, tcp_fin=timeouts.tcp_fin, udp=timeouts.udp)
        if "marks" in planned.taken:
            director.marks.set(list(mark_rules(pair)))


def _some(names: Sequence[str]) -> str:
    """The first of many, for people."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _settings(running: Pair, followed: Pair, now: Settings) -> Settings:
    """The settings that run, and of the file those that it gives another value.

    Raises:
        ConfigError: they do not go together.
    """
    before, after = running.settings, followed.settings
    changes = {n: after.text(n) for n in NAMES if getattr(before, n) != getattr(after, n)}
    return now.changed(changes)
