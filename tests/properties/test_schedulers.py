"""Schedulers against naive twins that are written from the description, not from the code."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.services import RealServer
from lvsha.model import connection_key
from tests.scheduling import Farm

Twin = Callable[[Farm, bytes, float], RealServer | None]


def usable(server: RealServer) -> bool:
    return server.weight > 0 and not server.overloaded


def load(server: RealServer) -> int:
    return 256 * server.active + server.active + server.inactive


def least(
    servers: list[RealServer], amount: Callable[[RealServer], int | Fraction]
) -> RealServer | None:
    """The first usable one with the least amount."""
    return min(filter(usable, servers), key=amount, default=None)


def for_weight(servers: list[RealServer]) -> RealServer | None:
    return least(servers, lambda server: Fraction(load(server), server.weight))


class RoundRobinTwin:
    """A mark on the list; a removed mark falls back to the one before it."""

    def __init__(self) -> None:
        self.mark: RealServer | None = None
        self.seen: list[RealServer] = []

    def __call__(self, farm: Farm, _key: bytes, _now: float) -> RealServer | None:
        servers = farm.servers
        at = -1 if self.mark is None else servers.index(self.mark)
        for server in servers[at + 1 :] + servers[: at + 1]:
            if usable(server):
                self.mark = server
                return server
        return None

    def removed(self, server: RealServer, before: RealServer | None) -> None:
        if server is self.mark:
            self.mark = before


class WeightedRoundRobinTwin:
    """The kernel's loop, step by step; the head of the list is None."""

    def __init__(self) -> None:
        self.last: RealServer | None = None
        self.level = 0

    def changed(self, servers: list[RealServer]) -> None:
        self.last = None
        step, highest = self.measure(servers)
        if self.level > highest or self.level == 0:
            self.level = highest
        elif step > 1:
            self.level = self.level // step * step + 1

    @staticmethod
    def measure(servers: list[RealServer]) -> tuple[int, int]:
        weights = [server.weight for server in servers]
        step = math.gcd(*weights) or 1
        return step, max(0, max(weights, default=0) - step + 1)

    def __call__(self, farm: Farm, _key: bytes, _now: float) -> RealServer | None:
        servers = farm.servers
        step, highest = self.measure(servers)
        if highest == 0:
            return None
        last, stop = self.last, None
        last_pass = restarted = False
        at = 0 if last is None else servers.index(last) + 1
        while True:
            for server in servers[at:]:
                if not server.overloaded and server.weight >= self.level:
                    self.last = server
                    return server
                if server is stop:
                    self.last = server
                    return None
            self.level -= step
            at = 0
            if self.level <= 0:
                self.level = highest
                if last_pass or last is None:
                    self.last = None
                    return None
                restarted = True
            last_pass = self.level <= step
            if last_pass and restarted:
                stop = last


def least_connection(farm: Farm, _key: bytes, _now: float) -> RealServer | None:
    return least(farm.servers, load)


def weighted_least_connection(farm: Farm, _key: bytes, _now: float) -> RealServer | None:
    return for_weight(farm.servers)


def shortest_delay(farm: Farm, _key: bytes, _now: float) -> RealServer | None:
    return least(farm.servers, lambda server: Fraction(server.active + 1, server.weight))


def never_queue(farm: Farm, key: bytes, now: float) -> RealServer | None:
    idle = [server for server in farm.servers if usable(server) and not server.active]
    return idle[0] if idle else shortest_delay(farm, key, now)


def failover(farm: Farm, _key: bytes, _now: float) -> RealServer | None:
    return least(farm.servers, lambda server: -server.weight)


def overflow(farm: Farm, _key: bytes, _now: float) -> RealServer | None:
    with_room = [server for server in farm.servers if server.active <= server.weight]
    return least(with_room, lambda server: -server.weight)


def folded(address: bytes) -> int:
    value = 0
    for at in range(0, len(address), 4):
        value ^= int.from_bytes(address[at : at + 4])
    return value


def source(key: bytes) -> bytes:
    return key[2:6] if key[0] == 4 else key[2:18]


def destination(key: bytes) -> bytes:
    return key[6:10] if key[0] == 4 else key[18:34]


def top_bits(value: int, bits: int) -> int:
    return (value * 0x61C88647 % 2**32) >> (32 - bits)


def source_hash(farm: Farm, key: bytes, _now: float) -> RealServer | None:
    if not farm.servers:
        return None
    slots: list[RealServer] = []
    for server in itertools.cycle(farm.servers):
        slots += [server] * max(1, server.weight)
        if len(slots) >= 256:
            break
    flags = farm.options.flags
    port = int.from_bytes(key[-4:-2]) if "sh-port" in flags and key[1] in (6, 17, 132) else 0

    def slot(offset: int) -> RealServer:
        return slots[(offset + top_bits(folded(source(key)) + port, 8)) % 256]

    if usable(slot(0)) or "sh-fallback" not in flags:
        return slot(0) if usable(slot(0)) else None
    first = top_bits(folded(source(key)) + port, 8)
    tries = (slot((offset + first) % 256) for offset in range(256))
    return next(filter(usable, tries), None)


def destination_hash(farm: Farm, key: bytes, _now: float) -> RealServer | None:
    if not farm.servers:
        return None
    slots = list(itertools.islice(itertools.cycle(farm.servers), 256))
    chosen = slots[top_bits(folded(destination(key)), 8)]
    return chosen if usable(chosen) else None


def rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) % 2**64


def siphash_1_3(message: bytes, key: int) -> int:
    """SipHash straight from its definition, cut to 32 bits."""
    state = [key ^ c for c in (0x736F6D6570736575, 0x646F72616E646F6D)]
    state += [key ^ c for c in (0x6C7967656E657261, 0x7465646279746573)]

    def one_round() -> None:
        for a, b, c, d, left, right in ((0, 1, 2, 3, 13, 16), (2, 1, 0, 3, 17, 21)):
            state[a] = (state[a] + state[b]) % 2**64
            state[c] = (state[c] + state[d]) % 2**64
            state[b] = rotated(state[b], left) ^ state[a]
            state[d] = rotated(state[d], right) ^ state[c]
            state[a] = rotated(state[a], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        block = int.from_bytes(padded[at : at + 8], "little")
        state[3] ^= block
        one_round()
        state[0] ^= block
    state[2] ^= 0xFF
    for _ in range(3):
        one_round()
    return (state[0] ^ state[1] ^ state[2] ^ state[3]) % 2**32


def position_hash(value: int) -> int:
    return siphash_1_3((value % 2**32).to_bytes(4, "little"), 2654435761) % 4093


def permutation(start: int, skip: int) -> Iterator[int]:
    """All slots, from one on in strides."""
    for number in range(4093):
        yield (start + number * skip) % 4093


def maglev_table(servers: list[RealServer]) -> list[RealServer]:
    step = math.gcd(*(server.last_weight for server in servers))
    if not step:
        return []
    shift = max(0, (max(s.last_weight for s in servers) // step).bit_length() - 6)
    permutations: list[tuple[RealServer, int, Iterator[int]]] = []
    for server in servers:
        value = folded(server.address) + server.port
        skip = siphash_1_3(value.to_bytes(4, "little"), 2654446892) % 4092 + 1
        turns = max(server.last_weight // step >> shift, int(server.last_weight > 0))
        slots = permutation(position_hash(value), skip)
        permutations.append((server, turns, slots))
    table: dict[int, RealServer] = {}
    while len(table) < 4093:
        for server, turns, slots in permutations:
            for _ in range(turns):
                if len(table) < 4093:
                    table[next(slot for slot in slots if slot not in table)] = server
    return [table[slot] for slot in range(4093)]


class MaglevTwin:
    def __init__(self) -> None:
        self.tables: dict[tuple[tuple[RealServer, int], ...], list[RealServer]] = {}

    def __call__(self, farm: Farm, key: bytes, _now: float) -> RealServer | None:
        listed = tuple((server, server.last_weight) for server in farm.servers)
        if listed not in self.tables:
            self.tables[listed] = maglev_table(farm.servers)
        table = self.tables[listed]
        if not table:
            return None
        flags = farm.options.flags
        port = int.from_bytes(key[-4:-2]) if "mh-port" in flags and key[1] in (6, 17, 132) else 0
        value = folded(source(key)) + port
        first = position_hash(value)
        if usable(table[first]):
            return table[first]
        if "mh-fallback" not in flags or not any(map(usable, table)):
            return None
        tries = (table[position_hash(value + (n + first) % 4093)] for n in range(4093))
        return next(filter(usable, tries), None)


class TableTwin:
    """What lblc and lblcr remember, without limits, and swept every thirty minutes."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.sets: dict[bytes, list[RealServer]] = {}
        self.used: dict[bytes, float] = {}
        self.changed: dict[bytes, float] = {}

    def sweep(self, now: float, expiration: float) -> None:
        if self.began is None:
            self.began = now
        swept = self.began + (now - self.began) // 1800 * 1800
        if swept == self.began:
            return
        for address in [at for at, used in self.used.items() if used + expiration <= swept]:
            del self.sets[address], self.used[address], self.changed[address]


def crowded(farm: Farm, server: RealServer) -> bool:
    return server.active > server.weight and any(
        2 * other.active < other.weight for other in farm.servers
    )


class LocalityTwin(TableTwin):
    def __call__(self, farm: Farm, key: bytes, now: float) -> RealServer | None:
        self.sweep(now, farm.options.lblc_expiration)
        address = destination(key)
        if address in self.sets:
            self.used[address] = now
            (server,) = self.sets[address]
            if server in farm.servers and server.weight and not crowded(farm, server):
                return server
        chosen = for_weight(farm.servers)
        if chosen is not None:
            self.sets[address] = [chosen]
            self.used[address] = self.changed[address] = now
        return chosen


class ReplicatedLocalityTwin(TableTwin):
    def __call__(self, farm: Farm, key: bytes, now: float) -> RealServer | None:
        expiration = farm.options.lblcr_expiration
        self.sweep(now, expiration)
        address = destination(key)
        members = self.sets.get(address)
        if members is None:
            chosen = for_weight(farm.servers)
            if chosen is not None:
                self.sets[address] = [chosen]
                self.used[address] = self.changed[address] = now
            return chosen
        self.used[address] = now
        best = for_weight([server for server in members if server in farm.servers])
        if len(members) > 1 and now > self.changed[address] + expiration:
            weighing = [server for server in members if server.weight]
            if weighing:
                members.remove(max(weighing, key=lambda s: Fraction(load(s), s.weight)))
                self.changed[address] = now
        if best is not None and not crowded(farm, best):
            return best
        chosen = for_weight(farm.servers)
        if chosen is not None and chosen not in members:
            members.insert(0, chosen)
            self.changed[address] = now
        return chosen


class TwoChoicesTwin:
    def __init__(self) -> None:
        self.dice = random.Random("twos")  # those of the farm

    def __call__(self, farm: Farm, _key: bytes, _now: float) -> RealServer | None:
        servers = list(filter(usable, farm.servers))
        if not servers:
            return None
        lots = [server for server in servers for _ in range(server.weight)]
        lots.insert(0, servers[0])
        first, second = (lots[self.dice.randint(0, len(lots) - 1)] for _ in range(2))
        return min(first, second, key=lambda server: Fraction(load(server), server.weight))


TWINS: dict[str, Callable[[], Twin]] = {
    "rr": RoundRobinTwin,
    "wrr": WeightedRoundRobinTwin,
    "lc": lambda: least_connection,
    "wlc": lambda: weighted_least_connection,
    "lblc": LocalityTwin,
    "lblcr": ReplicatedLocalityTwin,
    "dh": lambda: destination_hash,
    "sh": lambda: source_hash,
    "sed": lambda: shortest_delay,
    "nq": lambda: never_queue,
    "fo": lambda: failover,
    "ovf": lambda: overflow,
    "mh": MaglevTwin,
    "twos": TwoChoicesTwin,
}


def test_every_scheduler_has_a_twin() -> None:
    assert TWINS.keys() == SCHEDULERS.keys()


OTHERS = ["close", "add", "again", "remove", "edit", "overload", "wait"]
OPERATIONS = [*["open"] * 4, *OTHERS]
steps = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 5), st.integers(0, 5)), max_size=60
)


def key_number(number: int, kind: int) -> bytes:
    """Of few destinations, many clients, both families and three protocols."""
    size = 16 if kind % 3 == 2 else 4
    client = random.Random(number).randbytes(size)
    virtual = (0xC0000201 + kind % 2).to_bytes(size)
    return connection_key((6, 17, 50)[number % 3], client, 1024 + number, virtual, 80)


def play(
    name: str,
    weights: list[int],
    sequence: list[tuple[str, int, int]],
    flags: frozenset[str],
    expiration: float,
) -> Iterator[tuple[Farm, RealServer | None, RealServer | None]]:
    """The farm, what the scheduler chose and what its twin does, of each connection."""
    farm, twin = Farm(name, flags=flags), TWINS[name]()
    farm.options.lblc_expiration = farm.options.lblcr_expiration = expiration
    changed = twin.changed if isinstance(twin, WeightedRoundRobinTwin) else lambda _servers: None
    now, gone = 0.0, list[RealServer]()
    for weight in weights:
        farm.add(weight)
        changed(farm.servers)
    for number, (operation, which, amount) in enumerate(sequence):
        server = farm.servers[which % len(farm.servers)] if farm.servers else None
        match operation:
            case "open":
                key = key_number(number, which)
                chosen, expected = farm.scheduler.schedule(key, now), twin(farm, key, now)
                yield farm, chosen, expected
                if chosen is not None:
                    chosen.active += amount % 2
                    chosen.inactive += 1 - amount % 2
            case "wait":
                now += (1.0, 61.0, 400.0, 1700.0, 1800.0, 90000.0)[which]
            case "add":
                farm.add(amount)
                changed(farm.servers)
            case "again" if gone:
                farm.add_again(gone.pop())
                changed(farm.servers)
            case "close" if server is not None:
                server.active = max(0, server.active - 1 - amount)
            case "remove" if server is not None:
                at = farm.servers.index(server)
                before = farm.servers[at - 1] if at else None
                farm.remove(server)
                gone.append(server)
                if isinstance(twin, RoundRobinTwin):
                    twin.removed(server, before)
                changed(farm.servers)
            case "edit" if server is not None:
                farm.edit(server, amount * (1 if which else 100))
                changed(farm.servers)
            case "overload" if server is not None:
                server.overloaded = bool(amount % 2)


some_flags = st.frozensets(
    st.sampled_from(["sh-port", "sh-fallback", "mh-port", "mh-fallback"]), max_size=4
)


@pytest.mark.parametrize("name", sorted(TWINS))
@given(
    st.lists(st.integers(0, 5), max_size=4),
    steps,
    some_flags,
    st.sampled_from([100.0, 1000.0, 86400.0]),
)
@settings(deadline=None)
def test_a_scheduler_chooses_what_its_description_says(
    name: str,
    weights: list[int],
    sequence: list[tuple[str, int, int]],
    flags: frozenset[str],
    expiration: float,
) -> None:
    flags = frozenset(flag for flag in flags if flag.startswith(name))
    for farm, chosen, expected in play(name, weights, sequence, flags, expiration):
        assert farm.name(chosen) == farm.name(expected)
        if chosen is not None:
            assert chosen in farm.servers
            assert chosen.weight > 0
            assert name == "lblc" or not chosen.overloaded


def rounds(weights: list[int]) -> Iterator[int]:
    """Indices in the order of a whole wrr round, straight from the definition."""
    step = max(d for d in range(1, max(weights) + 1) if all(w % d == 0 for w in weights))
    for level in range(max(weights), 0, -step):
        yield from (index for index, weight in enumerate(weights) if weight >= level)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 3))
def test_each_wrr_round_gives_every_server_its_weight_in_the_order_of_levels(
    weights: list[int], times: int
) -> None:
    farm = Farm("wrr", weights)
    expected = list(rounds([server.weight for server in farm.servers]))
    chosen = [farm.scheduler.schedule(b"", 0.0) for _ in range((times + 1) * len(expected))]
    indices = [farm.servers.index(server) for server in chosen if server is not None]
    assert len(indices) == len(chosen)
    # The first round may begin in the middle, because the current weight survives changes.
    start = next(
        at
        for at in range(len(expected))
        if indices[: len(expected)] == expected[at:] + expected[:at]
    )
    assert indices[len(expected) - start :][: len(expected)] == expected


@given(st.integers(1, 5))
def test_wrr_without_a_usable_server_chooses_none_and_ends(count: int) -> None:
    farm = Farm("wrr", range(count))
    for server in farm.servers:
        server.overloaded = True
    assert [farm.scheduler.schedule(b"", 0.0) for _ in range(3)] == [None] * 3


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6), st.data())
def test_wrr_is_quick_with_weights_of_any_size(weights: list[int], data: st.DataObject) -> None:
    farm = Farm("wrr", weights)
    for server in farm.servers:
        server.overloaded = data.draw(st.booleans())
    for _ in range(20):
        chosen = farm.scheduler.schedule(b"", 0.0)
        assert (chosen is not None) == any(map(usable, farm.servers))
        assert chosen is None or usable(chosen)
