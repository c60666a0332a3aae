"""Ask the second path, the witness and the fencing program before a node takes over.

`lvsha.failover.second_path` decides. This tells the peers on the sync link what this node is
and what its witness says, looks at what they say, and carries rulings out: an election that
misses its master gets consent, after the peer was fenced where that is asked for; a node that
is cut off gives its virtual routers up until it is not any more.

Where the pair file has no such section, nothing here does anything, and elections ask nobody.
"""

import math
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from lvsha.config import Pair, VirtualRouter
from lvsha.failover.second_path import (
    ALIVE_INTERVALS,
    FRESH_INTERVALS,
    Ruling,
    SecondPath,
    Verdict,
)
from lvsha.failover.speaker import RouterStateChanged, Speaker
from lvsha.fencing import Attempt, Fencing, LastHeard, Standing
from lvsha.host import Host
from lvsha.model import VrrpState
from lvsha.node_sync import NodeSync
from lvsha.node_tracking import NodeTracking
from lvsha.recorder import Recorder

_VERDICTS: Final[Mapping[str, Verdict]] = {"stay": Verdict.STAY, "take_over": Verdict.TAKE_OVER}
LOOK_INTERVAL_MIN: Final = 0.02
"""An election that misses its master looks at once; this is for all else."""
_OVER: Final = "advertisements are heard again"

_log = structlog.get_logger()


class NodeSecondPath:
    """What one node asks beside the advertisements.

    Args:
        pair: the pair file.
        name: which of its nodes this is.
        host: runs the fencing program.
        sync: carries what is said.
        tracking: knows the witness, and carries faults.
        recorder: of the node.
    """

    def __init__(
        self,
        pair: Pair,
        name: str,
        host: Host,
        sync: NodeSync,
        tracking: NodeTracking,
        recorder: Recorder,
    ) -> None:
        self._host = host
        self._sync = sync
        self._tracking = tracking
        self._recorder = recorder
        self._table = table = pair.second_path
        self._others = [node for node in pair.nodes if node != name]
        self._routers: dict[str, VirtualRouter] = {}
        self._paths: dict[str, SecondPath] = {}
        self._fencing: Fencing | None = None
        self._speakers: dict[str, Speaker] = {}
        self._given_up: set[str] = set()
        self._on_one_link: set[str] = set()
        if table is None:
            return
        witness = next((one for one in pair.trackers if one.name == table.witness), None)
        for router in pair.virtual_routers:
            self._routers[router.name] = router
            if pair.sync is not None and pair.sync.interface == router.interface:
                self._on_one_link.add(router.name)
            settle = 0.0
            if witness is not None:
                # So long may another node take to lose the same witness, and to say so.
                settle = witness.fall * witness.seconds_between + witness.seconds_at_most
                settle += FRESH_INTERVALS * router.advert_interval
            self._paths[router.name] = SecondPath(
                node=name,
                interval=router.advert_interval,
                settle=settle,
                master_heard=_VERDICTS[table.master_heard],
            )
        if table.fencing is not None:
            self._fencing = Fencing(table.fencing, name, host.run_program, self._fencing_changed)

    # Life

    async def run(self) -> None:
        """Look at everything again and again until cancelled.

        Raises:
            HostError: there is no such user to run the fencing program as.
        """
        if not self._paths:
            return
        for router in self._routers:
            # A peer that has heard a process before this one hears that it is another.
            self._say(router, VrrpState.INIT)
            if router in self._on_one_link:
                _log.warning("the second path is on the network of the first", router=router)
        quickest = min(router.advert_interval for router in self._routers.values())
        if self._fencing is not None:
            await self._host.check_user(self._fencing.user)
        async with trio.open_nursery() as nursery:
            if self._fencing is not None:
                nursery.start_soon(self._fencing.run)
            while True:
                self._look_at_all()
                await trio.sleep(max(ALIVE_INTERVALS * quickest, LOOK_INTERVAL_MIN))

    def adopt(self, speaker: Speaker) -> None:
        """Have a speaker that does not run yet ask before it takes over."""
        if self._paths:
            self._speakers[speaker.name] = speaker
            speaker.election.needs_consent = True

    def state_changed(self, change: RouterStateChanged) -> None:
        """Called by a speaker in the step in which its state changes; never waits."""
        if self._paths:
            self._say(change.router, change.new)

    def due(self, router: str) -> None:
        """An election misses its master."""
        self._look(router)

    # Looking

    def _look_at_all(self) -> None:
        for router in self._speakers:
            self._look(router)

    def _say(self, router: str, state: VrrpState) -> None:
        speaker = self._speakers.get(router)
        priority = 0 if speaker is None else speaker.election.priority
        self._sync.say(self._routers[router].sync_id, state, self._tracking.witness, priority)

    def _look(self, router: str) -> None:
        election, path = self._speakers[router].election, self._paths[router]
        own, now = self._tracking.witness, trio.current_time()
        said = self._sync.said(self._routers[router].sync_id)
        self._say(router, election.state)
        before = path.ruling
        if (
            election.state is VrrpState.MASTER
            or (election.state is VrrpState.BACKUP and election.awaits_consent)
            or (election.state is VrrpState.FAULT and router in self._given_up)
        ):
            ruling = path.judge(election.state, own, said, now, election.priority)
            if ruling != before:
                self._report(router, election.state, ruling, before)
            self._carry_out(router, election.state, ruling)
            return
        path.note(own, said, now)
        path.rest()
        if before is not None and before.alarm and election.state is VrrpState.BACKUP:
            self._report(router, election.state, Ruling(Verdict.STAY, _OVER), before)

    def _report(self, router: str, state: VrrpState, ruling: Ruling, before: Ruling | None) -> None:
        """Tell of what is not as it always is."""
        assert ruling.verdict is not None
        was_alarm = before is not None and before.alarm
        if state is VrrpState.MASTER and not (ruling.alarm or was_alarm):
            return
        verdict = ruling.verdict.value
        log = _log.warning if ruling.alarm else _log.info
        log("second path", router=router, state=state.name, verdict=verdict, reason=ruling.reason)
        self._recorder.note("second_path", router, verdict=verdict, reason=ruling.reason)
        self._tracking.events.publish(
            "second_path",
            router=router,
            state=state.name,
            verdict=verdict,
            reason=ruling.reason,
            alarm=ruling.alarm,
        )

    def _carry_out(self, router: str, state: VrrpState, ruling: Ruling) -> None:
        match ruling.verdict:
            case Verdict.TAKE_OVER:
                if self._may_take_over(router, ruling.reason):
                    self._speakers[router].consent()
            case Verdict.GIVE_WAY:
                self._speakers[router].give_way()
            case Verdict.GIVE_UP if router not in self._given_up:
                self._given_up.add(router)
                self._tracking.give_up(router, f"cut off: {ruling.reason}")
            case Verdict.STAY if state is VrrpState.FAULT:
                self._given_up.discard(router)
                self._tracking.give_up(router, None)
            case _:
                pass

    def _may_take_over(self, router: str, reason: str) -> bool:
        """Whether all who may hold the addresses are fenced, or need not be; else see to it."""
        fencing, path = self._fencing, self._paths[router]
        if fencing is None:
            return True
        said = self._sync.said(self._routers[router].sync_id)
        standings = [
            fencing.fence(node, router, reason, self._last_heard(router, node))
            for node in path.suspects(self._others, said, trio.current_time())
        ]
        if {Standing.RUNNING, Standing.WAITING} & set(standings):
            return False
        return fencing.goes_on or Standing.FAILED not in standings

    def _last_heard(self, router: str, node: str) -> LastHeard:
        """When a peer was heard last on either path."""
        election, path = self._speakers[router].election, self._paths[router]
        peer, spell = election.peer, path.spells.get(node)
        return LastHeard(
            advertised_at=-math.inf if peer is None else peer.heard_at,
            said_at=-math.inf if spell is None else spell.newest_at,
            spell_began_at=-math.inf if spell is None else spell.began_at,
            backup_since=-math.inf if election.since is None else election.since,
            on_the_way=path.fresh,
        )

    def _fencing_changed(self, attempt: Attempt) -> None:
        state, outcome = attempt.standing, attempt.outcome
        self._tracking.events.publish(
            "fencing",
            peer=attempt.peer,
            router=attempt.router,
            state=state.value,
            reason=attempt.reason,
            outcome=None if outcome is None else str(outcome),
        )
        if outcome is None:
            self._recorder.note("fencing_begun", attempt.router, peer=attempt.peer)
            return
        self._recorder.note(
            "fencing_ended", attempt.router, peer=attempt.peer, state=state.value, said=str(outcome)
        )
        self._look_at_all()

    # Observation

    def router_status(self, router: str) -> dict[str, object]:
        """What was ruled for a virtual router, as JSON values; nothing without a section."""
        path = self._paths.get(router)
        if path is None:
            return {}
        now, ruling = trio.current_time(), path.ruling
        verdict = None if ruling is None or ruling.verdict is None else ruling.verdict.value
        return {
            "second_path": {
                "verdict": verdict,
                "reason": None if ruling is None else ruling.reason,
                "alarm": ruling is not None and ruling.alarm,
                "given_up": router in self._given_up,
                "heard": [
                    {
                        "node": one.node,
                        "state": one.state.name,
                        "witness": one.witness.name.lower(),
                        "seconds_ago": now - one.at,
                        "fresh": now < one.at + path.fresh,
                    }
                    for one in self._sync.said(self._routers[router].sync_id)
                ],
                "counters": path.counters.snapshot(),
            }
        }

    def status(self) -> dict[str, object] | None:
        """The witness and the fencing, as JSON values; None without a section."""
        table = self._table
        if table is None:
            return None
        return {
            "witness": table.witness,
            "witness_state": self._tracking.witness.name.lower(),
            "master_heard": table.master_heard,
            "fencing": None if self._fencing is None else self._fencing.status(),
        }
