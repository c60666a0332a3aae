"""The kernel's rule against its own text, written down line by line."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvsha.datapath.sync_rule import HZ, SyncFacts, SyncSettings, needed
from lvsha.model import Protocol

TCP_TOLD = (1 << 1) | (1 << 4) | (1 << 6) | (1 << 7) | (1 << 5)
SCTP_TOLD = (1 << 8) | (1 << 9) | (1 << 10) | (1 << 11) | (1 << 13)
ESTABLISHED = {6: 1, 132: 8}


class Entry:
    """What the kernel keeps of a connection."""

    def __init__(self, facts: SyncFacts) -> None:
        self.sync_end = facts.sync_end
        self.old_state = facts.told_state


def conn_needed(entry: Entry, facts: SyncFacts, sysctl: SyncSettings, now: int) -> bool:
    """``ip_vs_sync_conn_needed`` of Linux, with a flag for its ``goto set``."""
    orig = entry.sync_end
    n = (now + facts.timeout) // 4 * 4
    force = jump = False
    if facts.is_template:
        pass
    elif sysctl.persist_mode and facts.in_persistence:
        return False
    elif facts.protocol in ESTABLISHED:
        mask = TCP_TOLD if facts.protocol == 6 else SCTP_TOLD
        if not (1 << facts.state) & mask:
            return False
        force = facts.state != entry.old_state
        jump = force and facts.state != ESTABLISHED[facts.protocol]
    if not jump:
        if sysctl.refresh_period > 0:
            diff = n - orig
            min_diff = max(facts.timeout // 2, 10 * HZ)
            if abs(diff) < min(sysctl.refresh_period, min_diff):
                retries = orig % 4
                if retries >= sysctl.retries:
                    return False
                if now < orig - facts.timeout + sysctl.refresh_period // 8:
                    return False
                n += retries + 1
        if sysctl.period > 0:
            if not facts.is_template and facts.packets % sysctl.period != sysctl.threshold:
                return False
        elif not sysctl.refresh_period and facts.packets != sysctl.threshold:
            return False
    entry.old_state = facts.state
    entry.sync_end = n
    return True


ticks = st.integers(2**32, 2**32 + 4000 * HZ)
states = {Protocol.TCP: 10, Protocol.UDP: 0, Protocol.SCTP: 13}
drawn_settings = st.builds(
    lambda threshold, more, refresh, retries, persist: SyncSettings(
        threshold, threshold + more if more else 0, refresh * HZ, retries, persist
    ),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([0, 0, 1, 6, 40, 400]),
    st.integers(0, 3),
    st.booleans(),
)
facts_of_a_connection = st.sampled_from(sorted(states)).flatmap(
    lambda protocol: st.builds(
        SyncFacts,
        st.just(int(protocol)),
        st.integers(0, states[protocol]),
        st.integers(-1, states[protocol]),
        st.sampled_from([2, 3, 10, 11, 60, 120, 900, 4000]).map(lambda s: s * HZ),
        st.sampled_from([0]) | ticks,
        st.booleans(),
        st.booleans(),
        st.integers(0, 12),
    )
)
FACTS = SyncFacts(6, 1, 1, 900 * HZ, 0, is_template=False, in_persistence=False, packets=3)
steps = st.lists(
    st.tuples(st.integers(0, 50 * HZ), st.sampled_from([0, 1, 4, 5, 6, 7, 8, 9, 13])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=500)
@given(facts_of_a_connection, drawn_settings, ticks, st.integers(-3 * HZ, 3 * HZ))
@example(FACTS, SyncSettings(3, 50, 0, 0, persist_mode=False), 2**32, 0)
def test_one_decision_is_the_kernels(
    facts: SyncFacts, sysctl: SyncSettings, now: int, near: int
) -> None:
    for end in (facts.sync_end, now + facts.timeout + near, now + facts.timeout - 6 * HZ + near):
        of_one = facts._replace(sync_end=end)
        entry = Entry(of_one)
        sent = conn_needed(entry, of_one, sysctl, now)
        decision = needed(of_one, sysctl, now)
        assert decision.send is sent
        assert decision.sync_end == entry.sync_end
        assert decision.told_state == (entry.old_state if sent else None)


@given(facts_of_a_connection, drawn_settings, ticks, steps)
def test_so_is_a_history_of_decisions(
    facts: SyncFacts, sysctl: SyncSettings, now: int, history: list[tuple[int, int]]
) -> None:
    facts = facts._replace(sync_end=0, told_state=-1, packets=0)
    entry = Entry(facts)
    for passed, state in history:
        now += passed
        state = min(state, states[Protocol(facts.protocol)])
        facts = facts._replace(state=state, packets=facts.packets + 1)
        sent = conn_needed(entry, facts, sysctl, now)
        decision = needed(facts, sysctl, now)
        assert (decision.send, decision.sync_end) == (sent, entry.sync_end)
        facts = facts._replace(sync_end=decision.sync_end, told_state=entry.old_state)
