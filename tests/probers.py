"""A prober that finds what a test has told it, without a network."""

from collections.abc import Iterable, Sequence

import trio

from lvsha.config_health import Check
from lvsha.health.opinions import Finding
from lvsha.health.target import Target

GOOD = Finding(passed=True, reason="good")
BAD = Finding(passed=False, reason="bad")


class ScriptedProber:
    """Finds everything good but what stands in ``findings``, by address.

    Attributes:
        seconds: that a probe takes.
        tried: when and where.
        commands: what was run, as which user and with which environment.
        status: what `run` returns, after ``command_seconds``.
        running, running_max: probes under way now, and at most so far.
    """

    def __init__(self) -> None:
        self.findings: dict[str, Finding] = {}
        self.seconds = 0.0
        self.tried: list[tuple[float, str]] = []
        self.commands: list[tuple[str | None, tuple[str, ...], dict[str, str]]] = []
        self.status: str | None = None
        self.command_seconds = 0.0
        self.running = self.running_max = 0

    async def prepare(self, checks: Iterable[Check], users: Iterable[str | None]) -> None:
        await trio.lowlevel.checkpoint()

    async def probe(self, check: Check, target: Target) -> Finding:
        self.tried.append((trio.current_time(), target.address))
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        await trio.sleep(self.seconds)
        self.running -= 1
        return self.findings.get(target.address, GOOD)

    async def run(
        self, user: str | None, command: Sequence[str], environment: dict[str, str]
    ) -> str | None:
        self.commands.append((user, tuple(command), environment))
        await trio.sleep(self.command_seconds)
        return self.status
