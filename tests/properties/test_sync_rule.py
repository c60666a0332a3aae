"""The kernel's rule against its own text, written down line by line."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvsha.datapath.service_policy import TellRule, TellWhen
from lvsha.datapath.sync_rule import HZ, SyncFacts, SyncSettings, needed, tick
from lvsha.datapath.tcp_states import INPUT
from lvsha.model import ConnectionChanged, Protocol
from tests import packets
from tests.laboratory import C4, V4, Laboratory

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


# The whole of it: one client, its template and its connections


class Naive:
    """What the kernel does with the packets of connections that all belong to one template."""

    def __init__(self, sysctl: SyncSettings, *, persistent: bool) -> None:
        self.sysctl = sysctl
        self.template = FACTS._replace(state=0, told_state=0, packets=0, is_template=True)
        self.persistent = persistent
        self.entries: dict[int, Entry] = {}
        self.facts: dict[int, SyncFacts] = {}

    def packet(self, port: int, state: int, seconds: float, now: float) -> list[tuple[bool, int]]:
        """Which records a packet makes: of a template or not, and with which state."""
        jiffies = tick(now)
        facts = self.facts.get(port, FACTS._replace(told_state=0, packets=0))
        facts = facts._replace(
            state=state,
            timeout=int(seconds * HZ),
            in_persistence=self.persistent,
            packets=facts.packets + 1,
        )
        entry = self.entries.setdefault(port, Entry(facts))
        self.facts[port] = facts
        sent = []
        if conn_needed(entry, facts, self.sysctl, jiffies):
            sent.append((False, state))
        if self.persistent:
            self.template = self.template._replace(
                packets=self.template.packets + 1, state=self.template.state or int(state == 1)
            )
            entry = self.entries.setdefault(0, Entry(self.template))
            if conn_needed(entry, self.template, self.sysctl, jiffies):
                sent.append((True, self.template.state))
        return sent


TCP_SECONDS = (2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120)
happenings = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([packets.SYN, *[packets.ACK] * 5, packets.FIN | packets.ACK]),
        st.sampled_from([0.0, 0.0, 0.004, 0.5, 2.0, 5.0]),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=200)
@given(drawn_settings, st.booleans(), happenings)
def test_a_director_tells_what_the_kernels_text_says(
    sysctl: SyncSettings, persistent: bool, history: list[tuple[int, int, float]]
) -> None:
    laboratory = Laboratory(reporting=TellRule(TellWhen.THRESHOLD))
    laboratory.server(laboratory.service(persistence=900 if persistent else 0))
    laboratory.set(
        sync_threshold=f"{sysctl.threshold} {sysctl.period}",
        sync_refresh_period=sysctl.refresh_period // HZ,
        sync_retries=sysctl.retries,
        sync_persist_mode=int(sysctl.persist_mode),
        conn_reuse_mode=0,
    )
    naive = Naive(sysctl, persistent=persistent)
    states_of: dict[int, int] = {}
    for number, flags, passed in history:
        port = 40000 + number
        laboratory.now += passed
        if port not in states_of:
            flags = packets.SYN
        laboratory.send("client", packets.tcp(C4, port, V4, 80, flags))
        state = states_of[port] = INPUT[flags][states_of.get(port, 0)]
        changes = laboratory.director.registry.take_changes().get(laboratory.tally.sync_id, [])
        told = [
            (change.record.is_template, change.record.state)
            for change in changes
            if isinstance(change, ConnectionChanged)
        ]
        assert sorted(told) == sorted(naive.packet(port, state, TCP_SECONDS[state], laboratory.now))
