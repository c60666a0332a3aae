"""Decide which director holds the addresses of one virtual router.

This is the VRRP state machine of RFC 9568, section 6.4, with the state FAULT that
keepalived adds, and nothing else. Version 2 (RFC 3768) is the same machine with another
skew. It opens no socket, reads no clock and draws no random number: every method takes the
current time and returns the actions that the caller must carry out, in that order.

What always holds, whatever a peer sends:

* `AcquireAddresses` is returned only by the step that enters MASTER and
  `ReleaseAddresses` only by the step that leaves it, so that the two alternate.
* `deadline` is None only in INIT and FAULT. A caller that waits for a message or for the
  deadline, whichever is first, can never sleep for ever.
* Before anything else, every method finds out whether a master was stopped for so long
  that its peer must have taken over (a frozen virtual machine, a stopped process). Such a
  master gives up the addresses first, and then listens.

Beyond the RFC:

* A returning node takes the addresses from a master of lower priority only while that is
  permitted, which is when its copy of the connection table is complete. Otherwise it is a
  backup as with preemption off. Where there is no master it always takes over. With
  ``preempt_delay`` it also lets that master go on for so long since it heard it first.
* With ``startup_delay`` a node is no more than a backup for so long after its start, even
  where there is no master: the links of a machine that boots may carry nothing yet.
* The owner (priority 255) starts as MASTER only where it may preempt at once; otherwise it
  is a backup as others are. That it preempts whatever ``preempt`` says is the RFC's. Two
  owners settle by their addresses, as any equal priorities do (erratum 8298).
* With ``needs_consent`` a node that misses the master's advertisements says so
  (`TakeoverDue`) and goes on listening until `consent`; it says so again in each interval.
* Addresses are announced again after a takeover and from time to time, because switches
  and neighbours forget, and after another master was heard.
* A master that is told to hands over to a backup of its choice, whatever the priorities: it
  calls that one by another way than VRRP, goes on until it hears it, and displaces it no
  more. Other speakers are given the priority 0.
* A master that goes on hearing another says so once (`TwoMasters`). It answers once in each
  advertisement interval, and announces once in each `series.ANNOUNCE_GAP`, so that a sender of
  many advertisements cannot make this node send as many.

Times are seconds on a monotonic clock. Intervals on the wire are centiseconds and carry
the suffix ``_cs``.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from lvsha.counters import Counters
from lvsha.failover.actions import (
    REASONS,
    AcquireAddresses,
    Action,
    Actions,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
    TakeoverDue,
    TwoMasters,
)
from lvsha.failover.heard import Gap, Peer
from lvsha.failover.series import Series
from lvsha.model import VrrpState
from lvsha.wire import vrrp2
from lvsha.wire.vrrp import PRIORITY_OWNER, PRIORITY_RESIGN, VERSION, Advertisement

# Three advertisements may be lost (RFC 9568, section 6.1, Active_Down_Interval).
DOWN_ADVERTISEMENTS: Final = 3
# A master that dies is last heard of at times that differ by up to an interval among the
# virtual routers that move together; who is heard of for this much longer is alive.
COMPANION_INTERVALS: Final = 2

SKEW_UNIT_OF_VERSION_2: Final = 1.0
"""Seconds; version 2 counts the skew in 256ths of it whatever the interval (RFC 3768, 6.1)."""

GAPS_MAX: Final = 64

# A successor takes over within milliseconds; its advertisement may be lost a few times.
HAND_OVER_TIME: Final = 1.0


class Election:
    """One virtual router on one node.

    Attributes:
        state: what this node is.
        deadline: when to call `expire`; None for never.
        version: of the protocol, 2 or 3.
        priority: of this node, 1 to 255.
        since: when the state was entered.
        peer: who was heard last; None before that.
        gaps: the last advertisements that came late, at most `GAPS_MAX`.
        fault_reason: why the state is FAULT; None in every other state.
        preemption_permitted: what `permit_preemption` said, or False after a stall.
        needs_consent: somebody else is to be asked whether a silent master is dead.
        awaits_consent: whether it misses the master, and waits for `consent`.
        companions: the virtual routers of this node that move together with this one.
        stepped_aside: it has handed the addresses over, and displaces nobody until it was
            MASTER again.
        transitions: state changes counted by reason, a word of `REASONS`.
        counters: other events.
    """

    def __init__(
        self,
        *,
        vrid: int,
        priority: int,
        interval: float,
        preempt: bool,
        address: bytes,
        version: int = VERSION,
        preempt_delay: float = 0.0,
        startup_delay: float = 0.0,
        series: Series | None = None,
    ) -> None:
        """Describe a router; nothing happens before `start`.

        Args:
            vrid: the number of the virtual router.
            priority: 1 to 255, which is the owner's.
            interval: between own advertisements.
            preempt: whether a master of lower priority may be displaced at all.
            address: the own primary address, which decides between equal priorities
                (RFC 9568, section 6.4.3); it may be set anew.
            version: of the protocol, which tells the skew.
            preempt_delay: how long a master of lower priority is let go on.
            startup_delay: how long nothing is taken after `start`.
            series: when addresses are announced.
        """
        assert 1 <= vrid <= 255
        assert PRIORITY_RESIGN < priority <= PRIORITY_OWNER
        assert interval > 0
        assert version in {vrrp2.VERSION, VERSION}
        self.vrid = vrid
        self.version = version
        self.priority = priority
        self.interval = interval
        self.preempt = preempt or priority == PRIORITY_OWNER
        self.preempt_delay = preempt_delay
        self.startup_delay = startup_delay
        self.address = address
        self.state = VrrpState.INIT
        self.since: float | None = None
        self.peer: Peer | None = None
        self.gaps: deque[Gap] = deque(maxlen=GAPS_MAX)
        self.fault_reason: str | None = None
        self.preemption_permitted = False
        self.needs_consent = False
        self.awaits_consent = False
        self.companions: Sequence[Election] = ()
        self.stepped_aside = False
        self.transitions = Counters()
        self.counters = Counters()
        self._started = False
        self._quiet_until = -math.inf
        # BACKUP: the timer, how it will be explained, the rate of the master, and when one
        # of lower priority was heard last, and first.
        self._down_at = math.inf
        self._down_reason = "master_silent"
        self._master_interval = interval
        self._yielded_at = -math.inf
        self._yields_since = math.inf
        # MASTER: until when a backup that was chosen may displace it, and until when one that
        # was chosen does not yield to the master before it.
        self._handing_over_until = -math.inf
        self._called_by: bytes | None = None
        self._called_until = -math.inf
        # MASTER: what is due, and when another master was heard last, and answered last.
        self._advertise_at = math.inf
        self._series = series or Series()
        self._rival_at = -math.inf
        self._answered_at = -math.inf

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None for never."""
        match self.state:
            case VrrpState.INIT | VrrpState.FAULT:
                return None
            case VrrpState.BACKUP:
                return max(self._down_at, self._quiet_until)
            case VrrpState.MASTER:
                return min(self._advertise_at, self._series.next)

    @property
    def skew(self) -> float:
        """Skew_Time: the lower the priority, the later (RFC 9568, section 6.1)."""
        unit = self._master_interval if self.version == VERSION else SKEW_UNIT_OF_VERSION_2
        return (256 - self.priority) * unit / 256

    @property
    def down_interval(self) -> float:
        """Active_Down_Interval: the silence after which the master is thought dead."""
        return DOWN_ADVERTISEMENTS * self._master_interval + self.skew

    def start(self, now: float) -> Actions:
        """Begin to take part; all but the owner listen first (section 6.4.1)."""
        assert not self._started
        self._started = True
        self._quiet_until = now + self.startup_delay
        if self.state is VrrpState.FAULT:
            return ()
        return self._begin(now, "started")

    def receive(self, advertisement: Advertisement, source: bytes, now: float) -> Actions:
        """Take notice of an advertisement for this virtual router.

        Args:
            advertisement: parsed, checked, and of this vrid.
            source: the address of the sender.
            now: the current time.
        """
        assert advertisement.vrid == self.vrid
        stalled = self._give_way_after_stall(now)
        if source == self.address:
            # A loop in the network sends our own words back to us.
            self.counters.add("own_advertisements")
            return stalled
        match self.state:
            case VrrpState.INIT | VrrpState.FAULT:
                self.counters.add("ignored_advertisements")
                return stalled
            case VrrpState.BACKUP:
                self._note(advertisement, source, now)
                self._receive_as_backup(advertisement, now)
                return stalled
            case VrrpState.MASTER:
                self._note(advertisement, source, now)
                return stalled + self._receive_as_master(advertisement, source, now)

    def expire(self, now: float) -> Actions:
        """Do what is due at ``now``; nothing if that is before the deadline."""
        stalled = self._give_way_after_stall(now)
        match self.state:
            case VrrpState.INIT | VrrpState.FAULT:
                return stalled
            case VrrpState.BACKUP:
                if now < max(self._down_at, self._quiet_until):
                    return stalled
                if self._companions_obey(now):
                    self.counters.add("stood_back_for_the_group")
                    self._down_at = now + self.interval
                    return stalled
                if self.needs_consent and self._misses_master(now):
                    self._down_reason = "master_silent"
                    self.counters.add("takeovers_asked_for")
                    self.awaits_consent = True
                    self._down_at = now + self.interval
                    return (*stalled, TakeoverDue())
                return stalled + self._become_master(now)
            case VrrpState.MASTER:
                return stalled + self._expire_as_master(now)

    def consent(self, now: float) -> Actions:
        """Become MASTER, if the master is still missed."""
        stalled = self._give_way_after_stall(now)
        if not self.awaits_consent:
            return stalled
        return stalled + self._become_master(now)

    def give_way(self, now: float) -> Actions:
        """A better master is there, as another path than VRRP says: be a backup."""
        stalled = self._give_way_after_stall(now)
        if self.state is not VrrpState.MASTER:
            return stalled
        return self._fall_back("higher_priority_heard", now)

    def stop(self, now: float) -> Actions:
        """Leave for good: remove the addresses, then resign (section 6.4.3)."""
        stalled = self._give_way_after_stall(now)
        self._started = False
        self.fault_reason = None
        if self.state is VrrpState.INIT:
            return stalled
        return stalled + self._leave(VrrpState.INIT, "stopped", now)

    def fault(self, reason: str, now: float) -> Actions:
        """Hold no addresses until `recover`; a master resigns.

        Args:
            reason: for people; the newest one is kept.
            now: the current time.
        """
        stalled = self._give_way_after_stall(now)
        self.fault_reason = reason
        if self.state is VrrpState.FAULT:
            return stalled
        return stalled + self._leave(VrrpState.FAULT, "fault", now, detail=reason)

    def recover(self, now: float) -> Actions:
        """The fault is over: go on as after `start`."""
        stalled = self._give_way_after_stall(now)
        if self.state is not VrrpState.FAULT:
            return stalled
        self.fault_reason = None
        if self._started:
            return self._begin(now, "recovered")
        return self._enter(VrrpState.INIT, "recovered", now)

    def hand_over(self, now: float) -> Actions:
        """Let whoever takes over within `HAND_OVER_TIME` have the addresses, whatever its priority.

        A master goes on until it hears the successor, so that at no time nobody holds them.
        """
        stalled = self._give_way_after_stall(now)
        if self.state is VrrpState.MASTER:
            # Who takes this one over takes its companions in the same step.
            for one in (self, *self.companions):
                one._handing_over_until = now + HAND_OVER_TIME
        return stalled

    def take_over(self, now: float) -> Actions:
        """The master wants this backup to hold the addresses: take them at once."""
        stalled = self._give_way_after_stall(now)
        if self.state is not VrrpState.BACKUP:
            return stalled
        self._down_reason = "handed_over"
        self._called_by = None if self.peer is None else self.peer.address
        self._called_until = now + HAND_OVER_TIME
        return stalled + self._become_master(now)

    def step_aside(self, now: float) -> Actions:
        """Resign with priority 0, for a backup that knows no other way to be handed over to.

        It takes over after its Skew_Time (RFC 9568, section 6.4.2). Should nobody, this node
        does when the usual time is over.
        """
        stalled = self._give_way_after_stall(now)
        if self.state is not VrrpState.MASTER:
            return stalled
        self.stepped_aside = True
        return self._fall_back("handed_over", now, resigns=True)

    def permit_preemption(self, permitted: bool, now: float) -> Actions:
        """Say whether a master of lower priority may be displaced now.

        A stall withdraws the permission; it must be given again when the copy of the
        connection table is known to be complete.
        """
        stalled = self._give_way_after_stall(now)
        withdrawn = self.preemption_permitted and not permitted
        self.preemption_permitted = permitted
        if withdrawn and self.state is VrrpState.BACKUP:
            # The timer ran on although a lower-priority master was heard. From now on
            # that master counts, from when it was last heard.
            self._down_at = max(self._down_at, self._yielded_at + self.down_interval)
            self._down_reason = "master_silent"
        return stalled

    def change_priority(self, priority: int, now: float) -> Actions:
        """Take part with another priority from now on.

        A master says so at once, as far as `_answer` lets it, so that a better backup need
        not wait for its next advertisement. A backup's timer moves with its skew.
        """
        assert PRIORITY_RESIGN < priority < PRIORITY_OWNER
        stalled = self._give_way_after_stall(now)
        if priority == self.priority:
            return stalled
        skew, self.priority = self.skew, priority
        match self.state:
            case VrrpState.INIT | VrrpState.FAULT:
                return stalled
            case VrrpState.BACKUP:
                self._down_at += self.skew - skew
                if (
                    self._down_reason == "preempted_lower_priority"
                    and self.peer is not None
                    and self.peer.priority >= priority
                ):
                    # The master that was to be displaced is now the better one.
                    self._down_at = max(self._down_at, self._yielded_at + self.down_interval)
                    self._down_reason = "master_silent"
                return stalled
            case VrrpState.MASTER:
                return stalled + self._answer(now)

    def join_masters(self, now: float) -> Actions:
        """Become MASTER at once, as a companion has; only a backup can."""
        stalled = self._give_way_after_stall(now)
        if self.state is not VrrpState.BACKUP or stalled:
            return stalled
        self._down_reason = "group_took_over"
        called_until = max((one._called_until for one in self.companions), default=-math.inf)
        if now < called_until:
            self._called_by = None if self.peer is None else self.peer.address
            self._called_until = called_until
        return self._become_master(now)

    def join_backups(self, now: float) -> Actions:
        """Stop being MASTER, as a companion has, and call the successor."""
        stalled = self._give_way_after_stall(now)
        if self.state is not VrrpState.MASTER:
            return stalled
        self.stepped_aside = any(one.stepped_aside for one in self.companions)
        # Who took the companion over may not have noticed that this one is to be had, too.
        return self._fall_back("group_gave_way", now, resigns=True)

    def _companions_obey(self, now: float) -> bool:
        """Whether a companion still obeys a master, after this one's fell silent.

        Then the master lives and only this router's link is cut. To take over here would
        be to take over everywhere, to be told off there, and so on for ever.
        """
        heard_at = -math.inf if self.peer is None else self.peer.heard_at
        return any(one._obeys_later_than(heard_at, now) for one in self.companions)

    def _misses_master(self, now: float) -> bool:
        """Whether it is silence that ends the listening, also that of one to be displaced."""
        if self._down_reason == "preempted_lower_priority" and self.peer is not None:
            return self.peer.is_late(now)
        return self._down_reason == "master_silent"

    def _obeys_later_than(self, heard_at: float, now: float) -> bool:
        """Whether a master is obeyed now that was alive some time after ``heard_at``."""
        peer = self.peer
        if self.state is not VrrpState.BACKUP or peer is None or peer.priority == PRIORITY_RESIGN:
            return False
        willing = self.preempt and self.preemption_permitted and not self.stepped_aside
        displaces = willing and peer.priority < self.priority
        since = heard_at + COMPANION_INTERVALS * self._master_interval
        return not displaces and peer.heard_at > max(since, now - self.down_interval)

    def _note(self, advertisement: Advertisement, source: bytes, now: float) -> None:
        before = self.peer
        if before is not None and before.address == source and before.is_late(now):
            self.gaps.append(Gap(now, now - before.heard_at, before.interval))
        self.peer = Peer.of(advertisement, source, now)

    def _receive_as_backup(self, advertisement: Advertisement, now: float) -> None:
        """Section 6.4.2."""
        if advertisement.priority == PRIORITY_RESIGN:
            self._down_at = now + self.skew
            self._down_reason = "master_resigned"
            self.awaits_consent = False
            return
        displaces = self.preempt and not self.stepped_aside
        if advertisement.priority < self.priority and displaces:
            self._yielded_at = now
            self._yields_since = min(self._yields_since, now)
            if self.preemption_permitted and now >= self._yields_since + self.preempt_delay:
                self.counters.add("lower_priority_ignored")
                self._down_reason = "preempted_lower_priority"
                self.awaits_consent = False
                return
            self.counters.add("preemption_held_back")
        else:
            self._yields_since = math.inf
        self._obey(advertisement, now)

    def _obey(self, advertisement: Advertisement, now: float) -> None:
        """Listen to a master at the rate it tells (section 6.1, Active_Adver_Interval)."""
        self._master_interval = advertisement.interval_cs / 100
        self._down_at = now + self.down_interval
        self._down_reason = "master_silent"
        self.awaits_consent = False

    def _receive_as_master(
        self, advertisement: Advertisement, source: bytes, now: float
    ) -> Actions:
        """Section 6.4.3."""
        if advertisement.priority == PRIORITY_RESIGN:
            return self._answer(now)
        if now < self._handing_over_until:
            self.stepped_aside = True
            return self._yield_to(advertisement, "handed_over", now)
        if source == self._called_by and now < self._called_until:
            # It was on its way when its sender called us.
            return self._assert_mastery(now)
        if advertisement.priority > self.priority:
            return self._yield_to(advertisement, "higher_priority_heard", now)
        # Addresses compare as unsigned integers in network order, as bytes do.
        if advertisement.priority == self.priority and source > self.address:
            return self._yield_to(advertisement, "greater_address_heard", now)
        return self._assert_mastery(now) + self._tell_of_rival(advertisement, source, now)

    def _yield_to(self, advertisement: Advertisement, reason: str, now: float) -> Actions:
        actions = self._leave(VrrpState.BACKUP, reason, now)
        self._yields_since = math.inf
        self._obey(advertisement, now)
        return actions

    def _assert_mastery(self, now: float) -> Actions:
        """Make the other master give way, and be the last one to announce."""
        answer = self._answer(now)
        # The loser may announce once more before it hears of us.
        self._series.begin_again(now)
        return answer + self._announce_if_due(now)

    def _tell_of_rival(self, rival: Advertisement, source: bytes, now: float) -> Actions:
        """Say that there is another master, if it must have heard of this one."""
        assert self.since is not None
        if now < self.since + self.interval:
            return ()
        self.counters.add("two_masters_seen")
        is_new, self._rival_at = now > self._rival_at + self.down_interval, now
        return (TwoMasters(source, rival.priority),) if is_new else ()

    def _answer(self, now: float) -> Actions:
        """Advertise out of turn, but not more often than in turn."""
        if now < self._answered_at + self.interval:
            self.counters.add("answers_held_back")
            return ()
        self._answered_at = now
        self._advertise_at = now + self.interval
        return (Advertise(self.priority),)

    def _expire_as_master(self, now: float) -> Actions:
        if now < self._advertise_at:
            return self._announce_if_due(now)
        self._advertise_at = now + self.interval
        return (Advertise(self.priority), *self._announce_if_due(now))

    def _announce_if_due(self, now: float) -> Actions:
        return (AnnounceAddresses(),) if self._series.take(now) else ()

    def _give_way_after_stall(self, now: float) -> Actions:
        """Let go of the addresses if the peer must have taken them over meanwhile."""
        # Its timer runs from our last advertisement, and by how little it is longer than
        # three intervals we do not know.
        silent_since = self._advertise_at - self.interval
        limit = DOWN_ADVERTISEMENTS * self.interval
        if self.state is not VrrpState.MASTER or now <= silent_since + limit:
            return ()
        self.preemption_permitted = False
        return self._fall_back("stalled", now)

    def _listen(self, now: float) -> None:
        """Start the timer with our own rate until a master tells another."""
        self._master_interval = self.interval
        self._down_at = now + self.down_interval
        self._down_reason = "master_silent"
        self._yields_since = math.inf

    def _begin(self, now: float, reason: str) -> Actions:
        """Listen as a backup; the owner takes over at once if it may (section 6.4.1)."""
        self._listen(now)
        actions = self._enter(VrrpState.BACKUP, reason, now)
        held_up = self.preempt_delay > 0 or self.stepped_aside or self.needs_consent
        waits = held_up or now < self._quiet_until
        if self.priority < PRIORITY_OWNER or waits or not self.preemption_permitted:
            return actions
        self._down_reason = "owner_started"
        return actions + self._become_master(now)

    def _become_master(self, now: float) -> Actions:
        """Section 6.4.2: advertise first, so that an old master lets go."""
        assert self.state is VrrpState.BACKUP
        self._master_interval = self.interval
        self._advertise_at = now + self.interval
        self._series.begin(now)
        self._answered_at = -math.inf
        self._handing_over_until = -math.inf
        self.stepped_aside = False
        return (
            Advertise(self.priority),
            AcquireAddresses(),
            AnnounceAddresses(),
            *self._enter(VrrpState.MASTER, self._down_reason, now),
        )

    def _fall_back(self, reason: str, now: float, *, resigns: bool = False) -> Actions:
        """Be a backup that has not heard its master yet."""
        self._listen(now)
        return self._leave(VrrpState.BACKUP, reason, now, resigns=resigns)

    def _leave(
        self,
        new: VrrpState,
        reason: str,
        now: float,
        *,
        detail: str | None = None,
        resigns: bool = False,
    ) -> Actions:
        """Go to another state; out of MASTER, remove the addresses and then resign.

        Only a state that will not listen resigns, or who is told to: whoever gives way to a
        better master or finds that it was stalled has no successor to call.
        """
        parting: list[Action] = []
        if self.state is VrrpState.MASTER:
            parting.append(ReleaseAddresses())
            if resigns or new is not VrrpState.BACKUP:
                parting.append(Advertise(PRIORITY_RESIGN))
        return (*parting, *self._enter(new, reason, now, detail=detail))

    def _enter(
        self, new: VrrpState, reason: str, now: float, *, detail: str | None = None
    ) -> Actions:
        assert reason in REASONS
        assert new is not self.state
        old = self.state
        self.state = new
        self.awaits_consent = False
        self.since = now
        self.transitions.add(reason)
        return (StateChanged(old, new, reason if detail is None else f"{reason}: {detail}"),)
