"""What a leader tells: live changes, at what pace, and again when it is asked."""

import pytest

from lvsha.model import BUCKETS, ConnectionChange, ConnectionChanged
from lvsha.sync.actions import Action, Send
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import (
    Changes,
    GapRequest,
    Heartbeat,
    Origin,
    PeerState,
    Role,
    SnapshotRequest,
    Sums,
    SumsRequest,
)
from lvsha.sync.overlap import DRAIN, OVERLAP
from lvsha.sync.pace import BURST, Pace
from lvsha.sync.replica import Replica
from lvsha.sync.source import RESEND_MAX, RESEND_PAUSE, SUMS_PATIENCE, SUMS_PAUSE
from lvsha.sync.tail import WAITS
from tests.replicas import (
    HEARTBEAT,
    START,
    East,
    Table,
    changed,
    connection,
    ended,
    expire_until,
    leading,
    sent,
    sent_of,
    started,
    template,
)

SLOW = Pace(live_datagrams_per_tick=1, tick=0.01)


def told(actions: list[Action]) -> list[Changes]:
    return sent_of(Changes, actions)


def follower(replica: Replica, node: str = "east") -> East:
    """A peer that follows the replica."""
    east = East(replica, node=node, epoch=len(node))
    east.role, east.term = Role.FOLLOW, 0
    east.heartbeat(leader="west")
    return east


def ask_again(east: East, *ranges: tuple[int, int], now: float = START) -> list[Action]:
    return east.say(GapRequest(east.origin(), "west", 77, ranges), now)


# --- the queue --------------------------------------------------------------------------------


def test_a_change_leaves_at_once_when_nothing_waits() -> None:
    (message,) = told(leading().tell([changed(1), ended(2)], START))
    assert (message.records, message.ended) == ([connection(1)], [connection(2).key])
    assert message.origin.sequence == 1


def test_a_follower_tells_nothing() -> None:
    assert started().tell([changed(1)], START) == []


def test_a_node_that_stopped_to_lead_still_tells_for_a_while() -> None:
    replica = leading()
    replica.follow(START)
    (message,) = told(replica.tell([changed(1)], START + DRAIN - 0.1))
    assert message.origin.role is Role.DRAIN
    expire_until(replica, START + DRAIN)
    assert replica.tell([changed(2)], START + DRAIN) == []


def test_what_waits_is_one_entry_for_each_connection_with_its_newest_state() -> None:
    replica = leading(pace=SLOW)
    replica.tell([changed(0)], START)
    assert replica.tell([changed(1, 1), changed(2, 1), changed(1, 5)], START) == []
    assert replica.tell([ended(2)], START) == []
    assert replica.deadline == START + 0.01
    (message,) = told(replica.expire(START + 0.01))
    assert (message.records, message.ended) == ([connection(1, 5)], [connection(2).key])


def test_the_lag_of_what_waits_is_shown() -> None:
    replica = leading(pace=SLOW)
    replica.tell([changed(0)], START)
    replica.tell([changed(1, 1)], START + 0.001)
    replica.tell([changed(1, 2)], START + 0.002)
    lag = replica.status(START + 0.004)["lag"]
    assert lag == {"changes_queued": 1, "oldest_ms": pytest.approx(3.0)}


def test_many_changes_leave_in_full_datagrams_at_the_stated_pace() -> None:
    replica = leading(pace=Pace(live_datagrams_per_tick=2, tick=0.01))
    first = replica.tell([changed(number) for number in range(500)], START)
    second = replica.expire(START + 0.01)
    sizes = [len(a.datagram) for a in (*first, *second) if isinstance(a, Send)]
    assert len(sizes) == 4
    assert min(sizes) > 1370
    assert max(sizes) <= 1400


def test_changes_that_come_in_a_moment_leave_together_behind_the_first() -> None:
    replica = leading(pace=Pace(tick=0.01, eager_datagrams_max=2))
    begin = START + OVERLAP
    at_once = [told(replica.tell([changed(n)], begin + n / 10_000)) for n in range(5)]
    assert [len(messages) for messages in at_once] == [1, 1, 0, 0, 0]
    (last,) = told(replica.expire(begin + 0.0101))
    assert last.records == [connection(n) for n in (2, 3, 4)]


def test_a_full_queue_makes_followers_notice_a_gap() -> None:
    replica = leading(pace=Pace(queue_max=2, live_datagrams_per_tick=1))
    (first,) = told(replica.tell([changed(0)], START))
    replica.tell([changed(number) for number in range(1, 6)], START)
    (second,) = told(replica.expire(START + 1))
    assert second.origin.sequence == first.origin.sequence + 2
    assert replica.counters["queue_overflow"] == 3
    (third,) = told(replica.tell([changed(9)], START + 2))
    assert third.origin.sequence == second.origin.sequence + 1


def test_nobody_waits_for_the_number_that_was_left_out() -> None:
    replica = leading(pace=Pace(queue_max=1, live_datagrams_per_tick=1))
    replica.tell([changed(0)], START)
    replica.tell([changed(1), changed(2)], START)
    (second,) = told(replica.expire(START + 0.4))
    (heartbeat,) = sent_of(Heartbeat, replica.expire(START + HEARTBEAT))
    assert heartbeat.oldest == second.origin.sequence


def test_a_heartbeat_says_whether_its_sums_hold_at_its_number() -> None:
    replica = leading(pace=SLOW)
    replica.tell([changed(0)], START)
    replica.tell([changed(1)], START + HEARTBEAT - 0.001)
    replica.tell([changed(2)], START + HEARTBEAT - 0.001)
    (first,) = sent_of(Heartbeat, replica.expire(START + HEARTBEAT))
    assert not first.standing.is_current
    expire_until(replica, START + HEARTBEAT + 0.1)
    (second,) = sent_of(Heartbeat, replica.expire(START + 2 * HEARTBEAT))
    assert second.standing.is_current
    assert second.origin.sequence == 3


def test_a_template_is_told_like_a_connection() -> None:
    record = template(1, b"call")
    (message,) = told(leading().tell([ConnectionChanged(record)], START))
    assert message.records == [record]


# --- the limit of bytes -----------------------------------------------------------------------


def flood(replica: Replica, seconds: float, changes_at_once: int) -> list[tuple[float, Send]]:
    """Tell changes every millisecond; what leaves, and when."""
    left: list[tuple[float, Send]] = []
    now = START
    for step in range(round(seconds * 1000)):
        now = START + step / 1000
        some: list[ConnectionChange] = [
            changed((step * changes_at_once + n) % 5000, step % 9) for n in range(changes_at_once)
        ]
        actions = expire_until(replica, now)
        actions += replica.tell(some, now)
        left += [(now, action) for action in actions if isinstance(action, Send)]
    return left


@pytest.mark.parametrize("rate", [3_000, 20_000, 200_000])
def test_no_more_bytes_of_changes_leave_than_the_limit_lets_through(rate: int) -> None:
    replica = leading(pace=Pace(bytes_per_second=rate))
    left = flood(replica, 4, 40)
    numbered = [(at, len(a.datagram)) for at, a in left if isinstance(sent([a])[0], Changes)]
    whole = sum(size for _, size in numbered)
    # What an idle time has saved, and a datagram that goes a little beyond.
    assert whole <= rate * 4 + rate * BURST + 1400
    assert whole >= rate * 4 * 0.9
    for begin in (0.0, 1.0, 2.0, 3.0):
        second = [size for at, size in numbered if START + begin <= at < START + begin + 1]
        assert sum(second) <= rate * (1 + BURST) + 2 * 1400


def test_the_newest_state_wins_while_bytes_are_short() -> None:
    replica = leading(pace=Pace(bytes_per_second=5_000))
    replica.tell([changed(n) for n in range(300)], START)
    for state in range(2, 9):
        replica.tell([changed(1000, state)], START + state / 1000)
    seen = [r for m in told(expire_until(replica, START + 5)) for r in m.records]
    assert [record for record in seen if record == connection(1000, record.state)] == [
        connection(1000, 8)
    ]


def test_a_change_after_an_idle_time_leaves_at_once_whatever_the_limit() -> None:
    replica = leading(pace=Pace(bytes_per_second=1_000))
    replica.tell([changed(1)], START)
    expire_until(replica, START + 10)
    assert len(told(replica.tell([changed(2)], START + 10))) == 1


def test_a_limit_below_a_datagram_in_its_burst_is_used_in_full() -> None:
    replica = leading(pace=Pace(bytes_per_second=2_000))
    actions = replica.tell([changed(n) for n in range(3000)], START)
    actions += expire_until(replica, START + 4)
    whole = sum(len(a.datagram) for a in actions if isinstance(a, Send) and told([a]))
    assert 7_000 <= whole <= 9_500


def test_a_replica_that_waits_for_bytes_does_not_wake_in_vain() -> None:
    replica = leading(pace=Pace(bytes_per_second=2_000))
    replica.tell([changed(n) for n in range(500)], START)
    wakes = 0
    while replica.deadline is not None and replica.deadline <= START + 4:
        deadline = replica.deadline
        actions = replica.expire(deadline)
        wakes += not sent(actions)
    assert wakes <= len(WAITS)


def test_a_snapshot_goes_on_though_live_changes_use_up_the_limit() -> None:
    replica = leading(pace=Pace(bytes_per_second=50_000))
    east = follower(replica)
    table = Table([connection(n) for n in range(20_000, 21_000)])
    east.say(SnapshotRequest(east.origin(), "west", 77, 0))
    replica.snapshot(table.records_of((1 << BUCKETS) - 1), START)
    flood(replica, 3, 40)
    assert replica.counters["snapshots_sent"] == 1


def test_what_waits_for_the_limit_leaves_at_once_when_the_node_stops() -> None:
    replica = leading(pace=Pace(bytes_per_second=1_000))
    replica.tell([changed(n) for n in range(1000)], START)
    actions = replica.stop(START)
    records = [record for message in told(actions) for record in message.records]
    assert len(records) > 800
    (last,) = sent_of(Heartbeat, actions)
    assert last.origin.role is Role.FOLLOW


def test_what_waits_for_the_limit_leaves_at_once_when_the_drain_ends() -> None:
    replica = leading(pace=Pace(bytes_per_second=1_000))
    actions = replica.tell([changed(n) for n in range(1000)], START)
    actions += replica.follow(START)
    actions += expire_until(replica, START + DRAIN - 0.001)
    assert len([record for message in told(actions) for record in message.records]) < 500
    last = expire_until(replica, START + DRAIN)
    records = [record for message in told(actions + last) for record in message.records]
    assert sorted(records) == sorted(connection(n) for n in range(1000))
    assert {message.origin.role for message in told(last)} == {Role.DRAIN}
    assert sent(last)[-1].origin.role is Role.FOLLOW
    assert replica.role is Role.FOLLOW
    assert replica.counters["changes_untold"] == 0


def test_changes_that_a_node_leaves_untold_when_it_leads_again_are_counted() -> None:
    replica = leading(pace=Pace(bytes_per_second=1_000))
    replica.tell([changed(n) for n in range(1000)], START)
    replica.follow(START)
    replica.lead(START + 1)
    assert replica.counters["changes_untold"] + replica.counters["changes_sent"] == 1000
    assert replica.counters["changes_untold"] > 0


# --- what is asked for again ------------------------------------------------------------------


def with_history(count: int = 20, pace: Pace | None = None) -> tuple[Replica, East, list[bytes]]:
    """A leader that has sent so many datagrams, and a follower; what was sent."""
    replica = leading(pace=pace or Pace(eager_datagrams_max=count))
    east = follower(replica)
    datagrams = []
    for number in range(count):
        for action in replica.tell([changed(number)], START):
            assert isinstance(action, Send)
            datagrams.append(action.datagram)
    return replica, east, datagrams


def test_what_a_follower_misses_is_sent_again_byte_for_byte() -> None:
    replica, east, datagrams = with_history()
    actions = ask_again(east, (3, 2), (19, 5))
    assert [a.datagram for a in actions if isinstance(a, Send)] == [
        datagrams[2],
        datagrams[3],
        datagrams[18],
        datagrams[19],
    ]
    assert replica.counters["datagrams_sent_again"] == 4


def test_what_was_sent_again_a_moment_ago_is_not_sent_once_more() -> None:
    replica, east, datagrams = with_history()
    north = follower(replica, "north")
    ask_again(east, (3, 1))
    assert ask_again(north, (3, 1), now=START + RESEND_PAUSE / 2) == []
    assert ask_again(north, (3, 1), now=START + RESEND_PAUSE) == [Send(datagrams[2])]


def test_what_is_asked_for_again_keeps_to_the_pace_and_goes_before_new_changes() -> None:
    replica, east, datagrams = with_history(pace=SLOW)
    expire_until(replica, START + HEARTBEAT - 0.1)
    datagrams = [
        a.datagram for a in expire_until(replica, START + HEARTBEAT - 0.1) if isinstance(a, Send)
    ] or datagrams
    later = START + HEARTBEAT - 0.05
    assert len(sent(ask_again(east, (1, 2), now=later))) == 1
    replica.tell([changed(99)], later)
    (second,) = told(replica.expire(later + 0.011))
    assert second.origin.sequence == 2
    (third,) = told(replica.expire(later + 0.022))
    assert third.records == [connection(99)]


def test_what_is_sent_again_counts_towards_the_limit_of_bytes() -> None:
    replica, east, _ = with_history(pace=Pace(bytes_per_second=10_000))
    expire_until(replica, START + HEARTBEAT / 2)
    replica.tell([changed(n) for n in range(70)], START + HEARTBEAT / 2)
    whole = (1, replica._source.sequence)
    left = 0
    for step in range(200):
        now = START + HEARTBEAT / 2 + step / 100
        actions = expire_until(replica, now)
        actions += ask_again(east, whole, now=now)
        left += sum(len(a.datagram) for a in actions if isinstance(a, Send))
    heartbeats = 5 * 200
    assert left <= 10_000 * 2 * (1 + BURST) + 1400 + heartbeats


def test_what_was_forgotten_is_not_sent_again() -> None:
    replica, east, _ = with_history()
    replica._source.history.clear()
    assert ask_again(east, (1, 3)) == []
    assert replica.counters["resends_too_old"] == 3


def test_a_request_for_everything_costs_a_bounded_time_and_memory() -> None:
    replica, east, _ = with_history(
        5000, Pace(live_datagrams_per_tick=10**6, eager_datagrams_max=10**6)
    )
    replica._pace = Pace()
    looked: list[int] = []
    find = replica._source._resent.get

    class Watched(dict[int, float]):
        def get(self, key: int, default: object = None) -> float:
            looked.append(key)
            return find(key, float("-inf"))

    replica._source._resent = Watched()
    ask_again(east, *((1, RESEND_MAX - 1),) * 20)
    ask_again(east, *((2, 2**32 - 1),) * 20)
    assert len(replica._source._resend) <= RESEND_MAX
    assert len(looked) <= 2 * RESEND_MAX


def test_nothing_is_sent_again_by_who_is_not_meant_or_leads_no_longer() -> None:
    replica, east, _ = with_history()
    for request in (
        GapRequest(east.origin(), "north", 77, ((1, 1),)),
        GapRequest(east.origin(), "west", 76, ((1, 1),)),
    ):
        assert east.say(request) == []
    replica.follow(START)
    assert len(sent(ask_again(east, (1, 1)))) == 1, "a node that drains still tells"
    expire_until(replica, START + DRAIN + 0.1)
    assert sent(ask_again(east, (1, 1), now=START + DRAIN + 0.1)) == []
    assert replica.counters["requests_refused"] == 2


# --- sums -------------------------------------------------------------------------------------


def test_all_sums_come_in_four_datagrams() -> None:
    table = Table([connection(n) for n in range(600)])
    replica = leading(tally=table.tally)
    east = follower(replica)
    answers = sent_of(Sums, east.say(SumsRequest(east.origin(), "west", 77)))
    assert [len(answer.sums) for answer in answers] == [128, 128, 128, 127]
    assert [answer.first for answer in answers] == [0, 128, 256, 384]
    assert [value for answer in answers for value in answer.sums] == table.tally.sums


@pytest.mark.parametrize("datagram_max", [*range(500, 508), 700])
def test_sums_fit_in_small_datagrams(datagram_max: int) -> None:
    replica = leading(datagram_max=datagram_max)
    east = follower(replica)
    answers = sent_of(Sums, east.say(SumsRequest(east.origin(), "west", 77)))
    assert max(len(encode(answer)) for answer in answers) <= datagram_max
    assert sum(len(answer.sums) for answer in answers) == BUCKETS


def test_followers_that_ask_for_sums_within_a_moment_share_them() -> None:
    replica = leading()
    east, north = follower(replica), follower(replica, "north")
    asked = SumsRequest(east.origin(), "west", 77)
    assert len(sent_of(Sums, east.say(asked))) == 4
    again = east.say(asked, START + 0.001)
    again += north.say(SumsRequest(north.origin(), "west", 77), START + 0.002)
    assert sent_of(Sums, again) == []
    assert replica.deadline == START + SUMS_PAUSE
    assert len(sent_of(Sums, replica.expire(START + SUMS_PAUSE))) == 4
    for step in range(1000):
        again += east.say(asked, START + 0.1 + step / 1000)
        again += expire_until(replica, START + 0.1 + step / 1000)
    assert len(sent_of(Sums, again)) <= 4 * (1 / SUMS_PAUSE + 1)


def test_sums_wait_until_nothing_waits_to_be_told() -> None:
    replica = leading(pace=SLOW)
    east = follower(replica)
    replica.tell([changed(1)], START)
    replica.tell([changed(2)], START)
    assert sent_of(Sums, east.say(SumsRequest(east.origin(), "west", 77))) == []
    actions = sent(replica.expire(START + 0.01))
    assert [type(message) for message in actions] == [Changes, Sums, Sums, Sums, Sums]
    for message in actions[1:]:
        assert isinstance(message, Sums)
        assert (message.origin.sequence, message.is_current) == (2, True)


def test_sums_do_not_wait_for_ever() -> None:
    replica = leading(pace=Pace(bytes_per_second=500))
    east = follower(replica)
    replica.tell([changed(n) for n in range(500)], START)
    assert sent_of(Sums, east.say(SumsRequest(east.origin(), "west", 77))) == []
    assert sent_of(Sums, expire_until(replica, START + SUMS_PATIENCE - 0.01)) == []
    answers = sent_of(Sums, expire_until(replica, START + SUMS_PATIENCE))
    assert [answer.is_current for answer in answers] == [False] * 4, "some waits still"


def test_a_follower_answers_no_request() -> None:
    replica = started()
    east = follower(replica)
    assert east.say(SumsRequest(east.origin(), "west", 77)) == []
    assert east.say(SnapshotRequest(east.origin(), "west", 77, 0)) == []
    assert replica.counters["requests_refused"] == 2


def test_a_request_of_somebody_who_is_not_believed_is_not_answered() -> None:
    replica = leading(proven=True)
    stranger = Origin(1, "east", 9, Role.FOLLOW, 0, 0)
    assert replica.receive(encode(SumsRequest(stranger, "west", 77)), START) == []
    assert sent(replica.expire(START + HEARTBEAT))[0].origin.sequence == 0
    heartbeat = Heartbeat(
        stranger, 0, bytes(16), "west", PeerState.PROBE, 0, False, level=2, speaks=2, heard=(77,)
    )
    replica.receive(encode(heartbeat), START)
    assert len(sent(replica.receive(encode(SumsRequest(stranger, "west", 77)), START))) == 4
