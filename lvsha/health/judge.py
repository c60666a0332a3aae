"""Decide from findings whether one real server of one service is well, and its weight.

This counts; it probes nothing, reads no clock and knows no director. `receive` takes what a
probe found, `expire` notes that time has passed, and `weight` says what the server shall have
since then. What always holds:

* All checks must pass. One that is down takes the server down, and it is up again when none
  is down or undecided.
* A check that has an opinion changes it only after ``rise`` or ``fall`` findings in a row
  that contradict it.
* The first finding decides at once, but where a server is believed to be up before its first
  check (`Rules.unchecked_up`): it takes connections then, and one lost packet must not end
  that, so its checks start as passed.
* A server that was down comes back with a weight that grows from 1 to its own over
  `Rules.slow_start`; one that was never seen down starts with all of it.
* Where only rules or weights are others from now on (`follow`), what was found still counts.

Times are seconds on a monotonic clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvsha.health.opinions import Finding, Opinion

SLOW_START_STEPS: Final = 100
"""A weight that grows does so in at most so many steps: each makes a scheduler anew."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a service makes of findings; see docs/health.md.

    Attributes:
        unchecked_up: a server is believed to be up before its first check.
        remove: one that is down is removed, instead of weight 0.
        drain: so long it has weight 0 before it is removed.
        slow_start: so long the weight grows after it was down.
        quorum: the weights of those that are up must come to so much.
        hysteresis: so much above it the quorum is reached, and so much below it is lost.
    """

    unchecked_up: bool = False
    remove: bool = False
    drain: float = 0.0
    slow_start: float = 0.0
    quorum: int = 1
    hysteresis: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """How many findings in a row change the opinion on a check."""

    rise: int
    fall: int


class _CheckJudge:
    """The opinion on one check."""

    __slots__ = ("_against", "_counts", "finding", "opinion")

    def __init__(self, counts: Counts, opinion: Opinion) -> None:
        self._counts = counts
        self._against = 0
        self.opinion = opinion
        self.finding: Finding | None = None

    def receive(self, finding: Finding) -> bool:
        """Count a finding; whether it agrees with the opinion there is now."""
        self.finding = finding
        meant = Opinion.UP if finding.passed else Opinion.DOWN
        if meant is self.opinion:
            self._against = 0
            return True
        self._against += 1
        needed = self._counts.rise if finding.passed else self._counts.fall
        if self.opinion is not Opinion.UNKNOWN and self._against < needed:
            return False
        self.opinion = meant
        self._against = 0
        return True


class Judge:
    """One real server of one service.

    Attributes:
        own_weight: what the pair file or the operator gave it.
        opinion: of the server.
        reason: why; of the finding that decided.
        since: when the opinion was formed.

    Args:
        rules: of the service.
        checks: how many findings each of them takes.
        own_weight: what the pair file or the operator gives it.
        now: the time.
        former: what was thought of it while its checks were others. Who was up is believed to be
            so, and who was not is waited for, whatever the rules say of one not yet checked.
    """

    def __init__(
        self,
        rules: Rules,
        checks: Sequence[Counts],
        own_weight: int,
        now: float,
        former: "Judge | None" = None,
    ) -> None:
        assert checks, "a server without checks needs no judge"
        self.own_weight = own_weight
        self.reason = "not checked yet"
        self.since = now
        self._rules = rules
        first = Opinion.UP if rules.unchecked_up else Opinion.UNKNOWN
        if former is not None:
            first = Opinion.UP if former.opinion is Opinion.UP else Opinion.UNKNOWN
        self._checks = [_CheckJudge(counts, first) for counts in checks]
        self.opinion: Opinion = first
        self._growing_since: float | None = None
        self._was_down = False
        if former is not None:
            self._inherit(former)

    def _inherit(self, former: "Judge") -> None:
        """Go on with what does not depend on the checks, or is the best guess until the first."""
        self._was_down = former.opinion is Opinion.DOWN or former._was_down
        if former.opinion is self.opinion:
            self.since = former.since
        if self._rules.slow_start:
            self._growing_since = former._growing_since
        if len(former._checks) == len(self._checks):
            for check, before in zip(self._checks, former._checks, strict=True):
                check.finding = before.finding

    def follow(self, rules: Rules, own_weight: int) -> None:
        """Go by other rules, and another weight, from now on; the checks are the same."""
        self._rules = rules
        self.own_weight = own_weight
        if not rules.slow_start:
            self._growing_since = None

    def receive(self, check: int, finding: Finding, now: float) -> bool:
        """Take note of what a probe found.

        Returns:
            Whether the opinion on that check agrees; if not, look again soon.
        """
        settled = self._checks[check].receive(finding)
        opinions = [each.opinion for each in self._checks]
        if Opinion.DOWN in opinions:
            new = Opinion.DOWN
        else:
            new = Opinion.UNKNOWN if Opinion.UNKNOWN in opinions else Opinion.UP
        self._form(new, now)
        self.reason = self._explained(check)
        return settled

    def _form(self, new: Opinion, now: float) -> None:
        if new is self.opinion:
            return
        if new is not Opinion.UP:
            self._growing_since = None
        elif (self.opinion is Opinion.DOWN or self._was_down) and self._rules.slow_start:
            self._growing_since = now
        self.opinion = new
        self.since = now

    def _explained(self, latest: int) -> str:
        """Why the opinion is what it is: the last finding of a check that is down, if any is."""
        down = [each.finding for each in self._checks if each.opinion is Opinion.DOWN]
        finding = next((each for each in down if each is not None and not each.passed), None)
        finding = finding or self._checks[latest].finding
        assert finding is not None, "it was just received"
        return finding.reason

    def expire(self, now: float) -> None:
        """Take note that time has passed."""
        if self._growing_since is not None and now >= self._growing_since + self._rules.slow_start:
            self._growing_since = None

    @property
    def full_weight(self) -> int:
        """What it has when it is up and has grown: its own, or the least that scripts ask for.

        A weight of 0 of its own stays: it is the operator's way to let a server drain.
        """
        asked = [
            each.finding.weight
            for each in self._checks
            if each.finding is not None and each.finding.weight is not None
        ]
        return min(asked) if asked and self.own_weight else self.own_weight

    def weight(self, now: float) -> int:
        """What the server shall have now; 0 unless it is up."""
        if self.opinion is not Opinion.UP:
            return 0
        full = self.full_weight
        if self._growing_since is None or not full:
            return full
        steps = min(full, SLOW_START_STEPS)
        return max(1, full * min(steps, self._step(steps, self._growing_since, now)) // steps)

    def _step(self, steps: int, since: float, now: float) -> int:
        """In which step of growing it is; the first is 1."""
        length = self._rules.slow_start / steps
        step = math.floor((now - since) / length) + 1
        # Dividing may round down to the step before the one that begins now.
        return step + 1 if since + step * length <= now else step

    def deadline(self, now: float) -> float | None:
        """When the weight changes by itself; None for never."""
        if self._growing_since is None:
            return None
        steps = min(self.full_weight, SLOW_START_STEPS) or 1
        step = self._step(steps, self._growing_since, now)
        return self._growing_since + step * (self._rules.slow_start / steps)
