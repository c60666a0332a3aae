"""Take over a changed pair file while the node runs.

Asked for by ``lvsha reload``, or by SIGHUP. The file is read, checked and compared in another
process (`lvsha.reload_planner`); a wrong one changes nothing. What is taken over is taken over
service by service, in turns with the forwarding, and no connection ends by it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from lvsha.build import mark_rules
from lvsha.config import Pair
from lvsha.counters import Counters
from lvsha.datapath.director import Director
from lvsha.errors import AdministrationError, ConfigError, HostError
from lvsha.node_health import NodeHealth
from lvsha.reload import Plan
from lvsha.reload_planner import TIME_MAX, Proposal, pack, propose
from lvsha.service_changes import ServiceChange, ServiceChanges
from lvsha.settings import NAMES, Settings
from lvsha.turns import Turns
from lvsha.vigil import Vigil

NAMES_SHOWN: Final = 20
LEAVING_INTERVAL: Final = 1.0
"""Seconds between two looks at the servers that leave."""
RELOAD_SECONDS_MAX: Final = TIME_MAX + 30.0
"""For a reload as a whole; who has asked waits no longer, but it goes on."""
_STOPPING: Final = "this node is stopping"

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


class _Request:
    """Somebody who waits for a reload."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: Outcome | ConfigError | HostError | None = None


class NodeReload:
    """The reloads of one node, one at a time.

    Args:
        pair: what is followed.
        file: where it was read from.
        director: whose services are changed.
        health: checks them.
        vigil: tells the service manager.
        on_taken: called with what is followed from now on, and with the plan that led to it,
            before services change.
        on_change: called when services and servers have changed, or have left.
        propose: plans, and keeps nobody from running meanwhile.

    Attributes:
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
        on_change: Callable[[], None],
        propose: Propose = propose,
    ) -> None:
        self._pair = pair
        self._packed = pack(pair)
        self._file = file
        self._propose = propose
        self._director = director
        self._health = health
        self._services = ServiceChanges(director)
        self._vigil = vigil
        self._on_taken = on_taken
        self._on_change = on_change
        self._turn = trio.Lock()
        self._asked = trio.Event()
        self._requests: list[_Request] = []
        self._planning = trio.CancelScope()
        self._closed = False
        self.counters = Counters()

    # Life

    async def run(self) -> None:
        """Reload whenever that is asked for, and let go what has no connection any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._let_go)
            while True:
                await self._asked.wait()
                self._asked = trio.Event()
                requests, self._requests = self._requests, []
                result = await self._attempt()
                for request in requests:
                    request.result = result
                    request.done.set()

    async def close(self) -> None:
        """Begin no reload any more, and wait for one that is being carried out."""
        self._closed = True
        self._planning.cancel()
        async with self._turn:
            pass

    def ask(self) -> None:
        """Have it reloaded soon; the log tells how that went."""
        self._asked.set()

    async def reload(self) -> Outcome:
        """Follow the file as it is now.

        Raises:
            ConfigError: it is wrong, and nothing has changed.
            HostError: it could not be looked at; or the node is starting, or stopping.
        """
        if not self._vigil.takes_part.is_set():
            raise HostError("this node does not take part yet; try again in a moment")
        if self._closed:
            raise HostError(_STOPPING)
        request = _Request()
        self._requests.append(request)
        self._asked.set()
        await request.done.wait()
        if not isinstance(request.result, Outcome):
            assert request.result is not None, "it is done"
            raise request.result
        return request.result

    async def command(self, _arguments: Mapping[str, object]) -> object:
        """Reload; what was done, or why nothing, as JSON values.

        Raises:
            HostError: see `reload`.
        """
        try:
            outcome = await self.reload()
        except ConfigError as error:
            return {"refused": str(error)}
        return {
            "taken": list(outcome.taken),
            "waiting": list(outcome.waiting),
            "troubles": list(outcome.troubles),
        }

    async def _let_go(self) -> None:
        while True:
            await trio.sleep(LEAVING_INTERVAL)
            gone = self._director.services.bury_idle()
            for server in gone:
                _log.info("server removed", service=server.service.name, server=str(server))
            if gone:
                self._on_change()

    # One reload

    async def _attempt(self) -> Outcome | ConfigError | HostError:
        async with self._turn:
            if self._closed:
                return HostError(_STOPPING)
            self._vigil.reloading()
            self._planning = trio.CancelScope()
            result: Outcome | ConfigError | HostError = HostError(_STOPPING)
            try:
                with self._planning:
                    result = await self._follow()
            except (ConfigError, HostError) as error:
                result = error
            said = self._note(result)
            if not self._closed:
                self._vigil.ready(f"running; {said}")
            return result

    def _note(self, result: Outcome | ConfigError | HostError) -> str:
        """Count a reload, and log it; in a few words how it went."""
        match result:
            case ConfigError():
                self.counters.add("refused")
                _log.error("the pair file is wrong; nothing has changed", error=str(result))
                return "the pair file is wrong: see the log"
            case HostError():
                self.counters.add("failed")
                _log.error("not reloaded", error=str(result))
                return "not reloaded: see the log"
            case Outcome(taken, waiting, troubles):
                self.counters.add("reloaded")
                log = _log.warning if waiting or troubles else _log.info
                names = {"taken": taken, "waiting": waiting, "troubles": troubles}
                log("reloaded", **{key: _some(value) for key, value in names.items() if value})
                return str(result)

    async def _follow(self) -> Outcome:
        running, turns = self._pair, Turns()
        proposal = await self._propose(self._packed, self._file)
        planned = proposal.plan
        services = {service.name: service for service in running.services}
        changes: list[ServiceChange] = []
        for packed in proposal.changes:
            old = None if packed.before is None else services[packed.before]
            new = packed.unpack()
            await self._health.prepare(() if new is None else (new,))
            changes.append(ServiceChange(old, new))
            await turns.pass_on()
        services |= {change.new.name: change.new for change in changes if change.new is not None}
        pair = planned.pair.model_copy(
            update={
                "services": tuple(services[name] for name in proposal.order),
                "marks": planned.pair.marks if "marks" in planned.taken else running.marks,
            }
        )
        settings = _settings(running, pair, self._director.settings)
        # What was begun is done, even if the node is to stop meanwhile.
        with trio.CancelScope(shield=True):
            self._take_over(running, pair, settings)
            self._on_taken(pair, planned)
            troubles = await self._change(changes, pair)
            self._on_change()
        if not troubles:
            # Else the next reload tries again all that is another now.
            self._pair, self._packed = pair, proposal.followed
        return Outcome(planned.taken, planned.waiting, troubles)

    async def _change(self, changes: Sequence[ServiceChange], pair: Pair) -> tuple[str, ...]:
        """Carry changes of services out; what was not possible."""
        troubles: list[str] = []
        turns = Turns()
        for change in changes:
            if change.old is not None:
                self._health.release(change.old)
                await turns.pass_on()
        for change in changes:
            # In one turn: what is there and what is checked must go together.
            with self._director.services.at_once():
                try:
                    self._services.carry_out(change, pair)
                except AdministrationError as error:
                    troubles.append(f"services.{change.name}: {error}")
                try:
                    self._health.follow(change.old, change.new)
                except AdministrationError as error:
                    troubles.append(f"services.{change.name}: {error}")
            await turns.pass_on()
        return tuple(troubles)

    def _take_over(self, running: Pair, pair: Pair, settings: Settings) -> None:
        director = self._director
        if settings != director.settings:
            director.configure(settings)
        before, after = running.timeouts.model_dump(), pair.timeouts.model_dump()
        director.set_timeouts(
            **{name: after[name] for name in after if before[name] != after[name]}
        )
        if pair.marks != running.marks:
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
