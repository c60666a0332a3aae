import errno

import pytest

from lvsha.datapath.scheduler_options import SchedulerOptions
from lvsha.datapath.schedulers.maglev_hashing import SLOTS, MaglevHashing
from lvsha.datapath.schedulers.siphash import hsiphash, hsiphash_each
from lvsha.errors import AdministrationError
from lvsha.model import parse_address
from tests.scheduling import Farm, key_of

POSITION_KEY, STRIDE_KEY = 2_654_435_761, 2_654_446_892
CLIENTS = [  # address, its slot, its slot with port 40000
    ("10.0.0.1", 3711, 2940),
    ("192.168.1.100", 1341, 1689),
    ("203.0.113.7", 1705, 2964),
]
FIRST_SLOTS = "ABCACABABCACCBABACCCAABACBCCABACBCAACBCBAAABCCBAACBCABCBCBCCAABA"


def farm_of(*weights: int, flags: tuple[str, ...] = ()) -> Farm:
    """Servers 192.168.1.1:80 and so on, as in the vectors."""
    return Farm("mh", weights, flags=flags, network="192.168.0.255")


SOURCES = {  # an address for each slot
    hashed % SLOTS: value
    for value, hashed in enumerate(hsiphash_each(range(60 * SLOTS), POSITION_KEY))
}


def slots(farm: Farm) -> str:
    """The whole table: for each slot what a client of that slot gets."""
    sources = (SOURCES[slot].to_bytes(4) for slot in range(SLOTS))
    return farm.choose(*(b"\x04\x06" + source + bytes(8) for source in sources))


def test_the_hash_is_the_kernels() -> None:
    assert hsiphash(0, POSITION_KEY) == 0x1D5A77C2
    assert hsiphash(1, POSITION_KEY) == 0x16EC66B2
    assert hsiphash(0, STRIDE_KEY) == 0xF882433F


def test_many_words_hash_as_each_of_them_does() -> None:
    words = [0, 1, 0xFFFFFFFF, 0x80000000, *range(7, 2**32, 2**27 + 12345)]
    for key in (POSITION_KEY, 2**64 - 1, -3, 2**64 + 5):
        assert hsiphash_each(words, key) == [hsiphash(word, key) for word in words]
    assert hsiphash_each([], POSITION_KEY) == []


@pytest.mark.parametrize(("client", "slot", "with_port"), CLIENTS)
def test_clients_have_the_slots_that_the_kernel_gives_them(
    client: str, slot: int, with_port: int
) -> None:
    address = int.from_bytes(parse_address(client))
    assert hsiphash(address, POSITION_KEY) % SLOTS == slot
    assert hsiphash(address + 40000, POSITION_KEY) % SLOTS == with_port
    assert farm_of(1, 1, 1).draw(1, client) == "B"


def test_the_table_of_three_equal_servers_is_the_kernels() -> None:
    table = slots(farm_of(1, 1, 1))
    assert table.startswith(FIRST_SLOTS)
    assert [table.count(letter) for letter in "ABC"] == [1364, 1364, 1365]


def test_heavier_servers_take_more_slots_in_a_turn() -> None:
    table = slots(farm_of(1, 2, 4))
    assert [table.count(letter) for letter in "ABC"] == [584, 1169, 2340]
    assert slots(farm_of(10, 20, 40)) == table


def test_weights_too_great_for_a_turn_are_shifted_and_the_light_still_take_one() -> None:
    # 1000 has 10 bits, 4 more than a turn: 1000 becomes 62, 40 becomes 2, 3 would be 0.
    assert slots(farm_of(1000, 40, 3)) == slots(farm_of(62, 2, 1))


@pytest.mark.parametrize(("flag", "column"), [("mh-port", 2), ("flag-2", 2), ("flag-3", 1)])
def test_with_port_the_port_is_added_to_the_address(flag: str, column: int) -> None:
    table = slots(farm_of(1, 2, 4))
    farm = farm_of(1, 2, 4, flags=(flag,))
    for client in CLIENTS:
        slot = int(client[column])
        assert farm.draw(1, client[0]) == table[slot]


def test_a_server_that_is_drained_keeps_its_slots_and_refuses() -> None:
    farm = farm_of(1, 2, 4)
    before = slots(farm)
    farm.edit(farm["B"], 0)
    assert slots(farm) == before.replace("B", "-")
    farm.edit(farm["B"], 2)
    assert slots(farm) == before


def test_a_server_that_never_weighed_anything_has_no_slots() -> None:
    assert slots(farm_of(1, 0, 1)).count("-") == 0
    assert farm_of(0, 0).draw(2) == "--"


def test_falling_back_hashes_on_from_the_slot() -> None:
    farm = farm_of(1, 1, 1, flags=("mh-fallback",))
    table = slots(farm)
    farm["B"].overloaded = True
    for client, slot, _ in CLIENTS:
        value = int.from_bytes(parse_address(client))
        expected = next(
            table[hashed % SLOTS]
            for offset in range(SLOTS)
            for hashed in [hsiphash(value + (offset + slot) % SLOTS, POSITION_KEY)]
            if table[hashed % SLOTS] != "B"
        )
        assert farm.draw(2, client) == expected * 2
    farm["A"].overloaded = farm["C"].overloaded = True
    assert farm.draw(1) == "-"


def test_a_seed_parts_clients_that_the_kernels_hash_puts_into_one_slot() -> None:
    hashes = hsiphash_each(range(60 * SLOTS), POSITION_KEY)
    together = [value for value, hashed in enumerate(hashes) if hashed % SLOTS == 7]
    keys = [b"\x04\x06" + value.to_bytes(4) + bytes(8) for value in together]
    assert len(keys) > 30
    assert len(set(Farm("mh", (1, 1, 1)).choose(*keys))) == 1
    assert set(Farm("mh", (1, 1, 1), seed=7).choose(*keys)) == {"A", "B", "C"}


def test_few_clients_move_when_a_server_is_removed_and_they_return_with_it() -> None:
    farm = farm_of(*[1] * 20)
    before = slots(farm)
    farm.remove(farm["G"])
    without = slots(farm)
    moved = sum(a != b for a, b in zip(before, without, strict=True) if a != "G")
    assert "G" not in without
    assert moved < SLOTS // 10
    farm.remove(farm["T"])
    farm.add_again(farm["G"])
    farm.add_again(farm["T"])
    assert "G" in slots(farm)


def test_ipv6_addresses_are_folded() -> None:
    farm = Farm("mh", (1, 1, 1), network="fd00:5::")
    same = ("2001:db8::1", "0:0:2001:db8::1")
    assert len({farm.choose(key_of(client, "fd00::1")) for client in same}) == 1
    drawn = farm.choose(*(key_of(f"2001:db8::{n:x}", "fd00::1") for n in range(300)))
    assert all(drawn.count(letter) > 50 for letter in "ABC")


def test_more_servers_than_slots_are_refused_at_first_and_get_nothing_later() -> None:
    farm = Farm("mh", [1] * SLOTS, network="10.1.0.0")
    key = key_of()
    before = farm.scheduler.schedule(key, 0.0)
    newest = farm.add(1)
    assert farm.scheduler.schedule(key, 0.0) is before
    with pytest.raises(AdministrationError, match="4093 real servers") as raised:
        MaglevHashing(farm.servers, SchedulerOptions())
    assert raised.value.code == errno.EINVAL
    assert before is not None
    farm.add(1)
    farm.remove(before)  # one too many still: its clients are refused
    assert farm.scheduler.schedule(key, 0.0) is None
    farm.remove(newest)
    assert farm.scheduler.schedule(key, 0.0) is not None
