"""Whether a takeover has reached the neighbours, and what is done until it has."""

import itertools
from typing import cast

import pytest

from lvsha.failover.speaker import Speaker
from lvsha.failover.verification import (
    AGAIN_AFTER,
    ANSWER_AFTER,
    ANSWER_GAP,
    LOOK_PART,
    SILENT_AFTER,
    AnnounceAgain,
    Arrival,
    FirstFrame,
    NoFrame,
    RivalHeard,
    Verification,
)
from lvsha.model import parse_address
from lvsha.recorder import Recorder
from lvsha.takeover import Takeover
from tests import packets
from tests.laboratory import C4, C6, S4, S6, V4, V6, Laboratory

ADDRESS, MAC = b"\xc0\x00\x02\x0a", b"\x02\x00\x00\x00\x00\x09"
START = 100.0


def begun(frames: int | None = 5) -> Verification:
    verification = Verification()
    verification.begin(frames, START)
    return verification


def looks(verification: Verification, until: float, frames: int = 5) -> list[tuple[float, object]]:
    """Look whenever it is due, and return what is to be done, and when."""
    done: list[tuple[float, object]] = []
    while (now := verification.deadline) is not None and now <= until:
        done += [(now - START, action) for action in verification.look(frames, now)]
    return done


def test_the_first_frame_ends_the_watch() -> None:
    verification = begun()
    assert looks(verification, START + 0.1) == []
    now = verification.deadline
    assert now is not None
    assert verification.look(6, now) == (FirstFrame(now - START),)
    assert verification.arrival is Arrival.SEEN
    assert verification.deadline is None
    assert verification.look(7, now + 1) == ()


def test_addresses_are_announced_until_the_series_ends_and_then_silence_is_said() -> None:
    verification = begun()
    done = looks(verification, START + 3600)
    announced = [at for at, action in done if isinstance(action, AnnounceAgain)]
    assert len(announced) == len(AGAIN_AFTER)
    for at, due in zip(announced, AGAIN_AFTER, strict=True):
        assert due <= at <= due * (1 + 2 * LOOK_PART)
    ((silent_at, _),) = [one for one in done if isinstance(one[1], NoFrame)]
    assert SILENT_AFTER <= silent_at <= SILENT_AFTER + 5
    assert verification.arrival is Arrival.SILENT
    assert verification.counters.snapshot() == {"announced_again": 8, "silences": 1}


def test_a_frame_that_comes_after_the_silence_is_noticed() -> None:
    verification = begun()
    looks(verification, START + 100)
    now = verification.deadline
    assert now is not None
    (first,) = verification.look(6, now)
    assert isinstance(first, FirstFrame)
    assert verification.arrival is Arrival.SEEN


def test_looks_become_rarer_and_never_stop_for_longer_than_five_seconds() -> None:
    verification, times = begun(), []
    while (now := verification.deadline) is not None and now < START + 300:
        times.append(now)
        verification.look(5, now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= 5.0 + 1e-6
    assert gaps[0] == pytest.approx(0.01)
    assert len(times) < 160


def test_a_loop_that_was_late_for_several_announces_once() -> None:
    verification = begun()
    assert verification.look(5, START + 9) == (AnnounceAgain("no frame has come"),)
    assert verification.look(5, START + 10) == ()


def test_counters_that_fall_back_are_taken_as_new_ones() -> None:
    verification = begun(1000)
    verification.look(3, START + 0.01)
    (first,) = verification.look(4, START + 0.1)
    assert isinstance(first, FirstFrame)


def test_without_a_service_nothing_is_watched() -> None:
    verification = begun(None)
    assert verification.arrival is Arrival.UNKNOWN
    assert verification.deadline is None
    assert verification.look(9, START + 1) == ()


def test_a_takeover_without_a_service_ends_the_watch_of_the_one_before() -> None:
    verification = begun()
    verification.begin(None, START + 1)
    assert verification.arrival is Arrival.UNKNOWN
    assert verification.deadline is None


def test_a_service_that_goes_away_is_no_frame() -> None:
    verification = begun()
    assert verification.look(None, START + 0.01) == ()
    assert verification.arrival is Arrival.AWAITED


def test_what_is_not_held_is_not_watched_and_not_defended() -> None:
    verification = begun()
    verification.end()
    assert verification.deadline is None
    assert verification.look(9, START + 1) == ()
    verification.claimed(ADDRESS, MAC, START + 1)
    assert verification.deadline is None
    assert verification.counters.snapshot() == {}


def test_a_new_master_whose_advertisement_is_read_a_moment_later_is_not_contradicted() -> None:
    verification = begun(None)
    verification.claimed(ADDRESS, MAC, START + 10)
    assert verification.look(None, START + 10 + ANSWER_AFTER / 2) == ()
    verification.end()
    assert verification.look(None, START + 11) == ()
    verification.begin(None, START + 12)
    assert verification.deadline is None


def test_a_second_takeover_begins_anew() -> None:
    verification = begun()
    looks(verification, START + 100)
    verification.end()
    verification.begin(8, START + 200)
    assert verification.arrival is Arrival.AWAITED
    assert verification.look(8, START + 200.3) == (AnnounceAgain("no frame has come"),)


def test_a_rival_is_answered_at_a_limited_rate() -> None:
    verification, answered = begun(None), []
    for step in range(1000):
        now = START + step * 0.01
        verification.claimed(ADDRESS, MAC, now)
        if actions := verification.look(None, now):
            answered.append(now)
            assert actions[0] == RivalHeard(ADDRESS, MAC)
            assert isinstance(actions[1], AnnounceAgain)
    assert len(answered) == 10 / ANSWER_GAP
    assert answered[0] == pytest.approx(START + ANSWER_AFTER, abs=0.01)
    assert verification.counters.snapshot() == {
        "rival_announcements": 1000,
        "answers_held_back": 990,
    }


def test_the_frames_that_count_are_those_of_clients_to_services_at_the_addresses() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    laboratory.server(laboratory.service(port=81))
    laboratory.server(laboratory.service(V6), S6)

    def frames(address: str) -> int | None:
        speaker, recorder = cast("Speaker", None), Recorder("east")
        addresses = [parse_address(address)]
        return Takeover(speaker, addresses, laboratory.director, (), recorder)._frames()

    for port in (80, 81):
        laboratory.send("client", packets.tcp(C4, 40000, V4, port, packets.SYN))
    laboratory.send("server", packets.tcp(S4, 80, C4, 40000, packets.SYN | packets.ACK))
    laboratory.send("client", packets.tcp(C6, 40000, V6, 80, packets.SYN))
    assert (frames(V4), frames(V6)) == (2, 1)
    assert frames("192.0.2.99") is None
