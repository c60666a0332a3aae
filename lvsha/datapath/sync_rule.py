"""Decide as the kernel's sync daemon does whether backups are told of a connection now.

This is ``ip_vs_sync_conn_needed`` of Linux and nothing else: a pure function of what is known
of a connection, of the settings ``net.ipv4.vs.sync_*`` and of the time. The order of its steps
is the kernel's. When it is asked, and about which connections, is in `lvsha.datapath.telling`.

The kernel remembers two things of a connection: the state that it told last, and when the
connection would have ended then. The latter has a tick of four; its two low bits count how
often the same end was told (`SyncSettings.retries`).

One thing is left out: the kernel may ask about a connection on two processors at once, of which
only one may tell it. Here nobody else has told it meanwhile.

Times are ticks, the kernel's jiffies, of which a second has `HZ`.
"""

from typing import Final, NamedTuple

from lvsha.datapath import sctp_states, tcp_states
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import Protocol
from lvsha.settings import Settings

HZ: Final = 250
"""Ticks in a second; Debian's kernels and most others have so many."""
NEVER_TOLD: Final = 0
"""The end that a connection has which was never told."""

_FIRST_TICK: Final = (1 << 32) - 300 * HZ
"""Where the kernel's ticks begin: far from `NEVER_TOLD`, whatever the clock says."""
_RETRIES_MASK: Final = 3
_DIFFERENCE_MIN: Final = 10 * HZ
_TCP: Final = int(Protocol.TCP)
_SCTP: Final = int(Protocol.SCTP)
_TCP_ESTABLISHED: Final = int(TcpState.ESTABLISHED)
_SCTP_ESTABLISHED: Final = int(SctpState.ESTABLISHED)


class SyncSettings(NamedTuple):
    """The settings, by which `needed` decides.

    Attributes:
        threshold: requests after which a connection is told.
        period: and again after so many; 0: not again.
        refresh_period: ticks; a connection is told again when its end has moved by so much,
            or by half of its time-out; 0: whether it has does not matter.
        retries: how often the same end is told again.
        persist_mode: of persistent services only templates are told.
    """

    threshold: int
    period: int
    refresh_period: int
    retries: int
    persist_mode: bool


class SyncFacts(NamedTuple):
    """What is known of a connection.

    Attributes:
        protocol: its number.
        state: in the protocol's table.
        told_state: the state that was told last; another than any state if none was.
        timeout: that the state gives it, in ticks.
        sync_end: when it would have ended when it was last told; `NEVER_TOLD` if it was not.
        is_template: whether it is a template.
        in_persistence: whether it belongs to a template, by way of others perhaps.
        packets: requests that were seen; of what is not told for a request, the threshold.
    """

    protocol: int
    state: int
    told_state: int
    timeout: int
    sync_end: int
    is_template: bool
    in_persistence: bool
    packets: int


class SyncDecision(NamedTuple):
    """Whether to tell, and what to remember.

    Attributes:
        send: whether backups are told.
        sync_end: of the connection from now on.
        told_state: likewise; None leaves it as it is.
    """

    send: bool
    sync_end: int
    told_state: int | None


def tick(now: float) -> int:
    """The tick of a time in seconds."""
    return _FIRST_TICK + int(now * HZ)


def sync_settings(settings: Settings) -> SyncSettings:
    """What of all settings is needed here."""
    threshold, period = settings.sync_threshold
    return SyncSettings(
        threshold,
        period,
        settings.sync_refresh_period * HZ,
        settings.sync_retries,
        settings.sync_persist_mode,
    )


def needed(facts: SyncFacts, settings: SyncSettings, now: int) -> SyncDecision:
    """Whether backups are told of a connection at this tick."""
    sync_end = (now + facts.timeout) & ~_RETRIES_MASK
    not_now = SyncDecision(send=False, sync_end=facts.sync_end, told_state=None)
    if not facts.is_template:
        if settings.persist_mode and facts.in_persistence:
            return not_now
        if not _is_told_of(facts):
            return not_now
        if _is_new_end(facts):
            return SyncDecision(send=True, sync_end=sync_end, told_state=facts.state)
    refresh_period = settings.refresh_period
    if refresh_period > 0:
        difference = min(refresh_period, max(facts.timeout >> 1, _DIFFERENCE_MIN))
        if abs(sync_end - facts.sync_end) < difference:
            retries = facts.sync_end & _RETRIES_MASK
            if retries >= settings.retries:
                return not_now
            if now < facts.sync_end - facts.timeout + (refresh_period >> 3):
                return not_now
            sync_end |= retries + 1
    if settings.period > 0:
        counted = facts.packets % settings.period == settings.threshold
        if not facts.is_template and not counted:
            return not_now
    elif refresh_period == 0 and facts.packets != settings.threshold:
        return not_now
    return SyncDecision(send=True, sync_end=sync_end, told_state=facts.state)


def _is_told_of(facts: SyncFacts) -> bool:
    """Whether backups are told of connections in this state."""
    if facts.protocol == _TCP:
        return tcp_states.TOLD[facts.state]
    if facts.protocol == _SCTP:
        return sctp_states.TOLD[facts.state]
    return True


def _is_new_end(facts: SyncFacts) -> bool:
    """Whether a connection has come into a closing state that was not told yet."""
    if facts.state == facts.told_state:
        return False
    if facts.protocol == _TCP:
        return facts.state != _TCP_ESTABLISHED
    return facts.protocol == _SCTP and facts.state != _SCTP_ESTABLISHED
