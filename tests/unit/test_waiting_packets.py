"""Packets that wait until the peers have said whether they know their connection."""

from collections import Counter

import pytest

from lvsha.datapath import questions as module
from lvsha.datapath.flow import Frame
from lvsha.datapath.questions import PATIENCE, Questions
from lvsha.datapath.reasons import Reason
from lvsha.datapath.verdicts import RESET, WAIT, Drop
from tests import packets
from tests.laboratory import C4, V4
from tests.packets import ACK, RST

NOW = 1000.0


def frame(port: int = 40000, flags: int = ACK, size: int = 0) -> Frame:
    made = Frame()
    made.load(bytes(12) + b"\x08\x00" + packets.tcp(C4, port, V4, 80, flags, bytes(size)))
    return made


class Stand:
    """Questions, and what was counted."""

    def __init__(self) -> None:
        self.drops: Counter[Reason] = Counter()
        self.questions = Questions(self.drops)

    def ask(self, made: Frame, now: float = NOW, sync_id: int = 7) -> Reason | None:
        verdict = self.questions.ask(made, sync_id, now)
        if isinstance(verdict, Drop):
            assert (verdict.answer is RESET) is (verdict.reason is Reason.RESET)
            return verdict.reason
        assert verdict is WAIT
        return None

    def answered(self, *known: bytes) -> list[bytes]:
        """The keys of what goes on."""
        found = []
        for held in self.questions.answered(known.__contains__):
            again = Frame()
            again.read(held.lay(again))
            found.append(again.key)
        return found


def test_each_key_is_given_once_under_its_sync_id() -> None:
    stand = Stand()
    one, other, third = frame(1), frame(2), frame(3)
    assert [stand.ask(one), stand.ask(other, sync_id=8), stand.ask(third)] == [None] * 3
    assert stand.questions.unasked
    assert stand.questions.take() == {7: [one.key, third.key], 8: [other.key]}
    assert not stand.questions.unasked
    assert stand.questions.take() == {}


def test_a_packet_goes_on_as_it_came_when_its_connection_is_there() -> None:
    stand = Stand()
    waiting = frame(1, size=100)
    stand.ask(waiting)
    stand.ask(frame(2))
    assert stand.answered() == []
    (held,) = stand.questions.answered([waiting.key].__contains__)
    assert held.data == bytes(waiting.view[: waiting.end])
    assert len(stand.questions) == 1
    assert stand.answered(waiting.key) == []


def test_a_connection_that_came_and_went_is_asked_for_again() -> None:
    stand = Stand()
    stand.ask(frame())
    stand.answered(frame().key)
    assert stand.ask(frame()) is None


def test_a_denied_packet_is_given_back_and_refused_and_so_are_those_that_follow() -> None:
    stand = Stand()
    stand.ask(frame())
    stand.questions.take()
    stand.questions.deny([frame().key, frame(9).key])
    assert stand.answered() == [frame().key]
    assert stand.answered() == []
    assert stand.ask(frame(), NOW + 0.1) is Reason.RESET
    assert stand.ask(frame(flags=RST), NOW + 0.1) is Reason.NO_CONNECTION
    stand.questions.expire(NOW + PATIENCE)
    assert stand.ask(frame(), NOW + PATIENCE) is None
    assert not stand.drops


def test_what_is_denied_and_there_all_the_same_goes_on() -> None:
    stand = Stand()
    stand.ask(frame())
    stand.questions.deny([frame().key])
    assert stand.answered(frame().key) == [frame().key]
    assert stand.ask(frame()) is None


def test_of_a_connection_one_packet_waits() -> None:
    stand = Stand()
    assert stand.ask(frame()) is None
    assert stand.ask(frame()) is Reason.QUESTIONS_FULL
    assert len(stand.questions) == 1


def test_a_packet_waits_no_longer_than_patience_lasts_and_its_key_may_be_asked_for_again() -> None:
    stand = Stand()
    stand.ask(frame(1))
    stand.ask(frame(2), NOW + 0.1)
    stand.questions.expire(NOW + PATIENCE - 0.01)
    assert len(stand.questions) == 2
    stand.questions.expire(NOW + PATIENCE)
    assert (len(stand.questions), stand.drops) == (1, {Reason.UNANSWERED: 1})
    assert list(stand.questions.take().values()) == [[frame(2).key]]  # it is too late for the first
    assert stand.ask(frame(1), NOW + PATIENCE) is None
    assert stand.questions.take() == {7: [frame(1).key]}


@pytest.mark.parametrize(
    ("limit", "value", "fits"), [("FRAMES_MAX", 3, 3), ("KEYS_MAX", 3, 3), ("BYTES_MAX", 3500, 3)]
)
def test_no_more_wait_than_the_limits_say(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, fits: int
) -> None:
    monkeypatch.setattr(module, limit, value)
    stand = Stand()
    refused = [stand.ask(frame(port, size=1000)) for port in range(1, 6)]
    assert refused == [*[None] * fits, *[Reason.QUESTIONS_FULL] * (5 - fits)]
    stand.questions.deny([frame(1).key])
    stand.answered(frame(2).key)
    # What was denied is still remembered, but takes no room.
    free = 1 if limit == "KEYS_MAX" else 2
    refused = [stand.ask(frame(port, size=1000)) for port in range(7, 10)]
    assert refused == [*[None] * free, *[Reason.QUESTIONS_FULL] * (3 - free)]
    stand.questions.expire(NOW + 1)
    assert stand.ask(frame(11, size=1000), NOW + 1) is None
