"""The decision table of the second path: every combination, and what lies between two looks."""

from itertools import product

import pytest

from lvsha.failover.election import DOWN_ADVERTISEMENTS
from lvsha.failover.second_path import (
    ALIVE_INTERVALS,
    FRESH_INTERVALS,
    PAUSE_MIN,
    TABLE,
    Said,
    SecondPath,
    Verdict,
    View,
    look_up,
)
from lvsha.model import VrrpState, Witness

INIT, BACKUP, MASTER, FAULT = VrrpState
NONE, UNKNOWN, REACHABLE, UNREACHABLE = Witness
TAKE_OVER, STAY, GIVE_WAY, GIVE_UP = Verdict
VIEWS = [
    View(*fields)
    for fields in product(
        (BACKUP, MASTER, FAULT), (None, *VrrpState), Witness, Witness, (False, True)
    )
]
SETTLE = 2.0
FRESH = FRESH_INTERVALS


def expected(view: View) -> Verdict | None:
    """The table in other words; None for the operator's choice."""
    alone_cut_off = view.own is UNREACHABLE and view.peer is REACHABLE
    blind = view.own in {UNREACHABLE, UNKNOWN} and view.peer is not UNREACHABLE
    if view.state is FAULT:
        return GIVE_UP if blind else STAY
    if alone_cut_off and view.heard in {BACKUP, MASTER}:
        return GIVE_UP
    if view.state is MASTER:
        if view.heard is not MASTER or not view.better:
            return STAY
        if view.own is REACHABLE:
            return {UNREACHABLE: STAY, REACHABLE: GIVE_WAY}.get(view.peer)
        return None
    if view.heard is MASTER:
        if view.own is REACHABLE:
            return {UNREACHABLE: TAKE_OVER, REACHABLE: STAY}.get(view.peer)
        return None
    if view.heard is not None:
        return TAKE_OVER
    if view.own is UNKNOWN or (view.own is UNREACHABLE and view.peer is not UNREACHABLE):
        return STAY
    return TAKE_OVER


def test_every_combination_means_what_it_should() -> None:
    assert len(VIEWS) == 480
    for view in VIEWS:
        assert look_up(view).verdict is expected(view), view


def test_every_row_decides_on_something() -> None:
    used = {id(look_up(view)) for view in VIEWS}
    assert used == {id(row.ruling) for row in TABLE}


def test_only_a_difference_of_witnesses_moves_addresses_from_a_master_that_lives() -> None:
    for view in VIEWS:
        ruling = look_up(view)
        if view.state is BACKUP and view.heard is MASTER and ruling.verdict is TAKE_OVER:
            assert (view.own, view.peer) == (REACHABLE, UNREACHABLE)
            assert ruling.lasting
        if view.state is not FAULT and ruling.verdict is GIVE_UP:
            assert (view.own, view.peer) == (UNREACHABLE, REACHABLE)
            assert ruling.lasting


def test_without_a_witness_a_silent_master_is_dead_as_in_the_rfc() -> None:
    ruling = look_up(View(BACKUP, None, NONE, NONE))
    assert (ruling.verdict, ruling.alarm, ruling.lasting) == (TAKE_OVER, False, False)


def test_of_two_that_see_the_same_at_most_one_is_to_be_master() -> None:
    """A master and a backup that hear each other, and neither hears advertisements."""
    for east, west in product(Witness, Witness):
        master = look_up(View(MASTER, BACKUP, east, west)).verdict
        backup = look_up(View(BACKUP, MASTER, west, east)).verdict
        if backup is TAKE_OVER:
            assert master is GIVE_UP
        if master is GIVE_UP:
            assert backup is TAKE_OVER


def test_of_two_masters_exactly_one_stays_unless_the_operator_wants_two() -> None:
    for east, west in product(Witness, Witness):
        better = look_up(View(MASTER, MASTER, east, west, better=False)).verdict
        worse = look_up(View(MASTER, MASTER, west, east, better=True)).verdict
        assert (better is GIVE_UP) is (worse is STAY)
        assert better in {GIVE_UP, STAY}


# Between two looks


def path(master_heard: Verdict = STAY) -> SecondPath:
    return SecondPath(node="west", interval=1.0, settle=SETTLE, master_heard=master_heard)


def east(state: VrrpState, witness: Witness = NONE, at: float = 0.0) -> Said:
    return Said("east", state, witness, at)


def test_what_a_dead_master_has_said_is_stale_before_it_is_missed() -> None:
    made = path()
    # It said so with its last breath, and its last advertisement was an interval before.
    dead, missed = 10.0, 10.0 - 1.0 + DOWN_ADVERTISEMENTS
    assert made.judge(BACKUP, NONE, [east(MASTER, at=dead)], missed).verdict is TAKE_OVER


@pytest.mark.parametrize(("age", "verdict"), [(FRESH - 0.001, STAY), (FRESH, TAKE_OVER)])
def test_a_word_counts_while_it_is_fresh(age: float, verdict: Verdict) -> None:
    assert path().judge(BACKUP, NONE, [east(MASTER, at=5.0)], 5.0 + age).verdict is verdict


def test_three_lost_heartbeats_are_no_silence() -> None:
    assert 3 * ALIVE_INTERVALS < FRESH_INTERVALS < DOWN_ADVERTISEMENTS - 1


def test_the_operator_chooses_what_a_master_that_lives_means_where_no_witness_decides() -> None:
    for verdict in (STAY, TAKE_OVER):
        made = path(verdict)
        for own, peer in ((NONE, NONE), (UNREACHABLE, UNREACHABLE), (REACHABLE, NONE)):
            assert made.judge(BACKUP, own, [east(MASTER, peer)], 0.0).verdict is verdict
    assert path(TAKE_OVER).judge(BACKUP, REACHABLE, [east(MASTER, REACHABLE)], 0.0).verdict is STAY


def test_who_alone_loses_the_witness_gives_up_when_that_has_lasted() -> None:
    made = path()
    for now, verdict in ((0.0, STAY), (SETTLE - 0.01, STAY), (SETTLE, GIVE_UP)):
        said = [east(BACKUP, REACHABLE, now)]
        assert made.judge(MASTER, UNREACHABLE, said, now).verdict is verdict


def test_who_loses_it_first_keeps_the_addresses_if_the_other_loses_it_too() -> None:
    made = path()
    assert made.judge(MASTER, UNREACHABLE, [east(BACKUP, REACHABLE)], 0.0).verdict is STAY
    later = [east(BACKUP, UNREACHABLE, 1.0)]
    assert made.judge(MASTER, UNREACHABLE, later, 1.0).verdict is STAY
    # The time begins anew.
    again = [east(BACKUP, REACHABLE, 2.5)]
    assert made.judge(MASTER, UNREACHABLE, again, 2.5).verdict is STAY


@pytest.mark.parametrize("witness", [NONE, REACHABLE])
def test_of_two_masters_the_worse_gives_way_when_that_has_lasted(witness: Witness) -> None:
    for priority, name, verdict in (
        (90, "west", GIVE_WAY),
        (100, "west", STAY),
        (100, "bottom", GIVE_WAY),
        (110, "west", STAY),
    ):
        made = SecondPath(node=name, interval=1.0, settle=SETTLE, master_heard=STAY)
        for now in (0.0, FRESH - 0.01, FRESH):
            said = [Said("east", MASTER, witness, now, 100)]
            ruling = made.judge(MASTER, witness, said, now, priority)
            assert ruling.verdict is (verdict if now == FRESH else STAY)


def test_who_wants_a_takeover_keeps_two_masters_where_no_witness_decides() -> None:
    made = path(TAKE_OVER)
    for now in (0.0, 10.0):
        said = [Said("east", MASTER, NONE, now, 100)]
        assert made.judge(MASTER, NONE, said, now, 90).verdict is STAY


def test_a_backup_waits_longer_than_the_master_that_is_to_give_up() -> None:
    made = path()
    for now, verdict in ((0.0, STAY), (SETTLE, STAY), (SETTLE + FRESH, TAKE_OVER)):
        said = [east(MASTER, UNREACHABLE, now)]
        assert made.judge(BACKUP, REACHABLE, said, now).verdict is verdict


def test_advertisements_that_come_again_end_the_waiting() -> None:
    made = path()
    made.judge(BACKUP, REACHABLE, [east(MASTER, UNREACHABLE)], 0.0)
    made.rest()
    assert made.ruling is None
    now = SETTLE + FRESH
    said = [east(MASTER, UNREACHABLE, now)]
    assert made.judge(BACKUP, REACHABLE, said, now).verdict is STAY


def test_a_witness_that_had_failed_both_holds_nobody_back() -> None:
    made = path()
    made.note(UNREACHABLE, [east(MASTER, UNREACHABLE)], 0.0)
    assert made.judge(BACKUP, UNREACHABLE, [east(MASTER)], 9.0).verdict is TAKE_OVER
    # It has answered since: now its silence means something again.
    made.note(REACHABLE, [], 10.0)
    assert made.judge(BACKUP, UNREACHABLE, [east(MASTER)], 11.0).verdict is STAY


def test_of_several_peers_the_master_counts_first_and_then_who_could_be_one() -> None:
    made = path()
    said = [east(FAULT), Said("north", BACKUP, NONE, 0.0), Said("south", MASTER, NONE, 0.0)]
    assert made.judge(BACKUP, NONE, said, 0.0).verdict is STAY
    assert made.master == "south"
    both = [Said("north", BACKUP, NONE, 0.0), Said("south", BACKUP, REACHABLE, 0.0)]
    made.judge(MASTER, UNREACHABLE, both, 0.0)
    assert made.judge(MASTER, UNREACHABLE, both, 1.0).reason == "the peer alone reaches the witness"


def test_a_change_of_mind_is_counted_once() -> None:
    made = path()
    for now in (0.0, 0.1, 0.2):
        made.judge(BACKUP, NONE, [east(MASTER, at=now)], now)
    made.judge(BACKUP, NONE, [east(FAULT, at=0.3)], 0.3)
    assert made.counters.snapshot() == {"stay_as_backup": 1, "take_over_as_backup": 1}


# Who is to be fenced


def test_the_last_master_is_suspected_unless_it_denies_it() -> None:
    made, others = path(), ["east", "north"]
    assert made.suspects(others, [], 0.0) == others
    made.note(NONE, [east(MASTER)], 0.0)
    assert made.suspects(others, [east(MASTER)], 0.1) == ["east"]
    assert made.suspects(others, [east(MASTER)], 9.0) == ["east"]
    assert made.suspects(others, [east(BACKUP, at=9.0)], 9.1) == []
    assert made.suspects(others, [east(FAULT, at=9.0)], 9.0 + FRESH) == ["east"]


# Since when a peer says what it says


def test_words_that_go_on_are_one_spell_and_others_begin_another() -> None:
    seen = path()
    for at, state, spell in (
        (10.0, MASTER, (10.0, 10.0)),
        (10.5, MASTER, (10.0, 10.5)),
        (10.5, MASTER, (10.0, 10.5)),
        # No later than words count, and no machine is back so soon.
        (10.5 + max(FRESH, PAUSE_MIN), MASTER, (10.0, 10.5 + FRESH)),
        (13.0, FAULT, (13.0, 13.0)),
        (13.5, BACKUP, (13.0, 13.5)),
        (14.0, MASTER, (14.0, 14.0)),
        (14.1 + FRESH, MASTER, (14.1 + FRESH, 14.1 + FRESH)),
    ):
        seen.note(NONE, [Said("east", state, NONE, at)], at)
        found = seen.spells["east"]
        assert (found.began_at, found.newest_at) == spell
    assert "north" not in seen.spells


def test_a_stall_of_this_node_is_no_pause_of_its_peer() -> None:
    quick = SecondPath(node="west", interval=0.01, settle=SETTLE, master_heard=STAY)
    quick.note(NONE, [Said("east", MASTER, NONE, 5.0)], 5.0)
    quick.note(NONE, [Said("east", MASTER, NONE, 5.5)], 5.5)
    assert quick.spells["east"].began_at == 5.0
