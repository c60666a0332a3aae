"""What other nodes find of the real servers, and where this one finds otherwise."""

from collections.abc import Iterator, Mapping

import pytest

from lvsha.health.opinions import Opinion
from lvsha.health.peer_opinions import (
    LASTING,
    NODES_MAX,
    PARTS_MAX,
    SETTLING,
    Disagreement,
    PeerOpinions,
    Server,
)
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.messages import Opinions, Origin, Role
from lvsha.sync.opinions import OPINIONS_MAX, divide

ONE: Server = ("web", bytes((10, 1, 0, 1)), 80)
TWO: Server = ("web", bytes((10, 1, 0, 2)), 80)
CHECKED = {ONE: 0, TWO: 1}
UP, DOWN, UNKNOWN = Opinion.UP, Opinion.DOWN, Opinion.UNKNOWN
ORIGIN = Origin(1, "n" * 63, 2**64 - 1, Role.LEAD, 2**32 - 1, 2**64 - 1)


@pytest.fixture
def peers() -> PeerOpinions:
    return PeerOpinions()


def test_who_is_not_named_is_up(peers: PeerOpinions) -> None:
    assert peers.of(ONE, 0.0) == {}
    assert peers.hear("west", 1, 0, 1, 2, [(ONE, DOWN)], 0.0)
    assert peers.of(ONE, 0.0) == {"west": DOWN}
    assert peers.of(TWO, 0.0) == {"west": UP}
    assert peers.hear("west", 2, 0, 1, 2, [(TWO, UNKNOWN)], 1.0)
    assert peers.of(ONE, 1.0) == {"west": UP}
    assert peers.of(TWO, 1.0 + LASTING - 0.01) == {"west": UNKNOWN}
    assert peers.of(TWO, 1.0 + LASTING) == {}


def test_who_checks_nothing_has_no_opinion(peers: PeerOpinions) -> None:
    peers.hear("west", 1, 0, 1, 0, [], 0.0)
    assert peers.of(ONE, 0.0) == {}


def test_only_a_whole_list_counts(peers: PeerOpinions) -> None:
    peers.hear("west", 1, 0, 1, 2, [], 0.0)
    assert not peers.hear("west", 2, 1, 2, 2, [(ONE, DOWN)], 1.0)
    assert peers.of(ONE, 1.0) == {"west": UP}
    assert not peers.hear("west", 3, 0, 2, 2, [(TWO, DOWN)], 2.0)
    assert peers.hear("west", 3, 1, 2, 2, [(ONE, DOWN)], 2.0)
    assert peers.of(ONE, 2.0) == peers.of(TWO, 2.0) == {"west": DOWN}


def test_what_differs_for_long_enough_is_said_once_and_so_is_its_end(peers: PeerOpinions) -> None:
    not_up = {TWO: DOWN}
    peers.hear("west", 1, 0, 1, 2, [(ONE, DOWN), (TWO, DOWN)], 0.0)
    assert list(peers.compare(not_up, CHECKED, 0.0)) == []
    assert list(peers.compare(not_up, CHECKED, SETTLING - 0.01)) == []
    assert list(peers.compare(not_up, CHECKED, SETTLING)) == [Disagreement("west", ONE, UP, DOWN)]
    assert list(peers.compare(not_up, CHECKED, SETTLING + 1)) == []
    peers.hear("west", 2, 0, 1, 2, [(TWO, DOWN)], SETTLING + 2)
    assert list(peers.compare(not_up, CHECKED, SETTLING + 2)) == [
        Disagreement("west", ONE, UP, None)
    ]
    assert list(peers.compare(not_up, CHECKED, SETTLING + 3)) == []


def test_a_short_difference_and_one_of_no_opinion_are_not_said(peers: PeerOpinions) -> None:
    not_up = {TWO: UNKNOWN}
    peers.hear("west", 1, 0, 1, 2, [(ONE, DOWN), (TWO, DOWN)], 0.0)
    list(peers.compare(not_up, CHECKED, 0.0))
    peers.hear("west", 2, 0, 1, 2, [(ONE, UNKNOWN), (TWO, DOWN)], 1.0)
    list(peers.compare(not_up, CHECKED, 1.0))
    peers.hear("west", 3, 0, 1, 2, [(ONE, DOWN), (TWO, DOWN)], 2.0)
    assert list(peers.compare(not_up, CHECKED, 2.0)) == []
    assert list(peers.compare(not_up, CHECKED, 1.0 + SETTLING)) == []


def test_who_is_not_checked_here_differs_nowhere(peers: PeerOpinions) -> None:
    elsewhere: Server = ("other", bytes((10, 1, 0, 1)), 80)
    peers.hear("west", 1, 0, 1, 2, [(elsewhere, DOWN)], 0.0)
    list(peers.compare({}, CHECKED, 0.0))
    assert list(peers.compare({}, CHECKED, SETTLING)) == []


def test_all_that_differs_is_said_in_the_order_of_what_is_checked(peers: PeerOpinions) -> None:
    checked = {many(number): number for number in range(20)}
    peers.hear("west", 1, 0, 1, 20, [(many(number), DOWN) for number in range(18, -2, -2)], 0.0)
    peers.hear("north", 1, 0, 1, 20, [], 0.0)
    not_up = {many(number): DOWN for number in range(19, -1, -2)}
    list(peers.compare(not_up, checked, 0.0))
    assert [(one.server, one.node) for one in peers.compare(not_up, checked, SETTLING)] == [
        (many(number), node)
        for number in range(20)
        for node in (["west", "north"] if number % 2 else ["west"])
    ]


def many(number: int) -> Server:
    return "many", number.to_bytes(4), 80


class LooksCounted(Mapping[Server, int]):
    """As many servers as you like, which counts how often one of them is looked at."""

    def __init__(self, number: int) -> None:
        self._numbers = {many(each): each for each in range(number)}
        self.looks = 0

    def __getitem__(self, server: Server) -> int:
        self.looks += 1
        return self._numbers[server]

    def __iter__(self) -> Iterator[Server]:
        for server in self._numbers:
            self.looks += 1
            yield server

    def __len__(self) -> int:
        return len(self._numbers)


def test_servers_that_are_up_everywhere_are_not_looked_at(peers: PeerOpinions) -> None:
    def looks(number: int) -> int:
        checked = LooksCounted(number)
        (said,) = peers.compare({many(1): DOWN}, checked, SETTLING)
        assert said == Disagreement("west", many(1), DOWN, UP)
        peers.hear("west", number, 0, 1, number, [(many(1), DOWN), (many(2), UNKNOWN)], SETTLING)
        (said,) = peers.compare({many(1): DOWN}, checked, SETTLING)
        assert said == Disagreement("west", many(1), DOWN, None)
        peers.hear("west", number + 1, 0, 1, number, [], SETTLING)
        list(peers.compare({many(1): DOWN}, checked, 0.0))
        return checked.looks

    peers.hear("west", 1, 0, 1, 3, [], 0.0)
    list(peers.compare({many(1): DOWN}, {many(1): 1}, 0.0))
    assert looks(10) == looks(1000)


def test_nodes_and_parts_beyond_the_limits_are_not_kept(peers: PeerOpinions) -> None:
    assert not peers.hear("west", 1, 0, PARTS_MAX + 1, 1, [], 0.0)
    for number in range(NODES_MAX):
        assert peers.hear(f"n{number}", 1, 0, 1, 1, [], 0.0)
    assert not peers.hear("one more", 1, 0, 1, 1, [], 0.0)
    assert len(peers.of(ONE, 0.0)) == NODES_MAX


@pytest.mark.parametrize("datagram_max", [500, 1400])
@pytest.mark.parametrize("number", [0, 1, 100, OPINIONS_MAX + 5])
def test_a_list_is_told_in_datagrams_that_are_not_too_long(datagram_max: int, number: int) -> None:
    listed = [("s" * (1 + n % 127), bytes(16), n, n % 2) for n in range(number)]
    messages = list(divide(ORIGIN, 2**64 - 1, 5000, listed, datagram_max))
    for part, message in enumerate(messages):
        datagram = encode(message)
        assert len(datagram) <= datagram_max
        assert decode(datagram) == message
        assert (message.part, message.parts) == (part, len(messages))
    told = [opinion for message in messages for opinion in message.opinions]
    assert told == listed[:OPINIONS_MAX]
    assert isinstance(messages[0], Opinions)
