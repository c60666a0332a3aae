"""Judge what silence means, by what is heard on a second path and by a witness.

VRRP knows one path: who hears no advertisement thinks that the master is dead. Where nodes
hear each other on the sync link as well, a network that is cut between them can be told from
a master that died; where both ask a witness (a gateway, a third host), they can tell which
of them is cut off. `TABLE` has a row for what each combination means; docs/second-path.md has
the same rows with the reasons.

It opens no socket and reads no clock; every method takes the current time.

What always holds:

* What a peer has said is used for `FRESH_INTERVALS` and not longer. That is less than the
  time after which its advertisements are missed, so whoever dies has become silent on both
  paths by then, and no takeover is later for the second path.
* A verdict that rests on a difference between two witnesses is given only when it has stood
  for ``settle`` seconds: of two who lose the same witness, one always notices first.
* A backup that was told to take over from a master that lives waits for longer than that
  master waits before it gives up by the same rows.

Times are seconds on a monotonic clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from lvsha.counters import Counters
from lvsha.model import VrrpState, Witness

ALIVE_INTERVALS: Final = 0.5
"""Heartbeats are at most so many advertisement intervals apart."""
FRESH_INTERVALS: Final = 1.75
"""Three heartbeats in a row may be lost. A master that dies was heard on either path at times
that differ by up to an interval, and is missed on the first after three of them."""

PAUSE_MIN: Final = 1.0
"""A peer that is silent for less was late, or this node was; no machine is back so soon."""


class Verdict(Enum):
    """What a node shall do."""

    TAKE_OVER = "take over"
    STAY = "stay"
    GIVE_WAY = "give way"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Said:
    """What another node said last on the sync link, and when."""

    node: str
    state: VrrpState
    witness: Witness
    at: float
    priority: int = 0


@dataclass(slots=True)
class Spell:
    """Words of a peer without a pause between them that all say the same.

    Attributes:
        is_master: whether they say that it is MASTER.
        began_at, newest_at: when the first and the newest of them came.
    """

    is_master: bool
    began_at: float
    newest_at: float


@dataclass(frozen=True, slots=True)
class View:
    """What a node sees.

    Attributes:
        state: BACKUP that misses the advertisements, MASTER, or FAULT after it gave up.
        heard: what a peer says it is; None if none is heard on the sync link.
        own: what this node finds of its witness.
        peer: what that peer finds of its own. Of one that is not heard, UNREACHABLE if both
            had lost it while they heard each other, and otherwise NONE.
        better: whether that peer has the higher priority.
    """

    state: VrrpState
    heard: VrrpState | None
    own: Witness
    peer: Witness
    better: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a view means.

    Attributes:
        verdict: what to do; None to do as the operator has chosen for a master that lives.
        reason: for people; it names the row.
        alarm: whether somebody should look.
        lasting: whether it must have stood for a while.
    """

    verdict: Verdict | None
    reason: str
    alarm: bool = False
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Views and what they mean; of each field, the values that fit."""

    state: VrrpState
    heard: frozenset[VrrpState | None]
    own: frozenset[Witness]
    peer: frozenset[Witness]
    ruling: Ruling
    better: bool = False
    """Whether it is for a better peer only."""

    def fits(self, view: View) -> bool:
        """Whether a view is one of them."""
        return (
            view.state is self.state
            and view.heard in self.heard
            and view.own in self.own
            and view.peer in self.peer
            and (view.better or not self.better)
        )


_INIT, _BACKUP, _MASTER, _FAULT = VrrpState
_ANY_HEARD: Final = frozenset({None, *VrrpState})
_ANY: Final = frozenset(Witness)
_SEEN: Final = frozenset({Witness.REACHABLE})
_LOST: Final = frozenset({Witness.UNREACHABLE})
_NOT_SEEN: Final = frozenset({Witness.UNREACHABLE, Witness.UNKNOWN})


def _heard(*states: VrrpState | None) -> frozenset[VrrpState | None]:
    return frozenset(states)


def _ruling(verdict: Verdict | None, reason: str, mode: str = "") -> Ruling:
    return Ruling(verdict, reason, "alarm" in mode, "lasting" in mode)


_TAKE_OVER, _STAY, _GIVE_WAY, _GIVE_UP = Verdict

TABLE: Final = (
    Row(_BACKUP, _heard(_MASTER), _SEEN, _LOST, _ruling(
        _TAKE_OVER, "the master lives, but this node alone reaches the witness", "alarm lasting"
    )),
    Row(_BACKUP, _heard(_MASTER, _BACKUP), _LOST, _SEEN, _ruling(
        _GIVE_UP, "the peer alone reaches the witness", "alarm lasting"
    )),
    Row(_BACKUP, _heard(_MASTER), _SEEN, _SEEN, _ruling(
        _STAY, "the master lives and both reach the witness", "alarm"
    )),
    Row(_BACKUP, _heard(_MASTER), _ANY, _ANY, _ruling(
        None, "the master lives, and no witness says who is cut off", "alarm"
    )),
    Row(_BACKUP, _heard(_INIT, _BACKUP, _FAULT), _ANY, _ANY, _ruling(
        _TAKE_OVER, "the peer lives and does not hold the addresses"
    )),
    Row(_BACKUP, _heard(None), _LOST, _LOST, _ruling(
        _TAKE_OVER, "nothing is heard of the peer, and the witness had failed both"
    )),
    Row(_BACKUP, _heard(None), _NOT_SEEN, _ANY, _ruling(
        _STAY, "nothing is heard of the peer, nor of the witness", "alarm"
    )),
    Row(_BACKUP, _heard(None), _ANY, _ANY, _ruling(
        _TAKE_OVER, "nothing is heard of the peer"
    )),
    Row(_MASTER, _heard(_MASTER, _BACKUP), _LOST, _SEEN, _ruling(
        _GIVE_UP, "the peer alone reaches the witness", "alarm lasting"
    )),
    Row(_MASTER, _heard(_MASTER), _SEEN, _LOST, _ruling(
        _STAY, "the peer is master, too, but this node alone reaches the witness", "alarm"
    )),
    Row(_MASTER, _heard(_MASTER), _SEEN, _SEEN, _ruling(
        _GIVE_WAY, "a better master lives, and both reach the witness", "alarm lasting"
    ), better=True),
    Row(_MASTER, _heard(_MASTER), _ANY, _ANY, _ruling(
        None, "a better master lives, and no witness says who is cut off", "alarm lasting"
    ), better=True),
    Row(_MASTER, _heard(_MASTER), _ANY, _ANY, _ruling(
        _STAY, "the peer is master, too", "alarm"
    )),
    Row(_MASTER, _heard(None), _LOST, _ANY, _ruling(
        _STAY, "nothing is heard of the peer, nor of the witness", "alarm"
    )),
    Row(_MASTER, _ANY_HEARD, _ANY, _ANY, _ruling(
        _STAY, "nobody is better placed"
    )),
    Row(_FAULT, _ANY_HEARD, _NOT_SEEN, _LOST, _ruling(
        _STAY, "the witness has failed both"
    )),
    Row(_FAULT, _ANY_HEARD, _NOT_SEEN, _ANY, _ruling(
        _GIVE_UP, "this node does not reach the witness"
    )),
    Row(_FAULT, _ANY_HEARD, _ANY, _ANY, _ruling(
        _STAY, "the witness answers"
    )),
)  # fmt: skip
"""What each view means: the first row that fits. For who has given up, STAY is to be a backup."""


def look_up(view: View) -> Ruling:
    """What a view means."""
    return next(row.ruling for row in TABLE if row.fits(view))


class SecondPath:
    """What one virtual router of one node knows beside the advertisements.

    Attributes:
        ruling: the newest; None while nothing is to be judged.
        master: the peer that said last that it is MASTER; None before any did.
        spells: the newest of each peer. A peer that was off begins another when it is back.
        counters: rulings by verdict, each counted when it is another than before.
    """

    def __init__(self, *, node: str, interval: float, settle: float, master_heard: Verdict) -> None:
        """Describe it.

        Args:
            node: this one's name, which decides between equal priorities.
            interval: between advertisements.
            settle: how long the witnesses must differ.
            master_heard: the verdict on a master that lives where no witness decides.
        """
        assert master_heard in {Verdict.STAY, Verdict.TAKE_OVER}
        self.ruling: Ruling | None = None
        self.master: str | None = None
        self.spells: dict[str, Spell] = {}
        self.counters = Counters()
        self._node = node
        self.fresh = FRESH_INTERVALS * interval
        self._pause = max(self.fresh, PAUSE_MIN)
        self._settle = settle
        self._master_heard = master_heard
        self._failed_both = False
        self._standing: Ruling | None = None
        self._since = 0.0

    def note(self, own: Witness, said: Iterable[Said], now: float) -> list[Said]:
        """Take note of what was said, at least as often as heartbeats come.

        Returns:
            What is fresh of it, the most important first.
        """
        fresh = []
        for one in said:
            self._follow(one)
            if now < one.at + self.fresh:
                fresh.append(one)
        fresh.sort(key=_importance)
        if fresh and fresh[0].state is VrrpState.MASTER:
            self.master = fresh[0].node
        if own is Witness.REACHABLE:
            self._failed_both = False
        elif own is Witness.UNREACHABLE and any(one.witness is own for one in fresh):
            self._failed_both = True
        return fresh

    def _follow(self, said: Said) -> None:
        spell, is_master = self.spells.get(said.node), said.state is VrrpState.MASTER
        goes_on = spell is not None and said.at <= spell.newest_at + self._pause
        if spell is not None and goes_on and spell.is_master is is_master:
            spell.newest_at = said.at
        else:
            self.spells[said.node] = Spell(is_master, said.at, said.at)

    def judge(
        self,
        state: VrrpState,
        own: Witness,
        said: Iterable[Said],
        now: float,
        priority: int = 0,
    ) -> Ruling:
        """Say what a node shall do.

        Args:
            state: as of a `View`.
            own: what it finds of its witness.
            said: the last words of all peers.
            now: the current time.
            priority: this node's own.
        """
        fresh = self.note(own, said, now)
        if fresh:
            first = fresh[0]
            better = (first.priority, first.node) > (priority, self._node)
            view = View(state, first.state, own, first.witness, better)
        else:
            unheard = Witness.UNREACHABLE if self._failed_both else Witness.NONE
            view = View(state, None, own, unheard)
        found = look_up(view)
        if found is not self._standing:
            self._standing, self._since = found, now
        verdict = self._chosen(state) if found.verdict is None else found.verdict
        if found.lasting and now < self._since + self._patience(verdict):
            verdict = Verdict.STAY
        ruling = replace(found, verdict=verdict)
        if ruling != self.ruling:
            self.ruling = ruling
            self.counters.add(f"{verdict.name.lower()}_as_{state.name.lower()}")
        return ruling

    def rest(self) -> None:
        """There is nothing to judge: advertisements come."""
        self.ruling = self._standing = None

    def suspects(self, others: Sequence[str], said: Iterable[Said], now: float) -> list[str]:
        """Who may still hold the addresses: the last master, or any, that does not deny it."""
        free = {
            one.node
            for one in said
            if now < one.at + self.fresh and one.state is not VrrpState.MASTER
        }
        candidates = others if self.master is None else [self.master]
        return [node for node in candidates if node not in free]

    def _chosen(self, state: VrrpState) -> Verdict:
        """What the operator wants where a master lives and no witness decides."""
        if state is not VrrpState.MASTER:
            return self._master_heard
        return Verdict.GIVE_WAY if self._master_heard is Verdict.STAY else Verdict.STAY

    def _patience(self, verdict: Verdict) -> float:
        if verdict is Verdict.GIVE_WAY:
            # Two that hear each other's advertisements have settled it by then.
            return self.fresh
        # The master that is to give up hears the same a little later.
        return self._settle + (self.fresh if verdict is Verdict.TAKE_OVER else 0.0)


def _importance(said: Said) -> tuple[bool, bool, bool]:
    return (
        said.state is not VrrpState.MASTER,
        said.state is not VrrpState.BACKUP,
        said.witness is not Witness.REACHABLE,
    )
