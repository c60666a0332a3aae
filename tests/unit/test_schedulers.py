import pytest

from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.schedulers.hashing import fold, hash_32, port_of
from lvsha.model import Protocol, parse_address
from tests.scheduling import VIRTUAL, Farm, key_of

ALL = pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
HASHED = [  # address, its hash with 8 bits, with 10 bits, with 8 bits and port 40000 added
    ("10.0.0.1", 39, 159, 203),
    ("10.0.0.2", 137, 550, 45),
    ("192.168.1.100", 89, 357, 253),
    ("203.0.113.7", 124, 499, 32),
    ("255.255.255.255", 158, 632, 66),
]


def test_the_names_are_those_of_the_kernel() -> None:
    assert " ".join(SCHEDULERS) == "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos"


@ALL
def test_without_servers_nothing_is_chosen(scheduler: str) -> None:
    assert Farm(scheduler).draw(3) == "---"


@ALL
def test_servers_of_weight_zero_or_overloaded_are_never_chosen(scheduler: str) -> None:
    farm = Farm(scheduler, (0, 1))
    farm["B"].overloaded = True
    assert farm.draw(4) == "----"


@ALL
def test_the_only_usable_server_gets_what_is_not_refused(scheduler: str) -> None:
    farm = Farm(scheduler, (0, 1, 1), flags=("sh-fallback", "mh-fallback"))
    farm["C"].overloaded = True
    keys = [key_of(f"198.51.100.{n}", f"203.0.113.{n}") for n in range(50)]
    assert set(farm.choose(*keys)) == ({"B", "-"} if scheduler == "dh" else {"B"})


@ALL
def test_a_server_that_returns_is_chosen_again(scheduler: str) -> None:
    farm = Farm(scheduler, (1,))
    assert farm.draw(2) == "AA"
    farm.remove(farm["A"])
    assert farm.draw(2) == "--"
    farm.add_again(farm["A"])
    assert farm.draw(2) == "AA"


@pytest.mark.parametrize(("address", "eight", "ten", "with_port"), HASHED)
def test_addresses_hash_as_in_the_kernel(
    address: str, eight: int, ten: int, with_port: int
) -> None:
    value = fold(parse_address(address))
    assert hash_32(value, 8) == eight
    assert hash_32(value, 10) == ten
    assert hash_32(value + 40000, 8) == with_port


@pytest.mark.parametrize(
    ("address", "folded", "eight", "ten"),
    [("2001:db8::1", 0x20010DB9, 63, 252), ("fe80::1234:5678", 0xECB45678, 17, 68)],
)
def test_the_words_of_an_ipv6_address_are_folded(
    address: str, folded: int, eight: int, ten: int
) -> None:
    assert fold(parse_address(address)) == folded
    assert (hash_32(folded, 8), hash_32(folded, 10)) == (eight, ten)


@pytest.mark.parametrize("flag", ["sh-port", "mh-port", "flag-2"])
def test_the_port_counts_only_with_protocols_that_have_ports(flag: str) -> None:
    flags = frozenset({flag})
    for protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP):
        assert port_of(key_of(port=77, protocol=protocol), flags) == 77
        assert port_of(key_of("fd00::1", "fd00::2", port=77, protocol=protocol), flags) == 77
        assert port_of(key_of(port=77, protocol=protocol), frozenset({"flag-1", "flag-3"})) == 0
    assert port_of(key_of(port=77, protocol=Protocol.ESP), flags) == 0


def test_rr_takes_the_newest_first_and_goes_round() -> None:
    assert Farm("rr", (1, 5, 9)).draw(7) == "CBACBAC"


def test_rr_skips_what_is_not_usable_and_ends_its_turn_at_the_last_one() -> None:
    farm = Farm("rr", (1, 1, 1))
    assert farm.draw(1) == "C"
    farm.edit(farm["B"], 0)
    assert farm.draw(3) == "ACA"


def test_rr_goes_on_behind_the_predecessor_of_a_removed_server() -> None:
    farm = Farm("rr", (1, 1, 1))
    assert farm.draw(2) == "CB"
    farm.remove(farm["B"])
    assert farm.draw(2) == "AC"


def test_rr_starts_anew_when_the_head_of_the_list_was_last_and_is_removed() -> None:
    farm = Farm("rr", (1, 1, 1))
    assert farm.draw(1) == "C"
    farm.remove(farm["C"])
    assert farm.draw(3) == "BAB"


def test_rr_keeps_its_place_when_a_server_is_added() -> None:
    farm = Farm("rr", (1, 1, 1))
    assert farm.draw(1) == "C"
    farm.add(1)
    assert farm.draw(4) == "BADC"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((4, 3, 2), "CBAABACBACBAABACBA"),
        ((1, 2, 4), "CBACCCBCBACCCB"),
        ((2, 4, 6), "CBACCBCBACCB"),
    ],
)
def test_wrr_gives_the_kernels_sequence(weights: tuple[int, ...], expected: str) -> None:
    assert Farm("wrr", weights).draw(len(expected)) == expected


def test_wrr_keeps_its_level_through_a_change_but_fits_it_to_the_new_step() -> None:
    farm = Farm("wrr", (8, 7))
    assert farm.draw(6) == "BAABAB"  # levels 1, 8, 7 and half of 6
    farm.edit(farm["A"], 9)
    farm.edit(farm["B"], 6)
    assert farm.draw(10) == "ABABAABABA"  # levels 7, 4, 1 again and again


def test_wrr_raises_a_level_that_is_a_multiple_of_the_new_step() -> None:
    farm = Farm("wrr", (9, 6))
    assert farm.draw(8) == "BAABABAA"  # levels 1, 7, 4, 1, 7
    farm.edit(farm["B"], 8)  # step 1, so it goes on at 7
    assert farm.draw(7) == "BABABAB"
    farm.edit(farm["A"], 12)  # step 4: level 4 becomes 5
    assert farm.draw(6) == "BABAAB"  # levels 5, 1, 9, 5


def test_wrr_does_not_count_down_from_the_weight_of_a_heavy_server_that_is_overloaded() -> None:
    farm = Farm("wrr", (1, 2**31 - 1, 2))
    farm["B"].overloaded = True
    assert farm.draw(7) == "CACCACC"
    farm["C"].overloaded = True
    assert farm.draw(3) == "AAA"
    farm["A"].overloaded = True
    assert farm.draw(2) == "--"


def test_wrr_begins_a_new_round_after_all_were_overloaded() -> None:
    farm = Farm("wrr", (1, 3))
    assert farm.draw(3) == "BAB"  # levels 1, 1, 3
    farm["A"].overloaded = farm["B"].overloaded = True
    assert farm.draw(1) == "-"
    farm["A"].overloaded = farm["B"].overloaded = False
    assert farm.draw(4) == "BBBA"


def test_lc_counts_an_active_connection_257_times() -> None:
    farm = Farm("lc", (1, 9))
    farm["A"].active, farm["B"].inactive = 1, 256
    assert farm.draw(1) == "B"
    farm["B"].inactive = 257
    assert farm.draw(1) == "B"
    farm["B"].inactive = 258
    assert farm.draw(1) == "A"


def test_wlc_compares_load_by_weight_and_the_first_wins_a_tie() -> None:
    farm = Farm("wlc", (2, 1))
    farm["A"].active, farm["B"].active = 2, 1
    assert farm.draw(1) == "B"
    farm["B"].inactive = 1
    assert farm.draw(1) == "A"


def test_sed_counts_the_connection_to_be_placed() -> None:
    farm = Farm("sed", (4, 1, 2))
    assert farm.open(7) == "ACAACBA"


def test_sed_does_not_look_at_inactive_connections() -> None:
    farm = Farm("sed", (1, 1))
    farm["B"].inactive = 1000
    assert farm.draw(1) == "B"


def test_nq_fills_idle_servers_before_any_waits_and_then_does_as_sed() -> None:
    farm = Farm("nq", (9, 1, 2))
    assert farm.open(6) == "CBAAAA"
    farm["B"].active = 0
    assert farm.draw(1) == "B"


def test_nq_does_not_take_an_idle_server_that_is_not_usable() -> None:
    farm = Farm("nq", (1, 0, 1))
    farm["C"].overloaded = True
    farm["A"].active = 5
    assert farm.draw(1) == "A"


def test_fo_keeps_to_the_greatest_weight_until_that_is_out() -> None:
    farm = Farm("fo", (3, 7, 7))
    assert farm.open(20) == "C" * 20
    farm["C"].overloaded = True
    assert farm.open(2) == "BB"
    farm.edit(farm["B"], 0)
    assert farm.open(2) == "AA"


def test_ovf_goes_to_the_next_weight_with_one_more_than_the_weight() -> None:
    farm = Farm("ovf", (1, 2, 2))
    assert farm.open(9) == "CCCBBBAA-"
    farm["B"].active = 2
    assert farm.open(2) == "B-"


def test_dh_deals_slots_one_by_one_without_regard_to_weights() -> None:
    farm = Farm("dh", (9, 1, 1))
    for address, slot, _, _ in HASHED:
        assert farm.choose(key_of(virtual=address)) == "CBA"[slot % 3]


def test_dh_looks_at_the_destination_and_not_at_the_client() -> None:
    farm = Farm("dh", (1, 1, 1))
    assert len({farm.choose(key_of(f"198.51.100.{n}")) for n in range(30)}) == 1
    assert len({farm.choose(key_of(virtual=f"fd00::{n}", client="::1")) for n in range(30)}) == 3


def test_dh_refuses_what_belongs_to_a_server_that_is_out() -> None:
    farm = Farm("dh", (1, 1, 1))
    farm.edit(farm["C"], 0)
    assert farm.choose(key_of(virtual="10.0.0.1")) == "-"  # slot 39
    assert farm.choose(key_of(virtual="10.0.0.2")) == "A"  # slot 137


def test_sh_deals_in_list_order_as_many_slots_as_the_weight() -> None:
    farm = Farm("sh", (3, 2, 1))
    for address, slot, _, _ in HASHED:
        assert farm.draw(2, address) == 2 * ("CBBAAA" * 43)[slot]


def test_sh_gives_a_server_of_weight_zero_one_slot_whose_clients_it_refuses() -> None:
    farm = Farm("sh", (1, 0))
    drawn = "".join(farm.draw(1, address) for address, *_ in HASHED)
    assert drawn == "".join("-A"[slot % 2] for _, slot, _, _ in HASHED)


@pytest.mark.parametrize("flag", ["sh-port", "flag-2"])
def test_sh_with_port_adds_the_port_to_the_address(flag: str) -> None:
    farm = Farm("sh", (3, 2, 1), flags=(flag,))
    for address, _, _, slot in HASHED:
        assert farm.draw(1, address) == ("CBBAAA" * 43)[slot]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [((), "-"), (("flag-3",), "-"), (("sh-fallback",), "B"), (("flag-1",), "B")],
)
def test_sh_refuses_where_its_server_is_down_unless_it_may_fall_back(
    flags: tuple[str, ...], expected: str
) -> None:
    farm = Farm("sh", (3, 2, 1), flags=flags)
    assert farm.draw(1, "10.0.0.1") == "A"
    farm["A"].overloaded = farm["C"].overloaded = True
    assert farm.draw(1, "10.0.0.1") == expected
    farm["B"].overloaded = True
    assert farm.draw(1, "10.0.0.1") == "-"


def test_sh_falls_back_from_twice_its_slot_on() -> None:
    farm = Farm("sh", (1,) * 7, flags=("sh-fallback",))  # the list is G to A
    assert farm.draw(1, "10.0.0.1") == "C"  # slot 39
    farm.edit(farm["C"], 0)
    assert farm.draw(1, "10.0.0.1") == "F"  # slot 78


def test_flags_are_read_when_a_connection_is_scheduled() -> None:
    for scheduler in ("sh", "mh"):
        farm = Farm(scheduler, (1, 1, 1))
        keys = [key_of(port=port) for port in range(1, 100)]
        assert len(set(farm.choose(*keys))) == 1
        farm.options.flags = frozenset({f"{scheduler}-port"})
        assert set(farm.choose(*keys)) == {"A", "B", "C"}
        farm["A"].overloaded = True
        assert "-" in farm.choose(*keys)
        farm.options.flags = frozenset({f"{scheduler}-port", f"{scheduler}-fallback"})
        assert set(farm.choose(*keys)) == {"B", "C"}


def test_sh_starves_the_last_where_weights_fill_the_table() -> None:
    farm = Farm("sh", (1, 300))
    assert set(farm.choose(*(key_of(f"10.0.{n >> 8}.{n & 255}") for n in range(3000)))) == {"B"}


def test_a_seed_spreads_clients_otherwise_and_two_directors_alike() -> None:
    keys = [key_of(f"198.51.100.{n}", VIRTUAL) for n in range(200)]
    for scheduler in ("sh", "mh"):
        kernels = Farm(scheduler, (1, 1, 1)).choose(*keys)
        east, west, other = (
            Farm(scheduler, (1, 1, 1), seed=seed).choose(*keys) for seed in (7, 7, 8)
        )
        assert east == west
        assert len({kernels, east, other}) == 3
        for drawn in (kernels, east, other):
            assert all(drawn.count(letter) > 40 for letter in "ABC")


class Lots:
    """Dice that show what they are told, and note what they were asked."""

    def __init__(self, *lots: int) -> None:
        self._lots = list(lots)
        self.asked: list[tuple[int, int]] = []

    def randint(self, smallest: int, largest: int, /) -> int:
        self.asked.append((smallest, largest))
        return self._lots.pop(0)


@pytest.mark.parametrize(
    ("lots", "chosen"),
    [
        ((0, 0), "C"),
        ((1, 1), "C"),
        ((2, 2), "B"),
        ((3, 3), "B"),
        ((4, 4), "A"),
        ((6, 6), "A"),
        ((0, 6), "C"),  # nobody has a connection: the first drawn
        ((6, 0), "A"),
    ],
)
def test_twos_draws_by_weight_with_zero_as_one_more_lot_of_the_first(
    lots: tuple[int, int], chosen: str
) -> None:
    farm = Farm("twos", (3, 2, 1))
    farm.options.dice = dice = Lots(*lots)
    assert farm.draw(1) == chosen
    assert dice.asked == [(0, 6), (0, 6)]


def test_twos_takes_the_less_loaded_for_its_weight_of_the_two_drawn() -> None:
    farm = Farm("twos", (3, 0, 1))
    farm["A"].active, farm["C"].active = 3, 1
    farm.options.dice = Lots(1, 4, 4, 1, 1, 4, 4, 1)
    assert farm.draw(2) == "CA"  # as loaded as each other
    farm["C"].inactive = 1
    assert farm.draw(2) == "AA"
