"""How a source shares its ticks: nobody who waits is kept waiting by who tells more."""

from collections.abc import Iterator

from lvsha.counters import Counters
from lvsha.model import ConnectionChanged, ConnectionRecord, ForwardMethod
from lvsha.runs import Run
from lvsha.sync.actions import Action, ProvideSnapshot, Send
from lvsha.sync.datagrams import decode
from lvsha.sync.messages import ALL_BUCKETS, SnapshotChunk
from lvsha.sync.pace import Pace
from lvsha.sync.source import Source
from lvsha.tally import Tally

CONNECTIONS = 2000


def record(number: int) -> ConnectionRecord:
    return ConnectionRecord.between(
        protocol=6,
        client=(0x0B00_0000 + number).to_bytes(4),
        client_port=1024,
        virtual=b"\xc0\x00\x02\x0a",
        virtual_port=80,
        server=b"\x0a\x01\x00\x0b",
        server_port=80,
        method=ForwardMethod.NAT,
        state=1,
        flags=0,
        timeout=900.0,
    )


def chunks(actions: list[Action]) -> int:
    messages = [decode(action.datagram) for action in actions if isinstance(action, Send)]
    return sum(isinstance(message, SnapshotChunk) for message in messages)


def made(pace: Pace) -> Source:
    source = Source(
        tally=Tally(1), node="east", epoch=1, datagram_max=1400, pace=pace, counters=Counters()
    )
    source.lead(1)
    return source


def records() -> Iterator[Run | None]:
    for each in map(record, range(CONNECTIONS)):
        yield Run(each, [each.key])


def test_live_changes_do_not_close_the_window_of_a_snapshot() -> None:
    pace = Pace(window=8)
    source = made(pace)
    source.progress = 0
    source.request(ALL_BUCKETS, 0, 0.0)
    sent = chunks(source.snapshot(records(), 0.0))
    now = 0.0
    for step in range(100):
        now += pace.tick / 10
        source.tell([ConnectionChanged(record(CONNECTIONS + step))], now)
    # Nothing was heard of the listener for ten ticks and a hundred changes.
    for _ in range(4):
        now += pace.tick
        sent += chunks(source.expire(now))
    assert sent == pace.window - 1, "the beginning is a datagram, too"
    source.progress = source.sequence
    assert chunks(source.progressed(now + pace.tick)) > 0


def test_changes_that_come_all_the_time_do_not_keep_a_snapshot_from_its_turn() -> None:
    tick = Pace().tick
    source = made(Pace())
    actions = source.request(ALL_BUCKETS, 0, 0.0)
    assert any(isinstance(action, ProvideSnapshot) for action in actions)
    source.snapshot(records(), 0.0)
    sent = 0
    for step in range(1, 100):
        # A shell that wakes late finds that a change was told before it could call.
        now = 0.4 * step * tick
        source.tell([ConnectionChanged(record(CONNECTIONS + step))], now)
        if source.deadline is not None and source.deadline <= now:
            sent += chunks(source.expire(now))
    assert sent >= CONNECTIONS // 140
    assert not source.is_snapshotting


def test_changes_leave_at_once_while_something_is_saved_up_and_the_others_together() -> None:
    pace = Pace(eager_datagrams_max=2, gather=0.01)
    source = made(pace)
    left = [len(source.tell([ConnectionChanged(record(n))], 0.001 * n)) for n in range(8)]
    assert left == [1, 1, 0, 0, 0, 0, 0, 0]
    assert source.deadline == 0.002 + pace.gather
    assert len(source.expire(source.deadline)) == 1
    assert not source.queued


def test_what_is_saved_up_comes_back_with_time_but_has_an_end() -> None:
    pace = Pace(eager_datagrams_max=3, gather=0.01, tail_waits=())
    source = made(pace)

    def at_once(now: float) -> int:
        changes = [[ConnectionChanged(record(number))] for number in range(10)]
        sent = sum(len(source.tell(change, now)) for change in changes)
        source.expire(now + 1)
        return sent

    assert at_once(10.0) == 3
    assert at_once(20.0) == 3, "a long silence saves up no more"
    source = made(pace)
    # One in each pause, which is what a calm director tells, never waits.
    for step in range(100):
        now = step * pace.gather * 1.01
        assert len(source.tell([ConnectionChanged(record(step))], now)) == 1


def test_where_changes_never_cease_one_datagram_leaves_in_each_gathering() -> None:
    pace = Pace(tail_waits=())
    source = made(pace)
    sent, step, turns = 0, pace.gather / 10, 2000
    for number in range(turns):
        now = 100.0 + number * step
        while (deadline := source.deadline) is not None and deadline <= now:
            sent += len(source.expire(deadline))
        sent += len(source.tell([ConnectionChanged(record(number))], now))
    assert turns / 10 * 0.9 <= sent <= turns / 10 + pace.eager_datagrams_max + 1


def test_a_few_in_each_tick_leave_at_once_in_haste_and_the_others_at_its_end() -> None:
    pace = Pace(eager_datagrams_max=0, hasty_datagrams_per_tick=3)
    source = made(pace)
    changes = [[ConnectionChanged(record(number))] for number in range(6)]
    left = [len(source.tell(each, 0.0, in_haste=n > 0)) for n, each in enumerate(changes)]
    assert left == [0, 1, 1, 1, 0, 0]
    assert source.deadline == pace.tick


def test_what_had_gathered_does_not_wait_any_longer_in_haste() -> None:
    pace = Pace(eager_datagrams_max=0, hasty_datagrams_per_tick=1)
    source = made(pace)
    assert not source.tell([ConnectionChanged(record(n)) for n in range(500)], 0.0)
    assert source.deadline == pace.gather
    assert len(source.tell([ConnectionChanged(record(500))], 0.0, in_haste=True)) == 1
    assert source.queued
    assert source.deadline == pace.tick
