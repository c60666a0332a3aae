"""The judgement of a drill: which figures follow from which samples."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsha.drill.recording import (
    OTHER_SERVER,
    RESET,
    TIMED_OUT,
    Act,
    Datagram,
    Load,
    LongConnection,
    Recording,
    ShortConnection,
    Standstill,
    StateSeen,
    decode_load,
    encode_load,
)
from lvsha.drill.timeline import judge, longest_gap, two_masters

CRASH = Act("crash", "east", "west", at=10.0, until=14.0)
RETURN = Act("return", "east", "east", at=15.0, until=20.0)
STATES = (
    StateSeen(1.0, "east", "MASTER"),
    StateSeen(1.0, "west", "BACKUP"),
    StateSeen(10.0, "east", "DOWN"),
    StateSeen(10.35, "west", "MASTER"),
    StateSeen(15.5, "east", "BACKUP"),
    StateSeen(16.0, "east", "MASTER"),
    StateSeen(16.02, "west", "BACKUP"),
)


def probe(
    *silences: tuple[float, float], start: float = 8.0, end: float = 20.0
) -> tuple[Datagram, ...]:
    """A datagram each 10 ms; those sent within a silence get no answer."""
    return tuple(
        Datagram(at, None if any(a <= at < b for a, b in silences) else at + 0.001, "real-1")
        for at in (start + 0.01 * number for number in range(round((end - start) * 100)))
    )


def stream(**changes: object) -> LongConnection:
    whole = LongConnection("stream", 2.0, "real-1", 100, (), None, "")
    return replace(whole, **changes)  # type: ignore[arg-type]


def short(
    started: float, established: float | None, ended: float, reason: str = ""
) -> ShortConnection:
    return ShortConnection(started, established, ended, "real-2", reason)


def recording(load: Load, acts: tuple[Act, ...] = (CRASH, RETURN)) -> Recording:
    return Recording(acts, STATES, load, began_at=0.0, ended_at=21.0)


def load(**parts: object) -> Load:
    return replace(Load((), (), probe((10.0, 10.4)), 0.0), **parts)  # type: ignore[arg-type]


def test_outage_is_the_longest_time_between_answers_around_the_act() -> None:
    crash, back = judge(recording(load())).acts
    assert crash.outage_ms == pytest.approx(410, abs=1)
    assert crash.recovered
    assert crash.lost_datagrams == 40
    assert back.outage_ms == pytest.approx(10, abs=1)
    assert back.lost_datagrams == 0


def test_in_what_was_planned_no_new_connection_may_fail() -> None:
    failed = load(short=(short(10.5, None, 11.0, "refused"),))
    crash = judge(recording(failed, (CRASH,)))
    assert crash.passed
    handover = judge(recording(failed, (replace(CRASH, name="handover"),)))
    assert not handover.passed
    assert handover.sentence == "1 new connection failed during what was planned"


def test_the_gap_at_the_change_is_told_apart_from_the_longest() -> None:
    crash, back = judge(recording(load())).acts
    assert crash.change_ms == pytest.approx(crash.outage_ms)
    assert back.change_ms == pytest.approx(10, abs=1)
    late = judge(recording(load(probe=probe((10.0, 10.4), (16.5, 17.0))))).acts[1]
    assert late.outage_ms == pytest.approx(510, abs=1)
    assert late.change_ms == pytest.approx(10, abs=1)


def test_a_gap_belongs_to_the_change_if_it_touches_the_moments_after_the_takeover() -> None:
    crash = judge(recording(load(probe=probe((10.0, 10.1), (10.5, 10.7))))).acts[0]
    assert crash.change_ms == pytest.approx(210, abs=1)
    before = judge(recording(load(probe=probe((10.0, 10.3), (10.65, 10.8))))).acts[0]
    assert before.change_ms == pytest.approx(10, abs=1)


def test_where_nobody_took_over_there_was_no_change() -> None:
    seen = replace(recording(load(), (CRASH,)), states=STATES[:3])
    assert judge(seen).acts[0].change_ms is None


def test_what_the_machine_itself_took_stands_beside_the_outage() -> None:
    still = (Standstill(9.0, 9.5, 0), Standstill(10.1, 10.2, 0), Standstill(10.35, 11.0, 1))
    crash, back = judge(replace(recording(load()), standstills=still)).acts
    assert crash.standstill_ms == pytest.approx(100)
    assert back.standstill_ms == 0
    longer = (Standstill(9.8, 10.05, 0), Standstill(10.2, 11.0, 1))
    crash = judge(replace(recording(load()), standstills=longer)).acts[0]
    assert crash.standstill_ms == pytest.approx(201, abs=1)


def test_silence_that_never_ends_is_an_outage_that_is_not_over() -> None:
    gap = longest_gap(load(probe=probe((10.0, 99.0))), CRASH)
    assert not gap.closed
    assert gap.until == CRASH.until
    verdict = judge(recording(load(probe=probe((10.0, 99.0))), (CRASH,)))
    assert not verdict.passed
    assert "not reachable" in verdict.sentence


def test_silence_long_after_the_takeover_counts_when_it_is_the_longest() -> None:
    gap = longest_gap(load(probe=probe((10.0, 10.2), (12.0, 12.9))), CRASH)
    assert gap.since == pytest.approx(11.991)
    assert gap.closed


def test_silence_up_to_the_end_of_the_act_counts_after_a_recovery() -> None:
    gap = longest_gap(load(probe=probe((10.0, 10.2), (12.0, 99.0))), CRASH)
    assert not gap.closed


def test_answers_that_a_stopped_director_kept_back_do_not_count() -> None:
    whole = probe((10.0, 10.4))
    kept_back = tuple(
        replace(entry, answered_at=13.0) if entry.answered_at is None else entry for entry in whole
    )
    (crash,) = judge(recording(load(probe=kept_back), (CRASH,))).acts
    assert crash.lost_datagrams == 40
    assert crash.outage_ms == pytest.approx(410, abs=1)


def test_takeover_is_the_first_time_that_the_heir_said_master() -> None:
    crash, back = judge(recording(load())).acts
    assert crash.takeover_ms == pytest.approx(350)
    assert back.takeover_ms == pytest.approx(1000)


def test_heir_that_never_became_master_fails_the_drill() -> None:
    seen = replace(recording(load(), (CRASH,)), states=STATES[:3])
    verdict = judge(seen)
    assert not verdict.passed
    assert verdict.sentence == "west did not take the virtual address over"


def test_whole_connections_pass() -> None:
    verdict = judge(
        recording(load(long=(stream(), stream(kind="idle")), short=(short(9, 9.1, 10.6),)))
    )
    assert verdict.passed
    assert verdict.broken == 0
    first = verdict.acts[0]
    assert (first.streams.kept, first.idle.kept, first.young.kept) == (1, 1, 1)


def test_broken_stream_is_counted_once_in_the_act_in_which_it_broke() -> None:
    verdict = judge(
        recording(
            load(
                long=(
                    stream(broken_at=10.5, reason=RESET),
                    stream(broken_at=15.2, reason=TIMED_OUT),
                    stream(),
                )
            )
        )
    )
    crash, back = verdict.acts
    assert (crash.streams.opened, crash.streams.broken, crash.streams.reasons) == (3, 1, {RESET: 1})
    assert (back.streams.opened, back.streams.broken) == (2, 1)
    assert verdict.broken == 2
    assert verdict.sentence == "2 established connections lost"
    assert not verdict.passed


def test_stream_that_broke_before_the_first_act_is_not_forgotten() -> None:
    verdict = judge(recording(load(long=(stream(broken_at=5.0, reason=RESET),))))
    assert verdict.broken == 1
    assert verdict.acts[0].streams.broken == 1


def test_answer_from_another_server_is_a_connection_that_moved() -> None:
    verdict = judge(recording(load(long=(stream(broken_at=10.6, reason=OTHER_SERVER),))))
    assert not verdict.acts[0].streams.same_server
    assert verdict.acts[1].streams.same_server


def test_long_connection_that_never_opened_fails_without_being_lost() -> None:
    never = stream(opened_at=None, broken_at=3.0, reason=TIMED_OUT)
    verdict = judge(recording(load(long=(never,))))
    assert verdict.broken == 0
    assert not verdict.passed
    assert verdict.sentence == "1 connection could not even be opened"


def test_longest_stall_is_looked_for_in_the_act_only() -> None:
    waiting = stream(stalls=((5.0, 7.0), (9.95, 10.7), (16.0, 16.1)))
    crash, back = judge(recording(load(long=(waiting,)))).acts
    assert crash.streams.stall_max_ms == pytest.approx(750)
    assert back.streams.stall_max_ms == pytest.approx(100)


@pytest.mark.parametrize(
    ("entry", "young", "later", "handshakes", "attempts"),
    [
        (short(9.5, 9.6, 11.0), 1, 0, 0, 0),
        (short(9.5, 9.6, 9.9), 0, 0, 0, 0),
        (short(9.9, 11.0, 12.0), 0, 1, 1, 0),
        (short(9.9, None, 12.0, TIMED_OUT), 0, 0, 1, 0),
        (short(10.1, 11.0, 12.0), 0, 1, 0, 1),
        (short(10.1, None, 12.0, TIMED_OUT), 0, 0, 0, 1),
    ],
)
def test_short_connection_is_sorted_by_its_age_at_the_act(
    entry: ShortConnection, young: int, later: int, handshakes: int, attempts: int
) -> None:
    (act,) = judge(recording(load(short=(entry,)), (CRASH,))).acts
    assert act.young.opened == young
    assert act.later.opened == later
    assert act.handshakes.tried == handshakes
    assert act.attempts.tried == attempts


def test_attempts_that_fail_lose_no_established_connection() -> None:
    verdict = judge(recording(load(short=(short(10.1, None, 12.0, RESET),)), (CRASH,)))
    assert verdict.passed
    assert verdict.acts[0].attempts.failed == 1
    assert verdict.acts[0].attempts.reasons == {RESET: 1}


def test_connection_that_lives_through_both_acts_breaks_in_one() -> None:
    verdict = judge(recording(load(short=(short(14.0, 14.1, 15.6, RESET),))))
    crash, back = verdict.acts
    assert crash.later.broken == crash.young.broken == 0
    assert back.young.broken == 1


def test_two_masters_are_seen_and_short_overlaps_are_not_believed() -> None:
    states = (
        StateSeen(1.0, "east", "MASTER"),
        StateSeen(2.0, "west", "MASTER"),
        StateSeen(3.5, "east", "BACKUP"),
    )
    assert list(two_masters(states, 9.0)) == [(2.0, 3.5)]
    assert list(two_masters(states[:2], 9.0)) == [(2.0, 9.0)]
    fighting = (*STATES[:3], StateSeen(10.3, "east", "MASTER"), *STATES[3:])
    seen = replace(recording(load(), (CRASH,)), states=fighting)
    assert judge(seen).acts[0].two_masters_ms == pytest.approx(3650)
    assert judge(recording(load())).acts[1].two_masters_ms == 0


def test_the_outage_is_that_of_the_flow_that_waited_longest() -> None:
    other = tuple(replace(entry, flow=1) for entry in probe((10.5, 10.9)))
    crash = judge(recording(load(probe=probe((10.0, 10.2)) + other))).acts[0]
    assert crash.outage_ms == pytest.approx(410, abs=1)
    assert crash.outage_from == pytest.approx(10.491)
    assert crash.change_ms == pytest.approx(410, abs=1)
    assert crash.usual_gap_ms == pytest.approx(10, abs=0.1)
    assert crash.lost_datagrams == 60


def test_a_flow_that_never_recovers_is_worse_than_a_long_wait_of_another() -> None:
    other = tuple(replace(entry, flow=1) for entry in probe((10.0, 13.0)))
    gap = longest_gap(load(probe=probe((13.0, 99.0)) + other), CRASH)
    assert not gap.closed


def test_a_takeover_is_that_of_the_router_whose_address_moved() -> None:
    states = (
        *STATES[:3],
        StateSeen(1.0, "west", "MASTER", "mail"),
        StateSeen(10.0, "east", "DOWN", "mail"),
        *STATES[3:],
        StateSeen(15.6, "east", "BACKUP", "mail"),
        StateSeen(16.5, "east", "MASTER", "mail"),
    )
    of_mail = replace(RETURN, router="mail")
    crash, web, mail = judge(
        replace(recording(load(), (CRASH, RETURN, of_mail)), states=states)
    ).acts
    assert crash.takeover_ms == pytest.approx(350)
    assert web.takeover_ms == pytest.approx(1000)
    assert mail.takeover_ms == pytest.approx(1500)


def test_masters_of_different_routers_do_not_fight() -> None:
    states = (StateSeen(1.0, "east", "MASTER"), StateSeen(1.0, "west", "MASTER", "mail"))
    assert list(two_masters(states, 9.0)) == []
    fight = (*states, StateSeen(2.0, "east", "MASTER", "mail"), StateSeen(3.0, "east", "DOWN"))
    assert list(two_masters(fight, 9.0)) == [(2.0, 9.0)]


TIMES = st.floats(min_value=0, max_value=25)


@given(
    st.lists(
        st.tuples(TIMES, st.none() | TIMES, TIMES, st.sampled_from(["", RESET])).map(
            lambda entry: short(
                entry[0],
                None if entry[1] is None else entry[0] + entry[1],
                entry[0] + (entry[1] or 0) + entry[2],
                entry[3] if entry[1] is not None else TIMED_OUT,
            )
        ),
        max_size=20,
    ),
    st.lists(
        st.tuples(TIMES, st.none() | TIMES).map(
            lambda entry: stream(
                opened_at=entry[0],
                broken_at=None if entry[1] is None else entry[0] + entry[1],
                reason="" if entry[1] is None else RESET,
            )
        ),
        max_size=20,
    ),
)
def test_every_loss_is_counted_exactly_once(
    shorts: list[ShortConnection], longs: list[LongConnection]
) -> None:
    verdict = judge(recording(load(short=tuple(shorts), long=tuple(longs))))
    lost = sum(entry.established_at is not None and bool(entry.reason) for entry in shorts)
    lost += sum(entry.broken_at is not None for entry in longs)
    assert verdict.broken == lost


def test_recorded_load_survives_its_file() -> None:
    whole = load(
        long=(stream(stalls=((1.0, 2.0),)), stream(opened_at=None)),
        short=(short(1.0, None, 2.0, RESET),),
        lateness_max=0.25,
        probe=(*probe((10.0, 10.1)), Datagram(1.0, 1.5, "real-2", 1)),
    )
    assert decode_load(encode_load(whole)) == whole
