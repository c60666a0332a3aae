import pytest

from lvsha.datapath.schedulers import locality
from lvsha.datapath.schedulers.destination_table import (
    ENTRIES_MAX,
    ENTRIES_WANTED,
    DestinationTable,
)
from lvsha.datapath.schedulers.hashing import fold, hash_32
from tests.scheduling import Farm, key_of

BOTH = pytest.mark.parametrize("scheduler", ["lblc", "lblcr"])
HERE, THERE = key_of(virtual="203.0.113.1"), key_of(virtual="203.0.113.2")


@BOTH
def test_a_destination_keeps_its_server_while_another_has_less_to_do(scheduler: str) -> None:
    farm = Farm(scheduler, (9, 9, 9))
    assert farm.open(4, HERE) == "CCCC"
    assert farm.open(2, THERE) == "BB"
    assert farm.open(2, HERE) == "CC"


@BOTH
def test_clients_do_not_matter_to_it(scheduler: str) -> None:
    farm = Farm(scheduler, (9, 9))
    assert farm.open(1, key_of("198.51.100.1")) == "B"
    assert farm.open(1, key_of("198.51.100.2", port=7)) == "B"


@BOTH
def test_a_destination_leaves_a_server_above_its_weight_if_another_is_half_empty(
    scheduler: str,
) -> None:
    farm = Farm(scheduler, (3, 2))
    farm["A"].active = 2
    assert farm.open(3, HERE) == "BBB"  # 3 are more than the weight
    assert farm.draw(1) == "A"  # another destination; wlc
    assert farm.open(1, HERE) == "B"  # 2 are not less than half of 3
    farm["A"].active = 1
    assert farm.open(1, HERE) == "A"
    farm["B"].active = 0
    assert farm.draw(1) in "AB"


@BOTH
@pytest.mark.parametrize("trouble", ["weight", "removed"])
def test_a_destination_leaves_a_server_that_is_out(scheduler: str, trouble: str) -> None:
    farm = Farm(scheduler, (9, 9))
    assert farm.open(1, HERE) == "B"
    if trouble == "weight":
        farm.edit(farm["B"], 0)
    else:
        farm.remove(farm["B"])
    assert farm.open(1, HERE) == "A"
    farm.edit(farm["A"], 0)
    assert farm.open(1, HERE) == "-"


def test_lblc_keeps_to_a_server_above_its_threshold_and_lblcr_does_not() -> None:
    for scheduler, expected in (("lblc", "B"), ("lblcr", "A")):
        farm = Farm(scheduler, (9, 9))
        assert farm.open(1, HERE) == "B"
        farm["B"].overloaded = True
        assert farm.open(1, HERE) == expected


def test_lblc_moves_to_the_new_server_and_does_not_come_back() -> None:
    farm = Farm("lblc", (9, 9))
    assert farm.open(1, HERE) == "B"
    farm.edit(farm["B"], 0)
    assert farm.open(1, HERE) == "A"
    farm.edit(farm["B"], 9)
    assert farm.open(3, HERE) == "AAA"


def test_lblc_returns_to_a_server_that_was_away_while_nobody_asked() -> None:
    farm = Farm("lblc", (9, 9))
    assert farm.open(1, HERE) == "B"
    farm["B"].active = 5
    farm.remove(farm["B"])
    farm.add_again(farm["B"])
    assert farm.open(1, HERE) == "B"


def test_lblcr_spreads_a_destination_over_its_set() -> None:
    farm = Farm("lblcr", (2, 2, 2))
    assert farm.open(3, HERE) == "CCC"  # then it is crowded
    assert farm.open(1, HERE) == "B"
    farm["C"].active = 0
    assert farm.open(3, HERE) == "CBC"  # the less loaded of the set; A is not in it
    farm["B"].active = farm["C"].active = 3
    assert farm.open(1, HERE) == "A"


def test_lblcr_lets_the_most_loaded_go_when_the_set_was_long_unchanged() -> None:
    farm = Farm("lblcr", (2, 2))
    farm.options.lblcr_expiration = 100.0
    assert farm.open(3, HERE, now=0.0) == "BBB"
    assert farm.open(1, HERE, now=10.0) == "A"  # the set is A, B
    farm["A"].active, farm["B"].active = 1, 0
    assert farm.open(1, HERE, now=110.0) == "B"  # exactly as long is not longer
    farm["A"].active, farm["B"].active = 0, 2
    assert farm.open(1, HERE, now=111.0) == "A"  # B is let go
    farm["A"].active, farm["B"].active = 2, 0
    assert farm.open(1, HERE, now=112.0) == "A"  # not crowded yet, and alone
    assert farm.open(1, HERE, now=113.0) == "B"


def test_lblcr_lets_one_server_go_at_a_time() -> None:
    farm = Farm("lblcr", (2, 2, 2))
    farm.options.lblcr_expiration = 100.0
    assert farm.open(9, HERE) == "CCCBBBAAA"  # the set is A, B, C
    farm["A"].active, farm["B"].active = 0, 1
    assert farm.open(2, HERE, now=101.0) == "AA"  # C is let go, which changes the set
    farm["A"].active, farm["B"].active = 0, 2
    assert farm.open(1, HERE, now=102.0) == "A"  # still a member


def test_lblcr_uses_a_server_once_more_as_it_lets_it_go() -> None:
    farm = Farm("lblcr", (2, 2))
    farm.options.lblcr_expiration = 100.0
    assert farm.open(3, HERE, now=0.0) == "BBB"
    assert farm.open(1, HERE, now=0.0) == "A"
    farm.edit(farm["B"], 0)  # weight 0 neither serves nor counts as loaded
    farm["A"].active = 1
    assert farm.open(1, HERE, now=101.0) == "A"
    farm.edit(farm["B"], 2)
    farm["A"].active, farm["B"].active = 0, 2
    assert farm.open(1, HERE, now=102.0) == "B"


def test_the_expiration_is_read_when_it_is_needed() -> None:
    farm = Farm("lblcr", (2, 2))
    assert farm.open(3, HERE, now=0.0) == "BBB"
    assert farm.open(1, HERE, now=0.0) == "A"
    farm["A"].active, farm["B"].active = 0, 2
    farm.options.lblcr_expiration = 5.0
    assert farm.open(1, HERE, now=6.0) == "A"
    farm["A"].active, farm["B"].active = 2, 0
    assert farm.open(1, HERE, now=7.0) == "A"


def test_a_large_set_forgets_members_that_are_no_longer_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locality, "MEMBERS_MAX", 3)
    farm = Farm("lblcr")
    gone = [farm.add(1) for _ in range(5)]
    for server in gone[1:]:
        farm.remove(server)
    assert farm.open(1, HERE) == "A"
    for server in gone[1:]:
        farm.remove(farm.servers[0])
        farm.add_again(server)
        assert farm.open(1, HERE) == farm.name(server)
    # A to C made the set full: they were forgotten for D. E is the last.
    for server in gone[:4]:
        farm.add_again(server)
        server.active = 0
    farm["D"].active = farm["E"].active = 1
    assert farm.open(1, HERE) == "E"


@BOTH
def test_an_unused_destination_is_forgotten_by_the_thirtieth_collection(scheduler: str) -> None:
    farm = Farm(scheduler, (9, 9))
    farm.options.lblc_expiration = farm.options.lblcr_expiration = 600.0
    assert farm.open(1, HERE, now=0.0) == "B"
    assert farm.open(1, HERE, now=1799.0) == "B"  # long past, but not yet collected
    assert farm.open(1, HERE, now=2500.0) == "B"  # the collection at 1800 found it used
    farm["A"].active = 0
    assert farm.open(1, HERE, now=3500.0) == "B"
    assert farm.open(1, HERE, now=7300.0) == "A"  # those at 5400 and 7200 did not


def address(number: int) -> bytes:
    return (0x0A000000 + number).to_bytes(4)


class Used:
    """An entry that holds nothing."""

    def __init__(self, used: float) -> None:
        self.used = used


def filled(count: int, used: float = 0.0) -> DestinationTable[Used]:
    table: DestinationTable[Used] = DestinationTable()
    table.collect(0.0, 86400.0)
    for number in range(count):
        assert table.store(address(number), Used(used))
    return table


def collect_all(table: DestinationTable[Used], now: float, expiration: float = 86400.0) -> None:
    """What sixteen connections do."""
    for _ in range(16):
        table.collect(now, expiration)


def test_a_full_table_takes_no_more_and_keeps_what_it_has() -> None:
    table = filled(ENTRIES_MAX)
    assert not table.store(b"new.", Used(0.0))
    assert table.find(b"new.", 1.0) is None
    assert table.find(address(7), 1.0) is not None
    assert len(table) == ENTRIES_MAX


def test_a_full_table_is_without_effect_on_the_choice() -> None:
    farm = Farm("lblc", (10**6, 10**6))
    for number in range(ENTRIES_MAX):
        assert farm.choose(HERE[:6] + address(number) + HERE[10:]) == "B"
    farm["B"].active = 1
    assert farm.choose(THERE, HERE[:6] + address(5) + HERE[10:]) == "AB"
    farm["A"].active = 2
    assert farm.choose(THERE) == "B"


def test_up_to_the_wanted_number_nothing_is_forgotten_before_it_expires() -> None:
    table = filled(ENTRIES_WANTED)
    for minute in range(1, 30):
        collect_all(table, 60.0 * minute)
    assert len(table) == ENTRIES_WANTED
    collect_all(table, 1800.0, expiration=1800.0)
    assert len(table) == 0


def test_with_more_than_wanted_whole_buckets_of_old_entries_are_forgotten_in_order() -> None:
    table = filled(ENTRIES_WANTED + 300)
    collect_all(table, 300.0)
    assert len(table) == ENTRIES_WANTED + 300  # none is old
    table.find(address(0), 300.0)
    collect_all(table, 360.0)
    gone = {
        number
        for number in range(ENTRIES_WANTED + 300)
        if table.find(address(number), 360.0) is None
    }
    buckets = {hash_32(fold(address(number)), 10) for number in gone}
    assert min(buckets) == 1
    assert max(buckets) == len(buckets)
    assert 400 <= len(gone) < 400 + 40  # four thirds of the excess, and the rest of a bucket
    assert len(table) == ENTRIES_WANTED + 300 - len(gone)
    collect_all(table, 420.0)
    assert len(table) == ENTRIES_WANTED + 300 - len(gone)  # few enough again


def test_no_collection_forgets_more_than_half_of_the_wanted_number() -> None:
    table = filled(ENTRIES_MAX)
    collect_all(table, 400.0)
    assert 0 <= ENTRIES_MAX - ENTRIES_WANTED // 2 - len(table) < 60


def test_a_collection_is_spread_over_sixteen_connections_but_holds_from_the_first() -> None:
    table = filled(16000)
    table.collect(1800.0, 1000.0)
    assert 14000 < len(table) < 16000
    assert all(table.find(address(number), 1800.0) is None for number in range(16000))
    assert len(table) == 0


def test_collections_missed_in_a_pause_are_made_up_for_at_the_time_they_were_due() -> None:
    table = filled(1)
    assert table.find(address(0), 1000.0) is not None
    collect_all(table, 10 * 86400.0 + 30.0, expiration=10 * 86400.0 - 1000.0 + 1.0)
    assert table.find(address(0), 10 * 86400.0 + 30.0) is not None
    collect_all(table, 10 * 86400.0 + 1830.0, expiration=1801.0)
    assert table.find(address(0), 10 * 86400.0 + 1830.0) is not None
